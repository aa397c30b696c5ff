"""Sentences in two languages: the catalogue is whole, and a command in English says nothing in Chinese."""

import ast
import io
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import Clip, gradient_picture, tiny_clip, tiny_result

import clip_gradcam_visualization as script
from models.cases.tables import COLUMNS
from models.errors import InputError, InputWarning, print_error, reason
from models.images.loader import ImageDataset
from models.images.preprocessing import square
from models.messages import CATALOGUE, Joined, Message, current_language, speaking, translated
from models.report.page import page_words
from models.results.figure import encode_figure
from models.results.result import Results, draw_results, for_figure
from models.runs.sharing import run_chunks
from models.runs.tables import row_in_language

SCRIPT = Path(script.__file__)
ENGLISH = json.loads(CATALOGUE.read_text(encoding="utf-8"))
CHINESE = re.compile("[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
TEXTS = ["normal", "loose", "infection"]
SAYERS = {"Message", "Joined", "InputError", "InputWarning", "CheckpointError", "BadPickle", "BadArchive"}
RANGES = "[\u3000-\u9fff\uff00-\uffef]"  # letters, for a pattern
READ = {name for names in COLUMNS.values() for name in names}  # columns of a list as users may write them


# -- a sentence -------------------------------------------------------------------------------


def test_a_message_is_said_in_the_language_of_now_and_so_is_what_it_holds():
    message = Message("无法读取图像 {}：{}", "a.png", InputError("文件夹 {} 中没有图像{}", "b", ""))
    inner = translated("文件夹 {} 中没有图像{}", "en").format("b", "")
    assert str(message) == "无法读取图像 a.png：文件夹 b 中没有图像"
    with speaking("en"):
        assert str(message) == f"{message}" == f"cannot read image a.png: {inner}"
    assert current_language() == "zh" and message.in_language("en").startswith("cannot read image")


def test_a_value_is_never_a_sentence_of_ours_nor_a_hole():
    """A file may be called as a sentence of the catalogue, or have braces in its name."""
    assert Message("无法读取图像 {}", "文件夹").in_language("en") == "cannot read image 文件夹"
    assert InputError("无法读取图像 {}", "{0}{x}").in_language("en") == "cannot read image {0}{x}"
    assert str(InputError("{没有值}")) == "{没有值}"


def test_what_is_joined_takes_the_separator_of_the_language():
    both = Joined("；", ["a", Message("文件夹")])
    assert (both.in_language("zh"), both.in_language("en")) == ("a；文件夹", "a; a folder")
    assert not Joined("；", []) and both


def test_an_error_of_another_language_is_said_in_the_language_of_now(capsys):
    """As one is that was raised in a thread, or before the language was known."""
    error = InputError("没有给出图像")
    with speaking("en"):
        print_error(error)
        print_error(Message("{}；已完成的结果都在，排除故障后加 --resume 继续", error))
        own = InputError("没有给出图像")
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {translated('没有给出图像', 'en')}" and not CHINESE.search(second)
    assert str(own) == translated("没有给出图像", "en") and str(error) == "没有给出图像"


def test_a_sentence_in_an_exception_of_pythons_is_a_reason():
    said = Message("{} 不是有限的数", "1e999")
    assert reason(ValueError(said)) is said and reason(IsADirectoryError(0, said, "a")) is said
    assert reason(ValueError("one\ntwo")) == "one" and reason(OSError(2, "No such file")) == "No such file"


def test_threads_of_a_run_speak_as_it_does():
    said = []
    with speaking("en"):
        say_it = lambda _: said.append(str(Message("文件夹")))  # noqa: E731
        run_chunks([1, 2, 3], lambda chunk: [chunk], say_it, say_it, 2, lambda: None)
    assert said == ["a folder"] * 6


def test_why_an_image_cannot_be_read_travels_between_processes_without_a_language(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    chunk = ImageDataset(square(16))[0, [(0, str(tmp_path / "bad.png"))]]
    (error,) = pickle.loads(pickle.dumps(chunk)).errors
    assert error.in_language("zh").startswith("无法读取图像") and not CHINESE.search(error.in_language("en"))


def test_lines_of_earlier_versions_are_shown_as_they_are():
    old, new = {"error": "坏", "warning": None}, {"error": "坏", "error_en": "bad", "setting": "Grad-CAM，两层"}
    assert row_in_language(old, "en") == old and row_in_language(new, "zh") == new
    assert row_in_language(new, "en") == {"error": "bad", "error_en": "bad", "setting": "Grad-CAM, two layers"}


# -- the catalogue ----------------------------------------------------------------------------


def sentences():
    """({each sentence of the product: where}, every other constant that might be one)."""
    places, others = {}, set()
    for path in [SCRIPT, *sorted((SCRIPT.parent / "models").rglob("*.py"))]:
        if "demo" in path.parts:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
        said = {id(call.args[0]) for call in calls if getattr(call.func, "id", "") in SAYERS}
        documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                assert not CHINESE.search(ast.unparse(node)), f"{path}:{node.lineno}: values go into a Message"
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documents:
                continue
            if re.search("[\u4e00-\u9fff]", node.value) or (id(node) in said and CHINESE.search(node.value)):
                places.setdefault(node.value, f"{path.name}:{node.lineno}")
            others.add(node.value)
    return {text: place for text, place in places.items() if text not in {*READ, "中文", RANGES}}, others


def holes(template):
    return [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(template) if name is not None]


def test_each_sentence_has_its_english_and_none_is_left_over():
    places, others = sentences()
    assert {text: place for text, place in places.items() if text not in ENGLISH} == {}
    assert set(ENGLISH) - set(page_words()) <= others


def test_both_languages_have_the_same_holes_and_the_english_no_chinese():
    for chinese, english in ENGLISH.items():
        of_both = [sorted(map(str, (hole[1:] for hole in holes(template)))) for template in (chinese, english)]
        assert of_both[0] == of_both[1], chinese
        names = [name for name, _, _ in holes(english)]
        assert not any(names) or {int(name) for name in names} == set(range(len(set(names)))), english
        assert not CHINESE.search(english), english


# -- the command in English -------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with two pictures, a black one, a damaged one, and a list of them with a mask."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for index in range(2):
        Image.fromarray(np.roll(gradient_picture(), 9 * index, axis=1)).save(f"data/{index}.png")
    Image.new("RGB", (90, 60)).save("data/black.png")
    Path("data/damaged.png").write_bytes(b"no image")
    mask = np.zeros((60, 90), np.uint8)
    mask[:30] = 255
    Image.fromarray(mask).save("mask.png")
    rows = ["data/0.png,loose,mask.png,a", "data/1.png,normal,,", "data/black.png,normal,,b", "data/damaged.png,,,c"]
    Path("cases.csv").write_text("\n".join(["image,label,annotation,patient", *rows]), encoding="utf-8")
    return tmp_path


@pytest.fixture
def command(checkpoint):
    """Arguments in English with three texts."""

    def build(*more, lang="en"):
        return ["--model-path", str(checkpoint), "--class-texts", *TEXTS, "--lang", lang, "--num-workers", "0", *more]

    return build


def written(folder):
    """The texts of all tables and reports of an output folder; the state of a run is no one's to read."""
    paths = [path for path in Path(folder).glob("*") if path.suffix in (".csv", ".jsonl", ".json", ".svg")]
    return "".join(path.read_text(encoding="utf-8-sig") for path in paths)


def assert_english(text):
    assert text and not CHINESE.search(text), CHINESE.search(text)


def test_the_help_is_english(capsys):
    with pytest.raises(SystemExit):
        script.main(["--help", "--lang", "en"])
    out = capsys.readouterr().out
    assert_english(out)
    assert out.startswith("usage:") and "\narguments:\n" in out


MISTAKES = {
    "an unknown flag": ["--metod", "legrad"],
    "two of one": ["--all-texts", "--target-text-idx", "0"],
    "no value": ["--img-size"],
    "no number": ["--img-size", "large"],
    "too small": ["--img-size", "3"],
    "no choice": ["--similarity", "euclid"],
    "no image": ["--image-path", "none.png"],
    "no text": ["--image-path", "data/0.png", "--target-text-idx", "lose"],
    "no encoder": ["--image-path", "data/0.png", "--image-encoder", "resnet5"],
    "no list": ["--cases", "none.csv"],
    "a folder for a list": ["--cases", "data"],
    "no picture": ["--image-path", "data/damaged.png"],
    "no layer": ["--image-path", "data/0.png", "--target-layer", "stages.9"],
    "no method for it": ["--image-path", "data/0.png", "--method", "rollout"],
    "another language": ["--lang", "fr"],
}


@pytest.mark.parametrize("more", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_answered_in_english(more, command, home, capsys):
    assert script.main(command(*more)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert_english(err)


@pytest.mark.parametrize("flags, begins", [("en zh", "错误"), ("=en zh", "错误"), ("zh =en", "error")])
def test_of_two_languages_the_last_is_spoken(flags, begins, capsys):
    """As it is the one of the figures and tables."""
    argv = [arg for lang in flags.split() for arg in ([f"--lang{lang}"] if lang[0] == "=" else ["--lang", lang])]
    assert script.main([*argv, "--foo"]) == 2 and capsys.readouterr().err.startswith(f"{begins}: ")


def test_a_checkpoint_that_is_none_is_answered_in_english(home, capsys):
    Path("a.pth").write_bytes(b"\x89PNG")
    flags = ["--lang=en", "--model-path", "a.pth", "--image-path", "data/0.png", "--class-texts", "a", "b"]
    assert script.main(flags) == 2
    assert_english(capsys.readouterr().err)


def test_layers_are_listed_in_english(checkpoint, capsys):
    assert script.main(["--lang", "en", "--model-path", str(checkpoint), "--list-layers"]) == 0
    assert_english(capsys.readouterr().out)


@pytest.mark.parametrize("more", [(), ("--all-texts", "--faithfulness"), ("--method", "all", "--target-text-idx", "2")])
def test_one_image_is_explained_in_english(command, home, capsys, more):
    name = ["--image-path", "data/black.png", "--output-name", "a.svg"]
    assert script.main(command(*name, *more)) == 0
    out, err = capsys.readouterr()
    assert_english(out)
    assert_english(err)  # that the picture is all black


def test_a_run_over_a_list_is_english_and_so_is_what_it_writes(command, home, capsys):
    assert script.main(command("--cases", "cases.csv", "--output-dir", "out", "--faithfulness")) == 1
    out, err = capsys.readouterr()
    assert_english(out + err)
    assert "failed: " in err and "warning: " in err
    assert_english(written("out"))
    rows = [json.loads(line) for line in Path("out/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "almost all black" in rows[2]["warning"] and rows[3]["error"].startswith("cannot read image data/damaged")


def test_a_chinese_runs_tables_are_written_anew_in_english(command, home, capsys):
    assert script.main(command("--cases", "cases.csv", "--output-dir", "out", lang="zh")) == 1
    chinese = written("out")
    assert "图像几乎全黑" in chinese and "无法读取图像" in chinese and "，两层，点积" in chinese
    assert script.main(["--join", "--lang", "en", "--output-dir", "out"]) == 1
    assert_english(written("out"))
    assert script.main(["--join", "--output-dir", "out"]) == 1  # in the run's own language again
    assert written("out") == chinese
    assert sum(line.startswith("警告: 1 行") for line in capsys.readouterr().err.splitlines()) == 2


# -- a console without Chinese letters --------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_console_without_chinese_letters_is_spoken_to_in_english(encoding, command, home, monkeypatch):
    """The tables keep the language that was asked for; a name stays escaped."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    Path("data/左.png").write_bytes(b"no image")
    assert script.main(command("--image-path", "data", "--output-dir", "out", lang="zh")) == 1
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    assert "Results table saved: " in out and r"failed: cannot read image data/\u5de6.png" in err
    assert "无法读取图像 data/左.png" in written("out")
    assert re.findall(r"\\[ux]\w+", out + err) == [r"\u5de6"]  # what we say ourselves has no escapes


def test_signs_of_our_own_are_spelled_out_where_an_encoding_lacks_them():
    line = "16×16 – 0.5 — 左…\U0001f600".encode("ascii", "spelled")
    assert line == rb"16x16 - 0.5 - \u5de6...\U0001f600" and "×…".encode("cp1252", "spelled") == b"\xd7\x85"


def test_a_console_of_utf_8_is_spoken_to_in_chinese(capsys):
    assert script.main(["--foo"]) == 2 and capsys.readouterr().err.startswith("错误: ")


def test_the_encoding_is_that_of_the_environment():
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(SCRIPT.parent)}
    ended = subprocess.run([sys.executable, SCRIPT, "--model-path", "a"], env=environment, capture_output=True)
    assert ended.returncode == 2 and ended.stderr.startswith(b"error: missing required arguments: --image-path or")


# -- from Python ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    """Of a black picture, in English."""
    return script.explain(tiny_clip(), np.zeros((60, 90, 3), np.uint8), TEXTS, img_size=64, lang="en")


def test_a_result_is_said_and_shown_in_its_language(result):
    assert result.lang == "en" and "all black" in result.messages()[0] and "全黑" in result.messages("zh")[0]
    assert_english("".join(filter(None, [*result.messages(), *result.warnings(), *Results([result]).messages()])))
    drawn = [for_figure(*drawn, True) for drawn in Results([result]).drawn()]
    for lang in ("en", "zh"):
        figure = draw_results(Results([result]), drawn, lang)
        assert result._replace(lang=lang)._repr_png_()[0] == encode_figure(figure, ".png")


def test_a_flaw_is_drawn_in_the_figures_language():
    flawed = tiny_result()._replace(flaws=[Message("热力图为空：{}{}", "x", "")])
    drawn = [for_figure(*drawn, True) for drawn in Results([flawed]).drawn()]
    for lang, words in (
        ("zh", "热力图为空"),
        ("en", translated("热力图为空：{}{}", "en").split("{")[0].strip(": ").lower()),
    ):
        texts = [getattr(item, "string", "") for item in draw_results(Results([flawed]), drawn, lang).items]
        assert any(words in text.lower() for text in texts)


def test_what_python_is_told_is_in_the_language_asked_for(tmp_path):
    with pytest.warns(InputWarning) as caught:
        script.visualize_clip_gradcam(
            tiny_clip(), np.zeros((60, 90, 3), np.uint8), TEXTS, img_size=64, lang="en", save_path=tmp_path / "a.svg"
        )
    assert_english("".join(str(warning.message) for warning in caught))
    for call in (script.explain, script.visualize_clip_gradcam):
        with pytest.raises(InputError) as raised:
            call(Clip(torch.nn.Identity()), "none.png", [], lang="en")
        assert_english(str(raised.value))
        with pytest.raises(InputError, match="'fr'.*zh、en"):
            call(tiny_clip(), gradient_picture(), TEXTS, lang="fr")
    assert current_language() == "zh"


@pytest.mark.parametrize("choice", [{"dpi": 7}, {"heatmap": "al"}, {"lang": "fr"}], ids=str)
def test_what_saving_a_result_complains_of_is_in_its_language(result, choice, tmp_path):
    for saved in (result, Results([result])):
        with pytest.raises(InputError) as raised:
            saved.save(tmp_path / "a.png", **choice)
        assert_english(str(raised.value))
        with pytest.raises(InputError) as raised:
            saved.figure("fr")
        assert_english(str(raised.value))
    with pytest.raises(InputError, match="[\u4e00-\u9fff]"):
        result._replace(lang="zh").save(tmp_path / "a.png", **choice)
