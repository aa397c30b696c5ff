"""The judges' networks: what users train (ResNet, StarNet), and heads of their families on frozen ImageNet features."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from models.demo import cnn as demo
from models.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from models.loading.load import load_clip_checkpoint
from models.towers.image import ImageEncoder
from models.towers.published import ImageTower, PretrainedCLIP
from models.towers.transformer import Transformer

from . import lite0

EMBEDDING = 256  # of the demo's text tower, which stays as it is
TOKENS = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 3,
    "num_channels": lite0.CHANNELS_16,
    "image_size": 14,
    "patch_size": 1,
}


class FrozenTower(ImageTower):
    """Frozen features at stride 16, a head that is trained, a projection. `embed_features` begins at the features."""

    def __init__(self, head: nn.Module, width: int):
        backbone = nn.Module()
        backbone.frozen, backbone.head = lite0.UpToStride16(), head
        super().__init__(backbone)
        self.projection = nn.Linear(width, EMBEDDING)
        backbone.frozen.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self.backbone.frozen.eval()
        return self

    def embed(self, images):
        return self.embed_features(self.backbone.frozen(images))

    def embed_features(self, features):
        return self.projection(self.backbone.head(features))


class Pooled(nn.Module):
    """The mean over places of what `stages` give, normed."""

    def __init__(self, stages, norm):
        super().__init__()
        self.stages, self.norm = nn.Sequential(*stages), norm

    def forward(self, x):
        return self.norm(self.stages(x).mean((2, 3)))


def build_lite0():
    """The rest of EfficientNet-Lite0 itself."""
    return FrozenTower(Pooled([lite0.FromStride16()], nn.Identity()), lite0.CHANNELS_HEAD)


def build_convnext(width=192, depths=(3, 2)):
    """ConvNeXt blocks at stride 16 and, after a downsampling, at stride 32 (Liu et al. 2022, arXiv 2201.03545)."""
    from torchvision.models.convnext import CNBlock, LayerNorm2d

    layers, (first, second) = [nn.Conv2d(lite0.CHANNELS_16, width, 1), LayerNorm2d(width, eps=1e-6)], depths
    fine = nn.Sequential(*layers, *(CNBlock(width, 1e-1, 0.0) for _ in range(first)))
    down = [LayerNorm2d(width, eps=1e-6), nn.Conv2d(width, 2 * width, 2, stride=2)]
    coarse = nn.Sequential(*down, *(CNBlock(2 * width, 1e-1, 0.0) for _ in range(second)))
    return FrozenTower(Pooled([fine, coarse], nn.LayerNorm(2 * width, eps=1e-6)), 2 * width)


class TokenTower(FrozenTower):
    """A vision transformer of transformers on the frozen features, one token for each of their cells."""

    patch_size = 16

    def __init__(self, head: nn.Module, prefix: int):
        super().__init__(head, TOKENS["hidden_size"])
        self.prefix_tokens = prefix

    def embed_features(self, features):
        return self.projection(self.backbone.head(features).pooler_output)

    def token_grid(self, height, width):
        return self.prefix_tokens, height // self.patch_size, width // self.patch_size

    def transformer(self):
        head = self.backbone.head
        pool = None if self.prefix_tokens else head.head
        return Transformer(head.encoder.layers, TOKENS["num_attention_heads"], self._embed_last, pool)

    def _embed_last(self, tokens):
        normed = self.backbone.head.post_layernorm(tokens)
        return self.projection(normed if self.prefix_tokens else self.backbone.head.head(normed))


def build_vit(blocks=4):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**TOKENS, num_hidden_layers=blocks, hidden_act="gelu")
    vision = CLIPVisionModel._from_config(config, attn_implementation="eager")  # trains faster on a CPU than sdpa
    return TokenTower(getattr(vision, "vision_model", vision), prefix=1)


def build_siglip(blocks=4):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(**TOKENS, num_hidden_layers=blocks)
    vision = SiglipVisionModel._from_config(config, attn_implementation="eager")
    return TokenTower(getattr(vision, "vision_model", vision), prefix=0)


class Judge(NamedTuple):
    """A network and how it is trained; steps and rates were set by watching the validation phantoms' accuracy."""

    family: str  # "cnn", "vit" (class token) or "siglip" (attention pooling)
    build: Callable[[], nn.Module]
    size: int = 224
    steps: int = 1000
    rate: float = 5e-4
    per_finding: int = 4  # images of each finding in a batch, as in `models.demo.dataset.sample_batch`
    sigmoid: bool = False  # SigLIP's loss in place of CLIP's
    frozen: bool = True  # whether it stands on frozen features
    cycles: int = 1  # of the learning rate: how often it begins anew (Loshchilov & Hutter 2017, arXiv 1608.03983)


JUDGES = {
    "resnet18": Judge("cnn", lambda: ImageEncoder("resnet18", EMBEDDING), 160, 1400, 1e-3, 6, frozen=False, cycles=2),
    "starnet": Judge("cnn", lambda: ImageEncoder("starnet_s1", EMBEDDING), 160, 900, 1.6e-3, 6, frozen=False),
    "lite0": Judge("cnn", build_lite0, steps=600),
    "convnext": Judge("cnn", build_convnext, steps=800, rate=1e-3),
    "vit": Judge("vit", build_vit, steps=700),
    "siglip": Judge("siglip", build_siglip, steps=700, sigmoid=True),
}


def build_judge(name: str) -> PretrainedCLIP:
    """A judge with random weights but for the demo's text tower and, where it has them, the frozen features."""
    judge = JUDGES[name]
    tower = judge.build()
    if judge.frozen:
        lower, upper = lite0.imagenet_weights()
        tower.backbone.frozen.load_state_dict(lower)
        if name == "lite0":
            tower.backbone.head.stages[0].load_state_dict(upper)
    texts = load_clip_checkpoint(str(demo.CHECKPOINT)).text_encoder.requires_grad_(False)
    prepare = Preprocessing(resize=(judge.size, judge.size), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    scale = torch.tensor(math.log(10.0 if judge.sigmoid else 1 / 0.07))
    bias = torch.tensor(-3.0) if judge.sigmoid else None
    return PretrainedCLIP(name, tower, texts, scale, bias, prepare)


def embed(tower, inputs, frozen: bool):
    """Images, or features where they are frozen -> unit embeddings [B, E]."""
    return F.normalize((tower.embed_features if frozen else tower.embed)(inputs).float(), dim=-1)
