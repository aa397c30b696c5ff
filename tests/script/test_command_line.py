"""The command line."""

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import gradient_picture
from tiny_pretrained import Payload

import clip_gradcam_visualization as script
from clip_gradcam_visualization import explain, main, visualize_clip_gradcam
from models.explain.heatmap import show_cam_on_image
from models.loading.load import load_clip_checkpoint
from models.results import drawing as outputs
from models.results.page import Text

SCRIPT = Path(script.__file__)
TEXTS = ["正常", "松动", "感染"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working directory; whatever a command writes is found here."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def flags(checkpoint, picture, class_texts_file, home):
    """Flags of a command that works; a test changes some, None takes one away."""

    def build(**changes):
        values = {"model_path": checkpoint, "image_path": picture, "class_texts_file": class_texts_file, **changes}
        arguments = []
        for name, value in values.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                arguments.append(flag)
            elif isinstance(value, (list, tuple)):
                arguments += [flag, *map(str, value)]
            elif value is not None:
                arguments += [flag, str(value)]
        return arguments

    return build


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def assert_refused(arguments, capsys, home, *patterns):
    """One line on standard error, exit code 2, nothing on standard output, nothing written."""
    before = files(home)
    code = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert code == 2 and out == ""
    assert len(lines) == 1 and lines[0].startswith("错误: ") and "Traceback" not in err, err
    for pattern in patterns:
        assert re.search(pattern, lines[0]), (pattern, lines[0])
    assert files(home) == before


# -- it works ---------------------------------------------------------------------------------


def test_two_files_in_the_default_folder(flags, capsys, home, checkpoint, picture):
    assert main(flags()) == 0
    out, err = capsys.readouterr()
    names = ["clip_gradcam_image.png", "clip_gradcam_image_overlay.png"]
    assert files(home) == ["clip_gradcam_results", *(str(Path("clip_gradcam_results") / name) for name in names)]
    assert all(str(Path("clip_gradcam_results") / name) in out for name in names)
    assert err == ""
    texts = json.loads(Path(flags()[-1]).read_text(encoding="utf-8"))
    model = load_clip_checkpoint(checkpoint)
    overlay = visualize_clip_gradcam(model, picture, texts)
    with Image.open(home / "clip_gradcam_results" / names[1]) as image:
        assert image.size == (90, 60)
        np.testing.assert_allclose(np.asarray(image), overlay * 255, atol=1.5)  # drawn in whole levels


def test_the_colours_of_the_flags(flags, home, checkpoint, picture):
    """In the overlay, and in the heatmap's panel and its bar."""
    asked = {"blend": "constant", "colormap": "viridis", "alpha": 0.7}
    assert main(flags(**asked)) == 0
    texts = json.loads(Path(flags()[-1]).read_text(encoding="utf-8"))
    result = explain(load_clip_checkpoint(checkpoint), picture, texts)
    folder = home / "clip_gradcam_results"
    with Image.open(folder / "clip_gradcam_image_overlay.png") as image:
        expected = 255 * show_cam_on_image(result.pixels, result.heatmap, cv2.COLORMAP_VIRIDIS, 0.7)
        np.testing.assert_allclose(np.asarray(image), expected, atol=0.51)
    with Image.open(folder / "clip_gradcam_image.png") as image:
        hottest = (np.asarray(image) == (253, 231, 37)).all(-1)
    assert hottest.any(0).sum() > 22  # as wide as the bar is


@pytest.mark.usefixtures("single_layer")
def test_the_prediction_is_printed(flags, capsys, checkpoint, picture):
    assert main(flags(class_texts_file=None, class_texts=TEXTS, target_text_idx=1)) == 0
    out = capsys.readouterr().out
    content = script.explain(
        load_clip_checkpoint(checkpoint), script.read_image(picture), TEXTS, target_text_idx=1, img_size=64
    )
    best = content.probabilities.argmax()
    assert f"预测：{TEXTS[best]}（{content.probabilities[best]:.1%}）" in out
    assert "[1] 松动" in out and f"{content.similarities[1]:.3f}" in out
    assert "starnet_s1" in out and "stages.3.3（2×2）" in out


@pytest.mark.parametrize("index", [0, 2, None])
def test_the_target_text_is_the_one_asked_for(flags, monkeypatch, index):
    seen = []
    genuine = outputs.draw_figure
    monkeypatch.setattr(outputs, "draw_figure", lambda result, *drawn: seen.append(result) or genuine(result, *drawn))
    assert main(flags(target_text_idx=index)) == 0
    (result,) = seen
    assert result.target == (result.probabilities.argmax() if index is None else index)
    assert result.names == ["正常", "松动", "感染"] and result.texts[0] == "关节间隙正常。"


NAMES = {
    "result": ["result.png", "result_overlay.png"],
    "result_with_infection.png": ["result_with_infection.png", "result_with_infection_overlay.png"],
    "a.v2": ["a.v2.png", "a.v2_overlay.png"],
    "图 1.svg": ["图 1.svg", "图 1_overlay.png"],
    "r.pdf": ["r.pdf", "r_overlay.png"],
    "r.jpg": ["r.jpg", "r_overlay.jpg"],
}


@pytest.mark.parametrize("name", NAMES)
def test_output_name(flags, home, name):
    assert main(flags(output_dir="结果 一", output_name=name)) == 0
    assert files(home / "结果 一") == sorted(NAMES[name])


def test_paths_with_chinese_spaces_and_dots(flags, home, capsys, checkpoint):
    folder = home / "数据 集.v1"
    folder.mkdir()
    image, model = folder / "髋 关节.1.jpg", folder / "模型 最终.pth"
    Image.fromarray(gradient_picture()).save(image)
    model.write_bytes(checkpoint.read_bytes())
    texts = folder / "类别 文本.json"
    texts.write_text('\ufeff{"正常": "正常。"}', encoding="utf-8")
    out_dir = home / "结果 夹" / "深"
    assert main(flags(model_path=model, image_path=image, class_texts_file=texts, output_dir=out_dir)) == 0
    assert files(out_dir) == ["clip_gradcam_髋 关节.1.png", "clip_gradcam_髋 关节.1_overlay.png"]
    assert str(out_dir / "clip_gradcam_髋 关节.1_overlay.png") in capsys.readouterr().out


@pytest.mark.parametrize("kind, name", [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_overlays_format(flags, home, picture, kind, name):
    assert main([*flags(output_dir="out", output_name="a.pdf"), "--overlay-format", kind]) == 0
    assert files(home / "out") == ["a.pdf", f"a_overlay.{kind}"]
    with Image.open(home / "out" / f"a_overlay.{kind}") as overlay, Image.open(picture) as image:
        assert overlay.format == name and overlay.size == image.size


def test_the_figures_language(flags, monkeypatch):
    shown = {}
    genuine = outputs.draw_figure

    def watched(result, heatmap, overlay, lang, *options):
        figure = genuine(result, heatmap, overlay, lang, *options)
        shown[lang] = "\n".join(item.string for item in figure.items if isinstance(item, Text))
        return figure

    monkeypatch.setattr(outputs, "draw_figure", watched)
    assert main(flags()) == 0 and main(flags(lang="en")) == 0
    assert "预测概率分布" in shown["zh"] and "Predicted probabilities" not in shown["zh"]
    assert "Predicted probabilities" in shown["en"] and "预测概率分布" not in shown["en"]


def test_another_target_layer_on_the_cpu(flags, capsys):
    assert main(flags(target_layer="stages.2.1", cpu=True)) == 0
    assert "stages.2.1（4×4）" in capsys.readouterr().out


@pytest.mark.usefixtures("single_layer")
def test_layers_are_listed(flags, capsys, home):
    assert main(flags(image_path=None, class_texts_file=None, list_layers=True)) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()[1:]
    assert err == "" and files(home) == []
    assert [line for line in lines if "默认" in line] == ["  stages.3.3  192×2×2  （默认）"]
    assert "  stem  32×32×32" in lines and "64×64" in out.splitlines()[0]
    assert not any("×1×1" in line for line in lines)


@pytest.mark.parametrize(
    "cuda, mps, expected", [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_the_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert script.choose_device(False) == expected
    assert script.choose_device(True) == "cpu"


@pytest.mark.usefixtures("single_layer")
def test_flags_fill_in_what_a_bare_checkpoint_leaves_open(flags, clip, home, capsys):
    torch.save(clip.state_dict(), home / "bare.pth")
    given = {"image_encoder": "starnet_s1", "text_encoder": "bert-base-chinese", "embed_dim": 32, "img_size": 96}
    assert main(flags(model_path=home / "bare.pth", **given)) == 0
    out, err = capsys.readouterr()
    assert "（3×3）" in out and err == ""


# -- warnings are one line --------------------------------------------------------------------


LONG_TEXT = "股骨柄周围\n可见透亮线。" * 30
WARNED = {
    "flags that contradict": (
        {"image_encoder": "resnet50", "img_size": 128, "embed_dim": 512},
        ["--image-encoder resnet50", "--embed-dim 512", "--img-size 128"],
    ),
    "a text that is cut": (
        {"class_texts_file": None, "class_texts": ["正常", LONG_TEXT]},
        [r"股骨柄周围\\n可见.*128", "热力图"],  # and the maps of the two texts are alike
    ),
    "a flat map": ({"model_path": "one_cell.pth"}, ["热力图为空.*1×1.*--target-layer"]),
}


@pytest.mark.usefixtures("single_layer")
@pytest.mark.parametrize("case", WARNED)
def test_each_warning_is_one_line(flags, capsys, clip, home, case):
    torch.save({"state_dict": clip.state_dict(), "config": {"img_size": 32}}, home / "one_cell.pth")
    changes, expected = WARNED[case]
    assert main(flags(**changes)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected) and all(line.startswith("警告: ") for line in lines), lines
    assert all(any(re.search(pattern, line) for line in lines) for pattern in expected), lines


def test_what_libraries_say_to_developers_is_not_shown(flags, capsys, monkeypatch):
    genuine = script.read_image

    def noisy(path, *options):
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        warnings.warn("developers only", UserWarning, stacklevel=1)
        return genuine(path, *options)

    monkeypatch.setattr(script, "read_image", noisy)
    assert main(flags()) == 0
    assert capsys.readouterr().err == ""


# -- errors -----------------------------------------------------------------------------------

LONG = "长" * 300  # beyond what any file system takes as a name
MODEL, IMAGE, TEXT = "--model-path clip.pth", "--image-path image.png", "--class-texts-file texts.json"
# a command, "+" being one that works -> words (regular expressions) that its one error line has, in this order
REFUSED = {
    "": "缺少必需的参数 --model-path --image-path --class-texts",
    f"{IMAGE} {TEXT}": "缺少必需的参数 --model-path",
    f"{MODEL} {TEXT}": "缺少必需的参数 --image-path",
    f"{MODEL} {IMAGE}": "缺少必需的参数 --class-texts\\s或\\s--class-texts-file",
    "--list-layers": "缺少必需的参数 --model-path",
    # argparse, in Chinese
    "+ --class-texts 正常": "--class-texts(-file)?\\s与\\s--class-texts(-file)?\\s只能二选一",
    "+ --target-text-idx two": "--target-text-idx two 不是索引 短名",
    "+ --img-size 2.5": "--img-size\\s应是整数 2.5",
    "+ --lang fr": "--lang fr zh en",
    "+ --lang 'a b'": "--lang a\\sb zh en",
    "+ --output-dir": "--output-dir\\s后面需要一个值",
    "+ --cpu=yes": "--cpu yes",
    "+ stray": "无法识别的参数\\sstray",
    "+ --model-pth x": "--model-pth --model-path？",
    "+ --image_path x": "--image_path --image-path？",
    "+ --class-text x": "--class-text --class-texts？",
    "+ --target-text-index x": "--target-text-index --target-text-idx？",
    "+ --imgsize x": "--imgsize --img-size？",
    "+ --cpuu x": "--cpuu --cpu？",
    "+ --target_layer=x": "--target_layer=x --target-layer？",
    # values
    "+ --img-size 0": "--img-size 16 0",
    "+ --img-size -224": "--img-size 16 -224",
    "+ --embed-dim 0": "--embed-dim 1 0",
    "+ --target-text-idx 3": "--target-text-idx\\s3\\s 3\\s个文本 0\\s到\\s2",
    "+ --target-text-idx -1": "--target-text-idx\\s-1\\s 3\\s个文本 0\\s到\\s2",
    "+ --colormap vridis": "没有配色\\svridis viridis；可用",
    "+ --colormap ''": "--colormap 空",
    "+ --blend heet": "--blend heet heat constant",
    "+ --blend 'very hot'": "--blend\\s不能是 very\\shot 可选：.*heat constant",
    "+ --alpha 0": "alpha 大于\\s0 至多\\s1 收到\\s0.0",
    "+ --alpha 1.5": "alpha 至多\\s1 收到\\s1.5",
    "+ --alpha half": "--alpha 应是数 half",
    "+ --image-encoder resnt50": "resnt50 resnet50",
    "+ --image-encoder convnext_tiny": "convnext_tiny convnext-tiny",
    "+ --image-encoder swin": "resnet18 vit",
    "+ --target-layer stages.3.11": "stages.3.11 stages.3.1 --list-layers",
    "+ --target-layer text_encoder.projection": "text_encoder.projection",
    "+ --target-layer image_encoder.projection": "不是空间特征图",
    f"{MODEL} {IMAGE} --class-texts 正常 ''": "不能为空",
    f"{MODEL} {IMAGE} --class-texts \udce6\udcad": "无效的字符",
    # the model
    "+ --model-path 没有.pth": "找不到检查点文件 没有.pth",
    "+ --model-path folder.png": "找不到检查点文件 folder.png",
    f"+ --model-path {LONG}": "检查点|name\\stoo\\slong",
    "+ --model-path short.pth": "short.pth 不完整",
    "+ --model-path malicious.pth": "system 拒绝",
    "+ --model-path unknown.pth": "--image-encoder",
    "+ --model-path bare.pth --text-encoder no/such": "no/such",
    "+ --model-path headless.pth --image-encoder starnet_s1 --embed-dim 64": "image_encoder.projection",
    # the image
    "+ --image-path 没有.png": "没有.png",
    "+ --image-path 'a\nb.png'": r"a\\nb.png",
    f"+ --image-path {LONG}": "图像",
    "+ --image-path folder.png": "folder.png\\s中没有图像 png",
    "+ --image-path text.png": "text.png",
    "+ --image-path short.png": "short.png",
    # the texts
    "+ --class-texts-file 没有.json": "没有.json",
    "+ --class-texts-file .": "类别文本文件",
    f"+ --class-texts-file {LONG}": "类别文本文件",
    "+ --class-texts-file broken.json": "broken.json 第\\s2\\s行第\\s5\\s列",
    "+ --class-texts-file half.json": "无效的字符",
    # the output
    "+ --output-dir text.png": "text.png 是文件",
    "+ --output-dir text.png/deep": "text.png",
    f"+ --output-dir {LONG}": "输出目录|写入|name\\stoo\\slong",
    f"+ --output-name {LONG}": "写入|name\\stoo\\slong",
    "+ --output-dir . --output-name folder.png": "folder.png",
    "+ --output-name a.png --figure-format pdf": "a.png --figure-format\\spdf",
    "+ --figure-format bmp": "--figure-format bmp png jpg pdf",
    "+ --dpi 71": "--dpi 72 71",
    "+ --dpi 1201": "--dpi 1200 1201",
    "+ --panels letters": "--panels letters marks files",
    "+ --panels --no-figure": "--panels --no-figure",
    "+ --overlay-only --no-overlay": "--no-overlay --overlay-only",
    "+ --overlay-format jpg --no-overlay": "--no-overlay --overlay-format",
    "+ --no-figure --no-overlay": "--no-figure --no-overlay",
}


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory, clip, checkpoint, picture):
    """A folder with every file that a case of REFUSED names."""
    folder, state = tmp_path_factory.mktemp("wrong"), clip.state_dict()
    (folder / "clip.pth").write_bytes(checkpoint.read_bytes())
    (folder / "short.pth").write_bytes(checkpoint.read_bytes()[:5000])
    torch.save({"state_dict": state}, folder / "bare.pth")
    torch.save({"state_dict": state, "x": Payload(os.system, "echo > executed")}, folder / "malicious.pth")
    torch.save({"image_encoder.backbone.x": torch.zeros(2)}, folder / "unknown.pth")
    torch.save({k: v for k, v in state.items() if "image_encoder.projection" not in k}, folder / "headless.pth")
    (folder / "image.png").write_bytes(picture.read_bytes())
    (folder / "short.png").write_bytes(picture.read_bytes()[:200])
    (folder / "text.png").write_text("hello")
    (folder / "folder.png").mkdir()
    (folder / "texts.json").write_text('{"正常": "一", "松动": "二", "感染": "三"}', encoding="utf-8")
    (folder / "broken.json").write_text('{"甲": "一",\n    乙: "二"}', encoding="utf-8")
    (folder / "half.json").write_text('{"甲": "\\ud800"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", REFUSED, ids=lambda command: command[:60])
def test_a_command_that_cannot_work_is_one_error_line(wrong_files, monkeypatch, capsys, command):
    monkeypatch.chdir(wrong_files)
    arguments = shlex.split(command.replace("+", f"{MODEL} {IMAGE} {TEXT}", 1))
    assert_refused(arguments, capsys, wrong_files, ".*".join(f"(?:{word})" for word in REFUSED[command].split(" ")))


def raises(error):
    def fails(*args, **kwargs):
        raise error

    return fails


# what fails, how -> what the error line says
FAULTS = {
    "no permission": (os, "access", lambda path, mode: False, "没有写入.*权限"),
    "a full disk": (tempfile, "mkstemp", raises(OSError(28, "No space left")), "无法写入.*No space left"),
    "a disk that refuses": (tempfile, "mkstemp", raises(PermissionError(13, "Denied")), "无法写入.*Denied"),
    "memory": (script.Explainer, "__call__", raises(MemoryError()), "内存"),
    "torch's memory": (script.Explainer, "__call__", raises(RuntimeError("CPU: can't allocate memory")), "内存"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_machine_fails(flags, capsys, home, monkeypatch, fault):
    *place, pattern = FAULTS[fault]
    monkeypatch.setattr(*place)
    assert_refused(flags(output_dir=home / "new" / "deep"), capsys, home, pattern)


def test_without_opencv(flags, capsys, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert_refused(flags(), capsys, home, "OpenCV.*opencv-python-headless")


def test_interrupted(flags, capsys, home, monkeypatch):
    monkeypatch.setattr(script.Explainer, "__call__", raises(KeyboardInterrupt()))
    assert main(flags()) == 130
    assert "Traceback" not in capsys.readouterr().err and files(home) == []


# -- help -------------------------------------------------------------------------------------

GUIDE = {
    "--model-path": "必需", "--image-path": "必需", "--class-texts": "二选一", "--class-texts-file": "二选一",
    "--text-template": "平均",
    "--target-text-idx": "最相似", "--image-encoder": "检查点", "--text-encoder": "bert-base-chinese",
    "--embed-dim": "512", "--img-size": "224", "--output-dir": "clip_gradcam_results", "--grey-range": "auto",
    "--download": "不联网", "--mean": "ImageNet", "--std": "--mean",
    "--output-name": "clip_gradcam_<图像名>.png", "--figure-format": "默认：png", "--dpi": "默认：120",
    "--panels": "files", "--target-layer": "默认", "--layers": "LeGrad", "--method": "两层",
    "--similarity": "方法的", "--faithfulness": "随机图", "--words": "给相似度增加多少",
    "--list-layers": "--model-path", "--lang": "zh",
    "--all-texts": "--target-text-idx", "--target": "三选一", "--cases": "image", "--split": "split",
    "--annotations": "COCO",
    "--tolerance": "15", "--shard": "从 1 开始", "--join": "--output-dir", "--contrast": "对比",
    "--subtract-others": "从三个文本起", "--save-heatmap": "float32", "--no-figure": "不写",
    "--overlay-only": "只写", "--overlay-format": "与可视化图相同", "--blend": "heat（默认）",
    "--colormap": "plasma；--blend constant 时 jet", "--alpha": "0.5；--blend constant 时 0.4", "--resume": "上次",
    "--no-overlay": "结果表和报告", "--report": "2 到 2000 张", "--no-report": "不写", "--anonymous": "report_key.csv",
    "--batch-size": "默认：CPU 至多 8", "--num-workers": "核数的一半", "--no-text-cache": "缓存", "--cpu": "CPU",
}  # fmt: skip


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_with_its_default(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        main([flag])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    sections = re.split(r"\n  (?=-)", out)[1:]
    described = {re.search(r"--[\w-]+", section)[0]: "".join(section.split()) for section in sections}
    options = {name for action in script.build_parser()._actions for name in action.option_strings}
    assert {*described, "-h"} == {*GUIDE, "--help", "-h"} == options
    for name, default in GUIDE.items():
        assert default.replace(" ", "") in described[name], name
    assert not re.search(r"usage|options|show this|default|required", out)
    assert out.startswith("用法：")


# -- as a process -----------------------------------------------------------------------------


def run_process(command, folder, **environment):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "PYTHONIOENCODING": "utf-8", **environment}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=300)


def test_a_process_that_works_where_the_terminal_knows_no_chinese(flags, home):
    done = run_process([SCRIPT, *flags(output_dir="结果")], home, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"clip_gradcam_image_overlay.png" in done.stdout and done.stdout.isascii()
    assert len(files(home / "结果")) == 2


def test_a_process_that_fails(flags, home):
    done = run_process([SCRIPT, *flags(image_path="没有.png")], home)
    assert done.returncode == 2 and done.stdout == b"" and files(home) == []
    assert done.stderr.decode().splitlines() == ["错误: 找不到图像文件：没有.png"]


HEAVY = ("torch", "torchvision", "transformers", "huggingface_hub", "matplotlib", "cv2", "PIL")
PUBLISHED = (
    *("models.loading.openai", "models.loading.open_clip", "models.loading.folder", "models.towers.published"),
    *("models.towers.clip_resnet", "models.towers.open_clip_text", "models.towers.cleaning"),
    *("models.loading.living_transformers", "models.loading.living_open_clip"),
)
# code -> modules that it does without
SPARING = {
    "from clip_gradcam_visualization import main; assert main(['--model-pth', 'x']) == 2": HEAVY,
    "from models.weights.hub import is_hub_name; assert not is_hub_name('missing.pth')": HEAVY,
    "import models.loading.text_cache": ("torch", "transformers"),
    "from models.loading.load import load_clip_checkpoint as load; load(sys.argv[1], texts=['正常'])": PUBLISHED,
}


@pytest.mark.parametrize("code", SPARING)
def test_what_is_not_needed_is_not_imported(home, checkpoint, code):
    code = f"import sys; {code}; print([name for name in {SPARING[code]} if name in sys.modules])"
    done = run_process(["-c", code, checkpoint], home)
    assert (done.returncode, done.stdout.strip()) == (0, b"[]"), done.stderr
