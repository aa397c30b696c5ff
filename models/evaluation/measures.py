"""How well one heatmap agrees with one annotation, and the annotation in the form in which a run keeps it.

Each formula takes `weights`: a mask, bool [H, W], or the coverage of each cell of the grid, float [224, 224] in [0, 1].
Of a map that is constant on each cell both give the same numbers: a cell that a mask covers by a third counts a third
to what lies inside and two thirds to what lies outside.
"""

from __future__ import annotations

import base64
import contextlib
import math
import zlib
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..heavy import cv2

GRID = 224  # cells along each side of the grid that lies over the whole image
TOLERANCE = 15  # pixels of the grid: how far from an annotation a peak may lie to count as a hit


class Measures(NamedTuple):
    """Of one heatmap and one annotation; see `measure_heatmap`."""

    distance: float | None
    energy: float
    iou_half: float
    iou_otsu: float
    contrast_to_noise: float | None


def measure_heatmap(heatmap: np.ndarray, mask: np.ndarray, peak: tuple[int, int] | None) -> Measures:
    """Measure a heatmap float [H, W], >= 0 in any unit, on a mask bool [H, W]; NaN, where nothing was seen, is 0.

    `peak`: (x, y), the pixel where the heatmap is highest; None for an empty map, whose distance is None.
    """
    seen = np.nan_to_num(heatmap, nan=0.0) if np.isnan(heatmap.sum()) else heatmap
    return Measures(None if peak is None else distance(mask, peak), *measure_areas(seen, areas_of(seen), mask))


class Areas(NamedTuple):
    """What a heatmap [H, W] shows, cut in two ways; bool [H, W] each."""

    half: np.ndarray
    otsu: np.ndarray


def areas_of(heatmap: np.ndarray) -> Areas:
    """Where a heatmap is above half of its maximum, and its segmentation."""
    return Areas(heatmap > 0.5 * heatmap.max(), segmentation(heatmap))


def measure_areas(heatmap: np.ndarray, areas: Areas, weights: np.ndarray) -> tuple[float, float, float, float | None]:
    """(energy, iou_half, iou_otsu, contrast_to_noise) of a heatmap without NaN."""
    ious = iou(areas.half, weights), iou(areas.otsu, weights)
    return energy(heatmap, weights), *ious, contrast_to_noise(heatmap, weights)


def distance(mask: np.ndarray, peak: tuple[int, int]) -> float:
    """From the pixel (x, y) to the nearest pixel of a mask, bool [H, W], in pixels of the grid; 0 inside."""
    (height, width), (x, y) = mask.shape, peak
    if mask[y, x]:
        return 0.0
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    border = np.concatenate(contours)[:, 0]  # what is nearest to a pixel outside lies on the border
    return float(np.hypot(*((border - (x, y)) * (GRID / width, GRID / height)).T).min())


def sum_inside(values: np.ndarray, weights: np.ndarray, dtype=None) -> np.number:
    """Sum of the values of a mask's pixels, in `dtype` or their own; of all cells' times their weights, in float64."""
    if weights.dtype == bool:
        return values[weights].sum(dtype=dtype)
    return np.einsum("ij,ij->", values, weights, dtype=np.float64)


def energy(heatmap: np.ndarray, weights: np.ndarray) -> float:
    """Share of the heatmap's sum that lies inside, in [0, 1]; 0 for an empty one.

    Wang et al. 2020 (Score-CAM), the energy-based pointing game.
    """
    total = heatmap.sum()
    return float(sum_inside(heatmap, weights) / total) if total > 0 else 0.0


def iou(shown: np.ndarray, weights: np.ndarray) -> float:
    """Intersection over union of what a map shows, bool [H, W], and an annotation; 0 where both are nothing."""
    shared = weights[shown].sum()
    union = np.count_nonzero(shown) + weights.sum() - shared
    return float(shared / union) if union > 0 else 0.0


def segmentation(heatmap: np.ndarray) -> np.ndarray:
    """bool [H, W]: a heatmap cut at Otsu's threshold, its holes filled, single pixels left out; nothing of a flat one.

    CheXlocalize (Saporta et al. 2022), `cam_to_segmentation` of heatmap_to_segmentation.py.
    """
    low, high = heatmap.min(), heatmap.max()
    filled = np.zeros(heatmap.shape, np.uint8)
    if high > low:
        levels = (255 * ((heatmap - low) / (high - low))).astype(np.uint8)
        _, shown = cv2.threshold(levels, 0, 1, cv2.THRESH_OTSU)
        contours, _ = cv2.findContours(shown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(filled, [contour for contour in contours if len(contour) > 1], -1, 1, cv2.FILLED)
    return filled.view(bool)


LEAST_NOISE = 1e-6  # of the maximum: below, what float32 makes of two constant areas


def contrast_to_noise(heatmap: np.ndarray, weights: np.ndarray) -> float | None:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside), of the populations.

    0 where neither area varies; None where nothing lies outside. Boecking et al. 2022 (BioViL), phrase grounding.
    """
    area = float(weights.sum(dtype=np.float64))
    outside = weights.size - area
    if outside <= 0:
        return None
    moments = []
    for values in (heatmap, np.square(heatmap, dtype=np.float64)):
        total, of_inside = values.sum(dtype=np.float64), sum_inside(values, weights, np.float64)
        moments.append((of_inside / area, (total - of_inside) / outside))
    means, squares = np.array(moments)
    noise = math.sqrt(max(0.0, float((squares - means**2).sum())))
    return float(means[0] - means[1]) / noise if noise > LEAST_NOISE * heatmap.max() else 0.0


def peak(heatmap: np.ndarray) -> tuple[int, int]:
    """(row, column) of the maximum, 1; the middle of the plateau that bilinear resizing leaves at the border."""
    rows, columns = np.divmod(np.flatnonzero(heatmap >= heatmap.max() - 1e-6), heatmap.shape[1])
    return round(rows.mean()), round(columns.mean())


# -- an annotation as a run keeps it


def coverage_of(mask: np.ndarray) -> np.ndarray:
    """Mask bool [H, W] -> coverage float32 [224, 224]: the share of each cell that it covers."""
    height, width = mask.shape
    if min(height, width) < GRID:  # OpenCV averages areas only where it shrinks
        mask = mask.repeat(math.ceil(GRID / height), 0).repeat(math.ceil(GRID / width), 1)
    return cv2.resize(mask.astype(np.float32), (GRID, GRID), interpolation=cv2.INTER_AREA)


def pack_coverage(coverage: np.ndarray) -> str:
    """Coverage [224, 224] in [0, 1] as text: 256 levels, of which a cell that is touched has at least the first."""
    levels = np.maximum(np.rint(255 * coverage), coverage > 0).astype(np.uint8)
    return base64.b64encode(zlib.compress(levels.tobytes(), 9)).decode()


LONGEST_PACKED = 2 * GRID * GRID  # characters: what does not shrink takes 4 for 3 bytes


def unpack_levels(packed: str) -> np.ndarray:
    """`pack_coverage`'s text -> uint8 [224, 224], 255 for a cell that is wholly covered; InputError where it is none.

    An empty one is none: an annotation lies somewhere.
    """
    unpack, data = zlib.decompressobj(), b""
    with contextlib.suppress(ValueError, TypeError, zlib.error):
        if len(packed) <= LONGEST_PACKED:
            data = unpack.decompress(base64.b64decode(packed, validate=True), GRID * GRID + 1)
    levels = np.frombuffer(data, np.uint8)
    if len(levels) != GRID * GRID or not unpack.eof or unpack.unused_data or not levels.any():
        raise InputError("输出目录中保存的标注不是本工具写的，或已损坏：请换一个输出目录重新运行")
    return levels.reshape(GRID, GRID)
