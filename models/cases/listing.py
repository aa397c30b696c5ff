"""The list of cases: which images, what is true of each, and where experts drew it.

    read_cases("cases.csv", names) -> CaseList

    image,label,annotation,patient,split
    a.png,松动,a.json,P1,test

Nothing of an image is read here: a list of 100,000 takes a second or two.
"""

import contextlib
import os
import re
import stat
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePath
from typing import NamedTuple

from ..errors import InputError, shortened
from ..images.reading import DICOM_SUFFIXES
from ..messages import Joined, Message
from .matching import ends_with, parts_of
from .tables import COLUMNS, read_table
from .texts import TextLookup, quoted

PROBLEMS_SHOWN = 5
BESIDE = "。图像不在列表旁边时，请用 --image-path 给出它们的文件夹"
NO_COLUMN = {
    "label": "列表 {} 没有 label（标签）列，请加上这一列",
    "split": "列表 {} 没有 split（划分）列，请加上这一列",
}
_SEPARATOR = re.compile("[;；]")


class Case(NamedTuple):
    """A row of the list."""

    path: str  # of the image: what can be opened
    image: str  # as the list has it
    id: str  # the list's own, else the path relative to the list's folder, parted by "/"
    line: int  # of the list, from 1
    labels: list[int]  # indices of the texts that are true of the image
    annotations: list[str]  # paths that can be opened
    patient: str | None
    split: str | None
    others: tuple[str, ...]  # the cells of CaseList.columns


class CaseList(NamedTuple):
    cases: list[Case]
    columns: tuple[str, ...]  # the list's other columns, as they are written
    own: dict[str, str]  # {one of COLUMNS that the list has: how it is written there}


def read_cases(
    path: str | os.PathLike,
    names: Sequence[str],
    image_folders: Sequence[str] = (),
    split: Sequence[str] | None = None,
    needs_labels: bool = False,
) -> CaseList:
    """Read a list: a CSV (comma, tab or semicolon; UTF-8, UTF-16 with BOM, GB18030), or a text file with a path a line.

    `names`: short names of the texts, which labels mean. Paths are looked for from the list's folder, then from
    `image_folders`, an image's at last anywhere below these. `split`: only cases of these splits are kept, and no other
    row is looked at. `needs_labels`: a case without one is an error. Columns without a name are passed over.

    Raises InputError where the list cannot be used, naming the first rows that are wrong by their lines.
    """
    path = os.fspath(path)
    table = read_table(path)
    reader = _RowReader(path, table.header, names, image_folders, needs_labels)
    for column, is_needed in {"label": needs_labels, "split": split is not None}.items():
        if is_needed and column not in table.header:
            raise InputError(NO_COLUMN[column], path)
    rows = table.rows if split is None else _rows_of_splits(path, table, split)
    cases, problems = [], []
    for line, cells in rows:
        try:
            cases.append(reader.read(line, cells))
        except InputError as problem:
            problems.append(Message("第 {} 行：{}", line, shortened(str(problem), 300)))
            reader.gives_hints = len(problems) < PROBLEMS_SHOWN
    if problems:
        more = Message("；另有 {} 处", len(problems) - PROBLEMS_SHOWN) if len(problems) > PROBLEMS_SHOWN else ""
        hint = Message(BESIDE) if reader.has_missing and not image_folders else ""
        raise InputError(
            "列表 {} 有 {} 处错误：{}{}{}", path, len(problems), Joined("；", problems[:PROBLEMS_SHOWN]), more, hint
        )
    own = {column: table.written[place] for column, place in reader.places.items()}
    return CaseList(cases, tuple(table.header[place] for place in reader.others), own)


def _rows_of_splits(path, table, split):
    """The rows of these splits; InputError, with the splits there are, where one of them has none."""
    place = table.header.index("split")
    splits = [cells[place].strip() if place < len(cells) else "" for _, cells in table.rows]
    present = dict.fromkeys(filter(None, splits))
    for name in split:
        if name not in present:
            shown = Joined("、", (shortened(name, 40) for name in [*present][:20])) or Message("没有填写")
            raise InputError("列表 {} 的 split 列中没有 {}，有的是：{}", path, shortened(name, 40), shown)
    return [row for row, name in zip(table.rows, splits) if name in split]


class _RowReader:
    """Makes cases of rows, and remembers images and ids: none may come twice."""

    def __init__(self, path, header, names, image_folders, needs_labels):
        folder = str(PurePath(os.path.dirname(path)))
        self.folder = "" if folder == "." else folder
        self.folders = [self.folder, *map(os.fspath, image_folders)]
        self.texts = TextLookup(names)
        self.needs_labels = needs_labels
        self.gives_hints = True  # searching for the closest of many names takes milliseconds
        self.width = len(header)
        self.places = {column: header.index(column) for column in COLUMNS if column in header}
        self.others = [place for place, name in enumerate(header) if name and name not in COLUMNS]
        self.lines: dict[tuple[str, str], int] = {}  # (problem, value) -> line
        self.has_missing = False  # images

    def read(self, line: int, cells: list[str]) -> Case:
        """The case of a row; InputError for the first thing that is wrong with it."""
        cells = [cell.strip() for cell in cells]
        if any(cells[self.width :]):
            raise InputError("有 {} 格，表头只有 {} 列；含分隔符的内容请加引号", len(cells), self.width)
        cells += [""] * (self.width - len(cells))
        own = {column: cells[place] for column, place in self.places.items()}
        image = own["image"]
        if not image:
            raise InputError("图像的路径是空的")
        path, mode = self.resolve(image)
        if mode is None:
            path = self.find_below(image)
            mode = _mode(path)
        if stat.S_ISDIR(mode):
            raise InputError("图像 {} 是文件夹，请每行一张图像", image)
        self.check_new("图像 {} 与第 {} 行相同", os.path.normcase(os.path.abspath(path)), line, image)
        name = own["id"] if "id" in own else self.place(path, image)
        if not name:
            raise InputError("编号是空的")
        self.check_new("编号 {} 与第 {} 行相同", name, line, name)
        labels = self.read_labels(own.get("label", ""))
        annotations = self.read_annotations(own.get("annotation", ""), labels)
        patient, split = (own.get(column) or None for column in ("patient", "split"))
        others = tuple(cells[place] for place in self.others)
        return Case(path, image, name, line, labels, annotations, patient, split, others)

    def resolve(self, written: str) -> tuple[str, int | None]:
        """(the first path at which something stands, its mode), or the path from the list's folder and None.

        A list from Windows parts folders by "\\": such a path is also looked for with "/".
        """
        if os.path.isabs(written):
            return written, _mode(written)
        ways = dict.fromkeys((written, written.replace("\\", "/")))
        for folders in (self.folders[:1], self.folders[1:]):
            paths = [_join(folder, way) for way in ways for folder in folders]
            modes = {os.path.realpath(path): (path, mode) for path in paths if (mode := _mode(path)) is not None}
            if len(modes) > 1:
                (one, _), (other, _), *_ = modes.values()
                raise InputError("{} 可能是 {} 或 {}，请写出更长的路径", written, one, other)
            if modes:
                return next(iter(modes.values()))
        return _join(self.folder, written), None

    def find_below(self, written: str) -> str:
        """The one file below the image folders whose path ends as it is written; InputError for none or several."""
        listed = parts_of(written)
        candidates = self.files_by_name.get(listed[-1] if listed else "", ())
        paths = [path for path in candidates if ends_with(parts_of(path), listed)]
        if len(paths) > 1:
            raise InputError("图像 {} 可能是 {} 或 {}，请写出更长的路径", written, paths[0], paths[1])
        if not paths:
            self.has_missing = True
            raise InputError("找不到图像 {}", written)
        return paths[0]

    @cached_property
    def files_by_name(self) -> dict[str, list[str]]:
        """The files below the image folders, each once."""
        files = defaultdict(dict)
        for folder in self.folders[1:]:
            for place, _, names in os.walk(folder):
                for name in names:
                    path = os.path.join(place, name)
                    files[name].setdefault(os.path.realpath(path), path)
        return {name: list(paths.values()) for name, paths in files.items()}

    def place(self, path: str, written: str) -> str:
        """The path relative to the list's folder, parted by "/"; an absolute one that lies elsewhere stays so."""
        place = os.path.normpath(path)
        if path == _join(self.folder, written) and not os.path.isabs(written):
            place = os.path.normpath(written)
        else:
            with contextlib.suppress(ValueError):  # another drive
                relative = os.path.relpath(path, self.folder or os.curdir)
                is_outside = relative.split(os.sep)[0] == os.pardir
                place = place if is_outside and os.path.isabs(written) else relative
        return place.replace(os.sep, "/")

    def check_new(self, problem: str, value: str, line: int, shown: str) -> None:
        first = self.lines.setdefault((problem, value), line)
        if first != line:
            raise InputError(problem, shown, first)

    def read_labels(self, cell: str) -> list[int]:
        """The indices of a cell's labels, each once; a name that holds a separator may stand alone."""
        whole = self.texts.find(cell)
        labels = [] if whole is None else [whole]
        for label in _parts(cell) if whole is None else ():
            index = self.texts.find(label)
            if index is None:
                hint = str(self.texts.hint(label)).rstrip("；; ") if self.gives_hints else ""
                raise InputError("标签 {} 不是类别文本，{}", quoted(label), hint)
            labels.append(index)
        if self.needs_labels and not labels:
            raise InputError("没有标签")
        return list(dict.fromkeys(labels))

    def read_annotations(self, cell: str, labels: list[int]) -> list[str]:
        """The paths of a cell's annotations; masks must be as many as labels, since nothing in them says of which."""
        paths, masks = [], 0
        whole = ";" in cell and self.resolve(cell)[1] is not None  # a file's name may hold a separator
        for written in [cell] if whole else _parts(cell):
            path, mode = self.resolve(written)
            if mode is None:
                raise InputError("找不到标注 {}", written)
            paths.append(path)
            masks += not (stat.S_ISDIR(mode) or path.lower().endswith((".json", *DICOM_SUFFIXES)))
        check_mask_count(masks, len(labels))
        return paths


def check_mask_count(masks: int, labels: int) -> None:
    """InputError where masks are not one per label."""
    if masks and not labels:
        raise InputError("有掩膜而没有标签：无法知道掩膜属于哪个类别；请填写标签，或用 LabelMe")
    if masks and masks != labels:
        raise InputError(
            "标签有 {} 个，掩膜有 {} 个，无法知道哪个属于哪个；请给出同样多个，用分号分开，或用 LabelMe", labels, masks
        )


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in _SEPARATOR.split(cell) if part.strip()] if cell else []


def _join(folder: str, written: str) -> str:
    return os.path.join(folder, written.removeprefix(os.path.join(os.curdir, "")))


def _mode(path: str) -> int | None:
    """The mode of what stands at a path, None where nothing does."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None
