"""The engine room of a run over many images: who does which chunk, and how a chunk goes through.

Images are worked on in chunks of a fixed size at fixed places in the list, so that an image's numbers do
not depend on what was finished before, nor on how many processes share the work: convolutions round
differently with another batch shape or another number of threads. Every model call therefore runs on one
thread, and several chunks run side by side.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import NamedTuple

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
            from torch.distributed import PrefixStore
            from torch.distributed.rendezvous import rendezvous

            store, _, _ = next(rendezvous("env://"))
            self._store = PrefixStore(f"clip_gradcam/{self.attempt}", store)  # one store may serve all attempts

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


class ChunkSize(NamedTuple):
    """How much is done at once."""

    batch: int  # images per chunk
    threads: int  # chunks beside each other
    num_workers: int  # processes that decode; 0: a thread of this one, which is quicker on few cores


def chunk_size(images: int, on_cpu: bool, torch_threads: int, ranks: Ranks) -> ChunkSize:
    """Good defaults for a list of images. The batch is the same for any number of processes.

    A short list makes small batches, so that all have work. `torch_threads`: what torch would use for one
    operation, the cores or OMP_NUM_THREADS; beside a GPU, which draws nothing, all cores are free for drawing.
    """
    batch = min(8 if on_cpu else 32, max(1, -(-images // 16)))
    cores = max(1, (os.cpu_count() or 1) // ranks.local_world)
    threads = min(MOST_THREADS, torch_threads if on_cpu else cores)
    return ChunkSize(batch, threads, min(4, cores // 2) if cores >= 4 else 0)


def chunks_to_do(pending: Sequence[bool], size: int) -> list[int]:
    """Indices of the chunks of `size` images in which something is still to do."""
    return [start // size for start in range(0, len(pending), size) if any(pending[start : start + size])]


def claimed(chunks: Sequence[int], ranks: Ranks) -> Iterator[int]:
    """The chunks that this process gets, one by one as it asks: a slow process asks less often."""
    while (number := ranks.claim()) < len(chunks):
        yield chunks[number]


class Pipeline:
    """Threads that take chunks through `start` and each of its results through `finish`, beside each other.

    `start(chunk)` returns a list of results. At most one chunk per thread and one more are under way, so
    memory stays as it is however many there are. The first exception ends the run and is raised in it.
    """

    def __init__(self, threads: int, start: Callable, finish: Callable, prepare_thread: Callable[[], None]):
        self._start, self._finish = start, finish
        self._executor = ThreadPoolExecutor(threads, initializer=prepare_thread)
        self._places = threads + 1
        self._free = threading.Semaphore(self._places)
        self._failure: BaseException | None = None

    def run(self, chunks: Iterable) -> None:
        """Take all chunks through; returns when the last result is finished."""
        try:
            for chunk in chunks:
                self._free.acquire()
                if self._failure:
                    break
                self._executor.submit(self._guarded, self._begin, chunk)
            for _ in range(self._places):
                self._free.acquire()
        except BaseException as error:
            self._failure = self._failure or error
            raise
        finally:
            self._executor.shutdown(cancel_futures=True)
        if self._failure:
            raise self._failure

    def _guarded(self, task, *arguments) -> None:
        """Run a task unless another has failed; the first failure is kept and frees whoever waits."""
        try:
            if not self._failure:
                task(*arguments)
        except BaseException as error:
            self._failure = self._failure or error
        if self._failure:
            self._free.release(self._places)

    def _begin(self, chunk) -> None:
        results = self._start(chunk)
        left = _Countdown(len(results), self._free.release)
        for result in results:
            self._executor.submit(self._guarded, self._complete, result, left)

    def _complete(self, result, left) -> None:
        self._finish(result)
        left.one_less()


class _Countdown:
    """Calls `then` when the last of `count` is done; at once where there is none."""

    def __init__(self, count: int, then: Callable[[], None]):
        self._count, self._then = count, then
        self._lock = threading.Lock()
        if count == 0:
            then()

    def one_less(self) -> None:
        with self._lock:
            self._count -= 1
            last = self._count == 0
        if last:
            self._then()
