"""What pointing without looking gets of an annotation: chance, the class's usual place, the middle of the image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..heavy import cv2
from .measures import GRID, Areas, areas_of, measure_areas, peak, unpack_levels

BASELINES = ("chance", "class_place", "gaussian")
LOCALISATION = ("pointing", "pointing_strict", "energy", "iou_half", "iou_otsu", "contrast_to_noise")  # what they get
LEAST_COVERED = 0.25  # of a cell, or the most covered one's share: then the cell counts as the annotation's


class OnGrid(NamedTuple):
    """An annotation on the grid, [224, 224] each."""

    levels: np.ndarray  # uint8, 255 where it covers a cell
    coverage: np.ndarray  # float64 in [0, 1]
    cells: np.ndarray  # bool: what counts as the annotation for a peak
    near: np.ndarray  # bool: cells within the tolerance of these


def on_grid(levels: np.ndarray, tolerance: float) -> OnGrid:
    """Levels uint8 [224, 224] of `unpack_levels` -> the annotation; `tolerance` in pixels of the grid."""
    coverage = levels / 255
    cells = coverage >= min(LEAST_COVERED, levels.max() / 255)
    return OnGrid(levels, coverage, cells, grow(cells, tolerance))


def grow(cells: np.ndarray, tolerance: float) -> np.ndarray:
    """bool [H, W] -> bool [H, W]: what lies within `tolerance` pixels of a cell, from centre to centre."""
    left, top, width, height = cv2.boundingRect(cells.astype(np.uint8))
    reach = math.ceil(tolerance)
    around = slice(max(0, top - reach), top + height + reach), slice(max(0, left - reach), left + width + reach)
    apart = cv2.distanceTransform((~cells[around]).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    near = np.zeros_like(cells)
    near[around] = apart <= tolerance
    return near


@lru_cache(maxsize=1)
def gaussian_map() -> np.ndarray:
    """float64 [224, 224]: a Gaussian in the middle of the image, sigma a quarter of the side."""
    axis = (np.arange(GRID) - GRID / 2 + 0.5) / (GRID / 4)
    return np.exp(-0.5 * (axis[:, None] ** 2 + axis[None] ** 2))


class BlindMap(NamedTuple):
    """A map that never looks at the image, [224, 224] in any unit."""

    heatmap: np.ndarray
    areas: Areas
    peak: tuple[int, int]  # (row, column)
    near_peak: tuple[int, int]  # where a hit within the tolerance is likeliest

    def measure(self, annotation: OnGrid) -> tuple[float | None, ...]:
        """LOCALISATION on an annotation."""
        hits = annotation.near[self.near_peak], annotation.cells[self.peak]
        return *map(float, hits), *measure_areas(self.heatmap, self.areas, annotation.coverage)


def blind_map(heatmap: np.ndarray, near: np.ndarray) -> BlindMap:
    """`heatmap` [224, 224] as a BlindMap; `near`: how often a peak hits within the tolerance there, in any unit."""
    return BlindMap(heatmap, areas_of(heatmap), peak(heatmap / heatmap.max()), peak(near / near.max()))


def measure_chance(annotation: OnGrid) -> tuple[float, ...]:
    """LOCALISATION of what points anywhere: the shares of the image that the annotation and its surroundings cover."""
    area = float(annotation.coverage.mean())
    return float(annotation.near.mean()), area, area, area, area, 0.0


def measure_baselines(
    annotations: Sequence[tuple[str, int]],
    patients: Mapping[str, str],
    coverages: Mapping[tuple[str, int], str],
    tolerance: float,
) -> np.ndarray:
    """float [N, 3, 6]: LOCALISATION of BASELINES for each (image, index of its text) of `annotations`; NaN for none.

    `patients`: the patient of each image; an image that is no key of it is a patient of its own. The class's place is
    the mean coverage of the text's other annotations among `annotations`, without those of the same patient; the best
    blind guess within the tolerance is the peak of the mean of what is near these. What `coverages` lacks is left out.
    Raises InputError as `unpack_levels`.
    """
    members: dict[int, dict[tuple, list[int]]] = {}  # text -> patient -> rows
    for row, (image, text) in enumerate(annotations):
        if (image, text) in coverages:
            patient = (True, patients[image]) if image in patients else (False, image)
            members.setdefault(text, {}).setdefault(patient, []).append(row)
    measured = np.full((len(annotations), len(BASELINES), len(LOCALISATION)), np.nan)
    for by_patient in members.values():
        packed = {row: coverages[annotations[row]] for rows in by_patient.values() for row in rows}
        measured[list(packed)] = np.array(list(_measure_class(by_patient, packed, tolerance)), float)
    return measured


HELD = 64  # annotations that are kept decoded: a patient's are asked for twice


def _measure_class(by_patient: Mapping[tuple, Sequence[int]], packed: Mapping[int, str], tolerance: float) -> Iterator:
    """LOCALISATION of each baseline for the annotations of one text, patient by patient; decoded in two passes."""
    decode = lru_cache(HELD)(lambda row: on_grid(unpack_levels(packed[row]), tolerance))
    gaussian, nowhere = blind_map(gaussian_map(), gaussian_map()), [np.nan] * len(LOCALISATION)
    total = _sums(map(decode, packed))
    for rows in by_patient.values():
        others = blind_map(*(total - _sums(map(decode, rows)))) if len(rows) < len(packed) else None
        for annotation in map(decode, rows):
            place = nowhere if others is None else others.measure(annotation)
            yield measure_chance(annotation), place, gaussian.measure(annotation)


def _sums(annotations: Iterable[OnGrid]) -> np.ndarray:
    """int64 [2, 224, 224]: the sums of the levels, which are exact, and of the cells that are near."""
    sums = np.zeros((2, GRID, GRID), np.int64)
    for annotation in annotations:
        sums[0] += annotation.levels
        sums[1] += annotation.near
    return sums
