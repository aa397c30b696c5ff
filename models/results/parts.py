"""The parts that the figure and the grid are made of: lines of text, colour bars, framed messages, the footer."""

import re
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import NamedTuple

import numpy as np

from ..explain.heatmap import TEXT_UNSPECIFIC
from ..messages import translated
from .colours import COLD, coloured
from .page import (
    ASCENT,
    BLACK,
    DESCENT,
    WHITE,
    Box,
    Drawing,
    Picture,
    Text,
    bounds,
    drawable,
    elided,
    moved,
    text_length,
    wrap_text,
)

FOOTER_WORDS = {
    "name": "图像：{}",
    "source": "图像编码器 {}　目标层 {}",
    "layer": "{}（{}×{}）",
    "dot product": "解释的是未归一化的点积，不是余弦相似度",
    "subtracted": "已减去其他文本也支持的部分（按模型认为的可能性加权）",
    "where only": "这段文本的相似度靠后：热力图只说明若有会在哪里，颜色不说明有没有",
    "two layers": "两层",
    "layers": "{} 层",
    "dot": "点积",
    "subtract": "减去其他文本",
    "brackets": "（{}）",
    "comma": "，",
    "descriptions": "{} 段描述的平均",
    "outline": "轮廓：标注",
    "outline of": "轮廓：{} 的标注",
    "independent": "各文本的概率相互独立，总和不必为 100%",
    "seen": "模型只看到图像的 {}%，其余被预处理裁去，没有着色",
    "heat": "叠加：越热越不透明，低于 {} 不着色",
    "specificity": "文本特异性{}（1 表示与其他文本的热力图不相关，0 表示热力图不随文本变化）",
    "unspecific": "热力图几乎不随文本变化",
}
TITLE, HEADING, WARNING, BODY, TICK = 30, 26, 24, 22, 22  # sizes of type, in pixels
PAGE_WIDTH = 1512  # of the widest page: printed 17 cm wide, the smallest type is 7 pt
GREY, RED = "#555555", "#c0392b"
MARGIN = 36  # of the page, left and right
NAME_ROOM = 480  # pixels, for the name of the image


def words_in_language(words: dict, lang: str) -> dict:
    """A table of our own words in one of LANGUAGES."""
    return {name: translated(word, lang) for name, word in words.items()}


def label_in_language(label: str, lang: str) -> str:
    """A heatmap's full name, as the tables have it in Chinese, in one of LANGUAGES."""
    words, chinese = words_in_language(FOOTER_WORDS, lang), words_in_language(FOOTER_WORDS, "zh")
    translations = {chinese[name]: words[name] for name in ("two layers", "dot", "subtract")}

    def in_words(detail):
        layers = re.fullmatch(chinese["layers"].format(r"(\d+)"), detail)
        return words["layers"].format(layers[1]) if layers else translations.get(detail, detail)

    return words["comma"].join(map(in_words, label.split(chinese["comma"])))


def three_decimals(value: float, sign: str = "") -> str:
    """A score or an area as it is shown; `sign` "+": also before what is positive; no minus before a zero."""
    return f"{round(value, 3) + 0.0:{sign}.3f}"


def percent(probability: float) -> str:
    """A probability in [0, 1] as it is shown: neither 0.0% nor 100.0% where it is more, or less."""
    shown = f"{probability:.1%}"
    if shown == "0.0%" and probability > 0:
        return "<0.1%"
    return ">99.9%" if shown == "100.0%" and probability < 1 else shown


def measure(size):
    return lambda text: text_length(text, size)


def leading(size: int) -> int:
    """Pixels from one baseline to the next."""
    return round(1.27 * size)


def lines_down(lines, x, baseline, size, anchor="m", colour=BLACK) -> list[Text]:
    """Lines one below the other, the first on `baseline`."""
    return [Text(x, baseline + row * leading(size), line, size, anchor, colour) for row, line in enumerate(lines)]


def lines_up(lines, x, baseline, size) -> list[Text]:
    """Lines one below the other, the last on `baseline`, centred at x."""
    return lines_down(lines, x, baseline - (len(lines) - 1) * leading(size), size)


def middle_baseline(centre: float, size: int) -> int:
    """The baseline of a line whose middle lies at the height `centre`."""
    return round(centre + (ASCENT - DESCENT) / 2 * size)


def fitted(width: int, height: int, box_width: float, box_height: float) -> tuple[int, int]:
    """The largest size of the proportions width : height within a box; at least one pixel each way."""
    scale = min(box_width / width, box_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


BAR_THICKNESS, TICK_LENGTH = 22, 5
TO_TICKS = TICK_LENGTH + 1 + TICK  # from an axis, or the lower edge of a bar, to the baseline of what its ticks say
TO_LABEL = TO_TICKS + leading(BODY) + 2  # and to that of what it counts


LEAST_BAR = 300  # pixels: beside a shorter picture the label reaches beyond it


def bar_beside(picture: Picture, label: str, colormap: str) -> list:
    """A vertical colour bar to the right of a picture, with ticks from 0 to 1 and its label on at most two lines."""
    left, top, bottom = picture.right + 18, picture.top, picture.bottom
    right, height = left + BAR_THICKNESS, bottom - top
    levels = np.repeat(np.linspace(1, 0, height, dtype=np.float32)[:, None], BAR_THICKNESS, axis=1)
    items = [Box(left - 1, top - 1, right + 1, bottom + 1, BLACK), Picture(left, top, coloured(levels, colormap))]
    for tick in range(6):
        y = bottom - 1 - round(tick * (height - 1) / 5)
        items.append(Box(right + 1, y, right + 1 + TICK_LENGTH, y + 1, BLACK))
        items.append(Text(right + 10, middle_baseline(y, TICK), f"{tick / 5:.1f}", TICK))
    label_x = right + 10 + round(text_length("0.0", TICK)) + 8 + round(ASCENT * BODY)
    for row, line in enumerate(wrap_text(label, max(height, LEAST_BAR), 2, measure(BODY))):
        items.append(Text(label_x + row * leading(BODY), (top + bottom) // 2, line, BODY, "m", vertical=True))
    return items


def bar_below(left: int, top: int, width: int, label: list[str], colormap: str) -> list:
    """A horizontal colour bar with ticks from 0 to 1, the lines of its label below."""
    right, bottom = left + width, top + BAR_THICKNESS
    levels = np.repeat(np.linspace(0, 1, width, dtype=np.float32)[None], BAR_THICKNESS, axis=0)
    items = [Box(left - 1, top - 1, right + 1, bottom + 1, BLACK), Picture(left, top, coloured(levels, colormap))]
    for tick in range(6):
        x = left + round(tick * (width - 1) / 5)
        items.append(Box(x, bottom + 1, x + 1, bottom + 1 + TICK_LENGTH, BLACK))
        items.append(Text(x, bottom + TO_TICKS, f"{tick / 5:.1f}", TICK, "m"))
    return [*items, *lines_down(label, left + width // 2, bottom + TO_LABEL, BODY)]


def framed_message(message: str, centre: tuple[float, float], limit: float, lines: int, size: int) -> list:
    """A framed message in a white box around `centre`; its first item is the box."""
    rows = wrap_text(drawable(message[:1].upper() + message[1:]), limit, lines, measure(size))
    x, y = round(centre[0]), round(centre[1])
    half_width = round(max(text_length(row, size) for row in rows) / 2) + 10
    half_height = len(rows) * leading(size) // 2 + 8
    first = middle_baseline(y - (len(rows) - 1) * leading(size) / 2, size)
    frame = Box(x - half_width, y - half_height, x + half_width, y + half_height, WHITE, RED)
    return [frame, *lines_down(rows, x, first, size)]


Note = tuple[str, str]  # a string of the footer and its colour


def footer_notes(results: Sequence, words: dict) -> list[Note]:
    """Which image this is, where its heatmaps come from and what else a reader must know, but for the specificity."""
    first = results[0]
    layers = " / ".join(dict.fromkeys(words["layer"].format(*result.source[1:]) for result in results))
    name = None if first.name is None else elided(drawable(first.name), NAME_ROOM, measure(BODY))
    notes = [] if name is None else [words["name"].format(name)]
    notes += [words["source"].format(drawable(first.source[0]), drawable(layers))]
    questions = [result.question for result in results]  # where they differ, each tile's name says it
    notes += [words["dot product"]] if all(question.similarity == "dot" for question in questions) else []
    notes += [words["subtracted"]] if all(question.subtract_others for question in questions) else []
    notes += [words["heat"].format(COLD)] if first.colours.blend == "heat" else []
    notes += [words["seen"].format(first.seen_percent)] if first.seen_percent < 100 else []
    notes += _outline_note(first, words)
    by_method = all(len(result.targets) == 1 for result in results)  # else each text's tile says it
    where_only = by_method and any(result.only_where()[0] for result in results)
    return [(note, GREY) for note in notes] + ([(words["where only"], RED)] if where_only else [])


def _outline_note(result, words: dict) -> list[str]:
    """What the outlines are, where there are any; whose annotation it is where that is another text's."""
    outlined = [(target, outline.text) for target, outline in zip(result.targets, result.outlines) if outline]
    others = [words["outline of"].format(drawable(result.names[text])) for target, text in outlined if text != target]
    return others or [words["outline"]] * bool(outlined)


def in_brackets(details: Sequence[str], words: dict) -> str:
    """What follows a name: its details in brackets, or nothing."""
    return words["brackets"].format(words["comma"].join(details)) if details else ""


def class_title(result, index: int, words: dict) -> str:
    """A class's name, and in brackets its description unless its words stand below, or of how many it is the mean.

    `words`: with FOOTER_WORDS.
    """
    name, text = result.names[index], result.texts[index]
    if not isinstance(text, str):
        return drawable(name) + in_brackets([words["descriptions"].format(len(text))], words)
    if result.words:
        return "" if name == text else drawable(name)
    return drawable(name if name == text else name + in_brackets([text], words))


def shown_specificities(result) -> list[float | None]:
    """T; None where there was nothing to compare, and for a method that knows no text: its title says it."""
    return result.specificities if result.knows_text else [None] * len(result.targets)


def specificity_notes(results: Sequence, words: dict) -> list[Note]:
    """What a text specificity means, with its value where there is one heatmap; in red, how many hardly have any."""
    shown = [value for result in results for value in shown_specificities(result)]
    values = [value for value in shown if value is not None]
    if not values:
        return []
    unspecific = sum(value <= TEXT_UNSPECIFIC for value in values)
    meaning = words["specificity"].format(f" {values[0]:.2f}" if len(shown) == 1 else "")
    return [(meaning, GREY)] + ([(words["unspecific"].format(unspecific), RED)] if unspecific else [])


def footer_rows(notes: Sequence[Note], room: float) -> list[list[Note]]:
    """The notes on as few rows of `room` pixels as they fit on in their order; a longer one is broken into rows."""
    rows, after = [], room + 1
    for note, colour in notes:
        for line in wrap_text(note, room, 3, measure(BODY)):
            length = round(text_length(line, BODY))
            if after + length > room:
                rows.append([])
                after = 0
            rows[-1].append((line, colour))
            after += length + 2 * BODY
    return rows


def with_footer(width: int, items: list, notes: Sequence[Note], panels: Sequence[list] = ()) -> Drawing:
    """The page of these items, with notes at its foot."""
    rows, top = footer_rows(notes, width - 2 * MARGIN), bounds(items)[3] + FOOT
    for row, of_row in enumerate(rows):
        x, baseline = MARGIN, top + (row + 1) * leading(BODY)
        for note, colour in of_row:
            items = [*items, Text(x, baseline, note, BODY, "l", colour)]
            x += round(text_length(note, BODY)) + 2 * BODY
    return Drawing(width, top + len(rows) * leading(BODY) + 20, items, panels)


# -- panels


class Panel(NamedTuple):
    """What is laid out around the height 0, and where its left edge is."""

    left: int
    items: list


FOOT, APART, HEAD = 14, 30, 24  # pixels above the footer, between rows of panels, and above the first


def letter_of(number: int) -> str:
    """What the panel of a number is called: a, b, ... z, aa, ab, ..."""
    return (letter_of(number // 26 - 1) if number >= 26 else "") + ascii_lowercase[number % 26]


def mark(number: int, x: int, baseline: int) -> Text:
    """The letter of a panel, as figures of papers have it."""
    return Text(x, baseline, f"({letter_of(number)})", TITLE)


def stacked(rows: Iterable[Sequence[Panel]]) -> list[list[Panel]]:
    """The panels at their places, each row below what the one above reaches."""
    placed, bottom = [], HEAD - APART
    for row in rows:
        _, top, _, low = bounds(item for panel in row for item in panel.items)
        down = bottom + APART - top
        placed.append([Panel(panel.left, moved(panel.items, 0, down)) for panel in row])
        bottom = low + down
    return placed


def marks_of(rows: Iterable[Sequence[Panel]]) -> list[Text]:
    """The letter of each panel at its upper left, on the highest line of the row's titles."""
    marks = []
    for row in rows:
        lines = (item for panel in row for item in panel.items if isinstance(item, Text) and not item.vertical)
        baseline = min(line.y for line in lines)
        marks += [mark(len(marks) + place, panel.left, baseline) for place, panel in enumerate(row)]
    return marks
