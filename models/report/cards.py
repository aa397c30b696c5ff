"""An image's card: the picture made small, its maps and the annotations' outlines, from which a page draws it.

    encode_card(results, outlines) -> bytes of JSON; read_card(those, texts, rows) -> the same text, checked

{"jpeg": base64, longest side at most SIDE, "size": [w, h] of it,
"region": [left, top, right, bottom] that the maps lie on, in shares of the image,
"maps": [{"row", "grid": [rows, columns], "levels": base64 of uint8, row by row, "own", "peak"}], one for each explained
text and method: level / 255 * peak, resized as `resize_map` does and at most 1, is the heatmap on the scale that the
image's texts share, and level / 255 * own that on its own,
"outlines": [{"text": index, "contours": [[x, y, x, y, ...], ...] in shares of the image, closed}],
"words": null where they were not weighed, else {"peak": of the largest contribution, "texts": [{"text": index,
"of": how many descriptions it has, "descriptions": those of MOST_DESCRIPTIONS that add most, [[letters, what they add
to the similarity, null for letters between words], ...] each}], one for each explained text}}
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Sequence

import numpy as np

from ..class_texts import LONGEST_TEXT, ClassText, descriptions_of
from ..errors import InputError
from ..explain.heatmap import is_flat
from ..explain.words import Word
from ..heavy import cv2
from ..images.preprocessing import Region
from ..inputs import finite_number
from ..results.formats import encode_image
from ..results.outlines import Outline
from ..results.result import ImageResult, Results
from ..results.shading import peak_of, pieces_of, strongest_descriptions

SIDE = 900  # pixels of the picture's longer side
QUALITY = 82  # of its JPEG: about 40 KB of a radiograph
MOST_CELLS = 128  # of a map in a row or a column; one with more is made smaller
MOST_POINTS = 2000  # of one annotation's outline
LONGEST_CARD = 1 << 25  # bytes
LARGEST_SHARE = 100.0  # how far beyond the image, in its sides, a region may reach
LARGEST_PEAK = 1e6
MOST_SEGMENTS = 50  # of a JPEG before its frame
LARGEST_CONTRIBUTION = 1e6
MOST_DESCRIPTIONS = 10  # of a text, with their words
LARGEST_COUNT = 1_000_000


def encode_card(results: Results, outlines: Sequence[Outline]) -> bytes:
    """The card of one image. `outlines`: of its annotated texts, in the image's pixels."""
    first = results[0]
    height, width = first.pixels.shape[:2]
    small = _thinned(first.pixels)
    maps = [_encode_map(*of_map) for result in results for of_map in zip(result.maps, *peaks(result))]
    card = {
        "jpeg": _base64(encode_image(small, ".jpg", jpeg_quality=QUALITY)),
        "size": [small.shape[1], small.shape[0]],
        "region": [round(edge / side, 6) for edge, side in zip(first.geometry, (width, height) * 2)],
        "maps": [{"row": row, **encoded_map} for row, encoded_map in enumerate(maps)],
        "outlines": [_encode_outline(outline, (width, height)) for outline in outlines],
        "words": None if first.words is None else _encode_words(first),
    }
    return _json(card).encode("ascii")


def _thinned(pixels: np.ndarray) -> np.ndarray:
    """RGB uint8 [H, W, 3], its longer side at most SIDE: halved while it is twice as long, then interpolated.

    A fifth of the time of one resizing by areas, which is quick for whole factors alone.
    """
    while max(pixels.shape[:2]) >= 2 * SIDE:
        pixels = cv2.resize(pixels, [max(1, side // 2) for side in pixels.shape[1::-1]], interpolation=cv2.INTER_AREA)
    longest = max(pixels.shape[:2])
    if longest <= SIDE:
        return pixels
    size = [max(1, round(side * SIDE / longest)) for side in pixels.shape[1::-1]]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def _encode_map(raw_map: np.ndarray, own: float, peak: float) -> dict:
    positive = np.maximum(raw_map, 0)
    if max(positive.shape) > MOST_CELLS:
        cells = [min(side, MOST_CELLS) for side in positive.shape[::-1]]
        positive = cv2.resize(positive, cells, interpolation=cv2.INTER_AREA)
    largest = positive.max()
    levels = np.rint(positive / largest * 255) if peak and largest > 0 else np.zeros_like(positive)
    encoded = _base64(levels.astype(np.uint8).tobytes())
    return {"grid": list(positive.shape), "levels": encoded, "own": round(own, 6), "peak": round(peak, 6)}


def peaks(result: ImageResult) -> tuple[list[float], list[float]]:
    """[T] of each map's maximum over that of the map on the image, and [T] over the largest of these; 0 for a flat one.

    Those are a little less, since pixels lie between the cells' centres.
    """
    size = result.pixels.shape[:2]
    largest = [0.0 if is_flat(raw_map) else largest_resized(raw_map, size, result.geometry) for raw_map in result.maps]
    shared = max(largest) if len(largest) > 1 else 0.0
    tops = [(float(raw_map.max()), own) if own > 0 else (0.0, 1.0) for raw_map, own in zip(result.maps, largest)]
    return [top / own for top, own in tops], [top / (shared or own) for top, own in tops]


def largest_resized(raw_map: np.ndarray, size: tuple[int, int], region: Region) -> float:
    """The maximum of `resize_map`: from the first and the last pixel between the centres of neighbouring cells alone.

    Along a row or a column the map is linear between two centres.
    """
    rows, columns = region.pixels(*size)
    across = _interpolated(np.maximum(raw_map, 0).astype(np.float64), rows, region.top, region.bottom)
    return float(_interpolated(across.T, columns, region.left, region.right).max(initial=0.0))


def _interpolated(cells: np.ndarray, pixels: slice, low: float, high: float) -> np.ndarray:
    """[n, m] at those pixels of an axis from `low` to `high` that lie first or last between two of n centres."""
    centres = np.arange(pixels.start, pixels.stop) + 0.5
    places = np.clip((centres - low) / (high - low) * len(cells) - 0.5, 0, len(cells) - 1)
    before = np.floor(places).astype(int)
    first = np.diff(before, prepend=-1) > 0
    places, before = (values[first | np.roll(first, -1)] for values in (places, before))
    share = (places - before)[:, None]
    return cells[before] * (1 - share) + cells[np.minimum(before + 1, len(cells) - 1)] * share


def _encode_outline(outline: Outline, size: tuple[int, int]) -> dict:
    contours = (np.round(contour / size, 4) + 0.0 for contour in outline.contours)
    return {"text": outline.text, "contours": [contour.ravel().tolist() for contour in contours]}


def _encode_words(result: ImageResult) -> dict:
    texts = [_encode_text(target, result.texts[target], words) for target, words in zip(result.targets, result.words)]
    return {"peak": round(peak_of(result.words), 6), "texts": texts}


def _encode_text(target: int, text: ClassText, words: Sequence[Word]) -> dict:
    shown = [pieces_of(*one) for one in strongest_descriptions(text, words, MOST_DESCRIPTIONS)]
    rounded = [[[letters, value and round(value, 6)] for letters, value in pieces] for pieces in shown]
    return {"text": target, "of": len(descriptions_of(text)), "descriptions": rounded}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _json(card: dict) -> str:
    return json.dumps(card, separators=(",", ":"))


# -- read again: the folder may be another's ------------------------------------------------------


def read_card(data: bytes, texts: int, rows: int) -> str:
    """A card's JSON, in ASCII, nothing in it but what `encode_card` writes, of an image with so many texts and rows.

    Raises InputError where it is no such card.
    """
    try:
        card = json.loads(data, parse_constant=finite_number, parse_float=finite_number)
        checked = {
            **_picture(card),
            "region": _region(card["region"]),
            "maps": [_map(of_row, rows) for of_row in _list(card["maps"], rows)],
            "outlines": [_outline(of_text, texts) for of_text in _list(card["outlines"], texts)],
            "words": None if card.get("words") is None else _words(card["words"], texts),
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError("不是本工具写的卡片，或已损坏") from error
    return _json(checked)


def _check(is_right: bool) -> None:
    if not is_right:
        raise ValueError


def _list(values, most: int) -> list:
    _check(isinstance(values, list) and len(values) <= most)
    return values


def _whole(value, least: int, most: int) -> int:
    _check(type(value) is int and least <= value <= most)
    return value


def _numbers(values, least: float, most: float) -> list:
    _check(all(type(value) in (int, float) and least <= value <= most for value in values))
    return values


def _picture(card) -> dict:
    """The JPEG, in whose own header its size stands too: a small file may hold a picture of gigabytes."""
    width, height = (_whole(side, 1, SIDE) for side in _list(card["size"], 2))
    _check(_jpeg_size(_bytes(card["jpeg"])) == (width, height))
    return {"jpeg": card["jpeg"], "size": [width, height]}


_BASE64 = re.compile("[A-Za-z0-9+/]*={0,2}")


def _bytes(text) -> bytes:
    """Bytes of base64 that browsers read too: in whole groups of four letters."""
    _check(isinstance(text, str) and len(text) % 4 == 0 and _BASE64.fullmatch(text) is not None)
    return binascii.a2b_base64(text)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG by its frame's header, baseline or progressive; None where that is not found."""
    place = 2 if data.startswith(b"\xff\xd8") else len(data)
    for _ in range(MOST_SEGMENTS):
        if place + 9 > len(data) or data[place] != 0xFF:
            break
        if 0xC0 <= data[place + 1] <= 0xC2:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _region(values) -> list:
    left, top, right, bottom = _numbers(_list(values, 4), -LARGEST_SHARE, LARGEST_SHARE)
    _check(left < right and top < bottom)
    return values


def _map(of_row, rows: int) -> dict:
    row, (height, width) = _whole(of_row["row"], 0, rows - 1), _list(of_row["grid"], 2)
    cells = _whole(height, 1, MOST_CELLS) * _whole(width, 1, MOST_CELLS)
    _check(len(_bytes(of_row["levels"])) == cells)
    own, peak = _numbers([of_row["own"], of_row["peak"]], 0, LARGEST_PEAK)
    return {"row": row, "grid": [height, width], "levels": of_row["levels"], "own": own, "peak": peak}


def _outline(of_text, texts: int) -> dict:
    text, contours = _whole(of_text["text"], 0, texts - 1), _list(of_text["contours"], MOST_POINTS)
    _check(sum(len(_list(contour, 2 * MOST_POINTS)) for contour in contours) <= 2 * MOST_POINTS)
    _check(all(len(_numbers(contour, -1, 2)) % 2 == 0 for contour in contours))
    return {"text": text, "contours": contours}


def _words(words, texts: int) -> dict:
    (peak,) = _numbers([words["peak"]], 0, LARGEST_CONTRIBUTION)
    return {"peak": peak, "texts": [_text(of_text, texts) for of_text in _list(words["texts"], texts)]}


def _text(of_text, texts: int) -> dict:
    text, descriptions = _whole(of_text["text"], 0, texts - 1), _list(of_text["descriptions"], MOST_DESCRIPTIONS)
    checked = [[_piece(piece) for piece in _list(one, LONGEST_TEXT)] for one in descriptions]
    return {"text": text, "of": _whole(of_text["of"], 0, LARGEST_COUNT), "descriptions": checked}


def _piece(piece) -> list:
    letters, contribution = _list(piece, 2)
    _check(isinstance(letters, str) and len(letters) <= LONGEST_TEXT)
    if contribution is not None:
        _numbers([contribution], -LARGEST_CONTRIBUTION, LARGEST_CONTRIBUTION)
    return [letters, contribution]
