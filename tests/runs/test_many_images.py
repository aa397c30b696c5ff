"""Many images and many texts through the command line: files, tables, interruptions, processes."""

import csv
import io
import json
import os
import random
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
from folders import (
    CAPTURED,
    SCRIPT,
    TEXTS,
    contents,
    files,
    finished_rows,
    rows_of,
    start,
    wait_for_rows,
    write_images,
)
from PIL import Image
from pydicom.data import get_testdata_file
from tiny import tiny_result

import clip_gradcam_visualization as script
from clip_gradcam_visualization import main
from models.errors import InputError
from models.explain.heatmap import resize_map
from models.results import result as result_of_image
from models.results.result import Results
from models.runs import run as folder_run

TREE = ["data/000.png", "data/001.png", "data/b/c/000.png", "data/左 侧/000.png", "data/左 侧/001.png"]
OUTPUTS = [re.sub(r"^data/(.*?)(\d+)\.png$", r"\1clip_gradcam_\2", path) for path in TREE]


# -- a folder ---------------------------------------------------------------------------------


def test_a_folder_keeps_its_structure_and_is_done_again_without_resume(run, capsys):
    """The results lie inside the searched folder and are no images."""
    written = [f"{name}{end}" for name in OUTPUTS for end in (".png", "_overlay.png")]
    run(output="data/out")
    before = contents("data/out")
    assert [*before] == sorted([*written, "report.html", "results.csv", "results.jsonl"])
    Path("data/out/clip_gradcam_001.png").write_bytes(b"old")
    run(output="data/out")
    assert contents("data/out") == before
    out, err = capsys.readouterr()
    assert out.count("完成 5 张，失败 0 张，共 5 张") == 2 and str(Path("data/out/results.csv")) in out
    assert not re.search("错误|失败:", err)


@pytest.mark.usefixtures("single_layer")
def test_a_row_says_what_one_image_alone_says_in_both_tables(run, clip):
    rows = run()
    assert [row["image"] for row in rows] == [str(Path(path)) for path in TREE]
    data = Path("out/results.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    table = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    for row, line, name in zip(rows, table, OUTPUTS, strict=True):
        result = script.explain(clip, script.read_image(row["image"]), TEXTS, img_size=64)
        assert (row["width"], row["height"]) == (32, 24)
        assert row["target_text_idx"] == result.target and row["target"] == TEXTS[result.target] == row["predicted"]
        assert row["similarity"] == pytest.approx(result.similarities[result.target], abs=2e-5)
        np.testing.assert_allclose(row["probabilities"], result.probabilities, atol=2e-4)
        assert row["probability"] == max(row["probabilities"])
        heatmap = result.heatmap
        assert heatmap[row["peak_y"], row["peak_x"]] > 0.9
        assert row["area_above_half"] == pytest.approx((heatmap > 0.5).mean(), abs=0.01)
        assert row["text_specificity"] == pytest.approx(result.specificities[0], abs=1e-3)
        assert (row["figure"], row["overlay"]) == (f"{name}.png", f"{name}_overlay.png")
        assert row["method"] == "gradcam" and row["layer"] == "stages.3.3" and row["grid"] == "2x2"
        assert row["image_encoder"] == "starnet_s1" and f"torch {torch.__version__.split('+')[0]}" in row["packages"]
        assert re.fullmatch(r"[0-9a-f]{32}", row["checkpoint"]) and row.get("error") is None
        overlay = np.asarray(Image.open(Path("out") / row["overlay"]), np.float32) / 255
        np.testing.assert_allclose(overlay, result.overlay, atol=0.01)
        assert line["image"] == row["image"] and line["target"] == row["target"] and line["error"] == ""
        assert [float(line[f"p{i} {text}"]) for i, text in enumerate(TEXTS)] == row["probabilities"]
        assert float(line["similarity"]) == row["similarity"]


def test_files_patterns_and_folders_together_and_stems_that_would_meet(run):
    Image.open("data/000.png").save("data/000.jpg")
    shutil.copy(get_testdata_file("CT_small.dcm"), "data/000_overlay.dcm")
    rows = run(images=["data/000.png", "data/0*.*", "data/左*/*.png", "data/b", "data/000.png"])
    stems = ["000.jpg", "000.png", "000_overlay.dcm", "001"]
    assert [row["figure"] for row in rows] == [*(f"clip_gradcam_{stem}.png" for stem in stems)] + [
        f"{name}.png" for name in OUTPUTS[2:]
    ]
    assert {row[kind] for row in rows for kind in ("figure", "overlay")} <= set(files("out"))
    assert (rows[2]["width"], rows[2]["height"]) == (128, 128)


@pytest.mark.parametrize("workers, batch", [(2, 1), (0, 2), (2, 7)])
def test_decoding_processes_and_batch_sizes_change_nothing_that_can_be_seen(run, workers, batch):
    flags = ["--num-workers", str(workers), "--batch-size", str(batch)]
    for one, other in zip(run(), run(*flags, output="other"), strict=True):
        assert one.keys() == other.keys() and one["figure"] == other["figure"]
        np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=2e-4)


# -- many texts -------------------------------------------------------------------------------


def test_several_texts_are_a_row_and_an_overlay_each(run):
    rows = run("--target-text-idx", "2", "0")
    assert [row["target_text_idx"] for row in rows] == [2, 0] * 5
    assert [row["overlay"] for row in rows[:2]] == [f"{OUTPUTS[0]}_overlay_{i}.png" for i in (2, 0)]
    assert rows[0]["figure"] == rows[1]["figure"] == f"{OUTPUTS[0]}.png"
    assert {row["overlay"] for row in rows} <= set(files("out"))


def test_one_scale_for_all_texts_of_an_image_in_which_empty_maps_have_no_say():
    result = tiny_result([0, 1, 2])
    heatmaps, resized = np.stack(list(result.heatmaps())), np.stack(list(result.resized_maps()))
    np.testing.assert_allclose(heatmaps, resized / resized.max(), atol=1e-6)
    result.maps[1] = 100.0  # one colour: drawn as nothing
    result.maps[2] = -1.0
    own, level, negative = result.heatmaps()
    assert own.max() == 1 and not level.any() and not negative.any()
    result.maps[0] = 0.0
    assert not any(heatmap.any() for heatmap in result.heatmaps())


def test_a_warning_of_several_texts_names_them_once():
    result = tiny_result([0, 1, 2])._replace(flaws=["热力图为空", None, "热力图为空"], specificities=[None, 0.03, None])
    first, second = result.messages()
    assert first == "正常、感染：热力图为空" and second.startswith("松动：热力图几乎不随文本变化（文本特异性 0.03，")


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
@pytest.mark.usefixtures("single_layer")
def test_contrast_is_another_map_and_stands_in_the_table(run, clip):
    assert {row["contrast"] for row in run("--contrast")} == {0.6}
    assert {row["contrast"] for row in run(output="plain")} == {0.0}
    assert contents("out")["clip_gradcam_000_overlay.png"] != contents("plain")["clip_gradcam_000_overlay.png"]
    pixels = script.read_image("data/000.png")
    asked = {"target_text_idx": "all", "img_size": 64}
    contrast, plain = (script.explain(clip, pixels, TEXTS, **asked, contrast=on).maps for on in (True, False))
    expected = plain - 0.3 * (plain.sum(0) - plain)
    np.testing.assert_allclose(contrast, expected, rtol=1e-3, atol=1e-5 * np.abs(plain).max())


def test_maps_that_ignore_the_text_are_warned_about(run, capsys):
    run(images=["data/000.png"], texts=["松动", "松动"])
    assert re.search("警告: .*不随文本变化.*特异性 0.00", capsys.readouterr().err)
    rows = run(texts=["松动", "松动"])
    assert {row["text_specificity"] for row in rows} == {0.0}
    assert all("不随文本变化" in row["warning"] for row in rows)
    assert "5 行结果带有警告" in capsys.readouterr().err


# -- which files ------------------------------------------------------------------------------


@pytest.mark.usefixtures("single_layer")
@pytest.mark.parametrize("images", [["data"], ["data/000.png"]])
def test_the_heatmap_as_an_array(run, clip, images):
    rows = run("--save-heatmap", images=images)
    names = [f"clip_gradcam_000_{kind}.npy" for kind in ("heatmap", "heatmap_layer")]
    large, small = (np.load(f"out/{name}") for name in names)
    result = script.explain(clip, script.read_image("data/000.png"), TEXTS, img_size=64)
    assert large.dtype == small.dtype == np.float32 and large.shape == (24, 32) and small.shape == (2, 2)
    scale = np.abs(result.maps).max()
    np.testing.assert_allclose(small, np.maximum(result.maps[0], 0), atol=1e-4 * scale)
    np.testing.assert_allclose(large / large.max(), result.heatmap, atol=1e-3)
    np.testing.assert_array_equal(resize_map(small, (24, 32)), large)
    assert [[row["heatmap"], row["layer_heatmap"]] for row in rows[:1]] == [names] * (images == ["data"])


@pytest.mark.usefixtures("single_layer")  # whose maps are empty for none of the texts
@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], ".png _overlay.png"),
        (["--overlay-only"], "_overlay.png"),
        (["--no-figure"], "_overlay.png"),
        (["--no-figure", "--save-heatmap"], "_heatmap.npy _heatmap_layer.npy _overlay.png"),
        (["--no-figure", "--save-heatmap", "layer"], "_heatmap_layer.npy _overlay.png"),
        (["--no-overlay"], ".png"),
        (["--no-overlay", "--no-figure", "--save-heatmap", "layer"], "_heatmap_layer.npy"),
        (["--all-texts"], ".png _overlay_0.png _overlay_1.png _overlay_2.png"),
        (["--save-heatmap", "--target-text-idx", "0", "1"],
         ".png _heatmap_0.npy _heatmap_1.npy _heatmap_layer_0.npy _heatmap_layer_1.npy _overlay_0.png _overlay_1.png"),
    ],
)  # fmt: skip
def test_a_run_of_one_image_has_tables_and_one_image_alone_its_files(run, capsys, flags, expected):
    expected = [f"clip_gradcam_000{end}" for end in expected.split()]
    assert len({row["image"] for row in run(*flags, images=["data/000.*"])}) == 1
    assert files("out") == [*expected, "results.csv", "results.jsonl"]
    capsys.readouterr()
    run(*flags, images=["data/000.png"], output="alone")
    assert files("alone", hidden=True) == expected
    if flags == ["--all-texts"]:
        out = capsys.readouterr().out
        assert all(f"[{i}] {name}" in out for i, name in enumerate(TEXTS)) and out.count("文本特异性") == 3


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
def test_what_cannot_start_is_one_line_and_leaves_earlier_results(home, run, capsys, flags, message):
    (home / "empty").mkdir()
    (home / "out" / ".clip_gradcam").mkdir(parents=True)
    earlier = [Path("out/results.csv"), Path("out/.clip_gradcam/settings.json")]
    for path in earlier:
        path.write_bytes(b"earlier")
    run(*flags, code=2)
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1 and re.search(f"^错误: .*({message})", err) and out == ""
    assert files("out") == ["results.csv"] and [path.read_bytes() for path in earlier] == [b"earlier"] * 2


# -- bad images -------------------------------------------------------------------------------


def test_bad_images_do_not_stop_the_rest_and_are_tried_again_when_resuming(run, as_undisturbed, capsys):
    good = Path("data/001.png").read_bytes()
    Path("data/0000 坏.png").write_bytes(good[:50])
    Path("data/b/bad.jpg").write_bytes(b"")
    Path("out/clip_gradcam_001.png").mkdir(parents=True)  # in the place of a figure
    rows = run(code=1)
    out, err = capsys.readouterr()
    assert "完成 4 张，失败 3 张，共 7 张" in out
    failures = [line for line in err.splitlines() if line.startswith("失败: ")]
    assert len(failures) == 3 and failures[0].count("0000 坏.png") == 1 and "bad.jpg" in failures[2]
    failed = [row for row in rows if row.get("error")]
    assert len(rows) == 7 and [Path(row["image"]).name for row in failed] == ["0000 坏.png", "001.png", "bad.jpg"]
    assert all(row["checkpoint"] and "overlay" not in row for row in failed)
    Path("out/clip_gradcam_001.png").rmdir()
    for name in ("0000 坏.png", "b/bad.jpg"):
        (Path("data") / name).write_bytes(good)
    before = contents("out")
    run("--resume")
    assert as_undisturbed()
    assert all(
        contents("out")[name] == data for name, data in before.items() if not name.startswith(("results", "report"))
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_silence_elsewhere(run, monkeypatch, terminal):
    Path("data/bad.png").write_bytes(b"")
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    run(code=1)
    shown = stream.getvalue()
    assert ("6/6" in shown and "失败 1" in shown and "张/s" in shown) == terminal
    assert ("\r" in shown) == terminal


def test_a_chunk_that_fails_as_a_whole_is_done_one_by_one(run, monkeypatch):
    genuine = script.Explainer.__call__

    def fails(self, images, targets):
        if len(images) > 1 or float(images.mean()) > 10:
            raise RuntimeError("out of memory")
        return genuine(self, images, targets)

    monkeypatch.setattr(script.Explainer, "__call__", fails)
    assert len(run("--batch-size", "3")) == 5


# -- whatever happens -------------------------------------------------------------------------


def test_resuming_does_what_is_missing_only(home, run, capsys, monkeypatch):
    genuine, drawn = folder_run.encode_outputs, []

    def record(results, path, choice):
        drawn.append(path.name)
        return genuine(results, path, choice)

    run("--batch-size", "3")  # what is finished shares a chunk with what is not
    before = contents("out")
    monkeypatch.setattr(folder_run, "encode_outputs", record)
    run("--resume", "--batch-size", "3")
    assert "完成 0 张（另有 5 张此前已完成）" in capsys.readouterr().out
    assert drawn == [] and contents("out") == before
    Path("out/clip_gradcam_001_overlay.png").unlink()
    Path("out/b/c/clip_gradcam_000.png").write_bytes(b"cut")
    run("--resume", "--batch-size", "3")
    assert sorted(drawn) == ["clip_gradcam_000.png", "clip_gradcam_001.png"] and contents("out") == before
    write_images(home / "data", 1, start=7)
    assert len(run("--resume", "--batch-size", "3")) == 6 and drawn[2:] == ["clip_gradcam_007.png"]


def test_a_run_without_any_file_has_its_tables_and_is_resumed(run, monkeypatch, capsys):
    flags = ["--all-texts", "--no-figure", "--no-overlay", "--no-report"]
    written, rows = run("--all-texts", output="written"), run(*flags)
    assert files("out") == ["results.csv", "results.jsonl"]
    assert rows == [{**row, "figure": None, "overlay": None} for row in written]
    monkeypatch.setattr(script.Explainer, "__call__", None)
    capsys.readouterr()
    assert run(*flags, "--resume") == rows
    assert "完成 0 张（另有 5 张此前已完成）" in capsys.readouterr().out
    run(*flags[:2], "--no-report", "--resume", code=2)
    assert "--no-overlay（上次 False，这次 True）" in capsys.readouterr().err


def test_maps_at_hand_make_the_same_files_and_rows_as_maps_made_each_time(run, monkeypatch):
    flags, kept = ["--all-texts", "--save-heatmap", "--overlay-format", "jpg"], []
    genuine = Results.keeping
    monkeypatch.setattr(Results, "keeping", lambda self: kept.append(genuine(self)[0].resized) or genuine(self))
    run(*flags)
    before = contents("out")
    monkeypatch.setattr(result_of_image, "MOST_KEPT", 3 * 24 * 32 - 1)
    run(*flags)
    assert contents("out") == before and [len(maps) for maps in kept] == [3] * 5 + [0] * 5


@pytest.mark.parametrize(
    "changes, named",
    [
        (["--contrast"], "--contrast"),
        (["--all-texts"], "目标文本"),
        (["--class-texts", "正常", "松动"], "类别文本"),
        (["--save-heatmap"], "--save-heatmap"),
        (["--lang", "en"], "--lang"),
        (["--colormap", "jet"], "--colormap（上次 plasma，这次 jet）"),
        (["--alpha", "0.3"], "--alpha（上次 0.5，这次 0.3）"),
        (["--blend", "constant"], "--blend（上次 heat，这次 constant）"),
        (["--target-layer", "stages.2.1"], "--target-layer"),
        (["--image-path", "data/b"], "图像所在的目录"),
        (["--model-path", "other.pth"], "检查点"),
        (["--model-path", "other.pth", "--contrast"], "检查点.*--contrast|--contrast.*检查点"),
    ],
    ids=str,
)
def test_resuming_with_other_settings_is_refused_by_name(run, clip, capsys, changes, named):
    state = {key: value.clone() for key, value in clip.state_dict().items()}
    state["image_encoder.projection.bias"] += 0.1
    torch.save({"model_state_dict": state, "config": {"embed_dim": 32, "img_size": 64}}, "other.pth")
    run()
    before = contents("out")
    run("--resume", *changes, code=2)
    assert (
        re.search(f"(错误: --resume：|error: --resume: ).*({named})", capsys.readouterr().err)
        and contents("out") == before
    )


def test_a_full_disk_ends_the_run_and_can_be_resumed(run, as_undisturbed, monkeypatch, capsys):
    genuine, calls = folder_run.write_files, []

    def full(contents, **options):
        calls.append(contents)
        if len(calls) > 2:
            raise InputError("无法写入 out：No space left on device") from OSError(28, "No space left on device")
        return genuine(contents, **options)

    monkeypatch.setattr(folder_run, "write_files", full)
    assert len(run("--batch-size", "1", code=1)) == 2
    assert re.search("错误: .*No space left.*--resume", capsys.readouterr().err)
    monkeypatch.setattr(folder_run, "write_files", genuine)
    run("--resume", "--batch-size", "1")
    assert as_undisturbed("--batch-size", "1")


def fork_run(arguments):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os._exit(main(arguments))
    return pid


def kill_on_the_way(pid):
    """Kill a run now and then before the first image, mostly a moment after one of the next few; 0 if it had ended."""
    early = random.random() < 0.25
    end, goal = time.monotonic() + 20, 0 if early else finished_rows("out") + random.randint(1, 6)
    while finished_rows("out") < goal and time.monotonic() < end and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.3 if early else 0.02))
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return 0
    return 1


def kill_and_resume(arguments, undisturbed):
    """In a process of its own, in which torch has no threads yet; how often a run was killed."""
    random.seed(0)
    assert os.waitpid(fork_run(undisturbed), 0)[1] == 0
    resumed = [*arguments, "--resume"]
    kills = sum(kill_on_the_way(fork_run(each)) for each in [arguments, *[resumed] * 14])
    assert os.waitpid(fork_run(resumed), 0)[1] == 0
    return kills


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments_and_resumed(home, command, workers):
    """However often it is killed, in the end files and tables are those of a run that was never disturbed."""
    write_images(home / "data" / "more", 55)
    arguments, undisturbed = ([*command(output=o), "--num-workers", str(workers)] for o in ("out", "undisturbed"))
    code = "import json, sys, test_many_images as t; print(t.kill_and_resume(*json.loads(sys.argv[1])))"
    places = (SCRIPT.parent, SCRIPT.parent / "tests", Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    finished = subprocess.run(
        [sys.executable, "-c", code, json.dumps([arguments, undisturbed])], timeout=300, env=environment, **CAPTURED
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) >= 8
    assert contents("out") == contents("undisturbed")
    assert len(rows_of("out")) == 60
    assert not list(Path("out").rglob("*.tmp"))


def test_ctrl_c_and_a_second_run_meanwhile(home, command, run, as_undisturbed, capsys):
    write_images(home / "data" / "more", 300)
    with start([SCRIPT, *command("--num-workers", "1")]) as process:
        wait_for_rows("out")
        process.send_signal(signal.SIGSTOP)  # it must not come to its end meanwhile
        run("--resume", code=2)
        assert re.search(f"错误: .*另一次运行.*{process.pid}", capsys.readouterr().err)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "已中断" in err and "--resume" in err and "Traceback" not in err
    assert 0 < len(rows_of("out")) < 305  # what is done stands in the tables
    run("--resume")
    assert as_undisturbed()


# -- several processes ------------------------------------------------------------------------


def torchrun(processes, arguments, *options):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return start([*launcher, *options, SCRIPT, *arguments])


def test_several_processes_give_the_files_and_rows_and_the_exit_code_of_one(home, command, as_undisturbed):
    write_images(home / "data" / "more", 60)
    Path("data/bad.png").write_bytes(b"")
    with torchrun(2, command()) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "失败: " in err and "bad.png" in err
    assert out.count("完成 65 张") == 1
    assert as_undisturbed(code=1)
    parts = [part.read_bytes() for part in Path("out/.clip_gradcam").glob("rows-*")]
    assert len(parts) == 2 and sum(part.count(b"\n") for part in parts) == 66
    assert sum(bool(part) for part in parts) > 1


def test_a_process_that_is_killed_on_the_way_is_restarted_and_the_rest_resumed(home, command, as_undisturbed):
    write_images(home / "data" / "more", 300)
    with torchrun(4, command(), "--max-restarts", "1") as process:
        wait_for_rows("out", 5)
        first = re.search(r"进程 (\d+)", Path("out/.clip_gradcam/lock").read_text(encoding="utf-8"))
        os.kill(int(first[1]), signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "此前已完成" in out
    assert as_undisturbed()
