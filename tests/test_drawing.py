"""Room 4 and what it draws with: overlay, figure, grid, fonts, files."""

import os
import subprocess
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tiny import gradient_picture, tiny_result

import clip_gradcam_visualization as script
from models.errors import InputError
from models.explain.faithfulness import Faithfulness
from models.explain.heatmap import COLORMAP_JET, blend, show_cam_on_image
from models.explain.methods import METHOD_LABELS, TEXT_FREE
from models.results import page as drawing_module
from models.results import parts as layout
from models.results import saving as outputs
from models.results.curves import COLOURS, dashes, nice_ticks
from models.results.figure import BAR_COLOURS, FigureContent, draw_figure, encode_figure
from models.results.formats import encode_image, output_paths, overlay_path
from models.results.grid import GridContent, arrange_tiles, draw_grid
from models.results.page import (
    SHIPPED_FONT,
    Box,
    Drawing,
    Line,
    Picture,
    Text,
    draw_pixels,
    drawable,
    text_box,
    text_length,
    wrap_text,
)
from models.results.result import Results
from models.results.saving import OutputChoice, encode_outputs, save_results
from models.writing import write_files

# -- overlay ----------------------------------------------------------------------------------


def test_overlay_formula():
    pixels = gradient_picture(20, 30)
    mask = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
    colours = cv2.applyColorMap(np.rint(mask * 255).astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1] / 255
    overlay = show_cam_on_image(pixels, mask)
    assert overlay.dtype == np.float32 and overlay.shape == (20, 30, 3)
    np.testing.assert_allclose(overlay, 0.4 * colours + 0.6 * pixels / 255, atol=1e-6)


@pytest.mark.parametrize("level, colour", [(0.0, (0, 0, 0.5)), (0.5, (0.5, 1, 0.5)), (1.0, (0.5, 0, 0))])
def test_the_default_colours_are_jet_in_rgb(level, colour):
    overlay = show_cam_on_image(np.zeros((2, 2, 3), np.uint8), np.full((2, 2), level), alpha=1)
    np.testing.assert_allclose(overlay[0, 0], colour, atol=0.02)
    assert COLORMAP_JET == cv2.COLORMAP_JET


@pytest.mark.parametrize("colormap", [cv2.COLORMAP_JET, cv2.COLORMAP_VIRIDIS, cv2.COLORMAP_HOT])
@pytest.mark.parametrize("alpha", [0, 0.25, 1])
def test_colormap_and_alpha(colormap, alpha):
    pixels, mask = gradient_picture(8, 8), np.full((8, 8), 0.75, np.float32)
    colour = cv2.applyColorMap(np.full((1, 1), 191, np.uint8), colormap)[0, 0, ::-1] / 255
    np.testing.assert_allclose(
        show_cam_on_image(pixels, mask, colormap, alpha), alpha * colour + (1 - alpha) * pixels / 255, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float64])
def test_images_from_0_to_255_and_from_0_to_1(dtype):
    pixels, mask = gradient_picture(8, 8), np.eye(8, dtype=np.float32)
    expected = show_cam_on_image(pixels, mask)
    np.testing.assert_allclose(show_cam_on_image(pixels.astype(dtype), mask), expected, atol=1e-6)
    np.testing.assert_allclose(show_cam_on_image((pixels / 255).astype(np.float32), mask), expected, atol=1e-6)
    dark = np.minimum(pixels, 1)  # integers of 0 and 1 are still of 255
    np.testing.assert_allclose(show_cam_on_image(dark, mask, alpha=0), dark / 255, atol=1e-6)


def test_a_small_mask_is_stretched_over_the_image():
    overlay = show_cam_on_image(np.zeros((40, 60, 3), np.uint8), np.array([[1.0, 0], [0, 0]]), alpha=1)
    assert overlay.shape == (40, 60, 3)
    np.testing.assert_allclose(overlay[0, 0], [0.5, 0, 0], atol=0.02)
    np.testing.assert_allclose(overlay[-1, -1], [0, 0, 0.5], atol=0.02)


def test_the_arguments_are_not_changed():
    pixels, mask = gradient_picture(8, 8), np.full((8, 8), 2.0)
    copies = pixels.copy(), mask.copy()
    overlay = show_cam_on_image(pixels, mask)
    assert overlay.max() <= 1
    np.testing.assert_array_equal(pixels, copies[0])
    np.testing.assert_array_equal(mask, copies[1])


def test_without_opencv_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match="OpenCV.*pip install opencv-python-headless"):
        show_cam_on_image(gradient_picture(4, 4), np.zeros((4, 4)))


@pytest.mark.parametrize("alpha", [0.4, 0.7])
def test_blending_whole_levels_is_the_overlay_rounded(alpha):
    pixels, mask = gradient_picture(50, 70), np.random.default_rng(0).random((50, 70), np.float32)
    blended, overlay = blend(pixels, mask, alpha), show_cam_on_image(pixels, mask, alpha=alpha)
    assert blended.dtype == np.uint8
    np.testing.assert_allclose(blended, 255 * overlay, atol=0.51 + 1e-3)


# -- figure -----------------------------------------------------------------------------------

CHINESE = (
    "原始图像",
    "Grad-CAM热力图",
    "叠加结果",
    "预测概率分布",
    "相对重要性",
    "概率（%）",
    "目标文本：",
    "图像编码器",
)
ENGLISH = ("Original image", "Grad-CAM heatmap", "Overlay", "Predicted probabilities", "Relative importance", "Target")
LONG = "全髋关节置换术后，股骨柄与股骨髓腔骨质之间可见宽度超过2毫米的连续平滑透亮线，外缘伴硬化边，提示股骨柄假体松动。"


def content_of(count=3, target=0, size=(60, 90), names=None, probabilities=None, **options):
    names = names or [f"类别{i}" for i in range(count)]
    generator = np.random.default_rng(0)
    logits = generator.normal(size=len(names)) if probabilities is None else None
    probabilities = np.exp(logits) / np.exp(logits).sum() if probabilities is None else np.array(probabilities)
    pixels = gradient_picture(*size)
    heatmap = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    values = {
        "pixels": pixels,
        "heatmap": heatmap,
        "overlay": blend(pixels, heatmap),
        "names": names,
        "texts": [f"{name}的描述" for name in names],
        "probabilities": probabilities.astype(np.float32),
        "similarities": np.linspace(-0.2, 0.3, len(names), dtype=np.float32),
        "target": target,
        "source": ("starnet_s1", "stages.3.3", 7, 7),
        **options,
    }
    return FigureContent(**values)


def texts_of(drawing):
    return [item for item in drawing.items if isinstance(item, Text)]


def words(drawing):
    return "\n".join(text.string for text in texts_of(drawing))


def text_with(drawing, part):
    (text,) = [text for text in texts_of(drawing) if part in text.string]
    return text


def panels(drawing):
    """The pictures of the original, the heatmap and the overlay."""
    original, heatmap, _, overlay = [item for item in drawing.items if isinstance(item, Picture)]
    return original, heatmap, overlay


def bars_of(drawing):
    """(colour, width) of each bar, the likeliest first; the marks of the legend are 11 high."""
    boxes = [item for item in drawing.items if isinstance(item, Box) and item.fill in BAR_COLOURS.values()]
    return [(box.fill, box.right - box.left) for box in boxes if box.bottom - box.top != 11]


def overlapping(drawing):
    boxes = [(text.string, text_box(text)) for text in texts_of(drawing)]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a[2], b[2]) - max(a[0], b[0]) > 0.5 and min(a[3], b[3]) - max(a[1], b[1]) > 0.5
    ]


def outside(drawing):
    boxes = [(text.string, text_box(text)) for text in texts_of(drawing)]
    boxes += [(item, item[:4]) for item in drawing.items if isinstance(item, Box)]
    boxes += [("picture", (p.left, p.top, p.right, p.bottom)) for p in drawing.items if isinstance(p, Picture)]
    for line in [item for item in drawing.items if isinstance(item, Line)]:
        (left, right), (top, bottom) = ((min(edge), max(edge)) for edge in zip(*line.points))
        boxes.append(("line", (left, top, right, bottom)))
    return [t for t, b in boxes if b[0] < 0 or b[1] < 0 or b[2] > drawing.width or b[3] > drawing.height]


def over_a_picture(drawing, allowed=()):
    """Texts that reach into a picture, but for those within a white message box and those `allowed`."""
    pictures = [item for item in drawing.items if isinstance(item, Picture)]
    found = []
    for text in texts_of(drawing):
        left, top, right, bottom = text_box(text)
        hit = any(left < p.right and right > p.left and top < p.bottom and bottom > p.top for p in pictures)
        found += [text.string] if hit and text.string not in allowed else []
    return found


NAMES = {
    "two": ["正常", "异常"],
    "nine": [f"假体周围{what}" for what in ("感染", "骨折", "松动", "脱位", "磨损", "囊变", "骨化", "下沉", "正常")],
    "thirty": [f"第{i}类假体周围改变" for i in range(30)],
    "long": [LONG, LONG + "二", LONG * 3],
    "ten long": [f"{i}{LONG}" for i in range(12)],
    "English": [f"Loosening of the femoral stem with a radiolucent line, type {i}" for i in range(9)],
    "one word": ["pneumonoultramicroscopicsilicovolcanoconiosis" * 2, "a" * 200, "normal"],
    "capitals": ["WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW", "LOOSENING OF THE STEM", "MMMM"],
    "one": ["正常"],
}  # fmt: skip
SIZES = {"3:2": (60, 90), "1:4": (300, 75), "4:1": (75, 300), "1:1": (64, 64)}


@pytest.mark.parametrize("lang, present, absent", [("zh", CHINESE, ENGLISH), ("en", ENGLISH, CHINESE)])
def test_the_figures_words(lang, present, absent):
    shown = words(draw_figure(content_of(names=["正常", "松动", "感染"]), lang))
    assert all(word in shown for word in present)
    assert not any(word in shown for word in absent)
    assert "starnet_s1" in shown and "stages.3.3" in shown and "7×7" in shown
    assert "正常" in shown  # the users' own words stay


def test_four_panels_show_what_they_say():
    content = content_of(size=(400, 600))  # as large as a panel: shown pixel by pixel
    drawing = draw_figure(content)
    original, heatmap, overlay = panels(drawing)
    np.testing.assert_array_equal(original.pixels, content.pixels)
    levels = np.rint(content.heatmap * 255).astype(np.uint8)
    np.testing.assert_array_equal(heatmap.pixels, cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1])
    np.testing.assert_array_equal(overlay.pixels, content.overlay)
    for word, picture in zip(CHINESE[:3], (original, heatmap, overlay), strict=True):
        title = text_with(drawing, word)
        assert title.x == pytest.approx((picture.left + picture.right) / 2, abs=1) and title.y < picture.top
    target = text_with(drawing, "类别0的描述")
    assert text_with(drawing, CHINESE[1]).y < target.y < heatmap.top


@pytest.mark.parametrize("height", [8, 400, 500, 3000])
def test_pictures_of_every_size_lie_where_they_should(height):
    """Each pixel of a panel has the grey of the place in the image that it covers."""
    width = height * 3 // 2
    original = panels(draw_figure(content_of(size=(height, width))))[0]
    assert original.pixels.shape == (400, 600, 3)
    rows = ((np.arange(400) + 0.5) / 400 * height - 0.5).clip(0, height - 1) * 255 / height
    columns = ((np.arange(600) + 0.5) / 600 * width - 0.5).clip(0, width - 1) * 255 / width
    np.testing.assert_allclose(original.pixels[:, 300, 0], rows, atol=2)
    np.testing.assert_allclose(original.pixels[200, :, 1], columns, atol=2)


def test_the_pixels_of_a_large_image_are_averaged():
    pixels = np.zeros((1200, 1800, 3), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255
    original = panels(draw_figure(content_of(size=(1200, 1800), pixels=pixels)))[0]
    assert original.pixels.min() >= 110 and original.pixels.max() <= 145


def test_the_colour_bar_goes_from_0_to_1():
    drawing = draw_figure(content_of())
    bar = [item for item in drawing.items if isinstance(item, Picture)][2]
    low, high = text_with(drawing, "0.0"), text_with(drawing, "1.0")
    assert bar.top <= high.y - 5 < bar.top + 10 and bar.bottom - 10 < low.y - 5 <= bar.bottom + 5
    np.testing.assert_array_equal(bar.pixels[0, 0], (128, 0, 0))  # red on top
    np.testing.assert_array_equal(bar.pixels[-1, 0], (0, 0, 128))
    assert text_with(drawing, "相对重要性").vertical


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", NAMES)
def test_no_text_lies_over_another_or_outside(kind, size, lang):
    names = NAMES[kind]
    content = content_of(names=names, target=len(names) - 1, size=size, texts=names, sensitivity=0.95, contrast=1.0)
    drawing = draw_figure(content, lang)
    assert overlapping(drawing) == []
    assert outside(drawing) == []
    assert over_a_picture(drawing) == []


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("probabilities", [[1, 0, 0], [0.5, 0.5, 0], [0.999, 0.001, 0], [0, 0.004, 0.996]])
def test_percentages_at_the_ends_of_the_scale(probabilities, lang):
    drawing = draw_figure(content_of(probabilities=probabilities, target=1), lang)
    shown = words(drawing)
    assert all(f"{100 * p:.1f}%" in shown for p in probabilities)
    assert overlapping(drawing) == [] and outside(drawing) == []


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 30])
def test_bars_are_the_ten_likeliest_in_order(count):
    content = content_of(count, target=int(np.random.default_rng(0).normal(size=count).argmax()))
    drawing = draw_figure(content)
    order = np.argsort(-content.probabilities)[:10]
    pixels_per_percent = (text_with(drawing, "100").x - text_with(drawing, "80").x) / 20 if count > 1 else 408 / 118
    widths = [width for _, width in bars_of(drawing)]
    np.testing.assert_allclose(widths, 100 * content.probabilities[order] * pixels_per_percent, atol=1.5)
    labels = [text for text in texts_of(drawing) if text.anchor == "r"]
    assert [label.string for label in labels] == [content.names[i] for i in order]
    assert [label.y for label in labels] == sorted(label.y for label in labels)  # the likeliest on top
    shown = [text.string for text in texts_of(drawing) if text.string.endswith("%")]
    assert shown == [f"{100 * content.probabilities[i]:.1f}%" for i in order]
    title = text_with(drawing, "预测概率分布").string
    assert ("10" in title and str(count) in title) == (count > 10)


def test_the_target_has_a_bar_even_when_it_is_unlikely():
    probabilities = np.linspace(0.1, 0.01, 15)
    drawing = draw_figure(content_of(15, target=14, probabilities=probabilities / probabilities.sum()))
    labels = [text.string for text in texts_of(drawing) if text.anchor == "r"]
    assert labels == [*(f"类别{i}" for i in range(9)), "类别14"]


@pytest.mark.parametrize("target, marks", [(0, ["预测且为目标"]), (1, ["预测", "目标"])])
def test_prediction_and_target_are_marked(target, marks):
    drawing = draw_figure(content_of(probabilities=[0.7, 0.2, 0.1], target=target))
    assert [text.string for text in texts_of(drawing) if text.string in ("预测且为目标", "预测", "目标")][::-1] == marks
    colours = [colour for colour, _ in bars_of(drawing)]
    assert colours[0] != colours[1] and colours[0] != colours[2]
    assert (colours[1] == colours[2]) == (target == 0)


@pytest.mark.parametrize("height, width", [(400, 100), (100, 400), (60, 90), (10, 40), (1, 1), (2000, 500), (3, 900)])
def test_image_panels_keep_the_originals_proportions(height, width):
    pictures = panels(draw_figure(content_of(size=(height, width))))
    for picture in pictures:
        assert picture.pixels.shape == pictures[0].pixels.shape
        shown_height, shown_width = picture.pixels.shape[:2]
        assert (
            abs(shown_height - shown_width * height / width) <= 1
            or abs(shown_width - shown_height * width / height) <= 1
        )
        assert shown_width == 600 or shown_height >= 408


ODD_TEXTS = (
    *("价格 $5 与 $6$", "$x^2$", r"\frac$a$", "a$", "x" * 21 + "$$" * 9, "100% & <b>"),
    *("骨折🦴 plus é ß Ω", "\u202eabc", "𠀀𪚥", "tab\tnew\nline", "אבג", "\x00\ufffe"),
)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_any_text_is_drawn_as_it_is(text):
    drawing = draw_figure(content_of(names=[text, "正常"], texts=[text, "正常"], warning=text))
    shown = "".join(item.string for item in texts_of(drawing) if item.anchor == "r")
    title = text_with(drawing, "目标文本：").string
    for string in (shown, title):
        assert all((character in string) == (character in text) for character in "\\$&<>")
    assert all(drawing_module._font_of(c) is not None for item in texts_of(drawing) for c in item.string)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that it lacks
        for suffix in (".png", ".svg"):
            encode_figure(drawing, suffix)


def test_characters_that_no_font_has_become_question_marks():
    assert drawable("髋🦴a") == "髋?a"
    assert drawable(" 骨折\n🦴") == "骨折 ?"


def test_glyphs_are_told_by_their_shape_as_by_the_fonts_own_table():
    from matplotlib.ft2font import FT2Font

    tables = [FT2Font(path).get_charmap() for path in drawing_module._font_paths()]
    assert len(tables) == 2
    for code in (*range(0x20, 0x2700, 3), *range(0x4E00, 0x9FFF, 97), 0x20000, 0x1F9B4):
        expected = next((index for index, table in enumerate(tables) if code in table), None)
        assert drawing_module._font_of(chr(code)) == expected, hex(code)


def test_without_matplotlib_one_font_is_left(monkeypatch):
    monkeypatch.setattr(drawing_module.importlib.util, "find_spec", lambda name: None)
    assert drawing_module._font_paths.__wrapped__() == (str(SHIPPED_FONT),)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("message", ["热力图为空：梯度为零", "热力图为空：" + LONG])
def test_a_flat_map_says_why_on_the_figure(size, message):
    drawing = draw_figure(content_of(size=size, heatmap=np.zeros(size, np.float32), warning=message))
    assert message in "".join(text.string for text in texts_of(drawing) if text.size == 17)
    assert overlapping(drawing) == [] and outside(drawing) == []
    (frame,) = [item for item in drawing.items if isinstance(item, Box) and item.outline]
    heatmap = panels(drawing)[1]
    assert abs((frame.top + frame.bottom) - (heatmap.top + heatmap.bottom)) <= 2
    for text in texts_of(drawing):
        left, top, right, bottom = text_box(text)
        apart = left >= frame.right or right <= frame.left or top >= frame.bottom or bottom <= frame.top
        assert apart != (text.size == 17), text


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("sensitivity", [None, 0.02, 0.949, 0.95, 1.0])
def test_text_sensitivity_in_the_footer(sensitivity, lang):
    drawing = draw_figure(content_of(sensitivity=sensitivity), lang)
    about, alarm = {"zh": ("文本敏感度", "几乎不随文本变化"), "en": ("Text sensitivity", "hardly depends")}[lang]
    if sensitivity is None:
        assert about not in words(drawing)
        return
    note = text_with(drawing, about)
    assert f"{sensitivity:.2f}" in note.string
    assert (alarm in note.string) == (note.colour == "#c0392b") == (sensitivity >= 0.95)
    source = text_with(drawing, "starnet_s1")
    assert source.y == note.y and text_box(source)[2] < text_box(note)[0]


def test_a_long_layer_name_leaves_room_for_the_sensitivity():
    source = ("convnext-large", "backbone." * 30, 7, 7)
    drawing = draw_figure(content_of(source=source, sensitivity=0.95), "en")
    assert overlapping(drawing) == [] and outside(drawing) == []
    assert "0.95" in words(drawing)


@pytest.mark.parametrize("contrast, title", [(0.0, "目标文本：类别0"), (1.0, "对比目标文本：类别0")])
def test_the_title_says_whether_texts_are_contrasted(contrast, title):
    assert text_with(draw_figure(content_of(contrast=contrast)), "目标文本").string.startswith(title)


@pytest.mark.parametrize(
    "text, columns, lines, expected",
    [
        ("正常", 10, 2, ["正常"]),
        ("股骨柄松动", 6, 2, ["股骨柄", "松动"]),
        ("股骨柄松动", 6, 1, ["股骨…"]),
        ("hip stem loose", 9, 2, ["hip stem", "loose"]),
        ("abcdefghij", 4, 3, ["abcd", "efgh", "ij"]),
        ("abcdefghij", 4, 2, ["abcd", "efg…"]),
        ("（松动）正常", 6, 3, ["（松", "动）正", "常"]),
        ("股骨，松动", 4, 3, ["股", "骨，", "松动"]),
        ("", 4, 2, [""]),
    ],
)
def test_wrapping(text, columns, lines, expected):
    assert wrap_text(text, columns, lines) == expected


def test_wrapping_by_the_length_of_the_letters():
    measure = lambda text: text_length(text, 15)  # noqa: E731
    for text in (LONG * 3, "Loosening of the femoral stem " * 5, "WWWWWWWW" * 9, "iiii" * 99):
        rows = wrap_text(text, 200, 3, measure)
        assert len(rows) == 3 and all(measure(row) <= 200 for row in rows) and rows[-1].endswith("…")
        assert measure(rows[0]) > 100


# -- fifth panel ------------------------------------------------------------------------------

SHARES = np.linspace(0, 1, 21)


def curves_of(deletion=0.2, insertion=0.6, random=0.4, low=-0.1, high=0.5):
    """A measurement whose curves go from one end to the other."""
    falls = (high + (low - high) * SHARES**0.5).astype(np.float32)
    straight = (high + (low - high) * SHARES).astype(np.float32)
    return Faithfulness(deletion, insertion, random, falls, falls[::-1], straight)


def lines_of(drawing):
    return [item for item in drawing.items if isinstance(item, Line)]


FIFTH = {
    "zh": ("忠实度", "删除（越低越好）", "插入（越高越好）", "随机图", "像素（%）", "余弦相似度", "优于随机"),
    "en": ("Faithful", "Deletion (lower", "Insertion (higher", "Random maps", "Pixels", "Cosine", "Beats random"),
}


@pytest.mark.parametrize("lang", FIFTH)
def test_the_fifth_panel_is_there_where_the_heatmap_was_tested(lang):
    four, five = (draw_figure(content_of(faithfulness=tested), lang) for tested in (None, curves_of()))
    assert all(word in words(five) for word in FIFTH[lang]) and not any(word in words(four) for word in FIFTH[lang])
    assert five.height > four.height + 300 and five.width == four.width and not lines_of(four)
    foot = 2 if lang == "zh" else 1  # the four panels stay as they are; the footer goes down
    assert five.items[: len(four.items) - foot] == [
        item if not isinstance(item, Picture) else five.items[i] for i, item in enumerate(four.items[:-foot])
    ]


@pytest.mark.parametrize("lang", FIFTH)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("kind", ["two", "nine", "long", "English"])
def test_nothing_on_five_panels_lies_over_another_or_outside(kind, independent, size, lang):
    options = {"independent": independent, "seen": 0.749, "dot_product": True, "sensitivity": 0.95, "contrast": 0.6}
    source = ("clip-resnet", " + ".join(f"backbone.layer{i}.2" for i in range(12)), 14, 14)
    for tested in (curves_of(), curves_of(-1.234, -0.001, 0.5, -1e-4, 1e-4), None):
        content = content_of(names=NAMES[kind], size=size, faithfulness=tested, source=source, **options)
        drawing = draw_figure(content, lang)
        assert overlapping(drawing) == [] and outside(drawing) == [] and over_a_picture(drawing) == []


@pytest.mark.parametrize("low, high", [(-0.1, 0.5), (0.21, 0.29), (0.0, 0.0), (-30.0, -29.0), (0.1, 7000.0)])
def test_curves_lie_where_their_axes_say(low, high):
    tested = curves_of(low=low, high=high)
    drawing = draw_figure(content_of(faithfulness=tested))
    bottom = text_with(drawing, "隐藏或显示的像素").y - 42
    ticks = [t for t in texts_of(drawing) if t.anchor == "r" and t.size == 14 and t.y > bottom - 310]
    assert 2 <= len(ticks) <= 8
    scale = np.polyfit([float(t.string) for t in ticks], [t.y for t in ticks], 1)
    across = [t for t in texts_of(drawing) if t.size == 14 and t.y == bottom + 20]
    assert [t.string for t in across] == ["0", "20", "40", "60", "80", "100"]
    for kind, curve in (("deletion", tested.deletion_curve), ("insertion", tested.insertion_curve)):
        (line,) = [line for line in lines_of(drawing) if line.colour == COLOURS[kind] and len(line.points) > 2]
        x, y = np.array(line.points).T
        np.testing.assert_allclose(x, np.interp(SHARES, np.linspace(0, 1, 6), [t.x for t in across]), atol=1.5)
        np.testing.assert_allclose(y, np.polyval(scale, curve) - 5, atol=2 + 0.01 * abs(scale[0]) * (high - low))
        assert (y >= bottom - 300).all() and (y <= bottom).all()


def test_the_areas_stand_beside_the_name_and_the_colour_of_their_curve():
    drawing = draw_figure(content_of(faithfulness=curves_of(0.2, 0.35, 0.4)))
    rows = {"deletion": ["0.200", "+0.200"], "insertion": ["0.350", "-0.050"], "random": ["0.400"]}
    for kind, name in zip(rows, FIFTH["zh"][1:4], strict=True):
        (y,) = [t.y for t in texts_of(drawing) if t.string == name]
        assert [t.string for t in texts_of(drawing) if t.y == y and t.anchor == "r"] == rows[kind]
        assert [line for line in lines_of(drawing) if line.colour == COLOURS[kind] and abs(line.points[0][1] - y) < 9]
    worse = text_with(drawing, "-0.050")
    assert worse.colour == "#c0392b" and text_with(drawing, "+0.200").colour == "#000000"
    assert "-0.000" not in words(draw_figure(content_of(faithfulness=curves_of(0.4, 0.4 - 1e-6, 0.4))))


def test_random_maps_are_dashed_both_ways():
    tested = curves_of()
    drawing = draw_figure(content_of(faithfulness=tested))
    (deletion,) = [line for line in lines_of(drawing) if line.colour == COLOURS["deletion"] and len(line.points) > 2]
    grey = [line for line in lines_of(drawing) if line.colour == COLOURS["random"]]
    assert len(grey) > 60 and all(np.hypot(*np.subtract(*line.points[:: len(line.points) - 1])) < 10 for line in grey)
    left, right = deletion.points[0], deletion.points[-1]
    starts = [line.points[0] for line in grey]
    assert left in starts and (left[0], right[1]) in starts  # hidden from the whole image on, shown from none on


@pytest.mark.parametrize(
    "options, label",
    [
        ({}, "余弦相似度"),
        ({"dot_product": True}, "点积"),
        ({"contrast": 0.6}, "余弦相似度（减去其他文本）"),
        ({"dot_product": True, "contrast": 0.6}, "点积（减去其他文本）"),
    ],
)
def test_the_axis_says_what_is_scored(options, label):
    vertical = [t.string for t in texts_of(draw_figure(content_of(faithfulness=curves_of(), **options))) if t.vertical]
    assert vertical[-1] == label


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.1, 0.5, [-0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (0.23, 0.27, [0.23, 0.24, 0.25, 0.26, 0.27]),
        (-12, 31, [-20, -10, 0, 10, 20, 30, 40]),
    ],
)
def test_ticks_are_round_numbers(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("low, high", [(0, 0), (5, 5), (-3e-9, 2e-9), (1e6, 1e6 + 1), (0.999, 1.001), (-7, 1e5)])
def test_ticks_enclose_what_is_drawn(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8 and ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_scores_that_are_no_numbers_are_left_out():
    curve = np.full(21, np.nan, np.float32)
    drawing = draw_figure(content_of(faithfulness=Faithfulness(np.nan, np.nan, np.nan, curve, curve, curve)))
    assert draw_pixels(drawing).shape[0] == drawing.height


def test_dashes_follow_the_line_around_its_corners():
    cut = dashes([(0, 0), (10, 0), (10, 10)], 8, 4)
    assert cut == [[(0, 0), (8, 0)], [(10, 2), (10, 10)]]
    assert dashes([(0, 0), (10, 0), (10, 10)], 12, 4)[0] == [(0, 0), (10, 0), (10, 2)]


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_curves_are_lines_in_vector_formats(suffix):
    data = encode_figure(draw_figure(content_of(faithfulness=curves_of())), suffix)
    assert data == encode_figure(draw_figure(content_of(faithfulness=curves_of())), suffix)
    if suffix == ".svg":
        assert data.count(b"<image") == 4 and data.count(b"stroke: #2471a3") == 2  # the curve and its sample


# -- what else a figure says --------------------------------------------------------------------


@pytest.mark.parametrize("lang, form", [("zh", "{}热力图"), ("en", "{} heatmap")])
@pytest.mark.parametrize("method", METHOD_LABELS)
def test_the_title_names_the_method(method, lang, form):
    drawing = draw_figure(content_of(method=method), lang)
    title = text_with(drawing, form.format(METHOD_LABELS[method])).string
    assert (title != form.format(METHOD_LABELS[method])) == (method in TEXT_FREE)
    assert ({"zh": "不看文本", "en": "knows no text"}[lang] in title) == (method in TEXT_FREE)


@pytest.mark.parametrize("draw", ["figure", "grid"])
@pytest.mark.parametrize(
    "options, said",
    [
        ({"dot_product": True}, "未归一化的点积"),
        ({"seen": 0.5625}, "模型只看到图像的 56%"),
        ({"seen": 0.999}, "模型只看到图像的 99%"),
        ({"independent": True}, "总和不必为 100"),
    ],
)
def test_what_the_reader_must_know_is_said_once_and_only_then(options, said, draw):
    plain, drawing = (
        draw_figure(content_of(**o)) if draw == "figure" else draw_grid(grid_of(["正常", "松动"], **o))
        for o in ({}, options)
    )
    assert said not in words(plain) and words(drawing).count(said) == 1


def test_what_the_model_did_not_see_is_grey():
    content = content_of(size=(400, 600))
    content.heatmap[:, :100] = np.nan
    content.heatmap[380:] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heatmap = panels(draw_figure(content._replace(seen=0.8)))[1]
    whole = panels(draw_figure(content_of(size=(400, 600))))[1]
    assert (heatmap.pixels[:, :100] == 230).all() and (heatmap.pixels[380:] == 230).all()
    np.testing.assert_array_equal(heatmap.pixels[:380, 100:], whole.pixels[:380, 100:])


@pytest.mark.parametrize("size", [(90, 60), (1200, 1800)])
def test_the_edge_of_what_was_seen_stays_an_edge_at_every_size(size):
    content = content_of(size=size)
    content.heatmap[: size[0] // 2] = np.nan
    heatmap = panels(draw_figure(content))[1].pixels
    grey = (heatmap == 230).all(2)
    middle = len(grey) / 2
    assert grey[: int(middle) - 1].all() and not grey[int(middle) + 1 + 2 * heatmap.shape[0] // size[0] :].any()


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_several_long_layers_stay_on_the_page(count, lang):
    layers = " + ".join(f"encoder.layers.{-i}.layer_norm1" for i in range(1, count + 1))
    options = {"source": ("siglip2-vit", layers, 16, 16), "dot_product": True, "seen": 0.5}
    for drawing in (
        draw_figure(content_of(**options, sensitivity=0.96), lang),
        draw_grid(grid_of(["正常"], **options), lang),
    ):
        assert overlapping(drawing) == [] and outside(drawing) == []
        assert "encoder.layers.-1.layer_norm1" in words(drawing)


# -- grid -------------------------------------------------------------------------------------


def grid_of(names, size=(60, 90), targets=None, **options):
    targets = list(range(len(names))) if targets is None else targets
    content = content_of(names=names, size=size)
    levels = np.linspace(0, 255, max(len(targets), 2), dtype=np.uint8)
    values = {
        **{name: getattr(content, name) for name in ("pixels", "names", "texts", "probabilities", "similarities")},
        "overlays": [np.full((*size, 3), level, np.uint8) for level, _ in zip(levels, targets)],
        "targets": targets,
        "source": content.source,
        "warnings": [None] * len(targets),
        "sensitivities": [0.1] * len(targets),
        **options,
    }
    return GridContent(**values)


def tiles_of(drawing):
    """The pictures of the tiles; the last picture of the page is the colour bar."""
    return [item for item in drawing.items if isinstance(item, Picture)][:-1]


def caption_of(drawing, picture, tile_width=0):
    """What stands below a picture, up to the next row, line by line."""
    others = [p.top for p in tiles_of(drawing) if p.top > picture.bottom]
    end = min([*others, *(p.top for p in drawing.items if isinstance(p, Picture) and p.top > picture.bottom)])
    reach = max(picture.right - picture.left, 240) / 2
    middle = (picture.left + picture.right) / 2
    texts = [t for t in texts_of(drawing) if picture.bottom < t.y < end]
    texts = [t for t in texts if abs(sum(text_box(t)[0:3:2]) / 2 - middle) <= reach]
    return [text.string for text in sorted(texts, key=lambda text: (text.y, text.x))]


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", NAMES)
def test_no_text_of_a_grid_lies_over_another_or_outside(kind, size, lang):
    names = NAMES[kind]
    warned = ["热力图为空：梯度为零", *[None] * (len(names) - 1)]
    content = grid_of(names, size, warnings=warned, sensitivities=[0.95] * len(names), contrast=1.0)
    drawing = draw_grid(content, lang)
    empty = {"zh": "热力图为空", "en": "Empty heatmap"}[lang]
    assert overlapping(drawing) == []
    assert outside(drawing) == []
    assert over_a_picture(drawing, allowed=[empty]) == []
    assert drawing.width <= 2200 and drawing.height <= 2400
    assert min(text.size for text in texts_of(drawing)) >= 14  # never smaller than on the figure


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("kind", ["two", "nine", "thirty"])
def test_each_tile_shows_its_text(kind, lang):
    names = NAMES[kind]
    content = grid_of(names, targets=list(range(len(names)))[::-1])
    drawing = draw_grid(content, lang)
    original, *tiles = tiles_of(drawing)
    height, width = original.pixels.shape[:2]
    np.testing.assert_array_equal(original.pixels, layout.resized(content.pixels, width, height))
    assert any({"zh": "原始图像", "en": "Original image"}[lang] in line for line in caption_of(drawing, original))
    assert len(tiles) == len(names)
    for picture, target, overlay in zip(tiles, content.targets, content.overlays, strict=True):
        assert (picture.pixels == overlay[0, 0, 0]).all() and picture.pixels.shape == original.pixels.shape
        caption = caption_of(drawing, picture)
        assert caption[0] == names[target]
        assert caption[1].endswith(f" {content.similarities[target]:.3f}")
        assert caption[2].endswith(f" {content.probabilities[target]:.1%}")
    places = [(picture.top, picture.left) for picture in (original, *tiles)]
    assert places == sorted(places)  # in the order asked


@pytest.mark.parametrize(
    "lang, said", [("zh", "各图同一色标，可以比较"), ("en", "all maps share one scale and can be compared")]
)
@pytest.mark.parametrize("kind", ["one", "two", "nine", "thirty"])
def test_the_grids_colour_bar_says_that_all_maps_share_one_scale(kind, lang, said):
    drawing = draw_grid(grid_of(NAMES[kind]), lang)
    label = text_with(drawing, said)
    bar = [item for item in drawing.items if isinstance(item, Picture)][-1]
    assert bar.bottom < label.y < bar.bottom + 60
    np.testing.assert_array_equal(bar.pixels[0, [0, -1]], [(0, 0, 128), (128, 0, 0)])


@pytest.mark.parametrize("lang, mark", [("zh", "预测"), ("en", "Predicted")])
def test_the_predicted_texts_tile_is_marked(lang, mark):
    content = grid_of(NAMES["nine"])
    best = int(content.probabilities.argmax())
    drawing = draw_grid(content, lang)
    original, *tiles = tiles_of(drawing)
    marked = [i for i, tile in enumerate(tiles) if mark in caption_of(drawing, tile)]
    assert marked == [best]
    frames = [item for item in drawing.items if isinstance(item, Box) and item.fill == BAR_COLOURS["prediction"]]
    framed = [
        f for f in frames if f.left < tiles[best].left and f.right > tiles[best].right and f.top < tiles[best].top
    ]
    assert len(framed) == 1 and len(frames) == 2  # the frame and the box of the word
    assert drawing.items.index(framed[0]) < next(i for i, item in enumerate(drawing.items) if item is tiles[best])
    others = draw_grid(grid_of(NAMES["nine"], targets=[i for i in range(9) if i != best]), lang)
    assert not [i for i in others.items if isinstance(i, Box) and i.fill == BAR_COLOURS["prediction"]]
    assert any(content.names[best] in line for line in caption_of(others, tiles_of(others)[0]))


def test_a_tile_without_a_map_says_so():
    drawing = draw_grid(grid_of(NAMES["nine"], warnings=[None, "热力图为空：梯度为零，换一层", *[None] * 7]))
    message, tile = text_with(drawing, "热力图为空"), tiles_of(drawing)[2]
    assert tile.left < message.x < tile.right and tile.top < message.y < tile.bottom


@pytest.mark.parametrize(
    "sensitivities, said, warned",
    [
        ([None, None], None, False),
        ([0.1, None], "文本敏感度 0.10（", False),
        ([0.3, 0.1], "文本敏感度 0.10–0.30（", False),
        ([0.95, 0.1], "其中 1 个文本", True),
        ([-0.2, 0.1], "文本敏感度 -0.20–0.10（", False),
    ],
)
def test_the_grids_text_sensitivity(sensitivities, said, warned):
    drawing = draw_grid(grid_of(["正常", "松动"], sensitivities=sensitivities))
    notes = [text for text in texts_of(drawing) if "文本敏感度" in text.string]
    assert len(notes) == (said is not None)
    assert all(said in note.string and (note.colour == "#c0392b") == warned for note in notes)


@pytest.mark.parametrize("height, width", [(800, 800), (1000, 800), (1200, 300), (300, 1200), (3, 900), (900, 3)])
@pytest.mark.parametrize("count", [2, 3, 10, 31, 101])
def test_tiles_are_as_large_as_the_page_allows(count, height, width):
    tiles = arrange_tiles(count, width, height)
    assert 1 <= tiles.columns <= count
    assert tiles.width >= tiles.picture[0] and tiles.height >= tiles.picture[1]
    assert 72 + tiles.columns * (tiles.width + 24) - 24 <= 2200
    shown_width, shown_height = tiles.picture
    assert (
        abs(shown_height - shown_width * height / width) <= 1 or abs(shown_width - shown_height * width / height) <= 1
    )
    if 1 / 4 <= width / height <= 4 and count <= 31:
        assert max(tiles.picture) >= 240
    if count <= 3:
        assert tiles.columns == count and (shown_width == 600 or shown_height == 768)


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_the_grid_says_whether_texts_are_contrasted(contrast):
    assert ("（对比：" in words(draw_grid(grid_of(["正常", "松动"], contrast=contrast)))) == (contrast > 0)


def grid_of_methods(methods=tuple(METHOD_LABELS), names=("正常", "松动", "感染"), target=1, **options):
    return grid_of(list(names), targets=[target] * len(methods), methods=list(methods), **options)


METHOD_WORDS = {
    "zh": ("各方法的热力图", "目标文本：松动", "以自身最大值为 1", "不看文本"),
    "en": ("Heatmap of each method", "Target text: 松动", "each map's own maximum", "Knows no text"),
}


@pytest.mark.parametrize("lang", METHOD_WORDS)
def test_each_method_has_its_tile(lang):
    content = grid_of_methods()
    drawing = draw_grid(content, lang)
    assert all(word in words(drawing) for word in METHOD_WORDS[lang])
    assert "色标，可以比较" not in words(drawing) and "can be compared" not in words(drawing)
    original, *tiles = tiles_of(drawing)
    assert len(tiles) == 10
    for picture, method, overlay in zip(tiles, content.methods, content.overlays, strict=True):
        assert (picture.pixels == overlay[0, 0, 0]).all()
        assert caption_of(drawing, picture) == [METHOD_LABELS[method], *[METHOD_WORDS[lang][3]] * (method in TEXT_FREE)]
    numbers = caption_of(drawing, original)[-2:]  # of the one text that all tiles explain
    assert numbers[0].endswith(f" {content.similarities[1]:.3f}")
    assert numbers[1].endswith(f" {content.probabilities[1]:.1%}")
    assert not [i for i in drawing.items if isinstance(i, Box) and i.fill == BAR_COLOURS["prediction"]]


@pytest.mark.parametrize("lang", METHOD_WORDS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", ["two", "nine", "long", "capitals"])
@pytest.mark.parametrize("methods", [True, False])
def test_nothing_on_a_tested_grid_lies_over_another_or_outside(methods, kind, size, lang):
    names = NAMES[kind]
    count = 10 if methods else len(names)
    options = {
        "faithfulness": [curves_of(-0.123, 0.456, -1.2), *[None] * (count - 2), curves_of()],
        "sensitivities": [0.95] * count,
        "warnings": [None] * count,
        "size": size,
        **{"dot_product": True, "independent": True, "seen": 0.5, "contrast": 0.6},
    }
    content = grid_of_methods(names=names, **options) if methods else grid_of(names, **options)
    drawing = draw_grid(content, lang)
    assert overlapping(drawing) == [] and outside(drawing) == [] and over_a_picture(drawing) == []
    assert drawing.width <= 2200 and drawing.height <= 2500


@pytest.mark.parametrize(
    "lang, names", [("zh", ("删除", "插入", "随机图")), ("en", ("Deletion", "Insertion", "random"))]
)
@pytest.mark.parametrize("methods", [None, ["gradcam", "rollout", "legrad"]])
def test_captions_give_the_areas_and_their_margins(methods, lang, names):
    tested = [curves_of(0.123, 0.456, 0.2), None, curves_of(0.3, 0.1, 0.2)]
    content = grid_of(["正常", "松动", "感染"], methods=methods, faithfulness=tested)
    content = content._replace(targets=[0] * 3) if methods else content
    drawing = draw_grid(content, lang)
    captions = [
        " ".join(caption_of(drawing, tile)).replace("（", " (").replace("）", ")") for tile in tiles_of(drawing)
    ]
    assert f"{names[0]} 0.123 (+0.077) {names[1]} 0.456 (+0.256)" in captions[1]
    assert f"{names[0]} 0.300 (-0.100) {names[1]} 0.100 (-0.100)" in captions[3]
    assert names[0] not in captions[0] + captions[2]
    assert names[2] in words(drawing)  # the footer says what the brackets mean
    assert names[2] not in words(draw_grid(content._replace(faithfulness=[None] * 3), lang))


def test_a_grid_of_texts_names_its_method():
    assert "各文本的 LeGrad热力图" in words(draw_grid(grid_of(["正常", "松动"], method="legrad")))


def test_methods_that_know_no_text_do_not_count_as_insensitive():
    content = grid_of_methods(["gradcam", "eigencam", "legrad", "rollout"], sensitivities=[0.1, 1.0, 0.2, 1.0])
    note = text_with(draw_grid(content), "文本敏感度")
    assert "0.10–0.20（" in note.string and note.colour != "#c0392b"
    content = content._replace(sensitivities=[0.96, 1.0, 0.2, 1.0])
    note = text_with(draw_grid(content), "文本敏感度")
    assert "其中 1 种方法" in note.string and note.colour == "#c0392b"


# -- pixels and vectors -----------------------------------------------------------------------


def test_pixels_at_the_place_of_a_picture_are_the_pictures():
    drawing = draw_figure(content_of())
    page = draw_pixels(drawing)
    assert page.shape == (drawing.height, drawing.width, 3) and page.dtype == np.uint8
    for picture in [item for item in drawing.items if isinstance(item, Picture)]:
        np.testing.assert_array_equal(page[picture.top : picture.bottom, picture.left : picture.right], picture.pixels)


def test_a_box_covers_its_pixels_and_no_others():
    page = draw_pixels(Drawing(20, 10, [Box(3, 2, 9, 7, "#c0392b"), Box(12, 2, 18, 7, "#ffffff", "#000000")]))
    inside = np.zeros((10, 20), bool)
    inside[2:7, 3:9] = True
    assert (page[:, :10][inside[:, :10]] == (0xC0, 0x39, 0x2B)).all() and (page[:, :10][~inside[:, :10]] == 255).all()
    assert (page[2, 12:18] == 0).all() and (page[6, 12:18] == 0).all() and (page[3:6, 13:17] == 255).all()


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("anchor", ["l", "m", "r"])
@pytest.mark.parametrize("string", ["髋臼杯", "Wagy", "é 髋 ∛ א"])
def test_letters_lie_within_the_box_that_layout_reckons_with(string, anchor, vertical):
    text = Text(150, 160, string, 20, anchor, vertical=vertical)
    ink = (draw_pixels(Drawing(300, 320, [text])) < 255).any(axis=2)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    left, top, right, bottom = text_box(text)
    assert left - 2 <= columns[0] and columns[-1] <= right + 2 and top - 2 <= rows[0] and rows[-1] <= bottom + 2
    assert (rows[-1] - rows[0] if vertical else columns[-1] - columns[0]) > 0.8 * text_length(string, 20)


@pytest.mark.parametrize("renderer", ["pixels", "vectors"])
def test_a_line_inks_its_width_and_is_antialiased(renderer):
    drawing = Drawing(40, 30, [Line([(5, 10.5), (25, 10.5)], "#ff0000", 3), Line([(5, 27), (30, 17)], "#0000ff", 2)])
    page = draw_pixels(drawing)
    if renderer == "vectors":
        canvas = FigureCanvasAgg(drawing_module.vector_figure(drawing))
        canvas.draw()
        page = np.asarray(canvas.buffer_rgba())[..., :3]
    red = (255 - page[:14, 7:23, 1].astype(float)) / 255
    np.testing.assert_allclose(red.sum(0), 3, atol=0.05)
    np.testing.assert_allclose(np.arange(14) @ red / red.sum(0), 10, atol=0.05 if renderer == "pixels" else 1.05)
    blue = (255 - page[13:, :, 0].astype(float)) / 255
    assert blue.sum() == pytest.approx(2 * np.hypot(25, 10), rel=0.12)
    assert ((blue > 0.1) & (blue < 0.9)).sum() > 20


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_vectors_show_the_same_as_pixels(lang):
    """The figure that goes into PDF and SVG, drawn by matplotlib's own rasteriser, beside Pillow's page."""
    names = ["正常🦴", "Loosening of the stem, type é ∛", "感染"]
    content = content_of(names=names, warning="梯度为零", sensitivity=0.95, probabilities=[0.2, 0.7, 0.1])
    drawing = draw_figure(content._replace(faithfulness=curves_of()), lang)
    canvas = FigureCanvasAgg(drawing_module.vector_figure(drawing))
    canvas.draw()
    pixels, vectors = draw_pixels(drawing).astype(int), np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    assert pixels.shape == vectors.shape
    assert np.abs(pixels - vectors).mean() < 1.5
    for text in texts_of(drawing):  # as much ink in the same place
        left, top, right, bottom = (round(edge) for edge in text_box(text))
        ink = [255 - page[top - 2 : bottom + 2, left - 2 : right + 2].mean() for page in (pixels, vectors)]
        assert ink[1] == pytest.approx(ink[0], rel=0.2, abs=1), text


def test_outlines_are_as_long_as_layout_reckons():
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    for drawing in (draw_figure(content_of(names=NAMES["English"]), "en"), draw_figure(content_of())):
        for text in texts_of(drawing):
            font = FontProperties(fname=str(SHIPPED_FONT), size=text.size)
            length, _, _ = text_to_path.get_text_width_height_descent(text.string, font, False)
            assert length == pytest.approx(text_length(text.string, text.size), rel=0.05)


def test_svg_carries_its_glyphs_as_outlines():
    data = encode_figure(draw_figure(content_of()), ".svg")
    assert b"<text" not in data and b"<path" in data
    assert data.count(b"<image") == 4


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".svg", ".pdf"])
def test_the_same_figure_gives_the_same_bytes_from_every_thread(suffix):
    contents = [content_of(target=i, names=NAMES["nine"]) for i in range(4)]
    once = [encode_figure(draw_figure(content), suffix) for content in contents]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda content: encode_figure(draw_figure(content), suffix), contents * 2))
    assert again == once * 2
    assert len(set(once)) == len(once)


def test_pixels_are_drawn_without_matplotlib(tmp_path):
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from models.figure import FigureContent, draw_figure, encode_figure\n"
        "content = FigureContent(np.zeros((9, 9, 3), np.uint8), np.zeros((9, 9)),\n"
        "                        np.zeros((9, 9, 3), np.uint8), ['松动'], ['骨折 א'], np.ones(1), np.ones(1), 0,\n"
        "                        ('a', 'b', 1, 1))\n"
        "for suffix in ('.png', '.jpg', '.tif', '.webp'):\n"
        "    encode_figure(draw_figure(content), suffix)\n"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'models.curves', 'models.faithfulness')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(script.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_drawing_changes_no_setting_of_the_caller(suffix):
    import matplotlib

    before = dict(matplotlib.rcParams)
    encode_figure(draw_figure(content_of()), suffix)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


# -- names and files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, figure, overlay",
    [
        ("a.png", "a.png", "a_overlay.png"),
        ("a", "a.png", "a_overlay.png"),
        ("a.b", "a.b.png", "a.b_overlay.png"),
        ("v1.2.png", "v1.2.png", "v1.2_overlay.png"),
        ("a.pdf", "a.pdf", "a_overlay.png"),
        ("a.SVG", "a.SVG", "a_overlay.png"),
        ("a.jpg", "a.jpg", "a_overlay.jpg"),
        ("a.JPEG", "a.JPEG", "a_overlay.JPEG"),
        ("a.tiff", "a.tiff", "a_overlay.tiff"),
        ("a.webp", "a.webp", "a_overlay.webp"),
        ("结果 一.图", "结果 一.图.png", "结果 一.图_overlay.png"),
        (".hidden", ".hidden.png", ".hidden_overlay.png"),
        ("d.x/a", "d.x/a.png", "d.x/a_overlay.png"),
    ],
)
def test_output_names(tmp_path, given, figure, overlay):
    assert output_paths(tmp_path / given) == (tmp_path / figure, tmp_path / overlay)
    assert output_paths(str(tmp_path / given)) == (tmp_path / figure, tmp_path / overlay)


@pytest.mark.parametrize(
    "figure, index, overlay",
    [
        ("a.png", None, "a_overlay.png"),
        ("a.png", 0, "a_overlay_0.png"),
        ("d.x/a.jpg", 12, "d.x/a_overlay_12.jpg"),
        ("a.svg", 3, "a_overlay_3.png"),
    ],
)
def test_overlays_of_several_texts(figure, index, overlay):
    assert overlay_path(Path(figure), index) == Path(overlay)


SIGNATURES = {
    ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".pdf": b"%PDF", ".svg": b"<?xml", ".tif": b"II*\0", ".webp": b"RIFF",
}  # fmt: skip


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_both_files_in_every_format(tmp_path, suffix):
    content = tiny_result()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, overlay = save_results(Results([content]), tmp_path / "新 文件夹" / f"结果 1{suffix}")
    assert figure.read_bytes().startswith(SIGNATURES[suffix])
    assert sorted(path.name for path in figure.parent.iterdir()) == sorted([figure.name, overlay.name])
    with Image.open(overlay) as image:
        assert image.size == (90, 60)
        error = np.abs(np.asarray(image.convert("RGB")) - 255 * content.overlay)
    assert error.max() <= 1 if suffix != ".jpg" else error.mean() < 6


@pytest.mark.parametrize("targets", [[1], [2, 0]])
def test_the_figure_shows_what_the_overlay_files_show(monkeypatch, targets):
    drawings = []
    monkeypatch.setattr(outputs, "encode_figure", lambda drawing, suffix: drawings.append(drawing) or b"")
    result = tiny_result(targets, size=(300, 450))
    files = encode_outputs(Results([result]), "a.png", OutputChoice())
    pictures = [item.pixels for item in drawings[0].items if isinstance(item, Picture)]
    shown = pictures[-1:] if len(targets) == 1 else pictures[1 : 1 + len(targets)]
    for path, picture in zip(files.overlays, shown, strict=True):
        overlay = np.asarray(Image.open(BytesIO(files.contents[path])))
        expected = cv2.resize(overlay, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        assert np.abs(picture.astype(float) - expected).mean() < 2


def test_encoded_pixels_come_back():
    pixels = gradient_picture()
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(encode_image(pixels, ".png")))), pixels)


@pytest.mark.parametrize("strategy", ["RLE", "DEFAULT"])
def test_png_of_an_opencv_without_filters(monkeypatch, strategy):
    monkeypatch.delattr(cv2, "IMWRITE_PNG_FILTER", raising=False)
    pixels = gradient_picture()
    data = encode_image(pixels, ".PNG", strategy)
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(data))), pixels)


def test_durable_files_are_on_the_disk_before_they_are_moved(tmp_path, monkeypatch):
    steps = []
    genuine = {name: getattr(os, name) for name in ("fsync", "replace")}

    def fsync(handle):
        steps.append(os.fstat(handle).st_size)
        genuine["fsync"](handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("moved") or genuine["replace"](*paths))
    write_files({tmp_path / "a.png": b"1", tmp_path / "b.png": b"22"}, durable=True)
    assert steps == [1, 2, "moved", "moved"]
    steps.clear()
    write_files({tmp_path / "a.png": b"1"})
    assert steps == ["moved"] and (tmp_path / "b.png").read_bytes() == b"22"


def test_writing_does_not_touch_the_umask(tmp_path, monkeypatch):
    """It is of the whole process: a file that another thread makes meanwhile would be open to all."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask set"))
    write_files({tmp_path / "a.png": b"1"})
    assert (tmp_path / "a.png").read_bytes() == b"1"


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("failing", ["mkstemp", "fdopen", "replace"])
@pytest.mark.parametrize("call", [1, 2])
def test_when_one_file_fails_nothing_is_left(tmp_path, monkeypatch, failing, call):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "other.txt").write_text("stays")
    before = snapshot(tmp_path)
    module = tempfile if failing == "mkstemp" else os
    genuine, calls = getattr(module, failing), []

    def fails(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return genuine(*args, **kwargs)

    for folder in (tmp_path / "here", tmp_path / "new" / "deep"):
        calls.clear()
        monkeypatch.setattr(module, failing, fails)
        with pytest.raises(InputError, match="无法写入.*No space left"):
            write_files({folder / "a.png": b"1", folder / "a_overlay.png": b"2"})
        monkeypatch.setattr(module, failing, genuine)
        assert snapshot(tmp_path) == before


def test_a_disk_that_fills_while_writing(tmp_path, monkeypatch):
    genuine = os.fdopen

    class Full:
        def __init__(self, handle):
            self.file = genuine(handle, "wb")

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.file.close()

        def write(self, data):
            self.file.write(data[:1])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", lambda handle, mode: Full(handle))
    with pytest.raises(InputError, match="No space left"):
        write_files({tmp_path / "new" / "a.png": b"123"})
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files({tmp_path / "new" / "a.png": b"123"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a_overlay.png"])
def test_a_folder_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=name):
        save_results(Results([tiny_result()]), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_existing_files_are_replaced(tmp_path):
    for name in ("a.png", "a_overlay.png"):
        (tmp_path / name).write_bytes(b"old")
    write_files({tmp_path / "a.png": b"1", tmp_path / "a_overlay.png": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"1", "a_overlay.png": b"2"}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_results_have_the_permissions_of_other_files(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_files({tmp_path / "a.png": b"1"})
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode
