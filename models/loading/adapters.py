"""Adapters of PEFT beside a model, merged into its weights before a reader sees them: with and without, it is another.

    adapter = read_adapter(folder)             # None where there is none
    weights = merge_adapter(adapter, weights)  # by name, those of the model with the adapter

The arithmetic is peft's own, where it is installed, on bare layers that we build of the base's weights: peft is given
sizes out of adapter_config.json and tensors that our reader has read; it opens no file, and looks up no model or class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError, InputError
from ..heavy import peft, torch
from ..messages import Joined, Message
from ..weights.configs import SWITCH, WIDTH, Kind, check_fields, real
from ..weights.files import read_checkpoint_file
from ..weights.hub import ADAPTER_WEIGHTS, REPOSITORY, as_input_error, hub_folder, read_json
from ..weights.modules import first_names
from ..weights.plain import fields_of

MERGE_FIRST = Message("请先合并：model.merge_and_unload() 之后用 save_pretrained 另存，再读另存的文件夹")
CONFIG_FILE = "adapter_config.json"
KINDS = ("LORA",)  # with rsLoRA and DoRA, which are fields of it


class Adapter(NamedTuple):
    """What a folder says of an adapter: `fields` are those of FIELDS, `weights` are named as in the trained model."""

    folder: Path
    fields: dict
    weights: dict[str, torch.Tensor]


MOST_PATTERNS = 1000
PATTERN = re.compile(r"[\w.^$-]{1,300}")  # peft takes it for a regular expression: none of these takes long
PATTERNS = Kind(
    Message("模块名到整数的表"),
    lambda value: (
        isinstance(value, Mapping)
        and len(value) <= MOST_PATTERNS
        and all(PATTERN.fullmatch(name) and WIDTH.holds(number) for name, number in value.items())
    ),
)
FIELDS = {
    "r": WIDTH,
    "lora_alpha": real(0, 1e6),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), PATTERNS),
    **dict.fromkeys(("use_rslora", "use_dora"), SWITCH),
}
# what changes nothing once an adapter is trained, or is said by the tensors themselves
PASSED_OVER = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "inference_mode"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "bias"),
    *("lora_dropout", "fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "init_lora_weights"),
}
STARTS = (True, False, None, "gaussian", "orthogonal")  # of the matrices; others change the base's weights as well


def adapter_files(folder: Path) -> list[Path]:
    """The files of an adapter in a folder."""
    return [folder / name for name in (CONFIG_FILE, *ADAPTER_WEIGHTS) if (folder / name).exists()]


def read_adapter(folder: Path) -> Adapter | None:
    """The adapter that lies in a folder, None where none does; InputError for one that cannot be merged here."""
    files = adapter_files(folder)
    if not files:
        return None
    if len(files) != 2 or files[0].name != CONFIG_FILE:
        names = Joined("、", (file.name for file in files))
        raise InputError("文件夹 {} 中的适配器（PEFT、LoRA）不完整或不止一个：{}；{}", folder, names, MERGE_FIRST)
    return Adapter(folder, _read_fields(files[0]), _read_weights(files[1]))


def _read_fields(file: Path) -> dict:
    config = read_json(file)
    kind = str(config.get("peft_type"))[:40]
    if kind not in KINDS:
        raise InputError("{} 中的适配器是 {}，本工具只合并 {}；{}", file, kind, Joined("、", KINDS), MERGE_FIRST)
    strange = [name for name, value in config.items() if value and name not in FIELDS and name not in PASSED_OVER]
    strange += [] if config.get("init_lora_weights") in STARTS else ["init_lora_weights"]
    if strange:
        raise InputError("{} 中的 {} 不受支持；{}", file, Joined("、", strange[:3]), MERGE_FIRST)
    return check_fields(config, FIELDS, file)


def _read_weights(file: Path) -> dict:
    """The tensors of an adapter in float32, without the prefix that peft puts before their names."""
    content = fields_of(read_checkpoint_file(file)) or {}
    content = fields_of(content.get("state_dict", content)) or {}
    strange = [str(name) for name, tensor in content.items() if not _is_of_numbers(tensor)]
    if strange:
        raise CheckpointError("{} 中有不是有限浮点数张量的内容：{}；{}", file, first_names(strange), MERGE_FIRST)
    return {str(name).removeprefix("base_model.model."): tensor.float() for name, tensor in content.items()}


def _is_of_numbers(tensor) -> bool:
    """Whether it is a plain tensor of finite real numbers."""
    plain = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
    return plain and bool(tensor.float().isfinite().all())  # torch does not tell it of 8 bits


# -- the model that an adapter belongs to -----------------------------------------------------


def base_of(folder: Path) -> Path:
    """The folder or the file that an adapter says it was trained on; InputError where it is not on this machine.

    Looked for in the adapter's folder, here, and in the local cache of the model hub; nothing is downloaded.
    """
    file = folder / CONFIG_FILE
    name = read_json(file).get("base_model_name_or_path") if file.is_file() else None
    path = _local_path(name, folder) if isinstance(name, str) and name.isprintable() and len(name) <= 1000 else None
    if path is None:
        shown = str(name)[:80]
        raise InputError(
            "{} 中只有适配器，它的基础模型 {} 不在本机；请把基础模型的文件放进同一文件夹，或在 {} 的 "
            "base_model_name_or_path 中写明它的本地文件夹",
            folder,
            shown,
            CONFIG_FILE,
        )
    if adapter_files(path if path.is_dir() else path.parent):
        raise InputError("适配器 {} 的基础模型 {} 旁也有适配器；{}", folder, path, MERGE_FIRST)
    return path


def _local_path(name: str, folder: Path) -> Path | None:
    """Where a name out of a stranger's file leads on this machine; a path on the network leads nowhere."""
    if not name or name.startswith(("//", "\\\\")):
        return None
    there = (
        path for path in (folder / name, Path(name)) if os.path.exists(path) and path.resolve() != folder.resolve()
    )
    return next(there, hub_folder(name) if REPOSITORY.fullmatch(name) else None)


# -- merging ----------------------------------------------------------------------------------

MATRIX = re.compile(r"(.+)\.lora_(?:(?:embedding_)?[AB]|magnitude_vector)(?:\.weight)?")


def merge_adapter(adapter: Adapter, weights: Mapping[str, torch.Tensor]) -> dict:
    """The weights of a model with an adapter of it merged in, by the names that they have without it.

    What an adapter saves whole (`modules_to_save`, biases) takes the place of the base's. InputError where the base is
    another model, or peft is not installed.
    """
    whole = {name.replace(".base_layer.", "."): t for name, t in adapter.weights.items() if not MATRIX.fullmatch(name)}
    matrices = {name: tensor for name, tensor in adapter.weights.items() if MATRIX.fullmatch(name)}
    adapted = list(dict.fromkeys(MATRIX.fullmatch(name)[1] for name in matrices))
    if not adapted:
        raise CheckpointError("{} 的适配器中没有 LoRA 的矩阵；{}", adapter.folder, MERGE_FIRST)
    prefix = _common_prefix([*(f"{name}.weight" for name in adapted), *whole], weights, adapter.folder)
    merged = dict(weights)
    for name, tensor in whole.items():
        if tensor.shape != weights[prefix + name].shape:
            raise CheckpointError("{} 的适配器中 {} 的形状与基础模型的不同；{}", adapter.folder, name, MERGE_FIRST)
        merged[prefix + name] = tensor
    bases = {name: merged[f"{prefix}{name}.weight"] for name in adapted}
    with as_input_error(Message("无法把 {} 的适配器并入基础模型；{}", adapter.folder, MERGE_FIRST)):
        try:
            changed = _merge(adapter.fields, matrices, bases)
        except CheckpointError as error:
            raise CheckpointError("{} 的适配器无法并入基础模型：{}；{}", adapter.folder, error, MERGE_FIRST) from error
    return merged | {f"{prefix}{name}.weight": tensor for name, tensor in changed.items()}


def _common_prefix(names: list[str], weights: Mapping, folder: Path) -> str:
    """What stands before all of the adapter's names among the base's: an adapter may have been trained on a part."""
    first = names[0]
    prefixes = {key.removesuffix(first) for key in weights if key == first or key.endswith(f".{first}")}
    prefixes = [prefix for prefix in prefixes if all(prefix + name in weights for name in names)]
    if len(prefixes) != 1:
        raise CheckpointError(
            "{} 的适配器与基础模型不符：其中的 {} 等 {} 个权重在基础模型中没有唯一的位置；{}",
            folder,
            first,
            len(names),
            MERGE_FIRST,
        )
    return prefixes[0]


def _merge(fields: Mapping, matrices: Mapping, bases: Mapping) -> dict:
    """{layer: its weight with its matrices merged in}, by peft. Sizes are compared before peft makes any of its own."""
    network = torch.nn.Module()
    for name, weight in bases.items():
        copy = weight.to(torch.float32, copy=True)  # peft adds to it in place, and the base's may be a mapped file
        _place(network, name, _bare_layer(copy, f"{name}.lora_embedding_A" in matrices))
    patterns = {name: fields.get(name) or {} for name in ("rank_pattern", "alpha_pattern")}
    for name in bases:
        _check_shapes(name, fields.get("r", 8), patterns["rank_pattern"], matrices, bases[name].shape)
    sizes = {name: fields[name] for name in ("r", "lora_alpha", "use_rslora", "use_dora") if name in fields}
    config = peft.LoraConfig(target_modules=list(bases), init_lora_weights=False, **sizes, **patterns)
    model = peft.get_peft_model(network, config)
    loaded = peft.set_peft_model_state_dict(
        model, {f"base_model.model.{name}": tensor for name, tensor in matrices.items()}
    )
    missing = [name for name in loaded.missing_keys if ".lora_" in name]
    if missing or loaded.unexpected_keys:
        raise CheckpointError("权重不全或没有位置：{}", first_names([*missing, *loaded.unexpected_keys]))
    with torch.no_grad():
        model.merge_and_unload()
    return {name: network.get_submodule(name).weight.detach() for name in bases}


def _check_shapes(name: str, rank: int, patterns: Mapping, matrices: Mapping, shape: Sequence[int]) -> None:
    """CheckpointError where a layer's matrices are not those of the config's rank, by which peft makes its own.

    `shape`: of the layer's weight.
    """
    pattern = next((key for key in patterns if re.match(rf"(.*\.)?({key})$", name)), None)  # as peft matches
    rank, (features, *inner) = patterns.get(pattern, rank), shape
    shapes = {"A.weight": (rank, *inner), "B.weight": (features, rank, *(1 for _ in inner[1:]))}
    if f"{name}.lora_embedding_A" in matrices:
        shapes = {"embedding_A": (rank, features), "embedding_B": (*inner, rank)}
    for part, expected in shapes.items():
        matrix = matrices.get(f"{name}.lora_{part}")
        if matrix is None or matrix.shape != expected:
            shown = Message("无") if matrix is None else list(matrix.shape)
            raise CheckpointError(
                "{} 的矩阵与 {} 所说的秩 {} 不符：lora_{} 应是 {}，读到的是 {}",
                *(name, CONFIG_FILE, rank, part, list(expected), shown),
            )


def _bare_layer(weight, is_embedding: bool):
    """A layer of torch that has this weight and nothing else."""
    if weight.ndim not in (2, 4):
        raise CheckpointError("权重的形状是 {}，不是线性层、卷积或嵌入", list(weight.shape))
    with torch.device("meta"):
        if weight.ndim == 4:
            layer = torch.nn.Conv2d(weight.shape[1], len(weight), tuple(weight.shape[2:]), bias=False)
        elif is_embedding:
            layer = torch.nn.Embedding(*weight.shape)
        else:
            layer = torch.nn.Linear(weight.shape[1], len(weight), bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer


def _place(network, path: str, layer) -> None:
    """Put a layer where its dotted name says, with plain modules on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in network._modules:
            network.add_module(parent, torch.nn.Module())
        network = network._modules[parent]
    network.add_module(name, layer)
