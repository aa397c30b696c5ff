"""The lines of a run's files: what one must be to count. The folder may come from anywhere, and a crash tears lines.

What is no such line is passed over: its image is done again.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

from ..errors import InputError
from ..evaluation.measures import LONGEST_PACKED
from ..inputs import finite_number
from ..writing import check_no_link_between, check_own
from .tables import COLUMNS, ENGLISH, SENTENCES, list_columns

LONGEST_LINE = 1 << 25  # bytes; of an image with 1000 texts, all of them explained: 12 MB


class PlannedImage(NamedTuple):
    """One image of a run: where it is, where its outputs go, whether it is to do, and what the list of cases says."""

    path: str
    name: str  # of its outputs, below the output folder
    pending: bool | None  # None: another shard's
    columns: dict[str, str | None]  # of its rows: "id" and "image", and what else the list of cases has
    labels: list[int] = ()  # indices of the texts that are true of it
    annotations: list[str] = ()  # paths
    case: str | None = None  # a digest of what the list says: where it is another, the image is done again

    @property
    def image(self) -> str:
        """Its path as it is shown."""
        return self.columns["image"]


def planned_image(line: bytes, texts: int) -> PlannedImage | None:
    """What a line of a plan says of one image, None where it is no such line of a run with this number of texts."""
    values = _read_json(line)
    if not isinstance(values, list) or len(values) != len(PlannedImage._fields):
        return None
    image = PlannedImage(*values)
    is_one = (
        all(isinstance(value, str) for value in (image.path, image.name))
        and isinstance(image.pending, (bool, type(None)))
        and _are_columns(image.columns)
        and are_indices(image.labels, texts)
        and isinstance(image.annotations, list)
        and all(isinstance(path, str) for path in image.annotations)
        and isinstance(image.case, (str, type(None)))
    )
    return image if is_one else None


def _are_columns(columns) -> bool:
    """Whether something is what a list of cases says of an image: texts, none of them of a column of the tables."""
    if not isinstance(columns, dict) or not all(isinstance(columns.get(name), str) for name in ("id", "image")):
        return False
    others = [name for name in columns if name not in ("id", "image")]
    return list(list_columns(others).values()) == others and all(
        isinstance(value, (str, type(None))) for value in columns.values()
    )


def are_indices(values, texts: int) -> bool:
    """Whether something is a list of indices of texts."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < texts for value in values)


def whole_lines(file) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines of a file; a longer one than any of ours ends it, and so does a torn one."""
    offset = 0
    while (line := file.readline(LONGEST_LINE)).endswith(b"\n"):
        yield offset, line
        offset += len(line)


def record_of(line: bytes, texts: int) -> dict | None:
    """What a line says of one image: {"image": path, "files": {name: size}, "rows": [...]}, and "error" if it failed.

    An image of a list of cases has "case" (as the plan has it), "labels" (indices) and "coverages" ({index: packed})
    too. None where it is no such line of a run with this number of texts.
    """
    record = _read_json(line)
    return record if _is_record(record, texts) else None


def _read_json(line: bytes):
    try:
        return json.loads(line, parse_constant=finite_number, parse_float=finite_number)
    except (ValueError, RecursionError):
        return None


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
        and ("error" not in record or isinstance(error, str))
        and isinstance(record.get("error" + ENGLISH), (str, type(None)))
        and (record.get("case") is None or all(can_be_evaluated(row, texts) for row in rows))
        and isinstance(record.get("case"), (str, type(None)))
        and are_indices(record.get("labels", []), texts)
        and _are_coverages(record.get("coverages", {}), texts)
    )


def _are_coverages(coverages, texts: int) -> bool:
    return isinstance(coverages, dict) and all(
        _INDEX.fullmatch(index) and int(index) < texts and isinstance(packed, str) and len(packed) <= LONGEST_PACKED
        for index, packed in coverages.items()
    )


def _is_row(row, image: str, texts: int) -> bool:
    """Whether something is a row of the tables: texts and numbers in their columns, a probability for each text."""
    if not isinstance(row, dict) or row.get("image") != image:
        return False
    columns = {name: value for name, value in row.items() if name not in ("probabilities", "words")}
    probabilities = row.get("probabilities", [None] * texts)
    return (
        all(name in _COLUMNS and _is_value(value, name in _TEXTS) for name, value in columns.items())
        and isinstance(probabilities, list)
        and len(probabilities) == texts
        and all(_is_value(value) for value in probabilities)
        and _are_words(row.get("words"))
        and (row.get("annotated") is None or are_indices([row["annotated"]], texts))
    )


def _are_words(values) -> bool:
    """Whether something is what a row says of its text's words: [word, number] each, or of several descriptions lists.

    None where it says nothing.
    """
    if values is None:
        return True
    if not isinstance(values, list):
        return False
    is_of_several = all(isinstance(part, list) and all(isinstance(word, list) for word in part) for part in values)
    return all(map(_is_word, itertools.chain.from_iterable(values) if is_of_several else values))


def _is_word(word) -> bool:
    return isinstance(word, list) and len(word) == 2 and isinstance(word[0], str) and _is_value(word[1])


def _is_value(value, is_text: bool = False) -> bool:
    """Whether a value is a text, or a number that sums of many can hold; None is both."""
    if value is None or is_text:
        return value is None or isinstance(value, str)
    return isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER


def can_be_evaluated(row: Mapping, texts: int) -> bool:
    """Whether a row of an image of a list has what the evaluation reads; one of a failure is left out there."""
    return row.get("error") is not None or (
        all(row.get(name) is not None for name in ("predicted", "method", "setting", "probabilities"))
        and are_indices([row.get("target_text_idx")], texts)
        and (row.get("annotated") is None or "distance" in row)
    )


_INDEX = re.compile("[0-9]{1,9}")
LARGEST_NUMBER = 1e39  # what float32 can hold, and no less
_IN_ENGLISH = {name + ENGLISH for name in SENTENCES}
_COLUMNS = {*COLUMNS, *_IN_ENGLISH}
_TEXTS = {
    *("id", "image", "label", "predicted", "target", "case", "warning", "error", "method", "setting", "explained"),
    *_IN_ENGLISH,
    *("image_encoder", "layer", "grid", "figure", "overlay", "heatmap", "layer_heatmap", "checkpoint", "packages"),
}


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
