"""The evaluation as a page: tables of measures, pointing by class, the confusion matrix, predictions against peaks.

Laid out like the figures of `results`: each part starts at a corner and says where it ends.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from ..results import parts
from ..results.page import BLACK, WHITE, Box, Drawing, Line, Text, bounds, drawable, text_length, wrap_text
from ..results.parts import BODY, GREY, HEADING, MARGIN, PAGE_WIDTH, TICK, TICK_LENGTH, TITLE, TO_TICKS
from .summary import CASES, LINES, OF_HEATMAPS
from .tables import MOST_SPLITS, explained, groups_by_split, largest_classes, lines_of, shown, without_counts

EVALUATION_WORDS = {
    "specificity": parts.FOOTER_WORDS["specificity"],
    "title": "分类与热力图的评估",
    "split": "划分 {}",
    "images": "图像 {}",
    "patients": "患者 {}",
    "labelled": "有标签的 {}",
    "annotated": "有标注的 {}",
    "brackets": "（{}）",
    "class": "类别",
    "setting": "设置",
    "overall": "全部",
    "macro": "类平均",
    "n images": "图像",
    "n annotations": "标注",
    "accuracy": "准确率",
    "auc": "AUC",
    "pointing": "命中（容差）",
    "pointing_strict": "命中（严格）",
    "iou_half": "IoU（半高）",
    "iou_otsu": "IoU（Otsu）",
    "energy": "能量",
    "contrast_to_noise": "CNR",
    "text_specificity": "文本特异性",
    "deletion_margin": "删除优于随机",
    "insertion_margin": "插入优于随机",
    "chance": "随机",
    "class_place": "该类平均位置",
    "gaussian": "居中高斯",
    "more splits": "另有 {} 个划分，见表格文件",
    "classes": "各类的指标",
    "settings": "各设置的指标（全部图像）",
    "more": "另有 {} 类，见表格文件",
    "forest": "命中（容差）与不看图像的猜法",
    "heatmap": "热力图，95% 区间",
    "confusion": "混淆矩阵（图像数，深浅为占真实类别的比例）",
    "true": "真实类别",
    "predicted": "预测类别",
    "others": "其余",
    "cases": "预测与热力图的峰（标注数）",
    "inside": "峰在标注内（容差）",
    "outside": "峰在标注外",
    "right": "预测正确",
    "wrong": "预测错误",
    "tolerance": "命中：热力图的峰在标注内（严格），或离它不超过 {0:g} 像素（容差；图像缩到 {1}×{1}）",
    "areas": "IoU：热力图高于最大值一半处、Otsu 阈值分割与标注的交并比；能量：热力图落在标注内的比例",
    "noise": "CNR（对比噪声比）：标注内外热力图均值之差除以两者方差之和的平方根",
    "blind": "该类平均位置：该类其他图像（不含同一患者）标注的平均；居中高斯：σ 为边长的四分之一",
    "auc note": "AUC：该类对其余各类，全部为各类的平均；多标签图像的真实类别：预测在标签中则为预测，否则为第一个标签",
    "interval": "括号内：95% 区间，自助法（百分位数），{}重抽 {} 次",
    "failed": "{} 张图像失败，没有计入",
    "of split": "划分",
    "by patients": "按患者",
    "by images": "按图像",
}
LEAST_WIDTH, MOST_CLASSES = 900, 20
ROOM = PAGE_WIDTH - 2 * MARGIN  # pixels, for whatever lies side by side
LEFT_WIDTH, APART = 690, 54  # of the left column, and between parts
NAME_ROOM, ROW = 270, 40  # pixels: for a class's name, and from one row to the next
CELL_APART = 26  # pixels, between the columns of a table
RULE, BLUE, GREEN, ORANGE = "#e5e7e9", "#2471a3", "#1e8449", "#e67e22"

Part = tuple[list, int]  # what is drawn, and where it ends


class Column(NamedTuple):
    """Of a table: its heading (a key of the words), and what `shown` takes."""

    heading: str
    measure: str
    kind: str


_MEASURES = ("pointing_strict", "iou_half", "iou_otsu", "energy", "contrast_to_noise", *OF_HEATMAPS)
COLUMNS = (
    Column("n images", "accuracy", "n"),
    Column("accuracy", "accuracy", "interval"),
    Column("auc", "auc", "interval"),
    Column("n annotations", "pointing", "n"),
    Column("pointing", "pointing", "interval"),
    *(Column(name, "pointing", name) for name in ("chance", "class_place", "gaussian")),
    *(Column(name, name, "interval") for name in _MEASURES),
)


def draw_evaluation(evaluation: Mapping, names: Sequence[str], lang: str = "zh") -> Drawing:
    """Lay out `evaluate`'s dict: for each split the first setting, and a table of the settings where there are several.

    `names`: K short names; of more than MOST_CLASSES those of most images are drawn, of more than MOST_SPLITS splits
    the first. `lang`: "zh" or "en"; names and settings stay as they are.
    """
    words = parts.words_in_language(EVALUATION_WORDS, lang)
    items, bottom = [], 60
    splits = groups_by_split(evaluation)
    for groups in splits[:MOST_SPLITS]:
        of_split, bottom = _split(groups, names, bottom, words, explained(evaluation, lang))
        items += of_split
    width = max(LEAST_WIDTH, bounds(items)[2] + MARGIN if items else 0)
    room, measure = width - 2 * MARGIN, parts.measure(BODY)
    more = [words["more splits"].format(len(splits) - MOST_SPLITS)] if len(splits) > MOST_SPLITS else []
    notes = [line for note in [*more, *_notes(evaluation, words)] for line in wrap_text(note, room, 4, measure)]
    items += parts.lines_down([words["title"]], width // 2, 48, TITLE)
    items += parts.lines_down(notes, MARGIN, bottom + APART, BODY, "l", GREY)
    return Drawing(width, bottom + APART + len(notes) * parts.leading(BODY) + 8, items)


def _split(groups: Sequence[Mapping], names: Sequence[str], top: int, words: Mapping, explained: str) -> Part:
    first = groups[0]
    heading = wrap_text(
        "　".join(filter(None, [_about(first, words), drawable(explained)])), ROOM, 3, parts.measure(HEADING)
    )
    items, bottom = parts.lines_down(heading, MARGIN, top + 40, HEADING, "l"), top + 40
    bottom += (len(heading) - 1) * parts.leading(HEADING)
    classes = largest_classes(first, names, MOST_CLASSES)
    line_of = {**first, "macro": without_counts(first["macro"])}
    lines = [(words[line], line_of[line]) for line in LINES]
    lines += [(drawable(name), first["classes"][name]) for name in classes]
    more = len(first["classes"]) - len(classes)
    stacked = [lambda top: _table(lines, "class", words["classes"], top, words, more)]
    if len(groups) > 1:
        of_settings = [(drawable(group["setting"]), group["overall"]) for group in groups]
        stacked.append(lambda top: _table(of_settings, "setting", words["settings"], top, words))
    for part in stacked:
        drawn, bottom = part(bottom + APART)
        items += drawn
    drawn, bottom = _columns_of_parts(first, lines, names, bottom + APART, words)
    return items + drawn, bottom


def _about(group: Mapping, words: Mapping) -> str:
    """What was evaluated: split, setting and counts."""
    counts = [
        words[name].format(group[name]) for name in ("images", "patients", "labelled", "annotated") if group[name]
    ]
    split = [] if group["split"] is None else [words["split"].format(drawable(group["split"]))]
    return "　".join([*split, drawable(group["setting"]), *counts])


def _notes(evaluation: Mapping, words: Mapping) -> list[str]:
    """What was measured how, of what there is."""
    groups = evaluation["groups"]
    over = ("by images" if group["patients"] is None else "by patients" for group in groups)
    over = " / ".join(dict.fromkeys(words[unit] for unit in over))
    annotated, labelled = (any(group[kind] for group in groups) for kind in ("annotated", "labelled"))
    notes = [words["tolerance"].format(evaluation["tolerance"], evaluation["grid"])] if annotated else []
    notes += [words[note] for note in ("areas", "noise", "blind")] if annotated else []
    notes += [words["auc note"]] if labelled else []
    specific = any("text_specificity" in group["overall"] for group in groups)
    notes += [words["specificity"].format("")] if specific else []
    failed = [words["failed"].format(evaluation["failed"])] if evaluation.get("failed") else []
    return [*notes, words["interval"].format(over, evaluation["draws"]), *failed]


def paper_rows(evaluation: Mapping, names: Sequence[str], lang: str = "zh") -> Iterator[tuple]:
    """The tables of the page as cells, headings first: of each group all images, the classes' means, each class."""
    words = parts.words_in_language(EVALUATION_WORDS, lang)
    yield *(words[name] for name in ("of split", "setting", "class")), *(words[column.heading] for column in COLUMNS)
    for group in evaluation["groups"]:
        group = {**group, "macro": without_counts(group["macro"])}
        for line, measures in lines_of(group, names, lang):
            cells = (shown(measures, column.measure, column.kind, words["brackets"]) for column in COLUMNS)
            yield group["split"], group["setting"], line, *cells


# -- tables


def _table(
    lines: Sequence[tuple[str, Mapping]], first: str, title: str, top: int, words: Mapping, more: int = 0
) -> Part:
    """A row for each (name, measures), a column for each of COLUMNS in which something stands.

    Columns that find no room on the page go below, after the names once more.
    """
    names = [wrap_text(name, NAME_ROOM - 16, 2, parts.measure(BODY)) for name, _ in lines]
    items, bottom = [Text(MARGIN, top + HEADING, title, HEADING)], top + HEADING - 6
    for block in _blocks([_cells(column, lines, words) for column in COLUMNS]):
        drawn, bottom = _block(names, block, words[first], bottom)
        items += drawn
    if more:
        items.append(Text(MARGIN, bottom - 14 + ROW, words["more"].format(more), BODY, "l", GREY))
        bottom += ROW
    return items, bottom


class Cells(NamedTuple):
    """A column as it is shown, "" where nothing stands, and the pixels that it takes."""

    heading: str
    cells: list[str]
    width: int


def _cells(column: Column, lines: Sequence[tuple[str, Mapping]], words: Mapping) -> Cells:
    heading = words[column.heading]
    cells = [shown(line, column.measure, column.kind, words["brackets"]) or "" for _, line in lines]
    return Cells(heading, cells, round(max(text_length(text, BODY) for text in (heading, *cells))) + CELL_APART)


def _blocks(columns: Sequence[Cells]) -> list[list[Cells]]:
    """The columns in which something stands, as many side by side as there is room for; at least one block."""
    blocks, right = [[]], NAME_ROOM
    for column in filter(lambda column: any(column.cells), columns):
        if right + column.width > ROOM:
            blocks.append([])
            right = NAME_ROOM
        blocks[-1].append(column)
        right += column.width
    return blocks


def _block(names: Sequence[list[str]], columns: Sequence[Cells], first: str, top: int) -> Part:
    """Names, each on a line or two, and the columns beside them."""
    rights = list(accumulate((column.width for column in columns), initial=MARGIN + NAME_ROOM))
    right, head = rights[-1], top + 40
    items = [Text(MARGIN, head, first, BODY, "l", GREY), Box(MARGIN, head + 12, right, head + 13, GREY)]
    items += [Text(edge, head, column.heading, BODY, "r", GREY) for column, edge in zip(columns, rights[1:])]
    baseline = head
    for row, name in enumerate(names):
        name = parts.lines_down(name, MARGIN, baseline + ROW, BODY, "l")
        items += name
        baseline = name[-1].y
        for column, edge in zip(columns, rights[1:]):
            cell = column.cells[row]
            items.append(Text(edge, baseline, cell or "—", BODY, "r", BLACK if cell else GREY))
        items.append(Box(MARGIN, baseline + 12, right, baseline + 13, RULE))
    return items, baseline + 14


# -- parts side by side


def _columns_of_parts(group: Mapping, lines, names: Sequence[str], top: int, words: Mapping) -> Part:
    """Pointing and the table of four in the left column, the confusion matrix in the right; what there is of them.

    A matrix that is too large for that goes below.
    """
    left: list[Callable[[int, int], Part]] = []
    right: list[Callable[[int, int], Part]] = []
    if "pointing" in group["overall"]:
        left.append(lambda x, y: _forest(lines, x, y, words))
    if sum(group["cases"].values()):
        left.append(lambda x, y: _cases(group["cases"], x, y, words))
    if group["labelled"]:
        right.append(lambda x, y: _confusion(group, names, x, y, words))
    items, bottom = _down(left, MARGIN, top)
    beside, deepest = _down(right, MARGIN + LEFT_WIDTH + 40, top)
    if beside and (not left or bounds(beside)[2] > MARGIN + ROOM):
        beside, deepest = _down(right, MARGIN, bottom + APART if left else top)
    return items + beside, max(bottom, deepest)


def _down(stack: Sequence[Callable[[int, int], Part]], x: int, top: int) -> Part:
    """Parts one below the other."""
    items, bottom = [], top
    for number, part in enumerate(stack):
        drawn, bottom = part(x, bottom + APART if number else top)
        items += drawn
    return items, bottom


def _cases(cases: Mapping[str, int], left: int, top: int, words: Mapping) -> Part:
    """How many annotations: prediction right or wrong, peak inside or outside."""
    total, edges = sum(cases.values()), (left + 450, left + LEFT_WIDTH)
    head = top + HEADING + 34
    items = [Text(left, top + HEADING, words["cases"], HEADING)]
    items += [Text(edge, head, words[word], BODY, "r", GREY) for edge, word in zip(edges, ("inside", "outside"))]
    items.append(Box(left, head + 12, edges[1], head + 13, GREY))
    for row, word in enumerate(("right", "wrong")):
        baseline = head + (row + 1) * ROW
        items.append(Text(left, baseline, words[word], BODY))
        for edge, case in zip(edges, CASES[2 * row :]):
            cell = f"{cases[case]}{words['brackets'].format(f'{cases[case] / total:.1%}')}"
            items.append(Text(edge, baseline, cell, BODY, "r"))
        items.append(Box(left, baseline + 12, edges[1], baseline + 13, RULE))
    return items, head + 2 * ROW + 14


# -- pointing by class


MARKS = {"chance": GREY, "class_place": ORANGE, "gaussian": GREEN}


def _mark(kind: str, x: float, y: float) -> list[Line]:
    """The mark of a baseline around (x, y): a stroke, a diamond, a triangle."""
    outline = {
        "chance": [(0, -6), (0, 6)],
        "class_place": [(0, -6), (6, 0), (0, 6), (-6, 0), (0, -6)],
        "gaussian": [(0, -6), (6, 5), (-6, 5), (0, -6)],
    }[kind]
    return [Line([(x + right, y + down) for right, down in outline], MARKS[kind], 2)]


def _interval(numbers: Mapping, x: Callable[[float], float], y: float) -> list:
    """A whisker from low to high and a dot at the value."""
    low, high = (x(numbers.get(end, numbers["value"])) for end in ("low", "high"))
    centre = round(x(numbers["value"]))
    dot = Box(centre - 5, round(y) - 5, centre + 5, round(y) + 5, BLUE)
    return [Line([(low, y), (high, y)], BLUE, 2)] * (high > low) + [dot]


def _forest(lines, left: int, top: int, words: Mapping) -> Part:
    """For each line with annotations: share of hits with its interval above, what the baselines get below."""
    lines = [(name, line["pointing"]) for name, line in lines if "pointing" in line]
    start, end = left + NAME_ROOM, left + LEFT_WIDTH - 30
    legend, lowest = _legend(lines, left, top + HEADING + 40, words)
    first, pitch = lowest + 20, 44
    bottom = first + len(lines) * pitch

    def x(share: float) -> float:
        return start + 0.5 + share * (end - start - 1)

    items = [Text(left, top + HEADING, words["forest"], HEADING), *legend]
    for tick in range(6):
        at = math.floor(x(tick / 5))
        items += [Box(at, first, at + 1, bottom, RULE), Box(at, bottom, at + 1, bottom + TICK_LENGTH, BLACK)]
        items.append(Text(at, bottom + TO_TICKS, f"{tick / 5:.1f}", TICK, "m"))
    items += [Box(start, first, start + 1, bottom, BLACK), Box(start, bottom, end, bottom + 1, BLACK)]
    for row, (name, numbers) in enumerate(lines):
        centre = first + (row + 0.5) * pitch
        items += [Box(start + 1, first + row * pitch, end, first + row * pitch + 1, RULE)]
        (name,) = wrap_text(name, NAME_ROOM - 16, 1, parts.measure(BODY))
        items.append(Text(start - 12, parts.middle_baseline(centre, BODY), name, BODY, "r"))
        for kind in MARKS:
            items += _mark(kind, x(numbers[kind]), centre + 10) if kind in numbers else []
        items += _interval(numbers, x, centre - 10)
    return items, bottom + TO_TICKS + 8


def _legend(lines, left: int, baseline: int, words: Mapping) -> Part:
    """What the dot and the marks mean, those that are drawn, and the baseline of its last line."""
    items, right = [], left
    for kind in ("heatmap", *(kind for kind in MARKS if any(kind in numbers for _, numbers in lines))):
        length = 32 + round(text_length(words[kind], BODY))
        if right + length > left + LEFT_WIDTH:
            baseline, right = baseline + parts.leading(BODY), left
        y = baseline - 7.5
        if kind == "heatmap":
            items += _interval({"value": 0.5, "low": 0.0, "high": 1.0}, lambda share, at=right: at + 24 * share, y)
        else:
            items += _mark(kind, right + 12, y)
        items.append(Text(right + 32, baseline, words[kind], BODY))
        right += length + 28
    return items, baseline


# -- the confusion matrix


def _confusion(group: Mapping, names: Sequence[str], left: int, top: int, words: Mapping) -> Part:
    """Counts of images, a row for each true class; the classes beyond MOST_CLASSES are one."""
    labels, counts = _condensed(group, names, words)
    labels = [wrap_text(label, 160, 1, parts.measure(TICK))[0] for label in labels]
    longest = round(max(text_length(label, TICK) for label in labels))
    start = left + 36 + longest + 10
    side = max(50, min(64, (MARGIN + ROOM - start) // len(labels)))
    title = wrap_text(words["confusion"], LEFT_WIDTH, 2, parts.measure(HEADING))
    items = parts.lines_down(title, left, top + HEADING, HEADING, "l")
    above = items[-1].y + 38  # the baseline of what the columns are
    first, size = above + 12 + longest + 12, len(labels) * side  # the matrix' upper edge
    items += [
        Text(start + size // 2, above, words["predicted"], BODY, "m", GREY),
        Text(left + 22, first + size // 2, words["true"], BODY, "m", GREY, vertical=True),
    ]
    for row, label in enumerate(labels):
        centre = (row + 0.5) * side
        items.append(Text(start - 8, parts.middle_baseline(first + centre, TICK), label, TICK, "r"))
        across = round(start + centre + 0.35 * TICK)
        items.append(Text(across, first - 8, label, TICK, "l", vertical=True))
        total = sum(counts[row])
        for column, count in enumerate(counts[row]):
            items += _cell(count, total, start + column * side, first + row * side, side)
    return items, first + size + 8


def _cell(count: int, total: int, left: int, top: int, side: int) -> list:
    share = count / total if total else 0.0
    box = Box(left, top, left + side, top + side, _shade(share), RULE)
    number = str(count) if text_length(str(count), TICK) <= side - 4 else f"{count / 1000:.0f}k"
    colour = WHITE if share > 0.5 else BLACK if count else GREY
    return [box, Text(left + side // 2, parts.middle_baseline(top + side / 2, TICK), number, TICK, "m", colour)]


def _shade(share: float) -> str:
    """White for 0, BLUE for 1."""
    levels = (int(BLUE[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (level - 255)):02x}" for level in levels)


def _condensed(group: Mapping, names: Sequence[str], words: Mapping) -> tuple[list[str], list[list[int]]]:
    """Labels and counts of the classes of most images, and of all others together where there are some."""
    counts = group["confusion"]
    sizes = [sum(row) + sum(column) for row, column in zip(counts, zip(*counts))]
    order = sorted(range(len(names)), key=lambda index: -sizes[index])
    chosen = sorted(order[:MOST_CLASSES])
    others = [index for index in order[MOST_CLASSES:] if sizes[index]]
    groups = [[index] for index in chosen] + ([others] if others else [])
    labels = [drawable(names[index]) for index in chosen] + ([words["others"]] if others else [])
    return labels, [[sum(counts[t][p] for t in true for p in predicted) for predicted in groups] for true in groups]
