"""Checkpoints by bytes, by the structure of the zip and by opcodes; torch's format before 1.6."""

import bz2
import collections
import copy
import io
import lzma
import pickletools
import struct
import types
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from random import Random

from .mutate import HUGE, command, mutate_bytes, number, own_cache, some, valid_bytes, write
from .pickles import mutate_pickle, pickle_of


class Entry(types.SimpleNamespace):
    """A file in a zip: name, data as it is stored, method, crc, size, compressed, flags, extra."""


def read_zip(data: bytes) -> list[Entry]:
    entries = []
    for info in zipfile.ZipFile(io.BytesIO(data)).infolist():
        name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        start = info.header_offset + 30 + name
        content = data[start + extra : start + extra + info.compress_size]
        entries.append(
            Entry(name=info.filename.encode(), data=content, method=info.compress_type, crc=info.CRC, flags=0,
                  size=info.file_size, compressed=info.compress_size, extra=data[start : start + extra])
        )  # fmt: skip
    return entries


def stored(name: str, data: bytes) -> Entry:
    return Entry(name=name.encode(), data=data, method=0, crc=zlib.crc32(data), flags=0, size=len(data),
                 compressed=len(data), extra=b"")  # fmt: skip


def write_zip(entries: list[Entry], count: int | None = None, comment: bytes = b"") -> bytes:
    """A zip of entries whose fields stand in both headers as they are, right or wrong."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        fields = struct.pack("<HHHHHIII", 20, entry.flags, entry.method, 0, 33, *(
            value % 2**32 for value in (entry.crc, entry.compressed, entry.size)))  # fmt: skip
        name, central = struct.pack("<H", len(entry.name) % 65536), getattr(entry, "central", b"")
        directory += b"PK\1\2\x14\0" + fields + name + struct.pack("<H", len(central)) + bytes(10)
        directory += struct.pack("<I", getattr(entry, "at", len(body))) + entry.name + central
        body += b"PK\3\4" + fields + name + struct.pack("<H", len(entry.extra)) + entry.name + entry.extra + entry.data
    count = len(entries) if count is None else count
    end = struct.pack("<HHHHIIH", 0, 0, count % 65536, count % 65536, len(directory), len(body), len(comment))
    return bytes(body + directory) + b"PK\5\6" + end + comment


def _rename_entry(random, entries, entry) -> None:
    names = (
        "data.pkl",
        "a/data.pkl",
        "../data.pkl",
        "/data.pkl",
        "archive/data/0",
        "",
        "a" * 60000,
        "constants.pkl",
        "\\data.pkl",
    )
    entry.name = random.choice((*(name.encode() for name in names), b"\xff\xfe", mutate_bytes(random, entry.name)))


def _resize_entry(random, entries, entry) -> None:
    setattr(entry, random.choice(("size", "compressed", "crc", "flags", "method", "at")), number(random) % 65536)
    if random.random() < 0.5:
        entry.size = number(random) % 2**32


def _deflate_entry(random, entries, entry) -> None:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    entry.data = packer.compress(entry.data) + packer.flush()
    entry.method, entry.compressed = 8, len(entry.data)


def _bomb_entry(random, entries, entry) -> None:
    entry.data, entry.method = valid_bytes("zeros.deflate"), 8
    entry.compressed, entry.size, entry.crc = len(entry.data), random.choice((HUGE, 100)), 0


def _change_entry(random, entries, entry) -> None:
    entry.data = mutate_bytes(random, entry.data)
    entry.size = entry.compressed = len(entry.data)
    entry.crc = zlib.crc32(entry.data) if random.random() < 0.7 else entry.crc


def _long_entry(random, entries, entry) -> None:
    """Sizes in eight bytes each, right or wrong: zip64."""
    sizes = random.choice(((entry.size, entry.compressed), (number(random) % 2**64, number(random) % 2**64)))
    entry.size = entry.compressed = 2**32 - 1
    entry.central = entry.extra = struct.pack("<HHQQ", 1, 16, *sizes)


def _pack_entry(random, entries, entry) -> None:
    """Compressed in a way that zip allows and torch does not write."""
    entry.method, pack = random.choice(((12, bz2.compress), (14, lzma.compress), (95, zlib.compress)))
    entry.data = pack(entry.data)
    entry.compressed = len(entry.data)


def _double_entry(random, entries, entry) -> None:
    entries.insert(random.randrange(len(entries) + 1), copy.copy(entry))


def _drop_entry(random, entries, entry) -> None:
    entries.remove(entry)


def _shuffle_entries(random, entries, entry) -> None:
    random.shuffle(entries)


def _add_entry(random, entries, entry) -> None:
    name = random.choice(("archive/constants.pkl", "archive/byteorder", "archive/version", "archive/code/a.py", "x"))
    entries.append(stored(name, random.choice((b"big", b"little", b"", b"999999999999", b"cposix\nsystem\n."))))


ZIP_MUTATIONS = (
    _rename_entry, _resize_entry, _resize_entry, _deflate_entry, _bomb_entry, _change_entry, _change_entry,
    _double_entry, _drop_entry, _shuffle_entries, _long_entry, _pack_entry, _add_entry,
)  # fmt: skip


def mutate_zip(random: Random, data: bytes) -> bytes:
    entries = read_zip(data)
    for _ in some(random):
        if entries:
            small = [entry for entry in entries if b"/data/" not in entry.name] or entries
            random.choice(ZIP_MUTATIONS)(random, entries, random.choice(small if random.random() < 0.5 else entries))
    count = len(entries) if random.random() < 0.95 else number(random)
    return write_zip(entries, count, random.choice((b"", b"", b"PK\5\6" + bytes(18), bytes(65000))))


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A torch zip whose data.pkl is another."""
    entries = read_zip(data)
    for index, entry in enumerate(entries):
        if entry.name.endswith(b"data.pkl"):
            entries[index] = stored(entry.name.decode(), change(entry.data))
    return write_zip(entries)


def make_pth_bytes(random: Random) -> list[str]:
    return with_checkpoint(random, mutate_bytes(random, valid_bytes("ours.pth")))


def make_pth_zip(random: Random) -> list[str]:
    return with_checkpoint(random, mutate_zip(random, valid_bytes("ours.pth")))


def make_pth_opcodes(random: Random) -> list[str]:
    whole = random.random() < 0.4
    change = partial(mutate_pickle, random) if whole else partial(pickle_of, random)
    return with_checkpoint(random, with_pickle(valid_bytes("ours.pth" if whole else "weights.pth"), change))


def with_checkpoint(random: Random, data: bytes, suffix: str = ".pth") -> list[str]:
    own_cache()
    return command(random, model=write(f"in/model{suffix}", data))


@cache
def legacy_parts(name: str) -> tuple[tuple[bytes, ...], bytes]:
    """The five pickles that torch's format before 1.6 begins with, and the bytes of the tensors."""
    stream, pickles = io.BytesIO(valid_bytes(name)), []
    for _ in range(5):
        start = stream.tell()
        collections.deque(pickletools.genops(stream), maxlen=0)
        pickles.append(valid_bytes(name)[start : stream.tell()])
    return tuple(pickles), valid_bytes(name)[stream.tell() :]


def make_legacy(random: Random) -> list[str]:
    action = random.randrange(4)
    pickles, tensors = legacy_parts("weights_legacy.pth" if action == 1 else "ours_legacy.pth")
    pickles = list(pickles)
    if action == 0:
        return with_checkpoint(random, mutate_bytes(random, b"".join(pickles)) + tensors)
    if action == 1:
        pickles[3] = pickle_of(random, pickles[3])
    elif action == 2:
        index = random.randrange(5)
        pickles[index] = mutate_pickle(random, pickles[index])
    else:
        tensors = mutate_bytes(random, tensors)
    return with_checkpoint(random, b"".join(pickles) + tensors)
