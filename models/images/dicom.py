"""DICOM: from a file to the 8-bit picture that a viewer shows.

The way of the grey levels (PS3.3 C.7.6.3, C.11.1, C.11.2, C.11.6): stored values -> modality LUT or rescale slope and
intercept -> VOI LUT or window -> 0..255, inverted where the presentation LUT's shape or, without one, MONOCHROME1 says
so. All of it acts on one level at a time, so it is worked out once per level that the frame can hold, not once per
pixel. Without a window black and white are the smallest and the largest level that is not scattered (see `grey`).
"""

from collections.abc import Callable, MutableSequence
from typing import BinaryIO, NamedTuple

import numpy as np

from ..errors import InputError
from .dicom_file import is_dicom, read_stored
from .grey import AUTO, GreyRange, Levels, full_range, in_blocks, is_short, levels_of, look_up, own_range, scale_of

COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what decoding turns into RGB


def read_dicom(file: BinaryIO, path, grey_range: GreyRange = AUTO) -> np.ndarray:
    """Read the first frame of an open DICOM file as RGB, uint8 [H, W, 3]; no other frame is decoded.

    A `grey_range` other than `auto` goes before the file's window. Raises InputError, naming `path` and the remedy,
    where pydicom or a decoder is missing, and where the file holds no image, an enormous one, or is damaged.
    """
    try:
        import pydicom.pixels  # noqa: F401
    except ImportError as error:
        raise InputError('无法读取图像 {}：读取 DICOM 需要 pydicom：pip install "pydicom>=3"', path) from error
    try:
        if not is_dicom(file):
            raise InputError("第 128 字节处没有 DICM 标记，开头也不是 DICOM 的数据；请重新导出为 DICOM 文件")
        stored, header = read_stored(file)
        return _to_rgb(stored, header, grey_range)
    except InputError as error:
        raise InputError("无法读取 DICOM {}：{}", path, " ".join(str(error).split())) from error
    except MemoryError:
        raise
    except Exception as error:  # pydicom raises ValueError, AttributeError, TypeError, struct.error, ... on a bad file
        message = " ".join(str(error).split())[:150]
        raise InputError("无法读取 DICOM {}：文件不完整或已损坏，请重新导出（{}）", path, message) from error


def _to_rgb(stored: np.ndarray, header, grey_range: GreyRange) -> np.ndarray:
    """Stored values [H, W] or [H, W, 3] (colour already turned into RGB) -> uint8 [H, W, 3]."""
    kind = header.PhotometricInterpretation
    if stored.ndim == 3:
        if kind not in COLOURS or stored.shape[2] != 3:
            raise InputError("不支持颜色空间 {}；请转换为 RGB 或灰度", kind)
        return _to_8_bits(stored, header.BitsStored)
    if kind == "PALETTE COLOR":
        return _palette_to_rgb(stored, header)
    if kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError("不支持颜色空间 {}；请转换为 RGB 或灰度", kind)
    return _monochrome_to_rgb(stored, header, grey_range)


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values [H, W, 3] of `bits` bits -> uint8 of the same shape."""
    if values.dtype == np.uint8 and bits == 8:
        return values
    scale = 255.0 / (2**bits - 1)
    return in_blocks(lambda part: np.rint(np.clip(part * scale, 0, 255)).astype(np.uint8), values)


# -- grey -------------------------------------------------------------------------------------


def _monochrome_to_rgb(stored: np.ndarray, header, grey_range: GreyRange) -> np.ndarray:
    """Stored values [H, W] of any type -> uint8 [H, W, 3]."""
    present = levels_of(stored)
    shown = _display_of(present, stored.dtype, header, grey_range)
    if not is_short(stored.dtype):
        return in_blocks(shown, stored)
    table = np.zeros(1 << 16, dtype=np.uint8)
    values = present.values.astype(stored.dtype)
    table[values.astype(np.int64) % (1 << 16)] = shown(values)
    return look_up(table, stored)


def _display_of(present: Levels, dtype, header, grey_range: GreyRange) -> Callable[[np.ndarray], np.ndarray]:
    """A function from stored values of a type to uint8 of the same shape; `present`: those of the frame.

    Without a window the padding is left out of the range and drawn darkest; levels that are not finite always are.
    """
    modality = _modality_of(header, present)
    levels, possible = modality(present.values), np.sort(modality(np.array(_stored_range(dtype, header))))
    voi = _voi_of(header, levels, possible[0] < 0) if grey_range.rule == "auto" else None
    scale, is_padded = None, False
    if voi is None:
        counted = ~_is_padding(present.values.astype(dtype), header)
        is_padded = bool(counted.any())
        counted |= not is_padded  # a frame of nothing but padding
        order = np.argsort(levels[counted], kind="stable")
        frame = Levels(levels[counted][order], present.counts[counted][order])
        scale = own_range(frame) if grey_range.rule == "auto" else scale_of(frame, grey_range, tuple(possible))

    def shown(values):
        levels = modality(values)
        drawn = np.isfinite(levels)
        if voi is not None:
            grey = np.rint(voi(np.where(drawn, levels, 0)) * 255)
        else:
            drawn = drawn & ~_is_padding(values, header) if is_padded else drawn
            grey = scale.apply(np.where(drawn, levels, scale.black)).astype(np.float64)
        grey = 255 - grey if _is_inverted(header) else grey
        return np.where(drawn, grey, 0).astype(np.uint8)

    return shown


def _is_inverted(header) -> bool:
    """Whether low levels are bright (PS3.3 C.11.6, C.7.6.3.1.2): a shape goes before MONOCHROME1, as in dcmtk."""
    shapes = {"IDENTITY": False, "INVERSE": True}
    shape = str(header.get("PresentationLUTShape") or "").strip().upper()
    return shapes.get(shape, header.PhotometricInterpretation == "MONOCHROME1")


def _stored_range(dtype, header) -> tuple[float, float]:
    """The smallest and the largest value that can be stored."""
    if dtype.kind not in "iu":
        return full_range(dtype)
    bits = int(header.BitsStored)
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if dtype.kind == "i" else (0.0, 2.0**bits - 1)


def _is_padding(values: np.ndarray, header) -> np.ndarray:
    """Which stored values fill the frame up outside of the image (PS3.3 C.7.5.1.1.2)."""
    keywords = {"f4": "FloatPixelPadding", "f8": "DoubleFloatPixelPadding"}
    keyword = keywords.get(values.dtype.str[1:], "PixelPadding")
    first = _number(header, f"{keyword}Value")
    if first is None:
        return np.zeros(values.shape, dtype=bool)
    last = _number(header, f"{keyword}RangeLimit")
    ends = [first, first if last is None else last]
    if values.dtype.kind in "iu":  # a tag written unsigned for signed pixels, or the other way round, wraps
        ends = np.array(ends).astype(np.int64).astype(values.dtype)
    return (values >= min(ends)) & (values <= max(ends))


def _modality_of(header, present: Levels) -> Callable[[np.ndarray], np.ndarray]:
    """Modality LUT, or rescale slope and intercept (PS3.3 C.11.1): values -> float64 of the same shape."""
    table = _lookup_table(header.get("ModalityLUTSequence"), header, present.values, header.PixelRepresentation == 1)
    if table:
        return table.apply
    module = _module_of_first_frame(header, "PixelValueTransformationSequence")
    slope = _number(module, "RescaleSlope") or 1.0  # a slope of zero would say nothing
    intercept = _number(module, "RescaleIntercept") or 0.0
    return lambda values: values.astype(np.float64) * slope + intercept


def _voi_of(header, levels: np.ndarray, is_signed: bool) -> Callable[[np.ndarray], np.ndarray] | None:
    """The values of interest (PS3.3 C.11.2): levels -> shares in [0, 1], or None without a window that can be used.

    `is_signed`: whether levels below zero are possible. A VOI LUT goes before windows; of several the first counts.
    """
    module = _module_of_first_frame(header, "FrameVOILUTSequence")
    table = _lookup_table(module.get("VOILUTSequence"), header, levels, is_signed)
    if table:
        return lambda levels: table.apply(levels) / max(2**table.bits - 1, table.entries.max())
    centre, width = _number(module, "WindowCenter"), _number(module, "WindowWidth")
    name = str(module.get("VOILUTFunction") or "LINEAR").strip().upper()
    function, least_width = VOI_LUT_FUNCTIONS.get(name, VOI_LUT_FUNCTIONS["LINEAR"])
    if centre is None or width is None or width < least_width:
        return None
    return lambda levels: function(levels, centre, width)


def _linear(levels, centre, width):
    """PS3.3 C.11.2.1.2.1; a width of 1 is a threshold."""
    if width == 1:
        return (levels > centre - 0.5).astype(np.float64)
    return _linear_exact(levels, centre - 0.5, width - 1)


def _linear_exact(levels, centre, width):
    """PS3.3 C.11.2.1.3.2"""
    return np.clip((levels - centre) / width + 0.5, 0, 1)


def _sigmoid(levels, centre, width):
    """PS3.3 C.11.2.1.3.1"""
    return 1 / (1 + np.exp(np.clip(-4 * (levels - centre) / width, -700, 700)))


# VOI LUT function -> formula, least window width for which it is defined
VOI_LUT_FUNCTIONS: dict[str, tuple[Callable, float]] = {
    "LINEAR": (_linear, 1.0),
    "LINEAR_EXACT": (_linear_exact, np.finfo(np.float64).tiny),
    "SIGMOID": (_sigmoid, np.finfo(np.float64).tiny),
}


# -- tables and tags --------------------------------------------------------------------------


class LookupTable(NamedTuple):
    """A LUT of PS3.3 C.11: values up to `first` give the first entry, values beyond the end the last."""

    first: int
    entries: np.ndarray
    bits: int

    def apply(self, values: np.ndarray) -> np.ndarray:
        """float64 of the same shape; values that are not finite count as `first`."""
        offsets = np.nan_to_num(np.rint(values.astype(np.float64)) - self.first, nan=0)
        return self.entries[np.clip(offsets, 0, len(self.entries) - 1).astype(np.intp)].astype(np.float64)


def _lookup_table(sequence, header, levels: np.ndarray, is_signed: bool) -> LookupTable | None:
    """The first table in a sequence: numbers, or bytes of 8 or 16 bits each; None where all are empty.

    `levels` are those it is for: a first value of the other sign than they can have was written with the wrong VR, and
    wraps. Of a table shorter than it says what there is counts.
    """
    pairs = ((item.get("LUTDescriptor"), item.get("LUTData")) for item in sequence or ())
    full = (pair for pair in pairs if isinstance(pair[0], MutableSequence) and pair[1] not in (None, b"", []))
    descriptor, entries = next(full, (None, None))
    if descriptor is None:
        return None
    count, first, bits = (int(number) for number in descriptor)
    count = count % 2**16 or 2**16
    if isinstance(entries, bytes):
        wide = "<u2" if header.original_encoding[1] else ">u2"
        is_wide = len(entries) >= 2 * count or bits > 8
        entries = np.frombuffer(entries[: len(entries) // 2 * 2] if is_wide else entries, wide if is_wide else np.uint8)
    wrapped = first - 2**16 if is_signed and first >= 2**15 else first + 2**16 if not is_signed and first < 0 else first
    if _overlap(levels, wrapped, count) > _overlap(levels, first, count):
        first = wrapped
    return LookupTable(first, np.atleast_1d(entries)[:count], min(bits, 16))


def _overlap(levels: np.ndarray, first: int, count: int) -> float:
    """How much of the range of levels a table covers."""
    return max(0.0, min(float(levels.max()), first + count - 1.0) - max(float(levels.min()), first))


def _palette_to_rgb(stored: np.ndarray, header) -> np.ndarray:
    """Stored values [H, W] and the palette's three tables -> uint8 [H, W, 3]."""
    from pydicom.pixels import apply_color_lut

    rgb = apply_color_lut(stored, header)[..., :3]
    bits = min(header.RedPaletteColorLookupTableDescriptor[2], 8 * rgb.dtype.itemsize)
    return np.rint(rgb * (255.0 / max(2**bits - 1, rgb.max()))).astype(np.uint8)


def _module_of_first_frame(header, macro: str):
    """The first frame's item of a functional group (enhanced multi-frame objects), else the header itself."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        if header.get(groups) and header[groups][0].get(macro):
            return header[groups][0][macro][0]
    return header


def _number(dataset, keyword: str) -> float | None:
    """A tag's value, the first of several; None where it is missing, empty, no number or not finite."""
    try:
        value = dataset.get(keyword)
        number = float(value[0] if isinstance(value, MutableSequence) else value)
    except (TypeError, ValueError, IndexError):
        return None
    return number if np.isfinite(number) else None
