"""The figure of one explained text: four panels, and a fifth where the heatmap was tested.

Knows nothing of models: it reads an ImageResult of `models.results.result`. May be called from several threads at once.
"""

from functools import partial

import numpy as np

from ..errors import InputError
from ..messages import in_language
from . import parts
from .colours import coloured
from .curves import draw_curves
from .formats import encode_image
from .outlines import draw_outlines
from .page import (
    BLACK,
    FIGURE_DPI,
    Box,
    Drawing,
    Picture,
    Text,
    bounds,
    draw_pixels,
    drawable,
    largest_dpi,
    text_length,
    wrap_text,
)
from .parts import BODY, FOOTER_WORDS, HEADING, MARGIN, PAGE_WIDTH, RED, TICK, TICK_LENGTH, TITLE, WARNING, Panel
from .shading import (
    MOST_DESCRIPTIONS,
    SHADING_WORDS,
    lifted,
    shading_notes,
    text_with_legend,
)
from .svg import encode_svg

FIGURE_WORDS = {
    **FOOTER_WORDS,
    **SHADING_WORDS,
    "image": "原始图像",
    "heatmap": "{}热力图",
    "text-free": "（不看文本）",
    "overlay": "叠加结果",
    "probabilities": "预测概率分布",
    "top": "（前 {} 个，共 {} 个）",
    "target": "目标文本：{}",
    "contrast": "对比目标文本：{}",
    "scale": "相对重要性（0–1，以本图最大值为 1）",
    "probability": "概率（%）",
    "probability of each": "各文本独立的概率（%），总和不必为 100",
    "prediction": "预测",
    "chosen": "目标",
    "both": "预测且为目标",
}
BAR_COLOURS = {"both": RED, "prediction": "#e67e22", "chosen": "#2471a3", "other": "#aab7b8"}
UNSEEN = (230, 230, 230)  # where the model saw nothing


def encode_figure(drawing: Drawing, suffix: str, dpi: int = FIGURE_DPI) -> bytes:
    """A Drawing as the bytes of a file of this suffix, the same bytes each time; `dpi` is the density of pixels.

    InputError for a page that has too many of them.
    """
    if suffix.lower() == ".svg":
        return encode_svg(drawing)
    if suffix.lower() == ".pdf":
        from .pdf import encode_pdf  # matplotlib

        return encode_pdf(drawing)
    if dpi > (most := largest_dpi(drawing)):
        raise InputError("可视化图太大，dpi 至多 {}，收到 {}；请减小 --dpi（dpi），或少解释一些文本", most, dpi)
    return encode_image(draw_pixels(drawing, dpi), suffix, png_strategy="DEFAULT", dpi=dpi)


PANEL_WIDTH, TITLE_ROOM, MAX_BARS = 600, 640, 10
RIGHT = 714  # where the right panels start
TITLE_RAISE = 24  # of a title above its picture: the uppermost number of a colour bar stands between
CURVES_HEIGHT = 320  # of the fifth panel


def draw_figure(result, heatmap: np.ndarray, overlay: np.ndarray, lang: str = "zh", has_marks: bool = False) -> Drawing:
    """Lay out the panels of an ImageResult with one explained text.

    `heatmap` [H, W] in [0, 1], NaN where the model saw nothing; `overlay` RGB uint8 [H, W, 3]; `lang` ("zh", "en") is
    the figure's own language; texts and names stay as they are. `has_marks`: with (a), (b), ... at the panels.
    """
    words = parts.words_in_language(FIGURE_WORDS, lang)
    result = result._replace(flaws=[in_language(flaw, lang) for flaw in result.flaws])
    (height, width), (tested,) = result.pixels.shape[:2], result.tested
    panel_height = round(float(np.clip(PANEL_WIDTH * height / width, 408, 768)))
    text, shaded = text_with_legend(result, TITLE_ROOM, words) if result.words else ([], None)
    rows = [
        [
            _image_panel(MARGIN, panel_height, result.pixels, words["image"], result.outlines),
            _heatmap_panel(RIGHT, panel_height, result, heatmap, words, has_marks, text),
        ],
        [
            _image_panel(MARGIN, panel_height, overlay, words["overlay"], result.outlines),
            _probability_panel(RIGHT, panel_height, result, words),
        ],
    ]
    if tested is not None:
        rows.append([Panel(MARGIN, draw_curves(tested, result.question, CURVES_HEIGHT, lang))])
    rows = parts.stacked(rows)
    panels = [panel.items for row in rows for panel in row]
    items = [item for panel in panels for item in panel] + (parts.marks_of(rows) if has_marks else [])
    notes = parts.footer_notes([result], words) + parts.specificity_notes([result], words)
    notes += shading_notes([shaded], MOST_DESCRIPTIONS, words) if shaded else []
    return parts.with_footer(PAGE_WIDTH, items, notes, panels)


def _panel_picture(left, panel_height, image, proportions, colormap=None) -> Picture:
    """`image` as large as the panel allows at the proportions (height, width), in the panel's middle."""
    width, height = parts.fitted(proportions[1], proportions[0], PANEL_WIDTH, panel_height)
    place = left + (PANEL_WIDTH - width) // 2, (panel_height - height) // 2
    return Picture(*place, image, (width, height), None if colormap is None else partial(_coloured, colormap=colormap))


def _coloured(heatmap: np.ndarray, colormap: str) -> np.ndarray:
    """[h, w] in [0, 1] -> RGB uint8, grey where it is NaN."""
    unseen = np.isnan(heatmap)
    if not unseen.any():
        return coloured(heatmap, colormap)
    colours = coloured(np.where(unseen, np.float32(0), heatmap), colormap)
    colours[unseen] = UNSEEN
    return colours


def _image_panel(left, panel_height, pixels, title, outlines) -> Panel:
    size = pixels.shape[:2]
    picture = _panel_picture(left, panel_height, pixels, size)
    heading = Text(left + PANEL_WIDTH // 2, picture.top - TITLE_RAISE, title, TITLE, "m")
    return Panel(left, [picture, *draw_outlines(outlines, picture, size), heading])


def _heatmap_panel(left, panel_height, result, heatmap, words, has_mark, shaded_text) -> Panel:
    """The heatmap with the target text as its title, and its colour bar: beside it, or below one wider than 2:1.

    `shaded_text`: items that stand between the two.
    """
    colormap = result.colours.colormap
    picture = _panel_picture(left, panel_height, heatmap, result.pixels.shape[:2], colormap)
    target = parts.class_title(result, result.target, words)
    target = words["contrast" if result.question.contrast > 0 else "target"].format(target)
    remarks = parts.in_brackets(result.details(words), words)
    remarks += "" if result.knows_text else words["text-free"]
    first_room = PANEL_WIDTH - 120 if has_mark else TITLE_ROOM  # a mark stands at the first line
    title = _heading(words["heatmap"].format(result.label), remarks, first_room)
    title += wrap_text(target, TITLE_ROOM, 2, parts.measure(HEADING))
    centre, message = left + PANEL_WIDTH // 2, []
    upper, lower = picture.top, picture.bottom
    if result.flaws[0]:
        limit = min(max(picture.right - picture.left - 60, 150), 500)
        message = parts.framed_message(result.flaws[0], (centre, (upper + lower) / 2), limit, 20, WARNING)
        upper, lower = min(upper, message[0].top), max(lower, message[0].bottom)
    width, height = picture.right - picture.left, picture.bottom - picture.top
    if width > 2 * height:
        label = wrap_text(words["scale"], PANEL_WIDTH, 2, parts.measure(BODY))
        bar = parts.bar_below(picture.left, lower + 18, width, label, colormap)
    else:
        bar = parts.bar_beside(picture, words["scale"], colormap)
    text = lifted(shaded_text, centre, upper - TITLE_RAISE + 4) if shaded_text else []
    baseline = bounds(text)[1] - 14 if text else upper - TITLE_RAISE
    return Panel(left, [picture, *bar, *parts.lines_up(title, centre, baseline, HEADING), *text, *message])


def _heading(name: str, remarks: str, room: float) -> list[str]:
    """A heatmap's name and what is remarked of it: on one line of `room` pixels, else on lines of their own."""
    if text_length(name + remarks, HEADING) <= room:
        return [name + remarks]
    return [name, *wrap_text(remarks.strip(), TITLE_ROOM, 2, parts.measure(HEADING))]


def _bars(result) -> list[int]:
    """Indices of the texts that get a bar, likeliest first: all, or the ten likeliest with the target among them."""
    order = [int(i) for i in np.argsort(-result.probabilities, kind="stable")]
    bars = order[:MAX_BARS]
    return bars if result.target in bars else [*bars[:-1], result.target]


def _bar_kind(result, index) -> str:
    """Which of BAR_COLOURS a text's bar has."""
    if index == result.predicted:
        return "both" if index == result.target else "prediction"
    return "chosen" if index == result.target else "other"


LABEL_ROOM = 286  # pixels, for the name of a bar
AXIS = RIGHT + LABEL_ROOM + 14  # where the bars start
AXIS_WIDTH = PAGE_WIDTH - MARGIN - AXIS
PERCENT = AXIS_WIDTH / 124  # pixels for one percent: the number after a bar of 100 % needs room


def _probability_panel(left, least_height, result, words) -> Panel:
    """A bar for each class, the likeliest on top; prediction and target are marked by colour and legend."""
    bars = _bars(result)
    labels = [wrap_text(drawable(result.names[index]), LABEL_ROOM, 2, parts.measure(BODY)) for index in bars]
    height = max(least_height, len(bars) * (max(map(len, labels)) * parts.leading(BODY) + 4))
    pitch = height / (max(len(bars), 3) + 0.2)
    items = []
    for row, (index, label) in enumerate(zip(bars, labels)):
        probability = float(result.probabilities[index])
        centre, percent = (row + 0.6) * pitch, 100 * probability
        end = AXIS + max(1, round(percent * PERCENT))
        colour = BAR_COLOURS[_bar_kind(result, index)]
        items.append(Box(AXIS, round(centre - 0.3 * pitch), end, round(centre + 0.3 * pitch), colour))
        items.append(Box(AXIS - TICK_LENGTH, round(centre), AXIS, round(centre) + 1, BLACK))
        value = parts.percent(probability)
        items.append(Text(AXIS + round((percent + 1.5) * PERCENT), parts.middle_baseline(centre, BODY), value, BODY))
        first = parts.middle_baseline(centre - (len(label) - 1) * parts.leading(BODY) / 2, BODY)
        items += parts.lines_down(label, AXIS - 11, first, BODY, "r")
    title = words["probabilities"]
    title += words["top"].format(len(bars), len(result.names)) if len(bars) < len(result.names) else ""
    middle = min(AXIS + AXIS_WIDTH / 2, PAGE_WIDTH - MARGIN - text_length(title, TITLE) / 2)
    items.append(Text(round(middle), -54, title, TITLE, "m"))
    kinds = {_bar_kind(result, index) for index in bars}
    label = words["probability of each" if result.independent else "probability"]
    return Panel(left, [*items, *_percent_axis(height, label), *_legend(kinds, words)])


def _percent_axis(bottom, label) -> list:
    """The two axes, ticks from 0 to 100, and what they count."""
    items = [Box(AXIS, 0, AXIS + 1, bottom, BLACK), Box(AXIS, bottom, AXIS + AXIS_WIDTH, bottom + 1, BLACK)]
    for percent in range(0, 101, 20):
        x = AXIS + round(percent * PERCENT)
        items.append(Box(x, bottom, x + 1, bottom + TICK_LENGTH, BLACK))
        items.append(Text(x, bottom + parts.TO_TICKS, str(percent), TICK, "m"))
    label = wrap_text(label, AXIS_WIDTH, 2, parts.measure(BODY))
    return [*items, *parts.lines_down(label, AXIS + AXIS_WIDTH // 2, bottom + parts.TO_LABEL, BODY)]


def _legend(kinds, words) -> list:
    """What the colours of the bars mean, ending at the page's margin."""
    items, right = [], AXIS + AXIS_WIDTH
    for kind in reversed([kind for kind in ("both", "prediction", "chosen") if kind in kinds]):
        start = right - round(text_length(words[kind], BODY))
        items += [Text(start, -14, words[kind], BODY), Box(start - 42, -28, start - 12, -14, BAR_COLOURS[kind])]
        right = start - 42 - 24
    return items
