"""Room 6: the command line."""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import gradient_picture

import clip_gradcam_visualization as script
from clip_gradcam_visualization import main, visualize_clip_gradcam
from models.loading.load import load_clip_checkpoint
from models.results import result as outputs
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
        assert re.search(pattern, lines[0]), lines[0]
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
        np.testing.assert_allclose(np.asarray(image), overlay * 255, atol=0.51)


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


@pytest.mark.parametrize("index", [0, 1, 2, None])
def test_the_target_text_is_the_one_asked_for(flags, monkeypatch, index):
    seen = []
    genuine = outputs.draw_figure
    monkeypatch.setattr(outputs, "draw_figure", lambda result, *drawn: seen.append(result) or genuine(result, *drawn))
    assert main(flags(target_text_idx=index)) == 0
    (content,) = seen
    assert content.target == (content.probabilities.argmax() if index is None else index)
    assert content.names == ["正常", "松动", "感染"] and content.texts[0] == "关节间隙正常。"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("result", ["result.png", "result_overlay.png"]),
        ("result_with_infection.png", ["result_with_infection.png", "result_with_infection_overlay.png"]),
        ("a.v2", ["a.v2.png", "a.v2_overlay.png"]),
        ("图 1.svg", ["图 1.svg", "图 1_overlay.png"]),
        ("r.pdf", ["r.pdf", "r_overlay.png"]),
        ("r.jpg", ["r.jpg", "r_overlay.jpg"]),
    ],
)
def test_output_name(flags, home, name, expected):
    assert main(flags(output_dir="结果 一", output_name=name)) == 0
    assert files(home / "结果 一") == sorted(expected)


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


def test_the_figures_language(flags, monkeypatch):
    shown = {}
    genuine = outputs.draw_figure

    def watched(result, heatmap, overlay, lang):
        figure = genuine(result, heatmap, overlay, lang)
        shown[lang] = "\n".join(item.string for item in figure.items if isinstance(item, Text))
        return figure

    monkeypatch.setattr(outputs, "draw_figure", watched)
    assert main(flags()) == 0 and main(flags(lang="en")) == 0
    assert "预测概率分布" in shown["zh"] and "Predicted probabilities" not in shown["zh"]
    assert "Predicted probabilities" in shown["en"] and "预测概率分布" not in shown["en"]


def test_another_target_layer(flags, capsys):
    assert main(flags(target_layer="stages.2.1")) == 0
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


def test_the_flag_for_the_cpu(flags):
    assert main(flags(cpu=True)) == 0
    assert script.choose_device(True) == "cpu"


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


def warning_lines(capsys, count):
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == count and all(line.startswith("警告: ") for line in lines), lines
    return lines


def test_flags_that_contradict_are_warned_about(flags, capsys):
    assert main(flags(image_encoder="resnet50", img_size=128, embed_dim=512)) == 0
    lines = warning_lines(capsys, 3)
    assert all(any(flag in line for line in lines) for flag in ("--image-encoder", "--img-size 128", "--embed-dim 512"))


@pytest.mark.usefixtures("single_layer")
def test_a_text_that_is_cut_is_warned_about_by_name(flags, capsys):
    text = "股骨柄周围\n可见透亮线。" * 30
    assert main(flags(class_texts_file=None, class_texts=["正常", text])) == 0
    cut, _ = warning_lines(capsys, 2)  # the other: the maps of the two texts are alike
    assert "股骨柄周围" in cut and "128" in cut


@pytest.mark.usefixtures("single_layer")
def test_a_flat_map_is_warned_about(flags, capsys, clip, home):
    torch.save({"state_dict": clip.state_dict(), "config": {"img_size": 32}}, home / "one_cell.pth")
    assert main(flags(model_path=home / "one_cell.pth")) == 0
    (line,) = warning_lines(capsys, 1)
    assert "热力图为空" in line and "1×1" in line and "--target-layer" in line


def test_parameters_of_a_loss_are_one_warning(flags, clip, home, capsys):
    state = {**clip.state_dict(), "loss.margin": torch.zeros(1), "loss.scale": torch.zeros(1)}
    torch.save(state, home / "extra.pth")
    assert main(flags(model_path=home / "extra.pth")) == 0
    (line,) = warning_lines(capsys, 1)
    assert "loss.margin" in line and "2 个" in line


def test_what_libraries_say_to_developers_is_not_shown(flags, capsys, monkeypatch):
    genuine = script.read_image

    def noisy(path):
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        warnings.warn("developers only", UserWarning, stacklevel=1)
        return genuine(path)

    monkeypatch.setattr(script, "read_image", noisy)
    assert main(flags()) == 0
    assert capsys.readouterr().err == ""


# -- errors -----------------------------------------------------------------------------------

MISSING = {
    "model": ({"model_path": None}, "--model-path"),
    "image": ({"image_path": None}, "--image-path"),
    "texts": ({"class_texts_file": None}, "--class-texts 或 --class-texts-file"),
    "model for the list": ({"model_path": None, "list_layers": True}, "--model-path"),
}


@pytest.mark.parametrize("case", MISSING)
def test_what_is_required(flags, capsys, home, case):
    changes, pattern = MISSING[case]
    assert_refused(flags(**changes), capsys, home, "缺少必需的参数", pattern)


def test_nothing_at_all(capsys, home):
    assert_refused([], capsys, home, "--model-path.*--image-path.*--class-texts")


@pytest.mark.parametrize(
    "arguments, pattern",
    [
        (
            ["--class-texts", "正常"],
            "--class-texts 与 --class-texts-file 只能二选一|--class-texts-file 与 --class-texts",
        ),
        (["--target-text-idx", "two"], "--target-text-idx 应是整数.*two"),
        (["--img-size", "big"], "--img-size 应是整数.*big"),
        (["--img-size", "2.5"], "--img-size 应是整数"),
        (["--img-size", "0"], "--img-size.*16.*0"),
        (["--img-size", "-224"], "--img-size"),
        (["--embed-dim", "0"], "--embed-dim"),
        (["--lang", "fr"], "--lang.*fr.*zh.*en"),
        (["--lang", "a b"], "--lang.*a b.*zh.*en"),
        (["--output-dir"], "--output-dir 后面需要一个值"),
        (["--cpu=yes"], "--cpu"),
        (["stray"], "无法识别的参数 stray"),
        (["--image-encoder", "resnt50"], "resnt50.*resnet50"),
        (["--image-encoder", "convnext_tiny"], "convnext-tiny"),
        (["--image-encoder", "swin"], "resnet18.*vit"),
        (["--target-layer", "stages.3.11"], "stages.3.11.*stages.3.1.*--list-layers"),
        (["--target-layer", "text_encoder.projection"], "text_encoder.projection"),
        (["--target-layer", "image_encoder.projection"], "不是空间特征图"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_used(flags, capsys, home, arguments, pattern):
    assert_refused([*flags(), *arguments], capsys, home, pattern)


@pytest.mark.parametrize(
    "typo, meant",
    [
        ("--model-pth", "--model-path"),
        ("--image_path", "--image-path"),
        ("--class-text", "--class-texts"),
        ("--target-text-index", "--target-text-idx"),
        ("--imgsize", "--img-size"),
        ("--ouput-dir", "--output-dir"),
        ("--cpuu", "--cpu"),
        ("--list-layer", "--list-layers"),
        ("--target_layer=x", "--target-layer"),
    ],
)
def test_a_typo_in_a_flag_is_answered_with_the_flag(flags, capsys, home, typo, meant):
    assert_refused([*flags(), typo, "x"], capsys, home, f"{typo}.*{meant}？")


@pytest.mark.parametrize("index", [3, -1, 99])
def test_a_target_out_of_range(flags, capsys, home, index):
    assert_refused(flags(target_text_idx=index), capsys, home, f"--target-text-idx {index} .*3 个文本.*0 到 2")


LONG = "长" * 300  # beyond what any file system takes as a name
FILES = {
    "missing checkpoint": ({"model_path": "没有.pth"}, "没有.pth"),
    "checkpoint is a folder": ({"model_path": "."}, "检查点"),
    "text for a checkpoint": ({"model_path": "text.pth"}, "text.pth"),
    "empty checkpoint": ({"model_path": "empty.pth"}, "empty.pth"),
    "checkpoint cut short": ({"model_path": "short.pth"}, "short.pth.*不完整"),
    "legacy checkpoint cut short": ({"model_path": "short_legacy.pth"}, "short_legacy.pth.*不完整"),
    "malicious checkpoint": ({"model_path": "malicious.pth"}, "system.*torch.save"),
    "checkpoint of something else": ({"model_path": "other.pth"}, "image_encoder.backbone"),
    "checkpoint of an unknown network": ({"model_path": "unknown.pth"}, "--image-encoder"),
    "incomplete weights": ({"model_path": "incomplete.pth"}, "缺少 1 个权重.*norm.bias"),
    "a name too long for a checkpoint": ({"model_path": LONG}, "检查点|name too long"),
    "missing image": ({"image_path": "没有.png"}, "没有.png"),
    "image is a folder without images": ({"image_path": "folder.png"}, "folder.png 中没有图像.*png"),
    "text for an image": ({"image_path": "text.pth"}, "text.pth"),
    "image cut short": ({"image_path": "short.png"}, "short.png"),
    "a name too long for an image": ({"image_path": LONG}, "图像"),
    "missing JSON": ({"class_texts_file": "没有.json"}, "没有.json"),
    "JSON is a folder": ({"class_texts_file": "."}, "类别文本文件"),
    "a name too long for a JSON": ({"class_texts_file": LONG}, "类别文本文件"),
    "broken JSON": ({"class_texts_file": "broken.json"}, "broken.json.*第 2 行第 5 列"),
    "JSON list": ({"class_texts_file": "list.json"}, "list.json.*对象"),
    "JSON of numbers": ({"class_texts_file": "numbers.json"}, "numbers.json.*'甲'"),
    "empty JSON": ({"class_texts_file": "nothing.json"}, "nothing.json.*没有类别"),
    "a key twice": ({"class_texts_file": "twice.json"}, "twice.json.*'甲'.*两次"),
    "JSON in GBK": ({"class_texts_file": "gbk.json"}, "gbk.json.*UTF-8"),
    "JSON of half characters": ({"class_texts_file": "half.json"}, "无效的字符"),
    "output folder is a file": ({"output_dir": "text.pth"}, "text.pth.*是文件"),
    "output folder below a file": ({"output_dir": "text.pth/deep"}, "text.pth"),
    "a name too long for a folder": ({"output_dir": LONG}, "输出目录|写入|name too long"),
    "a name too long for a result": ({"output_name": LONG}, "写入|name too long"),
    "a folder in the result's place": ({"output_dir": ".", "output_name": "folder.png"}, "folder.png"),
    "empty text": ({"class_texts_file": None, "class_texts": ["正常", ""]}, "不能为空"),
    "half a character": ({"class_texts_file": None, "class_texts": ["\udce6\udcad"]}, "无效的字符"),
    "text encoder that cannot be had": ({"model_path": "bare.pth", "text_encoder": "no/such"}, "no/such"),
    "embedding width of another": ({"model_path": "headless.pth", "embed_dim": 64}, "image_encoder.projection"),
}  # fmt: skip


class Malicious:
    def __reduce__(self):
        return os.system, ("echo > executed",)


@pytest.fixture
def wrong_files(home, clip, picture):
    """Every file that a case of FILES names."""
    state = clip.state_dict()
    (home / "text.pth").write_text("hello")
    (home / "empty.pth").write_bytes(b"")
    torch.save({"state_dict": state}, home / "bare.pth")
    torch.save({"state_dict": state}, home / "legacy.pth", _use_new_zipfile_serialization=False)
    for source, cut in (("bare", "short"), ("legacy", "short_legacy")):
        data = (home / f"{source}.pth").read_bytes()
        (home / f"{cut}.pth").write_bytes(data[: len(data) // 2])
    torch.save({"state_dict": state, "x": Malicious()}, home / "malicious.pth")
    torch.save({"weight": torch.zeros(2)}, home / "other.pth")
    torch.save({"image_encoder.backbone.x": torch.zeros(2)}, home / "unknown.pth")
    torch.save({k: v for k, v in state.items() if not k.endswith("backbone.norm.bias")}, home / "incomplete.pth")
    torch.save({k: v for k, v in state.items() if "image_encoder.projection" not in k}, home / "headless.pth")
    (home / "short.png").write_bytes(picture.read_bytes()[:200])
    (home / "folder.png").mkdir()
    for name, text in {
        "broken": '{"甲": "一",\n    乙: "二"}',
        "list": '["甲"]',
        "numbers": '{"甲": 1}',
        "nothing": "{}",
        "twice": '{"甲": "一", "甲": "二"}',
        "half": '{"甲": "\\ud800"}',
    }.items():
        (home / f"{name}.json").write_text(text, encoding="utf-8")
    (home / "gbk.json").write_bytes('{"甲": "骨折"}'.encode("gbk"))


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_used(flags, capsys, home, wrong_files, case):
    changes, pattern = FILES[case]
    if "headless" in str(changes):  # neither weights nor config know the network's width: the encoder must be named
        changes = {**changes, "image_encoder": "starnet_s1"}
    assert_refused(flags(**changes), capsys, home, pattern)


def test_no_permission_in_the_output_folder(flags, capsys, home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert_refused(flags(output_dir=home / "new"), capsys, home, "没有写入.*权限")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_the_disk_is_full_or_refuses(flags, capsys, home, monkeypatch, error):
    def refuses(*args, **kwargs):
        raise error

    monkeypatch.setattr(tempfile, "mkstemp", refuses)
    assert_refused(flags(output_dir=home / "new" / "deep"), capsys, home, "无法写入.*(No space left|Permission denied)")


def test_without_opencv(flags, capsys, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert_refused(flags(), capsys, home, "OpenCV.*opencv-python-headless")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory(flags, capsys, home, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(script.Explainer, "__call__", fails)
    assert_refused(flags(), capsys, home, "内存")


def test_interrupted(flags, capsys, home, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(script.Explainer, "__call__", interrupted)
    assert main(flags()) == 130
    assert "Traceback" not in capsys.readouterr().err and files(home) == []


def test_an_error_of_many_lines_is_printed_on_one(flags, capsys, home):
    assert_refused(flags(image_path="a\nb.png"), capsys, home, "a b.png")


# -- help -------------------------------------------------------------------------------------

GUIDE = {
    "--model-path": "必需",
    "--image-path": "必需",
    "--class-texts": "二选一",
    "--class-texts-file": "二选一",
    "--target-text-idx": "最相似",
    "--image-encoder": "检查点",
    "--text-encoder": "bert-base-chinese",
    "--embed-dim": "512",
    "--img-size": "224",
    "--output-dir": "clip_gradcam_results",
    "--output-name": "clip_gradcam_<图像名>.png",
    "--target-layer": "默认",
    "--layers": "LeGrad",
    "--method": "默认",
    "--similarity": "cosine（默认）",
    "--faithfulness": "随机图",
    "--list-layers": "--model-path",
    "--lang": "zh",
    "--all-texts": "--target-text-idx",
    "--contrast": "对比",
    "--save-heatmap": "float32",
    "--no-figure": "不写",
    "--overlay-only": "只写",
    "--overlay-format": "与可视化图相同",
    "--resume": "上次",
    "--batch-size": "默认：CPU 至多 8",
    "--num-workers": "核数的一半",
    "--no-text-cache": "缓存",
    "--cpu": "CPU",
}


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag_with_its_default(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        main([flag])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    sections = re.split(r"\n  (?=-)", out)[1:]
    described = {re.search(r"--[\w-]+", section)[0]: "".join(section.split()) for section in sections}
    assert set(described) == {*GUIDE, "--help"}
    for name, default in GUIDE.items():
        assert default.replace(" ", "") in described[name], name
    assert not re.search(r"usage|options|show this|default|required", out)
    assert out.startswith("用法：")


def test_help_names_every_option_of_the_parser():
    actions = {flag for action in script.build_parser()._actions for flag in action.option_strings}
    assert actions == {*GUIDE, "--help", "-h"}


# -- as a process -----------------------------------------------------------------------------


def run_process(arguments, folder, **environment):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=300,
    )


def test_a_process_that_works_where_the_terminal_knows_no_chinese(flags, home):
    done = run_process(flags(output_dir="结果"), home, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"clip_gradcam_image_overlay.png" in done.stdout and done.stdout.isascii()
    assert len(files(home / "结果")) == 2


def test_a_process_that_fails(flags, home):
    done = run_process(flags(image_path="没有.png"), home, PYTHONIOENCODING="utf-8")
    assert done.returncode == 2 and done.stdout == b"" and files(home) == []
    assert done.stderr.decode().splitlines() == ["错误: 找不到图像文件：没有.png"]


def test_mistakes_in_flags_are_answered_without_the_heavy_libraries(home):
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'transformers', 'matplotlib', 'cv2', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from clip_gradcam_visualization import main\n"
        "sys.exit(main(['--model-pth', 'x']))\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=home, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.decode() == "错误: 无法识别的参数 --model-pth，是否想用 --model-path？\n"
