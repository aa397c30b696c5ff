"""The evaluation as rows of a table, and as lines at the end of a run."""

from collections.abc import Iterator, Mapping, Sequence

from ..errors import escape_unprintable
from ..messages import Joined, Message, current_language, translated
from ..results.page import columns_of, wrap_text
from ..results.parts import label_in_language, words_in_language
from .baselines import BASELINES
from .summary import CASES

NUMBERS = ("n", "value", "low", "high", *BASELINES)
HEADER = ("split", "method", "setting", "target", "class", "measure", *NUMBERS)
LINE_NAMES = {"overall": "全部", "macro": "类平均"}


def evaluation_rows(evaluation: Mapping, names: Sequence[str], lang: str = "zh") -> Iterator[tuple]:
    """Cells under HEADER, a row for each number of `evaluate`: of each group, line and measure; None where none is."""
    for group in evaluation["groups"]:
        for line, measures in lines_of(group, names, lang):
            about = group["split"], group["method"], group["setting"], evaluation.get("target"), line
            for measure, numbers in measures.items():
                yield *about, measure, *map(numbers.get, NUMBERS)


def groups_by_split(evaluation: Mapping) -> list[list[Mapping]]:
    """The groups of each split, in their order."""
    splits: dict[str | None, list[Mapping]] = {}
    for group in evaluation["groups"]:
        splits.setdefault(group["split"], []).append(group)
    return list(splits.values())


def lines_of(group: Mapping, names: Sequence[str], lang: str = "zh") -> list[tuple[str, Mapping]]:
    """(name, measures) of all images, of the classes' means and of each of `names` that has some."""
    lines = [(name, group[line]) for line, name in words_in_language(LINE_NAMES, lang).items()]
    return lines + [(name, group["classes"][name]) for name in names if name in group["classes"]]


def largest_classes(group: Mapping, names: Sequence[str], most: int) -> list[str]:
    """At most `most` of the classes that have a measure, those of most images, in the order of `names`."""
    sizes = {name: size for name, size in zip(names, group["class_sizes"]) if name in group["classes"]}
    sizes = {name: (size, _units(group["classes"][name])) for name, size in sizes.items()}
    largest = set(sorted(sizes, key=sizes.get, reverse=True)[:most])
    return [name for name in names if name in largest]


def _units(measures: Mapping) -> int:
    return max(numbers["n"] for numbers in measures.values())


# -- at the end of a run

MOST_LINES, MOST_SPLITS = 20, 5  # classes in all, and splits
NAME_WIDTH = 36  # columns of type
# heading, measure, number: as `shown` has it
COLUMNS = (
    ("图像", "accuracy", "n"),
    ("准确率", "accuracy", "value"),
    ("AUC", "auc", "value"),
    ("标注", "pointing", "n"),
    ("命中（容差）", "pointing", "interval"),
    ("随机", "pointing", "chance"),
    ("该类平均位置", "pointing", "class_place"),
    ("居中高斯", "pointing", "gaussian"),
    ("命中（严格）", "pointing_strict", "value"),
    ("IoU（半高）", "iou_half", "value"),
    ("IoU（Otsu）", "iou_otsu", "value"),
    ("能量", "energy", "value"),
    ("CNR", "contrast_to_noise", "value"),
    ("删除优于随机", "deletion_margin", "value"),
    ("插入优于随机", "insertion_margin", "value"),
)


def terminal_lines(evaluation: Mapping, names: Sequence[str]) -> list[str]:
    """The evaluation for a terminal, about 40 lines: of each split the first setting, then a line for each setting."""
    splits = groups_by_split(evaluation)
    first = splits[:MOST_SPLITS]
    lines = []
    for groups in first:
        about = explained(evaluation, current_language())
        lines.append(Joined("；", filter(None, [_title(groups[0]), about])))
        lines += _split_lines(groups, names, MOST_LINES // len(first))
    if evaluation.get("failed"):
        lines.append(Message("另有 {} 张图像失败，没有计入", evaluation["failed"]))
    if len(splits) > len(first):
        lines.append(Message("另有 {} 个划分，见表格", len(splits) - len(first)))
    lines += _notes([group for groups in first for group in groups], evaluation)
    return list(map(str, lines))


EXPLAINED = {  # by what `target` says
    "predicted": "解释的是预测的文本",
    "label": "解释的是标签",
    "all": "解释的是全部文本",
}
OTHER_TEXTS = "解释的是 {}"


def explained(evaluation: Mapping, lang: str) -> str:
    """Which texts' heatmaps were measured; "" where it is not known."""
    target = evaluation.get("target")
    return "" if target is None else translated(EXPLAINED.get(target, OTHER_TEXTS), lang).format(target)


def _split_lines(groups: Sequence[Mapping], names: Sequence[str], most: int) -> list[str]:
    first = groups[0]
    lines = _table_of_four(first["cases"])
    classes = largest_classes(first, names, most)
    first = {**first, "macro": without_counts(first["macro"])}
    named = lines_of(first, classes, current_language())
    lines += _aligned(Message("类别"), [(name, line) for name, line in named if line])
    more = len(first["classes"]) - len(classes)
    lines += [Message("  另有 {} 类，见表格", more)] if more else []
    if len(groups) > 1:
        settings = (label_in_language(group["setting"], current_language()) for group in groups)
        lines += _aligned(Message("设置（全部图像）"), list(zip(settings, (group["overall"] for group in groups))))
    return lines


def _table_of_four(cases: Mapping[str, int]) -> list[str]:
    """Predictions, right or wrong, against peaks, inside or outside; nothing where nothing is annotated."""
    annotations = sum(cases.values())
    if not annotations:
        return []
    inside, outside, right, wrong = map(Message, ("峰在标注内（容差）", "峰在标注外", "预测正确", "预测错误"))
    shown = [Message("{}（{:.1%}）", cases[case], cases[case] / annotations) for case in CASES]
    return aligned([("", inside, outside), (right, *shown[:2]), (wrong, *shown[2:])])


def without_counts(line: Mapping) -> dict:
    """The line of the classes' means, whose counts are of classes: beside counts of images they would mislead."""
    return {
        measure: {name: number for name, number in numbers.items() if name != "n"} for measure, numbers in line.items()
    }


def _title(group: Mapping) -> Message:
    split = "" if group["split"] is None else Message("（划分 {}）", escape_unprintable(group["split"]))
    patients = "" if group["patients"] is None else Message("，{} 名患者", group["patients"])
    counts = Message("有标签 {} 张，有标注 {} 张", group["labelled"], group["annotated"])
    setting = escape_unprintable(label_in_language(group["setting"], current_language()))
    return Message("评估{}：{} 张图像{}，{}；{}", split, group["images"], patients, counts, setting)


def _aligned(heading: Message, lines: Sequence[tuple[str, Mapping]]) -> list[str]:
    """A table of COLUMNS, without those in which nothing stands; its columns meet where a Chinese character is two."""
    columns = [column for column in COLUMNS if any(shown(line, *column[1:]) for _, line in lines)]
    if not columns:
        return []
    table = [[heading, *(Message(title) for title, _, _ in columns)]]
    for name, line in lines:
        (name,) = wrap_text(name, NAME_WIDTH, 1)
        table.append([name, *(shown(line, *column[1:], str(Message("（{}）"))) or "—" for column in columns)])
    return aligned(table)


def aligned(table: Sequence[Sequence[str | Message]]) -> list[str]:
    """Rows of cells as lines: the first column to the left, numbers to the right, a Chinese character two wide."""
    table = [[escape_unprintable(str(cell)) for cell in row] for row in table]
    widths = [max(map(columns_of, column)) for column in zip(*table)]
    return ["  " + "  ".join(_padded(row, widths)) for row in table]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    blanks = [" " * (width - columns_of(cell)) for cell, width in zip(row, widths)]
    return [row[0] + blanks[0], *(blank + cell for cell, blank in zip(row[1:], blanks[1:]))]


def shown(line: Mapping, measure: str, kind: str, brackets: str = "（{}）") -> str:
    """A number of a line as text, "" where there is none; `kind`: its name, or "interval": the value with its own."""
    numbers = line.get(measure, {})
    if kind == "interval":
        return _with_interval(numbers, brackets) if numbers else ""
    if kind not in numbers:
        return ""
    return str(numbers["n"]) if kind == "n" else two_decimals(numbers[kind])


def two_decimals(value: float) -> str:
    """A measure as it is shown; no minus before a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def _with_interval(numbers: Mapping, brackets: str) -> str:
    """A measure and its interval, which one of a class that was never drawn lacks."""
    value = two_decimals(numbers["value"])
    if "low" not in numbers:
        return value
    return value + brackets.format(f"{two_decimals(numbers['low'])}–{two_decimals(numbers['high'])}")


def _notes(groups: Sequence[Mapping], evaluation: Mapping) -> list[str]:
    """What the hits and their intervals mean, where there are some."""
    if not any(group["annotated"] for group in groups):
        return []
    over = dict.fromkeys("按图像" if group["patients"] is None else "按患者" for group in groups)
    grid, tolerance = evaluation["grid"], evaluation["tolerance"]
    return [
        Message("命中（容差）：峰离标注不超过 {:g} 像素（图像缩到 {}×{}）；严格：峰在标注内", tolerance, grid, grid),
        Message("括号内是 95% 区间：{}重抽 {} 次", Joined("、", map(Message, over)), evaluation["draws"]),
    ]
