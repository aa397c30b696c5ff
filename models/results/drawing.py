"""What is drawn of results: the figure of one text, or the grid of several; maps that look the same stand there once.

Like the figure it reads the results themselves: Results of `models.results.result`.
"""

import numpy as np

from .figure import draw_figure
from .formats import thin
from .grid import draw_grid

TILE_SIDE = 640  # pixels: what a text's overlay is thinned to in the grid of several at FIGURE_DPI


def for_figure(heatmap: np.ndarray, overlay: np.ndarray, alone: bool, side: int = TILE_SIDE) -> tuple:
    """What a figure needs of a drawn map: of one among several a thinned overlay, so that many take little memory.

    `side`: pixels of its longer side.
    """
    return (heatmap, overlay) if alone else (None, thin(overlay, side))


def file_marks(results) -> list[str | int | None]:
    """What tells the files of each explained map apart: nothing for a single one, the text's index, the method."""
    if len(results) > 1:
        return ["default" if result.is_default else result.method for result in results]
    targets = results[0].targets
    return [None] if len(targets) == 1 else targets


SAME = 1e-3  # of their maxima: maps that differ by less look alike


def each_once(results) -> tuple:
    """Results of several methods without those whose map an earlier one has, which says so; and their indices."""
    once, indices = [], []
    for index, result in enumerate(results):
        same = next((place for place, other in enumerate(once) if _look_alike(other, result)), None)
        if same is None:
            once.append(result)
            indices.append(index)
        else:
            once[same] = once[same]._replace(also=(*once[same].also, result))
    return type(results)(once), indices


def _look_alike(one, other) -> bool:
    """Whether two methods' maps, each over its maximum, are the same to the eye and beyond."""
    if one.maps.shape != other.maps.shape:
        return False
    a, b = (np.maximum(result.maps[0], 0) for result in (one, other))
    return a.max() > 0 and b.max() > 0 and np.allclose(a / a.max(), b / b.max(), rtol=0, atol=SAME)


def draw_results(results, drawn, lang: str, has_marks: bool = False):
    """The figure of one explained text, or the grid of several texts or methods; `drawn`: each (heatmap, overlay).

    `has_marks`: with (a), (b), ... at the panels.
    """
    if len(drawn) > 1:
        overlays = [overlay for _, overlay in drawn]
        if len(results) > 1:
            results, indices = each_once(results)
            overlays = [overlays[index] for index in indices]
        return draw_grid(results, overlays, lang, has_marks)
    ((heatmap, overlay),) = drawn
    return draw_figure(results[0], heatmap, overlay, lang, has_marks)
