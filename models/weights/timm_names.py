"""timm's names of a vision transformer's weights, as open_clip saves them -> those of transformers' ViTs.

A transformer with attention pooling is SigLIP's, one with a norm before its blocks is CLIP's, any other with a class
token is ViT. What has no counterpart there (layer scale, norms of queries and keys, registers) keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..heavy import torch

TRUNK = "visual.trunk."
BLOCK = re.compile(r"^blocks\.(\d+)\.(.+)$")


class Names(NamedTuple):
    """How transformers names the parts of one of its vision transformers."""

    blocks: str
    in_a_block: Mapping[str, str]  # beginnings of names in a block; `attn.qkv.`: with a place for q, k or v
    outside: Mapping[str, str]  # beginnings of names outside of the blocks


_CLIP_BLOCK = {
    **{"norm1.": "layer_norm1.", "norm2.": "layer_norm2.", "attn.qkv.": "self_attn.{}_proj."},
    **{"attn.proj.": "self_attn.out_proj.", "mlp.": "mlp."},
}
_VIT_BLOCK = {
    **{"norm1.": "layernorm_before.", "norm2.": "layernorm_after.", "attn.qkv.": "attention.{}_proj."},
    **{"attn.proj.": "attention.o_proj.", "mlp.": "mlp."},
}
_CLIP_OUTSIDE = {
    "pos_embed": "embeddings.position_embedding.weight",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "norm.": "post_layernorm.",
}
NAMES = {
    "ViT": Names(
        "layers.",
        _VIT_BLOCK,
        {
            "cls_token": "embeddings.cls_token",
            "pos_embed": "embeddings.position_embeddings",
            "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
            "norm.": "layernorm.",
        },
    ),
    "CLIPVision": Names(
        "encoder.layers.",
        _CLIP_BLOCK,
        {"cls_token": "embeddings.class_embedding", "norm_pre.": "pre_layrnorm.", **_CLIP_OUTSIDE},
    ),
    "SiglipVision": Names(
        "encoder.layers.",
        _CLIP_BLOCK,
        {
            "attn_pool.latent": "head.probe",
            "attn_pool.proj.": "head.attention.out_proj.",
            "attn_pool.norm.": "head.layernorm.",
            "attn_pool.mlp.": "head.mlp.",
            **_CLIP_OUTSIDE,
        },
    ),
}
NO_BATCH = ("embeddings.class_embedding", "embeddings.position_embedding.weight")  # timm's have a first axis of one


def network_of(weights: Mapping) -> str | None:
    """The network of NAMES that timm's weights, under open_clip's names, belong to; None where to none."""
    marks = (("attn_pool.latent", "SiglipVision"), ("norm_pre.weight", "CLIPVision"), ("cls_token", "ViT"))
    return next((network for mark, network in marks if TRUNK + mark in weights), None)


def translate(weights: Mapping[str, torch.Tensor], network: str) -> dict[str, torch.Tensor]:
    """The weights below `visual.trunk.` under the names of transformers' `network`; unknown names stay as they are.

    Queries, keys and values of a block are views of timm's one tensor.
    """
    translated = {}
    for key, tensor in weights.items():
        name = key.removeprefix(TRUNK)
        block = BLOCK.match(name)
        if name.startswith(("attn_pool.q.", "attn_pool.kv.")):
            continue  # joined below
        own = _rename(block[2], NAMES[network].in_a_block) if block else _rename(name, NAMES[network].outside)
        own = f"{NAMES[network].blocks}{block[1]}.{own}" if block and own else own
        if own is None:
            translated[key] = tensor
        elif "{}" in own:
            translated.update({own.format(kind): third for kind, third in zip("qkv", tensor.chunk(3))})
        else:
            translated[own] = tensor[0] if own in NO_BATCH and len(tensor) == 1 else tensor
    for part in ("weight", "bias"):
        query, rest = (weights.get(f"{TRUNK}attn_pool.{name}.{part}") for name in ("q", "kv"))
        if query is not None and rest is not None:
            translated[f"head.attention.in_proj_{part}"] = torch.cat([query, rest])
    return translated


def _rename(name: str, beginnings: Mapping[str, str]) -> str | None:
    """A name with its beginning replaced; None where no beginning fits."""
    for theirs, ours in beginnings.items():
        if name.startswith(theirs) and (theirs.endswith(".") or name == theirs):
            return ours + name.removeprefix(theirs)
    return None
