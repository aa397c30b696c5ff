"""How images become input, and where the input lies on the image."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import gradient_picture
from torchvision import transforms

from models.explain.heatmap import resize_map, to_heatmap
from models.images.preprocessing import Preprocessing, Region, preprocess, square
from models.results.colours import choose_colours, overlay, overlay_levels
from models.runs.tables import measure_map

# -- preprocessing ----------------------------------------------------------------------------


def test_preprocessing_is_trainings():
    pixels = gradient_picture(50, 80)
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    theirs = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalise])
    expected = theirs(Image.fromarray(pixels))[None]
    torch.testing.assert_close(preprocess(pixels, 224), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 224])
def test_the_two_halves_of_preprocessing_are_exact(size):
    """Bit for bit what one expression gives, for every level of every channel, and for several images at once."""
    levels = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 7)], axis=-1)
    batch = np.stack([square(size).resize_and_crop(p) for p in (gradient_picture(50, 80), gradient_picture(9, 300))])
    for images in (levels.astype(np.uint8).reshape(1, 16, 16, 3), batch):
        expected = (images.astype(np.float32) / 255.0 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        given = square(size).normalise(images)
        assert given.dtype == torch.float32 and given.is_contiguous()
        np.testing.assert_array_equal(given.numpy(), expected.astype(np.float32).transpose(0, 3, 1, 2))
    assert batch.dtype == np.uint8
    assert torch.equal(preprocess(gradient_picture(50, 80), size)[0], square(size).normalise(batch)[0])


# -- resized by the shorter edge, cropped in the middle -----------------------------------------

CLIP_LIKE = Preprocessing(32, (32, 32), resample=3)


@pytest.mark.parametrize("height, width, resized", [(50, 80, (32, 51)), (80, 50, (51, 32)), (7, 100, (32, 457))])
def test_the_shorter_edge_and_the_middle(height, width, resized):
    pixels = gradient_picture(height, width)
    assert CLIP_LIKE.resized_size(height, width) == resized and CLIP_LIKE.input_size(height, width) == (32, 32)
    whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BICUBIC))
    top, left = (resized[0] - 32) // 2, (resized[1] - 32) // 2
    np.testing.assert_array_equal(CLIP_LIKE.resize_and_crop(pixels), whole[top : top + 32, left : left + 32])


def test_a_crop_larger_than_the_image_is_padded_with_black():
    prepare = Preprocessing((20, 30), (25, 24))
    pixels = gradient_picture(20, 30)
    cropped = prepare.resize_and_crop(pixels)
    assert cropped.shape == (25, 24, 3) and not cropped[:3].any() and not cropped[23:].any()
    np.testing.assert_array_equal(cropped[3:23], pixels[:, 3:27])
    assert prepare.region(20, 30) == Region(3, -3, 27, 22)


def test_the_region_is_what_the_crop_shows():
    """A ramp along each axis tells where every pixel of the input comes from."""
    height, width = 300, 500
    column = np.arange(width) / width * 255
    pixels = np.broadcast_to(column[None, :, None], (height, width, 3)).astype(np.uint8)
    prepare = Preprocessing(100, (100, 100))
    region = prepare.region(height, width)
    centres = region.left + (np.arange(100) + 0.5) * (region.right - region.left) / 100
    np.testing.assert_allclose(prepare.resize_and_crop(pixels)[50, :, 0], centres / width * 255, atol=1.5)
    assert (region.top, region.bottom) == (0, 300) and not region.is_whole(height, width)
    assert region.share(height, width) == pytest.approx(300 / 500, abs=0.01)
    assert square(224).region(60, 90).is_whole(60, 90) and square(224).region(60, 90).share(60, 90) == 1


def test_pixels_of_a_region_are_those_whose_centres_lie_in_it():
    assert Region(1.4, 0.6, 3.5, 9.0).pixels(5, 6) == (slice(1, 5), slice(1, 3))
    assert Region(-2.0, -2.0, 3.0, 3.0).pixels(5, 6) == (slice(0, 3), slice(0, 3))


@pytest.mark.parametrize("shape", [(60, 90), (1000, 30), (16, 16), (333, 777)])
def test_free_shapes_keep_proportions_and_the_number_of_patches(shape):
    prepare = Preprocessing(0, patches=(16, 64))
    height, width = prepare.input_size(*shape)
    assert height % 16 == width % 16 == 0 and height * width // 256 <= 64
    assert prepare.resize_and_crop(gradient_picture(*shape)).shape == (height, width, 3)
    assert prepare.region(*shape).is_whole(*shape) and not prepare.fixed_size
    larger = (height + 16) * (width + 16) // 256 if min(height, width) > 16 else 65
    assert larger > 64  # no room for a row and a column more


def test_only_a_shape_that_follows_the_image_is_not_fixed():
    assert square(8).fixed_size and CLIP_LIKE.fixed_size and Preprocessing((8, 4)).fixed_size
    assert not Preprocessing(8).fixed_size


# -- the way back: a map onto the image ---------------------------------------------------------


def test_a_region_that_is_the_whole_image_changes_nothing():
    raw = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(resize_map(raw, (60, 90), Region(0, 0, 90, 60)), resize_map(raw, (60, 90)), atol=1e-5)


def test_each_cell_lies_on_the_pixels_it_was_made_of():
    """A linear ramp over the cells of a crop is, between their centres, the same ramp over the image's pixels."""
    region = Region(20.5, 10, 70.5, 60)
    ramp = np.tile((np.arange(10, dtype=np.float32) + 0.5) / 10, (10, 1))  # a cell's centre as a share of the crop
    resized = resize_map(ramp, (70, 90), region)
    rows, columns = region.pixels(70, 90)
    outside = np.ones((70, 90), bool)
    outside[rows, columns] = False
    assert np.isnan(resized[outside]).all() and not np.isnan(resized[~outside]).any()
    expected = ((np.arange(90) + 0.5 - region.left) / 50).clip(0.05, 0.95)
    np.testing.assert_allclose(resized[30, columns], expected[columns], atol=1e-5)


def test_where_the_model_saw_nothing_the_image_stays_as_it_is():
    pixels, region = gradient_picture(60, 90), Region(15, 0, 75, 60)
    heatmap = to_heatmap(np.float32([[1, 2], [1, 2]]), (60, 90), region=region)
    flat = to_heatmap(np.full((2, 2), 3, np.float32), (60, 90), region=region)
    assert np.nanmax(heatmap) == 1 and not flat[:, 15:75].any()
    smooth, whole = (draw(pixels, heatmap, choose_colours(blend="constant")) for draw in (overlay, overlay_levels))
    for side in (slice(0, 15), slice(75, 90)):
        assert np.isnan(flat[:, side]).all()
        np.testing.assert_allclose(smooth[:, side] * 255, pixels[:, side], atol=1e-4)
        np.testing.assert_array_equal(whole[:, side], pixels[:, side])
    assert np.abs(whole[:, 15:75].astype(int) - pixels[:, 15:75]).max() > 20
    np.testing.assert_allclose(smooth[:, 15:75] * 255, whole[:, 15:75], atol=1.5)


def test_the_peak_is_measured_on_the_region():
    raw, region = np.zeros((4, 4), np.float32), Region(20, 0, 60, 40)
    raw[1, 3] = 1
    measured = measure_map(raw, resize_map(raw, (40, 80), region), region)
    assert (measured["peak_x"], measured["peak_y"]) == (55, 15)
    assert 0 < measured["area_above_half"] < 0.1
