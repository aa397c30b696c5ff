"""Images of the documented formats, by bytes and by structure, and other files under their names."""

import struct
import zlib
from functools import partial
from random import Random

from .mutate import image_command, mutate_bytes, number, own_cache, some, valid_bytes, valid_files, write


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
        action = random.choice((0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6))
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
        elif action == 5:  # as many pixels as Pillow takes without a word, and more; zeros for all of them
            chunks[0][1] = struct.pack(">IIBB", *random.choice(((13000, 13000), (40000, 40000))), 16, 0) + bytes(3)
            chunks[1:] = [[b"IDAT", b"\x78\xda" + valid_bytes("zeros.deflate")], [b"IEND", b""]]
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
