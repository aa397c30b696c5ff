"""What open_clip makes of a text before its tokenizer for Hugging Face's text towers reads it.

As its `basic_clean`, `whitespace_clean` and `canonicalize_text` do (open_clip/tokenizer.py), with what ftfy's
`fix_text` does to single characters: full-width signs become those of ASCII, ligatures letters, curly quotes straight.
ftfy's guesses at texts that were decoded wrongly are left out.
"""

import html
import re
import string
import unicodedata
from collections.abc import Callable

_WIDTHS = {0x3000: " ", **{code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)}}
_LIGATURES = {
    **{"Ĳ": "IJ", "ĳ": "ij", "ŉ": "ʼn", "Ǆ": "DŽ", "ǅ": "Dž", "ǆ": "dž", "Ǉ": "LJ", "ǈ": "Lj", "ǉ": "lj"},
    **{"Ǌ": "NJ", "ǋ": "Nj", "ǌ": "nj", "Ǳ": "DZ", "ǲ": "Dz", "ǳ": "dz"},
    **{"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ſt", "ﬆ": "st"},
}
_QUOTES = {**dict.fromkeys("ʼ‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')}
_CONTROLS = (*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
_TABLES = (  # one after the other, as ftfy
    str.maketrans(_LIGATURES),
    _WIDTHS,
    str.maketrans(_QUOTES),
    dict.fromkeys(_CONTROLS),
)
_TERMINAL = re.compile(r"\x1b\[(?:\d|;)*[a-zA-Z]")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _basic(text: str) -> str:
    """Single characters in their usual form, entities of HTML as what they stand for."""
    text = text if "<" in text else html.unescape(text)
    text = _TERMINAL.sub("", text)
    for table in _TABLES:
        text = text.translate(table)
    return html.unescape(html.unescape(unicodedata.normalize("NFC", text))).strip()


def whitespace(text: str) -> str:
    """One space between words."""
    return " ".join(_basic(text).split())


def lower(text: str) -> str:
    """`whitespace`, in small letters."""
    return whitespace(text).lower()


def canonicalize(text: str) -> str:
    """In small letters, without ASCII punctuation; for SigLIP."""
    return " ".join(_basic(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


CLEANERS: dict[str, Callable] = {"whitespace": whitespace, "lower": lower, "canonicalize": canonicalize}
