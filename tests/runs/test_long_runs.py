"""Runs that take long: what they say on their way, how they are interrupted, shards, and tables that are held."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from folders import CAPTURED, SCRIPT, contents, rows_of, start, wait_for_rows, write_images

import clip_gradcam_visualization as script
from clip_gradcam_visualization import main
from models.errors import InputError
from models.runs import progress
from models.runs.closing import class_lines
from models.runs.progress import Progress, duration
from models.runs.records import PlannedImage
from models.runs.sharing import Ranks, Shard, parse_shard
from models.runs.totals import ClassTotals, is_warned

# -- on the way -------------------------------------------------------------------------------


def planned(pending):
    return [PlannedImage(str(i), str(i), is_pending, {"id": "", "image": ""}) for i, is_pending in enumerate(pending)]


def test_a_line_of_progress_counts_what_was_finished_before_and_nothing_of_other_shards():
    with Progress(planned([True] * 8 + [False] * 2 + [None] * 5), Ranks()) as shown:
        assert shown.line(3.0) == "进度：2/10（20%）"
        for failed in (False, True, False, False):
            shown.advance(failed)
        assert shown.line(10.0) == "进度：6/10（60%），失败 1，每秒 0.4 张，约还需 10 秒"


@pytest.mark.parametrize(
    "seconds, shown", [(0.4, "0 秒"), (99, "99 秒"), (119, "2 分钟"), (3600 * 3 + 301, "3 小时 5 分钟")]
)
def test_seconds_as_they_are_spoken_of(seconds, shown):
    assert duration(seconds) == shown


def test_lines_where_there_is_no_terminal(run, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PERIOD", 0.01)
    genuine = script.Explainer.__call__

    def slow(self, images, targets):
        time.sleep(0.1)
        return genuine(self, images, targets)

    monkeypatch.setattr(script.Explainer, "__call__", slow)
    run("--batch-size", "1")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("警告")]
    assert len(lines) >= 5 and all(re.match(r"进度：[0-5]/5（\d+%）", line) for line in lines)
    assert lines[0].startswith("进度：0/5（0%）") and any("每秒" in line for line in lines)


# -- SIGTERM ----------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_to_all_processes_is_as_ctrl_c(home, command, run, as_undisturbed, workers):
    """As a queue sends it when the time is up: to the decoding processes too."""
    write_images(home / "data" / "more", 300)
    with start([SCRIPT, *command(), "--num-workers", str(workers)], start_new_session=True) as process:
        wait_for_rows("out")
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "已中断" in err and "--resume" in err and "Traceback" not in err
    assert 0 < len(rows_of("out")) < 305
    run("--resume")
    assert as_undisturbed()


def test_the_handler_of_sigterm_is_put_back(run):
    before = signal.getsignal(signal.SIGTERM)
    run()
    assert signal.getsignal(signal.SIGTERM) is before


# -- shards -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, shard", [(None, None), ("1/1", Shard(1, 1)), (" 8/8 ", Shard(8, 8)), ("2/9", Shard(2, 9))]
)
def test_a_shard_as_it_is_written(text, shard):
    assert parse_shard(text) == shard


@pytest.mark.parametrize("text", ["", "0/3", "4/3", "3", "1/0", "-1/3", "1/99999", "1/3/4", "a/b", "１/３", "1.0/3"])
def test_what_is_no_shard(text):
    with pytest.raises(InputError, match="--shard 应是 I/N"):
        parse_shard(text)


def test_shards_join_to_what_one_run_leaves(home, run, as_undisturbed, capsys):
    write_images(home / "data" / "more", 9)
    for number in (3, 1, 2):
        assert run("--shard", f"{number}/3", "--batch-size", "2") == []  # no table of one shard
    assert "--join --output-dir out" in capsys.readouterr().out
    assert main(["--join", "--output-dir", "out"]) == 0
    assert len(rows_of("out")) == 14
    assert as_undisturbed("--batch-size", "2")
    before = contents("out")
    run("--resume", "--batch-size", "2")  # of the whole list: nothing is left to do
    assert "完成 0 张（另有 14 张此前已完成）" in capsys.readouterr().out and contents("out") == before
    assert main(["--join", "--output-dir", "out"]) == 0 and contents("out") == before


def over_list(run, rows, *more):
    Path("cases.csv").write_text("\n".join(["image,age", *rows]) + "\n", encoding="utf-8")
    run("--cases", "cases.csv", "--batch-size", "1", *more)
    return {row["id"]: row["age"] for row in rows_of("out")} if Path("out/results.jsonl").exists() else None


def test_shards_that_run_anew_count_and_not_what_was_joined_before(run):
    """Nor does a shard's plan count any more once a run of the whole list has gone on after the joining."""
    listed = ["data/000.png,50", "data/001.png,60"]
    for ages in (listed, [line.replace("0,", "1,") for line in listed]):
        for number in (1, 2):
            assert over_list(run, ages, "--shard", f"{number}/2") is None  # what was there is taken away
        assert main(["--join", "--output-dir", "out"]) == 0
        assert [f"{name},{age}" for name, age in ((row["id"], row["age"]) for row in rows_of("out"))] == ages
    more = [*ages, "data/b/c/000.png,70"]
    assert len(over_list(run, more, "--resume")) == 3
    assert main(["--join", "--output-dir", "out", "--tolerance", "5"]) == 0
    assert [row["age"] for row in rows_of("out")] == [line.split(",")[1] for line in more]


def test_shards_that_are_not_joined_are_not_forgotten_by_a_resumption(run, capsys):
    run("--shard", "1/2", "--batch-size", "1")
    run("--resume", "--batch-size", "1", code=2)
    assert "请先执行 --join --output-dir out，再 --resume" in capsys.readouterr().err
    assert main(["--join", "--output-dir", "out"]) == 1
    run("--resume", "--batch-size", "1")
    assert "完成 2 张（另有 3 张此前已完成）" in capsys.readouterr().out and len(rows_of("out")) == 5


def test_shards_begin_beside_each_other_where_a_whole_run_was(run):
    from models.runs.state import RunState

    run()
    with RunState("out", Shard(1, 2)).lock(), RunState("out", Shard(2, 2)).lock():
        assert Path("out/.clip_gradcam/shard-2-of-2/lock").read_text(encoding="utf-8")


def test_the_joined_evaluation_has_the_language_of_the_run(run):
    Path("cases.csv").write_text("image,label\ndata/000.png,0\n", encoding="utf-8")
    for flags, name in ((["--lang", "en"], "all"), ([], "全部")):
        run("--cases", "cases.csv", *flags)
        assert main(["--join", "--output-dir", "out"]) == 0
        assert f",{name},accuracy," in Path("out/evaluation.csv").read_text(encoding="utf-8")
    assert main(["--join", "--output-dir", "out", "--lang", "en"]) == 0
    assert ",all,accuracy," in Path("out/evaluation.csv").read_text(encoding="utf-8")


def test_a_shard_that_has_not_begun_or_failed_is_made_up_for(home, run, as_undisturbed, capsys):
    Path("data/000.png").rename("kept.png")
    Path("data/000.png").write_bytes(b"")
    run("--shard", "1/2", "--batch-size", "1", code=1)
    assert "失败: 无法读取图像 data/000.png" in capsys.readouterr().err
    assert main(["--join", "--output-dir", "out"]) == 1
    shown = capsys.readouterr()
    assert "分片 2/2 还没有开始" in shown.err and "完成 2 张，失败 1 张，还缺 2 张，共 5 张" in shown.out
    assert [row["image"] for row in rows_of("out") if "error" in row] == ["data/000.png"]
    Path("kept.png").replace("data/000.png")
    run("--shard", "2/2", "--batch-size", "1")
    run("--shard", "1/2", "--batch-size", "1", "--resume")  # does the one that failed
    assert "完成 1 张（另有 2 张此前已完成）" in capsys.readouterr().out
    assert main(["--join", "--output-dir", "out"]) == 0
    assert as_undisturbed("--batch-size", "1")


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--shard", "2/2", "--lang", "en"],
            r"shard 2/2 differs from shard 1/2: --lang \(shard 1/2 zh, this time en\).*delete out/.clip_gradcam",
        ),
        (["--shard", "2/3"], "分片 2/3 与分片 1/2 不同：--shard 的 N 或 --batch-size"),
        (["--shard", "2/2", "--batch-size", "2"], "--batch-size（分片 1/2 \\[2, 1\\]，这次 \\[2, 2\\]）"),
        (["--shard", "1/2", "--contrast", "--resume"], "--resume：与上次运行不同：--contrast"),
    ],
)
def test_shards_that_do_not_go_together_are_refused_before_any_work(run, capsys, flags, message):
    run("--shard", "1/2", "--batch-size", "1")
    before = contents("out")
    run("--batch-size", "1", *flags, code=2)
    assert re.search(message, capsys.readouterr().err) and contents("out") == before


def test_lists_that_differ_are_not_joined(home, run, capsys):
    run("--shard", "1/2", "--batch-size", "1")
    write_images(home / "data", 1, start=7)
    run("--shard", "2/2", "--batch-size", "1")
    assert main(["--join", "--output-dir", "out"]) == 2
    assert "图像列表或标注不同" in capsys.readouterr().err


def test_a_run_of_the_whole_list_begins_anew_without_the_shards(run, as_undisturbed):
    run("--shard", "1/2", "--batch-size", "1")
    run("--batch-size", "1")
    assert as_undisturbed("--batch-size", "1")
    before = contents("out")
    assert main(["--join", "--output-dir", "out"]) == 0 and contents("out") == before


def test_a_shard_is_not_run_twice_at_a_time_nor_beside_the_whole_list(run, capsys):
    from models.runs.state import RunState

    run()
    code = "import sys; from models.runs.state import RunState; from models.runs.sharing import Shard\n"
    code += "try: RunState('out', eval(sys.argv[1])).lock()\nexcept Exception as error: print(error)"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}

    def refused(shard):
        import subprocess

        return subprocess.run([sys.executable, "-c", code, shard], env=environment, **CAPTURED).stdout

    with RunState("out", Shard(1, 2)).lock():
        assert "另一次运行" in refused("Shard(1, 2)") and "另一次运行" in refused("None")
        assert refused("Shard(2, 2)") == ""
    with RunState("out").lock():
        assert "另一次运行" in refused("Shard(1, 2)")


@pytest.mark.parametrize("content", ["[]", '{"texts": 3}', '{"texts": [[1, 2]]}', '{"texts": []}', "{}"])
def test_nothing_to_join_is_one_line(home, capsys, content):
    assert main(["--join", "--output-dir", "nothing"]) == 2
    assert "没有运行的记录" in capsys.readouterr().err
    Path("out/.clip_gradcam").mkdir(parents=True)
    Path("out/.clip_gradcam/settings.json").write_text(content)
    assert main(["--join", "--output-dir", "out"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("错误: ") and err.count("\n") == 1 and "设置" in err


@pytest.mark.parametrize("line", ["", "{}", "[1, 2]", '["a", "b", true, {"id": "a"}, [], [], null]', "[[[[", "x" * 99])
def test_a_plan_that_another_wrote_is_one_line(run, capsys, line):
    run()
    with open("out/.clip_gradcam/plan.jsonl", "a") as file:
        file.write(line + "\n")
    assert main(["--join", "--output-dir", "out"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("错误: ") and "不是一次运行的计划" in err


# -- at the end -------------------------------------------------------------------------------


def test_a_table_that_a_program_holds_is_kept_beside_it(run, monkeypatch, capsys):
    run()
    before, genuine = Path("out/results.csv").read_bytes(), os.replace

    def held(source, target):
        if Path(target).name == "results.csv":
            raise PermissionError(13, "Permission denied", str(target))
        return genuine(source, target)

    monkeypatch.setattr(os, "replace", held)
    assert main(["--join", "--output-dir", "out"]) == 0
    shown = capsys.readouterr()
    assert "results.csv 正被另一个程序（例如 Excel）打开，这次的表写在 out/results-new.csv" in shown.err
    assert "结果表已保存：out/results-new.csv、out/results.jsonl" in shown.out
    assert Path("out/results.csv").read_bytes() == Path("out/results-new.csv").read_bytes() == before


def test_a_new_start_while_a_program_holds_the_table(run, monkeypatch, capsys):
    run()
    genuine = Path.unlink

    def held(self, **options):
        if self.name == "results.csv":
            raise PermissionError(13, "Permission denied", str(self))
        return genuine(self, **options)

    monkeypatch.setattr(Path, "unlink", held)
    assert len(run()) == 5


def test_a_line_for_each_predicted_class_the_largest_first():
    classes = {"松动": ClassTotals(), "正常": ClassTotals()}
    classes["松动"].add({"text_specificity": None, "warning": "热力图为空"}, 0.5)
    for specificity, probability in ((0.5, 0.25), (1.0, 0.5), (None, 1.0)):
        classes["正常"].add({"text_specificity": specificity}, probability)
    heading, first, second = class_lines(classes)
    assert heading.split() == ["预测", "图像", "平均概率", "平均文本特异性", "有警告"]
    assert first.split() == ["正常", "3", "0.58", "0.75", "0"] and second.split() == ["松动", "1", "0.50", "—", "1"]
    many = {str(i): classes["松动"] for i in range(25)}
    assert class_lines(many)[-1] == "其余 5 类见结果表" and len(class_lines(many)) == 22 and class_lines({}) == []


def test_the_classes_of_a_run_are_summed_over_one_row_of_each_image(run, capsys):
    rows = run("--all-texts")
    out = capsys.readouterr().out
    for name in {row["predicted"] for row in rows}:
        of_class = [row for row in rows[::3] if row["predicted"] == name]
        probability = sum(row["probabilities"][row["names"].index(name)] for row in of_class) / len(of_class)
        (line,) = [line.split() for line in out.splitlines() if line.strip().startswith(name)]
        assert line[:3] == [name, str(len(of_class)), f"{probability:.2f}"]


def test_that_a_method_knows_no_text_is_no_warning_to_be_counted(run, capsys):
    rows = run("--method", "eigencam")
    assert all("不看文本" in row["warning"] for row in rows) and "行结果带有警告" not in capsys.readouterr().err
    assert not is_warned(rows[0]) and is_warned({**rows[0], "warning": rows[0]["warning"] + "；图像几乎只有一个灰度"})
    assert is_warned({"warning": "x", "method": "nothing"}) and not is_warned({"warning": None, "method": "gradcam"})


# -- what is asked ----------------------------------------------------------------------------


def test_a_target_text_by_its_name(run):
    rows = run("--target-text-idx", "感染", "0")
    assert [(row["target_text_idx"], row["target"]) for row in rows[:2]] == [(2, "感染"), (0, "正常")]


def test_the_id_is_the_place_below_the_images_folder_wherever_that_is(run, home):
    ids = [row["id"] for row in run()]
    assert ids == ["000.png", "001.png", "b/c/000.png", "左 侧/000.png", "左 侧/001.png"]
    assert [row["id"] for row in run(images=[str(home / "data")])] == ids
    header = Path("out/results.csv").read_text(encoding="utf-8-sig").splitlines()[0].split(",")
    assert header[:5] == ["id", "image", "predicted", "target_text_idx", "target"] and "label" not in header
    assert list(rows_of("out")[0])[:5] == header[:5]
    settings = json.loads(Path("out/.clip_gradcam/settings.json").read_text(encoding="utf-8"))
    assert "shards" not in settings
