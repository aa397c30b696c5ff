"""The engine room of a run over many images: who does which chunk, and how a chunk goes through.

Images are worked on in chunks of a fixed size at fixed places in the list, so that an image's numbers do
not depend on what was finished before, nor on how many processes share the work: convolutions round
differently with another batch shape or another number of threads. Every model call therefore runs on one
thread, and several chunks run side by side.
"""

import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from datetime import timedelta
from typing import NamedTuple

from ..errors import InputError
from ..heavy import torch

MOST_SHARDS = 10_000
MOST_THREADS = 8  # beside each other in one process; beyond, Python's own lock is in the way: use more processes
LONG = timedelta(days=30)  # torchrun ends the waiting when a process dies


class Ranks:
    """The processes that share one run, started by torchrun, and what they tell each other; alone without it.

    `attempt` counts torchrun's restarts of them all.
    """

    def __init__(self):
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
        self._store = None
        self._alone = itertools.count()
        self._sums = {"finished": 0, "failed": 0}
        if self.world > 1:
            store, _, _ = next(torch.distributed.rendezvous("env://"))
            prefix = f"clip_gradcam/{self.attempt}"  # one store may serve all attempts
            self._store = torch.distributed.PrefixStore(prefix, store)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def claim(self) -> int:
        """0, 1, 2, ...: each number goes to one process only."""
        return next(self._alone) if self._store is None else self._store.add("claimed", 1) - 1

    def announce(self, key: str) -> None:
        """Tell the others that this process has come to a point."""
        if self._store is not None:
            self._store.set(f"{key}/{self.rank}", b"")

    def wait_for(self, key: str, ranks: Iterable[int]) -> None:
        """Wait until each of `ranks` has announced `key`."""
        others = [f"{key}/{rank}" for rank in ranks if rank != self.rank]
        if self._store is not None and others:
            self._store.wait(others, LONG)

    def add(self, key: str, amount: int) -> int:
        """Add to a sum over all processes ("finished", "failed"); returns the sum."""
        if self._store is not None:
            return self._store.add(key, amount)
        self._sums[key] += amount
        return self._sums[key]


class Shard(NamedTuple):
    """One of several runs, each started by itself, that share a list of images: every `count`-th chunk."""

    number: int  # from 1
    count: int

    def __str__(self):
        return f"{self.number}/{self.count}"

    def holds(self, chunk: int) -> bool:
        """Whether the chunk of this index is its."""
        return chunk % self.count == self.number - 1


def parse_shard(text: str | None) -> Shard | None:
    """ "2/8" -> Shard(2, 8), None -> None; InputError for anything else."""
    if text is None:
        return None
    numbers = re.fullmatch(r"([1-9]\d{0,4})/([1-9]\d{0,4})", text.strip())
    shard = Shard(*map(int, numbers.groups())) if numbers else None
    if shard is None or not shard.number <= shard.count <= MOST_SHARDS:
        raise InputError("--shard 应是 I/N，例如 1/8 到 8/8（从 1 开始，N 至多 {}），收到 {!r}", MOST_SHARDS, text)
    return shard


class ChunkSize(NamedTuple):
    """How much is done at once."""

    batch: int  # images per chunk
    threads: int  # chunks beside each other
    num_workers: int  # processes that decode; 0: a thread of this one, which is quicker on few cores


def most_at_once(on_cpu: bool) -> int:
    """How many images go through the model at once where nobody says."""
    return 8 if on_cpu else 32


def chunk_size(
    images: int,
    on_cpu: bool,
    torch_threads: int,
    ranks: Ranks,
    batch: int | None = None,
    num_workers: int | None = None,
) -> ChunkSize:
    """As asked for, else good defaults for a list of images. The batch is the same for any number of processes.

    A short list makes small batches, so that all have work. `torch_threads`: what torch would use for one
    operation, the cores or OMP_NUM_THREADS; beside a GPU, which draws nothing, all cores are free for drawing.
    """
    if batch is None:
        batch = min(most_at_once(on_cpu), max(1, -(-images // 16)))
    cores = max(1, (os.cpu_count() or 1) // ranks.local_world)
    threads = min(MOST_THREADS, torch_threads if on_cpu else cores)
    if num_workers is None:
        num_workers = min(4, cores // 2) if cores >= 4 else 0
    return ChunkSize(batch, threads, num_workers)


def chunks_to_do(pending: Sequence[bool], size: int) -> list[int]:
    """Indices of the chunks of `size` images in which something is still to do."""
    return [start // size for start in range(0, len(pending), size) if any(pending[start : start + size])]


def claimed(chunks: Sequence[int], ranks: Ranks) -> Iterator[int]:
    """The chunks that this process gets, one by one as it asks: a slow process asks less often."""
    while (number := ranks.claim()) < len(chunks):
        yield chunks[number]


def run_chunks(
    chunks: Iterable,
    start: Callable,
    finish: Callable,
    keep: Callable,
    threads: int,
    prepare_thread: Callable[[], None],
) -> None:
    """Threads that take chunks through `start` and each of its results through `finish`, beside each other.

    `start(chunk)` returns a list of results. What `finish` gives goes to `keep` in as many threads of their own, which
    wait for the disk while these work on. At most one chunk per thread and one more are under way, so memory stays as
    it is however many there are. Returns when the last result is kept; an exception ends the run and is raised.
    What is said in them is said in the language of here.
    """
    executor = ThreadPoolExecutor(threads, initializer=prepare_thread)
    keepers = ThreadPoolExecutor(threads)
    under_way: deque[Future] = deque()  # of chunks: each gives the futures of its results

    def begin(chunk):
        return [executor.submit(copy_context().run, end, result) for result in start(chunk)]

    def end(result):
        return keepers.submit(copy_context().run, keep, finish(result))

    def settle(chunk: Future):
        for result in chunk.result():
            result.result().result()

    try:
        for chunk in chunks:  # the next one is decoded while the others are under way
            under_way.append(executor.submit(copy_context().run, begin, chunk))
            del chunk
            if len(under_way) > threads:
                settle(under_way.popleft())
        while under_way:
            settle(under_way.popleft())
    finally:
        executor.shutdown(cancel_futures=True)
        keepers.shutdown(cancel_futures=True)
