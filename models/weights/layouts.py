"""Key translation: the names that other libraries give to the weights of one network -> ours.

Checkpoints come wrapped or bare, with prefixes, and with the backbone under the names of the library
that built it (torchvision, timm, transformers 4 or 5, the published StarNet). `translate_checkpoint`
brings all of them to the names of `models.clip.CLIPModel`, recognises the image encoder from the
weights, and says which constants that no key shows belong to the library they came from.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..errors import CheckpointError, InputWarning
from ..heavy import torch
from ..messages import Joined, Message
from .modules import first_names
from .names import BACKBONE, CLIP_TEXT, CLIP_WORDS, TEXT_BACKBONE, TEXT_TOWER, Rules, rename
from .plain import fields_of
from .scales import one_number, temperature_of
from .search import BUFFER, Contents, same_weight, search_checkpoint


class Layout(NamedTuple):
    """One library's names for one family: how to tell, how to rename, what to ignore, what differs."""

    family: str
    marker: str  # a key that matches proves the layout
    leftovers: str  # keys that belong to a head or pooler and are not needed
    renames: Rules = ()
    batch_norm_eps: float | None = None  # None: as the builder in models.towers.image has it


RESNET_CHILDREN = ("conv1", "bn1", None, None, "layer1", "layer2", "layer3", "layer4", None, "fc")
RESNET_SEQUENTIAL: Rules = tuple((rf"^{i}\.", f"{name}.") for i, name in enumerate(RESNET_CHILDREN) if name)
CONVNEXT_TIMM: Rules = (
    (r"^stem\.", "features.0."),
    *((rf"^stages\.{i}\.downsample\.", f"features.{2 * i}.") for i in range(1, 4)),
    *((rf"^stages\.{i}\.blocks\.", f"features.{2 * i + 1}.") for i in range(4)),
    (r"\.gamma$", ".layer_scale"),
    (r"\.conv_dw\.", ".block.0."),
    (r"^(features\.[1357]\.\d+)\.norm\.", r"\1.block.2."),
    (r"\.mlp\.fc1\.", ".block.3."),
    (r"\.mlp\.fc2\.", ".block.5."),
    (r"^head\.norm\.", "classifier.0."),
)


def _mbconv_renames(stage: str, parts: tuple[str, ...]) -> Rules:
    """timm's names in one kind of EfficientNet block -> torchvision's `block.<position>.<member>`."""
    rules = []
    for position, part in enumerate(parts):
        if part == "se":
            rules.append((rf"{stage}se\.conv_reduce\.", rf"\1block.{position}.fc1."))
            rules.append((rf"{stage}se\.conv_expand\.", rf"\1block.{position}.fc2."))
        else:
            norm = f"bn{len([p for p in parts[:position] if p != 'se']) + 1}"
            rules.append((rf"{stage}{part}\.", rf"\1block.{position}.0."))
            rules.append((rf"{stage}{norm}\.", rf"\1block.{position}.1."))
    return tuple(rules)


EFFICIENTNET_TIMM: Rules = (
    *_mbconv_renames(r"^(blocks\.0\.\d+\.)", ("conv_dw", "se", "conv_pw")),
    *_mbconv_renames(r"^(blocks\.[1-6]\.\d+\.)", ("conv_pw", "conv_dw", "se", "conv_pwl")),
    *((rf"^blocks\.{i}\.", f"features.{i + 1}.") for i in range(7)),
    (r"^conv_stem\.", "features.0.0."),
    (r"^bn1\.", "features.0.1."),
    (r"^conv_head\.", "features.8.0."),
    (r"^bn2\.", "features.8.1."),
)
VIT_TRANSFORMERS_4: Rules = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attention.\1_proj."),
    (r"\.query_proj\.", ".q_proj."),
    (r"\.key_proj\.", ".k_proj."),
    (r"\.value_proj\.", ".v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)

# The way back on whole keys, for a ViTModel that an older transformers has built; no BERT key matches.
VIT_INTO_TRANSFORMERS_4: Rules = (
    (r"^(image_encoder\.backbone)\.layers\.", r"\1.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)

# timm builds every EfficientNet with this epsilon; torchvision gives b5 to b7 another one.
TIMM_BATCH_NORM_EPS = 1e-5
LAYOUTS = (
    Layout("resnet", r"^4\.0\.conv1\.", r"^fc\.", RESNET_SEQUENTIAL),
    Layout("resnet", r"^layer1\.0\.conv1\.", r"^fc\."),
    Layout("starnet", r"^stages\.0\.\d+\.dwconv\.", r"^head\."),
    Layout("starnet_dual_pyramid_rcf", r"^local\.blocks_list\.", r"^fc\."),
    Layout("convnext", r"^stages\.0\.blocks\.0\.conv_dw\.", r"^head\.fc\.", CONVNEXT_TIMM),
    Layout("convnext", r"^features\.1\.0\.block\.5\.", r"^classifier\.2\."),
    Layout("efficientnet", r"^blocks\.0\.0\.conv_dw\.", r"^classifier\.", EFFICIENTNET_TIMM, TIMM_BATCH_NORM_EPS),
    Layout("efficientnet", r"^features\.1\.0\.block\.1\.fc1\.", r"^classifier\."),
    Layout("vit", r"^encoder\.layer\.0\.attention\.attention\.", r"^pooler\.|^classifier\.", VIT_TRANSFORMERS_4),
    Layout("vit", r"^layers\.0\.attention\.q_proj\.", r"^pooler\.|^classifier\."),
)

# In our names: where a family numbers its (stage, block) pairs.
BLOCK_PATTERNS = {
    "resnet": r"^layer(\d)\.(\d+)\.",
    "starnet": r"^stages\.(\d)\.([1-9]\d*)\.",
    "starnet_dual_pyramid_rcf": r"^local\.blocks_list\.(\d)\.(\d+)\.",
    "convnext": r"^features\.([1357])\.(\d+)\.",
    "efficientnet": r"^features\.([1-7])\.(\d+)\.",
    "vit": r"^(layers)\.(\d+)\.",
}

# (family, blocks per stage, width of the pooled features) -> encoder
ENCODER_SIGNATURES = {
    ("resnet", (2, 2, 2, 2), 512): "resnet18",
    ("resnet", (3, 4, 6, 3), 512): "resnet34",
    ("resnet", (3, 4, 6, 3), 2048): "resnet50",
    ("resnet", (3, 4, 23, 3), 2048): "resnet101",
    ("resnet", (3, 8, 36, 3), 2048): "resnet152",
    ("starnet", (2, 2, 8, 3), 192): "starnet_s1",
    ("starnet", (1, 2, 6, 2), 256): "starnet_s2",
    ("starnet", (2, 2, 8, 4), 256): "starnet_s3",
    ("starnet", (3, 3, 12, 5), 256): "starnet_s4",
    ("starnet_dual_pyramid_rcf", (2, 2, 8, 3), 192): "starnet_dual_pyramid_rcf",
    ("convnext", (3, 3, 9, 3), 768): "convnext-tiny",
    ("convnext", (3, 3, 27, 3), 768): "convnext-small",
    ("convnext", (3, 3, 27, 3), 1024): "convnext-base",
    ("convnext", (3, 3, 27, 3), 1536): "convnext-large",
    ("efficientnet", (1, 2, 2, 3, 3, 4, 1), 1280): "efficientnet-b0",
    ("efficientnet", (2, 3, 3, 4, 4, 5, 2), 1280): "efficientnet-b1",
    ("efficientnet", (2, 3, 3, 4, 4, 5, 2), 1408): "efficientnet-b2",
    ("efficientnet", (2, 3, 3, 5, 5, 6, 2), 1536): "efficientnet-b3",
    ("efficientnet", (2, 4, 4, 6, 6, 8, 2), 1792): "efficientnet-b4",
    ("efficientnet", (3, 5, 5, 7, 7, 9, 3), 2048): "efficientnet-b5",
    ("efficientnet", (3, 6, 6, 8, 8, 11, 3), 2304): "efficientnet-b6",
    ("efficientnet", (4, 7, 7, 10, 10, 13, 4), 2560): "efficientnet-b7",
    ("vit", (12,), 768): "vit",
}

# -- from a checkpoint to our names ------------------------------------------------------------

SIZE_WEIGHTS = (
    ("max_position_embeddings", "embeddings.position_embeddings.weight"),
    ("max_position_embeddings", "embeddings.position_embedding.weight"),
    ("type_vocab_size", "embeddings.token_type_embeddings.weight"),
    ("intermediate_size", "encoder.layer.0.intermediate.dense.weight"),
    ("intermediate_size", "encoder.layers.0.mlp.fc1.weight"),
)
# What trainings leave in a tower that no embedding goes through.
HEAD = re.compile(r"\.(?:\w*head\w*|\w*classifier|fc|aux\w*|cls|pooler|queue\w*|momentum\w*)(?:\.|$)")
SCALES = ("temperature", "logit_scale", "logit_bias")
TEXT_LEFTOVER = re.compile(r"^(?:pooler|cls)\.|(?:^|\.)position_ids$|(?:^|\.)token_type_ids$")


class Translated(NamedTuple):
    """A checkpoint in our names. `state_dict` holds the tensors themselves, no copies."""

    state_dict: dict[str, torch.Tensor]
    metadata: dict  # of models.weights.metadata.FIELDS, where the checkpoint says something
    image_encoder_name: str | None  # recognised from the weights
    batch_norm_eps: float | None
    ignored: list[str]  # outside the two towers: a training loss's parameters, say


def split_checkpoint(checkpoint: Mapping) -> tuple[dict[str, torch.Tensor], dict]:
    """(state dict, metadata) of a checkpoint, wrapped in any way or bare: see `models.weights.search`."""
    contents = search_checkpoint(checkpoint)
    check_usable(contents)
    return contents.weights, contents.metadata


def _without_inner_wrappers(weights: Mapping) -> dict[str, torch.Tensor]:
    """Drop what some put between a backbone's name and its weights, and fold keys that name one weight twice."""
    inner = {}
    for key, tensor in weights.items():
        name = key
        for backbone, wrapper in ((BACKBONE, "model."), (TEXT_BACKBONE, "bert.")):
            if name.startswith(backbone + wrapper):
                name = backbone + name[len(backbone + wrapper) :]
        if name in inner and not same_weight(inner[name], tensor):
            raise CheckpointError("检查点中同一个权重 {} 有两份不同的值（{} 与另一个键），无法判断用哪一份", name, key)
        inner[name] = tensor
    return inner


def check_usable(contents: Contents) -> None:
    """CheckpointError for weights that are no dense tensors of real numbers."""
    for name, kind in contents.unusable.items():
        raise CheckpointError(
            "检查点中的权重 {} 是{}，不是普通的数值张量；请在训练环境中还原后重新保存："
            "torch.save({{key: t.dequantize() if t.is_quantized else t.to_dense().real for key, t in "
            'model.state_dict().items()}}, "weights.pth")',
            name,
            kind,
        )


def _check_adapters(adapter: str | None) -> None:
    """CheckpointError for adapters that nobody has merged: with them and without them it is another model."""
    if adapter:
        raise CheckpointError(
            "检查点中有没有合并的适配器（{}）；请在训练环境中先合并再保存："
            'torch.save(model.merge_and_unload().state_dict(), "weights.pth")',
            adapter,
        )


def _find_layout(backbone_keys) -> Layout | None:
    for layout in LAYOUTS:
        if any(re.search(layout.marker, key) for key in backbone_keys):
            return layout
    return None


def _recognise(family: str, backbone_keys, num_features: int) -> str | None:
    """Image encoder by its blocks per stage and the width that its projection reads; None if no known one."""
    blocks: dict[str, set] = {}
    for key in backbone_keys:
        match = re.match(BLOCK_PATTERNS[family], key)
        if match:
            blocks.setdefault(match[1], set()).add(match[2])
    depths = tuple(len(blocks[stage]) for stage in sorted(blocks))
    return ENCODER_SIGNATURES.get((family, depths, num_features))


def translate_checkpoint(checkpoint: Mapping, contents: Contents | None = None) -> Translated:
    """Bring a checkpoint of any known form (see the module docstring) to the names of `CLIPModel`.

    `contents`: what a search of it brought, where it has been searched. Raises CheckpointError where there is no weight
    of a CLIP model in it, or one weight twice.
    """
    contents = contents or search_checkpoint(checkpoint)
    check_usable(contents)
    _check_adapters(contents.adapter)
    for message in (*contents.choices, *contents.contradictions):
        warnings.warn(InputWarning(message), stacklevel=3)
    metadata, weights = contents.metadata, _without_inner_wrappers(contents.weights)
    if any(TEXT_BACKBONE + key in weights for key in CLIP_WORDS):
        from .openai_names import translate_text_tower

        weights = translate_text_tower(weights)
    backbone = {k[len(BACKBONE) :]: v for k, v in weights.items() if k.startswith(BACKBONE)}
    if not backbone:
        raise CheckpointError(
            "检查点里没有 {}* 权重，不是本工具支持的 CLIP 检查点；读到的键例如：{}",
            BACKBONE,
            Joined("、", map(str, list(weights or fields_of(checkpoint))[:3])) or Message("（空）"),
        )
    layout = _find_layout(backbone)
    encoder = None
    if layout:
        backbone = {rename(k, layout.renames): v for k, v in backbone.items() if not re.search(layout.leftovers, k)}
        projection = weights.get("image_encoder.projection.weight")
        num_features = projection.shape[1] if projection is not None and projection.ndim == 2 else None
        encoder = _recognise(layout.family, backbone, num_features)
    state_dict = {BACKBONE + k: v for k, v in backbone.items()}
    ignored = []
    for key, tensor in weights.items():
        if key.startswith(TEXT_BACKBONE):
            if not TEXT_LEFTOVER.search(key[len(TEXT_BACKBONE) :]):
                state_dict[key] = tensor
        elif key == "temperature" or key.startswith(("image_encoder.projection.", "text_encoder.projection.")):
            state_dict[key] = tensor
        elif not key.startswith(BACKBONE) and not BUFFER.search(key) and key not in SCALES:
            ignored.append(key)
    temperature, bias = _scales(metadata, weights)
    metadata, state_dict = {**metadata, **temperature}, {**state_dict, **bias}
    strangers = [key for key in ignored if key.startswith(("image_encoder.", TEXT_TOWER)) and not HEAD.search(key)]
    if strangers:
        raise CheckpointError(
            "检查点的塔中有 {} 个权重不属于已知的结构：{}；忽略它们会得到另一个模型，请去掉这些结构后重新训练，"
            "或在训练环境中求热力图",
            len(strangers),
            first_names(strangers),
        )
    return Translated(state_dict, metadata, encoder, layout.batch_norm_eps if layout else None, ignored)


def _scales(metadata: Mapping, weights: Mapping) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """({"temperature": number}, {"logit_bias": tensor}), each where there is one; a weight counts over the metadata."""
    scales = {name: source[name] for source in (metadata, weights) for name in SCALES if name in source}
    temperature = temperature_of(scales)
    bias = {}
    if "logit_bias" in scales:
        bias["logit_bias"] = torch.tensor(one_number(scales["logit_bias"], "logit_bias"))
    return {} if temperature is None else {"temperature": temperature}, bias


def read_channels(state_dict: Mapping[str, torch.Tensor], paths: Iterable[str]) -> int:
    """1 where the convolutions at these paths in the backbone, which read the image, all read one channel; else 3."""
    first = [state_dict.get(f"{BACKBONE}{path}.weight") for path in paths]
    is_grey = [weight is not None and weight.ndim == 4 and weight.shape[1] == 1 for weight in first]
    return 1 if is_grey and all(is_grey) else 3


def read_text_config(state_dict: Mapping[str, torch.Tensor]) -> dict:
    """Sizes of the text model whose weights stand under `text_encoder.backbone.`, in the names of its config.

    BertConfig; CLIPTextConfig, `model_type` included, where it is CLIP's own. The number of attention heads is in
    no shape: it is not part of the result. Empty without a text tower.
    """
    is_clip = TEXT_BACKBONE + CLIP_WORDS[0] in state_dict
    words = state_dict.get(TEXT_BACKBONE + (CLIP_WORDS[0] if is_clip else "embeddings.word_embeddings.weight"))
    if words is None or words.ndim != 2:
        return {}
    layer = re.compile(re.escape(TEXT_BACKBONE) + r"encoder\.layers?\.(\d+)\.")
    layers = {match[1] for match in map(layer.match, state_dict) if match}
    sizes = {"vocab_size": words.shape[0], "hidden_size": words.shape[1], "num_hidden_layers": len(layers)}
    for name, key in SIZE_WEIGHTS:
        table = state_dict.get(TEXT_BACKBONE + key)
        if table is not None and table.ndim == 2:
            sizes[name] = len(table)
    return {**sizes, "model_type": CLIP_TEXT} if is_clip else sizes
