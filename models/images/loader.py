"""Decoding beside the model: chunks of a list of images, in order, by processes or a thread of their own.

loader = make_loader(ImageDataset(prepare), chunks, num_workers)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..heavy import Image, torch
from ..messages import Message
from .grey import AUTO, GreyRange
from .preprocessing import Preprocessing
from .reading import read_image

# fork: nothing is imported again. Elsewhere threads of the system's own libraries do not outlive a fork.
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
PREFETCHED_CHUNKS = 2  # per worker: one on its way, one being made
Chunk = tuple[int, list[tuple[int, str | None]]]  # (index, [(position in the list, path or None for no image)])


class DecodedChunk(NamedTuple):
    """Arrays, not tensors: they travel through a pipe and need no shared memory, of which containers have little."""

    index: int
    resized: np.ndarray | list[np.ndarray | None]  # uint8 [B, h, w, 3], zeros where there is no image; or of many sizes
    pixels: list[np.ndarray | None]  # uint8 [H, W, 3] each
    errors: list[Message | None]  # why an image could not be read


class ImageDataset:
    """Chunks of images by their lists of paths: `dataset[index, [(position, path or None), ...]]`.

    A bad image gives its reason, never an exception; what libraries warn of is not shown.
    """

    def __init__(self, prepare: Preprocessing, grey_range: GreyRange = AUTO):
        self.prepare, self.grey_range = prepare, grey_range

    def __getitem__(self, chunk: Chunk) -> DecodedChunk:
        index, items = chunk
        resized: np.ndarray | list[np.ndarray | None] = [None] * len(items)
        if self.prepare.fixed_size:
            resized = np.zeros((len(items), *self.prepare.input_size(1, 1), 3), dtype=np.uint8)
        pixels: list[np.ndarray | None] = [None] * len(items)
        errors: list[Message | None] = [None] * len(items)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for row, (_, path) in enumerate(items):
                if path is None:
                    continue
                try:
                    image = read_image(path, self.grey_range)
                    resized[row] = self.prepare.resize_and_crop(image)
                    pixels[row] = image
                except InputError as error:
                    errors[row] = error.message
                except MemoryError:
                    errors[row] = Message("无法读取图像 {}：内存不足；请先缩小图像，或减小 --num-workers", path)
                except Exception as error:  # whatever a decoder raises: the other images go on
                    why = " ".join(str(error).split())
                    errors[row] = Message("无法读取图像 {}：{}：{}", path, type(error).__name__, why)
        return DecodedChunk(index, resized, pixels, errors)


def make_loader(dataset: ImageDataset, chunks: Iterable[Chunk], num_workers: int) -> torch.utils.data.DataLoader:
    """Iterate over decoded chunks in order; `chunks` is drawn from as they are needed, a few ahead.

    With workers, iterate in the main thread: that is where torch reports one that was killed, as the RuntimeError
    that `is_lost_worker` knows.
    """
    Image.preinit()  # a fork while another thread imports Pillow would leave the worker waiting for it
    options = {}
    if num_workers:
        options = {
            "multiprocessing_context": START_METHOD,
            "prefetch_factor": PREFETCHED_CHUNKS,
            "worker_init_fn": _start_worker,
        }
    own_generator = torch.Generator()  # so that loading leaves the global random numbers alone
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        sampler=chunks,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=own_generator,
        **options,
    )


def is_lost_worker(error: BaseException) -> bool:
    """Whether an exception says that a worker of a loader was killed, by the kernel for want of memory, say."""
    return isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)


def _as_it_is(chunk: DecodedChunk) -> DecodedChunk:
    return chunk


def _start_worker(worker_id: int) -> None:
    """Ctrl-C and SIGTERM are the consumer's to answer; torch gets one thread; the worker ends with its consumer.

    A queue sends SIGTERM to all processes; a second one, by which a consumer ends a worker that hangs, does so.

    OpenCV is left alone: told its number of threads in a fork, it waits forever for those of its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    torch.set_num_threads(1)
    if os.name == "posix":
        _end_with_parent()


def _end_with_parent() -> None:
    """End this process soon after its parent, even while it is blocked writing into a pipe that nobody reads."""
    parent = multiprocessing.parent_process().pid

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
