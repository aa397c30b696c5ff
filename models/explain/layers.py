"""Layers by their names, and what a layer gives, read as maps: feature maps in either order of memory, or tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from ..errors import InputError, closest_hint
from ..heavy import functional as F
from ..heavy import torch
from ..weights.modules import all_modules
from .capture import Hooks, check_reads, tensor_of, undisturbed
from .passes import placement, through
from .subject import plain_name

LAYER_PREFIXES = ("", "image_encoder.", "image_encoder.backbone.")


def find_layer(model, name: str) -> torch.nn.Module:
    """Return the module at a dotted path, from the model, its image encoder or its backbone; InputError if none."""
    modules = {plain_name(path): module for path, module in reversed(list(_named_modules(model)))}
    for prefix in LAYER_PREFIXES:
        if name and prefix + name in modules:
            return modules[prefix + name]
    backbone = LAYER_PREFIXES[-1]
    candidates = [key.removeprefix(backbone) for key in reversed(modules) if key.startswith(backbone)]
    hint = closest_hint(name, candidates, count=3, cutoff=0.3)
    raise InputError("模型中没有层 {!r}；{}--list-layers 列出全部可用的层", name, hint)


def layer_name(model, layer: torch.nn.Module) -> str:
    """Dotted path of a module below the image encoder's backbone, or below the model."""
    for name, module in _named_modules(model):
        if module is layer:
            return plain_name(name).removeprefix(LAYER_PREFIXES[-1])
    return type(layer).__name__


def _named_modules(model) -> Iterator[tuple[str, torch.nn.Module]]:
    """(dotted path, module) of all of a model; of one that is no module itself, of its image encoder."""
    if isinstance(model, torch.nn.Module):
        return model.named_modules()
    return model.image_encoder.named_modules(prefix="image_encoder")


def check_layers(model, layers: Sequence) -> list[torch.nn.Module]:
    """The layers, each a module or a path; InputError for what is none of the model's image encoder."""
    layers = [find_layer(model, layer) if isinstance(layer, str) else layer for layer in layers]
    modules = set(all_modules(model.image_encoder)) if layers else ()
    for layer in layers:
        if not isinstance(layer, torch.nn.Module):
            raise InputError("目标层应是层的名称或模块，收到的是 {}：{!r:.80}", type(layer).__name__, layer)
        if layer not in modules:
            raise InputError(
                "目标层 {} 不在这个模型的图像编码器之中（属于另一个模型，或文本编码器）；请给出层的名称，"
                "例如 target_layer='layer4.1'（--list-layers 列出可用的层）",
                layer_name(model, layer),
            )
    return layers


def layers_name(model, layers: Sequence[torch.nn.Module]) -> str:
    """The layers' paths as shown: "a + b", "a … z" of more than three; "attention pool" where there are none."""
    names = [layer_name(model, layer) for layer in layers]
    if len(names) > 3:
        names = [f"{names[0]} … {names[-1]}"]
    return " + ".join(names) or "attention pool"


def token_grids_of(tower, image_hw) -> list[tuple[int, int, int]]:
    """Each (prefix tokens, rows, columns) that an image tower says its tokens may have; one, but for stages."""
    if hasattr(tower, "token_grids"):
        return tower.token_grids(*image_hw)
    grid = tower.token_grid(*image_hw) if hasattr(tower, "token_grid") else None
    return [grid] if grid else []


def as_maps(tensor, image_hw, token_grids, images: int | None = None):
    """A layer's output as [B, C, h, w]: feature maps, channels-last maps, or tokens without their prefix.

    Raises InputError where it is none of these, or not one for each of the `images`: the windows of some may have as
    many tokens as a grid.
    """
    if tensor.ndim == 3 and token_grids and images in (None, len(tensor)):
        fitting = [grid for grid in token_grids if tensor.shape[1] == grid[0] + grid[1] * grid[2]]
        if not fitting:
            prefix, rows, columns = token_grids[-1]
            raise InputError(
                "该层有 {} 个词元，模型的网格是 {} + {}×{} 个；请换一层", tensor.shape[1], prefix, rows, columns
            )
        prefix, rows, columns = fitting[0]
        return tensor[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))  # (B, C, h, w)
    if tensor.ndim == 4:
        channels_first = _stretch(tensor.shape[2:], image_hw)
        channels_last = _stretch(tensor.shape[1:3], image_hw)
        if min(channels_first, channels_last) <= 2:
            return tensor if channels_first <= channels_last else tensor.permute(0, 3, 1, 2)
    raise InputError("该层的输出形状是 {}，不是空间特征图，无法计算热力图；请换一层", list(tensor.shape))


def _stretch(grid, image_hw) -> float:
    """How far a grid's cells are from square on the image: 1 if square, else the ratio of their sides."""
    height, width = image_hw[0] / grid[0], image_hw[1] / grid[1]
    return max(height / width, width / height)


def list_spatial_layers(model, img_size: int) -> list[tuple[str, tuple[int, int, int]]]:
    """(dotted path, (channels, rows, columns)) of each module of the backbone that gives a spatial map."""
    shapes = {}
    token_grids = token_grids_of(model.image_encoder, (img_size, img_size))

    def record(module, args, kwargs, output):
        with contextlib.suppress(InputError):
            check_reads(module, args, kwargs)
            shapes[module] = tuple(as_maps(tensor_of(output), (img_size, img_size), token_grids, 1).shape[1:])

    tower = model.image_encoder
    device, dtype = placement(tower)
    images = torch.zeros(1, 3, img_size, img_size, device=device, dtype=dtype)
    modules = {plain_name(name): module for name, module in tower.backbone.named_modules() if name}
    modules = {name: m for name, m in modules.items() if not isinstance(m, torch.jit.ScriptModule)}
    with undisturbed(tower), Hooks() as hooks:
        for module in modules.values():
            hooks.after(module, record, with_kwargs=True)
        with through(tower, images):
            tower(images)
    return [(name, shapes[module]) for name, module in modules.items() if module in shapes]


ROUNDING = 1e-6  # of the terms of a sum in float32: what is smaller may be no more than their rounding


def without_rounding(maps, A, g) -> tuple:
    """(maps [B, h, w], largest |gradient| [B]), both zero where a map is only what rounding left of terms that cancel.

    At some layers the terms g_k A_k cancel exactly: the positions of a block's output that is read through a norm
    alone, say. Brought to its maximum such a rest would look like any heatmap.
    """
    cancelled = maps.abs().amax((1, 2)) <= ROUNDING * (A * g).abs_().sum(1).amax((1, 2))
    peaks = torch.maximum(g.amax((1, 2, 3)), -g.amin((1, 2, 3)))  # |g| would be a tensor more
    return maps.where(~cancelled[:, None, None], maps.new_zeros(())), peaks.where(~cancelled, peaks.new_zeros(()))


def fuse_layers(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps [B, h, w] of several layers -> one at the finest grid: the mean of the positive maps, each over its maximum.

    Times the mean of the maxima, so that the maps of several texts stay comparable. One layer's map is left as it is.
    """
    if len(maps) == 1:
        return maps[0]
    finest = max((m.shape[1:] for m in maps), key=math.prod)
    positive = [F.interpolate(m[:, None].relu(), finest, mode="bilinear", align_corners=False)[:, 0] for m in maps]
    return mean_of_shares([m.flatten(1) for m in positive]).unflatten(1, finest)


def mean_of_shares(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Positive maps [..., positions]: the mean of each over its maximum, times the mean of the maxima."""
    maxima = torch.stack([m.amax(-1, keepdim=True) for m in maps])
    shares = torch.stack(list(maps)) / maxima.clamp_min(torch.finfo(maps[0].dtype).tiny)
    return shares.mean(0) * maxima.mean(0)
