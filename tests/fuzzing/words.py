"""Class texts and command lines."""

import json
import os
import shutil
import stat
from pathlib import Path
from random import Random

import clip_gradcam_visualization as script

from .mutate import (
    ODD_TEXTS,
    OURS,
    PICTURE,
    TEXTS,
    TEXTS_FILE,
    VALID,
    command,
    json_bytes,
    mutate_bytes,
    mutate_tree,
    odd_text,
    own_cache,
    write,
)


def _many_texts(random) -> bytes:
    return json.dumps({f"类{n}": f"描述{n}" for n in range(random.choice((30, 300)))}).encode()


def _encoded(random) -> bytes:
    text = json.dumps(TEXTS, ensure_ascii=False)
    return text.encode(random.choice(("utf-16", "utf-32", "gbk", "utf-8-sig", "utf-7", "big5")), "replace")


def _raw_json(random) -> bytes:
    key = random.choice(('"正常"', '"\\ud800"', '"\\u0000"', '""', "1", '"a\\nb"', '"\\u001b[2J"', "'a'"))
    value = random.choice(
        ('"a"', '"\\udfff"', "9" * 6000, "1e9999", "NaN", '"' + "长" * 20000 + '"', "[" * 5000, '"\\r"')
    )
    return f"{{{key}: {value}, {random.choice((key, chr(34) + 'b' + chr(34)))}: {value}}}".encode()


def make_class_texts(random: Random) -> list[str]:
    data = random.choice(
        (
            lambda random: mutate_bytes(random, json.dumps(TEXTS, ensure_ascii=False).encode()),
            lambda random: json_bytes(random, mutate_tree(random, TEXTS)),
            lambda random: json_bytes(random, mutate_tree(random, {**TEXTS, "异常": {"a": ["b"]}})),
            lambda random: json_bytes(random, mutate_tree(random, {**TEXTS, "异常": ["a", "b", odd_text(random)]})),
            lambda random: json_bytes(random, {odd_text(random): odd_text(random) for _ in range(3)}),
            lambda random: (random.choice(("[", '{"a":')) * random.choice((10, 900, 100_000))).encode(),
            lambda random: b"{" + b" " * random.choice((100, 12_000_000)) + b"}",
            _many_texts,
            _encoded,
            _raw_json,
        )
    )(random)
    own_cache()
    return command(random, texts=write("in/texts.json", data))


PATHS = (
    OURS, PICTURE, TEXTS_FILE, "in", "missing.pth", "patients/zhangsan_hip", "", ".", "in/*", "**/*.dcm", "[",
    "in/pipe", "in/loop", "in/socket", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/stdin", "/proc/self/mem",
    "/dev/full", "a" * 300, "a/" * 3000, "~", "~nobody/x", "$HOME", "-", "--", "a\0b", "in/中文 图.png", "\udcff",
    "hub:a/b", "http://a/b.png", "file:///etc/passwd", "\\\\host\\share", "s3://a/b", "in/\x1b[31m.png",
    "OFA-Sys/chinese-clip", str(VALID / "dicom"),
)  # fmt: skip
OUTPUTS = (
    "out", "out/a/b", "out", "in/中文 图.png", "in/pipe", "/dev/null", "out/" + "a" * 300, "/proc/x", "out/\x1b[31m",
    "in/loop/x",
)  # fmt: skip
NAMES = (
    "starnet_s1", "resnet50", "vit", "bert-base-chinese", "stages.3.3", "stages.2.8", "stages", "blocks.0", "",
    "layer4", "gradcam", "layercam", "all", "legrad", "rollout", "scorecam", "eigencam", "cosine", "dot", "zh", "en",
    "png", "webp", "x.jpg", "hub:a/b", "a/b", "__class__", "forward", "一张{}的片", "{}{}", "0", "-1", "..",
    "stages.-1", "image_encoder", *ODD_TEXTS,
)  # fmt: skip
INTEGERS = (
    "0", "1", "2", "-1", "3", "16", "17", "32", "64", "65", "200", "1e3", "1.5", "", "nan", "1000000", "9" * 30, "٣",
    "0x10", "+1",
)  # fmt: skip


NUMBERS_OF_TYPES = {int: INTEGERS, float: ("0.5", "1e-9", "-0.5", "inf", "1e400", "0,5", "0.485", "255.0", *INTEGERS)}


def _plant_files() -> None:
    own_cache()
    Path("in").mkdir()
    os.mkfifo("in/pipe")
    os.symlink("loop", "in/loop")
    os.mknod("in/socket", stat.S_IFSOCK | 0o600)
    shutil.copy(PICTURE, "in/中文 图.png")
    shutil.copy(PICTURE, "in/\x1b[31m.png")


def _odd_flag(random: Random) -> list[str]:
    flag, options, _ = random.choice(script.FLAGS)
    pool = PATHS if options.get("metavar") == "PATH" else (*NAMES, *PATHS)
    pool = NUMBERS_OF_TYPES.get(options.get("type"), pool)
    pool = OUTPUTS if flag == "--output-dir" else [*options.get("choices", ()), *pool]
    if options.get("action") not in (None, "extend"):
        return [flag]
    if flag == "--num-workers":
        return [flag, random.choice(("0", "0", "1", "-1", "x"))]
    if flag == "--output-name":
        return [
            flag,
            random.choice(
                ("a.png", "a.pdf", "a.svg", "a.jpg", "a", "a.exe", "", ".png", "a" * 260, "a\0.png", "中 文", "..")
            ),
        ]
    return [flag, *(random.choice(pool) for _ in range(random.choice((1, 1, 2, 0)) if options.get("nargs") else 1))]


def make_arguments(random: Random) -> list[str]:
    _plant_files()
    argv = command(
        random, *random.choice(([], ["--method", random.choice(NAMES)], ["--layers", "stages.2.8", "stages.3.3"]))
    )
    for _ in range(random.choice((1, 1, 2, 3, 6))):
        place = random.randrange(len(argv) + 1)
        argv[place:place] = (
            _odd_flag(random) if random.random() < 0.9 else [random.choice((*PATHS, "--nix", "-x", "--img-siz=3"))]
        )
    if random.random() < 0.2:
        del argv[random.randrange(len(argv))]
    return argv
