"""The two formats of `torch.save`, and TorchScript's: a pickle, and beside it the bytes of tensors.

    value, passed_over = read_archive("model.pth", mapped=True)      # a zip, since torch 1.6; `torch.jit.save`
    value, passed_over = read_legacy("model.pth")                    # one stream, before

Neither `torch.load` nor `torch.jit.load` is called: see `models.weights.pickles` for what a pickle may say. Sizes that
a file declares are held against what is there before memory is taken.
"""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path

from ..heavy import torch
from .pickles import LARGEST_PICKLE, Stream, read_pickle
from .plain import BadPickle, Storage, dtype_of

LARGEST_DIRECTORY = 16 << 20  # bytes of a zip's directory: a hundred for each tensor
MOST_INFLATED = 20  # what a compressed entry may grow by: weights hardly do
# what zipfile makes of a damaged file
DAMAGE = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError, OSError, struct.error)
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class BadArchive(BadPickle):
    """A file around a pickle that is damaged, or not what it says it is; the message says why, in Chinese."""


# -- zip --------------------------------------------------------------------------------------


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip whose directory is small enough to be read; BadArchive where it is damaged."""
    with open(path, "rb") as file:
        size = _directory_size(file)
    if size > LARGEST_DIRECTORY:
        raise BadArchive("压缩包的目录有 {} MB", size >> 20)
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise BadArchive("压缩包的目录已损坏") from error


def _directory_size(file) -> int:
    """What the end of a zip says of its directory's size in bytes; 0 where it says nothing."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - (1 << 16) - 42))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    size = int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0
    large = tail.rfind(b"PK\x06\x06") if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07") else -1
    return int.from_bytes(tail[large + 40 : large + 48], "little") if large >= 0 else size


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is what `torch.jit.save` writes: a zip with constants.pkl, which other checkpoints have not."""
    if not zipfile.is_zipfile(path):
        return False
    with open_archive(Path(path)) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


def read_archive(path: Path, mapped: bool = False) -> tuple[object, list[str]]:
    """(what stands in a zip of torch's, the names of objects that were passed over).

    `mapped`: tensors stay in the file. BadArchive or BadPickle where it is damaged.
    """
    with open_archive(path) as archive, open(path, "rb") as file:
        pickled = _pickled_entry(archive)
        if pickled.file_size > LARGEST_PICKLE:
            raise BadPickle("其中的 pickle 超过 {} MB", LARGEST_PICKLE >> 20)
        folder = pickled.filename.removesuffix("data.pkl")
        storages = _Storages(path, archive, file, folder, mapped)
        return read_pickle(io.BytesIO(read_entry(archive, pickled)), storages)


def _pickled_entry(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The one pickle of a zip; BadArchive where there is none, or more."""
    entries = [entry for entry in archive.infolist() if re.fullmatch(r"(?:[^/]+/)?data\.pkl", entry.filename)]
    if len(entries) != 1:
        raise BadArchive("其中有两个 data.pkl" if entries else "其中没有 data.pkl，不是 PyTorch 保存的文件")
    return entries[0]


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """All bytes of an entry, its CRC checked."""
    if entry.file_size > MOST_INFLATED * entry.compress_size + (1 << 20):
        raise BadArchive("{} 解压后大得可疑", entry.filename)
    try:
        with archive.open(entry) as stream:
            if not entry.CRC:  # torch was told to write none
                stream._expected_crc = None
            data = stream.read(entry.file_size)  # without a number all is inflated, whatever the directory says
    except DAMAGE as error:
        raise BadArchive("{} 已损坏（校验不符）", entry.filename) from error
    if len(data) != entry.file_size:
        raise BadArchive("{} 不完整", entry.filename)
    return data


class _Storages:
    """The storages of a zip by what its pickle says of them: ("storage", class, key, place, count of numbers)."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, file, folder: str, mapped: bool):
        self._archive, self._file, self._storages = archive, file, {}
        start = f"{folder}data/"
        entries = [entry for entry in archive.infolist() if entry.filename.startswith(start)]
        self._entries = {entry.filename.removeprefix(start): entry for entry in entries}
        if len(self._entries) < len(entries):
            raise BadArchive("其中有同名的张量")
        self._read_bytes = 0  # entries may lie over each other
        self._size = os.fstat(file.fileno()).st_size
        self._whole = torch.UntypedStorage.from_file(str(path), False, self._size) if mapped else None
        self._swapped = self._byte_order(folder) != sys.byteorder

    def _byte_order(self, folder: str) -> str:
        name = f"{folder}byteorder"
        if name not in self._archive.namelist():
            return "little"  # before torch 2.1, which was the first to say so
        return read_entry(self._archive, self._archive.getinfo(name)).decode("latin-1")

    def __call__(self, identity) -> Storage:
        kind, dtype, key, _, count = identity
        if kind != "storage" or type(count) is not int or key not in self._entries:
            raise BadPickle("其中有张量没有数据")
        dtype = dtype_of(dtype)
        if key not in self._storages:
            size, entry = count * dtype.itemsize, self._entries[key]
            if entry.file_size != size:
                raise BadPickle("其中有张量的大小与数据不符")
            self._storages[key] = self._read(entry, size, dtype)
        return Storage(dtype, count, self._storages[key])

    def _read(self, entry: zipfile.ZipInfo, size: int, dtype):
        if not size:
            return torch.UntypedStorage(0)
        if self._whole is not None and entry.compress_type == zipfile.ZIP_STORED and not self._swapped:
            offset = self._offset(entry)
            return self._whole[offset : offset + size]
        self._read_bytes += size
        if self._read_bytes > MOST_INFLATED * self._size:
            raise BadArchive("其中的张量合起来大得可疑")
        storage = torch.frombuffer(bytearray(read_entry(self._archive, entry)), dtype=torch.uint8).untyped_storage()
        if self._swapped:
            storage.byteswap(dtype)
        return storage

    def _offset(self, entry: zipfile.ZipInfo) -> int:
        """Where an entry's bytes begin: behind a header of its own, whose length the directory does not say."""
        self._file.seek(max(0, entry.header_offset))
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04" or entry.header_offset < 0:
            raise BadArchive("{} 已损坏", entry.filename)
        name, extra = struct.unpack("<HH", header[26:30])
        offset = entry.header_offset + 30 + name + extra
        if offset + entry.file_size > self._size:
            raise BadArchive("{} 不完整", entry.filename)
        return offset


# -- one stream -------------------------------------------------------------------------------


def is_legacy(start: bytes) -> bool:
    """Whether a file's first bytes are the number that torch before 1.6 began with."""
    number = LEGACY_MAGIC.to_bytes(10, "little")
    return start[:1] == b"\x80" and number in start[:32]


def read_legacy(path: Path) -> tuple[object, list[str]]:
    """(what stands in a file of torch before 1.6, the names of objects that were passed over).

    Five pickles (a number, the version, the machine, the object, the keys of its storages), then each storage: its
    count of numbers, its bytes. The object is read twice: first for the storages' types, then over their bytes.
    """
    with open(path, "rb") as file:
        magic, version, machine = (read_pickle(Stream(file))[0] for _ in range(3))
        if (magic, version) != (LEGACY_MAGIC, 1001) or not isinstance(machine, dict):
            raise BadArchive("不是 PyTorch 保存的文件")
        if machine.get("little_endian", True) != (sys.byteorder == "little"):
            raise BadArchive("它是在另一种字节序的机器上保存的；请用较新的 PyTorch 重新保存")
        start, declared = file.tell(), {}
        read_pickle(Stream(file), lambda identity: _declare(declared, identity))
        keys = read_pickle(Stream(file))[0]
        storages = {key: _read_storage(file, declared, key) for key in _as_list(keys)}
        file.seek(start)
        return read_pickle(Stream(file), lambda identity: _storage_of(storages, identity))


def _as_list(keys) -> list:
    if not isinstance(keys, list):
        raise BadArchive("文件已损坏")
    return keys


def _parts(identity) -> tuple:
    """(dtype, key, count) of what a legacy pickle says of a storage; the last part, a view, is no longer written."""
    kind, dtype, key, _, count, *view = identity
    if kind != "storage" or type(count) is not int or count < 0 or view not in ([], [None]):
        raise BadPickle("其中有张量以外的外部数据")
    return dtype_of(dtype), key, count


def _declare(declared: dict, identity) -> Storage:
    dtype, key, count = _parts(identity)
    declared[key] = (dtype, count)
    return Storage(dtype, count)


def _read_storage(file, declared: dict, key):
    """The next storage of the stream; BadArchive where it is not what the pickle says, or not whole."""
    dtype, count = declared.get(key, (None, None))
    size = os.fstat(file.fileno()).st_size - file.tell() - 8
    number = file.read(8)
    if dtype is None or len(number) < 8 or int.from_bytes(number, "little") != count or count * dtype.itemsize > size:
        raise BadArchive("文件不完整，或已损坏")
    data = bytearray(count * dtype.itemsize)
    if file.readinto(data) != len(data):
        raise BadArchive("文件不完整")
    return torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)


def _storage_of(storages: dict, identity) -> Storage:
    dtype, key, count = _parts(identity)
    if key not in storages:
        raise BadPickle("其中有张量没有数据")
    return Storage(dtype, count, storages[key])
