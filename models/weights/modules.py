"""Modules and their weights: fitted in strictly, given to a network that has no memory yet, let go of again."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping

from ..errors import CheckpointError
from ..heavy import torch
from ..messages import Joined, Message
from .names import BATCH_COUNTER

# Class of a wrapper whose forward pass is its inner module's and nothing else -> the path to that module.
WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "PeftModel": "base_model",
    "BaseTuner": "model",
}

_evaluated: dict = {}  # module that trains -> how many `evaluating` blocks it is held by
_modes = threading.Lock()


def all_modules(module: torch.nn.Module) -> list[torch.nn.Module]:
    """A module and all below it, each once: as `modules()`, level by level, in a fifth of its time."""
    modules = {module: None}
    queue = [module]
    for parent in queue:
        for child in parent._modules.values():
            if child is not None and child not in modules:
                modules[child] = None
                queue.append(child)
    return queue


def has_image_encoder(module: torch.nn.Module) -> bool:
    """Whether it has one itself: an attribute that a wrapper passes on from inside does not count."""
    return "image_encoder" in module._modules or hasattr(type(module), "image_encoder")


def outermost(
    module: torch.nn.Module, is_one: Callable, path: tuple[str, ...] = ()
) -> Iterator[tuple[torch.nn.Module, str]]:
    """(module that is one, its dotted path) for each, `module` among them, that is not inside of another."""
    if is_one(module):
        yield module, ".".join(path)
    else:
        for name, child in module.named_children():
            yield from outermost(child, is_one, (*path, name))


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """What is inside of the wrappers that add nothing to a forward pass."""
    while (path := _path_inside(module)) is not None:
        module = module.get_submodule(path)
    return module


def _path_inside(module: torch.nn.Module) -> str | None:
    paths = (WRAPPERS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in WRAPPERS)
    return next(paths, None)


@contextlib.contextmanager
def evaluating(module: torch.nn.Module):
    """Put a module and all below it in eval mode; afterwards each is in the mode it was in.

    Blocks of several threads may overlap on one module: the last one to end puts it back.
    """
    with _modes:
        held = [m for m in all_modules(module) if m.training or (_evaluated and m in _evaluated)]
        for m in held:
            _evaluated[m] = _evaluated.get(m, 0) + 1
            m.training = False
    try:
        yield
    finally:
        with _modes:
            for m in held:
                _evaluated[m] -= 1
                if not _evaluated[m]:
                    del _evaluated[m]
                    m.training = True


def fit_weights(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], network: str, strict: bool = True
) -> dict[str, torch.Tensor]:
    """The weights that a network has a place for, in float32 and in its shapes; `own`: its state dict.

    A batch counter may be missing. CheckpointError names weights that are missing (if `strict`), have no place in the
    `network`, or have another shape.
    """
    weights = {**{key: torch.zeros((), dtype=torch.long) for key in own if key.endswith(BATCH_COUNTER)}, **weights}
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    if strict and missing:
        raise CheckpointError("检查点缺少 {} 个权重：{}", len(missing), first_names(missing))
    if unexpected:
        raise CheckpointError(
            "检查点中有 {} 个权重在 {} 中没有位置：{}", len(unexpected), network, first_names(unexpected)
        )
    empty = [key for key in own if key in weights and weights[key].is_meta and not own[key].is_meta]
    if empty:
        raise CheckpointError("{} 个权重没有数值（meta 张量）：{}；请载入真正的权重", len(empty), first_names(empty))
    whole = [key for key in own if key in weights and own[key].is_floating_point() > weights[key].is_floating_point()]
    if whole:
        raise CheckpointError("检查点中有 {} 个权重不是浮点数：{}；量化过的请先还原", len(whole), first_names(whole))
    fitted = {key: _fit(weights[key], own[key].shape) for key in own if key in weights}
    wrong = [
        Message("{}（检查点 {}，模型 {}）", key, list(tensor.shape), list(own[key].shape))
        for key, tensor in fitted.items()
        if tensor.shape != own[key].shape
    ]
    if wrong:
        raise CheckpointError("检查点中有 {} 个权重的形状与模型不符：{}", len(wrong), first_names(wrong))
    return fitted


def _fit(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """In float32; a scalar that is kept as [1], a layer scale as [C] or [C, 1, 1], in the shape of its place."""
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    same_size = tensor.numel() == shape.numel() and min(tensor.ndim, len(shape)) <= 1
    return tensor.reshape(shape) if same_size and tensor.shape != shape else tensor


def first_names(names: list[str | Message], count: int = 3) -> Message:
    shown = Joined("、", names[:count])
    return Message("{}……", shown) if len(names) > count else shown


def assign_weights(module: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Make these tensors the module's own, without a copy where they are float32; CheckpointError as `fit_weights`."""
    module.load_state_dict(fit_weights(module.state_dict(), weights, type(module).__name__), assign=True)


def give_buffers_values(model: torch.nn.Module) -> None:
    """Replace the buffers that a model built on the meta device keeps out of its state dict.

    BERT has two: positions that count up, and token types that are all zero. Swin has one: where each pair of a
    window's places stands in the table of its position codes.
    """
    rows = {"position_ids": torch.arange, "token_type_ids": torch.zeros, "relative_position_index": _pairs_of_window}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                row = rows[name](buffer.shape[-1])
                setattr(module, name, row.to(torch.long).expand(buffer.shape).clone())


def _pairs_of_window(pairs: int) -> torch.Tensor:
    """(rows apart + w - 1) * (2 w - 1) + columns apart + w - 1 for each pair of the places of a window w x w, [w^4]."""
    width = math.isqrt(math.isqrt(pairs))
    places = torch.cartesian_prod(torch.arange(width), torch.arange(width))
    apart = places[:, None] - places + (width - 1)
    return (apart[..., 0] * (2 * width - 1) + apart[..., 1]).flatten()


def release_text_tower(model: torch.nn.Module) -> None:
    """Let go of the text tower and of the mapped file: most of the memory, and not needed again.

    The file is mapped as one piece, so what stays is copied out of it.
    """
    if model.text_encoder is not None:
        for tensor in (*model.text_encoder.parameters(), *model.text_encoder.buffers()):
            tensor.data = tensor.data.new_empty(0)
        model.text_encoder = None
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
