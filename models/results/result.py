"""What is known of one image: an ImageResult for each method, and Results of several over the same image."""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..explain.heatmap import TEXT_UNSPECIFIC, is_flat, on_scale, resize_map
from ..explain.methods import METHODS
from ..explain.question import Question
from ..explain.words import Word
from ..heavy import Image
from ..images.preprocessing import Region
from ..messages import LANGUAGES, Joined, Message, in_language, speaking
from .brief import brief
from .colours import DEFAULT_COLOURS, Colours, overlay, overlay_levels
from .drawing import draw_results, file_marks, for_figure
from .figure import encode_figure
from .outlines import Outline
from .page import Drawing, draw_pixels
from .parts import FOOTER_WORDS, words_in_language
from .saving import OutputChoice, check_choice, save_results

WHERE_ONLY = "该文本与图像的相似度靠后，热力图的颜色不说明有没有：它只说明若有会在哪里，有没有请看概率"
TEXT_FREE = "{} 不看文本：无论问什么，热力图都一样"
MOST_KEPT = 1 << 23  # numbers of resized maps that are kept: 32 MB
NOTEBOOK_WIDTH = 1000  # pixels of the page: about a notebook's width on a laptop


class ImageResult(NamedTuple):
    """One image against K texts, T of them explained by one method. Frozen; shows its figure in a notebook."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    maps: np.ndarray  # float32 [T, h, w] at the target layer, before the ReLU
    question: Question
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    targets: list[int]  # T
    source: tuple  # image encoder, target layer, rows, columns of its grid
    flaws: list[Message | None]  # T, why a map shows nothing
    specificities: list[float | None]  # T, see text_specificity
    cautions: Sequence[Message] = ()  # what the reader of any of its maps must know, of the model or the picture
    region: Region | None = None  # the part of the image that the model saw; None: all of it
    faithfulness: list | None = None  # T of models.explain.faithfulness.Faithfulness, None for an empty map
    independent: bool = False  # whether each text has a probability of its own (a sigmoid): they need not sum to 1
    fused_layers: int = 1  # how many layers' maps are fused
    subtracted: float = 0.0  # the share of what the other texts hold that is taken off
    is_default: bool = False  # whether it is what the encoder is shown by where nothing is asked for
    tells_presence: bool = True  # whether the strength of such maps tells what is there from what is not
    outlines: Sequence[Outline | None] = ()  # T, of the annotation that each map is held against; or none at all
    also: tuple = ()  # ImageResults of other methods whose map is the same
    lang: str = LANGUAGES[0]  # of its figure and of what it says of itself
    name: str | None = None  # the image's file name, without its folders
    colours: Colours = DEFAULT_COLOURS
    words: list[list[Word]] | None = None  # T, what each word of an explained text adds to the similarity
    resized: Sequence[np.ndarray] = ()  # T, what `resized_maps` gives, at hand; none: it is made each time

    def __eq__(self, other) -> bool:
        """Whether all values are the same, those of arrays too; NaN is the same as NaN. What is at hand is none."""
        return isinstance(other, ImageResult) and all(map(_same, self._replace(resized=()), other._replace(resized=())))

    def __ne__(self, other) -> bool:
        return not self == other

    def __repr__(self) -> str:
        return brief(Results([self]), type(self).__name__)

    __hash__ = None  # as arrays and lists: what is equal by values that can change has no lasting hash

    def resized_maps(self) -> Iterator[np.ndarray]:
        """[H, W] float32 of each explained text, after the ReLU, in its own unit; NaN where the model saw nothing."""
        if self.resized:
            return iter(self.resized)
        return (resize_map(raw_map, self.pixels.shape[:2], self.region) for raw_map in self.maps)

    def heatmaps(self) -> Iterator[np.ndarray]:
        """[H, W] in [0, 1] of each explained text, all on one scale: 1 is the largest value of any of them."""
        scale = None
        if len(self.targets) > 1:
            drawn = (resized for raw_map, resized in zip(self.maps, self.resized_maps()) if not is_flat(raw_map))
            scale = max((float(np.nanmax(resized)) for resized in drawn), default=None)
        return (on_scale(raw_map, resized, scale) for raw_map, resized in zip(self.maps, self.resized_maps()))

    def overlays(self) -> Iterator[np.ndarray]:
        """RGB float32 [H, W, 3] in [0, 1] of each explained text."""
        return (overlay(self.pixels, heatmap, self.colours) for heatmap in self.heatmaps())

    def warnings(self, lang: str | None = None) -> list[str | None]:
        """What the reader of each explained text's map must know: the cautions, and its own notes."""
        joined = (Joined("；", [*self.cautions, *notes]) for notes in self.notes())
        return [message.in_language(lang or self.lang) or None for message in joined]

    def notes(self) -> list[list[Message]]:
        """What must be known of each explained text's map alone: it is empty, ignores the text, says only where."""
        own = (flaw or self._unspecific(value) for flaw, value in zip(self.flaws, self.specificities))
        where = (Message(WHERE_ONLY) if only else None for only in self.only_where())
        return [list(filter(None, of_text)) for of_text in zip(own, where)]

    def rank(self, target: int) -> int:
        """Of a text by its similarity to the image, 1 the most similar."""
        return 1 + int((self.similarities > self.similarities[target]).sum())

    def only_where(self) -> list[bool]:
        """T, whether the reader might take colour for presence: the text ranks low, and colour tells nothing of it.

        One map alone has its own maximum for its strongest colour, whatever there is; several share one scale.
        """
        low, colour_tells = math.ceil(len(self.similarities) / 3), self.tells_presence and len(self.targets) > 1
        shows = (self.knows_text and flaw is None and not colour_tells for flaw in self.flaws)
        return [shown and self.rank(target) > low for target, shown in zip(self.targets, shows)]

    def _unspecific(self, value: float | None) -> Message | None:
        if not self.knows_text:
            return Message(TEXT_FREE, self.label)
        if value is None or value > TEXT_UNSPECIFIC:
            return None
        how_much = Message("文本特异性 {:.2f}，0 表示完全不变", value)
        return Message("热力图几乎不随文本变化（{}）：它显示的不是这段文本特有的依据", how_much)

    def messages(self, lang: str | None = None) -> list[str]:
        """The warnings, each once; with several texts, after the names of those it is about. None: in its language."""
        named = ((self.question.names[target], notes) for target, notes in zip(self.targets, self.notes()))
        messages = [*self.cautions, *_each_once(named, alone=len(self.targets) == 1)]
        return [in_language(message, lang or self.lang) for message in messages]

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
        return next(self.overlays())

    @property
    def map(self) -> np.ndarray:
        """float32 [H, W] at the image's size, after the ReLU, in its own unit; NaN where the model saw nothing."""
        return next(self.resized_maps())

    @property
    def layer_map(self) -> np.ndarray:
        """float32 [h, w] at the target layer, after the ReLU, in its own unit."""
        return np.maximum(self.maps[0], 0)

    # what was asked and where the answer comes from

    @property
    def names(self) -> list[str]:
        return self.question.names

    @property
    def texts(self) -> list[str | tuple[str, ...]]:
        return self.question.texts

    @property
    def predicted(self) -> int:
        """Index of the most similar text."""
        return int(self.probabilities.argmax())

    @property
    def method(self) -> str:
        """One of METHODS."""
        return self.question.method

    @property
    def label(self) -> str:
        """The method's name as it is shown."""
        return METHODS[self.method].label

    @property
    def is_guide(self) -> bool:
        """Whether it is the users' guide's Grad-CAM of one layer and the cosine."""
        return self.method == "gradcam" and self.full_label() == self.label

    def details(self, words: dict) -> list[str]:
        """In what the heatmap differs from the method at one layer and of the cosine; `words`: of one language."""
        return [
            *([words["two layers"]] if self.fused_layers == 2 else []),
            *([words["layers"].format(self.fused_layers)] if self.fused_layers > 2 else []),
            *([words["dot"]] if self.question.similarity == "dot" else []),
            *([words["subtract"]] if self.question.subtract_others else []),
        ]

    def full_label(self, lang: str = "zh") -> str:
        """The heatmap's name: the method and in what it differs from it at one layer, of the cosine."""
        words = words_in_language(FOOTER_WORDS, lang)
        return words["comma"].join([self.label, *self.details(words)])

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

    # what is drawn of it

    def figure(self, lang: str | None = None):
        """As `Results.figure`."""
        return Results([self]).figure(lang)

    def save(self, path: str | os.PathLike, **choice) -> list[Path]:
        """As `Results.save`."""
        return Results([self]).save(path, **choice)

    def _repr_png_(self) -> tuple[bytes, dict]:
        return Results([self])._repr_png_()


class Results(tuple):
    """What several methods, or one, say of one image: ImageResults over the same pixels and texts."""

    def __repr__(self) -> str:
        return brief(self, type(self).__name__)

    def messages(self, lang: str | None = None) -> list[str]:
        """The warnings of all, each once; with several methods, after the names of those that it is about.

        That a text ranks low is about all of them. Of several methods, one that knows no text says so by its name.
        """
        lang = lang or self.lang
        if len(self) == 1:
            return self[0].messages(lang)
        cautions = [caution for result in self for caution in result.cautions]
        notes = [(result.full_label(lang), result.notes()[0]) for result in self if result.knows_text]
        only = Message(WHERE_ONLY)
        where = [only for _, of_method in notes if only in of_method]
        own = ((label, [note for note in of_method if note != only]) for label, of_method in notes)
        return [in_language(message, lang) for message in dict.fromkeys([*cautions, *where, *_each_once(own)])]

    @property
    def lang(self) -> str:
        return self[0].lang

    def keeping(self) -> "Results":
        """The same with their resized maps at hand for all who need them; as they are where those take much memory."""
        if sum(len(result.maps) for result in self) * math.prod(self[0].pixels.shape[:2]) > MOST_KEPT:
            return self
        return Results(result._replace(resized=tuple(result.resized_maps())) for result in self)

    def pairs(self) -> list[tuple[ImageResult, int]]:
        """(result, index into its targets) of each explained text and method."""
        return [(result, index) for result in self for index in range(len(result.targets))]

    def figure(self, lang: str | None = None):
        """The figure, or the grid of several, as a PIL image; `lang` of LANGUAGES, None for the results' own."""
        return Image.fromarray(draw_pixels(self._drawing(lang)))

    def save(self, path: str | os.PathLike, **choice) -> list[Path]:
        """Write the figure at `path` (.png where it has no suffix; .pdf, .svg, .jpg ...) and the overlays beside it.

        `choice`: fields of OutputChoice, such as `heatmap="all"`. Returns the paths, the figure's first. InputError
        for a choice that there is not, or where nothing can be written.
        """
        return save_results(self, path, OutputChoice(**choice))

    def _repr_png_(self) -> tuple[bytes, dict]:
        """The figure for a notebook, at most NOTEBOOK_WIDTH wide on the screen with all its pixels."""
        drawing = self._drawing()
        return encode_figure(drawing, ".png"), {"width": min(NOTEBOOK_WIDTH, drawing.width)}

    def _drawing(self, lang: str | None = None) -> Drawing:
        lang = lang or self.lang
        with speaking(self.lang):
            check_choice(OutputChoice(lang=lang))
        alone = len(file_marks(self)) == 1
        return draw_results(self, [for_figure(*drawn, alone) for drawn in self.drawn()], lang)

    def drawn(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(heatmap [H, W], overlay uint8 [H, W, 3]) of each explained text and method."""
        return ((heatmap, overlay_levels(r.pixels, heatmap, r.colours)) for r in self for heatmap in r.heatmaps())


def _same(one, other) -> bool:
    """Whether two values of results are one: arrays by their elements, lists and tuples by their items, NaN as NaN."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or (one != one and other != other))


def _each_once(named: Iterable[tuple[str, list[Message]]], alone: bool = False) -> list[Message]:
    """(name, notes) of each text or method -> each note once, unless `alone` after the names of those it is about."""
    about: dict[Message, list[str]] = {}
    for name, notes in named:
        for note in notes:
            about.setdefault(note, []).append(name)
    return [note if alone else Message("{}：{}", Joined("、", names), note) for note, names in about.items()]
