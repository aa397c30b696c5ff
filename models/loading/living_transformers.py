"""A CLIP of transformers in memory as a `PretrainedCLIP` over its own modules: hooks, adapters and patches count."""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import InputError
from ..heavy import Image
from ..images.preprocessing import Preprocessing
from ..messages import Message
from ..towers.published import PATCHED, PretrainedCLIP, as_grey, into_patches, towers_over
from ..towers.tokenizers import has_tokenizer, tokenizer_of
from .agreement import check_alike, check_embedding, check_pixels, follow, once
from .folder import FIRST_TOKEN
from .processors import (
    Processor,
    described_preprocessing,
    has_preprocessing,
    preprocessing_cautions,
    read_preprocessing,
)


def build(network: nn.Module, processor, needs_tokenizer: bool) -> PretrainedCLIP:
    """The CLIP over the network's modules, which stay as they are.

    What `processor` lacks is read from the local folder that the network was loaded from. InputError, with what to
    give, where that has it not, for another structure, and where ours does not compute what the library does.
    """
    processor = Processor.of(processor)
    name, folder, config = type(network).__name__, _folder_of(network), network.config.to_dict()
    preprocessing, cautions = _preprocessing(name, processor.images, folder, config)
    find_tokenizer = _tokenizer_finder(processor.tokenizer, folder)
    if needs_tokenizer and find_tokenizer is None:
        raise InputError(
            "{} 没有带着分词器；请给出 processor=(图像处理器, 分词器)，"
            "例如 AutoTokenizer.from_pretrained(模型的文件夹)，或直接给出 text_features",
            name,
        )
    first_token = config.get("model_type") in FIRST_TOKEN
    model = follow(towers_over(network, preprocessing, find_tokenizer, first_token), network)
    model.cautions = cautions
    if processor.images is not None:
        check_pixels(model, lambda picture: _pixels(processor.images, picture))
    once(network, preprocessing, lambda: _compare(network, model, name))
    return model


def _folder_of(network: nn.Module) -> Path | None:
    """The local folder that a model says it was loaded from; None where there is none."""
    name = getattr(network.config, "_name_or_path", None)
    return Path(name) if name and Path(name).is_dir() else None


def _preprocessing(name: str, images, folder: Path | None, config: Mapping) -> tuple[Preprocessing, list[Message]]:
    """What an image processor says of itself, as in the file that it would save, else the folder's; with cautions."""
    if images is None and folder and has_preprocessing(folder):
        return read_preprocessing(folder, config), preprocessing_cautions(folder, config)
    if images is None:
        raise InputError(
            "{} 没有说明图像怎样预处理；请给出 processor=，例如 AutoProcessor.from_pretrained(模型的文件夹)，"
            "或 (图像处理器, 分词器)",
            name,
        )
    if not hasattr(images, "to_json_string"):
        raise InputError(
            "processor 中的 {} 不是 transformers 的图像处理器；请给出 AutoProcessor.from_pretrained(模型的文件夹)，"
            "或 (图像处理器, 分词器)",
            type(images).__name__,
        )
    return described_preprocessing(json.loads(images.to_json_string()), config, "processor"), []


def _tokenizer_finder(tokenizer, folder: Path | None) -> Callable | None:
    """A function that gives the tokenizer: the caller's, else that of the folder; None where there is none."""
    if tokenizer is not None:
        return lambda: tokenizer
    return tokenizer_of(folder) if folder and has_tokenizer(folder) else None


def _pixels(images, picture: np.ndarray) -> torch.Tensor:
    """What an image processor makes of RGB uint8 [H, W, 3], of free shapes [1, patches, values] without filling."""
    output = images(images=Image.fromarray(picture), return_tensors="pt")
    if "spatial_shapes" not in output:
        return output["pixel_values"]
    rows, columns = output["spatial_shapes"][0].tolist()
    return output["pixel_values"][:, : rows * columns]


def _image_features(network: nn.Module, model: PretrainedCLIP, images: torch.Tensor) -> torch.Tensor:
    """The library's own embeddings [B, D] of model input [B, 3, h, w]."""
    tower = model.image_encoder
    images = as_grey(images) if tower.channels == 1 else images
    images = images.to(next(tower.parameters()).dtype)
    if tower.family == PATCHED:
        _, rows, columns = tower.token_grid(*images.shape[-2:])
        shapes = torch.tensor([(rows, columns)] * len(images), device=images.device)
        mask = torch.ones(len(images), rows * columns, dtype=torch.int32, device=images.device)
        inputs = {"pixel_attention_mask": mask, "spatial_shapes": shapes}
        images = into_patches(images, tower.patch_size)
    else:
        inputs = {"interpolate_pos_encoding": True}
    return _features(network.get_image_features, {"pixel_values": images, **inputs})


def _features(compute: Callable, inputs: Mapping) -> torch.Tensor:
    """Features [B, D] of those inputs that a method takes."""
    taken = inspect.signature(compute).parameters
    output = compute(**{name: tensor for name, tensor in inputs.items() if name in taken})
    return output if isinstance(output, torch.Tensor) else output.pooler_output  # transformers 4, or 5


def _compare(network: nn.Module, model: PretrainedCLIP, name: str) -> None:
    """InputError where our embedding of a picture, or of a text, is not the library's."""
    check_embedding(model, lambda images: _image_features(network, model, images), name)
    tower = model.text_encoder
    if tower is None:
        return
    tokens = tower.tokenize(["a"])
    theirs = nn.functional.normalize(_features(network.get_text_features, tokens), dim=-1)
    check_alike(tower(["a"]), theirs, Message("{} 给出的文本嵌入", name))
