"""Which of many paths is an image's, although folders were moved: the one whose last parts agree."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..images.finding import IMAGE_SUFFIXES

_SEPARATORS = re.compile(r"[/\\]+")


def parts_of(path: str) -> tuple[str, ...]:
    """The parts of a path that some system wrote; what leads nowhere or upwards has none."""
    return tuple(part for part in _SEPARATORS.split(path) if part not in ("", ".", ".."))


def without_suffix(parts: Sequence[str]) -> tuple[str, ...]:
    """The last part without the suffix of an image or an annotation; names as 1.2.840.3 have none."""
    stem, suffix = os.path.splitext(parts[-1])
    return (*parts[:-1], stem if suffix.lower() in (*IMAGE_SUFFIXES, ".json") else parts[-1])


class PathIndex:
    """Items by the parts of their paths.

    An item is an image's where its whole path is the end of the image's (the longest such path counts), or else where
    it ends with the whole path that the list gives. `p2/1.png` is never `p1/1.png`, even where no other 1.png is there.
    """

    def __init__(self, items: Iterable[tuple[tuple[str, ...], object]]):
        self._items: dict[str, dict[tuple[str, ...], list]] = defaultdict(dict)
        for parts, item in items:
            self._items[parts[-1]].setdefault(parts, []).append(item)

    def find(self, path: str, image: str, ignoring_suffix: bool = False) -> list[list]:
        """The items of each path that is the image's: one list of items, none, or several where it cannot be told.

        `path`: where the image is; `image`: as the list has it.
        """
        own, listed = tuple(os.path.abspath(path).split(os.sep)), parts_of(image)
        if ignoring_suffix:
            own, listed = without_suffix(own), without_suffix(listed)
        candidates = self._items.get(own[-1], {})
        endings = [parts for parts in candidates if ends_with(own, parts)]
        if endings:
            return [candidates[max(endings, key=len)]]
        return [items for parts, items in candidates.items() if ends_with(parts, listed)]


def ends_with(parts: Sequence[str], ending: Sequence[str]) -> bool:
    """Whether the last parts of a path are those of another."""
    return tuple(parts[-len(ending) :]) == tuple(ending)
