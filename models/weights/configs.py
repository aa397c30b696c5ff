"""A stranger's config.json as plain sizes of a network that transformers knows: nothing else in it is used.

Names of classes, of code, of attention kernels, of other files and models are passed over: a network is what its
sizes and its weights say. A field that is used and holds something else than a size is an InputError.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..messages import Joined, Message


class Kind(NamedTuple):
    """What a field may hold: in words, and the test."""

    words: Message
    holds: Callable


def whole(least: int, most: int) -> Kind:
    """A whole number of this range."""
    return Kind(Message("{} 到 {} 的整数", least, most), lambda value: type(value) is int and least <= value <= most)


def real(least: float, most: float) -> Kind:
    """A number of this range, both ends included; never NaN."""

    def holds(value) -> bool:
        return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value) and least <= value <= most

    return Kind(Message("{:g} 到 {:g} 的数", least, most), holds)


SWITCH = Kind(Message("true 或 false"), lambda value: type(value) is bool)
WORD = Kind(Message("一个名称"), lambda value: isinstance(value, str) and re.fullmatch(r"[\w.-]{1,64}", value))


def check_fields(settings: Mapping, kinds: Mapping[str, Kind], file: Path, where: str = "") -> dict:
    """The fields of `kinds` that the settings have, without those that are null; InputError for one of another kind."""
    if not isinstance(settings, Mapping):
        raise InputError(
            "{} 的 {} 应是一个对象，读到的是 {}",
            file,
            where.rstrip(".") or Message("内容"),
            reprlib.repr(settings)[:60],
        )
    fields = {name: settings[name] for name in kinds if settings.get(name) is not None}
    for name, value in fields.items():
        if not kinds[name].holds(value):
            raise InputError("{} 的 {}{} 是 {}，应是{}", file, where, name, reprlib.repr(value)[:60], kinds[name].words)
    return fields


def one_or_several(kind: Kind) -> Kind:
    """What holds by itself, or a list of it."""

    def holds(value) -> bool:
        return all(map(kind.holds, value)) if isinstance(value, list) else kind.holds(value)

    return Kind(Message("{}或它们的列表", kind.words), holds)


def several(kind: Kind, most: int) -> Kind:
    """A list of one to `most` of it."""

    def holds(value) -> bool:
        return isinstance(value, list) and 1 <= len(value) <= most and all(map(kind.holds, value))

    return Kind(Message("1 到 {} 个{}的列表", most, kind.words), holds)


MOST_STAGES = 8  # each doubles the width


def one_of(*words: str) -> Kind:
    """One of these words."""
    return Kind(Message("{} 之一", Joined("、", map(repr, words))), lambda value: value in words)


WIDTH, TOKEN = whole(1, 65_536), one_or_several(whole(-1, 100_000_000))
PART = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "type_vocab_size"), WIDTH),
    **dict.fromkeys(("projection_dim", "project_dim", "projection_size", "max_position_embeddings"), WIDTH),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "num_patches"), WIDTH),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), TOKEN),
    "vocab_size": whole(1, 16_777_216),
    "num_hidden_layers": whole(1, 1000),
    "layer_norm_eps": real(0, 1),
    **dict.fromkeys(("hidden_act", "position_embedding_type", "model_type", "pooler_act"), WORD),
    **dict.fromkeys(("vision_use_head", "qkv_bias", "use_mask_token", "use_swiglu_ffn"), SWITCH),
    "use_absolute_embeddings": SWITCH,
    "mlp_ratio": real(0.01, 64),
    "num_register_tokens": whole(0, 65_536),
    **dict.fromkeys(("embed_dim", "pooler_output_size"), WIDTH),
    **{"depths": several(whole(1, 1000), MOST_STAGES), "num_heads": several(WIDTH, MOST_STAGES)},
    "window_size": whole(1, 32),  # a block has a table of its fourth power
}
NULLABLE = ("pad_token_id", "bos_token_id", "eos_token_id")  # null says that there is none
PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
WHOLE = {"projection_dim": WIDTH, "model_type": WORD}


def plain_part(settings: Mapping, file: Path, where: str = "") -> dict:
    """The sizes of one tower, or of a BERT by itself, in the names of transformers. InputError as `check_fields`."""
    fields = check_fields(settings, PART, file, where)
    return {**fields, **{name: None for name in NULLABLE if name in settings and settings[name] is None}}


def plain_clip(settings: Mapping, file: Path) -> dict:
    """The sizes of a CLIP of two towers: `text_config`, `vision_config`, `projection_dim`, `model_type`.

    InputError too where the weights are quantised: they are no plain numbers.
    """
    if settings.get("quantization_config") is not None:
        raise InputError("{} 说明权重是量化的（quantization_config），不受支持；请用没有量化的权重", file)
    parts = {name: plain_part(settings[name], file, f"{name}.") for name in PARTS if settings.get(name) is not None}
    return {**check_fields(settings, WHOLE, file), **parts}
