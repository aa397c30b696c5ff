"""What is said to the user: a sentence in Chinese with holes, and its English from one catalogue.

    raise InputError("无法读取 {}：{}", path, reason(error))    # errors and warnings take a sentence and its values
    say(Message("完成 {} 张", count))                           # what is said otherwise is a Message

The Chinese sentence stands where it is said and is the key of the catalogue, `assets/messages.en.json`, which is read
when English is first spoken. Values are put in as they are: a name that reads like a sentence of ours stays itself.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

LANGUAGES = ("zh", "en")
CATALOGUE = Path(__file__).parent / "assets" / "messages.en.json"
_language = ContextVar("language", default=LANGUAGES[0])


def current_language() -> str:
    """The language that messages are said in here and now, one of LANGUAGES."""
    return _language.get()


@contextlib.contextmanager
def speaking(lang: str | None) -> Iterator[None]:
    """While it lasts, in this thread, messages are said in one of LANGUAGES; None: as before."""
    token = _language.set(lang or _language.get())
    try:
        yield
    finally:
        _language.reset(token)


def can_show_chinese(*streams) -> bool:
    """Whether the encodings of all streams have Chinese letters; one without an encoding, or none, has them."""
    for encoding in filter(None, (getattr(stream, "encoding", None) for stream in streams)):
        try:
            "中文".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return False
    return True


SPELLED = {"×": "x", "–": "-", "—": "-", "…": "...", "≤": "<=", "≥": ">="}  # our own signs, in letters


def spell_out(error: UnicodeEncodeError) -> tuple[str, int]:
    """What stands for letters that an encoding lacks: our own signs in others, of names and texts the escapes."""
    letters = (SPELLED.get(letter) or ascii(letter)[1:-1] for letter in error.object[error.start : error.end])
    return "".join(letters), error.end


codecs.register_error("spelled", spell_out)


@lru_cache(maxsize=1)
def catalogue() -> dict[str, str]:
    """{Chinese: English} of all sentences; the same holes in both."""
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))


def translated(template: str, lang: str) -> str:
    """A sentence of ours in one of LANGUAGES; what is none stays as it is."""
    return template if lang == LANGUAGES[0] else catalogue().get(template, template)


class Message:
    """A sentence in Chinese with the holes of `str.format`, and what stands in them; its str is in the language of now.

    Without values it is the sentence as it is, braces too. A value that is a message is said in the same language.
    """

    def __init__(self, template: str, *values):
        self.template, self.values = template, values

    def in_language(self, lang: str) -> str:
        template = translated(self.template, lang)
        return template.format(*(in_language(value, lang) for value in self.values)) if self.values else template

    def __str__(self) -> str:
        return self.in_language(current_language())

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{(self.template, *self.values)!r}"

    def __eq__(self, other) -> bool:
        return type(other) is type(self) and (other.template, other.values) == (self.template, self.values)

    def __hash__(self) -> int:
        return hash(self.template)


class Joined(Message):
    """Values or messages in a row, "、", "；" or another separator of the catalogue between them; of none, false."""

    def __init__(self, separator: str, values: Iterable):
        super().__init__(separator, *values)

    def __bool__(self) -> bool:
        return bool(self.values)

    def in_language(self, lang: str) -> str:
        return translated(self.template, lang).join(str(in_language(value, lang)) for value in self.values)


def as_message(sentence: str | Message) -> Message:
    """A sentence of ours that takes no values, as a Message."""
    return sentence if isinstance(sentence, Message) else Message(sentence)


def in_language(value, lang: str):
    """A message, or an error or warning of ours, in one of LANGUAGES; any other value as it is."""
    return value.in_language(lang) if hasattr(value, "in_language") else value
