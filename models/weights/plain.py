"""What a pickle may stand for: plain data, and objects that do nothing.

A name is two strings, never what they stand for. FUNCTIONS says which of them make plain data, by functions of our own
that check their arguments: they are a stranger's. An object of any other class is an `Opaque`.
"""

from __future__ import annotations

import argparse
import math
import re
import types
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import NamedTuple

import numpy as np

from ..errors import OneLine
from ..heavy import torch
from ..messages import Message

LONGEST_KEY = 16  # members of a tuple that is a key
LARGEST_KEY = 1 << 60  # larger numbers can be chosen so that all of them meet in one place of a dict


class BadPickle(OneLine, ValueError):
    """What stands in the file is no pickle of plain data; the message says why."""


class Name(NamedTuple):
    """A function or class that a pickle names: two strings, never what they stand for."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


class Opaque:
    """An object of a class that is not ours to build: what the file says of it, and no behaviour."""

    __slots__ = ("arguments", "members", "name", "state")

    def __init__(self, name, arguments=()):
        self.name, self.arguments = name, arguments
        self.state: dict = {}  # its attributes
        self.members: dict = {}  # what it holds as a mapping

    def __repr__(self):
        return f"<{self.name}>"


class UnusableTensor(NamedTuple):
    """A tensor that is no dense array of real numbers in the file: `kind` says what it is."""

    kind: Message


class Storage(NamedTuple):
    """The bytes behind tensors: `untyped` is torch's, None while only sizes are asked for."""

    dtype: torch.dtype
    count: int
    untyped: object | None = None


# ---------------------------------------------------------------------------------------------
# What a name may stand for. Each function checks its arguments: they are a stranger's.

CONTAINERS = (list, tuple, set, frozenset, dict)


def _members(items=()):
    """The members of a container that stands in the file; counts (`range(10**9)`) are none."""
    if type(items) not in CONTAINERS:
        raise BadPickle("其中要由 {} 生成一个容器", type(items).__name__)
    return items


def _dict(items=()):
    pairs = items.items() if isinstance(items, dict) else _members(items)
    return {as_key(key): value for key, value in pairs}


def as_set(items=()):
    return {as_key(item) for item in _members(items)}


def _encoded(text, encoding="utf-8", errors="strict"):
    """`codecs.encode`, and `bytes` of a text: how older pickles write bytes."""
    if isinstance(text, (bytes, bytearray)):
        return bytes(text)
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise BadPickle("其中的字节串写法不明")
    return text.encode(encoding)


def _scalar(kind):
    def convert(value=0):
        if not isinstance(value, (bool, int, float, str)) or isinstance(value, str) and len(value) > 1000:
            raise BadPickle("其中的 {} 写法不明", kind.__name__)
        return kind(value)

    return convert


def _path(flavour):
    return lambda *parts: str(flavour(*(part for part in parts if isinstance(part, str))))


# -- numpy: arrays of numbers and of texts


class Dtype:
    """numpy's dtype as a code; numpy's own constructor never sees what a file says."""

    __slots__ = ("code",)
    PLAIN = re.compile(r"[<>=|]?(b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16)|[SU][1-9]\d{0,4}|\?)")

    def __init__(self, code="", *_):
        self.code = code if isinstance(code, str) and self.PLAIN.fullmatch(code) else None

    def set_state(self, state):
        """(version, byte order, subdtype, names, fields, ...): only the order may say something."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None) or self.code is None:
            self.code = None
        elif state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>=|")

    def numpy(self):
        """The dtype itself; None where the file's is none of numbers or texts."""
        return None if self.code is None else np.dtype(self.code)


class Array:
    """numpy's array between the two steps in which a pickle makes one."""

    __slots__ = ("places",)

    def __init__(self):
        self.places: list[int] = []  # in the memo, where the array itself is to stand


def _numpy_array(data, dtype, shape, order="C"):
    """Bytes -> an array of its own; an Opaque where the dtype is none of ours, BadPickle where sizes disagree."""
    dtype = dtype.numpy() if isinstance(dtype, Dtype) else None
    if dtype is None or not isinstance(data, (bytes, bytearray)):
        return Opaque(Name("numpy", "ndarray"))
    sides = shape if isinstance(shape, tuple) else (shape,)
    if not all(type(side) is int and 0 <= side < LARGEST_KEY for side in sides) or len(sides) > 32:
        raise BadPickle("其中的 numpy 数组形状不明")
    if math.prod(sides) * dtype.itemsize != len(data):
        raise BadPickle("其中的 numpy 数组的形状与字节数不符")
    return np.frombuffer(bytes(data), dtype).reshape(sides, order="F" if order in ("F", True) else "C").copy()


def _numpy_from_buffer(data, dtype, shape, order="C", axes=None):
    """An array of protocol 5; `axes`: how its memory is turned, where the order is K."""
    array = _numpy_array(data, dtype, shape, order)
    return array.transpose(axes) if axes is not None and isinstance(array, np.ndarray) else array


def _numpy_scalar(dtype, data=b""):
    """A number or text as Python's own."""
    value = _numpy_array(data, dtype, ())
    return value if isinstance(value, Opaque) else value.item()


def array_of_state(state):
    """An array of what BUILD says of one: (version, shape, dtype, whether by columns, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise BadPickle("其中的 numpy 数组写法不明")
    _, shape, dtype, by_columns, data = state
    return _numpy_array(data, dtype, shape, bool(by_columns))


# -- torch

REAL = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
REAL_8_BITS = "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
OTHERS = "complex128 complex64 complex32 qint8 quint8 qint32 quint4x2 quint2x4"
STORAGES = {
    **{"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"},
    **{"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128", "QInt8": "qint8", "QUInt8": "quint8"},
    **{"QInt32": "qint32", "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4"},
}


def _dtypes() -> dict[str, torch.dtype]:
    """torch's dtypes by their names, and by those of its classes of storages."""
    names = f"{REAL} {REAL_8_BITS} {OTHERS}".split()
    named = {name: getattr(torch, name) for name in names if hasattr(torch, name)}
    storages = {f"{name}Storage": named[dtype] for name, dtype in STORAGES.items() if dtype in named}
    return {**named, **storages}


_DTYPES: dict[str, torch.dtype] = {}


def dtype_of(name) -> torch.dtype:
    """The dtype that a name of torch stands for, `float16` or `HalfStorage`; BadPickle for any other."""
    if not _DTYPES:
        _DTYPES.update(_dtypes())
    is_torchs = isinstance(name, Name) and name.module in ("torch", "torch.storage", "torch.cuda")
    if not is_torchs or name.name not in _DTYPES:
        raise BadPickle("其中有张量的类型不明：{}", name)
    return _DTYPES[name.name]


def _tensor(storage, offset, size, stride, *_, dtype=None):
    """A tensor over a file's own storage, its shape checked against the storage's bytes."""
    if not isinstance(storage, Storage):
        raise BadPickle("其中有张量没有数据")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise BadPickle("其中有张量的形状不明")
    dtype = dtype or storage.dtype
    if str(dtype).startswith(("torch.q", "torch.bits")):
        return UnusableTensor(Message("量化张量"))
    if storage.untyped is None:
        return None
    last = offset + sum((side - 1) * step for side, step in zip(size, stride)) + 1
    held = storage.untyped.nbytes() // dtype.itemsize
    if math.prod(size) > max(held, 1 << 20) or (0 not in size and last > held):
        raise BadPickle("其中有张量的形状大于它的数据")
    return torch.empty(0, dtype=dtype).set_(storage.untyped, offset, torch.Size(size), stride)


def _tensor_of_dtype(storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    """`_rebuild_tensor_v3`: the storage has no type of its own."""
    return _tensor(storage, offset, size, stride, dtype=dtype_of(dtype))


def _tensor_of_type(function, kind, arguments, *_):
    """`_rebuild_from_type_v2`: a tensor of a subclass, or with attributes: the tensor that it was made of."""
    return call(function, arguments, [])


def _unusable(kind):
    return lambda *_: UnusableTensor(kind)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
FUNCTIONS: dict[Name, Callable] = {
    **{Name("builtins", kind.__name__): _scalar(kind) for kind in (int, float, bool, str)},
    Name("builtins", "complex"): lambda *parts: complex(*map(_scalar(float), parts)),
    Name("builtins", "list"): lambda items=(): list(_members(items)),
    Name("builtins", "tuple"): lambda items=(): tuple(_members(items)),
    Name("builtins", "dict"): _dict,
    Name("builtins", "set"): as_set,
    Name("builtins", "frozenset"): as_set,
    Name("builtins", "bytes"): lambda *value: _encoded(*value or (b"",)),
    Name("builtins", "bytearray"): lambda *value: _encoded(*value or (b"",)),
    Name("builtins", "range"): lambda *ends: [*ends],
    Name("builtins", "slice"): lambda *ends: [*ends],
    Name("_codecs", "encode"): _encoded,
    Name("collections", "OrderedDict"): _dict,
    Name("collections", "Counter"): _dict,
    Name("collections", "defaultdict"): lambda factory=None, items=(): _dict(items),
    Name("collections", "deque"): lambda items=(), longest=None: list(_members(items)),
    **{Name(_m, "scalar"): _numpy_scalar for _m in _NUMPY},
    **{Name(_m, "_reconstruct"): lambda *_: Array() for _m in _NUMPY},
    **{Name(_m.replace("multiarray", "numeric"), "_frombuffer"): _numpy_from_buffer for _m in _NUMPY},
    Name("numpy", "dtype"): Dtype,
    Name("torch", "Size"): lambda sides=(): tuple(_members(sides)),
    Name("torch", "device"): lambda *parts: ":".join(str(part) for part in parts if isinstance(part, (str, int))),
    Name("torch._utils", "_rebuild_tensor"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    Name("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    Name("torch._tensor", "_rebuild_from_type_v2"): _tensor_of_type,
    Name("torch.serialization", "_get_layout"): lambda layout: layout,
    Name("torch._utils", "_rebuild_sparse_tensor"): _unusable(Message("稀疏张量")),
    Name("torch._utils", "_rebuild_qtensor"): _unusable(Message("量化张量")),
    Name("torch._utils", "_rebuild_nested_tensor"): _unusable(Message("嵌套张量")),
    Name("torch._utils", "_rebuild_meta_tensor_no_storage"): _unusable(Message("没有数值的 meta 张量")),
    **{
        Name("torch.jit._pickle", f"build_{kind}list"): lambda items: list(_members(items))
        for kind in ("int", "double", "bool", "tensor")
    },
    Name("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
    **{
        Name(_m, _n): _path(flavour)
        for _m in ("pathlib", "pathlib._local")
        for flavour, names in (
            (PurePosixPath, ("PosixPath", "PurePosixPath")),
            (PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for _n in names
    },
}

# Objects that hold plain data by name: nothing is lost by reading their state alone, so nothing is said.
HOLDERS = {Name("argparse", "Namespace"), Name("types", "SimpleNamespace")}

# No training saves these: a file that names one was made to run code. Refused for the user's sake; not one of them,
# nor any other name, is ever called.
ATTACK_MODULES = {"os", "posix", "nt", "subprocess", "pty", "socket", "shutil", "ctypes", "runpy", "webbrowser"}
ATTACK_MODULES |= {"sys", "commands", "importlib", "code", "pdb", "timeit", "cProfile", "asyncio", "multiprocessing"}
ATTACKS = {Name("io", "open"), Name("_io", "open")}
ATTACKS |= {Name("builtins", name) for name in ("eval", "exec", "compile", "open", "__import__", "input", "breakpoint")}
OLDER_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def as_key(key):
    """A dict's key or a set's member: a scalar, or a short tuple of scalars, that is cheap to hash."""
    if isinstance(key, (str, bytes, float, Name, Opaque)) or key is None:
        return key
    if isinstance(key, int) and abs(key) < LARGEST_KEY:
        return key
    if isinstance(key, tuple) and len(key) <= LONGEST_KEY:
        return tuple(as_key(part) if not isinstance(part, tuple) else str(type(part)) for part in key)
    raise BadPickle("其中有 {} 作为键", type(key).__name__)


def call(function, arguments, passed_over: list[str]):
    """What a call gives: our function's value, or an Opaque that is never more than its name and arguments."""
    if not isinstance(arguments, tuple):
        raise BadPickle("其中有没有参数的调用")
    if function in (Name("copyreg", "_reconstructor"), Name("copyreg", "__newobj__")) and arguments:
        return make_object(arguments[0], arguments[1:], passed_over)
    if isinstance(function, Name) and function in FUNCTIONS:
        return FUNCTIONS[function](*arguments)
    return make_object(function, arguments, passed_over)


def make_object(kind, arguments, passed_over: list[str]):
    """An object of a class: plain where the class is, else an Opaque."""
    if isinstance(kind, Name) and kind in FUNCTIONS and kind.module in ("builtins", "collections"):
        return FUNCTIONS[kind](*(argument for argument in arguments if not isinstance(argument, Name)))
    if isinstance(kind, Name) and kind not in HOLDERS:
        passed_over.append(str(kind))
    return Opaque(kind, tuple(arguments))


# ---------------------------------------------------------------------------------------------
# What was read, by name


MODULE_PARTS = ("_parameters", "_buffers", "_modules")  # where a module of torch keeps what it is made of


def fields_of(value) -> Mapping | None:
    """What a mapping, a namespace or an Opaque says by name; None for anything else.

    A module that was saved whole says its parameters, its buffers and its modules by their own names.
    """
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return vars(value)
    if not isinstance(value, Opaque):
        return None
    state = value.state
    passing = state.get("_non_persistent_buffers_set")
    parts = [state.get(name) for name in MODULE_PARTS]
    inner = {key: part[key] for part in parts if isinstance(part, dict) for key in part}
    if isinstance(passing, set):
        inner = {key: inner[key] for key in inner if key not in passing}
    attributes = {key: state[key] for key in state if key not in MODULE_PARTS}
    return {**value.members, **attributes, **inner}


def plain_value(value):
    """What an Opaque stands for, where it does: a node of OmegaConf, a member of an Enum; else the value itself."""
    if not isinstance(value, Opaque):
        return value
    if "_val" in value.state:
        return value.state["_val"]
    content = value.state.get("_content")
    if isinstance(content, (dict, list)):
        return [plain_value(item) for item in content] if isinstance(content, list) else content
    if len(value.arguments) == 1 and isinstance(value.arguments[0], (str, int, float)) and not fields_of(value):
        return value.arguments[0]
    return value
