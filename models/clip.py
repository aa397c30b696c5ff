"""A CLIP of two towers: an image encoder, a Chinese BERT, and the cosine similarity between them.

    model = CLIPModel("resnet50")
    model.load_state_dict(torch.load("checkpoint.pth"))   # every layout of models.weights.layouts
    predictions, probabilities = model.predict(images, ["正常假体", "假体松动"])

Building a model never downloads anything: the vocabulary and the sizes of bert-base-chinese lie in
`models/assets/`, and the weights come from the checkpoint.
"""

import os
import re
import warnings
from collections.abc import Mapping

import torch
from torch import nn

from .errors import CheckpointError, InputWarning
from .heavy import torchvision, transformers
from .messages import Message
from .towers.image import CONVNEXTS, EFFICIENTNETS, FIRST_CONVOLUTIONS, RESNETS, ImageEncoder
from .towers.similarity import check_scale, sigmoid_probabilities, softmax_probabilities
from .towers.text import TextEncoder, build_text_encoder, is_clip_text
from .towers.two_towers import TwoTowers
from .weights.files import read_checkpoint_file
from .weights.layouts import (
    VIT_INTO_TRANSFORMERS_4,
    Translated,
    read_channels,
    read_text_config,
    split_checkpoint,
    translate_checkpoint,
)
from .weights.metadata import unit_levels
from .weights.modules import first_names, fit_weights
from .weights.names import BACKBONE, TEXT_TOWER, rename

__all__ = ["CLIPModel", "ImageEncoder", "TextEncoder", "build_on_meta", "create_model"]


class CLIPModel(TwoTowers):
    """Image tower, text tower, and a temperature that divides their cosine similarity.

    With a `logit_bias`, which a checkpoint trained with SigLIP's loss brings, probabilities are sigmoids.
    The checkpoint's preprocessing travels with the model: `img_size`, the side in pixels of the square that images are
    resized to, and `mean` and `std` of levels in [0, 1], three numbers each; None where nobody said.
    With `text_tower=False` there is no text encoder, nor its libraries: for texts whose features are known.
    """

    def __init__(
        self,
        image_encoder_name: str = "resnet50",
        text_encoder_name: str = "bert-base-chinese",
        embed_dim: int = 512,
        temperature: float = 0.07,
        text_config: Mapping | None = None,
        img_size: int | None = None,
        text_tower: bool = True,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ):
        super().__init__()
        self.image_encoder_name = image_encoder_name
        self.text_encoder_name = text_encoder_name
        self.embed_dim = embed_dim
        self.img_size, self.mean, self.std = img_size, mean, std
        self.image_encoder = ImageEncoder(image_encoder_name, embed_dim)
        self.text_encoder = build_text_encoder(text_encoder_name, embed_dim, text_config) if text_tower else None
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.register_parameter("logit_bias", None)

    def logits(self, similarities: torch.Tensor) -> torch.Tensor:
        """Cosines [..., K] divided by the temperature and, where the model has a bias, shifted."""
        logits = similarities / self.temperature
        return logits if self.logit_bias is None else logits + self.logit_bias

    def probabilities(self, similarities: torch.Tensor) -> torch.Tensor:
        """Cosines [..., K] -> probabilities [..., K] in float32: softmax over the texts, with a bias each by itself."""
        if self.logit_bias is not None:
            return sigmoid_probabilities(similarities, self.temperature, self.logit_bias)
        return softmax_probabilities(similarities, self.temperature)

    # -- weights ------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping | str | os.PathLike, strict: bool = True, assign: bool = False):
        """Load a checkpoint of any layout in `models.weights.layouts`, wrapped or bare, or the one at a path.

        The text tower takes the sizes of the weights. Half precision becomes float32. Raises
        CheckpointError where weights of the two towers are missing, left over, or of another shape;
        parameters outside the towers are one warning. `strict=False` forgives missing ones. A model
        without a text tower leaves the weights of one aside.
        """
        if isinstance(state_dict, (str, os.PathLike)):
            state_dict = read_checkpoint_file(state_dict)
        checkpoint = state_dict if isinstance(state_dict, Translated) else translate_checkpoint(state_dict)
        self._fit_to(checkpoint, assign)
        weights = self._match(checkpoint, strict)
        if checkpoint.ignored:
            message = Message(
                "忽略了检查点中与热力图无关的 {} 个参数：{}", len(checkpoint.ignored), first_names(checkpoint.ignored)
            )
            warnings.warn(InputWarning(message), stacklevel=2)
        for name in ("img_size", "mean", "std"):
            setattr(self, name, checkpoint.metadata.get(name, getattr(self, name)))
        return super().load_state_dict(weights, strict=strict, assign=assign)

    def _fit_to(self, checkpoint: Translated, on_meta: bool) -> None:
        """Give the towers the sizes and the constants of the checkpoint, and complain of another network."""
        encoder = checkpoint.image_encoder_name
        if encoder and encoder != self.image_encoder_name:
            raise CheckpointError(
                '检查点的图像编码器是 {}，模型是 {}；请用 CLIPModel(image_encoder_name="{}") 建立模型',
                encoder,
                self.image_encoder_name,
                encoder,
            )
        if checkpoint.batch_norm_eps is not None:
            for module in self.image_encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = checkpoint.batch_norm_eps
        tower = self.image_encoder
        channels = read_channels(checkpoint.state_dict, FIRST_CONVOLUTIONS[tower.model_name])
        if channels != tower.channels:
            tower.set_channels(channels)
        bias = checkpoint.state_dict.get("logit_bias")
        self.logit_bias = None if bias is None else nn.Parameter(bias.detach().to(self.temperature.device).clone())
        key = "embeddings.position_embeddings"
        positions = checkpoint.state_dict.get(BACKBONE + key)
        if encoder == "vit" and positions is not None:
            embeddings = self.image_encoder.backbone.embeddings
            if embeddings.position_embeddings.shape != positions.shape:  # trained at another image size
                table = embeddings.position_embeddings.detach().new_empty(positions.shape)
                embeddings.position_embeddings = nn.Parameter(table)
        if self.text_encoder is None:
            return
        sizes = read_text_config(checkpoint.state_dict)
        config = self.text_encoder.backbone.config
        if any(getattr(config, name, None) != size for name, size in sizes.items()):
            sizes = {**(checkpoint.metadata.get("text_config") or {}), **sizes}
            device = torch.device("meta" if on_meta else self.temperature.device)
            with device:
                text_encoder = build_text_encoder(self.text_encoder_name, self.embed_dim, sizes)
            self.text_encoder = text_encoder.train(self.training)

    def _match(self, checkpoint: Translated, strict: bool) -> dict[str, torch.Tensor]:
        """The checkpoint's weights in float32 and in our shapes; CheckpointError names what does not fit."""
        own = super().state_dict()
        weights = dict(checkpoint.state_dict)
        if self.text_encoder is None:
            weights = {key: tensor for key, tensor in weights.items() if not key.startswith(TEXT_TOWER)}
        if any(key.startswith(BACKBONE + "encoder.layer.") for key in own):  # a ViT of an older transformers
            weights = {rename(key, VIT_INTO_TRANSFORMERS_4): tensor for key, tensor in weights.items()}
        if "temperature" not in weights:
            temperature = checkpoint.metadata.get("temperature")
            if temperature is None:
                temperature = 0.07
                like = [name for name in checkpoint.ignored if re.search(r"temperature|logit_scale|\btau\b", name)]
                instead = Message("（其中的 {} 没有采用）", first_names(like)) if like else ""
                message = Message("检查点没有 temperature{}，概率按 0.07 计算（热力图不受影响）", instead)
                warnings.warn(InputWarning(message), stacklevel=3)
            weights["temperature"] = torch.tensor(float(temperature))
        fitted = fit_weights(own, weights, self.image_encoder_name, strict)
        if not fitted["temperature"].is_meta:
            check_scale("temperature", fitted["temperature"], CheckpointError)
        return fitted


def build_on_meta(config: Mapping, text_tower: bool = True) -> CLIPModel:
    """`create_model` without memory or random numbers: weights are assigned later, `give_buffers_values` last.

    The libraries are imported first: some compute with real tensors while they are imported.
    """
    encoder, needed = config.get("image_encoder"), []
    if text_tower:
        is_clip = is_clip_text(config.get("text_encoder"), config.get("text_config"))
        needed.append((transformers, "CLIPTextModel" if is_clip else "BertModel"))
    if encoder == "vit":
        needed.append((transformers, "ViTModel"))
    elif encoder in (*RESNETS, *CONVNEXTS, *EFFICIENTNETS):
        needed.append((torchvision, "models"))
    for library, name in needed:
        getattr(library, name)
    with torch.device("meta"):
        return create_model(config, text_tower)


def create_model(config: Mapping, text_tower: bool = True) -> CLIPModel:
    """Build a CLIPModel from a training config; see weights.metadata.FIELDS for what is read."""
    settings = split_checkpoint({"config": config})[1]
    levels = unit_levels(config.get("mean"), config.get("std"), least=0)  # the user's own need not be usual
    mean, std = levels or (settings.get("mean"), settings.get("std"))
    return CLIPModel(
        image_encoder_name=settings.get("image_encoder", "resnet50"),
        text_encoder_name=settings.get("text_encoder", "bert-base-chinese"),
        embed_dim=settings.get("embed_dim", 512),
        temperature=settings.get("temperature", 0.07),
        text_config=settings.get("text_config"),
        img_size=settings.get("img_size"),
        text_tower=text_tower,
        mean=mean,
        std=std,
    )
