"""`explain` in a notebook, and the flags that choose what is explained: methods, layers, similarity, tests."""

import io
import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Clip, PooledNet, gradient_picture, tiny_clip, tiny_result, vit_blocks

import clip_gradcam_visualization as script
from clip_gradcam_visualization import CLIPGradCAM, explain, get_target_layer_for_clip, main
from models.errors import InputError, InputWarning
from models.explain import defaults
from models.explain.heatmap import text_specificity
from models.explain.methods import METHODS
from models.explain.needs import Attention
from models.images.preprocessing import Preprocessing, Region, square
from models.images.reading import read_image, to_pixels
from models.results.result import ImageResult, Results

TEXTS = ["正常", "松动", "感染"]
LAYER_METHODS = [name for name, method in METHODS.items() if not isinstance(method.needs, Attention)]
small = partial(explain, img_size=64)


@pytest.fixture(scope="module")
def vit_clip():
    model = tiny_clip("vit")
    del vit_blocks(model)[:-3]
    return model


# -- what comes back --------------------------------------------------------------------------


def cam_of(model, picture, targets, **options):
    """What CLIPGradCAM itself says of the default layer."""
    with torch.no_grad():
        features = model.text_encoder(texts=TEXTS)
    cam = CLIPGradCAM(model, get_target_layer_for_clip(model), **options)
    return cam.text_maps(square(64)(read_image(picture)), features, targets)


@pytest.mark.usefixtures("single_layer")
def test_the_result_holds_what_was_computed(clip, picture):
    result = small(clip, picture, dict(zip("甲乙丙", TEXTS)), target_text_idx=1)
    expected = cam_of(clip, picture, 1)
    np.testing.assert_allclose(result.layer_map, expected.maps[0, 0].relu(), atol=1e-6)
    np.testing.assert_allclose(result.similarities, expected.similarities[0], atol=1e-6)
    np.testing.assert_allclose(result.probabilities, clip.probabilities(expected.similarities[0]).detach(), atol=1e-6)
    predictions, probabilities = clip.predict(square(64)(read_image(picture)), TEXTS)
    np.testing.assert_allclose(result.probabilities, probabilities[0], rtol=1e-4)
    assert result.probabilities.argmax() == predictions[0] and result.target == 1
    assert result.map.shape == (60, 90) and result.map.dtype == result.layer_map.dtype == np.float32
    np.testing.assert_allclose(result.map / result.map.max(), result.heatmap, atol=1e-6)
    assert (result.names, result.texts) == (["甲", "乙", "丙"], TEXTS) == result.question[:2]
    assert (result.method, result.layer, result.geometry) == ("gradcam", "stages.3.3", Region(0, 0, 90, 60))
    assert result.source == ("starnet_s1", "stages.3.3", 2, 2)
    with pytest.raises(AttributeError):  # frozen
        result.targets = [0]


@pytest.mark.parametrize(
    "options", [{}, {"target_text_idx": "all"}, {"method": "all"}, {"faithfulness": True}], ids=str
)
def test_a_notebook_shows_the_figure(clip, picture, options, tmp_path):
    result = small(clip, picture, TEXTS, **options)
    shown, metadata = result._repr_png_()
    assert metadata == {"width": min(1000, Image.open(io.BytesIO(shown)).width)}
    script.save_results(result if isinstance(result, Results) else Results([result]), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes() == shown


def test_a_path_a_picture_and_an_array_are_one(clip, picture):
    pixels = read_image(picture)
    expected = small(clip, picture, TEXTS).maps
    for image in (str(picture), Image.fromarray(pixels), pixels, pixels / 255):
        np.testing.assert_array_equal(small(clip, image, TEXTS).maps, expected)


# -- arrays as images ---------------------------------------------------------------------------


def test_grey_levels_of_other_kinds_are_scaled_over_their_range():
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 1000 + 500
    expected = np.repeat(np.rint(grey * 255.0 / 11500)[..., None], 3, 2)
    for image in (grey, grey.astype(np.int32), grey.astype(np.float32), grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(to_pixels(image), expected)


def test_bytes_and_unit_floats_are_taken_as_they_are():
    dark = np.full((2, 3), 7, np.uint8)
    for array in (dark, dark / 255):
        np.testing.assert_array_equal(to_pixels(array), np.full((2, 3, 3), 7))
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
    result = small(clip, picture, TEXTS, method=method, target_text_idx=2)
    expected = cam_of(clip, picture, torch.arange(3)[None], method=method).maps[0].numpy()
    np.testing.assert_allclose(result.maps, expected[2:], atol=1e-6)
    assert result.specificities == [pytest.approx(text_specificity(expected, 2), abs=1e-5)]
    assert result.method == method and not result.is_default


def test_all_methods_of_a_convolutional_net_and_of_a_transformer(clip, vit_clip, picture):
    """The default comes first. Those that know no text have one map for all texts, and say so."""
    for model, methods, side in ((clip, LAYER_METHODS, 2), (vit_clip, list(METHODS), 4)):
        results = small(model, picture, TEXTS, method="all")
        default, *others = results
        assert isinstance(results, Results) and [r.method for r in others] == methods
        assert default.method == defaults.ENCODERS[model.image_encoder_name].method
        assert [r.is_default for r in results] == [True] + [False] * len(methods)
        assert {r.targets[0] for r in results} == {int(results[0].similarities.argmax())}
        assert all(isinstance(r, ImageResult) and r.maps.shape == (1, side, side) for r in others)
        for result in (r for r in others if not METHODS[r.method].knows_text):
            of_each = small(model, picture, TEXTS, method=result.method, target_text_idx="all").maps
            assert (of_each == result.maps).all() and result.specificities == [pytest.approx(0)]
            assert any("不看文本" in message for message in result.messages())


def test_what_rounding_leaves_of_terms_that_cancel_is_no_heatmap(vit_clip, picture):
    """The last block reads the patches of the one before through a norm alone: sum_k g_k A_k is zero everywhere."""
    block = script.layer_name(vit_clip, vit_blocks(vit_clip)[-2])
    result = small(vit_clip, picture, TEXTS, block, 0, method="hirescam")
    assert not result.maps.any() and any("梯度为零" in message for message in result.messages())
    assert small(vit_clip, picture, TEXTS, block, 0, method="layercam").maps[0].any()


def test_layers_are_named_where_the_map_comes_from(vit_clip, clip, picture):
    def named(model, **options):
        return small(model, picture, TEXTS, **options).layer

    blocks = [script.layer_name(vit_clip, block) for block in vit_blocks(vit_clip)]
    assert named(clip, target_layer=["stages.2.7", "stages.3.3"]) == "stages.2.7 + stages.3.3"
    assert named(vit_clip, method="legrad") == " + ".join(blocks[-2:])
    assert named(vit_clip, method="legrad", target_layer=blocks[0]) == blocks[0]
    assert named(vit_clip, method="grad-eclip") == blocks[-1]
    assert named(vit_clip, method="rollout") == " + ".join(blocks)


@pytest.mark.usefixtures("single_layer")
def test_the_dot_product_is_another_question(clip, picture):
    cosine = small(clip, picture, TEXTS, target_text_idx=0)
    dot = small(clip, picture, TEXTS, target_text_idx=0, similarity="dot")
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
        small(clip, picture, TEXTS, **options)


def test_a_tower_without_raw_embeddings_has_no_dot_product():
    net = PooledNet()
    with pytest.raises(InputError, match="点积"):
        CLIPGradCAM(Clip(net), net.conv, similarity="dot").text_maps(torch.randn(1, 3, 32, 32), torch.randn(2, 5))


def test_the_defaults_of_a_family_are_its_row(monkeypatch, clip, picture):
    row = defaults.ENCODERS["starnet_s1"]._replace(method="layercam", similarity="dot", layers=("stages.1.1",))
    monkeypatch.setitem(defaults.ENCODERS, "starnet_s1", row)
    asked = {"method": "gradcam", "similarity": "cosine"}
    for options, row in (({}, ("layercam", "dot", "stages.1.1")), (asked, ("gradcam", "cosine", "stages.3.3"))):
        result = small(clip, picture, TEXTS, **options)
        assert (result.method, result.question.similarity, result.layer) == row


# -- geometry -----------------------------------------------------------------------------------


def test_what_the_crop_cut_off_is_not_coloured(clip, picture):
    model = tiny_clip()
    model.preprocessing = Preprocessing(64, (64, 64), resample=3)
    result = explain(model, picture, TEXTS)
    rows, columns = result.geometry.pixels(60, 90)
    assert result.geometry == Region(15, 0, 75, 60)
    assert np.isnan(result.map[:, :15]).all() and not np.isnan(result.map[rows, columns]).any()
    np.testing.assert_allclose(result.overlay[:, :15] * 255, read_image(picture)[:, :15], atol=1e-4)
    seen = small(tiny_clip(), read_image(picture)[:, 15:75], TEXTS)
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


def test_one_method_and_several_layers_by_their_flags(command, tmp_path, capsys, clip, picture):
    flags = ["--method", "layercam", "--similarity", "dot", "--save-heatmap", "--target-text-idx", "1"]
    assert main(command(*flags, "--layers", "stages.1.1", "stages.3.3")) == 0
    asked = {"target_layer": ["stages.1.1", "stages.3.3"], "method": "layercam", "similarity": "dot"}
    expected = small(clip, picture, TEXTS, target_text_idx=1, **asked)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "clip_gradcam_image_heatmap.npy"), expected.map, atol=1e-6)
    out = capsys.readouterr().out
    assert "热力图：LayerCAM，两层，点积\n目标文本：[1] 松动" in out
    assert "目标层：stages.1.1 + stages.3.3（8×8）" in out


def test_all_methods_side_by_side(command, tmp_path, capsys):
    assert main(command("--method", "all", "--save-heatmap")) == 0
    marks = ["default", *LAYER_METHODS]
    names = {f"clip_gradcam_image_overlay_{mark}.png" for mark in marks}
    arrays = {f"clip_gradcam_image_heatmap{of}_{mark}.npy" for mark in marks for of in ("", "_layer")}
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_file()} == {
        "clip_gradcam_image.png",
        *names,
        *arrays,
    }
    out, err = capsys.readouterr()
    assert all(f"\n{METHODS[method].label}：目标文本" in out for method in LAYER_METHODS)
    assert "\n默认：Local Grad-CAM，两层，点积，减去其他文本：目标文本" in out and out.count("默认") == 1
    warnings = err.splitlines()
    assert warnings and all(line.startswith("警告: ") and "：热力图" in line for line in warnings), err


def test_the_faithfulness_of_a_folder_is_in_its_tables(command, tmp_path, picture, clip, capsys):
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "data" / name).write_bytes(picture.read_bytes())
    arguments = command("--faithfulness", "--method", "all", "--overlay-only", image=tmp_path / "data")
    assert main(arguments) == 0
    table = (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in table.splitlines()]
    assert [row["method"] for row in rows] == ["local-gradcam", *LAYER_METHODS] * 2
    assert [row["explained"] for row in rows] == ["dot", *["cosine"] * len(LAYER_METHODS)] * 2
    (tested,) = small(clip, picture, TEXTS, method="hirescam", faithfulness=True).faithfulness
    for row in (row for row in rows if row["overlay"].endswith("_overlay_hirescam.png")):
        assert row["deletion"] == pytest.approx(tested.deletion, abs=1e-4)
        assert row["insertion_margin"] == pytest.approx(tested.insertion_margin, abs=1e-4)
        assert row["method"] == "hirescam" and row["explained"] == "cosine" and row["seen"] == 1
        assert (tmp_path / "out" / row["overlay"]).is_file()
    assert main([*arguments, "--resume"]) == 0
    assert (tmp_path / "out" / "results.jsonl").read_text(encoding="utf-8") == table
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
        (["--contrast", "--subtract-others"], "--subtract-others 与 --contrast 只能二选一"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_are_one_line(command, capsys, tmp_path, more, message):
    assert main(command(*more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err, err
    assert not (tmp_path / "out").exists()


# -- what the reader must know ----------------------------------------------------------------


def test_an_input_size_that_nobody_named_is_said(picture):
    model = tiny_clip()
    with pytest.warns(InputWarning, match="没有说明输入图像的大小，按 224×224"):
        script.visualize_clip_gradcam(model, picture, TEXTS)
    (message,) = explain(model, picture, TEXTS).cautions
    assert "--img-size" in str(message)
    assert not explain(model, picture, TEXTS, img_size=64).cautions
    model.img_size = 64
    assert not explain(model, picture, TEXTS).cautions


def test_cautions_stand_once_before_the_warnings_of_texts_and_methods():
    result = tiny_result([0, 1])._replace(cautions=["小心"], flaws=["空", None])
    assert result.warnings() == ["小心；空", "小心"]
    assert result.messages() == ["小心", "正常：空"]
    one = result._replace(targets=[0], flaws=["空"])
    results = Results(one._replace(question=one.question._replace(method=m)) for m in ("gradcam", "hirescam"))
    assert results.messages() == ["小心", "Grad-CAM、HiResCAM：空"]
