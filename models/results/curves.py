"""The fifth panel of the figure: a heatmap's deletion and insertion curves, and the areas below them."""

import math

import numpy as np

from ..explain.faithfulness import Faithfulness
from ..explain.question import Question
from . import parts
from .page import BLACK, Box, Line, Text, text_length, wrap_text
from .parts import BODY, GREY, MARGIN, PAGE_WIDTH, RED, TICK, TICK_LENGTH, TITLE

CURVE_WORDS = {
    "title": "忠实度：删除与插入曲线",
    "pixels": "按热力图从高到低隐藏或显示的像素（%）",
    "cosine": "余弦相似度",
    "contrast": "（对比）",
    "deletion": "删除（越低越好）",
    "insertion": "插入（越高越好）",
    "random": "随机图",
    "area": "曲线下面积",
    "margin": "优于随机",
    "note": "优于随机为正：热力图比随机图更准地找到了模型依据的像素。两条虚线是删除和插入随机图，面积相同。",
}
COLOURS = {"deletion": RED, "insertion": "#2471a3", "random": "#909497"}
GRID_LINE = "#e5e7e9"
STROKE, DASH = 3, (9, 6)  # width of a curve; pixels drawn and left out


TABLE = 830  # where the table starts


def draw_curves(tested: Faithfulness, question: Question, height: int, lang: str) -> list:
    """The plot, its upper edge at the height 0, and beside it the table of areas, as wide as the page."""
    words = parts.words_in_language(CURVE_WORDS, lang)
    left, right, top, bottom = MARGIN + 112, TABLE - 60, 0, height
    curves = {"deletion": tested.deletion_curve, "insertion": tested.insertion_curve}
    ticks = nice_ticks(*_range([*curves.values(), tested.random_curve]))
    random = [tested.random_curve, tested.random_curve[::-1]]
    place = _Place(left, right, top, bottom, ticks[0], ticks[-1])
    items = _axes(place, ticks, words["pixels"], _score_label(question, words))
    for curve in random:
        items += [Line(dash, COLOURS["random"], 2) for dash in dashes(place.points(curve), *DASH)]
    strokes = {kind: place.points(curve) for kind, curve in curves.items()}
    items += [Line(points, COLOURS[kind], STROKE) for kind, points in strokes.items() if len(points) > 1]
    items.append(Text((left + right) // 2, top - 30, words["title"], TITLE, "m"))
    return items + _table(tested, TABLE, top, PAGE_WIDTH - MARGIN - TABLE, words)


def _score_label(question: Question, words) -> str:
    return words["cosine"] + (words["contrast"] if question.contrast > 0 else "")


def _range(curves) -> tuple[float, float]:
    """Lowest and highest finite value."""
    values = np.concatenate(curves)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)


def nice_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most `most` round numbers at equal steps of 1, 2 or 5 times a power of ten, the ends outside low and high."""
    span = max(high - low, 1e-3, 1e-3 * abs(low))
    power = 10.0 ** math.floor(math.log10(span / most))
    for step in (power * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
        if last - first < most:
            break
    last = max(last, first + 1)
    return [round(step * number, 12) + 0.0 for number in range(first, last + 1)]


def dashes(points, drawn: float, left_out: float) -> list[list[tuple[float, float]]]:
    """A line through points, cut into dashes by length."""
    if len(points) < 2:
        return []
    points = np.asarray(points, dtype=np.float64)
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    cut = []
    for start in np.arange(0, along[-1], drawn + left_out):
        inner = along[(along > start) & (along < start + drawn)]
        at = [start, *inner, min(start + drawn, along[-1])]
        cut.append([(float(np.interp(a, along, points[:, 0])), float(np.interp(a, along, points[:, 1]))) for a in at])
    return cut


class _Place:
    """Where a share of the pixels and a score lie on the page."""

    def __init__(self, left, right, top, bottom, low, high):
        self.left, self.right, self.top, self.bottom = left, right, top, bottom
        self._low, self._high = low, high

    def x(self, share: float) -> float:
        return self.left + 0.5 + share * (self.right - self.left - 1)

    def y(self, score: float) -> float:
        return self.bottom - 0.5 - (score - self._low) / (self._high - self._low) * (self.bottom - self.top - 1)

    def points(self, curve) -> list[tuple[float, float]]:
        """A curve over the shares from 0 to 1, without what is not finite."""
        shares = np.linspace(0, 1, len(curve))
        return [(self.x(share), self.y(float(score))) for share, score in zip(shares, curve) if np.isfinite(score)]


def _axes(place: _Place, ticks, x_label: str, y_label: str) -> list:
    """Grid lines, axes, ticks from 0 to 100 and those of the score, and what they count."""
    left, right, bottom = place.left, place.right, place.bottom
    decimals = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    items = []
    for tick in ticks:
        y = math.floor(place.y(tick))
        items += [Box(left, y, right, y + 1, GRID_LINE), Box(left - TICK_LENGTH, y, left, y + 1, BLACK)]
        items.append(Text(left - 10, parts.middle_baseline(y, TICK), f"{tick:.{decimals}f}", TICK, "r"))
    for percent in range(0, 101, 20):
        x = math.floor(place.x(percent / 100))
        items.append(Box(x, bottom, x + 1, bottom + TICK_LENGTH, BLACK))
        items.append(Text(x, bottom + parts.TO_TICKS, str(percent), TICK, "m"))
    items += [Box(left, place.top, left + 1, bottom, BLACK), Box(left, bottom, right, bottom + 1, BLACK)]
    items.append(Text((left + right) // 2, bottom + parts.TO_LABEL, x_label, BODY, "m"))
    return [*items, Text(MARGIN + round(0.95 * BODY), (place.top + bottom) // 2, y_label, BODY, "m", vertical=True)]


def _table(tested, left: int, top: int, width: int, words) -> list:
    """For each curve a sample of its line, its name, its area and the margin over random maps; a note below."""
    rows = {
        "deletion": (tested.deletion, tested.deletion_margin),
        "insertion": (tested.insertion, tested.insertion_margin),
        "random": (tested.random, None),
    }
    right, pitch, baseline = left + width, 42, top + 16
    areas = right - max(96, round(text_length(words["margin"], BODY)) + 20)
    items = [
        Text(areas, baseline, words["area"], BODY, "r", GREY),
        Text(right, baseline, words["margin"], BODY, "r", GREY),
    ]
    items.append(Box(left, baseline + 12, right, baseline + 13, GRID_LINE))
    for kind, (area, margin) in rows.items():
        baseline += pitch
        y = baseline - 7.5
        sample = [(left, y), (left + 33, y)]
        strokes = dashes(sample, *DASH) if kind == "random" else [sample]
        items += [Line(stroke, COLOURS[kind], 2 if kind == "random" else STROKE) for stroke in strokes]
        items.append(Text(left + 44, baseline, words[kind], BODY))
        items.append(Text(areas, baseline, parts.three_decimals(area), BODY, "r"))
        if margin is not None:
            items.append(
                Text(right, baseline, parts.three_decimals(margin, "+"), BODY, "r", RED if margin < 0 else BLACK)
            )
    note = wrap_text(words["note"], width, 5, parts.measure(BODY))
    return [*items, *parts.lines_down(note, left, baseline + pitch + parts.leading(BODY) // 2, BODY, "l", GREY)]
