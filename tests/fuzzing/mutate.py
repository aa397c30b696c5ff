"""Mutators of bytes and of trees, the files that inputs are made of, and command lines."""

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

VALID = Path("../../valid")  # seen from the folder of an input
NUMBERS = (
    0, 1, 2, 3, 4, 7, 8, 15, 16, 32, 64, 100, 127, 128, 255, 256, 4096, 32767, 32768, 65535, 65536, 10**6, 2**24,
    10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 10**10, 2**63 - 1, 2**63, 2**64 - 1, 10**30,
)  # fmt: skip
TEXTS = {"正常": "关节间隙正常。", "松动": "假体周围可见透亮线。", "感染": "骨质破坏伴骨膜反应。"}
ODD_TEXTS = (
    "", " ", "\0", "a\nb", "\x1b[31m红", "\u202eabc", "\ufeff", "=1+1", "../../x", "/etc/passwd", "正" * 5000, "nan",
    "inf", "-1", "1e400", "0x10", "9" * 400, "None", "true", "{}", "[1]", "%s%n", "a\u2028b", "😀", "\x85",
)  # fmt: skip
HUGE = 2_500_000_000  # bytes that small files inflate to


def number(random: Random) -> int:
    """A number on or beside an edge."""
    return random.choice((1, 1, 1, -1)) * random.choice(NUMBERS) + random.choice((0, 0, 0, -1, 1))


def position(random: Random, length: int) -> int:
    """A place in a file, as often near one of its ends, where formats keep what matters, as anywhere."""
    share = random.random() ** random.choice((1, 4, 8))
    return min(int((share if random.random() < 0.7 else 1 - share) * length), max(0, length - 1))


def _set_number(random, data, at) -> None:
    size = random.choice((1, 2, 4, 8))
    value = number(random) % 256**size
    data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))


def _flip_bit(random, data, at) -> None:
    data[at : at + 1] = bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1])


def _set_byte(random, data, at) -> None:
    data[at : at + 1] = bytes([random.randrange(256)])


def _insert(random, data, at) -> None:
    data[at:at] = random.randbytes(random.choice((1, 2, 4, 8, 64, 1000)))


def _delete(random, data, at) -> None:
    del data[at : at + random.choice((1, 2, 4, 8, 64, 1000))]


def _repeat(random, data, at) -> None:
    data[at:at] = data[at : at + random.choice((1, 4, 16, 256))] * random.choice((1, 2, 50))


def _blank(random, data, at) -> None:
    size = random.choice((2, 8, 64, 512))
    data[at : at + size] = bytes([random.choice((0, 255))]) * len(data[at : at + size])


def _cut(random, data, at) -> None:
    del data[at:]


BYTE_MUTATIONS = (_set_number, _set_number, _flip_bit, _set_byte, _insert, _delete, _repeat, _blank, _cut)


def some(random: Random) -> range:
    """How many mutations an input gets: mostly few, sometimes none."""
    return range(random.choice((0, 1, 1, 1, 1, 2, 2, 4, 16)))


def mutate_bytes(random: Random, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in some(random):
        random.choice(BYTE_MUTATIONS)(random, data, position(random, len(data)))
    return bytes(data)


def nested(random: Random):
    """Lists or objects in each other, few or more than a reader's stack holds."""
    tree = 0
    for _ in range(random.choice((3, 60, 900, 3000))):
        tree = [tree] if random.random() < 0.5 else {"a": tree}
    return tree


def odd_value(random: Random):
    """A value of JSON that a reader may not expect."""
    choices = (None, True, [], {}, [1, 2], {"a": 1}, number(random), -0.5, 1e308, float("nan"), float("inf"))
    return random.choice((random.choice(choices), number(random), random.choice(ODD_TEXTS), [odd_text(random)] * 3))


def odd_text(random: Random) -> str:
    return random.choice(ODD_TEXTS)


def nodes(tree) -> list[tuple]:
    """(container, key) of everything below a tree of dicts and lists, which may hold itself."""
    below, todo, visited = [], [tree], set()
    while todo:
        container = todo.pop()
        if id(container) in visited:
            continue
        visited.add(id(container))
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            below.append((container, key))
            if isinstance(container[key], (dict, list)):
                todo.append(container[key])
    return below


def mutate_tree(random: Random, tree, value: Callable = odd_value):
    """A copy of a tree of dicts and lists with some values replaced, taken out, put elsewhere or renamed."""
    tree = copy.deepcopy(tree)
    for _ in some(random):
        below = nodes(tree)
        if not below:
            return value(random)
        container, key = random.choice(below)
        action = random.randrange(6)
        if action <= 2:
            container[key] = value(random)
        elif action == 3:
            del container[key]
        elif action == 4:
            other, other_key = random.choice(below)
            with contextlib.suppress(LookupError, RecursionError):  # too deep to be copied: it stays as it is
                container[key] = copy.deepcopy(other[other_key])
        elif isinstance(container, dict):
            container[odd_text(random)] = container.pop(key)
    return value(random) if random.random() < 0.03 else tree


def json_bytes(random: Random, tree) -> bytes:
    """A tree as JSON, whole or itself mutated as bytes."""
    data = json.dumps(tree, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_bytes(random, data) if random.random() < 0.2 else data


def write(path, data: bytes) -> str:
    """Write a file below the working folder, its folders with it; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


@cache
def valid_bytes(name: str) -> bytes:
    return (VALID / name).read_bytes()


@cache
def valid_files(name: str) -> list[str]:
    """The files below a folder of VALID, by their paths in it, sorted."""
    return sorted(str(path.relative_to(VALID)) for path in (VALID / name).rglob("*") if path.is_file())


OURS, TEXTS_FILE, PICTURE = (str(VALID / name) for name in ("ours.pth", "texts.json", "picture.png"))
SHORT = (["--overlay-only"], ["--overlay-only"], ["--overlay-only"], ["--overlay-only", "--overlay-format", "jpg"])
LONGER = ([], ["--no-figure", "--save-heatmap"], ["--all-texts", "--lang", "en"], ["--list-layers"])


def command(random: Random, *more, model=OURS, images=(PICTURE,), texts=TEXTS_FILE) -> list[str]:
    """A command line; mostly only the overlay is asked for, the quickest output."""
    flags = random.choice(SHORT if random.random() < 0.9 else LONGER)
    argv = ["--model-path", str(model), "--image-path", *map(str, images), "--class-texts-file", str(texts), "--cpu"]
    return [*argv, "--output-dir", "out", *flags, *more]


def image_command(random: Random, path: str) -> list[str]:
    """A command for one image, or for a folder that it stands in beside a good one."""
    return command(random, images=[path] if random.random() < 0.8 else [path, PICTURE])


def own_cache() -> None:
    """The features of TEXTS under our checkpoint, in the cache of this input."""
    shutil.copytree(VALID / "cache", "cache", dirs_exist_ok=True)
