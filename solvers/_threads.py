"""Threads for compiled solvers that release the interpreter's lock; none for small torch calls."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise

import torch

# A pool that was made before a fork has no threads in the child and would wait for ever: the key
# is the process. Workers must not call torch, whose own threads do not survive a fork either.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()
_inside = 0
_outside_threads = 1


@contextmanager
def calm() -> Iterator[None]:
    """Let torch compute in the calling thread alone, as before afterwards.

    After a parallel call torch's threads spin for a while in case another one comes. Between calls
    of microseconds that keeps the cores from everybody else, our own workers included: with two
    threads on two cores a problem with a hundred variables took five times as long as with one.
    """
    global _inside, _outside_threads
    with _lock:
        if _inside == 0:
            _outside_threads = torch.get_num_threads()
        _inside += 1
        threads = _outside_threads
    try:
        if threads > 1:
            torch.set_num_threads(1)
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)
        with _lock:
            _inside -= 1


def available() -> int:
    """How many threads the user lets torch have."""
    return _outside_threads if _inside else torch.get_num_threads()


def run(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all jobs, the first one in the calling thread, and raise what any of them raised."""
    if len(jobs) < 2:
        for job in jobs:
            job()
        return
    key = (os.getpid(), len(jobs))
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, ThreadPoolExecutor(len(jobs), "optlayers"))
    futures = [pool.submit(job) for job in jobs[1:]]
    try:
        jobs[0]()
    finally:
        wait(futures)  # they write into the caller's arrays
    for future in futures:
        future.result()


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into at most ``parts`` ranges of nearly equal length."""
    ends = [count * i // parts for i in range(parts + 1)]
    return [(low, high) for low, high in pairwise(ends) if high > low]
