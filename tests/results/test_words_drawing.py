"""Words in figure, grid, terminal and Python: what is shaded, in which colours, and what is said of it."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from test_drawing import (
    LONG,
    SIZES,
    assert_nothing_collides,
    caption_of,
    curves_of,
    figure,
    figure_content,
    grid,
    grid_content,
    texts_of,
    tiles_of,
    words,
)
from test_printing import SVG, least_points
from tiny import tiny_result

from models.explain.heatmap import colour_table
from models.explain.words import Word
from models.messages import speaking
from models.results.colours import COLORMAPS, DEFAULT_COLOURS
from models.results.figure import draw_figure, encode_figure
from models.results.grid import draw_grid
from models.results.page import (
    Box,
    Drawing,
    Text,
    bounds,
    box_of,
    draw_pixels,
    largest_dpi,
    page_of,
    scaled,
    text_length,
)
from models.results.parts import PAGE_WIDTH
from models.results.result import Results
from models.results.saving import DENSITIES, OutputChoice, encode_outputs, summary
from models.results.shading import (
    AGAINST,
    LINE,
    SUPPORT,
    line_shade,
    shade,
    shaded_lines,
    shaded_text,
    signed,
    strongest_descriptions,
    strongest_words,
)

ENGLISH = "Loosening of the femoral stem: a lucent line wider than 2 mm, no sign of fracture, all cups well-fixed."


def words_of(text, description=0, largest=0.08, seed=0):
    """A word for each Chinese character and each Latin word, with contributions of either sign up to `largest`."""
    places = list(re.finditer(r"[A-Za-z0-9-]+|[\u4e00-\u9fff]", text))
    values = np.random.default_rng(seed).uniform(-1, 1, len(places))
    values *= largest / np.abs(values).max()
    return [
        Word(place[0], float(value), *place.span(), description) for place, value in zip(places, values, strict=True)
    ]


SHADES = {shade(share, 1.0) for share in np.linspace(-1, 1, 50_001)}


def shades_of(drawing_or_items):
    """The boxes behind words, without the lines below them and those of the legend."""
    items = getattr(drawing_or_items, "items", drawing_or_items)
    boxes = [item for item in items if isinstance(item, Box) and item.fill in SHADES and item.bottom - item.top > 20]
    ends = [item.y for item in items if isinstance(item, Text) and re.match("(反对|against) -", item.string)]
    return [box for box in boxes if box.outline is None and not any(box.top < y < box.bottom for y in ends)]


# -- colours ----------------------------------------------------------------------------------


def hexadecimal(colour):
    return "#" + bytes(colour).hex()


def test_the_largest_contribution_has_the_full_colour_and_none_is_white():
    assert shade(0.05, 0.05) == hexadecimal(SUPPORT) and shade(-0.05, 0.05) == hexadecimal(AGAINST)
    assert shade(0.0, 0.05) == shade(0.0, 0.0) == "#ffffff"
    half = [(255 + level + 1) // 2 for level in SUPPORT]
    assert shade(0.02, 0.04) == hexadecimal(half)
    assert line_shade(-1, 1) == hexadecimal(LINE) and line_shade(0.5, 1) is line_shade(0.0, 1) is None


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.asarray(colour) / 255]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


# Machado et al. 2009, severity 1, on linear RGB
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("matrix", BLIND.values(), ids=BLIND)
def test_the_two_colours_stay_apart_to_eyes_that_tell_no_red_from_green(matrix):
    one, other = (np.array(matrix) @ (np.array(colour) / 255) ** 2.2 for colour in (SUPPORT, AGAINST))
    assert np.abs(one.clip(0, 1) ** (1 / 2.2) - other.clip(0, 1) ** (1 / 2.2)).max() > 0.15


def test_text_is_read_on_full_colours_and_lines_are_seen_in_grey_print():
    assert all((luminance(colour) + 0.05) / 0.05 > 7 for colour in (SUPPORT, AGAINST))  # WCAG AAA, black letters
    assert (luminance(AGAINST) + 0.05) / (luminance(LINE) + 0.05) > 3


def test_no_shade_is_a_colour_of_the_default_heatmap():
    table = colour_table(COLORMAPS[DEFAULT_COLOURS.colormap])[:, 0].astype(float)
    for colour in (SUPPORT, AGAINST):
        assert np.linalg.norm(table - colour, axis=1).min() > 50


@pytest.mark.parametrize(
    "value, shown", [(0.0312, "+0.031"), (-0.1, "-0.1"), (0.00042, "+0.00042"), (12.0, "+12"), (0.0, "+0")]
)
def test_a_contribution_is_shown_by_two_digits_however_small_it_is(value, shown):
    assert signed(value) == shown


# -- lines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [LONG, ENGLISH, "骨🦴折\n左\u200b侧  a.b", "W" * 90, "，。", ""])
def test_each_letter_is_drawn_once_in_its_order(text):
    shaded = shaded_text(text, words_of(text) if words_of("a") and re.search(r"\w", text) else [], 300, 24, 99, 1)
    drawn = "".join(line for line, _ in shaded.descriptions[0])
    expected = text.replace("🦴", "?").replace("\u200b", "\\u200b")
    assert re.sub(r"\s", "", drawn) == re.sub(r"\s", "", expected) and not shaded.is_cut
    items = shaded_lines(shaded, 0, 0, 24, 1.0)
    assert "".join(item.string for item in items if isinstance(item, Text)).replace(" ", "") == drawn.replace(" ", "")
    assert all(text_length(line, 24) <= 300 for line, _ in shaded.descriptions[0])


@pytest.mark.parametrize("text", [LONG, ENGLISH])
@pytest.mark.parametrize("dpi", [72, 120, 300])
def test_shades_lie_behind_their_words_at_each_density(text, dpi):
    """A word has one shade of its own value, as long as its letters."""
    weighed = words_of(text)
    shaded = shaded_text(text, weighed, 640, 24, 99, 1)
    items = [scaled(item, dpi / 120) for item in shaded_lines(shaded, 400, 0, 24, 0.08)]
    boxes = [item for item in items if isinstance(item, Box) and item.bottom - item.top > 8]
    assert [box.fill for box in boxes] == [shade(word.contribution, 0.08) for word in weighed]
    letters = [item for item in items if isinstance(item, Text)]
    for box, word in zip(boxes, weighed, strict=True):
        behind = [text for text in letters if box_of(text)[1] < (box.top + box.bottom) / 2 < box_of(text)[3]]
        edges = (
            [text.x + length_of(text, text.string[:end]) for end in place.span()]
            for text in behind
            for place in re.finditer(re.escape(word.text), text.string)
        )
        assert min(np.abs(np.subtract(pair, (box.left, box.right))).max() for pair in edges) < 0.15 * behind[0].size


def length_of(text, letters):
    """Pixels that the first letters of a text take on the page."""
    return len(letters) * text.size if text.even else text_length(letters, text.size)


def test_letters_of_an_em_are_drawn_an_em_apart_at_each_density():
    line = [Text(10, 30, "骨" * 30, 24, even=True)]
    ink = (draw_pixels(Drawing(760, 40, line), 72) < 128).any((0, 2)).nonzero()[0]
    assert abs(ink[-1] - 0.6 * (10 + 30 * 24)) <= 2 and ink[0] <= 8
    plain = [line[0]._replace(even=False)]
    np.testing.assert_array_equal(draw_pixels(Drawing(760, 40, line)), draw_pixels(Drawing(760, 40, plain)))


def test_what_speaks_against_a_text_alone_is_underlined():
    shaded = shaded_text("骨折", [Word("骨", 0.5, 0, 1), Word("折", -0.25, 1, 2)], 300, 24, 9, 1)
    support, against, line, _ = shaded_lines(shaded, 0, 0, 24, 0.5)
    assert (support.fill, against.fill, line.fill) == (shade(1, 1), shade(-0.5, 1), line_shade(-0.5, 1))
    assert (line.left, line.right, line.bottom) == (against.left, against.right, against.bottom) and support.right < 25


CLAUSES = "甲甲甲甲甲甲，乙乙乙乙乙乙，丙丙丙丙丙丙，丁丁丁丁丁丁。"


def test_a_text_that_is_too_long_keeps_the_clauses_of_the_strongest_words():
    values = {"甲": 0.01, "乙": 0.02, "丙": 0.001, "丁": -0.05}
    weighed = [Word(letter, values.get(letter, 0.0), place, place + 1) for place, letter in enumerate(CLAUSES)]
    for lines, expected in ((9, CLAUSES), (2, "…乙乙乙乙乙乙，…丁丁丁丁丁丁。"), (1, "…丁丁丁丁丁丁。")):
        shaded = shaded_text(CLAUSES, weighed, 8.6 * 24, 24, lines, 1)
        assert "".join(line for line, _ in shaded.descriptions[0]) == expected
        assert len(shaded.descriptions[0]) <= lines and shaded.is_cut == (expected != CLAUSES)
    spans = shaded.descriptions[0][0][1]
    assert [span[:2] for span in spans] == [(place, place + 1) for place in range(1, 8)]


def test_a_clause_that_is_too_long_itself_keeps_its_strongest_words():
    text = "甲乙丙丁戊己庚辛壬癸" * 5
    weighed = [Word(letter, 0.01 + 0.1 * (place == 30), place, place + 1) for place, letter in enumerate(text)]
    shaded = shaded_text(text, weighed, 10 * 24, 24, 2, 1)
    drawn = "".join(line for line, _ in shaded.descriptions[0])
    assert shaded.is_cut and len(shaded.descriptions[0]) <= 2 and "…甲…" in drawn


def test_a_long_text_without_words_ends_in_an_ellipsis():
    shaded = shaded_text(LONG, [], 240, 24, 2, 1)
    assert shaded.is_cut and len(shaded.descriptions[0]) == 2 and shaded.descriptions[0][1][0].endswith("…")


SEVERAL = ("一骨", "二折", "三裂")
OF_SEVERAL = [Word("骨", 0.3, 1, 2, 0), Word("折", -0.9, 1, 2, 1), Word("裂", 0.5, 1, 2, 2)]


def test_of_several_descriptions_those_are_shown_whose_words_add_most():
    assert [text for text, _ in strongest_descriptions(SEVERAL, OF_SEVERAL, 2)] == ["一骨", "三裂"]
    assert [text for text, _ in strongest_descriptions(SEVERAL, OF_SEVERAL, 1)] == ["三裂"]
    drawing = figure(texts=[SEVERAL, "乙", "丙"], words=[OF_SEVERAL])
    assert "一骨" in words(drawing) and "三裂" in words(drawing) and "二折" not in words(drawing)
    assert "只显示合计贡献最大的描述，至多 2 段" in words(drawing)
    assert "合计" not in words(figure(texts=[SEVERAL[:2], "乙", "丙"], words=[OF_SEVERAL[:2]]))


# -- figure -----------------------------------------------------------------------------------

NINE = ["松动", *"乙丙丁戊己庚辛壬"]


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_figure_has_its_text_as_shaded_words_with_a_legend(lang, size):
    for text in (LONG, ENGLISH):
        weighed = words_of(text)
        content = figure_content(NINE, size, texts=[text, *NINE[1:]], words=[weighed], faithfulness=curves_of())
        drawing = draw_figure(*content, lang, has_marks=True)
        assert_nothing_collides(drawing)
        assert least_points(drawing) >= 7 and largest_dpi(drawing) >= DENSITIES[1]
        assert [box.fill for box in shades_of(drawing)] == [shade(word.contribution, 0.08) for word in weighed]
        ends = ("-0.08", "+0.08", *(("反对", "支持") if lang == "zh" else ("against", "for")))
        assert all(end in words(drawing) for end in ends)


def test_the_tallest_figure_with_the_longest_text_can_have_every_density():
    tall = {"size": SIZES["1:4"], "warning": 4 * "热力图为空", "specificity": 0.05, "faithfulness": curves_of()}
    both = LONG * 9, ENGLISH * 9
    weighed = [*words_of(both[0]), *words_of(both[1], 1)]
    drawing = figure("en", names=NINE, texts=[both, *NINE[1:]], words=[weighed], **tall)
    assert largest_dpi(drawing) >= DENSITIES[1] and "add and take little" in words(drawing)


@pytest.mark.parametrize(
    "name, text, contrast, title",
    [
        ("松动", LONG, 0, "目标文本：松动"), (LONG, LONG, 0, "目标文本："), ("松动", LONG, 1.0, "对比目标文本：松动"),
        (LONG, LONG, 1.0, "对比目标文本："),
    ],
)  # fmt: skip
def test_the_title_names_the_text_once(name, text, contrast, title):
    drawing = figure(names=[name, "b"], texts=[text, "b"], words=[words_of(text)], contrast=contrast)
    assert title in [line.string for line in texts_of(drawing)]
    assert "（全髋" not in words(drawing)
    assert ("词语对“不同于其他文本”的贡献" in words(drawing)) == (contrast > 0)


def test_a_chinese_line_is_one_text_of_an_svg():
    drawing = figure(names=NINE, texts=[LONG, *NINE[1:]], words=[words_of(LONG)])
    written = [text.text for text in ElementTree.fromstring(encode_figure(drawing, ".svg")).findall(f"{SVG}text")]
    shaded = shaded_text(LONG, words_of(LONG), 640, 24, 8, 1)
    assert set(re.split("(2)", shaded.descriptions[0][0][0])) - {""} <= set(written)
    assert encode_figure(drawing, ".pdf").startswith(b"%PDF")


def test_the_panel_of_the_heatmap_has_words_and_legend():
    drawing = figure(names=NINE, texts=["股骨柄", *NINE[1:]], words=[words_of("股骨柄")])
    panel = page_of(drawing.panels[1])
    assert "股骨柄" in words(panel) and "词语对相似度的贡献" in words(panel)


# -- grid -------------------------------------------------------------------------------------


def test_texts_of_a_grid_share_a_scale_each_below_its_map():
    texts = [LONG, LONG, LONG]
    weighed = [words_of(LONG, largest=largest) for largest in (0.02, 0.08, 0.04)]
    for lang in ("zh", "en"):
        drawing = grid(lang, texts=texts, words=weighed)
        assert_nothing_collides(drawing)
        assert least_points(drawing) >= 7
        expected = [shade(word.contribution, 0.08) for of_text in weighed for word in of_text]
        assert [box.fill for box in shades_of(drawing)] == expected and "+0.08" in words(drawing)
        for tile in tiles_of(drawing)[1:]:
            assert re.sub(r"\s", "", LONG) in "".join(caption_of(drawing, tile))
        for panel in drawing.panels[1:]:
            assert "+0.08" in words(page_of(panel))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_shaded_texts_of_many_tiles_stay_in_their_columns(size):
    names = [f"第{number}类" for number in range(9)]
    texts = [(LONG if number % 2 else ENGLISH) * (1 + number) for number in range(9)]
    content = grid_content(names, size, texts=texts, words=[words_of(text) for text in texts])
    drawing = draw_grid(*content, has_marks=True)
    assert_nothing_collides(drawing)
    assert least_points(drawing) >= 7 and "处是贡献小的词语" in words(drawing)
    for tile, panel in zip(tiles_of(drawing)[1:], drawing.panels[1:], strict=True):
        left, _, right, _ = bounds(shades_of(panel))
        assert tile.left + tile.right - 440 < left + right - 220 and right - left <= max(tile.width, 464)


def test_methods_have_the_words_of_their_text_once():
    methods = ["gradcam", "hirescam", "layercam"]
    weighed = words_of(ENGLISH)
    drawing = grid("en", texts=["a", ENGLISH, "c"], methods=methods, words=[weighed])
    assert_nothing_collides(drawing)
    assert len(shades_of(drawing)) == len(weighed)
    assert max(box.bottom for box in shades_of(drawing)) < min(tile.top for tile in tiles_of(drawing))


def test_without_words_nothing_is_drawn_of_them():
    for drawing in (figure(), grid(), grid(methods=["gradcam", "hirescam"])):
        assert "词语" not in words(drawing) and shades_of(drawing) == []


# -- terminal and Python ----------------------------------------------------------------------

WEIGHED = [Word("骨折", 0.12, 0, 2), Word("断端", 0.08, 2, 4), Word("未见", -0.03, 4, 6), Word("的", 0.001, 6, 7)]


def summary_of(*results):
    results = Results(results)
    return summary(results, encode_outputs(results, "a.png", OutputChoice(figure=False)))


def test_the_strongest_words_are_said_in_one_line():
    line = "骨折 +0.12、断端 +0.08、的 +0.001 … 未见 -0.03"
    assert str(strongest_words(WEIGHED)) == line
    assert str(strongest_words([*WEIGHED, Word("、", -0.5, 7, 8)])) == line
    assert str(strongest_words([Word("！", 0.5, 0, 1)])) == "！ +0.5"
    result = tiny_result()._replace(words=[WEIGHED])
    assert summary_of(result)[3] == f"词语：{line}" and f"\n词语：{line}\n" in repr(result)
    again = [Word("骨折", 0.05, 7, 9), Word("未见", -0.2, 9, 11)]
    assert str(strongest_words([*WEIGHED, *again])) == "骨折 +0.12、断端 +0.08、的 +0.001 … 未见 -0.2"
    with speaking("en"):
        assert "Words: 骨折 +0.12, 断端 +0.08" in summary_of(result)[3]
    both = tiny_result([0, 2])._replace(words=[WEIGHED, [*WEIGHED[:2], Word("x\n" * 99, -0.5, 7, 300)]])
    assert [sentence[:2] for sentence in summary_of(both)].count("词语") == 2 and "最支持的词语 骨折 +0.12" in repr(
        both
    )
    assert "\n" not in summary_of(both)[5] and len(summary_of(both)[5]) < 100


def test_methods_say_the_words_once():
    result = tiny_result()._replace(words=[WEIGHED])
    lines = summary_of(result, result._replace(is_default=True))
    assert [line[:3] for line in lines].count("词语：") == 1
    assert len(repr(Results([result] * 9)).splitlines()) <= 10


@pytest.mark.parametrize("targets", [(0,), (0, 1, 2)])
def test_words_leave_a_results_text_within_ten_lines(targets):
    many = tiny_result(targets)._replace(words=[WEIGHED] * len(targets), cautions=["小心"] * 9)
    assert len(repr(many).splitlines()) <= 10
    assert repr(many._replace(words=[[]] * len(targets))) == repr(many._replace(words=None))


def test_a_text_of_no_words_is_drawn_all_the_same():
    drawing = figure(texts=["股骨柄", "乙", "丙"], words=[[]])
    assert "股骨柄" in words(drawing) and shades_of(drawing) == [] and drawing.width == PAGE_WIDTH
