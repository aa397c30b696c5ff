"""What runs over a list of cases left, whole or in shards, for `--join` and `--resume`."""

import base64
import contextlib
import json
import shutil
import zlib
from functools import partial
from pathlib import Path
from random import Random

from .cases import CASE_RUN
from .leftovers import STATE_MUTATIONS, mutate_line, mutate_lines
from .mutate import (
    ODD_TEXTS,
    VALID,
    json_bytes,
    mutate_bytes,
    mutate_tree,
    nodes,
    number,
    own_cache,
    some,
    write,
)

WORDS = ("正常", "松动", "感染", "test", "P1", "../x", "P1\x1b[2J", "=1+1", "0", "9" * 20, "\ud800", *ODD_TEXTS)


def _packed(random: Random) -> str:
    """A coverage that is none: of another size, empty, a bomb, with a tail, no base64."""
    levels = random.choice(
        (bytes(224 * 224), bytes(10), b"\1" * 224 * 224, random.randbytes(224 * 224), bytes(10**8), b"")
    )
    data = random.choice((zlib.compress(levels), zlib.compress(levels) + b"x", zlib.compress(levels)[:-3], levels[:90]))
    return random.choice((base64.b64encode(data).decode(), "A" * random.choice((1, 10**5, 10**6)), "\ud800", "正"))


def _alike(random: Random, value):
    """Another value of the same kind, so that it gets further than one of another kind would."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((0, 1, 2, 3, -1, True, number(random)))
    if isinstance(value, float):
        return random.choice((0.0, -0.5, 1.0, 1e308, -1e308, 5e-324, 1e30, 15, 10**400))
    if isinstance(value, str) and len(value) > 60:
        return _packed(random)
    return random.choice((*WORDS, None) if isinstance(value, str) else (None, 0, 1.5, "a"))


def _change_alike(random: Random, tree):
    """Some leaves of a line of a run by others of their kind; also names of keys."""
    for _ in some(random):
        container, key = random.choice(nodes(tree) or [(None, None)])
        if container is None or isinstance(container[key], (dict, list)):
            continue
        if isinstance(container, dict) and random.random() < 0.1:
            container[random.choice(("0", "2", "٣", "²", "3", "9" * 5000, *WORDS))] = container.pop(key)
        else:
            container[key] = _alike(random, container[key])
    return tree


def _change_lines(random: Random, state: Path) -> None:
    """Lines of a run doubled, taken out, moved, or taken over for another image."""

    def change(lines: list) -> list:
        for _ in some(random):
            line = random.choice(lines)
            action = random.randrange(4)
            if action == 0:
                lines.insert(random.randrange(len(lines) + 1), json.loads(json.dumps(line)))
            elif action == 1 and len(lines) > 1:
                lines.remove(line)
            elif action == 2:
                random.shuffle(lines)
            elif isinstance(line, list):
                line[random.randrange(len(line))] = random.choice(lines)[random.randrange(len(line))]
            elif isinstance(line, dict):
                line[random.choice(list(line))] = random.choice(list(random.choice(lines).values()))
        return lines

    mutate_lines(random, state, change)


def _foreign_shard(random: Random, state: Path) -> None:
    """A folder that is named as a shard's."""
    names = ("1-of-2", "2-of-2", "3-of-2", "0-of-0", "1-of-99999", "2-of-3", "٣-of-٤")
    place = Path("out/.clip_gradcam") / f"shard-{random.choice(names)}"
    settings = random.choice((b"{}", b"[]", b'{"texts": [["a"]]}', b""))
    random.choice(
        (
            lambda: shutil.copytree(state, place, symlinks=True),
            lambda: shutil.copytree(VALID / "case_run/.clip_gradcam", place),
            lambda: place.mkdir(),
            lambda: (place.mkdir(), write(place / "settings.json", settings)),
            lambda: place.symlink_to(Path("outside").absolute()),
        )
    )()


def _mutate_card(random: Random, state: Path) -> None:
    """A card of the report changed as bytes, as JSON, or by values of the same kind; its record says its size."""
    place = Path("out/.clip_gradcam/cards")
    card = random.choice(sorted(path for path in place.rglob("*.json") if path.is_file()))
    data, size = card.read_bytes(), card.stat().st_size
    change = random.choice((mutate_tree, _change_alike, _change_picture))
    changed = (
        mutate_bytes(random, data) if random.random() < 0.3 else json_bytes(random, change(random, json.loads(data)))
    )
    card.write_bytes(changed)
    name = card.relative_to("out").as_posix()
    parts = (path for path in Path("out").rglob("rows-*.jsonl") if path.is_file())  # a pipe would never end
    for part in parts:  # else the image would count as not done
        lines = part.read_text(encoding="utf-8")
        part.write_text(lines.replace(f'"{name}":{size}', f'"{name}":{len(changed)}'), encoding="utf-8")


def _change_picture(random: Random, card: dict) -> dict:
    """The bytes of its JPEG, or of the levels of its maps."""
    for container, key in [(card, "jpeg"), *((of_map, "levels") for of_map in card["maps"])]:
        data = mutate_bytes(random, base64.b64decode(container[key]))
        container[key] = random.choice((base64.b64encode(data).decode(), data.decode("latin-1"), data.hex()))
    return card


MUTATIONS = (
    *STATE_MUTATIONS,
    *[partial(mutate_line, _change_alike)] * 8,
    *[_change_lines] * 4,
    *[_mutate_card] * 4,
    _foreign_shard,
    _foreign_shard,
)


def make_case_state(random: Random) -> list[str]:
    own_cache()
    name = random.choice(("case_run", "case_shards"))
    shutil.copytree(VALID / name, "out")
    for _ in range(random.choice((0, 1, 1, 2, 4))):
        states = [path.parent for path in sorted(Path("out").rglob("settings.json"))]
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # of an earlier one
            random.choice(MUTATIONS)(random, random.choice(states))
    shard = ["--shard", random.choice(("1/2", "2/2"))] if name == "case_shards" and random.random() < 0.7 else []
    tolerance = ["--tolerance", random.choice(("0", "15", "224"))]
    if random.random() < 0.6:
        flags = ([], [], ["--lang", "en"], tolerance, ["--anonymous"], ["--report"], ["--no-report"])
        return ["--join", "--output-dir", "out", *random.choice(flags)]
    return [*CASE_RUN, "--resume", *shard]
