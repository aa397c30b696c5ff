"""The report's page: its sources joined with a run's document and cards, as bytes one after the other.

    write_files({folder / "report.html": page_parts(document, cards)})           # up to IMAGES_INLINE images
    write_files({folder / "report_files" / "cards-001.js": card_file(0, cards)})  # above: CARDS_PER_FILE cards a file

`document` is an object for JSON, a card one that is written already, None where an image has none. The page asks for
nothing but the files beside it: its Content-Security-Policy allows its own script and style by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path

from ..messages import translated

IMAGES_INLINE = 300  # with more images their cards stand in files of their own
CARDS_PER_FILE = 200
WEB = Path(__file__).parent / "web"
SCRIPTS = (  # in the order in which they are joined; main.js starts the page
    *("words.js", "images.js", "state.js", "store.js", "drawing.js", "marks.js", "filter.js", "summary.js"),
    *("controls.js", "gallery.js", "shading.js", "opened.js", "printing.js", "keys.js", "main.js"),
)
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")  # what HTML or a script reads as its own, and what is no UTF-8

_CHINESE = re.compile("[\u3000-\u9fff\uff00-\uffef]")


def page_parts(document: Mapping, cards: Iterable[str | None] = ()) -> Iterator[bytes]:
    """The bytes of report.html. `cards`: one for each image, in order; none where `document` names "card_files"."""
    style, script = _source("page.css"), _script()
    head = {
        "lang": "en" if document["lang"] == "en" else "zh-CN",
        "policy": _policy(style, script, bool(document.get("card_files"))),
        "title": html.escape(document["title"][document["lang"]]).encode("utf-8", "replace").decode(),
        "style": style,
    }
    yield re.sub(r"\$(\w+)\$", lambda hole: head[hole[1]], _source("page.html")).encode()
    yield _data('id="report"', json.dumps({**document, "words": page_words()}, separators=(",", ":")))
    for index, card in enumerate(cards):
        if card is not None:
            yield _data(f'class="card" data-index="{index}"', card)
    yield f"<script>{script}</script>\n</body>\n</html>\n".encode()


def card_file(first: int, cards: Iterable[str | None]) -> Iterator[bytes]:
    """The bytes of a file of cards, a script that hands them to the page; `first`: the index of its first image."""
    yield f"addCards({first}, [\n".encode()
    for card in cards:
        yield f"{_escaped(card or 'null')},\n".encode()
    yield b"]);\n"


@lru_cache(maxsize=1)
def page_words() -> dict[str, str]:
    """{Chinese: English} of what the page says: the scripts' strings with a Chinese letter in them, and each data-t.

    The English is the catalogue's, the Chinese itself where it has none.
    """
    strings = re.findall(r'"((?:[^"\\\n]|\\.)*)"', re.sub(r"(?m)^\s*//.*$", "", _script()))
    words = strings + re.findall(r'\bdata-t="([^"]*)"', _source("page.html"))
    return {word: translated(word, "en") for word in words if _CHINESE.search(word)}


@cache
def _source(name: str) -> str:
    return (WEB / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _script() -> str:
    return '\n"use strict";\n(() => {\n' + "\n".join(map(_source, SCRIPTS)) + "})();\n"


def _policy(style: str, script: str, has_files: bool) -> str:
    allowed = {
        "default-src": "'none'",
        "script-src": _hash(script) + (" 'self' file:" if has_files else ""),  # a file's origin is no 'self'
        "style-src": _hash(style),
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _data(attributes: str, text: str) -> bytes:
    return f'<script type="application/json" {attributes}>{_escaped(text)}</script>\n'.encode()


def _escaped(text: str) -> str:
    """JSON that is data in HTML and in a script, whatever its strings hold."""
    return _UNSAFE.sub(lambda character: f"\\u{ord(character[0]):04x}", text)
