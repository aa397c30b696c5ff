"""Pickles, opcode by opcode: values that call, forge, or take much memory."""

import pickletools
import struct
from functools import cache, partial
from random import Random

from .mutate import ODD_TEXTS, mutate_bytes, number

READABLE = (
    "collections OrderedDict", "collections Counter", "collections deque", "collections defaultdict", "builtins set",
    "builtins list", "builtins dict", "builtins bytes", "builtins range", "builtins slice", "builtins complex",
    "builtins int", "builtins str", "builtins tuple", "builtins frozenset", "argparse Namespace", "torch Size",
    "pathlib PosixPath", "pathlib PureWindowsPath", "torch FloatStorage", "torch HalfStorage", "_codecs encode",
    "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch device", "torch float32",
    "numpy dtype", "numpy ndarray", "numpy.core.multiarray scalar", "numpy._core.multiarray _reconstruct",
)  # fmt: skip
HARMLESS = (
    "builtins bytearray", "builtins object", "numpy float64", "torch Tensor", "torch.nn.parameter Parameter",
    "torch._utils _rebuild_sparse_tensor", "torch._tensor _rebuild_from_type_v2", "torch.storage UntypedStorage",
    "torch._utils _rebuild_qtensor", "__torch__ A", "torch._utils _rebuild_device_tensor_from_numpy",
    "torch._utils _rebuild_wrapper_subclass", "datetime datetime", "torch.jit._pickle build_intlist",
    "torch.jit._pickle restore_type_tag", "types SimpleNamespace", "enum Enum", *READABLE,
)  # fmt: skip
DANGEROUS = (
    "fuzzing.canary call", "fuzzing.canary Thing", "posix system", "os system", "os remove", "os _exit", "os abort",
    "subprocess Popen", "builtins eval", "builtins exec", "builtins open", "builtins getattr", "builtins __import__",
    "builtins compile", "builtins input", "builtins type", "builtins setattr", "builtins list.__init__",
    "shutil rmtree", "socket create_connection", "torch.hub load", "torch load", "torch.jit load", "numpy load",
    "pickle loads", "torch.storage _load_from_bytes", "runpy run_path", "importlib import_module",
    "functools partial", "operator attrgetter", "operator methodcaller", "types FunctionType", "types CodeType",
    "webbrowser open", "urllib.request urlopen", "ctypes CDLL", "sys exit", "signal raise_signal",
    "collections Counter.update", "pathlib Path.write_text", "copyreg _reconstructor",
)  # fmt: skip


def p_text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def p_number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def p_name(name: str) -> bytes:
    return "c{}\n{}\n".format(*name.split(" ")).encode()


def p_tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def p_call(name: str, *arguments: bytes) -> bytes:
    return p_name(name) + p_tuple(*arguments) + b"R"


def p_dict(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(p_text(key) + value for key, value in items.items()) + b"u"


def p_bytes(value: bytes) -> bytes:
    return p_call("_codecs encode", p_text(value.decode("latin1")), p_text("latin1"))


COMMANDS = ("echo x > EXECUTED", "open('EXECUTED', 'w')", "EXECUTED", "outside", "http://127.0.0.1:9/x")
CONTAINERS = (
    "builtins set", "builtins list", "builtins bytearray", "collections Counter", "builtins bytes",
    "collections deque",
)  # fmt: skip


def forged_array(random: Random) -> bytes:
    """numpy's own constructors with sizes, offsets and kinds that do not fit the bytes."""
    text = random.choice(("f8", "f4", "i8", "O", "U3", "V8", "M8[s]", "f8,O", "(1000000,)f8", "U1000000", ">f4", "x"))
    kind, data = p_call("numpy dtype", p_text(text), b"\x89", b"\x88"), p_bytes(b"ABCDEFGH" * 4)
    size, step, core = p_number(number(random)), p_number(number(random)), random.choice(("core", "_core"))
    fields = p_tuple(p_text("a")), p_dict({"a": p_tuple(p_call("numpy dtype", p_text("O")), step)})
    state = p_tuple(p_number(3), p_text("|"), b"N", *fields, size, p_number(1), p_number(16))
    empty = p_call(
        f"numpy.{core}.multiarray _reconstruct", p_name("numpy ndarray"), p_tuple(p_number(0)), p_bytes(b"b")
    )
    scalar = f"numpy.{core}.multiarray scalar"
    return random.choice(
        (
            p_call("numpy ndarray", p_tuple(size), kind, data),
            p_call("numpy ndarray", p_tuple(p_number(4)), kind, data, size, p_tuple(step)),
            p_call("numpy ndarray", p_tuple(size, step), kind),
            empty + p_tuple(p_number(1), p_tuple(size), kind, b"\x89", data) + b"b",
            empty
            + p_tuple(p_number(1), p_tuple(p_number(4)), kind, b"\x88", random.choice((data, b"]N0", b"]")))
            + b"b",
            p_call(scalar, kind, data),
            p_call(scalar, p_call("numpy dtype", p_text("V8")) + state + b"b", data),
            p_call(scalar, kind, p_bytes(b"")),
            kind + state + b"b",
        )
    )


def bombs(random: Random) -> bytes:
    """Short pickles that would take much memory or time, and forged objects."""
    count, container = random.choice((10**9, 10**10, 2**62)), random.choice(CONTAINERS)
    doubled = b"]q\x00" + b"".join(
        b"](" + b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)
    )
    return random.choice(
        (
            p_call(container, p_call("builtins range", p_number(count))),
            p_call(container, p_call(random.choice(("builtins bytearray", "builtins bytes")), p_number(count))),
            p_call("torch Size", p_call("builtins list", p_call("builtins range", p_number(count)))),
            p_call("builtins list", forged_array(random)),
            forged_array(random),
            forged_array(random),
            p_call("collections Counter", forged_array(random)),
            b"\x8b" + struct.pack("<i", random.choice((-1, 2**31 - 1, 8))) + bytes(8),
            b"B" + struct.pack("<I", 2**32 - 1) + b"abc",
            b"\x96" + struct.pack("<Q", count) + b"abc",
            b"\x8e" + struct.pack("<Q", count) + b"abc",
            b"\x95" + struct.pack("<Q", count) + b"N",
            b"(" * random.choice((1000, 10**6)) + b"t",
            b"]" * 10**5 + b"a" * (10**5 - 1),
            b"N" + b"\x85" * random.choice((2000, 10**5)),
            b"Nr" + struct.pack("<I", 2**32 - 1),
            b"I" + b"9" * 10**5 + b"\n",
            doubled,
        )
    )


STATES = ("a", "__setstate__", "__dict__", "__class__", "__reduce__")


def leaf(random: Random) -> bytes:
    """Opcodes of one plain value."""
    text = p_text(random.choice((*COMMANDS, *ODD_TEXTS)))
    real = b"G" + struct.pack(">d", random.choice((1.5, 1e308, float("nan"))))
    usual = (text, text, p_number(number(random)), b"N", b"\x88", b"K\x05", b")", b"]", b"}", real, p_bytes(b"abc"))
    rare = (
        b"\x8f",
        b"L5L\n",
        b"Vabc\n",
        b"I01\n",
        b"C\x03abc",
        b"\x96\x03\0\0\0\0\0\0\0abc",
        b"S'a'\n",
        b"h\x00",
        b"g1\n",
    )
    return random.choice(usual if random.random() < 0.8 else rare)


def expression(random: Random, depth: int = 0, names: tuple[str, ...] = ()) -> bytes:
    """Opcodes that leave one value on the stack, or pretend to; the names in it are harmless or not as a whole."""
    names = names or random.choice((READABLE, READABLE, HARMLESS, DANGEROUS))
    if depth > 3 or random.random() < 0.3:
        return leaf(random)
    more = partial(expression, random, depth + 1, names)
    one, name = more(), random.choice(names)
    function, module, namespace = p_name(name), name.split(" "), p_call("argparse Namespace")
    storage = p_text("storage"), p_name("torch FloatStorage"), p_text("0"), p_text("cpu")
    usual = (
        lambda: function + p_tuple(one) + b"R",
        lambda: function + p_tuple(one, more()) + b"R",
        lambda: function + p_tuple(p_text(random.choice(COMMANDS))) + b"R",
        lambda: function + p_tuple(one) + b"\x81",
        lambda: function + b")\x81" + p_dict({random.choice(STATES): more()}) + b"b",
        lambda: function + b")R" + more() + b"b",
        lambda: namespace + p_dict({"__setstate__": function}) + b"b" + p_dict({"a": one}) + b"b",
        lambda: p_tuple(*storage, p_number(number(random))) + b"Q",
        lambda: b"](" + one + more() + b"e",
        lambda: p_dict({"a": one, "b": more()}),
        lambda: b"}(" + one + more() + b"u",
        lambda: function,
        lambda: bombs(random),
        lambda: forged_array(random),
    )
    rare = (
        lambda: function + p_tuple(one) + p_dict({"a": more()}) + b"\x92",
        lambda: b"(" + one + "i{}\n{}\n".format(*module).encode(),
        lambda: b"(" + function + one + b"o",
        lambda: p_text(module[0]) + p_text(module[1]) + b"\x93" + p_tuple(one) + b"R",
        lambda: random.choice((b"\x82\x01", b"\x83\x01\x02", b"\x84\x01\x02\x03\x04")),
        lambda: b"P" + random.choice((b"0", b"storage", b"a b")) + b"\n",
        lambda: p_tuple(one, more()) + b"Q",
        lambda: b"\x8f(" + one + b"\x90",
        lambda: b"(" + one + b"\x91",
        lambda: one + b"\x94",
        lambda: one + b"2\x86",
        lambda: random.choice((b"\x97", b"\x98", b"0", b"1", b"(", b"t", b"a", b"s", b".")),
    )
    return random.choice(usual if random.random() < 0.85 else rare)()


@cache
def boundaries(data: bytes) -> list[int]:
    """Where the opcodes of a pickle begin, in order."""
    return [place for _, _, place in pickletools.genops(data)]


def mutate_pickle(random: Random, data: bytes) -> bytes:
    """One pickle with values put in or replaced, opcodes moved or taken out, names and numbers changed."""
    places, edits = boundaries(data), []
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        at = random.randrange(1, len(places))
        start, end = places[at], places[at + 1] if at + 1 < len(places) else len(data)
        opcode, action = data[start:end], random.randrange(8)
        if opcode[:1] == b"c" or action <= 2:
            value = expression(random)
            new = value if opcode[:1] == b"c" and action > 4 else p_name(random.choice((*DANGEROUS, *HARMLESS)))
            edits.append((start, end, new) if opcode[:1] == b"c" else (start, start, value + b"0"))
        elif action == 3:
            edits.append((start, end, expression(random)))
        elif action == 4:
            edits.append((start, end, random.choice((b"", opcode * 2, opcode * 1000))))
        elif action == 5:
            edits.append((start, end, bytes([random.randrange(256)]) + opcode[1:]))
        else:
            edits.append((start, end, opcode[:1] + mutate_bytes(random, opcode[1:])))
    data = bytearray(data)
    for start, end, new in sorted(edits, reverse=True):
        data[start:end] = new
    return bytes(data)


def pickle_of(random: Random, weights: bytes) -> bytes:
    """A checkpoint's pickle around a pickle of weights, with an expression where metadata stand."""
    value = random.choice((expression, expression, expression, bombs, forged_array))(random)
    body, plain = weights[2:-1], p_dict({"embed_dim": p_number(32), "img_size": p_number(64)})
    items = random.choice(
        (
            {
                "model_state_dict": body,
                "config": p_dict({"embed_dim": p_number(32), "img_size": p_number(64), "x": value}),
            },
            {"model_state_dict": body, "config": value},
            {"model_state_dict": body, "config": plain, "optimizer": value},
            {"epoch": value, "model_state_dict": body, "config": plain},
            {"model_state_dict": value, "config": plain},
            {"model_state_dict": b"}", "config": p_dict({"x": value})},
        )
    )
    whole = p_dict(items) if random.random() < 0.95 else value
    return b"\x80" + bytes([random.choice((2, 2, 2, 2, 3, 4, 5, 9))]) + whole + b"."
