"""`explain` in a notebook, and the flags that choose what is explained: methods, layers, similarity, tests."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Clip, PooledNet, gradient_picture, tiny_clip, vit_blocks

import clip_gradcam_visualization as script
from clip_gradcam_visualization import CLIPGradCAM, explain, get_target_layer_for_clip, main
from models.errors import InputError
from models.explain.methods import METHOD_LABELS, METHODS, TEXT_FREE
from models.images.preprocessing import Preprocessing, Region
from models.images.reading import read_image, to_pixels
from models.results.result import ImageResult, Results

TEXTS = ["正常", "松动", "感染"]
LAYER_METHODS = [name for name, method in METHODS.items() if method.formula]


@pytest.fixture(scope="module")
def vit_clip():
    model = tiny_clip("vit")
    del vit_blocks(model)[:-3]
    return model


# -- what comes back --------------------------------------------------------------------------


@pytest.mark.usefixtures("single_layer")
def test_the_result_holds_what_was_computed(clip, picture):
    result = explain(clip, picture, {"甲": "正常", "乙": "松动", "丙": "感染"}, target_text_idx=1, img_size=64)
    pixels = read_image(picture)
    with torch.no_grad():
        features = clip.text_encoder(texts=TEXTS)
    layer = get_target_layer_for_clip(clip)
    expected = CLIPGradCAM(clip, layer).text_maps(script.preprocess(pixels, 64), features, 1)
    np.testing.assert_allclose(result.layer_map, expected.maps[0, 0].relu(), atol=1e-6)
    np.testing.assert_allclose(result.similarities, expected.similarities[0], atol=1e-6)
    np.testing.assert_allclose(result.probabilities, clip.probabilities(expected.similarities[0]).detach(), atol=1e-6)
    assert result.map.shape == pixels.shape[:2] and result.map.dtype == result.layer_map.dtype == np.float32
    np.testing.assert_allclose(result.map / result.map.max(), result.heatmap, atol=1e-6)
    assert (result.names, result.texts) == (["甲", "乙", "丙"], TEXTS)
    assert (result.method, result.layer, result.geometry) == ("gradcam", "stages.3.3", Region(0, 0, 90, 60))


def test_the_result_is_frozen(clip, picture):
    result = explain(clip, picture, TEXTS, img_size=64)
    with pytest.raises(AttributeError):
        result.method = "layercam"


SHOWN = [{}, {"target_text_idx": "all"}, {"method": "all"}, {"faithfulness": True}]


@pytest.mark.parametrize("options", SHOWN, ids=str)
def test_a_notebook_shows_the_figure(clip, picture, options, tmp_path):
    result = explain(clip, picture, TEXTS, img_size=64, **options)
    shown = result._repr_png_()
    assert Image.open(io.BytesIO(shown)).width > 800
    script.save_results(result if isinstance(result, Results) else Results([result]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes() == shown


def test_a_path_a_picture_and_an_array_are_one(clip, picture):
    pixels = read_image(picture)
    expected = explain(clip, picture, TEXTS, img_size=64).maps
    for image in (str(picture), Image.fromarray(pixels), pixels, pixels / 255):
        np.testing.assert_array_equal(explain(clip, image, TEXTS, img_size=64).maps, expected)


# -- arrays as images ---------------------------------------------------------------------------


def test_grey_levels_of_other_kinds_are_scaled_over_their_range():
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000 + 500
    expected = np.rint(np.arange(12).reshape(3, 4) * 255 / 11)
    for array in (grey, grey.astype(np.int32), grey.astype(np.float32), grey[..., None]):
        np.testing.assert_array_equal(to_pixels(array), np.repeat(expected[..., None], 3, 2))
    np.testing.assert_array_equal(to_pixels(Image.fromarray(grey)), to_pixels(grey))


def test_bytes_and_unit_floats_are_taken_as_they_are():
    dark = np.full((2, 3), 7, np.uint8)
    np.testing.assert_array_equal(to_pixels(dark), np.full((2, 3, 3), 7))
    np.testing.assert_array_equal(to_pixels(dark / 255), np.full((2, 3, 3), 7))
    np.testing.assert_array_equal(to_pixels(np.array([[True, False]]))[0, :, 0], [255, 0])
    rgba = np.dstack([gradient_picture(), np.zeros((60, 90), np.uint8)])
    np.testing.assert_array_equal(to_pixels(rgba), gradient_picture())


def test_a_picture_that_is_given_is_left_as_it_was():
    image = Image.fromarray(gradient_picture(20, 30))
    image.getexif()[0x0112] = 6  # to be turned by a quarter
    turned = to_pixels(image)
    assert turned.shape == (30, 20, 3) and image.size == (30, 20)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2, 2)), np.zeros(5), np.zeros((0, 4)), np.array([["a"]]), np.full((2, 2, 3), 300.0)], ids=str
)
def test_an_array_that_is_no_image_is_refused(array):
    with pytest.raises(InputError, match="图像"):
        to_pixels(array)


# -- methods, layers, similarity ----------------------------------------------------------------


@pytest.mark.parametrize("method", LAYER_METHODS)
def test_each_method_explains_as_its_call_does(clip, picture, method):
    result = explain(clip, picture, TEXTS, img_size=64, method=method, target_text_idx=2)
    cam = CLIPGradCAM(clip, get_target_layer_for_clip(clip), method=method)
    with torch.no_grad():
        features = clip.text_encoder(texts=TEXTS)
    explanation = cam.text_maps(script.preprocess(read_image(picture), 64), features, torch.arange(3)[None])
    np.testing.assert_allclose(result.maps, explanation.maps[0], atol=1e-6)
    assert result.method == method


def test_all_methods_of_a_convolutional_net_and_of_a_transformer(clip, vit_clip, picture):
    results = explain(clip, picture, TEXTS, img_size=64, method="all")
    assert isinstance(results, Results) and [r.method for r in results] == LAYER_METHODS
    results = explain(vit_clip, picture, TEXTS, img_size=64, method="all")
    assert [r.method for r in results] == list(METHODS)
    assert all(isinstance(r, ImageResult) and r.maps.shape == (3, 4, 4) for r in results)
    assert {r.targets[0] for r in results} == {int(results[0].similarities.argmax())}


def test_what_rounding_leaves_of_terms_that_cancel_is_no_heatmap(vit_clip, picture):
    """The last block reads the patches of the one before through a norm alone: sum_k g_k A_k is zero everywhere."""
    block = script.layer_name(vit_clip, vit_blocks(vit_clip)[-2])
    result = explain(vit_clip, picture, TEXTS, block, 0, img_size=64, method="hirescam")
    assert not result.maps.any() and any("梯度为零" in message for message in result.messages())
    assert explain(vit_clip, picture, TEXTS, block, 0, img_size=64, method="layercam").maps[0].any()


def test_a_method_that_knows_no_text_says_so(clip, vit_clip, picture):
    for model, method in ((clip, "eigencam"), (vit_clip, "rollout")):
        result = explain(model, picture, TEXTS, img_size=64, method=method)
        assert np.array_equal(result.maps[0], result.maps[1]) and result.sensitivities == [pytest.approx(1)]
        assert any("不看文本" in message for message in result.messages())


def test_layers_are_named_where_the_map_comes_from(vit_clip, clip, picture):
    def named(model, **options):
        return explain(model, picture, TEXTS, img_size=64, **options).layer

    blocks = [script.layer_name(vit_clip, block) for block in vit_blocks(vit_clip)]
    assert named(clip, target_layer=["stages.2.7", "stages.3.3"]) == "stages.2.7 + stages.3.3"
    assert named(vit_clip, method="legrad") == " + ".join(blocks[-2:])
    assert named(vit_clip, method="legrad", target_layer=blocks[0]) == blocks[0]
    assert named(vit_clip, method="grad-eclip") == blocks[-1]
    assert named(vit_clip, method="rollout") == " + ".join(blocks)


@pytest.mark.usefixtures("single_layer")
def test_the_dot_product_is_another_question(clip, picture):
    cosine = explain(clip, picture, TEXTS, img_size=64, target_text_idx=0)
    dot = explain(clip, picture, TEXTS, img_size=64, target_text_idx=0, similarity="dot")
    np.testing.assert_allclose(dot.similarities, cosine.similarities, atol=1e-6)  # what is reported is the cosine
    assert np.corrcoef(dot.maps[0].ravel(), cosine.maps[0].ravel())[0, 1] < 0.999


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "gradcamm"}, "gradcamm.*最接近的是 gradcam；"),
        ({"method": "legrad"}, "legrad 需要视觉 Transformer"),
        ({"method": "all", "target_text_idx": [0, 1]}, "一次只比较一个文本"),
        ({"similarity": "euclid"}, "cosine 或 dot"),
        ({"target_layer": ["stages.3.3", "stages.9"]}, "stages.9"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(clip, picture, options, message):
    with pytest.raises(InputError, match=message):
        explain(clip, picture, TEXTS, img_size=64, **options)


def test_a_tower_without_raw_embeddings_has_no_dot_product():
    net = PooledNet()
    with pytest.raises(InputError, match="点积"):
        CLIPGradCAM(Clip(net), net.conv, similarity="dot").text_maps(torch.randn(1, 3, 32, 32), torch.randn(2, 5))


def test_the_defaults_of_a_family_are_its_row(monkeypatch, clip, picture):
    monkeypatch.setitem(script.DEFAULTS, "starnet_s1", script.Default("layercam", "dot", ("stages.1.1",)))
    result = explain(clip, picture, TEXTS, img_size=64)
    assert (result.method, result.question.similarity, result.layer) == ("layercam", "dot", "stages.1.1")
    result = explain(clip, picture, TEXTS, img_size=64, method="gradcam", similarity="cosine")
    assert (result.method, result.question.similarity, result.layer) == ("gradcam", "cosine", "stages.3.3")


# -- geometry -----------------------------------------------------------------------------------


def test_what_the_crop_cut_off_is_not_coloured(clip, picture):
    model = tiny_clip()
    model.preprocessing = Preprocessing(64, (64, 64), resample=3)
    result = explain(model, picture, TEXTS)
    rows, columns = result.geometry.pixels(60, 90)
    assert result.geometry == Region(15, 0, 75, 60)
    assert np.isnan(result.map[:, :15]).all() and not np.isnan(result.map[rows, columns]).any()
    np.testing.assert_allclose(result.overlay[:, :15] * 255, read_image(picture)[:, :15], atol=1e-4)
    seen = explain(tiny_clip(), read_image(picture)[:, 15:75], TEXTS, img_size=64)
    assert np.corrcoef(seen.map.ravel(), result.map[rows, columns].ravel())[0, 1] > 0.9  # another filter, that is all


def test_pixels_that_no_patch_covers_are_not_coloured(vit_clip):
    pixels = gradient_picture(72, 72)
    result = explain(vit_clip, pixels, TEXTS, img_size=72)  # four patches of 16, and 8 pixels left over
    assert result.geometry == Region(0, 0, 64, 64)
    assert np.isnan(result.map[64:]).all() and np.isnan(result.map[:, 64:]).all()


# -- the command line ---------------------------------------------------------------------------


@pytest.fixture
def command(checkpoint, picture, tmp_path):
    """Flags of a command that writes to `out`; more may follow."""

    def build(*more, image=picture):
        fixed = ["--model-path", checkpoint, "--image-path", image, "--output-dir", tmp_path / "out"]
        return [*map(str, fixed), "--num-workers", "0", *more, "--class-texts", *TEXTS]

    return build


def written(folder):
    return {path.name for path in (folder / "out").iterdir() if path.is_file()}


def rows_of(folder):
    return [json.loads(line) for line in (folder / "out" / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_one_method_by_its_flag(command, tmp_path, capsys, clip, picture):
    arguments = command("--method", "layercam", "--similarity", "dot", "--save-heatmap", "--target-text-idx", "1")
    assert main(arguments) == 0
    expected = explain(clip, picture, TEXTS, target_text_idx=1, img_size=64, method="layercam", similarity="dot")
    np.testing.assert_allclose(np.load(tmp_path / "out" / "clip_gradcam_image_heatmap.npy"), expected.map, atol=1e-6)
    assert "LayerCAM：目标文本：[1] 松动" in capsys.readouterr().out


def test_all_methods_side_by_side(command, tmp_path, capsys):
    assert main(command("--method", "all", "--save-heatmap")) == 0
    names = {f"clip_gradcam_image_overlay_{method}.png" for method in LAYER_METHODS}
    arrays = {f"clip_gradcam_image_heatmap{of}_{m}.npy" for m in LAYER_METHODS for of in ("", "_layer")}
    assert written(tmp_path) == {"clip_gradcam_image.png", *names, *arrays}
    out, err = capsys.readouterr()
    assert all(f"{METHOD_LABELS[method]}：" in out for method in LAYER_METHODS)
    assert all(line.startswith("警告: ") and "：热力图" in line for line in err.splitlines()), err


def test_several_layers_by_their_flag(command, capsys):
    assert main(command("--layers", "stages.2.7", "stages.3.3")) == 0
    assert "目标层：stages.2.7 + stages.3.3（4×4）" in capsys.readouterr().out


def test_the_faithfulness_of_a_folder_is_in_its_tables(command, tmp_path, picture, clip, capsys):
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / name).write_bytes(picture.read_bytes())
    arguments = command("--faithfulness", "--method", "all", "--overlay-only", image=tmp_path / "data")
    assert main(arguments) == 0
    rows = rows_of(tmp_path)
    assert [row["method"] for row in rows] == LAYER_METHODS * 2
    result = explain(clip, picture, TEXTS, img_size=64, method="hirescam", faithfulness=True)
    (tested,) = result.faithfulness
    for row in (row for row in rows if row["method"] == "hirescam"):
        assert row["deletion"] == pytest.approx(tested.deletion, abs=1e-4)
        assert row["insertion_margin"] == pytest.approx(tested.insertion_margin, abs=1e-4)
        assert row["explained"] == "cosine" and row["seen"] == 1
        assert (tmp_path / "out" / row["overlay"]).name.endswith("_overlay_hirescam.png")
    assert main([*arguments, "--resume"]) == 0 and rows_of(tmp_path) == rows
    assert main([*arguments[: arguments.index("--faithfulness")], *arguments[-4:], "--resume"]) == 2
    assert "--faithfulness（上次 True，这次 False）" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--method", "gradcan"], "--method 不能是 'gradcan'"),
        (["--method", "legrad"], "需要视觉 Transformer"),
        (["--similarity", "l2"], "--similarity 不能是 'l2'"),
        (["--method", "all", "--all-texts"], "一次只比较一个文本"),
        (["--layers", "stages.3.3", "--target-layer", "stages.3.3"], "只能二选一"),
        (["--layers"], "--layers 后面至少需要一个值"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_are_one_line(command, capsys, tmp_path, more, message):
    assert main(command(*more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err, err
    assert not (tmp_path / "out").exists()


def test_text_free_methods_are_those_of_the_table():
    assert set(METHOD_LABELS) == set(METHODS)
    assert set(TEXT_FREE) == {name for name, method in METHODS.items() if not method.knows_text}
