"""An output folder, class texts and arguments that may come from anybody: nothing of others is touched."""

import csv
import io
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import gradient_picture

import clip_gradcam_visualization as script
from clip_gradcam_visualization import main
from models.class_texts import names_and_texts, read_class_texts
from models.errors import InputError, InputWarning, escape_unprintable
from models.results.parts import percent
from models.runs import records
from models.runs.records import PlannedImage, are_whole, planned_image, record_of
from models.runs.state import RunState
from models.runs.tables import csv_cell, json_line, six_digits
from models.writing import open_own, write_files

posix = pytest.mark.skipif(os.name != "posix", reason="links and pipes")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with two pictures in data/, and somebody else's file beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        Image.fromarray(gradient_picture(24, 32)).save(tmp_path / "data" / f"{name}.png")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.txt").write_text("must survive")
    return tmp_path


@pytest.fixture
def run(home, checkpoint, capsys):
    """A function that runs the command over data/ into out/; returns (exit code, lines on standard error)."""

    def run_command(*more, images=("data",), texts=("正常", "松动")):
        flags = ["--num-workers", "0", "--model-path", str(checkpoint), "--output-dir", "out", "--cpu"]
        code = main([*flags, "--class-texts", *texts, "--image-path", *images, *more])
        return code, capsys.readouterr().err.splitlines()

    return run_command


def others(home):
    return {path.name: path.read_bytes() for path in (home / "others").iterdir()}


def rows():
    return [json.loads(line) for line in Path("out/results.jsonl").read_text(encoding="utf-8").splitlines()]


# -- links, pipes and folders where a run keeps its own files ----------------------------------------

OWN_FILES = ["settings.json", "plan.jsonl", "rows-0.jsonl", "rows-earlier.jsonl", "lock"]
PLACES = {
    "link": lambda path: path.symlink_to("../../others/thesis.txt"),
    "link to nothing": lambda path: path.symlink_to("../../others/new.txt"),
    "pipe": os.mkfifo if os.name == "posix" else None,
    "folder": Path.mkdir,
}


@posix
@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["anew", "resumed"])
@pytest.mark.parametrize("name", OWN_FILES)
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_no_file_of_ours_is_refused_in_one_line(home, run, kind, name, resume):
    (home / "out" / ".clip_gradcam").mkdir(parents=True)
    PLACES[kind](home / "out" / ".clip_gradcam" / name)
    code, errors = run(*resume)
    assert code == 2 and len(errors) == 1 and errors[0].startswith("错误: ") and name in errors[0]
    assert others(home) == {"thesis.txt": b"must survive"} and os.path.lexists(home / "out" / ".clip_gradcam" / name)


@posix
@pytest.mark.parametrize("place", [".clip_gradcam", ".clip_gradcam/staging"])
@pytest.mark.parametrize("target", ["others", "nowhere"])
def test_a_state_folder_that_is_a_link_is_refused(home, run, place, target):
    path = home / "out" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(home / target)
    for flags in ([], ["--resume"]):
        code, errors = run(*flags)
        assert code == 2 and len(errors) == 1 and f"out/{place} " in errors[0] and "--output-dir" in errors[0]
    assert others(home) == {"thesis.txt": b"must survive"} and not (home / "nowhere").exists()


@posix
def test_a_second_name_of_another_file_is_not_appended_to(home, run):
    state = home / "out" / ".clip_gradcam"
    state.mkdir(parents=True)
    for name in ("lock", "rows-0.jsonl"):
        os.link(home / "others" / "thesis.txt", state / name)
    code, errors = run()
    assert code == 2 and len(errors) == 1 and "lock" in errors[0]
    (state / "lock").unlink()
    with pytest.raises(InputError, match="rows-0"):
        RunState("out").open_part(0)
    assert others(home) == {"thesis.txt": b"must survive"}


@posix
def test_only_what_we_staged_is_removed(home, run):
    state = home / "out" / ".clip_gradcam"
    (state / "staging" / ".clip_gradcam_folder.tmp").mkdir(parents=True)
    kept = ["staging/thesis.tmp", "staging/.clip_gradcam_x.txt", "rows-final.jsonl", "rows-1.jsonl.bak"]
    for name in [*kept, "staging/.clip_gradcam_ab12_xy.tmp", "rows-7.jsonl"]:
        (state / name).write_text("mine")
    (state / "staging" / ".clip_gradcam_link.tmp").symlink_to(home / "others" / "thesis.txt")
    assert run() == (0, [])
    assert all((state / name).read_text() == "mine" for name in kept)
    assert sorted(path.name for path in (state / "staging").iterdir()) == [
        ".clip_gradcam_folder.tmp", ".clip_gradcam_x.txt", "thesis.tmp"
    ]  # fmt: skip
    assert others(home) == {"thesis.txt": b"must survive"}


def test_a_folder_in_the_tables_place_is_said_before_anything_is_done(home, run):
    assert run() == (0, [])
    (home / "out" / "results.csv").unlink()
    (home / "out" / "results.csv").mkdir()
    before = sorted((home / "out").rglob("*"))
    for flags in ([], ["--resume"]):
        code, errors = run(*flags)
        assert code == 2 and len(errors) == 1 and "results.csv 是文件夹" in errors[0]
    assert sorted((home / "out").rglob("*")) == before


@posix
def test_results_replace_links_and_never_follow_them(home, run):
    (home / "out").mkdir()
    for name in ("clip_gradcam_a.png", "clip_gradcam_a_overlay.png", "results.csv", "results.jsonl"):
        (home / "out" / name).symlink_to(home / "others" / "thesis.txt")
    (home / "out" / "clip_gradcam_b.png").symlink_to(home / "others")
    assert run() == (0, [])
    assert others(home) == {"thesis.txt": b"must survive"} and len(rows()) == 2
    assert not any(path.is_symlink() for path in (home / "out").iterdir())
    assert main([]) == 2  # nothing is left behind by the last run that would change the next


@posix
def test_one_image_replaces_a_link_too(home, run):
    (home / "out").mkdir()
    (home / "out" / "clip_gradcam_a.png").symlink_to(home / "others" / "thesis.txt")
    assert run(images=["data/a.png"]) == (0, [])
    assert others(home) == {"thesis.txt": b"must survive"}
    assert (home / "out" / "clip_gradcam_a.png").read_bytes().startswith(b"\x89PNG")


@posix
def test_a_folder_below_the_output_folder_that_is_a_link_is_the_images_error(home, run):
    (home / "data" / "sub").mkdir()
    (home / "data" / "a.png").rename(home / "data" / "sub" / "a.png")
    (home / "out").mkdir()
    (home / "out" / "sub").symlink_to(home / "others")
    code, errors = run()
    assert code == 1 and any(line.startswith("失败: data/sub/a.png") and "链接" in line for line in errors)
    assert others(home) == {"thesis.txt": b"must survive"}
    assert [("error" in row, row["image"]) for row in rows()] == [(False, "data/b.png"), (True, "data/sub/a.png")]


@posix
def test_the_output_folder_itself_may_be_a_link(home, run):
    (home / "results").mkdir()
    (home / "out").symlink_to(home / "results")
    assert run() == (0, []) and (home / "results" / "clip_gradcam_a.png").is_file()
    assert run("--resume") == (0, []) and len(rows()) == 2


# -- odd contents of a run's state --------------------------------------------------------------------

ODD_JSON = ["5", "null", '"x"', "[1, 2]", "[]", "true", "NaN", "1e999", "9" * 5000, "[" * 100_000, '{"a": ' * 50_000]
ODD_SETTINGS = [
    *ODD_JSON,
    "{",
    "",
    "\x00" * 50,
    '{"texts": 3}',
    "{}",
    '{"texts": [[["甲"]]], "%": {"\\u001b[31m": []}}',
]


@pytest.mark.parametrize("content", ODD_SETTINGS, ids=lambda content: content[:15])
def test_settings_of_another_kind_are_one_line(home, run, content):
    state = home / "out" / ".clip_gradcam"
    state.mkdir(parents=True)
    (state / "settings.json").write_text(content, encoding="utf-8")
    code, errors = run("--resume")
    assert code == 2 and len(errors) == 1 and errors[0].startswith("错误: ") and "--resume" in errors[0]
    assert "\x1b" not in errors[0] and len(errors[0]) < 2100


def test_a_new_start_and_its_resumption_put_odd_state_right(home, run):
    state = home / "out" / ".clip_gradcam"
    state.mkdir(parents=True)
    for name in OWN_FILES:
        (state / name).write_text('[1, 2]\n5\n{"image": 3}\n')
    assert run() == (0, []) and run("--resume") == (0, []) and len(rows()) == 2


def test_settings_of_many_keys_or_no_utf8(home, run):
    state = home / "out" / ".clip_gradcam"
    state.mkdir(parents=True)
    for content in (json.dumps({str(i): i for i in range(10**5)}).encode(), b"\xff\xfe{", b"\xe6\xad"):
        (state / "settings.json").write_bytes(content)
        code, errors = run("--resume")
        assert code == 2 and len(errors) == 1 and len(errors[0]) < 2100


GOOD = {"image": "data/a.png", "files": {"clip_gradcam_a.png": 3}}
GOOD["rows"] = [{"image": "data/a.png", "target": "正常", "probability": 0.5, "probabilities": [0.5, 0.5]}]
FAILED = {"image": "data/a.png", "files": {}, "error": "坏了", "rows": [{"image": "data/a.png", "error": "坏了"}]}


def changed(**values):
    return {**GOOD, **values}


def with_row(**values):
    return changed(rows=[{**GOOD["rows"][0], **values}])


def with_case(**values):
    """The record of an image of a list."""
    row = {"predicted": "正常", "method": "gradcam", "setting": "Grad-CAM", "target_text_idx": 0, **values}
    return with_row(**row) | {"case": "d", "labels": [0], "coverages": {"1": "a"}}


ODD_RECORDS = [
    *({key: GOOD[key] for key in GOOD if key != left_out} for left_out in GOOD),
    *({"image": 3}, {}, {"error": 3}, changed(image=["data/a.png"]), changed(error=3), changed(error=None)),
    *(changed(files=files) for files in (None, [], 3, {"a": "3"}, {"a": None}, {"a": [3]}, {"a": True}, {"a": 0.5})),
    *(changed(rows=odd) for odd in (None, [], {}, "x", 3, [3], [None], [[]], ["x"], [{}], [{"image": "data/b.png"}])),
    *(with_row(probabilities=odd) for odd in (None, 3, [], [0.5], ["a", "b"], [[], {}], [0.5] * 10**6)),
    *(with_row(similarity=odd) for odd in ([], {}, [[[]]], "0.5", 10**400, -1e40)),
    *(with_row(**{name: 3}) for name in ("predicted", "setting", "warning")),
    *(changed(coverages=odd) for odd in ({"2": "a"}, {"9" * 5000: "a"}, {"²": "a"}, {"0": 3}, {"0": "A" * 10**6}, [])),
    changed(case="d"),
    *(with_case(**{name: None}) for name in ("predicted", "method", "setting", "target_text_idx", "probabilities")),
    *(with_case(**odd) for odd in ({"target_text_idx": 2}, {"annotated": 1}, {"annotated": 2, "distance": 0.0})),
    *(with_row(**{name: 1}) for name in ("unknown", "", "p0 x")),
    *(with_row(words=odd) for odd in (3, "骨", {}, ["骨"], [["骨"]], [["骨", "0.1"]], [[3, 0.1]], [["骨", 0.1, 0.1]])),
    *(with_row(words=odd) for odd in ([["骨", 1e40]], [["骨", []]], [[["骨", 0.1]], 3], [[["骨", 0.1]], ["折", 0.1]])),
]


@pytest.mark.parametrize("record", ODD_RECORDS, ids=range(len(ODD_RECORDS)))
def test_a_line_that_is_no_record_is_none(record):
    assert record_of(json_line(record).encode(), texts=2) is None


def test_a_line_that_is_a_record():
    words = [], [["骨", 0.1], ["折", None]], [[["骨", 0.1]], []], [[]], None
    with_words = [with_row(words=of_row) for of_row in words]
    of_case = with_case(annotated=1, distance=None), FAILED | {"case": "d"}
    no_files, wide = changed(files={}), with_row(warning=None, contrast=0.0, width=10**30)
    for record in (GOOD, no_files, FAILED, wide, *of_case, *with_words):
        assert record_of(json_line(record).encode(), texts=2) == record
    assert record_of(json_line(GOOD).encode(), texts=3) is None
    for line in (*ODD_JSON, "[1", "\x80", '{"image": NaN}', json.dumps(GOOD).replace("0.5", "Infinity")):
        assert record_of(line.encode("latin-1", "replace"), texts=2) is None


def test_a_line_that_is_no_plan_of_an_image_is_none():
    line = ["a.png", "a", True, {"id": "1", "image": "a.png", "年龄": None}, [1], ["a.json"], "d"]
    assert planned_image(json_line(line).encode(), texts=2) == PlannedImage(*line)
    odd_columns = [{"id": "1"}, [], *({**line[3], name: None} for name in ("id", "image"))]
    odd_columns += [{**line[3], name: "x"} for name in ("distance", "probabilities", "error", "names")]
    odd_columns += [{**line[3], "年龄": 3}]
    for place, odd in [*((3, columns) for columns in odd_columns), (0, 3), (2, 1), (4, [2]), (5, "a.json"), (6, 3)]:
        assert planned_image(json_line([*line[:place], odd, *line[place + 1 :]]).encode(), texts=2) is None, odd


def test_odd_rows_are_passed_over_and_the_images_done_again(home, run):
    assert run() == (0, [])
    before = {path.name: path.read_bytes() for path in (home / "out").iterdir() if path.is_file()}
    part = home / "out" / ".clip_gradcam" / "rows-0.jsonl"
    odd = [*ODD_JSON, *(json_line(record).rstrip("\n") for record in ODD_RECORDS), "\xff", ""]
    part.write_bytes("\n".join(odd).encode("latin-1") + b"\0" * 30)
    assert run("--resume") == (0, [])
    assert {path.name: path.read_bytes() for path in (home / "out").iterdir() if path.is_file()} == before


def test_a_line_longer_than_any_of_ours_ends_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 10)
    read = lambda data: list(records.whole_lines(io.BytesIO(data)))  # noqa: E731
    assert read(b"123456789\nab\n") == [(0, b"123456789\n"), (10, b"ab\n")]
    assert read(b"ab\n1234567890\nab\n") == read(b"ab\n12") == [(0, b"ab\n")]


@pytest.fixture
def listed(home, run):
    """The part of a run over a list whose images are annotated."""
    Image.fromarray(np.full((24, 32), 255, np.uint8)).save("mask.png")
    Path("cases.csv").write_text("image,label,annotation\ndata/a.png,松动,mask.png\ndata/b.png,正常,mask.png\n")
    assert run("--cases", "cases.csv") == (0, [])
    return home / "out" / ".clip_gradcam" / "rows-0.jsonl"


@pytest.mark.parametrize("column", ["distance", "text_specificity", "probability"])
def test_numbers_that_are_none_are_of_no_record(listed, capsys, column):
    """Of the two images one is left."""
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    lines[0]["rows"][0][column] = "0.5"
    listed.write_text("".join(map(json_line, lines)))
    assert main(["--join", "--output-dir", "out"]) == 1
    assert [row["id"] for row in rows()] == ["data/b.png"]
    assert json.loads(Path("out/evaluation.json").read_text())["groups"][0]["images"] == 1


def test_an_evaluation_that_cannot_be_made_leaves_the_tables(listed, capsys):
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    lines[0]["coverages"] = {index: "AAAA" for index in lines[0]["coverages"]}
    listed.write_text("".join(map(json_line, lines)))
    (listed.parent.parent / "results.csv").unlink()
    assert main(["--join", "--output-dir", "out"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("错误: 输出目录中保存的标注不是本工具写的")
    assert len(rows()) == 2 and Path("out/results.csv").is_file()


@pytest.mark.parametrize("names", [["a"] * 1001, ["\ud800"], [" "], [3], [], "ab"], ids=range(6))
def test_texts_that_no_run_has_are_not_joined(listed, capsys, names):
    settings = listed.parent / "settings.json"
    texts = [[name, "x"] for name in names] if isinstance(names, list) else names
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"texts": texts}))
    assert main(["--join", "--output-dir", "out"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "settings.json 中不是一次运行的设置" in error


@pytest.mark.parametrize("name", ["../others/thesis.txt", "/etc/hostname", "..", "", ".", "a\0b", "sub/../x", "link/t"])
def test_files_of_a_row_stay_below_the_output_folder(home, name):
    (home / "out" / "sub").mkdir(parents=True)
    (home / "out" / "x").write_text("x")
    (home / "link").mkdir()
    (home / "link" / "t").write_text("x")
    if os.name == "posix":
        (home / "out" / "link").symlink_to(home / "link")
    size = (home / "out" / name).stat().st_size if "\0" not in name and (home / "out" / name).exists() else 1
    assert not are_whole(home / "out", {name: size})
    assert are_whole(home / "out", {"x": 1})


def test_a_file_of_our_own_is_opened_as_asked_for(tmp_path):
    path = tmp_path / "own"
    for mode, data in (("ab", b"12"), ("ab", b"34"), ("r+b", b"x")):
        with open_own(path, mode) as file:
            file.write(data)
    assert open_own(path).read() == b"x234" and stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "absent")


@posix
def test_a_failed_write_leaves_links_of_others_alone(tmp_path):
    (tmp_path / "folder").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="无法写入"):
        write_files({tmp_path / "folder" / "a.png": b"1"})
    assert (tmp_path / "folder").is_symlink()


# -- what is shown --------------------------------------------------------------------------------------

SHOWN = {
    "a\x1b[31mb": r"a\x1b[31mb", "a\nb\rc\td": r"a\nb\rc\td", "\x00\x07\x7f\x85\x9b": r"\x00\x07\x7f\x85\x9b",
    "\u202eabc\u2066\u2069\u200e\u200f\u061c": r"\u202eabc\u2066\u2069\u200e\u200f\u061c",
    "a\u200bb\ufeff\u2060\xad": r"a\u200bb\ufeff\u2060\xad", "\u2028\u2029": r"\u2028\u2029",
    "\udcff\ud800": r"\udcff\ud800", "\U000e0041": r"\U000e0041", "\u115f\u3164": r"\u115f\u3164",
    "a\u200db \u200c": r"a\u200db \u200c",
}  # fmt: skip
AS_IT_IS = ("髋臼杯松动：正常？", "é e\u0301 葛\U000e0100", "می\u200cخواهم", "👩\u200d⚕\ufe0f", r"C:\x1b", "　a  b")
SHOWN |= {text: text for text in AS_IT_IS}


@pytest.mark.parametrize("text", SHOWN, ids=ascii)
def test_what_is_no_visible_character_is_shown_escaped(text):
    assert escape_unprintable(text) == SHOWN[text] and escape_unprintable(SHOWN[text]) == SHOWN[text]
    assert str(InputError(text)) == str(InputWarning(text)) == SHOWN[text] and csv_cell(text) == SHOWN[text]
    line = json_line([text], ensure_ascii=False)
    assert json.loads(line) == [text] and escape_unprintable(line[:-1]) == line[:-1]
    line.encode("utf-8")


@posix
def test_names_and_texts_reach_the_terminal_and_the_tables_escaped(home, run, capsys):
    odd = "x\x1b[31m\n\u202ey"
    for name in ("a", "b"):
        (home / "data" / f"{name}.png").rename(home / "data" / f"{name}{odd}.png")
    (home / "data" / f"bad{odd}.png").write_bytes(b"no image")
    code, errors = run("--lang", "en", texts=[f"={odd}", "松动"])
    (failed,) = [
        line for line in errors if not line.startswith("warning: ")
    ]  # whether a map is empty is not asked here
    assert code == 1 and rf"bad{escape_unprintable(odd)}.png" in failed and "\x1b" not in "".join(errors)
    assert {row["image"] for row in rows()} == {f"data/{name}{odd}.png" for name in ("a", "b", "bad")}
    data = Path("out/results.csv").read_bytes().decode("utf-8-sig")
    table = list(csv.reader(io.StringIO(data, newline="")))
    assert len(table) == data.count("\r\n") == 4 and escape_unprintable(data.replace("\r\n", "")) in data.replace(
        "\r\n", ""
    )
    assert table[0][-2] == "p0 =" + escape_unprintable(odd)
    assert {row[table[0].index("predicted")] for row in table[1:]} <= {"'=" + escape_unprintable(odd), "松动", ""}
    code = main(["--model-path", "x.pth", "--image-path", f"no{odd}", "--class-texts", "a", f"--typo{odd}"])
    code += main(["--model-path", f"no{odd}.pth", "--image-path", f"data/a{odd}.png", "--class-texts", "a"])
    out, err = capsys.readouterr()
    assert (
        code == 4 and len(err.splitlines()) == 2 and err.count(escape_unprintable(odd)) == 2 and "\x1b" not in err + out
    )


@posix
def test_the_summary_of_one_image_is_escaped(home, run, capsys, checkpoint):
    odd = "x\x1b[31m\n\u202ey"
    (home / "data" / "a.png").rename(home / "data" / f"{odd}.png")
    flags = ["--model-path", str(checkpoint), "--image-path", f"data/{odd}.png", "--class-texts", odd, "--cpu"]
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert escape_unprintable(out.replace("\n", "")) == out.replace("\n", "")
    assert f"目标文本：[0] {escape_unprintable(odd)}" in out
    assert f"clip_gradcam_results/clip_gradcam_{escape_unprintable(odd)}.png" in out
    assert Path(f"clip_gradcam_results/clip_gradcam_{odd}.png").is_file()


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@A1",
    "＝1",
    "＋1",
    "－1",
    "＠A1",
    "  =1",
    "\u3000＝1",
    '"=1',
    "'=1",
    "“＝1",
    "\xa0@x",
    "\n=1",
]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_becomes_a_formula(text):
    assert csv_cell(text) == "'" + escape_unprintable(text)


def test_numbers_and_ordinary_texts_stay_as_they_are():
    for value in (-0.5, 0, 4.6e-07, "正常-异常", "a=b", " 正常", "1+1", "(-1)"):
        assert csv_cell(value) == value
    assert csv_cell(None) == ""


# -- small probabilities ----------------------------------------------------------------------------------


def test_small_probabilities_are_not_zero():
    assert [six_digits(p) for p in (4.6e-7, 1.23456789e-12, 0.961234567, 1.0, 0.0)] == [
        4.6e-7, 1.23457e-12, 0.961235, 1.0, 0.0
    ]  # fmt: skip
    assert six_digits(np.float32("nan")) is None
    shown = {4.6e-7: "<0.1%", 4.9e-4: "<0.1%", 0.0: "0.0%", 6e-4: "0.1%", 0.5: "50.0%", 0.9994: "99.9%"}
    shown |= {0.99951: ">99.9%", 1 - 1e-9: ">99.9%", 1.0: "100.0%"}
    assert {p: percent(p) for p in shown} == shown


def test_a_confident_model_says_so_everywhere(home, run, capsys, monkeypatch):
    sure = np.array([1 - 4.6e-7, 4.6e-7])
    genuine = script.ImageMaps
    monkeypatch.setattr(script, "ImageMaps", lambda *parts: genuine(*parts)._replace(probabilities=sure))
    seen = []
    figure = script.encode_outputs.__globals__["draw_results"]
    watch = lambda *drawn: seen.append(figure(*drawn)) or seen[-1]  # noqa: E731
    monkeypatch.setitem(script.encode_outputs.__globals__, "draw_results", watch)
    for flags in (["--target-text-idx", "1"], ["--all-texts"]):
        assert run(*flags, images=["data/a.png"])[0] == 0
        strings = " ".join(getattr(item, "string", "") for item in seen[-1].items)
        assert "<0.1%" in strings and ">99.9%" in strings and "100.0%" not in strings
    run("--target-text-idx", "1")
    assert rows()[0]["probability"] == 4.6e-7 and rows()[0]["probabilities"] == [1.0, 4.6e-7]
    assert Path("out/results.csv").read_text(encoding="utf-8-sig").splitlines()[1].endswith(",1.0,4.6e-07")


# -- class texts ---------------------------------------------------------------------------------------------

BAD_TEXTS = {
    "too large": (lambda path: path.write_bytes(b'{"a": "' + b"x" * (10 << 20) + b'"}'), "10 MB"),
    "a folder": (Path.mkdir, "文件夹"),
    "a pipe": (lambda path: os.mkfifo(path), "管道"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "设备"),
    "a NUL alone": (lambda path: path.write_bytes(b"\0"), "JSON"),
    "deep objects": (lambda path: path.write_bytes(b'{"a":' * 100_000), "JSON"),
    "a huge integer": (lambda path: path.write_bytes(b'{"a": ' + b"9" * 10_000 + b"}"), "JSON"),
    "a long number": (lambda path: path.write_bytes(b'{"a": ' + b"9" * 4000 + b"}"), "描述"),
    "infinity": (lambda path: path.write_bytes(b'{"a": Infinity}'), "描述"),
    "many keys, one twice": (
        lambda path: path.write_bytes(b"{" + b",".join(b'"%d":"x"' % (i % 99_999) for i in range(100_000)) + b"}"),
        "'0' 出现了两次",
    ),
}


@posix
@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_class_text_file_that_is_none_is_one_line(tmp_path, case):
    write, expected = BAD_TEXTS[case]
    write(tmp_path / "texts.json")
    with pytest.raises(InputError, match=expected) as caught:
        read_class_texts(tmp_path / "texts.json")
    assert len(str(caught.value)) < 500


def test_a_hundred_thousand_keys_are_read_at_once_and_too_many(tmp_path):
    texts = {f"类 {i}": f"描述 {i}" for i in range(100_000)}
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    read = read_class_texts(tmp_path / "texts.json")
    assert read == texts
    with pytest.raises(InputError, match="100000 个，至多 1000 "):
        names_and_texts(read)


@pytest.mark.parametrize(
    "texts",
    [{"a": "x" * 10_001}, {"x" * 10_001: "a"}, {1: "a"}, {"": "a"}, {" \t": "a"}, 3, None, [None], [b"a"], {}, []],
)
def test_texts_that_are_none_are_an_input_error(texts):
    with pytest.raises(InputError, match="类别") as caught:
        names_and_texts(texts)
    assert len(str(caught.value)) < 500


def test_the_model_gets_what_the_user_wrote():
    odd = {"短\x1b": "描述\n\u202e\0", "👩\u200d⚕": "x"}
    assert names_and_texts(odd) == (list(odd), list(odd.values()))


# -- arguments -------------------------------------------------------------------------------------------------

REFUSED = {
    "--img-size 1000000000": "--img-size 至多是 4096", "--img-size 4097": "--img-size 至多是 4096",
    "--batch-size 1000000000": "--batch-size 至多是 1024", "--num-workers 1000000": "--num-workers 至多是 256",
    "--embed-dim 100000000000000000000000000000": "--embed-dim 至多是 65536", "--img-size -1": "--img-size 至少是 16",
    "--img-size nan": "整数", "--img-size 1e3": "整数", f"--img-size {'9' * 6000}": "整数",
    "--target-text-idx 1000000000000000000000000000000": "超出范围", "--target-text-idx -1": "超出范围",
    f"--target-text-idx {'9' * 4000}": "超出范围",
    **{f"--output-name {name}": "--output-name" for name in ("a/..", "a/", "..", ".", "/")},
    **{f"{flag} ": f"{flag} 后面的值是空的" for flag in ("--output-name", "--output-dir", "--image-path", "--layers")},
    **{f"{flag} ": f"{flag} 后面的值是空的" for flag in ("--target-layer", "--class-texts-file", "--model-path")},
    **{f"{flag} a\0b": "空字符" for flag in ("--output-dir", "--image-path", "--model-path", "--output-name")},
    f"--image-path {'x/' * 5000}": "name too long", f"--output-dir {'x' * 300}": "name too long",
    **{f"--output-dir data/a.png{deep}": "是文件" for deep in ("", "/deep")}, "--output-dir link": "指向不存在的地方",
    "--resume=3": "--resume 不带值", "--help=3": "不带值", "--": "无法识别的参数 --",
    "--lang \x1b[31m": r"\x1b[31m",
}  # fmt: skip


@posix
@pytest.mark.parametrize("flag", REFUSED, ids=lambda flag: ascii(flag[:40]))
def test_a_wrong_value_is_one_line(home, checkpoint, capsys, flag):
    name, *value = flag.split(" ", 1)
    flags = {"--model-path": str(checkpoint), "--image-path": "data/a.png", "--output-dir": "out", name: None}
    flags |= {} if name == "--class-texts-file" else {"--class-texts": "正常"}
    arguments = [part for flag, text in flags.items() if text is not None for part in (flag, text)]
    arguments = [] if name == "--" else arguments
    (home / "link").symlink_to(home / "nowhere")
    assert main([*arguments, name, *value]) == 2
    err = capsys.readouterr().err
    assert err.startswith("错误: ") and err.count("\n") == 1 and REFUSED[flag] in err and len(err) < 2100
    assert not (home / "out").exists()


_WORDS = st.sampled_from([flag for flag, _, _ in script.FLAGS if flag != "--help"])
_VALUES = st.one_of(
    st.text(max_size=20).filter(lambda text: text not in ("-h", "--help")),
    st.sampled_from(
        ["", "-1", "1" * 5000, "nan", "--", "=", "-", "data", "data/a.png", "*", "[", "~", "..", "正常", "\ud800"]
    ),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(arguments=st.lists(st.one_of(_WORDS, _VALUES, st.builds("{}={}".format, _WORDS, _VALUES)), max_size=12))
def test_no_list_of_arguments_raises(arguments):
    assert main([*arguments, "--model-path", "没有.pth"]) == 2


# -- errors that nobody foresaw ----------------------------------------------------------------------------------


def test_an_unforeseen_error_is_one_line_and_a_traceback_where_it_is_asked_for(home, run, monkeypatch):
    def fails(*args):
        raise ZeroDivisionError("a\x1b[31m\nb")

    monkeypatch.setattr(script.Explainer, "__call__", fails)
    code, errors = run(images=["data/a.png"])
    assert code == 2 and len(errors) == 1 and errors[0].startswith("错误: ")
    assert r"ZeroDivisionError：a\x1b[31m；" in errors[0] and "CLIP_GRADCAM_DEBUG=1" in errors[0]
    monkeypatch.setenv("CLIP_GRADCAM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run(images=["data/a.png"])
