"""The one way in which files are written: whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import InputError, reason


def check_output_folder(folder: Path) -> None:
    """Raise InputError before any work where `folder` is no folder or cannot be written. Makes nothing."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"输出目录 {folder} 无法建立：{existing} 是文件")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"没有写入输出目录 {folder} 的权限")


def write_files(
    files: Mapping[Path, bytes | Iterable[bytes]],
    durable: bool = False,
    staging: Path | None = None,
    private: bool = False,
) -> None:
    """Write all files whole: each beside its place first, then all moved into place; if that fails, no new one stays.

    Contents that are iterables are written piece by piece. With `durable` each file's data is on the disk before it is
    moved. `staging`: a folder of the same file system to write them in first, where what a killed process leaves can
    be found. `private`: for the user's own eyes. Raises InputError where a folder cannot be made or written, or its
    disk is full.
    """
    staged: list[tuple[str, Path]] = []
    moved: list[Path] = []  # where nothing stood before
    folders = {parent for path in files for parent in path.absolute().parents if not parent.exists()}
    try:
        for path, content in files.items():
            if path.is_dir():
                raise IsADirectoryError(0, "同名的文件夹已存在", str(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".clip_gradcam_", suffix=".tmp", dir=staging or path.parent)
            staged.append((temporary, path))
            with os.fdopen(handle, "wb") as file:
                file.writelines([content] if isinstance(content, bytes) else content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            if not private:
                os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp's files are private; results are the user's to share
        for temporary, path in staged:
            new = not path.exists()
            os.replace(temporary, path)
            moved += [path] if new else []
    except BaseException as error:
        _remove([*(temporary for temporary, _ in staged), *moved, *sorted(folders, reverse=True)])
        if not isinstance(error, OSError):
            raise
        raise InputError(f"无法写入 {error.filename or path}：{reason(error)}") from error


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
