"""Result files: their names, pixels as bytes, and writing them whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from .errors import InputError, reason

RASTER_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff", ".tiff": "tiff", ".webp": "webp"}
VECTOR_FORMATS = {".pdf": "pdf", ".svg": "svg"}


def import_cv2():
    """OpenCV, or what to install where its system library is missing."""
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            f"无法载入 OpenCV（{error}）；若缺少 libGL，"
            "请执行 pip install opencv-python-headless，或 apt-get install libgl1 libglib2.0-0"
        ) from error
    return cv2


def check_output_folder(folder: Path) -> None:
    """Raise InputError before any work where `folder` is no folder or cannot be written. Makes nothing."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"输出目录 {folder} 无法建立：{existing} 是文件")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"没有写入输出目录 {folder} 的权限")


def figure_file(path: str | os.PathLike) -> Path:
    """Where the figure goes: `.png` is added where there is no suffix that we write."""
    figure = Path(path)
    if figure.suffix.lower() not in {**RASTER_FORMATS, **VECTOR_FORMATS}:
        figure = figure.with_name(figure.name + ".png")
    return figure


def output_paths(path: str | os.PathLike) -> tuple[Path, Path]:
    """(figure, overlay) of one explained text; a vector figure's overlay is PNG."""
    figure = figure_file(path)
    return figure, overlay_path(figure)


def overlay_path(figure: Path, mark: str | int | None = None) -> Path:
    """Where the overlay of a figure at `figure` goes: `<stem>_overlay<suffix>`, `<stem>_overlay_<mark><suffix>`."""
    suffix = figure.suffix if figure.suffix.lower() in RASTER_FORMATS else ".png"
    return figure.with_name(f"{figure.stem}_overlay{'' if mark is None else f'_{mark}'}{suffix}")


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
    cv2 = import_cv2()
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


_PILLOW_OPTIONS = {"jpeg": {"quality": 95}, "webp": {"lossless": True}}


def encode_image(pixels: np.ndarray, suffix: str, png_strategy: str = "RLE") -> bytes:
    """RGB uint8 [H, W, 3] as a file's bytes. zlib's "RLE" suits photographs, "DEFAULT" pages of text."""
    kind = RASTER_FORMATS[suffix.lower()]
    if kind == "png":
        return _encode_png(pixels, png_strategy)
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **_PILLOW_OPTIONS.get(kind, {}))
    return buffer.getvalue()


def _encode_png(pixels, strategy) -> bytes:
    """By OpenCV: a third of Pillow's time for a file of about the same size."""
    cv2 = import_cv2()
    options = [
        cv2.IMWRITE_PNG_COMPRESSION,
        1,
        cv2.IMWRITE_PNG_STRATEGY,
        getattr(cv2, f"IMWRITE_PNG_STRATEGY_{strategy}"),
    ]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # since OpenCV 4.11
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def write_files(files: Mapping[Path, bytes], durable: bool = False, staging: Path | None = None) -> None:
    """Write all files whole, or none of them: each beside its place first, then all moved into place.

    With `durable` each file's data is on the disk before it is moved. `staging`: a folder of the same file
    system to write them in first, where what a killed process leaves can be found. Raises InputError where a
    folder cannot be made or written, or its disk is full.
    """
    staged: list[tuple[str, Path]] = []
    moved: list[Path] = []  # where nothing stood before
    folders = {parent for path in files for parent in path.absolute().parents if not parent.exists()}
    try:
        for path, data in files.items():
            if path.is_dir():
                raise IsADirectoryError(0, "同名的文件夹已存在", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".clip_gradcam_", suffix=".tmp", dir=staging or path.parent)
            staged.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's files are private; results are the user's to share
        for temporary, path in staged:
            new = not path.exists()
            os.replace(temporary, path)
            moved += [path] if new else []
    except BaseException as error:
        _remove([*(temporary for temporary, _ in staged), *moved, *sorted(folders, reverse=True)])
        if not isinstance(error, OSError):
            raise
        raise InputError(f"无法写入 {error.filename or next(iter(files)).parent}：{reason(error)}") from error


def _remove(paths: Iterable) -> None:
    """Remove files and empty folders; what is not there, or not empty, stays as it is."""
    for path in paths:
        with contextlib.suppress(OSError):
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # once: reading it sets it for a moment, in all threads
