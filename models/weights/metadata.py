"""What a checkpoint says of its model beside the weights: the fields below, under all usual names, wherever they stand.

    metadata, messages = read_metadata(values, root, weights)

Of several values the nearest to the weights counts; what contradicts it, what stands where a word may well mean
something else, and what says something of the image's levels but cannot be used, is worth a line each.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ..heavy import torch
from ..messages import Joined, Message
from .plain import fields_of, plain_value

Keys = tuple[str, ...]  # that lead from the checkpoint to a value
LONGEST_JSON = 1 << 20
MOST_NUMBERS = 8  # of a size, a mean, a temperature


def parse_json(text: str):
    """What a JSON text says, else the text: files that hold texts only write numbers and configs so."""
    try:
        return json.loads(text) if len(text) <= LONGEST_JSON else text
    except (ValueError, RecursionError):
        return text


# -- values -----------------------------------------------------------------------------------

_NUMERIC = re.compile(r"[\s\[\](){},;x×*\d.eE+-]{1,200}")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def _numbers(value) -> list[float]:
    """The finite numbers of a number, a short sequence, a tensor or a text that writes them; else none."""
    value = plain_value(value)
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        count = value.numel() if isinstance(value, torch.Tensor) else value.size
        value = value.reshape(-1).tolist() if count <= MOST_NUMBERS else None
    if isinstance(value, str):
        value = [float(number) for number in _NUMBER.findall(value)] if _NUMERIC.fullmatch(value) else None
    if isinstance(value, (list, tuple)):
        numbers = [number for item in value[: MOST_NUMBERS + 1] for number in _numbers(item) or [math.nan]]
        return numbers if len(numbers) <= MOST_NUMBERS and all(map(math.isfinite, numbers)) else []
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    try:
        return [float(value)] if math.isfinite(value) else []
    except OverflowError:
        return []


def image_side(size) -> int | None:
    """224, "224", "224x224", (224, 224), (3, 224, 224) or {"height": 224, "width": 224} -> 224; None for no square."""
    if isinstance(size, Mapping) and "value" not in size:
        names = ("height", "width", "shortestedge", "h", "w")
        size = [value for key, value in size.items() if _folded(key) in names]
    sides = _numbers(size)
    if len(sides) == 4 and sides[0] == 1:
        sides = sides[1:]
    if len(sides) == 3 and (sides[0] in (1, 3) or sides[2] in (1, 3)):
        sides = sides[1:] if sides[0] in (1, 3) else sides[:2]
    side = sides[0] if sides and len(sides) <= 2 and len(set(sides)) == 1 else 0
    return int(side) if 8 <= side <= 8192 and side == int(side) else None


def _text(value) -> str | None:
    """A name, or that of a mapping which describes what it names."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("name", "model_name") if key in value), None)
    return value if isinstance(value, str) and 0 < len(value) <= 500 else None


def _encoder(value) -> str | None:
    """The name of a text encoder: whatever stands there is taken for one, and is an error where it is none."""
    return str(value) if isinstance(value, (str, int, float)) else _text(value)


def _one_number(value) -> float | None:
    numbers = _numbers(value)
    return numbers[0] if len(numbers) == 1 else None


def _temperature(value) -> float | None:
    """A number, or what is none and written as one (nan): its check refuses that."""
    return value if isinstance(value, float) else _one_number(value)


def _count(value) -> int | None:
    number = _one_number(value) or 0
    return int(number) if 0 < number <= 1 << 16 and number == int(number) else None


TEXT_SIZES = {"vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "type_vocab_size"}
TEXT_SIZES |= {"num_hidden_layers", "num_attention_heads", "pad_token_id", "bos_token_id", "eos_token_id"}
TEXT_SHARES = {"layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"}
TEXT_NAMES = {"hidden_act": "gelu gelu_new gelu_python relu silu quick_gelu", "model_type": "bert clip_text_model"}
TEXT_NAMES |= {"position_embedding_type": "absolute"}
MOST_LAYERS = 256
NOT_IN_WEIGHTS = ("num_attention_heads", "hidden_act", "position_embedding_type")  # what no shape would correct


def _text_config(value) -> dict | None:
    """What a text tower's own config may say: sizes, shares, and names out of a list; nothing else is handed on."""
    fields = fields_of(value)
    if fields is None:
        return None
    numbers = {key: _one_number(fields[key]) for key in (*TEXT_SIZES, *TEXT_SHARES) if key in fields}
    sizes = {
        key: int(number)
        for key, number in numbers.items()
        if key in TEXT_SIZES and number is not None and 0 <= number < 10**7 and number == int(number)
    }
    if sizes.get("num_hidden_layers", 0) > MOST_LAYERS:
        del sizes["num_hidden_layers"]
    shares = {
        key: share for key, share in numbers.items() if key in TEXT_SHARES and share is not None and 0 <= share < 1
    }
    names = {key: "silu" if fields.get(key) == "swish" else fields.get(key) for key in TEXT_NAMES}
    return {**sizes, **shares, **{key: name for key, name in names.items() if name in TEXT_NAMES[key].split()}}


# -- fields -----------------------------------------------------------------------------------


class Field(NamedTuple):
    """What a model says of itself: under which names (letters and digits, in lower case), and what is a value of it."""

    names: tuple[str, ...]
    read: Callable  # a value -> the field's value, None for what is none
    contradicts: bool = True  # whether two values are worth a line


SIZES = ("imgsize", "imagesize", "imgsz", "imageshape", "imageresolution", "inputresolution")
WIDE_SIZES = ("resolution", "inputsize", "inputshape", "cropsize")  # words that other things have, too
FIELDS = {
    "image_encoder": Field(("imageencoder", "imageencodername"), _text, contradicts=False),  # the weights decide
    "text_encoder": Field(("textencoder", "textencodername"), _encoder),
    "embed_dim": Field(("embeddim",), _count, contradicts=False),  # likewise
    "img_size": Field((*SIZES, *WIDE_SIZES), image_side),
    "temperature": Field(("temperature", "tau", "temp"), _temperature),
    "logit_scale": Field(("logitscale",), _temperature),
    "logit_bias": Field(("logitbias",), _temperature),
    "text_config": Field(("textconfig",), _text_config, contradicts=False),
}
# Steps from the weights at which a word may well mean something else: it counts, and is said.
FAR = {
    **dict.fromkeys(("temperature", "logitscale", "logitbias"), 2),
    "tau": 1,
    "temp": 1,
    **dict.fromkeys(WIDE_SIZES, 1),
}
IN_WEIGHTS = {"temperature": ("temperature", "logit_scale"), "logit_bias": ("logit_bias",)}
IN_WEIGHTS["logit_scale"] = IN_WEIGHTS[
    "temperature"
]  # fields that are not looked for where the weights bring one of these
CONFIGS = ("config", "args", "hparams", "hyperparameters", "cfg", "opt", "modelconfig", "modelargs")
_FIELD_OF = {name: field for field, row in FIELDS.items() for name in row.names}


def _folded(key) -> str:
    """A key's letters and digits in lower case: IMG_SIZE, imgSize and img-size are one."""
    return re.sub(r"[^a-z0-9]", "", str(key).lower())


class _Entry(NamedTuple):
    """One value of a field, and where it stands."""

    rank: tuple
    place: str
    value: object


def read_metadata(values: Iterable[tuple[Keys, object]], root: Keys, weights: Collection[str]) -> tuple[dict, list]:
    """({field: value}, what is to be said) of the values of a checkpoint whose weights stand at `root`.

    `weights`: their names; a temperature among them is the one, and no other is looked for.
    """
    values = [((*path[:-1], *re.split(r"[./]", path[-1])), value) for path, value in values if path]
    entries: dict[str, list[_Entry]] = {}
    for number, (path, value) in enumerate(values):
        field, word = _FIELD_OF.get(_folded(path[-1])), _folded(path[-1])
        if field is None or any(name in weights for name in IN_WEIGHTS.get(field, ())):
            continue
        value = parse_json(value) if isinstance(value, str) and value[:1] in "{[" else value
        if (read := FIELDS[field].read(value)) is not None:
            rank = (*_distance(path[:-1], root), FIELDS[field].names.index(word), number)
            entries.setdefault(field, []).append(_Entry(rank, ".".join(path), read))
    nearest = {field: min(rows, key=lambda entry: entry.rank) for field, rows in entries.items()}
    messages = [message for field, entry in nearest.items() for message in _doubts(field, entry, entries[field])]
    messages += _unread_text_config(values)
    levels, of_levels = _read_levels(values, root)
    return {**{field: entry.value for field, entry in nearest.items()}, **levels}, [*messages, *of_levels]


def _distance(path: Keys, root: Keys) -> tuple[int, int]:
    """How far a mapping is from the weights: steps up and down, a config beside them is no step; usual names first."""
    if root and path[: len(root)] == root:
        return len(path) - len(root), 0
    base = root[:-1]
    common = next((i for i, (a, b) in enumerate(zip(path, base)) if a != b), min(len(path), len(base)))
    down = path[common:]
    name = _folded(down[0]) if down else None
    usual = CONFIGS.index(name) if name in CONFIGS else len(CONFIGS)
    return len(base) - common + len(down) - (name in CONFIGS), usual


def _doubts(field: str, nearest: _Entry, entries: list[_Entry]) -> Iterator[Message]:
    """A line where a checkpoint says two things of one field, and where a word stands far from the weights."""
    other = next((entry for entry in entries if _differ(field, entry.value, nearest.value)), None)
    if FIELDS[field].contradicts and other is not None:
        both = Joined("、", (Message("{} 是 {}", entry.place, entry.value) for entry in (nearest, other)))
        yield Message("检查点对 {} 有不同的说法：{}；采用离权重最近的 {}", field, both, nearest.value)
    elif nearest.rank[0] >= FAR.get(_folded(nearest.place.rpartition(".")[2]), math.inf):
        yield Message("{} 取自检查点中离权重较远的 {}（{}），请核对", field, nearest.place, nearest.value)


def _differ(field: str, a, b) -> bool:
    if field == "text_encoder":  # one encoder in two places
        a, b = (re.split(r"[\\/]", name.rstrip("\\/"))[-1] for name in (a, b))
    return a != b and not (a != a and b != b)


def _unread_text_config(values) -> list[Message]:
    """A line for what a text tower's config says and no shape would correct, where it cannot be used."""
    unread = {}
    for path, value in values:
        if _folded(path[-1]) == "textconfig" and (read := _text_config(value)) is not None:
            fields = fields_of(value)
            unread |= {key: fields[key] for key in NOT_IN_WEIGHTS if fields.get(key) is not None and key not in read}
    named = Joined("、", (f"{key}={str(value)[:40]}" for key, value in unread.items()))
    return [Message("检查点的 text_config 中 {} 不受支持，没有采用", named)] if unread else []


# -- levels: mean and deviation ---------------------------------------------------------------

BARE = {"mean": "mean", "std": "std", "means": "mean", "stds": "std"}  # names that statistics of anything may have
OWNERS = ("image", "img", "pixel", "norm", "normalize", "dataset", "data", "rgb", "input", "channel")
LEVEL_NAMES = {f"{owner}{word}": kind for owner in OWNERS for word, kind in BARE.items()} | BARE
OF_IMAGES = re.compile(r"norm|transf|prepro|image|img|pixel|data|input|augm|vision|visual|loader", re.IGNORECASE)
WRITTEN = re.compile(
    r"normalize\w*\(\s*(?:mean\s*=\s*)?[\[(]([^\])]{1,80})[\])]\s*,\s*(?:std\s*=\s*)?[\[(]([^\])]{1,80})[\])]",
    re.IGNORECASE,
)


def unit_levels(mean, deviation, least: float = 0.04) -> tuple | None:
    """(mean, deviation), three numbers each of levels in [0, 1], of one or three numbers each; of 0 to 255 too.

    None for what is none, or of no levels that images have; `least`: what a deviation is above.
    """
    mean, deviation = _numbers(mean), _numbers(deviation)
    if len(mean) not in (1, 3) or len(deviation) not in (1, 3):
        return None
    factor = 255.0 if max(mean) > 1.5 or max(deviation) > 2 else 1.0
    mean, deviation = ([number / factor for number in (m * 3)[:3]] for m in (mean, deviation))
    plausible = all(-1 <= m <= 1 for m in mean) and all(least < d <= 1.5 for d in deviation)
    return (tuple(mean), tuple(deviation)) if plausible else None


class _Levels(NamedTuple):
    """What one mapping says of an image's levels."""

    path: Keys
    mean: object = None
    deviation: object = None
    by_name: bool = False  # whether the names themselves speak of images


def _read_levels(values, root: Keys) -> tuple[dict, list[Message]]:
    """({"mean": ..., "std": ...} or nothing, what is to be said) of the values of a checkpoint."""
    pairs = [pair for pair in _level_pairs(values) if _speaks_of_images(pair, root)]
    usable = [(_distance(pair.path, root), pair, unit_levels(pair.mean, pair.deviation)) for pair in pairs]
    usable = sorted((row for row in usable if row[2]), key=lambda row: row[0])
    if not usable:
        places = Joined("、", dict.fromkeys(".".join(pair.path) or Message("最外层") for pair in pairs[:3]))
        line = Message("检查点 {} 中的均值和标准差无法使用，按 ImageNet 的处理；请用 --mean 和 --std 给出", places)
        return {}, [line] if pairs else []
    (_, nearest, levels), *others = usable
    other = next((pair for _, pair, its_levels in others if its_levels != levels), None)
    line = Message(
        "检查点对 mean 和 std 有不同的说法；采用离权重最近的 {} 的 {}",
        ".".join(nearest.path) or Message("最外层"),
        levels,
    )
    return dict(zip(("mean", "std"), levels)), [line] if other else []


def _level_pairs(values) -> list[_Levels]:
    """Mean and deviation by the mapping that they stand in; those that a transform's text writes."""
    pairs: dict[Keys, _Levels] = {}
    written = []
    for path, value in values:
        name = _folded(path[-1])
        if kind := LEVEL_NAMES.get(name):
            pair = pairs.setdefault(path[:-1], _Levels(path[:-1]))
            changes = {"mean" if kind == "mean" else "deviation": value, "by_name": pair.by_name or name not in BARE}
            pairs[path[:-1]] = pair._replace(**changes)
        elif isinstance(value, str) and len(value) < 10_000 and (match := WRITTEN.search(value)):
            written.append(_Levels(path, match[1], match[2], True))
        elif name in ("normalize", "normalization") and isinstance(value, (list, tuple)) and len(value) == 2:
            written.append(_Levels(path, *value, True))
    return [*pairs.values(), *written]


def _speaks_of_images(pair: _Levels, root: Keys) -> bool:
    """Whether mean and deviation are those of images: by their names, their keys, or standing beside weights."""
    if pair.by_name or any(map(OF_IMAGES.search, pair.path[len(root) if pair.path[: len(root)] == root else 0 :])):
        return True
    return _distance(pair.path, root)[0] == 0 and len(_numbers(pair.mean)) == len(_numbers(pair.deviation)) == 3
