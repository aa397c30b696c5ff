"""Checkpoints by what they hold: weights, metadata and the objects of training scripts; other formats of weights."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import importlib
import io
import json
import math
import os
import pathlib
import types
import uuid
from functools import cache, partial
from pathlib import Path
from random import Random

import numpy as np
import tiny_pretrained
import torch

from . import canary
from .checkpoints import mutate_zip, with_checkpoint, with_pickle
from .mutate import (
    VALID,
    command,
    json_bytes,
    mutate_bytes,
    mutate_tree,
    nested,
    number,
    odd_text,
    odd_value,
    some,
    valid_bytes,
    write,
)
from .pickles import mutate_pickle


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    img_size: int = 64


class Payload(tiny_pretrained.Payload):
    """One that can be copied without being executed."""

    def __deepcopy__(self, memory):
        return self


class Stateful(dict):
    """An object whose pickle sets a state after it is made."""

    def __reduce__(self):
        return argparse.Namespace, (), {"__setstate__": canary.call, "img_size": 64}

    def __deepcopy__(self, memory):
        return self


def _itself():
    loop = []
    loop.append(loop)
    return loop


def optional(module: str, name: str, *arguments):
    """An object of a library that may not be installed; None without it."""
    try:
        return getattr(importlib.import_module(module), name)(*arguments)
    except ImportError:
        return None


DTYPES = ("f4", "i8", "?", "U3", "O", "c8", "M8[s]", "i4,f4", ">f8", ">i2")
TENSOR_KINDS = (
    torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.uint8, torch.complex64,
)  # fmt: skip
OBJECTS = (
    lambda random: argparse.Namespace(img_size=64, a=odd_value(random)),
    lambda random: types.SimpleNamespace(img_size=64), lambda random: datetime.datetime(2026, 1, 2),
    lambda random: datetime.timedelta(1), lambda random: decimal.Decimal("1.5"),
    lambda random: fractions.Fraction(1, 3), lambda random: uuid.UUID(int=5), lambda random: Colour.RED,
    lambda random: Settings(), lambda random: pathlib.PurePosixPath("a/b"), lambda random: pathlib.Path("/nothing/a"),
    lambda random: {1, 2}, lambda random: frozenset([1]), lambda random: range(number(random)),
    lambda random: slice(1, None, 2), lambda random: complex(1, 2), lambda random: random.randbytes(20),
    lambda random: bytearray(5), lambda random: collections.deque([1, 2], 5),
    lambda random: collections.defaultdict(list, {"a": [1]}), lambda random: collections.Counter("abc"),
    lambda random: collections.OrderedDict(a=1), lambda random: np.float64(random.random()),
    lambda random: np.zeros((), random.choice(DTYPES))[()],
    lambda random: np.zeros(random.choice((0, 3, (2, 2))), random.choice(DTYPES)),
    lambda random: np.array([canary.call], dtype=object), lambda random: np.random.RandomState(0),
    lambda random: np.dtype("f4"), lambda random: torch.Size([1, 2]), lambda random: torch.float16,
    lambda random: torch.device("cuda:7"), lambda random: torch.Generator(), lambda random: torch.nn.Linear(2, 2),
    lambda random: torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1),
    lambda random: torch.nn.Parameter(torch.zeros(2)),
    lambda random: torch.zeros(2, dtype=random.choice(TENSOR_KINDS)), lambda random: torch.zeros(2, 2).to_sparse(),
    lambda random: torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8),
    lambda random: torch.zeros(10**9, device="meta"), lambda random: torch.zeros(1).expand(10**12),
    lambda random: nested(random), lambda random: _itself(), lambda random: number(random),
    lambda random: odd_value(random), lambda random: len, lambda random: dict, lambda random: partial(print, 1),
    lambda random: canary.call, lambda random: canary.Thing(), lambda random: Payload(canary.call, "x"),
    lambda random: Payload(os.system, "echo x > EXECUTED"), lambda random: Payload(exec, "open('EXECUTED', 'w')"),
    lambda random: Payload(open, "EXECUTED", "w"), lambda random: Payload(torch.load, "other.pth"),
    lambda random: Stateful(), lambda random: optional("omegaconf", "DictConfig", {"img_size": 64}),
    lambda random: optional("yacs.config", "CfgNode", {"img_size": 64}),
    lambda random: optional("easydict", "EasyDict", {"img_size": 64}),
)  # fmt: skip


def odd_object(random: Random):
    return random.choice(OBJECTS)(random)


WRAPPERS = (
    "state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights", "model_state", "ema",
    "model_ema",
)  # fmt: skip
PREFIXES = (
    "", "", "module.", "model.", "clip_model.", "clip.", "net.", "base_model.model.", "_fsdp_wrapped_module.",
    "a.b.c.",
)  # fmt: skip
CONFIG = {
    "embed_dim": 32,
    "img_size": 64,
    "image_encoder": "starnet_s1",
    "text_encoder": "bert-base-chinese",
    "mean": [0.5] * 3,
}
CONFIG |= {
    "std": [0.25] * 3,
    "data": {"img_size": 64, "resolution": [64, 64]},
    "text_config": {"hidden_size": 64, "num_hidden_layers": 1},
}
FIELDS = (
    "img_size", "image_size", "input_size", "resolution", "crop_size", "embed_dim", "image_encoder", "text_encoder",
    "mean", "std", "temperature", "text_config", "model_type", "config", "hyper_parameters", "trust_remote_code",
    "auto_map", "grey_range",
)  # fmt: skip


def mutate_tensor(random: Random, tensor: torch.Tensor):
    """A tensor of another shape, kind or content; or none."""
    return random.choice(
        (
            lambda: tensor.to(random.choice(TENSOR_KINDS)),
            lambda: torch.full_like(tensor, random.choice((math.nan, math.inf, 0.0, 1e30)), dtype=torch.float32),
            lambda: tensor.flatten()[:1],
            lambda: tensor.flatten(),
            lambda: tensor[None],
            lambda: torch.zeros(0),
            lambda: torch.zeros([random.choice((0, 1, 2, 5))] * random.randrange(6)),
            lambda: tensor.T if tensor.ndim == 2 else tensor.clone(),
            lambda: tensor.float().to_sparse(),
            lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
            lambda: tensor.to("meta"),
            lambda: torch.zeros(()).expand(tensor.shape),
            lambda: torch.zeros(1).expand(10**6, *tensor.shape),
            lambda: torch.nn.Parameter(tensor.float()),
            lambda: torch.tensor(random.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")))),
            lambda: tensor.float().numpy(),
            lambda: odd_object(random),
        )
    )()  # fmt: skip


def _is_plain(value) -> bool:
    """Whether it is a tensor that all mutations can be made of, and not what one has made."""
    is_tensor = isinstance(value, torch.Tensor)
    return is_tensor and value.layout == torch.strided and not value.is_quantized and not value.is_meta


def mutate_weights(random: Random, weights: dict) -> dict:
    """Weights with some tensors changed, missing, added, renamed, or all under a prefix."""
    weights = dict(weights)
    telling = [key for key in weights if not key.startswith(("image_encoder.backbone.stages", "visual.transformer"))]
    for _ in some(random):
        key = random.choice(telling if random.random() < 0.6 else list(weights))
        if key not in weights or not isinstance(key, str):  # taken out, or put in, by a mutation before this one
            continue
        action = random.randrange(5)
        if action <= 1 and _is_plain(weights[key]):
            weights[key] = mutate_tensor(random, weights[key])
        elif action == 2:
            del weights[key]
        elif action == 3:
            weights[random.choice((key + ".x", odd_text(random), "image_encoder.backbone.fc.weight", 5))] = weights[key]
        else:
            weights[key.replace(".", random.choice(("..", "/", "")), 1)] = weights.pop(key)
    prefix = random.choice(PREFIXES) if random.random() < 0.3 else ""
    return (
        {f"{prefix}{key}" if isinstance(key, str) else key: value for key, value in weights.items()}
        if prefix
        else weights
    )


@cache
def weights_of(name: str) -> dict:
    return torch.load(VALID / name, weights_only=True)


def saved(random: Random, content) -> bytes:
    stream = io.BytesIO()
    try:
        torch.save(content, stream, pickle_protocol=random.choice((2, 2, 2, 3, 4, 5)))
    except Exception:  # what cannot be pickled is no input: the weights alone
        stream = io.BytesIO()
        torch.save(weights_of("weights.pth"), stream)
    return stream.getvalue()


SOURCES = ("in/code", "in/code", "a/b", "hub:a/b", "clip:ViT-B/32", "clip:a/b", "clip:in/code", "/nothing/bert")


def make_pth_objects(random: Random) -> list[str]:
    weights = weights_of("weights.pth")
    weights = mutate_weights(random, weights) if random.random() < 0.6 else weights
    config = mutate_tree(random, CONFIG, odd_object if random.random() < 0.6 else odd_value)
    if isinstance(config, dict) and random.random() < 0.5:
        config[random.choice(FIELDS)] = odd_object(random) if random.random() < 0.5 else odd_value(random)
    if isinstance(config, dict) and random.random() < 0.2:
        config["text_encoder"] = random.choice(SOURCES)
        canary.write_code(Path("in/code"))
    wrapper = random.choice((*WRAPPERS, "a", "x.y"))
    content = random.choice(
        (
            lambda: {wrapper: weights, "config": config},
            lambda: {"model_state_dict": weights, "config": config},
            lambda: {"model_state_dict": weights, random.choice(("hyper_parameters", "cfg", "opt", "args")): config},
            lambda: {"model": {wrapper: weights}, "ema": weights, "config": config},
            lambda: {"model_state_dict": weights, **(config if isinstance(config, dict) else {})},
            lambda: {"model_state_dict": weights, "config": json.dumps(CONFIG), "extra": odd_object(random)},
            lambda: weights,
            lambda: [weights, config],
            lambda: odd_object(random),
        )
    )()  # fmt: skip
    return with_checkpoint(random, saved(random, content), random.choice((".pth", ".pt", ".ckpt", ".bin", "")))


def mutate_safetensors(random: Random, data: bytes) -> bytes:
    """A header whose entries do not fit the data, or each other."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for _ in some(random):
        key = random.choice(list(header) or [""])
        action = random.randrange(5)
        if action == 0:
            header["__metadata__"] = mutate_tree(random, {"img_size": "64", "config": json.dumps(CONFIG), "a": "[1"})
        elif action == 1:
            header.pop(key, None)
        elif action == 2:
            header[odd_text(random)] = header.get(key)
        elif isinstance(header.get(key), dict) and "dtype" in header[key]:
            entry = dict(header[key])
            field = random.choice(("dtype", "shape", "data_offsets"))
            kinds = ("F32", "F64", "BF16", "I8", "U64", "BOOL", "F8_E4M3", "X", "C64")
            entry[field] = (
                random.choice(kinds)
                if field == "dtype"
                else [number(random) for _ in range(random.choice((0, 1, 2, 4)))]
            )
            header[key] = entry
    text = json.dumps(header).encode() if random.random() < 0.9 else json_bytes(random, mutate_tree(random, header))
    length = len(text) if random.random() < 0.9 else number(random) % 2**64
    return length.to_bytes(8, "little") + text + data[8 + size :]


def make_safetensors(random: Random) -> list[str]:
    mutate = random.choice((mutate_bytes, mutate_safetensors, mutate_safetensors))
    return with_checkpoint(random, mutate(random, valid_bytes("ours.safetensors")), ".safetensors")


def _beside_vocabulary(random: Random, data: bytes, suffix: str) -> list[str]:
    return command(random, "--text-encoder", str(VALID / "openai"), model=write(f"in/model{suffix}", data))


def make_torchscript(random: Random) -> list[str]:
    data = valid_bytes(f"openai/{random.choice(('vit', 'vit', 'scripted'))}.pt")
    changed = random.choice(
        (
            lambda: mutate_bytes(random, data),
            lambda: mutate_zip(random, data),
            lambda: with_pickle(data, partial(mutate_pickle, random)),
            lambda: with_pickle(data, partial(mutate_pickle, random)),
        )
    )()  # fmt: skip
    return _beside_vocabulary(random, changed, ".pt")


def make_openai(random: Random) -> list[str]:
    weights = mutate_weights(random, weights_of(f"openai/{random.choice(('vit', 'resnet'))}.bin"))
    if random.random() < 0.3:
        settings = {
            "model_cfg": {
                "embed_dim": 24,
                "quick_gelu": True,
                "vision_cfg": {"width": 64, "layers": 3, "head_width": 64},
            }
        }
        settings |= {
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        }
        write("in/open_clip_config.json", json_bytes(random, mutate_tree(random, settings)))
    content = random.choice((weights, {"state_dict": weights}, {"state_dict": weights, "name": odd_value(random)}))
    return _beside_vocabulary(random, saved(random, content), random.choice((".pt", ".bin")))
