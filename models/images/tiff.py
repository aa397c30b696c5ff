"""What a TIFF says of its grey levels and Pillow passes over: whether 0 is white, signs, and 32 bits without one."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from .limits import check_pixel_count

_BITS, _PHOTOMETRIC, _FORMAT, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 339, 322, 323
_UNSIGNED, _SIGNED = 1, 2  # values of _FORMAT; 3: float
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_KINDS = {_UNSIGNED: "u", _SIGNED: "i"}
_DEEP_MODES = ("F", "I")
LARGEST_CHANGED = 1 << 30  # bytes of a file that is changed in memory


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file begins as a TIFF; leaves it at its start."""
    file.seek(0)
    head = file.read(4)
    file.seek(0)
    return head in (*_ORDERS, b"II+\0", b"MM\0+")  # or of more than 4 GB


def is_min_is_white(image) -> bool:
    """Whether 0 is white in a TIFF of more than 8 bits; of others Pillow sees to it."""
    tags = getattr(image, "tag_v2", None)
    return bool(tags) and tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith(_DEEP_MODES)


def full_range_of_tiff(image) -> tuple[float, float] | None:
    """(smallest, largest) level that a grey TIFF can hold, None for colours, fractions and other files.

    InputError where its tiles are larger than a picture may be.
    """
    tags = getattr(image, "tag_v2", None)
    if not tags:
        return None
    check_pixel_count(int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1)))
    bits, kind = (_first(tags.get(tag, 1)) for tag in (_BITS, _FORMAT))
    if not (image.mode.startswith("I") or image.mode == "L" and kind == _SIGNED) or kind not in _KINDS:
        return None
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if kind == _SIGNED else (0.0, 2.0**bits - 1)


def levels_of_tiff(image, full: tuple[float, float]) -> np.ndarray:
    """The levels [H, W] of a loaded grey TIFF with the signs that it says: Pillow reads 32 bits signed, 8 without."""
    levels = np.asarray(image)
    if levels.dtype == np.uint8:
        return levels.view(np.int8)
    return levels.view(np.uint32) if levels.dtype == np.int32 and full[1] == 2**32 - 1 else levels


def _first(value):
    return value[0] if isinstance(value, tuple) else value


def with_black_zero(file: BinaryIO) -> bytes | None:
    """A TIFF whose 0 is white with that tag changed, for sizes of levels that Pillow reads only if 0 is black.

    None where the file is no such TIFF, or too large to be changed in memory.
    """
    file.seek(0)
    order = _ORDERS.get(file.read(4))
    if order is None or file.seek(0, 2) > LARGEST_CHANGED:
        return None
    file.seek(0)
    data = bytearray(file.read())
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(order + "HHIH", data, entry)
            if (tag, kind, number, value) == (_PHOTOMETRIC, 3, 1, 0):
                struct.pack_into(order + "H", data, entry + 8, 1)
                return bytes(data)
    except struct.error:
        pass
    return None
