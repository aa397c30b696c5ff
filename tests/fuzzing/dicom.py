"""DICOM files by bytes, tags, lengths and transfer syntaxes."""

import struct
import zlib
from random import Random

from .mutate import (
    HUGE,
    ODD_TEXTS,
    image_command,
    mutate_bytes,
    number,
    own_cache,
    some,
    valid_bytes,
    valid_files,
    write,
)

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
CODES = (
    "MONOCHROME1", "MONOCHROME2", "monochrome1", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR", "ARGB", "HSV",
    "LINEAR", "SIGMOID", "LINEAR_EXACT", "INVERSE", "IDENTITY", "ISO_IR 192", "ISO 2022 IR 87", "\\", "",
)  # fmt: skip
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
    for _, kind, value in split_dicom(bytes(data)):
        long = kind in LONG_FORMS
        places.append((at + 8, "<I") if long else (at + 6, "<H"))
        at += (12 if long else 8) + len(value)
    for _ in some(random):
        place, form = random.choice(places)
        struct.pack_into(form, data, place, number(random) % 256 ** struct.calcsize(form))
    return bytes(data)


def dicom_bomb(random: Random, data: bytes) -> bytes:
    """A small file that is deflated as a whole and holds far more than its frame."""
    elements = [element for element in split_dicom(data) if element[0] < (0x7FE0, 0)]
    meta = [element for element in elements if element[0][0] == 2 and element[0] != (0x0002, 0x0010)]
    syntax = [(0x0002, 0x0010), "UI", b"1.2.840.10008.1.2.1.99"]
    rest = b"".join(dicom_element(*element) for element in elements if element[0][0] != 2)
    pixels = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, HUGE)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(rest + pixels) + packer.flush(zlib.Z_FULL_FLUSH)
    return join_dicom([*meta, syntax]) + packed + valid_bytes("zeros.deflate")


def make_dicom(random: Random) -> list[str]:
    data = valid_bytes(random.choice(valid_files("dicom")))
    mutate = random.choice(
        (mutate_bytes, mutate_bytes, *[dicom_tags] * 6, *[dicom_syntax] * 2, dicom_lengths, dicom_bomb)
    )
    own_cache()
    return image_command(random, write(f"in/image{random.choice(('.dcm', '', '.png'))}", mutate(random, data)))
