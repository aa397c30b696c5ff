"""A description as shaded text: what each of its words adds to the similarity, in figure, grid and report.

The largest contribution of all texts of an image, of either sign, has the full colour; the others have their share of
it, over white. Teal and brown are in none of the default heatmap's colours and stay apart to eyes that tell no red from
green; what speaks against a text is underlined too, which tells them apart in grey print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from ..class_texts import ClassText, descriptions_of
from ..errors import escape_unprintable, shortened
from ..explain.words import Word
from ..messages import Joined
from ..towers.words import clauses
from . import parts
from .page import Box, Text, bounds, drawable, moved, text_length, wrap_text
from .parts import BODY, GREY, HEADING, Note

SHADING_WORDS = {
    "contribution": "词语对相似度的贡献",
    "contrast contribution": "词语对“不同于其他文本”的贡献",
    "for": "支持",
    "against": "反对",
    "cut": "描述太长，… 处是贡献小的词语，或模型没有读到的部分",
    "strongest descriptions": "词语：每个类别只显示合计贡献最大的描述，至多 {} 段",
}
SUPPORT, AGAINST, LINE = (92, 184, 172), (214, 174, 110), (140, 81, 10)  # RGB at full strength; LINE is drawn below
WHITE = 255


def shade(contribution: float, peak: float) -> str:
    """The colour behind a word, #rrggbb, where `peak` has the full one."""
    return _mixed(SUPPORT if contribution >= 0 else AGAINST, _strength(contribution, peak))


def line_shade(contribution: float, peak: float) -> str | None:
    """The colour of the line below a word that speaks against its text, None for one that does not."""
    return _mixed(LINE, _strength(contribution, peak)) if contribution < 0 else None


def _strength(contribution: float, peak: float) -> float:
    return min(1.0, abs(contribution) / peak) if peak > 0 else 0.0


def _mixed(colour: Sequence[int], strength: float) -> str:
    levels = (math.floor(WHITE + (level - WHITE) * strength + 0.5) for level in colour)
    return "#" + "".join(f"{level:02x}" for level in levels)


def signed(contribution: float) -> str:
    """A contribution as it is shown: two digits that count, however small it is, and its sign."""
    return f"{contribution:+.2g}"


def peak_of(words: Sequence[Sequence[Word]] | None) -> float:
    """The largest contribution of several texts' words, of either sign, of all their descriptions; 0 without words."""
    return max((abs(word.contribution) for of_text in words or () for word in of_text), default=0.0)


def by_description(text: ClassText, words: Sequence[Word]) -> list[tuple[str, list[Word]]]:
    """(description, its words in their order) of each description of a text."""
    described = [(description, []) for description in descriptions_of(text)]
    for word in sorted(words, key=lambda word: word.start):
        described[word.description][1].append(word)
    return described


def strongest_descriptions(text, words: Sequence[Word], most: int) -> list[tuple[str, list[Word]]]:
    """Of `by_description` those whose words add most together, at most so many, in their order."""
    described = by_description(text, words)
    order = sorted(range(len(described)), key=lambda number: -sum(word.contribution for word in described[number][1]))
    return [described[number] for number in sorted(order[:most])]


def pieces_of(description: str, words: Sequence[Word]) -> list[tuple[str, float | None]]:
    """(letters, contribution) of the whole description in its order; None for what stands between words."""
    pieces, place = [], 0
    for word in words:
        pieces += [(description[place : word.start], None), (description[word.start : word.end], word.contribution)]
        place = word.end
    return [piece for piece in [*pieces, (description[place:], None)] if piece[0]]


MOST_NAMED, LONGEST_NAMED = 5, 20  # words in a line of text; letters of one of them


def strongest_words(words: Sequence[Word]) -> Joined:
    """The words that add or take most, those that add first, the strongest at either end: 骨折 +0.12 … 未见 -0.03.

    A word that stands in several places is named once, by the strongest of them.
    """
    by_strength = sorted(_without_signs(words), key=lambda word: abs(word.contribution))
    strongest = list({word.text: word for word in by_strength}.values())
    strongest = sorted(strongest, key=lambda word: -abs(word.contribution))[:MOST_NAMED]
    groups = groupby(sorted(strongest, key=lambda word: -word.contribution), key=lambda word: word.contribution >= 0)
    return Joined(" … ", [Joined("、", map(_with_number, group)) for _, group in groups])


def strongest_word(words: Sequence[Word]) -> str:
    """The word that adds most, with its number."""
    return _with_number(max(_without_signs(words), key=lambda word: word.contribution))


def _without_signs(words: Sequence[Word]) -> Sequence[Word]:
    """Words without punctuation, which in a sentence of words is read as its own; all where there is nothing else."""
    return [word for word in words if any(map(str.isalnum, word.text))] or words


def _with_number(word: Word) -> str:
    return f"{shortened(escape_unprintable(word.text), LONGEST_NAMED)} {signed(word.contribution)}"


# -- as lines of a page ---------------------------------------------------------------------------

Span = tuple[int, int, float]  # the letters of a line from one to before the other, and their contribution
Lines = list[tuple[str, list[Span]]]


class Shaded(NamedTuple):
    """A text's descriptions in lines."""

    descriptions: list[Lines]
    is_cut: bool  # whether words are left out
    is_part: bool  # whether whole descriptions are


def shaded_text(text, words: Sequence[Word], room: float, size: int, most: int, descriptions: int) -> Shaded:
    """A text in lines of `room` pixels, at most `most` for each of its `descriptions` strongest descriptions."""
    shown = strongest_descriptions(text, words, descriptions)
    wrapped = [_wrapped(pieces_of(*one), room, size, most) for one in shown]
    is_cut, is_part = any(is_cut for _, is_cut in wrapped), len(shown) < len(descriptions_of(text))
    return Shaded([lines for lines, _ in wrapped], is_cut, is_part)


def _wrapped(pieces, room: float, size: int, most: int) -> tuple[Lines, bool]:
    """At most so many lines, and whether words were left out for that, with a "…" where they stood.

    Left out are the clauses whose words add and take least; of a clause that is too long itself, such words.
    """
    words = [place for place, (_, contribution) in enumerate(pieces) if contribution is not None]
    lines = _lines(_joined(pieces, words), room, size)
    if len(lines) <= most:
        return lines, False
    if not words:
        return [(line, []) for line in wrap_text(_joined(pieces, [])[0], room, most, parts.measure(size))], True
    for units in (_clauses(pieces), [[place] for place in words]):
        units = sorted(units, key=lambda unit: -max(abs(pieces[place][1]) for place in unit))
        if lines := _most_that_fit(units, most, lambda kept: _lines(_joined(pieces, kept), room, size)):
            break
    return lines, True


def _most_that_fit(units: Sequence[Sequence[int]], most: int, lines_of: Callable) -> Lines:
    """The lines of as many of the first units as fit into so many of them; none where not even one does."""
    best, fewest, too_many = [], 0, len(units) + 1
    while too_many - fewest > 1:
        count = (fewest + too_many) // 2
        lines = lines_of([place for unit in units[:count] for place in unit])
        if len(lines) <= most:
            best, fewest = lines, count
        else:
            too_many = count
    return best


def _clauses(pieces) -> list[list[int]]:
    """The places of the words of each clause."""
    starts = accumulate((len(letters) for letters, _ in pieces), initial=0)
    words = [(place, start) for place, (start, piece) in enumerate(zip(starts, pieces)) if piece[1] is not None]
    numbers = clauses("".join(letters for letters, _ in pieces), [start for _, start in words])
    by_clause = groupby(zip(numbers, words), key=lambda numbered: numbered[0])
    return [[place for _, (place, _) in of_clause] for _, of_clause in by_clause]


def _joined(pieces, kept: Sequence[int]) -> tuple[str, list[Span]]:
    """The drawable letters of the words of these places and of what stands between two of them, "…" for the rest."""
    letters, spans, kept = "", [], set(kept)
    is_word = [contribution is not None for _, contribution in pieces]
    shown = [
        place in kept if is_word[place] else all(beside in kept for beside in _words_beside(is_word, place))
        for place in range(len(pieces))
    ]
    for place, (piece, contribution) in enumerate(pieces):
        if not shown[place]:
            letters += "" if letters.endswith("…") else "…"
            continue
        drawn = "".join(" " if letter.isspace() else drawable(letter) for letter in piece)
        drawn = drawn.lstrip() if letters.endswith(" ") else drawn
        if contribution is not None:
            spans.append((len(letters), len(letters) + len(drawn), contribution))
        letters += drawn
    return letters, spans


def _words_beside(is_word: Sequence[bool], place: int) -> list[int]:
    return [beside for beside in (place - 1, place + 1) if 0 <= beside < len(is_word) and is_word[beside]]


def _lines(joined: tuple[str, list[Span]], room: float, size: int) -> Lines:
    letters, spans = joined
    lines, place = [], 0
    for line in wrap_text(letters, room, len(letters) + 1, parts.measure(size)):
        first = letters.index(line, place)
        place = first + len(line)
        inside = [(max(start, first) - first, min(end, place) - first, value) for start, end, value in spans]
        lines.append((line, [span for span in inside if span[0] < span[1]]))
    return lines


ABOVE, BELOW, LINE_WIDTH = 0.95, 0.32, 3  # how far a shade reaches from the baseline, in sizes; pixels of the line
BETWEEN = 12  # pixels more between two descriptions


def shaded_leading(size: int) -> int:
    """Pixels from one baseline to the next."""
    return round(1.5 * size)


def shaded_lines(shaded: Shaded, x: int, baseline: int, size: int, peak: float) -> list:
    """Lines one below the other around `x`, the first on `baseline`: shades, and the letters on top of them."""
    items = []
    rows = [(number, line) for number, lines in enumerate(shaded.descriptions) for line in lines]
    for row, (number, (line, spans)) in enumerate(rows):
        y = baseline + row * shaded_leading(size) + number * BETWEEN
        left = x - round(text_length(line, size) / 2)
        for start, end, contribution in spans:
            edges = (left + round(text_length(line[:place], size)) for place in (start, end))
            items += _shade_boxes(*edges, y, size, contribution, peak)
        items += _letters(line, left, y, size)
    return items


def _shade_boxes(left, right, baseline, size, contribution, peak) -> list[Box]:
    """What lies behind a word, a pixel narrower at either end, so that neighbours stay apart."""
    top, bottom, line = baseline - round(ABOVE * size), baseline + round(BELOW * size), line_shade(contribution, peak)
    boxes = [Box(left + 1, top, right - 1, bottom, shade(contribution, peak))]
    return boxes + ([Box(left + 1, bottom - LINE_WIDTH, right - 1, bottom, line)] if line else [])


_CHINESE = r"\u3001-\u3011\u4e00-\u9fff\uff01-\uff5e"  # letters that are an em wide in the project's font
_STRETCH = re.compile(f"(?P<chinese>[{_CHINESE}]+)|[^ {_CHINESE}]+ *")


def _letters(line: str, left: int, baseline: int, size: int) -> list[Text]:
    """Chinese in one piece, Latin word by word: its letters grow unevenly, and must not leave their shades."""
    texts = []
    for stretch in _STRETCH.finditer(line):
        x, is_even = left + round(text_length(line[: stretch.start()], size)), stretch.lastgroup == "chinese"
        texts.append(Text(x, baseline, stretch[0], size, even=is_even))
    return texts


# -- the legend -----------------------------------------------------------------------------------

STEPS, STEP = 13, 14  # how many shades the legend shows, from one end to the other, and pixels of each


class Scale(NamedTuple):
    """What shades mean."""

    peak: float  # the contribution that has the full colour
    label: str  # what the contributions are part of, a key of SHADING_WORDS

    @classmethod
    def of(cls, result) -> Scale:
        """That of an ImageResult's texts: one for all."""
        return cls(peak_of(result.words), "contrast contribution" if result.question.contrast > 0 else "contribution")


def legend(centre: int, top: int, room: int, of_words: Scale, words: dict) -> list:
    """What the shades mean, around `centre` and below `top`: on one line of `room` pixels, else on several."""
    peak = of_words.peak
    low, high = f"{words['against']} {signed(-peak)}", f"{signed(peak)} {words['for']}"
    label, bar = words[of_words.label], STEPS * STEP
    baseline = top + parts.leading(BODY)
    scale = sum(text_length(end, BODY) for end in (low, high)) + bar + 20
    if (length := text_length(label, BODY)) + 2 * BODY + scale <= room:
        left = centre - round((length + 2 * BODY + scale) / 2)
        return [Text(left, baseline, label, BODY), *_scale(left + round(length) + 2 * BODY, baseline, low, high, peak)]
    lines = wrap_text(label, room, 3, parts.measure(BODY))
    items, baseline = parts.lines_down(lines, centre, baseline, BODY), baseline + len(lines) * parts.leading(BODY)
    if scale <= room:
        return [*items, *_scale(centre - round(scale / 2), baseline, low, high, peak)]
    left, below = centre - bar // 2, baseline + parts.leading(BODY)
    edge = max(bar, room) // 2
    ends = [Text(centre - edge, below, low, BODY), Text(centre + edge, below, high, BODY, "r")]
    return [*items, *_steps(left, baseline, peak), *ends]


def _scale(left: int, baseline: int, low: str, high: str, peak: float) -> list:
    start = left + round(text_length(low, BODY)) + 10
    end = start + STEPS * STEP + 10
    return [Text(left, baseline, low, BODY), *_steps(start, baseline, peak), Text(end, baseline, high, BODY)]


def _steps(left: int, baseline: int, peak: float) -> list[Box]:
    middle = STEPS // 2
    shares = [(step - middle) / middle for step in range(STEPS)]
    return [
        box
        for step, share in enumerate(shares)
        for box in _shade_boxes(left + step * STEP, left + (step + 1) * STEP, baseline, BODY, share, 1.0)
    ]


# -- for a figure's title, and a footer -----------------------------------------------------------

MOST_DESCRIPTIONS = 2  # of a figure's text
MOST_LINES = {1: 8, MOST_DESCRIPTIONS: 5}  # of each description, by how many there are


def text_with_legend(result, room: int, words: dict) -> tuple[list, Shaded]:
    """The first explained text of an ImageResult in lines around x = 0 and below y = 0, the legend below them."""
    text, scale = result.texts[result.target], Scale.of(result)
    most = MOST_LINES[min(MOST_DESCRIPTIONS, len(descriptions_of(text)))]
    shaded = shaded_text(text, result.words[0], room, HEADING - 2, most, MOST_DESCRIPTIONS)
    items = shaded_lines(shaded, 0, round(ABOVE * (HEADING - 2)), HEADING - 2, scale.peak)
    return [*items, *legend(0, bounds(items)[3] + 2, room, scale, words)], shaded


def lifted(items: list, x: int, bottom: int) -> list:
    """Items around x = 0 moved so that they stand around `x` and end at `bottom`."""
    return moved(items, x, bottom - bounds(items)[3])


def shading_notes(shown: Sequence[Shaded], descriptions: int, words: dict) -> list[Note]:
    """What the footer says of the shaded texts: that words or descriptions are left out."""
    notes = [words["cut"]] if any(shaded.is_cut for shaded in shown) else []
    notes += [words["strongest descriptions"].format(descriptions)] if any(shaded.is_part for shaded in shown) else []
    return [(note, GREY) for note in notes]
