"""What an annotation file outlines: shapes with labels, drawn as masks of the image's size.

Sizes are (H, W); points are float64 [N, 2] of (x, y) in the image's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..heavy import Image, ImageDraw
from ..images.limits import check_pixel_count
from ..messages import Message

MOST_SHAPES, MOST_POINTS = 10_000, 200_000  # of one image


class Shape(NamedTuple):
    label: str
    draw: Callable[[], np.ndarray]  # -> bool [H, W]; InputError where the shape is none
    has_area: bool = True  # a point has none


class Outlines(NamedTuple):
    """What a file outlines in an image; `labels`: all that the file has, in other images too."""

    shapes: list[Shape]
    labels: list[str]


def check_proportions(width: int, height: int, size: tuple[int, int], what: Message) -> None:
    """InputError where no factor takes one size to the other, each side to within a pixel of the smaller one.

    That is what rounding leaves of a picture that was made smaller or larger as a whole; what was cut off or squeezed
    would lie in another place.
    """
    image_height, image_width = size
    ratios = width / image_width, height / image_height
    is_whole = abs(ratios[0] - ratios[1]) < 1 / image_width + 1 / image_height
    is_whole = is_whole or abs(1 / ratios[0] - 1 / ratios[1]) < 1 / width + 1 / height
    if not is_whole:
        raise InputError(
            "{}的大小是 {}×{}，图像是 {}×{}，宽高比不同；请在同一张图像上标注，不要裁剪或改变宽高比",
            what,
            *(width, height, image_width, image_height),
        )


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] -> [H, W]: each pixel takes the value under its centre."""
    if mask.shape == tuple(size):
        return mask
    rows, columns = ((2 * np.arange(to) + 1) * of // (2 * to) for to, of in zip(size, mask.shape))
    return mask[rows[:, None], columns]


class Frame(NamedTuple):
    """The picture in whose pixels a file counts, and the size of the image that is drawn on."""

    width: int
    height: int
    size: tuple[int, int]

    def points(self, numbers) -> np.ndarray:
        """(x, y) pairs of a file -> points of the image, those far outside moved nearer; InputError for others."""
        try:
            points = np.array(numbers, dtype=np.float64)
        except (ValueError, TypeError, OverflowError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise InputError("标注的坐标应是成对的有限的数 [[x, y], …]")
        if len(points) > MOST_POINTS:
            raise InputError("一个形状有 {} 个点，至多 {} 个", len(points), MOST_POINTS)
        own = np.array([self.width, self.height], dtype=np.float64)
        return np.clip(points, -own, 2 * own) * (np.array(self.size[::-1]) / own)


def frame_of(width, height, size: tuple[int, int]) -> Frame:
    """The frame of what a file says its image's size is, the image's own where it says nothing.

    Raises InputError for sizes that are none, enormous, or of other proportions.
    """
    if width is None and height is None:
        height, width = size
    if not all(isinstance(number, (int, float)) and 1 <= number < 1e9 for number in (width, height)):
        raise InputError("标注文件中图像的宽或高不是正数")
    width, height = int(width), int(height)
    check_pixel_count(width, height)
    check_proportions(width, height, size, Message("标注文件中图像"))
    return Frame(width, height, size)


def check_shape_count(shapes: Iterable) -> None:
    if len(shapes) > MOST_SHAPES:
        raise InputError("一张图像有 {} 个形状，至多 {} 个", len(shapes), MOST_SHAPES)


# -- drawn as LabelMe and CheXlocalize draw: with Pillow, the outline included -----------------


def polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return _drawn("polygon", [tuple(point) for point in points.tolist()], size)


def rectangle(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Two opposite corners."""
    return _drawn("rectangle", [*points.min(axis=0), *points.max(axis=0)], size)


def circle(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The centre, and a point on the circle."""
    (x, y), (on_x, on_y) = points
    radius = float(np.hypot(x - on_x, y - on_y))
    return _drawn("ellipse", [x - radius, y - radius, x + radius, y + radius], size)


def point(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The one pixel in which it lies; none outside of the image."""
    mask = np.zeros(size, dtype=bool)
    x, y = np.floor(points[0]).astype(int)
    if 0 <= x < size[1] and 0 <= y < size[0]:
        mask[y, x] = True
    return mask


def _drawn(shape: str, numbers, size: tuple[int, int]) -> np.ndarray:
    canvas = Image.new("L", size[::-1])
    getattr(ImageDraw.Draw(canvas), shape)(numbers, outline=1, fill=1)
    return np.asarray(canvas).view(bool)


def coco_runs(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] of lengths of runs, outside and inside by turns, down the columns; they must add up to H * W."""
    is_inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(is_inside, counts).reshape(size[::-1]).T
