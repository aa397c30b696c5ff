"""A page as a list of texts, boxes, pictures and lines, and the two ways it is drawn: as pixels, or for PDF and SVG.

Positions are pixels of FIGURE_DPI, y downwards. Text is always drawn with the font in `models/assets/fonts`,
so that a figure looks the same on every machine: the machine's own fonts are not asked. What that font lacks
comes from DejaVu Sans, a part of matplotlib's package; what both lack becomes a question mark (`drawable`).
Pixels are drawn by Pillow, from any number of threads at once; matplotlib is imported for PDF and SVG alone.
"""

import importlib.util
import math
import re
import threading
import unicodedata
from functools import lru_cache
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHIPPED_FONT = Path(__file__).resolve().parent / "assets" / "fonts" / "wqy-microhei.ttc"
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
def _font_paths() -> tuple[str, ...]:
    """The font of the project and, where matplotlib is installed, DejaVu Sans; matplotlib is not imported."""
    package = importlib.util.find_spec("matplotlib")
    folders = package.submodule_search_locations if package else ()
    paths = [Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for folder in folders]
    return (str(SHIPPED_FONT), *(str(path) for path in paths[:1] if path.is_file()))


_of_thread = threading.local()  # FreeType's faces are not to be shared


def _font(index: int, size: int):
    """The font of `_font_paths()[index]` at `size` pixels, one object per thread."""
    from PIL import ImageFont

    fonts = _of_thread.__dict__.setdefault("fonts", {})
    if (index, size) not in fonts:
        layout = ImageFont.Layout.BASIC
        fonts[index, size] = ImageFont.truetype(_font_paths()[index], size, layout_engine=layout)
    return fonts[index, size]


@lru_cache(maxsize=1 << 16)
def _font_of(character: str) -> int | None:
    """Index of the first font that has a glyph for `character`; None where none has."""
    for index in range(len(_font_paths())):
        glyph, missing = (_font(index, 20).getmask(c) for c in (character, "\uffff"))  # U+FFFF is no character
        if glyph.size != missing.size or bytes(glyph) != bytes(missing):
            return index
    return None


@lru_cache(maxsize=1 << 16)
def _advance(character: str, size: int) -> float:
    return _font(_font_of(character) or 0, size).getlength(character)


def drawable(text: str) -> str:
    """`text` on one line, with a question mark for each character that no font has."""
    return "".join("?" if _font_of(character) is None else character for character in " ".join(text.split()))


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


def _runs(text: Text):
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
    from PIL import Image, ImageDraw

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
    from PIL import Image, ImageDraw

    left, top, right, bottom = (round(edge) for edge in text_box(text))
    if not text.vertical:
        for index, run, offset in _runs(text):
            pen.text((left + round(offset), text.y), run, text.colour, _font(index, text.size), anchor="ls")
        return
    line = Image.new("L", (bottom - top, right - left))
    for index, run, offset in _runs(text):
        font = _font(index, text.size)
        ImageDraw.Draw(line).text((round(offset), text.x - left), run, 255, font, anchor="ls")
    page.paste(text.colour, (left, top), line.transpose(Image.Transpose.ROTATE_90))


_FINE = 4  # lines are drawn this many times as large


def _stroke_pixels(page, line):
    from PIL import Image, ImageDraw

    reach = line.width + 1
    left, top = (math.floor(min(edge)) - reach for edge in zip(*line.points))
    right, bottom = (math.ceil(max(edge)) + reach for edge in zip(*line.points))
    stroke = Image.new("L", (_FINE * (right - left), _FINE * (bottom - top)))
    points = [(_FINE * (x - left) - 0.5, _FINE * (y - top) - 0.5) for x, y in line.points]
    ImageDraw.Draw(stroke).line(points, 255, _FINE * line.width, joint="curve")
    page.paste(line.colour, (left, top), stroke.reduce(_FINE))


# -- for PDF and SVG

_vector_lock = threading.Lock()  # matplotlib's settings and fonts are of the whole process
_SETTINGS = {"svg.fonttype": "path", "svg.hashsalt": "clip_gradcam"}
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


def encode_vector(drawing: Drawing, kind: str) -> bytes:
    """The page as a file of `kind` "pdf" or "svg", its letters as outlines or with their font."""
    from matplotlib import rc_context

    buffer = BytesIO()
    with _vector_lock, rc_context(_SETTINGS):
        vector_figure(drawing).savefig(buffer, format=kind, metadata=_UNDATED[kind])
    return buffer.getvalue()


def vector_figure(drawing: Drawing):
    """The page as a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(drawing.width / FIGURE_DPI, drawing.height / FIGURE_DPI), dpi=FIGURE_DPI)
    for order, item in enumerate(drawing.items):
        if isinstance(item, Text):
            _write_vector(figure, drawing, item, order)
        elif isinstance(item, Line):
            _stroke_vector(figure, drawing, item, order)
        else:
            _place_vector(figure, drawing, item, order)
    return figure


def _place_vector(figure, page, item, order):
    """A box or a picture, at its place in shares of the page."""
    from matplotlib.patches import Rectangle

    left, bottom = item.left / page.width, 1 - item.bottom / page.height
    width, height = (item.right - item.left) / page.width, (item.bottom - item.top) / page.height
    if isinstance(item, Picture):
        axes = figure.add_axes((left, bottom, width, height), zorder=order)
        axes.set_axis_off()
        axes.imshow(item.pixels, aspect="auto", interpolation="none")
        return
    edge = {"edgecolor": item.outline or "none", "linewidth": 72 / FIGURE_DPI if item.outline else 0}
    rectangle = Rectangle((left, bottom), width, height, facecolor=item.fill, zorder=order, **edge)
    figure.add_artist(rectangle)


def _stroke_vector(figure, page, line, order):
    from matplotlib.lines import Line2D

    x, y = zip(*((x / page.width, 1 - y / page.height) for x, y in line.points))
    ends = {"solid_capstyle": "butt", "solid_joinstyle": "round"}
    figure.add_artist(Line2D(x, y, color=line.colour, linewidth=line.width * 72 / FIGURE_DPI, zorder=order, **ends))


def _write_vector(figure, page, text, order):
    from matplotlib.font_manager import FontProperties

    left, _, _, bottom = text_box(text)
    for index, run, offset in _runs(text):
        x, y = (text.x, bottom - offset) if text.vertical else (left + offset, text.y)
        font = FontProperties(fname=_font_paths()[index], size=text.size * 72 / FIGURE_DPI)
        options = {"rotation": 90 * text.vertical, "rotation_mode": "anchor", "va": "baseline", "zorder": order}
        place = x / page.width, 1 - y / page.height
        figure.text(*place, run, fontproperties=font, color=text.colour, parse_math=False, **options)
