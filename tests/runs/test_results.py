"""The output folder of a run over many images: parts, resuming, tables, one run at a time."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
from project import PROJECT

from models.errors import InputError
from models.runs.settings import check_settings
from models.runs.state import Part, RunState
from models.runs.tables import COLUMNS, csv_cell, csv_line, package_versions

SETTINGS = {"texts": [["甲", "甲。"]], "contrast": 0.0, "packages": "torch 2"}
IMAGES = [(f"图/{i}.png", f"图/clip_gradcam_{i}") for i in range(4)]


@pytest.fixture
def run(tmp_path):
    """A run of four images that has just begun."""
    folder = RunState(tmp_path / "结果")
    folder.lock().close()
    folder.begin(SETTINGS, IMAGES, resume=False)
    return folder


def record(run, i, size=3, **values):
    """The line of image i, its one file written with `size` bytes."""
    path, name = IMAGES[i]
    file = run.folder / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    row = {"image": path, "target": "甲", "similarity": 0.25, "probabilities": [0.5, 0.5], **values}
    return {"image": path, "files": {f"{name}.png": size}, "rows": [row]}


def failure(i, why="坏了"):
    return {"image": IMAGES[i][0], "files": {}, "rows": [{"image": IMAGES[i][0], "error": why}], "error": why}


def write_part(run, rank, *records):
    with run.open_part(rank) as file:
        for entry in records:
            Part(file).append(entry)


def read_tables(run):
    csv_path, jsonl_path = run.tables
    rows = [json.loads(line) for line in jsonl_path.read_text(encoding="utf-8").splitlines()]
    return list(csv.reader(io.StringIO(csv_path.read_bytes().decode("utf-8-sig"), newline=""))), rows


# -- plan and resuming ------------------------------------------------------------------------


def test_a_fresh_plan_has_everything_to_do(run):
    assert [(image.path, image.name) for image in run.plan()] == IMAGES
    assert all(image.pending for image in run.plan())


def test_what_is_finished_is_not_to_do_again(run):
    write_part(run, 0, record(run, 1))
    write_part(run, 3, record(run, 2), failure(3))
    run.begin(SETTINGS, IMAGES, resume=True)
    assert [image.pending for image in run.plan()] == [True, False, False, True]


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer"])
def test_a_file_that_is_not_whole_is_made_again(run, damage):
    write_part(run, 0, record(run, 0), record(run, 1))
    file = run.folder / f"{IMAGES[1][1]}.png"
    file.unlink() if damage == "missing" else file.write_bytes(b"x" * (2 if damage == "shorter" else 4))
    run.begin(SETTINGS, IMAGES, resume=True)
    assert [image.pending for image in run.plan()] == [False, True, True, True]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_as_good_as_none(run, cut):
    write_part(run, 0, record(run, 0), record(run, 1))
    run.join(["甲", "乙"])
    undisturbed = read_tables(run)
    (part,) = run.state.glob("rows-*.jsonl")
    part.write_bytes(part.read_bytes()[:-cut])
    run.begin(SETTINGS, IMAGES, resume=True)
    assert [image.pending for image in run.plan()] == [False, True, True, True]
    write_part(run, 0, record(run, 1))
    run.join(["甲", "乙"])
    assert read_tables(run) == undisturbed


def test_a_lost_result_does_not_hide_a_later_failure(run):
    write_part(run, 0, record(run, 0), record(run, 1))
    (run.folder / f"{IMAGES[1][1]}.png").unlink()
    run.begin(SETTINGS, IMAGES, resume=True)
    write_part(run, 2, failure(1))
    totals = run.join(["甲", "乙"])
    assert (totals.done, totals.failed) == (1, 1) and totals.failures == [(IMAGES[1][0], "坏了")]


def test_a_resumption_that_was_killed_while_it_put_the_parts_together(run):
    write_part(run, 0, record(run, 0), record(run, 1))
    (part,) = run.state.glob("rows-*.jsonl")
    lines = part.read_bytes()
    run.begin(SETTINGS, IMAGES, resume=True)
    part.write_bytes(lines)  # not yet taken away
    run.begin(SETTINGS, IMAGES, resume=True)
    assert run.join(["甲", "乙"]).done == 2 and len(read_tables(run)[1]) == 2


def test_without_resume_what_was_there_is_forgotten(run):
    write_part(run, 0, record(run, 0))
    run.join(["甲", "乙"])
    run.begin(SETTINGS, IMAGES, resume=False)
    assert all(image.pending for image in run.plan())
    assert not any(path.exists() for path in run.tables)
    assert not list(run.state.glob("rows-*"))


def test_resuming_where_nothing_was_is_a_fresh_start(run):
    run.settings_file.unlink()
    write_part(run, 0, record(run, 0))
    run.begin({**SETTINGS, "contrast": 0.6}, IMAGES, resume=True)
    assert all(image.pending for image in run.plan())


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"texts": [["乙", "乙。"]]}, "类别文本.*甲.*乙"),
        ({"contrast": 0.6}, "--contrast.*0.0.*0.6"),
        ({"packages": "torch 3"}, "软件包版本.*torch 2.*torch 3"),
        ({"new": 1}, "new.*无.*1"),
        ({"contrast": 0.6, "packages": "torch 3"}, "--contrast.*软件包版本"),
    ],
)
def test_settings_that_differ_are_named(run, changed, named):
    before = sorted(run.state.rglob("*"))
    with pytest.raises(InputError, match=f"--resume.*{named}"):
        run.begin({**SETTINGS, **changed}, IMAGES, resume=True)
    assert sorted(run.state.rglob("*")) == before


def test_tuples_and_lists_are_one_setting():
    check_settings({"texts": [["甲", "甲。"]]}, {"texts": [("甲", "甲。")]})


def test_damaged_settings_are_an_error(run):
    run.settings_file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="settings.json.*--resume"):
        run.begin(SETTINGS, IMAGES, resume=True)


# -- tables -----------------------------------------------------------------------------------


def test_rows_come_in_the_plans_order_from_all_parts(run):
    write_part(run, 1, record(run, 3), record(run, 0))
    write_part(run, 0, failure(2), record(run, 1))
    totals = run.join(["甲", "乙"])
    table, rows = read_tables(run)
    assert [row["image"] for row in rows] == [path for path, _ in IMAGES]
    assert [line[0] for line in table[1:]] == [path for path, _ in IMAGES]
    assert table[0] == [*COLUMNS, "p0 甲", "p1 乙"]
    assert table[1][COLUMNS.index("similarity")] == "0.25" and table[1][-2:] == ["0.5", "0.5"]
    assert table[3][COLUMNS.index("error")] == "坏了"
    assert (totals.done, totals.failed, totals.total, totals.failures) == (3, 1, 4, [("图/2.png", "坏了")])


@pytest.mark.parametrize("rank", [0, 1])
def test_an_image_that_failed_and_then_succeeded_has_succeeded(run, rank):
    write_part(run, 1, failure(0))
    run.begin(SETTINGS, IMAGES, resume=True)
    write_part(run, rank, record(run, 0))
    totals = run.join(["甲", "乙"])
    assert (totals.done, totals.failed) == (1, 0)
    assert [row.get("error") for row in read_tables(run)[1]] == [None]


def test_images_that_are_no_longer_in_the_plan_are_not_in_the_tables(run):
    write_part(run, 0, record(run, 0), record(run, 1))
    run.begin(SETTINGS, IMAGES[1:], resume=True)
    run.join(["甲"])
    assert [row["image"] for row in read_tables(run)[1]] == [IMAGES[1][0]]


def test_the_csv_is_what_a_chinese_spreadsheet_opens(run):
    write_part(run, 0, record(run, 0, target='含,逗号"引号"', warning="两\n行"))
    run.join(["甲", "乙"])
    data = run.tables[0].read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") and data.count(b"\r\n") == 2
    table, _ = read_tables(run)
    assert table[1][COLUMNS.index("target")] == '含,逗号"引号"'
    assert table[1][COLUMNS.index("warning")] == "两\n行"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_text_becomes_a_formula(text):
    assert csv_cell(text) == "'" + text
    assert csv_line([text, -0.5, None]).rstrip("\r\n").endswith(",-0.5,")


def test_paths_that_are_no_unicode_go_through(run):
    path = "a\udcff.png"
    run.begin(SETTINGS, [(path, "clip_gradcam_a")], resume=False)
    write_part(run, 0, {"image": path, "files": {}, "rows": [{"image": path, "probabilities": [1.0]}]})
    run.begin(SETTINGS, [(path, "clip_gradcam_a")], resume=True)
    assert [tuple(image) for image in run.plan()] == [(path, "clip_gradcam_a", False)]
    run.join(["甲"])
    assert read_tables(run)[1][0]["image"] == "a?.png"


def test_many_failures_are_counted_and_the_first_are_named(tmp_path):
    run = RunState(tmp_path)
    run.lock().close()
    images = [(f"{i}.png", str(i)) for i in range(50)]
    run.begin(SETTINGS, images, resume=False)
    write_part(
        run, 0, *({"image": p, "files": {}, "rows": [{"image": p, "error": "x"}], "error": "x"} for p, _ in images)
    )
    totals = run.join(["甲"])
    assert totals.failed == 50 and [path for path, _ in totals.failures] == [f"{i}.png" for i in range(20)]


def test_a_table_that_cannot_be_written_leaves_the_old_one(run, monkeypatch):
    write_part(run, 0, record(run, 0))
    run.join(["甲", "乙"])
    before = [table.read_bytes() for table in run.tables]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    write_part(run, 0, record(run, 1))
    with pytest.raises(InputError, match="results.csv.*No space left"):
        run.join(["甲", "乙"])
    assert [table.read_bytes() for table in run.tables] == before and not list(run.staging.iterdir())


def test_what_a_killed_run_left_on_its_way_is_cleared(run):
    (run.staging / "half.tmp").write_bytes(b"half")
    run.begin(SETTINGS, IMAGES, resume=True)
    assert not list(run.staging.iterdir())


def test_versions_name_what_a_heatmap_depends_on():
    versions = package_versions()
    assert all(f"{name} " in versions for name in ("python", "torch", "torchvision", "transformers", "pillow", "numpy"))
    assert "opencv-" in versions


# -- one run at a time ------------------------------------------------------------------------

HOLD = """
import sys
from models.runs.state import RunState
lock = RunState(sys.argv[1]).lock()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_second_run_into_one_folder_is_refused(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(InputError, match=f"另一次运行.*进程 {holder.pid}"):
        RunState(tmp_path).lock()
    holder.kill()
    holder.communicate()
    RunState(tmp_path).lock().close()  # a killed run holds nothing


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="无法写入输出目录"):
        RunState(tmp_path / "file" / "deep").lock()
