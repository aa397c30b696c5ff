"""Images: which files the user means, their pixels, and how they travel to the model.

    find_images(["data/train", "more/*.dcm"]) -> ImageList      what there is, and where its results go
    read_image(path) -> uint8 [H, W, 3]                         any format, DICOM in `models.dicom`
    make_loader(ImageDataset(prepare), chunks, num_workers)     decoding beside the model, in order

Imports of this module are light: finding files needs none of the heavy libraries.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from .errors import InputError, InputWarning, reason
from .heatmap import METHOD_LABELS
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", *DICOM_SUFFIXES)
RESULT_PREFIX = "clip_gradcam_"


# -- reading ----------------------------------------------------------------------------------


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as RGB, uint8 [H, W, 3], turned as its EXIF data says.

    Grey levels of 16 or 32 bits are scaled over the image's own range, those of a DICOM file as its window says.
    Raises InputError where the file is missing, damaged or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open(path, "rb") as file:
            if _is_dicom(file, path):
                from .dicom import read_dicom

                return read_dicom(file, path)
            return _read_with_pillow(file)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"找不到图像文件：{path}") from error
    except UnidentifiedImageError as error:  # its text names Python's object, not the file
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
    from PIL import Image

    with Image.open(file) as image:
        return _from_pillow(image)


def _from_pillow(image) -> np.ndarray:
    """A PIL image, turned in place as its EXIF data says -> RGB uint8 [H, W, 3]."""
    from PIL import ImageOps

    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        return _grey_to_rgb(np.asarray(image, dtype=np.float64))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def to_pixels(image) -> np.ndarray:
    """A path, a PIL image or an array -> RGB uint8 [H, W, 3].

    Arrays are [H, W] or [H, W, 1 | 3 | 4], the fourth channel ignored: uint8 as it is, booleans and floats between 0
    and 1 from black to white, grey levels of any other kind over their own range. Raises InputError for others.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if hasattr(image, "getexif"):
        from PIL import ImageOps

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


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Grey levels [H, W] of any range -> uint8 [H, W, 3]; levels that are not finite count as the darkest."""
    return np.repeat(scale_over_own_range(grey, np.isfinite(grey))[..., None], 3, axis=2)


def scale_over_own_range(grey: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Grey levels -> uint8 of the same shape: the counted ones from 0 to 255, the others 0."""
    if not counted.any():
        raise ValueError("没有有限的像素值")
    low, high = grey[counted].min(), grey[counted].max()
    scaled = np.where(counted, grey - low, 0) * (255.0 / (high - low) if high > low else 0.0)
    return np.rint(scaled).astype(np.uint8)


# -- finding ----------------------------------------------------------------------------------


class ImageFile(NamedTuple):
    path: str  # as the user gave it, or below what the user gave
    name: str  # of its results: relative to the output folder, folders parted by "/", without a suffix


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
    found: dict[str, tuple[str, dict[str, None]]] = {}  # real folder -> (path as first given, names)
    roots = []
    for argument in arguments:
        root, folders = _search(os.fspath(argument), exclude)
        roots.append(os.path.abspath(root))
        for folder in folders:
            found.setdefault(folder.real, (folder.path, {}))[1].update(dict.fromkeys(folder.files))
    root = common_parent(roots)
    return ImageList(root, _name_results(found.values(), root))


def _search(argument: str, exclude) -> tuple[str, list[_Folder]]:
    """(the folder in which an argument starts, the folders with images it reaches); InputError if there are none."""
    path = str(PurePath(argument)) if argument else ""
    is_folder = os.path.isdir(path)
    if os.path.lexists(path) and not is_folder:
        root, name = os.path.split(path)
        return root or ".", [_Folder(root or ".", os.path.realpath(root), [name])]
    if not is_folder and not _is_pattern(path):
        raise InputError(f"找不到图像文件或文件夹：{argument}；请检查路径")
    root, parts = (path, ()) if is_folder else _split_pattern(path)
    walk = _Walk(root, exclude)
    folders = [folder for folder in walk.match(root, parts) if folder.files] if os.path.isdir(root) else []
    if not folders:
        passed_over = "（输出目录中的结果不算）" if walk.passed_over else ""
        if is_folder:
            suffixes = " ".join(IMAGE_SUFFIXES)
            raise InputError(
                f"文件夹 {argument} 中没有图像{passed_over}；查找的后缀：{suffixes}；"
                f"其他后缀请用通配符，例如 {os.path.join(path, '**', 'IM*')}"
            )
        raise InputError(f"没有文件符合 {argument}{passed_over}；请检查路径和大小写，** 表示任意层子文件夹")
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
        pending, links, seen = [(path, os.path.realpath(path))], [], set()
        while pending or links:
            if not pending:
                links.sort(reverse=True)
                link, home = links.pop()
                target = os.path.realpath(link)
                if _is_within(home, target) or (self._in_results(target) and not self.starts_in_results):
                    continue
                pending.append((link, target))
            folder, real = pending.pop()
            if real in seen:
                continue
            seen.add(real)
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
            warnings.warn(f"无法读取文件夹 {path}，已跳过：{reason(error)}", InputWarning, stacklevel=2)
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


# -- naming -----------------------------------------------------------------------------------

# What ends the names of an image's results beside the figure's own: <name>_overlay_2, <name>_heatmap_layer, ...
_METHODS = "|".join(map(re.escape, METHOD_LABELS))
_RESULT_ENDING = re.compile(rf"_(overlay|heatmap)(_\d+|_layer|_(?:{_METHODS}))*$")
LONGEST_NAME = 200  # bytes: file systems take 255, endings and suffixes of results need theirs


def common_parent(folders: Iterable[str], flavour=os.path) -> str:
    """The deepest folder that holds all absolute ones; "" where they are on several Windows drives."""
    try:
        return flavour.commonpath(list(folders))
    except ValueError:
        return ""


def place_below(path: str, root: str, flavour=os.path) -> str:
    """An absolute folder relative to the root, "" for the root itself, parted by "/"; a drive is its first folder."""
    if root:
        relative = flavour.relpath(path, root)
    else:
        drive, rest = flavour.splitdrive(path)
        relative = drive.replace(":", "") + rest
    return "/".join(part for part in relative.split(flavour.sep) if part not in ("", "."))


def _name_results(found: Iterable[tuple[str, Iterable[str]]], root: str) -> list[ImageFile]:
    """The images in order, each with the name of its results. `found`: (folder, names of files) pairs."""
    neighbours = defaultdict(list)  # folded place -> folders whose results meet where case does not count
    for path, names in found:
        place = place_below(os.path.abspath(path), root)
        neighbours[_fold(place)].append((place, "" if path == "." else path.removeprefix("." + os.sep), names))
    images = []  # ((place, name) as one string that sorts by parts, image)
    while neighbours:
        _, folders = neighbours.popitem()
        files = sorted((place, name, path) for place, path, names in folders for name in names)
        for (place, name, path), stem in zip(files, _result_stems([name for _, name, _ in files])):
            result = f"{place}/{RESULT_PREFIX}{stem}" if place else RESULT_PREFIX + stem
            key = f"{place}/{name}" if place else name
            images.append((key.replace("/", "\0"), ImageFile(os.path.join(path, name), result)))
    images.sort()
    _warn_of_results(images)
    return [image for _, image in images]


def _warn_of_results(images: Sequence[tuple[str, ImageFile]]) -> None:
    """Earlier results outside of the output folder are taken as images; they hardly are."""
    results = [image.path for _, image in images if os.path.basename(image.path).startswith(RESULT_PREFIX)]
    if results:
        found = f"{len(results)} 张图像的名字以 {RESULT_PREFIX} 开头，例如 {results[0]}"
        warnings.warn(f"{found}；仍作为图像处理，如果是以前的结果，请移走", InputWarning, stacklevel=4)


def _result_stems(names: Sequence[str]) -> list[str]:
    """What the results of the files of one folder are called: their stems, where those keep out of each other's way.

    `001.jpg` beside `001.png`, `001_overlay.png` or `001.JPG` would share a file: all of them keep their suffix, and
    where that is not enough, one after the other takes a number (`-2`: no result ends so). Upper and lower case count
    as one, and so do the ways of composing a letter, since file systems may take them so.
    """
    stems = [os.path.splitext(name)[0] for name in names]
    keys = [_fold(stem) for stem in stems]
    counts = Counter(keys)
    met = {base for base in map(_result_base, counts) if base in counts}
    clear = [counts[key] == 1 and key not in met and _result_base(key) not in counts for key in keys]
    taken = {key for key, is_clear in zip(keys, clear) if is_clear}
    bases = {_result_base(key) for key in taken}
    for index, name in enumerate(names):
        if clear[index]:
            continue
        for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
            key = _fold(candidate)
            if key not in taken and key not in bases and _result_base(key) not in taken:
                break
        stems[index] = candidate
        taken.add(key)
        bases.add(_result_base(key))
    return [_shorten(stem) for stem in stems]


def _fold(name: str) -> str:
    """What two names have in common that some file system takes as one."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _result_base(key: str) -> str | None:
    """The name whose result a name would be, None for most."""
    ending = _RESULT_ENDING.search(key)
    return key[: ending.start()] if ending else None


def _shorten(stem: str) -> str:
    """A stem that leaves room for the results' endings: cut at a character, and told apart by a hash."""
    data, room = stem.encode("utf-8", "surrogatepass"), LONGEST_NAME - len(RESULT_PREFIX)
    if len(data) <= room:
        return stem
    digest = hashlib.sha256(data).hexdigest()[:12]
    start = stem[:room]
    while len(start.encode("utf-8", "surrogatepass")) > room - len(digest) - 1:
        start = start[:-1]
    return f"{start}_{digest}"


# -- decoding beside the model ----------------------------------------------------------------

# fork: nothing is imported again. Elsewhere threads of the system's own libraries do not outlive a fork.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
PREFETCHED_CHUNKS = 2  # per worker: one on its way, one being made

Chunk = tuple[int, list[tuple[int, str | None]]]  # (index, [(position in the list, path or None for no image)])


class DecodedChunk(NamedTuple):
    """Arrays, not tensors: they travel through a pipe and need no shared memory, of which containers have little."""

    index: int
    resized: np.ndarray | list[np.ndarray | None]  # uint8 [B, h, w, 3], zeros where there is no image; or of many sizes
    pixels: list[np.ndarray | None]  # uint8 [H, W, 3] each
    errors: list[str | None]  # why an image could not be read, one line each


class ImageDataset:
    """Chunks of images by their lists of paths: `dataset[index, [(position, path or None), ...]]`.

    A bad image gives its reason, never an exception; what libraries warn of is not shown.
    """

    def __init__(self, prepare: Preprocessing):
        self.prepare = prepare

    def __getitem__(self, chunk: Chunk) -> DecodedChunk:
        index, items = chunk
        resized: np.ndarray | list[np.ndarray | None] = [None] * len(items)
        if self.prepare.fixed_size:
            resized = np.zeros((len(items), *self.prepare.input_size(1, 1), 3), dtype=np.uint8)
        pixels: list[np.ndarray | None] = [None] * len(items)
        errors: list[str | None] = [None] * len(items)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row, (_, path) in enumerate(items):
                if path is None:
                    continue
                try:
                    image = read_image(path)
                    resized[row] = self.prepare.resize_and_crop(image)
                    pixels[row] = image
                except InputError as error:
                    errors[row] = _on_one_line(error)
                except MemoryError:
                    errors[row] = f"无法读取图像 {path}：内存不足；请先缩小图像，或减小 --num-workers"
                except Exception as error:  # whatever a decoder raises: the other images go on
                    errors[row] = f"无法读取图像 {path}：{type(error).__name__}：{_on_one_line(error)}"
        return DecodedChunk(index, resized, pixels, errors)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def make_loader(dataset: ImageDataset, chunks: Iterable[Chunk], num_workers: int) -> torch.utils.data.DataLoader:
    """Iterate over decoded chunks in order; `chunks` is drawn from as they are needed, a few ahead.

    With workers, iterate in the main thread: that is where torch reports one that was killed, as the RuntimeError
    that `is_lost_worker` knows.
    """
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader

    Image.preinit()  # a fork while another thread imports Pillow would leave the worker waiting for it
    options = {}
    if num_workers:
        options = {
            "multiprocessing_context": START_METHOD,
            "prefetch_factor": PREFETCHED_CHUNKS,
            "worker_init_fn": _start_worker,
        }
    own_generator = torch.Generator()  # so that loading leaves the global random numbers alone
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=chunks,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=own_generator,
        **options,
    )


def is_lost_worker(error: BaseException) -> bool:
    """Whether an exception says that a worker of a loader was killed, by the kernel for want of memory, say."""
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def _as_it_is(chunk: DecodedChunk) -> DecodedChunk:
    return chunk


def _start_worker(worker_id: int) -> None:
    """Ctrl-C is the consumer's to answer; torch gets one thread; the worker ends with its consumer.

    OpenCV is left alone: told its number of threads in a fork, it waits forever for those of its parent.
    """
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    if os.name == "posix":
        _end_with_parent()


def _end_with_parent() -> None:
    """End this process soon after its parent, even while it is blocked writing into a pipe that nobody reads."""
    import multiprocessing
    import threading
    import time

    parent = multiprocessing.parent_process().pid

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
