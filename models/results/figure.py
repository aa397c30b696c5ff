"""The figure of one explained text: four panels, and a fifth where the heatmap was tested.

Knows nothing of models: it reads an ImageResult of `models.results.result`. May be called from several threads at once.
"""

from functools import partial

import numpy as np

from ..messages import in_language
from . import parts
from .colours import coloured
from .curves import draw_curves
from .formats import encode_image
from .outlines import draw_outlines
from .page import BLACK, FIGURE_DPI, Box, Drawing, Picture, Text, draw_pixels, drawable, text_length, wrap_text
from .parts import BODY, FOOTER_WORDS, HEADING, MARGIN, RED, TICK, TICK_LENGTH, TITLE, WARNING
from .svg import encode_svg

FIGURE_WORDS = {
    **FOOTER_WORDS,
    "image": ("原始图像", "Original image"),
    "heatmap": ("{}热力图", "{} heatmap"),
    "text-free": ("（不看文本）", " (knows no text)"),
    "overlay": ("叠加结果", "Overlay"),
    "probabilities": ("预测概率分布", "Predicted probabilities"),
    "top": ("（前 {} 个，共 {} 个）", " (top {} of {})"),
    "target": ("目标文本：{}", "Target text: {}"),
    "contrast": ("对比目标文本：{}", "Target text, contrasted with the others: {}"),
    "scale": ("相对重要性（0–1，以本图最大值为 1）", "Relative importance (0–1, 1 is this image's maximum)"),
    "probability": ("概率（%）", "Probability (%)"),
    "probability of each": (
        "各文本独立的概率（%），总和不必为 100",
        "Probability of each text on its own (%): need not sum to 100",
    ),
    "prediction": ("预测", "Predicted"),
    "chosen": ("目标", "Target"),
    "both": ("预测且为目标", "Predicted and target"),
}
BAR_COLOURS = {"both": RED, "prediction": "#e67e22", "chosen": "#2471a3", "other": "#aab7b8"}
UNSEEN = (230, 230, 230)  # where the model saw nothing


def encode_figure(drawing: Drawing, suffix: str, dpi: int = FIGURE_DPI) -> bytes:
    """A Drawing as the bytes of a file of this suffix, the same bytes each time; `dpi` is the density of pixels."""
    if suffix.lower() == ".svg":
        return encode_svg(drawing)
    if suffix.lower() == ".pdf":
        from .pdf import encode_pdf  # matplotlib

        return encode_pdf(drawing)
    return encode_image(draw_pixels(drawing, dpi), suffix, png_strategy="DEFAULT", dpi=dpi)


PANEL_WIDTH, MAX_BARS = 600, 10
HEAD, GUTTER, FOOT = 120, 108, 84  # above, between and below the rows of panels
CURVES_HEIGHT = 300  # of the fifth panel


def draw_figure(result, heatmap: np.ndarray, overlay: np.ndarray, lang: str = "zh") -> Drawing:
    """Lay out the panels of an ImageResult with one explained text.

    `heatmap` [H, W] in [0, 1], NaN where the model saw nothing; `overlay` RGB uint8 [H, W, 3]; `lang` ("zh", "en") is
    the figure's own language; texts and names stay as they are.
    """
    words = parts.in_language(FIGURE_WORDS, lang)
    result = result._replace(flaws=[in_language(flaw, lang) for flaw in result.flaws])
    (height, width), (tested,) = result.pixels.shape[:2], result.tested
    panel_height = round(float(np.clip(PANEL_WIDTH * height / width, 408, 768)))
    page_width, page_height = 2 * PANEL_WIDTH + 264, 2 * panel_height + HEAD + GUTTER + FOOT
    upper, lower, right = HEAD, HEAD + panel_height + GUTTER, PANEL_WIDTH + 108
    items = [
        *_image_panel(MARGIN, upper, panel_height, result.pixels, words["image"], result.outlines),
        *_heatmap_panel(right, upper, panel_height, result, heatmap, words),
        *_image_panel(MARGIN, lower, panel_height, overlay, words["overlay"], result.outlines),
        *_probability_panel(right + 252, lower, panel_height, result, words),
    ]
    if tested is not None:
        top = lower + panel_height + GUTTER
        items += draw_curves(tested, result.question, (MARGIN, right + 252), top, CURVES_HEIGHT, page_width, lang)
        page_height += CURVES_HEIGHT + GUTTER + 16
    notes = parts.footer_notes([result], words) + parts.specificity_notes([result], words)
    alone = tested is not None or result.independent  # a wide label stands where a first row would
    rows = parts.footer_rows(
        notes, page_width - 2 * MARGIN, page_width if alone else 1000
    )  # 1000: left of the axis' label
    page_height += max(0, len(rows) - (1 if alone else 2)) * parts.leading(BODY)
    return Drawing(page_width, page_height, [*items, *parts.draw_footer(rows, page_height)])


def _panel_picture(left, top, panel_height, image, proportions, colormap=None) -> Picture:
    """`image` as large as the panel allows at the proportions (height, width), in the panel's middle."""
    width, height = parts.fitted(proportions[1], proportions[0], PANEL_WIDTH, panel_height)
    place = left + (PANEL_WIDTH - width) // 2, top + (panel_height - height) // 2
    return Picture(*place, image, (width, height), None if colormap is None else partial(_coloured, colormap=colormap))


def _coloured(heatmap: np.ndarray, colormap: str) -> np.ndarray:
    """[h, w] in [0, 1] -> RGB uint8, grey where it is NaN."""
    unseen = np.isnan(heatmap)
    if not unseen.any():
        return coloured(heatmap, colormap)
    colours = coloured(np.where(unseen, np.float32(0), heatmap), colormap)
    colours[unseen] = UNSEEN
    return colours


def _image_panel(left, top, panel_height, pixels, title, outlines) -> list:
    size = pixels.shape[:2]
    picture = _panel_picture(left, top, panel_height, pixels, size)
    heading = Text(left + PANEL_WIDTH // 2, picture.top - 16, title, TITLE, "m")
    return [picture, *draw_outlines(outlines, picture, size), heading]


def _heatmap_panel(left, top, panel_height, result, heatmap, words) -> list:
    """The heatmap with the target text as its title, and its colour bar: beside it, or below one wider than 2:1."""
    colormap = result.colours.colormap
    picture = _panel_picture(left, top, panel_height, heatmap, result.pixels.shape[:2], colormap)
    name, text = result.names[result.target], result.texts[result.target]
    target = drawable(text if name == text else name + parts.in_brackets([text], words))
    target = words["contrast" if result.question.contrast > 0 else "target"].format(target)
    heading = words["heatmap"].format(result.label)
    heading += parts.in_brackets(result.details(words), words)
    heading += "" if result.knows_text else words["text-free"]
    heading = wrap_text(heading, PANEL_WIDTH - 20, 2, parts.measure(HEADING))
    title = [*heading, *wrap_text(target, PANEL_WIDTH - 20, 2, parts.measure(HEADING))]
    centre, message = left + PANEL_WIDTH // 2, []
    upper, lower = picture.top, picture.bottom
    if result.flaws[0]:
        limit = min(max(picture.right - picture.left - 60, 150), 500)
        message = parts.framed_message(result.flaws[0], (centre, (upper + lower) / 2), limit, 12, WARNING)
        upper, lower = min(upper, message[0].top), max(lower, message[0].bottom)
    width, height = picture.right - picture.left, picture.bottom - picture.top
    bar = parts.bar_below(picture.left, lower + 18, width, [words["scale"]], colormap) if width > 2 * height else ()
    bar = bar or parts.bar_beside(picture, words["scale"], colormap)
    return [picture, *bar, *parts.lines_up(title, centre, upper - 16, HEADING), *message]


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


AXIS_WIDTH, PERCENT = 408, 408 / 118  # of the probability panel; pixels for one percent


def _probability_panel(left, top, height, result, words) -> list:
    """A bar for each class, the likeliest on top; prediction and target are marked by colour and legend."""
    bars = _bars(result)
    pitch = height / (max(len(bars), 3) + 0.2)
    items = []
    for row, index in enumerate(bars):
        probability = float(result.probabilities[index])
        centre, percent = top + (row + 0.6) * pitch, 100 * probability
        end = left + max(1, round(percent * PERCENT))
        colour = BAR_COLOURS[_bar_kind(result, index)]
        items.append(Box(left, round(centre - 0.3 * pitch), end, round(centre + 0.3 * pitch), colour))
        items.append(Box(left - TICK_LENGTH, round(centre), left, round(centre) + 1, BLACK))
        value = parts.percent(probability)
        items.append(Text(left + round((percent + 1.5) * PERCENT), parts.middle_baseline(centre, BODY), value, BODY))
        label = wrap_text(drawable(result.names[index]), 225, 2, parts.measure(BODY))
        first = parts.middle_baseline(centre - (len(label) - 1) * parts.leading(BODY) / 2, BODY)
        items += parts.lines_down(label, left - 11, first, BODY, "r")
    cut = words["top"].format(len(bars), len(result.names)) if len(bars) < len(result.names) else ""
    items.append(Text(left + AXIS_WIDTH // 2, top - 47, words["probabilities"] + cut, TITLE, "m"))
    kinds = {_bar_kind(result, index) for index in bars}
    label = words["probability of each" if result.independent else "probability"]
    return [*items, *_percent_axis(left, top, top + height, label), *_legend(left + AXIS_WIDTH, top, kinds, words)]


def _percent_axis(left, top, bottom, label) -> list:
    """The two axes, ticks from 0 to 100, and what they count."""
    items = [Box(left, top, left + 1, bottom, BLACK), Box(left, bottom, left + AXIS_WIDTH, bottom + 1, BLACK)]
    for percent in range(0, 101, 20):
        x = left + round(percent * PERCENT)
        items.append(Box(x, bottom, x + 1, bottom + TICK_LENGTH, BLACK))
        items.append(Text(x, bottom + 20, str(percent), TICK, "m"))
    return [*items, Text(left + AXIS_WIDTH // 2, bottom + 42, label, BODY, "m")]


def _legend(right, top, kinds, words) -> list:
    """What the colours of the bars mean, ending at `right`."""
    items = []
    for kind in reversed([kind for kind in ("both", "prediction", "chosen") if kind in kinds]):
        start = right - round(text_length(words[kind], BODY))
        items += [
            Text(start, top - 14, words[kind], BODY),
            Box(start - 42, top - 25, start - 12, top - 14, BAR_COLOURS[kind]),
        ]
        right = start - 42 - 24
    return items
