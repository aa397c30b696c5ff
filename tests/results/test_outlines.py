"""Outlines of annotations: where they lie on figure and grid, and what the footer says of them."""

import cv2
import numpy as np
import pytest
from test_drawing import (
    FOUR_METHODS,
    assert_nothing_collides,
    figure,
    grid,
    items_of,
    panels,
    text_with,
    tiles_of,
    vectors,
    words,
)

from models.results.outlines import MOST_POINTS, STROKES, outline_of
from models.results.page import BLACK, WHITE, Box, Line, draw_pixels
from models.results.parts import GREY

NOTES = {"zh": ("轮廓：标注", "轮廓：类别2 的标注"), "en": ("Outline: annotation", "Outline: annotation of 类别2")}


def rectangle(size, top, left, bottom, right):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def bounds(points):
    """(left, top, right, bottom)"""
    return *np.min(points, axis=0), *np.max(points, axis=0)


def lines_over(drawing, picture):
    """The white lines that start on a picture."""
    lines = [line for line in items_of(drawing, Line) if line.colour == WHITE]
    starts = ((line, *line.points[0]) for line in lines)
    return [
        line
        for line, x, y in starts
        if picture.left <= x <= picture.right and picture.top <= y <= picture.bottom  # the edge is a place for lines
    ]


# -- contours of masks ------------------------------------------------------------------------


def test_contours_lie_on_the_edges_of_pixels():
    ring = rectangle((40, 60), 10, 20, 30, 50) & ~rectangle((40, 60), 15, 25, 25, 45)
    ring |= rectangle((40, 60), 0, 0, 1, 1) | rectangle((40, 60), 38, 57, 40, 60)
    outline = outline_of(2, ring)
    found = sorted(map(bounds, outline.contours))
    assert outline.text == 2
    assert found == [(0, 0, 1, 1), (20, 10, 50, 30), (25, 15, 45, 25), (57, 38, 60, 40)]
    areas = sorted(cv2.contourArea(np.float32(contour)) for contour in outline.contours)
    assert areas == pytest.approx([1, 6, 200, 600], abs=1)


def test_round_edges_lie_within_a_pixel_and_diagonal_ones_are_straight():
    rows, columns = np.ogrid[:600, :600]
    (contour,) = outline_of(0, (rows - 300) ** 2 + (columns - 300) ** 2 < 200**2).contours
    (across,) = outline_of(0, rows > columns).contours
    radii = np.hypot(*(contour - 300.5).T)
    assert abs(radii - 200).max() < 1 and len(across) <= 6


@pytest.mark.parametrize("size", [(6000, 4000), (90, 5000), (5000, 90)], ids=str)
def test_masks_of_large_images_are_thinned_and_nothing_is_lost(size):
    place = size[0] // 3, size[1] // 4, size[0] // 2, size[1] // 2
    contours = outline_of(0, rectangle(size, *place) | rectangle(size, 0, 0, 1, 1)).contours
    speck, large = sorted(map(bounds, contours))
    cell = 1.05 * max(size) / 1024  # of a shorter side up to a twentieth larger
    assert max(speck) <= cell
    np.testing.assert_allclose(large, (place[1], place[0], place[3], place[2]), atol=cell)


def test_noise_takes_neither_many_points_nor_the_whole_image():
    rng = np.random.default_rng(0)
    for share in (0.003, 0.5):
        contours = outline_of(0, rng.random((1500, 1000)) < share).contours
        left, top, right, bottom = bounds(np.concatenate(contours))
        assert 0 < sum(map(len, contours)) <= MOST_POINTS
        assert 0 <= left < 20 and 0 <= top < 20 and 980 < right <= 1000 and 1480 < bottom <= 1500


@pytest.mark.parametrize("size", [(900, 600), (2000, 3000)], ids=str)
def test_points_are_circles(size):
    mask = np.zeros(size, bool)
    mask[size[0] // 2, size[1] // 3] = mask[0, 0] = True
    corner, circle = sorted(outline_of(0, mask, of_points=True).contours, key=lambda contour: contour[:, 0].max())
    cell, radius = max(1, max(size) / 1024), 0.012 * max(size)
    distances = np.hypot(*(circle - (size[1] // 3 + 0.5, size[0] // 2 + 0.5)).T)
    assert abs(distances - radius).max() < 2 * cell and len(circle) > 8
    assert corner.min() == 0 and corner.max() == pytest.approx(radius, abs=2 * cell)
    assert bounds(outline_of(0, rectangle((6, 8), 2, 3, 3, 4), of_points=True).contours[0]) == (3, 2, 4, 3)  # tiny


# -- on the figure ----------------------------------------------------------------------------

SIZES = [(60, 90), (10, 400), (400, 10), (3, 4), (2400, 1800)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_outline_lies_where_the_annotation_is_on_the_original_and_the_overlay(size):
    (height, width), place = size, (size[0] // 3, size[1] // 4, size[0] // 2 + 1, size[1] // 2)
    drawing = figure(size=size, outlines=[outline_of(0, rectangle(size, *place))])
    original, heatmap, overlay = panels(drawing)
    assert len(items_of(drawing, Line)) == 4 and lines_over(drawing, heatmap) == []
    for picture in (original, overlay):
        (line,) = lines_over(drawing, picture)
        shown = np.array(line.points) - (picture.left, picture.top)
        scale = (picture.right - picture.left) / width, (picture.bottom - picture.top) / height
        expected = np.array([place[1], place[0], place[3], place[2]]) * (*scale, *scale)
        np.testing.assert_allclose(bounds(shown), expected, atol=1)
        assert line.points[:2] == line.points[-2:]  # closed, its last corner as round as the others


@pytest.mark.parametrize("grey", [0, 255])
@pytest.mark.parametrize("render", [draw_pixels, vectors])
def test_the_line_is_white_between_black_on_every_ground(grey, render):
    size = 400, 600  # as large as a panel
    changes = {"pixels": np.full((*size, 3), grey, np.uint8), "overlay": np.full((*size, 3), grey, np.uint8)}
    drawing = figure(size=size, outlines=[outline_of(0, rectangle(size, 100, 150, 300, 450))], **changes)
    page = np.asarray(render(drawing)).astype(int)[..., :3]
    for picture in panels(drawing)[::2]:
        across = page[picture.top + 200, picture.left + 150 - 6 : picture.left + 150 + 6, 0]
        np.testing.assert_allclose(across, [grey] * 4 + [0, 255, 255, 0] + [grey] * 4, atol=3)


def test_a_figure_without_outlines_is_as_before():
    plain, without = figure(), figure(outlines=[None])
    assert items_of(plain, Line) == [] and "轮廓" not in words(plain)
    np.testing.assert_array_equal(draw_pixels(plain), draw_pixels(without))
    np.testing.assert_array_equal(draw_pixels(grid()), draw_pixels(grid(outlines=[None] * 3)))
    outlined = figure(outlines=[outline_of(0, rectangle((60, 90), 9, 9, 20, 20))])
    kept = [item for item in outlined.items if not isinstance(item, Line)]
    assert [type(item) for item in kept] == [*[type(item) for item in plain.items], type(kept[-1])]
    assert items_of(outlined, Box) == items_of(plain, Box)


# -- what the footer says ---------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["zh", "en"])
def test_the_footer_says_what_the_outline_is_and_whose_where_it_is_another_texts(lang):
    own, others = NOTES[lang]
    outline = outline_of(2, rectangle((60, 90), 9, 9, 20, 20))
    for drawing in (
        figure(lang, target=2, outlines=[outline]),
        grid(lang, outlines=[None, None, outline]),
        grid(lang, methods=FOUR_METHODS, outlines=[outline_of(1, rectangle((60, 90), 9, 9, 20, 20))]),
    ):
        assert text_with(drawing, own)[2] == own and text_with(drawing, own).colour == GREY
        assert_nothing_collides(drawing)
    for drawing in (figure(lang, outlines=[outline]), grid(lang, methods=FOUR_METHODS, outlines=[outline])):
        assert text_with(drawing, others)[2] == others and words(drawing).count(own[:2]) == 1
        assert_nothing_collides(drawing)


# -- on the grid ------------------------------------------------------------------------------


def test_each_tile_has_its_own_texts_outline_and_the_original_has_all():
    size, places = (60, 90), [(5, 5, 20, 20), None, (30, 40, 50, 80)]
    outlines = [place and outline_of(text, rectangle(size, *place)) for text, place in enumerate(places)]
    drawing = grid(size=size, outlines=outlines)
    original, *tiles = tiles_of(drawing)
    assert [len(lines_over(drawing, tile)) for tile in (original, *tiles)] == [2, 1, 0, 1]
    for picture, shown in [(original, places[::2]), *((t, [p]) for t, p in zip(tiles, places, strict=True) if p)]:
        scale = (picture.right - picture.left) / size[1]
        for line, (top, left, bottom, right) in zip(lines_over(drawing, picture), shown, strict=True):
            expected = np.array([left, top, right, bottom]) * scale
            expected += (picture.left, picture.top, picture.left, picture.top)
            np.testing.assert_allclose(bounds(line.points), expected, atol=1)
    order = {id(item): number for number, item in enumerate(drawing.items)}
    assert all(order[id(lines_over(drawing, tile)[0])] > order[id(tile)] for tile in (original, tiles[0], tiles[2]))


def test_of_several_methods_every_tile_has_the_outline():
    drawing = grid(methods=FOUR_METHODS, outlines=[outline_of(1, rectangle((60, 90), 9, 9, 20, 20))])
    assert [len(lines_over(drawing, tile)) for tile in tiles_of(drawing)] == [1] * 5
    assert [line.colour for line in items_of(drawing, Line)] == [BLACK, WHITE] * 5
    assert {(line.colour, line.width) for line in items_of(drawing, Line)} == set(STROKES)
