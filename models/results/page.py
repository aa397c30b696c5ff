"""A page as a list of texts, boxes, pictures and lines, and how it is drawn as pixels; for PDF and SVG see `vector`.

Positions are pixels of FIGURE_DPI, y downwards. Text is always drawn with the font in `models/assets/fonts`,
so that a figure looks the same on every machine: the machine's own fonts are not asked. What that font lacks
comes from DejaVu Sans, a part of matplotlib's package; what both lack becomes a question mark (`drawable`).
Pixels are drawn by Pillow, from any number of threads at once.
"""

import importlib.util
import math
import re
import threading
import unicodedata
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import escape_unprintable
from ..heavy import Image, ImageDraw, ImageFont

SHIPPED_FONT = Path(__file__).resolve().parent.parent / "assets" / "fonts" / "wqy-microhei.ttc"
FIGURE_DPI = 120
ASCENT, DESCENT = 0.95, 0.25  # of a line of type, as shares of its size
BLACK, WHITE = "#000000", "#ffffff"


class Text(NamedTuple):
    """One line of text; its start ("l"), middle ("m") or end ("r") lies at (x, y) on the baseline."""

    x: int
    y: int
    string: str  # only characters that `drawable` lets pass
    size: int  # of the em square
    anchor: str = "l"
    colour: str = BLACK
    vertical: bool = False  # reads from bottom to top


class Box(NamedTuple):
    """A rectangle; right and bottom are the first pixels outside it."""

    left: int
    top: int
    right: int
    bottom: int
    fill: str
    outline: str | None = None  # one pixel wide


class Line(NamedTuple):
    """A line through points (x, y), antialiased; a pixel's centre lies on its half."""

    points: list[tuple[float, float]]
    colour: str
    width: int


class Picture(NamedTuple):
    """An image at the size at which it is shown, RGB uint8 [height, width, 3]."""

    left: int
    top: int
    pixels: np.ndarray

    @property
    def right(self) -> int:
        return self.left + self.pixels.shape[1]

    @property
    def bottom(self) -> int:
        return self.top + self.pixels.shape[0]


class Drawing(NamedTuple):
    """A white page and what lies on it, later items over earlier ones."""

    width: int
    height: int
    items: list


# -- fonts and lines of text


@lru_cache(maxsize=1)
def font_paths() -> tuple[str, ...]:
    """The font of the project and, where matplotlib is installed, DejaVu Sans; matplotlib is not imported."""
    package = importlib.util.find_spec("matplotlib")
    folders = package.submodule_search_locations if package else ()
    paths = [Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for folder in folders]
    return (str(SHIPPED_FONT), *(str(path) for path in paths[:1] if path.is_file()))


_of_thread = threading.local()  # FreeType's faces are not to be shared


def _font(index: int, size: int):
    """The font of `font_paths()[index]` at `size` pixels, one object per thread."""
    fonts = _of_thread.__dict__.setdefault("fonts", {})
    if (index, size) not in fonts:
        layout = ImageFont.Layout.BASIC
        fonts[index, size] = ImageFont.truetype(font_paths()[index], size, layout_engine=layout)
    return fonts[index, size]


@lru_cache(maxsize=1 << 16)
def _font_of(character: str) -> int | None:
    """Index of the first font that has a glyph for `character`; None where none has."""
    for index in range(len(font_paths())):
        glyph, missing = (_font(index, 20).getmask(c) for c in (character, "\uffff"))  # U+FFFF is no character
        if glyph.size != missing.size or bytes(glyph) != bytes(missing):
            return index
    return None


@lru_cache(maxsize=1 << 16)
def _advance(character: str, size: int) -> float:
    return _font(_font_of(character) or 0, size).getlength(character)


def drawable(text: str) -> str:
    """`text` on one line, what is no visible character escaped, a question mark for each that no font has."""
    line = " ".join(escape_unprintable(text).split())
    return "".join("?" if _font_of(character) is None else character for character in line)


def text_length(text: str, size: int) -> float:
    """How many pixels one line of text is long."""
    return sum(_advance(character, size) for character in text)


def text_box(text: Text) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a Text: as long as its letters, as high as a line."""
    length, above, below = text_length(text.string, text.size), ASCENT * text.size, DESCENT * text.size
    before = _before_anchor(text, length)
    if text.vertical:
        return text.x - above, text.y + before - length, text.x + below, text.y + before
    return text.x - before, text.y - above, text.x - before + length, text.y + below


def _before_anchor(text, length) -> int:
    return round({"l": 0, "m": 0.5, "r": 1}[text.anchor] * length)


def runs(text: Text):
    """(index of the font, letters, pixels from the line's start) for each stretch of one font."""
    offset = 0.0
    for index, letters in groupby(text.string, key=lambda character: _font_of(character) or 0):
        run = "".join(letters)
        yield index, run, offset
        offset += text_length(run, text.size)


def columns_of(text: str) -> int:
    """How many columns of type a text takes: 2 for a Chinese character, 1 for a Latin one."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


_CLOSING = "，。、；：！？）》】”’"


def wrap_text(text: str, limit: float, lines: int, measure=columns_of) -> list[str]:
    """Break `text` into at most `lines` lines no longer than `limit`, as `measure` has it; … where it is cut.

    Breaks between Chinese characters, and between Latin words where a word is shorter than a line, but not
    before a closing mark.
    """
    rows = [""]
    for piece in re.findall(f"(?:[!-~]+|.)[{_CLOSING}]* ?", text):  # a Latin word or one character
        for part in [piece] if measure(piece) <= limit else piece:
            if measure(rows[-1]) + measure(part.rstrip()) > limit:
                rows.append("")
            rows[-1] += part
        if len(rows) > lines:
            break
    rows = [row.strip() for row in rows]
    if len(rows) > lines:
        last = rows[lines - 1]
        while last and measure(last + "…") > limit:
            last = last[:-1]
        rows = [*rows[: lines - 1], last + "…"]
    return rows


# -- as pixels


def draw_pixels(drawing: Drawing) -> np.ndarray:
    """The page as RGB uint8 [height, width, 3]."""
    page = Image.new("RGB", (drawing.width, drawing.height), WHITE)
    pen = ImageDraw.Draw(page)
    for item in drawing.items:
        if isinstance(item, Picture):
            page.paste(Image.fromarray(item.pixels), (item.left, item.top))
        elif isinstance(item, Box):
            pen.rectangle((item.left, item.top, item.right - 1, item.bottom - 1), item.fill, item.outline)
        elif isinstance(item, Line):
            _stroke_pixels(page, item)
        else:
            _write_pixels(page, pen, item)
    return np.asarray(page)


def _write_pixels(page, pen, text):

    left, top, right, bottom = (round(edge) for edge in text_box(text))
    if not text.vertical:
        for index, run, offset in runs(text):
            pen.text((left + round(offset), text.y), run, text.colour, _font(index, text.size), anchor="ls")
        return
    line = Image.new("L", (bottom - top, right - left))
    for index, run, offset in runs(text):
        font = _font(index, text.size)
        ImageDraw.Draw(line).text((round(offset), text.x - left), run, 255, font, anchor="ls")
    page.paste(text.colour, (left, top), line.transpose(Image.Transpose.ROTATE_90))


_FINE = 4  # lines are drawn this many times as large


def _stroke_pixels(page, line):

    reach = line.width + 1
    left, top = (math.floor(min(edge)) - reach for edge in zip(*line.points))
    right, bottom = (math.ceil(max(edge)) + reach for edge in zip(*line.points))
    stroke = Image.new("L", (_FINE * (right - left), _FINE * (bottom - top)))
    points = [(_FINE * (x - left) - 0.5, _FINE * (y - top) - 0.5) for x, y in line.points]
    ImageDraw.Draw(stroke).line(points, 255, _FINE * line.width, joint="curve")
    page.paste(line.colour, (left, top), stroke.reduce(_FINE))
