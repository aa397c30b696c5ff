"""How an image becomes a model's input, and which part of the image that input shows.

    prepare = Preprocessing((224, 224))                        # squeezed to a square, as our own checkpoints
    prepare = Preprocessing(224, (224, 224), resample=3)       # the shorter edge, then the middle: as CLIP
    prepare(pixels) -> [1, 3, h, w];  prepare.region(H, W) -> where that lies on the original pixels

A heatmap goes the way back: it is made on the input's grid and laid on `region`, nowhere else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..heavy import Image, torch
from ..messages import Message

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, by value: Pillow is imported when an image is read


class Region(NamedTuple):
    """A rectangle of the original image in pixels, fractions included; beyond the image where the input was padded."""

    left: float
    top: float
    right: float
    bottom: float

    def pixels(self, height: int, width: int) -> tuple[slice, slice]:
        """(rows, columns) of the image whose centres lie in the region."""
        rows = slice(max(0, math.ceil(self.top - 0.5)), min(height, math.ceil(self.bottom - 0.5)))
        columns = slice(max(0, math.ceil(self.left - 0.5)), min(width, math.ceil(self.right - 0.5)))
        return rows, columns

    def corner(self, down: float, right: float) -> Region:
        """The upper left part of the region, as shares of its sides."""
        return Region(
            self.left,
            self.top,
            self.left + right * (self.right - self.left),
            self.top + down * (self.bottom - self.top),
        )

    def is_whole(self, height: int, width: int) -> bool:
        """Whether the region is an image of this size."""
        return np.allclose(self, (0, 0, width, height), rtol=0, atol=1e-6)

    def share(self, height: int, width: int) -> float:
        """Part of the image's pixels that lie in the region, 0 to 1."""
        rows, columns = self.pixels(height, width)
        return (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)


class Preprocessing(NamedTuple):
    """Resized, cropped in the middle, normalised; a model's own."""

    resize: int | tuple[int, int]  # the shorter edge, or (height, width)
    crop: tuple[int, int] | None = None  # (height, width) of the middle; with black around what is smaller
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of levels in [0, 1]
    std: tuple[float, float, float] = IMAGENET_STD
    resample: int = BILINEAR  # one of PIL.Image.Resampling
    patches: tuple[int, int] | None = None  # (a patch's side, most patches): SigLIP 2's free shapes; no `resize`

    @property
    def alike_in_channels(self) -> bool:
        """Whether the three channels are normalised alike, so that grey before is grey after."""
        return len({*zip(self.mean, self.std)}) == 1

    @property
    def fixed_size(self) -> bool:
        """Whether images of every shape give an input of one size."""
        return self.patches is None and (self.crop is not None or not isinstance(self.resize, int))

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing, before the crop."""
        if self.patches:
            return size_in_patches(height, width, *self.patches)
        if not isinstance(self.resize, int):
            return self.resize
        longer = int(self.resize * max(height, width) / min(height, width))  # as the libraries round
        return (longer, self.resize) if height >= width else (self.resize, longer)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the model's input for an image of this size."""
        return self.crop or self.resized_size(height, width)

    def region(self, height: int, width: int) -> Region:
        """The part of an image of this size that the input shows."""
        resized, (rows, columns) = self.resized_size(height, width), self.input_size(height, width)
        top, left = (_margin(whole, part) for whole, part in zip(resized, (rows, columns)))
        y, x = height / resized[0], width / resized[1]
        return Region(left * x, top * y, (left + columns) * x, (top + rows) * y)

    def resize_and_crop(self, pixels: np.ndarray) -> np.ndarray:
        """RGB uint8 [H, W, 3] -> uint8 [h, w, 3]."""
        height, width = self.resized_size(*pixels.shape[:2])
        resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(self.resample)))
        if self.crop is None or self.crop == (height, width):
            return resized
        for axis, (whole, part) in enumerate(zip((height, width), self.crop)):
            before = _margin(whole, part)
            if before < 0:
                padding = [(0, 0)] * 3
                padding[axis] = (-before, part - whole + before)
                resized = np.pad(resized, padding)
            else:
                resized = resized[(slice(None),) * axis + (slice(before, before + part),)]
        return np.ascontiguousarray(resized)

    def normalise(self, resized: np.ndarray) -> torch.Tensor:
        """Images of one size, uint8 [B, h, w, 3] -> model input, float32 [B, 3, h, w]."""
        levels = np.arange(256, dtype=np.float32)[:, None] / np.float32(255.0)
        table = ((levels - np.array(self.mean)) / np.array(self.std)).astype(np.float32)  # (256, 3)
        images = np.empty((len(resized), 3, *resized.shape[1:3]), dtype=np.float32)
        for channel in range(3):
            np.take(table[:, channel], resized[..., channel], out=images[:, channel], mode="clip")
        return torch.from_numpy(images)

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        """RGB uint8 [H, W, 3] -> model input [1, 3, h, w]."""
        return self.normalise(self.resize_and_crop(pixels)[None])


def _margin(whole: int, part: int) -> int:
    """Pixels before the middle `part` of `whole`; negative where it is padded, as transformers does it."""
    return (whole - part) // 2 if part <= whole else -math.ceil((part - whole) / 2)


def square(side: int) -> Preprocessing:
    """Squeezed to a square without a crop, ImageNet's mean and deviation: as our own checkpoints were trained."""
    return Preprocessing((side, side))


def size_in_patches(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """The largest (height, width) in whole patches, at most `most` of them, at an image's proportions.

    Found by halving the interval of scales, as SigLIP 2's own processor does (arXiv 2502.14786), to the same result.
    """

    def at(scale):
        return tuple(max(patch, math.ceil(side * scale / patch) * patch) for side in (height, width))

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = at(middle)
        low, high = (middle, high) if (rows / patch) * (columns / patch) <= most else (low, middle)
    return at(low)


def preprocess(pixels: np.ndarray, img_size: int) -> torch.Tensor:
    """RGB uint8 [H, W, 3] -> model input [1, 3, img_size, img_size], as our own checkpoints were trained."""
    return square(img_size)(pixels)


DEFAULT_IMG_SIZE = 224


def preprocessing_of(model, img_size: int | None = None) -> Preprocessing:
    """The model's own preprocessing, else a square of the checkpoint's side, of `img_size`, or the default.

    Mean and deviation are the checkpoint's, else ImageNet's. InputError where the model reads one channel and they are
    none of one: nothing says which grey levels it was trained on.
    """
    if own := getattr(model, "preprocessing", None):
        return own
    prepare = square(getattr(model, "img_size", None) or img_size or DEFAULT_IMG_SIZE)
    levels = {name: value for name in ("mean", "std") if (value := getattr(model, name, None)) is not None}
    prepare = prepare._replace(**levels)
    if getattr(getattr(model, "image_encoder", None), "channels", 3) == 1 and not prepare.alike_in_channels:
        raise InputError(
            "模型的图像编码器读 1 个通道（灰度），但没有说明它的一个均值和一个标准差；"
            "请按训练时的用 --mean 和 --std 各给一个数（没有归一化是 0 和 1）"
        )
    return prepare


def describe_assumed_size(model, img_size: int | None = None) -> Message | None:
    """What the reader must know where neither the model nor the user says how large its input is."""
    if getattr(model, "preprocessing", None) or getattr(model, "img_size", None) or img_size:
        return None
    side = DEFAULT_IMG_SIZE
    return Message("检查点没有说明输入图像的大小，按 {}×{} 处理；训练时若是别的大小，请用 --img-size 给出", side, side)
