"""What is known of one image: an ImageResult for each method, and Results of several over the same image."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..explain.heatmap import TEXT_UNSPECIFIC, blend, is_flat, resize_map, show_cam_on_image, to_heatmap
from ..explain.methods import METHODS
from ..explain.question import Question
from ..images.preprocessing import Region
from .figure import draw_figure, encode_figure
from .formats import thin
from .grid import draw_grid

TILE_SIDE = 640  # pixels: what a text's overlay is thinned to in the grid of several


class ImageResult(NamedTuple):
    """One image against K texts, T of them explained by one method. Frozen; shows its figure in a notebook."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    maps: np.ndarray  # float32 [K, h, w] at the target layer, before the ReLU
    question: Question
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    targets: list[int]  # T
    source: tuple  # image encoder, target layer, rows, columns of its grid
    flaws: list[str | None]  # T, why a map shows nothing
    specificities: list[float | None]  # T, see text_specificity
    cautions: Sequence[str] = ()  # what the reader of any of its maps must know, of the model or the picture
    method: str = "gradcam"
    region: Region | None = None  # the part of the image that the model saw; None: all of it
    faithfulness: list | None = None  # T of models.explain.faithfulness.Faithfulness, None for an empty map
    independent: bool = False  # whether each text has a probability of its own (a sigmoid): they need not sum to 1

    def resized_maps(self) -> Iterator[np.ndarray]:
        """[H, W] float32 of each explained text, after the ReLU, in its own unit; NaN where the model saw nothing."""
        return (resize_map(self.maps[target], self.pixels.shape[:2], self.region) for target in self.targets)

    def heatmaps(self) -> Iterator[np.ndarray]:
        """[H, W] in [0, 1] of each explained text, all on one scale: 1 is the largest value of any of them."""
        scale = None
        if len(self.targets) > 1:
            drawn = (m for t, m in zip(self.targets, self.resized_maps()) if not is_flat(self.maps[t]))
            scale = max((float(np.nanmax(resized)) for resized in drawn), default=None)
        size = self.pixels.shape[:2]
        return (to_heatmap(self.maps[target], size, scale, self.region) for target in self.targets)

    def warnings(self) -> list[str | None]:
        """What the reader of each explained text's map must know: the cautions; it is empty, or it ignores the text."""
        own = (flaw or self._unspecific(value) for flaw, value in zip(self.flaws, self.specificities))
        return ["；".join(filter(None, [*self.cautions, flaw])) or None for flaw in own]

    def _unspecific(self, value: float | None) -> str | None:
        if not self.knows_text:
            return f"{self.label} 不看文本：无论问什么，热力图都一样"
        if value is None or value > TEXT_UNSPECIFIC:
            return None
        how_much = f"文本特异性 {value:.2f}，0 表示完全不变"
        return f"热力图几乎不随文本变化（{how_much}）：它显示的不是这段文本特有的依据"

    def messages(self) -> list[str]:
        """The warnings, each once; with several texts, after the names of those it is about."""
        about: dict[str, list[str]] = {}
        for target, warning in zip(self.targets, self._replace(cautions=()).warnings()):
            if warning:
                about.setdefault(warning, []).append(self.question.names[target])
        alone = len(self.targets) == 1
        of_texts = (warning if alone else f"{'、'.join(names)}：{warning}" for warning, names in about.items())
        return [*self.cautions, *of_texts]

    # of the only, or the first, explained text

    @property
    def target(self) -> int:
        return self.targets[0]

    @property
    def heatmap(self) -> np.ndarray:
        return next(iter(self.heatmaps()))

    @property
    def overlay(self) -> np.ndarray:
        """RGB float32 [H, W, 3] in [0, 1]."""
        return show_cam_on_image(self.pixels, self.heatmap)

    @property
    def map(self) -> np.ndarray:
        """float32 [H, W] at the image's size, after the ReLU, in its own unit; NaN where the model saw nothing."""
        return next(self.resized_maps())

    @property
    def layer_map(self) -> np.ndarray:
        """float32 [h, w] at the target layer, after the ReLU, in its own unit."""
        return np.maximum(self.maps[self.target], 0)

    # what was asked and where the answer comes from

    @property
    def names(self) -> list[str]:
        return self.question.names

    @property
    def texts(self) -> list[str]:
        return self.question.texts

    @property
    def predicted(self) -> int:
        """Index of the most similar text."""
        return int(self.probabilities.argmax())

    @property
    def label(self) -> str:
        """The method's name as it is shown."""
        return METHODS[self.method].label

    @property
    def knows_text(self) -> bool:
        """Whether the method's map depends on what is asked."""
        return METHODS[self.method].knows_text

    @property
    def seen_percent(self) -> int:
        """Whole per cent of the image's pixels that the model's preprocessing let it see."""
        return math.floor(100 * self.geometry.share(*self.pixels.shape[:2]) + 1e-6)

    @property
    def tested(self) -> list:
        """T of Faithfulness; None for an empty map, and for each where nothing was tested."""
        return self.faithfulness or [None] * len(self.targets)

    @property
    def layer(self) -> str:
        return self.source[1]

    @property
    def geometry(self) -> Region:
        """The rectangle of the image, in its pixels, that the map covers."""
        height, width = self.pixels.shape[:2]
        return self.region or Region(0.0, 0.0, float(width), float(height))

    def _repr_png_(self) -> bytes:
        return Results([self])._repr_png_()


class Results(tuple):
    """What several methods, or one, say of one image: ImageResults over the same pixels and texts."""

    def messages(self) -> list[str]:
        """The warnings of all, each once; with several methods, after the method's name."""
        alone = len(self) == 1
        warning = (result for result in self if alone or result.knows_text)
        cautions = (caution for result in self for caution in result.cautions)
        own = ((result.label, m) for result in warning for m in result._replace(cautions=()).messages())
        return list(dict.fromkeys([*cautions, *(m if alone else f"{label}：{m}" for label, m in own)]))

    def pairs(self) -> list[tuple[ImageResult, int]]:
        """(result, index into its targets) of each explained text and method."""
        return [(result, index) for result in self for index in range(len(result.targets))]

    def _repr_png_(self) -> bytes:
        alone = len(file_marks(self)) == 1
        return encode_figure(draw_results(self, [for_figure(*drawn, alone) for drawn in self.drawn()], "zh"), ".png")

    def drawn(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(heatmap [H, W], overlay uint8 [H, W, 3]) of each explained text and method."""
        return ((heatmap, blend(r.pixels, heatmap)) for r in self for heatmap in r.heatmaps())


def for_figure(heatmap: np.ndarray, overlay: np.ndarray, alone: bool) -> tuple:
    """What a figure needs of a drawn map: of one among several a thinned overlay, so that many take little memory."""
    return (heatmap, overlay) if alone else (None, thin(overlay, TILE_SIDE))


def file_marks(results: Results) -> list[str | int | None]:
    """What tells the files of each explained map apart: nothing for a single one, the text's index, the method."""
    if len(results) > 1:
        return [result.method for result in results]
    targets = results[0].targets
    return [None] if len(targets) == 1 else targets


def draw_results(results: Results, drawn, lang: str):
    """The figure of one explained text, or the grid of several texts or methods; `drawn`: each (heatmap, overlay)."""
    if len(drawn) > 1:
        return draw_grid(results, [overlay for _, overlay in drawn], lang)
    ((heatmap, overlay),) = drawn
    return draw_figure(results[0], heatmap, overlay, lang)
