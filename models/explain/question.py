"""What is asked of images: the texts, which of them are explained, and how; and what one pass answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError, check_text_indices
from ..heavy import torch
from ..towers.similarity import check_scale, softmax_probabilities
from .methods import METHODS, check_method, check_similarity, reads_attention
from .words import Word

CONTRAST_GAMMA = 0.6
OTHERS_TEMPERATURE = 2.0  # the model's own temperature times this weighs the other texts
LEAST_TEXTS = 3  # from so many on the default takes the others off: of two, the other is mostly "nothing there"


class Question(NamedTuple):
    """What is asked of every image."""

    names: list[str]  # K short names
    texts: list[str | tuple[str, ...]]  # K texts as the model reads them: one description, or the tuple of several
    targets: Sequence[int] | None = None  # which are explained; None: the most similar one of each image
    contrast: float = 0.0  # gamma of `contrastive_directions`
    method: str | None = "gradcam"  # one of METHODS, or "all"; None for the encoder's default
    similarity: str | None = "cosine"  # or "dot": what is explained; None for the method's default
    subtract_others: bool | None = False  # whether the other texts are taken off; None for the method's default
    faithfulness: bool = False  # whether each heatmap is tested by deletion and insertion
    img_size: int | None = None  # side of the model's input where the model does not say
    words: bool = False  # whether the words of each explained text are weighed


class Others(NamedTuple):
    """How what the other texts hold is taken off a text: see `others_directions`."""

    share: float  # how much of it
    of_maps: bool = False  # from the text's map, by a backward pass more; else from the direction that is explained


OFF_THE_DIRECTION, OFF_THE_MAP = Others(0.45), Others(1.0, of_maps=True)


class Setting(NamedTuple):
    """How a heatmap is made."""

    method: str  # one of METHODS
    similarity: str = "cosine"
    layers: Sequence[torch.nn.Module] = ()  # whose maps are fused, or blocks; none: the method's own blocks
    others: Others | None = None  # how the other texts are taken off
    is_default: bool = False  # whether it is what the encoder is shown by where nothing is asked for

    @property
    def subtracted(self) -> float:
        """The share of what the other texts hold that is taken off, 0 for none."""
        return self.others.share if self.others else 0.0

    @property
    def fused_layers(self) -> int:
        """How many layers' maps it fuses; 1 for a method that reads attention, whatever its blocks are."""
        return 1 if reads_attention(self.method) else len(self.layers)


def with_choices(setting: Setting, question: Question, others: Others) -> Setting:
    """A setting with the similarity that a question asks for, and `others` taken off where it asks for that.

    Nothing is taken off where a method knows no text.
    """
    subtracts = question.subtract_others if question.subtract_others is not None else setting.others is not None
    taken_off = others if subtracts and METHODS[setting.method].knows_text else None
    return setting._replace(similarity=question.similarity or setting.similarity, others=taken_off)


def check_question(question: Question) -> None:
    """InputError where a method, a similarity and several texts do not go together."""
    if question.method == "all" and question.targets is not None and len(question.targets) > 1:
        raise InputError("method=all（--method all）一次只比较一个文本；请给出一个目标文本索引")
    if question.method not in ("all", None):
        check_method(question.method)
    if question.similarity is not None:
        check_similarity(question.similarity)
    if question.subtract_others not in (None, True, False):
        raise InputError("subtract_others 应是 True、False 或 None，收到 {!r}", question.subtract_others)
    if question.subtract_others and question.contrast:
        raise InputError("contrast（--contrast）与 subtract_others（--subtract-others）只能二选一")
    if question.subtract_others and len(question.texts) < 2:
        raise InputError("减去其他文本（--subtract-others）至少需要两个类别文本")


def target_texts(target_text_idx, count: int) -> list[int] | None:
    """None, "all", an int or several -> indices without repetition, None for the most similar; InputError if none."""
    if target_text_idx is None:
        return None
    if isinstance(target_text_idx, str):
        if target_text_idx != "all":
            raise InputError('目标文本索引应是整数、整数列表或 "all"，收到 {!r}', target_text_idx)
        return list(range(count))
    targets = np.atleast_1d(np.asarray(target_text_idx))
    if targets.ndim > 1 or targets.size == 0 or not np.issubdtype(targets.dtype, np.integer):
        raise InputError("目标文本索引应是整数，收到 {!r}", target_text_idx)
    check_text_indices(targets.tolist(), count)
    return list(dict.fromkeys(targets.tolist()))


def target_indices(target_text_idx, similarities: torch.Tensor) -> torch.Tensor:
    """None, an int, one int per image, or [B, T] -> int64 [B, T]; None: the most similar of `similarities` [B, K]."""
    if target_text_idx is None:
        return similarities.argmax(dim=1, keepdim=True)
    targets = torch.as_tensor(target_text_idx, device=similarities.device)
    if targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise InputError("目标文本索引应是整数，收到 {!r}", target_text_idx)
    batch = len(similarities)
    targets = targets.expand(batch) if targets.ndim == 0 else targets
    if targets.shape[0] != batch:
        raise InputError("目标文本索引有 {} 个，图像有 {} 张；请给一个整数，或每张图像一个", targets.shape[0], batch)
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


def others_directions(texts: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What the other texts say together of each image: sum_j q_j t_j, [B, T, D].

    For unit text features [K, D], the model's logits [B, K] and T targets per image; q is the softmax over the texts
    but the target of logits / OTHERS_TEMPERATURE: where the image shows something else, that text weighs most.
    InputError where K is 1.
    """
    if len(texts) < 2:
        raise InputError("减去其他文本（--subtract-others）至少需要两个类别文本")
    others = (logits.float() / OTHERS_TEMPERATURE)[:, None].expand(-1, targets.shape[1], -1)  # (B, T, K)
    others = others.scatter(2, targets[..., None], -torch.inf)
    return others.softmax(-1) @ texts


def take_off(own: torch.Tensor, others: torch.Tensor, share: float) -> torch.Tensor:
    """[own]+ - share * [others]+, maps before the ReLU: negative where the other texts are held more."""
    return own.relu() - share * others.relu()


class TargetScores(NamedTuple):
    """The scores of what is explained, called with embeddings."""

    scores: Callable  # (embeddings [n, D], directions [n, T, D]) -> [n, T]
    directions: torch.Tensor  # [B, T, D], of each image

    def parts(self, texts: int) -> list[TargetScores]:
        """The scores of so many directions at a time."""
        return [self._replace(directions=part) for part in self.directions.split(texts, dim=1)]

    def __call__(self, embeddings: torch.Tensor, image: int | None = None) -> torch.Tensor:
        """Embeddings [B, D] -> y of each direction [B, T]; [n, D], all of variants of one image -> [n, T]."""
        of_image = self.directions if image is None else self.directions[image].expand(len(embeddings), -1, -1)
        return self.scores(embeddings, of_image)


class TextMaps(NamedTuple):
    """What one forward pass gives for B images, K texts and T explained texts per image; float32."""

    maps: torch.Tensor  # [B, T, h, w] at the target layer, before the ReLU
    gradient_peaks: torch.Tensor  # [B, T] largest |gradient| behind the map
    similarities: torch.Tensor  # [B, K] cosine
    targets: torch.Tensor  # [B, T] index of each explained text
    embeddings: torch.Tensor  # [B, D] of the images, of unit length
    compared: torch.Tensor | None = None  # [B, K, h', w'] of every text, at the last layer, where they were asked for


class ImageMaps(NamedTuple):
    """What the model says of one image and each of K texts, T of them explained."""

    maps: np.ndarray  # float32 [T, h, w] at the target layer, before the ReLU
    gradient_peaks: np.ndarray  # [T]
    similarities: np.ndarray  # [K] cosine
    targets: np.ndarray  # [T] index of each explained text
    embedding: np.ndarray  # float32 [D] of the image, of unit length
    compared: np.ndarray  # float32 [K, h', w'] at the last target layer: how alike the texts' maps are
    probabilities: np.ndarray  # [K]
    faithfulness: list | None = None  # T, where the explained texts' maps were tested
    words: list[list[Word]] | None = None  # T, where the explained texts' words were weighed

    def first(self, count: int) -> ImageMaps:
        """The same of the first explained texts alone."""
        return self._replace(**{name: getattr(self, name)[:count] for name in ("maps", "gradient_peaks", "targets")})


def rectangular(targets: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of one or more texts per image, as many of each: the last one is repeated."""
    widest = max(map(len, targets))
    return [[*of_image, *[of_image[-1]] * (widest - len(of_image))] for of_image in targets]


def logits_of(model, similarities: torch.Tensor) -> torch.Tensor:
    """Cosines [B, K] -> what the model compares, by its own rule, else its temperature, else 0.07.

    InputError for a temperature that is not finite and positive.
    """
    if callable(getattr(model, "logits", None)) and hasattr(model, "probabilities"):
        return model.logits(similarities)
    temperature = getattr(model, "temperature", None)
    return similarities / (0.07 if temperature is None else check_scale("temperature", temperature).to(similarities))


def probabilities_of(model, similarities: torch.Tensor) -> torch.Tensor:
    """Cosines [B, K] -> probabilities [B, K] by the model's own rule, else a softmax over cosine / temperature.

    InputError where the model has neither, or a temperature that is not finite and positive.
    """
    if hasattr(model, "probabilities"):
        return model.probabilities(similarities)
    if getattr(model, "temperature", None) is None:
        raise InputError(
            "{} 没有 probabilities 方法，也没有 temperature，不能算出概率；请用 load_clip_checkpoint 得到模型，"
            "或给它一个 temperature",
            type(model).__name__,
        )
    return softmax_probabilities(similarities, model.temperature)
