"""Result files: their names, and pixels and arrays as their bytes."""

import math
import os
import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..heavy import Image, cv2

RASTER_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
VECTOR_FORMATS = {".pdf": "pdf", ".svg": "svg"}
OVERLAY_FORMATS, FIGURE_FORMATS = ("png", "jpg", "webp"), ("png", "jpg", "pdf", "svg", "tif")
LONGEST_SIDES = {"png": 1_000_000, "jpeg": 65_500, "webp": 16_383}  # pixels that libpng, OpenCV and WebP write


def figure_file(path: str | os.PathLike, kind: str | None = None) -> Path:
    """Where the figure goes: where there is no suffix that we write, one of FIGURE_FORMATS is added, None: `.png`.

    InputError for a path that names no file.
    """
    figure = Path(path)
    if not figure.name:
        raise InputError("保存的路径 {!r} 不含文件名；请写成例如 result.png", os.fspath(path))
    if figure.suffix.lower() not in {**RASTER_FORMATS, **VECTOR_FORMATS}:
        figure = figure.with_name(f"{figure.name}.{kind or FIGURE_FORMATS[0]}")
    return figure


def check_output_name(name: str, kind: str | None = None) -> None:
    """InputError where `name`, with or without folders before it, ends in no name of a file that a system takes.

    So it is where it has a suffix that we write and `kind`, of FIGURE_FORMATS, is another.
    """
    name = re.split(r"[\\/]" if os.name == "nt" else "/", name)[-1]
    if name in ("", ".", ".."):
        raise InputError("--output-name 应是文件名，收到的是文件夹：文件夹请用 --output-dir")
    if os.name == "nt" and re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[:*?\"<>|].*", name, re.IGNORECASE):
        raise InputError("--output-name {} 在 Windows 上不能作文件名，请换一个", name)
    kinds = {**RASTER_FORMATS, **VECTOR_FORMATS}
    if kind is not None and kinds.get(Path(name).suffix.lower(), kinds[f".{kind}"]) != kinds[f".{kind}"]:
        raise InputError("--output-name {} 的后缀与 --figure-format {} 不同：请去掉其中一个", name, kind)


def overlay_path(figure: Path, mark: str | int | None = None, kind: str | None = None) -> Path:
    """Where the overlay of a figure at `figure` goes: `<stem>_overlay<suffix>`, `<stem>_overlay_<mark><suffix>`.

    `kind`: "png", "jpg" or "webp"; None for the figure's own, PNG beside a vector figure.
    """
    suffix = figure.suffix if figure.suffix.lower() in RASTER_FORMATS else ".png"
    suffix = f".{kind}" if kind else suffix
    return figure.with_name(f"{figure.stem}_overlay{'' if mark is None else f'_{mark}'}{suffix}")


def panel_path(figure: Path, letter: str) -> Path:
    """Where a panel of a figure goes that is a file of its own: `<stem>_panel_<letter><suffix>`."""
    return figure.with_name(f"{figure.stem}_panel_{letter}{figure.suffix}")


def array_path(figure: Path, kind: str, mark: str | int | None = None) -> Path:
    """Where an array goes that belongs to a figure: `<stem>_<kind>.npy`, `<stem>_<kind>_<mark>.npy`."""
    return figure.with_name(f"{figure.stem}_{kind}{'' if mark is None else f'_{mark}'}.npy")


def encode_array(array: np.ndarray) -> bytes:
    """An array as the bytes of a `.npy` file."""
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def thin(pixels: np.ndarray, side: int) -> np.ndarray:
    """RGB uint8 [H, W, 3], its longer side brought down to `side` pixels; smaller ones as they are."""
    height, width = pixels.shape[:2]
    shrink = max(height, width) / side
    if shrink <= 1:
        return pixels
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def encode_image(
    pixels: np.ndarray, suffix: str, png_strategy: str = "RLE", dpi: int | None = None, jpeg_quality: int = 95
) -> bytes:
    """RGB uint8 [H, W, 3] as a file's bytes. zlib's "RLE" suits photographs, "DEFAULT" pages of text.

    PNG and JPEG by OpenCV: a third and a fifth of Pillow's time for files of about the same size. `dpi` stands in the
    file as its density, but for WebP, which has none. InputError for an image that is too long for the format.
    """
    kind = RASTER_FORMATS[suffix.lower()]
    height, width = pixels.shape[:2]
    if max(height, width) > (longest := LONGEST_SIDES.get(kind, math.inf)):
        raise InputError(
            "{} 的边长至多 {} 像素，这张图是 {}×{}；请换一种格式，或先缩小图像", kind.upper(), longest, width, height
        )
    if kind not in ("png", "jpeg"):
        buffer, density = BytesIO(), {"dpi": (dpi, dpi)} if dpi else {}
        Image.fromarray(pixels).save(buffer, format=kind, **({"lossless": True} if kind == "webp" else density))
        return buffer.getvalue()
    options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    if kind == "png":
        strategy = getattr(cv2, f"IMWRITE_PNG_STRATEGY_{png_strategy}")
        options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy]
        if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # since OpenCV 4.11
            options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    data = cv2.imencode(f".{kind}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()
    return _DENSITIES[kind](data, dpi) if dpi else data


def _png_density(data: bytes, dpi: int) -> bytes:
    """The file with a pHYs chunk (pixels per metre) after its IHDR, which ends at byte 33."""
    per_metre = round(dpi / 0.0254)
    chunk = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
    return data[:33] + struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def _jpeg_density(data: bytes, dpi: int) -> bytes:
    """The file with the density of its JFIF header, bytes 13 to 18, in pixels per inch."""
    return data[:13] + struct.pack(">BHH", 1, dpi, dpi) + data[18:]


_DENSITIES = {"png": _png_density, "jpeg": _jpeg_density}
