"""The colours of heatmaps: which table of them, and how opaque they lie over the image where it is hot or cold.

An overlay is o colour + (1 - o) image, with o the largest opacity alpha times the blend's own at the heatmap's level,
of which there are 256. Chosen by looking at phantoms, also in grey print and as eyes see them that tell no red from
green: the hottest of jet and turbo is darker than what surrounds it, and looks like a lucency in bone there.
"""

from __future__ import annotations

from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import numpy as np

from ..errors import InputError, closest_hint
from ..explain.heatmap import COLORMAP_JET, OVERLAY_ALPHA, colour_table, lay_over
from ..heavy import cv2
from ..messages import Joined, Message

# name: OpenCV's number of it, as `import cv2` waits until something is drawn; its grey ones are lost on a radiograph
COLORMAPS = {
    **{"plasma": 15, "inferno": 14, "magma": 13, "viridis": 16, "cividis": 17},
    **{"jet": COLORMAP_JET, "turbo": 20, "hot": 11},
}
LEVELS = np.arange(256) / 255
COLD, HOT = 0.1, 0.6  # of "heat": uncoloured up to the one, as opaque as it gets from the other on


class Blend(NamedTuple):
    """How opaque the colours of each level are, and the colours where none are asked for."""

    opacity: np.ndarray  # float64 [256] in [0, 1], a share of the largest
    colormap: str  # of COLORMAPS
    alpha: float


def _smooth_step(low: float, high: float) -> np.ndarray:
    """0 up to the level `low`, 1 from `high` on, 3 t^2 - 2 t^3 between them: float64 [256]."""
    t = ((LEVELS - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


BLENDS = {
    "heat": Blend(_smooth_step(COLD, HOT), "plasma", 0.5),  # the image stays as it is where it is cold
    "constant": Blend(np.ones(256), "jet", OVERLAY_ALPHA),  # `show_cam_on_image`: a veil over all of it
}


class Colours(NamedTuple):
    """What heatmaps and overlays look like."""

    colormap: str  # of COLORMAPS
    blend: str  # of BLENDS
    alpha: float  # the largest opacity, in (0, 1]

    @property
    def opacity(self) -> np.ndarray:
        """Of the colours of each level of a heatmap: float64 [256] in [0, alpha]."""
        return self.alpha * BLENDS[self.blend].opacity


def choose_colours(colormap: str | None = None, blend: str | None = None, alpha: float | None = None) -> Colours:
    """Colours of names and a number, None for the blend's own; InputError where one cannot be used."""
    blend = next(iter(BLENDS)) if blend is None else blend
    for what, name, names in ((Message("叠加方式"), blend, BLENDS), (Message("配色"), colormap, COLORMAPS)):
        if name is not None and name not in tuple(names):
            raise InputError("没有{} {}；{}可用：{}", what, name, closest_hint(name, names), Joined("、", names))
    if alpha is not None and not (isinstance(alpha, Real) and 0 < alpha <= 1):
        raise InputError("颜色的不透明度 alpha 应大于 0、至多 1，收到 {}", alpha)
    default = BLENDS[blend]
    return Colours(colormap or default.colormap, blend, default.alpha if alpha is None else float(alpha))


DEFAULT_COLOURS = choose_colours()


def coloured(heatmap: np.ndarray, colormap: str) -> np.ndarray:
    """[h, w] in [0, 1] -> RGB uint8 [h, w, 3]."""
    return cv2.applyColorMap(_levels(heatmap), colour_table(COLORMAPS[colormap]))


def _levels(heatmap: np.ndarray) -> np.ndarray:
    return cv2.convertScaleAbs(heatmap, alpha=255)


def overlay(pixels: np.ndarray, heatmap: np.ndarray, colours: Colours) -> np.ndarray:
    """RGB uint8 [H, W, 3] and [H, W] in [0, 1] -> float32 RGB [H, W, 3] in [0, 1]; the image's own where it is NaN."""
    return lay_over(pixels, heatmap, colour_table(COLORMAPS[colours.colormap]), colours.opacity)


def overlay_levels(pixels: np.ndarray, heatmap: np.ndarray, colours: Colours = DEFAULT_COLOURS) -> np.ndarray:
    """`overlay` in whole levels, several times as fast: uint8 [H, W, 3]; at most one level from it where it is rounded.

    Products of bytes take half the time of `cv2.blendLinear`, whose weights are floats.
    """
    unseen = np.isnan(heatmap)
    if unseen.any():
        seen = overlay_levels(pixels, np.where(unseen, np.float32(0), heatmap), colours)
        return np.where(unseen[..., None], pixels, seen)
    pixels, alpha = np.ascontiguousarray(pixels), colours.alpha
    if colours.blend == "constant":  # a third faster
        return cv2.addWeighted(coloured(heatmap, colours.colormap), alpha, pixels, 1 - alpha, 0)
    paint, kept = _shares(colours)
    levels = _levels(heatmap)
    shares = cv2.merge([cv2.LUT(levels, kept)] * 3)  # half the time of a table of three
    image = cv2.multiply(pixels, shares, scale=1 / 255)
    return cv2.add(image, cv2.applyColorMap(levels, paint))


@lru_cache(maxsize=8)
def _shares(colours: Colours) -> tuple[np.ndarray, np.ndarray]:
    """Of each level: what is added of its colour, and how many 255ths of the image are kept.

    uint8 [256, 1, 3] and [256].
    """
    kept = np.rint(255 * (1 - colours.opacity))
    paint = ((255 - kept) / 255)[:, None, None] * colour_table(COLORMAPS[colours.colormap])
    return np.rint(paint).astype(np.uint8), kept.astype(np.uint8)
