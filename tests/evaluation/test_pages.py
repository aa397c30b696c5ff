"""models/evaluation/tables.py and picture.py: what stands in the tables, and that nothing on the page collides."""

from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
from evaluation_rows import NAMES, random_rows, row

from models.evaluation.picture import EVALUATION_WORDS, draw_evaluation, paper_rows
from models.evaluation.summary import evaluate
from models.evaluation.tables import HEADER, evaluation_rows, explained, largest_classes, terminal_lines
from models.results.page import Box, Line, Text, columns_of, draw_pixels, text_box
from models.results.parts import words_in_language

LONG = "全髋关节置换术后，股骨柄与股骨髓腔骨质之间可见宽度超过2毫米的连续平滑透亮线"
CLASSES = {
    "two": ["正常", "异常"],
    "nine": [f"假体周围{what}" for what in ["感染", "骨折", "松动", "脱位", "磨损", "囊变", "骨化", "下沉", "正常"]],
    "thirty": [f"第{number}类改变" for number in range(30)],
    "long": [f"{number}{LONG}" for number in range(22)],
    "English": [f"Loosening of the femoral stem with a radiolucent line, type {number}" for number in range(9)],
}
SETTINGS = ("Grad-CAM", *(f"方法{number}（两层，点积，减去其他文本，{LONG}）" for number in range(12)))


@pytest.fixture(scope="module")
def small():
    rows = [
        row("a", [0], 0, annotated=0, distance=0, energy=0.5, split="test", patient="p"),
        row("b", [0], 1, annotated=0, distance=99, energy=0.25, split="test", patient="p"),
        row("c", [1], 1, split="test", patient="q"),
        row("c", [1], 1, setting="two", split="test", patient="q"),
    ]
    return evaluate(rows, {}, NAMES)


# -- tables -----------------------------------------------------------------------------------


def test_a_row_for_each_number(small):
    rows = [dict(zip(HEADER, cells, strict=True)) for cells in evaluation_rows(small, NAMES)]
    assert len(rows) == sum(
        len(line)
        for group in small["groups"]
        for line in (group["overall"], group["macro"], *group["classes"].values())
    )
    (energy,) = (each for each in rows if each["class"] == "全部" and each["measure"] == "energy")
    assert energy == {
        "split": "test", "method": "gradcam", "setting": "one", "target": None, "class": "全部", "measure": "energy",
        "n": 2, "value": 0.375, "low": 0.375, "high": 0.375, "chance": None, "class_place": None, "gaussian": None,
    }  # fmt: skip
    (accuracy,) = (
        each
        for each in rows
        if each["class"] == NAMES[0] and each["measure"] == "accuracy" and each["setting"] == "one"
    )
    assert (accuracy["n"], accuracy["value"]) == (2, 0.5)
    assert list(dict.fromkeys(each["class"] for each in rows)) == ["全部", "类平均", *NAMES[:2]]


def test_the_tables_of_a_paper(small):
    heading, *lines = paper_rows(small, NAMES)
    assert heading[:6] == ("划分", "设置", "类别", "图像", "准确率", "AUC") and {len(line) for line in lines} == {
        len(heading)
    }
    overall = dict(zip(heading, lines[0], strict=True))
    assert (overall["类别"], overall["图像"], overall["准确率"]) == ("全部", "3", "0.67（0.50–1.00）")
    assert [line[2] for line in lines[:4]] == ["全部", "类平均", *NAMES[:2]]
    heading, first, *_ = paper_rows(small, NAMES, "en")
    assert heading[4] == "Accuracy" and first[2] == "all" and first[4] == "0.67 (0.50–1.00)"


@pytest.mark.parametrize(
    "target, zh, en",
    [
        (None, "", ""),
        ("predicted", "解释的是预测的文本", "Explained: the predicted text"),
        ("label", "解释的是标签", "Explained: the labels"),
        ("松动;感染", "解释的是 松动;感染", "Explained: 松动;感染"),
    ],
)
def test_whose_heatmaps_were_measured_is_said(small, target, zh, en):
    evaluation = {**small, "target": target, "failed": 2}
    assert (explained(evaluation, "zh"), explained(evaluation, "en")) == (zh, en)
    lines = terminal_lines(evaluation, NAMES)
    assert lines[0].endswith(f"；{zh}" if zh else "；one") and "另有 2 张图像失败，没有计入" in lines
    texts = [item.string for item in draw_evaluation(evaluation, NAMES, "en").items if isinstance(item, Text)]
    assert any(en in text for text in texts) and "2 images failed and are left out" in texts


def test_the_terminal_shows_the_table_of_four_and_each_class(small):
    lines = terminal_lines(small, NAMES)
    assert lines[0] == "评估（划分 test）：3 张图像，2 名患者，有标签 3 张，有标注 2 张；one"
    assert lines[1].split() == ["峰在标注内（容差）", "峰在标注外"]
    assert lines[2].split() == ["预测正确", "1（50.0%）", "0（0.0%）"]
    assert lines[3].split() == ["预测错误", "0（0.0%）", "1（50.0%）"]
    heading, overall, macro, first, second = (line.split() for line in lines[4:9])
    assert heading == ["类别", "图像", "准确率", "AUC", "标注", "命中（容差）", "命中（严格）", "能量"]
    assert overall == ["全部", "3", "0.67", "0.75", "2", "0.50（0.50–0.50）", "0.50", "0.38"]
    assert macro[:3] == ["类平均", "—", "0.75"] and first[:3] == [NAMES[0], "2", "0.50"]
    assert second == [NAMES[1], "1", "1.00", "0.75", "—", "—", "—", "—"]
    assert lines[9].split()[:2] == ["设置（全部图像）", "图像"] and lines[11].split()[0] == "two"
    assert lines[-2:] == [
        "命中（容差）：峰离标注不超过 15 像素（图像缩到 224×224）；严格：峰在标注内",
        "括号内是 95% 区间：按患者重抽 1000 次",
    ]


def test_the_columns_of_the_terminal_meet(small):
    lines = terminal_lines(small, NAMES)
    for table in (lines[1:4], lines[4:9]):
        assert len({columns_of(line) for line in table}) == 1


def test_about_forty_lines_and_the_largest_classes():
    names = CLASSES["thirty"]
    rows, coverages = random_rows(120, names, SETTINGS)
    rows += [row(f"more {number}", [29], 29, names=names, patient="m") for number in range(9)]
    evaluation = evaluate(rows, coverages, names)
    lines, more = terminal_lines(evaluation, names), len(evaluation["groups"][0]["classes"]) - 20
    assert more > 5 and len(lines) <= 45 and any(f"另有 {more} 类" in line for line in lines)
    chosen = largest_classes(evaluation["groups"][0], names, 20)
    sizes = dict(zip(names, evaluation["groups"][0]["class_sizes"], strict=True))
    assert len(chosen) == 20 and min(sizes[name] for name in chosen) >= max(
        sizes[name] for name in names if name not in chosen
    )


def test_many_splits_are_cut_and_nothing_is_nothing():
    rows = [row(f"{number}", [0], 0, split=f"fold {number}") for number in range(9)]
    lines = terminal_lines(evaluate(rows, {}, NAMES), NAMES)
    assert sum(line.startswith("评估") for line in lines) == 5 and lines[-1] == "另有 4 个划分，见表格"
    shown = strings(draw_evaluation(evaluate(rows, {}, NAMES), NAMES, "zh"))
    assert sum(string.startswith("划分") for string in shown) == 5 and "另有 4 个划分，见表格文件" in shown
    assert terminal_lines(evaluate([], {}, NAMES), NAMES) == []
    assert len(terminal_lines(evaluate([row("a", [], 0)], {}, NAMES), NAMES)) == 1


def test_names_are_shown_as_letters_only():
    names = ["\x1b[31m正常", "松动\u202e", "骨折\n"]
    rows = [row("a", [0], 0, names=names, setting="one\x1b[2J", split="\x07")]
    assert all(line.isprintable() for line in terminal_lines(evaluate(rows, {}, names), names))


# -- the page ---------------------------------------------------------------------------------


def box_of(item):
    if isinstance(item, Text):
        return text_box(item)
    if isinstance(item, Line):
        x, y = zip(*item.points, strict=True)
        return min(x), min(y), max(x), max(y)
    return item.left, item.top, item.right, item.bottom


def meet(one, other):
    a, b = box_of(one), box_of(other)
    return min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5


def assert_nothing_collides(drawing):
    texts = [item for item in drawing.items if isinstance(item, Text)]
    marks = [item for item in drawing.items if isinstance(item, Line)]
    assert [pair for pair in combinations(texts, 2) if meet(*pair)] == []
    assert [(text, mark) for text in texts for mark in marks if meet(text, mark)] == []
    boxes = [box_of(item) for item in drawing.items]
    assert [b for b in boxes if b[0] < 0 or b[1] < 0 or b[2] > drawing.width or b[3] > drawing.height] == []


def strings(drawing):
    return [item.string for item in drawing.items if isinstance(item, Text)]


OPTIONS = {"all": {}, "classification": {"annotations": False}, "pointing": {"labels": False}}
OPTIONS["settings"] = {"settings": SETTINGS}


@lru_cache
def evaluated(kind, case):
    names = CLASSES[kind]
    return evaluate(*random_rows(40, names, **OPTIONS[case]), names)


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("case", OPTIONS)
def test_nothing_collides(kind, case, lang):
    names, options = CLASSES[kind], OPTIONS[case]
    drawing = draw_evaluation(evaluated(kind, case), names, lang)
    assert_nothing_collides(drawing)
    words = words_in_language(EVALUATION_WORDS, lang)
    shown = strings(drawing)
    assert words["title"] in shown
    assert (words["confusion"] in shown) == options.get("labels", True)
    assert (words["forest"] in shown) == options.get("annotations", True)
    assert (words["cases"] in shown) == (options.get("annotations", True) and options.get("labels", True))
    assert (words["settings"] in shown) == ("settings" in options)


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_no_type_is_smaller_than_7_points_where_the_page_is_printed_17_cm_wide(lang):
    for kind in CLASSES:
        for case in OPTIONS:
            drawing = draw_evaluation(evaluated(kind, case), CLASSES[kind], lang)
            sizes = [item.size for item in drawing.items if isinstance(item, Text)]
            assert min(sizes) * 17 / 2.54 * 72 / drawing.width >= 7, (kind, case)


def test_columns_that_find_no_room_stand_below_after_the_names_once_more():
    drawing = draw_evaluation(evaluated("nine", "pointing"), CLASSES["nine"], "en")
    headings = {item.string: item for item in drawing.items if isinstance(item, Text) and item.anchor == "r"}
    rows = [item.y for item in drawing.items if isinstance(item, Text) and item.string == "Class"]
    assert headings["Hit (tolerance)"].y == rows[0] < headings["Insertion margin"].y == rows[-1]
    assert strings(drawing).count("all") == len(rows) + 1  # and where the hits are drawn


def test_the_page_shows_the_numbers(small):
    drawing = draw_evaluation(small, NAMES, "zh")
    shown = strings(drawing)
    assert "划分 test　one　图像 3　患者 2　有标签的 3　有标注的 2" in shown
    assert shown.count("1（50.0%）") == 2 and shown.count("0（0.0%）") == 2
    assert "0.50（0.50–0.50）" in shown
    page = draw_pixels(drawing)
    assert page.shape == (drawing.height, drawing.width, 3) and (page < 255).any()


def test_the_dot_of_a_class_stands_at_its_share():
    rows = [row(f"{number}", [0], 0, annotated=0, distance=0 if number < 3 else 99) for number in range(4)]
    drawing = draw_evaluation(evaluate(rows, {}, NAMES), NAMES)
    edges = {
        tick: next(item.x for item in drawing.items if isinstance(item, Text) and item.string == tick)
        for tick in ("0.0", "1.0")
    }
    dots = [item for item in drawing.items if isinstance(item, Box) and item.right - item.left == 10]
    centres = {(dot.left + dot.right) / 2 for dot in dots[1:]}  # the first is the legend's
    expected = edges["0.0"] + 0.75 * (edges["1.0"] - edges["0.0"])
    assert len(dots) == 4 and all(abs(centre - expected) <= 1 for centre in centres)


def test_classes_beyond_twenty_are_one_in_the_confusion_matrix():
    names = CLASSES["thirty"]
    rows = [row(f"{number}", [number % 30], (number + 1) % 30, names=names) for number in range(60)]
    drawing = draw_evaluation(evaluate(rows, {}, names), names, "en")
    cells = [
        item for item in drawing.items if isinstance(item, Box) and item.right - item.left == item.bottom - item.top
    ]
    assert len(cells) == 21 * 21
    counts = [
        int(item.string)
        for item in drawing.items
        if isinstance(item, Text) and item.anchor == "m" and item.string.isdigit()
    ]
    assert len(counts) == 21 * 21 and sum(counts) == 60
    assert strings(drawing).count("Others") == 2 and "10 more classes: see the table" in strings(drawing)


def test_large_counts_stay_in_their_cells():
    evaluation = evaluate([row("a", [0], 0, names=CLASSES["long"])], {}, CLASSES["long"])
    group = evaluation["groups"][0]
    group["confusion"] = (np.eye(22, dtype=int) * 123456).tolist()
    drawing = draw_evaluation(evaluation, CLASSES["long"])
    assert_nothing_collides(drawing)
    (cell,) = {item.right - item.left for item in drawing.items if isinstance(item, Box) and item.outline}
    counts = [item for item in drawing.items if isinstance(item, Text) and item.string == "123k"]
    assert counts and all(text_box(count)[2] - text_box(count)[0] < cell for count in counts)
