"""The lines of a run's parts: what one must be to count. The folder may come from anywhere, and a crash tears lines.

What is no such line is passed over: its image is done again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from ..errors import InputError
from ..inputs import finite_number
from ..writing import check_no_link_between, check_own
from .tables import COLUMNS

LONGEST_LINE = 1 << 25  # bytes; of an image with 1000 texts, all of them explained: 12 MB


def whole_lines(file) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines of a file; a longer one than any of ours ends it, and so does a torn one."""
    offset = 0
    while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
        yield offset, line
        offset += len(line)


def record_of(line: bytes, texts: int) -> dict | None:
    """What a line says of one image: {"image": path, "files": {name: size}, "rows": [...]}, and "error" if it failed.

    None where it is no such line of a run with this number of texts.
    """
    try:
        record = json.loads(line, parse_constant=finite_number, parse_float=finite_number)
    except (ValueError, RecursionError):
        return None
    return record if _is_record(record, texts) else None


def _is_record(record, texts: int) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        return False
    rows, files, error = (record.get(key) for key in ("rows", "files", "error"))
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(_is_row(row, record["image"], texts) for row in rows)
        and isinstance(files, dict)
        and all(type(size) is int for size in files.values())
        and (bool(files) if "error" not in record else isinstance(error, str))
    )


def _is_row(row, image: str, texts: int) -> bool:
    """Whether something is a row of the tables: columns of plain values, and a probability for each text."""
    if not isinstance(row, dict) or row.get("image") != image:
        return False
    columns = {name: value for name, value in row.items() if name != "probabilities"}
    probabilities = row.get("probabilities", [None] * texts)
    return (
        all(name in _COLUMNS and isinstance(value, _PLAIN) for name, value in columns.items())
        and isinstance(probabilities, list)
        and len(probabilities) == texts
        and all(isinstance(value, _NUMBER) for value in probabilities)
    )


_COLUMNS, _NUMBER = frozenset(COLUMNS), (int, float, type(None))
_PLAIN = (str, *_NUMBER)


def are_whole(folder: Path, files: Mapping[str, int]) -> bool:
    """Whether all files of a record, names below `folder`, stand there in their size, reached through no link."""
    return all(_size_of(folder, name) == size for name, size in files.items())


def _size_of(folder: Path, name: str) -> int | None:
    """Bytes of a regular file of this name below `folder`, None where there is none."""
    place = PurePath(name)
    if place.is_absolute() or place.drive or ".." in place.parts or not place.parts:
        return None
    path = folder / place
    try:
        check_no_link_between(folder, path)
        check_own(path)
        return os.lstat(path).st_size
    except (OSError, InputError, ValueError):  # ValueError: a NUL in the name
        return None
