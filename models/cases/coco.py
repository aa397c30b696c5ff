"""COCO's JSON: the outlines of many images in one file, drawn as those of LabelMe; of runs the very pixels."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial

import numpy as np

from ..errors import InputError
from ..images.limits import check_pixel_count
from ..images.preprocessing import Region
from ..messages import Joined, Message
from .matching import PathIndex, parts_of
from .shapes import (
    Frame,
    Outlines,
    Shape,
    check_proportions,
    check_shape_count,
    coco_runs,
    frame_of,
    polygon,
    resize_nearest,
)
from .texts import quoted

_DAMAGED = Message("COCO 文件已损坏，请重新导出")
_LONGEST_NUMBER = 6  # characters of 5 bits: no run is longer than 30 bits


def is_coco(document) -> bool:
    return isinstance(document, dict) and all(
        isinstance(document.get(name), list) for name in ("images", "annotations")
    )


class Coco:
    """A document by its images; InputError where an entry is not as COCO has it. Masks are drawn when asked for."""

    def __init__(self, document: dict):
        try:
            categories = {category["id"]: str(category["name"]) for category in document.get("categories") or ()}
            of_images = defaultdict(list)
            for annotation in document["annotations"]:
                name = categories.get(annotation["category_id"], f"category_id {annotation['category_id']}")
                of_images[annotation["image_id"]].append((name, annotation))
            images = [
                (parts_of(image["file_name"]), of_images.get(image["id"], []), image) for image in document["images"]
            ]
            self._images = PathIndex((parts, (annotations, image)) for parts, annotations, image in images if parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("images、annotations 或 categories 中有一项缺少内容或类型不对；{}", _DAMAGED) from error
        used = (name for annotations in of_images.values() for name, _ in annotations)
        self._labels = list(dict.fromkeys(used))

    def entry_of(self, path: str, image: str) -> tuple[list, dict] | None:
        """(what is annotated, the entry) of an image, None where the file does not have it.

        `path`: where the image is; `image`: as the list has it. Raises InputError where several entries may be it.
        """
        entries = [entry for entries in self._images.find(path, image) for entry in entries]
        if len(entries) > 1:
            shown = Joined(" 和 ", (quoted(entry["file_name"]) for _, entry in entries[:2]))
            raise InputError("无法知道 {} 是 {} 中的哪一个；请在列表中写出更长的路径", image, shown)
        return entries[0] if entries else None

    def outlines(self, path: str, image: str, size: tuple[int, int]) -> Outlines:
        """What is annotated in an image, at `size` (H, W); nothing where the file does not have it. See `entry_of`."""
        drawn, entry = self.entry_of(path, image) or ([], {})
        check_shape_count(drawn)
        frame = frame_of(entry.get("width"), entry.get("height"), size)
        shapes = [Shape(name, partial(_draw, annotation, frame)) for name, annotation in drawn]
        return Outlines(shapes, self._labels)


def _draw(annotation: dict, frame: Frame) -> np.ndarray:
    """bool [H, W] of an annotation: its polygons or runs, its box where it has neither."""
    try:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            return resize_nearest(decode_runs(segmentation, frame), frame.size)
        if not segmentation:
            return _box(frame.points(_corners(annotation.get("bbox"))), frame.size)
        if not isinstance(segmentation, list):
            raise InputError("segmentation 应是多边形的列表或 RLE")
        check_shape_count(segmentation)
        mask = np.zeros(frame.size, dtype=bool)
        for numbers in segmentation:
            mask |= polygon(frame.points(_pairs(numbers)), frame.size)
        return mask
    except InputError as error:
        raise InputError("标注 {}：{}", quoted(str(annotation.get("id"))), error) from error


def _pairs(numbers) -> list:
    if not isinstance(numbers, list) or len(numbers) < 6 or len(numbers) % 2:
        raise InputError("多边形应是 [x1, y1, x2, y2, x3, y3, …]，至少三个点")
    return list(zip(numbers[::2], numbers[1::2]))


def _corners(box) -> list:
    """Two opposite corners of a box."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(number, (int, float)) for number in box):
        raise InputError("既没有 segmentation，也没有 bbox [x, y, 宽, 高]")
    try:
        x, y, width, height = map(float, box)
    except OverflowError:  # an integer of hundreds of digits
        x = y = width = height = math.inf
    return [(x, y), (x + width, y + height)]


def _box(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: the pixels whose centres lie between two corners, (x, y) each."""
    mask = np.zeros(size, dtype=bool)
    mask[Region(*corners.min(axis=0), *corners.max(axis=0)).pixels(*size)] = True
    return mask


def decode_runs(segmentation: dict, frame: Frame) -> np.ndarray:
    """bool [h, w] of a run-length encoding, its counts a list or a string; InputError for what is none.

    Counts of a string are of 5 bits a character, the lowest first, and from the fourth on what they exceed the count
    before the last by (`rleFrString` of pycocotools' maskApi.c).
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError("RLE 的 size 应是 [高, 宽]")
    height, width = size
    check_pixel_count(width, height)
    check_proportions(width, height, (frame.height, frame.width), "RLE ")
    try:
        numbers = _counts_of(counts) if isinstance(counts, str) else np.array(counts, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        numbers = np.array([-1])
    if numbers.ndim != 1 or (numbers < 0).any() or (numbers > width * height).any() or numbers.sum() != width * height:
        raise InputError("RLE 的 counts 不是 {}×{} 像素的编码", width, height)
    return coco_runs(numbers, (height, width))


def _counts_of(counts: str) -> np.ndarray:
    """int64 [N] of a string of counts; ValueError where it is none."""
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - ord("0")
    is_last = codes & 0x20 == 0
    if not len(codes) or (codes < 0).any() or (codes >= 64).any() or not is_last[-1]:
        raise ValueError("no counts")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise ValueError("a number too long")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    numbers -= np.where(codes[ends] & 0x10, 1 << (5 * lengths), 0)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers
