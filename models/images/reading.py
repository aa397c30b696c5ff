"""From a path, a PIL image or an array to pixels, RGB uint8 [H, W, 3]."""

import os
from typing import BinaryIO

import numpy as np

from ..errors import InputError, reason
from ..heavy import Image, ImageOps
from .dicom import read_dicom
from .grey import grey_to_rgb, scale_over_own_range

DICOM_SUFFIXES = (".dcm", ".dicom")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as RGB, uint8 [H, W, 3], turned as its EXIF data says.

    Grey levels of 16 or 32 bits are scaled over the image's own range, those of a DICOM file as its window says.
    Raises InputError where the file is missing, damaged or no image.
    """
    try:
        with open(path, "rb") as file:
            if _is_dicom(file, path):
                return read_dicom(file, path)
            return _read_with_pillow(file)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"找不到图像文件：{path}") from error
    except Image.UnidentifiedImageError as error:  # its text names Python's object, not the file
        raise InputError(f"无法读取图像 {path}：不是支持的图像格式，或文件已损坏") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"无法读取图像 {path}：不是支持的图像格式，或文件已损坏（{reason(error)}）") from error


def _is_dicom(file: BinaryIO, path: str | os.PathLike) -> bool:
    """Whether name or content say DICOM; leaves the file at its start."""
    marked = file.read(132)[128:] == b"DICM"
    file.seek(0)
    return marked or os.path.splitext(path)[1].lower() in DICOM_SUFFIXES


def _read_with_pillow(file: BinaryIO) -> np.ndarray:
    """RGB, uint8 [H, W, 3], of the first picture in a file. Copies nothing that is RGB and upright already."""
    with Image.open(file) as image:
        return _from_pillow(image)


def _from_pillow(image) -> np.ndarray:
    """A PIL image, turned in place as its EXIF data says -> RGB uint8 [H, W, 3]."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        return grey_to_rgb(np.asarray(image, dtype=np.float64))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def to_pixels(image) -> np.ndarray:
    """A path, a PIL image or an array -> RGB uint8 [H, W, 3].

    Arrays are [H, W] or [H, W, 1 | 3 | 4], the fourth channel ignored: uint8 as it is, booleans and floats between 0
    and 1 from black to white, grey levels of any other kind over their own range. Raises InputError for others.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if hasattr(image, "getexif"):
        return _from_pillow(ImageOps.exif_transpose(image))  # a copy, turned
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0 or pixels.dtype.kind not in "buif":
        raise InputError(
            f"图像应是路径、PIL 图像，或 [高, 宽] 或 [高, 宽, 3] 的数组；收到 {pixels.dtype} {list(pixels.shape)}"
        )
    pixels = pixels[..., :3]
    if pixels.dtype != np.uint8:
        in_unit = pixels.dtype.kind == "b" or pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1
        if in_unit:
            pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
        elif pixels.shape[2] == 1:
            pixels = scale_over_own_range(pixels.astype(np.float64), np.isfinite(pixels))
        else:
            raise InputError("彩色图像的数组应是 uint8，或 0 到 1 之间的浮点数")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
