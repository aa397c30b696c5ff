"""DICOM: from a file to the values that are stored of its first frame. pydicom is an optional extra.

Files without preamble, meta header or transfer syntax are read as what they begin like; one that is deflated as a whole
is inflated up to its first frame's end and no further.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from ..messages import Message
from .limits import check_pixel_count

DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
LONGEST_HEADER = 1 << 23  # bytes before the pixels of a deflated file
MOST_ELEMENTS = 20_000  # before the pixels; a file has hundreds
PIECE = 1 << 20  # bytes that are inflated at a time
_FIRST_GROUPS = (0x0002, 0x0008)  # a dataset begins with its meta header, or with what identifies it
_SEQUENTIAL, _SCAN = (0xC0, 0xC1), 0xDA  # JPEG's markers: frames of 8 and 12 bits, a scan
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "  # of a file around a JPEG 2000 codestream, made of boxes
_NO_LENGTH = 0xFFFFFFFF
SEQUENTIAL_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
RLE = "1.2.840.10008.1.2.5"
_KEYWORDS = {0x0008: "FloatPixelData", 0x0009: "DoubleFloatPixelData", 0x0010: "PixelData"}


def is_dicom(file: BinaryIO) -> bool:
    """Whether a file has DICOM's mark, or begins as a dataset without one; leaves it at its start."""
    file.seek(0)
    head = file.read(132)
    file.seek(0)
    return head[128:] == b"DICM" or any(_begins_as_dataset(head, order) for order in "<>")


def _begins_as_dataset(head: bytes, order: str) -> bool:
    """Whether the first eight bytes are the head of a small element of a first group."""
    if len(head) < 8:
        return False
    group, element, length = struct.unpack_from(order + "HHI", head)
    is_explicit = head[4:6].isalpha() and head[4:6].isupper()
    return group in _FIRST_GROUPS and element < 0x0100 and (is_explicit or order == "<" and length < 256)


def read_stored(file: BinaryIO) -> tuple[np.ndarray, object]:
    """(stored values [H, W] or [H, W, 3] of the first frame, header); colours are RGB already.

    Raises InputError where there is no image, an enormous one, or no decoder; pydicom's exceptions for what is damaged.
    """
    from pydicom.filereader import read_partial
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import JPEG2000TransferSyntaxes

    file = _inflated(file) or _Bounded(file)
    header = read_partial(file, stop_when=_until_pixels(), force=True)
    _complete(header)
    keyword, vr, length = _pixel_element(file.read(12), file, header)
    syntax = _transfer_syntax(file, header, length)
    decoder = _decoder(syntax)
    options = as_pixel_options(header, pixel_keyword=keyword, pixel_vr=vr, transfer_syntax_uid=syntax)
    own_bits = keyword == "PixelData" and (syntax == RLE or not syntax.is_encapsulated)
    own_bits = own_bits and header.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB")
    if own_bits:
        options["bits_stored"] = header.BitsAllocated  # which of them count is seen to here
    source = _mended_jpeg(file, options, decoder) if syntax in SEQUENTIAL_JPEG else file
    if syntax in JPEG2000TransferSyntaxes:
        _check_boxes(_first_frame(file, options))
    stored, _ = decoder.as_array(source, index=0, validate=True, **options)
    stored = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    return (_used_bits(stored, header) if own_bits else stored), header


def read_instance(file: BinaryIO) -> str | None:
    """The SOPInstanceUID of an image's file, None where it does not have one; raises as `read_stored`."""
    from pydicom.filereader import read_partial

    header = read_partial(_inflated(file) or _Bounded(file), stop_when=_until_pixels(), force=True)
    return str(header.SOPInstanceUID) if "SOPInstanceUID" in header else None


class _Bounded:
    """A file that is asked for no more than it has: a length that an element declares takes no memory."""

    def __init__(self, file: BinaryIO):
        self._file, place = file, file.tell()
        self._size = file.seek(0, io.SEEK_END)
        file.seek(place)
        self.seek, self.tell, self.name = file.seek, file.tell, getattr(file, "name", "")

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size is None or size < 0 else min(size, left))


def _until_pixels():
    """What tells pydicom to stop: at the pixels; InputError where there are more elements than any file has."""
    elements = itertools.count()

    def at_pixels(tag, vr, length) -> bool:
        if next(elements) > MOST_ELEMENTS:
            raise InputError("像素之前的数据元素超过 {} 个，文件已损坏", MOST_ELEMENTS)
        return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)

    return at_pixels


def _complete(header) -> None:
    """Fill in what old files leave out, as other viewers do; InputError where there is no image, or a huge one."""
    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns:
        kind = getattr(header.get("SOPClassUID"), "name", "")
        kind = kind if kind.isprintable() and 0 < len(kind) < 80 else Message("未知类型")
        raise InputError("其中没有图像（{}），或文件不完整；请换成影像文件", kind)
    check_pixel_count(columns, rows)
    samples = header.get("SamplesPerPixel") or 1
    kind = str(header.get("PhotometricInterpretation") or ("RGB" if samples == 3 else "MONOCHROME2")).strip().upper()
    stored = header.get("BitsStored") or header.get("BitsAllocated")
    usual = {"SamplesPerPixel": 1, "PlanarConfiguration": 0, "PixelRepresentation": 0, "BitsStored": stored}
    for keyword, value in usual.items():
        if header.get(keyword) is None and value is not None:
            setattr(header, keyword, value)
    header.PhotometricInterpretation = kind


def _pixel_element(head: bytes, file: BinaryIO, header) -> tuple[str, str | None, int]:
    """(keyword, VR or None, length) of the element that holds the pixels; leaves the file at its value."""
    order = "<" if header.original_encoding[1] else ">"
    if len(head) < 12:
        raise InputError("其中没有像素数据，或文件不完整；请重新导出")
    _, element, vr = struct.unpack_from(order + "HH2s", head)
    if vr.isalpha() and vr.isupper():
        return _KEYWORDS[element], vr.decode(), struct.unpack_from(order + "I", head, 8)[0]
    file.seek(-4, 1)
    return _KEYWORDS[element], None, struct.unpack_from(order + "I", head, 4)[0]


def _transfer_syntax(file: BinaryIO, header, length: int):
    """How the pixels are encoded: as the file says, else as they look."""
    from pydicom import uid

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax:
        return uid.UID(syntax)
    if length != _NO_LENGTH:
        is_implicit, is_little = header.original_encoding
        if is_implicit:
            return uid.ImplicitVRLittleEndian
        return uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
    frame = _first_frame(file, {"number_of_frames": header.get("NumberOfFrames") or 1})
    looks = {0xC0: uid.JPEGBaseline8Bit, 0xC1: uid.JPEGExtended12Bit, 0xC3: uid.JPEGLossless, 0xF7: uid.JPEGLSLossless}
    marker = next((marker for marker, _ in _jpeg_segments(frame) if marker in looks), None)
    if frame[:4] == b"\xff\x4f\xff\x51":
        return uid.JPEG2000
    if marker is None:
        raise InputError("文件没有说明传输语法（TransferSyntaxUID），像素又是压缩的；请重新导出")
    return looks[marker]


def _decoder(syntax):
    """pydicom's decoder; InputError where there is none for this compression."""
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError("不支持压缩格式 {}；请转换为未压缩的 DICOM", syntax.name) from error
    if not decoder.is_available:
        raise InputError("缺少压缩格式 {} 的解码器：{}，或转换为未压缩的 DICOM", syntax.name, DECODERS)
    return decoder


# -- bits -------------------------------------------------------------------------------------


def _used_bits(stored: np.ndarray, header) -> np.ndarray:
    """The bits of each value that count: `BitsStored` of them, up to `HighBit` (PS3.5 8.1.1); others hold overlays."""
    allocated, bits = 8 * stored.dtype.itemsize, int(header.BitsStored)
    high = header.get("HighBit")
    shift = high + 1 - bits if isinstance(high, int) and bits <= high + 1 <= allocated else 0
    if stored.dtype.kind not in "iu" or not 1 <= bits < allocated:
        return stored
    values = stored.view(f"u{stored.dtype.itemsize}")
    values <<= allocated - bits - shift  # what lies above falls off, and the sign comes to the top
    values = values.view(stored.dtype)
    values >>= allocated - bits
    return values


# -- files deflated as a whole ----------------------------------------------------------------


def _inflated(file: BinaryIO) -> io.BytesIO | None:
    """The dataset of a file deflated as a whole, inflated to the end of its first frame; None for other files.

    InputError where what comes before the pixels is longer than `LONGEST_HEADER`.
    """
    start = _start_of_deflated(file)
    file.seek(start or 0)
    if start is None:
        return None
    stream, data = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    size = PIECE
    while (end := _end_of_first_frame(data)) is None:
        _inflate(file, stream, data, size)
        if len(data) < size or size > LONGEST_HEADER:
            break  # all of it, as it is
        size *= 2
    if len(data) > LONGEST_HEADER and end is None:
        raise InputError("像素之前的数据超过 {} MB；请重新导出为未压缩的 DICOM", LONGEST_HEADER >> 20)
    _inflate(file, stream, data, end or 0)
    return io.BytesIO(data)


def _inflate(file: BinaryIO, stream, data: bytearray, size: int) -> None:
    """Make `data` `size` bytes long, or as long as the stream is."""
    while len(data) < size and not stream.eof:
        piece = stream.unconsumed_tail or file.read(PIECE)
        if not piece:
            return
        data += stream.decompress(piece, size - len(data))


def _end_of_first_frame(data: bytearray) -> int | None:
    """Where the first frame ends in a dataset of which `data` is the beginning, None where the pixels begin later."""
    from pydicom.filereader import read_partial

    beginning = io.BytesIO(data)
    try:
        header = read_partial(beginning, stop_when=_until_pixels(), force=True) if data else {}
    except InputError:
        raise
    except Exception:  # cut in the middle of an element
        return None
    start = beginning.tell()
    if not header.get("Rows") or start + 12 > len(data):
        return None
    _complete(header)
    values = header.Rows * header.Columns * header.SamplesPerPixel
    return start + 12 + values * -(-int(header.get("BitsAllocated") or 8) // 8)


def _start_of_deflated(file: BinaryIO) -> int | None:
    """Where the meta header ends of a file that says it is deflated, None of others."""
    syntax, place = b"", 132 if file.read(132)[128:] == b"DICM" else 0
    while True:
        file.seek(place)
        head = file.read(12)
        if head[:2] != b"\x02\0" or len(head) < 12:
            return place if syntax.rstrip(b"\0 ") == b"1.2.840.10008.1.2.1.99" else None
        is_long = head[4:6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        start = place + (12 if is_long else 8)
        length = struct.unpack_from("<I", head, 8)[0] if is_long else struct.unpack_from("<H", head, 6)[0]
        if head[2:4] == b"\x10\0":
            file.seek(start)
            syntax = file.read(min(length, 64))
        place = start + length


# -- JPEG -------------------------------------------------------------------------------------


def _first_frame(file: BinaryIO, options: dict) -> bytes:
    """The first frame of compressed pixels as it is stored; leaves the file where it was."""
    from pydicom.encaps import get_frame

    offsets = options.get("extended_offsets")
    return get_frame(file, 0, number_of_frames=options["number_of_frames"], extended_offsets=offsets)


def _check_boxes(frame: bytes) -> None:
    """InputError where a box before the codestream of a JPEG 2000 file has no length: pydicom would not get past it."""
    place = 12 if frame.startswith(_JP2_SIGNATURE) else len(frame)
    while place < len(frame) and frame[place + 4 : place + 8] != b"jp2c":
        length = int.from_bytes(frame[place : place + 4], "big")
        if length < 8:
            raise InputError("其中的 JPEG 2000 数据已损坏；请重新导出，或转换为未压缩的 DICOM")
        place += length


def _mended_jpeg(file: BinaryIO, options: dict, decoder) -> BinaryIO:
    """The first frame of sequential JPEG whose scan says that it ends at coefficient 0, where it ends at 63.

    Writers of 12 bits leave that out (all files of NEMA's WG04 set have it so), and decoders take it at its word. Other
    files are returned as they are. InputError where no decoder for more than 8 bits is installed.
    """
    from pydicom.encaps import encapsulate

    frame = bytearray(_first_frame(file, options))
    precision, is_mended = 8, False
    for marker, start in _jpeg_segments(frame):
        if marker in _SEQUENTIAL:
            precision = frame[start + 2]
        elif marker == _SCAN:
            first = start + 3 + 2 * frame[start + 2]
            is_mended = frame[first : first + 2] == b"\0\0"
            if is_mended:
                frame[first + 1] = 63
    if precision > 8 and "pylibjpeg" not in decoder.available_plugins:
        raise InputError("缺少 {} 位 JPEG 的解码器：{}，或转换为未压缩的 DICOM", precision, DECODERS)
    if not is_mended:
        return file
    options.pop("extended_offsets", None)
    options["number_of_frames"] = 1
    return io.BytesIO(encapsulate([bytes(frame)]))


def _jpeg_segments(frame: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where its length stands) of a JPEG's segments up to its first scan; none where it is no JPEG."""
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 4 <= len(frame) and frame[place] == 0xFF:
        marker, start = frame[place + 1], place + 2
        if marker != 0xFF:  # one that fills up
            yield marker, start
            if marker == _SCAN:
                return
            start += struct.unpack_from(">H", frame, start)[0]
        place = start if marker != 0xFF else place + 1
