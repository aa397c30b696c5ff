"""A list as rows of cells: a CSV with a header, or a text file of paths."""

import csv
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import InputError, closest_hint, shortened
from ..inputs import check_regular_file
from ..messages import Joined, Message
from .files import as_text, read_within

LARGEST_LIST = 200 << 20  # bytes
MOST_ROWS, MOST_LINES = 1_000_000, 2_000_000  # that are not blank; in all
LONGEST_LINE = 1 << 20  # characters
TABLE_SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",\t;"
COLUMNS = {
    "image": ("图像", "影像", "图片", "图像路径", "路径", "文件", "文件名", "path", "file", "filename", "file_name"),
    "label": ("标签", "类别", "诊断", "分类", "标记", "labels", "class", "diagnosis"),
    "annotation": ("标注", "标注文件", "掩膜", "annotations", "mask"),
    "patient": ("患者", "病人", "患者编号", "病人编号", "患者号", "住院号", "病历号", "patient_id", "patientid"),
    "split": ("划分", "数据集", "subset"),
    "id": ("编号",),
}  # of several in one list the first counts, the others are carried
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


class Table(NamedTuple):
    """`header`: for each cell of a row one of COLUMNS or the name as written, "" for a column without one."""

    header: list[str]
    written: list[str]  # the same as the list has it
    rows: list[tuple[int, list[str]]]  # (line of the file in which the row begins, from 1; cells)


def read_table(path: str | os.PathLike) -> Table:
    """The rows of a list that are not blank, of a text file of paths with `image` as their only column.

    The delimiter is the one that parts the header. Raises InputError where the file is no list, too large, empty, in an
    encoding that is not known, has no column of images or one column twice.
    """
    check_regular_file(path, Message("无法读取列表 {}", path))
    try:
        text = as_text(read_within(path, LARGEST_LIST))
        table = _parse(text, os.path.splitext(path)[1].lower() in TABLE_SUFFIXES)
    except InputError as error:
        raise InputError("列表 {} {}", path, error) from error
    if not table.rows:
        raise InputError("列表 {} 中没有图像", path)
    return table


def _parse(text: str, is_table: bool) -> Table:
    if "\0" in text:
        raise InputError("第 {} 行含有空字符，请另存为 UTF-8 的文本", text[: text.index(chr(0))].count(chr(10)) + 1)
    if max(text.count("\n"), text.count("\r")) > MOST_LINES:
        raise InputError("超过 {} 行，请分成几个列表，并删去空行", MOST_LINES)
    names = {delimiter: _names(text, delimiter) for delimiter in DELIMITERS}
    headers = {delimiter: _header(names[delimiter]) for delimiter in DELIMITERS}
    fitting = [delimiter for delimiter in DELIMITERS if "image" in headers[delimiter]]
    if not fitting and not is_table:
        lines = ((number, [line.strip()]) for number, line in enumerate(_lines(text), 1))
        return Table(["image"], ["image"], _at_most(row for row in lines if row[1][0]))
    delimiter = max(fitting or DELIMITERS, key=lambda delimiter: len(headers[delimiter]))
    header, written = headers[delimiter], names[delimiter]
    rows = _rows(text, delimiter)
    next(rows, None)
    if header and not fitting:
        raise InputError(_no_images(header))
    _check_once(header)
    return Table(header, written, _at_most(rows))


def _names(text: str, delimiter: str) -> list[str]:
    """The cells of the first row; none where it cannot be parted so."""
    try:
        cells = next(_rows(text, delimiter), (1, []))[1]
    except InputError:
        return []
    return [cell.strip() for cell in cells]


def _header(names: list[str]) -> list[str]:
    """Names with those of COLUMNS in their places; blanks within a name do not count."""
    header, plain = list(names), ["".join(name.lower().split()) for name in names]
    for column, aliases in COLUMNS.items():
        present = next((name for name in (column, *aliases) if name in plain), None)
        header = [column if name == present else shown for name, shown in zip(plain, header)]
    return header


def _no_images(header: list[str]) -> str:
    names = Joined("、", (shortened(name, 40) for name in header[:30] if name))
    hint = closest_hint("image", [name.lower() for name in header])
    return Message("没有 image（图像）列，有的列是 {}；{}请把图像路径的一列命名为 image", names, hint)


def _check_once(header: list[str]) -> None:
    """InputError where a column stands twice; upper and lower case are one, columns without a name are none."""
    columns = set()
    for name in filter(None, header):
        if name.lower() in columns:
            raise InputError("中 {} 列出现了两次，请改名或删去一列", shortened(name, 60))
        columns.add(name.lower())


def _lines(text: str) -> Iterator[str]:
    """The lines as they stand, with their ends; InputError for one that is longer than any list's."""
    for number, match in enumerate(_LINE.finditer(text), 1):
        if match.end() - match.start() > LONGEST_LINE:
            raise InputError("第 {} 行超过 {} 个字符：这不像是图像的列表", number, LONGEST_LINE)
        yield match[0]


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line in which it begins, cells) of each row that is not blank; InputError for quotes that do not fit."""
    reader = csv.reader(_lines(text), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            if any(cell and not cell.isspace() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError("从第 {} 行起不是合法的 CSV（{}）：请检查引号是否成对，并另存为 CSV", line, error) from error


def _at_most(rows: Iterator[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    kept = []
    for row in rows:
        if len(kept) == MOST_ROWS:
            raise InputError("超过 {} 行，请分成几个列表", MOST_ROWS)
        kept.append(row)
    return kept
