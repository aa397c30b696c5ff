"""Pickles read as plain data: nothing that stands in one is imported or called.

    value, passed_over = read_pickle(stream)

A pickle is a program for a stack machine that may call any function of any library. This machine has no way to: what a
name or a call becomes is said by `models.weights.plain`: plain data (dicts, lists, strings, numbers, arrays of numbers
from shape, dtype and bytes that agree, tensors over a file's own storages) and objects that do nothing. Sizes are
checked before memory is taken, so a small file stays small.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import BinaryIO

from ..errors import CheckpointError
from .plain import (
    ATTACK_MODULES,
    ATTACKS,
    OLDER_MODULES,
    Array,
    BadPickle,
    Dtype,
    Name,
    Opaque,
    array_of_state,
    as_key,
    as_set,
    call,
    make_object,
)

LARGEST_PICKLE = 64 << 20  # bytes; those of the largest models with their optimizers have a few
MOST_OPCODES = 3_000_000  # each may make an object; the largest models with their optimizers have a million


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
            raise BadPickle("其中的 pickle 超过 {} MB", LARGEST_PICKLE >> 20)
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
                raise BadPickle("其中的 pickle 用到 {}", name)
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
        items = as_set(self._to_mark())
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
            raise CheckpointError("其中含有 {}，这样的文件是用来执行代码的，已拒绝；请换一个来源可信的文件", named)
        return named

    def _global(self, argument):
        self.push(self._name(*argument.split(" ", 1)))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        self.push(self._name(module, name))

    def _reduce(self, _):
        arguments, function = self._stack.pop(), self._stack.pop()
        self.push(call(function, arguments, self.passed_over))

    def _newobj(self, _):
        arguments, kind = self._stack.pop(), self._stack.pop()
        self.push(make_object(kind, arguments, self.passed_over))

    def _newobj_ex(self, _):
        self._stack.pop()  # named arguments: nothing of ours has some
        self._newobj(None)

    def _inst(self, argument):
        arguments = tuple(self._to_mark())
        self.push(make_object(self._name(*argument.split(" ", 1)), arguments, self.passed_over))

    def _obj(self, _):
        kind, *arguments = self._to_mark()
        self.push(make_object(kind, tuple(arguments), self.passed_over))

    def _build(self, _):
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Dtype):
            target.set_state(state)
        elif isinstance(target, Array):
            self._stack[-1] = array = array_of_state(state)
            self._memo.update(dict.fromkeys(target.places, array))
        elif isinstance(target, Opaque):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.state.update((key, value) for key, value in part.items() if isinstance(key, str))

    def _binpersid(self, _):
        if self._persistent_load is None:
            raise BadPickle("其中有张量以外的外部数据")
        self.push(self._persistent_load(self._stack.pop()))


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
