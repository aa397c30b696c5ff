"""OpenAI's ResNet with attention pooling (RN50, RN101, RN50x4, x16, x64), as `clip/model.py` of openai/CLIP has it.

Unlike torchvision's: a stem of three convolutions, an average pool before each convolution that would have a
stride, and one attention over all cells, asked by their mean, in place of the global average.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ..weights.modules import assign_weights


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution; a stride is an average pool after the second."""

    def __init__(self, channels: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or channels != 4 * width:
            pool, conv = nn.AvgPool2d(stride), nn.Conv2d(channels, 4 * width, 1, bias=False)
            self.downsample = nn.Sequential(OrderedDict([("-1", pool), ("0", conv), ("1", nn.BatchNorm2d(4 * width))]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.avgpool(F.relu(self.bn2(self.conv2(x))))
        return F.relu(self.bn3(self.conv3(x)) + identity)


class AttentionPool(nn.Module):
    """Attention asked by the mean of the cells: maps [B, C, h, w] -> embeddings [B, E].

    Position codes for another grid than the training's are interpolated bicubically, as transformers does it
    for its vision transformers; OpenAI's code takes one grid only.
    """

    def __init__(self, side: int, channels: int, num_heads: int, embed_dim: int):
        super().__init__()
        self.side, self.num_heads = side, num_heads
        self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in "qkv")
        self.c_proj = nn.Linear(channels, embed_dim)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        cells = maps.flatten(2).transpose(1, 2)  # (B, h * w, C)
        cells = torch.cat([cells.mean(1, keepdim=True), cells], 1) + self._positions(*maps.shape[2:])
        query, key, value = self.q_proj(cells[:, :1]), self.k_proj(cells), self.v_proj(cells)
        query, key, value = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, C / heads)
        return self.c_proj(mixed.flatten(1))

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """Codes of the mean and of the cells, [1 + rows * columns, C]."""
        codes = self.positional_embedding
        if (rows, columns) == (self.side, self.side):
            return codes
        grid = codes[1:].T.unflatten(1, (self.side, self.side))[None]
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([codes[:1], grid[0].flatten(1).T])


class ClipResNet(nn.Module):
    """Images [B, 3, H, W] -> embeddings [B, embed_dim], before the L2 norm. `layers`: blocks of the four stages."""

    def __init__(self, layers: tuple[int, ...], width: int, side: int, num_heads: int, embed_dim: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        channels = width
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            members = [Bottleneck(channels, planes, stride=1 if stage == 0 else 2)]
            channels = 4 * planes
            members += [Bottleneck(channels, planes) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*members))
        self.attnpool = AttentionPool(side, channels, num_heads, embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(F.relu(self.bn3(self.conv3(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.attnpool(x)


def build_clip_resnet(weights: Mapping[str, torch.Tensor], head_width: int) -> ClipResNet:
    """The ResNet of these weights, its architecture read off their shapes."""
    blocks = [{match[1] for match in map(re.compile(rf"layer{n}\.(\d+)\.").match, weights) if match} for n in "1234"]
    positions, output = weights["attnpool.positional_embedding"], weights["attnpool.c_proj.weight"]
    side, channels = round((len(positions) - 1) ** 0.5), positions.shape[1]
    with torch.device("meta"):
        net = ClipResNet(tuple(map(len, blocks)), channels // 32, side, max(1, channels // head_width), len(output))
    assign_weights(net, weights)
    return net
