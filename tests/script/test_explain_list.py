"""`explain` of a list of images: in batches, in order, as one by one."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Clip, gradient_picture, tiny_clip

from clip_gradcam_visualization import explain, visualize_clip_gradcam
from models.errors import InputError
from models.images.preprocessing import Preprocessing
from models.results.result import ImageResult, Results

TEXTS = ["正常", "松动", "感染"]


def pictures(count: int) -> list[np.ndarray]:
    """Images of many sizes, none like the other."""
    turned = (np.rot90(gradient_picture(40 + 3 * n, 90 - 2 * n), n) for n in range(count))
    return [np.ascontiguousarray(255 - image if n % 3 else image) for n, image in enumerate(turned)]


@pytest.fixture
def watched():
    """(model, sizes of the batches through its image tower, of those through its text tower)."""
    model, images, texts = tiny_clip(), [], []
    embed = model.image_encoder.embed
    model.image_encoder.embed = lambda batch: images.append(len(batch)) or embed(batch)
    model.text_encoder.register_forward_hook(lambda *call: texts.append(len(call[-1])))
    return model, images, texts


def assert_same_result(one: ImageResult, other: ImageResult):
    """All but what a batch rounds otherwise is equal."""
    for name in ("maps", "probabilities", "similarities"):
        expected = getattr(other, name)
        np.testing.assert_allclose(getattr(one, name), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert one.specificities == pytest.approx(other.specificities, abs=1e-4)
    rounded = {name: getattr(other, name) for name in ("maps", "probabilities", "similarities", "specificities")}
    assert one._replace(**rounded) == other


@pytest.mark.parametrize("options", [{}, {"target_text_idx": "all"}, {"method": "layercam", "contrast": True}], ids=str)
def test_a_list_gives_what_its_images_give_one_by_one(clip, options):
    images = pictures(11)
    results = explain(clip, images, TEXTS, img_size=64, **options)
    assert isinstance(results, list) and len({len(result.pixels) for result in results}) == 11
    for result, image in zip(results, images, strict=True):
        assert_same_result(result, explain(clip, image, TEXTS, img_size=64, **options))
        np.testing.assert_array_equal(result.pixels, image)


def test_paths_pictures_and_arrays_may_stand_in_one_list(clip, picture):
    array = gradient_picture(40, 50)
    for images in ([picture, Image.fromarray(array), array], (str(picture), array, array / 255)):
        first, second, third = explain(clip, images, TEXTS, img_size=64)
        assert_same_result(second, third)
        np.testing.assert_array_equal(second.pixels, third.pixels)
        assert first.pixels.shape == (60, 90, 3)


def test_all_methods_of_each_image(clip):
    images = pictures(3)
    answers = explain(clip, images, TEXTS, img_size=64, method="all")
    for results, image in zip(answers, images, strict=True):
        expected = explain(clip, image, TEXTS, img_size=64, method="all")
        assert isinstance(results, Results) and [r.method for r in results] == [r.method for r in expected]
        for result, other in zip(results, expected):
            np.testing.assert_allclose(result.maps, other.maps, rtol=0, atol=1e-3 * np.abs(other.maps).max())


def test_a_test_of_faithfulness_is_each_images_own(clip):
    images = pictures(2)
    results = explain(clip, images, TEXTS, img_size=64, faithfulness=True)
    for result, image in zip(results, images):
        (expected,) = explain(clip, image, TEXTS, img_size=64, faithfulness=True).faithfulness
        assert result.faithfulness[0][:3] == pytest.approx(expected[:3], abs=1e-3)


def test_eight_images_at_a_time_and_the_texts_once(watched):
    model, images, texts = watched
    assert len(explain(model, pictures(19), TEXTS, img_size=64)) == 19
    assert images == [8, 8, 3] and texts == [3]


def test_one_at_a_time_where_the_inputs_sizes_differ(watched):
    model, images, _ = watched
    model.preprocessing = Preprocessing(64)  # the shorter edge, no crop
    assert len({result.maps.shape for result in explain(model, pictures(3), TEXTS)}) > 1 and images == [1, 1, 1]


def test_one_at_a_time_where_memory_is_short(clip, watched):
    model, images, _ = watched
    embed = model.image_encoder.embed

    def little_memory(batch):
        if len(batch) > 1:
            raise RuntimeError("CUDA out of memory")
        return embed(batch)

    model.image_encoder.embed = little_memory
    for result, image in zip(explain(model, pictures(3), TEXTS, img_size=64), pictures(3), strict=True):
        assert_same_result(result, explain(clip, image, TEXTS, img_size=64))


def test_no_images_no_results(clip):
    assert explain(clip, [], TEXTS) == []


# -- what cannot be used ----------------------------------------------------------------------


BATCH = np.zeros((2, 30, 40, 3), np.uint8)


@pytest.mark.parametrize(
    "bad, problem",
    [
        ("nowhere.png", "image[2]：找不到图像文件：nowhere.png"),
        (BATCH, "image[2]：图像应是路径、PIL 图像，或 [高, 宽] 或 [高, 宽, 3] 的数组；收到 uint8 [2, 30, 40, 3]"),
        (None, "image[2]：图像应是路径、PIL 图像，或 [高, 宽] 或 [高, 宽, 3] 的数组；收到 object []"),
    ],
    ids=["path", "array", "none"],
)
def test_an_image_that_cannot_be_read_is_named_before_the_model_works(watched, bad, problem):
    model, images, texts = watched
    with pytest.raises(InputError) as error:
        explain(model, [*pictures(2), bad, "another.png"], TEXTS)
    assert str(error.value) == problem and not images and not texts


class NoBlack(torch.nn.Module):
    """A tower whose embedding of an image that is all black is not finite."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, images):
        is_black = images.amax((1, 2, 3))[:, None] < -1.5
        return torch.where(is_black, torch.nan, self.conv(images).mean((2, 3)))


@pytest.mark.parametrize(
    "black, about", [([4], r"image\[4\]："), ([9], r"image\[9\]："), (range(10), ""), (None, "")], ids=str
)
def test_an_image_that_the_model_cannot_take_is_named(black, about):
    """Not where all of a batch fail: that is the model's fault; nor where there is no list."""
    model = Clip(NoBlack())
    model.temperature = 0.07
    asked = {"target_layer": "conv", "img_size": 32, "text_features": torch.eye(4)[:3]}
    nothing = np.zeros((50, 60, 3), np.uint8)
    images = nothing if black is None else [nothing if n in black else image for n, image in enumerate(pictures(10))]
    with pytest.raises(InputError, match=f"^{about}(?!image).*NaN"):
        explain(model, images, TEXTS, **asked)


def test_an_array_of_several_images_is_one_image_or_an_error(clip):
    with pytest.raises(InputError, match=r"^图像应是.*\[2, 30, 40, 3\]"):
        explain(clip, BATCH, TEXTS)
    assert isinstance(explain(clip, BATCH[0], TEXTS), ImageResult)


def test_visualize_takes_one_image(clip):
    with pytest.raises(InputError, match="一次解释一张图像；多张图像请用 explain"):
        visualize_clip_gradcam(clip, pictures(2), TEXTS)
