"""CLIPs under OpenAI's names: its `.pt` files, state dicts of open_clip, and Chinese-CLIP's original checkpoints.

    model = load_openai("ViT-B-32.pt")        # a TorchScript archive: read as data, nothing in it is executed
    model = load_openai("open_clip_pytorch_model.bin")

A vision transformer becomes the model of transformers that has the same weights; a ResNet with attention pooling
becomes a `ClipResNet` of models.clip_resnet. The architecture is read off the weights' shapes; what no shape
shows (activation, width of the heads) is said by an open_clip_config.json beside the file, or by `read_settings`.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .checkpoint_layouts import BATCH_COUNTER, TEXT_BACKBONE, TEXT_TOWER, WRAPPER_PREFIX, split_checkpoint
from .clip import SHIPPED_TEXT_ENCODERS, give_buffers_values
from .errors import CheckpointError, InputError, InputWarning
from .preprocessing import Preprocessing
from .pretrained import CLIP_MEAN, CLIP_STD, read_json, scaled
from .torchscript import TORCHSCRIPT

SUPPORTED = "OpenAI 的 ViT 和 ResNet（RN50 等）、open_clip 中同样结构的模型、Chinese-CLIP 的原始检查点"

# ---------------------------------------------------------------------------------------------
# What a file is


BERT_WORDS = "bert.embeddings.word_embeddings.weight"  # Chinese-CLIP
CUSTOM_TEXT = (
    r"^text\.(?=transformer\.|token_embedding\.|ln_final\.|(?:positional_embedding|text_projection|attn_mask)$)"
)
NO_WEIGHTS = re.compile(r"^(?:input_resolution|context_length|vocab_size|attn_mask|.*position_ids|bert\.pooler\..*)$")


def openai_weights(checkpoint: Mapping) -> dict[str, torch.Tensor]:
    """The weights of a wrapped or bare checkpoint, without the prefixes of wrappers and without constants."""
    weights = split_checkpoint(checkpoint)[0]
    named = {WRAPPER_PREFIX.sub("", key): tensor for key, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    named = {re.sub(CUSTOM_TEXT, "", key): tensor for key, tensor in named.items()}
    return {key: tensor for key, tensor in named.items() if not NO_WEIGHTS.match(key)}


def looks_like_openai(checkpoint: Mapping) -> bool:
    """Whether a checkpoint has an image tower under OpenAI's name, be it one that we know or not."""
    weights = split_checkpoint(checkpoint)[0]
    return any(isinstance(key, str) and WRAPPER_PREFIX.sub("", key).startswith("visual.") for key in weights)


class Settings(NamedTuple):
    """What the shapes of the weights do not show."""

    activation: str  # quick_gelu or gelu
    head_width: int | None = None  # of the image tower's attention; None: by its width
    text_heads: int | None = None  # None: 64 wide
    preprocessing: Mapping = {}  # of open_clip_config.json


KNOWN_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
KNOWN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "output_tokens"}
# width of an image tower -> width of its heads, where it is not 64: open_clip's ViT-H, g, bigG and e
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def read_settings(path: str | os.PathLike, checkpoint: Mapping, weights: Mapping) -> Settings:
    """What the checkpoint read from `path` and the open_clip_config.json beside it say.

    Activation: quick_gelu in a TorchScript archive and in Chinese-CLIP; as that file says, or the run's name that
    open_clip writes into its checkpoints; else quick_gelu with a warning, for most files without are OpenAI's.
    """
    file, run = Path(path).parent / "open_clip_config.json", checkpoint.get("name")
    if checkpoint.get(TORCHSCRIPT) or BERT_WORDS in weights:
        return Settings("quick_gelu")
    if file.is_file():
        return _open_clip_settings(file)
    if named := re.search(r"model_(.+?)-lr_", run) if isinstance(run, str) else None:
        return Settings("quick_gelu" if "quickgelu" in named[1].lower() else "gelu")
    message = (
        f"{Path(path).name} 没有说明激活函数，按 OpenAI 的 QuickGELU 处理；若是 open_clip 用 GELU 训练的模型"
        "（多数 LAION、DataComp 权重），请把它的 open_clip_config.json 放在同一文件夹，否则结果不准"
    )
    warnings.warn(message, InputWarning, stacklevel=3)
    return Settings("quick_gelu")


def _open_clip_settings(file: Path) -> Settings:
    content = read_json(file)
    model = content.get("model_cfg", content)
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    strange = [key for key, value in vision.items() if value and key not in KNOWN_VISION]
    strange += [key for key, value in text.items() if value and key not in KNOWN_TEXT]
    if strange:
        raise InputError(f"{file} 中的 {'、'.join(strange[:3])} 不受支持；支持：{SUPPORTED}")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return Settings(activation, vision.get("head_width"), text.get("heads"), content.get("preprocess_cfg") or {})


# ---------------------------------------------------------------------------------------------
# Translation


BLOCK = re.compile(r"^(?:(visual)\.)?transformer\.resblocks\.(\d+)\.(.+)$")
BLOCK_PARTS = (("ln_1.", "layer_norm1."), ("ln_2.", "layer_norm2."), ("attn.out_proj.", "self_attn.out_proj."))
BLOCK_PARTS += (("mlp.c_fc.", "mlp.fc1."), ("mlp.c_proj.", "mlp.fc2."))
VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    **{f"visual.ln_pre.{part}": f"vision_model.pre_layrnorm.{part}" for part in ("weight", "bias")},
    **{f"visual.ln_post.{part}": f"vision_model.post_layernorm.{part}" for part in ("weight", "bias")},
}
TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    **{f"ln_final.{part}": f"text_model.final_layer_norm.{part}" for part in ("weight", "bias")},
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def translate(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's names -> those of transformers' CLIPModel or ChineseCLIPModel, float32; unknown names stay."""
    translated = {}
    for key, tensor in weights.items():
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        block = BLOCK.match(key)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            translated.update(_translate_block(f"{tower}.encoder.layers.{block[2]}.", block[3], tensor))
        elif key in TRANSPOSED:
            translated[TRANSPOSED[key]] = tensor.T.contiguous()
        else:
            translated[VISION.get(key) or TEXT.get(key) or re.sub(r"^bert\.", "text_model.", key)] = tensor
    return translated


NOT_OF_A_TEXT = re.compile(r"^(?:visual|vision_model|visual_projection)\.|^(?:logit_scale|attn_mask)$")


def translate_text_tower(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint of our own with CLIP's text transformer, under OpenAI's or transformers' names -> transformers' 5.

    A projection that belongs to CLIP itself is multiplied into ours, which reads what it gives.
    """
    inner = {k.removeprefix(TEXT_BACKBONE): v for k, v in weights.items() if k.startswith(TEXT_BACKBONE)}
    inner = {key: tensor for key, tensor in inner.items() if not NOT_OF_A_TEXT.match(key)}
    if "token_embedding.weight" in inner:
        inner = translate(inner)
    inner = {key.removeprefix("text_model."): tensor for key, tensor in inner.items()}
    own = {key: tensor for key, tensor in weights.items() if not key.startswith(TEXT_BACKBONE)}
    projection, name = inner.pop("text_projection.weight", None), TEXT_TOWER + "projection.weight"
    if projection is not None and name in own:
        own[name] = own[name].float() @ projection.float()
    return {**own, **{TEXT_BACKBONE + key: tensor for key, tensor in inner.items()}}


def _translate_block(prefix: str, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if name.startswith("attn.in_proj_"):
        part = name.removeprefix("attn.in_proj_")
        return {f"{prefix}self_attn.{letter}_proj.{part}": third for letter, third in zip("qkv", tensor.chunk(3))}
    for theirs, ours in BLOCK_PARTS:
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    return {prefix + name: tensor}


def _count(weights: Mapping, pattern: str) -> int:
    """How many different numbers the one group of a pattern takes among the keys."""
    return len({match[1] for match in map(re.compile(pattern).match, weights) if match})


def _grid(positions: torch.Tensor) -> int:
    """Side of the square grid that a table of a class token's and the cells' position codes is for."""
    return round((len(positions) - 1) ** 0.5)


def vision_config(weights: Mapping, settings: Settings) -> dict:
    """CLIPVisionConfig of OpenAI's vision transformer."""
    width, _, patch, _ = weights["visual.conv1.weight"].shape
    head_width = settings.head_width or HEAD_WIDTHS.get(width, 64)
    return {
        "hidden_size": width,
        "patch_size": patch,
        "image_size": patch * _grid(weights["visual.positional_embedding"]),
        "num_hidden_layers": _count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
        "intermediate_size": len(weights["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_attention_heads": max(1, width // head_width),
        "hidden_act": settings.activation,
    }


def text_config(weights: Mapping, settings: Settings) -> dict:
    """CLIPTextConfig of OpenAI's text transformer, ChineseCLIPTextConfig of Chinese-CLIP's BERT."""
    bert = BERT_WORDS in weights
    words = weights[BERT_WORDS if bert else "token_embedding.weight"]
    positions = weights["bert.embeddings.position_embeddings.weight" if bert else "positional_embedding"]
    inner = "bert.encoder.layer.0.intermediate.dense.weight" if bert else "transformer.resblocks.0.mlp.c_fc.weight"
    size, width = words.shape
    sizes = {
        "vocab_size": size,
        "hidden_size": width,
        "max_position_embeddings": len(positions),
        "num_hidden_layers": _count(weights, r"(?:bert\.encoder\.layer|transformer\.resblocks)\.(\d+)\."),
        "intermediate_size": len(weights[inner]),
        "num_attention_heads": settings.text_heads or max(1, width // 64),
    }
    if bert:
        return {**sizes, "type_vocab_size": len(weights["bert.embeddings.token_type_embeddings.weight"])}
    # the end of a text has the highest token of all, as OpenAI's code takes for granted
    return {**sizes, "hidden_act": settings.activation, "bos_token_id": size - 2, "eos_token_id": size - 1}


def build_network(weights: Mapping, settings: Settings) -> nn.Module:
    """The model of transformers with these weights; without vision model where that is a ResNet.

    CheckpointError names weights that are missing or have no place.
    """
    import transformers

    is_vit, family = "visual.class_embedding" in weights, "ChineseCLIP" if BERT_WORDS in weights else "CLIP"
    placeholder = {"hidden_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 1}
    config = getattr(transformers, f"{family}Config")(
        vision_config=vision_config(weights, settings) if is_vit else placeholder,
        text_config=text_config(weights, settings),
        projection_dim=weights["text_projection"].shape[1],
    )
    loader = getattr(transformers, f"{family}Model")
    with torch.device("meta"):
        network = loader(config)
    given = translate({key: tensor for key, tensor in weights.items() if is_vit or not key.startswith("visual.")})
    if not is_vit:
        del network.vision_model, network.visual_projection
    assign_weights(network, given)
    give_buffers_values(network)
    return network


def assign_weights(module: nn.Module, weights: Mapping) -> None:
    """Make these tensors the module's own, without a copy; CheckpointError names what is missing or does not fit."""
    own = module.state_dict()
    weights = {**{key: torch.zeros((), dtype=torch.long) for key in own if key.endswith(BATCH_COUNTER)}, **weights}
    for what, names in (
        ("缺少", [key for key in own if key not in weights]),
        ("里没有位置的有", [key for key in weights if key not in own]),
        ("里形状不符的有", [key for key in own if key in weights and own[key].shape != weights[key].shape]),
    ):
        if names:
            raise CheckpointError(f"检查点{what} {len(names)} 个权重：{'、'.join(names[:3])}；支持：{SUPPORTED}")
    module.load_state_dict(weights, assign=True)


# ---------------------------------------------------------------------------------------------
# Loading

NEEDED = ("text_projection", "logit_scale")
EITHER = (
    ("visual.class_embedding", "visual.attnpool.positional_embedding"),
    ("token_embedding.weight", BERT_WORDS),
)


def load_openai(
    path: str | os.PathLike,
    checkpoint: Mapping | None = None,
    img_size: int | None = None,
    text_tower: bool = True,
    tokenizer: str | os.PathLike | None = None,
):
    """The CLIP of a file under OpenAI's names as a `PretrainedCLIP`, in eval mode, on the CPU, in float32.

    `checkpoint`: what stands in the file where it was read before; None reads it. `tokenizer`: a folder with CLIP's
    vocabulary, which is looked for first (see models.clip_text). InputError or CheckpointError where the file is
    none of `SUPPORTED`.
    """
    from .loading import read_checkpoint_file

    if checkpoint is None:
        checkpoint = read_checkpoint_file(path)
    weights = openai_weights(checkpoint)
    missing = [name for name in NEEDED if name not in weights]
    missing += [" 或 ".join(names) for names in EITHER if not any(name in weights for name in names)]
    if missing:
        raise CheckpointError(f"{path} 中没有 {'、'.join(missing)}，其结构不受支持；支持：{SUPPORTED}")
    settings = read_settings(path, checkpoint, weights)
    find_tokenizer = tokenizer_finder(path, tokenizer, BERT_WORDS in weights) if text_tower else None
    try:
        return _build(weights, settings, read_preprocessing(weights, settings, img_size), find_tokenizer)
    except KeyError as error:  # a weight whose shape says how the model is built
        raise CheckpointError(f"{path} 中没有 {error.args[0]}，其结构不受支持；支持：{SUPPORTED}") from error


def _build(weights: Mapping, settings: Settings, preprocessing: Preprocessing, find_tokenizer: Callable | None):
    """The PretrainedCLIP of these weights."""
    from .clip_resnet import build_clip_resnet
    from .pretrained_towers import CNN, ImageTower, PretrainedCLIP, build_text_tower, build_towers

    network, is_bert = build_network(weights, settings), BERT_WORDS in weights
    if "visual.class_embedding" in weights:
        return build_towers(network, preprocessing, find_tokenizer, first_token=is_bert)
    visual = {key.removeprefix("visual."): tensor for key, tensor in weights.items() if key.startswith("visual.")}
    tower = ImageTower(build_clip_resnet(visual, settings.head_width or 64, assign_weights))
    text = build_text_tower(network, find_tokenizer, first_token=is_bert)
    return PretrainedCLIP(CNN, tower, text, network.logit_scale, None, preprocessing).eval()


def read_preprocessing(weights: Mapping, settings: Settings, img_size: int | None) -> Preprocessing:
    """As OpenAI's, open_clip's or Chinese-CLIP's own code prepares images for a model with these weights."""
    if "visual.class_embedding" in weights:
        side = vision_config(weights, settings)["image_size"]
    else:
        side = 32 * _grid(weights["visual.attnpool.positional_embedding"])
    given = settings.preprocessing
    mean, std = (tuple(map(float, given.get(key) or usual)) for key, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    mode = given.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise InputError(f"open_clip_config.json 的 resize_mode 是 {mode!r}；本工具只支持 shortest 和 squash")
    squeezed = mode == "squash" or BERT_WORDS in weights
    resample = 2 if given.get("interpolation") == "bilinear" else 3
    resize, crop = ((side, side), None) if squeezed else (side, (side, side))
    preprocessing = Preprocessing(resize, crop, mean, std, resample)
    return scaled(preprocessing, img_size) if img_size else preprocessing


def tokenizer_finder(path, folder, is_bert: bool) -> Callable:
    """A function that loads the tokenizer of a file's text tower; InputError at once where there is none."""
    from .clip_text import find_clip_tokenizer
    from .pretrained import tokenizer_of

    if not is_bert:
        return find_clip_tokenizer(folder, Path(path).parent)
    return tokenizer_of(Path(folder) if folder else SHIPPED_TEXT_ENCODERS["bert-base-chinese"])
