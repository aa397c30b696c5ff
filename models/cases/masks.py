"""Masks as image files: where they are inside.

PNG, BMP, TIFF and GIF are inside where they are neither black nor transparent; those with a palette of colours where
their index is not the background's, whatever colours it has. JPEG, which blurs, is inside from half of white on.
"""

from __future__ import annotations

import contextlib
import io
import os
from typing import BinaryIO

import numpy as np

from ..errors import InputError, reason
from ..heavy import Image, ImageOps
from ..images.grey import levels_of
from ..images.limits import check_pixel_count
from ..images.reading import QUIET
from ..images.tiff import full_range_of_tiff, is_tiff
from ..messages import Joined, Message
from .shapes import check_proportions, resize_nearest

FORMATS = ("PNG", "BMP", "TIFF", "GIF", "JPEG")
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".jpg", ".jpeg")
LEAST_OF_A_COLOUR = 0.01  # share of the bright pixels; fewer are the edges of another
HALF_OF_WHITE = 128
MOST_CLASSES = 64  # that a map of classes numbers; no mask with soft edges is as dark as that
BORDER = 255  # what maps of classes write between classes
MOST_BETWEEN, MOST_LEVELS = 0.25, 16  # of a mask's pixels, of its levels between black and its brightest: soft edges


def read_mask(path: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """A mask of the image's proportions as bool [H, W], enlarged or reduced to `size` (H, W) by the nearest pixel.

    Turned as its EXIF data says; of several pictures in a file the first. Raises InputError where the file is no
    picture, too large, of other proportions, a map of several classes, or a picture of many greys.
    """
    with open(path, "rb") as file:
        inside = _read(file, FORMATS, size)
    return resize_nearest(inside, size)


def read_png(data: bytes) -> np.ndarray:
    """The mask in the bytes of a PNG, bool [h, w]; InputError as `read_mask`."""
    return _read(io.BytesIO(data), ("PNG",))


def _read(file: BinaryIO, formats: tuple[str, ...], size: tuple[int, int] | None = None) -> np.ndarray:
    try:
        with QUIET if is_tiff(file) else contextlib.nullcontext(), Image.open(file, formats=formats) as image:
            check_pixel_count(*image.size)
            full_range_of_tiff(image)  # refuses tiles that are larger than a picture may be
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            if size is not None:
                check_proportions(*image.size, size, Message("掩膜"))
            return _inside(image)
    except (InputError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:  # its text names Python's object, not the file
        raise InputError("不是 LabelMe 或 COCO 的 JSON，也不是 PNG、BMP、TIFF、GIF、JPEG 的掩膜") from error
    except Exception as error:  # Pillow raises whatever its decoders meet: OSError, SyntaxError, struct.error, ...
        raise InputError("掩膜已损坏（{}），请重新导出", " ".join(str(reason(error)).split())[:150]) from error


def _inside(image) -> np.ndarray:
    """bool [h, w] of a loaded picture; what is transparent is outside."""
    levels = _levels_of_palette(image) if image.mode in ("P", "PA") else _levels(image)
    _check_levels(levels)
    if image.format == "JPEG":
        inside = levels >= HALF_OF_WHITE
        if levels.any() and not inside.any():
            raise InputError("JPEG 的掩膜没有一处达到白色的一半；请另存为 PNG，内为 255，外为 0")
        return inside
    inside = np.nan_to_num(levels) != 0
    if image.has_transparency_data:
        inside &= np.asarray(image.convert("RGBA").getchannel("A")) != 0
    return inside


def _levels(image) -> np.ndarray:
    """Grey levels [h, w] of any type; of colours the strongest."""
    if image.mode in ("LA", "La"):
        return np.asarray(image.getchannel(0))
    if image.mode == "L" or image.mode == "F" or image.mode.startswith("I"):
        return np.asarray(image)
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    colours = np.asarray((image.convert("RGBA") if image.mode == "RGBa" else image).convert("RGB"))
    levels = colours.max(axis=2)
    _check_colours(colours[levels >= HALF_OF_WHITE])
    return levels


def _check_colours(colours: np.ndarray) -> None:
    """InputError where bright pixels [N, 3] are of several colours, by which of red, green and blue they have."""
    bright = colours >= colours.max(axis=1, keepdims=True) / 2
    _, counts = np.unique(bright @ [1, 2, 4], return_counts=True)
    if (counts > LEAST_OF_A_COLOUR * len(colours)).sum() > 1:
        raise InputError("掩膜有几种颜色，像是各类别的编号；请每类一个掩膜，内为白")


def _levels_of_palette(image) -> np.ndarray:
    """uint8 [h, w]: the levels of a palette of greys, else its indices, 0 where the picture is black.

    Programs that reduce files sort palettes anew: the background is the one index that is black where there is one,
    and index 0 only where none or several are, as in palettes that were never filled in.
    """
    indices = np.asarray(image.getchannel(0)) if image.mode == "PA" else np.asarray(image)
    palette = np.zeros((256, 3), dtype=np.uint8)
    colours = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)[:256]
    palette[: len(colours)] = colours
    used = levels_of(indices).values.astype(int)
    is_grey = (palette[used] == palette[used][:, :1]).all()
    if is_grey and len(np.unique(palette[used, 0])) == len(used):
        return palette[indices, 0]
    black = [index for index in used if not palette[index].any()]
    background = black[0] if len(black) == 1 else 0
    return np.where(indices == background, 0, np.maximum(indices, 1)).astype(np.uint8)  # index 0 may be inside


def _check_levels(levels: np.ndarray) -> None:
    """InputError for a map of several classes, and for a picture that is no mask."""
    values, counts = levels_of(levels)
    classes = values[(values != 0) & (values != BORDER)]
    if len(classes) > 1 and classes.max() < MOST_CLASSES:
        shown = Joined("、", (f"{value:g}" for value in classes[:5]))
        raise InputError(
            "掩膜中有 {} 种非零的值（{}…），像是各类别的编号；请每类一个掩膜，内为 255", len(classes), shown
        )
    top = values.max()
    is_between = (values > 0.1 * top) & (values < 0.9 * top)
    if is_between.sum() > MOST_LEVELS and counts[is_between].sum() > MOST_BETWEEN * counts.sum():
        raise InputError("这像是一张有许多灰度的图像，不是掩膜；掩膜内为 255，外为 0")
