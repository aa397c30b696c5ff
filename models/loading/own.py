"""Our users' checkpoints: a CLIPModel in any layout of `models.weights.layouts`, wrapped or bare."""

import math
import os
import warnings
from collections.abc import Mapping

from ..clip import CLIPModel, build_on_meta
from ..errors import CheckpointError, InputError, InputWarning
from ..messages import Message
from ..savings import forget
from ..towers.image import FIRST_CONVOLUTIONS
from ..towers.text import is_clip_text
from ..towers.tokenizers import TokenizerFiles, find_clip_tokenizer
from ..weights.files import MAPPED_FROM_BYTES
from ..weights.layouts import Translated, read_channels, read_text_config, translate_checkpoint
from ..weights.modules import give_buffers_values
from ..weights.names import BACKBONE
from .content import Content, Request, flag_of
from .text_cache import CachedFeatures


def recognises(content: Content) -> bool:
    """Whether a checkpoint has an image encoder under our name."""
    return not content.is_folder and any(BACKBONE in key for key in content.contents.weights)


def load(content: Content, request: Request, cached: CachedFeatures | None = None) -> CLIPModel:
    """The model of a checkpoint, in eval mode, on the CPU; its weights are the checkpoint's, not copies.

    What the checkpoint says of itself counts; what the request says beside it is warned about. Without its text tower
    where that is not wanted, or where `cached` has the features. InputError where it is no checkpoint of ours.
    """
    translated = translate_checkpoint(content.checkpoint, content.contents)
    config = model_config(translated, request)
    has_features = cached is not None and cached.load_for(config, _clip_tokenizer(config, request))
    if cached is not None and not has_features:
        _copy_small_file(content.path, translated)
    model = build_on_meta(config, request.text_tower and not has_features)
    model.load_state_dict(translated, assign=True)
    give_buffers_values(model)
    forget(translated.state_dict)
    return model.eval()


def _clip_tokenizer(config: Mapping, request: Request) -> TokenizerFiles | None:
    """CLIP's tokenizer where the text tower is CLIP's; None where it is a BERT, which names its own."""
    name = config.get("text_encoder")
    if not is_clip_text(name, config.get("text_config")):
        return None
    return find_clip_tokenizer(name if os.path.isdir(str(name)) else None, download=request.download)


def _copy_small_file(path: os.PathLike, translated: Translated) -> None:
    """Copy all weights out of a mapped file that is not worth the risk of a mapping."""
    if os.path.getsize(path) <= MAPPED_FROM_BYTES:
        for name, tensor in translated.state_dict.items():
            translated.state_dict[name] = tensor.detach().clone()


def model_config(translated: Translated, request: Request) -> dict:
    """What to build: read off the weights first, then off the checkpoint's config, then as requested."""
    config = dict(translated.metadata)
    recognised = translated.image_encoder_name
    if recognised and config.setdefault("image_encoder", recognised) != recognised:
        message = Message(
            "检查点的配置写着图像编码器 {}，权重却是 {} 的，按权重处理", config["image_encoder"], recognised
        )
        warnings.warn(InputWarning(message), stacklevel=4)
        config["image_encoder"] = recognised
    projection = translated.state_dict.get("image_encoder.projection.weight")
    if projection is not None and projection.ndim == 2:
        config["embed_dim"] = int(projection.shape[0])
    if "img_size" not in config and (side := side_of_positions(translated)):
        config["img_size"] = translated.metadata["img_size"] = side
    config["text_config"] = {**(config.get("text_config") or {}), **read_text_config(translated.state_dict)}
    _check_heads(config["text_config"])
    _leave_out_colours(config, translated)
    _fill_in(config, request)
    if "image_encoder" not in config:
        raise InputError("无法从检查点识别图像编码器，请用 --image-encoder 指定")
    return config


def side_of_positions(translated: Translated) -> int | None:
    """The input's side that a ViT's table of positions is for; None for a network without one."""
    positions = translated.state_dict.get(BACKBONE + "embeddings.position_embeddings")
    patches = translated.state_dict.get(BACKBONE + "embeddings.patch_embeddings.projection.weight")
    if positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4:
        return None
    return math.isqrt(max(0, positions.shape[1] - 1)) * patches.shape[-1]


def _check_heads(text_config: Mapping) -> None:
    """CheckpointError where the heads that a checkpoint names do not divide the width of its text tower."""
    heads, width = text_config.get("num_attention_heads"), text_config.get("hidden_size")
    if heads is not None and width and (heads < 1 or width % heads):
        raise CheckpointError("检查点的 text_config 无法使用：{} 个注意力头不能平分宽度 {}", heads, width)


def _leave_out_colours(config: dict, translated: Translated) -> None:
    """Leave out levels of three channels where the image tower reads one: they are none that it was trained with."""
    channels = read_channels(translated.state_dict, FIRST_CONVOLUTIONS.get(config.get("image_encoder"), ()))
    levels = [config.get(name) for name in ("mean", "std")]
    if channels == 1 and None not in levels and len({*zip(*levels)}) > 1:
        for settings in (config, translated.metadata):
            del settings["mean"], settings["std"]
        message = Message("检查点的图像编码器读 1 个通道，它的均值和标准差却是三个不同的数，没有采用：{}、{}", *levels)
        warnings.warn(InputWarning(message), stacklevel=5)


def _fill_in(config: dict, request: Request) -> None:
    """Take from the request what the checkpoint leaves open, and warn of what contradicts it."""
    if request.text_folder:
        config["text_encoder"] = request.text_folder  # not another encoder, but where its files are
    requested: Mapping = {
        name: getattr(request, name)
        for name in ("image_encoder", "text_encoder", "embed_dim", "img_size", "mean", "std")
    }
    for name, value in requested.items():
        if value is not None and config.setdefault(name, value) != value:
            message = Message("{} {} 与检查点不符，按检查点的 {} 处理", flag_of(name), value, config[name])
            warnings.warn(InputWarning(message), stacklevel=5)
