"""Who does which chunk of a run over many images, and the threads that take chunks through."""

import os
import threading
import time

import pytest

from models.runs.sharing import Ranks, chunk_size, chunks_to_do, claimed, run_chunks


@pytest.mark.parametrize(
    "images, on_cpu, world, expected",
    [
        (1, True, 1, 1), (2, True, 4, 1), (16, True, 1, 1), (17, True, 4, 2), (128, True, 1, 8), (128, True, 4, 8),
        (10**6, True, 4, 8), (10**6, False, 1, 32), (10**6, False, 4, 32),
    ],
)  # fmt: skip
def test_the_batch_depends_on_the_list_alone(monkeypatch, images, on_cpu, world, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    assert chunk_size(images, on_cpu, 2, Ranks()).batch == expected


@pytest.mark.parametrize(
    "cores, world, torch_threads, on_cpu, expected",  # threads, processes that decode
    [
        (2, 1, 2, True, (2, 0)),
        (64, 1, 64, True, (8, 4)),
        (64, 8, 1, True, (1, 4)),
        (64, 8, 1, False, (8, 4)),
        (2, 8, 1, False, (1, 0)),
    ],
)
def test_threads_and_decoding_processes(monkeypatch, cores, world, torch_threads, on_cpu, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    assert chunk_size(1000, on_cpu, torch_threads, Ranks())[1:] == expected


@pytest.mark.parametrize(
    "pending, expected", [([1] * 5, [0, 1, 2]), ([0] * 5, []), ([0, 0, 1, 0, 0], [1]), ([0, 0, 0, 0, 1], [2]), ([], [])]
)
def test_chunks_with_something_to_do(pending, expected):
    assert chunks_to_do(pending, 2) == expected


def test_a_process_alone_gets_every_chunk_once_and_waits_for_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks = Ranks()
    assert list(claimed([4, 7, 9], ranks)) == [4, 7, 9]
    ranks.announce("planned")
    ranks.wait_for("planned", [0])
    assert ranks.is_first and [ranks.add("finished", 2), ranks.add("finished", 1), ranks.add("failed", 1)] == [2, 3, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_result_is_finished_once_and_few_chunks_are_under_way(threads):
    lock, live, most, done, prepared = threading.Lock(), set(), [], [], []

    def results_of(chunk):
        return [(chunk, i) for i in range(min(3, chunk % 10))]

    def chunks():
        for chunk in range(40):
            with lock:
                live.update(results_of(chunk))
                most.append(len({chunk for chunk, _ in live}))
            yield chunk

    def finish(result):
        time.sleep(0.001)
        return result, threading.get_ident()

    def keep(finished):
        time.sleep(0.001)
        result, thread = finished
        assert thread in prepared and threading.get_ident() not in prepared
        with lock:
            live.discard(result)
            done.append(result)

    run_chunks(chunks(), results_of, finish, keep, threads, lambda: prepared.append(threading.get_ident()))
    assert sorted(done) == [result for chunk in range(40) for result in results_of(chunk)]
    assert max(most) <= threads + 1 and not live
    assert 1 <= len(prepared) == len(set(prepared)) <= threads and threading.get_ident() not in prepared


@pytest.mark.parametrize(
    "where, threads", [("start", 1), ("start", 2), ("finish", 1), ("finish", 2), ("keep", 1), ("chunks", 1)]
)
@pytest.mark.parametrize("error", [ValueError("kaputt"), KeyboardInterrupt()])
def test_the_first_failure_ends_the_run_and_is_raised(where, threads, error):
    reached, before = [], threading.active_count()

    def fail_at(place, value):
        reached.append(value)
        if place == where and value == 5:
            raise error
        return value

    chunks = (fail_at("chunks", i) for i in range(10_000))
    with pytest.raises(type(error)):
        steps = (lambda value, place=place: fail_at(place, value) for place in ("start", "finish", "keep"))
        start, finish, keep = steps
        run_chunks(chunks, lambda chunk: [start(chunk)], finish, keep, threads, bool)
    assert max(reached) < 100 and threading.active_count() == before
