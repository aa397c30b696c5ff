"""Pickles read as plain data: nothing that stands in one is imported or called.

    value, passed_over = read_pickle(stream)

A pickle is a program for a stack machine that may call any function of any library. This machine has no way to: a name
is two strings, a call looks its name up in FUNCTIONS, whose entries are our own and make plain data only (dicts, lists,
strings, numbers, arrays of numbers from shape, dtype and bytes that agree, tensors over a file's own storages), and an
object of any other class becomes an `Opaque`, which holds what was given to it and does nothing. Sizes are checked
before memory is taken, so a small file stays small.
"""

from __future__ import annotations

import argparse
import math
import pickletools
import re
import types
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO, NamedTuple

import numpy as np

from ..errors import CheckpointError
from ..heavy import torch

LARGEST_PICKLE = 64 << 20  # bytes; those of the largest models with their optimizers have a few
MOST_OPCODES = 3_000_000  # each may make an object; the largest models with their optimizers have a million
LONGEST_KEY = 16  # members of a tuple that is a key
LARGEST_KEY = 1 << 60  # larger numbers can be chosen so that all of them meet in one place of a dict


class BadPickle(ValueError):
    """What stands in the file is no pickle of plain data; the message says why, in Chinese."""


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
    """A tensor that is no dense array of real numbers in the file: `kind` says in Chinese what it is."""

    kind: str


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
        raise BadPickle(f"其中要由 {type(items).__name__} 生成一个容器")
    return items


def _dict(items=()):
    pairs = items.items() if isinstance(items, dict) else _members(items)
    return {as_key(key): value for key, value in pairs}


def _set(items=()):
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
            raise BadPickle(f"其中的 {kind.__name__} 写法不明")
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
        raise BadPickle(f"其中有张量的类型不明：{name}")
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
        return UnusableTensor("量化张量")
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
    return _apply(function, arguments, [])


def _unusable(kind):
    return lambda *_: UnusableTensor(kind)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
FUNCTIONS: dict[Name, Callable] = {
    **{Name("builtins", kind.__name__): _scalar(kind) for kind in (int, float, bool, str)},
    Name("builtins", "complex"): lambda *parts: complex(*map(_scalar(float), parts)),
    Name("builtins", "list"): lambda items=(): list(_members(items)),
    Name("builtins", "tuple"): lambda items=(): tuple(_members(items)),
    Name("builtins", "dict"): _dict,
    Name("builtins", "set"): _set,
    Name("builtins", "frozenset"): _set,
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
    Name("torch._utils", "_rebuild_sparse_tensor"): _unusable("稀疏张量"),
    Name("torch._utils", "_rebuild_qtensor"): _unusable("量化张量"),
    Name("torch._utils", "_rebuild_nested_tensor"): _unusable("嵌套张量"),
    Name("torch._utils", "_rebuild_meta_tensor_no_storage"): _unusable("没有数值的 meta 张量"),
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
    raise BadPickle(f"其中有 {type(key).__name__} 作为键")


def _apply(function, arguments, passed_over: list[str]):
    """What a call gives: our function's value, or an Opaque that is never more than its name and arguments."""
    if not isinstance(arguments, tuple):
        raise BadPickle("其中有没有参数的调用")
    if function in (Name("copyreg", "_reconstructor"), Name("copyreg", "__newobj__")) and arguments:
        return _make(arguments[0], arguments[1:], passed_over)
    if isinstance(function, Name) and function in FUNCTIONS:
        return FUNCTIONS[function](*arguments)
    return _make(function, arguments, passed_over)


def _make(kind, arguments, passed_over: list[str]):
    """An object of a class: plain where the class is, else an Opaque."""
    if isinstance(kind, Name) and kind in FUNCTIONS and kind.module in ("builtins", "collections"):
        return FUNCTIONS[kind](*(argument for argument in arguments if not isinstance(argument, Name)))
    if isinstance(kind, Name) and kind not in HOLDERS:
        passed_over.append(str(kind))
    return Opaque(kind, tuple(arguments))


# ---------------------------------------------------------------------------------------------
# The machine


class Stream:
    """The first bytes of a file, at most `limit` of them; asks for no more memory than there are bytes."""

    def __init__(self, file: BinaryIO, limit: int = LARGEST_PICKLE):
        self._file, self._left = file, limit

    def read(self, count: int) -> bytes:
        return self._taken(self._file.read(min(count, self._left + 1)))

    def readline(self) -> bytes:
        return self._taken(self._file.readline(self._left + 1))

    def _taken(self, data: bytes) -> bytes:
        self._left -= len(data)
        if self._left < 0:
            raise BadPickle(f"其中的 pickle 超过 {LARGEST_PICKLE >> 20} MB")
        return data


def read_pickle(stream, persistent_load: Callable | None = None) -> tuple[object, list[str]]:
    """(the value, the names of objects that were passed over).

    `persistent_load` gives a storage by what a pickle says of it. BadPickle where it is no pickle of plain data,
    CheckpointError by name where it was made to run code.
    """
    machine = _Machine(persistent_load)
    try:
        return machine.run(stream), machine.passed_over
    except (BadPickle, CheckpointError, MemoryError, OSError):
        raise
    except Exception as error:  # what a damaged pickle makes of a stack, or of our functions' arguments
        raise BadPickle("其中的 pickle 已损坏") from error


def _pushes(make: Callable):
    """A step that pushes what `make` gives."""
    return lambda machine, _: machine.push(make())


def _joins(count: int):
    """A step that makes a tuple of the last `count` objects."""

    def step(machine, _):
        items = machine.pop_last(count)
        machine.push(tuple(items))

    return step


class _Machine:
    """The stack machine of pickle's protocols 0 to 5. `_marked` holds the stacks below the marks."""

    def __init__(self, persistent_load: Callable | None):
        self.passed_over: list[str] = []
        self._persistent_load = persistent_load
        self._stack: list = []
        self._marked: list[list] = []
        self._memo: dict[int, object] = {}

    def run(self, stream):
        """The value that a pickle leaves on the stack."""
        steps = {name: getattr(self, method) for name, method in STEPS.items()}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            name = opcode.name
            if name in PUSHED:
                self._stack.append(argument)
            elif name == "STOP":
                break
            elif name in steps:
                steps[name](argument)
            elif name not in IGNORED:
                raise BadPickle(f"其中的 pickle 用到 {name}")
            if count > MOST_OPCODES:
                raise BadPickle("其中的 pickle 过长")
        return self._stack.pop()

    def push(self, value) -> None:
        self._stack.append(value)

    def pop_last(self, count: int) -> list:
        """Take the last objects off the stack."""
        items = self._stack[-count:]
        if len(items) < count:
            raise BadPickle("其中的 pickle 已损坏")
        del self._stack[-count:]
        return items

    def _to_mark(self) -> list:
        items, self._stack = self._stack, self._marked.pop()
        return items

    # -- the stack and the memo

    def _mark(self, _):
        self._marked.append(self._stack)
        self._stack = []

    def _pop(self, _):
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _pop_mark(self, _):
        self._to_mark()

    def _dup(self, _):
        self.push(self._stack[-1])

    def _put(self, index):
        self._memo[index] = self._stack[-1]
        if isinstance(self._stack[-1], Array):
            self._stack[-1].places.append(index)

    def _memoize(self, _):
        self._put(len(self._memo))

    def _get(self, index):
        self.push(self._memo[index])

    # -- containers

    _none, _true, _false = map(_pushes, (lambda: None, lambda: True, lambda: False))
    _empty_list, _empty_tuple, _empty_dict, _empty_set = map(_pushes, (list, tuple, dict, set))
    _tuple1, _tuple2, _tuple3 = map(_joins, (1, 2, 3))

    def _list(self, _):
        items = self._to_mark()
        self.push(items)

    def _tuple(self, _):
        items = tuple(self._to_mark())
        self.push(items)

    def _frozenset(self, _):
        items = _set(self._to_mark())
        self.push(items)

    def _dict(self, _):
        items = self._to_mark()
        self.push({as_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})

    def _append(self, _):
        item = self._stack.pop()
        self._extend(self._stack[-1], [item])

    def _appends(self, _):
        items = self._to_mark()
        self._extend(self._stack[-1], items)

    def _extend(self, target, items):
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Opaque):  # a list's subclass: nothing of ours asks for it
            target.arguments = (*target.arguments, *items) if len(target.arguments) < 1000 else target.arguments
        else:
            raise BadPickle("其中的 pickle 已损坏")

    def _setitem(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        self._set(self._stack[-1], [key, value])

    def _setitems(self, _):
        items = self._to_mark()
        self._set(self._stack[-1], items)

    def _set(self, target, items):
        members = target.members if isinstance(target, Opaque) else target
        if type(members) is not dict or len(items) % 2:
            raise BadPickle("其中的 pickle 已损坏")
        for key, value in zip(items[::2], items[1::2]):
            members[as_key(key)] = value

    def _additems(self, _):
        items = self._to_mark()
        if type(self._stack[-1]) is not set:
            raise BadPickle("其中的 pickle 已损坏")
        self._stack[-1].update(map(as_key, items))

    # -- names, calls and states

    def _name(self, module, name):
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadPickle("其中的 pickle 已损坏")
        named = Name(OLDER_MODULES.get(module, module), {"xrange": "range", "unicode": "str"}.get(name, name))
        if named in ATTACKS or named.module.partition(".")[0] in ATTACK_MODULES:
            raise CheckpointError(f"其中含有 {named}，这样的文件是用来执行代码的，已拒绝；请换一个来源可信的文件")
        return named

    def _global(self, argument):
        self.push(self._name(*argument.split(" ", 1)))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        self.push(self._name(module, name))

    def _reduce(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        self.push(_apply(function, arguments, self.passed_over))

    def _newobj(self, _):
        arguments, kind = self._stack.pop(), self._stack.pop()
        self.push(_make(kind, arguments, self.passed_over))

    def _newobj_ex(self, _):
        self._stack.pop()  # named arguments: nothing of ours has some
        self._newobj(None)

    def _inst(self, argument):
        arguments = tuple(self._to_mark())
        self.push(_make(self._name(*argument.split(" ", 1)), arguments, self.passed_over))

    def _obj(self, _):
        kind, *arguments = self._to_mark()
        self.push(_make(kind, tuple(arguments), self.passed_over))

    def _build(self, _):
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Dtype):
            target.set_state(state)
        elif isinstance(target, Array):
            self._stack[-1] = array = _array_of_state(state)
            self._memo.update(dict.fromkeys(target.places, array))
        elif isinstance(target, Opaque):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.state.update((key, value) for key, value in part.items() if isinstance(key, str))

    def _binpersid(self, _):
        if self._persistent_load is None:
            raise BadPickle("其中有张量以外的外部数据")
        self.push(self._persistent_load(self._stack.pop()))


def _array_of_state(state):
    """An array of what BUILD says of one: (version, shape, dtype, whether by columns, bytes)."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise BadPickle("其中的 numpy 数组写法不明")
    _, shape, dtype, by_columns, data = state
    return _numpy_array(data, dtype, shape, bool(by_columns))


PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8"),
}
IGNORED = {"PROTO", "FRAME"}
STEPS = {
    **{"MARK": "_mark", "POP": "_pop", "POP_MARK": "_pop_mark", "DUP": "_dup", "MEMOIZE": "_memoize"},
    **{"PUT": "_put", "BINPUT": "_put", "LONG_BINPUT": "_put", "GET": "_get", "BINGET": "_get", "LONG_BINGET": "_get"},
    **{"NONE": "_none", "NEWTRUE": "_true", "NEWFALSE": "_false", "EMPTY_LIST": "_empty_list", "LIST": "_list"},
    **{"EMPTY_TUPLE": "_empty_tuple", "TUPLE": "_tuple", "TUPLE1": "_tuple1", "TUPLE2": "_tuple2", "TUPLE3": "_tuple3"},
    **{"EMPTY_DICT": "_empty_dict", "DICT": "_dict", "EMPTY_SET": "_empty_set", "FROZENSET": "_frozenset"},
    **{"APPEND": "_append", "APPENDS": "_appends", "SETITEM": "_setitem", "SETITEMS": "_setitems"},
    **{"ADDITEMS": "_additems", "GLOBAL": "_global", "STACK_GLOBAL": "_stack_global", "REDUCE": "_reduce"},
    **{"NEWOBJ": "_newobj", "NEWOBJ_EX": "_newobj_ex", "INST": "_inst", "OBJ": "_obj", "BUILD": "_build"},
    **{"BINPERSID": "_binpersid"},
}


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
