"""What is drawn and written: overlay, figure, grid, fonts, files."""

import io
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, count
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.textpath import text_to_path
from PIL import Image
from tiny import gradient_picture, tiny_result

import clip_gradcam_visualization as script
from models.errors import InputError, escape_unprintable
from models.explain.faithfulness import Faithfulness
from models.explain.heatmap import COLORMAP_JET, show_cam_on_image
from models.explain.methods import METHODS
from models.explain.question import Question
from models.images.preprocessing import Region
from models.results.colours import overlay_levels
from models.results.curves import COLOURS, dashes, nice_ticks
from models.results.figure import BAR_COLOURS, draw_figure, encode_figure
from models.results.formats import LONGEST_SIDES, RASTER_FORMATS, encode_image, figure_file, overlay_path
from models.results.grid import arrange_tiles, draw_grid
from models.results.page import (
    BLACK,
    SHIPPED_FONT,
    Box,
    Drawing,
    Line,
    Picture,
    Text,
    _font_of,
    box_of,
    draw_pixels,
    drawable,
    font_paths,
    resized,
    text_box,
    text_length,
    wrap_text,
)
from models.results.parts import BODY, HEADING, MARGIN, PAGE_WIDTH, TICK, TO_LABEL, TO_TICKS, WARNING
from models.results.pdf import vector_figure
from models.results.result import ImageResult, Results
from models.results.saving import OutputChoice, encode_outputs, save_results, summary
from models.writing import write_files

# -- overlay ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [(), (cv2.COLORMAP_VIRIDIS, 0.25), (cv2.COLORMAP_HOT, 1), (cv2.COLORMAP_JET, 0)], ids=str
)
def test_overlay_formula(options):
    colormap, alpha = options or (cv2.COLORMAP_JET, 0.4)
    pixels = gradient_picture(20, 30)
    mask = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    colours = cv2.applyColorMap(np.rint(mask * 255).astype(np.uint8), colormap)[..., ::-1] / 255
    overlay = show_cam_on_image(pixels, mask, *options)
    assert overlay.dtype == np.float32 and overlay.shape == (20, 30, 3)
    np.testing.assert_allclose(overlay, alpha * colours + (1 - alpha) * pixels / 255, atol=1e-6)


def test_the_default_colours_are_jet_in_rgb_and_a_small_mask_is_stretched():
    overlay = show_cam_on_image(np.zeros((1, 3, 3), np.uint8), np.array([[0, 0.5, 1]]), alpha=1)
    np.testing.assert_allclose(overlay[0], [(0, 0, 0.5), (0.5, 1, 0.5), (0.5, 0, 0)], atol=0.02)
    assert COLORMAP_JET == cv2.COLORMAP_JET
    overlay = show_cam_on_image(np.zeros((40, 60, 3), np.uint8), np.array([[1.0, 0], [0, 0]]), alpha=1)
    assert overlay.shape == (40, 60, 3)
    np.testing.assert_allclose(overlay[[0, -1], [0, -1]], [(0.5, 0, 0), (0, 0, 0.5)], atol=0.02)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_images_from_0_to_255_and_from_0_to_1(dtype):
    pixels, mask = gradient_picture(8, 8), np.eye(8, dtype=np.float32)
    expected = show_cam_on_image(pixels, mask)
    np.testing.assert_allclose(show_cam_on_image(pixels.astype(dtype), mask), expected, atol=1e-6)
    np.testing.assert_allclose(show_cam_on_image((pixels / 255).astype(np.float32), mask), expected, atol=1e-6)
    dark = np.minimum(pixels, 1)  # integers of 0 and 1 are still of 255
    np.testing.assert_allclose(show_cam_on_image(dark, mask, alpha=0), dark / 255, atol=1e-6)


def test_the_arguments_are_not_changed():
    pixels, mask = gradient_picture(8, 8), np.full((8, 8), 2.0)
    assert show_cam_on_image(pixels, mask).max() <= 1
    np.testing.assert_array_equal(pixels, gradient_picture(8, 8))
    assert (mask == 2).all()


def test_without_opencv_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="OpenCV.*pip install opencv-python-headless"):
        show_cam_on_image(gradient_picture(4, 4), np.zeros((4, 4)))


# -- what is drawn ----------------------------------------------------------------------------


def numbered(count):
    return [f"类别{i}" for i in range(count)]


def probabilities_of(count):
    exponentials = np.exp(np.random.default_rng(0).normal(size=count))
    return (exponentials / exponentials.sum()).astype(np.float32)


def ramp(size):
    return np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)


def image_result(
    names,
    size,
    region,
    targets,
    contrast=0.0,
    dot_product=False,
    texts=None,
    method="gradcam",
    subtract=False,
    **changes,
):
    """What figure and grid read of an image."""
    texts = [f"{name}的描述" for name in names] if texts is None else texts
    values = {
        "pixels": gradient_picture(*size),
        "maps": np.zeros((len(targets), 7, 7), np.float32),
        "question": Question(list(names), texts, None, contrast, method, "dot" if dot_product else "cosine", subtract),
        "probabilities": probabilities_of(len(names)),
        "similarities": np.linspace(-0.2, 0.3, len(names), dtype=np.float32),
        "targets": targets,
        "source": ("starnet_s1", "stages.3.3", 7, 7),
        "flaws": [None] * len(targets),
        "specificities": [None] * len(targets),
        "region": region,
    }
    return ImageResult(**{**values, **changes})


def figure_content(
    names=("类别0", "类别1", "类别2"), size=(60, 90), region=None, target=0, warning=None, specificity=None, **changes
):
    """(result, heatmap, overlay) of a figure; `region`: what the model saw of the image."""
    heatmap = changes.pop("heatmap", ramp(size))
    if region is not None:
        inside, heatmap = heatmap, np.full(size, np.nan, np.float32)
        heatmap[region.pixels(*size)] = inside[region.pixels(*size)]
    overlay = changes.pop("overlay", overlay_levels(gradient_picture(*size), heatmap))
    tested = changes.pop("faithfulness", None)
    changes |= {"flaws": [warning], "specificities": [specificity], "faithfulness": tested and [tested]}
    changes.setdefault("similarities", np.roll(np.linspace(0.3, -0.2, len(names), dtype=np.float32), target))
    return image_result(names, size, region, [target], **changes), heatmap, overlay


def grid_content(names=("类别0", "类别1", "类别2"), size=(60, 90), region=None, targets=None, methods=None, **changes):
    """(results, overlays) of all texts, of the `targets`, or of `methods` that explain text 1; tile i is grey 8 i."""
    targets = [1] * len(methods) if methods else list(range(len(names))) if targets is None else targets
    overlays = [np.full((*size, 3), 8 * number, np.uint8) for number in range(len(targets))]
    by_tile = {"flaws": changes.pop("warnings", None), **{n: changes.pop(n, None) for n in BY_TILE}}
    by_tile = {name: values for name, values in by_tile.items() if values is not None}
    if not methods:
        return Results([image_result(names, size, region, targets, **by_tile, **changes)]), overlays
    parts = [{name: [values[i]] for name, values in by_tile.items()} for i in range(len(targets))]
    results = (
        image_result(names, size, region, [1], method=method, **part, **changes)
        for method, part in zip(methods, parts, strict=True)
    )
    return Results(results), overlays


BY_TILE = ("specificities", "faithfulness")


def figure(lang="zh", **changes):
    return draw_figure(*figure_content(**changes), lang)


def grid(lang="zh", **changes):
    return draw_grid(*grid_content(**changes), lang)


SHARES = np.linspace(0, 1, 21)


def curves_of(deletion=0.2, insertion=0.6, random=0.4, low=-0.1, high=0.5):
    """A measurement whose curves go from one end to the other."""
    falls = (high + (low - high) * SHARES**0.5).astype(np.float32)
    straight = (high + (low - high) * SHARES).astype(np.float32)
    return Faithfulness(deletion, insertion, random, falls, falls[::-1], straight)


# -- what lies on a page ----------------------------------------------------------------------


def items_of(drawing, kind):
    return [item for item in drawing.items if isinstance(item, kind)]


def texts_of(drawing):
    return items_of(drawing, Text)


def words(drawing):
    return "\n".join(text.string for text in texts_of(drawing))


def text_with(drawing, part):
    (text,) = [text for text in texts_of(drawing) if part in text.string]
    return text


def panels(drawing):
    """The pictures of the original, the heatmap and the overlay."""
    original, heatmap, _, overlay = items_of(drawing, Picture)
    return original, heatmap, overlay


def tiles_of(drawing):
    """The pictures of the tiles; the last picture of the page is the colour bar."""
    return items_of(drawing, Picture)[:-1]


def caption_of(drawing, picture):
    """What stands below a picture, up to the next row, line by line."""
    end = min(other.top for other in items_of(drawing, Picture) if other.top > picture.bottom)
    reach, middle = max(picture.right - picture.left, 240) / 2, (picture.left + picture.right) / 2
    texts = [t for t in texts_of(drawing) if picture.bottom < t.y < end]
    texts = [t for t in texts if abs(sum(text_box(t)[0:3:2]) / 2 - middle) <= reach]
    return [text.string for text in sorted(texts, key=lambda text: (text.y, text.x))]


def bars_of(drawing):
    """(colour, width) of each bar, the likeliest first; the marks of the legend are 14 high."""
    boxes = [box for box in items_of(drawing, Box) if box.fill in BAR_COLOURS.values()]
    return [(box.fill, box.right - box.left) for box in boxes if box.bottom - box.top != 14]


def meet(one, other, by=0.0):
    a, b = box_of(one), box_of(other)
    return min(a[2], b[2]) - max(a[0], b[0]) > by and min(a[3], b[3]) - max(a[1], b[1]) > by


def assert_nothing_collides(drawing, over_pictures=()):
    """No text over another or over a picture, but for those `over_pictures`; nothing outside of the page."""
    texts, pictures = texts_of(drawing), items_of(drawing, Picture)
    assert [pair for pair in combinations(texts, 2) if meet(*pair, by=0.5)] == []
    boxes = [(item, box_of(item)) for item in drawing.items]
    assert [i for i, b in boxes if b[0] < 0 or b[1] < 0 or b[2] > drawing.width or b[3] > drawing.height] == []
    covering = {text.string for text in texts for picture in pictures if meet(text, picture)}
    assert covering <= set(over_pictures)


def is_fitted(shown, size):
    """Whether (width, height) has the proportions of (height, width), to the pixel."""
    (width, height), ratio = shown, size[0] / size[1]
    return abs(height - width * ratio) <= 1 or abs(width - height / ratio) <= 1


LONG = "全髋关节置换术后，股骨柄与股骨髓腔骨质之间可见宽度超过2毫米的连续平滑透亮线，外缘伴硬化边，提示股骨柄假体松动。"
NAMES = {
    "one": ["正常"],
    "two": ["正常", "异常"],
    "nine": [f"假体周围{what}" for what in ("感染", "骨折", "松动", "脱位", "磨损", "囊变", "骨化", "下沉", "正常")],
    "thirty": [f"第{i}类假体周围改变" for i in range(30)],
    "long": [LONG, LONG + "二", LONG * 3],
    "ten long": [f"{i}{LONG}" for i in range(12)],
    "English": [f"Loosening of the femoral stem with a radiolucent line, type {i}" for i in range(9)],
    "one word": ["pneumonoultramicroscopicsilicovolcanoconiosis" * 2, "a" * 200, "normal"],
    "capitals": ["WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW", "LOOSENING OF THE STEM", "MMMM"],
}
SIZES = {"3:2": (60, 90), "1:4": (300, 75), "4:1": (75, 300), "1:1": (64, 64)}

# -- figure -----------------------------------------------------------------------------------

WORDS = {
    "zh": (
        *("原始图像", "Grad-CAM热力图", "叠加结果", "预测概率分布"),
        *("相对重要性", "概率（%）", "目标文本：", "图像编码器"),
    ),
    "en": ("Original image", "Grad-CAM heatmap", "Overlay", "Predicted probabilities", "Relative importance", "Target"),
}
FIFTH = {
    "zh": ("忠实度", "删除（越低越好）", "插入（越高越好）", "随机图", "像素（%）", "余弦相似度", "优于随机"),
    "en": ("Faithful", "Deletion (lower", "Insertion (higher", "Random maps", "Pixels", "Cosine", "Beats random"),
}


@pytest.mark.parametrize("lang, other", [("zh", "en"), ("en", "zh")])
def test_the_words_of_four_panels_and_of_five_where_the_heatmap_was_tested(lang, other):
    names = ["正常", "松动", "感染"]
    four, five = (figure(lang, names=names, faithfulness=tested) for tested in (None, curves_of()))
    assert all(word in words(four) for word in (*WORDS[lang], "starnet_s1", "stages.3.3", "7×7"))
    assert not any(word in words(four) for word in (*WORDS[other], *FIFTH[lang]))
    assert "正常" in words(four)  # the users' own words stay
    assert all(word in words(five) for word in FIFTH[lang])
    assert five.height > four.height + 300 and five.width == four.width and not items_of(four, Line)
    for before, after in zip(four.items[:-2], five.items):  # the four panels stay as they are; the footer goes down
        assert before == after if not isinstance(before, Picture) else isinstance(after, Picture)


def test_four_panels_show_what_they_say():
    size = 400, 600  # as large as a panel: shown pixel by pixel
    drawing = figure(size=size, specificity=0.54)
    original, heatmap, bar, overlay = items_of(drawing, Picture)
    np.testing.assert_array_equal(original.pixels, gradient_picture(*size))
    levels = np.rint(ramp(size) * 255).astype(np.uint8)
    np.testing.assert_array_equal(heatmap.pixels, cv2.applyColorMap(levels, cv2.COLORMAP_PLASMA)[..., ::-1])
    np.testing.assert_array_equal(overlay.pixels, overlay_levels(gradient_picture(*size), ramp(size)))
    for word, picture in zip(WORDS["zh"][:3], (original, heatmap, overlay), strict=True):
        title = text_with(drawing, word)
        assert title.x == pytest.approx((picture.left + picture.right) / 2, abs=1) and title.y < picture.top
    assert text_with(drawing, WORDS["zh"][1]).y < text_with(drawing, "类别0的描述").y < heatmap.top
    low, high = text_with(drawing, "0.0"), text_with(drawing, "1.0")
    assert bar.top <= high.y - 8 < bar.top + 10 and bar.bottom - 10 < low.y - 8 <= bar.bottom + 5
    np.testing.assert_array_equal(bar.pixels[[0, -1], 0], [(240, 249, 33), (13, 8, 135)])  # yellow on top
    assert text_with(drawing, "相对重要性").vertical
    source, specificity = text_with(drawing, "starnet_s1"), text_with(drawing, "文本特异性")
    assert source.y < specificity.y and source.x == specificity.x == MARGIN  # no room on the first row of the footer


SHAPES = [(400, 100), (100, 400), (10, 40), (1, 1), (2000, 500), (3, 900)]
THREE_BY_TWO = [(8, 12), (400, 600), (500, 750), (1600, 2400)]


@pytest.mark.parametrize("size", [*SHAPES, *THREE_BY_TWO], ids=str)
def test_pictures_of_every_size_keep_their_proportions_and_lie_where_they_should(size):
    pictures = [picture.pixels for picture in panels(figure(size=size))]
    height, width = pictures[0].shape[:2]
    assert all(pixels.shape == (height, width, 3) for pixels in pictures)
    assert is_fitted((width, height), size) and (width == 600 or height >= 408)
    if size in THREE_BY_TWO:  # each pixel of a panel has the grey of the place in the image that it covers
        assert (height, width) == (400, 600)
        rows, columns = (
            ((np.arange(n) + 0.5) / n * m - 0.5).clip(0, m - 1) * 255 / m for n, m in zip((400, 600), size)
        )
        np.testing.assert_allclose(pictures[0][:, 300, 0], rows, atol=2)
        np.testing.assert_allclose(pictures[0][200, :, 1], columns, atol=2)


def test_the_pixels_of_a_large_image_are_averaged():
    pixels = np.zeros((1200, 1800, 3), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255
    original = panels(figure(size=(1200, 1800), pixels=pixels))[0]
    assert original.pixels.min() >= 110 and original.pixels.max() <= 145


NOT_A_NUMBER = Faithfulness(np.nan, np.nan, np.nan, *[np.full(21, np.nan, np.float32)] * 3)
CROWDED = {
    "source": ("clip-resnet", " + ".join(f"backbone.layer{i}.2" for i in range(12)), 14, 14),
    **{"region": Region(0, 0, 50, 50), "dot_product": True},
}
CROWDS = {
    "few": {},
    "four": CROWDED,
    "independent": {**CROWDED, "independent": True},
    "five": {**CROWDED, "faithfulness": curves_of()},
    "worse": {**CROWDED, "independent": True, "faithfulness": curves_of(-1.234, -0.001, 0.5, -1e-4, 1e-4)},
    "no-numbers": {"faithfulness": NOT_A_NUMBER},
}


@pytest.mark.parametrize(
    "kind, size, lang, crowd",
    [
        ("one", "1:4", "en", "few"), ("two", "3:2", "zh", "few"), ("nine", "1:4", "en", "few"),
        ("thirty", "3:2", "zh", "few"), ("thirty", "4:1", "en", "few"), ("long", "1:1", "zh", "few"),
        ("long", "4:1", "en", "few"), ("ten long", "1:4", "zh", "few"), ("English", "3:2", "en", "few"),
        ("one word", "1:1", "en", "few"), ("capitals", "4:1", "zh", "few"), ("two", "1:4", "en", "four"),
        ("two", "1:4", "zh", "five"), ("two", "4:1", "zh", "worse"), ("nine", "4:1", "en", "five"),
        ("nine", "1:1", "zh", "worse"), ("long", "3:2", "en", "five"), ("long", "1:4", "zh", "independent"),
        ("English", "1:1", "en", "worse"), ("English", "4:1", "en", "five"), ("English", "1:4", "en", "independent"),
        ("one", "3:2", "zh", "no-numbers"),
    ],
)  # fmt: skip
def test_nothing_on_a_figure_lies_over_another_or_outside(kind, size, lang, crowd):
    options = {"target": len(NAMES[kind]) - 1, "specificity": 0.05, "contrast": 1.0, **CROWDS[crowd]}
    drawing = figure(lang, names=NAMES[kind], size=SIZES[size], **options)
    assert_nothing_collides(drawing)
    assert draw_pixels(drawing).shape[0] == drawing.height


@pytest.mark.parametrize(
    "probabilities, lang",
    [([1, 0, 0], "zh"), ([0.5, 0.5, 0], "en"), ([0.999, 0.001, 0], "zh"), ([0, 0.004, 0.996], "en")],
)
def test_percentages_at_the_ends_of_the_scale(probabilities, lang):
    drawing = figure(lang, probabilities=np.float32(probabilities), target=1)
    assert all(f"{100 * p:.1f}%" in words(drawing) for p in probabilities)
    assert_nothing_collides(drawing)


@pytest.mark.parametrize("count, rank", [(1, 0), (2, 0), (10, 9), (11, 0), (15, 14), (30, 0)])
def test_bars_are_the_ten_likeliest_and_the_target_in_order(count, rank):
    names, probabilities = numbered(count), probabilities_of(count)
    order = np.argsort(-probabilities)
    drawing = figure(names=names, target=int(order[rank]))
    order = order[:10] if rank < 10 else [*order[:9], order[rank]]
    ticks = {text.string: text.x for text in texts_of(drawing)}
    pixels_per_percent = (ticks["100"] - ticks["0"]) / 100
    widths = [width for _, width in bars_of(drawing)]
    np.testing.assert_allclose(widths, 100 * probabilities[order] * pixels_per_percent, atol=1.5)
    labels = [text for text in texts_of(drawing) if text.anchor == "r"]
    assert [label.string for label in labels] == [names[i] for i in order]
    assert [label.y for label in labels] == sorted(label.y for label in labels)  # the likeliest on top
    shown = [text.string for text in texts_of(drawing) if text.string.endswith("%")]
    assert shown == [f"{100 * probabilities[i]:.1f}%" for i in order]
    title = text_with(drawing, "预测概率分布").string
    assert ("10" in title and str(count) in title) == (count > 10)


@pytest.mark.parametrize("target, marks", [(0, ["预测且为目标"]), (1, ["预测", "目标"])])
def test_prediction_and_target_are_marked(target, marks):
    drawing = figure(probabilities=np.float32([0.7, 0.2, 0.1]), target=target)
    assert [text.string for text in texts_of(drawing) if text.string in ("预测且为目标", "预测", "目标")][::-1] == marks
    colours = [colour for colour, _ in bars_of(drawing)]
    assert colours[0] != colours[1] and colours[0] != colours[2]
    assert (colours[1] == colours[2]) == (target == 0)


ODD_TEXTS = (
    *("价格 $5 与 $6$", "$x^2$", r"\frac$a$", "a$", "x" * 21 + "$$" * 9, "100% & <b>"),
    *("骨折🦴 plus é ß Ω", "\u202eabc", "𠀀𪚥", "tab\tnew\nline", "אבג", "\x00\ufffe"),
)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_any_text_is_drawn_as_it_is(text):
    drawing = figure(names=[text, "正常"], texts=[text, "正常"], warning=text)
    shown = "".join(item.string for item in texts_of(drawing) if item.anchor == "r")
    title = "".join(item.string for item in texts_of(drawing) if item.size == HEADING)
    for string in (shown, title.partition("目标文本：")[2]):
        assert all((character in string) == (character in escape_unprintable(text)) for character in "\\$&<>")
    assert all(_font_of(c) is not None for item in texts_of(drawing) for c in item.string)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that it lacks
        for suffix in (".png", ".svg"):
            encode_figure(drawing, suffix)


def test_characters_that_no_font_has_become_question_marks(monkeypatch):
    assert drawable("髋🦴a") == "髋?a" and drawable(" 骨折\n🦴") == "骨折\\n?"
    tables = [FT2Font(path).get_charmap() for path in font_paths()]  # glyphs are told by their shape, as by these
    assert len(tables) == 2
    for code in (*range(0x20, 0x2700, 3), *range(0x4E00, 0x9FFF, 97), 0x20000, 0x1F9B4):
        expected = next((index for index, table in enumerate(tables) if code in table), None)
        assert _font_of(chr(code)) == expected, hex(code)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no matplotlib: one font is left
    assert font_paths.__wrapped__() == (str(SHIPPED_FONT),)


@pytest.mark.parametrize("size, why", [("3:2", "梯度为零"), ("1:4", LONG), ("4:1", LONG), ("1:1", "梯度为零")])
def test_a_flat_map_says_why_on_the_figure(size, why):
    message, size = f"热力图为空：{why}", SIZES[size]
    drawing = figure(size=size, heatmap=np.zeros(size, np.float32), warning=message)
    lines = [text for text in texts_of(drawing) if text.size == WARNING]
    assert message in "".join(line.string for line in lines)
    assert_nothing_collides(drawing, [line.string for line in lines])
    (frame,) = [box for box in items_of(drawing, Box) if box.outline]
    heatmap = panels(drawing)[1]
    assert abs((frame.top + frame.bottom) - (heatmap.top + heatmap.bottom)) <= 2
    assert [text for text in texts_of(drawing) if meet(text, frame)] == lines


@pytest.mark.parametrize(
    "text, columns, lines, expected",
    [
        ("正常", 10, 2, ["正常"]), ("股骨柄松动", 6, 2, ["股骨柄", "松动"]), ("股骨柄松动", 6, 1, ["股骨…"]),
        ("abcdefghij", 4, 3, ["abcd", "efgh", "ij"]), ("abcdefghij", 4, 2, ["abcd", "efg…"]),
        ("hip stem loose", 9, 2, ["hip stem", "loose"]), ("（松动）正常", 6, 3, ["（松", "动）正", "常"]),
        ("股骨，松动", 4, 3, ["股", "骨，", "松动"]), ("", 4, 2, [""]),
    ],
)  # fmt: skip
def test_wrapping(text, columns, lines, expected):
    assert wrap_text(text, columns, lines) == expected


@pytest.mark.parametrize("text", [LONG * 3, "Loosening of the femoral stem " * 5, "WWWWWWWW" * 9, "iiii" * 99])
def test_wrapping_by_the_length_of_the_letters(text):
    measure = lambda part: text_length(part, 15)  # noqa: E731
    rows = wrap_text(text, 200, 3, measure)
    assert len(rows) == 3 and all(measure(row) <= 200 for row in rows) and rows[-1].endswith("…")
    assert measure(rows[0]) > 100


# -- fifth panel ------------------------------------------------------------------------------


def lines_of(drawing, kind):
    return [line for line in items_of(drawing, Line) if line.colour == COLOURS[kind]]


@pytest.mark.parametrize("low, high", [(-0.1, 0.5), (0.21, 0.29), (0.0, 0.0), (-30.0, -29.0), (0.1, 7000.0)])
def test_curves_lie_where_their_axes_say(low, high):
    tested = curves_of(low=low, high=high)
    drawing = figure(faithfulness=tested)
    axis = text_with(drawing, "隐藏或显示的像素")
    bottom = axis.y - TO_LABEL
    ticks = [t for t in texts_of(drawing) if t.anchor == "r" and t.x < axis.x and t.y > bottom - 330]
    assert 2 <= len(ticks) <= 8
    scale = np.polyfit([float(t.string) for t in ticks], [t.y for t in ticks], 1)
    across = [t for t in texts_of(drawing) if t.y == bottom + TO_TICKS]
    assert [t.string for t in across] == ["0", "20", "40", "60", "80", "100"]
    for kind, curve in (("deletion", tested.deletion_curve), ("insertion", tested.insertion_curve)):
        (line,) = [line for line in lines_of(drawing, kind) if len(line.points) > 2]  # its sample in the table has two
        x, y = np.array(line.points).T
        np.testing.assert_allclose(x, np.interp(SHARES, np.linspace(0, 1, 6), [t.x for t in across]), atol=1.5)
        np.testing.assert_allclose(
            y, np.polyval(scale, curve) - 0.35 * TICK, atol=2 + 0.01 * abs(scale[0]) * (high - low)
        )
        assert (y >= bottom - 320).all() and (y <= bottom).all()
        # random maps are dashed: hidden from the whole image on, shown from none on
        assert line.points[0] in [dash.points[0] for dash in lines_of(drawing, "random")]
    lengths = [np.hypot(*np.subtract(*dash.points[:: len(dash.points) - 1])) for dash in lines_of(drawing, "random")]
    assert len(lengths) > 60 and max(lengths) < 10


def test_the_areas_stand_beside_the_name_and_the_colour_of_their_curve():
    drawing = figure(faithfulness=curves_of(0.2, 0.35, 0.4))
    rows = {"deletion": ["0.200", "+0.200"], "insertion": ["0.350", "-0.050"], "random": ["0.400"]}
    for (kind, row), name in zip(rows.items(), FIFTH["zh"][1:4], strict=True):
        (y,) = [t.y for t in texts_of(drawing) if t.string == name]
        assert [t.string for t in texts_of(drawing) if t.y == y and t.anchor == "r"] == row
        assert [line for line in lines_of(drawing, kind) if abs(line.points[0][1] - y) < 9]
    assert text_with(drawing, "-0.050").colour == RED and text_with(drawing, "+0.200").colour == BLACK
    assert "-0.000" not in words(figure(faithfulness=curves_of(0.4, 0.4 - 1e-6, 0.4)))


@pytest.mark.parametrize("contrast, less", [(0.0, ""), (0.6, "（对比）")])
@pytest.mark.parametrize("dot_product", [False, True])
def test_the_axis_says_what_is_scored(dot_product, contrast, less):
    """The cosine, whatever is explained: curves of two settings can be compared."""
    drawing = figure(faithfulness=curves_of(), dot_product=dot_product, contrast=contrast)
    assert [text.string for text in texts_of(drawing) if text.vertical][-1] == "余弦相似度" + less


ROUND = {
    (0, 1): [0, 0.2, 0.4, 0.6, 0.8, 1],
    (-0.1, 0.5): [-0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.5],
    (0.23, 0.27): [0.23, 0.24, 0.25, 0.26, 0.27],
    (-12, 31): [-20, -10, 0, 10, 20, 30, 40],
}
EXTREME = [(0, 0), (5, 5), (-3e-9, 2e-9), (1e6, 1e6 + 1), (0.999, 1.001), (-7, 1e5)]


@pytest.mark.parametrize("low, high", [*ROUND, *EXTREME])
def test_ticks_are_round_numbers_that_enclose_what_is_drawn(low, high):
    ticks = nice_ticks(low, high)
    assert ticks == pytest.approx(ROUND.get((low, high), ticks))
    assert 2 <= len(ticks) <= 8 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_dashes_follow_the_line_around_its_corners():
    cut = dashes([(0, 0), (10, 0), (10, 10)], 8, 4)
    assert cut == [[(0, 0), (8, 0)], [(10, 2), (10, 10)]]
    assert dashes([(0, 0), (10, 0), (10, 10)], 12, 4)[0] == [(0, 0), (10, 0), (10, 2)]


# -- what figure and grid say -----------------------------------------------------------------


@pytest.mark.parametrize("lang, form, remark", [("zh", "{}热力图", "不看文本"), ("en", "{} heatmap", "knows no text")])
def test_the_title_names_the_method(lang, form, remark):
    for method, row in METHODS.items():
        title = text_with(figure(lang, method=method), form.format(row.label)).string
        assert (title != form.format(row.label)) == (remark in title) == (not row.knows_text)


GREY, RED = "#555555", "#c0392b"
FOUR_METHODS = ["gradcam", "eigencam", "legrad", "rollout"]  # two know no text and do not count as unspecific
ON_BOTH = [
    ({"dot_product": True}, "未归一化的点积", GREY),
    ({"size": (60, 80), "region": Region(0, 0, 60, 45)}, "模型只看到图像的 56%", GREY),  # 56.25
    ({"size": (300, 90), "region": Region(0, 0, 90, 299)}, "模型只看到图像的 99%", GREY),  # 99.7: never 100
    ({"independent": True}, "总和不必为 100", None),
]
ON_THE_FIGURE = [
    ({"contrast": 1.0}, "对比目标文本：类别0", BLACK),
    ({"specificity": 1.14}, "文本特异性 1.14（", GREY),
    ({"specificity": 0.051, "lang": "en"}, "Text specificity 0.05 (", GREY),
    ({"specificity": 0.05, "lang": "en"}, "hardly depends", RED),
    ({"specificity": 0.0}, "热力图几乎不随文本变化", RED),
]
ON_THE_GRID = [
    ({"contrast": 1.0}, "（对比：", BLACK),
    ({"method": "legrad"}, "各文本的 LeGrad热力图", BLACK),
    ({"faithfulness": [curves_of()] * 3}, "随机图", GREY),  # what the brackets after an area mean
    ({"specificities": [None, 0.9, 0.7]}, "文本特异性（1 表示与其他文本的热力图不相关，0 表示", GREY),
    ({"specificities": [None, 0.9, 0.7], "lang": "en"}, "Text specificity (1: unrelated", GREY),
    ({"specificities": [0.05, 0.051, None]}, "1 个文本的热力图几乎不随文本变化", RED),
    ({"methods": FOUR_METHODS, "specificities": [0.9, 0.0, 0.8, 0.0]}, "文本特异性（", GREY),
    ({"methods": FOUR_METHODS, "specificities": [0.04, 0.0, 0.8, 0.0]}, "1 种方法的热力图几乎不随文本变化", RED),
]
SAID = [(figure, ON_BOTH + ON_THE_FIGURE), (grid, ON_BOTH + ON_THE_GRID)]


@pytest.mark.parametrize("draw, options, said, colour", [(draw, *row) for draw, rows in SAID for row in rows])
def test_what_the_reader_must_know_is_said_once_and_only_then(draw, options, said, colour):
    plain, drawing = draw(options.get("lang", "zh")), draw(**options)
    assert said not in words(plain) and words(drawing).count(said) == 1
    assert text_with(drawing, said).colour == colour or colour is None
    assert ("几乎" in words(drawing) or "hardly" in words(drawing)) == (colour == RED)


def test_what_the_model_did_not_see_is_grey():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heatmap = panels(figure(size=(400, 600), region=Region(100, 0, 600, 380)))[1]
    whole = panels(figure(size=(400, 600)))[1]
    assert (heatmap.pixels[:, :100] == 230).all() and (heatmap.pixels[380:] == 230).all()
    np.testing.assert_array_equal(heatmap.pixels[:380, 100:], whole.pixels[:380, 100:])


@pytest.mark.parametrize("height, width", [(90, 60), (1200, 1800)])
def test_the_edge_of_what_was_seen_stays_an_edge_at_every_size(height, width):
    heatmap = panels(figure(size=(height, width), region=Region(0, height // 2, width, height)))[1].pixels
    grey = (heatmap == 230).all(2)
    middle = len(grey) // 2
    assert grey[: middle - 1].all() and not grey[middle + 1 + 2 * len(grey) // height :].any()


@pytest.mark.parametrize("count, lang", [(1, "zh"), (3, "en"), (12, "zh"), (12, "en")])
@pytest.mark.parametrize("layer, between", [("encoder.layers.{}.layer_norm1", " + "), ("backbone.layers.{}.", "")])
def test_long_layers_stay_on_the_page(layer, between, count, lang):
    layers = between.join(layer.format(-i) for i in range(1, count + 1))
    options = {"source": ("siglip2-vit", layers, 16, 16), "dot_product": True, "region": Region(0, 0, 90, 30)}
    for drawing in (figure(lang, **options, specificity=0.04), grid(lang, **options, specificities=[0.04] * 3)):
        assert_nothing_collides(drawing)
        assert layer.format(-1) in words(drawing) and "0.04" in words(drawing)


# -- grid -------------------------------------------------------------------------------------


GRID_WORDS = {
    "zh": ("热力图为空", "各图同一色标，可以比较", "以自身最大值为 1"),
    "en": ("Empty heatmap", "all maps share one scale and can be compared", "each map's own maximum"),
}


@pytest.mark.parametrize(
    "kind, size, lang, crowd",
    [
        ("one", "1:4", "en", "few"), ("two", "3:2", "en", "few"), ("nine", "4:1", "zh", "few"),
        ("thirty", "1:4", "en", "few"), ("thirty", "4:1", "en", "few"), ("thirty", "3:2", "en", "few"),
        ("long", "1:1", "zh", "few"), ("ten long", "1:1", "zh", "few"), ("ten long", "1:4", "zh", "few"),
        ("English", "4:1", "en", "few"), ("one word", "3:2", "zh", "few"), ("capitals", "1:4", "en", "few"),
        ("two", "3:2", "zh", "texts"), ("nine", "4:1", "en", "texts"), ("long", "1:4", "zh", "texts"),
        ("capitals", "1:1", "en", "texts"), ("two", "1:4", "en", "methods"), ("nine", "1:1", "zh", "methods"),
        ("long", "3:2", "en", "methods"), ("capitals", "4:1", "zh", "methods"),
    ],
)  # fmt: skip
def test_nothing_on_a_grid_lies_over_another_or_outside(kind, size, lang, crowd):
    """Nor do the message of the last tile, which has no map, and what the colour bar stands for."""
    methods, (empty, one_scale, own_scale) = METHODS if crowd == "methods" else None, GRID_WORDS[lang]
    count = len(methods or NAMES[kind])
    options = {"warnings": [*[None] * (count - 1), "热力图为空：梯度为零，换一层"], "specificities": [0.05] * count}
    if crowd != "few":
        tested = [curves_of(-0.123, 0.456, -1.2), *[None] * (count - 2), curves_of()]
        options |= {"faithfulness": tested, "region": Region(0, 0, 50, 50), "dot_product": True, "independent": True}
    drawing = grid(lang, names=NAMES[kind], size=SIZES[size], methods=methods, contrast=1.0, **options)
    assert_nothing_collides(drawing, [empty])
    assert drawing.width <= PAGE_WIDTH and min(text.size for text in texts_of(drawing)) >= BODY  # as on the figure
    message, tile, bar = text_with(drawing, empty), tiles_of(drawing)[-1], items_of(drawing, Picture)[-1]
    assert tile.left < message.x < tile.right and tile.top < message.y < tile.bottom
    label = [text for text in texts_of(drawing) if bar.bottom + TO_TICKS < text.y <= bar.bottom + TO_LABEL + 60]
    label = " ".join(text.string for text in sorted(label, key=lambda text: text.y) if text.anchor == "m")
    assert (own_scale if methods else one_scale) in label and (one_scale in label) == (methods is None)
    np.testing.assert_array_equal(bar.pixels[0, [0, -1]], [(13, 8, 135), (240, 249, 33)])


AREAS = {"zh": ("删除 {}（{}）", "插入 {}（{}）"), "en": ("Deletion {} ({})", "Insertion {} ({})")}
SPECIFICITY = {"zh": "文本特异性 {}", "en": "Text specificity {}"}
MEASURED = {
    "faithfulness": [curves_of(0.123, 0.456, 0.2), None, curves_of(0.3, 0.1, 0.2), None],
    "specificities": [0.834, 1.14, None, 0.001],
}
AREAS_SHOWN = [[("0.123", "+0.077"), ("0.456", "+0.256")], [], [("0.300", "-0.100"), ("0.100", "-0.100")], []]
SPECIFICITIES_SHOWN = [["0.83"], ["1.14"], [], ["0.00"]]


def measured(count):
    """MEASURED of `count` tiles, over and over."""
    return {name: (values * count)[:count] for name, values in MEASURED.items()}


def measured_in(lang, number, knows_text=True):
    """What the caption of a tile says of MEASURED; a map that knows no text has no specificity."""
    specificity = [SPECIFICITY[lang].format(value) for value in SPECIFICITIES_SHOWN[number % 4] if knows_text]
    return specificity + [form.format(*area) for form, area in zip(AREAS[lang], AREAS_SHOWN[number % 4])]


@pytest.mark.parametrize("kind, lang", [("two", "zh"), ("nine", "en"), ("thirty", "zh")])
def test_each_tile_shows_its_text(kind, lang):
    names, targets = NAMES[kind], list(range(len(NAMES[kind])))[::-1]
    probabilities = probabilities_of(len(names))
    drawing = grid(lang, names=names, targets=targets, **measured(len(names)))
    original, *tiles = tiles_of(drawing)
    height, width = original.pixels.shape[:2]
    np.testing.assert_array_equal(original.pixels, resized(gradient_picture(), width, height))
    assert {"zh": "原始图像", "en": "Original image"}[lang] in caption_of(drawing, original)
    for number, (picture, target) in enumerate(zip(tiles, targets, strict=True)):
        assert (picture.pixels == 8 * number).all() and picture.pixels.shape == original.pixels.shape
        name, similarity, probability, *rest = caption_of(drawing, picture)
        assert name == names[target] and similarity.endswith(f" {0.5 * target / (len(names) - 1) - 0.2:.3f}")
        assert probability.endswith(f" {probabilities[target]:.1%}")
        predicted = int(target == probabilities.argmax())
        assert rest[predicted:] == measured_in(lang, number)
    places = [(picture.top, picture.left) for picture in (original, *tiles)]
    assert places == sorted(places)  # in the order asked


@pytest.mark.parametrize("lang, mark", [("zh", "预测"), ("en", "Predicted")])
def test_the_predicted_texts_tile_is_marked(lang, mark):
    best = int(probabilities_of(9).argmax())
    drawing = grid(lang, names=NAMES["nine"])
    original, *tiles = tiles_of(drawing)
    assert [i for i, tile in enumerate(tiles) if mark in caption_of(drawing, tile)] == [best]
    tile, boxes = tiles[best], [box for box in items_of(drawing, Box) if box.fill == BAR_COLOURS["prediction"]]
    (frame,) = [box for box in boxes if box.left < tile.left and box.right > tile.right and box.top < tile.top]
    assert len(boxes) == 2  # the frame and the box of the word
    assert drawing.items.index(frame) < next(i for i, item in enumerate(drawing.items) if item is tile)
    others = grid(lang, names=NAMES["nine"], targets=[i for i in range(9) if i != best])
    assert not [box for box in items_of(others, Box) if box.fill == BAR_COLOURS["prediction"]]
    assert any(NAMES["nine"][best] in line for line in caption_of(others, tiles_of(others)[0]))


@pytest.mark.parametrize("size", [(800, 800), (1000, 800), (1200, 300), (300, 1200), (3, 900), (900, 3)], ids=str)
@pytest.mark.parametrize("count", [2, 3, 10, 31, 101])
def test_tiles_are_as_large_as_the_page_allows(count, size):
    tiles = arrange_tiles(count, *size[::-1])
    assert 1 <= tiles.columns <= count
    assert tiles.width >= tiles.picture[0] and tiles.height >= tiles.picture[1]
    assert 2 * MARGIN + tiles.columns * (tiles.width + 24) - 24 <= PAGE_WIDTH
    assert is_fitted(tiles.picture, size)
    if 1 / 4 <= size[1] / size[0] <= 4 and count <= 31:
        assert max(tiles.picture) >= 240
    if count <= 3:
        assert tiles.columns == count and (tiles.picture[0] == 464 or tiles.picture[1] == 768)


METHOD_WORDS = {
    "zh": ("各方法的热力图", "目标文本：松动", "不看文本"),
    "en": ("Heatmap of each method", "Target text: 松动", "Knows no text"),
}


@pytest.mark.parametrize("lang", METHOD_WORDS)
def test_each_method_has_its_tile(lang):
    drawing = grid(lang, names=["正常", "松动", "感染"], methods=METHODS, **measured(len(METHODS)))
    assert all(word in words(drawing) for word in METHOD_WORDS[lang])
    original, *tiles = tiles_of(drawing)
    for number, (picture, row) in enumerate(zip(tiles, METHODS.values(), strict=True)):
        assert (picture.pixels == 8 * number).all()
        remark = [METHOD_WORDS[lang][2]] if not row.knows_text else []
        assert caption_of(drawing, picture) == [row.label, *remark, *measured_in(lang, number, row.knows_text)]
    similarity, probability = caption_of(drawing, original)[-2:]  # of the one text that all tiles explain
    assert similarity.endswith(" 0.050") and probability.endswith(f" {probabilities_of(3)[1]:.1%}")
    assert not [box for box in items_of(drawing, Box) if box.fill == BAR_COLOURS["prediction"]]


def test_command_and_figure_say_one_share_of_the_image():
    """29 of 100 columns: 100 * 0.29 is a little less than 29."""
    result = tiny_result(size=(100, 100))._replace(region=Region(0, 0, 29, 100))
    files = encode_outputs(Results([result]), "a.png", OutputChoice(figure=False))
    assert any("图像的 29%" in line for line in summary(Results([result]), files))
    assert "图像的 29%" in words(draw_figure(result, result.heatmap, result.overlay))


# -- pixels and vectors -----------------------------------------------------------------------


def vectors(drawing):
    """The figure that goes into PDF, drawn by matplotlib's own rasteriser."""
    canvas = FigureCanvasAgg(vector_figure(drawing))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def test_a_box_covers_its_pixels_and_no_others():
    page = draw_pixels(Drawing(20, 10, [Box(3, 2, 9, 7, "#c0392b"), Box(12, 2, 18, 7, "#ffffff", "#000000")]))
    inside = np.zeros((10, 20), bool)
    inside[2:7, 3:9] = True
    assert (page[:, :10][inside[:, :10]] == (0xC0, 0x39, 0x2B)).all() and (page[:, :10][~inside[:, :10]] == 255).all()
    assert (page[2, 12:18] == 0).all() and (page[6, 12:18] == 0).all() and (page[3:6, 13:17] == 255).all()


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("string, anchor", [("髋臼杯", "l"), ("Wagy", "m"), ("é 髋 ∛ א", "r"), ("Wagy", "l")])
def test_letters_lie_within_the_box_that_layout_reckons_with(string, anchor, vertical):
    text = Text(150, 160, string, 20, anchor, vertical=vertical)
    ink = (draw_pixels(Drawing(300, 320, [text])) < 255).any(axis=2)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    left, top, right, bottom = text_box(text)
    assert left - 2 <= columns[0] and columns[-1] <= right + 2 and top - 2 <= rows[0] and rows[-1] <= bottom + 2
    assert np.ptp(rows if vertical else columns) > 0.8 * text_length(string, 20)


@pytest.mark.parametrize("render, tolerance", [(draw_pixels, 0.05), (vectors, 1.05)])
def test_a_line_inks_its_width_and_is_antialiased(render, tolerance):
    lines = [Line([(5, 10.5), (25, 10.5)], "#ff0000", 3), Line([(5, 27), (30, 17)], "#0000ff", 2)]
    page = render(Drawing(40, 30, lines))
    red = (255 - page[:14, 7:23, 1].astype(float)) / 255
    np.testing.assert_allclose(red.sum(0), 3, atol=0.05)
    np.testing.assert_allclose(np.arange(14) @ red / red.sum(0), 10, atol=tolerance)
    blue = (255 - page[13:, :, 0].astype(float)) / 255
    assert blue.sum() == pytest.approx(2 * np.hypot(25, 10), rel=0.12)
    assert ((blue > 0.1) & (blue < 0.9)).sum() > 20


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_pixels_and_vectors_show_what_was_laid_out(lang):
    options = {"names": ["正常🦴", "Loosening of the stem, type é ∛", "感染"], "faithfulness": curves_of()}
    drawing = figure(lang, **options, warning="梯度为零", specificity=0.05)
    page = draw_pixels(drawing)
    assert page.shape == (drawing.height, drawing.width, 3) and page.dtype == np.uint8
    for p in items_of(drawing, Picture)[:1] + items_of(drawing, Picture)[2:]:  # a message covers the heatmap
        np.testing.assert_array_equal(page[p.top : p.bottom, p.left : p.right], p.pixels)
    pages = page.astype(int), vectors(drawing).astype(int)
    assert pages[0].shape == pages[1].shape and np.abs(pages[0] - pages[1]).mean() < 1.5
    for text in texts_of(drawing):  # as much ink in the same place
        left, top, right, bottom = (round(edge) for edge in text_box(text))
        ink = [255 - page[top - 2 : bottom + 2, left - 2 : right + 2].mean() for page in pages]
        assert ink[1] == pytest.approx(ink[0], rel=0.2, abs=1), text


@pytest.mark.parametrize("kind, lang", [("English", "en"), ("two", "zh")])
def test_outlines_are_as_long_as_layout_reckons(kind, lang):
    for text in texts_of(figure(lang, names=NAMES[kind])):
        font = FontProperties(fname=str(SHIPPED_FONT), size=text.size)
        length, _, _ = text_to_path.get_text_width_height_descent(text.string, font, False)
        assert length == pytest.approx(text_length(text.string, text.size), rel=0.05)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".svg", ".pdf"])
def test_the_same_figure_gives_the_same_bytes_from_every_thread_and_changes_no_setting(suffix):
    def draw(number):
        return encode_figure(figure(target=number, names=NAMES["nine"], faithfulness=tested[number]), suffix)

    tested, before = [None, None, curves_of()], dict(matplotlib.rcParams)
    once = [draw(number) for number in range(3)]
    assert len(set(once)) == len(once) and dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(draw, [0, 1, 2] * 2)) == once * 2


def test_pixels_are_drawn_without_matplotlib(tmp_path):
    (tmp_path / "content").write_bytes(pickle.dumps(figure_content(names=["骨折 א"], texts=["松动"])))
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from models.results.figure import draw_figure, encode_figure\n"
        "content = pickle.loads(Path('content').read_bytes())\n"
        "for suffix in ('.png', '.jpg', '.tif', '.webp', '.svg'):\n"
        "    encode_figure(draw_figure(*content), suffix)\n"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'torch')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(script.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


# -- names and files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, path, overlay",
    [
        ("a.png", "a.png", "a_overlay.png"), ("a", "a.png", "a_overlay.png"), ("a.pdf", "a.pdf", "a_overlay.png"),
        ("v1.2", "v1.2.png", "v1.2_overlay.png"), ("v1.2.png", "v1.2.png", "v1.2_overlay.png"),
        ("a.SVG", "a.SVG", "a_overlay.png"), ("a.jpg", "a.jpg", "a_overlay.jpg"),
        ("a.JPEG", "a.JPEG", "a_overlay.JPEG"), ("a.tiff", "a.tiff", "a_overlay.tiff"),
        ("a.webp", "a.webp", "a_overlay.webp"), ("d.x/a", "d.x/a.png", "d.x/a_overlay.png"),
        (".hidden", ".hidden.png", ".hidden_overlay.png"), ("结果 一.图", "结果 一.图.png", "结果 一.图_overlay.png"),
    ],
)  # fmt: skip
def test_output_names(tmp_path, asked, path, overlay):
    for form in (Path, str):
        assert figure_file(form(tmp_path / asked)) == tmp_path / path
    assert overlay_path(tmp_path / path) == tmp_path / overlay
    of_the_first_text = overlay.replace("_overlay", "_overlay_0")
    assert overlay_path(tmp_path / path, 0) == tmp_path / of_the_first_text


SIGNATURES = {
    ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".pdf": b"%PDF", ".svg": b"<?xml", ".tif": b"II*\0", ".webp": b"RIFF",
}  # fmt: skip


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_both_files_in_every_format(tmp_path, suffix):
    result = tiny_result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path, overlay = save_results(Results([result]), tmp_path / "新 文件夹" / f"结果 1{suffix}")
    assert path.read_bytes().startswith(SIGNATURES[suffix])
    assert set(path.parent.iterdir()) == {path, overlay}
    with Image.open(overlay) as image:
        assert image.size == (90, 60)
        error = np.abs(np.asarray(image.convert("RGB")) - 255 * result.overlay)
    assert error.max() <= 1.5 if suffix != ".jpg" else error.mean() < 6


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_an_image_too_long_for_a_format_is_one_line(capfd, suffix):
    """And the longest that fits is written; TIFF has no limit."""
    longest = LONGEST_SIDES.get(RASTER_FORMATS[suffix], 70_000)
    data = encode_image(np.full((1, longest, 3), 9, np.uint8), suffix)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (longest, 1) and image.getpixel((longest - 1, 0)) == (9, 9, 9)
    if suffix != ".tif":
        for shape in ((1, longest + 1, 3), (longest + 1, 1, 3)):
            with pytest.raises(InputError, match=f"至多 {longest} 像素.*{shape[1]}×{shape[0]}.*换一种格式"):
                encode_image(np.zeros(shape, np.uint8), suffix)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("targets", [[1], [2, 0]])
def test_the_figure_shows_what_the_overlay_files_show(monkeypatch, targets):
    drawings = []
    monkeypatch.setattr("models.results.saving.encode_figure", lambda drawing, *_: drawings.append(drawing) or b"")
    files = encode_outputs(Results([tiny_result(targets, size=(300, 450))]), "a.png", OutputChoice())
    pictures = [picture.pixels for picture in items_of(drawings[0], Picture)]
    shown = pictures[-1:] if len(targets) == 1 else pictures[1 : 1 + len(targets)]
    for path, picture in zip(files.overlays, shown, strict=True):
        overlay = np.asarray(Image.open(io.BytesIO(files.contents[path])))
        expected = cv2.resize(overlay, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(picture.astype(float) - expected).mean() < 2


@pytest.mark.parametrize("has_filters", [True, False], ids=["this OpenCV", "an older one"])
@pytest.mark.parametrize("suffix, strategy", [(".png", "RLE"), (".PNG", "DEFAULT")])
def test_encoded_pixels_come_back(monkeypatch, has_filters, suffix, strategy):
    if not has_filters:
        monkeypatch.delattr(cv2, "IMWRITE_PNG_FILTER", raising=False)
    data = encode_image(gradient_picture(), suffix, strategy)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), gradient_picture())


def snapshot(folder):
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_durable_files_are_on_the_disk_before_they_are_moved(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append(os.fstat(handle).st_size) or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("moved") or replace(*paths))
    write_files({tmp_path / "a.png": b"1", tmp_path / "b.png": b"22"}, durable=True)
    assert steps == [1, 2, "moved", "moved"] and snapshot(tmp_path) == {"a.png": b"1", "b.png": b"22"}
    steps.clear()
    write_files({tmp_path / "a.png": b"333", tmp_path / "b.png": b"4"})  # in the place of older ones
    assert steps == ["moved", "moved"] and snapshot(tmp_path) == {"a.png": b"333", "b.png": b"4"}


NO_SPACE = OSError(28, "No space left on device")


class FullDisk(io.FileIO):
    """A file that takes one byte."""

    def write(self, data):
        super().write(data[:1])
        raise NO_SPACE


FAILURES = [
    (tempfile, "mkstemp", NO_SPACE),
    (os, "fdopen", NO_SPACE),
    (os, "fdopen", FullDisk),
    (os, "replace", NO_SPACE),
]


@pytest.mark.parametrize("folder", ["here", "new/deep"])
@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("module, name, failure", [*FAILURES, (os, "replace", KeyboardInterrupt())])
def test_when_one_file_fails_nothing_is_left(tmp_path, monkeypatch, module, name, failure, call, folder):
    def fails(*args, **kwargs):
        if next(calls) != call:
            return genuine(*args, **kwargs)
        if failure is FullDisk:
            return FullDisk(*args)
        raise failure

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "other.txt").write_text("stays")
    before, genuine, calls = snapshot(tmp_path), getattr(module, name), count(1)
    monkeypatch.setattr(module, name, fails)
    with pytest.raises((InputError, KeyboardInterrupt)) as raised:
        write_files({tmp_path / folder / "a.png": b"123", tmp_path / folder / "a_overlay.png": b"456"})
    expected = "KeyboardInterrupt" if isinstance(failure, KeyboardInterrupt) else "InputError.*无法写入.*No space left"
    assert re.match(expected, repr(raised.value)) and snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["a.png", "a_overlay.png"])
def test_a_folder_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=name):
        save_results(Results([tiny_result()]), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_results_have_the_permissions_of_other_files(tmp_path, monkeypatch):
    (tmp_path / "plain").write_bytes(b"")
    # the umask is of the whole process: a file that another thread makes meanwhile would be open to all
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask set"))
    write_files({tmp_path / "a.png": b"1"})
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode
