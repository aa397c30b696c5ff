"""The image tower of our own checkpoints: a backbone of the user's choice, a projection, the unit sphere."""

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import InputError, closest_hint
from ..heavy import torchvision, transformers
from ..messages import Joined
from .grey import as_grey
from .starnet import WIDTH_AND_DEPTHS, build_starnet
from .starnet_dual_pyramid_rcf import StarNetDualPyramidRCF
from .transformer import Transformer

RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
CONVNEXTS = tuple(f"convnext-{size}" for size in ("tiny", "small", "base", "large"))
EFFICIENTNETS = tuple(f"efficientnet-b{i}" for i in range(8))


def _build_resnet(name):
    net = getattr(torchvision.models, name)(weights=None)
    num_features, net.fc = net.fc.in_features, nn.Identity()
    return net, num_features


def _build_convnext_or_efficientnet(name):
    net = getattr(torchvision.models, name.replace("-", "_"))(weights=None)
    num_features, net.classifier[-1] = net.classifier[-1].in_features, nn.Identity()
    return net, num_features


def _build_starnet(name):
    net = build_starnet(name)
    return net, net.num_features


def _build_dual_pyramid(name):
    net = StarNetDualPyramidRCF()
    return net, net.num_features


def _build_vit(name):
    """ViT-Base/16 of google/vit-base-patch16-224: the defaults of ViTConfig."""
    net = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    return net, net.config.hidden_size


IMAGE_ENCODERS = {
    **dict.fromkeys(RESNETS, _build_resnet),
    **dict.fromkeys(WIDTH_AND_DEPTHS, _build_starnet),
    "starnet_dual_pyramid_rcf": _build_dual_pyramid,
    **dict.fromkeys((*CONVNEXTS, *EFFICIENTNETS), _build_convnext_or_efficientnet),
    "vit": _build_vit,
}


def check_image_encoder_name(name: str) -> str:
    """Return `name`; InputError with the closest and all names where it is none of them."""
    if name in IMAGE_ENCODERS:
        return name
    hint = closest_hint(str(name).replace("_", "-"), IMAGE_ENCODERS, count=3, cutoff=0.5)
    raise InputError("未知的图像编码器 {!r}；{}支持：{}", name, hint, Joined("、", IMAGE_ENCODERS))


# Encoder -> its convolutions that read the image, as paths in the backbone.
FIRST_CONVOLUTIONS = {
    **dict.fromkeys(RESNETS, ("conv1",)),
    **dict.fromkeys(WIDTH_AND_DEPTHS, ("stem.0.conv",)),
    "starnet_dual_pyramid_rcf": ("local.stem.0.0", "global_pyr.stem.0"),
    **dict.fromkeys((*CONVNEXTS, *EFFICIENTNETS), ("features.0.0",)),
    "vit": ("embeddings.patch_embeddings.projection",),
}


class ImageEncoder(nn.Module):
    """Backbone, linear projection, L2 norm: images [B, 3, H, W] -> embeddings [B, embed_dim].

    `model_name` is one of `IMAGE_ENCODERS`; another raises InputError. `channels`: 3, or 1 where the backbone reads
    grey pictures.
    """

    channels = 3

    def __init__(self, model_name: str = "resnet50", embed_dim: int = 512):
        super().__init__()
        self.model_name = check_image_encoder_name(model_name)
        self.backbone, num_features = IMAGE_ENCODERS[model_name](model_name)
        self.projection = nn.Linear(num_features, embed_dim)

    def set_channels(self, channels: int) -> None:
        """Make the backbone one of colour or of grey pictures; the weights of what reads them are to be loaded."""
        for path in FIRST_CONVOLUTIONS[self.model_name]:
            convolution = self.backbone.get_submodule(path)
            size = convolution.weight.shape
            convolution.in_channels = channels
            convolution.weight = nn.Parameter(convolution.weight.detach().new_zeros(size[0], channels, *size[2:]))
        if self.model_name == "vit":  # checks its input
            self.backbone.embeddings.patch_embeddings.num_channels = self.backbone.config.num_channels = channels
        self.channels = channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.embed(images), dim=-1)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> embeddings [B, embed_dim] before the L2 norm."""
        return self.projection(self._features(images))

    def _features(self, images):
        """[B, 3, H, W] -> what the projection reads, [B, num_features]."""
        if self.channels == 1:
            images = as_grey(images)
        if self.model_name != "vit":
            return self.backbone(images)
        # The position code is interpolated only where the input's size is not the training's.
        return self.backbone(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]

    def token_grid(self, height: int, width: int) -> tuple[int, int, int] | None:
        """(prefix tokens, rows, columns) of the token sequence for an input [., ., height, width].

        None for a convolutional network, which has no tokens.
        """
        if self.model_name != "vit":
            return None
        return self.backbone.embeddings.cls_token.shape[1], height // self.patch_size, width // self.patch_size

    @property
    def patch_size(self) -> int | None:
        """Side of a token's patch in pixels of the input; None for a convolutional network."""
        return self.backbone.embeddings.patch_embeddings.projection.stride[0] if self.model_name == "vit" else None

    def transformer(self) -> Transformer | None:
        """What its attention can be explained from; None for a convolutional network."""
        if self.model_name != "vit":
            return None
        blocks = self.backbone.layers if hasattr(self.backbone, "layers") else self.backbone.encoder.layer
        heads = self.backbone.config.num_attention_heads
        return Transformer(blocks, heads, lambda token: self.projection(self.backbone.layernorm(token)))
