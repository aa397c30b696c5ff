"""Where an annotation lies, as an outline: taken from its mask, and drawn over a picture."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..heavy import cv2
from .formats import thin
from .page import BLACK, WHITE, Line, Picture

SIDE = 1024  # cells of the longer side of what a mask is thinned to; a panel's longer side has at most 768 pixels
MOST_POINTS = 20_000  # of all contours of a mask, where they turn; noise has more
POINT_RADIUS = 0.012  # of the circle around an annotated point, as a share of the image's longer side
STRAIGHT = 0.9  # half cells: contours leave the edges of cells by less, so that diagonal stairs are a line
STROKES = ((BLACK, 4), (WHITE, 2))  # colour, width: seen on dark and on bright ground, neither a heatmap's colour


class Outline(NamedTuple):
    text: int  # whose annotation it is
    contours: list[np.ndarray]  # float64 [N, 2] of (x, y) in the image's pixels, a pixel's centre on its half; closed


def outline_of(text: int, mask: np.ndarray, of_points: bool = False, most: int = MOST_POINTS) -> Outline:
    """The outline of a text's mask [H, W], its holes' edges too, of at most `most` points.

    `of_points`: circles around the mask's pixels.
    """
    return Outline(text, _contours(mask, of_points, SIDE, most))


def _contours(mask: np.ndarray, of_points: bool, side: int, most: int) -> list[np.ndarray]:
    """Closed contours along the edges of cells, at most `side` in a row; of fewer cells where they were too many."""
    cells = (thin(mask * np.uint8(255), side) > 0).astype(np.uint8)
    if of_points:
        cells = cv2.dilate(cells, _disc(round(POINT_RADIUS * max(cells.shape))))
    rows, columns = cells.shape
    halves = np.zeros((2 * rows + 1, 2 * columns + 1), np.uint8)
    halves[1::2, 1::2] = cells  # a cell's middle at odd places, its edges at even ones
    traced, _ = cv2.findContours(cv2.dilate(halves, np.ones((3, 3), np.uint8)), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    if sum(map(len, traced)) <= MOST_POINTS:
        straight = [cv2.approxPolyDP(contour, STRAIGHT, True)[:, 0] for contour in traced]
        if sum(map(len, straight)) <= most:
            half_cell = mask.shape[1] / columns / 2, mask.shape[0] / rows / 2
            return [contour * half_cell for contour in straight]
    return _contours(mask, of_points, side // 2, most)


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def draw_outlines(outlines: Iterable[Outline | None], picture: Picture, size: tuple[int, int]) -> list[Line]:
    """Outlines in an image of `size` (H, W), over a picture of the whole of it."""
    scale = np.divide((picture.width, picture.height), size[::-1])
    contours = [contour for outline in filter(None, outlines) for contour in outline.contours]
    closed = [np.concatenate([c, c[:2]]) * scale + (picture.left, picture.top) for c in contours]
    return [Line(list(map(tuple, c.tolist())), colour, width) for colour, width in STROKES for c in closed]
