"""What earlier runs left: entries of the cache, the state of a run over many images."""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from . import canary
from .mutate import OURS, TEXTS_FILE, VALID, command, json_bytes, mutate_bytes, mutate_tree, odd_value, own_cache, write

KINDS_OF_NUMBERS = ("f4", "f4", "f4", ">f4", "f8", "f2", "i1", "c8", "?")


def _array(random: Random) -> bytes:
    """An array that is not what belongs there: as `.npy`, its header at times not that of its bytes."""
    shape = random.choice(((3, 31), (2, 32), (0, 32), (96,), (3, 1, 32), (3, 32), (3, 32)))
    kind = random.choice(KINDS_OF_NUMBERS)
    array = np.full(shape, random.choice((1, 1, np.nan)) if np.dtype(kind).kind in "fc" else 1, kind)
    if shape == (3, 32) and kind == "f4" and np.isfinite(array).all():
        array = np.array([[canary.call]], dtype=object)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    data = stream.getvalue()
    return data.replace(b"(3, 32)", b"(9" + b"9" * 9 + b",)", 1) if random.random() < 0.2 else data


def _forged(random: Random, data: bytes) -> bytes:
    """An entry with the right checksum around another header or array."""
    line, _, array = data[32:].partition(b"\n")
    header = json.loads(line)
    if random.random() < 0.5:
        array = _array(random)
    else:
        header = {**header, random.choice(("format", "key", "unread", "x")): odd_value(random)}
        if header.get("unread") != []:
            header = {**header, "unread": random.choice((5, {}, "ab", None, [[1]]))}
    rest = json.dumps(header).encode() + b"\n" + array
    return hashlib.sha256(rest).digest() + rest


def make_cache(random: Random) -> list[str]:
    own_cache()
    entry = next(path for path in Path("cache/clip_gradcam").iterdir() if path.is_file())
    data = entry.read_bytes()
    entry.unlink()
    random.choice(
        (
            lambda: entry.write_bytes(mutate_bytes(random, data)),
            lambda: entry.write_bytes(mutate_bytes(random, data)),
            lambda: entry.write_bytes(_forged(random, data)),
            lambda: entry.write_bytes(_forged(random, data)),
            lambda: entry.write_bytes(_forged(random, data)),
            lambda: os.symlink(
                os.path.abspath(random.choice(("outside/thesis.txt", "cache", "/dev/zero", str(entry)))), entry
            ),
            lambda: os.mkfifo(entry),
            lambda: entry.mkdir(),
            lambda: (entry.write_bytes(data), os.truncate(entry, random.choice((10, 3 * 10**9)))),
            lambda: (entry.parent.rmdir(), entry.parent.write_bytes(b"")),
        )
    )()
    return command(random)


def _link(random, state: Path) -> None:
    """A link in place of something of the run."""
    names = (
        "staging",
        "rows-0.jsonl",
        "rows-1.jsonl",
        "rows-earlier.jsonl",
        "settings.json",
        "plan.jsonl",
        "lock",
        "../results.csv",
    )
    place = state / random.choice((*names, "../results.jsonl", "../picture", "staging/a", ""))
    target = os.path.abspath(random.choice(("outside", "outside/thesis.txt", "outside/folder", "missing", str(place))))
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    os.symlink(target, place)


def _replace_state(random, state: Path) -> None:
    """A folder, a pipe or foreign files in place of something of the run."""
    place = state / random.choice(
        ("staging", "rows-0.jsonl", "settings.json", "plan.jsonl", "lock", "rows-x.jsonl", "../results.csv")
    )
    if place.is_dir():
        return write(place / "sub" / "file", b"x")
    place.unlink(missing_ok=True)
    random.choice((place.mkdir, partial(os.mkfifo, place), partial(place.write_bytes, random.randbytes(50))))()


def _state_file(random, state: Path) -> Path:
    """One of a run's files; OSError where an earlier mutation put a pipe in its place."""
    path = state / random.choice(("settings.json", "rows-0.jsonl", "plan.jsonl", "rows-0.jsonl"))
    if not path.is_file():
        raise FileNotFoundError(path)
    return path


def _mutate_state_file(random, state: Path) -> None:
    path = _state_file(random, state)
    path.write_bytes(mutate_bytes(random, path.read_bytes()))


def mutate_lines(random, state: Path, change: Callable[[list], list]) -> None:
    """One of a run's files with its lines, as JSON, changed together."""
    path = _state_file(random, state)
    lines = change([json.loads(line) for line in path.read_bytes().splitlines()])
    path.write_bytes(b"".join(json_bytes(random, line) + b"\n" for line in lines))


def mutate_line(change: Callable, random, state: Path) -> None:
    """One line of a run's files by `change(random, tree)`."""

    def change_one(lines: list) -> list:
        place = random.randrange(len(lines))
        return [*lines[:place], change(random, lines[place]), *lines[place + 1 :]]

    mutate_lines(random, state, change_one)


def _drop_output(random, state: Path) -> None:
    random.choice(sorted(path for path in state.parent.rglob("*") if path.is_file())).unlink()


STATE_MUTATIONS = (
    _link, _link, _replace_state, _mutate_state_file, *[partial(mutate_line, mutate_tree)] * 2, _drop_output,
)  # fmt: skip


def make_state(random: Random) -> list[str]:
    own_cache()
    shutil.copytree(VALID / "run", "out")
    state = Path("out/.clip_gradcam")
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        with contextlib.suppress(OSError, ValueError):  # what an earlier mutation took away
            random.choice(STATE_MUTATIONS)(random, state)
    resume = ["--resume"] if random.random() < 0.75 else []
    return [*RUN, *resume]


RUN = ["--model-path", OURS, "--image-path", str(VALID / "run_images"), "--class-texts-file", TEXTS_FILE, "--cpu"]
RUN += ["--output-dir", "out", "--overlay-only"]
