"""From a path to a model: content, read once -> its reader -> weights -> the model, and its texts' features.

model = load_clip_checkpoint("checkpoints/clip_model.pth")
model = load_clip_checkpoint("chinese-clip/", texts=["正常假体", "假体松动"])    # model.class_text_features
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType

from ..class_texts import ClassText, descriptions_of, names_and_texts
from ..errors import InputError
from ..heavy import torch
from ..towers.similarity import embed_classes
from ..towers.unread import warnings_of
from ..weights.hub import requested_text_encoder
from ..weights.metadata import unit_levels
from ..weights.modules import evaluating, release_text_tower
from .content import Content, Request, located, read_content
from .text_cache import CachedFeatures


def load_clip_checkpoint(
    path: str | os.PathLike,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    embed_dim: int | None = None,
    img_size: int | None = None,
    text_tower: bool = True,
    texts: Sequence[ClassText] | Mapping[str, ClassText] | None = None,
    device: str = "cpu",
    use_cache: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    download: bool = False,
    text_templates: str | Sequence[str] = (),
    words: bool = False,
):
    """The model whose weights stand at `path`, in eval mode, on `device`; on request without its text tower.

    What a checkpoint says of itself counts; the arguments fill in what it leaves open, and one that contradicts it
    is warned about and loses. Our users' checkpoints give a CLIPModel; the kinds that `models.loading.openai` and
    `models.loading.folder` read, a PretrainedCLIP. InputError or CheckpointError where it cannot be used.

    With K `texts`, in `text_templates` (see `names_and_texts`), the model comes with their features as
    `class_text_features`, float32 [K, D], and without its text tower. Features that the cache has are not computed
    again: the text tower is then neither read nor built. Either way the results are the same, bit for bit. With `words`
    it keeps its text tower, by which their words are weighed.

    Only with `download`, or for a name written `hub:owner/name`, anything is fetched from the model hub: `path`,
    `text_encoder`, CLIP's vocabulary. A name that a file holds is looked up in the local cache.
    """
    text_encoder, levels = requested_text_encoder(text_encoder, download), levels_of(mean, std)
    request = Request(image_encoder, text_encoder, embed_dim, img_size, *levels, text_tower, download)
    texts = texts if texts is None else names_and_texts(texts, text_templates)[1]
    path = located(path, download)
    cached = CachedFeatures(path, texts, device) if texts is not None and use_cache and not words else None
    content = read_content(path, mapped=True if cached else None)
    model = reader_of(content).load(content, request, cached)
    if download and model.text_encoder is not None:
        model.text_encoder.download = True
    content.forget()
    if texts is not None:
        _add_features(model, texts, device, cached)
        if not words:
            release_text_tower(model)
    return model.to(device)


def levels_of(mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple:
    """(mean, deviation) of levels in [0, 1], three numbers each, of one or three; those of 0 to 255 count too."""
    if mean is None and std is None:
        return None, None
    levels = unit_levels(mean, std, least=0)
    if levels is None:
        raise InputError("--mean 和 --std 要一起给出，各是 1 个或 3 个数；0 到 1（或 0 到 255），标准差大于 0")
    return levels


def reader_of(content: Content) -> ModuleType:
    """The reader that recognises a content; our own, which says what is missing, where none does."""
    from .readers import READERS  # they define networks: torch itself is imported here

    return next((reader for reader in READERS if reader.recognises(content)), READERS[0])


def _add_features(model, texts: Sequence[ClassText], device: str, cached: CachedFeatures | None) -> None:
    """Give a model its texts' features, those of the cache where it has them."""
    if cached is not None and cached.entry is not None:
        features, unread = cached.entry
        for warning in warnings_of(unread):  # what embedding the texts warned of
            warnings.warn(warning, stacklevel=3)
        features = torch.from_numpy(features).clone().to(device)
    else:
        features = embed_texts(model.to(device), texts)
        if cached is not None:
            descriptions = [description for text in texts for description in descriptions_of(text)]
            cached.keep(features.cpu().numpy(), model.text_encoder.unread(descriptions))
    model.class_text_features = features


def embed_texts(model, texts: Sequence[ClassText]) -> torch.Tensor:
    """The text features of K classes by the model's text encoder in eval mode: [K, D], no gradients."""
    if model.text_encoder is None:
        raise InputError("该模型没有文本编码器：请给出 text_features，或用 load_clip_checkpoint 载入")
    with torch.no_grad(), evaluating(model.text_encoder):
        return embed_classes(lambda descriptions: model.text_encoder(texts=descriptions), texts)


def choose_device(force_cpu: bool, local_rank: int = 0) -> str:
    """CUDA where there is one (the ranks of a machine take turns at its devices), else Apple's MPS, else the CPU."""
    if not force_cpu and torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}" if local_rank else "cuda"
    if not force_cpu and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
