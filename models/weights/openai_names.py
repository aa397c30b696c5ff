"""OpenAI's names of weights -> those of transformers' CLIP, and a text tower of theirs in our checkpoints -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import CheckpointError
from ..heavy import torch
from .names import TEXT_BACKBONE, TEXT_TOWER

BLOCK = re.compile(r"^(?:(visual)\.)?transformer\.resblocks\.(\d+)\.(.+)$")
BLOCK_PARTS = (
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
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
    **{name: name for name in ("logit_scale", "logit_bias")},
}
TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}

# Long-CLIP keeps two tables of 248 position codes: the first 20 rows of one count, of the other those behind them
LONG_POSITIONS, LONG_FROM = "positional_embedding_res", 20
# Chinese-CLIP with flash attention: queries, keys and values in one, the BERT's output layer inside its attention
FLASH_VISUAL, FLASH_BERT = ".attn.Wqkv.", re.compile(r"^(bert\..+\.attention\.)self\.(Wqkv|out_proj)\.(\w+)$")


def translate(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenAI's names -> those of transformers' CLIPModel or ChineseCLIPModel, float32; unknown names stay."""
    translated = {}
    for key, tensor in _of_one_kind(weights).items():
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


def _of_one_kind(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Long-CLIP's and flash attention's weights in OpenAI's (and cn_clip's usual) layout; others as they are.

    As `encode_text` of model/model_longclip.py (beichenzbc/Long-CLIP) adds its two tables, and `convert_state_dict` of
    cn_clip/clip/model.py (OFA-Sys/Chinese-CLIP) renames.
    """
    usual = {}
    for key, tensor in weights.items():
        usual.update(_without_flash(key, tensor))
    if LONG_POSITIONS in usual:
        first, rest = usual["positional_embedding"], usual.pop(LONG_POSITIONS)
        if first.shape != rest.shape:
            shapes = list(first.shape), list(rest.shape)
            raise CheckpointError("positional_embedding 和 {} 的形状不同：{}、{}", LONG_POSITIONS, *shapes)
        usual["positional_embedding"] = torch.cat([first[:LONG_FROM], rest[LONG_FROM:]])
    return usual


def _without_flash(key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One weight under the names that it has without flash attention."""
    flash = FLASH_BERT.match(key)
    if not flash:
        return {key.replace(FLASH_VISUAL, ".attn.in_proj_"): tensor}
    attention, name, part = flash.groups()
    if name == "out_proj":
        return {f"{attention}output.dense.{part}": tensor}
    names = (f"{attention}self.{letter}.{part}" for letter in ("query", "key", "value"))
    return dict(zip(names, tensor.chunk(3)))


NOT_OF_A_TEXT = re.compile(r"^(?:visual|vision_model|visual_projection)\.|^(?:logit_scale|logit_bias|attn_mask)$")


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
