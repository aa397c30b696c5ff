"""What the results of each image of a list are called, so that none of them meets another."""

import hashlib
import itertools
import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import InputWarning

RESULT_PREFIX = "clip_gradcam_"


class ImageFile(NamedTuple):
    path: str  # as the user gave it, or below what the user gave
    name: str  # of its results: relative to the output folder, folders parted by "/", without a suffix


# What ends the names of an image's results beside the figure's own: <name>_overlay_2, <name>_heatmap_layer,
# <name>_panel_a, ... What follows the first two is a text's index, "layer", "default", or the name of a method,
# whichever there are. Each part of such a name begins with a letter, so that a name which ends in a number of its own
# (`-2`) is never a result's.
_RESULT_ENDING = re.compile(
    r"_(?:panel_[a-z]{1,3}|(overlay|heatmap)(_\d+|_(?!overlay|heatmap|panel)[a-z][a-z0-9+]*(-[a-z][a-z0-9+]*)*)*)$"
)
LONGEST_NAME = 200  # bytes: file systems take 255, endings and suffixes of results need theirs


def file_name(image) -> str | None:
    """The name of an image's file, without its folders; None where it is no path."""
    return os.path.basename(os.fsdecode(image)) if isinstance(image, (str, os.PathLike)) else None


def common_parent(folders: Iterable[str], flavour=os.path) -> str:
    """The deepest folder that holds all absolute ones; "" where they are on several Windows drives."""
    try:
        return flavour.commonpath(list(folders))
    except ValueError:
        return ""


def place_below(path: str, root: str, flavour=os.path) -> str:
    """An absolute folder relative to the root, "" for the root itself, parted by "/"; a drive is its first folder."""
    if root:
        relative = flavour.relpath(path, root)
    else:
        drive, rest = flavour.splitdrive(path)
        relative = drive.replace(":", "") + rest
    return "/".join(part for part in relative.split(flavour.sep) if part not in ("", "."))


def name_results(folders: Iterable[tuple[str, Iterable[str]]], root: str) -> list[ImageFile]:
    """The images in order, each with the name of its results. `folders`: (folder, names of files) pairs."""
    neighbours = defaultdict(list)  # folded place -> folders whose results meet where case does not count
    for path, names in folders:
        place = place_below(os.path.abspath(path), root)
        neighbours[_fold(place)].append((place, "" if path == "." else path.removeprefix("." + os.sep), names))
    images = []  # ((place, name) as one string that sorts by parts, image)
    while neighbours:
        _, meeting = neighbours.popitem()
        files = sorted((place, name, path) for place, path, names in meeting for name in names)
        for (place, name, path), stem in zip(files, _result_stems([name for _, name, _ in files])):
            result = f"{place}/{RESULT_PREFIX}{stem}" if place else RESULT_PREFIX + stem
            key = f"{place}/{name}" if place else name
            images.append((key.replace("/", "\0"), ImageFile(os.path.join(path, name), result)))
    images.sort()
    _warn_of_results(images)
    return [image for _, image in images]


def _warn_of_results(images: Sequence[tuple[str, ImageFile]]) -> None:
    """Earlier results outside of the output folder are taken as images; they hardly are."""
    results = [image.path for _, image in images if os.path.basename(image.path).startswith(RESULT_PREFIX)]
    if results:
        message = "{} 张图像的名字以 {} 开头，例如 {}；仍作为图像处理，如果是以前的结果，请移走"
        warnings.warn(InputWarning(message, len(results), RESULT_PREFIX, results[0]), stacklevel=4)


def _result_stems(names: Sequence[str]) -> list[str]:
    """What the results of the files of one folder are called: their stems, where those keep out of each other's way.

    `001.jpg` beside `001.png`, `001_overlay.png` or `001.JPG` would share a file: all of them keep their suffix, and
    where that is not enough, one after the other takes a number (`-2`: no result ends so). Upper and lower case count
    as one, and so do the ways of composing a letter, since file systems may take them so.
    """
    stems = [os.path.splitext(name)[0] for name in names]
    keys = [_fold(stem) for stem in stems]
    counts = Counter(keys)
    met = {base for base in map(_result_base, counts) if base in counts}
    clear = [counts[key] == 1 and key not in met and _result_base(key) not in counts for key in keys]
    taken = {key for key, is_clear in zip(keys, clear) if is_clear}
    bases = {_result_base(key) for key in taken}
    for index, name in enumerate(names):
        if clear[index]:
            continue
        for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
            key = _fold(candidate)
            if key not in taken and key not in bases and _result_base(key) not in taken:
                break
        stems[index] = candidate
        taken.add(key)
        bases.add(_result_base(key))
    return [_shorten(stem) for stem in stems]


def _fold(name: str) -> str:
    """What two names have in common that some file system takes as one."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _result_base(key: str) -> str | None:
    """The name whose result a name would be, None for most."""
    ending = _RESULT_ENDING.search(key)
    return key[: ending.start()] if ending else None


def _shorten(stem: str) -> str:
    """A stem that leaves room for the results' endings: cut at a character, and told apart by a hash."""
    data, room = stem.encode("utf-8", "surrogatepass"), LONGEST_NAME - len(RESULT_PREFIX)
    if len(data) <= room:
        return stem
    digest = hashlib.sha256(data).hexdigest()[:12]
    start = stem[:room]
    while len(start.encode("utf-8", "surrogatepass")) > room - len(digest) - 1:
        start = start[:-1]
    return f"{start}_{digest}"
