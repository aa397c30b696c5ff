"""DICOM: from a file to the 8-bit picture that a viewer shows.

The way of the grey levels (PS3.3 C.7.6.3, C.11.1, C.11.2): stored values -> modality LUT or rescale slope and
intercept -> VOI LUT or window -> 0..255, inverted for MONOCHROME1. All of it acts on one level at a time, so
it is worked out once per level that the frame can hold, not once per pixel. pydicom is an optional extra.
"""

from collections.abc import Callable, MutableSequence
from typing import BinaryIO, NamedTuple

import numpy as np

from ..errors import InputError
from ..heavy import Image
from .grey import scale_over_own_range

DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # what decoding turns into RGB


def read_dicom(file: BinaryIO, path) -> np.ndarray:
    """Read the first frame of an open DICOM file as RGB, uint8 [H, W, 3]; no other frame is decoded.

    Raises InputError, naming `path` and the remedy, where pydicom or a decoder is missing, and where the file
    holds no image, an enormous one, or is damaged.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise InputError(f'无法读取图像 {path}：读取 DICOM 需要 pydicom：pip install "pydicom>=3"') from error
    try:
        header = dcmread(file, stop_before_pixels=True)
        file.seek(0)
        _check_image(header)
        if header.file_meta.TransferSyntaxUID.is_deflated:  # one stream, in which no frame can be looked up
            return _to_rgb(pixel_array(dcmread(file), index=0), header)
        return _to_rgb(pixel_array(file, index=0), header)
    except InputError as error:
        raise InputError(f"无法读取 DICOM {path}：{' '.join(str(error).split())}") from error
    except MemoryError:
        raise
    except InvalidDicomError as error:
        raise InputError(f"无法读取 DICOM {path}：第 128 字节处没有 DICM 标记，请重新导出为 DICOM 文件") from error
    except Exception as error:  # pydicom raises ValueError, AttributeError, TypeError, struct.error, ... on a bad file
        message = " ".join(str(error).split())[:150]
        raise InputError(f"无法读取 DICOM {path}：文件不完整或已损坏，请重新导出（{message}）") from error


def _check_image(header) -> None:
    """InputError where there is no image, one too large to decode, or no decoder for it."""
    from pydicom.pixels import get_decoder

    rows, columns = header.get("Rows"), header.get("Columns")
    if not rows or not columns:
        kind = getattr(header.file_meta.get("MediaStorageSOPClassUID"), "name", "未知类型")
        raise InputError(f"其中没有图像（{kind}），或文件不完整；请换成影像文件")
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and rows * columns > 2 * limit:  # as Pillow does with other formats
        raise InputError(f"图像过大（{columns}×{rows}，上限 {2 * limit} 像素）；请先缩小或裁剪")
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(f"不支持压缩格式 {syntax.name}；请转换为未压缩的 DICOM") from error
    if not decoder.is_available:
        raise InputError(f"缺少压缩格式 {syntax.name} 的解码器：{DECODERS}，或转换为未压缩的 DICOM")


def _to_rgb(stored: np.ndarray, header) -> np.ndarray:
    """Stored values [H, W] or [H, W, 3] (colour already turned into RGB) -> uint8 [H, W, 3]."""
    kind = header.PhotometricInterpretation
    if stored.ndim == 3:
        if kind not in COLOURS or stored.shape[2] != 3:
            raise InputError(f"不支持颜色空间 {kind}；请转换为 RGB 或灰度")
        return _to_8_bits(stored, header.BitsStored)
    if kind == "PALETTE COLOR":
        return _palette_to_rgb(stored, header)
    return np.repeat(_monochrome_to_grey(stored, header)[..., None], 3, axis=2)


def _to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned values of `bits` bits -> uint8 of the same shape."""
    if values.dtype == np.uint8 and bits == 8:
        return values
    return np.rint(np.clip(values * (255.0 / (2**bits - 1)), 0, 255)).astype(np.uint8)


# -- grey -------------------------------------------------------------------------------------


def _monochrome_to_grey(stored: np.ndarray, header) -> np.ndarray:
    """Stored values [H, W] of any type -> uint8 [H, W]."""
    low, high = stored.min(), stored.max()
    if stored.dtype.kind not in "iu" or int(high) - int(low) >= 1 << 16:
        return _displayed(stored, np.ones(stored.shape, dtype=bool), header)
    offsets = stored.astype(np.int64) - int(low)
    levels = np.arange(int(low), int(high) + 1).astype(stored.dtype)
    present = np.bincount(offsets.ravel(), minlength=len(levels)) > 0
    return _displayed(levels, present, header)[offsets]


def _displayed(values: np.ndarray, present: np.ndarray, header) -> np.ndarray:
    """Stored values -> uint8 of the same shape. Values not `present` in the frame do not count in its range.

    Without a window the padding is left out of the range and drawn darkest; levels that are not finite always are.
    """
    levels = _apply_modality(values, header)
    drawn = np.isfinite(levels)
    shares = _apply_voi(np.where(drawn, levels, 0), header)
    if shares is not None:
        grey = np.rint(shares * 255)
    else:
        counted = present & drawn & ~_is_padding(values, header)
        drawn = counted if counted.any() else present & drawn
        grey = scale_over_own_range(levels, drawn)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.where(drawn, grey, 0).astype(np.uint8)


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


def _apply_modality(values: np.ndarray, header) -> np.ndarray:
    """Modality LUT, or rescale slope and intercept (PS3.3 C.11.1): float64 of the same shape."""
    if header.get("ModalityLUTSequence"):
        return _lookup_table(header.ModalityLUTSequence[0], header).apply(values)
    module = _module_of_first_frame(header, "PixelValueTransformationSequence")
    slope = _number(module, "RescaleSlope") or 1.0  # a slope of zero would say nothing
    return values.astype(np.float64) * slope + (_number(module, "RescaleIntercept") or 0.0)


def _apply_voi(levels: np.ndarray, header) -> np.ndarray | None:
    """The values of interest (PS3.3 C.11.2): shares in [0, 1], or None without a window that can be used.

    A VOI LUT goes before windows; of several the first counts.
    """
    module = _module_of_first_frame(header, "FrameVOILUTSequence")
    if module.get("VOILUTSequence"):
        table = _lookup_table(module.VOILUTSequence[0], header)
        return table.apply(levels) / max(2**table.bits - 1, table.entries.max())
    centre, width = _number(module, "WindowCenter"), _number(module, "WindowWidth")
    name = str(module.get("VOILUTFunction") or "LINEAR").upper()
    function, least_width = VOI_LUT_FUNCTIONS.get(name, VOI_LUT_FUNCTIONS["LINEAR"])
    if centre is None or width is None or width < least_width:
        return None
    return function(levels, centre, width)


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


def _lookup_table(item, header) -> LookupTable:
    """The table in a sequence's item: its entries are numbers, or bytes of 8 or 16 bits each."""
    count, first, bits = (int(number) for number in item.LUTDescriptor)
    count = count % 2**16 or 2**16
    entries = item.LUTData
    if isinstance(entries, bytes):
        wide = "<u2" if header.original_encoding[1] else ">u2"
        entries = np.frombuffer(entries, dtype=wide if len(entries) >= 2 * count else np.uint8, count=count)
    return LookupTable(first, np.atleast_1d(entries)[:count], bits)


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
