"""Small models, checkpoints and images that the tests are made of."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.clip import CLIPModel
from models.explain.question import Question
from models.loading.load import load_clip_checkpoint
from models.results.result import ImageResult
from models.towers.text import TextEncoder

TINY_BERT = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 128, "num_attention_heads": 1}
EMBED_DIM = 32


def assert_same_map(one, other) -> None:
    """Two maps are one up to the last bits, which differ with the batch and the memory's alignment."""
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every normalisation layer weights and statistics that matter: fresh ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.uniform_(0.6, 1.4, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                if getattr(module, "running_var", None) is not None:
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
                    module.running_mean.normal_(0, 0.2, generator=generator)
    return model


def tiny_clip(image_encoder: str = "starnet_s1", embed_dim: int = EMBED_DIM, seed: int = 0, **options) -> CLIPModel:
    """A CLIPModel with a one-layer BERT, in eval mode, its norms randomised."""
    torch.manual_seed(seed)
    config = {**TINY_BERT, "initializer_range": 0.5}  # with 0.02 all texts are nearly one
    model = CLIPModel(image_encoder, embed_dim=embed_dim, text_config=config, **options)
    return randomise_norms(model, seed).eval()


def text_tower_state(embed_dim: int = EMBED_DIM, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a tiny text tower, with the keys of a CLIP checkpoint."""
    torch.manual_seed(seed)
    tower = TextEncoder(embed_dim=embed_dim, text_config=TINY_BERT)
    return {f"text_encoder.{key}": value for key, value in tower.state_dict().items()}


def vit_blocks(model) -> nn.ModuleList:
    """The transformer blocks of a ViT tower, under the name that the installed transformers gives them."""
    backbone = model.image_encoder.backbone
    return backbone.layers if hasattr(backbone, "layers") else backbone.encoder.layer


class PooledNet(nn.Module):
    """conv -> ReLU in place -> global average pool -> linear -> unit vector: A is the convolution's output.

    With `activation` None the pooled map is A itself, the case in which Grad-CAM has a closed form.
    """

    def __init__(self, channels=6, embed_dim=5, bias=False, activation=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.activation = activation or nn.Identity()
        self.projection = nn.Linear(channels, embed_dim, bias=bias)

    def forward(self, images):
        return F.normalize(self.projection(self.activation(self.conv(images)).mean((2, 3))), dim=-1)


class Clip(nn.Module):
    """The least that Grad-CAM asks of a model: an image encoder."""

    def __init__(self, image_encoder):
        super().__init__()
        self.image_encoder = image_encoder


class BrightnessNet(nn.Module):
    """The embedding is (mean brightness, 1), normalised; `grid` holds brightness and ones, a cell per 16 pixels.

    Against the text (1, 0) Grad-CAM is positive exactly where a cell is brighter than the image's mean.
    """

    def __init__(self, cell=16):
        super().__init__()
        self.grid = nn.Conv2d(3, 2, cell, stride=cell)
        with torch.no_grad():
            self.grid.weight.zero_()
            self.grid.weight[0] = 1 / (3 * cell * cell)
            self.grid.bias.copy_(torch.tensor([3.0, 1.0]))  # 3: normalised black is about -2

    def forward(self, images):
        return F.normalize(self.grid(images).mean((2, 3)), dim=-1)


class Words(nn.Module):
    """A text encoder that knows two texts: "bright" is (1, 0), everything else (-1, 0)."""

    def forward(self, texts):
        return torch.tensor([[1.0 if text == "bright" else -1.0, 0.0] for text in texts])


class BrightnessClip(nn.Module):
    """A model whose heatmap can be told in advance."""

    image_encoder_name = "brightness"

    def __init__(self):
        super().__init__()
        self.image_encoder = BrightnessNet()
        self.text_encoder = Words()
        self.temperature = nn.Parameter(torch.tensor(0.1))


def corner_square(height, width, side, bottom, right):
    """Black uint8 [H, W, 3] with a white square in one corner; also (row, column) slices of the square."""
    rows = slice(height - side, height) if bottom else slice(0, side)
    columns = slice(width - side, width) if right else slice(0, side)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[rows, columns] = 255
    return pixels, rows, columns


def gradient_picture(height=60, width=90):
    """A picture without symmetries, uint8 [H, W, 3]."""
    row, column = np.mgrid[0:height, 0:width]
    return np.stack([row * 255 // height, column * 255 // width, (row + 2 * column) % 256], axis=-1).astype(np.uint8)


def tiny_result(targets=(0,), names=("正常", "松动", "感染"), size=(60, 90), seed=0) -> ImageResult:
    """What could be known of one image: random maps of 3 x 4 cells."""
    maps = np.random.default_rng(seed).normal(size=(len(names), 3, 4)).astype(np.float32)
    return ImageResult(
        pixels=gradient_picture(*size),
        maps=maps[list(targets)],
        question=Question(list(names), [f"{name}的描述" for name in names]),
        probabilities=np.full(len(names), 1 / len(names), np.float32),
        similarities=np.linspace(0.1, 0.3, len(names), dtype=np.float32),
        targets=list(targets),
        source=("starnet_s1", "stages.3.3", 3, 4),
        flaws=[None] * len(targets),
        specificities=[0.9] * len(targets),
    )


def load_with_text_features(path, texts, **options):
    """(model without its text tower, its texts' features [K, D])."""
    model = load_clip_checkpoint(path, texts=texts, **options)
    return model, model.class_text_features
