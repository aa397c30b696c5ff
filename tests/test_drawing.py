"""Room 4: overlay, figure, fonts, saving."""

import os
import sys
import warnings
from io import BytesIO
from itertools import combinations

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from tiny import gradient_picture

import clip_gradcam_visualization as script
from clip_gradcam_visualization import (
    encode_figure,
    encode_image,
    output_paths,
    save_results,
    show_cam_on_image,
    write_files,
)
from models import figure as figure_module
from models.errors import InputError
from models.figure import SHIPPED_FONT, FigureContent, FigureFonts, draw_figure, wrap_text

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
    assert script.COLORMAP_JET == cv2.COLORMAP_JET


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
        "overlay": show_cam_on_image(pixels, heatmap),
        "names": names,
        "texts": [f"{name}的描述" for name in names],
        "probabilities": probabilities.astype(np.float32),
        "similarities": np.zeros(len(names), np.float32),
        "target": target,
        "source": ("starnet_s1", "stages.3.3", 7, 7),
        **options,
    }
    return FigureContent(**values)


def render(content, lang="zh"):
    """(figure drawn to the last pixel, its renderer), with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_figure(content, lang)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return figure, canvas.get_renderer()


def visible_texts(figure):
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def words(figure):
    return "\n".join(text.get_text() for text in visible_texts(figure))


def panels(figure):
    """The four panels in the order of the guide; the colour bar is a child of the second."""
    return figure.axes[:4]


def image_panels(figure):
    return [axes for axes in panels(figure) if axes.images]


def probability_panel(figure):
    (axes,) = [axes for axes in panels(figure) if not axes.images]
    return axes


@pytest.mark.parametrize("lang, present, absent", [("zh", CHINESE, ENGLISH), ("en", ENGLISH, CHINESE)])
def test_the_figures_words(lang, present, absent):
    figure, _ = render(content_of(names=["正常", "松动", "感染"]), lang)
    shown = words(figure)
    assert all(word in shown for word in present)
    assert not any(word in shown for word in absent)
    assert "starnet_s1" in shown and "stages.3.3" in shown and "7×7" in shown
    assert "正常" in shown  # the users' own words stay


def test_four_panels_show_what_they_say():
    content = content_of()
    figure, _ = render(content)
    original, heatmap, overlay = image_panels(figure)
    np.testing.assert_array_equal(original.images[0].get_array(), content.pixels)
    np.testing.assert_array_equal(heatmap.images[0].get_array(), content.heatmap)
    np.testing.assert_allclose(overlay.images[0].get_array(), content.overlay)
    assert heatmap.images[0].get_clim() == (0, 1) and heatmap.images[0].get_cmap().name == "jet"
    titles = [axes.get_title() for axes in (original, heatmap, overlay, probability_panel(figure))]
    assert all(word in title for word, title in zip(CHINESE[:4], titles, strict=True))
    assert "类别0的描述" in titles[1]


def overlapping(figure, renderer, texts=None):
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts or visible_texts(figure)]
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]


def outside(figure, renderer):
    frame = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in visible_texts(figure)]
    return [t for t, b in boxes if b.x0 < frame.x0 or b.y0 < frame.y0 or b.x1 > frame.x1 or b.y1 > frame.y1]


def over_an_image(figure, renderer):
    """Texts of the probability panel that reach into another panel's picture."""
    texts = probability_panel(figure).findobj(Text)
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_visible() and t.get_text()]
    pictures = [axes.images[0].get_window_extent(renderer) for axes in image_panels(figure)]
    return [t for t, b in boxes for p in pictures if b.overlaps(p)]


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


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("size", [(60, 90), (300, 75), (75, 300)], ids=["3:2", "1:4", "4:1"])
@pytest.mark.parametrize("kind", NAMES)
def test_no_text_lies_over_another_or_outside(kind, size, lang):
    names = NAMES[kind]
    figure, renderer = render(content_of(names=names, target=len(names) - 1, size=size, texts=names), lang)
    assert overlapping(figure, renderer) == []
    assert outside(figure, renderer) == []
    assert over_an_image(figure, renderer) == []


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("probabilities", [[1, 0, 0], [0.5, 0.5, 0], [0.999, 0.001, 0], [0, 0.004, 0.996]])
def test_percentages_at_the_ends_of_the_scale(probabilities, lang):
    figure, renderer = render(content_of(probabilities=probabilities, target=1), lang)
    shown = words(figure)
    assert all(f"{100 * p:.1f}%" in shown for p in probabilities)
    assert overlapping(figure, renderer) == [] and outside(figure, renderer) == []


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 30])
def test_bars_are_the_ten_likeliest_in_order(count):
    content = content_of(count, target=int(np.random.default_rng(0).normal(size=count).argmax()))
    axes = probability_panel(render(content)[0])
    widths = [bar.get_width() for bar in axes.patches]
    order = np.argsort(-content.probabilities)[:10]
    np.testing.assert_allclose(widths, 100 * content.probabilities[order], rtol=1e-5)
    assert [label.get_text() for label in axes.get_yticklabels()] == [content.names[i] for i in order]
    shown = [text.get_text() for text in axes.texts]
    assert shown == [f"{100 * content.probabilities[i]:.1f}%" for i in order]
    low, high = axes.get_ylim()
    assert low > high  # the likeliest on top
    assert ("10" in axes.get_title() and "30" in axes.get_title()) == (count == 30)


def test_the_target_has_a_bar_even_when_it_is_unlikely():
    probabilities = np.linspace(0.1, 0.01, 15)
    content = content_of(15, target=14, probabilities=probabilities / probabilities.sum())
    axes = probability_panel(render(content)[0])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [*(f"类别{i}" for i in range(9)), "类别14"]


@pytest.mark.parametrize("target, marks", [(0, ["预测且为目标"]), (1, ["预测", "目标"])])
def test_prediction_and_target_are_marked(target, marks):
    axes = probability_panel(render(content_of(probabilities=[0.7, 0.2, 0.1], target=target))[0])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == marks
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] != colours[1] and colours[0] != colours[2]
    assert (colours[1] == colours[2]) == (target == 0)


@pytest.mark.parametrize("height, width", [(400, 100), (100, 400), (60, 90), (10, 40), (1, 1), (2000, 500), (3, 900)])
def test_image_panels_keep_the_originals_proportions(height, width):
    figure, renderer = render(content_of(size=(height, width)))
    assert len(image_panels(figure)) == 3
    for axes in image_panels(figure):
        box = axes.images[0].get_window_extent(renderer)
        assert box.width / box.height == pytest.approx(width / height, rel=0.01)


ODD_TEXTS = (
    *("价格 $5 与 $6$", "$x^2$", r"\frac$a$", "a$", "x" * 21 + "$$" * 9, "100% & <b>"),
    *("骨折🦴 plus é ß Ω", "\u202eabc", "𠀀𪚥", "tab\tnew\nline"),
)


@pytest.mark.parametrize("text", ODD_TEXTS, ids=range(len(ODD_TEXTS)))
def test_any_text_is_drawn_as_it_is(text):
    content = content_of(names=[text, "正常"], texts=[text, "正常"], warning=text)
    figure, renderer = render(content)
    panel_texts = [t for t in visible_texts(figure) if t in probability_panel(figure).findobj(Text)]
    assert overlapping(figure, renderer, panel_texts) == []
    label = probability_panel(figure).get_yticklabels()[int(content.probabilities[0] < content.probabilities[1])]
    title = image_panels(figure)[1].get_title()
    for shown in (label.get_text(), title):
        assert ("\\" in shown) == ("\\" in text)
        assert "$" not in text or "$" in shown
    assert not label.get_parse_math()


def test_characters_that_no_font_has_become_question_marks():
    fonts = FigureFonts("髋")
    assert fonts.drawable("髋🦴a") == "髋?a"


def test_a_flat_map_says_why_on_the_figure():
    figure, renderer = render(content_of(heatmap=np.zeros((60, 90), np.float32), warning="热力图为空：梯度为零"))
    assert "热力图为空" in words(figure)
    assert overlapping(figure, renderer) == []


def test_without_a_system_font_the_shipped_one_draws(monkeypatch):
    from matplotlib import font_manager

    monkeypatch.setattr(figure_module, "CHINESE_FONTS", ())
    assert SHIPPED_FONT.is_file()
    fonts = FigureFonts("髋臼假体（%）")
    assert "WenQuanYi Micro Hei" in fonts.families
    font = font_manager.get_font(str(SHIPPED_FONT))
    assert all(font.get_char_index(ord(c)) for c in "".join(CHINESE))
    render(content_of())


def test_a_font_without_the_glyphs_is_passed_over(monkeypatch):
    """A machine's font of a Chinese name that draws no Chinese would give boxes."""
    monkeypatch.setattr(figure_module, "CHINESE_FONTS", ("DejaVu Sans",))
    assert FigureFonts("髋").families[0] != "DejaVu Sans"
    assert FigureFonts("Hip").families[0] == "DejaVu Sans"
    render(content_of())


def test_drawing_changes_no_setting_of_the_caller():
    import matplotlib

    before = dict(matplotlib.rcParams)
    encode_figure(draw_figure(content_of()), ".svg")
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    "text, columns, lines, expected",
    [
        ("正常", 10, 2, "正常"),
        ("股骨柄松动", 6, 2, "股骨柄\n松动"),
        ("股骨柄松动", 6, 1, "股骨…"),
        ("hip stem loose", 9, 2, "hip stem\nloose"),
        ("abcdefghij", 4, 3, "abcd\nefgh\nij"),
        ("abcdefghij", 4, 2, "abcd\nefg…"),
        ("", 4, 2, ""),
    ],
)
def test_wrapping(text, columns, lines, expected):
    assert wrap_text(text, columns, lines) == expected


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


SIGNATURES = {
    ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".pdf": b"%PDF", ".svg": b"<?xml", ".tif": b"II*\0", ".webp": b"RIFF",
}  # fmt: skip


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_both_files_in_every_format(tmp_path, suffix):
    content = content_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, overlay = save_results(content, tmp_path / "新 文件夹" / f"结果 1{suffix}")
    assert figure.read_bytes().startswith(SIGNATURES[suffix])
    assert sorted(path.name for path in figure.parent.iterdir()) == sorted([figure.name, overlay.name])
    with Image.open(overlay) as image:
        assert image.size == (90, 60)
        error = np.abs(np.asarray(image.convert("RGB")) - 255 * content.overlay)
    assert error.max() <= 0.51 if suffix != ".jpg" else error.mean() < 6


def test_svg_carries_its_glyphs_as_outlines():
    data = encode_figure(draw_figure(content_of()), ".svg")
    assert b"<text" not in data and b"<path" in data


def test_encoded_pixels_come_back():
    pixels = gradient_picture()
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(encode_image(pixels, ".png")))), pixels)


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("failing", ["mkstemp", "fdopen", "replace"])
@pytest.mark.parametrize("call", [1, 2])
def test_when_one_file_fails_nothing_is_left(tmp_path, monkeypatch, failing, call):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "other.txt").write_text("stays")
    before = snapshot(tmp_path)
    module = script.tempfile if failing == "mkstemp" else os
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
        save_results(content_of(), tmp_path / "a.png")
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
