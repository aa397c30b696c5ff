"""Where in a checkpoint a model's weights are, and what the rest of it says of the model: by one search, at any depth.

    contents = search_checkpoint(checkpoint)
    contents.weights, contents.metadata

Weights are what the names lead to that begin, after one common prefix, with `image_encoder.backbone.` (ours) or
`visual.` (OpenAI's): whichever mappings and prefixes a training puts around them. What the rest says of the model
is read by `models.weights.metadata`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import CheckpointError
from ..heavy import torch
from ..messages import Joined, Message
from .metadata import MOST_NUMBERS, Keys, parse_json, read_metadata
from .names import BACKBONE, first_adapter
from .plain import Opaque, UnusableTensor, fields_of, plain_value

DEEPEST, MOST_ENTRIES = 60, 300_000


class Contents(NamedTuple):
    """What a checkpoint holds."""

    weights: dict[str, torch.Tensor]  # names after the common prefix; without a model's names, the largest mapping's
    metadata: dict  # of models.weights.metadata.FIELDS, `mean` and `std`, where the checkpoint says something
    choices: list[Message]  # what the user must know: which of several models' weights these are
    contradictions: list[Message]  # and what the metadata leave in doubt
    unusable: dict[str, str]  # names of weights that are no dense tensors of real numbers, and what they are instead
    adapter: str | None = None  # the first name that belongs to one, wherever it stands


def search_checkpoint(checkpoint: Mapping) -> Contents:
    """The weights of a checkpoint, wrapped in any way or bare, and its metadata. CheckpointError for no mapping."""
    if fields_of(checkpoint) is None:
        raise CheckpointError("检查点应当是字典，读到的是 {}；请保存 model.state_dict()", type(checkpoint).__name__)
    tensors, plain = _walk(checkpoint)
    places = _places(tensors)
    place = places[0] if places else _largest(tensors)
    weights, unusable, twice = _weights_at(place, tensors, places)
    if twice:
        raise CheckpointError("检查点中同一个权重 {} 有两份不同的值，无法判断用哪一份", twice[0])
    outside = ((p, t) for p, t in tensors if p[: len(place.root)] != place.root or p and BUFFER.search(p[-1]))
    small = [(path, tensor) for path, tensor in outside if _is_small(tensor)]
    metadata, messages = read_metadata([*plain, *small], place.root, weights)
    adapter = first_adapter(".".join(path) for path, _ in (*tensors, *plain))
    return Contents(weights, metadata, _describe_choice(places, tensors), messages, unusable, adapter)


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
            tensors.append((path, UnusableTensor(Message(" {} 对象", value.name))))
        if not is_repeated or isinstance(value, str):
            plain.append((path, value))
    return tensors, plain


def _children(value) -> list[tuple] | None:
    """(key, value) pairs of what holds others; None for a value by itself."""
    if isinstance(value, str):
        value = parse_json(value) if value.lstrip()[:1] == "{" else None
    if isinstance(value, (list, tuple)):
        nested = any(fields_of(item) is not None or isinstance(item, (list, tuple)) for item in value[:100])
        return list(enumerate(value[:1000])) if nested else None
    fields = fields_of(value)
    return list(fields.items()) or None if fields is not None else None


def _is_small(tensor) -> bool:
    """Whether a tensor may be a number, a size, or three levels."""
    return isinstance(tensor, torch.Tensor) and tensor.numel() <= MOST_NUMBERS and _unusable_kind(tensor) is None


# Of a model that normalises its input itself.
BUFFER = re.compile(r"(?:^|\.)(?:pixel|image|img|normaliz\w*)[._]?(?:mean|std)$", re.IGNORECASE)


# -- weights ----------------------------------------------------------------------------------

MARKERS = (BACKBONE, "visual.")
# What wraps a module inside another, anywhere in a name: parallel, compiled, sharded, checkpointed.
WRAPPERS = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_module)\.")
# Words that name a copy beside the model: an average, a teacher, a start, a gradient.
AVERAGED = re.compile(
    r"(?:^|[._-])(?:\w*model)?(?:ema|swa|avg|averaged?|mean|polyak|slow|teacher|shadow|momentum|aux|target|grads?|initial)"
    r"(?:model|net)?(?:$|[._\d-])",
    re.IGNORECASE,
)
USUAL = ("model_state_dict", "state_dict", "model", "")  # of several, these first
WEIGHT_NAME = re.compile(r"(?:^|\.)(?:weight|bias|running_\w+|\w*_token|\w*_embeddings?|gamma|temperature)$")
TOWERS = ("image_encoder", "text_encoder", "visual")
PARTS = {"image_encoder", "text_encoder", "temperature", "logit_scale", "logit_bias"}
PARTS |= {"visual", "transformer", "text", "bert", "token_embedding", "ln_final", "positional_embedding"}


class _Place(NamedTuple):
    """Where weights stand: below the keys `root`, in names that begin with `prefix` (keys included)."""

    root: Keys
    prefix: str

    @property
    def label(self) -> str | Message:
        return self.prefix.rstrip(".") or Message("最外层")


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


def _weights_at(place: _Place, tensors, places=()) -> tuple[dict, dict, list]:
    """(tensors by their names after the prefix, what stands in a weight's place, names with two values).

    Those that stand in the place itself, and those of parts that have mappings of their own; other `places` below it
    are none of it. A name outside of the prefix stays whole: the parameters of a loss beside the model, say.
    """
    weights: dict[str, torch.Tensor] = {}
    unusable: dict[str, str] = {}
    twice, depth = [], len(place.root)
    copies = tuple(p.prefix for p in places if len(p.prefix) > len(place.prefix) and p.prefix.startswith(place.prefix))
    for path, tensor in tensors:
        name = _name(path)
        if copies and name.startswith(copies):
            continue
        inside = name.startswith(place.prefix)
        name = name.removeprefix(place.prefix) if inside else _name(path[depth:])
        part = name.partition(".")[0]
        if path[:depth] != place.root or (len(path) > depth + 1 and part not in PARTS):
            continue
        if not inside and part in TOWERS:  # another model's
            continue
        if kind := _unusable_kind(tensor):
            if inside:
                unusable[name] = kind
        elif name in weights and not same_weight(weights[name], tensor):
            twice.append(name)
        else:
            weights[name] = tensor
    return weights, unusable, twice


def _unusable_kind(tensor) -> Message | None:
    """What a tensor is that is no dense one of real numbers; None for one that can be used."""
    if isinstance(tensor, UnusableTensor):
        return tensor.kind
    if tensor.layout != torch.strided:
        return Message("稀疏张量")
    if tensor.is_quantized:
        return Message("量化张量")
    return Message("复数张量") if tensor.is_complex() else None


def same_weight(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def _describe_choice(places: list[_Place], tensors) -> list[Message]:
    """One line where there are several models' weights, and not one under two names."""
    if len(places) < 2:
        return []
    first, *others = (_weights_at(place, tensors, places)[0] for place in places)
    different = [place for place, weights in zip(places[1:], others) if not _same_weights(first, weights)]
    if not different:
        return []
    rest = Joined("、", (place.label for place in different[:3]))
    return [Message("检查点中有 {} 份模型权重，采用 {} 的，没有采用 {} 的", 1 + len(different), places[0].label, rest)]


def _same_weights(a: Mapping, b: Mapping) -> bool:
    shared = [key for key in a if key.startswith(MARKERS)]
    return all(key in b and same_weight(a[key], b[key]) for key in shared)
