"""The heatmap itself: from a map at the target layer to colours on the image's pixels, and what can be measured of it.

A map is [h, w] at the layer, before the ReLU; a heatmap is [H, W] at the image's size, in [0, 1].
"""

from __future__ import annotations

import math

import numpy as np

from ..heavy import cv2, torch
from ..heavy import functional as F
from ..images.preprocessing import Region
from ..messages import Message

FLATNESS = 1e-6  # a map whose range is below this share of its maximum is one colour


def resize_map(raw_map: torch.Tensor | np.ndarray, size: tuple[int, int], region: Region | None = None) -> np.ndarray:
    """Map [h, w] before the ReLU -> float32 [H, W] after it, in its own unit, at the image's size.

    Resized bilinearly with pixel centres on half integers: each cell lies on the pixels it was made of. `region`:
    the part of the image that the map lies on, None for all of it; NaN outside.
    """
    positive = as_map(raw_map).relu()[None, None]
    if region is None:
        return F.interpolate(positive, tuple(size), mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
    rows, columns = region.pixels(*size)
    y = _places(rows, region.top, region.bottom, positive)
    x = _places(columns, region.left, region.right, positive)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)  # (x, y) in [-1, 1]
    inside = F.grid_sample(positive, places[None], padding_mode="border", align_corners=False)
    resized = np.full(size, np.nan, dtype=np.float32)
    resized[rows, columns] = inside[0, 0].cpu().numpy()
    return resized


def _places(pixels: slice, low: float, high: float, like: torch.Tensor) -> torch.Tensor:
    """Centres of pixels as places between two edges, -1 to 1: float32, where `like` is."""
    centres = torch.arange(pixels.start, pixels.stop, device=like.device) + like.new_tensor(0.5)
    return 2 * (centres - low) / (high - low) - 1


def as_map(raw_map: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A map in float32, on the device that it is on; `torch.as_tensor` would move it to the default one."""
    return (raw_map if isinstance(raw_map, torch.Tensor) else torch.from_numpy(raw_map)).detach().float()


def to_heatmap(
    raw_map: torch.Tensor | np.ndarray,
    size: tuple[int, int],
    scale: float | None = None,
    region: Region | None = None,
) -> np.ndarray:
    """Map [h, w] before the ReLU -> heatmap float32 [H, W] in [0, 1]; zeros if it is flat; NaN outside of `region`.

    1 is the map's own maximum, or `scale` where several maps share one.
    """
    return on_scale(raw_map, resize_map(raw_map, size, region), scale)


def on_scale(raw_map: torch.Tensor | np.ndarray, resized: np.ndarray, scale: float | None = None) -> np.ndarray:
    """`to_heatmap` of a map whose `resize_map` is at hand."""
    return 0 * resized if is_flat(raw_map) else resized / np.float32(scale or np.nanmax(resized))


def flatness(raw_map) -> float:
    """Lowest / highest value of a map [h, w] after the ReLU: 1 where it is one colour, nothing at all included."""
    low, high = max(float(raw_map.min()), 0.0), max(float(raw_map.max()), 0.0)
    return low / high if high else 1.0


def is_flat(raw_map) -> bool:
    return flatness(raw_map) >= 1 - FLATNESS


def diagnose_flat_map(
    model, raw_map: torch.Tensor | np.ndarray, gradient_peak, others_subtracted: bool = False
) -> Message | None:
    """Why a map [h, w] (before the ReLU) shows nothing, and what to try; None for a map that shows something."""
    if not is_flat(raw_map):
        return None
    if gradient_peak == 0:
        cause = Message(
            "梯度为零，相似度不依赖于该层的这些位置；请用 --target-layer 换一层（--list-layers 列出可用的层）"
        )
    elif raw_map.max() <= 0 and others_subtracted:
        cause = Message("没有一处比其他文本更支持这段文本；请看概率，或换一个文本描述或目标文本")
    elif raw_map.max() <= 0 and math.prod(raw_map.shape) > 1:
        cause = Message("所有位置的加权激活都不为正，即这段文本与图像相反；请换一个文本描述或目标文本")
    else:
        cause = Message("该层各处的值相同（{}×{} 网格）；请用 --target-layer 换更靠前的一层", *raw_map.shape)
    untrained = Message("；另外，归一化层的参数全是初始值，检查点看起来未经训练") if looks_untrained(model) else ""
    return Message("热力图为空：{}{}", cause, untrained)


def looks_untrained(model) -> bool:
    """True where every normalisation layer of the image encoder still has the scale 1 and no shift but 0."""
    norms = [
        module
        for module in model.image_encoder.modules()
        if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None
    ]
    shifts = (module.bias for module in norms if getattr(module, "bias", None) is not None)
    return bool(norms) and all(bool((m.weight == 1).all()) for m in norms) and not any(bool(b.any()) for b in shifts)


TEXT_UNSPECIFIC = 0.05  # the reader is warned of a text specificity of this or less


def text_specificity(maps: np.ndarray, target: int) -> float | None:
    """1 - r in [0, 2]: how much one text's map is its own; maps [K, h, w] before the ReLU.

    r is the mean Pearson correlation of its cells, after the ReLU, with those of each other text's map. 1 means
    that the map has nothing in common with the others, 0 that it does not depend on what was asked; above 1 it
    lies where the others do not. An empty map of another text has nothing in common with this one: its
    correlation counts as 0. None where there is nothing to compare: one text only, or this map is empty.
    Measured on the demos: models/assets/demo/measurements.zh.md.
    """
    if len(maps) < 2 or is_flat(maps[target]):
        return None
    positive = np.maximum(maps.reshape(len(maps), -1), 0).astype(np.float64)
    centred = positive - positive.mean(axis=1, keepdims=True)
    centred[[is_flat(raw_map) for raw_map in maps]] = 0
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True).clip(1e-300)
    r = np.mean(np.delete(unit, target, axis=0) @ unit[target])
    return max(0.0, 1 - float(r))  # equal maps correlate by 1 and a rounding


COLORMAP_JET = 2  # cv2.COLORMAP_JET, by value: `import cv2` waits until something is drawn
OVERLAY_ALPHA = 0.4  # what an overlay has of the colours; the rest is the image


def show_cam_on_image(
    img: np.ndarray, mask: np.ndarray, colormap: int = COLORMAP_JET, alpha: float = OVERLAY_ALPHA
) -> np.ndarray:
    """Lay a heatmap over an image: alpha * colour + (1 - alpha) * image.

    `img`: RGB [H, W, 3], 0-255 integers or 0-1 floats (a float above 1 counts as 0-255). `mask`: [h, w] in
    [0, 1], resized where it is of another size; the image stays as it is where it is NaN. `colormap`: one of
    OpenCV's. Returns float32 RGB in [0, 1].
    """
    return lay_over(img, mask, colour_table(colormap), np.full(256, alpha, dtype=np.float64))


def lay_over(img: np.ndarray, mask: np.ndarray, table: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """`show_cam_on_image` with colours of one's own, RGB uint8 [256, 1, 3], and an opacity of each level, [256]."""
    pixels = np.asarray(img)
    scale = 255.0 if np.issubdtype(pixels.dtype, np.integer) or pixels.max(initial=0) > 1 else 1.0
    pixels = pixels.astype(np.float32) / np.float32(scale)
    mask = np.asarray(mask, dtype=np.float32)
    if mask.shape != pixels.shape[:2]:
        mask = cv2.resize(mask, pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    unseen = np.isnan(mask)
    levels = np.rint(np.clip(np.where(unseen, 0, mask), 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, table).astype(np.float32) / np.float32(255)
    opaque, rest = (share.astype(np.float32)[levels][..., None] for share in (opacity, 1 - opacity))
    blended = np.clip(opaque * colours + rest * pixels, 0, 1)
    return np.where(unseen[..., None], np.clip(pixels, 0, 1), blended)


def colour_table(colormap: int) -> np.ndarray:
    """One of OpenCV's colormaps as a table of its own: RGB uint8 [256, 1, 3], the coldest first."""
    levels = np.arange(256, dtype=np.uint8)[:, None]
    return cv2.cvtColor(cv2.applyColorMap(levels, colormap), cv2.COLOR_BGR2RGB)
