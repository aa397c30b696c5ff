"""A result in Python: what is equal, what it says of itself, what it draws and saves."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_result

from models.errors import InputError
from models.explain.faithfulness import Faithfulness
from models.explain.words import Word
from models.images.preprocessing import Region
from models.results.colours import Colours
from models.results.outlines import Outline
from models.results.result import ImageResult, Results
from models.results.saving import OutputChoice, save_results

# -- what is equal ----------------------------------------------------------------------------


def rich_result(**changes) -> ImageResult:
    """A result with something in each field, NaN among it; made anew in each call."""
    result, curve = tiny_result([0, 2]), np.linspace(0, 1, 21, dtype=np.float32)
    result.maps[0, 0, 0] = np.nan
    rich = {
        "flaws": [None, "空"],
        "specificities": [float("nan"), None],
        "cautions": ["小心"],
        "region": Region(15.0, 0.0, 75.0, 60.0),
        "faithfulness": [Faithfulness(0.1, 0.2, float("nan"), curve, curve, curve), None],
        "outlines": [Outline(0, [np.array([[0.5, 1.5], [3.0, 4.0]])]), None],
        "also": (tiny_result([1]),),
        "name": "a.png",
    }
    return result._replace(**{**rich, **changes})


def compared(one, other):
    """What == and != say: a tuple's own != does not ask a class's ==."""
    return one == other, one != other


def test_results_of_equal_values_are_equal_nan_too():
    assert compared(rich_result(), rich_result()) == (True, False)
    assert rich_result() in [tiny_result(), rich_result()]
    assert Results([rich_result()]) == Results([rich_result()]) != Results([tiny_result()])


OTHER_CURVE = [Faithfulness(0.1, 0.2, float("nan"), *[np.zeros(21, np.float32)] * 3), None]
DIFFERENT = {
    "pixels": np.zeros((60, 90, 3), np.uint8),
    "maps": np.zeros((2, 3, 4), np.float32),
    "question": tiny_result(names=["正常", "松动", "骨折"]).question,
    "probabilities": np.float32([0.2, 0.3, 0.5]),
    "similarities": np.float32([0.1, 0.2, np.nan]),
    "targets": [0, 1],
    "source": ("starnet_s1", "stages.3.2", 3, 4),
    "flaws": [None, None],
    "specificities": [float("nan"), 0.5],
    "cautions": (),
    "region": None,
    "faithfulness": OTHER_CURVE,
    "independent": True,
    "fused_layers": 2,
    "subtracted": 0.45,
    "is_default": True,
    "tells_presence": False,
    "outlines": [Outline(0, [np.array([[0.5, 1.5], [3.0, 4.5]])]), None],
    "also": (tiny_result([2]),),
    "lang": "en",
    "name": "b.png",
    "colours": Colours("jet", "heat", 0.5),
    "words": [[Word("骨", 0.2, 0, 1)], []],
}


@pytest.mark.parametrize("field", [field for field in ImageResult._fields if field != "resized"])
def test_results_that_differ_in_one_field_are_not_equal(field):
    assert compared(rich_result(**{field: DIFFERENT[field]}), rich_result()) == (False, True)


def test_a_result_is_equal_to_itself_with_its_resized_maps_at_hand():
    (at_hand,) = Results([rich_result()]).keeping()
    assert len(at_hand.resized) == 2 and compared(at_hand, rich_result()) == (True, False)


@pytest.mark.parametrize("other", [None, 1, "a", (), tuple(tiny_result()), [tiny_result()]], ids=type)
def test_a_result_equals_nothing_but_a_result(other):
    assert compared(tiny_result(), other) == compared(other, tiny_result()) == (False, True)


def test_what_is_equal_by_values_that_can_change_has_no_hash():
    for thing in (tiny_result(), Results([tiny_result()])):
        with pytest.raises(TypeError, match="unhashable type: 'ImageResult'"):
            hash(thing)


# -- what it says of itself -------------------------------------------------------------------


def test_a_result_shows_what_the_reader_asks_first():
    asked = tiny_result([2]).question._replace(method="layercam", similarity="dot")
    assert repr(rich_result(question=asked, specificities=[0.91, None], region=None)).split("\n") == [
        "ImageResult a.png（90×60 像素）",
        "预测：正常（33.3%）",
        "热力图：LayerCAM，点积",
        "目标文本：[0] 正常（余弦相似度 0.100，文本特异性 0.91，删除 0.100、插入 0.200、随机 nan）",
        "目标文本：[2] 感染（余弦相似度 0.300）",
        "图像编码器：starnet_s1，目标层：stages.3.3（3×4）",
        "警告: 小心",
        "警告: 感染：空",
    ]


def test_in_the_results_language():
    result = tiny_result([2], names=["normal", "loose", "infected"])._replace(lang="en", fused_layers=2)
    assert str(result).split("\n") == [
        "ImageResult (90×60 pixels)",
        "Predicted: normal (33.3%)",
        "Heatmap: Grad-CAM, two layers",
        "Target text: [2] infected (cosine similarity 0.300, text specificity 0.90)",
        "Image encoder: starnet_s1, target layer: stages.3.3 (3×4)",
    ]


def of_method(method, layer="stages.3.3", **changes):
    result = tiny_result([2])
    return result._replace(
        question=result.question._replace(method=method), source=("starnet_s1", layer, 3, 4), **changes
    )


METHODS_OF_ONE = Results(
    [
        of_method("gradcam", "stages.2.8 + stages.3.3", fused_layers=2, is_default=True),
        of_method("gradcam", specificities=[None], flaws=["空"]),
        of_method("layercam", specificities=[0.5]),
    ]
)


def test_several_methods_stand_at_their_layers():
    assert repr(METHODS_OF_ONE).split("\n") == [
        "Results（90×60 像素）",
        "预测：正常（33.3%）",
        "目标文本：[2] 感染（余弦相似度 0.300）",
        "图像编码器：starnet_s1，目标层：stages.2.8 + stages.3.3（3×4）：默认：Grad-CAM，两层（文本特异性 0.90）",
        "图像编码器：starnet_s1，目标层：stages.3.3（3×4）：Grad-CAM；LayerCAM（文本特异性 0.50）",
        "警告: Grad-CAM：空",
    ]
    assert str(Results([tiny_result()])) == str(tiny_result()).replace("ImageResult", "Results")


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_at_most_ten_lines_whatever_there_is_to_say(lang):
    """Long texts and names, characters that would break a line, many texts, many warnings, many layers."""
    names = [f"文本 {i}\n{'长' * 3000}\x1b[31m" for i in range(20)]
    result = tiny_result(range(20), names)._replace(
        cautions=["注意\n" * 900] + list("甲乙丙"), name="片\r" * 90, lang=lang
    )
    layers = [of_method("gradcam", f"blocks.{i} + " * 99, lang=lang, cautions=list("甲乙丙丁")) for i in range(9)]
    for thing, counted in ((result, ["另有 18 个目标文本", "另有 2 条警告"]), (Results(layers), ["另有 6 个目标层"])):
        lines = repr(thing).split("\n")
        assert len(lines) == 10 and max(map(len, lines)) <= 500 and not {"\r", "\x1b"} & set("".join(lines))
        if lang == "zh":
            assert set(counted) <= set(lines)


# -- what it draws and saves ------------------------------------------------------------------

ONE, TEXTS, METHODS = tiny_result([2]), tiny_result([0, 2]), METHODS_OF_ONE  # a figure, a grid of texts, of methods


def saved_as_before(result, path, **choice):
    """The files of `save_results`, by name."""
    results = result if isinstance(result, Results) else Results([result])
    return {path.name: path.read_bytes() for path in save_results(results, path, OutputChoice(**choice))}


@pytest.mark.parametrize("result", [ONE, TEXTS, METHODS], ids=["text", "texts", "methods"])
@pytest.mark.parametrize(
    "name, choice",
    [
        ("a.png", {}),
        ("a", {"lang": "en", "overlay_format": "webp"}),
        ("a.jpg", {"heatmap": "layer", "figure": False}),
        ("a.pdf", {"heatmap": "all"}),
        ("a.png", {"overlay": False}),
        ("a.png", {"overlay": False, "figure": False, "heatmap": "layer"}),
    ],
    ids=str,
)
def test_saving_writes_the_files_of_the_command(result, name, choice, tmp_path):
    expected = saved_as_before(result, tmp_path / "expected" / name, **choice)
    paths = result.save(tmp_path / "new" / "folder" / name, **choice)
    assert {path.name: path.read_bytes() for path in paths} == expected
    assert paths == [tmp_path / "new" / "folder" / name for name in expected]  # in their order
    assert set(paths[0].parent.iterdir()) == set(paths)


def test_what_is_saved_and_drawn_is_in_the_results_language(tmp_path):
    english = TEXTS._replace(lang="en")
    for result, lang in ((TEXTS, "zh"), (english, "en")):
        result.save(tmp_path / f"{lang}.svg")
        expected = saved_as_before(TEXTS, tmp_path / "expected.svg", lang=lang)
        assert (tmp_path / f"{lang}.svg").read_bytes() == expected["expected.svg"]
        np.testing.assert_array_equal(result.figure(), TEXTS.figure(lang))
    assert english._repr_png_() != TEXTS._repr_png_() == english._replace(lang="zh")._repr_png_()


@pytest.mark.parametrize("result", [ONE, TEXTS, METHODS], ids=["text", "texts", "methods"])
def test_the_figure_is_the_picture_that_is_saved(result, tmp_path):
    path, *_ = result.save(tmp_path / "a.png", lang="en")
    with Image.open(path) as saved:
        np.testing.assert_array_equal(result.figure("en"), saved)
    figure = result.figure()
    assert isinstance(figure, Image.Image) and (figure.mode, figure.width) == ("RGB", saved.width)


@pytest.mark.parametrize("size, is_wide", [((60, 90), True), ((900, 60), False)])
def test_a_notebook_shows_a_wide_figure_1000_pixels_wide_and_widens_none(size, is_wide):
    for result in (tiny_result([0, 2], size=size), Results([tiny_result([0, 2], size=size)])):
        shown, metadata = result._repr_png_()
        width = Image.open(io.BytesIO(shown)).width
        assert (width > 1000) == is_wide and metadata == {"width": 1000 if is_wide else width}


@pytest.mark.parametrize(
    "choice, problem",
    [
        ({"heatmap": "layers"}, "heatmap 不能是 'layers'；最接近的是 layer；可用 all、layer"),
        ({"overlay_format": "tif"}, "overlay_format 不能是 'tif'；可用 png、jpg、webp"),
        ({"lang": "fr"}, "lang 不能是 'fr'；可用 zh、en"),
        ({"figure": False, "overlay": False}, "没有要写的文件：figure、overlay 和 heatmap 至少要一样"),
    ],
)
def test_a_choice_that_there_is_not_writes_nothing(choice, problem, tmp_path):
    with pytest.raises(InputError) as error:
        ONE.save(tmp_path / "a.png", **choice)
    assert str(error.value) == problem and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="lang 不能是"):
        ONE.figure("fr")
