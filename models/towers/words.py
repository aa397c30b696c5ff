"""Where the words of a text stand, whatever pieces its tokenizer makes of them."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple


class Span(NamedTuple):
    """A word of a text, or a Chinese character: text[start:end], and the places of its tokens among the text's."""

    start: int
    end: int
    tokens: tuple[int, ...]


# Letters that stand alone, as BERT has them: Chinese characters and Japanese kana, in planes 0, 2 and 3.
_ALONE = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ACCENTS = r"\u0300-\u036f"
_LETTERS = rf"[{_ACCENTS}]|[^\W{_ALONE}]"
# A run of letters and digits, which holds a point or comma between digits and an apostrophe between letters; else
# a character by itself.
_WORD = re.compile(rf"(?:{_LETTERS}|(?<=\d)[.,](?=\d)|(?<=[^\W\d])['’](?=[^\W\d]))+|\S")


def word_spans(text: str, offsets: Sequence[tuple[int, int] | None]) -> list[Span]:
    """The words of a text that have a token, in the order of the text.

    `offsets`: where each token stands in the text, None for a special one. Pieces of a word are one, as are words that
    share a token: "loosening" of three pieces, a character of three bytes, a token of two Chinese characters. Without
    a tokenizer's say Chinese characters stand alone; which of them are a word no vocabulary of a model tells.
    """
    units = [(*match.span(), None) for match in _WORD.finditer(text)]
    pieces = [(*_trimmed(text, *offset), token) for token, offset in enumerate(offsets) if offset is not None]
    spans: list[list] = []
    for start, end, token in sorted((*units, *pieces), key=lambda span: span[:2]):
        if start == end:  # of a token that is white space
            continue
        if not spans or start >= spans[-1][1]:
            spans.append([start, end, []])
        spans[-1][1] = max(end, spans[-1][1])
        spans[-1][2] += [] if token is None else [token]
    return [Span(start, end, tuple(sorted(tokens))) for start, end, tokens in spans if tokens]


# What ends a clause. Not the "、" of a list: what is denied before it is denied of all; not the point of 3.5.
_END = re.compile(r"[，。；：！？;:!?\n]|[.,](?!\d)")


def clauses(text: str, starts: Sequence[int]) -> list[int]:
    """A number for the clause that each word of a text stands in, rising; what ends a clause is part of it.

    `starts`: of the words in the text.
    """
    ends = [match.start() for match in _END.finditer(text)]
    return [bisect_left(ends, start) for start in starts]


def offsets_in(text: str, clean: Callable[[str], str], offsets: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    """Offsets in what `clean` made of a text before it was read, as offsets in the text: by the runs that both have.

    Compared is what was read, for the time grows with the square of the length.
    """
    cleaned = clean(text)
    if text == cleaned:
        return offsets
    cleaned = cleaned[: max((end for _, end in offsets), default=0)]
    length = bisect_left(range(len(text)), True, key=lambda length: clean(text[:length]).startswith(cleaned))
    text, places = text[:length], []  # of each character of `cleaned`: where it comes from
    for _, start, end, first, last in SequenceMatcher(None, text, cleaned, autojunk=False).get_opcodes():
        one_to_one = end - start == last - first
        whole = (start, end) if end > start else (max(0, start - 1), max(1, start))  # the one before
        places += [(start + n, start + n + 1) if one_to_one else whole for n in range(last - first)]
    return [(places[start][0], places[end - 1][1]) if end > start else (0, 0) for start, end in offsets]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """A span without the white space at its ends, which some tokenizers count to a word."""
    inside = text[start:end]
    return end - len(inside.lstrip()), start + len(inside.rstrip()) if inside.strip() else end
