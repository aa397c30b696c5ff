"""What is said of how a heatmap was made: names, titles, footers, summary, table; equal maps once; low ranks."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from test_drawing import (
    GREY,
    RED,
    SIZES,
    assert_nothing_collides,
    caption_of,
    figure,
    grid,
    items_of,
    text_with,
    texts_of,
    tiles_of,
    words,
)
from tiny import tiny_result

from clip_gradcam_visualization import explain, main
from models.explain import defaults
from models.explain.methods import METHODS, reads_attention
from models.explain.question import Setting
from models.explain.words import Word
from models.results.drawing import draw_results, each_once, for_figure
from models.results.figure import draw_figure
from models.results.page import Picture
from models.results.parts import HEADING, TITLE, label_in_language
from models.results.result import WHERE_ONLY, Results
from models.results.saving import OutputChoice, encode_outputs, summary
from models.runs.tables import COLUMNS, table_rows

TEXTS = ["正常", "松动", "感染"]
LAYER_METHODS = [name for name in METHODS if not reads_attention(name)]


def of_setting(result, method="gradcam", similarity="cosine", subtract=False, **changes):
    """A result as another setting made it."""
    asked = result.question._replace(method=method, similarity=similarity, subtract_others=subtract)
    return result._replace(question=asked, subtracted=0.3 if subtract else 0.0, **changes)


# -- names ------------------------------------------------------------------------------------

NAMED = [
    ({}, "Grad-CAM", "Grad-CAM"),
    ({"fused_layers": 2}, "Grad-CAM，两层", "Grad-CAM, two layers"),
    ({"fused_layers": 3, "similarity": "dot"}, "Grad-CAM，3 层，点积", "Grad-CAM, 3 layers, dot product"),
    ({"method": "layercam", "subtract": True}, "LayerCAM，减去其他文本", "LayerCAM, other texts taken off"),
    (
        {"method": "hirescam", "similarity": "dot", "subtract": True, "fused_layers": 2},
        "HiResCAM，两层，点积，减去其他文本",
        "HiResCAM, two layers, dot product, other texts taken off",
    ),
]


@pytest.mark.parametrize("setting, chinese, english", NAMED)
def test_a_heatmap_is_named_by_its_method_and_what_differs_from_it(setting, chinese, english):
    result = of_setting(tiny_result(), **setting)
    assert (result.full_label(), result.full_label("en")) == (chinese, english)
    assert label_in_language(chinese, "en") == english and label_in_language(chinese, "zh") == chinese
    assert result.is_guide == (chinese == "Grad-CAM") and result.method == setting.get("method", "gradcam")


FULL = {"method": "hirescam", "fused_layers": 2, "dot_product": True, "subtract": True}
TITLES = [
    ("zh", {}, "Grad-CAM热力图", "各文本的 Grad-CAM热力图"),
    ("zh", FULL, "HiResCAM热力图（两层，点积，减去其他文本）", "各文本的 HiResCAM热力图（两层，点积，减去其他文本）"),
    ("en", {}, "Grad-CAM heatmap", "Grad-CAM heatmap of each text"),
    ("en", {**FULL, "fused_layers": 1}, "HiResCAM heatmap (dot product, other texts taken off)", None),
    (
        "en",
        FULL,
        "HiResCAM heatmap (two layers, dot product, other texts taken off)",
        "HiResCAM heatmap of each text (two layers, dot product, other texts taken off)",
    ),
]


@pytest.mark.parametrize("lang, setting, of_figure, of_grid", TITLES)
def test_the_titles_name_what_differs_in_brackets(lang, setting, of_figure, of_grid):
    top = min(picture.top for picture in items_of(figure(lang, **setting), Picture))
    above = [text.string for text in texts_of(figure(lang, **setting)) if text.y < top and text.size == HEADING]
    assert "".join(above).replace(" ", "").startswith(of_figure.replace(" ", ""))
    name = re.split("目标文本|Target text", "".join(above))[0]
    assert ("（" in name or "(" in name) == bool(setting)
    if of_grid:
        title = [text.string for text in texts_of(grid(lang, **setting)) if text.size == TITLE]
        assert " ".join(title) == of_grid


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_nothing_collides_where_most_is_said(lang, size):
    crowd = {**FULL, "contrast": 1.0, "tells_presence": False, "independent": True, "size": SIZES[size]}
    names = [f"Loosening of the femoral stem with a radiolucent line, type {i}" for i in range(9)]
    lowest = np.linspace(0, 1, 9, dtype=np.float32)
    drawing = figure(lang, names=names, specificity=0.04, similarities=lowest, **crowd)
    assert_nothing_collides(drawing)
    assert {"zh": "颜色不说明有没有", "en": "do not tell whether it is there"}[lang] in words(drawing)
    also = tuple(of_setting(tiny_result([1]), method) for method in LAYER_METHODS)
    drawing = grid(lang, names=names, methods=["gradcam", "hirescam", "eigencam"], also=also, is_default=True)
    assert_nothing_collides(drawing)


@pytest.mark.parametrize(
    "lang, said",
    [("zh", "已减去其他文本也支持的部分"), ("en", "What the other texts hold too, weighted by")],
)
def test_the_footer_says_what_is_taken_off(lang, said):
    for draw in (figure, grid):
        assert said not in words(draw(lang)) and text_with(draw(lang, subtract=True), said).colour == GREY


def test_the_footer_of_a_grid_says_only_what_holds_for_all_its_tiles():
    """What holds for some stands in their names."""
    result, other = tiny_result([1]), tiny_result([2])._replace(targets=[1])
    mixed = Results([of_setting(result, similarity="dot", subtract=True), of_setting(other, "layercam")])
    same = Results([of_setting(result, "gradcam", "dot", True), of_setting(other, "layercam", "dot", True)])
    overlays = [result.pixels] * 2
    drawn = [words(draw_results(results, [(None, o) for o in overlays], "zh")) for results in (mixed, same)]
    for said in ("未归一化的点积", "已减去其他文本也支持的部分"):
        assert said not in drawn[0] and drawn[1].count(said) == 1


# -- equal maps -------------------------------------------------------------------------------


def methods_of(maps):
    """Results of a method for each [h, w] of `maps`, the first the default."""
    result = tiny_result([1])
    methods = ["hirescam", *LAYER_METHODS][: len(maps)]
    return Results(
        of_setting(result, method, maps=np.float32(each)[None], is_default=number == 0)
        for number, (method, each) in enumerate(zip(methods, maps, strict=True))
    )


RAMP = np.arange(12.0).reshape(3, 4)


def test_equal_maps_are_shown_once_by_the_first_that_has_them():
    """Equal after the ReLU and over their maxima; not those of another grid, nor empty ones."""
    turned, finer, empty = RAMP[::-1], np.kron(RAMP, np.ones((2, 2))), -RAMP
    once, indices = each_once(methods_of([RAMP, turned, 7 * RAMP, finer, empty, empty, 3 * turned, RAMP + 4e-3]))
    assert indices == [0, 1, 3, 4, 5] and isinstance(once, Results)
    also = [[other.label for other in result.also] for result in once]
    assert also == [["HiResCAM", "Eigen-CAM"], ["XGrad-CAM"], [], [], []]


@pytest.mark.parametrize("off, same", [(0.9e-3, True), (1.5e-3, False)])
def test_how_alike_maps_are_that_look_the_same(off, same):
    other = RAMP.copy()
    other[1, 1] += 11 * off
    assert (len(each_once(methods_of([RAMP, other]))[0]) == 1) == same


def test_what_lies_below_zero_makes_no_difference():
    one, other = RAMP - 5, np.where(RAMP < 5, -99.0, RAMP - 5)
    assert each_once(methods_of([one, other]))[1] == [0]


@pytest.mark.parametrize("lang, same, default", [("zh", "与 {} 相同", "默认：{}"), ("en", "Same as {}", "Default: {}")])
def test_the_tile_says_which_methods_have_the_same_map(lang, same, default):
    results = methods_of([RAMP, RAMP[::-1], RAMP, RAMP])
    drawn = [for_figure(*pair, alone=False) for pair in results.drawn()]
    drawing = draw_results(results, drawn, lang)
    _, *tiles = tiles_of(drawing)
    assert len(tiles) == 2
    first, second = ("".join(caption_of(drawing, tile)) for tile in tiles)
    between = {"zh": "、", "en": ", "}[lang]
    assert first.startswith(default.format("HiResCAM") + same.format(f"HiResCAM{between}Local Grad-CAM"))
    assert second.startswith("Grad-CAM") and same.split("{")[0] not in second
    for tile, overlay in zip(tiles, (drawn[0][1], drawn[1][1])):
        assert np.abs(tile.pixels.mean((0, 1)) - overlay.mean((0, 1))).max() < 2  # each its own overlay


def test_a_grid_of_methods_that_all_have_one_map_is_still_one_of_methods():
    results = methods_of([RAMP, RAMP, RAMP])
    drawing = draw_results(results, [for_figure(*pair, alone=False) for pair in results.drawn()], "zh")
    assert "各方法的热力图　目标文本：松动" in words(drawing) and len(tiles_of(drawing)) == 2
    assert "与 Grad-CAM、HiResCAM 相同" in words(drawing)


@pytest.mark.usefixtures("single_layer")
def test_files_and_rows_stay_one_for_each_method(checkpoint, picture, tmp_path, monkeypatch):
    """Before a global pool Grad-CAM, HiResCAM and XGrad-CAM are one; and here the default is the guide's Grad-CAM."""
    drawings = []
    monkeypatch.setattr("models.results.saving.encode_figure", lambda drawing, *_: drawings.append(drawing) or b"x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(picture.read_bytes())
    fixed = ["--model-path", checkpoint, "--image-path", tmp_path / "data", "--output-dir", tmp_path / "out"]
    assert main([*map(str, fixed), "--num-workers", "0", "--method", "all", "--class-texts", *TEXTS]) == 0
    marks = ["default", *LAYER_METHODS[1:]]
    assert {p.name for p in (tmp_path / "out").glob("*overlay*")} == {f"clip_gradcam_a_overlay_{m}.png" for m in marks}
    assert len((tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()) == len(marks)
    (drawing,) = drawings
    captions = ["".join(caption_of(drawing, tile)) for tile in tiles_of(drawing)[1:]]
    assert captions[0].startswith("默认：Grad-CAM与 HiResCAM、Local Grad-CAM、XGrad-CAM 相同")
    assert len(captions) == len(marks) - 3 and not any(caption.startswith("HiResCAM") for caption in captions)


# -- summary and table ------------------------------------------------------------------------


def said_of(*results):
    results = Results(results)
    return summary(results, encode_outputs(results, "a.png", OutputChoice(figure=False)))


HINT = "（默认；--method gradcam 是指南的 Grad-CAM：一层，余弦）"


@pytest.mark.parametrize(
    "setting, line",
    [
        ({}, "热力图：Grad-CAM"),
        ({"is_default": True}, "热力图：Grad-CAM"),
        ({"method": "layercam"}, "热力图：LayerCAM"),
        ({"method": "layercam", "is_default": True}, f"热力图：LayerCAM{HINT}"),
        ({"is_default": True, "fused_layers": 2}, f"热力图：Grad-CAM，两层{HINT}"),
        (
            {"method": "hirescam", "similarity": "dot", "subtract": True, "fused_layers": 2, "is_default": True},
            f"热力图：HiResCAM，两层，点积，减去其他文本{HINT}",
        ),
    ],
    ids=str,
)
def test_the_summary_says_what_the_heatmap_is(setting, line):
    lines = said_of(of_setting(tiny_result([0, 2]), **setting))
    assert lines[1] == line and sum("热力图：" in said for said in lines) == 1
    assert [said[:8] for said in lines[2:4]] == ["目标文本：[0]", "目标文本：[2]"]


def test_the_summary_of_several_names_each_and_marks_the_default():
    default = of_setting(tiny_result([1]), "hirescam", "dot", True, fused_layers=2, is_default=True)
    lines = said_of(default, of_setting(tiny_result([1]), "hirescam"))
    assert lines[1].startswith("默认：HiResCAM，两层，点积，减去其他文本：目标文本：[1] 松动（")
    assert lines[2].startswith("HiResCAM：目标文本：[1] 松动（") and not any("热力图：" in line for line in lines)


def rows_of(result):
    results = Results([result])
    files = encode_outputs(results, Path("out/a.png"), OutputChoice(figure=False))
    return table_rows(results, files, "a.png", Path("out"), {})


def test_the_table_has_the_rank_and_the_share_that_is_taken_off():
    """Ranks by the similarity, texts alike share one; not by where a text stands in the list."""
    result = tiny_result([0, 1, 2, 3], names="甲乙丙丁")._replace(similarities=np.float32([0.1, 0.3, 0.2, 0.3]))
    assert [row["rank"] for row in rows_of(result)] == [4, 1, 3, 1]
    assert {row["subtracted"] for row in rows_of(result)} == {0.0}
    assert {row["subtracted"] for row in rows_of(of_setting(result, subtract=True))} == {0.3}
    assert COLUMNS.index("rank") == COLUMNS.index("target") + 1
    assert COLUMNS.index("subtracted") == COLUMNS.index("contrast") + 1


def test_the_table_has_each_texts_words_in_their_order():
    """Six decimals; a list for each of several descriptions; nothing where they were not weighed."""
    result = tiny_result([2, 0])
    assert [row["words"] for row in rows_of(result)] == [None, None]
    weighed = [Word("折", -0.5, 3, 4), Word("骨", 0.12345678, 0, 1)], [Word("裂", 0.25, 0, 1, 1)]
    question = result.question._replace(texts=[("甲", "裂"), "乙", "骨见折"])
    rows = rows_of(result._replace(words=list(weighed), question=question))
    assert [row["words"] for row in rows] == [[["骨", 0.123457], ["折", -0.5]], [[], [["裂", 0.25]]]]


def test_each_row_measures_its_own_texts_map():
    result = tiny_result([2, 0])
    result.maps[0], result.maps[1] = RAMP, RAMP[::-1]
    first, second = rows_of(result)
    assert (first["peak_x"], first["peak_y"]) == (78, 50) and (second["peak_x"], second["peak_y"]) == (78, 10)


# -- low ranks --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 9, 10])
def test_a_low_rank_is_beyond_the_first_third(count):
    """Of maps whose strength does not tell what is there."""
    names, similarities = [f"文本{i}" for i in range(count)], np.linspace(1, 0, count, dtype=np.float32)
    result = tiny_result(range(count), names)._replace(similarities=similarities, tells_presence=False)
    assert result.only_where() == [rank > math.ceil(count / 3) for rank in range(1, count + 1)]
    assert [WHERE_ONLY in (warning or "") for warning in result.warnings()] == result.only_where()


def test_strength_tells_presence_on_one_scale_only():
    """A map alone has its own maximum for its strongest colour: there the colour tells nothing, whatever the model."""
    assert tiny_result([0, 2]).only_where() == [False, False]
    assert tiny_result([0]).only_where() == [True] and tiny_result([2]).only_where() == [False]


def test_the_note_is_of_maps_that_show_something_and_know_the_text():
    result = tiny_result([0])._replace(cautions=["小心"], specificities=[0.01])
    (warning,) = result.warnings()
    assert warning.startswith("小心；热力图几乎不随文本变化") and warning.endswith(f"；{WHERE_ONLY}")
    assert [row["warning"] for row in rows_of(result)] == [warning]
    assert rows_of(result._replace(flaws=["空"]))[0]["warning"] == "小心；空"
    assert not of_setting(result, "eigencam").only_where()[0]


def test_of_several_methods_the_note_is_said_once_and_a_flaw_after_their_names():
    low = tiny_result([0])
    empty = [of_setting(low, method)._replace(flaws=["空"], cautions=["小心"]) for method in ("layercam", "xgradcam")]
    results = Results([low, *empty, of_setting(low, "hirescam"), of_setting(low, "eigencam")])
    assert results.messages() == ["小心", WHERE_ONLY, "LayerCAM、XGrad-CAM：空"]


@pytest.mark.parametrize(
    "lang, said", [("zh", "靠后：颜色不说明有没有"), ("en", "Ranks low: colours tell no presence")]
)
def test_a_tile_of_several_texts_says_it_itself(lang, said):
    """Text 0 is the least similar of three; where the strength on one scale tells presence, nothing is said."""
    for silent in (True, False):
        drawing = grid(lang, tells_presence=not silent)
        captions = [" ".join(caption_of(drawing, tile)) for tile in tiles_of(drawing)[1:]]
        assert [said in caption for caption in captions] == [silent, silent, False]


@pytest.mark.parametrize("lang, said", [("zh", "热力图只说明若有会在哪里"), ("en", "shows where it would be")])
def test_the_footer_of_a_figure_says_it_in_red(lang, said):
    low, best = (tiny_result([target]) for target in (0, 2))
    drawn = [draw_figure(result, result.heatmap, result.pixels, lang) for result in (low, best)]
    assert text_with(drawn[0], said).colour == RED and said not in words(drawn[1])
    methods = Results([low, of_setting(low, "eigencam")])
    assert words(draw_results(methods, [(None, low.pixels)] * 2, lang)).count(said) == 1


def test_strength_tells_presence_where_a_networks_dot_product_is_explained(clip, picture):
    for asked, tells in (({}, True), ({"method": "gradcam"}, False), ({"similarity": "cosine"}, False)):
        assert explain(clip, picture, TEXTS, img_size=64, **asked).tells_presence == tells
    silent = {name for name in defaults.ENCODERS if not defaults.tells_presence(name, Setting("gradcam", "dot"))}
    convnext = {f"convnext-{size}" for size in ("tiny", "small", "base", "large")}
    assert silent == {"vit", "clip-vit", "plain-vit", "dinov2", "siglip-vit", "siglip2-vit", "swin", *convnext}
    assert not defaults.tells_presence("unheard of", Setting("gradcam", "dot"))
