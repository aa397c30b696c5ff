"""The fuzzer: a short run over all kinds of inputs, and that it sees what it is there to see."""

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fuzz
import pytest
from fuzz import Case, Journal, Limits, run_cases
from fuzzing import canary

FUZZ = Path(fuzz.__file__)
CONNECT = socket.socket.connect  # the tests' own refusal takes its place later


def test_three_hundred_inputs(tmp_path):
    """No input of any kind does what it must not: the report names those that do."""
    command = [sys.executable, str(FUZZ), "--count", "300", "--workers", "1", "--output", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-5000:] + process.stderr[-2000:]
    assert "300 inputs, 0 failed" in process.stdout


# -- what the judge says of a main that does one thing --------------------------------------------


def make(random, start=b"\x89PNG"):
    Path("in").mkdir()
    Path("in/image.png").write_bytes(start + str(random.random()).encode())
    return ["--output-dir", "out", "in/image.png"]


def fine(argv):
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"a")
    print("警告: a", file=sys.stderr)
    return 0


def refuse(argv, line="错误: a\n"):
    sys.stderr.write(line)
    return 2


def link_outside(argv):
    Path("out").mkdir()
    os.symlink("../outside", "out/staging")
    write("out/staging/thesis.txt")


def take_memory(argv, count=115_000_000):
    """Pages of its own: what the tests before have freed may be had without taking any."""
    with mmap.mmap(-1, count) as memory:
        memory[:: mmap.PAGESIZE] = bytes(len(range(0, count, mmap.PAGESIZE)))
        return fine(argv)


def write(path):
    with open(path, "w") as file:
        file.write("a")


def swallow(function, *arguments):
    """A main that goes on after what was refused to it."""

    def swallowing(argv):
        try:
            function(*arguments)
        except Exception:
            return fine(argv)

    return swallowing


FAKES = {
    "fine": (fine, "ok"),
    "one line": (refuse, "refused"),
    "warnings and one line": (lambda argv: refuse(argv, "警告: a\n错误: b\n"), "refused"),
    "exception": (lambda argv: [][0], "traceback"),
    "another exit code": (lambda argv: 3, "traceback"),
    "warnings and one line in English": (lambda argv: refuse(argv, "warning: a\nfailed: b\nerror: c\n"), "refused"),
    "unforeseen in English": (lambda argv: refuse(argv, "error: unforeseen error KeyError: a\n"), "traceback"),
    "unforeseen of an image in English": (lambda argv: refuse(argv, "failed: a: KeyError: a\nerror: b\n"), "traceback"),
    "two lines in English": (lambda argv: refuse(argv, "error: a\nerror: b\n"), "noise"),
    "unforeseen": (lambda argv: refuse(argv, "错误: 没有料到的错误 KeyError：a；请检查输入\n"), "traceback"),
    "unforeseen of an image": (lambda argv: refuse(argv, "失败: a.png：KeyError: a\n错误: b\n"), "traceback"),
    "sys.exit": (lambda argv: sys.exit("a"), "traceback"),
    "signal": (lambda argv: os.kill(os.getpid(), signal.SIGSEGV), "signal"),
    "an early end": (lambda argv: os._exit(0), "signal"),
    "hang": (lambda argv: time.sleep(60), "timeout"),
    "memory": (take_memory, "memory"),
    "more memory than there is": (lambda argv: b"x" * 10**12, "memory"),
    "out of memory": (lambda argv: refuse(argv, "错误: 内存或显存不足；a\n"), "memory"),
    "out of memory in English": (lambda argv: refuse(argv, "error: out of memory (RAM or GPU memory)\n"), "memory"),
    "canary": (lambda argv: canary.call("a") or 0, "executed"),
    "class of the canary": (lambda argv: canary.Thing() and 0, "executed"),
    "program": (swallow(subprocess.run, ["true"]), "executed"),
    "system": (swallow(os.system, "true"), "executed"),
    "file of a payload": (swallow(write, "EXECUTED"), "executed"),
    "name looked up": (swallow(socket.getaddrinfo, "example.org", 443), "request"),
    "connection": (swallow(lambda: CONNECT(socket.socket(), ("127.0.0.1", 9))), "request"),
    "question": (swallow(input), "prompt"),
    "standard input": (swallow(lambda: sys.stdin.read()), "prompt"),
    "file elsewhere": (swallow(write, "b"), "outside"),
    "file removed": (swallow(os.remove, "outside/thesis.txt"), "outside"),
    "through a link": (link_outside, "outside"),
    "pipe elsewhere": (lambda argv: os.mkfifo("b") or fine(argv), "outside"),  # not audited
    "no line": (lambda argv: 2, "noise"),
    "two lines": (lambda argv: refuse(argv, "错误: a\n错误: b\n"), "noise"),
    "other words": (lambda argv: refuse(argv, "UserWarning: a\n错误: b\n"), "noise"),
    "control characters": (lambda argv: refuse(argv, "错误: \x1b[31m\n"), "noise"),
    "control characters in a table": (
        lambda argv: fine(argv) or Path("out/results.csv").write_text("\u202e") * 0,
        "noise",
    ),
    "control characters on stdout": (lambda argv: print("\x07") or fine(argv), "noise"),
    "a pipe for a table": (lambda argv: fine(argv) or os.mkfifo("out/results.csv") or 0, "ok"),
    "files after a refusal": (lambda argv: fine(argv) or refuse(argv), "half"),
    "no files after success": (lambda argv: 0, "half"),
    "no number": (lambda argv: print("预测：a（nan%）") or fine(argv), "wrong"),
}


@pytest.mark.parametrize("name", FAKES)
def test_the_judge(tmp_path, name):
    main, outcome = FAKES[name]
    limits = Limits(seconds=2, bytes=100_000_000)
    ((_, verdict),) = run_cases([Case("png", 0)], tmp_path, lambda kind: make, main, limits=limits)
    assert verdict.outcome == outcome, verdict
    assert (tmp_path / "failures" / "png-0" / "failure.json").is_file() == (outcome not in fuzz.GOOD)


@pytest.mark.parametrize("name", ["fine", "memory"])
def test_the_memory_of_an_input_is_its_own(tmp_path, name):
    """It is not that of the process that it was forked from, which may hold more than it."""
    main, outcome = FAKES[name]
    held = b"x" * 800_000_000
    ((_, verdict),) = run_cases(
        [Case("png", 0)], tmp_path, lambda kind: make, main, limits=Limits(seconds=5, bytes=100_000_000)
    )
    assert held and verdict.outcome == outcome, verdict


def test_an_input_that_cannot_be_made_is_the_fuzzers_fault(tmp_path):
    ((_, verdict),) = run_cases([Case("png", 0)], tmp_path, lambda kind: lambda random: [][0], fine)
    assert (verdict.outcome, verdict.detail) == ("fuzzer", "IndexError: list index out of range")


def test_only_documented_formats_are_drawn(tmp_path):
    ((_, verdict),) = run_cases([Case("png", 0)], tmp_path, lambda kind: partial(make, start=b"%!PS"), fine)
    assert (verdict.outcome, verdict.detail) == ("wrong", "drew a file that begins with b'%!PS'")


def test_an_input_is_the_same_whatever_runs_beside_it(tmp_path):
    """Its number, kind and seed alone make it."""

    def show(argv):
        print("警告:", Path("in/image.png").read_bytes()[4:].decode(), file=sys.stderr)
        return fine(argv)

    def run(folder, workers, seed=0):
        cases = fuzz.cases_of(["png", "gif"], 6, seed)
        return {case: v.stderr for case, v in run_cases(cases, tmp_path / folder, lambda kind: make, show, workers)}

    alone = run("a", 1)
    assert alone == run("b", 3) and len(set(alone.values())) == 6
    assert not set(alone.values()) & set(run("c", 3, seed=1).values())


def test_the_journal_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = Journal(path, 5, resume=False)
    first.add(Case("png", 0, 5), fuzz.Verdict("ok"))
    first.add(Case("gif", 3, 5), fuzz.Verdict("signal", "SIGSEGV"))
    with open(path, "a") as file:
        file.write('{"kind": "gif", "ind')  # cut off
    again = Journal(path, 5, resume=True)
    assert again.finished == {("png", 0), ("gif", 3)}
    again.add(Case("gif", 4, 5), fuzz.Verdict("ok"))
    assert Journal(path, 5, resume=True).finished == {("png", 0), ("gif", 3), ("gif", 4)}
    with pytest.raises(SystemExit, match="seed 5"):
        Journal(path, 6, resume=True)
    assert Journal(path, 6, resume=False).finished == set()


def test_the_report_counts():
    row = {"kind": "png", "seconds": 1.5, "megabytes": 7, "detail": "", "outcome": "ok"}
    rows = [{**row, "index": i} for i in range(2)]
    rows += [{**row, "index": i, "outcome": "signal", "detail": "SIGSEGV"} for i in (2, 3)]
    header, _, counts, failure, last = fuzz.report(rows)
    assert header == "| kind | ok | refused | signal | most seconds | most MB |"
    assert counts == "| png | 2 | 0 | 2 | 1.5 | 7 |"
    assert failure == "signal: 2 (png 2), for example png/2: SIGSEGV"
    assert last == "4 inputs, 2 failed in 1 ways"
