"""Text features kept between runs, in the user's cache folder: keyed by content, never by path or date.

    cached = CachedFeatures(path, texts, "cpu")      # before the file is read
    if cached.load_for(config):                      # of a published model: `unless_cached`
        features, unread = cached.entry
    else:
        cached.keep(features, unread)                # once they are computed

The key says everything that the features depend on, so an entry is never out of date: what changes, be it
one weight, one line of the vocabulary or the version of a library, has another key. Nothing in an entry
is executed, and an entry that is not whole counts as absent, as does one that another user may have written: who
makes the features makes the prediction. A cache that cannot be used is no cache: no function here raises for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..class_texts import ClassText, descriptions_of
from ..errors import InputError
from ..heavy import torch
from ..inputs import check_regular_file
from ..messages import Message
from ..towers.unread import Unread
from ..weights.hub import ASSETS, hub_folder, text_encoder_source
from ..writing import check_own, open_own, write_files
from .fingerprint import fingerprint, hash_file, model_files

if TYPE_CHECKING:
    from ..towers.tokenizers import TokenizerFiles

FORMAT = "clip-gradcam text features 4"  # another number where TextEncoder or this file comes to mean something else
TOKENIZER_FILES = ("vocab.txt", "tokenizer*.json", "config*.json", "special_tokens_map.json", "added_tokens.json")
DEFAULT_TEXT_ENCODER = "bert-base-chinese"
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
OPTIONAL_LIBRARIES = ("sentencepiece",)  # tokenizers of some published models are read with them


class Entry(NamedTuple):
    """What is kept of K texts."""

    features: np.ndarray  # float32 [K, D]
    unread: list[Unread]  # of the descriptions that were not read whole


class CachedFeatures:
    """What the cache has of a checkpoint's features of K texts; to be made before the checkpoint is read.

    `path`: of a file or a folder, or a name on the hub, whose features are not kept.
    """

    def __init__(self, path: str | os.PathLike, texts: Sequence[ClassText], device: str):
        self._path, self._texts, self._device = path, texts, device
        self._state = file_state(path)
        self._tokenizer_files, self._tokenizer_state = (), ()
        self._key: str | None = None
        self.entry: Entry | None = None

    def load_for(self, config: Mapping, tokenizer: TokenizerFiles | None = None) -> bool:
        """Set `entry` to what the cache has for our own model of this config; returns whether it has any.

        `tokenizer`: CLIP's, where the text tower is CLIP's; None for that of the text encoder.
        """
        if tokenizer is None:
            files = text_encoder_files(config.get("text_encoder", DEFAULT_TEXT_ENCODER))
        else:
            files = self._files_of(tokenizer)
        return self._load(files, sizes_of(config), config.get("embed_dim"))

    def load_published(self, tokenizer: TokenizerFiles, *settings) -> bool:
        """The same for a published model; `settings`: what its text tower depends on and its files do not say."""
        return self._load(self._files_of(tokenizer), {"settings": [repr(setting) for setting in settings]})

    def keep(self, features: np.ndarray, unread: Sequence[Unread]) -> None:
        """Store features [K, D] and what is not read of the descriptions, if all files are still those of before."""
        tokenizer_state = _states_of(self._tokenizer_files)
        if self._key and file_state(self._path) == self._state and tokenizer_state == self._tokenizer_state:
            store_entry(self._key, features, unread)

    def _load(self, tokenizer_files: list | None, sizes: Mapping[str, object], width: int | None = None) -> bool:
        content = self._content()
        if content is not None:
            self._key = text_features_key(content, tokenizer_files, sizes, self._texts, self._device)
        if self._key:
            descriptions = sum(len(descriptions_of(text)) for text in self._texts)
            self.entry = load_entry(self._key, (len(self._texts), width), descriptions)
        return self.entry is not None

    def _content(self) -> str | None:
        """The checkpoint's fingerprint; None where it is not the one that was read: a training may have replaced it."""
        try:
            content = fingerprint(self._path)
        except (OSError, InputError):
            return None
        return content if self._state is not None and file_state(self._path) == self._state else None

    def _files_of(self, tokenizer: TokenizerFiles) -> list | None:
        """As `text_encoder_files`, of the very files that a tokenizer is made of."""
        self._tokenizer_files, self._tokenizer_state = tokenizer.files, _states_of(tokenizer.files)
        return _hashed(tokenizer.kind, tokenizer.files)


def unless_cached(cached: CachedFeatures | None, tokenizer: TokenizerFiles | None, *settings) -> TokenizerFiles | None:
    """The tokenizer of a published model; None where the cache has its texts' features, which then need no text tower.

    `cached`: as a reader is given it. `settings`: as for `load_published`.
    """
    if cached is None or tokenizer is None:
        return tokenizer
    return None if cached.load_published(tokenizer, *settings) else tokenizer


def text_features_key(
    fingerprint: str, tokenizer_files: list | None, sizes: Mapping, texts: Sequence[ClassText], device: str
) -> str | None:
    """64 hexadecimal digits that stand for everything that text features depend on; None if it cannot be said.

    `tokenizer_files`: see `text_encoder_files`. `sizes`: what else the text tower is built by, plain values. `device`:
    its type. The order of the texts counts, and the number of threads, which changes the last bits of sums.
    """
    if tokenizer_files is None:
        return None
    try:
        versions = [metadata.version(name) for name in LIBRARIES]
    except metadata.PackageNotFoundError:
        return None
    versions += [_version_of(name) for name in OPTIONAL_LIBRARIES]
    content = [FORMAT, fingerprint, tokenizer_files, sizes, list(texts), _arithmetic(device), versions]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _version_of(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def file_state(path: str | os.PathLike) -> tuple | None:
    """What changes when another file takes this one's place: compared before and after, no part of a key.

    Of a folder, and of an adapter beside a file, that of all files that the model is read from.
    """
    try:
        return _states_of(model_files(path))
    except (OSError, InputError):
        return None


def _states_of(files: Iterable[str | os.PathLike]) -> tuple | None:
    try:
        states = [os.stat(file) for file in files]
    except OSError:
        return None
    return tuple((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def _arithmetic(device: str) -> list:
    """What changes the last bits of a result on a device: its model, the instructions and threads in use."""
    kind = torch.device(device).type
    model = torch.cuda.get_device_name() if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
    return [kind, model, torch.get_num_threads(), torch.get_float32_matmul_precision()]


def sizes_of(config: Mapping) -> dict[str, str]:
    """What of our own model's config enters its text tower."""
    sizes = {str(name): repr(value) for name, value in (config.get("text_config") or {}).items()}
    return {**sizes, "embed_dim": repr(config.get("embed_dim"))}


def text_encoder_files(name: str) -> list | None:
    """[what kind of source, [[file name, hash], ...]] of the files that a text encoder's name stands for.

    `name`: a shipped name, a local folder or a hub name. None where they are not at hand: a hub name outside the local
    cache, or a folder without a vocabulary.
    """
    try:
        source = text_encoder_source(name)
    except InputError:
        return None
    folder = Path(source)
    if folder.is_dir():
        kind = f"shipped {folder.name}" if folder.is_relative_to(ASSETS) else "folder"
    else:
        kind, folder = f"hub {source}", hub_folder(source)
    if folder is None:
        return None
    paths = sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    names = {path.name for path in paths}
    return _hashed(kind, paths) if "config.json" in names and names & {"vocab.txt", "tokenizer.json"} else None


def _hashed(kind: str, paths: Iterable[Path]) -> list | None:
    """[kind, [[file name, hash], ...]]; None where a file cannot be read."""
    try:
        return [kind, [[path.name, _hash_of(path)] for path in paths]]
    except (OSError, InputError):
        return None


def _hash_of(path: Path) -> str:
    check_regular_file(path, Message("无法读取分词器的文件 {}", path))
    digest = hashlib.sha256()
    hash_file(path, digest)
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------
# Entries: SHA-256 of the rest, one line of JSON, the features as `.npy`

DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """`clip_gradcam` in $XDG_CACHE_HOME, else in `~/.cache`. RuntimeError where the user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "clip_gradcam"


def _entry_path(key: str) -> Path:
    return cache_folder() / f"{key}.text"


LARGEST_ENTRY = 1 << 26  # bytes: 1000 texts of 4096 numbers take a quarter
# What numpy writes before a matrix of float32; read by us, so that no size is believed before its bytes are there.
_NPY = re.compile(
    rb"(?s)\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9})\), \} *\n"
)


def load_entry(
    key: str, shape: tuple[int | None, int | None] = (None, None), most_unread: int | None = None
) -> Entry | None:
    """What is kept under `key`; None where there is no whole entry.

    `shape`: the (K, D) that the features must have, None for any. `most_unread`: how many descriptions
    there are of which a part may be unread, None for K. An entry that another user can write is none.
    """
    try:
        data = _read_own(_entry_path(key))
        digest, rest = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        line, _, array = rest.partition(b"\n")
        header = json.loads(line) if digest == hashlib.sha256(rest).digest() else {}
        if header.get("format") != FORMAT or header.get("key") != key:
            return None
        features = _features_of(array)
        unread = [Unread(*part) for part in header["unread"]]
    except Exception:  # a file of somebody else's may hold anything
        return None
    fits = all(size in (None, own) for size, own in zip(shape, features.shape)) and np.isfinite(features).all()
    are_unread = all([type(value) for value in part] == [str, int, int, str] for part in unread)
    most_unread = len(features) if most_unread is None else most_unread
    return Entry(features, unread) if fits and are_unread and len(unread) <= most_unread else None


def _read_own(path: Path) -> bytes:
    """The bytes of a regular file in a folder, both the user's own; InputError, OSError where they are not."""
    _check_ours(path.parent, os.lstat(path.parent), stat.S_ISDIR)
    with open_own(path) as file:
        status = os.fstat(file.fileno())
        _check_ours(path, status, stat.S_ISREG)
        if status.st_size > LARGEST_ENTRY:
            raise InputError("{} 太大", path)
        return file.read(LARGEST_ENTRY)


def _check_ours(path: Path, status: os.stat_result, kind) -> None:
    """InputError where `path`, of this kind, is another user's, or a file that others may write; root may do all."""
    check_own(path, kind)
    if not hasattr(os, "getuid"):  # Windows: the user's own folders are closed to others
        return
    if status.st_uid == os.getuid():  # in a folder of ours that is open to all, a file of ours is still ours
        open_to = stat.S_IWOTH if kind is stat.S_ISREG else 0
    elif status.st_uid == 0:
        open_to = stat.S_IWGRP | stat.S_IWOTH
    else:
        open_to = stat.S_IFMT(status.st_mode)  # anything
    if status.st_mode & open_to:
        raise InputError("{} 是其他用户的，或可由其他用户写入", path)


def _features_of(array: bytes) -> np.ndarray:
    """The float32 matrix of a `.npy` file's bytes; ValueError where they are anything else."""
    header = _NPY.match(array)
    if header is None:
        raise ValueError("no matrix of float32")
    shape = int(header[1]), int(header[2])
    if header.end() + 4 * shape[0] * shape[1] != len(array):
        raise ValueError("not as many numbers as the header says")
    return np.frombuffer(array, "<f4", offset=header.end()).reshape(shape).copy()


def store_entry(key: str, features: np.ndarray, unread: Sequence[Unread] = ()) -> None:
    """Keep features float32 [K, D] and what was not read of the texts, whole or not at all."""
    header = json.dumps({"format": FORMAT, "key": key, "unread": list(unread)})
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(features), allow_pickle=False)
    rest = header.encode() + b"\n" + buffer.getvalue()
    with contextlib.suppress(InputError, OSError, RuntimeError):  # no home, no permission, no space: no cache
        path = _entry_path(key)
        if os.path.lexists(path.parent):
            _check_ours(path.parent, os.lstat(path.parent), stat.S_ISDIR)
        write_files({path: hashlib.sha256(rest).digest() + rest}, private=True)
