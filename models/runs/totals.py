"""The records of a run put together in the plan's order, and what is to be said of them at the end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..explain.methods import METHODS
from ..messages import LANGUAGES, current_language
from ..results.result import TEXT_FREE
from ..writing import open_own
from .records import PlannedImage
from .tables import in_order, row_in_language, sentence_in, shown_row, table_columns


class Place(NamedTuple):
    """Where the record of an image stands."""

    succeeded: bool
    part: Path
    offset: int


class ClassTotals:
    """Of the images that are predicted as one class."""

    def __init__(self):
        self.images = self.warned = 0
        self._sums = {"probability": [], "text_specificity": []}

    def add(self, row: Mapping, probability: float | None) -> None:
        """One more image, by its first row; the probability of the class."""
        self.images += 1
        self.warned += is_warned(row)
        for name, value in (("probability", probability), ("text_specificity", row.get("text_specificity"))):
            if value is not None:
                self._sums[name].append(value)

    def mean(self, name: str) -> float | None:
        """Of "probability" or "text_specificity" over the images that have one."""
        values = self._sums[name]
        return math.fsum(values) / len(values) if values else None


class Totals:
    """The records of a run in the plan's order, and what they say in sum."""

    MOST_FAILURES = 20  # named at the end; the table names all

    def __init__(self, places: Mapping[str, Place], plan: Sequence[PlannedImage], names: Sequence[str]):
        self._places, self.names = places, names
        self.plan = [image for image in plan if image.pending is not None]
        self.total = len(self.plan)
        self.done = sum(places[image.path].succeeded for image in self.plan if image.path in places)
        self.failed = sum(not places[image.path].succeeded for image in self.plan if image.path in places)
        self.failures: list[tuple[str, str]] = []  # (path, reason) of the first few
        self.warned = 0  # rows with a warning
        self.classes: dict[str, ClassTotals] = {}  # by predicted class
        self._count()

    def _count(self) -> None:
        """Go through the records once."""
        index_of = {name: index for index, name in reversed(list(enumerate(self.names)))}
        for image, record in self.records():
            if "error" in record:
                if len(self.failures) < self.MOST_FAILURES:
                    self.failures.append((image.image, sentence_in(record, "error", current_language())))
                continue
            self.warned += sum(map(is_warned, record["rows"]))
            row = record["rows"][0]
            probabilities, index = row.get("probabilities"), index_of.get(row.get("predicted"))
            if probabilities and index is not None:
                self.classes.setdefault(row["predicted"], ClassTotals()).add(row, probabilities[index])

    @property
    def has_list(self) -> bool:
        """Whether the images are those of a list of cases."""
        return bool(self.plan) and self.plan[0].case is not None

    @property
    def columns(self) -> list[str]:
        """The tables' columns but for the probabilities."""
        carried = [name for name in self.plan[0].columns if name not in ("id", "image")] if self.has_list else None
        return table_columns(carried)

    def records(self) -> Iterator[tuple[PlannedImage, dict]]:
        """Every image with its record, read back from the parts: memory holds one at a time."""
        files = {part: open_own(part) for part in {place.part for place in self._places.values()}}
        try:
            for image in self.plan:
                if image.path in self._places:
                    _, part, offset = self._places[image.path]
                    files[part].seek(offset)
                    yield image, json.loads(files[part].readline())
        finally:
            for file in files.values():
                file.close()

    def rows(self, tolerance: float, lang: str = LANGUAGES[0]) -> Iterator[dict]:
        """Every row as it stands in the tables of one of LANGUAGES."""
        columns = self.columns
        for image, record in self.records():
            for row in record["rows"]:
                shown = shown_row(row, image, record.get("labels", image.labels), self.names, tolerance)
                yield in_order(row_in_language(shown, lang), columns, self.names)


def is_warned(row: Mapping) -> bool:
    """Whether a row warns of more than that its method knows no text."""
    method = METHODS.get(row.get("method"))
    return bool(row.get("warning")) and not (method and row["warning"] == TEXT_FREE.format(method.label))
