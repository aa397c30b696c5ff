"""Dual-pyramid StarNet: a convolutional local pyramid that a small transformer pyramid corrects stage by stage.

Each stage of the local pyramid (star blocks) is fused with the same stage of the global pyramid (one
transformer block on a fixed 2-D position code), and the fused map flows back into the next local
stage. Module names are those of checkpoints in the wild. Unlike the published StarNet, convolutions
of the local pyramid have no bias, ReLU stands in place of ReLU6, and GELU follows each downsampling.
"""

import torch
from torch import nn

STAGE_WIDTHS = (24, 48, 96, 192)
STAGE_DEPTHS = (2, 2, 8, 3)
MLP_RATIO = 4
NUM_HEADS = 4


def conv_bn(in_channels, out_channels, kernel_size, stride=1, groups=1):
    """Convolution without bias, padded to keep the size at stride 1, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def downsampling(in_channels, out_channels):
    """Stride-2 convolution, batch norm and GELU: [B, in, H, W] -> [B, out, H / 2, W / 2]."""
    return nn.Sequential(*conv_bn(in_channels, out_channels, 3, stride=2), nn.GELU())


class LocalBlock(nn.Module):
    """Star block without convolution biases. [B, dim, h, w] -> same."""

    def __init__(self, dim):
        super().__init__()
        self.dwconv = conv_bn(dim, dim, 7, groups=dim)
        self.f1 = nn.Sequential(nn.Conv2d(dim, MLP_RATIO * dim, 1, bias=False))
        self.f2 = nn.Sequential(nn.Conv2d(dim, MLP_RATIO * dim, 1, bias=False))
        self.g = conv_bn(MLP_RATIO * dim, dim, 1)
        self.dwconv2 = nn.Sequential(nn.Conv2d(dim, dim, 7, padding=3, groups=dim, bias=False))
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.dwconv(x)
        return x + self.dwconv2(self.g(self.act(self.f1(y)) * self.f2(y)))


class LocalPyramid(nn.Module):
    """The convolutional pyramid; the fusion calls its stages one by one, so it has no forward of its own."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(downsampling(3, STAGE_WIDTHS[0]))
        inputs = (STAGE_WIDTHS[0], *STAGE_WIDTHS[:-1])
        self.downsamples = nn.ModuleList(nn.Sequential(downsampling(i, o)) for i, o in zip(inputs, STAGE_WIDTHS))
        self.blocks_list = nn.ModuleList(
            nn.Sequential(*(LocalBlock(dim) for _ in range(depth))) for dim, depth in zip(STAGE_WIDTHS, STAGE_DEPTHS)
        )

    def stage(self, index, x):
        """[B, C_in, h, w] -> [B, STAGE_WIDTHS[index], h / 2, w / 2]."""
        return self.blocks_list[index](self.downsamples[index](x))


def position_code(height, width, channels, device=None):
    """Fixed 2-D sine-cosine code [height * width, channels]: first half for the row, second for the column."""
    exponents = torch.arange(channels // 4, dtype=torch.float32, device=device) / (channels // 4)
    wavelengths = 10000.0 ** (2 * exponents)

    def encode(length):
        angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] / wavelengths
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (length, C/2)

    rows = encode(height)[:, None].expand(height, width, channels // 2)
    columns = encode(width)[None].expand(height, width, channels // 2)
    return torch.cat([rows, columns], dim=2).reshape(height * width, channels)


class GlobalBlock(nn.Module):
    """Pre-norm transformer block. Tokens [B, N, dim] -> same."""

    def __init__(self, dim):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, NUM_HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim))

    def forward(self, tokens):
        y = self.norm1(tokens)
        tokens = tokens + self.attn(y, y, y, need_weights=False)[0]
        return tokens + self.mlp(self.norm2(tokens))


class GlobalStage(nn.Module):
    """Downsample, add the projected position code, attend. [B, C_in, h, w] -> [B, C, h / 2, w / 2]."""

    def __init__(self, in_channels, dim):
        super().__init__()
        self.down = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.pos_proj = nn.Linear(dim, dim)
        self.norm_in = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList([GlobalBlock(dim)])

    def forward(self, x):
        x = self.down(x)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)  # (B, h*w, C)
        code = position_code(height, width, channels, x.device).to(x.dtype)
        tokens = self.norm_in(tokens + self.pos_proj(code))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)


class GlobalPyramid(nn.Module):
    """The transformer pyramid. Images [B, 3, H, W] -> four maps of strides 4, 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        self.stem = downsampling(3, STAGE_WIDTHS[0])
        inputs = (STAGE_WIDTHS[0], *STAGE_WIDTHS[:-1])
        self.stages = nn.ModuleList(GlobalStage(i, o) for i, o in zip(inputs, STAGE_WIDTHS))

    def forward(self, images):
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Adapter(nn.Module):
    """Fits a global map to the local one: [B, dim, h, w] -> same."""

    def __init__(self, dim):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.GroupNorm(1, dim))
        self.output_conv = nn.Sequential(nn.Conv2d(dim, dim, 1, bias=False), nn.GroupNorm(1, dim))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.output_conv(self.project(x) + x) * self.scale


class StarNetDualPyramidRCF(nn.Module):
    """Images [B, 3, H, W] -> pooled features [B, num_features]. `norm` gives the last fused map, stride 32."""

    def __init__(self):
        super().__init__()
        self.local = LocalPyramid()
        self.global_pyr = GlobalPyramid()
        self.adapters = nn.ModuleList(Adapter(dim) for dim in STAGE_WIDTHS)
        self.fuse_weights = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in STAGE_WIDTHS)
        self.gamma_weights = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in STAGE_WIDTHS)
        self.norm = nn.BatchNorm2d(STAGE_WIDTHS[-1])
        self.num_features = STAGE_WIDTHS[-1]

    def forward(self, images):
        global_maps = self.global_pyr(images)
        x = self.local.stem(images)
        for i, global_map in enumerate(global_maps):
            local_map = self.local.stage(i, x)
            weight = torch.sigmoid(self.fuse_weights[i])
            fused = local_map * (1 - weight) + self.adapters[i](global_map) * weight
            x = local_map + self.gamma_weights[i] * fused  # what the next local stage reads
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.norm(fused), 1), 1)
