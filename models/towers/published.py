"""The two towers of a CLIP that transformers builds, with the interface of `models.clip.CLIPModel`.

What is known of a network is read off its modules, not its name: a new model of the same structure works as the
ones it was copied from.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import CheckpointError, InputError
from ..images.preprocessing import Preprocessing
from ..messages import Message
from ..weights.modules import unwrapped
from .grey import as_grey
from .similarity import check_scale
from .text import TextTower
from .transformer import Transformer
from .two_towers import TwoTowers

CLASS_TOKEN, POOLED, PATCHED, PLAIN = "clip-vit", "siglip-vit", "siglip2-vit", "plain-vit"
SCALED, WINDOWS = "dinov2", "swin"
CNN = "clip-resnet"

# What a vision transformer of a family has, as paths of its modules and parameters; ViT's blocks changed their name.
_CLIP_BLOCKS = ("encoder.layers.0.layer_norm1", "encoder.layers.0.self_attn.q_proj", "post_layernorm")
_CLASS_TOKEN = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection")
_ATTENTION, _TABLE = "encoder.layers.0.blocks.0.attention", "relative_position_bias_table"
_TABLES = f"{_ATTENTION}.relative_position_bias.{_TABLE}", f"{_ATTENTION}.self.{_TABLE}"
STRUCTURES = (
    (CLASS_TOKEN, ("embeddings.class_embedding", "embeddings.patch_embedding", *_CLIP_BLOCKS)),
    (POOLED, ("head.probe", "head.attention", "embeddings.patch_embedding", *_CLIP_BLOCKS)),
    (PLAIN, (*_CLASS_TOKEN, "layers.0.layernorm_before", "layernorm")),
    (PLAIN, (*_CLASS_TOKEN, "encoder.layer.0.layernorm_before", "layernorm")),
    (SCALED, (*_CLASS_TOKEN, "encoder.layer.0.layer_scale1", "layernorm")),
    *((WINDOWS, ("embeddings.patch_embeddings.projection", table, "layernorm")) for table in _TABLES),
)


def recognise_vision(backbone: nn.Module) -> str | None:
    """The family that a vision model's structure belongs to, one of the constants above; None where to none."""
    paths = {name for name, _ in (*backbone.named_modules(), *backbone.named_parameters())}
    family = next((family for family, needed in STRUCTURES if paths.issuperset(needed)), None)
    flat = family == POOLED and backbone.embeddings.patch_embedding.weight.ndim == 2
    return PATCHED if flat else family


class ImageTower(nn.Module):
    """A backbone that gives embeddings by itself, without tokens: images [B, 3, H, W] -> embeddings [B, D]."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, D] before the L2 norm."""
        return self.backbone(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.embed(images), dim=-1)

    def token_grid(self, height: int, width: int) -> tuple[int, int, int] | None:
        """(prefix tokens, rows, columns) of the token sequence for an input [., ., height, width]; None for a CNN."""
        return None

    patch_size: int | None = None  # side of a token's patch in pixels of the input; None for a CNN

    def transformer(self) -> Transformer | None:
        """What its attention can be explained from; None for a CNN."""
        return None


class VisionTransformerTower(ImageTower):
    """A vision transformer of transformers, and the projection into the common space where it has one.

    Position codes are interpolated, as the library does it, only where the input's size is not the training's.
    """

    def __init__(self, backbone: nn.Module, projection: nn.Module):
        super().__init__(backbone)
        self.projection = projection
        self.family, embeddings = recognise_vision(backbone), backbone.embeddings
        weight = first_of(embeddings, "patch_embedding", "patch_embeddings.projection").weight
        is_flat = weight.ndim == 2
        self.patch_size = embeddings.patch_size if is_flat else weight.shape[-1]
        self.channels = check_channels(weight.shape[1] // (self.patch_size**2 if is_flat else 1))
        self.options = {} if self.family == SCALED else {"interpolate_pos_encoding": True}  # DINOv2 does it unasked
        self.prefix_tokens = 0 if self.family == PATCHED else self._count_prefix_tokens()

    def _count_prefix_tokens(self) -> int:
        """Class, register and other tokens in front of the patches: what the embeddings give beyond a single one."""
        weight, side = next(self.backbone.embeddings.parameters()), self.patch_size
        with torch.no_grad():
            image = torch.zeros(1, self.channels, side, side, dtype=weight.dtype, device=weight.device)
            return self.backbone.embeddings(image, **self.options).shape[1] - 1

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        if self.channels == 1:
            images = as_grey(images)
        if self.family == PATCHED:
            _, rows, columns = self.token_grid(*images.shape[-2:])
            shapes = torch.tensor([(rows, columns)] * len(images), device=images.device)
            output = self.backbone(into_patches(images, self.patch_size), None, shapes)
        else:
            output = self.backbone(images, **self.options)
        if output.pooler_output is None:
            return self.projection(output.last_hidden_state[:, 0])
        return self.projection(output.pooler_output)

    def token_grid(self, height: int, width: int) -> tuple[int, int, int]:
        if min(height, width) < self.patch_size:
            side = self.patch_size
            raise InputError("图像大小 {}×{} 小于模型的图块 {}×{}；请加大 --img-size", height, width, side, side)
        return self.prefix_tokens, height // self.patch_size, width // self.patch_size

    def transformer(self) -> Transformer:
        backbone = self.backbone
        blocks = first_of(backbone, "encoder.layers", "encoder.layer", "layers")
        pool = backbone.head if self.family in (POOLED, PATCHED) else None
        return Transformer(blocks, backbone.config.num_attention_heads, self._embed_last, pool)

    def _embed_last(self, tokens: torch.Tensor) -> torch.Tensor:
        """Output of the last block -> embedding before the L2 norm; see `Transformer.head`."""
        normed = first_of(self.backbone, "post_layernorm", "layernorm")(tokens)
        pooler = getattr(self.backbone, "pooler", None)  # ViT's: dense and tanh of the class token
        if self.family in (POOLED, PATCHED):
            normed = self.backbone.head(normed)
        elif pooler is not None:
            normed = pooler.activation(pooler.dense(normed))
        return self.projection(normed)

    @property
    def positions(self) -> int:
        """How many patches and tokens before them the model has position codes for."""
        embeddings = self.backbone.embeddings
        if hasattr(embeddings, "position_embedding"):
            return embeddings.position_embedding.num_embeddings
        return embeddings.position_embeddings.shape[1]


def first_of(module: nn.Module, *paths: str) -> nn.Module:
    """The module at the first of the paths that there is."""
    modules = dict(module.named_modules())
    return next(modules[path] for path in paths if path in modules)


class WindowTower(ImageTower):
    """A Swin Transformer of transformers: attention within windows, each stage on half the grid of the one before.

    What is projected is the mean over the last stage's grid. An input is of whole cells of that grid, and has a window
    of them at least: else the library fills up with black what lies beyond the image.
    """

    family, positions = WINDOWS, 0  # its position codes are of a window alone

    def __init__(self, backbone: nn.Module, projection: nn.Module):
        super().__init__(backbone)
        self.projection = projection
        self.channels = check_channels(backbone.embeddings.patch_embeddings.projection.in_channels)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self.token_grids(*images.shape[-2:])
        self._widen_windows()
        if self.channels == 1:
            images = as_grey(images)
        return self.projection(self.backbone(images, interpolate_pos_encoding=True).pooler_output)

    def _widen_windows(self) -> None:
        """The windows as the library builds them: a pass of a small image leaves them unshifted for all that follow."""
        window = self.backbone.config.window_size
        for stage in self.backbone.encoder.layers:
            for number, block in enumerate(stage.blocks):
                block.window_size, block.shift_size = window, number % 2 * (window // 2)

    def token_grids(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """`token_grid` of each stage; InputError where the input is none that all its cells lie on."""
        patch = self.backbone.embeddings.patch_embeddings.projection.stride[0]
        sides = [patch * 2**stage for stage in range(len(self.backbone.encoder.layers))]
        window = self.backbone.config.window_size
        if height % sides[-1] or width % sides[-1] or min(height, width) < sides[-1] * window:
            raise InputError(
                "Swin 的输入是 {}×{}，高和宽应是 {} 的倍数，并且不小于 {}；请用 --img-size 给出",
                *(height, width, sides[-1], sides[-1] * window),
            )
        return [(0, height // side, width // side) for side in sides]

    def token_grid(self, height: int, width: int) -> tuple[int, int, int]:
        return self.token_grids(height, width)[-1]


def check_channels(channels: int) -> int:
    """Return `channels`; InputError where a model reads neither colours nor grey."""
    if channels not in (1, 3):
        raise InputError("模型的输入有 {} 个通道，本工具只支持 3 个（彩色）或 1 个（灰度）", channels)
    return channels


def into_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C, H, W] -> [B, rows * columns, patch * patch * C], row by row, colours last: as SigLIP 2's processor."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    images = images[..., : rows * patch, : columns * patch]
    cells = images.reshape(batch, channels, rows, patch, columns, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


class PretrainedCLIP(TwoTowers):
    """A model that was published with its own rules.

    Probabilities are the softmax of exp(logit_scale) * cosine or, with a `logit_bias` (SigLIP), for each text
    by itself the sigmoid of exp(logit_scale) * cosine + logit_bias.
    """

    def __init__(
        self,
        image_encoder_name: str,
        image_encoder: ImageTower,
        text_encoder: TextTower | None,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None,
        preprocessing: Preprocessing,
    ):
        super().__init__()
        self.image_encoder_name = image_encoder_name
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.logit_scale = _number(logit_scale, "logit_scale")
        if not 0 < self.logit_scale.exp() < math.inf:
            raise CheckpointError("模型的 logit_scale 是 {:g}，概率无法计算", self.logit_scale.item())
        self.register_parameter("logit_bias", None if logit_bias is None else _number(logit_bias, "logit_bias"))
        self.preprocessing = preprocessing
        self.cautions: list[Message] = []  # what the reader must know of the model, whatever is asked of it
        self.img_size = input_side(preprocessing)

    def probabilities(self, similarities: torch.Tensor) -> torch.Tensor:
        """Cosine [..., K] -> probabilities [..., K], float32."""
        logits = self.logits(similarities)
        return logits.sigmoid() if self.independent_probabilities else logits.softmax(dim=-1)

    def logits(self, similarities: torch.Tensor) -> torch.Tensor:
        """Cosines [..., K], scaled and, where the model has a bias, shifted."""
        scale = check_scale("exp(logit_scale)", self.logit_scale.detach().float().exp())
        logits = similarities.float() * scale.to(similarities.device)
        return logits if self.logit_bias is None else logits + self.logit_bias.detach().to(logits.device)


def _number(tensor: torch.Tensor, name: str) -> nn.Parameter:
    """A weight that is one finite number; CheckpointError where it is none."""
    if tensor.numel() != 1 or not torch.isfinite(tensor).all():
        raise CheckpointError("模型的 {} 应是一个有限的数，读到的是 {}", name, tensor.flatten()[:3].tolist())
    return nn.Parameter(tensor.detach().clone().float().reshape(()))


def input_side(preprocessing: Preprocessing) -> int | None:
    """The side of a square input; for free shapes that of the largest square; None where it is no square."""
    if preprocessing.patches:
        patch, most = preprocessing.patches
        return patch * math.isqrt(most)
    size = preprocessing.crop or preprocessing.resize
    if isinstance(size, int):
        return size
    return size[0] if size[0] == size[1] else None


def build_towers(
    network: nn.Module, preprocessing: Preprocessing, find_tokenizer: Callable | None, first_token: bool = False
) -> PretrainedCLIP:
    """The towers of a CLIP of transformers, in eval mode and float32; without the text tower if no tokenizer is given.

    InputError where its vision model has another structure than the known ones.
    """
    return towers_over(network.float(), preprocessing, find_tokenizer, first_token).eval()


def towers_over(
    network: nn.Module, preprocessing: Preprocessing, find_tokenizer: Callable | None, first_token: bool = False
) -> PretrainedCLIP:
    """As `build_towers`, over a network that stays as it is: its precision, its device and its modes."""
    vision, family = vision_of(network)
    tower = WindowTower if family == WINDOWS else VisionTransformerTower
    image_tower = tower(vision, getattr(network, "visual_projection", nn.Identity()))
    check_alike(image_tower, preprocessing)
    padded = hasattr(innermost(unwrapped(network.text_model), "text_model"), "head")  # SigLIP's
    text_tower = build_text_tower(network, find_tokenizer, padded, first_token)
    bias = getattr(network, "logit_bias", None)
    return PretrainedCLIP(family, image_tower, text_tower, network.logit_scale, bias, preprocessing)


def check_alike(tower: ImageTower, preprocessing: Preprocessing) -> None:
    """InputError where a tower of one channel has three normalisations: grey would not be grey after them."""
    if getattr(tower, "channels", 3) == 1 and not preprocessing.alike_in_channels:
        raise InputError("模型的输入是 1 个通道，它的 image_mean 和 image_std 却有三个不同的值")


def vision_of(network: nn.Module) -> tuple[nn.Module, str]:
    """(vision model, its family) of a CLIP of transformers; InputError where it has another structure."""
    vision = getattr(network, "vision_model", None)
    vision = None if vision is None else innermost(unwrapped(vision), "vision_model")
    family = recognise_vision(vision) if vision is not None and hasattr(network, "text_model") else None
    if family is None:
        raise InputError("{} 的视觉模型 {} 的结构不受支持", type(network).__name__, type(vision).__name__)
    return vision, family


def build_text_tower(network, find_tokenizer, padded: bool = False, first_token: bool = False) -> TextTower | None:
    """The text tower of a CLIP of transformers; None if no tokenizer is given."""
    if find_tokenizer is None:
        return None
    projection = getattr(network, "text_projection", nn.Identity())
    return TextTower(unwrapped(network.text_model), projection, find_tokenizer, padded, first_token)


TEXT_PARTS = ("text_model", "text_projection")  # of a CLIP of transformers


def drop_text_tower(network: nn.Module) -> None:
    """Leave nothing of the text model and its projection in a CLIP of transformers that has no memory yet."""
    for name in TEXT_PARTS:
        if hasattr(network, name):
            setattr(network, name, nn.Identity())  # that there is one tells the structure


def is_of_text_tower(name: str) -> bool:
    """Whether a weight of a CLIP of transformers is the text model's, or its projection's."""
    return name.partition(".")[0] in TEXT_PARTS


def innermost(module: nn.Module, name: str) -> nn.Module:
    """The network itself where transformers 4 wraps it in a module of the same interface."""
    while hasattr(module, name):
        module = getattr(module, name)
    return module
