"""What is asked of images: the texts, which of them are explained, and how; and what one pass answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError, check_text_indices
from ..heavy import torch
from ..towers.similarity import softmax_probabilities
from .methods import check_method, check_similarity

CONTRAST_GAMMA = 0.6


class Question(NamedTuple):
    """What is asked of every image."""

    names: list[str]  # K short names
    texts: list[str]  # K texts as the model reads them
    targets: Sequence[int] | None = None  # which are explained; None: the most similar one of each image
    contrast: float = 0.0  # gamma of `contrastive_directions`
    method: str = "gradcam"  # one of METHODS, or "all"; an Explainer's has the encoder's default in place of none
    similarity: str = "cosine"  # or "dot": what is explained
    faithfulness: bool = False  # whether each heatmap is tested by deletion and insertion
    img_size: int | None = None  # side of the model's input where the model does not say

    def targets_of(self, image: ImageMaps) -> list[int]:
        """Indices of the texts that are explained of an image."""
        return [int(image.similarities.argmax())] if self.targets is None else list(self.targets)


def check_question(question: Question) -> None:
    """InputError where a method, a similarity and several texts do not go together."""
    if question.method != "all":
        check_method(question.method)
    elif question.targets is not None and len(question.targets) > 1:
        raise InputError("method=all（--method all）一次只比较一个文本；请给出一个目标文本索引")
    check_similarity(question.similarity)


def target_texts(target_text_idx, count: int) -> list[int] | None:
    """None, "all", an int or several -> indices without repetition, None for the most similar; InputError if none."""
    if target_text_idx is None:
        return None
    if isinstance(target_text_idx, str):
        if target_text_idx != "all":
            raise InputError(f'目标文本索引应是整数、整数列表或 "all"，收到 {target_text_idx!r}')
        return list(range(count))
    targets = np.atleast_1d(np.asarray(target_text_idx))
    if targets.ndim > 1 or targets.size == 0 or not np.issubdtype(targets.dtype, np.integer):
        raise InputError(f"目标文本索引应是整数，收到 {target_text_idx!r}")
    check_text_indices(targets.tolist(), count)
    return list(dict.fromkeys(targets.tolist()))


def target_indices(target_text_idx, similarities: torch.Tensor) -> torch.Tensor:
    """None, an int, one int per image, or [B, T] -> int64 [B, T]; None: the most similar of `similarities` [B, K]."""
    if target_text_idx is None:
        return similarities.argmax(dim=1, keepdim=True)
    targets = torch.as_tensor(target_text_idx, device=similarities.device)
    if targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise InputError(f"目标文本索引应是整数，收到 {target_text_idx!r}")
    batch = len(similarities)
    targets = targets.expand(batch) if targets.ndim == 0 else targets
    if targets.shape[0] != batch:
        raise InputError(f"目标文本索引有 {targets.shape[0]} 个，图像有 {batch} 张；请给一个整数，或每张图像一个")
    check_text_indices(targets.flatten().tolist(), similarities.shape[1])
    return targets.long().reshape(batch, -1).clone()  # a tensor of inference mode cannot be on a graph


def contrastive_directions(texts: torch.Tensor, gamma: float = CONTRAST_GAMMA) -> torch.Tensor:
    """t_k - gamma * mean of the other texts, for unit text features [K, D].

    Their product with the image's embedding is cos(image, t_k) - gamma * mean cos(image, others): what speaks
    for this text rather than for the others (Finer-CAM, arXiv 2501.11309). InputError where K is 1.
    """
    if len(texts) < 2:
        raise InputError("对比（--contrast）至少需要两个类别文本")
    return texts - gamma * (texts.sum(0) - texts) / (len(texts) - 1)


class TargetScores(NamedTuple):
    """The scores of the texts that are explained, called with embeddings."""

    scores: Callable  # (embeddings [n, D], directions [K, D]) -> [n, K]
    directions: torch.Tensor
    targets: torch.Tensor  # [B, T]

    def __call__(self, embeddings: torch.Tensor, image: int | None = None) -> torch.Tensor:
        """Embeddings [B, D] -> y of each explained text [B, T]; [n, D], all of variants of one image -> [n, T]."""
        targets = self.targets if image is None else self.targets[image].expand(len(embeddings), -1)
        return self.scores(embeddings, self.directions).gather(1, targets)


class TextMaps(NamedTuple):
    """What one forward pass gives for B images, K texts and T explained texts per image; float32."""

    maps: torch.Tensor  # [B, T, h, w] at the target layer, before the ReLU
    gradient_peaks: torch.Tensor  # [B, T] largest |gradient| behind the map
    similarities: torch.Tensor  # [B, K] cosine
    targets: torch.Tensor  # [B, T] index of each explained text


class ImageMaps(NamedTuple):
    """What the model says of one image and each of K texts."""

    maps: np.ndarray  # float32 [K, h, w] at the target layer, before the ReLU
    gradient_peaks: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    probabilities: np.ndarray  # [K]
    faithfulness: list | None = None  # T, where the explained texts' maps were tested


def probabilities_of(model, similarities: torch.Tensor) -> torch.Tensor:
    """Cosines [B, K] -> probabilities [B, K] by the model's own rule, else a softmax over cosine / temperature.

    InputError where the model has neither, or a temperature that is not finite and positive.
    """
    if hasattr(model, "probabilities"):
        return model.probabilities(similarities)
    if getattr(model, "temperature", None) is None:
        raise InputError(
            f"{type(model).__name__} 没有 probabilities 方法，也没有 temperature，不能算出概率；请用 "
            "load_clip_checkpoint 得到模型，或给它一个 temperature"
        )
    return softmax_probabilities(similarities, model.temperature)
