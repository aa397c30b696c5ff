"""models/evaluation/measures.py and baselines.py: formulas against others written plainly, packed annotations."""

import base64
import os
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from models.errors import InputError
from models.evaluation.baselines import BASELINES, LOCALISATION, gaussian_map, grow, measure_baselines
from models.evaluation.measures import (
    GRID,
    areas_of,
    contrast_to_noise,
    coverage_of,
    distance,
    energy,
    iou,
    measure_areas,
    measure_heatmap,
    pack_coverage,
    segmentation,
    unpack_levels,
)


def smooth_map(seed, size=(300, 260)):
    """float32 [H, W] >= 0, as a map of 7 x 7 cells is shown."""
    cells = np.random.default_rng(seed).normal(size=(7, 7)).astype(np.float32).clip(0)
    return cv2.resize(cells, size[::-1], interpolation=cv2.INTER_LINEAR)


def rectangle(top, left, bottom, right, size=(300, 260)):
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


# -- formulas ---------------------------------------------------------------------------------


def chexlocalize(heatmap):
    """CheXlocalize's `cam_to_segmentation`, written plainly: every contour of Otsu's cut, drawn by Pillow."""
    levels = heatmap - heatmap.min()
    levels = np.uint8(255 * (levels / levels.max()))
    _, cut = cv2.threshold(levels, 0, int(levels.max()), cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(cut, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    page = Image.new("1", (heatmap.shape[1], heatmap.shape[0]))
    for contour in contours:
        if len(contour) > 1:
            ImageDraw.Draw(page).polygon([tuple(map(int, point[0])) for point in contour], outline=1, fill=1)
    return np.array(page)


@pytest.mark.parametrize("seed", range(12))
def test_the_segmentation_is_that_of_chexlocalize(seed):
    heatmap = smooth_map(seed)
    np.testing.assert_array_equal(segmentation(heatmap), chexlocalize(heatmap))


def test_holes_are_filled_and_single_pixels_left_out():
    heatmap = np.zeros((40, 40), np.float32)
    heatmap[5:20, 5:20], heatmap[10:14, 10:14], heatmap[30, 30] = 1, 0, 1
    assert (segmentation(heatmap) == rectangle(5, 5, 20, 20, (40, 40))).all()


@pytest.mark.parametrize("seed", range(4))
def test_each_measure_is_its_formula(seed):
    heatmap, mask = smooth_map(seed), rectangle(40, 30, 140, 200)
    measures = measure_heatmap(7e-3 * heatmap, mask, (100, 20))
    exact = heatmap.astype(np.float64)
    inside, outside = exact[mask], exact[~mask]
    assert measures.energy == pytest.approx(inside.sum() / exact.sum(), rel=1e-5)
    shown = exact > exact.max() / 2
    assert measures.iou_half == (shown & mask).sum() / (shown | mask).sum()
    shown = chexlocalize(7e-3 * heatmap)
    assert measures.iou_otsu == (shown & mask).sum() / (shown | mask).sum()
    noise = np.sqrt(inside.var() + outside.var())
    assert measures.contrast_to_noise == pytest.approx((inside.mean() - outside.mean()) / noise, rel=1e-5)
    assert measures.distance == pytest.approx(20 * GRID / 300)


def test_distance_is_of_the_grid_and_zero_inside():
    mask = rectangle(100, 50, 150, 90, (448, 112))  # a pixel is half as high and twice as wide as one of the grid
    mask[120:130, 60:80] = False  # a hole
    rows, columns = np.nonzero(mask)
    for x, y in ((0, 0), (111, 447), (70, 125), (20, 120), (70, 400)):
        expected = np.hypot((columns - x) * 2, (rows - y) / 2).min()
        assert distance(mask, (x, y)) == pytest.approx(expected)
    assert distance(mask, (50, 100)) == 0


def test_an_empty_map_has_no_peak_and_measures_nothing():
    assert measure_heatmap(np.zeros((30, 40), np.float32), rectangle(1, 1, 5, 5, (30, 40)), None) == (None, 0, 0, 0, 0)


def test_what_was_not_seen_counts_as_zero():
    heatmap, mask = smooth_map(3), rectangle(40, 30, 140, 200)
    heatmap[:50] = 0
    unseen = heatmap.copy()
    unseen[:50] = np.nan
    assert measure_heatmap(unseen, mask, (0, 100)) == measure_heatmap(heatmap, mask, (0, 100))
    assert np.isnan(unseen[:50]).all()


@pytest.mark.parametrize("levels", [(1, 0), (0.7, 0.3), (0.3, 0.3)])
def test_without_noise_there_is_no_ratio(levels):
    mask = rectangle(40, 30, 140, 200)
    assert contrast_to_noise(np.where(mask, *np.float32(levels)), mask) == 0


def test_where_nothing_lies_outside_there_is_no_contrast():
    assert contrast_to_noise(smooth_map(0), np.ones((300, 260), bool)) is None
    assert contrast_to_noise(smooth_map(0, (GRID, GRID)), np.ones((GRID, GRID))) is None


def test_a_perfect_map_and_one_beside():
    mask = rectangle(40, 30, 140, 200)
    perfect = mask * np.float32(5) + np.float32(0)
    assert measure_heatmap(perfect, mask, (60, 60)) == (0, 1, 1, 1, 0)
    beside = rectangle(200, 30, 280, 200).astype(np.float32)
    assert measure_heatmap(beside, mask, (60, 210))[1:4] == (0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_coverages_measure_what_the_full_resolution_does(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: 4 * GRID, : 3 * GRID]
    mask = ((y - rng.uniform(200, 700)) / 150) ** 2 + ((x - rng.uniform(200, 500)) / 97) ** 2 < 1
    cells = smooth_map(seed, (GRID, GRID)).astype(np.float64)
    full, areas = cells.repeat(4, 0).repeat(3, 1), areas_of(cells)
    of_full = type(areas)(*(area.repeat(4, 0).repeat(3, 1) for area in areas))
    coverage = coverage_of(mask)
    assert ((coverage > 0) & (coverage < 1)).any()
    on_grid, in_full = measure_areas(cells, areas, coverage), measure_areas(full, of_full, mask)
    assert on_grid == pytest.approx(in_full, rel=1e-6)


def test_iou_and_energy_of_nothing():
    nothing = np.zeros((4, 4), bool)
    assert iou(nothing, nothing) == 0 and energy(np.zeros((4, 4)), nothing) == 0


# -- coverages --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 80), (300, 100), (1000, 700), (224, 224), (1, 1)])
def test_coverage_is_the_mean_of_what_lies_on_a_cell(size):
    mask = np.random.default_rng(0).random(size) < 0.4
    mask[0, 0] = True

    def shares(pixels):  # [224, pixels]: how much of a cell each pixel is
        edges = np.arange(GRID + 1) * pixels / GRID
        low, high = np.maximum.outer(edges[:-1], np.arange(pixels)), np.minimum.outer(edges[1:], np.arange(pixels) + 1)
        return np.clip(high - low, 0, None) * GRID / pixels

    expected = shares(size[0]) @ mask @ shares(size[1]).T
    np.testing.assert_allclose(coverage_of(mask), expected, atol=2e-3)  # OpenCV leaves out a thousandth of a pixel


def test_packed_coverages_come_back_to_the_level():
    y, x = np.mgrid[:2000, :1500]
    coverage = coverage_of(((y - 900) / 400) ** 2 + ((x - 700) / 250) ** 2 < 1)
    packed = pack_coverage(coverage)
    assert packed.isascii() and len(packed) < 2048
    np.testing.assert_allclose(unpack_levels(packed) / 255, coverage, atol=1 / 255)


def test_a_single_pixel_of_a_large_image_does_not_vanish():
    coverage = np.zeros((GRID, GRID), np.float32)
    coverage[3, 5] = 1e-4
    assert np.argwhere(unpack_levels(pack_coverage(coverage))).tolist() == [[3, 5]]


def encoded(data):
    return base64.b64encode(data).decode()


CELLS = bytes([0, 255]) * (GRID * GRID // 2)
HOSTILE = {
    "empty": "",
    "no base64": "髋" * 40,
    "no zlib": encoded(b"something else"),
    "too few": encoded(zlib.compress(CELLS[:-1])),
    "too many": encoded(zlib.compress(CELLS + b"\0")),
    "a bomb": encoded(zlib.compress(bytes(50 << 20), 9)),
    "torn": encoded(zlib.compress(CELLS)[:-3]),
    "more behind": encoded(zlib.compress(CELLS) + b"more"),
    "long": "A" * (1 << 22),
    "nothing drawn": encoded(zlib.compress(bytes(GRID * GRID))),
    "a number": 7,
    "none": None,
}


@pytest.mark.parametrize("packed", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_packed_coverage_is_refused(packed):
    with pytest.raises(InputError, match="标注.*换一个输出目录"):
        unpack_levels(packed)


def test_what_does_not_shrink_is_still_ours():
    noise = np.frombuffer(os.urandom(GRID * GRID), np.uint8).reshape(GRID, GRID) / np.float32(255)
    np.testing.assert_allclose(unpack_levels(pack_coverage(noise)) / 255, noise, atol=1e-6)


# -- baselines --------------------------------------------------------------------------------


def box(top, left, bottom, right):
    return rectangle(top, left, bottom, right, (GRID, GRID)).astype(np.float32)


def baselines(masks, patients=None, tolerance=15):
    """{baseline: {measure: value}} of each of {(image, text): coverage}."""
    packed = {key: pack_coverage(mask) for key, mask in masks.items()}
    measured = measure_baselines(list(masks), patients or {}, packed, tolerance)
    return [{name: dict(zip(LOCALISATION, row)) for name, row in zip(BASELINES, rows)} for rows in measured]


@pytest.mark.parametrize("tolerance", [0, 1, 15, 2.5])
def test_cells_grow_by_the_distance_between_centres(tolerance):
    cells = np.zeros((60, 50), bool)
    cells[[0, 30, 31, 59], [0, 20, 22, 49]] = True
    rows, columns = np.indices(cells.shape)
    apart = np.min([np.hypot(rows - y, columns - x) for y, x in np.argwhere(cells)], axis=0)
    np.testing.assert_array_equal(grow(cells, tolerance), apart <= tolerance)


def test_chance_is_the_share_of_the_image():
    (measured,) = baselines({("a", 0): box(100, 100, 110, 120)})
    near = grow(box(100, 100, 110, 120) > 0, 15).mean()
    area = pytest.approx(200 / GRID**2)
    assert measured["chance"] == {
        "pointing": pytest.approx(near), "pointing_strict": area, "energy": area, "iou_half": area, "iou_otsu": area,
        "contrast_to_noise": 0,
    }  # fmt: skip
    assert np.isnan(list(measured["class_place"].values())).all()  # there is no other image


def test_the_place_of_a_class_leaves_the_image_out():
    masks = {("a", 0): box(10, 10, 30, 30), ("b", 0): box(10, 10, 30, 50), ("c", 0): box(100, 100, 140, 140)}
    a, b, c = (measured["class_place"] for measured in baselines(masks))
    # of a: the mean of b and c, 800 and 1600 cells, of which 400 are a's
    assert a["energy"] == pytest.approx(400 / 2400) and a["iou_half"] == a["iou_otsu"] == pytest.approx(400 / 2400)
    assert b["energy"] == pytest.approx(400 / 2000)
    assert c["energy"] == 0 and c["pointing"] == c["pointing_strict"] == 0
    # of c: a and b agree on a's place, whose middle is the peak
    assert a["pointing"] == 0  # the middle between b and c, which none of them covers
    masks["d", 0] = masks["a", 0]
    a, b, c, d = (measured["class_place"] for measured in baselines(masks))
    assert a["pointing"] == a["pointing_strict"] == d["pointing"] == 1 and c["pointing"] == 0
    place = (masks["b", 0] + masks["c", 0] + masks["a", 0]) / 3  # d is like a
    assert a["contrast_to_noise"] == pytest.approx(contrast_to_noise(place.astype(np.float64), masks["a", 0] > 0))


def test_the_place_of_a_class_leaves_the_patient_out_and_other_classes():
    masks = {("a", 0): box(10, 10, 30, 30), ("b", 0): box(10, 10, 30, 30), ("c", 0): box(100, 100, 140, 140)}
    masks["a", 1] = box(10, 10, 30, 30)
    of_one_patient = baselines(masks, {"a": "p", "b": "p", "c": "q"})
    assert [measured["class_place"]["energy"] for measured in of_one_patient[:3]] == [0, 0, 0]
    assert np.isnan(of_one_patient[3]["class_place"]["energy"])
    assert baselines(masks, {"c": "q"})[0]["class_place"]["energy"] == pytest.approx(400 / 2000)


def test_the_gaussian_points_at_the_middle():
    middle, corner = baselines({("a", 0): box(105, 105, 120, 120), ("b", 1): box(0, 0, 20, 20)})
    assert middle["gaussian"]["pointing"] == middle["gaussian"]["pointing_strict"] == 1
    assert corner["gaussian"]["pointing"] == 0
    assert corner["gaussian"]["energy"] == pytest.approx(gaussian_map()[:20, :20].sum() / gaussian_map().sum())


def test_a_tiny_annotation_has_cells_and_what_is_missing_has_no_baselines():
    coverage = np.zeros((GRID, GRID), np.float32)
    coverage[112, 112], coverage[112, 113] = 0.02, 0.01
    packed = {("a", 0): pack_coverage(coverage)}
    measured = measure_baselines([("a", 0), ("b", 0)], {}, packed, 0)
    assert measured[0, BASELINES.index("chance"), 0] == 1 / GRID**2
    assert measured[0, BASELINES.index("gaussian"), 1] == 1 and np.isnan(measured[1]).all()


def test_a_damaged_annotation_is_said():
    with pytest.raises(InputError, match="标注"):
        measure_baselines([("a", 0)], {}, {("a", 0): "torn"}, 15)
