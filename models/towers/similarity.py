"""How images and texts are compared: unit vectors, their cosines, and what of it are probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..class_texts import ClassText, descriptions_of
from ..errors import InputError
from ..heavy import functional as F
from ..heavy import torch
from ..messages import Message

SHORTEST = 1e-12  # of a text's vector: what `normalize` divides by at least

TEXTS_AT_ONCE = 128  # that a text tower embeds: of 128 tokens each, BERT takes some hundred MB


def embed_classes(embed: Callable, texts: str | Sequence[ClassText]) -> torch.Tensor:
    """The text features [K, D] of K classes, by `embed`: a list of n descriptions -> unit features [n, D].

    A class of one description has that one's; a class of several the mean of theirs, as unit vectors, normalised again:
    a prompt ensemble of CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4).
    """
    classes = [descriptions_of(text) for text in ([texts] if isinstance(texts, str) else texts)]
    texts = [description for descriptions in classes for description in descriptions]
    if len(texts) <= TEXTS_AT_ONCE:
        features = embed(texts)
    else:
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        features = torch.cat([embed(texts[start : start + TEXTS_AT_ONCE]) for start in starts])
    if len(texts) == len(classes):
        return features
    of_classes = features.split([len(descriptions) for descriptions in classes])
    return torch.stack([of_class[0] if len(of_class) == 1 else unit_mean(of_class) for of_class in of_classes])


def unit_mean(features: torch.Tensor) -> torch.Tensor:
    """Features [n, D] -> the direction of the mean of their directions, [D]."""
    return F.normalize(F.normalize(features, dim=-1).mean(0), dim=0)


def cosines(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """[B, D] and [K, D] -> cosine similarities [B, K], in the finer of two precisions."""
    text_features = check_shape(text_features, width=image_features.shape[-1]).to(image_features.device)
    precision = torch.promote_types(image_features.dtype, text_features.dtype)
    images, texts = (F.normalize(features.to(precision), dim=-1) for features in (image_features, text_features))
    return images @ texts.T


def check_text_features(features, count: int | None = None, width: int | None = None) -> torch.Tensor:
    """Text features, a tensor or an array, as a tensor [K, D] of finite vectors with a direction; else InputError.

    `count`: K, the number of texts they stand for. `width`: D, the width of an image's embedding.
    """
    features = check_shape(features, count, width)
    lengths = features.detach().float().norm(dim=-1)
    if not (torch.isfinite(lengths) & (lengths > SHORTEST)).all():
        row = int((~(torch.isfinite(lengths) & (lengths > SHORTEST))).nonzero()[0])
        flaw = Message("是零，没有方向") if lengths[row] <= SHORTEST else Message("含有 NaN、无穷大或过大的数")
        raise InputError("text_features 的第 {} 行（从 0 开始）{}，不能与图像比较；请重新编码这个文本", row, flaw)
    return features


def check_shape(features, count: int | None = None, width: int | None = None) -> torch.Tensor:
    """Text features as a floating-point tensor [K, D]; InputError where they are none, or of another K or D."""
    if not isinstance(features, torch.Tensor):
        try:
            features = torch.from_numpy(np.array(features))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError("text_features 应是张量 [K, D]，收到的是 {}", type(features).__name__) from error
    if features.is_meta:
        raise InputError("text_features 在 meta 设备上，没有数值；请给出编码文本得到的张量")
    features, shape = features.to_dense() if features.is_sparse else features, list(features.shape)
    if features.ndim != 2 or 0 in shape:
        one = Message("；一个文本的向量请写成 text_features[None]") if features.ndim == 1 else ""
        raise InputError("text_features 的形状应是 [K, D]（文本数 × 嵌入宽度），收到 {}{}", shape, one)
    if not features.is_floating_point():
        raise InputError("text_features 应是浮点数，收到 {}；请给出文本的嵌入，而不是词元编号", features.dtype)
    if count is not None and len(features) != count:
        raise InputError(
            "text_features 有 {} 行，class_texts 有 {} 个：它们必须一一对应，顺序相同", len(features), count
        )
    if width is not None and shape[1] != width:
        raise InputError("text_features 的宽度是 {}，图像嵌入的宽度是 {}：文本须由同一个模型编码", shape[1], width)
    return features


def sigmoid_probabilities(similarities: torch.Tensor, temperature: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Cosines [..., K] -> probabilities [..., K] in float32, each by itself: sigmoid of cosine / temperature + bias."""
    temperature, bias = (number.to(similarities.device) for number in (check_scale("temperature", temperature), bias))
    return (similarities.float() / temperature + bias.detach().float()).sigmoid()


def softmax_probabilities(similarities: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Cosines [..., K] -> probabilities [..., K] in float32: softmax over the texts of cosine / temperature."""
    temperature = check_scale("temperature", temperature).to(similarities.device)
    return (similarities.float() / temperature).softmax(dim=-1)


def check_scale(name: str, scale, error: type[InputError] = InputError) -> torch.Tensor:
    """What cosines are divided or multiplied by, in float32; an `error` unless it is finite and positive.

    A negative one would turn the order of the classes round.
    """
    scale = (scale if isinstance(scale, torch.Tensor) else torch.from_numpy(np.array(scale))).detach().float()
    if scale.numel() != 1 or not 0 < scale.item() < float("inf"):
        value = f"{scale.item():g}" if scale.numel() == 1 else Message("{} 个数", list(scale.shape))
        raise error("模型的 {} 是 {}，应是一个有限的正数，否则概率没有意义；请检查检查点，或重新给出它", name, value)
    return scale
