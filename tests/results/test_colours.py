"""The colours of heatmaps and overlays: against formulas written out by hand."""

import cv2
import numpy as np
import pytest
from test_drawing import figure, grid, items_of, ramp, words
from tiny import gradient_picture, tiny_clip, tiny_result

from clip_gradcam_visualization import explain, visualize_clip_gradcam
from models.errors import InputError
from models.explain.heatmap import show_cam_on_image
from models.results.colours import (
    BLENDS,
    COLORMAPS,
    DEFAULT_COLOURS,
    Colours,
    choose_colours,
    coloured,
    overlay,
    overlay_levels,
)
from models.results.page import Picture
from models.results.result import Results

LEVELS = np.arange(256, dtype=np.uint8)
JET_VEIL = Colours("jet", "constant", 0.4)
# each level of a heatmap beside each grey
EACH_LEVEL = np.repeat(np.float32(LEVELS)[:, None] / np.float32(255), 256, axis=1)
EACH_GREY = np.repeat(np.tile(LEVELS, (256, 1))[..., None], 3, axis=2)
MASKS = {"levels": EACH_LEVEL, "noise": np.random.default_rng(0).random((256, 256), np.float32)}


def table(colormap):
    """RGB [256, 3] of the name that OpenCV gives it."""
    return cv2.applyColorMap(LEVELS[:, None], getattr(cv2, f"COLORMAP_{colormap.upper()}"))[:, 0, ::-1]


def opacity(level, colours):
    """Of one level in [0, 255]."""
    if colours.blend == "constant":
        return colours.alpha
    t = min(max((level / 255 - 0.1) / 0.5, 0), 1)
    return colours.alpha * (3 * t**2 - 2 * t**3)


def exact(colours):
    """The overlay of EACH_LEVEL on EACH_GREY: float64 [256, 256, 3], 0 to 255."""
    o = np.array([opacity(level, colours) for level in range(256)])[:, None, None]
    return o * table(colours.colormap)[:, None].astype(float) + (1 - o) * EACH_GREY


# -- the formula ------------------------------------------------------------------------------


def test_colormaps_are_opencvs_of_the_name():
    for name, number in COLORMAPS.items():
        assert number == getattr(cv2, f"COLORMAP_{name.upper()}")
        np.testing.assert_array_equal(coloured(EACH_LEVEL, name)[:, 0], table(name))


@pytest.mark.parametrize("alpha", [0.03, 0.5, 1.0])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("colormap", COLORMAPS)
def test_an_overlay_is_the_formula_and_in_whole_levels_at_most_one_off(colormap, blend, alpha):
    colours = Colours(colormap, blend, alpha)
    smooth, whole = (draw(EACH_GREY, EACH_LEVEL, colours) for draw in (overlay, overlay_levels))
    assert (smooth.dtype, whole.dtype) == (np.float32, np.uint8)
    np.testing.assert_allclose(255 * smooth, exact(colours), atol=1e-4)
    assert np.abs(whole - np.rint(exact(colours))).max() <= 1


def test_what_is_cold_is_the_image_itself_and_what_is_hot_as_opaque_as_it_gets():
    o = BLENDS["heat"].opacity
    cold = LEVELS / 255 <= 0.1
    assert not o[cold].any() and (np.diff(o) >= 0).all() and (o[LEVELS / 255 >= 0.6] == 1).all()
    for draw, white in ((overlay, 1 / 255), (overlay_levels, 1)):
        drawn = draw(EACH_GREY, EACH_LEVEL, DEFAULT_COLOURS._replace(alpha=1.0))
        np.testing.assert_allclose(drawn[cold], EACH_GREY[cold] * white, rtol=1e-6)
        np.testing.assert_allclose(drawn[153:], table("plasma")[153:, None].repeat(256, 1) * white, rtol=1e-6)


@pytest.mark.parametrize("colours", [DEFAULT_COLOURS, JET_VEIL], ids=str)
def test_where_the_model_saw_nothing_the_image_stays(colours):
    pixels, heatmap = gradient_picture(40, 60), ramp((40, 60))
    seen = [draw(pixels, heatmap, colours)[10:] for draw in (overlay, overlay_levels)]
    heatmap[:10] = np.nan
    for draw, below, white in zip((overlay, overlay_levels), seen, (1 / 255, 1)):
        drawn = draw(pixels, heatmap, colours)
        np.testing.assert_array_equal(drawn[10:], below)
        np.testing.assert_allclose(drawn[:10], pixels[:10] * white, rtol=1e-6)


# -- what was before --------------------------------------------------------------------------


def show_cam_on_image_before(img, mask, colormap, alpha):
    """As it was while there was no other blend: for uint8 images."""
    pixels = img.astype(np.float32) / np.float32(255)
    levels = np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, colormap)[..., ::-1].astype(np.float32) / np.float32(255)
    return np.clip(alpha * colours + (1 - alpha) * pixels, 0, 1).astype(np.float32)


def blend_before(pixels, heatmap, alpha):
    levels = cv2.convertScaleAbs(heatmap, alpha=255)
    jet = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(jet, alpha, pixels, 1 - alpha, 0)


@pytest.mark.parametrize("alpha", [0, 0.25, 0.4, 0.7, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_a_constant_blend_is_byte_for_byte_what_overlays_were(mask, alpha):
    mask = MASKS[mask]
    for colormap in (cv2.COLORMAP_JET, cv2.COLORMAP_BONE):
        before = show_cam_on_image_before(EACH_GREY, mask, colormap, alpha)
        np.testing.assert_array_equal(show_cam_on_image(EACH_GREY, mask, colormap, alpha), before)
    colours = JET_VEIL._replace(alpha=alpha)
    np.testing.assert_array_equal(overlay_levels(EACH_GREY, mask, colours), blend_before(EACH_GREY, mask, alpha))
    before = show_cam_on_image_before(EACH_GREY, mask, cv2.COLORMAP_JET, alpha)
    np.testing.assert_array_equal(overlay(EACH_GREY, mask, colours), before)


def test_one_word_brings_back_what_was_before():
    assert choose_colours(blend="constant") == JET_VEIL
    np.testing.assert_array_equal(
        show_cam_on_image(EACH_GREY, EACH_LEVEL), overlay(EACH_GREY, EACH_LEVEL, choose_colours(blend="constant"))
    )


# -- which colours ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked, colours",
    [
        ({}, ("plasma", "heat", 0.5)),
        ({"blend": "heat"}, ("plasma", "heat", 0.5)),
        ({"colormap": "turbo"}, ("turbo", "heat", 0.5)),
        ({"alpha": 1}, ("plasma", "heat", 1.0)),
        ({"alpha": np.float32(0.5), "blend": "constant"}, ("jet", "constant", 0.5)),
        ({"blend": "constant", "colormap": "hot"}, ("hot", "constant", 0.4)),
    ],
    ids=str,
)
def test_what_is_not_asked_for_is_the_blends_own(asked, colours):
    assert choose_colours(**asked) == colours and type(choose_colours(**asked).alpha) is float


@pytest.mark.parametrize(
    "asked, problem",
    [
        ({"colormap": "plasme"}, "没有配色 plasme；最接近的是 plasma；可用：plasma、.*jet"),
        ({"colormap": "JET"}, "没有配色 JET；最接近的是 jet；"),
        ({"colormap": ""}, "没有配色 ；可用：plasma"),
        ({"colormap": cv2.COLORMAP_JET}, "没有配色 2；可用：plasma"),
        ({"colormap": ["jet"]}, r"没有配色 \['jet'\]；最接近的是 jet；可用"),
        ({"blend": {}}, "没有叠加方式 {}；可用"),
        ({"blend": "heet"}, "没有叠加方式 heet；最接近的是 heat；可用：heat、constant"),
        *(({"alpha": alpha}, f"alpha 应大于 0、至多 1，收到 {alpha}") for alpha in (0, -0.1, 1.01, np.nan, "0.5")),
    ],
    ids=str,
)
def test_what_is_no_colour_is_answered_with_what_is(asked, problem):
    with pytest.raises(InputError, match=problem):
        choose_colours(**asked)
    with pytest.raises(InputError, match=problem):
        explain(tiny_clip(), "nowhere.png", ["甲", "乙"], **asked)


# -- what shows them --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(400, 600), (150, 600)], ids=["bar beside", "bar below"])
@pytest.mark.parametrize("colours", [Colours("viridis", "heat", 1.0), Colours("hot", "constant", 1.0)], ids=str)
def test_panel_bar_and_overlay_of_a_figure_have_the_same_colours(colours, size):
    """Where they are hot and opaque: shown pixel by pixel."""
    colours_of_levels, levels = table(colours.colormap), np.rint(ramp(size) * 255).astype(np.uint8)
    page = figure(size=size, colours=colours, overlay=overlay_levels(gradient_picture(*size), ramp(size), colours))
    _, panel, bar, laid_over = (picture.pixels for picture in items_of(page, Picture))
    np.testing.assert_array_equal(panel, colours_of_levels[levels])
    along = bar[::-1, 0] if size == (400, 600) else bar[0]
    np.testing.assert_array_equal(along, colours_of_levels[np.rint(np.linspace(0, 255, len(along))).astype(int)])
    hot = levels >= 153
    np.testing.assert_array_equal(laid_over[hot], panel[hot])


def test_the_tiles_and_the_bar_of_a_grid_have_the_same_colours():
    colours = Colours("inferno", "heat", 1.0)
    result = tiny_result([0, 2])._replace(colours=colours)
    heatmap, laid_over = max(Results([result]).drawn(), key=lambda drawn: drawn[0].max())
    *_, bar = items_of(grid(colours=colours), Picture)
    hottest = laid_over[np.unravel_index(heatmap.argmax(), heatmap.shape)]
    assert hottest.tolist() == bar.pixels[0, -1].tolist() == table("inferno")[255].tolist()


@pytest.mark.parametrize("lang, words_of_it", [("zh", "低于 0.1 不着色"), ("en", "uncoloured below 0.1")])
def test_the_footer_says_what_is_uncoloured(lang, words_of_it):
    for draw in (figure, grid):
        assert words_of_it in words(draw(lang, colours=DEFAULT_COLOURS))
        assert words_of_it not in words(draw(lang, colours=JET_VEIL))


@pytest.mark.parametrize("asked", [{}, {"colormap": "viridis", "blend": "constant", "alpha": 0.7}], ids=str)
def test_what_is_asked_for_in_python_is_drawn(tmp_path, asked):
    clip, pixels, texts = tiny_clip(), gradient_picture(), ["正常", "松动", "感染"]
    colours = choose_colours(**asked)
    result = explain(clip, pixels, texts, target_text_idx=[0, 2], img_size=64, **asked)
    assert result.colours == colours
    expected = [overlay(pixels, heatmap, colours) for heatmap in result.heatmaps()]
    np.testing.assert_array_equal(result.overlay, expected[0])
    both = visualize_clip_gradcam(clip, pixels, texts, target_text_idx=[0, 2], img_size=64, **asked)
    np.testing.assert_allclose(both, expected, atol=1e-4)
    assert np.abs(both - pixels / 255).max() > 0.2
    save_path = tmp_path / "a.png"
    one = visualize_clip_gradcam(clip, pixels, texts, target_text_idx=2, img_size=64, save_path=save_path, **asked)
    written = cv2.cvtColor(cv2.imread(str(tmp_path / "a_overlay.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_allclose(written, 255 * one, atol=1.5)
