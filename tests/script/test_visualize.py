"""One image, whole; and the examples that the guide prints."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from project import PROJECT
from tiny import BrightnessClip, assert_same_map, corner_square, gradient_picture, tiny_clip

from clip_gradcam_visualization import CLIPGradCAM, explain, get_target_layer_for_clip, visualize_clip_gradcam
from models.clip import CLIPModel
from models.errors import InputError
from models.explain.heatmap import to_heatmap
from models.images.preprocessing import preprocess
from models.images.reading import read_image
from models.results.colours import DEFAULT_COLOURS
from models.results.colours import overlay as laid_over

TEXTS = ["正常", "松动", "感染"]

# -- geometry ---------------------------------------------------------------------------------


def brightness_map(image, texts=("bright",), target=0):
    model = BrightnessClip()
    return explain(model, image, list(texts), model.image_encoder.grid, target).heatmap


@pytest.mark.parametrize(
    "height, width, bottom, right",
    [
        (200, 300, False, False), (300, 200, False, True), (128, 512, True, False), (224, 224, True, True),
        (97, 61, 1, 0),
    ],
)  # fmt: skip
def test_a_bright_square_in_a_corner_comes_out_in_that_corner(tmp_path, height, width, bottom, right):
    side = min(height, width) // 3
    pixels, rows, columns = corner_square(height, width, side, bottom, right)
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    heatmap = brightness_map(read_image(tmp_path / "corner.png"))
    assert heatmap.shape == (height, width) and heatmap.max() == 1
    peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert rows.start <= peak[0] < rows.stop and columns.start <= peak[1] < columns.stop
    assert heatmap[rows, columns].sum() > 0.8 * heatmap.sum()
    opposite = heatmap[:: -1 if not bottom else 1, :: -1 if not right else 1][: side // 2, : side // 2]
    assert not opposite.any()


def test_the_heatmap_lies_where_the_square_lies_to_the_pixel():
    """The middle of the square's cells, stretched with half-pixel centres, is the middle of the square."""
    pixels = np.zeros((280, 448, 3), dtype=np.uint8)
    pixels[40:80, 256:320] = 255  # cells (2 to 4) x (8 to 10) of a grid of 14 x 14, each 20 x 32 pixels
    heatmap = brightness_map(pixels)
    middle = [(heatmap * (axis + 0.5)).sum() / heatmap.sum() for axis in np.mgrid[0:280, 0:448]]
    assert middle == pytest.approx([60, 288], abs=0.5)


@pytest.mark.parametrize("orientation, corner", [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_exif_rotation_turns_image_and_heatmap_together(tmp_path, orientation, corner):
    pixels, _, _ = corner_square(100, 160, 40, False, False)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    read = read_image(tmp_path / "turned.png")
    heatmap = brightness_map(read)
    assert heatmap.shape == ((100, 160) if orientation in (1, 3) else (160, 100))
    row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
    assert (row > heatmap.shape[0] / 2, column > heatmap.shape[1] / 2) == corner
    assert read[row, column].min() == 255


def test_the_text_that_speaks_against_the_image_gives_the_opposite_map():
    pixels, _, _ = corner_square(224, 224, 64, False, False)
    dark = brightness_map(pixels, ["bright", "dark"], target=1)
    assert not dark[8:56, 8:56].any() and dark[80:, 80:].min() > 0.9


# -- the function -----------------------------------------------------------------------------


def folder_content(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.usefixtures("single_layer")
@pytest.mark.parametrize(
    "target, name", [(None, "结果 一.png"), (0, "deep/er/result"), (2, "结果/a.b.jpg"), (1, "r.pdf")]
)
def test_the_overlay_is_the_cams_and_written_where_asked(clip, tmp_path, monkeypatch, target, name):
    monkeypatch.chdir(tmp_path)
    pixels = gradient_picture(50, 70)
    Image.fromarray(pixels).save("原始 图像.bmp")
    with torch.no_grad():
        features = clip.text_encoder(texts=TEXTS)
    explanation = CLIPGradCAM(clip, get_target_layer_for_clip(clip)).text_maps(preprocess(pixels, 96), features, target)
    heatmap = to_heatmap(explanation.maps[0, 0], (50, 70))
    assert heatmap.max() == 1 and heatmap.std() > 0.05
    asked = {"target_text_idx": target, "img_size": 96}
    overlay = visualize_clip_gradcam(clip, "原始 图像.bmp", TEXTS, **asked)
    np.testing.assert_allclose(overlay, laid_over(pixels, heatmap, DEFAULT_COLOURS), atol=1e-5)
    assert isinstance(overlay, np.ndarray) and overlay.dtype == np.float32 and overlay.shape == (50, 70, 3)
    assert overlay.min() >= 0 and overlay.max() <= 1 and folder_content(tmp_path) == ["原始 图像.bmp"]

    visualize_clip_gradcam(clip, tmp_path / "原始 图像.bmp", TEXTS, save_path=f"new/{name}", **asked)
    one, other = sorted(path for path in Path("new").rglob("*") if path.is_file())
    with Image.open(one if "_overlay" in one.name else other) as image:
        assert image.size == (70, 50)
        assert np.abs(np.asarray(image) / 255 - overlay).mean() < (0.02 if ".jpg" in name else 0.003)


@pytest.mark.parametrize(
    "options",
    [
        {"class_texts": dict(zip("甲乙丙", TEXTS))},
        {"class_texts": tuple(TEXTS)},
        {"use_cuda": False, "image_encoder_name": "starnet_s1"},
    ],
    ids=str,
)
def test_the_same_question_in_other_words(clip, picture, options):
    asked = {"class_texts": TEXTS, "target_text_idx": 2}
    expected = visualize_clip_gradcam(clip, picture, **asked)
    assert_same_map(visualize_clip_gradcam(clip, picture, **{**asked, **options}), expected)


@pytest.mark.usefixtures("single_layer")
@pytest.mark.parametrize("layer", ["stages.2.1", "image_encoder.backbone.stages.2.1", None])
def test_a_layer_as_a_module_or_by_name(clip, picture, layer):
    module = clip.image_encoder.backbone.stages[2][1] if layer else get_target_layer_for_clip(clip)
    expected = visualize_clip_gradcam(clip, picture, TEXTS, target_layer=module)
    assert_same_map(visualize_clip_gradcam(clip, picture, TEXTS, target_layer=layer), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_text_idx": 3}, "可用 0 到 2"),
        ({"target_text_idx": -1}, "可用 0 到 2"),
        *(({"class_texts": texts}, "不能为空") for texts in ([], {}, ["", "a"], [3])),
        *(({"class_texts": texts}, "无效的字符") for texts in (["\udcff"], {"甲": "\ud800"})),
        *(({"image_path": name}, name) for name in ("没有.png", "damaged.png")),
        ({"image_encoder_name": "starnet_s9"}, "starnet_s9.*starnet_s"),
    ],
    ids=ascii,
)
def test_what_cannot_be_used_is_refused_and_nothing_written(clip, picture, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("damaged.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=message):
        visualize_clip_gradcam(
            clip, **{"image_path": picture, "class_texts": TEXTS, "save_path": "new/a.png", **options}
        )
    assert folder_content(tmp_path) == ["damaged.png"]


@pytest.mark.filterwarnings("ignore:热力图几乎不随文本变化")
def test_the_checkpoints_image_size_counts(picture):
    model = tiny_clip(img_size=64)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*img_size")
        expected = visualize_clip_gradcam(model, picture, TEXTS, img_size=64)
        assert_same_map(visualize_clip_gradcam(model, picture, TEXTS), expected)
    with pytest.warns(UserWarning, match="128.*64"):
        assert_same_map(visualize_clip_gradcam(model, picture, TEXTS, img_size=128), expected)
    model.img_size = None
    assert not np.array_equal(visualize_clip_gradcam(model, picture, TEXTS, img_size=128), expected)


@pytest.mark.parametrize(
    "blend, colour", [("heat", [90 / 255] * 3), ("constant", 0.4 * np.array([0, 0, 128 / 255]) + 0.6 * 90 / 255)]
)
def test_a_flat_map_warns_and_gives_the_image_or_that_under_the_lowest_colour(tmp_path, blend, colour):
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "flat.png")
    model = BrightnessClip()
    with pytest.warns(UserWarning, match="热力图为空"):
        asked = {"save_path": tmp_path / "a.png", "blend": blend}
        overlay = visualize_clip_gradcam(model, tmp_path / "flat.png", ["bright"], model.image_encoder.grid, **asked)
    np.testing.assert_allclose(overlay[0, 0], colour, atol=1e-6)
    assert (tmp_path / "a.png").is_file()


def test_the_model_is_left_as_it_was(picture):
    model = tiny_clip().train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    first = visualize_clip_gradcam(model, picture, TEXTS)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert_same_map(visualize_clip_gradcam(model.eval(), picture, TEXTS), first)  # no dropout either


# -- the printed examples ---------------------------------------------------------------------


@pytest.mark.parametrize("read", [torch.load, str], ids=["torch.load", "numpy scalars: the path"])
def test_the_guides_notebook_example(clip, picture, tmp_path, monkeypatch, read):
    """With a checkpoint.pth as training writes it: optimiser, scores, config; torch.load refuses numpy's scalars."""
    monkeypatch.chdir(tmp_path)
    Image.open(picture).save("test.jpg")
    config = {"image_encoder": "starnet_s1", "text_encoder": "bert-base-chinese", "embed_dim": 32, "img_size": 96}
    training = {
        "epoch": 12,
        "model_state_dict": clip.state_dict(),
        "optimizer_state_dict": torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))]).state_dict(),
        "scheduler_state_dict": {"last_epoch": 12, "_last_lr": [1e-4]},
        **{"train_loss": 0.3, "val_acc": 0.91, "val_mAP": 0.875},
        "config": {**config, "temperature": 0.07, "save_dir": "runs/1"},
        **{"class_to_idx": {"正常": 0}, "class_texts": ["正常"]},
    }
    if read is str:
        training |= {"val_acc": np.float32(0.91), "val_mAP": np.float64(0.875), "save_dir": Path("runs/1")}
        training["scheduler_state_dict"]["_last_lr"] = [np.float64(1e-4)]
    torch.save(training, "checkpoint.pth")

    # 加载模型
    model = CLIPModel("starnet_s1", embed_dim=32)
    model.load_state_dict(read("checkpoint.pth"))

    # 生成可视化
    class_texts = ["类别1", "类别2", "类别3"]
    visualize_clip_gradcam(model=model, image_path="test.jpg", class_texts=class_texts, save_path="result.png")

    assert {"result.png", "result_overlay.png"} <= set(folder_content(tmp_path))
    assert model.img_size == 96
    assert_same_map(
        visualize_clip_gradcam(model, "test.jpg", class_texts),  # in train mode, as the example leaves it
        visualize_clip_gradcam(clip, "test.jpg", class_texts, img_size=96),
    )


GUIDES_LOOP = """
import os
from pathlib import Path
import subprocess

image_dir = "data/test"
output_dir = "results/gradcam"
class_texts_file = "class_texts.json"

for image_path in Path(image_dir).glob("*.jpg"):
    subprocess.run([
        "python", "clip_gradcam_visualization.py",
        "--model-path", "checkpoints/clip_model.pth",
        "--image-path", str(image_path),
        "--class-texts-file", class_texts_file,
        "--output-dir", output_dir
    ])
"""


def test_the_loop_over_a_folder(checkpoint, tmp_path, monkeypatch):
    """The guide's loop as it stands, but for the places of Python and of the script: a process an image."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data/test", "checkpoints"):
        Path(folder).mkdir(parents=True)
    for name in ("片 1.jpg", "b.v2.jpg"):
        Image.fromarray(gradient_picture()).save(f"data/test/{name}")
    Path("checkpoints/clip_model.pth").symlink_to(checkpoint)
    texts = json.dumps({"正常": "正常。", "松动": "透亮线。"}, ensure_ascii=False)
    Path("class_texts.json").write_text(texts, encoding="utf-8")
    example = GUIDES_LOOP.replace('"python"', repr(sys.executable))
    example = example.replace('"clip_gradcam_visualization.py"', repr(str(PROJECT / "clip_gradcam_visualization.py")))
    codes = []
    genuine = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: codes.append(genuine(*a, **k).returncode))
    exec(example, {})
    assert codes == [0, 0]
    expected = [f"clip_gradcam_{stem}{end}" for stem in ("b.v2", "片 1") for end in (".png", "_overlay.png")]
    assert folder_content(tmp_path / "results" / "gradcam") == sorted(expected)
