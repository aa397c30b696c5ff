"""Which images the user means: files, folders and patterns as a list of images, each with the name of its results.

find_images(["data/train", "more/*.dcm"]) -> ImageList
"""

import fnmatch
import os
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

from ..errors import InputError, InputWarning, reason
from ..messages import Message
from .naming import RESULT_PREFIX, ImageFile, common_parent, name_results
from .reading import DICOM_SUFFIXES

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", *DICOM_SUFFIXES)


class ImageList(NamedTuple):
    root: str  # absolute: the folder that the results' folders are relative to; "" over several Windows drives
    images: list[ImageFile]


class _Folder(NamedTuple):
    path: str  # as given
    real: str  # absolute, links resolved
    files: list[str]  # names


def is_single(arguments: Sequence[str]) -> bool:
    """Whether the arguments mean one image: one argument, neither a folder nor a pattern that is no file's name."""
    arguments = _as_list(arguments)
    if len(arguments) != 1:
        return False
    path = os.fspath(arguments[0])
    return not os.path.isdir(path) and (os.path.lexists(path) or not _is_pattern(path))


def _as_list(arguments: Sequence[str] | str | os.PathLike) -> list:
    return [arguments] if isinstance(arguments, (str, os.PathLike)) else list(arguments)


def find_images(arguments: Sequence[str], exclude: str | os.PathLike | None = None) -> ImageList:
    """The images that files, folders and glob patterns mean, each once, ordered by their path below the root.

    A folder is searched recursively for `IMAGE_SUFFIXES`; hidden files and folders are passed over, links to folders
    followed unless they lead back. A pattern (`*`, `?`, `[]`, `**`) stands for what a shell would make of it: files of
    any suffix, folders to be searched; what exists as it is written is no pattern. A file named explicitly is taken.

    Results are no input: below the folder `exclude` (the output folder) nothing is searched, and where the search
    starts in it, files called `clip_gradcam_*` are passed over.

    Raises InputError for an argument that means no image.
    """
    arguments = _as_list(arguments)
    if not arguments:
        raise InputError("没有给出图像")
    folders_by_path: dict[str, tuple[str, dict[str, None]]] = {}  # real folder -> (path as first given, names)
    roots = []
    for argument in arguments:
        root, folders = _search(os.fspath(argument), exclude)
        roots.append(os.path.abspath(root))
        for folder in folders:
            folders_by_path.setdefault(folder.real, (folder.path, {}))[1].update(dict.fromkeys(folder.files))
    root = common_parent(roots)
    return ImageList(root, name_results(folders_by_path.values(), root))


def _search(argument: str, exclude) -> tuple[str, list[_Folder]]:
    """(the folder in which an argument starts, the folders with images it reaches); InputError if there are none."""
    path = str(PurePath(argument)) if argument else ""
    is_folder = os.path.isdir(path)
    if os.path.lexists(path) and not is_folder:
        root, name = os.path.split(path)
        return root or ".", [_Folder(root or ".", os.path.realpath(root), [name])]
    if not is_folder and not _is_pattern(path):
        raise InputError("找不到图像文件或文件夹：{}；请检查路径", argument)
    root, parts = (path, ()) if is_folder else _split_pattern(path)
    walk = _Walk(root, exclude)
    folders = [folder for folder in walk.match(root, parts) if folder.files] if os.path.isdir(root) else []
    if not folders:
        passed_over = Message("（输出目录中的结果不算）") if walk.passed_over else ""
        if is_folder:
            suffixes = " ".join(IMAGE_SUFFIXES)
            raise InputError(
                "文件夹 {} 中没有图像{}；查找的后缀：{}；其他后缀请用通配符，例如 {}",
                argument,
                passed_over,
                suffixes,
                os.path.join(path, "**", "IM*"),
            )
        raise InputError("没有文件符合 {}{}；请检查路径和大小写，** 表示任意层子文件夹", argument, passed_over)
    return root, folders


def _is_pattern(path: str) -> bool:
    return any(character in path for character in "*?[")


def _split_pattern(path: str) -> tuple[str, tuple[str, ...]]:
    """(the leading part of a pattern that is a plain path, the parts that follow)."""
    parts = PurePath(path).parts
    fixed = 0
    while fixed < len(parts) - 1 and (
        not _is_pattern(parts[fixed]) or os.path.lexists(os.path.join(*parts[: fixed + 1]))
    ):
        fixed += 1
    return (os.path.join(*parts[:fixed]) if fixed else "."), parts[fixed:]


class _Walk:
    """The folders below a start. Results are passed over: see `find_images`."""

    def __init__(self, start: str, exclude: str | os.PathLike | None):
        self.exclude = None if exclude is None else os.path.realpath(exclude)
        self.starts_in_results = self._in_results(os.path.realpath(start))
        self.passed_over = False

    def _in_results(self, real: str) -> bool:
        return self.exclude is not None and _is_within(real, self.exclude)

    def match(self, path: str, parts: tuple[str, ...]) -> Iterator[_Folder]:
        """The folders below `path`, each with the files that the parts of a pattern mean; without parts: its images."""
        if not parts or parts == ("**",):
            for folder in self.below(path):
                images = [name for name in folder.files if name.lower().endswith(IMAGE_SUFFIXES)]
                yield folder._replace(files=images)
        elif parts[0] == "**":
            for folder in self.below(path):
                yield from self.match(folder.path, parts[1:])
        else:
            real = os.path.realpath(path)
            if self._in_results(real) and not self.starts_in_results:
                self.passed_over = True
                return
            files, folders = self._pick(path, real, parts[0])
            if len(parts) == 1:
                yield _Folder(path, real, files)
            for name in sorted(folders):
                yield from self.match(os.path.join(path, name), parts[1:])

    def _pick(self, path: str, real: str, part: str) -> tuple[list[str], list[str]]:
        """(names of files, names of folders) in a folder that one part of a pattern means."""
        if not _is_pattern(part):
            chosen = os.path.join(path, part)
            is_folder = os.path.isdir(chosen)
            return [part] if os.path.lexists(chosen) and not is_folder else [], [part] if is_folder else []
        fits = _matcher(part)
        files, folders, links = self._scan(path, real)
        return [name for name in files if fits(name)], [name for name in folders + links if fits(name)]

    def below(self, path: str) -> Iterator[_Folder]:
        """Every folder from `path` down, once; links come last, and only where they lead somewhere new."""
        pending, links, visited = [(path, os.path.realpath(path))], [], set()
        while pending or links:
            if not pending:
                links.sort(reverse=True)
                link, home = links.pop()
                target = os.path.realpath(link)
                if _is_within(home, target) or (self._in_results(target) and not self.starts_in_results):
                    continue
                pending.append((link, target))
            folder, real = pending.pop()
            if real in visited:
                continue
            visited.add(real)
            files, folders, linked = self._scan(folder, real)
            yield _Folder(folder, real, files)
            pending += [(os.path.join(folder, name), os.path.join(real, name)) for name in folders]
            links += [(os.path.join(folder, name), real) for name in linked]

    def _scan(self, path: str, real: str) -> tuple[list[str], list[str], list[str]]:
        """Names of (files, folders, links to folders) in one folder, without hidden ones and results."""
        files, folders, links = [], [], []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        (links if _is_link(entry) else folders).append(entry.name)
                    elif entry.is_file() or entry.is_symlink():  # a link to nowhere: named among the failures
                        files.append(entry.name)
        except OSError as error:
            warnings.warn(InputWarning("无法读取文件夹 {}，已跳过：{}", path, reason(error)), stacklevel=2)
        if self.starts_in_results:
            kept_files, kept_folders = [name for name in files if not name.startswith(RESULT_PREFIX)], folders
        else:
            kept_files = files
            kept_folders = [name for name in folders if os.path.join(real, name) != self.exclude]
        self.passed_over |= len(kept_files) < len(files) or len(kept_folders) < len(folders)
        return kept_files, kept_folders, links


def _is_link(entry: os.DirEntry) -> bool:
    """Whether a folder's entry is a symbolic link or, on Windows, a junction (which Python 3.12 can tell)."""
    return entry.is_symlink() or (hasattr(entry, "is_junction") and entry.is_junction())


def _matcher(part: str) -> Callable[[str], object]:
    """Whether a name fits one part of a glob pattern; upper and lower case as the system takes them."""
    flags = re.IGNORECASE if os.name == "nt" else 0
    pattern = re.compile(fnmatch.translate(unicodedata.normalize("NFC", part)), flags)
    return lambda name: pattern.match(unicodedata.normalize("NFC", name))


def _is_within(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
