"""Deletion and insertion: areas in closed form, and what each scored image shows."""

import numpy as np
import pytest
import torch
from torch import nn

from models.explain.faithfulness import BATCH, RANDOM_STEPS, STEPS, measure_faithfulness

SIDE = 20  # 5 % of the pixels are one row
SHARED = 2 + RANDOM_STEPS - 1  # the whole image, the empty one, those of the random maps
STEP = np.linspace(0, 1, STEPS + 1)


def ones(height=SIDE, width=SIDE):
    return torch.ones(1, 3, height, width)


def mean_within(region):
    """A score: the mean of the pixels in a region [h, w]."""
    weights = torch.as_tensor(region).float() / float(region.sum())
    return lambda images: (images.mean(1) * weights).sum((1, 2))[:, None]


def rows_of(*rows):
    region = np.zeros((SIDE, SIDE), bool)
    region[slice(*rows)] = True
    return region


class Recorder:
    """A score that keeps what it was shown."""

    def __init__(self, columns=1):
        self.batches, self.columns = [], columns

    def __call__(self, images):
        self.batches.append(images.clone())
        return images.mean((1, 2, 3))[:, None].repeat(1, self.columns)


def measured(score, *maps, **options):
    return measure_faithfulness(score, ones(), np.stack(maps).astype(float), [0] * len(maps), **options)


def images_shown(image, *maps):
    score = Recorder()
    measure_faithfulness(score, image, np.stack(maps), [0] * len(maps))
    return torch.cat(score.batches)


def changes(mask):
    """How often neighbours differ, in the rows and columns of masks [..., h, w]: the length of their edges."""
    return (mask.diff(dim=-1) != 0).sum().item() + (mask.diff(dim=-2) != 0).sum().item()


# -- areas in closed form


def test_every_map_is_as_good_as_chance_where_all_pixels_count_alike():
    for found in measured(mean_within(np.ones((SIDE, SIDE))), *np.random.default_rng(0).normal(size=(3, 4, 5))):
        np.testing.assert_allclose(np.stack(found[3:]), [1 - STEP, STEP, 1 - STEP], atol=1e-6)
        assert found[:3] == pytest.approx([0.5] * 3, abs=1e-6)
        assert (found.deletion_margin, found.insertion_margin) == pytest.approx((0, 0), abs=1e-6)
        assert all(curve.dtype == np.float32 and curve.shape == (21,) for curve in found[3:])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_map_of_the_region_that_counts(share):
    """Hidden first, it takes the score with it within its share of the pixels: an area of share / 2."""
    region = rows_of(0, round(share * SIDE))
    right, wrong = measured(mean_within(region), region, ~region)
    np.testing.assert_allclose(right.deletion_curve, (1 - STEP / share).clip(0), atol=1e-6)
    np.testing.assert_allclose(right.insertion_curve, (STEP / share).clip(0, 1), atol=1e-6)
    assert (right.deletion, right.insertion) == pytest.approx((share / 2, 1 - share / 2), abs=1e-6)
    assert (wrong.deletion, wrong.insertion) == pytest.approx((1 - share / 2, share / 2), abs=1e-6)
    assert right.deletion_margin == right.random - right.deletion > 0 > wrong.deletion_margin
    assert right.insertion_margin == right.insertion - right.random > 0 > wrong.insertion_margin
    assert right.random == wrong.random


def test_the_insertion_of_a_map_is_the_deletion_of_its_reverse():
    values = np.random.default_rng(1).permutation(SIDE * SIDE).reshape(SIDE, SIDE) + 1.0
    one, other = measured(mean_within(rows_of(3, 9)), values, 401 - values)
    np.testing.assert_allclose(one.insertion_curve, other.deletion_curve[::-1], atol=1e-6)
    assert one.insertion == pytest.approx(other.deletion, abs=1e-6)


def test_negative_values_count_as_zero():
    region = rows_of(0, 5)
    negative = np.where(region, 1, -np.arange(1, SIDE + 1.0)[:, None])
    one, other = measured(mean_within(rows_of(4, 12)), region, negative)
    np.testing.assert_array_equal(one.deletion_curve, other.deletion_curve)


# -- what is hidden and what is shown


def test_each_image_shows_its_share_of_the_pixels_unchanged():
    image = torch.randn(1, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    images = images_shown(image, np.random.default_rng(0).normal(size=(3, 4)))
    shown = (images != 0).any(1)
    assert torch.equal(images, image * shown[:, None])  # whole pixels; what is hidden is 0
    counts = [round(step * 33 * 47 / 20) for step in range(21)]
    deletion, insertion = shown[SHARED : SHARED + 19], shown[SHARED + 19 :]
    assert shown.sum((1, 2)).tolist()[:2] == [33 * 47, 0]
    assert (33 * 47 - deletion.sum((1, 2))).tolist() == insertion.sum((1, 2)).tolist() == counts[1:-1]
    assert (deletion[:-1] | ~deletion[1:]).all() and (insertion[1:] | ~insertion[:-1]).all()  # one ranking
    assert torch.equal(insertion, ~deletion)  # the highest come first in both


def test_the_highest_cell_is_hidden_first():
    raw_map = np.full((4, 4), 0.1)
    raw_map[2, 1] = 1.0
    rows, columns = np.nonzero(images_shown(ones(64, 64), raw_map)[SHARED, 0].numpy() == 0)
    assert (rows.mean(), columns.mean()) == pytest.approx((39.5, 23.5), abs=0.5)  # the cell's centre
    assert np.ptp(rows) < 20 and np.ptp(columns) < 20


def test_each_map_is_measured_by_its_own_column():
    regions = [rows_of(0, 5), rows_of(10, 20)]
    score = lambda images: torch.cat([mean_within(region)(images) for region in regions], 1)  # noqa: E731
    one, other = measure_faithfulness(score, ones(), np.stack(regions[::-1]).astype(float), [1, 0])
    assert (one.deletion, other.deletion) == pytest.approx((0.25, 0.125), abs=1e-6)


# -- ties


@pytest.mark.parametrize("seen", [(5, 12), (13, 20)])
def test_ties_favour_neither_end_of_the_image(seen):
    """A map that says nothing of the rest of the image does there as chance does, wherever the object lies."""
    score = mean_within(rows_of(*seen))
    areas = [measured(score, rows_of(0, 4), batch=99, seed=seed)[0][:2] for seed in range(60)]
    np.testing.assert_allclose(np.mean(areas, axis=0), (0.6, 0.4), atol=0.01)  # falls from 20 % on, evenly


def test_ties_are_broken_by_blobs_as_large_as_the_cells():
    """Noise from pixel to pixel would have edges everywhere: about 64 x 64 of them at the half."""
    half = images_shown(ones(64, 64), np.eye(1, 16).reshape(4, 4))[SHARED + 9, 0] != 0
    assert 20 < changes(half) < 500


def test_rounding_is_no_order():
    """Interpolation gives a plateau of 0.7 slightly different values; one of 0 stays exact."""
    maps = np.stack([np.full((7, 7), 0.7), np.zeros((7, 7))])
    maps[:, :, 0] = 1.1
    rough, exact = images_shown(ones(230, 230), *maps)[SHARED:].split(38)
    assert torch.equal(rough[4:], exact[4:])  # once the column is hidden, or shown


# -- random maps


def test_random_maps_have_the_grain_of_the_map_and_mirror_each_other():
    random = images_shown(ones(60, 60), np.random.default_rng(3).normal(size=(3, 3)))[2:SHARED, 0]
    assert len(random) == 9
    np.testing.assert_allclose((random == 0).float().mean((1, 2)), np.arange(1, 10) / 10, atol=1e-6)
    for step in range(1, 5):  # the insertion of these maps is their deletion: one set of images for both
        assert torch.equal(random[step - 1] + random[9 - step], torch.ones(60, 60))
    assert changes(random != 0) < 9 * 400
    hidden = random[:4] == 0
    assert not any((hidden[a] <= hidden[b]).all() for a in range(4) for b in range(a + 1, 4))  # each of another map


def test_the_random_curve_is_interpolated_between_its_steps():
    (found,) = measured(mean_within(rows_of(0, 7)), np.eye(4))
    curve = found.random_curve
    np.testing.assert_allclose(curve[1::2], (curve[:-1:2] + curve[2::2]) / 2, atol=1e-6)
    assert found.random == pytest.approx(np.interp(np.linspace(0, 1, 999), STEP, curve).mean(), abs=1e-3)
    assert (curve[0], curve[-1]) == pytest.approx((1, 0), abs=1e-6)


def test_random_maps_delete_and_insert_alike_on_average():
    areas = [measured(mean_within(rows_of(2, 6)), np.eye(5), batch=99, seed=seed)[0].random for seed in range(60)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.01)  # of a score that is linear in the pixels
    assert np.std(areas) > 0.01


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_gives_the_same_numbers_each_time(seed):
    one, again, other = (measured(mean_within(rows_of(2, 6)), np.eye(5), seed=s)[0] for s in (seed, seed, seed + 1))
    assert one[:3] == again[:3] and one.random != other.random
    np.testing.assert_array_equal(np.stack(one[3:]), np.stack(again[3:]))


# -- several maps, batches


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 4, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("batch", [1, 7, BATCH, 1000])
def test_several_maps_at_once_give_what_each_gives_alone(network, batch):
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.normal(size=(1, 3, 40, 56)).astype(np.float32))
    maps, columns = generator.normal(size=(3, 3, 4)), [2, 0, 2]
    for t, found in enumerate(measure_faithfulness(network, image, maps, columns, batch)):
        (alone,) = measure_faithfulness(network, image, maps[t : t + 1], columns[t : t + 1])
        np.testing.assert_allclose(np.stack(found[3:]), np.stack(alone[3:]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count, batch, calls", [(1, BATCH, 5), (1, 49, 1), (3, 16, 8), (9, 32, 12)])
def test_how_many_images_are_scored(count, batch, calls):
    score = Recorder(count)
    measure_faithfulness(score, ones(), np.random.default_rng(0).normal(size=(count, 4, 4)), range(count), batch)
    sizes = [len(images) for images in score.batches]
    assert sum(sizes) == 11 + 38 * count and len(sizes) == calls
    assert max(sizes) <= batch and max(sizes) - min(sizes) <= 1


def test_a_flat_map_ranks_nothing():
    score, flat = Recorder(), [np.full((4, 4), level) for level in (0.5, -1.0, 0.0)]
    assert measured(score, *flat) == [None] * 3 and score.batches == []
    found = measured(score, np.eye(4), *flat, 0.5 - np.eye(4)[::-1])
    assert [f is None for f in found] == [False, True, True, True, False]
    assert sum(map(len, score.batches)) == 11 + 2 * 38


def test_scores_are_taken_without_gradients_and_arguments_stay(network):
    image, maps = torch.rand(1, 3, 20, 20, requires_grad=True), torch.eye(4)[None].requires_grad_()
    before, seen = image.detach().clone(), []

    def score(images):
        seen.append(torch.is_grad_enabled() or images.requires_grad)
        return network(images).to(torch.bfloat16)

    (found,) = measure_faithfulness(score, image, maps, [1])
    assert not any(seen) and torch.is_grad_enabled() and torch.equal(image, before)
    assert isinstance(found.deletion, float) and found.deletion_curve.dtype == np.float32
