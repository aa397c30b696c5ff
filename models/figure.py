"""The pictures of a result: the four-panel figure of one text, and the grid of several texts.

Knows nothing of models: `draw_figure` takes a FigureContent, `draw_grid` a GridContent, and both return a
Drawing, which `encode_figure` turns into a file's bytes. May be called from several threads at once.
"""

import math
from typing import NamedTuple

import numpy as np

from .drawing import (
    ASCENT,
    BLACK,
    DESCENT,
    WHITE,
    Box,
    Drawing,
    Picture,
    Text,
    draw_pixels,
    drawable,
    encode_vector,
    text_length,
    wrap_text,
)
from .files import VECTOR_FORMATS, encode_image, import_cv2
from .heatmap import TEXT_INSENSITIVE, jet, two_decimals

LANGUAGES = ("zh", "en")
FIGURE_WORDS = {
    "image": ("原始图像", "Original image"),
    "heatmap": ("Grad-CAM热力图", "Grad-CAM heatmap"),
    "overlay": ("叠加结果", "Overlay"),
    "probabilities": ("预测概率分布", "Predicted probabilities"),
    "top": ("（前 {} 个，共 {} 个）", " (top {} of {})"),
    "target": ("目标文本：{}", "Target text: {}"),
    "contrast": ("对比目标文本：{}", "Target text, contrasted with the others: {}"),
    "scale": ("相对重要性（0–1，以本图最大值为 1）", "Relative importance (0–1, 1 is this image's maximum)"),
    "probability": ("概率（%）", "Probability (%)"),
    "prediction": ("预测", "Predicted"),
    "chosen": ("目标", "Target"),
    "both": ("预测且为目标", "Predicted and target"),
    "source": ("图像编码器 {}　目标层 {}（{}×{}）", "Image encoder {}   target layer {} ({}×{})"),
    "sensitivity": (
        "文本敏感度 {}（1 表示热力图不随文本变化）",
        "Text sensitivity {} (1: the heatmap ignores the text)",
    ),
    "insensitive": ("：热力图几乎不随文本变化", ": the heatmap hardly depends on the text"),
}
GRID_WORDS = {
    "heatmap": ("各文本的 Grad-CAM热力图", "Grad-CAM heatmap of each text"),
    "contrast": (
        "（对比：支持该文本而不是其他文本的区域）",
        " (contrasted: what speaks for this text rather than the others)",
    ),
    "scale": (
        "相对重要性（0–1，1 为这些文本中的最大值，各图同一色标，可以比较）",
        "Relative importance (0–1, 1 is the maximum over these texts; all maps share one scale and can be compared)",
    ),
    "predicted": ("预测（{:.1%}）：{}", "Predicted ({:.1%}): {}"),
    "similarity": ("余弦相似度 {:.3f}", "Cosine similarity {:.3f}"),
    "probability": ("概率 {:.1%}", "Probability {:.1%}"),
    "empty": ("热力图为空", "Empty heatmap"),
    "insensitive": ("：其中 {} 个文本的热力图几乎不随文本变化", ": {} of these heatmaps hardly depend on the text"),
}
TITLE, HEADING, WARNING, BODY, TICK = 24, 20, 17, 15, 14  # sizes of type, in pixels
GREY, RED = "#555555", "#c0392b"
BAR_COLOURS = {"both": RED, "prediction": "#e67e22", "chosen": "#2471a3", "other": "#aab7b8"}
MARK = BAR_COLOURS["prediction"]


def encode_figure(drawing: Drawing, suffix: str) -> bytes:
    """A Drawing as the bytes of a file of this suffix, the same bytes each time."""
    if suffix.lower() in VECTOR_FORMATS:
        return encode_vector(drawing, VECTOR_FORMATS[suffix.lower()])
    return encode_image(draw_pixels(drawing), suffix, png_strategy="DEFAULT")


def _in_language(words: dict, lang: str) -> dict:
    return {name: translations[LANGUAGES.index(lang)] for name, translations in words.items()}


# -- parts that both pictures are made of


def _measure(size):
    return lambda text: text_length(text, size)


def _leading(size: int) -> int:
    """Pixels from one baseline to the next."""
    return round(1.27 * size)


def _lines_down(lines, x, baseline, size, anchor="m", colour=BLACK) -> list[Text]:
    """Lines one below the other, the first on `baseline`."""
    return [Text(x, baseline + row * _leading(size), line, size, anchor, colour) for row, line in enumerate(lines)]


def _lines_up(lines, x, baseline, size) -> list[Text]:
    """Lines one below the other, the last on `baseline`, centred at x."""
    return _lines_down(lines, x, baseline - (len(lines) - 1) * _leading(size), size)


def _middle_baseline(centre: float, size: int) -> int:
    """The baseline of a line whose middle lies at the height `centre`."""
    return round(centre + (ASCENT - DESCENT) / 2 * size)


def _fitted(width: int, height: int, box_width: float, box_height: float) -> tuple[int, int]:
    """The largest size of the proportions width : height within a box; at least one pixel each way."""
    scale = min(box_width / width, box_height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """[h, w] or [h, w, 3] at exactly this size: averaged where it shrinks by more than 1.5, else interpolated."""
    cv2 = import_cv2()
    shrinks = image.shape[0] * image.shape[1] > 1.5**2 * width * height
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


BAR_THICKNESS, TICK_LENGTH = 22, 5


def _bar_beside(picture: Picture, label: str) -> list:
    """A vertical colour bar to the right of a picture, with ticks from 0 to 1 and its label."""
    left, top, bottom = picture.right + 18, picture.top, picture.bottom
    right, height = left + BAR_THICKNESS, bottom - top
    levels = np.repeat(np.linspace(1, 0, height, dtype=np.float32)[:, None], BAR_THICKNESS, axis=1)
    items = [Box(left - 1, top - 1, right + 1, bottom + 1, BLACK), Picture(left, top, jet(levels))]
    for tick in range(6):
        y = bottom - 1 - round(tick * (height - 1) / 5)
        items.append(Box(right + 1, y, right + 1 + TICK_LENGTH, y + 1, BLACK))
        items.append(Text(right + 10, _middle_baseline(y, TICK), f"{tick / 5:.1f}", TICK))
    label_x = right + 10 + round(text_length("0.0", TICK)) + 8 + round(ASCENT * BODY)
    return [*items, Text(label_x, (top + bottom) // 2, label, BODY, "m", vertical=True)]


def _bar_below(left: int, top: int, width: int, label: list[str]) -> list:
    """A horizontal colour bar with ticks from 0 to 1, the lines of its label below."""
    right, bottom = left + width, top + BAR_THICKNESS
    levels = np.repeat(np.linspace(0, 1, width, dtype=np.float32)[None], BAR_THICKNESS, axis=0)
    items = [Box(left - 1, top - 1, right + 1, bottom + 1, BLACK), Picture(left, top, jet(levels))]
    for tick in range(6):
        x = left + round(tick * (width - 1) / 5)
        items.append(Box(x, bottom + 1, x + 1, bottom + 1 + TICK_LENGTH, BLACK))
        items.append(Text(x, bottom + 21, f"{tick / 5:.1f}", TICK, "m"))
    return [*items, *_lines_down(label, left + width // 2, bottom + 42, BODY)]


def _message(message: str, centre: tuple[float, float], limit: float, lines: int, size: int) -> list:
    """A framed message in a white box around `centre`; its first item is the box."""
    rows = wrap_text(drawable(message), limit, lines, _measure(size))
    x, y = round(centre[0]), round(centre[1])
    half_width = round(max(text_length(row, size) for row in rows) / 2) + 10
    half_height = len(rows) * _leading(size) // 2 + 8
    first = _middle_baseline(y - (len(rows) - 1) * _leading(size) / 2, size)
    frame = Box(x - half_width, y - half_height, x + half_width, y + half_height, WHITE, RED)
    return [frame, *_lines_down(rows, x, first, size)]


def _footer(
    page_width: int, page_height: int, source: tuple, sensitivity: str, warned: bool, words: dict
) -> list[Text]:
    """Where the heatmap comes from and how much it depends on the text, on one line or, where too long, on two."""
    room, baseline = page_width - 2 * MARGIN, page_height - 22
    encoder, layer, rows, columns = source
    note = words["source"].format(drawable(encoder), drawable(layer), rows, columns)
    (note,) = wrap_text(note, room, 1, _measure(BODY))
    if not sensitivity:
        return [Text(MARGIN, baseline, note, BODY, "l", GREY)]
    (sensitivity,) = wrap_text(sensitivity, room, 1, _measure(BODY))
    colour, after = RED if warned else GREY, MARGIN + round(text_length(note, BODY)) + 2 * BODY
    if after + text_length(sensitivity, BODY) <= MARGIN + room:
        return [Text(MARGIN, baseline, note, BODY, "l", GREY), Text(after, baseline, sensitivity, BODY, "l", colour)]
    (note,) = wrap_text(note, min(room, 1000), 1, _measure(BODY))  # left of what the figure's axis counts
    above = baseline - _leading(BODY)
    return [Text(MARGIN, above, note, BODY, "l", GREY), Text(MARGIN, baseline, sensitivity, BODY, "l", colour)]


# -- the four-panel figure


class FigureContent(NamedTuple):
    """Everything that the figure shows of one image and one explained text."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    heatmap: np.ndarray  # [H, W] in [0, 1]
    overlay: np.ndarray  # RGB uint8 [H, W, 3]
    names: list[str]  # K short names
    texts: list[str]  # K texts as the model reads them
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    target: int
    source: tuple  # image encoder, target layer, rows, columns of its grid
    warning: str | None = None  # why the heatmap is empty
    sensitivity: float | None = None  # correlation of the texts' maps: 1 where the heatmap ignores the text
    contrast: float = 0.0  # weight of the other texts that the heatmap is contrasted with


PANEL_WIDTH, MARGIN, MAX_BARS = 600, 36, 10
HEAD, GUTTER, FOOT = 120, 108, 84  # above, between and below the two rows of panels


def draw_figure(content: FigureContent, lang: str = "zh") -> Drawing:
    """Lay out the four panels. `lang` ("zh", "en") is the figure's own language; texts and names stay as they are."""
    words = _in_language(FIGURE_WORDS, lang)
    height, width = content.pixels.shape[:2]
    panel_height = round(float(np.clip(PANEL_WIDTH * height / width, 408, 768)))
    page_width, page_height = 2 * PANEL_WIDTH + 264, 2 * panel_height + HEAD + GUTTER + FOOT
    upper, lower, right = HEAD, HEAD + panel_height + GUTTER, PANEL_WIDTH + 108
    items = [
        *_image_panel(MARGIN, upper, panel_height, content.pixels, words["image"]),
        *_heatmap_panel(right, upper, panel_height, content, words),
        *_image_panel(MARGIN, lower, panel_height, content.overlay, words["overlay"]),
        *_probability_panel(right + 252, lower, panel_height, content, words),
    ]
    sensitivity = "" if content.sensitivity is None else words["sensitivity"].format(two_decimals(content.sensitivity))
    warned = content.sensitivity is not None and content.sensitivity >= TEXT_INSENSITIVE
    sensitivity += words["insensitive"] if warned else ""
    items += _footer(page_width, page_height, content.source, sensitivity, warned, words)
    return Drawing(page_width, page_height, items)


def _panel_picture(left, top, panel_height, image, proportions) -> Picture:
    """`image` as large as the panel allows at the proportions (height, width), in the panel's middle."""
    width, height = _fitted(proportions[1], proportions[0], PANEL_WIDTH, panel_height)
    pixels = _resized(image, width, height)
    pixels = pixels if pixels.ndim == 3 else jet(pixels)
    return Picture(left + (PANEL_WIDTH - width) // 2, top + (panel_height - height) // 2, pixels)


def _image_panel(left, top, panel_height, pixels, title) -> list:
    picture = _panel_picture(left, top, panel_height, pixels, pixels.shape[:2])
    return [picture, Text(left + PANEL_WIDTH // 2, picture.top - 16, title, TITLE, "m")]


def _heatmap_panel(left, top, panel_height, content, words) -> list:
    """The heatmap with the target text as its title, and its colour bar: beside it, or below one wider than 2:1."""
    picture = _panel_picture(left, top, panel_height, content.heatmap, content.pixels.shape[:2])
    name, text = content.names[content.target], content.texts[content.target]
    target = drawable(text if name == text else f"{name}（{text}）")
    target = words["contrast" if content.contrast > 0 else "target"].format(target)
    title = [words["heatmap"], *wrap_text(target, PANEL_WIDTH - 20, 2, _measure(HEADING))]
    centre, message = left + PANEL_WIDTH // 2, []
    upper, lower = picture.top, picture.bottom
    if content.warning:
        limit = min(max(picture.right - picture.left - 60, 150), 500)
        message = _message(content.warning, (centre, (upper + lower) / 2), limit, 12, WARNING)
        upper, lower = min(upper, message[0].top), max(lower, message[0].bottom)
    width, height = picture.right - picture.left, picture.bottom - picture.top
    bar = _bar_below(picture.left, lower + 18, width, [words["scale"]]) if width > 2 * height else ()
    bar = bar or _bar_beside(picture, words["scale"])
    return [picture, *bar, *_lines_up(title, centre, upper - 16, HEADING), *message]


def _bars(content) -> list[int]:
    """Indices of the texts that get a bar, likeliest first: all, or the ten likeliest with the target among them."""
    order = [int(i) for i in np.argsort(-content.probabilities, kind="stable")]
    bars = order[:MAX_BARS]
    return bars if content.target in bars else [*bars[:-1], content.target]


def _bar_kind(content, index) -> str:
    """Which of BAR_COLOURS a text's bar has."""
    if index == int(content.probabilities.argmax()):
        return "both" if index == content.target else "prediction"
    return "chosen" if index == content.target else "other"


AXIS_WIDTH, PERCENT = 408, 408 / 118  # of the probability panel; pixels for one percent


def _probability_panel(left, top, height, content, words) -> list:
    """A bar for each class, the likeliest on top; prediction and target are marked by colour and legend."""
    bars = _bars(content)
    pitch = height / (max(len(bars), 3) + 0.2)
    items = []
    for row, index in enumerate(bars):
        centre, percent = top + (row + 0.6) * pitch, 100 * float(content.probabilities[index])
        end = left + max(1, round(percent * PERCENT))
        colour = BAR_COLOURS[_bar_kind(content, index)]
        items.append(Box(left, round(centre - 0.3 * pitch), end, round(centre + 0.3 * pitch), colour))
        items.append(Box(left - TICK_LENGTH, round(centre), left, round(centre) + 1, BLACK))
        value = f"{percent:.1f}%"
        items.append(Text(left + round((percent + 1.5) * PERCENT), _middle_baseline(centre, BODY), value, BODY))
        label = wrap_text(drawable(content.names[index]), 225, 2, _measure(BODY))
        first = _middle_baseline(centre - (len(label) - 1) * _leading(BODY) / 2, BODY)
        items += _lines_down(label, left - 11, first, BODY, "r")
    cut = words["top"].format(len(bars), len(content.names)) if len(bars) < len(content.names) else ""
    items.append(Text(left + AXIS_WIDTH // 2, top - 47, words["probabilities"] + cut, TITLE, "m"))
    kinds = {_bar_kind(content, index) for index in bars}
    return [*items, *_percent_axis(left, top, top + height, words), *_legend(left + AXIS_WIDTH, top, kinds, words)]


def _percent_axis(left, top, bottom, words) -> list:
    """The two axes, ticks from 0 to 100, and what they count."""
    items = [Box(left, top, left + 1, bottom, BLACK), Box(left, bottom, left + AXIS_WIDTH, bottom + 1, BLACK)]
    for percent in range(0, 101, 20):
        x = left + round(percent * PERCENT)
        items.append(Box(x, bottom, x + 1, bottom + TICK_LENGTH, BLACK))
        items.append(Text(x, bottom + 20, str(percent), TICK, "m"))
    return [*items, Text(left + AXIS_WIDTH // 2, bottom + 42, words["probability"], BODY, "m")]


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


# -- the grid of several texts


class GridContent(NamedTuple):
    """One image against T of K texts: everything that the grid shows."""

    pixels: np.ndarray  # RGB uint8 [H, W, 3]
    overlays: list[np.ndarray]  # T pictures RGB uint8 [h, w, 3] of the image's proportions, on one colour scale
    targets: list[int]  # T indices of the explained texts
    names: list[str]  # K short names
    texts: list[str]  # K texts as the model reads them
    probabilities: np.ndarray  # [K]
    similarities: np.ndarray  # [K] cosine
    source: tuple  # image encoder, target layer, rows, columns of its grid
    warnings: list[str | None]  # T: why a map is empty
    sensitivities: list[float | None]  # T
    contrast: float = 0.0  # as in FigureContent


class Tiles(NamedTuple):
    """How the tiles of a grid lie: sizes in pixels."""

    columns: int
    picture: tuple[int, int]  # width, height
    width: int  # of a tile, at least the picture's
    height: int  # of what the picture lies in, at least the picture's


GRID_WIDTH, GRID_HEIGHT, GRID_LEAST_WIDTH = 2200, 2400, 900  # of the page
GRID_HEAD, GRID_FOOT, GAP = 84, 170, 24
LEAST_TILE = 240, 60  # width, height: room for a message
LARGEST_PICTURE = 600, 768


def arrange_tiles(count: int, image_width: int, image_height: int) -> Tiles:
    """How to lay out `count` tiles with pictures as large as a page of GRID_WIDTH x GRID_HEIGHT allows.

    Where so many tiles do not fit at a legible size, the page grows downwards.
    """
    room = GRID_WIDTH - 2 * MARGIN + GAP
    best = {}
    for columns in range(1, min(count, room // (LEAST_TILE[0] + GAP)) + 1):
        rows, width = math.ceil(count / columns), room // columns - GAP
        caption = 8 + sum(2 * _leading(size) for size in _caption_sizes(width))
        height = (GRID_HEIGHT - GRID_HEAD - GRID_FOOT) / rows - GAP - caption
        height = max(height, LEAST_TILE[1], LEAST_TILE[0] * min(1, image_height / image_width))
        box = min(width, LARGEST_PICTURE[0]), min(height, LARGEST_PICTURE[1])
        width, height = _fitted(image_width, image_height, *box)
        tile = max(width, LEAST_TILE[0]), max(height, LEAST_TILE[1])
        best[width, height, -rows, -columns] = Tiles(columns, (width, height), *tile)
    return best[max(best)]  # the largest pictures; of these the fewest rows, of these the fewest columns


def draw_grid(content: GridContent, lang: str = "zh") -> Drawing:
    """Lay out the original image and one tile per explained text, in the order of `targets`; `lang`: "zh" or "en"."""
    words = _in_language({**FIGURE_WORDS, **GRID_WORDS}, lang)
    tiles = arrange_tiles(1 + len(content.targets), content.pixels.shape[1], content.pixels.shape[0])
    captions = [_original_caption(content, tiles.width, words)]
    captions += [_tile_caption(content, target, tiles.width, words) for target in content.targets]
    deepest = max(caption[-1].y for caption in captions)
    page_width = max(GRID_LEAST_WIDTH, 2 * MARGIN + tiles.columns * (tiles.width + GAP) - GAP)
    left = (page_width - tiles.columns * (tiles.width + GAP) + GAP) // 2
    title = wrap_text(_grid_title(content, words), page_width - 2 * MARGIN, 2, _measure(TITLE))
    items = _lines_down(title, page_width // 2, 46, TITLE)
    head = GRID_HEAD + (len(title) - 1) * _leading(TITLE)
    pitch = tiles.height + deepest + GAP
    for number, caption in enumerate(captions):
        row, column = divmod(number, tiles.columns)
        corner = left + column * (tiles.width + GAP), head + row * pitch
        items += _tile(content, number, corner, tiles, words)
        items += [_moved(item, corner[0] + tiles.width // 2, corner[1] + tiles.height) for item in caption]
    bottom = head + 12 + math.ceil(len(captions) / tiles.columns) * pitch
    label = wrap_text(words["scale"], page_width - 2 * MARGIN, 2, _measure(BODY))
    items += _bar_below(page_width // 2 - 300, bottom, 600, label)
    page_height = bottom + GRID_FOOT - 2 * _leading(BODY) + len(label) * _leading(BODY)
    items += _footer(page_width, page_height, content.source, *_grid_sensitivity(content, words), words)
    return Drawing(page_width, page_height, items)


def _grid_title(content, words) -> str:
    return words["heatmap"] + (words["contrast"] if content.contrast > 0 else "")


def _moved(item, right: int, down: int):
    """A text or box laid out around (0, 0), at its place."""
    if isinstance(item, Text):
        return item._replace(x=item.x + right, y=item.y + down)
    return Box(item.left + right, item.top + down, item.right + right, item.bottom + down, item.fill, item.outline)


def _caption_sizes(width: int) -> tuple[int, int]:
    """Sizes of type for a name and for what stands below it, in a tile of this width."""
    return (HEADING, WARNING) if width >= 400 else (WARNING, BODY)


def _caption(name, details, width) -> list[Text]:
    """Lines below a picture, around x = 0, y = 0 the picture's lower edge: a name on at most two lines and details."""
    large, small = _caption_sizes(width)
    rows = wrap_text(drawable(name), width, 2, _measure(large))
    lines = _lines_down(rows, 0, 10 + round(ASCENT * large), large)
    return [*lines, *_lines_down(details, 0, lines[-1].y + _leading(large), small)]


def _original_caption(content, width, words) -> list[Text]:
    """What the image is, and which of all the texts is predicted."""
    best = int(content.probabilities.argmax())
    predicted = words["predicted"].format(content.probabilities[best], drawable(content.names[best]))
    return _caption(words["image"], wrap_text(predicted, width, 2, _measure(_caption_sizes(width)[1])), width)


def _tile_caption(content, target, width, words) -> list:
    """Name, similarity and probability of a text, and the word that it is predicted in a coloured box."""
    details = [
        words["similarity"].format(content.similarities[target]),
        words["probability"].format(content.probabilities[target]),
    ]
    caption = _caption(content.names[target], details, width)
    if target != int(content.probabilities.argmax()):
        return caption
    line, mark = caption[-1], words["prediction"]
    length, mark_length = (round(text_length(text, line.size)) for text in (line.string, mark))
    start = -(length + mark_length + 20) // 2
    left, right = start + length + 8, start + length + mark_length + 20
    box = Box(left, line.y - round(0.9 * line.size), right, line.y + round(DESCENT * line.size), MARK)
    mark = line._replace(x=left + 6, string=mark, anchor="l")
    return [*caption[:-1], box, mark, line._replace(x=start, anchor="l")]


def _tile(content, number, corner, tiles, words) -> list:
    """The picture of a tile, framed if its text is predicted, with a message if its map is empty; 0 is the original."""
    width, height = tiles.picture
    left, top = corner[0] + (tiles.width - width) // 2, corner[1] + (tiles.height - height) // 2
    pixels = content.pixels if number == 0 else content.overlays[number - 1]
    picture = Picture(left, top, _resized(pixels, width, height))
    if number == 0:
        return [picture]
    items = [picture]
    if content.targets[number - 1] == int(content.probabilities.argmax()):
        items = [Box(left - 5, top - 5, picture.right + 5, picture.bottom + 5, MARK), picture]
    if content.warnings[number - 1]:
        centre = left + width / 2, top + height / 2
        items += _message(words["empty"], centre, max(width, LEAST_TILE[0]) - 40, 2, BODY)
    return items


def _grid_sensitivity(content, words) -> tuple[str, bool]:
    """(the range of the text sensitivities in words, whether one of them is a warning)."""
    known = [value for value in content.sensitivities if value is not None]
    if not known:
        return "", False
    ends = sorted({two_decimals(min(known)), two_decimals(max(known))}, key=float)
    ignoring = sum(value >= TEXT_INSENSITIVE for value in known)
    note = words["sensitivity"].format("–".join(ends))
    return note + (words["insensitive"].format(ignoring) if ignoring else ""), ignoring > 0
