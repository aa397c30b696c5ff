"""A page as a list of texts, boxes, pictures and lines, and how it is drawn as pixels; `pdf` and `svg` draw it too.

Positions are pixels of FIGURE_DPI, y downwards; a page is drawn at any other density from the same items. Text is
always drawn with the font in `models/assets/fonts`, so that a figure looks the same on every machine: the machine's own
fonts are not asked. What that font lacks comes from DejaVu Sans, a part of matplotlib's package; what both lack becomes
a question mark (`drawable`). Pixels are drawn by Pillow, from any number of threads at once.
"""

import importlib.util
import math
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import escape_unprintable
from ..heavy import Image, ImageDraw, ImageFont, cv2

SHIPPED_FONT = Path(__file__).resolve().parent.parent / "assets" / "fonts" / "wqy-microhei.ttc"
FIGURE_DPI = 120
MOST_PIXELS = 500_000_000  # of a page: some 6 GB while it is drawn and encoded; a figure of one text has 400 at 1200
LONGEST_SIDE = 4096  # of a side of an image in a file of PDF or SVG
ASCENT, DESCENT = 0.95, 0.25  # of a line of type, as shares of its size
BLACK, WHITE = "#000000", "#ffffff"


class Text(NamedTuple):
    """One line of text; its start ("l"), middle ("m") or end ("r") lies at (x, y) on the baseline."""

    x: int
    y: int
    string: str  # only characters that `drawable` lets pass
    size: float  # of the em square
    anchor: str = "l"
    colour: str = BLACK
    vertical: bool = False  # reads from bottom to top
    even: bool = False  # each letter is an em wide at any density, where fonts round to whole pixels


class Box(NamedTuple):
    """A rectangle; right and bottom are the first pixels outside it."""

    left: int
    top: int
    right: int
    bottom: int
    fill: str
    outline: str | None = None
    edge: int = 1  # how wide the outline is


class Line(NamedTuple):
    """A line through points (x, y), antialiased; a pixel's centre lies on its half."""

    points: list[tuple[float, float]]
    colour: str
    width: int


class Picture(NamedTuple):
    """An image and the place where it is shown; each density is drawn from the image's own pixels."""

    left: int
    top: int
    source: np.ndarray  # RGB uint8 [h, w, 3], or what `colours` makes RGB of once it is resized
    size: tuple[int, int] | None = None  # width and height on the page; None: the source's
    colours: Callable[[np.ndarray], np.ndarray] | None = None

    @property
    def width(self) -> int:
        return self.size[0] if self.size else self.source.shape[1]

    @property
    def height(self) -> int:
        return self.size[1] if self.size else self.source.shape[0]

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height

    @property
    def pixels(self) -> np.ndarray:
        """RGB uint8 [height, width, 3], as it is shown."""
        return self.at(self.width, self.height)

    def at(self, width: int, height: int) -> np.ndarray:
        """RGB uint8 [height, width, 3]."""
        pixels = self.source if self.source.shape[:2] == (height, width) else resized(self.source, width, height)
        return self.colours(pixels) if self.colours else pixels

    def own_pixels(self) -> np.ndarray:
        """RGB uint8 for a file that is enlarged at will: the source's pixels, at most LONGEST_SIDE to a side.

        What `colours` makes is smooth: twice as many as on the page are enough.
        """
        height, width = self.source.shape[:2]
        if self.colours:
            return self.at(2 * self.width, 2 * self.height)
        shrink = max(1, max(height, width) / LONGEST_SIDE)
        return self.at(max(1, round(width / shrink)), max(1, round(height / shrink)))


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """[h, w] or [h, w, 3] at exactly this size: averaged where it shrinks by more than 1.5, else interpolated."""
    shrinks = image.shape[0] * image.shape[1] > 1.5**2 * width * height
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class Drawing(NamedTuple):
    """A white page and what lies on it, later items over earlier ones."""

    width: int
    height: int
    items: list
    panels: Sequence[list] = ()  # the items of each of its panels


# -- fonts and lines of text


@lru_cache(maxsize=1)
def font_paths() -> tuple[str, ...]:
    """The font of the project and, where matplotlib is installed, DejaVu Sans; matplotlib is not imported."""
    package = importlib.util.find_spec("matplotlib")
    folders = package.submodule_search_locations if package else ()
    paths = [Path(folder) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf" for folder in folders]
    return (str(SHIPPED_FONT), *(str(path) for path in paths[:1] if path.is_file()))


_of_thread = threading.local()  # FreeType's faces are not to be shared


def _font(index: int, size: float):
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
def _advance(character: str, size: float) -> float:
    return _font(_font_of(character) or 0, size).getlength(character)


def drawable(text: str) -> str:
    """`text` on one line, what is no visible character escaped, a question mark for each that no font has."""
    line = " ".join(escape_unprintable(text).split())
    return "".join("?" if _font_of(character) is None else character for character in line)


def text_length(text: str, size: float) -> float:
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


def elided(text: str, limit: float, measure=columns_of) -> str:
    """`text` on one line no longer than `limit`, as `measure` has it; … in its middle where it is cut."""
    for kept in range(len(text), 0, -1):
        shown = text if kept == len(text) else f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if measure(shown) <= limit:
            return shown
    return "…"


# -- places on the page


def box_of(item: Text | Box | Line | Picture) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of an item."""
    if isinstance(item, Text):
        return text_box(item)
    if isinstance(item, Line):
        x, y = zip(*item.points)
        return min(x), min(y), max(x), max(y)
    return item.left, item.top, item.right, item.bottom


def bounds(items: Iterable) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what all of the items cover, in whole pixels."""
    left, top, right, bottom = zip(*map(box_of, items))
    return math.floor(min(left)), math.floor(min(top)), math.ceil(max(right)), math.ceil(max(bottom))


def moved(items: Iterable, right: int, down: int) -> list:
    """The items at another place."""
    return [_moved(item, right, down) for item in items]


def _moved(item, right: int, down: int):
    if isinstance(item, Text):
        return item._replace(x=item.x + right, y=item.y + down)
    if isinstance(item, Line):
        return item._replace(points=[(x + right, y + down) for x, y in item.points])
    place = {"left": item.left + right, "top": item.top + down}
    if isinstance(item, Box):
        place |= {"right": item.right + right, "bottom": item.bottom + down}
    return item._replace(**place)


def scaled(item, scale: float):
    """An item of a page that is `scale` times as large; nothing becomes thinner than a pixel."""
    if isinstance(item, Text):
        return item._replace(x=round(item.x * scale), y=round(item.y * scale), size=item.size * scale)
    if isinstance(item, Line):
        points = [(x * scale, y * scale) for x, y in item.points]
        return item._replace(points=points, width=max(1, round(item.width * scale)))
    left, top = round(item.left * scale), round(item.top * scale)
    if isinstance(item, Picture):
        size = max(1, round(item.width * scale)), max(1, round(item.height * scale))
        return item._replace(left=left, top=top, size=size)
    right, bottom = max(left + 1, round(item.right * scale)), max(top + 1, round(item.bottom * scale))
    return Box(left, top, right, bottom, item.fill, item.outline, max(1, round(item.edge * scale)))


def page_of(items: Iterable, margin: int = 16) -> Drawing:
    """A page just as large as the items and a margin around them."""
    left, top, right, bottom = bounds(items)
    return Drawing(right - left + 2 * margin, bottom - top + 2 * margin, moved(items, margin - left, margin - top))


# -- as pixels


def largest_dpi(drawing: Drawing) -> int:
    """The highest density at which the page has at most MOST_PIXELS."""
    return math.isqrt(FIGURE_DPI**2 * MOST_PIXELS // (drawing.width * drawing.height))


def draw_pixels(drawing: Drawing, dpi: int = FIGURE_DPI) -> np.ndarray:
    """The page as RGB uint8 [H, W, 3]: at FIGURE_DPI of its height and width, at `dpi` so much larger or smaller."""
    scale = dpi / FIGURE_DPI
    page = Image.new("RGB", (round(drawing.width * scale), round(drawing.height * scale)), WHITE)
    pen = ImageDraw.Draw(page)
    for item in drawing.items if scale == 1 else (scaled(item, scale) for item in drawing.items):
        if isinstance(item, Picture):
            page.paste(Image.fromarray(item.pixels), (item.left, item.top))
        elif isinstance(item, Box):
            pen.rectangle((item.left, item.top, item.right - 1, item.bottom - 1), item.fill, item.outline, item.edge)
        elif isinstance(item, Line):
            _stroke_pixels(page, item)
        else:
            _write_pixels(page, pen, item)
    return np.asarray(page)


def _write_pixels(page, pen, text):
    left, top, right, bottom = (round(edge) for edge in text_box(text))
    if text.even:
        for place, letter in enumerate(text.string):
            font = _font(_font_of(letter) or 0, text.size)
            pen.text((left + round(place * text.size), text.y), letter, text.colour, font, anchor="ls")
        return
    if not text.vertical:
        for index, run, offset in runs(text):
            pen.text((left + round(offset), text.y), run, text.colour, _font(index, text.size), anchor="ls")
        return
    line = Image.new("L", (bottom - top, right - left))
    for index, run, offset in runs(text):
        font = _font(index, text.size)
        ImageDraw.Draw(line).text((round(offset), text.x - left), run, 255, font, anchor="ls")
    page.paste(text.colour, (left, top), line.transpose(Image.Transpose.ROTATE_90))


_FINE, _WIDE = 4, 8  # lines are drawn this many times as large, those of so many pixels or more twice


def _stroke_pixels(page, line):
    reach, fine = line.width + 1, _FINE if line.width < _WIDE else 2
    left, top = (math.floor(min(edge)) - reach for edge in zip(*line.points))
    right, bottom = (math.ceil(max(edge)) + reach for edge in zip(*line.points))
    stroke = Image.new("L", (fine * (right - left), fine * (bottom - top)))
    points = [(fine * (x - left) - 0.5, fine * (y - top) - 0.5) for x, y in line.points]
    ImageDraw.Draw(stroke).line(points, 255, fine * line.width, joint="curve")
    page.paste(line.colour, (left, top), stroke.reduce(fine))
