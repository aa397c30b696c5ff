"""StarNet S1 to S4: convolutional blocks that multiply two branches ("the star operation").

Ma et al., "Rewrite the Stars", CVPR 2024, arXiv 2403.19967. Module names are the published ones, so
that published and user-trained weights load key by key. The classification head is left out: the
network ends with the pooled features.
"""

import torch
from torch import nn

WIDTH_AND_DEPTHS = {
    "starnet_s1": (24, (2, 2, 8, 3)),
    "starnet_s2": (32, (1, 2, 6, 2)),
    "starnet_s3": (32, (2, 2, 8, 4)),
    "starnet_s4": (32, (3, 3, 12, 5)),
}
STEM_WIDTH = 32
MLP_RATIO = 4


class ConvBN(nn.Sequential):
    """Convolution with bias, padded to keep the size at stride 1, then batch norm unless told otherwise."""

    def __init__(self, in_channels, out_channels, kernel_size=1, stride=1, groups=1, with_bn=True):
        super().__init__()
        padding = kernel_size // 2
        self.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups))
        if with_bn:
            self.add_module("bn", nn.BatchNorm2d(out_channels))


class StarBlock(nn.Module):
    """Depthwise 7x7, two 1x1 branches multiplied, back to `dim`, depthwise 7x7, residual. [B, dim, h, w] -> same."""

    def __init__(self, dim):
        super().__init__()
        self.dwconv = ConvBN(dim, dim, 7, groups=dim)
        self.f1 = ConvBN(dim, MLP_RATIO * dim, with_bn=False)
        self.f2 = ConvBN(dim, MLP_RATIO * dim, with_bn=False)
        self.g = ConvBN(MLP_RATIO * dim, dim)
        self.dwconv2 = ConvBN(dim, dim, 7, groups=dim, with_bn=False)
        self.act = nn.ReLU6()

    def forward(self, x):
        y = self.dwconv(x)
        return x + self.dwconv2(self.g(self.act(self.f1(y)) * self.f2(y)))


class StarNet(nn.Module):
    """Images [B, 3, H, W] -> pooled features [B, num_features]. The last spatial map has stride 32."""

    def __init__(self, base_width, depths):
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, STEM_WIDTH, 3, stride=2), nn.ReLU6())
        self.stages = nn.ModuleList()
        in_channels = STEM_WIDTH
        for stage, depth in enumerate(depths):
            dim = base_width * 2**stage
            downsample = ConvBN(in_channels, dim, 3, stride=2)
            self.stages.append(nn.Sequential(downsample, *(StarBlock(dim) for _ in range(depth))))
            in_channels = dim
        self.norm = nn.BatchNorm2d(in_channels)
        self.num_features = in_channels

    def forward(self, images):
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.norm(x), 1), 1)


def build_starnet(name: str) -> StarNet:
    """Build `starnet_s1` ... `starnet_s4` with random weights."""
    return StarNet(*WIDTH_AND_DEPTHS[name])
