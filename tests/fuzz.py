"""Mutated inputs of every kind through the real `main`; not collected by pytest. Linux only.

    python tests/fuzz.py                                     # 20,000 inputs, two at a time, about 40 minutes
    python tests/fuzz.py --kinds png dicom --count 500       # of some kinds only
    python tests/fuzz.py --resume                            # go on after it was cut off
    python tests/fuzz.py --only pth-opcodes/17               # one input again, with all that it prints
    python tests/fuzz.py --output /dev/shm/fuzz              # in memory: a slow disk is half of the time

Every input runs in a process of its own, forked from one that has imported everything, in a folder of its own, so that
no input sees what another one did. Input i of a kind is the same for the same --seed, whatever else is run. An outcome:

    ok, refused      exit 0, or 1 of a run over many images; exit 2 after one line `错误: ...` and nothing written
    executed         a canary was called, or a program or foreign code started
    request          a name looked up, or a connection made (refused here)
    prompt           standard input read
    outside          something changed outside of the output folder and the cache
    signal, timeout  killed by the system; or by us after LIMITS.seconds (of a core, where others are at work too)
    memory           more than LIMITS.bytes beside what there was, or said to be out of it for a file's sake
    traceback        an exception left `main`, or was none that it foresaw, or another exit code came back
    half             files left after exit 2, parts of files, none after exit 0
    noise            more, or less, than one line of error; other text on standard error
    wrong            another picture than without the mutation, where that must not matter; a report that is none
    fuzzer           the input itself could not be made: a fault of the fuzzer

Memory: what counts is the peak of resident memory above what the process held when its input began (libraries, and what
the process that it was forked from held), as the kernel gives both. An allocation of twice LIMITS.bytes fails, and
counts as too much as well unless an argument asked for it (RLIMIT_DATA: RLIMIT_AS would count what torch maps and never
touches).

The output folder holds `journal.jsonl`, a line per finished input; `failures/<kind>-<index>/` with each failing input
as it was made and `failure.json` with its command; `valid/`, which the inputs start from.
"""

import argparse
import collections
import contextlib
import faulthandler
import json
import os
import re
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple


class Limits(NamedTuple):
    """What an input may take."""

    seconds: float = 20
    bytes: int = 13 * 10**8  # 2 GB in all: the libraries take 0.7


LIMITS = Limits()
GOOD = ("ok", "refused")
OUTCOMES = (
    *GOOD, "executed", "request", "prompt", "outside", "signal", "timeout", "memory", "traceback", "half", "noise",
    "wrong", "fuzzer",
)  # fmt: skip


class Case(NamedTuple):
    """One input."""

    kind: str
    index: int
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.index}"

    def random(self) -> Random:
        return Random(f"{self.seed}/{self.kind}/{self.index}")


class Verdict(NamedTuple):
    """What an input came to."""

    outcome: str
    detail: str = ""  # the same for failures of one cause, as far as can be told
    argv: tuple = ()
    seconds: float = 0.0
    megabytes: int = 0
    stderr: str = ""  # its end


# -- the process of one input --------------------------------------------------------------------

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "webbrowser.open")
REQUESTS = (
    "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.connect", "socket.sendto",
    "socket.bind", "urllib.Request",
)  # fmt: skip
CHANGES = {  # audited event -> which of its arguments are paths
    "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.mkdir": (0,), "os.link": (1,), "os.symlink": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """An audit hook: notes what a run does beyond computing, as (outcome, what), and refuses to let it happen."""

    def __init__(self, folder: str, writable: Iterable[str]):
        self.folder, self.writable = folder, tuple(os.path.realpath(path) for path in writable)
        self.events: list[tuple[str, str]] = []
        self.is_on = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.is_on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and not isinstance(path, int) and path is not None:
                self._change(event, os.path.realpath(path))
        elif event in CHANGES:
            for index in CHANGES[event]:
                self._change(event, self._place(event, arguments, index))
        elif event in STARTS:
            self._refuse("executed", f"{event} {arguments!r}"[:200])
        elif event in REQUESTS:
            if event != "socket.bind" or isinstance(arguments[1], tuple):
                where = [part for part in arguments if isinstance(part, (str, tuple))]
                self._refuse("request", f"{event} {where}"[:200])
        elif event == "builtins.input":
            self._refuse("prompt", event)
        elif event == "exec" and getattr(arguments[0], "co_filename", "").startswith(self.folder):
            self._refuse("executed", f"exec of {Path(arguments[0].co_filename).name}")

    def _place(self, event: str, arguments: tuple, index: int) -> str:
        """Where a path of an event leads, but for its last part, which is what is changed."""
        path = arguments[index]
        if isinstance(path, int):
            return os.path.realpath(f"/proc/self/fd/{path}")
        path, folder = os.fsdecode(path), arguments[-1]
        if isinstance(folder, int) and folder > 0 and event != "os.truncate":  # the path is seen from an open folder
            path = os.path.join(f"/proc/self/fd/{folder}", path)
        return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))

    def _change(self, event: str, path) -> None:
        path = os.fsdecode(path)
        below = any(path == place or path.startswith(place.rstrip("/") + "/") for place in self.writable)
        if not below and path != os.devnull and not any(place.startswith(path + "/") for place in self.writable):
            if os.path.basename(path) == "EXECUTED":
                self._refuse("executed", "EXECUTED was opened")
            shown = os.path.relpath(path, self.folder)
            shown = re.sub(r"\b(tmp|clip_gradcam_)\w{8}\b", r"\1...", path if shown.startswith("..") else shown)
            self._refuse("outside", f"{event} {shown}"[:200])

    def _refuse(self, outcome: str, what: str) -> None:
        self.events.append((outcome, what))
        raise PermissionError(13, f"refused by the fuzzer: {what}")


class ClosedInput:
    """Standard input that nobody may read."""

    def __init__(self, events: list):
        self.events = events

    def isatty(self) -> bool:
        return True

    def __getattr__(self, name):
        self.events.append(("prompt", f"sys.stdin.{name}"))
        raise OSError("standard input is closed")


def value_of(argv, flag: str, default: str) -> str:
    """The last value of a flag."""
    places = [index for index, argument in enumerate(argv[:-1]) if argument == flag]
    return argv[places[-1] + 1] if places else default


def output_folders(argv) -> list[str]:
    """Where the command line lets its outputs go."""
    folder = value_of(argv, "--output-dir", "clip_gradcam_results")
    name = value_of(argv, "--output-name", "")
    return [path.replace("\0", "") for path in (folder, os.path.dirname(os.path.join(folder, name)) or folder)]


def tree(folder: Path, without: Iterable[str] = ()) -> dict[str, str]:
    """What stands below a folder, by its relative path: kind, size, time, where a link leads."""
    entries, todo = {}, [str(folder)]
    skipped = {os.path.realpath(folder / path) for path in without}
    while todo:
        for entry in os.scandir(todo.pop()):
            if os.path.realpath(entry.path) in skipped and not entry.is_symlink():
                continue
            status = entry.stat(follow_symlinks=False)
            leads = os.readlink(entry.path) if entry.is_symlink() else ""
            is_folder = entry.is_dir(follow_symlinks=False)
            what = "folder" if is_folder else f"{status.st_mode:o} {status.st_size} {status.st_mtime_ns} {leads}"
            entries[os.fsencode(os.path.relpath(entry.path, folder)).decode("utf-8", "backslashreplace")] = what
            if is_folder:
                todo.append(entry.path)
    return entries


def prepare(folder: Path) -> None:
    """The folder of an input: empty but for what must survive."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "outside" / "folder").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "outside" / "thesis.txt").write_text("must survive")
    (folder / "outside" / "folder" / "letter.txt").write_text("must survive")


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def limit_memory(count: int) -> None:
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(re.search(r"VmData:\s+(\d+)", status)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (used + count,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def work(case: Case, folder: Path, make: Callable, main: Callable, limits: Limits) -> None:
    """What the process of an input does: makes it, runs it, and writes what came of it beside the folder."""
    from fuzzing import canary

    os.setsid()
    report = open(f"{folder}.report", "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 (ends with us)
    for number, path in ((0, os.devnull), (1, f"{folder}.stdout"), (2, f"{folder}.stderr")):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    faulthandler.enable(2)
    faulthandler.register(signal.SIGUSR1, 2, all_threads=True)
    os.chdir(folder)
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder / "home")}
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
    try:
        argv = make(case.random())
        os.ftruncate(2, 0)  # what libraries said while it was made
        os.lseek(2, 0, os.SEEK_SET)
    except Exception:
        report.write(json.dumps({"unmade": traceback.format_exc()}) + "\n")
        return
    canary.calls.clear()
    outputs = output_folders(argv)
    made = {"argv": argv, "tree": tree(folder, [*outputs, "cache"]), "out": tree_of_outputs(folder)}
    made["resident"] = resident()
    report.write(json.dumps(made) + "\n")
    report.flush()
    watch = Watch(str(folder), [*outputs, "cache", "tmp"])
    sys.stdin = ClosedInput(watch.events)
    sys.addaudithook(watch)
    limit_memory(2 * limits.bytes)
    start, failure = time.monotonic(), None
    watch.is_on = True
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        code, failure = None, traceback.format_exc()
    watch.is_on = False
    seconds = time.monotonic() - start
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    events = [*(("executed", f"canary {call}") for call in canary.calls), *watch.events]
    report.write(json.dumps({"code": code, "failure": failure, "events": events, "seconds": seconds}) + "\n")
    report.flush()


def tree_of_outputs(folder: Path) -> dict[str, str]:
    return tree(folder / "out") if (folder / "out").is_dir() and not (folder / "out").is_symlink() else {}


# -- the judge -----------------------------------------------------------------------------------


class Ending(NamedTuple):
    """How the process of an input ended, and what it left."""

    signal: int  # 0: none
    killed: bool  # by us, its time being over
    bytes: int  # most resident memory, above what there was before the input
    stderr: str
    made: dict  # the report's first line, empty where there is none
    ran: dict  # its second line
    folder: Path


def judge(case: Case, ending: Ending, limits: Limits) -> Verdict:
    """The worst that can be said of a run."""
    if not ending.made or "unmade" in ending.made:
        unmade = ending.made.get("unmade", f"signal {ending.signal}: {ending.stderr[-300:]}")
        return Verdict("fuzzer", unmade.strip().splitlines()[-1], stderr=unmade)
    argv = tuple(ending.made["argv"])
    judged = (judgement(case, ending, argv, limits) for judgement in JUDGEMENTS)
    outcome, detail = next(filter(None, judged), (None, ""))
    if outcome is None:
        outcome = "refused" if ending.ran["code"] == 2 else "ok"
    seconds = ending.ran.get("seconds", limits.seconds if ending.killed else 0.0)
    return Verdict(outcome, detail, argv, round(seconds, 3), ending.bytes // 10**6, ending.stderr[-3000:])


def _judge_events(case, ending, argv, limits):
    if (ending.folder / "EXECUTED").exists() and "EXECUTED" not in ending.made["tree"]:
        return "executed", "EXECUTED was written"
    hub = "--download" in argv or any(argument.startswith("hub:") for argument in argv)  # the user's own wish
    for outcome in ("executed", "outside", "prompt") if hub else ("executed", "outside", "request", "prompt"):
        what = [what for kind, what in ending.ran.get("events", ()) if kind == outcome]
        if what:
            return outcome, what[0]
    return None


def _judge_folder(case, ending, argv, limits):
    """Whether anything else than outputs and cache has changed."""
    before, after = ending.made["tree"], tree(ending.folder, [*output_folders(list(argv)), "cache"])
    parents = {str(parent) for path in output_folders(list(argv)) for parent in Path(os.path.normpath(path)).parents}
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path) and path not in parents]
    return ("outside", f"changed: {', '.join(changed[:3])}") if changed else None


def _judge_end(case, ending, argv, limits):
    if ending.killed:
        return "timeout", _frames(ending.stderr) or "no stack"
    if ending.signal == signal.SIGKILL:
        return "memory", "killed by the system"
    if ending.signal or not ending.ran:
        name = signal.Signals(ending.signal).name if ending.signal else "ended"
        return "signal", f"{name} in {_frames(ending.stderr)}"
    return None


def _judge_memory(case, ending, argv, limits):
    if ending.bytes > limits.bytes:
        return "memory", f"more than {limits.bytes / 1e9:.1f} GB: {_first_line(ending.stderr)}"
    if re.search(r"MemoryError|allocate|bad_alloc", ending.ran["failure"] or ""):
        return "memory", _signature(ending.ran["failure"])
    if re.search("内存或显存不足|error: out of memory", ending.stderr) and case.kind != "arguments":
        return "memory", "an allocation failed"
    return None


def _judge_exit(case, ending, argv, limits):
    if ending.ran["failure"]:
        return "traceback", _signature(ending.ran["failure"])
    unforeseen = UNFORESEEN.search(ending.stderr)
    if unforeseen:
        return "traceback", unforeseen[0][:150]
    code, helped = ending.ran["code"], {"-h", "--help"} & set(argv)
    return None if code in (0, 1, 2) or code is None and helped else ("traceback", f"exit {code}")


# An exception that is no InputError, as `main` says it, or as the reason of an image's failure.
UNFORESEEN = re.compile(
    r"没有料到的错误.*|unforeseen error .*|^(失败|failed): (.*(：|: ))?[A-Z]\w*(Error|Exception|Warning): .*",
    re.MULTILINE,
)
# How lines of standard error begin, with --lang en too.
ERRORS, OTHERS = ("错误: ", "error: "), ("警告: ", "warning: ", "失败: ", "failed: ")


def _judge_words(case, ending, argv, limits):
    """One line of error with exit 2, warnings and failures beside it; nothing that would move a terminal's cursor."""
    outputs, before = tree_of_outputs(ending.folder), ending.made["out"]
    tables = [name for name in ("results.csv", "evaluation.csv") if outputs.get(name) != before.get(name)]
    tables = [ending.folder / "out" / name for name in tables]
    for where in (f"{ending.folder}.stderr", f"{ending.folder}.stdout", *tables):
        raw = next((line for line in re.split("\r?\n", _read(where)) if CONTROL.search(line)), None)
        if raw is not None:
            at = CONTROL.search(raw).start()
            return "noise", f"control characters in {Path(where).suffix[1:]}: {ascii(raw[max(0, at - 20) : at + 20])}"
    lines = ending.stderr.splitlines()
    errors = [line for line in lines if line.startswith(ERRORS)]
    odd = [line for line in lines if not line.startswith(ERRORS + OTHERS)]
    if odd:
        return "noise", re.sub(r"\d+|0x[0-9a-f]+", "N", odd[0])[:120]
    if len(errors) != 1 if ending.ran["code"] == 2 else len(errors) > (ending.ran["code"] == 1):
        return "noise", f"exit {ending.ran['code']} with {len(errors)} lines of error"
    return None


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _judge_outputs(case, ending, argv, limits):
    """Whole files after success, none after a refusal; a run's state may stay."""
    outputs = tree_of_outputs(ending.folder)
    parts = [path for path in outputs if path.endswith(".tmp") and path not in ending.made["out"]]
    if parts:
        return "half", f"left: {parts[0]}"
    new = [path for path in outputs if path not in ending.made["out"] and not path.startswith(".clip_gradcam")]
    if ending.ran["code"] == 2 and new:
        return "half", f"left after a refusal: {', '.join(new[:3])}"
    draws = case.kind != "arguments" and "--list-layers" not in argv
    if ending.ran["code"] == 0 and draws and not outputs:
        return "half", "no files after success"
    return None


def _judge_picture(case, ending, argv, limits):
    """An entry of the cache must not change what is drawn."""
    drawn = ending.folder / "out" / "clip_gradcam_picture_overlay.png"
    expected = ending.folder.parent.parent / "valid" / "expected.png"
    if case.kind != "cache" or not drawn.is_file() or drawn.read_bytes() == expected.read_bytes():
        return None
    return "wrong", "another overlay than without the entry"


def _judge_report(case, ending, argv, limits):
    """A report's page is whole, and what stands in it is data: objects of JSON without markup."""
    page = ending.folder / "out" / "report.html"
    if not page.is_file() or page.is_symlink():
        return None
    text = _read(page)
    data = re.findall('<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    try:
        objects = [json.loads(part, parse_constant=float) for part in data]
    except (ValueError, RecursionError):
        return "wrong", "the report's data are no JSON"
    if not text.endswith("</html>\n") or not all(isinstance(value, dict) for value in objects):
        return "wrong", "the report is not whole"
    return ("wrong", "markup in the report's data") if re.search("[<>&]", "".join(data)) else None


def _judge_format(case, ending, argv, limits):
    """What is none of the documented formats is not drawn, whatever its name says."""
    draws = case.kind in IMAGES and ending.ran["code"] == 0 and "--list-layers" not in argv
    for path in sorted((ending.folder / "in").glob("image*")) if draws else ():
        start = path.read_bytes()[:132] if path.is_file() else b""
        if not start.startswith(SIGNATURES) and start[128:] != b"DICM":
            return "wrong", f"drew a file that begins with {start[:4]!r}"
    return None


IMAGES = ("png", "jpeg", "bmp", "tiff", "webp", "gif")
TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"BM", b"RIFF", b"GIF8", *TIFFS)


def _judge_numbers(case, ending, argv, limits):
    """A prediction is a number."""
    odd = re.search(r"（-?(nan|inf)%）|余弦相似度 -?(nan|inf)", _read(f"{ending.folder}.stdout"))
    return ("wrong", f"a prediction that is no number: {odd[0]}") if odd else None


JUDGEMENTS = (
    _judge_events, _judge_folder, _judge_end, _judge_memory, _judge_exit, _judge_words, _judge_outputs,
    _judge_picture, _judge_report, _judge_format, _judge_numbers,
)  # fmt: skip
FRAME = re.compile(r'File "([^"]*)", line (\d+),? in (\w+)')


def _signature(failure: str) -> str:
    """An exception's kind and the frames that it came through last, in our files and altogether."""
    places = FRAME.findall(failure)
    ours = [place for place in places if "/models/" in place[0] or "clip_gradcam" in place[0]]
    shown = " < ".join(f"{name} ({Path(path).name}:{line})" for path, line, name in [*places[-1:], *ours[:-4:-1]])
    last = re.findall(r"^[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*", failure, re.MULTILINE)
    return f"{last[-1][:100] if last else failure.strip().splitlines()[-1][:100]} | {shown}"


def _frames(stderr: str) -> str:
    frames = [(path, line, name) for path, line, name in FRAME.findall(stderr) if "fuzz" not in path]
    return " < ".join(f"{name} ({Path(path).name}:{line})" for path, line, name in frames[:5])


def _first_line(text: str) -> str:
    return re.sub(r"\d+", "N", text.splitlines()[0])[:100] if text else ""


# -- many inputs ---------------------------------------------------------------------------------


class Running(NamedTuple):
    """A process at work on an input."""

    case: Case
    process: int
    handle: int  # a pidfd: readable when the process has ended
    folder: Path
    ends: float  # when its time is over
    used: float = 0.0  # seconds of a core, when that was last looked at


def start(case: Case, folder: Path, make: Callable, main: Callable, limits: Limits) -> Running:
    prepare(folder)
    for suffix in ("report", "stdout", "stderr"):
        Path(f"{folder}.{suffix}").unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        try:
            work(case, folder, make, main, limits)
        finally:
            os._exit(0)
    return Running(case, process, os.pidfd_open(process), folder, time.monotonic() + limits.seconds)


def has_waited_for_a_core(running: dict[int, Running], handle: int, limits: Limits) -> bool:
    """Whether a process has worked less than it may because others were at work: then it gets more time."""
    one = running[handle]
    fields = _read(f"/proc/{one.process}/stat").rpartition(")")[2].split()
    used = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
    if used >= limits.seconds or used - one.used < limits.seconds / 20:
        return False
    running[handle] = one._replace(used=used, ends=time.monotonic() + limits.seconds)
    return True


def finish(running: Running, killed: bool, limits: Limits) -> Verdict:
    """The verdict on a process that has ended, or whose time is over."""
    if killed:
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process, signal.SIGUSR1)  # says where it is
            select.select([running.handle], [], [], 0.5)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(running.process, signal.SIGKILL)  # with what it may have started
    _, status, usage = os.wait4(running.process, 0)
    os.close(running.handle)
    lines = _read(f"{running.folder}.report").splitlines()
    made, ran = (json.loads(line) for line in [*lines, "{}", "{}"][:2])
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) and not killed and not ran else 0
    stderr = _read(f"{running.folder}.stderr")
    peak = usage.ru_maxrss * 1024 - made.get("resident", 0)
    ending = Ending(ended_by, killed, peak, stderr, made, ran, running.folder)
    try:
        return judge(running.case, ending, limits)
    except Exception as error:  # what a run leaves may be anything: one input must not end all
        return Verdict("fuzzer", f"the judge: {error!r}", stderr=traceback.format_exc())


def _read(path) -> str:
    """The text of a regular file, "" where there is something else or nothing: a pipe would never end."""
    path = Path(path)
    return path.read_bytes().decode("utf-8", "backslashreplace") if path.is_file() else ""


def run_cases(
    cases: Iterable[Case], output: Path, make: Callable, main: Callable, workers: int = 1, limits: Limits = LIMITS
) -> Iterator[tuple[Case, Verdict]]:
    """Each input's verdict, as they finish; `make(kind)` gives its maker, `main` is what is tried."""
    cases, running = iter(cases), {}
    free = [output / "work" / str(number) for number in range(workers)]
    while True:
        while free and (case := next(cases, None)):
            one = start(case, free.pop(), make(case.kind), main, limits)
            running[one.handle] = one
        if not running:
            return
        patience = min(one.ends for one in running.values()) - time.monotonic()
        ended, _, _ = select.select(list(running), [], [], max(0, patience))
        overdue = [handle for handle, one in running.items() if handle not in ended and one.ends <= time.monotonic()]
        late = [handle for handle in overdue if not has_waited_for_a_core(running, handle, limits)]
        for handle in [*ended, *late]:
            one = running.pop(handle)
            verdict = finish(one, handle in late, limits)
            if verdict.outcome not in GOOD:
                keep_failure(one.case, verdict, output, make)
            free.append(one.folder)
            yield one.case, verdict


def keep_failure(case: Case, verdict: Verdict, output: Path, make: Callable) -> None:
    """A folder with the input as it was made, and what came of it."""
    folder = output / "failures" / case.name
    prepare(folder)
    process = os.fork()
    if process == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.chdir(folder)
            make(case.kind)(case.random())
        finally:
            os._exit(0)
    os.waitpid(process, 0)
    script = Path(__file__).resolve().parent.parent / "clip_gradcam_visualization.py"
    content = {"again": f"python tests/fuzz.py --only {case.kind}/{case.index} --seed {case.seed}", **verdict._asdict()}
    content["command"] = f"cd {folder} && XDG_CACHE_HOME=$PWD/cache python {script} {shlex.join(verdict.argv)}"
    (folder / "failure.json").write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8", "backslashreplace")


# -- journal and report --------------------------------------------------------------------------


class Journal:
    """A line per finished input, under a line that says what they belong to."""

    def __init__(self, path: Path, seed: int, resume: bool):
        self.path, self.rows = path, []
        if resume and path.is_file():
            first, *lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
            if json.loads(first)["seed"] != seed:
                raise SystemExit(f"{path} is of seed {json.loads(first)['seed']}")
            self.rows = [json.loads(line) for line in lines]
        content = "".join(json.dumps(row) + "\n" for row in [{"seed": seed}, *self.rows])
        path.write_text(content, encoding="utf-8")  # without a line that was cut off
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (open as long as we are)

    @property
    def finished(self) -> set[tuple[str, int]]:
        return {(row["kind"], row["index"]) for row in self.rows}

    def add(self, case: Case, verdict: Verdict) -> None:
        row = {"kind": case.kind, "index": case.index, "outcome": verdict.outcome, "detail": verdict.detail}
        row |= {"seconds": verdict.seconds, "megabytes": verdict.megabytes}
        self.rows.append(row)
        self.file.write(json.dumps(row) + "\n")


def report(rows: list[dict]) -> list[str]:
    """The table of counts, and each failure that is not like another, with how often and one input."""
    counts, failures = collections.Counter(), collections.defaultdict(list)
    for row in rows:
        counts[row["kind"], row["outcome"]] += 1
        if row["outcome"] not in GOOD:
            failures[row["outcome"], row["detail"]].append(f"{row['kind']}/{row['index']}")
    shown = [outcome for outcome in OUTCOMES if outcome in GOOD or any((kind, outcome) in counts for kind, _ in counts)]
    lines = [f"| kind | {' | '.join(shown)} | most seconds | most MB |", "| --- " * (len(shown) + 3) + "|"]
    for kind in sorted({kind for kind, _ in counts}):
        own = [row for row in rows if row["kind"] == kind]
        most = f"{max(row['seconds'] for row in own):.1f} | {max(row['megabytes'] for row in own)}"
        lines.append(f"| {kind} | {' | '.join(str(counts[kind, outcome]) for outcome in shown)} | {most} |")
    for (outcome, detail), names in sorted(failures.items(), key=lambda item: (item[0][0], -len(item[1]))):
        kinds = ", ".join(
            f"{kind} {n}" for kind, n in collections.Counter(name.split("/")[0] for name in names).items()
        )
        lines.append(f"{outcome}: {len(names)} ({kinds}), for example {names[0]}: {detail}")
    failed = sum(row["outcome"] not in GOOD for row in rows)
    return [*lines, f"{len(rows)} inputs, {failed} failed in {len(failures)} ways"]


def cases_of(kinds: list[str], count: int, seed: int) -> Iterator[Case]:
    """`count` inputs over the kinds in turn."""
    return (Case(kinds[number % len(kinds)], number // len(kinds), seed) for number in range(count))


def load(output: Path):
    """The makers and the real `main`, everything imported and warm; writes `valid` where it is not there yet."""
    tests = Path(__file__).resolve().parent
    sys.path[:0] = [str(tests.parent), str(tests / "loading")]
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.pop("HF_HUB_OFFLINE", None)  # what would go out must try to
    os.environ["HF_HOME"] = str(output / "valid" / "hub")
    os.environ["MPLCONFIGDIR"] = str(output / "valid" / "matplotlib")
    import torch

    torch.set_num_threads(1)
    from fuzzing import kinds, valid

    if not (output / "valid" / "expected.png").is_file():
        shutil.rmtree(output / "valid", ignore_errors=True)
        valid.write_valid(output / "valid")
    valid.warm_up(output / "valid")
    return kinds.KINDS, valid.script.main


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds of inputs (default: all)")
    parser.add_argument("--count", type=int, default=20_000, help="inputs over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="inputs at a time")
    parser.add_argument("--resume", action="store_true", help="leave out what the journal holds")
    parser.add_argument("--only", metavar="KIND/INDEX", help="one input again")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "clip_gradcam_fuzz")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    kinds, script_main = load(output)
    chosen = arguments.kinds or list(kinds)
    if set(chosen) - set(kinds):
        parser.error(f"kinds are {', '.join(kinds)}")
    if arguments.only:
        kind, _, index = arguments.only.partition("/")
        ((_, verdict),) = run_cases([Case(kind, int(index), arguments.seed)], output, kinds.get, script_main)
        print(json.dumps(verdict._asdict() | {"stderr": None}, indent=1), verdict.stderr, sep="\n")
        return int(verdict.outcome not in GOOD)
    journal = Journal(output / "journal.jsonl", arguments.seed, arguments.resume)
    done, start_time = journal.finished, time.monotonic()
    cases = (case for case in cases_of(chosen, arguments.count, arguments.seed) if case[:2] not in done)
    before = tree(output / "valid")
    for number, (case, verdict) in enumerate(run_cases(cases, output, kinds.get, script_main, arguments.workers), 1):
        journal.add(case, verdict)
        if number % 500 == 0:
            print(
                f"{number} inputs, {number / (time.monotonic() - start_time):.1f} a second", file=sys.stderr, flush=True
            )
    print(*report(journal.rows), sep="\n")
    usage, count = resource.getrusage(resource.RUSAGE_CHILDREN), max(1, len(journal.rows) - len(done))
    print(f"{(usage.ru_utime + usage.ru_stime) / count:.2f} seconds of a core an input")
    if tree(output / "valid") != before:
        print("outside: the valid files were changed")
        return 1
    return int(any(row["outcome"] not in GOOD for row in journal.rows))


if __name__ == "__main__":
    raise SystemExit(main())
