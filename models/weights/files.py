"""A checkpoint file as a mapping of tensors and plain data; nothing that stands in it is executed.

read_checkpoint_file("clip_model.pth") -> {"model_state_dict": {...}, "config": {...}}
"""

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError, InputError, InputWarning
from ..heavy import safetensors, torch
from ..inputs import check_regular_file
from ..messages import Message
from .archives import BadArchive, is_legacy, is_torchscript, read_archive, read_legacy
from .modules import first_names
from .plain import BadPickle, Opaque, fields_of

MAPPED_FROM_BYTES = 100_000_000
LARGEST_HEADER = 16 << 20  # bytes of a `.safetensors` file's header: a hundred for each tensor
TORCHSCRIPT = "torchscript"  # key that tells a checkpoint which was an archive of TorchScript


def read_torch_file(path: Path, mapped: bool | None = None) -> Mapping:
    """What `torch.save` or `torch.jit.save` wrote: see `models.weights.pickles` for what becomes of it.

    torch's format before 1.6 is no zip and cannot be mapped. A mapped file that a running training overwrites ends the
    process without a word, so by default only those that are worth it are; with `mapped=True` all: the caller copies
    at once what is needed, and drops the rest unread. Objects that are no plain data are passed over, with a warning.
    BadPickle where it is damaged, CheckpointError where it was made to run code.
    """
    if zipfile.is_zipfile(path):
        scripted = is_torchscript(path)
        worth_it = path.stat().st_size > MAPPED_FROM_BYTES if mapped is None else mapped
        value, passed_over = read_archive(path, worth_it)
        if scripted:
            return {"state_dict": dict(_tensors_of(value)), TORCHSCRIPT: True}
    else:
        value, passed_over = read_legacy(path)
    if passed_over:
        _say_what_was_passed_over(path, passed_over)
    return fields_of(value) if isinstance(value, Opaque) else value  # an Opaque: a model that was saved whole


def _say_what_was_passed_over(path: Path, names: list[str]) -> None:
    kinds = list(dict.fromkeys(names))
    passed_over = Message("有 {} 种对象没有载入（{}）", len(kinds), first_names(kinds))
    message = Message("检查点 {} 中{}，只读取了其中的权重和普通数据", path.name, passed_over)
    warnings.warn(InputWarning(message), stacklevel=4)


def _tensors_of(module, prefix: str = "", depth: int = 0):
    """The tensors of a module of TorchScript by their dotted names."""
    for name, value in fields_of(module).items() if isinstance(module, Opaque) and depth < 100 else ():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, Opaque):
            yield from _tensors_of(value, f"{prefix}{name}.", depth + 1)


def read_safetensors(path: Path) -> Mapping:
    """The tensors of a `.safetensors` file, memory-mapped, with the file's metadata strings as its config."""
    with open(path, "rb") as file:
        if int.from_bytes(file.read(8), "little") > LARGEST_HEADER:
            raise BadArchive("文件头大得可疑")
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return {"state_dict": tensors, "config": file.metadata() or {}}


# What a file is that is none of ours, by its first bytes.
STRANGERS = (
    (rb"version https://git-lfs", Message("它是 Git LFS 的指针，不是权重本身；请在仓库中执行 git lfs pull")),
    (rb"\s*<(?:!doctype|html|\?xml)", Message("它是网页，不是权重；请重新下载")),
    (rb"\x89HDF", Message("它是 HDF5（Keras）文件")),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", Message("它是压缩包；请先解压")),
    (rb"(?s).{257}ustar", Message("它是 tar 包，或很旧的 PyTorch 保存的文件；请先解压，或用较新的 PyTorch 重新保存")),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM", Message("它是图像；--model-path 应是检查点")),
    (
        rb"\x80[\x02-\x05]",
        Message("它是 pickle，但不是 torch.save 保存的；请在训练环境中用 torch.save 保存 model.state_dict()"),
    ),
)


def read_checkpoint_file(path: str | os.PathLike, mapped: bool | None = None) -> Mapping:
    """Read a `.pth` or `.safetensors` file, memory-mapped (see `read_torch_file`); nothing in it is executed.

    Of a TorchScript archive the tensors are read. Raises InputError where the file is missing, cut short or no
    checkpoint, CheckpointError where it was made to run code.
    """
    path = Path(path)
    if not path.is_dir():
        check_regular_file(path, Message("无法读取检查点 {}", path))
    if not path.is_file():
        folder = Message("（是文件夹，但其中没有 config.json）") if path.is_dir() else ""
        raise InputError("找不到检查点文件：{}{}", path, folder)
    try:
        with open(path, "rb") as file:
            start = file.read(512)
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return read_safetensors(path)
        if not start or not zipfile.is_zipfile(path) and not is_legacy(start):
            raise BadArchive(_what_else(start))
        return read_torch_file(path, mapped)
    except CheckpointError as error:
        raise CheckpointError("无法读取检查点 {}：{}", path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # safetensors raises its own
        why = error if isinstance(error, BadPickle) else re.split(r"[.:\n] ?", str(error).strip())[0][:80]
        raise InputError("无法读取检查点 {}：文件不完整、已损坏或不是检查点（{}）", path, why) from error


def _what_else(start: bytes) -> Message:
    """What a file is whose first bytes are no checkpoint's."""
    if not start:
        return Message("文件是空的")
    cut = (
        Message("文件不完整，下载或复制时被截断") if start[:4] == b"PK\x03\x04" else Message("不是 PyTorch 保存的文件")
    )
    return next((what for pattern, what in STRANGERS if re.match(pattern, start, re.IGNORECASE)), cut)
