"""From a path, a PIL image or an array to pixels, RGB uint8 [H, W, 3]."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from typing import BinaryIO

import numpy as np

from ..errors import InputError, reason
from ..heavy import Image
from ..inputs import check_regular_file
from ..messages import Message
from .dicom import is_dicom, read_dicom
from .grey import AUTO, GreyRange, grey_to_rgb, parse_grey_range
from .limits import check_pixel_count
from .tiff import full_range_of_tiff, is_min_is_white, is_tiff, levels_of_tiff, with_black_zero

DICOM_SUFFIXES = (".dcm", ".dicom")
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")  # others of Pillow's start programs, or are no radiographs
_REFUSED = Message("不是支持的图像格式（PNG、JPEG、BMP、TIFF、WebP、GIF、DICOM），或文件已损坏")

# what the EXIF orientation asks for
_TURNS = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
_ORIENTATION = 0x0112


def read_image(path: str | os.PathLike, grey_range: GreyRange = AUTO) -> np.ndarray:
    """Read an image as RGB, uint8 [H, W, 3], turned as its EXIF data says; of several pictures in a file the first.

    Grey levels of more than 8 bits become 8 by `grey_range`, those of a DICOM file as its window says unless another
    rule than `auto` is asked for. Raises InputError where the file is missing, damaged, no image, or too large.
    """
    check_regular_file(path, Message("无法读取图像 {}", path))
    try:
        with open(path, "rb") as file:
            if is_dicom(file) or os.path.splitext(path)[1].lower() in DICOM_SUFFIXES:
                return read_dicom(file, path, grey_range)
            return _read_with_pillow(file, grey_range)
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError("无法读取图像 {}：{}", path, error) from error
    except FileNotFoundError as error:
        raise InputError("找不到图像文件：{}", path) from error
    except MemoryError:
        raise
    except Image.UnidentifiedImageError as error:  # its text names Python's object, not the file
        raise InputError("无法读取图像 {}：{}", path, _REFUSED) from error
    except Exception as error:  # Pillow raises whatever its decoders meet: OSError, SyntaxError, struct.error, ...
        message = " ".join(str(reason(error)).split())[:150]
        raise InputError("无法读取图像 {}：{}（{}）", path, _REFUSED, message) from error


def _read_with_pillow(file: BinaryIO, grey_range: GreyRange) -> np.ndarray:
    """RGB, uint8 [H, W, 3], of the first picture in a file. Copies nothing that is RGB and upright already."""
    with QUIET if is_tiff(file) else contextlib.nullcontext():
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:  # before its size could be seen here
            raise InputError(str(error)) from error
        except Image.UnidentifiedImageError:
            changed = with_black_zero(file)
            if changed is None:
                raise
            with Image.open(io.BytesIO(changed), formats=("TIFF",)) as image:
                return _from_pillow(image, grey_range, inverted=True)
        with image:
            return _from_pillow(image, grey_range, file)


class _Quiet:
    """While it lasts nothing reaches standard error, where libtiff and Pillow write what our error says already."""

    def __init__(self):
        self.lock = threading.Lock()

    def __enter__(self):
        self.lock.acquire()
        self.kept = None
        with contextlib.suppress(OSError):  # closed, say
            self.kept = os.dup(2)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)

    def __exit__(self, *exception):
        if self.kept is not None:
            os.dup2(self.kept, 2)
            os.close(self.kept)
        self.lock.release()


QUIET = _Quiet()


def _from_pillow(image, grey_range: GreyRange, file: BinaryIO | None = None, inverted: bool = False) -> np.ndarray:
    """A PIL image, turned as its EXIF data says -> RGB uint8 [H, W, 3]; `file` of its bytes, `inverted`: 0 is white."""
    check_pixel_count(*image.size)
    inverted = inverted or is_min_is_white(image)
    if file is not None and _is_deep_colour(image):
        return _upright(grey_to_rgb(_sixteen_bit_colours(image, file), grey_range), _orientation(image))
    full = full_range_of_tiff(image)
    image.load()
    levels = levels_of_tiff(image, full) if full else None
    if levels is None and (image.mode == "F" or image.mode.startswith("I")):
        levels = np.asarray(image)
    if levels is not None:
        return _upright(grey_to_rgb(levels, grey_range, full, inverted), _orientation(image))
    return _upright(np.asarray(_converted(image)), _orientation(image))


def _converted(image):
    """The image as RGB; Pillow converts premultiplied colours in two steps only."""
    if image.mode == "RGB":
        return image
    steps = {"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}
    return image.convert(steps[image.mode]).convert("RGB") if image.mode in steps else image.convert("RGB")


def _orientation(image) -> object:
    """What the EXIF data of an image say; data that cannot be read say nothing."""
    with contextlib.suppress(Exception):
        return image.getexif().get(_ORIENTATION)


def _upright(pixels: np.ndarray, orientation) -> np.ndarray:
    """The pixels turned as an EXIF orientation asks for."""
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return np.ascontiguousarray(turn(pixels)) if turn else pixels


def _is_deep_colour(image) -> bool:
    """Whether a file holds 16 bits of each colour, of which Pillow would give the upper 8 alone."""
    layers = getattr(image, "tile", None) or []
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(layer[3]) for layer in layers)


def _sixteen_bit_colours(image, file: BinaryIO) -> np.ndarray:
    """uint16 [H, W, 3], or [H, W, 1] of grey with alpha: Pillow reads one byte of the two at a time."""
    raw_mode = str(image.tile[0][3])
    if "LA;16" in raw_mode:  # four bytes a pixel, as those of four colours
        _retile(image, "LA;16B", "RGBA")
        image._mode = "RGBA"
        upper, lower = np.moveaxis(np.asarray(image)[..., :2, None], 2, 0)
        return upper.astype(np.uint16) << 8 | lower
    with Image.open(file, formats=FORMATS) as other:
        swapped = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B" if sys.byteorder == "little" else ";16L"}
        mark = next(mark for mark in swapped if mark in raw_mode)
        _retile(other, mark, swapped[mark])
        colours = np.asarray(other)[..., :3].astype(np.uint16)
    del other  # its memory, before the upper bytes are decoded
    colours |= np.left_shift(np.asarray(image)[..., :3], 8, dtype=np.uint16)
    return colours


def _retile(image, old: str, new: str) -> None:
    """Have an image that is not loaded yet read its bytes as those of another mode."""
    layers = []
    for decoder, extents, offset, options in image.tile:
        is_one = isinstance(options, str)
        options = options.replace(old, new) if is_one else (options[0].replace(old, new), *options[1:])
        layers.append((decoder, extents, offset, options))
    image.tile = [type(image.tile[0])._make(layer) for layer in layers] if hasattr(image.tile[0], "_make") else layers


def to_pixels(image, grey_range: GreyRange | str | tuple | None = None) -> np.ndarray:
    """A path, a PIL image or an array -> RGB uint8 [H, W, 3].

    Arrays are [H, W] or [H, W, 1 | 3 | 4], the fourth channel ignored: uint8 as it is, booleans and floats between 0
    and 1 from black to white, grey levels of any other kind by `grey_range` (see `parse_grey_range`). Raises InputError
    for others.
    """
    grey_range = parse_grey_range(grey_range)
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, grey_range)
    if hasattr(image, "getexif"):
        return _from_pillow(image, grey_range)
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise InputError(
            "图像应是路径、PIL 图像，或 [高, 宽] 或 [高, 宽, 3] 的数组；收到 {} {}", pixels.dtype, list(pixels.shape)
        )
    pixels = pixels[..., :3]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    if pixels.dtype.kind == "b":
        return to_pixels(pixels.astype(np.uint8) * 255)
    is_share = pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1
    if pixels.shape[2] == 3 and not is_share:
        raise InputError("彩色图像的数组应是 uint8，或 0 到 1 之间的浮点数")
    grey_range = GreyRange("full") if is_share and grey_range == AUTO else grey_range
    return grey_to_rgb(pixels.astype(np.float32) if pixels.dtype == np.float16 else pixels, grey_range)
