"""Where in a checkpoint a model's weights are, and what the rest of it says of the model: by one search, at any depth.

    contents = search_checkpoint(checkpoint)
    contents.weights, contents.metadata

Weights are what the names lead to that begin, after one common prefix, with `image_encoder.backbone.` (ours) or
`visual.` (OpenAI's): whichever mappings and prefixes a training puts around them. Metadata are the fields below, under
all usual names, wherever plain data stands; of several the nearest to the weights counts.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ..errors import CheckpointError
from ..heavy import torch
from .names import BACKBONE
from .pickles import Opaque, UnusableTensor, fields_of, plain_value

DEEPEST, MOST_ENTRIES, LONGEST_JSON = 60, 300_000, 1 << 20
Keys = tuple[str, ...]  # keys that lead from the checkpoint to a value


class Contents(NamedTuple):
    """What a checkpoint holds."""

    weights: dict[str, torch.Tensor]  # names after the common prefix; without a model's names, the largest mapping's
    metadata: dict  # of FIELDS, where the checkpoint says something
    choices: list[str]  # what the user must know: which of several models' weights these are
    contradictions: list[str]  # and what the metadata leave in doubt
    unusable: dict[str, str]  # names of weights that are no dense tensors of real numbers, and what they are instead


def search_checkpoint(checkpoint: Mapping) -> Contents:
    """The weights of a checkpoint, wrapped in any way or bare, and its metadata. CheckpointError for no mapping."""
    if fields_of(checkpoint) is None:
        raise CheckpointError(f"检查点应当是字典，读到的是 {type(checkpoint).__name__}；请保存 model.state_dict()")
    tensors, plain = _walk(checkpoint)
    places = _places(tensors)
    place = places[0] if places else _largest(tensors)
    weights, unusable, twice = _weights_at(place, tensors)
    if twice:
        raise CheckpointError(f"检查点中同一个权重 {twice[0]} 有两份不同的值，无法判断用哪一份")
    if "temperature" in weights:
        plain = [(path, value) for path, value in plain if path[-1:] != ("temperature",)]
    metadata, messages = _metadata(plain, place.root)
    return Contents(weights, metadata, _describe_choice(places, tensors), messages, unusable)


# -- the walk ---------------------------------------------------------------------------------


def _walk(checkpoint) -> tuple[list[tuple[Keys, object]], list[tuple[Keys, object]]]:
    """(tensors, other values) of a checkpoint with the keys that lead to each; nothing twice, nothing without end."""
    tensors, plain, visited = [], [], set()
    pending = [((), checkpoint)]
    while pending and len(tensors) + len(plain) < MOST_ENTRIES:
        path, value = pending.pop()
        value = plain_value(value)
        if isinstance(value, (torch.Tensor, UnusableTensor)):
            tensors.append((path, value))
            continue
        is_repeated = id(value) in visited
        children = None if is_repeated or len(path) >= DEEPEST else _children(value)
        if children is not None:
            visited.add(id(value))  # `plain` keeps it, so that its number stays its own
            pending += [((*path, str(key)), child) for key, child in reversed(children)]
        elif isinstance(value, Opaque) and path and WEIGHT_NAME.search(path[-1]):
            tensors.append((path, UnusableTensor(f" {value.name} 对象")))
        if not is_repeated or isinstance(value, str):
            plain.append((path, value))
    return tensors, plain


def _children(value) -> list[tuple] | None:
    """(key, value) pairs of what holds others; None for a value by itself."""
    if isinstance(value, str):
        value = _parse(value) if value.lstrip()[:1] == "{" else None
    if isinstance(value, (list, tuple)):
        nested = any(fields_of(item) is not None or isinstance(item, (list, tuple)) for item in value[:100])
        return list(enumerate(value[:1000])) if nested else None
    fields = fields_of(value)
    return list(fields.items()) or None if fields is not None else None


def _parse(text: str):
    """What a JSON text says, else the text: files that hold texts only write numbers and configs so."""
    try:
        return json.loads(text) if len(text) <= LONGEST_JSON else text
    except (ValueError, RecursionError):
        return text


# -- weights ----------------------------------------------------------------------------------

MARKERS = (BACKBONE, "visual.")
# What wraps a module inside another, anywhere in a name: parallel, compiled, sharded, checkpointed.
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_module)\.")
AVERAGED = re.compile(r"ema|swa|averag|teacher|shadow|momentum", re.IGNORECASE)
USUAL = ("model_state_dict", "state_dict", "model", "")  # of several, these first
WEIGHT_NAME = re.compile(r"(?:^|\.)(?:weight|bias|running_\w+|\w*_token|\w*_embeddings?|gamma|temperature)$")
PARTS = {"image_encoder", "text_encoder", "temperature", "logit_scale", "logit_bias"}
PARTS |= {"visual", "transformer", "text", "bert", "token_embedding", "ln_final", "positional_embedding"}


class _Place(NamedTuple):
    """Where weights stand: below the keys `root`, in names that begin with `prefix` (keys included)."""

    root: Keys
    prefix: str

    @property
    def label(self) -> str:
        return self.prefix.rstrip(".") or "最外层"


def _name(path: Keys) -> str:
    """The dotted name of a value, without what wraps modules."""
    return WRAPPERS.sub("", ".".join(path))


def _places(tensors) -> list[_Place]:
    """Where a model's image encoder stands, the place to be used first; none where there is no model of ours."""
    for marker in MARKERS:
        begins = re.compile(rf"(?<![^.]){re.escape(marker)}")
        places: dict[_Place, None] = {}
        for path, _ in tensors:
            name = _name(path)
            if match := begins.search(name):
                prefix = name[: match.start()]
                places.setdefault(_Place(_root(path, prefix), prefix))
        if places:
            return sorted(places, key=_rank)
    return []


def _root(path: Keys, prefix: str) -> Keys:
    """The longest part of the keys that lead to a tensor, its own excluded, that is no more than the prefix says."""
    root = path[:-1]
    while root and len(_name((*root, ""))) > len(prefix):
        root = root[:-1]
    return root


def _rank(place: _Place) -> tuple:
    label = place.prefix.rstrip(".")
    return bool(AVERAGED.search(label)), USUAL.index(label) if label in USUAL else len(USUAL), len(place.root)


def _largest(tensors) -> _Place:
    """The mapping with the most tensors, for a checkpoint without a model of ours: its names go into the error."""
    counts: dict[Keys, int] = {}
    for path, tensor in tensors:
        counts[path[:-1]] = counts.get(path[:-1], 0) + isinstance(tensor, torch.Tensor)
    root = max(counts, key=counts.get, default=())
    return _Place(root, _name((*root, "")) if root else "")


def _weights_at(place: _Place, tensors) -> tuple[dict, dict, list]:
    """(tensors by their names after the prefix, what stands in a weight's place, names with two values).

    Those that stand in the place itself, and those of parts that have mappings of their own. A name outside of the
    prefix stays whole: the parameters of a loss beside the model, say.
    """
    weights: dict[str, torch.Tensor] = {}
    unusable: dict[str, str] = {}
    twice, depth = [], len(place.root)
    for path, tensor in tensors:
        name = _name(path)
        inside = name.startswith(place.prefix)
        name = name.removeprefix(place.prefix) if inside else _name(path[depth:])
        if path[:depth] != place.root or (len(path) > depth + 1 and name.partition(".")[0] not in PARTS):
            continue
        if kind := _unusable_kind(tensor):
            if inside:
                unusable[name] = kind
        elif name in weights and not same_weight(weights[name], tensor):
            twice.append(name)
        else:
            weights[name] = tensor
    return weights, unusable, twice


def _unusable_kind(tensor) -> str | None:
    """What a tensor is that is no dense one of real numbers; None for one that can be used."""
    if isinstance(tensor, UnusableTensor):
        return tensor.kind
    if tensor.layout != torch.strided:
        return "稀疏张量"
    if tensor.is_quantized:
        return "量化张量"
    return "复数张量" if tensor.is_complex() else None


def same_weight(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def _describe_choice(places: list[_Place], tensors) -> list[str]:
    """One line where there are several models' weights, and not one under two names."""
    if len(places) < 2:
        return []
    first, *others = (_weights_at(place, tensors)[0] for place in places)
    different = [place for place, weights in zip(places[1:], others) if not _same_weights(first, weights)]
    if not different:
        return []
    rest = "、".join(place.label for place in different[:3])
    return [f"检查点中有 {1 + len(different)} 份模型权重，采用 {places[0].label} 的，没有采用 {rest} 的"]


def _same_weights(a: Mapping, b: Mapping) -> bool:
    shared = [key for key in a if key.startswith(MARKERS)]
    return all(key in b and same_weight(a[key], b[key]) for key in shared)


# -- metadata ---------------------------------------------------------------------------------


def image_side(size) -> int | None:
    """224, "224", (224, 224), (3, 224, 224) or {"height": 224, "width": 224} -> 224; None for no side of a square."""
    if isinstance(size, Mapping):
        size = [value for key, value in size.items() if _folded(key) in ("height", "width", "shortestedge", "h", "w")]
    size = size.tolist() if hasattr(size, "tolist") else size
    sides = list(size) if isinstance(size, (list, tuple)) else [size]
    if len(sides) == 3 and sides[0] in (1, 3):
        sides = sides[1:]
    try:
        numbers = {float(side) for side in sides if not isinstance(side, bool)}
    except (TypeError, ValueError, OverflowError):
        return None
    side = numbers.pop() if len(numbers) == 1 else 0
    return int(side) if 8 <= side <= 8192 and side == int(side) else None


def _three_numbers(value) -> tuple[float, float, float] | None:
    """One number or three, finite, as three; None for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = [float(number) for number in values if not isinstance(number, (bool, str))]
    except (TypeError, ValueError, OverflowError):
        return None
    if len(numbers) != len(values) or len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        return None
    return tuple(numbers * 3 if len(numbers) == 1 else numbers)


def _mean(value):
    numbers = _three_numbers(value)
    return numbers if numbers and all(-1 <= number <= 255 for number in numbers) else None


def _deviation(value):
    numbers = _three_numbers(value)
    return numbers if numbers and all(0 < number <= 255 for number in numbers) else None


def _text(value) -> str | None:
    """A name, or that of a mapping which describes what it names."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("name", "model_name") if key in value), None)
    return value if isinstance(value, str) and 0 < len(value) <= 500 else None


def _encoder(value) -> str | None:
    """The name of a text encoder: whatever stands there is taken for one, and is an error where it is none."""
    return str(value) if isinstance(value, (str, int, float)) else _text(value)


def _count(value) -> int | None:
    try:
        number = float(value) if not isinstance(value, bool) else 0
        return int(number) if 0 < number <= 1 << 16 and number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _number(value) -> float | None:
    try:
        return float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        return None


TEXT_SIZES = {"vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "type_vocab_size"}
TEXT_SIZES |= {"num_hidden_layers", "num_attention_heads", "pad_token_id", "bos_token_id", "eos_token_id"}
TEXT_SHARES = {"layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"}
TEXT_NAMES = {"hidden_act": "gelu gelu_new gelu_python relu silu quick_gelu", "model_type": "bert clip_text_model"}
MOST_LAYERS = 256


def _text_config(value) -> dict | None:
    """What a text tower's own config may say: sizes, shares, and names out of a list; nothing else is handed on."""
    fields = fields_of(value)
    if fields is None:
        return None
    sizes = {key: size for key in TEXT_SIZES if type(size := fields.get(key)) is int and 0 <= size < 10**7}
    if sizes.get("num_hidden_layers", 0) > MOST_LAYERS:
        del sizes["num_hidden_layers"]
    shares = {key: share for key in TEXT_SHARES if isinstance(share := fields.get(key), float) and 0 <= share < 1}
    names = {key: fields[key] for key, usual in TEXT_NAMES.items() if fields.get(key) in usual.split()}
    return {**sizes, **shares, **names}


class Field(NamedTuple):
    """What a model says of itself: under which names (letters and digits, in lower case), and what is a value of it."""

    names: tuple[str, ...]
    read: Callable  # a plain value -> the field's value, None for what is none
    contradicts: bool = True  # whether two values are worth a line


# Steps from the weights at which a word may well mean something else.
FAR = {"temperature": 2, **dict.fromkeys(("resolution", "inputsize", "cropsize", "mean", "std"), 3)}
SIZES = ("imgsize", "imagesize", "imageresolution", "inputresolution", "resolution", "inputsize", "cropsize")
FIELDS = {
    "image_encoder": Field(("imageencoder", "imageencodername"), _text, contradicts=False),  # the weights decide
    "text_encoder": Field(("textencoder", "textencodername"), _encoder),
    "embed_dim": Field(("embeddim",), _count, contradicts=False),  # likewise
    "img_size": Field(SIZES, image_side),
    "mean": Field(("imagemean", "imgmean", "pixelmean", "normmean", "normalizemean", "mean"), _mean),
    "std": Field(("imagestd", "imgstd", "pixelstd", "normstd", "normalizestd", "std"), _deviation),
    "temperature": Field(("temperature",), _number, contradicts=False),  # the weights', nearly always
    "text_config": Field(("textconfig",), _text_config, contradicts=False),
}
BARE = ("mean", "std")  # names that statistics of anything may have: three numbers, both in one mapping
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


def _metadata(plain, root: Keys) -> tuple[dict, list[str]]:
    """({field: value}, what is to be said) of the plain values of a checkpoint whose weights stand at `root`."""
    entries: dict[str, list[_Entry]] = {}
    values = dict(plain)
    is_normalisation = functools.cache(lambda holder: _is_normalisation(values.get(holder)))
    for number, (path, value) in enumerate(plain):
        field = _FIELD_OF.get(_folded(path[-1])) if path else None
        if field is None or _folded(path[-1]) in BARE and not is_normalisation(path[:-1]):
            continue
        value = _parse(value) if isinstance(value, str) and value[:1] in "{[" else value
        if (read := FIELDS[field].read(value)) is not None:
            rank = (*_distance(path[:-1], root), FIELDS[field].names.index(_folded(path[-1])), number)
            entries.setdefault(field, []).append(_Entry(rank, ".".join(path), read))
    nearest = {field: min(rows, key=lambda entry: entry.rank) for field, rows in entries.items()}
    messages = [message for field, entry in nearest.items() for message in _contradiction(field, entry, entries[field])]
    messages += [
        f"{field} 取自检查点中离权重较远的 {entry.place}（{entry.value}），请核对"
        for field, entry in nearest.items()
        if entry.rank[0] >= FAR.get(_folded(entry.place.rpartition(".")[2]), DEEPEST)
    ]
    return in_unit_levels({field: entry.value for field, entry in nearest.items()}), messages


def _is_normalisation(holder) -> bool:
    """Whether `mean` and `std` stand in one mapping, three numbers each."""
    holder = _parse(holder) if isinstance(holder, str) else plain_value(holder)
    fields = {_folded(key): value for key, value in (fields_of(holder) or {}).items()}
    return all(len(_sequence(fields.get(name))) == 3 for name in BARE)


def _sequence(value):
    value = plain_value(_parse(value) if isinstance(value, str) else value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return value if isinstance(value, (list, tuple)) else ()


def in_unit_levels(metadata: dict) -> dict:
    """Mean and deviation of levels from 0 to 255 as those of levels from 0 to 1; without one of them, neither."""
    mean, std = metadata.get("mean"), metadata.get("std")
    rest = {field: value for field, value in metadata.items() if field not in BARE}
    if mean is None or std is None:
        return rest
    factor = 255.0 if max(mean) > 1.5 or max(std) > 2 else 1.0
    return {**rest, "mean": tuple(m / factor for m in mean), "std": tuple(s / factor for s in std)}


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


def _contradiction(field: str, nearest: _Entry, entries: list[_Entry]) -> Iterator[str]:
    """A line where a checkpoint says two things of one field."""
    other = next((entry for entry in entries if _differ(field, entry.value, nearest.value)), None)
    if FIELDS[field].contradicts and other is not None:
        both = "、".join(f"{entry.place} 是 {entry.value}" for entry in (nearest, other))
        yield f"检查点对 {field} 有不同的说法：{both}；采用离权重最近的 {nearest.value}"


def _differ(field: str, a, b) -> bool:
    if field == "text_encoder":  # one encoder in two places
        a, b = (re.split(r"[\\/]", name.rstrip("\\/"))[-1] for name in (a, b))
    return a != b
