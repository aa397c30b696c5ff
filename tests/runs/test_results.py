"""The output folder of a run over many images: parts, resuming, tables."""

import csv
import io
import json
import os

import pytest

from models.errors import InputError
from models.runs.records import PlannedImage
from models.runs.settings import check_settings
from models.runs.state import Part, RunState
from models.runs.tables import csv_cell, csv_line, package_versions, table_columns

COLUMNS = table_columns(None)
SETTINGS = {"texts": [["甲", "甲。"], ["乙", "乙。"]], "contrast": 0.0, "packages": "torch 2"}


def planned(path, name):
    return PlannedImage(path, name, True, {"id": path, "image": path})


PATHS = [(f"图/{i}.png", f"图/clip_gradcam_{i}") for i in range(4)]
IMAGES = [planned(*image) for image in PATHS]


@pytest.fixture
def run(tmp_path):
    """A run of four images that has just begun."""
    folder = RunState(tmp_path / "结果")
    folder.lock().close()
    folder.begin(SETTINGS, IMAGES, resume=False)
    return folder


def record(run, i, **values):
    """The line of image i, its one file of three bytes written."""
    path, name = PATHS[i]
    file = file_of(run, i)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"xxx")
    row = {"image": path, "target": "甲", "similarity": 0.25, "probabilities": [0.5, 0.5], **values}
    return {"image": path, "files": {f"{name}.png": 3}, "rows": [row]}


def file_of(run, i):
    return run.folder / f"{PATHS[i][1]}.png"


def failure(path, why="坏了"):
    return {"image": path, "files": {}, "rows": [{"image": path, "error": why}], "error": why}


def write_part(run, rank, *records):
    with run.open_part(rank) as file:
        for entry in records:
            Part(file).append(entry)


def pending_after(run, settings=SETTINGS, resume=True):
    """Which images are to do when the run begins again."""
    run.begin(settings, IMAGES, resume)
    return [image.pending for image in run.plan(2)]


def tables_of(run):
    """Join the parts; the tables' (rows of CSV, rows of JSON lines, what they say in sum)."""
    totals = run.join(["甲", "乙"], 15)
    csv_path, jsonl_path = run.tables
    rows = [json.loads(line) for line in jsonl_path.read_text(encoding="utf-8").splitlines()]
    return list(csv.reader(io.StringIO(csv_path.read_bytes().decode("utf-8-sig"), newline=""))), rows, totals


# -- plan and resuming ------------------------------------------------------------------------


def test_what_is_finished_is_not_to_do_again(run):
    assert [image[:4] for image in run.plan(2)] == [image[:4] for image in IMAGES]
    write_part(run, 0, record(run, 1))
    write_part(run, 3, record(run, 2), failure(IMAGES[3][0]))
    assert pending_after(run) == [True, False, False, True]


@pytest.mark.parametrize("content", [None, b"xx", b"xxxx"])
def test_a_file_that_is_not_whole_is_made_again(run, content):
    write_part(run, 0, record(run, 0), record(run, 1))
    file_of(run, 1).unlink()
    if content:
        file_of(run, 1).write_bytes(content)
    assert pending_after(run) == [False, True, True, True]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_is_as_good_as_none(run, cut):
    write_part(run, 0, record(run, 0), record(run, 1))
    undisturbed = tables_of(run)[:2]
    (part,) = run.state.glob("rows-*.jsonl")
    part.write_bytes(part.read_bytes()[:-cut])
    assert pending_after(run) == [False, True, True, True]
    write_part(run, 0, record(run, 1))
    assert tables_of(run)[:2] == undisturbed


def test_a_lost_result_does_not_hide_a_later_failure(run):
    write_part(run, 0, record(run, 0), record(run, 1))
    file_of(run, 1).unlink()
    assert pending_after(run) == [False, True, True, True]
    write_part(run, 2, failure(IMAGES[1][0]))
    _, _, totals = tables_of(run)
    assert (totals.done, totals.failed) == (1, 1) and totals.failures == [(IMAGES[1][0], "坏了")]


def test_an_image_that_failed_and_then_succeeded_has_succeeded(run):
    write_part(run, 1, failure(IMAGES[0][0]))
    assert all(pending_after(run))
    write_part(run, 0, record(run, 0))
    _, rows, totals = tables_of(run)
    assert (totals.done, totals.failed) == (1, 0) and [row.get("error") for row in rows] == [None]


def test_a_resumption_that_was_killed_while_it_put_the_parts_together(run):
    write_part(run, 0, record(run, 0), record(run, 1))
    (part,) = run.state.glob("rows-*.jsonl")
    lines = part.read_bytes()
    (run.staging / ".clip_gradcam_half.tmp").write_bytes(b"half")
    for _ in range(2):
        assert pending_after(run) == [False, False, True, True] and not list(run.staging.iterdir())
        part.write_bytes(lines)  # not yet taken away
    pending_after(run)
    _, rows, totals = tables_of(run)
    assert totals.done == len(rows) == 2


def test_without_resume_what_was_there_is_forgotten(run):
    write_part(run, 0, record(run, 0))
    tables_of(run)
    assert all(pending_after(run, resume=False))
    assert not any(path.exists() for path in run.tables) and not list(run.state.glob("rows-*"))


def test_resuming_where_nothing_was_is_a_fresh_start(run):
    run.settings_file.unlink()
    write_part(run, 0, record(run, 0))
    assert all(pending_after(run, {**SETTINGS, "contrast": 0.6}))


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
        pending_after(run, {**SETTINGS, **changed})
    assert sorted(run.state.rglob("*")) == before


def test_tuples_and_lists_are_one_setting():
    check_settings({"texts": [["甲", "甲。"]]}, {"texts": [("甲", "甲。")]})


def test_damaged_settings_are_an_error(run):
    run.settings_file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="settings.json.*--resume"):
        pending_after(run)


# -- tables -----------------------------------------------------------------------------------


def test_rows_come_in_the_plans_order_from_all_parts(run):
    write_part(run, 1, record(run, 3), record(run, 0))
    write_part(run, 0, failure(IMAGES[2][0]), record(run, 1))
    table, rows, totals = tables_of(run)
    assert [row["image"] for row in rows] == [line[1] for line in table[1:]] == [path for path, _ in PATHS]
    assert table[0] == [*COLUMNS, "p0 甲", "p1 乙"]
    assert table[1][COLUMNS.index("similarity")] == "0.25" and table[1][-2:] == ["0.5", "0.5"]
    assert table[3][COLUMNS.index("error")] == "坏了"
    assert (totals.done, totals.failed, totals.total, totals.failures) == (3, 1, 4, [("图/2.png", "坏了")])
    run.begin(SETTINGS, IMAGES[1:2], resume=True)  # what is no longer in the plan is not in the tables
    assert [row["image"] for row in tables_of(run)[1]] == [IMAGES[1][0]]


def test_the_csv_is_what_a_chinese_spreadsheet_opens(run):
    write_part(run, 0, record(run, 0, target='含,逗号"引号"', warning="两\n行"))
    table, _, _ = tables_of(run)
    data = run.tables[0].read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") and data.count(b"\r\n") == 2
    assert [table[1][COLUMNS.index(name)] for name in ("target", "warning")] == ['含,逗号"引号"', "两\\n行"]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_text_becomes_a_formula(text):
    assert csv_cell(text) == "'" + text.replace("\t", "\\t")
    assert csv_line([text, -0.5, None]).rstrip("\r\n").endswith(",-0.5,")


WORDS = [['=1+1"', 0.031], ["\u202e折", -0.2], ["\n", None]]


def test_words_stand_in_the_tables_as_json(run):
    """Of no word a spreadsheet's formula; a record of before there were words has none."""
    write_part(run, 0, record(run, 0, words=WORDS), record(run, 1, words=[WORDS, []]), record(run, 2), record(run, 3))
    table, rows, _ = tables_of(run)
    cells = [line[COLUMNS.index("words")] for line in table[1:]]
    assert cells[0].startswith("[[") and "折" in cells[0] and cells[0].isprintable()
    assert [json.loads(cell) for cell in cells[:2]] == [WORDS, [WORDS, []]] and cells[2:] == ["", ""]
    assert rows[0]["words"] == WORDS and "words" not in rows[2]


def test_paths_that_are_no_unicode_go_through(run):
    path = "a\udcff.png"
    run.begin(SETTINGS, [planned(path, "clip_gradcam_a")], resume=False)
    (run.folder / "clip_gradcam_a.png").write_bytes(b"xxx")
    row = {"image": path, "probabilities": [1.0, 0.0]}
    write_part(run, 0, {"image": path, "files": {"clip_gradcam_a.png": 3}, "rows": [row]})
    run.begin(SETTINGS, [planned(path, "clip_gradcam_a")], resume=True)
    assert [image[:3] for image in run.plan(2)] == [(path, "clip_gradcam_a", False)]
    table, rows, _ = tables_of(run)
    assert rows[0]["image"] == path and table[1][1] == "a\\udcff.png"


def test_many_failures_are_counted_and_the_first_are_named(run):
    images = [planned(f"{i}.png", str(i)) for i in range(50)]
    run.begin(SETTINGS, images, resume=False)
    write_part(run, 0, *(failure(image.path) for image in images))
    _, _, totals = tables_of(run)
    assert totals.failed == 50 and [path for path, _ in totals.failures] == [f"{i}.png" for i in range(20)]


def test_a_table_that_cannot_be_written_leaves_the_old_one(run, monkeypatch):
    write_part(run, 0, record(run, 0))
    tables_of(run)
    before = [table.read_bytes() for table in run.tables]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    write_part(run, 0, record(run, 1))
    with pytest.raises(InputError, match="results.csv.*No space left"):
        tables_of(run)
    assert [table.read_bytes() for table in run.tables] == before and not list(run.staging.iterdir())


def test_versions_name_what_a_heatmap_depends_on():
    versions = package_versions()
    assert all(f"{name} " in versions for name in ("python", "torch", "torchvision", "transformers", "pillow", "numpy"))
    assert "opencv-" in versions


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="无法写入输出目录"):
        RunState(tmp_path / "file" / "deep").lock()
