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
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import socket
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, InputWarning, reason
from ..writing import write_files
from .settings import check_settings
from .tables import COLUMNS, csv_line, json_line

STATE_FOLDER = ".clip_gradcam"


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
            self.staging.mkdir(parents=True, exist_ok=True)
            file = open(self.state / "lock", "a+", encoding="utf-8")  # noqa: SIM115 (held open on purpose)
        except OSError as error:
            raise InputError(f"无法写入输出目录 {self.folder}：{reason(error)}") from error
        try:
            _lock_file(file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                warnings.warn(f"{self.folder} 所在的文件系统不支持文件锁，请勿同时运行两次", InputWarning, stacklevel=2)
                return file
            file.seek(0)
            holder = file.read().strip() or "另一个进程"
            file.close()
            raise InputError(
                f"输出目录 {self.folder} 正由另一次运行写入（{holder}），请等它结束或换 --output-dir"
            ) from error
        file.truncate(0)
        file.write(f"主机 {socket.gethostname()}，进程 {os.getpid()}")
        file.flush()
        return file

    # -- settings and plan --------------------------------------------------------------------

    def begin(self, settings: Mapping, images: Iterable, resume: bool) -> None:
        """Write the plan of a run. With `resume` what an earlier run finished is not to do again.

        `images`: (path, name) pairs in the order of the tables. Raises InputError where an earlier run's
        settings differ.
        """
        earlier = self._earlier_settings() if resume else None
        for leftover in self.staging.iterdir():  # of a run that was killed
            leftover.unlink(missing_ok=True)
        if earlier is None:
            self._forget()
            done = frozenset()
        else:
            check_settings(earlier, settings)
            done = self._keep_finished()
        lines = (json_line([path, name, path not in done]) for path, name in images)
        self._write_lines(self.plan_file, lines)
        self._write_lines(self.settings_file, [json.dumps(settings, ensure_ascii=False, indent=1)])

    def _earlier_settings(self) -> dict | None:
        try:
            return json.loads(self.settings_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"无法读取 {self.settings_file}：{reason(error)}；去掉 --resume 重新开始") from error

    def _forget(self) -> None:
        """Take away what an earlier run wrote of itself, the settings first: without them nothing is resumed."""
        for path in (self.settings_file, *self._parts(), *self.tables):
            path.unlink(missing_ok=True)

    def _keep_finished(self) -> set[str]:
        """Paths of the images whose line is written and whose files are all there in their size.

        Their lines go on in one part. What earlier runs said of other images is forgotten: a success whose
        files are gone must not hide that the image fails now.
        """
        done = set()

        def finished():
            for _, _, record in self._records():
                path = record["image"]
                if "error" not in record and path not in done and self._are_whole(record["files"]):
                    done.add(path)
                    yield json_line(record)

        kept = self.state / "rows-earlier.jsonl"
        self._write_lines(kept, finished())
        for part in self._parts():
            if part != kept:
                part.unlink()
        return done

    def _are_whole(self, files: Mapping[str, int]) -> bool:
        try:
            return all(os.stat(self.folder / name).st_size == size for name, size in files.items())
        except OSError:
            return False

    def plan(self) -> list[PlannedImage]:
        """The images of the run, as `begin` wrote them."""
        with open(self.plan_file, encoding="utf-8") as file:
            return [PlannedImage(*json.loads(line)) for line in file]

    def _write_lines(self, path: Path, lines: Iterable[str]) -> None:
        """Write a text file line by line, whole or not at all; what is no valid Unicode becomes a question mark."""
        write_files({path: (line.encode("utf-8", "replace") for line in lines)}, durable=True, staging=self.staging)

    # -- parts --------------------------------------------------------------------------------

    def open_part(self, rank: int):
        """The part of the tables that one process appends to."""
        return open(self.state / f"rows-{rank}.jsonl", "ab", buffering=0)  # noqa: SIM115 (the caller closes it)

    def _parts(self) -> list[Path]:
        return sorted(self.state.glob("rows-*.jsonl"))

    def _records(self) -> Iterator[tuple[Path, int, dict]]:
        """(part, offset, record) of every whole line; a line that a crash left torn is passed over."""
        for part in self._parts():
            offset = 0
            with open(part, "rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        with contextlib.suppress(ValueError):
                            yield part, offset, json.loads(line)
                    offset += len(line)

    # -- tables -------------------------------------------------------------------------------

    def join(self, names: Sequence[str]) -> Totals:
        """Write both tables from the parts, rows in the plan's order; returns what they say in sum.

        Rows stay on the disk until they are written: memory holds one small entry per image.
        """
        places: dict[str, tuple[bool, Path, int]] = {}
        for part, offset, record in self._records():
            places[record["image"]] = ("error" not in record, part, offset)
        totals = Totals(places, self.plan())
        csv_path, jsonl_path = self.tables
        header = [*COLUMNS, *(f"p{i} {name}" for i, name in enumerate(names))]
        lines = (csv_line([*map(row.get, COLUMNS), *row.get("probabilities", ())]) for row in totals.rows())
        self._write_lines(csv_path, itertools.chain(["\ufeff" + csv_line(header)], lines))
        self._write_lines(jsonl_path, (json_line(row, ensure_ascii=False) for row in totals.rows()))
        return totals


class Totals:
    """The rows of a run in the plan's order, and what is to be said of them at the end."""

    MOST_FAILURES = 20  # named at the end; the table names all

    def __init__(self, places: Mapping[str, tuple[bool, Path, int]], plan: Sequence[PlannedImage]):
        self._places = places
        self._plan = plan
        self.total = len(plan)
        self.done = sum(places.get(image.path, (False,))[0] for image in plan)
        self.failed = sum(not places.get(image.path, (True,))[0] for image in plan)
        self.failures: list[tuple[str, str]] = []  # (path, reason) of the first few
        self.warned = 0  # rows with a warning

    def rows(self) -> Iterator[dict]:
        """Every row, read back from the parts."""
        self.failures, self.warned = [], 0
        files = {part: open(part, "rb") for part in {part for _, part, _ in self._places.values()}}  # noqa: SIM115
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
        return record["rows"]


class Part:
    """A process's part of the tables: a line per image, whole or not there, from several threads."""

    def __init__(self, file):
        self._file = file
        self._lock = threading.Lock()

    def append(self, record: Mapping) -> None:
        """Write one image's line; InputError where the disk is full."""
        line = json_line(record).encode("utf-8")
        try:
            with self._lock:
                if self._file.write(line) != len(line):
                    raise OSError(28, "No space left on device")
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
