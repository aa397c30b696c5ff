"""Valid inputs of every kind, and what the fuzzer makes of them; see fuzz.py.

KINDS is a table: kind -> make(random) -> argv. A maker writes its input below the working folder, `in/` by habit, and
returns the command line for it; what it starts from stands in VALID, written once by `write_valid`. The same random
numbers make the same input. Nothing here does harm when it is read by a careful program: each payload calls
`canary.call`, or would write a file EXECUTED into the working folder.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import importlib
import io
import json
import os
import pathlib
import pickle
import pickletools
import shutil
import stat
import struct
import types
import uuid
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random

import canary
import numpy as np
import torch

import clip_gradcam_visualization as script

VALID = Path("../../valid")  # seen from the folder of an input
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 32, 64, 100, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536)
NUMBERS += (10**6, 2**24, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 10**10, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
TEXTS = {"正常": "关节间隙正常。", "松动": "假体周围可见透亮线。", "感染": "骨质破坏伴骨膜反应。"}
ODD_TEXTS = ("", " ", "\0", "a\nb", "\x1b[31m红", "\u202eabc", "\ufeff", "=1+1", "../../x", "/etc/passwd", "正" * 5000)
ODD_TEXTS += (
    "nan",
    "inf",
    "-1",
    "1e400",
    "0x10",
    "9" * 400,
    "None",
    "true",
    "{}",
    "[1]",
    "%s%n",
    "a\u2028b",
    "😀",
    "\x85",
)
HUGE = 300_000_000  # bytes that a small file claims to hold


# -- mutators of bytes and of trees -------------------------------------------------------------


def number(random: Random) -> int:
    """A number on or beside an edge."""
    return random.choice((1, 1, 1, -1)) * random.choice(NUMBERS) + random.choice((0, 0, 0, -1, 1))


def position(random: Random, length: int) -> int:
    """A place in a file, as often near one of its ends, where formats keep what matters, as anywhere."""
    share = random.random() ** random.choice((1, 4, 8))
    return min(int((share if random.random() < 0.7 else 1 - share) * length), max(0, length - 1))


def _set_number(random, data, at) -> None:
    size = random.choice((1, 2, 4, 8))
    value = number(random) % 256**size
    data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))


def _flip_bit(random, data, at) -> None:
    data[at : at + 1] = bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1])


def _set_byte(random, data, at) -> None:
    data[at : at + 1] = bytes([random.randrange(256)])


def _insert(random, data, at) -> None:
    data[at:at] = random.randbytes(random.choice((1, 2, 4, 8, 64, 1000)))


def _delete(random, data, at) -> None:
    del data[at : at + random.choice((1, 2, 4, 8, 64, 1000))]


def _repeat(random, data, at) -> None:
    data[at:at] = data[at : at + random.choice((1, 4, 16, 256))] * random.choice((1, 2, 50))


def _blank(random, data, at) -> None:
    size = random.choice((2, 8, 64, 512))
    data[at : at + size] = bytes([random.choice((0, 255))]) * len(data[at : at + size])


def _cut(random, data, at) -> None:
    del data[at:]


BYTE_MUTATIONS = (_set_number, _set_number, _flip_bit, _set_byte, _insert, _delete, _repeat, _blank, _cut)


def some(random: Random) -> range:
    """How many mutations an input gets: mostly few, sometimes none."""
    return range(random.choice((0, 1, 1, 1, 1, 2, 2, 4, 16)))


def mutate_bytes(random: Random, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in some(random):
        random.choice(BYTE_MUTATIONS)(random, data, position(random, len(data)))
    return bytes(data)


def nested(random: Random):
    """Lists or objects in each other, few or more than a reader's stack holds."""
    tree = 0
    for _ in range(random.choice((3, 60, 900, 3000))):
        tree = [tree] if random.random() < 0.5 else {"a": tree}
    return tree


def odd_value(random: Random):
    """A value of JSON that a reader may not expect."""
    choices = (None, True, [], {}, [1, 2], {"a": 1}, number(random), -0.5, 1e308, float("nan"), float("inf"))
    return random.choice((random.choice(choices), number(random), random.choice(ODD_TEXTS), [odd_text(random)] * 3))


def odd_text(random: Random) -> str:
    return random.choice(ODD_TEXTS)


def nodes(tree) -> list[tuple]:
    """(container, key) of everything below a tree of dicts and lists."""
    below, todo = [], [tree]
    while todo:
        container = todo.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            below.append((container, key))
            if isinstance(container[key], (dict, list)):
                todo.append(container[key])
    return below


def mutate_tree(random: Random, tree, value: Callable = odd_value):
    """A copy of a tree of dicts and lists with some values replaced, taken out, put elsewhere or renamed."""
    tree = copy.deepcopy(tree)
    for _ in some(random):
        below = nodes(tree)
        if not below:
            return value(random)
        container, key = random.choice(below)
        action = random.randrange(6)
        if action <= 2:
            container[key] = value(random)
        elif action == 3:
            del container[key]
        elif action == 4:
            other, other_key = random.choice(below)
            with contextlib.suppress(LookupError):
                container[key] = copy.deepcopy(other[other_key])
        elif isinstance(container, dict):
            container[odd_text(random)] = container.pop(key)
    return value(random) if random.random() < 0.03 else tree


def json_bytes(random: Random, tree) -> bytes:
    """A tree as JSON, whole or itself mutated as bytes."""
    data = json.dumps(tree, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_bytes(random, data) if random.random() < 0.2 else data


def write(path, data: bytes) -> str:
    """Write a file below the working folder, its folders with it; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


@cache
def valid_bytes(name: str) -> bytes:
    return (VALID / name).read_bytes()


@cache
def valid_files(name: str) -> list[str]:
    """The files below a folder of VALID, by their paths in it, sorted."""
    return sorted(str(path.relative_to(VALID)) for path in (VALID / name).rglob("*") if path.is_file())


# -- commands ------------------------------------------------------------------------------------

OURS, TEXTS_FILE, PICTURE = (str(VALID / name) for name in ("ours.pth", "texts.json", "picture.png"))
SHORT = (["--overlay-only"], ["--overlay-only"], ["--overlay-only"], ["--overlay-only", "--overlay-format", "jpg"])
LONGER = ([], ["--no-figure", "--save-heatmap"], ["--all-texts", "--lang", "en"], ["--list-layers"])


def command(random: Random, *more, model=OURS, images=(PICTURE,), texts=TEXTS_FILE) -> list[str]:
    """A command line; mostly only the overlay is asked for, the quickest output."""
    flags = random.choice(SHORT if random.random() < 0.9 else LONGER)
    argv = ["--model-path", str(model), "--image-path", *map(str, images), "--class-texts-file", str(texts), "--cpu"]
    return [*argv, "--output-dir", "out", *flags, *more]


def image_command(random: Random, path: str) -> list[str]:
    """A command for one image, or for a folder that it stands in beside a good one."""
    return command(random, images=[path] if random.random() < 0.8 else [path, PICTURE])


def own_cache() -> None:
    """The features of TEXTS under our checkpoint, in the cache of this input."""
    shutil.copytree(VALID / "cache", "cache", dirs_exist_ok=True)


# -- images --------------------------------------------------------------------------------------


def png_chunks(random: Random, data: bytes) -> bytes:
    """Chunks changed, doubled, moved or taken out, their checksums right again."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    for _ in some(random):
        if not chunks:
            break
        chunk = random.choice(chunks)
        action = random.randrange(6)
        if action == 0:
            chunk[1] = mutate_bytes(random, chunk[1])
        elif action == 1:
            chunks[0][1] = mutate_bytes(random, chunks[0][1])
        elif action == 2:
            chunks.insert(random.randrange(len(chunks) + 1), list(chunk))
        elif action == 3:
            chunks.remove(chunk)
        elif action == 4:
            size = struct.pack(
                ">II", *random.choice(((0, 0), (1, 10**6), (20000, 20000), (2**31 - 1,) * 2, (60000, 3)))
            )
            chunks[0][1] = size + chunks[0][1][8:]
        else:
            name = random.choice(
                (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE")
            )
            packed = zlib.compress(bytes(random.choice((10, 3_000_000))))
            chunks.insert(1, [name, random.choice((b"a\0\0" + packed, b"a\0\0\0\0\0" + packed, random.randbytes(26)))])
    body = b"".join(
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks
    )
    return data[:8] + body


def tiff_entries(random: Random, data: bytes) -> bytes:
    """Entries of the first directory with another tag, type, count or value."""
    order, data = "<" if data[:2] == b"II" else ">", bytearray(data)
    (at,) = struct.unpack_from(order + "I", data, 4)
    if at + 2 > len(data):
        return bytes(data)
    (count,) = struct.unpack_from(order + "H", data, at)
    for _ in some(random):
        entry = at + 2 + 12 * random.randrange(max(1, count))
        if entry + 12 > len(data):
            continue
        kind = data[entry + 2]
        field = random.choice(("tag", "type", "count", "value", "value", "value"))
        if field == "tag":
            struct.pack_into(
                order + "H", data, entry, random.choice((256, 257, 258, 259, 262, 273, 277, 279, 317, 339, 34675))
            )
        elif field == "type":
            struct.pack_into(order + "H", data, entry + 2, random.randrange(15))
        elif field == "count":
            struct.pack_into(order + "I", data, entry + 4, number(random) % 2**32)
        elif kind == 3:
            struct.pack_into(order + "H", data, entry + 8, number(random) % 2**16)
        else:
            struct.pack_into(order + "I", data, entry + 8, number(random) % 2**32)
    return bytes(data)


def jpeg_segments(random: Random, data: bytes) -> bytes:
    """Bytes of the segments before the scan, and their lengths."""
    scan = data.find(b"\xff\xda")
    return mutate_bytes(random, data[:scan]) + mutate_bytes(random, data[scan : scan + 14]) + data[scan + 14 :]


def first_bytes(count: int, random: Random, data: bytes) -> bytes:
    return mutate_bytes(random, data[:count]) + data[count:]


def disguised(random: Random, data: bytes) -> bytes:
    """Something else under the picture's name."""
    named = valid_bytes(random.choice(valid_files("others")))
    return random.choice((named, named, mutate_bytes(random, named), b"", b"\0" * 200, random.randbytes(300)))


IMAGE_FORMATS = {  # kind -> (suffixes, how its structure is changed)
    "png": ((".png", ".PNG"), png_chunks),
    "jpeg": ((".jpg", ".jpeg"), jpeg_segments),
    "bmp": ((".bmp",), partial(first_bytes, 66)),
    "tiff": ((".tif", ".tiff"), tiff_entries),
    "webp": ((".webp",), partial(first_bytes, 60)),
    "gif": ((".gif",), partial(first_bytes, 40)),
}


def make_image(kind: str, random: Random) -> list[str]:
    suffixes, restructure = IMAGE_FORMATS[kind]
    data = valid_bytes(random.choice(valid_files(f"images/{kind}")))
    mutate = random.choice((mutate_bytes, mutate_bytes, restructure, restructure, restructure, disguised))
    own_cache()
    return image_command(random, write(f"in/image{random.choice(suffixes)}", mutate(random, data)))


# -- DICOM ---------------------------------------------------------------------------------------

SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
SYNTAXES += tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 100, 102, 110, 201, 203))
SYNTAXES += ("1.2.840.10008.1.2.5", "1.2.3", "", "abc")
TAG_VALUES = {  # of tags that say how pixels are stored or shown
    (0x0028, 0x0002): "H", (0x0028, 0x0004): "CS", (0x0028, 0x0006): "H", (0x0028, 0x0008): "IS",
    (0x0028, 0x0010): "H", (0x0028, 0x0011): "H", (0x0028, 0x0100): "H", (0x0028, 0x0101): "H",
    (0x0028, 0x0102): "H", (0x0028, 0x0103): "H", (0x0028, 0x0120): "H", (0x0028, 0x0121): "H",
    (0x0028, 0x1050): "DS", (0x0028, 0x1051): "DS", (0x0028, 0x1052): "DS", (0x0028, 0x1053): "DS",
    (0x0028, 0x1056): "CS", (0x0028, 0x1101): "HHH", (0x0028, 0x1201): "OW", (0x0028, 0x3000): "SQ",
    (0x0028, 0x3010): "SQ", (0x2050, 0x0020): "CS", (0x7FE0, 0x0008): "OF", (0x7FE0, 0x0009): "OD",
    (0x7FE0, 0x0010): "OW", (0x5200, 0x9230): "SQ", (0x0008, 0x0005): "CS", (0x0008, 0x0016): "UI",
}  # fmt: skip
CODES = ("MONOCHROME1", "MONOCHROME2", "monochrome1", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "ARGB", "HSV")
CODES += ("LINEAR", "SIGMOID", "LINEAR_EXACT", "INVERSE", "IDENTITY", "ISO_IR 192", "ISO 2022 IR 87", "\\", "")
DECIMALS = ("0", "1", "-1", "1e9", "1e400", "nan", "inf", "", "abc", "1\\2", "2048", "-1024", "0.0001", "1e-300", "1,5")
LONG_FORMS = ("OB", "OW", "OF", "OD", "SQ", "UN", "UT", "UC", "UR", "OL", "SV", "UV", "OV")


def split_dicom(data: bytes) -> list[list]:
    """Elements [tag, kind, value] of an explicit little-endian file from byte 132 on, as far as lengths are defined."""
    elements, at = [], 132
    while at + 8 <= len(data):
        tag, kind = struct.unpack_from("<HH", data, at), data[at + 4 : at + 6].decode("latin1")
        start, size = (at + 12, data[at + 8 : at + 12]) if kind in LONG_FORMS else (at + 8, data[at + 6 : at + 8])
        size = int.from_bytes(size, "little")
        end = len(data) if size == 2**32 - 1 else start + size
        elements.append([tag, kind, data[start:end]])
        at = end
    return elements


def join_dicom(elements) -> bytes:
    return b"\0" * 128 + b"DICM" + b"".join(dicom_element(*element) for element in elements)


def dicom_element(tag, kind, value) -> bytes:
    long = kind in LONG_FORMS
    size = b"\0\0" + struct.pack("<I", len(value)) if long else struct.pack("<H", len(value) % 65536)
    return struct.pack("<HH", *tag) + kind.encode("latin1") + size + value


def odd_element(random: Random, tag=None) -> list:
    tag = tag or random.choice(list(TAG_VALUES))
    kind = TAG_VALUES.get(tag, "LO")
    if set(kind) == {"H"}:
        return [tag, "US", struct.pack(f"<{kind}", *(number(random) % 65536 for _ in kind))]
    if kind in ("OW", "OF", "OD", "SQ"):
        items = (b"", random.randbytes(random.choice((1, 2, 7, 8192))), b"\xfe\xff\x00\xe0" + struct.pack("<I", 0))
        lut = dicom_element((0x28, 0x3002), "US", struct.pack("<HHH", *(number(random) % 65536 for _ in range(3))))
        lut += dicom_element((0x28, 0x3006), "OW", random.randbytes(random.choice((0, 2, 512))))
        return [tag, kind, random.choice((*items, b"\xfe\xff\x00\xe0" + struct.pack("<I", len(lut)) + lut))]
    values = {"CS": CODES, "DS": DECIMALS, "IS": DECIMALS, "UI": SYNTAXES}[kind]
    text = random.choice(values if random.random() < 0.8 else ODD_TEXTS).encode("utf-8", "replace")
    return [tag, kind, text + b" " * (len(text) % 2)]


def dicom_tags(random: Random, data: bytes) -> bytes:
    """Elements replaced, taken out, doubled or of another kind."""
    elements = split_dicom(data)
    for _ in some(random):
        action, index = random.randrange(6), random.randrange(len(elements))
        if action == 0 and len(elements) > 1:
            del elements[index]
        elif action == 1:
            elements[index][1] = random.choice(
                ("US", "SS", "DS", "IS", "CS", "OW", "OB", "UN", "SQ", "UI", "FD", "AT", "ZZ")
            )
        elif action == 2:
            elements[index][2] = mutate_bytes(random, elements[index][2])
        else:
            new = odd_element(random)
            place = next((i for i, (tag, *_) in enumerate(elements) if tag >= new[0]), len(elements))
            same = place < len(elements) and elements[place][0] == new[0]
            elements[place : place + same] = [new]
    return join_dicom(elements)


def dicom_syntax(random: Random, data: bytes) -> bytes:
    """Another transfer syntax than the data's, in the meta header or none at all."""
    elements = split_dicom(data)
    text = random.choice(SYNTAXES).encode()
    for element in elements:
        if element[0] == (0x0002, 0x0010):
            element[2] = text + b"\0" * (len(text) % 2)
    if random.random() < 0.3:
        elements = [element for element in elements if element[0] != (0x0002, 0x0010)]
    if random.random() < 0.3:
        elements = [element for element in elements if element[0][0] != 2]
    joined = join_dicom(elements)
    return random.choice((joined, joined, joined[128:], joined[132:]))


def dicom_lengths(random: Random, data: bytes) -> bytes:
    """Lengths of elements that are not those of their values."""
    data, places, at = bytearray(data), [], 132
    for tag, kind, value in split_dicom(bytes(data)):
        long = kind in LONG_FORMS
        places.append((at + 8, "<I") if long else (at + 6, "<H"))
        at += (12 if long else 8) + len(value)
    for _ in some(random):
        place, form = random.choice(places)
        struct.pack_into(form, data, place, number(random) % 256 ** struct.calcsize(form))
    return bytes(data)


def make_dicom(random: Random) -> list[str]:
    data = valid_bytes(random.choice(valid_files("dicom")))
    mutate = random.choice((mutate_bytes, dicom_tags, dicom_tags, dicom_tags, dicom_syntax, dicom_lengths))
    own_cache()
    return image_command(random, write(f"in/image{random.choice(('.dcm', '', '.png'))}", mutate(random, data)))


# -- class texts and arguments -------------------------------------------------------------------


def _many_texts(random) -> bytes:
    return json.dumps({f"类{n}": f"描述{n}" for n in range(random.choice((30, 300)))}).encode()


def _encoded(random) -> bytes:
    text = json.dumps(TEXTS, ensure_ascii=False)
    return text.encode(random.choice(("utf-16", "utf-32", "gbk", "utf-8-sig", "utf-7", "big5")), "replace")


def _raw_json(random) -> bytes:
    key = random.choice(('"正常"', '"\\ud800"', '"\\u0000"', '""', "1", '"a\\nb"', '"\\u001b[2J"', "'a'"))
    value = random.choice(
        ('"a"', '"\\udfff"', "9" * 6000, "1e9999", "NaN", '"' + "长" * 20000 + '"', "[" * 5000, '"\\r"')
    )
    return f"{{{key}: {value}, {random.choice((key, chr(34) + 'b' + chr(34)))}: {value}}}".encode()


def make_class_texts(random: Random) -> list[str]:
    data = random.choice(
        (
            lambda random: mutate_bytes(random, json.dumps(TEXTS, ensure_ascii=False).encode()),
            lambda random: json_bytes(random, mutate_tree(random, TEXTS)),
            lambda random: json_bytes(random, mutate_tree(random, {**TEXTS, "异常": {"a": ["b"]}})),
            lambda random: json_bytes(random, {odd_text(random): odd_text(random) for _ in range(3)}),
            lambda random: (random.choice(("[", '{"a":')) * random.choice((10, 900, 100_000))).encode(),
            lambda random: b"{" + b" " * random.choice((100, 12_000_000)) + b"}",
            _many_texts,
            _encoded,
            _raw_json,
        )
    )(random)
    own_cache()
    return command(random, texts=write("in/texts.json", data))


PATHS = (
    OURS,
    PICTURE,
    TEXTS_FILE,
    "in",
    "missing.pth",
    "patients/zhangsan_hip",
    "",
    ".",
    "/",
    "in/*",
    "**/*.dcm",
    "[",
    "in/pipe",
)
PATHS += ("in/loop", "in/socket", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/stdin", "/proc/self/mem", "/dev/full")
PATHS += (
    "a" * 300,
    "a/" * 3000,
    "~",
    "~nobody/x",
    "$HOME",
    "-",
    "--",
    "a\0b",
    "in/中文 图.png",
    "\udcff",
    "hub:a/b",
    "http://a/b.png",
)
PATHS += (
    "file:///etc/passwd",
    "\\\\host\\share",
    "s3://a/b",
    "in/\x1b[31m.png",
    "OFA-Sys/chinese-clip",
    str(VALID / "dicom"),
)
OUTPUTS = (
    "out",
    "out/a/b",
    "out",
    "in/中文 图.png",
    "in/pipe",
    "/dev/null",
    "out/" + "a" * 300,
    "/proc/x",
    "out/\x1b[31m",
    "in/loop/x",
)
NAMES = (
    "starnet_s1",
    "resnet50",
    "vit",
    "bert-base-chinese",
    "stages.3.3",
    "stages.2.8",
    "stages",
    "blocks.0",
    "",
    "layer4",
)
NAMES += (
    "gradcam",
    "layercam",
    "all",
    "legrad",
    "rollout",
    "scorecam",
    "eigencam",
    "cosine",
    "dot",
    "zh",
    "en",
    "png",
    "webp",
    "x.jpg",
)
NAMES += ("hub:a/b", "a/b", "__class__", "forward", "0", "-1", "..", "stages.-1", "image_encoder", *ODD_TEXTS)
INTEGERS = (
    "0",
    "1",
    "2",
    "-1",
    "3",
    "16",
    "17",
    "32",
    "64",
    "65",
    "200",
    "1e3",
    "1.5",
    "",
    "nan",
    "1000000",
    "9" * 30,
    "٣",
    "0x10",
    "+1",
)


def _plant_files() -> None:
    own_cache()
    Path("in").mkdir()
    os.mkfifo("in/pipe")
    os.symlink("loop", "in/loop")
    os.mknod("in/socket", stat.S_IFSOCK | 0o600)
    shutil.copy(PICTURE, "in/中文 图.png")
    shutil.copy(PICTURE, "in/\x1b[31m.png")


def _odd_flag(random: Random) -> list[str]:
    flag, options, _ = random.choice(script.FLAGS)
    pool = INTEGERS if options.get("type") is int else PATHS if options.get("metavar") == "PATH" else (*NAMES, *PATHS)
    pool = OUTPUTS if flag == "--output-dir" else [*options.get("choices", ()), *pool]
    if options.get("action"):
        return [flag]
    if flag == "--num-workers":
        return [flag, random.choice(("0", "0", "1", "-1", "x"))]
    if flag == "--output-name":
        return [
            flag,
            random.choice(
                ("a.png", "a.pdf", "a.svg", "a.jpg", "a", "a.exe", "", ".png", "a" * 260, "a\0.png", "中 文", "..")
            ),
        ]
    return [flag, *(random.choice(pool) for _ in range(random.choice((1, 1, 2, 0)) if options.get("nargs") else 1))]


def make_arguments(random: Random) -> list[str]:
    _plant_files()
    argv = command(
        random, *random.choice(([], ["--method", random.choice(NAMES)], ["--layers", "stages.2.8", "stages.3.3"]))
    )
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        place = random.randrange(len(argv) + 1)
        argv[place:place] = (
            _odd_flag(random) if random.random() < 0.9 else [random.choice((*PATHS, "--nix", "-x", "--img-siz=3"))]
        )
    if random.random() < 0.2:
        del argv[random.randrange(len(argv))]
    return argv


# -- pickles, opcode by opcode -------------------------------------------------------------------

HARMLESS = (
    "collections OrderedDict",
    "collections Counter",
    "collections deque",
    "collections defaultdict",
    "builtins set",
)
HARMLESS += (
    "builtins list",
    "builtins dict",
    "builtins bytearray",
    "builtins bytes",
    "builtins range",
    "builtins slice",
)
HARMLESS += (
    "builtins complex",
    "builtins int",
    "builtins str",
    "builtins tuple",
    "builtins frozenset",
    "builtins object",
)
HARMLESS += (
    "argparse Namespace",
    "pathlib PosixPath",
    "pathlib PureWindowsPath",
    "torch FloatStorage",
    "torch HalfStorage",
)
HARMLESS += (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_sparse_tensor",
)
HARMLESS += (
    "torch Size",
    "torch device",
    "torch float32",
    "torch Tensor",
    "torch.nn.parameter Parameter",
    "_codecs encode",
)
HARMLESS += (
    "numpy dtype",
    "numpy ndarray",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray _reconstruct",
    "numpy float64",
)
HARMLESS += (
    "torch._tensor _rebuild_from_type_v2",
    "torch.storage UntypedStorage",
    "torch._utils _rebuild_qtensor",
    "__torch__ A",
)
HARMLESS += (
    "torch._utils _rebuild_device_tensor_from_numpy",
    "torch._utils _rebuild_wrapper_subclass",
    "datetime datetime",
)
HARMLESS += (
    "torch.jit._pickle build_intlist",
    "torch.jit._pickle restore_type_tag",
    "types SimpleNamespace",
    "enum Enum",
)
DANGEROUS = (
    "posix system",
    "os system",
    "subprocess Popen",
    "builtins eval",
    "builtins exec",
    "builtins open",
    "canary call",
)
DANGEROUS += (
    "canary Thing",
    "builtins getattr",
    "builtins __import__",
    "builtins compile",
    "builtins input",
    "shutil rmtree",
)
DANGEROUS += (
    "os remove",
    "socket create_connection",
    "torch.hub load",
    "torch load",
    "torch.jit load",
    "numpy load",
    "pickle loads",
)
DANGEROUS += (
    "torch.storage _load_from_bytes",
    "runpy run_path",
    "importlib import_module",
    "functools partial",
    "operator attrgetter",
)
DANGEROUS += (
    "operator methodcaller",
    "types FunctionType",
    "types CodeType",
    "webbrowser open",
    "urllib.request urlopen",
)
DANGEROUS += (
    "ctypes CDLL",
    "builtins type",
    "builtins setattr",
    "sys exit",
    "os _exit",
    "os abort",
    "signal raise_signal",
)
DANGEROUS += (
    "collections Counter.update",
    "builtins list.__init__",
    "pathlib Path.write_text",
    "copyreg _reconstructor",
)


def p_text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def p_number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def p_name(name: str) -> bytes:
    return "c{}\n{}\n".format(*name.split(" ")).encode()


def p_tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def p_call(name: str, *arguments: bytes) -> bytes:
    return p_name(name) + p_tuple(*arguments) + b"R"


def p_dict(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(p_text(key) + value for key, value in items.items()) + b"u"


def p_bytes(value: bytes) -> bytes:
    return p_call("_codecs encode", p_text(value.decode("latin1")), p_text("latin1"))


def p_array(dtype: bytes, shape: tuple, data: bytes) -> bytes:
    return p_call("numpy ndarray", p_tuple(*map(p_number, shape)), dtype, p_bytes(data))


COMMANDS = ("echo x > EXECUTED", "open('EXECUTED', 'w')", "EXECUTED", "outside", "http://127.0.0.1:9/x")
CONTAINERS = (
    "builtins set",
    "builtins list",
    "builtins bytearray",
    "collections Counter",
    "builtins bytes",
    "collections deque",
)


def bombs(random: Random) -> bytes:
    """Short pickles that would take much memory or time, and forged objects."""
    count, container = random.choice((10**9, 10**10, 2**62)), random.choice(CONTAINERS)
    doubled = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)
    )
    return random.choice(
        (
            p_call(container, p_call("builtins range", p_number(count))),
            p_call(container, p_call(random.choice(("builtins bytearray", "builtins bytes")), p_number(count))),
            p_call("torch Size", p_call("builtins list", p_call("builtins range", p_number(count)))),
            p_call("builtins list", p_array(p_call("numpy dtype", p_text("O")), (1,), b"ABCDEFGH")),
            p_array(
                p_call("numpy dtype", p_text(random.choice(("f8", "U1000000", "V9", "O", "M8[s]")))), (count,), b""
            ),
            p_call(
                "numpy.core.multiarray scalar",
                p_call("numpy dtype", p_text(random.choice("OUVfM"))),
                p_bytes(b"ABCDEFGH"),
            ),
            p_call(
                "numpy._core.multiarray _reconstruct", p_name("numpy ndarray"), p_tuple(p_number(count)), p_bytes(b"b")
            ),
            b"\x8b" + struct.pack("<i", random.choice((-1, 2**31 - 1, 8))) + bytes(8),
            b"B" + struct.pack("<I", 2**32 - 1) + b"abc",
            b"\x96" + struct.pack("<Q", count) + b"abc",
            b"\x8e" + struct.pack("<Q", count) + b"abc",
            b"\x95" + struct.pack("<Q", count) + b"N",
            b"(" * random.choice((1000, 10**6)) + b"t",
            b"]" * 10**5 + b"a" * (10**5 - 1),
            b"N" + b"\x85" * random.choice((2000, 10**5)),
            b"Nr" + struct.pack("<I", 2**32 - 1),
            b"I" + b"9" * 10**5 + b"\n",
            doubled,
        )
    )


def expression(random: Random, depth: int = 0) -> bytes:
    """Opcodes that leave one value on the stack, or pretend to."""
    if depth > 3 or random.random() < 0.3:
        text = random.choice((*COMMANDS, *ODD_TEXTS))
        return random.choice(
            (p_text(text), p_text(text), p_number(number(random)), b"N", b"\x88", b"K\x05", b")", b"]", b"}", b"\x8f")
            + (
                b"G" + struct.pack(">d", random.choice((1.5, 1e308, float("nan")))),
                p_bytes(b"abc"),
                b"L5L\n",
                b"Vabc\n",
                b"I01\n",
            )
            + (b"C\x03abc", b"\x96\x03\0\0\0\0\0\0\0abc", b"S'a'\n", b"h\x00", b"j\x05\0\0\0", b"g1\n")
        )
    one, more = expression(random, depth + 1), partial(expression, random, depth + 1)
    name = random.choice(DANGEROUS if random.random() < 0.6 else HARMLESS)
    function, module = p_name(name), name.split(" ")
    return random.choice(
        (
            lambda: function + p_tuple(one) + b"R",
            lambda: function + p_tuple(one, more()) + b"R",
            lambda: p_name(random.choice(DANGEROUS)) + p_tuple(p_text(random.choice(COMMANDS))) + b"R",
            lambda: function + p_tuple(one) + b"\x81",
            lambda: function + p_tuple(one) + p_dict({"a": more()}) + b"\x92",
            lambda: function + b")\x81" + p_dict({random.choice(("a", "__setstate__", "__dict__", "__class__")): more()}) + b"b",
            lambda: function + b")R" + more() + b"b",
            lambda: p_call("argparse Namespace") + p_dict({"__setstate__": function}) + b"b" + p_dict({"a": one}) + b"b",
            lambda: b"(" + one + "i{}\n{}\n".format(*module).encode(),
            lambda: b"(" + function + one + b"o",
            lambda: p_text(module[0]) + p_text(module[1]) + b"\x93" + p_tuple(one) + b"R",
            lambda: random.choice((b"\x82\x01", b"\x83\x01\x02", b"\x84\x01\x02\x03\x04")),
            lambda: b"P" + random.choice((b"0", b"storage", b"a b")) + b"\n",
            lambda: p_tuple(p_text("storage"), p_name("torch FloatStorage"), p_text("0"), p_text("cpu"), p_number(number(random))) + b"Q",
            lambda: p_tuple(one, more()) + b"Q",
            lambda: b"](" + one + more() + b"e",
            lambda: p_dict({"a": one, "b": more()}),
            lambda: b"}(" + one + more() + b"u",
            lambda: b"\x8f(" + one + b"\x90",
            lambda: b"(" + one + b"\x91",
            lambda: one + b"\x94",
            lambda: function,
            lambda: one + b"2\x86",
            lambda: random.choice((b"\x97", b"\x98", b"0", b"1", b"(", b"t", b"a", b"s", b".")),
            lambda: bombs(random),
        )
    )()  # fmt: skip


@cache
def boundaries(data: bytes) -> list[int]:
    """Where the opcodes of a pickle begin, in order."""
    return [place for _, _, place in pickletools.genops(data)]


def mutate_pickle(random: Random, data: bytes) -> bytes:
    """One pickle with values put in or replaced, opcodes moved or taken out, names and numbers changed."""
    places, edits = boundaries(data), []
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        at = random.randrange(1, len(places))
        start, end = places[at], places[at + 1] if at + 1 < len(places) else len(data)
        opcode, action = data[start:end], random.randrange(8)
        if opcode[:1] == b"c" or action <= 2:
            value = expression(random)
            new = value if opcode[:1] == b"c" and action > 4 else p_name(random.choice((*DANGEROUS, *HARMLESS)))
            edits.append((start, end, new) if opcode[:1] == b"c" else (start, start, value + b"0"))
        elif action == 3:
            edits.append((start, end, expression(random)))
        elif action == 4:
            edits.append((start, end, random.choice((b"", opcode * 2, opcode * 1000))))
        elif action == 5:
            edits.append((start, end, bytes([random.randrange(256)]) + opcode[1:]))
        else:
            edits.append((start, end, opcode[:1] + mutate_bytes(random, opcode[1:])))
    data = bytearray(data)
    for start, end, new in sorted(edits, reverse=True):
        data[start:end] = new
    return bytes(data)


def pickle_of(random: Random, weights: bytes) -> bytes:
    """A checkpoint's pickle around a pickle of weights, with an expression where metadata stand."""
    value = expression(random) if random.random() < 0.8 else bombs(random)
    body, plain = weights[2:-1], p_dict({"embed_dim": p_number(32), "img_size": p_number(64)})
    items = random.choice(
        (
            {
                "model_state_dict": body,
                "config": p_dict({"embed_dim": p_number(32), "img_size": p_number(64), "x": value}),
            },
            {"model_state_dict": body, "config": value},
            {"model_state_dict": body, "config": plain, "optimizer": value},
            {"epoch": value, "model_state_dict": body, "config": plain},
            {"model_state_dict": value, "config": plain},
            {"model_state_dict": b"}", "config": p_dict({"x": value})},
        )
    )
    whole = p_dict(items) if random.random() < 0.95 else value
    return b"\x80" + bytes([random.choice((2, 2, 2, 2, 3, 4, 5, 9))]) + whole + b"."


# -- checkpoints ---------------------------------------------------------------------------------


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
        name = struct.pack("<H", len(entry.name))
        directory += b"PK\1\2\x14\0" + fields + name + bytes(12) + struct.pack("<I", getattr(entry, "at", len(body)))
        directory += entry.name
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


def _double_entry(random, entries, entry) -> None:
    entries.insert(random.randrange(len(entries) + 1), copy.copy(entry))


def _drop_entry(random, entries, entry) -> None:
    entries.remove(entry)


def _shuffle_entries(random, entries, entry) -> None:
    random.shuffle(entries)


def _add_entry(random, entries, entry) -> None:
    name = random.choice(("archive/constants.pkl", "archive/byteorder", "archive/version", "archive/code/a.py", "x"))
    entries.append(stored(name, random.choice((b"big", b"little", b"", b"999999999999", b"cposix\nsystem\n."))))


ZIP_MUTATIONS = (_rename_entry, _resize_entry, _resize_entry, _deflate_entry, _bomb_entry, _change_entry, _change_entry)
ZIP_MUTATIONS += (_double_entry, _drop_entry, _shuffle_entries, _add_entry)


def mutate_zip(random: Random, data: bytes) -> bytes:
    entries = read_zip(data)
    for _ in some(random):
        if entries:
            small = [entry for entry in entries if b"/data/" not in entry.name] or entries
            random.choice(ZIP_MUTATIONS)(random, entries, random.choice(small if random.random() < 0.5 else entries))
    count = len(entries) if random.random() < 0.95 else number(random)
    return write_zip(entries, count, random.choice((b"", b"", b"PK\5\6" + bytes(18), bytes(66000))))


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A torch zip whose data.pkl is another."""
    entries = read_zip(data)
    for index, entry in enumerate(entries):
        if entry.name.endswith(b"data.pkl"):
            entries[index] = stored(entry.name.decode(), change(entry.data))
    return write_zip(entries)


def make_pth_bytes(random: Random) -> list[str]:
    return _with_checkpoint(random, mutate_bytes(random, valid_bytes("ours.pth")))


def make_pth_zip(random: Random) -> list[str]:
    return _with_checkpoint(random, mutate_zip(random, valid_bytes("ours.pth")))


def make_pth_opcodes(random: Random) -> list[str]:
    whole = random.random() < 0.4
    change = partial(mutate_pickle, random) if whole else partial(pickle_of, random)
    return _with_checkpoint(random, with_pickle(valid_bytes("ours.pth" if whole else "weights.pth"), change))


def _with_checkpoint(random: Random, data: bytes, suffix: str = ".pth") -> list[str]:
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
        return _with_checkpoint(random, mutate_bytes(random, b"".join(pickles)) + tensors)
    if action == 1:
        pickles[3] = pickle_of(random, pickles[3])
    elif action == 2:
        index = random.randrange(5)
        pickles[index] = mutate_pickle(random, pickles[index])
    else:
        tensors = mutate_bytes(random, tensors)
    return _with_checkpoint(random, b"".join(pickles) + tensors)


# -- checkpoints by object -----------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    img_size: int = 64


class Payload:
    """An object whose pickle calls `function(*arguments)` in whoever unpickles it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Stateful(dict):
    """An object whose pickle sets a state after it is made."""

    def __reduce__(self):
        return argparse.Namespace, (), {"__setstate__": canary.call, "img_size": 64}


def _itself():
    loop = []
    loop.append(loop)
    return loop


def optional(module: str, name: str, *arguments):
    """An object of a library that may not be installed; None without it."""
    try:
        return getattr(importlib.import_module(module), name)(*arguments)
    except ImportError:
        return None


OBJECTS = (  # what training scripts, or others, put into checkpoints
    lambda random: argparse.Namespace(img_size=64, a=odd_value(random)),
    lambda random: types.SimpleNamespace(img_size=64),
    lambda random: datetime.datetime(2026, 1, 2),
    lambda random: datetime.timedelta(1),
    lambda random: decimal.Decimal("1.5"),
    lambda random: fractions.Fraction(1, 3),
    lambda random: uuid.UUID(int=5),
    lambda random: Colour.RED,
    lambda random: Settings(),
    lambda random: pathlib.PurePosixPath("a/b"),
    lambda random: pathlib.Path("/nothing/a"),
    lambda random: {1, 2},
    lambda random: frozenset([1]),
    lambda random: range(number(random)),
    lambda random: slice(1, None, 2),
    lambda random: complex(1, 2),
    lambda random: random.randbytes(20),
    lambda random: bytearray(5),
    lambda random: collections.deque([1, 2], 5),
    lambda random: collections.defaultdict(list, {"a": [1]}),
    lambda random: collections.Counter("abc"),
    lambda random: collections.OrderedDict(a=1),
    lambda random: np.float64(random.random()),
    lambda random: np.dtype(random.choice(("f4", "O", "U5", "M8[s]", "i4,f4", ">i2"))).type(0),
    lambda random: np.zeros(random.choice((0, 3, (2, 2))), random.choice(("f4", "i8", "?", "U3", "O", "c8", "M8[s]", "i4,f4", ">f8"))),
    lambda random: np.array([canary.call], dtype=object),
    lambda random: np.random.RandomState(0),
    lambda random: np.dtype("f4"),
    lambda random: torch.Size([1, 2]),
    lambda random: torch.float16,
    lambda random: torch.device("cuda:7"),
    lambda random: torch.Generator(),
    lambda random: torch.nn.Linear(2, 2),
    lambda random: torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1),
    lambda random: torch.nn.Parameter(torch.zeros(2)),
    lambda random: torch.zeros(2, dtype=random.choice((torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.complex64))),
    lambda random: torch.zeros(2, 2).to_sparse(),
    lambda random: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    lambda random: torch.zeros(10**9, device="meta"),
    lambda random: torch.zeros(1).expand(10**12),
    lambda random: nested(random),
    lambda random: _itself(),
    lambda random: number(random),
    lambda random: odd_value(random),
    lambda random: len,
    lambda random: dict,
    lambda random: partial(print, 1),
    lambda random: canary.call,
    lambda random: canary.Thing(),
    lambda random: Payload(canary.call, "x"),
    lambda random: Payload(os.system, "echo x > EXECUTED"),
    lambda random: Payload(exec, "open('EXECUTED', 'w')"),
    lambda random: Payload(open, "EXECUTED", "w"),
    lambda random: Payload(torch.load, "other.pth"),
    lambda random: Stateful(),
    lambda random: optional("omegaconf", "DictConfig", {"img_size": 64}),
    lambda random: optional("yacs.config", "CfgNode", {"img_size": 64}),
    lambda random: optional("easydict", "EasyDict", {"img_size": 64}),
)  # fmt: skip


def odd_object(random: Random):
    return random.choice(OBJECTS)(random)


WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "model_state",
    "ema",
    "model_ema",
)
PREFIXES = (
    "",
    "",
    "module.",
    "model.",
    "clip_model.",
    "clip.",
    "net.",
    "base_model.model.",
    "_fsdp_wrapped_module.",
    "a.b.c.",
)
CONFIG = {
    "embed_dim": 32,
    "img_size": 64,
    "image_encoder": "starnet_s1",
    "text_encoder": "bert-base-chinese",
    "mean": [0.5] * 3,
}
CONFIG |= {
    "std": [0.25] * 3,
    "data": {"img_size": 64, "resolution": [64, 64]},
    "text_config": {"hidden_size": 64, "num_hidden_layers": 1},
}
FIELDS = (
    "img_size",
    "image_size",
    "input_size",
    "resolution",
    "crop_size",
    "embed_dim",
    "image_encoder",
    "text_encoder",
    "mean",
    "std",
)
FIELDS += (
    "temperature",
    "text_config",
    "model_type",
    "config",
    "hyper_parameters",
    "trust_remote_code",
    "auto_map",
    "grey_range",
)


def mutate_tensor(random: Random, tensor: torch.Tensor):
    """A tensor of another shape, kind or content; or none."""
    float_kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.uint8,
    )
    return random.choice(
        (
            lambda: tensor.to(random.choice(float_kinds)),
            lambda: torch.full_like(tensor, random.choice((float("nan"), float("inf"), 0.0, 1e30)), dtype=torch.float32),
            lambda: tensor[:1],
            lambda: tensor.flatten(),
            lambda: tensor[None],
            lambda: torch.zeros(0),
            lambda: torch.zeros([random.choice((0, 1, 2, 5))] * random.randrange(6)),
            lambda: tensor.T if tensor.ndim == 2 else tensor.clone(),
            lambda: tensor.float().to_sparse(),
            lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
            lambda: tensor.to("meta"),
            lambda: torch.zeros(1).expand(tensor.shape),
            lambda: torch.zeros(1).expand(10**6, *tensor.shape),
            lambda: torch.nn.Parameter(tensor.float()),
            lambda: torch.tensor(random.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))),
            lambda: tensor.float().numpy(),
            lambda: odd_object(random),
        )
    )()  # fmt: skip


def mutate_weights(random: Random, weights: dict) -> dict:
    """Weights with some tensors changed, missing, added, renamed, or all under a prefix."""
    weights = dict(weights)
    telling = [key for key in weights if not key.startswith(("image_encoder.backbone.stages", "visual.transformer"))]
    for _ in some(random):
        key = random.choice(telling if random.random() < 0.6 else list(weights))
        if key not in weights:
            continue
        action = random.randrange(5)
        if action <= 1:
            weights[key] = mutate_tensor(random, weights[key])
        elif action == 2:
            del weights[key]
        elif action == 3:
            weights[random.choice((key + ".x", odd_text(random), "image_encoder.backbone.fc.weight", 5))] = weights[key]
        else:
            weights[key.replace(".", random.choice(("..", "/", "")), 1)] = weights.pop(key)
    prefix = random.choice(PREFIXES)
    return (
        {f"{prefix}{key}" if isinstance(key, str) else key: value for key, value in weights.items()}
        if prefix
        else weights
    )


@cache
def weights_of(name: str) -> dict:
    return torch.load(VALID / name, weights_only=True)


def saved(random: Random, content) -> bytes:
    stream, options = io.BytesIO(), {"pickle_protocol": random.choice((2, 2, 2, 3, 4, 5))}
    try:
        torch.save(content, stream, **options, _use_new_zipfile_serialization=random.random() < 0.85)
    except Exception:  # what cannot be pickled is no input: the weights alone
        stream = io.BytesIO()
        torch.save(weights_of("weights.pth"), stream)
    return stream.getvalue()


def make_pth_objects(random: Random) -> list[str]:
    weights = weights_of("weights.pth")
    weights = mutate_weights(random, weights) if random.random() < 0.6 else weights
    config = mutate_tree(random, CONFIG, odd_object if random.random() < 0.6 else odd_value)
    if isinstance(config, dict) and random.random() < 0.5:
        config[random.choice(FIELDS)] = odd_object(random) if random.random() < 0.5 else odd_value(random)
    wrapper = random.choice((*WRAPPERS, "a", "x.y"))
    content = random.choice(
        (
            lambda: {wrapper: weights, "config": config},
            lambda: {"model_state_dict": weights, "config": config},
            lambda: {"model_state_dict": weights, random.choice(("hyper_parameters", "cfg", "opt", "args")): config},
            lambda: {"model": {wrapper: weights}, "ema": weights, "config": config},
            lambda: {"model_state_dict": weights, **(config if isinstance(config, dict) else {})},
            lambda: {"model_state_dict": weights, "config": json.dumps(CONFIG), "extra": odd_object(random)},
            lambda: weights,
            lambda: [weights, config],
            lambda: odd_object(random),
        )
    )()  # fmt: skip
    return _with_checkpoint(random, saved(random, content), random.choice((".pth", ".pt", ".ckpt", ".bin", "")))


def mutate_safetensors(random: Random, data: bytes) -> bytes:
    """A header whose entries do not fit the data, or each other."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for _ in some(random):
        key = random.choice(list(header) or [""])
        action = random.randrange(5)
        if action == 0:
            header["__metadata__"] = mutate_tree(random, {"img_size": "64", "config": json.dumps(CONFIG), "a": "[1"})
        elif action == 1:
            header.pop(key, None)
        elif action == 2:
            header[odd_text(random)] = header.get(key)
        elif isinstance(header.get(key), dict) and "dtype" in header[key]:
            entry = dict(header[key])
            field = random.choice(("dtype", "shape", "data_offsets"))
            kinds = ("F32", "F64", "BF16", "I8", "U64", "BOOL", "F8_E4M3", "X", "C64")
            entry[field] = (
                random.choice(kinds)
                if field == "dtype"
                else [number(random) for _ in range(random.choice((0, 1, 2, 4)))]
            )
            header[key] = entry
    text = json.dumps(header).encode() if random.random() < 0.9 else json_bytes(random, mutate_tree(random, header))
    length = len(text) if random.random() < 0.9 else number(random) % 2**64
    return length.to_bytes(8, "little") + text + data[8 + size :]


def make_safetensors(random: Random) -> list[str]:
    mutate = random.choice((mutate_bytes, mutate_safetensors, mutate_safetensors))
    return _with_checkpoint(random, mutate(random, valid_bytes("ours.safetensors")), ".safetensors")


def _beside_vocabulary(random: Random, data: bytes, suffix: str) -> list[str]:
    return command(random, "--text-encoder", str(VALID / "openai"), model=write(f"in/model{suffix}", data))


def make_torchscript(random: Random) -> list[str]:
    data = valid_bytes(f"openai/{random.choice(('vit', 'vit', 'scripted'))}.pt")
    changed = random.choice(
        (
            lambda: mutate_bytes(random, data),
            lambda: mutate_zip(random, data),
            lambda: with_pickle(data, partial(mutate_pickle, random)),
            lambda: with_pickle(data, partial(mutate_pickle, random)),
        )
    )()  # fmt: skip
    return _beside_vocabulary(random, changed, ".pt")


def make_openai(random: Random) -> list[str]:
    weights = mutate_weights(random, weights_of(f"openai/{random.choice(('vit', 'resnet'))}.bin"))
    if random.random() < 0.3:
        settings = {
            "model_cfg": {
                "embed_dim": 24,
                "quick_gelu": True,
                "vision_cfg": {"width": 64, "layers": 3, "head_width": 64},
            }
        }
        settings |= {
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        }
        write("in/open_clip_config.json", json_bytes(random, mutate_tree(random, settings)))
    content = random.choice((weights, {"state_dict": weights}, {"state_dict": weights, "name": odd_value(random)}))
    return _beside_vocabulary(random, saved(random, content), random.choice((".pt", ".bin")))


# -- folders -------------------------------------------------------------------------------------

CODE = """open("EXECUTED", "w").write("x")
import canary
canary.call("module")
from transformers import CLIPConfig as OwnConfig, CLIPModel as OwnModel, BertTokenizer as OwnTokenizer
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", "AutoTokenizer": ["own.OwnTokenizer", None]}


def _mutate_json(random, path: Path) -> None:
    path.write_bytes(json_bytes(random, mutate_tree(random, json.loads(path.read_bytes()))))


def _mutate_config(random, folder) -> None:
    _mutate_json(random, folder / "config.json")


def _mutate_size(random, folder) -> None:
    """A size of the configuration that the weights do not have."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    part = config.get(random.choice(("text_config", "vision_config")), config)
    numbers = [key for key, value in part.items() if type(value) is int] or ["hidden_size"]
    part[random.choice(numbers)] = number(random)
    path.write_text(json.dumps(config))


def _mutate_file(random, folder) -> None:
    path = random.choice(sorted(folder.iterdir()))
    path.write_bytes(mutate_bytes(random, path.read_bytes()))


def _mutate_json_file(random, folder) -> None:
    with contextlib.suppress(ValueError):
        _mutate_json(random, random.choice(sorted(folder.glob("*.json"))))


def _drop_file(random, folder) -> None:
    random.choice(sorted(folder.iterdir())).unlink()


def _mutate_folder_weights(random, folder) -> None:
    path = folder / "model.safetensors"
    if path.is_file():
        path.write_bytes(mutate_safetensors(random, path.read_bytes()))


def _pickled_weights(random, folder) -> None:
    (folder / "model.safetensors").unlink(missing_ok=True)
    pickled = pickle.dumps(Payload(os.system, "echo x > EXECUTED"))
    write(
        folder / "pytorch_model.bin",
        random.choice((pickled, write_zip([stored("a/data.pkl", pickled)]), b"", b"\x80\x02N.")),
    )


def _add_code(random, folder) -> None:
    (folder / "own.py").write_text(CODE)
    name = random.choice(("config.json", "tokenizer_config.json", "preprocessor_config.json"))
    path = folder / name
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    settings |= {"auto_map": AUTO_MAP, "trust_remote_code": True, "custom_pipelines": {"a": {"impl": "own.OwnModel"}}}
    if random.random() < 0.6:
        settings |= {"model_type": "own", "tokenizer_class": "OwnTokenizer", "image_processor_type": "Own"}
    path.write_text(json.dumps(settings))


def _add_adapter(random, folder) -> None:
    settings = {
        "peft_type": random.choice(("LORA", "X", 5)),
        "base_model_name_or_path": random.choice((str(folder), "a/b", "/x")),
    }
    (folder / "adapter_config.json").write_bytes(
        json_bytes(random, mutate_tree(random, {**settings, "r": 4, "target_modules": ["q_proj"]}))
    )
    write(folder / "adapter_model.safetensors", random.choice((b"", valid_bytes("adapter.safetensors"))))


def _add_index(random, folder) -> None:
    names = random.choice(
        (
            "../../outside/thesis.txt",
            "model.safetensors",
            "missing.safetensors",
            "/etc/passwd",
            5,
            "model-1.safetensors",
        )
    )
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(
        json_bytes(random, {"metadata": {}, "weight_map": {"a": names}})
    )


def _add_file(random, folder) -> None:
    names = (
        "generation_config.json",
        "chat_template.jinja",
        "added_tokens.json",
        "special_tokens_map.json",
        "processor_config.json",
    )
    names += (
        "open_clip_config.json",
        "tokenizer.model",
        "pytorch_model.bin.index.json",
        "flax_model.msgpack",
        "tf_model.h5",
    )
    write(
        folder / random.choice(names),
        random.choice((b"", b"{}", b"[]", b"[1, 2]", b"\xff", b'{"a": {"b": 1}}', b"{{ 1 / 0 }}")),
    )


FOLDER_MUTATIONS = (
    _mutate_config,
    _mutate_config,
    _mutate_size,
    _mutate_file,
    _mutate_json_file,
    _mutate_json_file,
    _drop_file,
)
FOLDER_MUTATIONS += (_mutate_folder_weights, _pickled_weights, _add_code, _add_adapter, _add_index, _add_file)


def make_folder(random: Random) -> list[str]:
    family = random.choice(sorted(path.name for path in (VALID / "families").iterdir()))
    folder = Path("in/model")
    shutil.copytree(VALID / "families" / family, folder)
    for _ in range(random.choice((0, 1, 1, 1, 2, 3))):
        with contextlib.suppress(
            OSError, ValueError, AttributeError, TypeError
        ):  # a file that an earlier one took away
            random.choice(FOLDER_MUTATIONS)(random, folder)
    if random.random() < 0.15:
        own_cache()
        return command(random, "--text-encoder", str(folder))
    return command(random, model=folder)


# -- what earlier runs left ----------------------------------------------------------------------


def _array(random: Random) -> bytes:
    array = random.choice(
        (
            np.zeros((3, 31), np.float32), np.zeros((2, 32), np.float32), np.zeros((0, 32), np.float32), np.ones(96, np.float32),
            np.full((3, 32), np.nan, np.float32), np.ones((3, 32), np.float64), np.ones((3, 32), np.int8), np.ones((3, 32), "c8"),
            np.ones((3, 1, 32), np.float32), np.ones((3, 32), ">f4"), np.array([[canary.call]], dtype=object),
        )
    )  # fmt: skip
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    data = stream.getvalue()
    return data.replace(b"(3, 32)", b"(9" + b"9" * 9 + b",)", 1) if random.random() < 0.2 else data


def _forged(random: Random, data: bytes) -> bytes:
    """An entry with the right checksum around another header or array."""
    import hashlib

    line, _, array = data[32:].partition(b"\n")
    header = json.loads(line)
    if random.random() < 0.5:
        array = _array(random)
    else:
        header = {**header, random.choice(("format", "key", "warnings", "x")): odd_value(random)}
        header = (
            header
            if header.get("warnings") == []
            else {**header, "warnings": random.choice((5, {}, "ab", None, [[1]]))}
        )
    rest = json.dumps(header).encode() + b"\n" + array
    return hashlib.sha256(rest).digest() + rest


def make_cache(random: Random) -> list[str]:
    own_cache()
    (entry,) = Path("cache/clip_gradcam").iterdir()
    data = entry.read_bytes()
    entry.unlink()
    random.choice(
        (
            lambda: entry.write_bytes(mutate_bytes(random, data)),
            lambda: entry.write_bytes(mutate_bytes(random, data)),
            lambda: entry.write_bytes(_forged(random, data)),
            lambda: entry.write_bytes(_forged(random, data)),
            lambda: entry.write_bytes(_forged(random, data)),
            lambda: os.symlink(
                os.path.abspath(random.choice(("outside/thesis.txt", "cache", "/dev/zero", str(entry)))), entry
            ),
            lambda: os.mkfifo(entry),
            lambda: entry.mkdir(),
            lambda: (entry.write_bytes(data), os.truncate(entry, random.choice((10, 3 * 10**9)))),
            lambda: (entry.parent.rmdir(), os.symlink(os.path.abspath("outside"), entry.parent)),
            lambda: (entry.parent.rmdir(), entry.parent.write_bytes(b"")),
        )
    )()
    return command(random)


def _link(random, state: Path) -> None:
    """A link in place of something of the run."""
    names = (
        "staging",
        "rows-0.jsonl",
        "rows-1.jsonl",
        "rows-earlier.jsonl",
        "settings.json",
        "plan.jsonl",
        "lock",
        "../results.csv",
    )
    place = state / random.choice((*names, "../results.jsonl", "../picture", "staging/a", ""))
    target = os.path.abspath(random.choice(("outside", "outside/thesis.txt", "outside/folder", "missing", str(place))))
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.symlink(target, place)


def _replace_state(random, state: Path) -> None:
    """A folder, a pipe or foreign files in place of something of the run."""
    place = state / random.choice(
        ("staging", "rows-0.jsonl", "settings.json", "plan.jsonl", "lock", "rows-x.jsonl", "../results.csv")
    )
    if place.is_dir():
        return write(place / "sub" / "file", b"x")
    place.unlink(missing_ok=True)
    random.choice((place.mkdir, partial(os.mkfifo, place), partial(place.write_bytes, random.randbytes(50))))()


def _mutate_state_file(random, state: Path) -> None:
    path = state / random.choice(("settings.json", "rows-0.jsonl", "plan.jsonl", "rows-0.jsonl"))
    path.write_bytes(mutate_bytes(random, path.read_bytes()))


def _mutate_state_tree(random, state: Path) -> None:
    path = state / random.choice(("settings.json", "rows-0.jsonl", "plan.jsonl", "rows-0.jsonl"))
    if path.suffix == ".json":
        return path.write_bytes(json_bytes(random, mutate_tree(random, json.loads(path.read_bytes()))))
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    index = random.randrange(len(lines))
    lines[index] = mutate_tree(random, lines[index])
    return path.write_bytes(b"".join(json_bytes(random, line) + b"\n" for line in lines))


def _drop_output(random, state: Path) -> None:
    random.choice(sorted(path for path in state.parent.rglob("*") if path.is_file())).unlink()


STATE_MUTATIONS = (
    _link,
    _link,
    _replace_state,
    _mutate_state_file,
    _mutate_state_tree,
    _mutate_state_tree,
    _drop_output,
)


def make_state(random: Random) -> list[str]:
    own_cache()
    shutil.copytree(VALID / "run", "out")
    state = Path("out/.clip_gradcam")
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        with contextlib.suppress(OSError, ValueError):  # what an earlier mutation took away
            random.choice(STATE_MUTATIONS)(random, state)
    resume = ["--resume"] if random.random() < 0.75 else []
    return [*RUN, *resume]


RUN = ["--model-path", OURS, "--image-path", str(VALID / "run_images"), "--class-texts-file", TEXTS_FILE, "--cpu"]
RUN += ["--output-dir", "out", "--overlay-only"]

KINDS: dict[str, Callable[[Random], list[str]]] = {
    **{kind: partial(make_image, kind) for kind in IMAGE_FORMATS},
    "dicom": make_dicom,
    "class-texts": make_class_texts,
    "arguments": make_arguments,
    "pth-bytes": make_pth_bytes,
    "pth-zip": make_pth_zip,
    "pth-objects": make_pth_objects,
    "pth-opcodes": make_pth_opcodes,
    "legacy": make_legacy,
    "safetensors": make_safetensors,
    "torchscript": make_torchscript,
    "openai": make_openai,
    "folder": make_folder,
    "cache": make_cache,
    "state": make_state,
}
