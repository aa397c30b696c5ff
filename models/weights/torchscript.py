"""TorchScript archives (`torch.jit.save`, OpenAI's `.pt` files) read as data: tensors by name, nothing is executed.

`torch.jit.load` would run what the file says, and `torch.load(weights_only=True)` refuses such a file whole. This
reader takes the pickle of the zip, turns every `__torch__.*` object into a bag of attributes, and refuses by name
whatever is no tensor and no plain data.
"""

import os
import pickle
import re
import zipfile

from ..errors import CheckpointError
from ..heavy import torch

TORCHSCRIPT = "torchscript"  # key that tells a checkpoint which was such an archive


class _Module:
    """What any object of a TorchScript archive becomes: attributes, no behaviour."""

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})


class _Function:
    """A function that a pickle may call. Without a `__dict__`: a pickle cannot hang anything on it."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *arguments):
        return self._function(*arguments)


def _rebuild_tensor(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


_STORAGES = {
    **{"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"DoubleStorage": "float64", "LongStorage": "int64", "IntStorage": "int32"},
    **{"ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool"},
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("collections", "OrderedDict"): dict,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
    **{("torch.jit._pickle", name): list for name in _LISTS},
}


class _ArchiveUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain data; every other name that the pickle asks for is refused, by name."""

    def __init__(self, stream, archive: zipfile.ZipFile, folder: str):
        super().__init__(stream)
        self._archive, self._folder, self._read = archive, folder, {}

    def find_class(self, module, name):
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _STORAGES:
            return getattr(torch, _STORAGES[name])
        if (module, name) in _ALLOWED:
            return _Function(_ALLOWED[module, name])
        raise CheckpointError(f"其中含有 {module}.{name}，载入它可能执行任意代码，已拒绝；请换一个来源可信的文件")

    def persistent_load(self, identity):
        kind, dtype, key, _, count = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise CheckpointError("其中有张量以外的外部数据，已拒绝")
        if key not in self._read:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._read[key] = torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
        return self._read[key]


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is what `torch.jit.save` writes: a zip with constants.pkl, which other checkpoints have not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


def read_torchscript(path: str | os.PathLike) -> dict:
    """The tensors of a TorchScript archive by their dotted names, as {"state_dict": ..., TORCHSCRIPT: True}.

    The pickle reader calls nothing of the file's choosing.
    Raises CheckpointError with the name of the first object that is neither tensor nor plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", name))
            with archive.open(name) as stream:
                module = _ArchiveUnpickler(stream, archive, name.removesuffix("data.pkl")).load()
    except CheckpointError as error:
        raise CheckpointError(f"无法读取 {path}：{error}") from error
    except Exception as error:  # whatever a damaged pickle makes of our functions
        raise CheckpointError(f"无法读取 {path}：TorchScript 文件不完整或已损坏（{type(error).__name__}）") from error
    return {"state_dict": dict(_tensors(module)), TORCHSCRIPT: True}


def _tensors(module, prefix: str = ""):
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
