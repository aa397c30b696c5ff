"""CLIPs under OpenAI's names: its `.pt` files, state dicts of open_clip, Long-CLIP's and Chinese-CLIP's checkpoints.

A vision transformer becomes the model of transformers that has the same weights; a ResNet with attention pooling
becomes a `ClipResNet` of models.towers.clip_resnet. The architecture is read off the weights' shapes; what no shape
shows (activation, width of the heads) is said by an open_clip_config.json beside the file, or by `read_settings`.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..errors import CheckpointError, InputError, InputWarning
from ..heavy import transformers
from ..images.preprocessing import Preprocessing
from ..messages import Joined, Message
from ..savings import forget
from ..towers.cleaning import CLEANERS
from ..towers.clip_resnet import build_clip_resnet
from ..towers.published import (
    CNN,
    ImageTower,
    PretrainedCLIP,
    build_text_tower,
    build_towers,
    drop_text_tower,
    is_of_text_tower,
)
from ..towers.tokenizers import TokenizerFiles, find_clip_tokenizer, tokenizer_of
from ..weights.configs import SWITCH, WIDTH, WORD, check_fields, real
from ..weights.files import TORCHSCRIPT
from ..weights.hub import OPEN_CLIP_CONFIG, SHIPPED_TEXT_ENCODERS, as_input_error, read_json
from ..weights.layouts import check_usable
from ..weights.modules import assign_weights, give_buffers_values
from ..weights.names import WRAPPER_PREFIX
from ..weights.openai_names import LONG_POSITIONS, translate
from ..weights.search import Contents
from .content import Content, Request, refuse_adapter_weights
from .processors import CLIP_MEAN, CLIP_STD, DEVIATIONS, NUMBERS, scaled, three
from .text_cache import CachedFeatures, unless_cached

SUPPORTED = Message("OpenAI 的 ViT 和 ResNet（RN50 等）、open_clip 中同样结构的模型、Chinese-CLIP 的原始检查点")

BERT_WORDS = "bert.embeddings.word_embeddings.weight"  # Chinese-CLIP
CUSTOM_TEXT = (
    r"^text\.(?=transformer\.|token_embedding\.|ln_final\.|(?:positional_embedding|text_projection|attn_mask)$)"
)
NO_WEIGHTS = re.compile(r"^(?:input_resolution|context_length|vocab_size|attn_mask|.*position_ids|bert\.pooler\..*)$")


def bare_weights(contents: Contents) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint without the prefixes of wrappers."""
    check_usable(contents)
    for message in contents.choices:
        warnings.warn(InputWarning(message), stacklevel=4)
    return {WRAPPER_PREFIX.sub("", key): tensor for key, tensor in contents.weights.items()}


def openai_weights(contents: Contents) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, without the prefixes of wrappers and without constants."""
    named = {re.sub(CUSTOM_TEXT, "", key): tensor for key, tensor in bare_weights(contents).items()}
    return {key: tensor for key, tensor in named.items() if not NO_WEIGHTS.match(key)}


def recognises(content: Content) -> bool:
    """Whether a checkpoint has an image tower under OpenAI's name, be it one that we can build or not."""
    weights = () if content.is_folder else content.contents.weights
    return any(WRAPPER_PREFIX.sub("", key).startswith("visual.") for key in weights)


class Settings(NamedTuple):
    """What the shapes of the weights do not show."""

    activation: str  # quick_gelu or gelu
    head_width: int | None = None  # of the image tower's attention; None: by its width
    text_heads: int | None = None  # None: 64 wide
    preprocessing: Mapping = {}  # of open_clip_config.json
    bias: bool = False  # whether there is a bias to be learned: probabilities are sigmoids
    cautions: tuple[Message, ...] = ()  # what of this is assumed


VISION_FIELDS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
TEXT_FIELDS = {"context_length", "vocab_size", "width", "heads", "layers", "output_tokens"}

# width of an image tower -> width of its heads, where it is not 64: open_clip's ViT-H, g, bigG and e
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}


def read_settings(path: Path, checkpoint: Mapping, weights: Mapping) -> Settings:
    """What the checkpoint read from `path` and the open_clip_config.json beside it say.

    Activation: quick_gelu in a TorchScript archive, Chinese-CLIP and Long-CLIP; as that file says, or the run's name
    that open_clip writes into its checkpoints; else quick_gelu with a caution, for most files without are OpenAI's.
    """
    file, run = path.parent / OPEN_CLIP_CONFIG, checkpoint.get("name")
    if checkpoint.get(TORCHSCRIPT) or BERT_WORDS in weights or LONG_POSITIONS in weights:
        return Settings("quick_gelu")
    if file.is_file():
        return _open_clip_settings(file)
    if named := re.search(r"model_(.+?)-lr_", run) if isinstance(run, str) else None:
        return Settings("quick_gelu" if "quickgelu" in named[1].lower() else "gelu")
    message = Message(
        "{} 没有说明激活函数，按 OpenAI 的 QuickGELU 处理；若是 open_clip 用 GELU 训练的模型（多数 LAION、"
        "DataComp 权重），请把它的 open_clip_config.json 放在同一文件夹，否则结果不准",
        path.name,
    )
    return Settings("quick_gelu", cautions=(message,))


OPEN_CLIP_FIELDS = {
    "vision_cfg": {"head_width": WIDTH},
    "text_cfg": {"heads": WIDTH},
    "model_cfg": {"quick_gelu": SWITCH, "init_logit_bias": real(-1e6, 1e6)},
    "preprocess_cfg": {"mean": NUMBERS, "std": DEVIATIONS, "resize_mode": WORD, "interpolation": WORD},
}


def open_clip_parts(file: Path) -> dict[str, Mapping]:
    """What an open_clip_config.json says of each part, by the names of OPEN_CLIP_FIELDS; InputError for no object."""
    content = read_json(file)
    model = content.get("model_cfg", content)
    check_fields(model, {}, file, "model_cfg.")
    parts = {"model_cfg": model, "preprocess_cfg": content.get("preprocess_cfg") or {}}
    parts |= {name: model.get(name) or {} for name in ("vision_cfg", "text_cfg")}
    for name, part in parts.items():
        check_fields(part, {}, file, f"{name}.")
    return parts


def _open_clip_settings(file: Path) -> Settings:
    parts = open_clip_parts(file)
    read = {name: check_fields(parts[name], fields, file, f"{name}.") for name, fields in OPEN_CLIP_FIELDS.items()}
    strange = [key for key, value in parts["vision_cfg"].items() if value and key not in VISION_FIELDS]
    strange += [key for key, value in parts["text_cfg"].items() if value and key not in TEXT_FIELDS]
    if strange:
        raise InputError("{} 中的 {} 不受支持；支持：{}", file, Joined("、", strange[:3]), SUPPORTED)
    activation = "quick_gelu" if read["model_cfg"].get("quick_gelu") else "gelu"
    heads = read["vision_cfg"].get("head_width"), read["text_cfg"].get("heads")
    return Settings(activation, *heads, read["preprocess_cfg"], "init_logit_bias" in read["model_cfg"])


def count_numbers(weights: Mapping, pattern: str) -> int:
    """How many different numbers the one group of a pattern takes among the keys."""
    return len({match[1] for match in map(re.compile(pattern).match, weights) if match})


def _grid(positions: torch.Tensor) -> int:
    """Side of the square grid that a table of a class token's and the cells' position codes is for."""
    return round((len(positions) - 1) ** 0.5)


def vision_config(weights: Mapping, settings: Settings) -> dict:
    """CLIPVisionConfig of OpenAI's vision transformer."""
    width, channels, patch, _ = weights["visual.conv1.weight"].shape
    head_width = settings.head_width or HEAD_WIDTHS.get(width, 64)
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * _grid(weights["visual.positional_embedding"]),
        "num_hidden_layers": count_numbers(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
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
        "num_hidden_layers": count_numbers(weights, r"(?:bert\.encoder\.layer|transformer\.resblocks)\.(\d+)\."),
        "intermediate_size": len(weights[inner]),
        "num_attention_heads": settings.text_heads or max(1, width // 64),
    }
    if bert:
        return {**sizes, "type_vocab_size": len(weights["bert.embeddings.token_type_embeddings.weight"])}
    # the end of a text has the highest token of all, as OpenAI's code takes for granted
    return {**sizes, "hidden_act": settings.activation, "bos_token_id": size - 2, "eos_token_id": size - 1}


def build_network(weights: Mapping, settings: Settings, text_tower: bool = True) -> nn.Module:
    """The model of transformers with these weights; without vision model where that is a ResNet.

    `text_tower`: whether it has a text model.

    CheckpointError names weights that are missing or have no place.
    """
    is_vit, family = "visual.class_embedding" in weights, "ChineseCLIP" if BERT_WORDS in weights else "CLIP"
    placeholder = {"hidden_size": 2, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 1}
    config = getattr(transformers, f"{family}Config")(
        vision_config=vision_config(weights, settings) if is_vit else placeholder,
        text_config=text_config(weights, settings) if text_tower else placeholder,
        projection_dim=weights["text_projection"].shape[1],
    )
    loader = getattr(transformers, f"{family}Model")
    with torch.device("meta"):
        network = loader(config)
        if "logit_bias" in weights:  # of open_clip's SigLIP loss: transformers' CLIP has none
            network.logit_bias = nn.Parameter(torch.empty(()))
    if not is_vit:
        del network.vision_model, network.visual_projection
    kept = {key: tensor for key, tensor in weights.items() if is_vit or not key.startswith("visual.")}
    kept = translate(kept)
    if not text_tower:
        drop_text_tower(network)
        kept = {name: tensor for name, tensor in kept.items() if not is_of_text_tower(name)}
    assign_weights(network, kept)
    give_buffers_values(network)
    return network


NEEDED = ("text_projection", "logit_scale")
EITHER = (
    ("visual.class_embedding", "visual.attnpool.positional_embedding"),
    ("token_embedding.weight", BERT_WORDS),
)


def load(content: Content, request: Request, cached: CachedFeatures | None = None) -> PretrainedCLIP:
    """The CLIP of a checkpoint under OpenAI's names, in eval mode, on the CPU, in float32.

    A text encoder that is a folder says where CLIP's vocabulary is; it is looked for there first. InputError or
    CheckpointError where the checkpoint is none of `SUPPORTED`. Without its text tower where that is not wanted, or
    where `cached` has the features.
    """
    request.warn_of_unused()
    path, weights = content.path, openai_weights(content.contents)
    refuse_adapter_weights(weights, path)
    missing = [name for name in NEEDED if name not in weights]
    missing += [Joined(" 或 ", names) for names in EITHER if not any(name in weights for name in names)]
    if missing:
        raise CheckpointError("{} 中没有 {}，其结构不受支持；支持：{}", path, Joined("、", missing), SUPPORTED)
    settings = read_settings(path, content.checkpoint, weights)
    if settings.bias and "logit_bias" not in weights:
        raise CheckpointError("{} 中没有 logit_bias，旁边的 open_clip_config.json 却说有：二者不是一套文件", path)
    find_tokenizer = tokenizer_finder(path, request, BERT_WORDS in weights) if request.text_tower else None
    find_tokenizer = unless_cached(cached, find_tokenizer, settings.activation, settings.text_heads)
    with as_input_error(Message("{} 的权重不能组成模型", path)):
        try:
            model = _build(weights, settings, read_preprocessing(weights, settings, request.img_size), find_tokenizer)
        except KeyError as error:  # a weight whose shape says how the model is built
            raise CheckpointError("{} 中没有 {}，其结构不受支持；支持：{}", path, error.args[0], SUPPORTED) from error
        except CheckpointError as error:
            raise CheckpointError("{} 无法使用：{}；支持：{}", path, error, SUPPORTED) from error
    if model.text_encoder is not None and BERT_WORDS not in weights:
        model.text_encoder.clean = CLEANERS["lower"]  # as OpenAI's simple_tokenizer.py
    forget(weights)
    model.cautions = list(settings.cautions)
    return model


def _build(weights: Mapping, settings: Settings, preprocessing: Preprocessing, find_tokenizer: Callable | None):
    """The PretrainedCLIP of these weights."""
    network, is_bert = build_network(weights, settings, find_tokenizer is not None), BERT_WORDS in weights
    if "visual.class_embedding" in weights:
        return build_towers(network, preprocessing, find_tokenizer, first_token=is_bert)
    visual = {key.removeprefix("visual."): tensor for key, tensor in weights.items() if key.startswith("visual.")}
    tower = ImageTower(build_clip_resnet(visual, settings.head_width or 64))
    text = build_text_tower(network, find_tokenizer, first_token=is_bert)
    bias = getattr(network, "logit_bias", None)
    return PretrainedCLIP(CNN, tower, text, network.logit_scale, bias, preprocessing).eval()


INTERPOLATIONS = {"bicubic": 3, "bilinear": 2, "random": 3}  # open_clip's "random" is bicubic where nothing is trained


def read_preprocessing(weights: Mapping, settings: Settings, img_size: int | None) -> Preprocessing:
    """As OpenAI's, open_clip's or Chinese-CLIP's own code prepares images for a model with these weights."""
    if "visual.class_embedding" in weights:
        side = vision_config(weights, settings)["image_size"]
    else:
        side = 32 * _grid(weights["visual.attnpool.positional_embedding"])
    return open_clip_preprocessing(settings.preprocessing, side, img_size, squeezed=BERT_WORDS in weights)


def open_clip_preprocessing(own: Mapping, side: int, img_size: int | None, squeezed: bool = False) -> Preprocessing:
    """open_clip's way to prepare images: its `preprocess_cfg` and the side of its input, scaled to `img_size`."""
    mean, std = (three(own.get(key, usual), key) for key, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    mode = own.get("resize_mode") or "shortest"
    if mode not in ("shortest", "squash"):
        raise InputError("open_clip_config.json 的 resize_mode 是 {!r}；本工具只支持 shortest 和 squash", mode)
    squeezed = squeezed or mode == "squash"
    interpolation = own.get("interpolation", "bicubic")
    if interpolation not in INTERPOLATIONS:
        raise InputError(
            "open_clip_config.json 的 interpolation 是 {!r}；支持：{}", interpolation, Joined("、", INTERPOLATIONS)
        )
    resample = INTERPOLATIONS[interpolation]
    resize, crop = ((side, side), None) if squeezed else (side, (side, side))
    preprocessing = Preprocessing(resize, crop, mean, std, resample)
    return scaled(preprocessing, img_size) if img_size else preprocessing


def tokenizer_finder(path: Path, request: Request, is_bert: bool) -> TokenizerFiles:
    """The tokenizer of a file's text tower; InputError at once where there is none."""
    folder = request.text_folder
    if not is_bert:
        return find_clip_tokenizer(folder, path.parent, download=request.download)
    return tokenizer_of(Path(folder) if folder else SHIPPED_TEXT_ENCODERS["bert-base-chinese"])
