"""What a run over many images leaves in its output folder, and how it goes on after it was cut off.

    results.csv, results.jsonl       a row per image and explained text, in the order of the images
    evaluation.csv, .json, .png ...  of a run over a list of cases
    report.html, report_files/       a page of all images; the folder where they are many, `report_key.csv` where the
                                     page tells no names
    .clip_gradcam/settings.json      what the run was asked for; `--resume` compares
    .clip_gradcam/plan.jsonl         the images in order, a PlannedImage each
    .clip_gradcam/rows-<rank>.jsonl  a line per finished image, appended after its files are in place;
                                     rows-earlier.jsonl: the lines of the runs that this one resumes;
                                     rows-joined.jsonl: those of its shards
    .clip_gradcam/lock               held while a run is going on
    .clip_gradcam/cards/             what the report shows of each image, of shards too
    .clip_gradcam/staging/           files on their way, until they are whole
    .clip_gradcam/shard-2-of-8/      the same of one of several runs that share the list; they have no tables until
                                     `--join` puts their lines together

An image counts as done when its line stands whole in a part and every file that the line names is there
with the size it had. So a run may be cut off anywhere: what is missing is done again, and the tables are
joined from the parts anew. Free of heavy imports.

The folder may be another's, or have come in an archive. What stands in the state folder is a file or folder of its own
kind, never a link or a pipe; only our own names are removed; contents that are no run's are passed over, or an error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import stat
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, InputWarning, reason
from ..messages import LANGUAGES, Message
from ..writing import check_own, is_link, open_own, write_files
from .records import LONGEST_LINE, PlannedImage, are_whole, planned_image, record_of, whole_lines
from .settings import Comparison, check_settings
from .sharing import Shard
from .tables import csv_line, json_line
from .totals import Place, Totals

STATE_FOLDER = ".clip_gradcam"
_SHARD = re.compile(r"shard-(\d{1,5})-of-(\d{1,5})")
HOLDER = "主机 {}，进程 {}"  # of a lock
_HOLDER = re.compile(HOLDER.format("(.*)", "(.*)"))
_PART = re.compile(r"rows-(\d+|earlier|joined)\.jsonl")
_STAGED = re.compile(r"\.clip_gradcam_\w*\.tmp")
_SIDE_FILE = re.compile(r"cards-\d{3,9}\.js")
_CARD = re.compile(r"clip_gradcam_.+\.json", re.DOTALL)
KEY_HEADER = ("number", "id", "image", "patient")
# Near the beginning of a report and of a key: others' files of these names are left alone.
_PAGE, _KEY = b'content="clip_gradcam"', csv_line(KEY_HEADER).encode()


def card_name(name: str) -> str:
    """Where the card of an image goes, below the output folder; the name of a stranger's plan may lead out of it."""
    return Path(STATE_FOLDER, "cards", f"{name}.json").as_posix()


def beside(table: Path) -> Path:
    """Where a table goes while a program holds its place."""
    return table.with_name(f"{table.stem}-new{table.suffix}")


def other_shard(shard: Shard, other: Shard, folder: Path) -> Comparison:
    """How a difference between two shards is named."""
    advice = Message("各分片的设置要相同；要用新的设置重新开始，请先删除 {}，或换 --output-dir", folder / STATE_FOLDER)
    return Comparison(Message("分片 {} 与分片 {} 不同", shard, other), Message("分片 {}", other), advice)


class RunState:
    """The output folder of a run over many images, with the run's state in it, or that of one shard."""

    def __init__(self, folder: str | os.PathLike, shard: Shard | None = None):
        self.folder, self.shard = Path(folder), shard
        self.state = self.folder / STATE_FOLDER
        if shard is not None:
            self.state /= f"shard-{shard.number}-of-{shard.count}"
        self.settings_file = self.state / "settings.json"
        self.plan_file = self.state / "plan.jsonl"
        self.staging = self.state / "staging"
        self.tables = (self.folder / "results.csv", self.folder / "results.jsonl")
        self.evaluation = tuple(self.folder / f"evaluation{end}" for end in (".csv", "_table.csv", ".json", ".png"))
        self.report, self.report_key = self.folder / "report.html", self.folder / "report_key.csv"
        self.report_files = self.folder / "report_files"
        self.cards = self.folder / STATE_FOLDER / "cards"

    def card(self, name: str) -> Path:
        """Where the card of an image goes; `name`: of its outputs."""
        return self.folder / card_name(name)

    def side_file(self, number: int) -> Path:
        """Where cards go that are not in the report's page itself, from 1."""
        return self.report_files / f"cards-{number:03d}.js"

    def shards(self) -> list[RunState]:
        """The shards that have a state in the folder, by their number."""
        state = self.folder / STATE_FOLDER
        folders = [path for path in state.iterdir() if path.is_dir() and not is_link(path)] if state.is_dir() else ()
        names = (_SHARD.fullmatch(path.name) for path in folders)
        shards = sorted(Shard(*map(int, name.groups())) for name in names if name)
        return [RunState(self.folder, shard) for shard in shards]

    # -- one run at a time --------------------------------------------------------------------

    def lock(self) -> contextlib.ExitStack:
        """Hold the folder until what is returned is closed or the process ends; InputError if another run does.

        Shards are beside each other; a run of the whole list is alone.
        """
        with contextlib.ExitStack() as stack:
            if self.shard is not None:
                stack.enter_context(RunState(self.folder)._lock(shared=True))
            stack.enter_context(self._lock())
            return stack.pop_all()

    def _lock(self, shared: bool = False):
        try:
            self._check_own()
            self.staging.mkdir(parents=True, exist_ok=True)
            file = open_own(self.state / "lock", "r+b")
        except OSError as error:
            raise InputError("无法写入输出目录 {}：{}", self.folder, reason(error)) from error
        try:
            _lock_file(file, shared)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                warnings.warn(
                    InputWarning("{} 所在的文件系统不支持文件锁，请勿同时运行两次", self.folder), stacklevel=2
                )
                return file
            file.seek(0)
            holder = _HOLDER.fullmatch(file.read(200).decode("utf-8", "replace").strip())
            file.close()
            raise InputError(
                "输出目录 {} 正由另一次运行写入（{}），请等它结束或换 --output-dir",
                self.folder,
                Message(HOLDER, *holder.groups()) if holder else Message("另一个进程"),
            ) from error
        file.truncate(0)
        if not shared:
            file.seek(0)
            file.write(HOLDER.format(socket.gethostname(), os.getpid()).encode())
        return file

    def _check_own(self) -> None:
        """InputError where something in the state folder is not what a run leaves there."""
        for folder in dict.fromkeys((self.folder / STATE_FOLDER, self.state, self.staging, self.cards)):
            check_own(folder, stat.S_ISDIR)
        for path in (self.settings_file, self.plan_file, self.state / "lock", *self._parts()):
            check_own(path)
        for table in (*self.tables, *self.evaluation, self.report):
            if table.is_dir() and not is_link(table):
                raise InputError("{} 是文件夹，结果表要写在那里：请移走它，或换 --output-dir", table)

    # -- settings and plan --------------------------------------------------------------------

    def begin(self, settings: Mapping, images: Iterable[PlannedImage], resume: bool, batch: int = 1) -> None:
        """Write the plan of a run. With `resume` what an earlier run finished is not to do again.

        `images`: in the order of the tables, all to do; of a shard those in its own chunks of `batch` images stay so.
        One kind of run counts in a folder: shards take away what a run of the whole list left, and the other way round.
        Raises InputError where an earlier run's settings differ, or those of another shard, or shards are not joined.
        """
        images = list(images)
        if self.shard is not None:
            settings = {**settings, "shards": [self.shard.count, batch]}
            self._check_other_shards(settings)
        earlier = self.read_settings() if resume else None
        if resume and earlier is None and self.begun_shards():
            raise InputError(
                "{} 中是各分片的结果：请先执行 --join --output-dir {}，再 --resume", self.folder, self.folder
            )
        for other in self.shards() if self.shard is None else [RunState(self.folder)]:
            other._forget()
        for leftover in self.staging.iterdir():  # of a run that was killed
            if _STAGED.fullmatch(leftover.name) and not leftover.is_dir():
                leftover.unlink(missing_ok=True)
        if earlier is None:
            self._forget()
            self._remove_cards()
            done = frozenset()
        else:
            check_settings(earlier, settings)
            self.remove(self.evaluation)
            self.remove_report()
            done = self._keep_finished(len(settings["texts"]), {image.path: image.case for image in images})
        pending = (None if self._is_anothers(i // batch) else image.path not in done for i, image in enumerate(images))
        self._write_plan(image._replace(pending=is_pending) for image, is_pending in zip(images, pending))
        self._write_settings(settings)

    def _is_anothers(self, chunk: int) -> bool:
        return self.shard is not None and not self.shard.holds(chunk)

    def _write_plan(self, images: Iterable[PlannedImage]) -> None:
        self._write_lines(self.plan_file, map(json_line, images))

    def _write_settings(self, settings: Mapping) -> None:
        self._write_lines(self.settings_file, [json_line(settings, ensure_ascii=False)])

    def _check_other_shards(self, settings: Mapping) -> None:
        """InputError where a shard of the folder was asked for something else: their lines would not go together."""
        for other in self.shards():
            earlier = other.read_settings() if other.shard != self.shard else None
            if earlier is not None:
                check_settings(earlier, settings, other_shard(self.shard, other.shard, self.folder))

    def read_settings(self) -> dict | None:
        try:
            with open_own(self.settings_file) as file:
                settings = json.loads(file.read(LONGEST_LINE))
        except FileNotFoundError:
            return None
        except InputError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise InputError("无法读取 {}：{}；去掉 --resume 重新开始", self.settings_file, reason(error)) from error
        if not isinstance(settings, dict):
            raise InputError("{} 中不是一次运行的设置；去掉 --resume 重新开始", self.settings_file)
        return settings

    def _forget(self) -> None:
        """Take away what an earlier run wrote of itself, the settings first: without them nothing is resumed."""
        for path in (self.settings_file, *self._parts()):
            path.unlink(missing_ok=True)
        self.remove((*self.tables, *self.evaluation))
        self.remove_report()

    def remove(self, tables: Iterable[Path]) -> None:
        """Take away what an earlier run of the whole list said; what a program holds stays: see `write_table`."""
        for table in tables if self.shard is None else ():
            for path in (table, beside(table)):
                with contextlib.suppress(PermissionError):
                    path.unlink(missing_ok=True)

    def remove_report(self, but: Collection[Path] = ()) -> None:
        """Take away what earlier reports of the whole list left; `but`: files of the one that has just been written."""
        if self.shard is not None:
            return
        ours = [path for path, mark in ((self.report, _PAGE), (self.report_key, _KEY)) if _begins_with(path, mark)]
        side_files = (path for path in _files_below(self.report_files, _SIDE_FILE) if path.parent == self.report_files)
        for path in (*ours, *side_files):
            if path not in but:
                with contextlib.suppress(PermissionError):
                    path.unlink(missing_ok=True)
        if not is_link(self.report_files):
            with contextlib.suppress(OSError):  # there is none, or others' files are in it
                self.report_files.rmdir()

    def _remove_cards(self) -> None:
        """Take away the cards of an earlier run of the whole list; shards, which may be at work, write over theirs."""
        if self.shard is None:
            for path in _files_below(self.cards, _CARD):
                path.unlink(missing_ok=True)

    def _keep_finished(self, texts: int, cases: Mapping[str, str | None]) -> set[str]:
        """Paths of the images whose line is written and whose files are all there in their size.

        `cases`: what the list of cases says of each path now; where it said something else, the image is not finished.
        The lines go on in one part. What earlier runs said of other images is forgotten: a success whose files are
        gone must not hide that the image fails now.
        """
        done = set()

        def finished():
            for _, _, record in self.records(texts):
                path = record["image"]
                is_same = path not in cases or record.get("case") == cases[path]
                if "error" not in record and path not in done and is_same and are_whole(self.folder, record["files"]):
                    done.add(path)
                    yield json_line(record)

        kept = self.state / "rows-earlier.jsonl"
        self._write_lines(kept, finished())
        self._drop_parts(but=kept.name)
        return done

    def begun_shards(self) -> list[RunState]:
        """The shards that have begun since the last run of the whole list."""
        return [shard for shard in self.shards() if shard.settings_file.exists()]

    def take_over(self, settings: Mapping, images: Sequence[PlannedImage], runs: Sequence[RunState]) -> None:
        """Make the lines of several runs over the same images this one's; a success is not hidden by a failure."""
        texts = len(settings["texts"])

        def records():
            return (record for run in runs for _, _, record in run.records(texts))

        succeeded = {record["image"] for record in records() if "error" not in record}
        lines = (json_line(record) for record in records() if "error" not in record or record["image"] not in succeeded)
        self._write_lines(self.state / "rows-joined.jsonl", lines)
        self._drop_parts(but="rows-joined.jsonl")
        self._write_plan(image._replace(pending=image.path not in succeeded) for image in images)
        self._write_settings(settings)

    def _drop_parts(self, but: str) -> None:
        for part in self._parts():
            if part.name != but:
                part.unlink()

    def plan(self, texts: int) -> list[PlannedImage]:
        """The images of the run, as `begin` wrote them; InputError where another has changed them."""
        with open_own(self.plan_file) as file:
            images = [planned_image(line, texts) for _, line in whole_lines(file)]
        if None in images:
            raise InputError("{} 中不是一次运行的计划；请去掉 --resume 重新开始", self.plan_file)
        return images

    def _write_lines(self, path: Path, lines: Iterable[str]) -> None:
        """Write a text file line by line, whole or not at all."""
        write_files({path: (line.encode("utf-8") for line in lines)}, durable=True, staging=self.staging)

    def write_table(self, path: Path, lines: Callable[[], Iterable[str]]) -> Path:
        """Write a table; where a program holds the earlier one, as Excel does, beside it. Returns its path."""
        try:
            self._write_lines(path, lines())
            return path
        except InputError as error:
            if not isinstance(error.__cause__, PermissionError):
                raise
        other = beside(path)
        self._write_lines(other, lines())
        warnings.warn(
            InputWarning(
                "{} 正被另一个程序（例如 Excel）打开，这次的表写在 {}；关闭那个程序后可以改回原名", path, other
            ),
            stacklevel=2,
        )
        return other

    # -- parts --------------------------------------------------------------------------------

    def open_part(self, rank: int):
        """The part of the tables that one process appends to."""
        try:
            return open_own(self.state / f"rows-{rank}.jsonl", "ab")
        except OSError as error:
            raise InputError("无法写入输出目录 {}：{}", self.folder, reason(error)) from error

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.state.glob("rows-*.jsonl") if _PART.fullmatch(path.name))

    def records(self, texts: int) -> Iterator[tuple[Path, int, dict]]:
        """(part, offset, record) of every whole line that is a record of a run with this number of texts."""
        for part in self._parts():
            with open_own(part) as file:
                for offset, line in whole_lines(file):
                    record = record_of(line, texts)
                    if record is not None:
                        yield part, offset, record

    # -- tables -------------------------------------------------------------------------------

    def totals(self, names: Sequence[str]) -> Totals:
        """The records of the run put together from its parts. Memory holds one small entry per image."""
        places = {}
        for part, offset, record in self.records(len(names)):
            places[record["image"]] = Place("error" not in record, part, offset)
        return Totals(places, self.plan(len(names)), names)

    def join(self, names: Sequence[str], tolerance: float, lang: str = LANGUAGES[0]) -> Totals:
        """Write both tables from the parts, in one of LANGUAGES and the plan's order; returns what they say in sum."""
        totals = self.totals(names)
        csv_path, jsonl_path = self.tables
        header = [*totals.columns, *(f"p{i} {name}" for i, name in enumerate(names))]

        def csv_lines():
            yield "\ufeff" + csv_line(header)
            for row in totals.rows(tolerance, lang):
                yield csv_line([*map(row.get, totals.columns), *row.get("probabilities", ())])

        def json_lines():
            return (json_line(row, ensure_ascii=False) for row in totals.rows(tolerance, lang))

        totals.tables = self.write_table(csv_path, csv_lines), self.write_table(jsonl_path, json_lines)
        return totals


def _begins_with(path: Path, mark: bytes) -> bool:
    """Whether a file of ours stands at `path`, by a mark in its first bytes."""
    with contextlib.suppress(OSError, InputError), open_own(path) as file:
        return mark in file.read(500)
    return False


def _files_below(folder: Path, name: re.Pattern) -> list[Path]:
    """The regular files of a name in a folder and the folders in it; nothing through links."""
    if is_link(folder) or not folder.is_dir():
        return []
    files = []
    for path, folders, names in os.walk(folder):
        folders[:] = [below for below in folders if not is_link(Path(path, below))]
        below = (Path(path, of_file) for of_file in names if name.fullmatch(of_file))
        files += [file for file in below if stat.S_ISREG(os.lstat(file).st_mode)]
    return files


class Part:
    """A process's part of the tables: a line per image, whole or not there, from several threads."""

    def __init__(self, file):
        self._file = file
        self._lock = threading.Lock()

    def append(self, record: Mapping) -> None:
        """Write one image's line; InputError where the disk is full, or the line would be longer than LONGEST_LINE."""
        line = json_line(record).encode("utf-8")
        if len(line) > LONGEST_LINE:
            raise InputError("一张图像的结果行太长，无法记录：请减少文本，或用 --target-text-idx 只解释其中一部分")
        try:
            with self._lock:
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise InputError("无法写入结果表 {}：{}", self._file.name, reason(error)) from error


def _lock_file(file, shared: bool) -> None:
    """A lock that ends with the process and that its child processes do not inherit; `shared` with others of the kind.

    Windows has no shared one: there a shard does not keep a run of the whole list away.
    """
    try:
        import fcntl
    except ImportError:
        import msvcrt

        if not shared:
            file.seek(1 << 20)  # beyond the text, which others may read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
