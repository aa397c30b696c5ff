"""Folders of images, what runs leave in theirs, and runs as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tiny import gradient_picture

import clip_gradcam_visualization as script

SCRIPT = Path(script.__file__)
TEXTS = ["正常", "松动", "感染"]
CAPTURED = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}


def write_images(folder, count, start=0):
    """Small pictures, each another; a few bytes each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        Image.fromarray(np.roll(gradient_picture(24, 32), 5 * i, axis=(0, 1))).save(folder / f"{i:03d}.png")


def files(folder, hidden=False):
    names = (str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(name for name in names if hidden or not name.startswith(".clip_gradcam"))


def rows_of(folder):
    return [json.loads(line) for line in (Path(folder) / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder):
    return {name: (Path(folder) / name).read_bytes() for name in files(folder)}


def start(arguments, **options):
    """A process that Ctrl-C interrupts, even where these tests run in the background, where shells have it ignored."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, preexec_fn=interruptible, **CAPTURED, **options
    )


def wait_for_rows(folder, count=1, seconds=180):
    end = time.monotonic() + seconds
    while finished_rows(folder) < count:
        assert time.monotonic() < end, "no rows"
        time.sleep(0.02)


def finished_rows(folder):
    """How many images a run has finished so far; read again where a part has just gone into that of earlier runs."""
    try:
        return sum(part.read_bytes().count(b"\n") for part in Path(folder).glob(".clip_gradcam/rows-*"))
    except FileNotFoundError:
        return finished_rows(folder)
