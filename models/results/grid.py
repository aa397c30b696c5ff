"""The grid: one image and a tile for each of several texts, or for each of several methods that explain one text.

Like the figure it reads the result itself: Results of `models.results.result`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..explain.faithfulness import Faithfulness
from . import parts
from .outlines import draw_outlines
from .page import (
    ASCENT,
    DESCENT,
    Box,
    Drawing,
    Picture,
    Text,
    bounds,
    columns_of,
    drawable,
    moved,
    text_length,
    wrap_text,
)
from .parts import BODY, FOOTER_WORDS, GREY, HEADING, MARGIN, PAGE_WIDTH, TITLE, WARNING
from .shading import (
    MOST_DESCRIPTIONS,
    SHADING_WORDS,
    Scale,
    Shaded,
    legend,
    shaded_leading,
    shaded_lines,
    shaded_text,
    shading_notes,
    strongest_descriptions,
    text_with_legend,
)

GRID_WORDS = {
    **FOOTER_WORDS,
    **SHADING_WORDS,
    "image": "原始图像",
    "heatmap": "各文本的 {}热力图",
    "methods": "各方法的热力图　目标文本：{}",
    "contrast": "（对比：支持该文本而不是其他文本的区域）",
    "scale": "相对重要性（0–1，1 为这些文本中的最大值，各图同一色标，可以比较）",
    "own scale": "相对重要性（0–1，各图以自身最大值为 1，不同方法的数值不能比较）",
    "prediction": "预测",
    "predicted": "预测（{}）：{}",
    "similarity": "余弦相似度 {:.3f}",
    "probability": "概率 {}",
    "text-free": "不看文本",
    "default": "默认：{}",
    "also": "与 {} 相同",
    "and": "、",
    "deletion": "删除 {}（{}）",
    "insertion": "插入 {}（{}）",
    "margins": "删除、插入：曲线下面积，括号内为优于随机图多少（正为优）",
    "empty": "热力图为空",
    "no presence": "靠后：颜色不说明有没有",
    "own specificity": "文本特异性 {:.2f}",
    "unspecific": "{} 个文本的热力图几乎不随文本变化",
    "unspecific methods": "{} 种方法的热力图几乎不随文本变化",
}
MARK = "#e67e22"  # the colour of the predicted text


class Tiles(NamedTuple):
    """How the tiles of a grid lie: sizes in pixels."""

    columns: int
    picture: tuple[int, int]  # width, height
    width: int  # of a tile, at least the picture's
    height: int  # of what the picture lies in, at least the picture's


GRID_HEIGHT, GRID_LEAST_WIDTH = 2400, 900  # of the page
GRID_HEAD, GRID_FOOT, GAP = 84, 210, 24
TO_TILES = 26  # from the page's title, or what stands below it, to the tiles
MARK_ROOM = 44  # above each tile, for its letter
LEAST_TILE = 268, 60  # width, height: room for a message
LARGEST_PICTURE = 464, 768  # three in a row
MOST_TILE_LINES = 8  # of a shaded description below a tile


def arrange_tiles(
    count: int, image_width: int, image_height: int, details: int = 2, further: Callable[[int], int] = lambda width: 0
) -> Tiles:
    """How to lay out `count` tiles with pictures as large as a page of PAGE_WIDTH x GRID_HEIGHT allows.

    Below each picture there are a name, on at most two lines, and at most `details` lines, and as many pixels as
    `further` says of a tile of a width.

    Where so many tiles do not fit at a legible size, the page grows downwards.
    """
    room = PAGE_WIDTH - 2 * MARGIN + GAP
    best = {}
    for columns in range(1, min(count, room // (LEAST_TILE[0] + GAP)) + 1):
        rows, width = math.ceil(count / columns), room // columns - GAP
        large, small = _caption_sizes(width)
        caption = 8 + 2 * parts.leading(large) + details * parts.leading(small) + further(width)
        height = (GRID_HEIGHT - GRID_HEAD - GRID_FOOT) / rows - GAP - caption
        height = max(height, LEAST_TILE[1], LEAST_TILE[0] * min(1, image_height / image_width))
        box = min(width, LARGEST_PICTURE[0]), min(height, LARGEST_PICTURE[1])
        width, height = parts.fitted(image_width, image_height, *box)
        tile = max(width, LEAST_TILE[0]), max(height, LEAST_TILE[1])
        best[width, height, -rows, -columns] = Tiles(columns, (width, height), *tile)
    return best[max(best)]  # the largest pictures; of these the fewest rows, of these the fewest columns


def draw_grid(results, overlays: list[np.ndarray], lang: str = "zh", has_marks: bool = False) -> Drawing:
    """Lay out the original image of Results and a tile for each of `overlays`, in the order of `results.pairs()`.

    `overlays`: RGB uint8 [h, w, 3] of the image's proportions, each; `lang`: "zh" or "en"; `has_marks`: with (a),
    (b), ... at the tiles.
    """
    words, first = parts.words_in_language(GRID_WORDS, lang), results[0]
    image_height, image_width = first.pixels.shape[:2]
    is_tested = any(tested is not None for result in results for tested in result.tested)
    details = 2 + max(len(_measured(pair, words)) + (2 if pair[0].also else 0) for pair in results.pairs())
    further = partial(_likely_height, _longest_description(results))
    tiles = arrange_tiles(1 + len(overlays), image_width, image_height, details, further)
    shaded, of_words = _shaded_tiles(results, tiles.width), Scale.of(first)
    captions = [_original_caption(results, tiles.width, words)]
    captions += [_tile_caption(results, pair, tiles.width, words) for pair in results.pairs()]
    if shaded:
        captions[1:] = [_with_shaded(*tile, tiles.width, of_words.peak) for tile in zip(captions[1:], shaded)]
    page_width = max(GRID_LEAST_WIDTH, 2 * MARGIN + tiles.columns * (tiles.width + GAP) - GAP)
    left, room = (page_width - tiles.columns * (tiles.width + GAP) + GAP) // 2, page_width - 2 * MARGIN
    title = wrap_text(_grid_title(results, words), room, 2, parts.measure(TITLE))
    items = parts.lines_down(title, page_width // 2, 50, TITLE)
    below_title, of_title = _shaded_title(results, room, words)
    items += moved(below_title, page_width // 2, bounds(items)[3] + 12)
    above = MARK_ROOM if has_marks else 0
    head = bounds(items)[3] + TO_TILES + above
    pitch = tiles.height + max(caption[-1].y for caption in captions) + GAP + above
    scale, colormap, panels = words["own scale" if _by_method(results) else "scale"], first.colours.colormap, []
    pairs = zip([None, *results.pairs()], [first.pixels, *overlays], captions)
    for number, (pair, pixels, caption) in enumerate(pairs):
        row, column = divmod(number, tiles.columns)
        corner = left + column * (tiles.width + GAP), head + row * pitch
        picture = _tile_picture(pixels, corner, tiles)
        panel = _original_tile(first, picture) if pair is None else _tile(results, pair, picture, words)
        panel += moved(caption, corner[0] + tiles.width // 2, corner[1] + tiles.height)
        items += [*panel, parts.mark(number, corner[0], corner[1] - 16)] if has_marks else panel
        if pair is not None:
            panel = [*panel, *_bar_below(panel, corner[0], tiles.width, scale, colormap)]
            panel += _legend_below(panel, corner[0] + tiles.width // 2, tiles.width, of_words, words) if shaded else []
        panels.append(panel)
    items += _bar_below(items, page_width // 2 - 300, 600, scale, colormap, room)
    items += _legend_below(items, page_width // 2, room, of_words, words) if shaded else []
    notes = _grid_notes(results, is_tested, words)
    notes += shading_notes(shaded, 1, words) + shading_notes(of_title, MOST_DESCRIPTIONS, words)
    return parts.with_footer(page_width, items, notes, panels)


def _legend_below(items: list, centre: int, room: int, of_words: Scale, words) -> list:
    """What the shades of words mean, under what is drawn."""
    return legend(centre, bounds(items)[3] + 10, room, of_words, words)


def _shaded_tiles(results, width: int) -> list[Shaded]:
    """The explained texts as shaded words below tiles of this width; none where the methods' one text has its title."""
    first = results[0]
    if not first.words or _by_method(results):
        return []
    size, texts = _caption_sizes(width)[1], [first.texts[target] for target in first.targets]
    return [shaded_text(*text, width, size, MOST_TILE_LINES, 1) for text in zip(texts, first.words)]


def _longest_description(results) -> str:
    """Of those that stand below tiles; none where none does."""
    first = results[0]
    if not first.words or _by_method(results):
        return ""
    texts = zip((first.texts[target] for target in first.targets), first.words)
    return max((strongest_descriptions(*text, 1)[0][0] for text in texts), key=columns_of)


def _likely_height(description: str, width: int) -> int:
    """Pixels that a shaded description takes below a tile of this width, about: its lines are seldom quite full."""
    size = _caption_sizes(width)[1]
    lines = math.ceil(1.05 * text_length(description, size) / width)
    return min(lines, MOST_TILE_LINES) * shaded_leading(size)


def _with_shaded(caption: list, shaded: Shaded, width: int, peak: float) -> list:
    """A caption with the words of its text below it."""
    size = _caption_sizes(width)[1]
    return [*caption, *shaded_lines(shaded, 0, caption[-1].y + shaded_leading(size), size, peak)]


def _shaded_title(results, room: int, words) -> tuple[list, list[Shaded]]:
    """The one text of several methods as shaded words with their legend, around x = 0 and below y = 0."""
    first = results[0]
    if not first.words or not _by_method(results):
        return [], []
    items, shaded = text_with_legend(first, room, words)
    return items, [shaded]


def _bar_below(items: list, left: int, width: int, label: str, colormap: str, room: int | None = None) -> list:
    """A colour bar under what is drawn, its label on lines as long as the bar or as `room`."""
    lines = wrap_text(label, room or width, 5, parts.measure(BODY))
    return parts.bar_below(left, bounds(items)[3] + 20, width, lines, colormap)


def _by_method(results) -> bool:
    """Whether the tiles explain one text, each by another method, and not several texts by one."""
    return len(results) > 1 or bool(results[0].also)  # of several whose maps are all the same, one is left


def _grid_title(results, words) -> str:
    first = results[0]
    if _by_method(results):
        title = words["methods"].format(parts.class_title(first, first.target, words))
    else:
        title = words["heatmap"].format(first.label) + parts.in_brackets(first.details(words), words)
    return title + (words["contrast"] if first.question.contrast > 0 else "")


def _caption_sizes(width: int) -> tuple[int, int]:
    """Sizes of type for a name and for what stands below it, in a tile of this width."""
    return (HEADING, WARNING) if width >= 400 else (WARNING, BODY)


def _caption(name, details, width) -> list[Text]:
    """Lines below a picture, around x = 0, y = 0 the picture's lower edge: a name on at most two lines and details."""
    large, small = _caption_sizes(width)
    rows = wrap_text(drawable(name), width, 2, parts.measure(large))
    lines = parts.lines_down(rows, 0, 10 + round(ASCENT * large), large)
    return [*lines, *parts.lines_down(details, 0, lines[-1].y + parts.leading(large), small)]


def _original_caption(results, width, words) -> list[Text]:
    """What the image is, which of all the texts is predicted and, with methods, the numbers of the one explained."""
    first, size = results[0], _caption_sizes(width)[1]
    best = first.predicted
    predicted = words["predicted"].format(parts.percent(first.probabilities[best]), drawable(first.names[best]))
    numbers = _numbers_of(first, first.target, words) if _by_method(results) else []
    return _caption(words["image"], [*wrap_text(predicted, width, 2, parts.measure(size)), *numbers], width)


def _numbers_of(result, target, words) -> list[str]:
    """Similarity and probability of a text."""
    similarity = words["similarity"].format(result.similarities[target])
    return [similarity, words["probability"].format(parts.percent(result.probabilities[target]))]


def _tile_caption(results, pair, width, words) -> list:
    """Name and numbers of a text, and the word that it is predicted in a coloured box; or a method and its numbers."""
    (result, index), measured = pair, _measured(pair, words)
    if _by_method(results):
        return _method_caption(result, measured, width, words)
    target = result.targets[index]
    caption = _caption(result.names[target], _numbers_of(result, target, words), width)
    small = _caption_sizes(width)[1]
    below = parts.lines_down(measured, 0, caption[-1].y + parts.leading(small), small)
    if target != result.predicted:
        return [*caption, *below]
    return [*caption[:-1], *_marked(caption[-1], words["prediction"]), *below]


def _method_caption(result, measured, width, words) -> list[Text]:
    """A method's name, the default's marked, what else it is called, and its numbers."""
    name = result.label + parts.in_brackets(result.details(words), words)
    name = words["default"].format(name) if result.is_default else name
    also = []
    if result.also:
        names = words["and"].join(_name_beside(other, result, words) for other in result.also)
        also = wrap_text(words["also"].format(names), width, 2, parts.measure(_caption_sizes(width)[1]))
    return _caption(name, [*also, *([] if result.knows_text else [words["text-free"]]), *measured], width)


def _name_beside(other, result, words) -> str:
    """The name of another method beside this one's: its details only where they are others."""
    details = other.details(words)
    return words["comma"].join([other.label, *([] if details == result.details(words) else details)])


def _measured(pair, words) -> list[str]:
    """What was measured of a map: its text specificity, and the areas under its curves; and that it says only where."""
    result, index = pair
    specificity, tested = parts.shown_specificities(result)[index], result.tested[index]
    lines = [words["own specificity"].format(specificity)] if specificity is not None else []
    lines += wrap_text(words["no presence"], LEAST_TILE[0], 2, parts.measure(BODY)) * _tells_no_presence(pair)
    return lines + (_areas_of(tested, words) if tested is not None else [])


def _tells_no_presence(pair) -> bool:
    """Whether a tile says of itself that its colours tell no presence; the one text of a page has it in the footer."""
    result, index = pair
    return len(result.targets) > 1 and result.only_where()[index]


def _areas_of(tested: Faithfulness, words) -> list[str]:
    """The areas under a map's curves, each with its margin over random maps."""
    numbers = {
        "deletion": (tested.deletion, tested.deletion_margin),
        "insertion": (tested.insertion, tested.insertion_margin),
    }
    return [
        words[kind].format(parts.three_decimals(area), parts.three_decimals(m, "+"))
        for kind, (area, m) in numbers.items()
    ]


def _marked(line: Text, mark: str) -> list:
    """A line centred at x = 0 and, after it, a word in a coloured box."""
    length, mark_length = (round(text_length(text, line.size)) for text in (line.string, mark))
    start = -(length + mark_length + 20) // 2
    left, right = start + length + 8, start + length + mark_length + 20
    box = Box(left, line.y - round(0.9 * line.size), right, line.y + round(DESCENT * line.size), MARK)
    return [box, line._replace(x=left + 6, string=mark, anchor="l"), line._replace(x=start, anchor="l")]


def _tile_picture(pixels, corner, tiles) -> Picture:
    """An image in the middle of the tile whose upper left corner this is."""
    width, height = tiles.picture
    left, top = corner[0] + (tiles.width - width) // 2, corner[1] + (tiles.height - height) // 2
    return Picture(left, top, pixels, tiles.picture)


def _original_tile(result, picture) -> list:
    """The image with all outlines."""
    return [picture, *draw_outlines(result.outlines, picture, result.pixels.shape[:2])]


def _tile(results, pair, picture, words) -> list:
    """The picture of a map with its outline, framed if its text is predicted, with a message if the map is empty."""
    result, index = pair
    items = [picture]
    if not _by_method(results) and result.targets[index] == result.predicted:
        items = [Box(picture.left - 5, picture.top - 5, picture.right + 5, picture.bottom + 5, MARK), picture]
    items += draw_outlines(result.outlines[index : index + 1], picture, result.pixels.shape[:2])
    if result.flaws[index]:
        width = picture.right - picture.left
        centre = picture.left + width / 2, picture.top + (picture.bottom - picture.top) / 2
        items += parts.framed_message(words["empty"], centre, max(width, LEAST_TILE[0]) - 40, 2, BODY)
    return items


def _grid_notes(results, is_tested: bool, words) -> list:
    """What the footer says: the source, what else the reader must know, and what the numbers below the tiles mean."""
    notes = parts.footer_notes(results, words)
    notes += [(words["independent"], GREY)] if results[0].independent else []
    notes += [(words["margins"], GREY)] if is_tested else []
    if _by_method(results):
        words = {**words, "unspecific": words["unspecific methods"]}
    return notes + parts.specificity_notes(results, words)
