"""Sharing: who does which chunk, and the threads that take chunks through."""

import os
import threading
import time

import pytest

from models.runs.sharing import Ranks, chunk_size, chunks_to_do, claimed, run_chunks


def nothing():
    pass


@pytest.mark.parametrize(
    "images, on_cpu, expected",
    [(1, True, 1), (2, True, 1), (16, True, 1), (17, True, 2), (128, True, 8), (10**6, True, 8), (10**6, False, 32)],
)
@pytest.mark.parametrize("world", [1, 4])
def test_the_batch_depends_on_the_list_alone(monkeypatch, images, on_cpu, expected, world):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    assert chunk_size(images, on_cpu, 2, Ranks()).batch == expected


@pytest.mark.parametrize(
    "cores, world, torch_threads, on_cpu, threads, workers",
    [
        (2, 1, 2, True, 2, 0),
        (64, 1, 64, True, 8, 4),
        (64, 8, 1, True, 1, 4),
        (64, 8, 1, False, 8, 4),
        (2, 8, 1, False, 1, 0),
    ],
)
def test_threads_and_decoding_processes(monkeypatch, cores, world, torch_threads, on_cpu, threads, workers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(world))
    assert chunk_size(1000, on_cpu, torch_threads, Ranks())[1:] == (threads, workers)


@pytest.mark.parametrize(
    "pending, size, expected",
    [([True] * 5, 2, [0, 1, 2]), ([False] * 5, 2, []), ([False, False, True, False, False], 2, [1]), ([], 2, [])],
)
def test_chunks_with_something_to_do(pending, size, expected):
    assert chunks_to_do(pending, size) == expected


def test_a_process_alone_gets_every_chunk_once():
    assert list(claimed([4, 7, 9], Ranks())) == [4, 7, 9]


def test_a_process_alone_waits_for_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    ranks = Ranks()
    ranks.announce("planned")
    ranks.wait_for("planned", [0])
    assert ranks.is_first and [ranks.add("finished", 2), ranks.add("finished", 1), ranks.add("failed", 1)] == [2, 3, 1]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_result_is_finished_once(threads):
    done, lock = [], threading.Lock()

    def finish(result):
        with lock:
            done.append(result)

    run_chunks(range(30), lambda chunk: [(chunk, i) for i in range(chunk % 4)], finish, threads, nothing)
    assert sorted(done) == [(chunk, i) for chunk in range(30) for i in range(chunk % 4)]


@pytest.mark.parametrize("threads", [1, 3])
def test_few_chunks_are_under_way_at_once(threads):
    lock, live, most = threading.Lock(), set(), []

    def chunks():
        for chunk in range(40):
            with lock:
                live.add(chunk)
                most.append(len(live))
            yield chunk

    def finish(chunk):
        time.sleep(0.002)
        with lock:
            live.discard(chunk)

    run_chunks(chunks(), lambda chunk: [chunk], finish, threads, nothing)
    assert max(most) <= threads + 2 and not live  # one more is in the hand of whoever waits for a place


@pytest.mark.parametrize("where", ["start", "finish", "chunks"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("error", [ValueError("kaputt"), KeyboardInterrupt()])
def test_the_first_failure_ends_the_run_and_is_raised(where, threads, error):
    def fail_at(place, value):
        if place == where and value == 5:
            raise error
        return value

    before = threading.active_count()
    chunks = (fail_at("chunks", i) for i in range(10_000))
    with pytest.raises(type(error)):
        run_chunks(chunks, lambda chunk: [fail_at("start", chunk)], lambda r: fail_at("finish", r), threads, nothing)
    assert threading.active_count() == before


def test_each_thread_is_prepared():
    seen = []
    run_chunks(range(50), lambda chunk: [], nothing, 3, lambda: seen.append(threading.get_ident()))
    assert 1 <= len(seen) == len(set(seen)) <= 3 and os.getpid() not in seen
