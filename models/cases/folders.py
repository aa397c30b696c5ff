"""A folder of annotations: which file is an image's, by its path without the suffix."""

import contextlib
import os
import warnings

from ..errors import InputError, InputWarning, reason
from ..images.reading import DICOM_SUFFIXES
from ..messages import Message
from .files import ReadOnce
from .masks import SUFFIXES
from .matching import PathIndex, parts_of, without_suffix

ANNOTATION_SUFFIXES = (".json", *DICOM_SUFFIXES, *SUFFIXES)  # of several files of one name the first counts


def annotation_in(folder: str, path: str, image: str) -> str | None:
    """The file below a folder that annotates an image, None where there is none; never the image itself.

    `path`: where the image is; `image`: as the list has it. Raises InputError, naming two files, where it cannot be
    told which. The folder is searched once; hidden files and links to folders are passed over.
    """
    candidates = _index(folder).find(path, image, ignoring_suffix=True)
    candidates = [others for files in candidates if (others := [file for file in files if not _is_same(file, path)])]
    if len(candidates) > 1:
        shown = Message("{} 和 {}", candidates[0][0], candidates[1][0])
        raise InputError("标注文件夹 {} 中有 {}，无法知道 {} 的是哪一个", folder, shown, image)
    return min(candidates[0], key=_precedence) if candidates else None


def _precedence(file: str) -> tuple[int, str]:
    return ANNOTATION_SUFFIXES.index(os.path.splitext(file)[1].lower()), file


def _is_same(file: str, path: str) -> bool:
    if os.path.basename(file).lower() != os.path.basename(path).lower():
        return False
    with contextlib.suppress(OSError):
        return os.path.samefile(file, path)
    return False


def _read_index(folder: str) -> PathIndex:
    def warn(error: OSError):
        warnings.warn(InputWarning("无法读取文件夹 {}，已跳过：{}", error.filename, reason(error)), stacklevel=2)

    files = []
    for place, folders, names in os.walk(folder, onerror=warn):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parents = parts_of(os.path.relpath(place, folder))
        for name in sorted(names):
            if name.lower().endswith(ANNOTATION_SUFFIXES) and not name.startswith("."):
                files.append((without_suffix((*parents, name)), os.path.join(place, name)))
    return PathIndex(files)


_index = ReadOnce(_read_index)
