"""Grey levels of more than 8 bits -> 8 bits.

Such a picture does not say which level is white. Its own smallest and largest level would; but then one bright marker
darkens the radiograph, and the model sees another picture. The rule here, `auto`, counts no levels that are scattered:
those that fill fewer than `LEAST_CELLS` neighbouring cells of a range, as markers, borders, dead and hot pixels do and
no tissue does. What is left decides:

    whole levels that hold 8 bits (0..255; times 256 or 257; shifted to 10, 12 or 14 bits, or spread over these):
                                                      those 8 bits
    fractions in 0..1, or in 0..255 and beyond half:  black to white
    any other:                                        from the smallest to the largest; from 0 where no level is
                                                      negative and the smallest is within a quarter of the largest
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..messages import Message

CELLS = 128  # that a range is cut into
LEAST_CELLS = 3  # that a picture fills where it has more than scattered levels
GAP = 8  # empty cells that part two groups of levels
LEAST_SHARE, LEAST_PIXELS = 1e-3, 2  # of a picture's pixels, in a cell that is filled; 1 pixel of tiny pictures
LEAST_GROUP = 1e-2  # of a picture's pixels, in neighbouring cells: a burnt-in patch has fewer
ODD_SHARE = 2e-3  # of a picture's pixels: so many may have levels that its rule does not know, hot pixels say
BITS = tuple(range(8, 66, 2))
EDGES = (0, 1, 4, 16, 64, *(2**bits - 1 for bits in BITS))  # of the ranges in which levels are looked for
BLOCK = 1 << 17  # pixels that are turned at a time: what they need beside the picture stays in a core's cache
SAMPLE = 1 << 18  # pixels that stand for a picture where its levels are too many to be counted


class GreyRange(NamedTuple):
    """Which levels are black and white."""

    rule: str = "auto"  # or full, minmax, values, percentiles
    low: float = 0.0  # of values and percentiles
    high: float = 0.0

    def __str__(self) -> str:
        """As it is written after --grey-range."""
        mark = {"values": "", "percentiles": "p"}.get(self.rule)
        numbers = (repr(float(number)).removesuffix(".0") for number in (self.low, self.high))
        return self.rule if mark is None else " ".join(mark + number for number in numbers)


AUTO = GreyRange()
GREY_RULES = ("auto", "full", "minmax")
_ADVICE = Message("可用 auto、full、minmax、两个灰度值（例如 0 4095）或两个百分位（例如 p0.5 p99.5）")


def parse_grey_range(choice: str | Sequence | GreyRange | None) -> GreyRange:
    """`auto`, `full`, `minmax`, two levels (`0 4095`) or two percentiles (`p0.5 p99.5`), as a text or a sequence.

    Raises InputError, with what can be written, for anything else.
    """
    if choice is None or isinstance(choice, GreyRange):
        return choice or AUTO
    words = choice.split() if isinstance(choice, str) else [str(word) for word in np.atleast_1d(choice)]
    if len(words) == 1 and words[0] in GREY_RULES:
        return GreyRange(words[0])
    marked = [word.startswith("p") for word in words]
    try:
        low, high = (float(word.removeprefix("p")) for word in words)
    except ValueError:
        raise InputError("--grey-range 不能是 {!r}；{}", " ".join(words), _ADVICE) from None
    if any(marked) != all(marked) or not (np.isfinite([low, high]).all() and low < high):
        raise InputError("--grey-range 的两个数应一小一大、同为灰度值或百分位，收到 {!r}；{}", " ".join(words), _ADVICE)
    if any(marked) and not 0 <= low < high <= 100:
        raise InputError("--grey-range 的百分位在 0 到 100 之间，收到 {!r}；{}", " ".join(words), _ADVICE)
    return GreyRange("percentiles" if any(marked) else "values", low, high)


class Scale(NamedTuple):
    """8 bits of a level: (level - black) * factor + rounding, cut to 0..255 and to a whole number."""

    black: float
    factor: float
    rounding: float = 0.5

    def apply(self, levels: np.ndarray) -> np.ndarray:
        """Finite levels of any type -> uint8 of the same shape."""
        scaled = np.subtract(levels, self.black, dtype=np.float64)
        scaled *= self.factor
        scaled += self.rounding
        return np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)


def scale_between(low: float, high: float) -> Scale:
    """From black at `low` to white at `high`; one level alone is black."""
    return Scale(low, 255.0 / (high - low) if high > low else 0.0)


class Levels(NamedTuple):
    """The levels of a picture, float64 and rising, and how many pixels have each."""

    values: np.ndarray
    counts: np.ndarray

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def between(self, low: float, high: float) -> Levels:
        """Those from `low` to `high`, both included."""
        first, last = np.searchsorted(self.values, low, "left"), np.searchsorted(self.values, high, "right")
        return Levels(self.values[first:last], self.counts[first:last])

    def percentile(self, share: float) -> float:
        """The level below which `share` per cent of the pixels lie."""
        sums = np.cumsum(self.counts)
        return float(self.values[min(np.searchsorted(sums, share / 100 * sums[-1]), len(sums) - 1)])

    @property
    def extent(self) -> float:
        return float(self.values[-1] - self.values[0])

    @property
    def are_whole(self) -> bool:
        return self.values[-1] < 2**53 and not np.mod(self.values, 1).any()  # beyond, all of float64 are

    def are_near_multiples_of(self, step: float) -> bool:
        """Whether all levels but those of a few pixels are what multiples of `step` round to."""
        odd = np.abs(self.values - np.rint(self.values / step) * step) > 0.5
        return self.counts[odd].sum() <= ODD_SHARE * self.total


def grey_to_rgb(grey: np.ndarray, choice: GreyRange = AUTO, full: tuple | None = None, inverted=False) -> np.ndarray:
    """Grey levels [H, W] or [H, W, 1], or colours [H, W, 3], of any numeric type -> uint8 [H, W, 3].

    `full`: the range of what the file can hold, else the type's. `inverted`: 0 is white. Levels that are not finite are
    black. Raises InputError where none is finite.
    """
    scale = scale_of(levels_of(grey), choice, full or full_range(grey.dtype))
    if is_short(grey.dtype):
        table = scale.apply(np.arange(1 << 16).astype(np.uint16).view(_sixteen(grey.dtype)).astype(np.float64))
        return look_up(255 - table if inverted else table, grey)

    def eight_bits(part):
        finite = np.isfinite(part)
        scaled = scale.apply(np.where(finite, part, scale.black))
        return np.where(finite, 255 - scaled if inverted else scaled, 0)

    return in_blocks(eight_bits, grey)


def look_up(table: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Levels of up to 16 bits by a table [65536] or [65536, 3], negative ones after 32767 -> uint8 [H, W, 3]."""
    return in_blocks(lambda part: table[_as_indices(part)], levels)


def in_blocks(function: Callable[[np.ndarray], np.ndarray], grey: np.ndarray) -> np.ndarray:
    """A function of a picture's rows, some at a time, so that what it needs beside them is small -> uint8 [H, W, 3]."""
    rgb = np.empty((*grey.shape[:2], 3), dtype=np.uint8)
    for block in _blocks(grey):
        part = function(grey[block])
        for channel in range(3):  # a third of the time of all three at once
            rgb[block, :, channel] = part if part.ndim == 2 else part[..., channel % part.shape[2]]
    return rgb


def _blocks(grey: np.ndarray) -> Iterator[slice]:
    """Rows of a picture, about `BLOCK` values at a time."""
    step = max(1, BLOCK // max(1, grey[:1].size))
    return (slice(start, start + step) for start in range(0, len(grey), step))


def _as_indices(levels: np.ndarray) -> np.ndarray:
    """Levels of up to 16 bits -> uint16, negative ones after 32767."""
    return np.ascontiguousarray(levels, dtype=_sixteen(levels.dtype)).view(np.uint16)


def is_short(dtype) -> bool:
    """Whether a type's levels can be counted one by one."""
    return dtype.kind in "iub" and dtype.itemsize <= 2


def _sixteen(dtype) -> type:
    return np.int16 if dtype.kind == "i" else np.uint16


def full_range(dtype) -> tuple[float, float]:
    """Black and white of everything that a type holds: for floats 0 and 1."""
    if dtype.kind not in "iu":
        return 0.0, 1.0
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)


def levels_of(grey: np.ndarray) -> Levels:
    """The finite levels of a picture of any numeric type; of one of more than 16 bits a sample. InputError without."""
    if is_short(grey.dtype):
        counts = np.zeros(1 << 16, dtype=np.int64)
        for block in _blocks(grey):
            counts += np.bincount(_as_indices(grey[block]).ravel(), minlength=1 << 16)
        values = np.arange(1 << 16)
        if grey.dtype.kind == "i":
            values, counts = values - (1 << 15), np.roll(counts, 1 << 15)
        return Levels(values[counts > 0].astype(np.float64), counts[counts > 0])
    if grey.size > SAMPLE:
        places = np.random.default_rng(0).integers(0, grey.size, SAMPLE)
        ends = [end for block in _blocks(grey) for end in _ends(grey[block])]
        grey = np.concatenate([np.asarray(ends, grey.dtype), grey.reshape(-1)[places]])
    finite = grey[np.isfinite(grey)]
    if not len(finite):
        raise InputError("没有有限的像素值")
    values, counts = np.unique(finite.astype(np.float64), return_counts=True)
    return Levels(values, counts)


def _ends(block: np.ndarray) -> list:
    """The smallest and the largest finite level, none where there is none."""
    finite = block[np.isfinite(block)]
    return [finite.min(), finite.max()] if len(finite) else []


def scale_of(levels: Levels, choice: GreyRange, full: tuple[float, float]) -> Scale:
    """Black and white of a picture of more than 8 bits by a rule; `full`: of all that it could hold."""
    if choice.rule == "auto":
        return _recognised_scale(levels)
    ends = {
        "full": lambda: full,
        "minmax": lambda: levels.values[[0, -1]],
        "values": lambda: (choice.low, choice.high),
        "percentiles": lambda: (levels.percentile(choice.low), levels.percentile(choice.high)),
    }
    return scale_between(*ends[choice.rule]())


def _recognised_scale(levels: Levels) -> Scale:
    """The rule `auto`: see above."""
    negative = Levels(-levels.values[::-1], levels.counts[::-1])
    whites, whole = _filled_whites(levels), _filled_levels(levels, levels.values[0], levels.values[-1])
    is_signed = bool(_filled_whites(negative)) or whole is not None and whole.values[0] < 0
    if not whites and not is_signed:  # a few levels far apart: a mask, say
        is_signed = levels.values[0] < 0
        whites = [next((white for white in EDGES[1:] if levels.values[-1] <= white), levels.values[-1])]
    if is_signed:
        return own_range(levels)
    body = _filled_levels(levels, 0, whites[-1])
    levels = levels.between(0, body.values[-1] if body else whites[-1])
    if not levels.are_whole:
        is_share = whites[-1] == 1 or whites[-1] == 255 and levels.values[-1] > 127.5  # else per cent, say
        return scale_between(0, whites[-1]) if is_share else own_range(levels)
    least_bits = next((bits for bits in BITS if 2**bits > whites[-1]), BITS[-1])
    for bits in (8, 16, least_bits):
        if bits >= least_bits and _holds_8_bits(levels, bits):
            return Scale(0.0, 0.5 ** (bits - 8), 0.0)
    return own_range(levels, at_least=0.0)


def _holds_8_bits(levels: Levels, bits: int) -> bool:
    """Whether whole levels of so many bits are 8 bits in more: as they are, shifted up, or over the whole range."""
    steps = (2 ** (bits - 8), (2**bits - 1) / 255)
    return bits == 8 or levels.values[-1] >= steps[0] and any(levels.are_near_multiples_of(step) for step in steps)


def _filled_whites(levels: Levels) -> list[float]:
    """Of the ranges between `EDGES` those in which levels are not scattered, each by its upper end."""
    return [high for low, high in zip(EDGES, EDGES[1:]) if _filled_levels(levels, np.nextafter(low, high), high)]


def _filled_levels(levels: Levels, low: float, high: float) -> Levels | None:
    """The levels from `low` to `high`, from the first to the last that are not scattered."""
    part = levels.between(low, high)
    if len(part.values) < LEAST_CELLS:
        return None
    cells, edges = np.histogram(part.values, CELLS, (low, high), weights=part.counts)
    least = LEAST_PIXELS if levels.total >= 16 * CELLS else 1
    filled = np.flatnonzero(cells >= max(LEAST_SHARE * levels.total, least))
    groups = np.split(filled, np.flatnonzero(np.diff(filled) > GAP) + 1)
    groups = [g for g in groups if len(g) >= LEAST_CELLS and cells[g].sum() >= LEAST_GROUP * levels.total]
    return part.between(edges[groups[0][0]], edges[groups[-1][-1] + 1]) if groups else None


def own_range(levels: Levels, at_least: float | None = None) -> Scale:
    """From the smallest to the largest level that is not scattered, whatever their size.

    Black is `at_least` where the smallest lies within a quarter of the largest above it.
    """
    is_filled = False
    while not is_filled and levels.extent > 1e-9 * np.abs(levels.values[[0, -1]]).max():
        ends = levels.values[0], levels.values[-1]
        body = _filled_levels(levels, *ends) or _heaviest_levels(levels, *ends)
        if body is None:
            break
        is_filled, levels = body.extent >= levels.extent / 4, body
    low, high = levels.values[0], levels.values[-1]
    return scale_between(low if at_least is None or low - at_least > (high - at_least) / 4 else at_least, high)


def _heaviest_levels(levels: Levels, low: float, high: float) -> Levels | None:
    """What lies around the fullest cell: most of a picture, where a few levels far away leave it few cells."""
    cells, edges = np.histogram(levels.values, CELLS, (low, high), weights=levels.counts)
    heaviest = int(cells.argmax())
    body = levels.between(edges[max(0, heaviest - 1)], edges[min(CELLS, heaviest + 2)])
    is_most = LEAST_CELLS <= len(body.values) < len(levels.values) and body.total >= levels.total / 2
    return body if is_most else None
