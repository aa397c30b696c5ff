"""A CLIP of two towers: an image encoder, a Chinese BERT, and the cosine similarity between them.

    model = CLIPModel("resnet50")
    model.load_state_dict(torch.load("checkpoint.pth"))   # every layout of models.checkpoint_layouts
    predictions, probabilities = model.predict(images, ["正常假体", "假体松动"])

Building a model never downloads anything: the vocabulary and the sizes of bert-base-chinese lie in
`models/assets/`, and the weights come from the checkpoint. torchvision and transformers are imported
where a network of theirs is built, since either costs as much time as torch itself.
"""

import difflib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .checkpoint_layouts import (
    BACKBONE,
    BATCH_COUNTER,
    CLIP_TEXT,
    TEXT_TOWER,
    VIT_INTO_TRANSFORMERS_4,
    Translated,
    allow_safe_globals,
    read_text_config,
    rename,
    split_checkpoint,
    translate_checkpoint,
)
from .errors import CheckpointError, InputError, InputWarning

ASSETS = Path(__file__).resolve().parent / "assets"
SHIPPED_TEXT_ENCODERS = {
    "bert-base-chinese": ASSETS / "bert-base-chinese",
    "google-bert/bert-base-chinese": ASSETS / "bert-base-chinese",
}
MAX_TOKENS = 128

allow_safe_globals()  # `torch.load` of our users' checkpoints: numpy scalars, argparse.Namespace, paths


# ---------------------------------------------------------------------------------------------
# Image tower


def _build_resnet(name):
    from torchvision import models

    net = getattr(models, name)(weights=None)
    num_features, net.fc = net.fc.in_features, nn.Identity()
    return net, num_features


def _build_convnext_or_efficientnet(name):
    from torchvision import models

    net = getattr(models, name.replace("-", "_"))(weights=None)
    num_features, net.classifier[-1] = net.classifier[-1].in_features, nn.Identity()
    return net, num_features


def _build_starnet(name):
    from .starnet import build_starnet

    net = build_starnet(name)
    return net, net.num_features


def _build_dual_pyramid(name):
    from .starnet_dual_pyramid_rcf import StarNetDualPyramidRCF

    net = StarNetDualPyramidRCF()
    return net, net.num_features


def _build_vit(name):
    """ViT-Base/16 of google/vit-base-patch16-224: the defaults of ViTConfig."""
    from transformers import ViTConfig, ViTModel

    net = ViTModel(ViTConfig(), add_pooling_layer=False)
    return net, net.config.hidden_size


IMAGE_ENCODERS = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), _build_resnet),
    **dict.fromkeys(("starnet_s1", "starnet_s2", "starnet_s3", "starnet_s4"), _build_starnet),
    "starnet_dual_pyramid_rcf": _build_dual_pyramid,
    **{f"convnext-{size}": _build_convnext_or_efficientnet for size in ("tiny", "small", "base", "large")},
    **{f"efficientnet-b{i}": _build_convnext_or_efficientnet for i in range(8)},
    "vit": _build_vit,
}


def check_image_encoder_name(name: str) -> str:
    """Return `name`; raise InputError with the closest and all known names where it is none of them."""
    if name in IMAGE_ENCODERS:
        return name
    close = difflib.get_close_matches(str(name).lower().replace("_", "-"), IMAGE_ENCODERS, n=3, cutoff=0.5)
    hint = f"最接近的是 {'、'.join(close)}；" if close else ""
    raise InputError(f"未知的图像编码器 {name!r}；{hint}支持：{'、'.join(IMAGE_ENCODERS)}")


class ImageEncoder(nn.Module):
    """Backbone, linear projection, L2 norm: images [B, 3, H, W] -> embeddings [B, embed_dim].

    `model_name` is one of `IMAGE_ENCODERS`; another raises InputError.
    """

    def __init__(self, model_name: str = "resnet50", embed_dim: int = 512):
        super().__init__()
        self.model_name = check_image_encoder_name(model_name)
        self.backbone, num_features = IMAGE_ENCODERS[model_name](model_name)
        self.projection = nn.Linear(num_features, embed_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.embed(images), dim=-1)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] -> embeddings [B, embed_dim] before the L2 norm."""
        return self.projection(self._features(images))

    def _features(self, images):
        """[B, 3, H, W] -> what the projection reads, [B, num_features]."""
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

    def transformer(self):
        """The blocks whose attention can be explained (models.attention.Transformer); None for a convolutional net."""
        if self.model_name != "vit":
            return None
        from .attention import Transformer

        blocks = self.backbone.layers if hasattr(self.backbone, "layers") else self.backbone.encoder.layer
        heads = self.backbone.config.num_attention_heads
        return Transformer(blocks, heads, lambda token: self.projection(self.backbone.layernorm(token)))


# ---------------------------------------------------------------------------------------------
# Text tower


def text_encoder_source(name: str) -> str:
    """Where transformers finds the encoder `name`: a shipped or local folder, else the (hub) name itself.

    A folder of the training machine that is not here counts by its last part.
    """
    if not Path(name).exists() and Path(name).is_absolute():
        name = Path(name).name
    return str(SHIPPED_TEXT_ENCODERS.get(name, name))


def _from_pretrained(loader, name: str):
    """Call a transformers `from_pretrained` on a folder or hub name: the local cache first, then the hub."""
    source = text_encoder_source(name)
    try:
        try:
            return loader.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError):
            if Path(source).exists() or not _hub_is_reachable():
                raise
            return loader.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(
            f"找不到文本编码器 {name!r}：它不是含 config.json 和 vocab.txt 的本地文件夹，不在本地缓存中，"
            "也无法从模型库下载"
            f"（可用环境变量 HF_ENDPOINT 指定镜像）；内置的是 bert-base-chinese（{type(error).__name__}）"
        ) from error


def _hub_is_reachable() -> bool:
    """Whether the model hub's name resolves; without this, the hub's client retries for half a minute."""
    import socket
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _bert_config(name: str, sizes: Mapping):
    """BertConfig of the encoder `name`, with the `sizes` read off a checkpoint in place of its own."""
    from transformers import AutoConfig, BertConfig

    shipped = Path(text_encoder_source(name)) / "config.json"
    if shipped.is_relative_to(ASSETS):
        known = json.loads(shipped.read_text(encoding="utf-8"))
    else:
        known = _from_pretrained(AutoConfig, name).to_dict()
    if known.get("model_type") != "bert":
        raise InputError(f"文本编码器 {name!r} 是 {known.get('model_type')} 模型；本工具只支持 BERT")
    hidden_size = sizes.get("hidden_size", known["hidden_size"])
    if hidden_size != known["hidden_size"]:  # heads are in no shape: 64 wide in nearly every BERT, else 12 of them
        known["num_attention_heads"] = hidden_size // 64 if hidden_size % 64 == 0 else 12
    return BertConfig(**{**known, **sizes})


class TextEncoder(nn.Module):
    """BERT, `[CLS]` of its last hidden state, linear projection, L2 norm: texts -> embeddings [K, embed_dim].

    `model_name`: bert-base-chinese (shipped), a local folder, or a hub name of a BERT. `text_config`
    overrides sizes in the names of BertConfig. Weights are random until a checkpoint brings them.
    """

    def __init__(self, model_name: str = "bert-base-chinese", embed_dim: int = 512, text_config: Mapping | None = None):
        super().__init__()
        from transformers import BertModel

        self.model_name = model_name
        config = _bert_config(model_name, text_config or {})
        self.backbone = BertModel(config, add_pooling_layer=False)
        self.projection = nn.Linear(config.hidden_size, embed_dim)
        self._tokenizer = None

    @property
    def tokenizer(self):
        """The tokenizer that belongs to `model_name`, loaded on first use."""
        if self._tokenizer is None:
            from transformers import BertTokenizer

            self._tokenizer = _from_pretrained(BertTokenizer, self.model_name)
            vocab_size = self.backbone.config.vocab_size
            if len(self._tokenizer) > vocab_size:
                raise InputError(
                    f"文本编码器 {self.model_name!r} 的词表有 {len(self._tokenizer)} 个词，"
                    f"检查点的词嵌入只有 {vocab_size} 个；请用 --text-encoder 指定训练时的文本编码器"
                )
        return self._tokenizer

    @property
    def max_tokens(self) -> int:
        return min(MAX_TOKENS, self.backbone.config.max_position_embeddings)

    def describe_cuts(self, texts: list[str]) -> list[str]:
        """A message for each text that is cut, for the user: all that embedding the texts warns of."""
        lengths = [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return [
            f"文本“{text[:20]}…”有 {length} 个词元，超过 {self.max_tokens} 的部分被截去"
            for text, length in zip(texts, lengths)
            if length > self.max_tokens
        ]

    def tokenize(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Texts -> {"input_ids", "attention_mask"}, int64 [K, T], T <= 128. Warns of each text that is cut."""
        for message in self.describe_cuts(texts):
            warnings.warn(message, InputWarning, stacklevel=3)
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        device = self.projection.weight.device
        return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}

    def forward(self, texts=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        """Embed `texts` (a list of K strings) or token ids and mask, each [K, T]."""
        if texts is not None:
            tokens = self.tokenize([texts] if isinstance(texts, str) else list(texts))
            input_ids, attention_mask = tokens["input_ids"], tokens["attention_mask"]
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return F.normalize(self.projection(hidden[:, 0]), dim=-1)


def is_clip_text(name: str, text_config: Mapping | None) -> bool:
    """Whether a text encoder is CLIP's own: by its name, `clip:ViT-B/32` say, or by what its weights were read as."""
    return str(name).startswith("clip:") or (text_config or {}).get("model_type") == CLIP_TEXT


def build_text_encoder(name: str, embed_dim: int, text_config: Mapping | None) -> nn.Module:
    """The text tower `name`: a BERT, or CLIP's own."""
    if not is_clip_text(name, text_config):
        return TextEncoder(name, embed_dim, text_config)
    from .clip_text import ClipTextEncoder

    return ClipTextEncoder(name, embed_dim, text_config)


# ---------------------------------------------------------------------------------------------
# Both


class CLIPModel(nn.Module):
    """Image tower, text tower, and a temperature that divides their cosine similarity.

    The checkpoint's preprocessing travels with the model: `img_size`, the side in pixels of the square
    that images are resized to, None where nobody said (ImageNet mean and deviation are the same for all).
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
    ):
        super().__init__()
        self.image_encoder_name = image_encoder_name
        self.text_encoder_name = text_encoder_name
        self.embed_dim = embed_dim
        self.img_size = img_size
        self.image_encoder = ImageEncoder(image_encoder_name, embed_dim)
        self.text_encoder = build_text_encoder(text_encoder_name, embed_dim, text_config) if text_tower else None
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.class_text_features = None  # [K, embed_dim], see precompute_class_text_features

    def forward(self, images, texts=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        """Images [B, 3, H, W] and K texts -> logits [B, K]."""
        text_features = self.embed_texts(texts, input_ids, attention_mask)
        return self.compute_similarity(self.image_encoder(images), text_features)

    def embed_texts(self, texts=None, input_ids=None, attention_mask=None) -> torch.Tensor:
        """K texts, or their token ids and mask [K, T] -> [K, embed_dim]; InputError without a text tower."""
        if self.text_encoder is None:
            raise InputError("该模型没有文本编码器，不能编码文本；请给出 text_features，或用 load_clip_checkpoint 载入")
        return self.text_encoder(texts, input_ids, attention_mask)

    def compute_similarity(self, image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
        """Cosine similarity divided by the temperature: [B, D] and [K, D] -> logits [B, K]."""
        cosine = F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
        return cosine / self.temperature

    def probabilities(self, similarities: torch.Tensor) -> torch.Tensor:
        """Cosines [..., K] -> probabilities [..., K] in float32: softmax over the texts."""
        return (similarities / self.temperature.detach().float().to(similarities.device)).softmax(dim=-1)

    @torch.no_grad()
    def precompute_class_text_features(self, class_texts) -> torch.Tensor:
        """Embed the class texts (a list, or a dict's values) once, [K, D]; `predict` uses them from then on."""
        texts = list(class_texts.values()) if isinstance(class_texts, Mapping) else list(class_texts)
        self.class_text_features = self.embed_texts(texts)
        return self.class_text_features

    @torch.no_grad()
    def predict(self, images, class_texts=None, text_features=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (predicted text index [B], probabilities [B, K], each row summing to 1).

        The texts are `text_features` [K, D], else `class_texts`, else those precomputed before.
        """
        if text_features is None and class_texts is not None:
            text_features = self.precompute_class_text_features(class_texts)
        if text_features is None:
            text_features = self.class_text_features
        if text_features is None:
            raise InputError("predict 需要 class_texts 或 text_features，或先调用 precompute_class_text_features")
        probabilities = self.compute_similarity(self.image_encoder(images), text_features).softmax(dim=-1)
        return probabilities.argmax(dim=-1), probabilities

    # -- weights ------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: Mapping, strict: bool = True, assign: bool = False):
        """Load a checkpoint of any layout in `models.checkpoint_layouts`, wrapped or bare.

        The text tower takes the sizes of the weights. Half precision becomes float32. Raises
        CheckpointError where weights of the two towers are missing, left over, or of another shape;
        parameters outside the towers are one warning. `strict=False` forgives missing ones. A model
        without a text tower leaves the weights of one aside.
        """
        checkpoint = state_dict if isinstance(state_dict, Translated) else translate_checkpoint(state_dict)
        self._fit_to(checkpoint, assign)
        weights = self._match(checkpoint, strict)
        if checkpoint.ignored:
            message = f"忽略了检查点中与热力图无关的 {len(checkpoint.ignored)} 个参数：{_first(checkpoint.ignored)}"
            warnings.warn(message, InputWarning, stacklevel=2)
        self.img_size = checkpoint.metadata.get("img_size", self.img_size)
        return super().load_state_dict(weights, strict=strict, assign=assign)

    def _fit_to(self, checkpoint: Translated, on_meta: bool) -> None:
        """Give the towers the sizes and the constants of the checkpoint, and complain of another network."""
        encoder = checkpoint.image_encoder_name
        if encoder and encoder != self.image_encoder_name:
            raise CheckpointError(
                f"检查点的图像编码器是 {encoder}，模型是 {self.image_encoder_name}；"
                f'请用 CLIPModel(image_encoder_name="{encoder}") 建立模型'
            )
        if checkpoint.batch_norm_eps is not None:
            for module in self.image_encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = checkpoint.batch_norm_eps
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
        given = dict(checkpoint.state_dict)
        if self.text_encoder is None:
            given = {key: tensor for key, tensor in given.items() if not key.startswith(TEXT_TOWER)}
        if any(key.startswith(BACKBONE + "encoder.layer.") for key in own):  # a ViT of an older transformers
            given = {rename(key, VIT_INTO_TRANSFORMERS_4): tensor for key, tensor in given.items()}
        if "temperature" not in given:
            temperature = checkpoint.metadata.get("temperature")
            if temperature is None:
                temperature = 0.07
                warnings.warn("检查点没有 temperature，概率按 0.07 计算（热力图不受影响）", InputWarning, stacklevel=3)
            given["temperature"] = torch.tensor(float(temperature))
        for key in own.keys() - given.keys():
            if key.endswith(BATCH_COUNTER):
                given[key] = torch.zeros((), dtype=torch.long)
        missing = [key for key in own if key not in given]
        unexpected = [key for key in given if key not in own]
        if strict and missing:
            raise CheckpointError(f"检查点缺少 {len(missing)} 个权重：{_first(missing)}")
        if unexpected:
            raise CheckpointError(
                f"检查点中有 {len(unexpected)} 个权重在 {self.image_encoder_name} 中没有位置：{_first(unexpected)}"
            )
        weights = {key: _as_float32(given[key]) for key in own if key in given}
        for key, tensor in weights.items():  # a scalar kept as [1]; a layer scale kept as [C] or [C, 1, 1]
            shape = own[key].shape
            if tensor.shape != shape and tensor.numel() == shape.numel() and min(tensor.ndim, len(shape)) <= 1:
                weights[key] = tensor.reshape(shape)
        wrong = [
            f"{key}（检查点 {list(tensor.shape)}，模型 {list(own[key].shape)}）"
            for key, tensor in weights.items()
            if tensor.shape != own[key].shape
        ]
        if wrong:
            raise CheckpointError(f"检查点中有 {len(wrong)} 个权重的形状与模型不符：{_first(wrong)}")
        return weights


def _first(names: list[str], count: int = 3) -> str:
    return "、".join(names[:count]) + ("……" if len(names) > count else "")


def _as_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def give_buffers_values(model: nn.Module) -> None:
    """Replace the buffers that a model built on the meta device keeps out of its state dict.

    BERT has two: positions that count up, and token types that are all zero.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                row = {"position_ids": torch.arange, "token_type_ids": torch.zeros}[name](buffer.shape[-1])
                setattr(module, name, row.to(torch.long).expand(buffer.shape).clone())


def build_on_meta(config: Mapping, text_tower: bool = True) -> CLIPModel:
    """`create_model` without memory or random numbers: weights are assigned later, `give_buffers_values` last.

    The libraries are imported first: some compute with real tensors while they are imported.
    """
    if text_tower and is_clip_text(config.get("text_encoder"), config.get("text_config")):
        from transformers import CLIPTextModel  # noqa: F401

        from . import clip_text  # noqa: F401
    elif text_tower:
        from transformers import BertModel  # noqa: F401
    if config.get("image_encoder") == "vit":
        from transformers import ViTModel  # noqa: F401
    if IMAGE_ENCODERS.get(config.get("image_encoder")) in (_build_resnet, _build_convnext_or_efficientnet):
        import torchvision  # noqa: F401
    with torch.device("meta"):
        return create_model(config, text_tower)


def create_model(config: Mapping, text_tower: bool = True) -> CLIPModel:
    """Build a CLIPModel from a training config; see checkpoint_layouts.METADATA_NAMES for what is read."""
    known = split_checkpoint({"config": config})[1]
    return CLIPModel(
        image_encoder_name=known.get("image_encoder", "resnet50"),
        text_encoder_name=known.get("text_encoder", "bert-base-chinese"),
        embed_dim=known.get("embed_dim", 512),
        temperature=known.get("temperature", 0.07),
        text_config=known.get("text_config"),
        img_size=known.get("img_size"),
        text_tower=text_tower,
    )
