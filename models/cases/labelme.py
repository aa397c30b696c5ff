"""LabelMe's JSON: shapes with labels, of one image."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..messages import Joined, Message
from .masks import read_png
from .shapes import (
    Frame,
    Outlines,
    Shape,
    check_shape_count,
    circle,
    frame_of,
    point,
    polygon,
    rectangle,
    resize_nearest,
)
from .texts import quoted


class _Kind(NamedTuple):
    draw: Callable
    least_points: int
    most_points: int | None


_KINDS = {
    "polygon": _Kind(polygon, 3, None),
    "rectangle": _Kind(rectangle, 2, 2),
    "circle": _Kind(circle, 2, 2),
    "point": _Kind(point, 1, 1),
}
POINT, MASK = "point", "mask"
SUPPORTED = Joined("、", (*_KINDS, MASK))


def is_labelme(document) -> bool:
    return isinstance(document, dict) and isinstance(document.get("shapes"), list)


def without_image(document: dict) -> dict:
    """What is needed of a LabelMe document: the image in it may be a hundred times as large."""
    return {name: document.get(name) for name in ("shapes", "imageWidth", "imageHeight")}


def labelme_outlines(document: dict, size: tuple[int, int]) -> Outlines:
    """The shapes of a document, drawn at `size` (H, W) as LabelMe draws them; InputError where it is damaged."""
    shapes = document["shapes"]
    check_shape_count(shapes)
    if not all(isinstance(shape, dict) and isinstance(shape.get("label"), (str, int)) for shape in shapes):
        raise InputError("LabelMe 文件的 shapes 中有一项没有 label，文件已损坏；请用 LabelMe 重新保存")
    frame = frame_of(document.get("imageWidth"), document.get("imageHeight"), size)
    drawn = [
        Shape(str(shape["label"]), partial(_draw, shape, frame), has_area=shape.get("shape_type") != POINT)
        for shape in shapes
    ]
    return Outlines(drawn, [shape.label for shape in drawn])


def _draw(shape: dict, frame: Frame) -> np.ndarray:
    """bool [H, W] of one shape; one without a type is a polygon, as old files have it."""
    name = shape.get("shape_type") or "polygon"
    label = quoted(str(shape["label"]))
    if name == MASK:
        return _draw_mask(shape, frame)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise InputError("{} 的形状是 {}，没有面积或不支持；支持 {}", label, quoted(str(name)), SUPPORTED)
    points = frame.points(shape.get("points"))
    if len(points) < kind.least_points or len(points) > (kind.most_points or len(points)):
        needed = Message("至少") if kind.most_points is None else Message("应")
        raise InputError("{} 的形状 {} 有 {} 个点，{}有 {} 个", label, name, len(points), needed, kind.least_points)
    return kind.draw(points, frame.size)


def _draw_mask(shape: dict, frame: Frame) -> np.ndarray:
    """A mask of LabelMe 5.3 and later: a PNG as base64, in the box between two points, both corners included."""
    own = Frame(frame.width, frame.height, (frame.height, frame.width))
    points = own.points(shape.get("points")).astype(int)
    try:
        inside = read_png(base64.b64decode(shape.get("mask"), validate=True))
    except (binascii.Error, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("{} 的 mask 不是 base64 的 PNG，文件已损坏", quoted(str(shape["label"]))) from error
    if len(points) != 2 or (*(points[1] - points[0] + 1)[::-1],) != inside.shape or (points < 0).any():
        raise InputError("{} 的 mask 与它的两个点不符，文件已损坏", quoted(str(shape["label"])))
    (left, top), (right, bottom) = points
    whole = np.zeros(own.size, dtype=bool)
    place = whole[top : bottom + 1, left : right + 1]
    place[:] = inside[: place.shape[0], : place.shape[1]]
    return resize_nearest(whole, frame.size)
