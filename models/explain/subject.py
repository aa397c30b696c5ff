"""What is explained: the CLIP in whatever a caller from Python hands over, and the true reason where there is none.

A CLIP that something is wrapped around (`torch.compile`, DataParallel, an average of the weights, PEFT, a module for
training) is explained by itself: what such a wrapper adds is no part of the network.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

from ..errors import InputError
from ..heavy import torch
from ..messages import Joined, Message
from ..weights.modules import has_image_encoder, outermost, unwrapped

LOAD = Message("model = load_clip_checkpoint(路径)")


def clip_of(model):
    """The model that has an `image_encoder`: `model`, or the one inside it; its image tower without a wrapper.

    It shares its modules and weights with what was handed over. InputError, with what is missing and what to do, where
    there is none, where there are several, and where its layers cannot be watched.
    """
    if not _has_image_encoder(model):
        model = _inner_clip(model)
    tower = model.image_encoder
    if not isinstance(tower, torch.nn.Module):
        raise InputError("模型的 image_encoder 是 {}，不是 nn.Module；请用 {} 得到模型", type(tower).__name__, LOAD)
    if type(tower).__name__ == "FullyShardedDataParallel":
        raise InputError(SHARDED)
    plain = unwrapped(tower)
    for name, module in (("image_encoder", plain), ("image_encoder.backbone", getattr(plain, "backbone", None))):
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(SCRIPTED, name)
    return model if plain is tower else _with_tower(model, plain)


def plain_name(path: str) -> str:
    """A dotted path as it would be without wrappers in between."""
    return ".".join(part for part in path.split(".") if part not in ("_orig_mod", "_checkpoint_wrapped_module"))


def _has_image_encoder(model) -> bool:
    """Whether it has one itself; what has one need not be a module."""
    if isinstance(model, torch.nn.Module):
        return has_image_encoder(model)
    return not isinstance(model, type) and hasattr(model, "image_encoder")


def _inner_clip(model) -> torch.nn.Module:
    """The one CLIP among the modules of a wrapper; InputError where that cannot be."""
    if not isinstance(model, torch.nn.Module):
        raise InputError(_no_model(model))
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise InputError(SHARDED)
    clips = dict(outermost(model, has_image_encoder))
    if not clips:
        raise InputError(_no_clip(model))
    if len(clips) > 1:
        paths = Joined("、", (f"model.{path}" for path in clips.values()))
        raise InputError(
            "{} 中有 {} 个带 image_encoder 的模型：{}；请给出其中一个", type(model).__name__, len(clips), paths
        )
    return next(iter(clips))


def _with_tower(model, tower: torch.nn.Module):
    """The same model over the same modules, but for its image tower."""
    view = copy.copy(model)
    if isinstance(model, torch.nn.Module):
        view.__dict__["_modules"] = {**model._modules, "image_encoder": tower}
    else:
        view.image_encoder = tower
    return view


SHARDED = Message(
    "FSDP 把权重分在各个进程，单个进程里没有完整的模型；请先保存完整的权重（FSDP.state_dict_type 的 "
    "FULL_STATE_DICT），再用 load_clip_checkpoint 载入"
)
SCRIPTED = (
    "{} 是 TorchScript（torch.jit.script 或 trace 的产物），它内部的层不能被观察；请给出转换之前的模型，"
    "或用 load_clip_checkpoint 载入检查点"
)


def _no_model(thing) -> Message:
    """Why something that is no module cannot be explained."""
    if isinstance(thing, (str, os.PathLike)):
        path = os.fspath(thing)
        return Message("需要的是模型，收到的是路径 {!r}；请先载入：model = load_clip_checkpoint({!r})", path, path)
    if isinstance(thing, Mapping):
        return Message(
            "需要的是模型，收到的是 {}（检查点的内容或权重）；请直接从文件载入：{}", type(thing).__name__, LOAD
        )
    if isinstance(thing, type):
        return Message("需要的是模型，收到的是类 {}；请先建立并载入权重，例如 {}", thing.__name__, LOAD)
    return Message("需要的是带 image_encoder 的模型，收到的是 {}；请用 {} 得到模型", type(thing).__name__, LOAD)


def _no_clip(model: torch.nn.Module) -> Message:
    """Why a module without an image encoder cannot be explained, and how its weights can be used all the same."""
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        return Message(SCRIPTED, name)
    if hasattr(model, "save_pretrained") and hasattr(model, "config"):
        return Message(
            "{} 是 transformers 的模型对象，没有 image_encoder；"
            "若是 CLIP（有 vision_model、text_model 和 logit_scale），"
            "请用 explain(model, …, processor=processor)，或先 clip = living_clip(model, processor)",
            name,
        )
    if hasattr(model, "visual") and hasattr(model, "encode_image"):
        return Message(
            "{} 是 OpenAI 或 open_clip 的模型对象，没有 image_encoder；"
            "请用 explain(model, …, processor=(preprocess, tokenizer))，"
            "或先 clip = living_clip(model, (preprocess, tokenizer))",
            name,
        )
    return Message(
        "{} 没有 image_encoder：它不是 CLIP，而像是单独的网络，没有与文本比较的嵌入；请用 {}，"
        "或给出带 image_encoder（图像 [B, 3, H, W] 到嵌入 [B, D]）的模型",
        name,
        LOAD,
    )
