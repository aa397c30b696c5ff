"""Many images and many texts through the command line: files, tables, interruptions, processes."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import gradient_picture, tiny_result

import clip_gradcam_visualization as script
from clip_gradcam_visualization import main
from models.errors import InputError
from models.explain.heatmap import resize_map
from models.runs import run as folder_run

SCRIPT = Path(script.__file__)
TEXTS = ["正常", "松动", "感染"]


def write_images(folder, count, start=0):
    """Small pictures, each another; a few bytes each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.fromarray(np.roll(gradient_picture(24, 32), 5 * i, axis=(0, 1))).save(folder / f"{i:03d}.png")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with pictures in data/, some of them in folders below."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "data", 2)
    write_images(tmp_path / "data" / "左 侧", 2)
    write_images(tmp_path / "data" / "b" / "c", 1)
    return tmp_path


@pytest.fixture
def command(checkpoint):
    """Arguments of a run over data/ into out/ with three texts."""

    def build(*more, images=("data",), output="out", texts=TEXTS):
        flags = ["--num-workers", "0", "--model-path", checkpoint, "--output-dir", output]
        return [*map(str, flags), "--class-texts", *texts, "--image-path", *images, *more]

    return build


def files(folder, hidden=False):
    names = (str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(name for name in names if hidden or not name.startswith(".clip_gradcam"))


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {name: (Path(folder) / name).read_bytes() for name in files(folder)}


def both(name):
    return [f"{name}.png", f"{name}_overlay.png"]


TREE = ["data/000.png", "data/001.png", "data/b/c/000.png", "data/左 侧/000.png", "data/左 侧/001.png"]
OUTPUTS = [re.sub(r"^data/(.*?)(\d+)\.png$", r"\1clip_gradcam_\2", path) for path in TREE]


# -- a folder ---------------------------------------------------------------------------------


def test_a_folder_keeps_its_structure(home, command, capsys):
    assert main(command()) == 0
    out, err = capsys.readouterr()
    assert files("out") == sorted([*(f for name in OUTPUTS for f in both(name)), "results.csv", "results.jsonl"])
    assert "完成 5 张，失败 0 张，共 5 张" in out and str(Path("out/results.csv")) in out
    assert not re.search("错误|失败:", err)


@pytest.mark.usefixtures("single_layer")
def test_a_row_says_what_one_image_alone_says(home, command, clip):
    assert main(command()) == 0
    rows = rows_of("out")
    assert [row["image"] for row in rows] == [str(Path(path)) for path in TREE]
    for row, name in zip(rows, OUTPUTS):
        pixels = script.read_image(row["image"])
        result = script.explain(clip, pixels, TEXTS, img_size=64)
        assert (row["width"], row["height"]) == (32, 24)
        assert row["target_text_idx"] == result.target and row["target"] == TEXTS[result.target] == row["predicted"]
        assert row["similarity"] == pytest.approx(result.similarities[result.target], abs=2e-5)
        np.testing.assert_allclose(row["probabilities"], result.probabilities, atol=2e-4)
        assert row["probability"] == max(row["probabilities"])
        heatmap = result.heatmap
        assert heatmap[row["peak_y"], row["peak_x"]] > 0.9
        assert row["area_above_half"] == pytest.approx((heatmap > 0.5).mean(), abs=0.01)
        assert row["text_sensitivity"] == pytest.approx(result.sensitivities[0], abs=1e-3)
        assert (row["figure"], row["overlay"]) == (f"{name}.png", f"{name}_overlay.png")
        assert row["method"] == "gradcam" and row["layer"] == "stages.3.3" and row["grid"] == "2x2"
        assert row["image_encoder"] == "starnet_s1" and f"torch {torch.__version__.split('+')[0]}" in row["packages"]
        assert re.fullmatch(r"[0-9a-f]{32}", row["checkpoint"]) and row.get("error") is None
        overlay = np.asarray(Image.open(Path("out") / row["overlay"]), np.float32) / 255
        np.testing.assert_allclose(overlay, result.overlay, atol=0.01)


def test_the_csv_holds_the_same_rows(home, command):
    assert main(command()) == 0
    data = Path("out/results.csv").read_bytes()
    table = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert data.startswith(b"\xef\xbb\xbf")
    for line, row in zip(table, rows_of("out"), strict=True):
        assert line["image"] == row["image"] and line["target"] == row["target"]
        assert [float(line[f"p{i} {name}"]) for i, name in enumerate(TEXTS)] == row["probabilities"]
        assert float(line["similarity"]) == row["similarity"] and line["error"] == ""


def test_files_patterns_and_folders_together(home, command):
    images = ["data/000.png", "data/左*/*.png", "data/b", "data/000.png"]
    assert main(command(images=images)) == 0
    names = [name for name in OUTPUTS if "001" not in name or "左" in name]
    assert [row["figure"] for row in rows_of("out")] == [f"{name}.png" for name in names]


def test_results_inside_the_searched_folder_are_no_images(home, command):
    for _ in range(2):
        assert main(command(output="data/out")) == 0
        assert len(rows_of("data/out")) == 5


def test_stems_that_would_meet(home, command):
    Image.open("data/000.png").save("data/000.jpg")
    shutil.copy("data/001.png", "data/000_overlay.png")
    assert main(command(images=["data/*.*"])) == 0
    rows = rows_of("out")
    written = [row[kind] for row in rows for kind in ("figure", "overlay")]
    assert len(rows) == 4 and len(set(written)) == 8 and set(written) <= set(files("out"))


def test_one_image_alone_behaves_as_the_guide_says(home, command):
    assert main(command(images=["data/000.png"])) == 0
    assert files("out", hidden=True) == both("clip_gradcam_000")


@pytest.mark.parametrize("images", [["dat?/000.png"], ["data/b"]])
def test_a_pattern_or_folder_of_one_image_is_a_run(home, command, images):
    assert main(command(images=images)) == 0
    assert len(rows_of("out")) == 1


def test_a_dicom_file_among_the_others(home, command):
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("CT_small.dcm"), "data/ct.dcm")
    assert main(command()) == 0
    (row,) = [row for row in rows_of("out") if row["image"].endswith(".dcm")]
    assert (row["width"], row["height"], row["figure"]) == (128, 128, "clip_gradcam_ct.png")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_decoding_processes_and_batch_sizes_change_nothing_that_can_be_seen(home, command, workers, batch):
    assert main(command()) == 0
    assert main(command("--num-workers", str(workers), "--batch-size", str(batch), output="other")) == 0
    for one, other in zip(rows_of("out"), rows_of("other"), strict=True):
        assert one.keys() == other.keys() and one["figure"] == other["figure"]
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=2e-4)


# -- many texts -------------------------------------------------------------------------------


def test_several_texts_are_a_row_and_an_overlay_each(home, command):
    assert main(command("--target-text-idx", "2", "0")) == 0
    rows = rows_of("out")
    assert [row["target_text_idx"] for row in rows] == [2, 0] * 5
    assert [row["overlay"] for row in rows[:2]] == [f"{OUTPUTS[0]}_overlay_{i}.png" for i in (2, 0)]
    assert rows[0]["figure"] == rows[1]["figure"] == f"{OUTPUTS[0]}.png"
    assert {row["overlay"] for row in rows} <= set(files("out"))


def test_all_texts_of_one_image(home, command, capsys):
    assert main(command("--all-texts", images=["data/000.png"])) == 0
    out = capsys.readouterr().out
    assert files("out") == sorted(["clip_gradcam_000.png", *(f"clip_gradcam_000_overlay_{i}.png" for i in range(3))])
    assert all(f"[{i}] {name}" in out for i, name in enumerate(TEXTS)) and "文本敏感度" in out


def test_an_empty_map_has_no_say_in_the_common_scale():
    result = tiny_result([0, 1, 2])
    result.maps[1] = 100.0  # one colour: drawn as nothing
    result.maps[2] = -1.0
    own, level, negative = result.heatmaps()
    assert own.max() == 1 and not level.any() and not negative.any()
    result.maps[0] = 0.0
    assert not any(heatmap.any() for heatmap in result.heatmaps())


def test_a_warning_of_several_texts_names_them_once():
    result = tiny_result([0, 1, 2])._replace(flaws=["热力图为空", None, "热力图为空"], sensitivities=[None, 0.97, None])
    first, second = result.messages()
    assert first == "正常、感染：热力图为空" and second.startswith("松动：热力图几乎不随文本变化（文本敏感度 0.97")


def test_one_scale_for_all_texts_of_an_image(clip, home):
    pixels = script.read_image("data/000.png")
    result = script.explain(clip, pixels, TEXTS, target_text_idx="all", img_size=64)
    heatmaps = np.stack(list(result.heatmaps()))
    resized = np.stack(list(result.resized_maps()))
    np.testing.assert_allclose(heatmaps, resized / resized.max(), atol=1e-6)
    assert heatmaps.max() == 1


@pytest.mark.parametrize("asked, targets", [("all", [0, 1, 2]), ([0, 2], [0, 2]), ((2, 2, 1), [2, 1]), ([1], [1])])
def test_several_texts_in_python(clip, home, asked, targets):
    overlays = script.visualize_clip_gradcam(clip, "data/000.png", TEXTS, target_text_idx=asked, save_path="out/a.png")
    assert overlays.shape == (len(targets), 24, 32, 3) and overlays.dtype == np.float32
    names = [f"a_overlay_{t}.png" for t in targets] if len(targets) > 1 else ["a_overlay.png"]
    assert files("out") == sorted(["a.png", *names])
    for overlay, name in zip(overlays, names):
        np.testing.assert_allclose(np.asarray(Image.open(Path("out") / name)) / 255, overlay, atol=0.01)


@pytest.mark.parametrize(
    "asked, message", [("both", "all"), ([0, 3], "0 到 2"), ([], "整数"), ([0.5], "整数"), ([[0]], "整数")]
)
def test_texts_that_are_not_there(clip, home, asked, message):
    with pytest.raises(InputError, match=message):
        script.visualize_clip_gradcam(clip, "data/000.png", TEXTS, target_text_idx=asked)


@pytest.mark.usefixtures("single_layer")
def test_contrast_is_another_map_and_stands_in_the_table(home, command, clip):
    assert main(command("--contrast")) == 0
    assert main(command(output="plain")) == 0
    assert {row["contrast"] for row in rows_of("out")} == {0.6} and {row["contrast"] for row in rows_of("plain")} == {
        0.0
    }
    assert contents("out")["clip_gradcam_000_overlay.png"] != contents("plain")["clip_gradcam_000_overlay.png"]
    contrast = script.explain(clip, script.read_image("data/000.png"), TEXTS, img_size=64, contrast=True)
    plain = script.explain(clip, script.read_image("data/000.png"), TEXTS, img_size=64)
    expected = plain.maps - 0.3 * (plain.maps.sum(0) - plain.maps)
    np.testing.assert_allclose(contrast.maps, expected, rtol=1e-3, atol=1e-5 * np.abs(plain.maps).max())


def test_maps_that_ignore_the_text_are_warned_about(home, command, capsys):
    assert main(command(images=["data/000.png"], texts=["松动", "松动"])) == 0
    assert re.search("警告: .*不随文本变化.*1.00", capsys.readouterr().err)
    assert main(command(texts=["松动", "松动"])) == 0
    assert {row["text_sensitivity"] for row in rows_of("out")} == {1.0}
    assert all("不随文本变化" in row["warning"] for row in rows_of("out"))
    assert "5 行结果带有警告" in capsys.readouterr().err


# -- which files ------------------------------------------------------------------------------


@pytest.mark.usefixtures("single_layer")
@pytest.mark.parametrize("images", [["data"], ["data/000.png"]])
def test_the_heatmap_as_an_array(home, command, clip, images):
    assert main(command("--save-heatmap", images=images)) == 0
    large, small = (np.load(f"out/clip_gradcam_000_{kind}.npy") for kind in ("heatmap", "heatmap_layer"))
    result = script.explain(clip, script.read_image("data/000.png"), TEXTS, img_size=64)
    assert large.dtype == small.dtype == np.float32 and large.shape == (24, 32) and small.shape == (2, 2)
    scale = np.abs(result.maps).max()
    np.testing.assert_allclose(small, np.maximum(result.maps[result.target], 0), atol=1e-4 * scale)
    np.testing.assert_allclose(large / large.max(), result.heatmap, atol=1e-3)
    np.testing.assert_array_equal(resize_map(small, (24, 32)), large)
    if len(images) == 1 and images[0] == "data":
        row = rows_of("out")[0]
        assert (row["heatmap"], row["layer_heatmap"]) == tuple(
            f"clip_gradcam_000_{k}.npy" for k in ("heatmap", "heatmap_layer")
        )


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--overlay-only"], ["_overlay.png"]),
        (["--no-figure"], ["_overlay.png"]),
        (["--no-figure", "--save-heatmap"], ["_heatmap.npy", "_heatmap_layer.npy", "_overlay.png"]),
        (["--save-heatmap", "--target-text-idx", "0", "1"],
         [".png", "_heatmap_0.npy", "_heatmap_1.npy", "_heatmap_layer_0.npy", "_heatmap_layer_1.npy",
          "_overlay_0.png", "_overlay_1.png"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("images", [["data/000.*"], ["data/000.png"]])
def test_fewer_or_more_files(home, command, flags, expected, images):
    assert main(command(*flags, images=images)) == 0
    written = [name for name in files("out") if not name.startswith("results")]
    assert written == [f"clip_gradcam_000{end}" for end in expected]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--overlay-only", "--save-heatmap"], "--overlay-only 与 --save-heatmap"),
        (["--all-texts", "--target-text-idx", "1"], "--all-texts|--target-text-idx"),
        (["--target-text-idx", "0", "3"], "--target-text-idx 3.*0 到 2"),
        (["--batch-size", "0"], "--batch-size"),
        (["--num-workers", "-1"], "--num-workers"),
        (["--output-name", "a.png"], "--output-name.*单张"),
        (["--target-layer", "stages.9"], "stages.9"),
        (["--model-path", "没有.pth"], "没有.pth"),
        (["--image-path", "nowhere"], "nowhere"),
        (["--image-path", "*.bmp"], r"\*\.bmp"),
        (["--image-path", "empty"], "empty"),
    ],
    ids=str,
)
def test_what_cannot_start_is_one_line_and_writes_nothing(home, command, capsys, flags, message):
    (home / "empty").mkdir()
    assert main(command(*flags)) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and re.search(f"^错误: .*({message})", err)
    assert out == "" and (not Path("out").exists() or files("out") == [])


def test_what_cannot_start_leaves_earlier_results(home, command):
    assert main(command()) == 0
    before = contents("out")
    for flags in (["--model-path", "没有.pth"], ["--target-layer", "stages.9"], ["--image-path", "nowhere"]):
        assert main(command(*flags)) == 2
    assert contents("out") == before


# -- bad images -------------------------------------------------------------------------------


def test_bad_images_in_the_middle_do_not_stop_the_rest(home, command, capsys):
    Path("data/0000 坏.png").write_bytes(b"\x89PNG")
    Path("data/b/bad.jpg").write_bytes(b"")
    assert main(command()) == 1
    out, err = capsys.readouterr()
    assert "完成 5 张，失败 2 张，共 7 张" in out
    failures = [line for line in err.splitlines() if line.startswith("失败: ")]
    assert len(failures) == 2 and failures[0].count("0000 坏.png") == 1 and "bad.jpg" in failures[1]
    rows = rows_of("out")
    failed = [row for row in rows if row.get("error")]
    assert len(rows) == 7 and [Path(row["image"]).name for row in failed] == ["0000 坏.png", "bad.jpg"]
    assert all(row["checkpoint"] and "overlay" not in row for row in failed)
    good = [row for row in rows if not row.get("error")]
    assert main(command(output="clean", images=[row["image"] for row in good])) == 0
    assert [row["similarity"] for row in good] == pytest.approx(
        [row["similarity"] for row in rows_of("clean")], abs=2e-5
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_silence_elsewhere(home, command, monkeypatch, terminal):
    Path("data/bad.png").write_bytes(b"")
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    assert main(command()) == 1
    shown = stream.getvalue()
    assert ("6/6" in shown and "失败 1" in shown and "张/s" in shown) == terminal
    assert ("\r" in shown) == terminal


def test_a_failed_image_is_tried_again_when_resuming(home, command):
    good = Path("data/001.png").read_bytes()
    Path("data/001.png").write_bytes(good[:50])
    assert main(command()) == 1
    Path("data/001.png").write_bytes(good)
    before = contents("out")
    assert main(command("--resume")) == 0
    assert main(command(output="undisturbed")) == 0
    assert contents("out") == contents("undisturbed")
    assert all(contents("out")[name] == data for name, data in before.items() if not name.startswith("results"))


def test_an_image_whose_results_cannot_be_written_is_its_own_failure(home, command, capsys):
    Path("out/clip_gradcam_001.png").mkdir(parents=True)
    assert main(command()) == 1
    assert "完成 4 张，失败 1 张" in capsys.readouterr().out
    assert [row["image"] for row in rows_of("out") if row.get("error")] == [str(Path("data/001.png"))]


def test_a_chunk_that_fails_as_a_whole_is_done_one_by_one(home, command, monkeypatch, capsys):
    genuine = script.Explainer.__call__

    def fails(self, images):
        if len(images) > 1 or float(images.mean()) > 10:
            raise RuntimeError("out of memory")
        return genuine(self, images)

    monkeypatch.setattr(script.Explainer, "__call__", fails)
    assert main(command("--batch-size", "3")) == 0
    assert len(rows_of("out")) == 5


# -- whatever happens -------------------------------------------------------------------------


def test_resuming_a_finished_run_does_nothing(home, command, capsys, monkeypatch):
    assert main(command()) == 0
    before = contents("out")
    monkeypatch.setattr(folder_run, "encode_outputs", None)
    assert main(command("--resume")) == 0
    assert contents("out") == before
    assert "完成 0 张（另有 5 张此前已完成）" in capsys.readouterr().out


def test_resuming_does_what_is_missing_only(home, command, monkeypatch):
    assert main(command()) == 0
    before = contents("out")
    Path("out/clip_gradcam_001_overlay.png").unlink()
    Path("out/b/c/clip_gradcam_000.png").write_bytes(b"cut")
    drawn, genuine = [], folder_run.encode_outputs
    monkeypatch.setattr(
        folder_run, "encode_outputs", lambda r, path, choice: drawn.append(path) or genuine(r, path, choice)
    )
    assert main(command("--resume")) == 0
    assert sorted(path.name for path in drawn) == ["clip_gradcam_000.png", "clip_gradcam_001.png"]
    assert contents("out") == before


def test_without_resume_everything_is_done_again(home, command, capsys):
    assert main(command()) == 0
    before = contents("out")
    Path("out/clip_gradcam_001.png").write_bytes(b"old")
    assert main(command()) == 0
    assert "完成 5 张，失败" in capsys.readouterr().out and contents("out") == before


@pytest.mark.parametrize(
    "changes, named",
    [
        (["--contrast"], "--contrast"),
        (["--all-texts"], "目标文本"),
        (["--class-texts", "正常", "松动"], "类别文本"),
        (["--save-heatmap"], "--save-heatmap"),
        (["--lang", "en"], "--lang"),
        (["--target-layer", "stages.2.1"], "--target-layer"),
        (["--image-path", "data/b"], "图像所在的目录"),
        (["--model-path", "other.pth"], "检查点"),
        (["--model-path", "other.pth", "--contrast"], "检查点.*--contrast|--contrast.*检查点"),
    ],
    ids=str,
)
def test_resuming_with_other_settings_is_refused_by_name(home, command, clip, capsys, changes, named):
    state = {key: value.clone() for key, value in clip.state_dict().items()}
    state["image_encoder.projection.bias"] += 0.1
    torch.save({"model_state_dict": state, "config": {"embed_dim": 32, "img_size": 64}}, "other.pth")
    assert main(command()) == 0
    before = contents("out")
    assert main(command("--resume", *changes)) == 2
    err = capsys.readouterr().err
    assert re.search(f"错误: --resume：.*({named})", err) and contents("out") == before


def test_resuming_takes_new_images_along(home, command):
    assert main(command()) == 0
    write_images(home / "data", 1, start=7)
    assert main(command("--resume")) == 0
    assert len(rows_of("out")) == 6


def test_a_full_disk_ends_the_run_and_can_be_resumed(home, command, monkeypatch, capsys):
    genuine, calls = folder_run.write_files, []

    def full(contents, **options):
        calls.append(contents)
        if len(calls) > 2:
            raise InputError("无法写入 out：No space left on device") from OSError(28, "No space left on device")
        return genuine(contents, **options)

    monkeypatch.setattr(folder_run, "write_files", full)
    assert main(command("--batch-size", "1")) == 1
    err = capsys.readouterr().err
    assert re.search("错误: .*No space left.*--resume", err) and len(rows_of("out")) == 2
    monkeypatch.setattr(folder_run, "write_files", genuine)
    assert main(command("--resume", "--batch-size", "1")) == 0
    assert main(command("--batch-size", "1", output="undisturbed")) == 0
    assert contents("out") == contents("undisturbed")


FORK_AND_KILL = """
import glob, json, os, random, signal, sys, time
sys.path.insert(0, {project!r})
import torch
import clip_gradcam_visualization as script

def start(arguments):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os._exit(script.main(arguments))
    return pid

def rows():
    try:
        return sum(open(part, "rb").read().count(b"\\n") for part in glob.glob("out/.clip_gradcam/rows-*"))
    except FileNotFoundError:  # a part has just gone into the one of the earlier runs
        return rows()

def kill_on_the_way(pid):
    # now and then before the first image, mostly a moment after one of the next few
    end, goal = time.monotonic() + 20, rows() + random.randint(1, 6)
    early = random.random() < 0.25
    if not early:
        while rows() < goal and time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
    time.sleep(random.uniform(0, 0.3 if early else 0.02))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return 0  # it had ended
    return 1

arguments, undisturbed = json.loads(sys.argv[1])
random.seed(0)
assert os.waitpid(start(undisturbed), 0)[1] == 0
kills = kill_on_the_way(start(arguments))
for _ in range(14):
    kills += kill_on_the_way(start([*arguments, "--resume"]))
assert os.waitpid(start([*arguments, "--resume"]), 0)[1] == 0
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments_and_resumed(home, command, workers):
    """However often it is killed, in the end files and tables are those of a run that was never disturbed."""
    write_images(home / "data" / "more", 55)
    arguments, undisturbed = ([*command(output=o), "--num-workers", str(workers)] for o in ("out", "undisturbed"))
    code = FORK_AND_KILL.format(project=str(SCRIPT.parent))
    finished = subprocess.run(
        [sys.executable, "-c", code, json.dumps([arguments, undisturbed])], capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) >= 8
    assert contents("out") == contents("undisturbed")
    assert len(rows_of("out")) == 60
    assert not list(Path("out").rglob("*.tmp"))


CAPTURED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}


def one_thread():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start_run(arguments):
    return subprocess.Popen([sys.executable, SCRIPT, *arguments], env=one_thread(), **CAPTURED)


def wait_for_rows(folder, count=1, seconds=180):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if sum(part.read_bytes().count(b"\n") for part in Path(folder).glob(".clip_gradcam/rows-*")) >= count:
            return
        time.sleep(0.02)
    raise AssertionError("no rows")


def test_ctrl_c_and_a_second_run_meanwhile(home, command, capsys):
    write_images(home / "data" / "more", 300)
    with start_run(command("--num-workers", "1")) as process:
        wait_for_rows("out")
        assert main(command("--resume")) == 2
        assert re.search(f"错误: .*另一次运行.*{process.pid}", capsys.readouterr().err)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "已中断" in err and "--resume" in err and "Traceback" not in err
    assert 0 < len(rows_of("out")) < 305  # what is done stands in the tables
    assert main(command("--resume")) == 0
    assert main(command(output="undisturbed")) == 0
    assert contents("out") == contents("undisturbed")


# -- several processes ------------------------------------------------------------------------


def torchrun(processes, arguments, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen([*command, *options, SCRIPT, *arguments], env=one_thread(), **CAPTURED)


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_files_and_rows_of_one(home, command, processes):
    write_images(home / "data" / "more", 60)
    with torchrun(processes, command(output="shared")) as run:
        out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert out.count("完成 65 张") == 1
    assert main(command()) == 0
    assert contents("shared") == contents("out")
    parts = [part.read_bytes() for part in Path("shared/.clip_gradcam").glob("rows-*")]
    assert len(parts) == processes and sum(part.count(b"\n") for part in parts) == 65
    assert sum(bool(part) for part in parts) > 1


def test_a_process_that_is_killed_on_the_way_is_restarted_and_the_rest_resumed(home, command):
    write_images(home / "data" / "more", 300)
    with torchrun(4, command(output="shared"), "--max-restarts", "1") as run:
        wait_for_rows("shared", 5)
        first = re.search(r"进程 (\d+)", Path("shared/.clip_gradcam/lock").read_text(encoding="utf-8"))
        os.kill(int(first[1]), signal.SIGKILL)
        out, err = run.communicate(timeout=240)
    assert run.returncode == 0, err
    assert "此前已完成" in out
    assert main(command()) == 0
    assert contents("shared") == contents("out")


def test_failures_under_torchrun_are_the_exit_code_of_all(home, command):
    Path("data/bad.png").write_bytes(b"")
    with torchrun(2, command(output="shared")) as run:
        out, err = run.communicate(timeout=240)
    assert run.returncode == 1 and "失败: " in err and "bad.png" in err
    assert len(rows_of("shared")) == 6
