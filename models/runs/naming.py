"""What a report calls the images: as the list does, or by numbers, which a file beside it can be looked up in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath, PureWindowsPath

from ..errors import escape_unprintable
from ..messages import LANGUAGES, Message
from ..results.formats import RASTER_FORMATS
from .records import PlannedImage
from .state import KEY_HEADER
from .tables import csv_line

IN_RESULTS = Message("原因见结果表")
WARNED = Message("该图像有警告，见结果表")


_NO_ADDRESS = re.compile("[\0\ud800-\udfff]")  # what no percent-encoding has


class Naming:
    """The names that the list has. Each text of an image is as the tables show it."""

    def __init__(self, plan: Sequence[PlannedImage]):
        self.columns = [name for image in plan[:1] for name in image.columns if name not in ("id", "image")]

    def about(self, image: PlannedImage) -> dict:
        """What the page says of the image itself."""
        return {
            "id": escape_unprintable(image.columns["id"]),
            "name": escape_unprintable(PureWindowsPath(image.image).name or image.image),
            "path": escape_unprintable(image.image),
            "values": [value and escape_unprintable(value) for value in map(image.columns.get, self.columns)],
        }

    def link(self, name: str | None) -> str | None:
        """A picture's name below the output folder, as a run has written it; None where it could lead out of it."""
        name = name or ""
        place = PurePosixPath(name)
        leads_out = place.is_absolute() or ".." in place.parts or "\\" in name
        is_picture = place.suffix.lower() in RASTER_FORMATS and not _NO_ADDRESS.search(name)
        return str(place) if is_picture and not leads_out else None

    def error(self, image: PlannedImage, texts: dict) -> dict:
        """Why an image has no heatmap, {lang: text}, as it is said here."""
        return texts

    def warning(self, image: PlannedImage, texts: dict) -> dict:
        """What must be known of a heatmap, {lang: text}, as it is said here."""
        return texts


class Anonymous(Naming):
    """Numbers by the plan's order, for patients too; nothing else of the list but the splits, no file's name."""

    KEPT = ("patient", "split")

    def __init__(self, plan: Sequence[PlannedImage]):
        super().__init__(plan)
        self.columns = [name for name in self.KEPT if name in self.columns]
        patients = dict.fromkeys(image.columns.get("patient") for image in plan)
        patients.pop(None, None)
        self.numbers = dict(zip((image.path for image in plan), _numbers(len(plan), 3)))
        self.patients = dict(zip(patients, (f"P{number}" for number in _numbers(len(patients), 2))))
        self.plan = plan

    def about(self, image: PlannedImage) -> dict:
        number = self.numbers[image.path]
        values = {"patient": self.patients.get(image.columns.get("patient")), "split": image.columns.get("split")}
        shown = [value and escape_unprintable(value) for value in map(values.get, self.columns)]
        return {"id": number, "name": number, "path": None, "values": shown}

    def link(self, name: str | None) -> None:
        return None

    def error(self, image: PlannedImage, texts: dict) -> dict:
        """Most name a file, and some what stands in one."""
        return in_each_language(IN_RESULTS)

    def warning(self, image: PlannedImage, texts: dict) -> dict:
        """What is ours is kept; what may name the image, or quotes its annotations, is not."""
        split = image.columns.get("split")
        names = {*image.columns.values(), image.path, *image.annotations} - {None, split}
        names |= {PureWindowsPath(name).stem for name in names}
        telling = [*_QUOTING, *(name for name in names if len(name) >= LEAST_NAME)]
        tells = any(name.lower() in text.lower() for name in telling for text in texts.values())
        return in_each_language(WARNED) if tells else texts

    def key_lines(self) -> Iterator[str]:
        """The lines of a CSV file: which image each number is."""
        yield csv_line(KEY_HEADER)
        for image in self.plan:
            about = image.columns["id"], image.image, image.columns.get("patient")
            yield csv_line([self.numbers[image.path], *about])


LEAST_NAME = 3  # characters; a shorter id stands in numbers
_QUOTING = ("标注", "annotation", "/", "\\", "…")  # words of warnings that quote what stands in files, parts of paths


def _numbers(count: int, digits: int) -> Iterator[str]:
    """ "001", "002", ..., all of one length."""
    digits = max(digits, len(str(count)))
    return (f"{number:0{digits}d}" for number in range(1, count + 1))


def in_each_language(message: Message) -> dict:
    """{lang: text} of a message."""
    return {lang: message.in_language(lang) for lang in LANGUAGES}
