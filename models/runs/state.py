"""What a run over many images leaves in its output folder, and how it goes on after it was cut off.

    results.csv, results.jsonl       a row per image and explained text, in the order of the images
    .clip_gradcam/settings.json      what the run was asked for; `--resume` compares
    .clip_gradcam/plan.jsonl         the images in order: [path, name of its outputs, still to do]
    .clip_gradcam/rows-<rank>.jsonl  a line per finished image, appended after its files are in place;
                                     rows-earlier.jsonl: the lines of the runs that this one resumes
    .clip_gradcam/lock               held while a run is going on
    .clip_gradcam/staging/           files on their way, until they are whole

An image counts as done when its line stands whole in a part and every file that the line names is there
with the size it had. So a run may be cut off anywhere: what is missing is done again, and the tables are
joined from the parts anew. Free of heavy imports.

The folder may be another's, or have come in an archive. What stands in the state folder is a file or folder of its own
kind, never a link or a pipe; only our own names are removed; contents that are no run's are passed over, or an error.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import socket
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, InputWarning, reason
from ..writing import check_own, is_link, open_own, write_files
from .records import LONGEST_LINE, are_whole, record_of, whole_lines
from .settings import check_settings
from .tables import COLUMNS, csv_line, json_line, with_names

STATE_FOLDER = ".clip_gradcam"
_PART = re.compile(r"rows-(\d+|earlier)\.jsonl")
_STAGED = re.compile(r"\.clip_gradcam_\w*\.tmp")


class PlannedImage(NamedTuple):
    """One image of a run: its path, where its outputs go below the output folder, and whether it is to do."""

    path: str
    name: str
    pending: bool


class RunState:
    """The output folder of a run over many images, with the run's state in it."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.state = self.folder / STATE_FOLDER
        self.settings_file = self.state / "settings.json"
        self.plan_file = self.state / "plan.jsonl"
        self.staging = self.state / "staging"
        self.tables = (self.folder / "results.csv", self.folder / "results.jsonl")

    # -- one run at a time --------------------------------------------------------------------

    def lock(self):
        """Hold the folder until the returned file is closed or the process ends; InputError if another run does."""
        try:
            self._check_own()
            self.staging.mkdir(parents=True, exist_ok=True)
            file = open_own(self.state / "lock", "r+b")
        except OSError as error:
            raise InputError(f"无法写入输出目录 {self.folder}：{reason(error)}") from error
        try:
            _lock_file(file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                warnings.warn(f"{self.folder} 所在的文件系统不支持文件锁，请勿同时运行两次", InputWarning, stacklevel=2)
                return file
            file.seek(0)
            holder = file.read(200).decode("utf-8", "replace").strip() or "另一个进程"
            file.close()
            raise InputError(
                f"输出目录 {self.folder} 正由另一次运行写入（{holder}），请等它结束或换 --output-dir"
            ) from error
        file.truncate(0)
        file.seek(0)
        file.write(f"主机 {socket.gethostname()}，进程 {os.getpid()}".encode())
        return file

    def _check_own(self) -> None:
        """InputError where something in the state folder is not what a run leaves there."""
        for folder in (self.state, self.staging):
            check_own(folder, stat.S_ISDIR)
        for path in (self.settings_file, self.plan_file, self.state / "lock", *self._parts()):
            check_own(path)
        for table in self.tables:
            if table.is_dir() and not is_link(table):
                raise InputError(f"{table} 是文件夹，结果表要写在那里：请移走它，或换 --output-dir")

    # -- settings and plan --------------------------------------------------------------------

    def begin(self, settings: Mapping, images: Iterable, resume: bool) -> None:
        """Write the plan of a run. With `resume` what an earlier run finished is not to do again.

        `images`: (path, name) pairs in the order of the tables. Raises InputError where an earlier run's
        settings differ.
        """
        earlier = self._earlier_settings() if resume else None
        for leftover in self.staging.iterdir():  # of a run that was killed
            if _STAGED.fullmatch(leftover.name) and not leftover.is_dir():
                leftover.unlink(missing_ok=True)
        if earlier is None:
            self._forget()
            done = frozenset()
        else:
            check_settings(earlier, settings)
            done = self._keep_finished(len(settings["texts"]))
        lines = (json_line([path, name, path not in done]) for path, name in images)
        self._write_lines(self.plan_file, lines)
        self._write_lines(self.settings_file, [json_line(settings, ensure_ascii=False)])

    def _earlier_settings(self) -> dict | None:
        try:
            with open_own(self.settings_file) as file:
                settings = json.loads(file.read(LONGEST_LINE))
        except FileNotFoundError:
            return None
        except InputError:
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"无法读取 {self.settings_file}：{reason(error)}；去掉 --resume 重新开始") from error
        if not isinstance(settings, dict):
            raise InputError(f"{self.settings_file} 中不是一次运行的设置；去掉 --resume 重新开始")
        return settings

    def _forget(self) -> None:
        """Take away what an earlier run wrote of itself, the settings first: without them nothing is resumed."""
        for path in (self.settings_file, *self._parts(), *self.tables):
            path.unlink(missing_ok=True)

    def _keep_finished(self, texts: int) -> set[str]:
        """Paths of the images whose line is written and whose files are all there in their size.

        Their lines go on in one part. What earlier runs said of other images is forgotten: a success whose
        files are gone must not hide that the image fails now.
        """
        done = set()

        def finished():
            for _, _, record in self._records(texts):
                path = record["image"]
                if "error" not in record and path not in done and are_whole(self.folder, record["files"]):
                    done.add(path)
                    yield json_line(record)

        kept = self.state / "rows-earlier.jsonl"
        self._write_lines(kept, finished())
        for part in self._parts():
            if part != kept:
                part.unlink()
        return done

    def plan(self) -> list[PlannedImage]:
        """The images of the run, as `begin` wrote them."""
        with open_own(self.plan_file) as file:
            return [PlannedImage(*json.loads(line)) for line in file]

    def _write_lines(self, path: Path, lines: Iterable[str]) -> None:
        """Write a text file line by line, whole or not at all."""
        write_files({path: (line.encode("utf-8") for line in lines)}, durable=True, staging=self.staging)

    # -- parts --------------------------------------------------------------------------------

    def open_part(self, rank: int):
        """The part of the tables that one process appends to."""
        try:
            return open_own(self.state / f"rows-{rank}.jsonl", "ab")
        except OSError as error:
            raise InputError(f"无法写入输出目录 {self.folder}：{reason(error)}") from error

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.state.glob("rows-*.jsonl") if _PART.fullmatch(path.name))

    def _records(self, texts: int) -> Iterator[tuple[Path, int, dict]]:
        """(part, offset, record) of every whole line that is a record of a run with this number of texts."""
        for part in self._parts():
            with open_own(part) as file:
                for offset, line in whole_lines(file):
                    record = record_of(line, texts)
                    if record is not None:
                        yield part, offset, record

    # -- tables -------------------------------------------------------------------------------

    def join(self, names: Sequence[str]) -> Totals:
        """Write both tables from the parts, rows in the plan's order; returns what they say in sum.

        Rows stay on the disk until they are written: memory holds one small entry per image.
        """
        places: dict[str, tuple[bool, Path, int]] = {}
        for part, offset, record in self._records(len(names)):
            places[record["image"]] = ("error" not in record, part, offset)
        totals = Totals(places, self.plan(), names)
        csv_path, jsonl_path = self.tables
        header = [*COLUMNS, *(f"p{i} {name}" for i, name in enumerate(names))]
        lines = (csv_line([*map(row.get, COLUMNS), *row.get("probabilities", ())]) for row in totals.rows())
        self._write_lines(csv_path, itertools.chain(["\ufeff" + csv_line(header)], lines))
        self._write_lines(jsonl_path, (json_line(row, ensure_ascii=False) for row in totals.rows()))
        return totals


class Totals:
    """The rows of a run in the plan's order, and what is to be said of them at the end."""

    MOST_FAILURES = 20  # named at the end; the table names all

    def __init__(
        self, places: Mapping[str, tuple[bool, Path, int]], plan: Sequence[PlannedImage], names: Sequence[str]
    ):
        self._places = places
        self._names = names
        self._plan = plan
        self.total = len(plan)
        self.done = sum(places.get(image.path, (False,))[0] for image in plan)
        self.failed = sum(not places.get(image.path, (True,))[0] for image in plan)
        self.failures: list[tuple[str, str]] = []  # (path, reason) of the first few
        self.warned = 0  # rows with a warning

    def rows(self) -> Iterator[dict]:
        """Every row, read back from the parts."""
        self.failures, self.warned = [], 0
        files = {part: open_own(part) for part in {part for _, part, _ in self._places.values()}}
        try:
            for image in self._plan:
                if image.path in self._places:
                    _, part, offset = self._places[image.path]
                    files[part].seek(offset)
                    yield from self._rows_of(json.loads(files[part].readline()))
        finally:
            for file in files.values():
                file.close()

    def _rows_of(self, record: Mapping) -> list[dict]:
        if "error" in record and len(self.failures) < self.MOST_FAILURES:
            self.failures.append((record["image"], record["error"]))
        self.warned += sum(bool(row.get("warning")) for row in record["rows"])
        return [with_names(row, self._names) for row in record["rows"]]


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
            raise InputError(f"无法写入结果表 {self._file.name}：{reason(error)}") from error


def _lock_file(file) -> None:
    """An exclusive lock that ends with the process and that its child processes do not inherit."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(1 << 20)  # beyond the text, which others may read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
