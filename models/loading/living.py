"""A CLIP of another library that is already in memory: which one is meant, and what comes with it.

It may lie in a wrapper (DataParallel, `torch.compile`, an average of the weights, PEFT) or in a module for training.
What is made of it stands in `living_transformers` and `living_open_clip`, which define networks and are imported when
there is one.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import InputError
from ..heavy import HeavyModule, torch
from ..messages import Joined
from ..weights.modules import has_image_encoder, outermost

if TYPE_CHECKING:
    from . import living_open_clip, living_transformers
else:
    living_transformers = HeavyModule(f"{__package__}.living_transformers")
    living_open_clip = HeavyModule(f"{__package__}.living_open_clip")  # openai/CLIP's models are built alike


def library_of(module: torch.nn.Module) -> ModuleType | None:
    """The module that builds a library's CLIP, recognised by its parts; None where it is none, or one like ours."""
    if isinstance(module, torch.jit.ScriptModule) or has_image_encoder(module) or not hasattr(module, "logit_scale"):
        return None
    parts = set(module._modules)
    if {"vision_model", "text_model"} <= parts and hasattr(module, "config"):
        return living_transformers
    if "visual" in parts and hasattr(module, "encode_image") and hasattr(module, "encode_text"):
        return living_open_clip
    return None


def library_clip(model) -> torch.nn.Module | None:
    """The one CLIP of a library that `model` is or wraps; None where there is none.

    InputError where there are several models in it, one of which at least is a library's.
    """
    if not isinstance(model, torch.nn.Module):
        return None
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        return None  # no process has all of its weights
    clips = dict(outermost(model, lambda module: has_image_encoder(module) or library_of(module)))
    of_libraries = [clip for clip in clips if library_of(clip)]
    if of_libraries and len(clips) > 1:
        paths = Joined("、", (f"model.{path}" for path in clips.values()))
        raise InputError("{} 中有 {} 个 CLIP：{}；请给出其中一个", type(model).__name__, len(clips), paths)
    return of_libraries[0] if of_libraries else None


def build_living(network: torch.nn.Module, processor, needs_tokenizer: bool):
    """The PretrainedCLIP of a library's CLIP; see `living_clip` of the script."""
    return library_of(network).build(network, processor, needs_tokenizer)
