"""CLIPs of open_clip with towers of other libraries: timm's vision transformers, Hugging Face's text encoders.

BiomedCLIP is a ViT of timm with PubMedBERT, open_clip's SigLIPs are timm's with a text transformer that has no causal
mask. Each tower becomes the network of transformers that has the same weights: ViT, CLIP's or SigLIP's for images,
BERT, RoBERTa, CLIP's or SigLIP's for texts. Structure is read off the weights, all else off the open_clip_config.json
beside them and, for a text encoder, the config.json of the model that it names.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..errors import CheckpointError, InputError
from ..heavy import transformers
from ..messages import Joined, Message
from ..savings import forget
from ..towers.cleaning import CLEANERS
from ..towers.clip_resnet import build_clip_resnet
from ..towers.open_clip_text import OpenClipTextTower
from ..towers.published import CNN, ImageTower, PretrainedCLIP, VisionTransformerTower, check_alike, innermost
from ..towers.text import TextTower
from ..towers.tokenizers import TokenizerFiles, find_clip_tokenizer, has_tokenizer, tokenizer_of
from ..weights.configs import plain_part
from ..weights.hub import (
    OPEN_CLIP_CONFIG,
    REPOSITORY,
    SHIPPED_TEXT_ENCODERS,
    as_input_error,
    hub_folder,
    quiet,
    read_json,
)
from ..weights.layouts import VIT_INTO_TRANSFORMERS_4
from ..weights.modules import assign_weights, first_names, give_buffers_values
from ..weights.names import WRAPPER_PREFIX, rename
from ..weights.openai_names import translate as translate_openai
from ..weights.timm_names import TRUNK, network_of, translate
from .content import Content, Request, refuse_adapter_weights
from .open_clip_config import BIDIRECTIONAL, HUGGING_FACE, OpenClipConfig, read_config
from .openai import (
    HEAD_WIDTHS,
    Settings,
    bare_weights,
    count_numbers,
    open_clip_preprocessing,
    text_config,
    vision_config,
)
from .text_cache import CachedFeatures, unless_cached

SUPPORTED = Message(
    "timm 的 ViT（类别词元，或 SigLIP 的注意力池化）和 open_clip 自己的图像塔，"
    "配 BERT、RoBERTa、XLM-R、SigLIP 或 CLIP 的文本塔"
)
FOREIGN = re.compile(r"visual\.trunk\.|text\.(?:proj|text_projection)\.|text\.transformer\.(?!resblocks\.)")
HF = "text.transformer."


def recognises(content: Content) -> bool:
    """Whether a checkpoint has a tower under open_clip's name for another library's, one that we can build or not."""
    weights = () if content.is_folder else content.contents.weights
    return any(FOREIGN.match(WRAPPER_PREFIX.sub("", key)) for key in weights)


def load(content: Content, request: Request, cached: CachedFeatures | None = None) -> PretrainedCLIP:
    """The CLIP of a checkpoint of open_clip, in eval mode, on the CPU, in float32.

    A text encoder that is a folder holds the tokenizer's files, and the config.json of the text tower if there is one.
    InputError or CheckpointError where the checkpoint is none of `SUPPORTED`. Without its text tower where that is not
    wanted, or where `cached` has the features.
    """
    request.warn_of_unused()
    path, weights = content.path, _weights(content)
    refuse_adapter_weights(weights, path)
    config = read_config(path.parent / OPEN_CLIP_CONFIG)
    find_tokenizer = _tokenizer_finder(config, request) if request.text_tower else None
    find_tokenizer = unless_cached(cached, find_tokenizer, config.text, config.model, _settings_of(config, request))
    with as_input_error(Message("{} 的权重不能组成模型", path)), quiet():
        try:
            model = _build(weights, config, request, find_tokenizer)
        except KeyError as error:  # a weight whose shape says how the model is built
            raise CheckpointError("{} 中没有 {}，其结构不受支持；支持：{}", path, error.args[0], SUPPORTED) from error
        except CheckpointError as error:
            raise CheckpointError("{} 无法使用：{}；支持：{}", path, error, SUPPORTED) from error
    forget(weights)
    return model


NO_WEIGHTS = re.compile(r"^(?:text\.)?(?:attn_mask|transformer\.embeddings\.(?:position_ids|token_type_ids))$")


def _weights(content: Content) -> dict[str, torch.Tensor]:
    """The weights of both towers, those of a text transformer that open_clip keeps at the root below `text.` too."""
    named = {}
    for key, tensor in bare_weights(content.contents).items():
        if not key.startswith(("visual.", "text.", "logit_")):
            key = f"text.{key}"
        if not NO_WEIGHTS.match(key):
            named[key] = tensor
    return named


def _build(weights: Mapping, config: OpenClipConfig, request: Request, find_tokenizer: Callable | None):
    """The PretrainedCLIP of these weights."""
    visual = {key: tensor for key, tensor in weights.items() if key.startswith("visual.")}
    texts = {key: tensor for key, tensor in weights.items() if key.startswith("text.")}
    others = [
        key for key in weights if key not in visual and key not in texts and key not in ("logit_scale", "logit_bias")
    ]
    if others:
        raise CheckpointError("其中有 {} 个两个编码器之外的权重：{}", len(others), first_names(others))
    bias = weights.get("logit_bias")
    if "init_logit_bias" in config.model and bias is None:
        raise CheckpointError("其中没有 logit_bias，而 {} 说有：二者不是一套文件", config.file.name)
    family, tower = build_image_tower(visual, config)
    preprocessing = open_clip_preprocessing(config.preprocess, config.image_side, request.img_size)
    check_alike(tower, preprocessing)
    cautions = text_cautions(texts, config, request) if request.text_tower else []
    text_tower = None if find_tokenizer is None else build_text_tower(texts, config, request, find_tokenizer)
    model = PretrainedCLIP(family, tower, text_tower, weights["logit_scale"], bias, preprocessing).eval()
    if not config.preprocess:
        usual = Message("{} 没有 preprocess_cfg，图像按 open_clip 的默认方式预处理（CLIP 的均值和标准差）", config.file)
        cautions = [usual, *cautions]
    model.cautions = cautions
    return model


# -- modules of weights -----------------------------------------------------------------------


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The module that `build` makes, without memory."""
    with torch.device("meta"):
        return build()


def _assigned(build: Callable[[], nn.Module], weights: Mapping) -> nn.Module:
    """The module that `build` makes, with these weights and no others."""
    module = _on_meta(build)
    assign_weights(module, weights)
    give_buffers_values(module)
    return module


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    if weight.ndim != 2:
        raise CheckpointError("投影的形状是 {}，应是两维", list(weight.shape))
    width, features = reversed(weight.shape)
    weights = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return _assigned(lambda: nn.Linear(width, features, bias is not None), weights)


def take_projection(weights: dict, *ways: tuple[str, ...]) -> nn.Module:
    """The projection that goes by one of several ways to name its linear layers, between which there is a GELU.

    Its weights are taken out of `weights`. The identity where there is none.
    """
    names = next((names for names in ways if f"{names[0]}.weight" in weights), ())
    layers = []
    for name in names:
        layers += [_linear(weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias", None)), nn.GELU()]
    return nn.Sequential(*layers[:-1])


# -- images -----------------------------------------------------------------------------------


class TimmKind(NamedTuple):
    """What the name of a model of timm says that no weight shows."""

    pattern: str
    epsilon: float  # of its LayerNorms
    activation: str


TIMM_KINDS = (
    TimmKind(r"vit_[a-z0-9]+_patch\d+_clip_quickgelu_\d+", 1e-5, "quick_gelu"),
    TimmKind(r"vit_[a-z0-9]+_patch\d+_(?:plus_)?clip_\d+", 1e-5, "gelu"),
    TimmKind(
        r"vit_(?:base_patch32_siglip_256|large_patch16_siglip_512|so400m_patch16_siglip_\d+|giantopt_patch16_siglip_\d+)",
        1e-6,
        "gelu_pytorch_tanh",
    ),
    TimmKind(r"vit_[a-z0-9]+_patch\d+_siglip_\d+", 1e-6, "gelu"),
    TimmKind(r"(?:vit|deit)_[a-z0-9]+_patch\d+_\d+", 1e-6, "gelu"),
)
TIMM_HEAD_WIDTHS = {**HEAD_WIDTHS, 1152: 72, 1536: 96}  # else 64


def kind_of(name: str, file: Path) -> TimmKind:
    """The kind of a model of timm, by its name without the tag behind the dot; InputError where it is none of ours."""
    bare = name.partition(".")[0]
    kind = next((kind for kind in TIMM_KINDS if re.fullmatch(kind.pattern, bare)), None)
    if kind is None:
        raise InputError("{} 中的图像塔是 timm 的 {}，不受支持；支持：{}", file, name, SUPPORTED)
    return kind


def build_image_tower(weights: dict, config: OpenClipConfig) -> tuple[str, ImageTower]:
    """(encoder's name, tower) of the weights below `visual.`."""
    if "timm_model_name" in config.vision:
        return _timm_tower(weights, config)
    settings = Settings("quick_gelu" if config.model.get("quick_gelu") else "gelu", config.vision.get("head_width"))
    if "visual.class_embedding" not in weights:
        inner = {key.removeprefix("visual."): tensor for key, tensor in weights.items()}
        return CNN, ImageTower(build_clip_resnet(inner, settings.head_width or 64))
    sizes, named = vision_config(weights, settings), translate_openai(weights)
    projection = _linear(named.pop("visual_projection.weight"), None)
    return _vision_tower(
        "CLIPVision", sizes, {k.removeprefix("vision_model."): v for k, v in named.items()}, projection
    )


def _timm_tower(weights: dict, config: OpenClipConfig) -> tuple[str, ImageTower]:
    """(encoder's name, tower) of timm's weights."""
    kind, network = kind_of(config.vision["timm_model_name"], config.file), network_of(weights)
    pool = config.vision.get("timm_pool", "")
    if network is None or (pool and (pool == "map") != (network == "SiglipVision")):
        raise CheckpointError("图像塔的权重既没有类别词元也没有注意力池化，或与 timm_pool {!r} 不符", pool)
    width = weights[f"{TRUNK}patch_embed.proj.weight"].shape[0]
    heads = max(1, width // TIMM_HEAD_WIDTHS.get(width, 64))
    return timm_tower(weights, network, kind, heads, config.image_side)


def timm_tower(weights: dict, network: str, kind: TimmKind, heads: int, side: int) -> tuple[str, ImageTower]:
    """(encoder's name, tower) of timm's weights as transformers' `network`, for images of `side` pixels."""
    ways = ("visual.head.proj",), ("visual.head.mlp.fc1", "visual.head.mlp.fc2"), (f"{TRUNK}head",)
    projection = take_projection(weights, *ways)
    width, channels, patch, _ = weights[f"{TRUNK}patch_embed.proj.weight"].shape
    sizes = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": side,
        "num_hidden_layers": count_numbers(weights, r"visual\.trunk\.blocks\.(\d+)\."),
        "intermediate_size": len(weights[f"{TRUNK}blocks.0.mlp.fc1.weight"]),
        "num_attention_heads": heads,
        "hidden_act": kind.activation,
        "layer_norm_eps": kind.epsilon,
    }
    return _vision_tower(network, sizes, translate(weights, network), projection)


def _vision_tower(name: str, sizes: Mapping, weights: Mapping, projection: nn.Module) -> tuple[str, ImageTower]:
    """The tower of transformers' vision model of this name."""
    config = getattr(transformers, f"{name}Config")(**sizes)
    options = {"add_pooling_layer": False} if name == "ViT" else {}

    def build() -> nn.Module:
        return innermost(getattr(transformers, f"{name}Model")(config, **options), "vision_model")

    if name == "ViT" and not hasattr(_on_meta(build), "layers"):  # transformers 4
        prefix = "image_encoder.backbone."
        weights = {rename(prefix + k, VIT_INTO_TRANSFORMERS_4).removeprefix(prefix): v for k, v in weights.items()}
    tower = VisionTransformerTower(_assigned(build, weights), projection)
    return tower.family, tower


# -- texts ------------------------------------------------------------------------------------


class BertKind(NamedTuple):
    """What the type of a text encoder says that no weight shows."""

    network: str
    epsilon: float
    padding: int  # the token that texts are filled up with, masked
    pooler: str  # open_clip's own where the config says null


BERT_KINDS = {
    "bert": BertKind("Bert", 1e-12, 0, "cls_last_hidden_state_pooler"),
    "roberta": BertKind("Roberta", 1e-5, 1, "mean_pooler"),
    "xlm-roberta": BertKind("XLMRoberta", 1e-5, 1, "mean_pooler"),
}
USUAL_WIDTHS = (768, 1024)  # whose heads are 64 wide in all BERTs


def build_text_tower(weights: dict, config: OpenClipConfig, request: Request, find_tokenizer: Callable) -> TextTower:
    """The tower of the weights below `text.`."""
    if config.text_kind == HUGGING_FACE:
        return _huggingface_tower(weights, config, request, find_tokenizer)
    matrix = weights.pop("text.text_projection", None)
    if matrix is not None:
        weights["text.text_projection.weight"] = matrix.T.contiguous()
    projection = take_projection(weights, ("text.text_projection",))
    inner = {key.removeprefix("text."): tensor for key, tensor in weights.items()}
    heads, epsilon = config.text.get("heads", 8), config.text["norm_kwargs"].get("eps", 1e-5)
    sizes = {**text_config(inner, Settings(config.text_activation, text_heads=heads)), "layer_norm_eps": epsilon}
    named = {key.removeprefix("text_model."): tensor for key, tensor in translate_openai(inner).items()}
    name = "SiglipText" if config.text_kind == BIDIRECTIONAL else "CLIPText"
    text_sizes = getattr(transformers, f"{name}Config")(**sizes)

    def build() -> nn.Module:
        network = innermost(getattr(transformers, f"{name}Model")(text_sizes), "text_model")
        if name == "SiglipText":
            network.head = nn.Identity()  # ours may have no bias, or not be there at all
        return network

    network = _assigned(build, named)
    if config.text_kind == BIDIRECTIONAL:
        return OpenClipTextTower(network, projection, find_tokenizer, *_reading(config))
    tower = TextTower(network, projection, find_tokenizer)
    tower.clean = CLEANERS["lower"]  # as open_clip's own tokenizer
    return tower


def _reading(config: OpenClipConfig) -> tuple[int, Callable]:
    """(most tokens, what is made of a text first) of open_clip's HFTokenizer."""
    clean = config.text["tokenizer_kwargs"].get("clean", "whitespace")
    return config.text.get("context_length", 77), CLEANERS[clean]


def _huggingface_tower(weights: dict, config: OpenClipConfig, request: Request, find_tokenizer: Callable) -> TextTower:
    """The tower of an encoder of Hugging Face and open_clip's projection behind it."""
    projection = take_projection(weights, ("text.proj",), ("text.proj.0", "text.proj.2"))
    inner = {key.removeprefix(HF): tensor for key, tensor in weights.items()}
    words, types = (weights[f"{HF}embeddings.{name}_embeddings.weight"] for name in ("word", "token_type"))
    width, settings = words.shape[1], _settings_of(config, request)
    kind = _bert_kind(settings, types)
    if settings.get("hidden_size", width) != width:
        name = config.text["hf_model_name"]
        raise CheckpointError(
            "文本塔的宽度是 {}，{} 的 config.json 说是 {}", width, name[-60:], settings["hidden_size"]
        )
    sizes = {
        "vocab_size": len(words),
        "hidden_size": width,
        "max_position_embeddings": len(inner["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(types),
        "num_hidden_layers": count_numbers(inner, r"encoder\.layer\.(\d+)\."),
        "intermediate_size": len(inner["encoder.layer.0.intermediate.dense.weight"]),
        "num_attention_heads": settings.get("num_attention_heads") or max(1, width // 64),
        "layer_norm_eps": settings.get("layer_norm_eps", kind.epsilon),
        "hidden_act": settings.get("hidden_act", "gelu"),
        "pad_token_id": settings["pad_token_id"] if type(settings.get("pad_token_id")) is int else kind.padding,
    }
    pooler = config.text.get("hf_pooler_type", kind.pooler)
    is_pooled = pooler == "cls_pooler"
    if not is_pooled:
        inner = {key: tensor for key, tensor in inner.items() if not key.startswith("pooler.")}
    text_sizes = getattr(transformers, f"{kind.network}Config")(**sizes)
    loader = getattr(transformers, f"{kind.network}Model")
    network = _assigned(lambda: loader(text_sizes, add_pooling_layer=is_pooled), inner)
    reading = _reading(config)
    return OpenClipTextTower(network, projection, find_tokenizer, *reading, pooler, sizes["pad_token_id"])


def _bert_kind(settings: Mapping, types: torch.Tensor) -> BertKind:
    """The kind that an encoder's settings name, else the one that has so many types of token."""
    return BERT_KINDS[settings.get("model_type") or ("roberta" if len(types) == 1 else "bert")]


def text_cautions(weights: Mapping, config: OpenClipConfig, request: Request) -> list[Message]:
    """What of the text tower is assumed, whether or not it is built: of an encoder whose settings are nowhere."""
    if config.text_kind != HUGGING_FACE or _settings_of(config, request):
        return []
    name, width = config.text["hf_model_name"], weights[f"{HF}embeddings.word_embeddings.weight"].shape[1]
    if width in USUAL_WIDTHS and "bert" in name.lower():
        return []
    kind = _bert_kind({}, weights[f"{HF}embeddings.token_type_embeddings.weight"])
    return [Message("没有 {} 的 config.json，文本塔按 {} 通常的设置计算（注意力头 64 宽）", name[-60:], kind.network)]


def _settings_of(config: OpenClipConfig, request: Request) -> dict:
    """What the config.json of the text encoder says, of the first folder that has one; empty where there is none."""
    name = config.text.get("hf_model_name")
    for folder in _folders(config, request, name) if name else ():
        file = folder / "config.json"
        settings = read_json(file) if file.is_file() else {}
        if str(settings.get("model_type")) in BERT_KINDS:
            return plain_part(settings, file)
    return {}


def _folders(config: OpenClipConfig, request: Request, name: str) -> list[Path]:
    """Where files of the text encoder `name` are looked for: the user's folder, beside the weights, shipped, cached."""
    folders = [request.text_folder and Path(request.text_folder), config.file.parent, SHIPPED_TEXT_ENCODERS.get(name)]
    return [folder for folder in (*folders, REPOSITORY.fullmatch(name) and hub_folder(name)) if folder]


def _tokenizer_finder(config: OpenClipConfig, request: Request) -> TokenizerFiles:
    """The tokenizer of the text tower; InputError at once where its files are nowhere."""
    name, beside = config.text.get("hf_tokenizer_name"), config.file.parent
    if name is None and config.text_kind == HUGGING_FACE:
        raise InputError("{} 没有写明 hf_tokenizer_name：不知道文本塔用哪个分词器", config.file)
    if name is None:
        return find_clip_tokenizer(request.text_folder, beside, download=request.download)
    folder = next((folder for folder in _folders(config, request, name) if has_tokenizer(folder)), None)
    if folder is None:
        raise InputError(
            "找不到分词器 {}：请把它的文件（tokenizer.json 或 {}）放进 {}，或用 --text-encoder 指定它们所在的文件夹",
            name[-60:],
            Joined("、", ("vocab.txt", "spiece.model", "sentencepiece.bpe.model")),
            beside,
        )
    return tokenizer_of(folder)
