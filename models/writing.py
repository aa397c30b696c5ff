"""How files are written: whole or not at all. And how files of our own are opened in folders where others write."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .errors import InputError, reason
from .messages import Message


def check_output_folder(folder: Path) -> None:
    """Raise InputError before any work where `folder` is no folder or cannot be written. Makes nothing."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists() or is_link(parent))
    if not existing.is_dir():
        what = Message("指向不存在的地方") if is_link(existing) else Message("是文件")
        raise InputError("输出目录 {} 无法建立：{} {}", folder, existing, what)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("没有写入输出目录 {} 的权限", folder)


def write_files(
    files: Mapping[Path, bytes | Iterable[bytes]],
    durable: bool = False,
    staging: Path | None = None,
    private: bool = False,
    within: Path | None = None,
) -> None:
    """Write all files whole: each beside its place first, then all moved into place; if that fails, no new one stays.

    Contents that are iterables are written piece by piece. With `durable` each file's data is on the disk before it is
    moved. `staging`: a folder of the same file system to write them in first, where what a killed process leaves can
    be found. `private`: for the user's own eyes. `within`: a folder that the files must not leave through a link below
    it. What stands at a file's own place is replaced, a link too: never what it leads to. Raises InputError where a
    folder cannot be made or written, or its disk is full.
    """
    for path in files if within is not None else ():
        check_no_link_between(within, path)
    staged: list[tuple[str, Path]] = []
    moved: list[Path] = []  # where nothing stood before
    folders = {parent for path in files for parent in path.absolute().parents if not os.path.lexists(parent)}
    try:
        for path, content in files.items():
            if path.is_dir() and not is_link(path):
                raise IsADirectoryError(0, Message("同名的文件夹已存在"), str(path))
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
            new = not os.path.lexists(path)
            os.replace(temporary, path)
            moved += [path] if new else []
    except BaseException as error:
        _remove(os.unlink, [*(temporary for temporary, _ in staged), *moved])
        _remove(os.rmdir, sorted(folders, reverse=True))
        if isinstance(error, InputError) or not isinstance(error, (OSError, ValueError)):
            raise
        # ValueError: a NUL in a name
        raise InputError("无法写入 {}：{}", getattr(error, "filename", None) or path, reason(error)) from error


def _remove(remove, paths: Iterable) -> None:
    """Remove files, or empty folders; what is not there, or not empty, stays as it is."""
    for path in paths:
        with contextlib.suppress(OSError):
            remove(path)


def is_link(path: str | os.PathLike) -> bool:
    """Whether a symbolic link or, on Windows, a junction (which Python 3.12 can tell) stands at `path`."""
    return os.path.islink(path) or getattr(os.path, "isjunction", lambda path: False)(path)


def check_no_link_between(folder: Path, path: Path) -> None:
    """InputError where a folder between `folder` and a file below it is a link: what is written would go elsewhere.

    `folder` itself may be one: that is the user's own way of saying where.
    """
    for parent in path.parents[: len(path.parts) - len(folder.parts) - 1]:
        if is_link(parent):
            raise InputError("{} 是链接，不经由它写到别处：请删除这个链接，或换 --output-dir", parent)


def check_own(path: Path, kind: Callable[[int], bool] = stat.S_ISREG) -> None:
    """InputError where something else than a file of our own (or, by `kind`, a folder) stands at `path` itself.

    A link, a pipe, a device: nothing is read from it, written to it or removed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not kind(os.lstat(path).st_mode) or is_link(path):
            raise not_our_own(path)


def not_our_own(path) -> InputError:
    return InputError("{} 不是本工具写的（是链接、管道、设备，或类型不对）：请删除它，或换 --output-dir", path)


_OPEN_MODES = {"rb": os.O_RDONLY, "r+b": os.O_RDWR | os.O_CREAT, "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT}
_AS_IT_IS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


def open_own(path: Path, mode: str = "rb"):
    """Open a file of our own, unbuffered where it is written to; nothing else that stands there, no wait for a pipe.

    `mode`: "rb", "r+b", "ab"; the latter two make a file where there is none, and take none that is a second name of
    another. Raises InputError as `check_own`, OSError.
    """
    check_own(path)
    handle = os.open(path, _OPEN_MODES[mode] | _AS_IT_IS, 0o666)
    try:
        status = os.fstat(handle)  # it may be another by now
        if not stat.S_ISREG(status.st_mode) or (mode != "rb" and status.st_nlink > 1):
            raise not_our_own(path)
        return os.fdopen(handle, mode, buffering=-1 if mode == "rb" else 0)
    except BaseException:
        os.close(handle)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


UMASK = _umask()  # once: reading it sets it for a moment, in all threads
