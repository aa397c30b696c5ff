"""A checkpoint file as a mapping of tensors and plain data; nothing that stands in it is executed.

read_checkpoint_file("clip_model.pth") -> {"model_state_dict": {...}, "config": {...}}
"""

import argparse
import collections
import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from ..errors import CheckpointError, InputError
from ..heavy import safetensors, torch
from .torchscript import is_torchscript, read_torchscript


def allow_safe_globals() -> None:
    """Let `torch.load(weights_only=True)` build the plain data that training scripts put beside weights.

    numpy scalars and arrays, argparse.Namespace, pathlib paths and the standard containers: none of
    them runs code of the file's choosing. Names of numpy 1 and 2 and of either operating system load
    on every machine; a path comes back as a pure path, which opens nothing.
    """
    allowed = [argparse.Namespace, collections.OrderedDict, collections.Counter, set, frozenset, slice, range, complex]
    allowed += [(_plain_dict, "collections.defaultdict"), (_plain_list, "collections.deque")]
    allowed += [dict, list, tuple, int, float, str, bool, bytes]
    for module in ("pathlib", "pathlib._local"):
        allowed += [(PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")]
        allowed += [(PureWindowsPath, f"{module}.{name}") for name in ("WindowsPath", "PureWindowsPath")]
    allowed += [np.dtype, np.ndarray, *{type(np.dtype(code)) for code in PLAIN_DTYPES}]
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (reconstruct, f"{module}._reconstruct")]
    torch.serialization.add_safe_globals(allowed)


def _plain_dict(*default_factory):
    """What a defaultdict comes back as: the unpickler fills dicts of no other kind."""
    return {}


def _plain_list(*items_and_length):
    """What a deque comes back as."""
    return []


PLAIN_DTYPES = "?bBhHiIlLqQefdgFDGSUMm"  # numpy's codes of all but object and void
MAPPED_FROM_BYTES = 100_000_000


def read_torch_file(path: Path, mapped: bool | None = None) -> Mapping:
    """`torch.load` of a `.pth` without executing anything in it, memory-mapped where the format allows.

    torch's format before 1.6 is no zip and cannot be mapped. A mapped file that a running training
    overwrites ends the process without a word, so by default only those that are worth it are; with
    `mapped=True` all: the caller copies at once what is needed, and drops the rest unread.
    Raises CheckpointError with the name of the first object that is no tensor and no plain data.
    """
    allow_safe_globals()
    try:
        worth_it = path.stat().st_size > MAPPED_FROM_BYTES if mapped is None else mapped
        mmap = worth_it and zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        refused = _refused_names(path, error)
        if not refused:
            raise
        raise CheckpointError(
            f"检查点 {path} 中含有 {'、'.join(refused[:3])}，载入它可能执行任意代码，已拒绝；"
            "请在训练环境中只保存权重后重试："
            f'ckpt = torch.load("{path.name}", weights_only=False)；'
            'torch.save({"model_state_dict": ckpt["model_state_dict"], "config": {...}}, "weights.pth")'
        ) from error


def _refused_names(path: Path, error: pickle.UnpicklingError) -> list[str]:
    """The names in a file that torch refuses: what it lists, or for its format before 1.6 the one that it speaks of."""
    with contextlib.suppress(ValueError):
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return sorted(names)
    named = re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'", str(error))
    return [named[1] or named[2]] if named else []


def read_safetensors(path: Path) -> Mapping:
    """The tensors of a `.safetensors` file, memory-mapped, with the file's metadata strings as its config."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = file.metadata() or {}
    return {"state_dict": tensors, "config": {key: _read_string(value) for key, value in metadata.items()}}


def _read_string(value: str):
    """safetensors keeps metadata as strings: numbers and JSON objects come back as what they were."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def read_checkpoint_file(path: str | os.PathLike, mapped: bool | None = None) -> Mapping:
    """Read a `.pth` or `.safetensors` file, memory-mapped (see `read_torch_file`); nothing in it is executed.

    Of a TorchScript archive the tensors are read. Raises InputError where the file is missing, cut short, no
    checkpoint, or holds objects beyond tensors and plain data.
    """
    path = Path(path)
    if not path.is_file():
        folder = "（是文件夹，但其中没有 config.json）" if path.is_dir() else ""
        raise InputError(f"找不到检查点文件：{path}{folder}")
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        return read_torchscript(path) if is_torchscript(path) else read_torch_file(path, mapped)
    except InputError:
        raise
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, ... on a bad file
        torchs_own = isinstance(error, pickle.UnpicklingError)  # its text speaks of torch.load's own options
        reason = "不是 PyTorch 保存的文件" if torchs_own else re.split(r"[.:\n] ?", str(error).strip())[0][:80]
        raise InputError(f"无法读取检查点 {path}：文件不完整、已损坏或不是检查点（{reason}）") from error
