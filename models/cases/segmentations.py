"""DICOM segmentation objects (PS3.3 A.51): segments with labels, each a mask of some images' frames.

Read with pydicom, an optional extra. A segment is what its frames cover together: those that say which image they
belong to count for that image only.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from functools import partial

import numpy as np

from ..errors import InputError
from ..images.dicom_file import is_dicom, read_instance
from ..images.limits import check_pixel_count
from ..messages import Joined
from .files import read_within
from .shapes import Outlines, Shape, check_proportions, resize_nearest

LARGEST_FILE = 256 << 20  # bytes
MOST_FRAMES = 10_000
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # inflated as a whole it may have any size
_TYPES = ("BINARY", "FRACTIONAL")


def segmentation_outlines(path: str, image_path: str, size: tuple[int, int]) -> Outlines:
    """The segments of a file that lie on an image, at `size` (H, W); of fractional ones what is at least half inside.

    Raises InputError where pydicom is missing, the file is no segmentation, too large or damaged, or names other images
    as those that it belongs to.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError('读取 DICOM SEG 需要 pydicom：pip install "pydicom>=3"') from error
    data = read_within(path, LARGEST_FILE)
    if _DEFLATED in data:
        raise InputError("不支持整体压缩（deflated）的 DICOM SEG，请重新导出为未压缩的")
    with _damage_as_input_error():
        return _outlines(pydicom.dcmread(io.BytesIO(data), force=True), _instance_of(image_path), size)


@contextlib.contextmanager
def _damage_as_input_error():
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pydicom raises ValueError, AttributeError, TypeError, struct.error, ... on a bad file
        raise InputError("DICOM SEG 不完整或已损坏（{}），请重新导出", " ".join(str(error).split())[:150]) from error


def _outlines(dataset, instance: str | None, size: tuple[int, int]) -> Outlines:
    kind = str(dataset.get("SegmentationType", ""))
    if dataset.get("Modality") != "SEG" or kind not in _TYPES:
        raise InputError("这个 DICOM 文件不是 {} 的分割（SEG）；请换成分割文件", Joined(" 或 ", _TYPES))
    check_pixel_count(dataset.Columns, dataset.Rows)
    check_proportions(dataset.Columns, dataset.Rows, size, "DICOM SEG ")
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) > MOST_FRAMES:
        raise InputError("DICOM SEG 有 {} 帧，至多 {} 帧", len(groups), MOST_FRAMES)
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    frames = defaultdict(list)
    for index, group in enumerate(groups):
        if instance is None or _is_of(instance, group, shared):
            segment = _group(group, shared, "SegmentIdentificationSequence")[0].ReferencedSegmentNumber
            frames[segment].append(index)
    if groups and not frames:
        raise InputError("DICOM SEG 引用的不是这张图像（SOPInstanceUID 不同，或不是第一帧）；请检查标注与图像是否对应")
    labels = {segment.SegmentNumber: str(segment.SegmentLabel) for segment in dataset.SegmentSequence}
    level = float(dataset.get("MaximumFractionalValue", 1)) / 2 if kind == "FRACTIONAL" else 0.5
    shapes = [
        Shape(labels[segment], partial(_draw, dataset, indices, level, size)) for segment, indices in frames.items()
    ]
    return Outlines(shapes, list(dict.fromkeys(labels.values())))


def _group(group, shared, name: str) -> list:
    """A functional group of a frame, or what all frames share; empty where there is none."""
    return group.get(name) or shared.get(name) or []


def _is_of(instance: str, group, shared) -> bool:
    """Whether a frame was drawn on the first frame of an instance, the one that is read; or does not say on which."""
    derivations = _group(group, shared, "DerivationImageSequence")
    sources = [source for derivation in derivations for source in derivation.get("SourceImageSequence") or ()]
    return not sources or any(
        str(source.ReferencedSOPInstanceUID) == instance and _is_of_first_frame(source) for source in sources
    )


def _is_of_first_frame(source) -> bool:
    """Whether a source is an image's first frame; one that names no frame is the whole image."""
    frames = source.get("ReferencedFrameNumber")
    return frames is None or 1 in np.atleast_1d(frames)


def _draw(dataset, indices: list[int], level: float, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: what the frames cover together."""
    with _damage_as_input_error():
        inside = np.zeros((dataset.Rows, dataset.Columns), dtype=bool)
        for index in indices:
            inside |= _frame(dataset, index) >= level
        return resize_nearest(inside, size)


def _frame(dataset, index: int) -> np.ndarray:
    """The values [h, w] of a frame; ValueError where they are not there."""
    shape = dataset.Rows, dataset.Columns
    if dataset.BitsAllocated == 1 and not dataset.file_meta.TransferSyntaxUID.is_compressed:
        count = shape[0] * shape[1]  # frames may begin within a byte, where pydicom takes none alone
        start, shift = divmod(index * count, 8)
        part = np.frombuffer(dataset.PixelData[start : start + -(-(shift + count) // 8)], dtype=np.uint8)
        return np.unpackbits(part, bitorder="little")[shift : shift + count].reshape(shape)
    from pydicom.pixels import pixel_array

    return pixel_array(dataset, index=index, raw=True)


def _instance_of(path: str) -> str | None:
    """The SOPInstanceUID of an image, None where it is no DICOM file or does not have one."""
    with open(path, "rb") as file:
        return read_instance(file) if is_dicom(file) else None
