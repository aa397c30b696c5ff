"""Our users' checkpoints: a CLIPModel in any layout of `models.weights.layouts`, wrapped or bare."""

import os
import warnings
from collections.abc import Mapping

from ..clip import CLIPModel, build_on_meta
from ..errors import InputError, InputWarning
from ..savings import forget
from ..weights.files import MAPPED_FROM_BYTES
from ..weights.layouts import Translated, read_text_config, split_checkpoint, translate_checkpoint
from ..weights.modules import give_buffers_values
from ..weights.names import BACKBONE
from .content import Content, Request, flag_of
from .text_cache import CachedFeatures


def recognises(content: Content) -> bool:
    """Whether a checkpoint has an image encoder under our name."""
    return not content.is_folder and any(BACKBONE in str(key) for key in split_checkpoint(content.checkpoint)[0])


def load(content: Content, request: Request, cached: CachedFeatures | None = None) -> CLIPModel:
    """The model of a checkpoint, in eval mode, on the CPU; its weights are the checkpoint's, not copies.

    What the checkpoint says of itself counts; what the request says beside it is warned about. Without its text tower
    where that is not wanted, or where `cached` has the features. InputError where it is no checkpoint of ours.
    """
    translated = translate_checkpoint(content.checkpoint)
    config = model_config(translated, request)
    has_features = cached is not None and cached.load_for(config)
    if cached is not None and not has_features:
        _copy_small_file(content.path, translated)
    model = build_on_meta(config, request.text_tower and not has_features)
    model.load_state_dict(translated, assign=True)
    give_buffers_values(model)
    forget(translated.state_dict)
    return model.eval()


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
        message = f"检查点的配置写着图像编码器 {config['image_encoder']}，权重却是 {recognised} 的，按权重处理"
        warnings.warn(message, InputWarning, stacklevel=4)
        config["image_encoder"] = recognised
    projection = translated.state_dict.get("image_encoder.projection.weight")
    if projection is not None:
        config["embed_dim"] = int(projection.shape[0])
    config["text_config"] = {**(config.get("text_config") or {}), **read_text_config(translated.state_dict)}
    _fill_in(config, request)
    if "image_encoder" not in config:
        raise InputError("无法从检查点识别图像编码器，请用 --image-encoder 指定")
    return config


def _fill_in(config: dict, request: Request) -> None:
    """Take from the request what the checkpoint leaves open, and warn of what contradicts it."""
    if request.text_folder:
        config["text_encoder"] = request.text_folder  # not another encoder, but where its files are
    requested: Mapping = {
        name: getattr(request, name) for name in ("image_encoder", "text_encoder", "embed_dim", "img_size")
    }
    for name, value in requested.items():
        if value is not None and config.setdefault(name, value) != value:
            message = f"{flag_of(name)} {value} 与检查点不符，按检查点的 {config[name]} 处理"
            warnings.warn(message, InputWarning, stacklevel=5)
