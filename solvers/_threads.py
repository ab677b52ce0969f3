"""Threads for work that releases the interpreter's lock; none for small torch calls."""

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# A pool that was made before a fork has no threads in the child and would wait for ever: the key
# is the process.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()
_working = threading.local()
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
    set_threads = _set_threads()
    try:
        if threads > 1:
            set_threads(1)
        yield
    finally:
        if threads > 1:
            set_threads(threads)
        with _lock:
            _inside -= 1


@cache
def _set_threads() -> Callable[[int], None]:
    """What sets the number of torch's threads for the calling thread.

    After ``torch.set_num_threads``, whatever the number, MKL lets factorisations within torch's
    parallel loops have threads of their own, and hangs: a batched ``torch.linalg.lu_factor`` of 200
    rows and more never ends. So OpenMP is told itself, where torch uses it.
    """
    try:
        set_threads: Callable[[int], None] = ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError):
        return torch.set_num_threads
    before = torch.get_num_threads()
    set_threads(before + 1)
    is_torchs = torch.get_num_threads() == before + 1
    set_threads(before)
    return set_threads if is_torchs else torch.set_num_threads


def _be_alone() -> None:
    """Let torch compute in this worker alone, for as long as it lives."""
    if torch.get_num_threads() > 1:  # asking lets torch do first what it does once in each thread
        _set_threads()(1)


def available() -> int:
    """How many threads the user lets torch have; one inside a job, where the others are busy."""
    if getattr(_working, "on_a_job", False):
        return 1
    return _outside_threads if _inside else torch.get_num_threads()


def run(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all jobs, the first one in the calling thread, and raise what any of them raised.

    Jobs may call torch, on tensors that nobody differentiates, inside :func:`calm` only: there
    torch has one thread, so that a pool in a forked process does not wait for threads that are
    gone.
    """
    if len(jobs) < 2:
        for job in jobs:
            job()
        return
    key = (os.getpid(), len(jobs))
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, ThreadPoolExecutor(len(jobs), "optlayers", _be_alone))
    inference = torch.is_inference_mode_enabled()
    futures = [pool.submit(_work, job, inference) for job in jobs[1:]]
    try:
        _work(jobs[0], inference)
    finally:
        wait(futures)  # they write into the caller's arrays
    for future in futures:
        future.result()


def _work(job: Callable[[], None], inference: bool) -> None:
    # Both modes belong to a thread, and a worker starts with neither.
    with torch.inference_mode(inference), torch.no_grad():
        _working.on_a_job = True
        try:
            job()
        finally:
            _working.on_a_job = False


def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Apply a function to all items, in as many threads as there are; results in their order."""
    items = list(items)
    results: list[Any] = [None] * len(items)
    left = iter(range(len(items)))  # whoever is done takes the next

    def work() -> None:
        for i in left:
            results[i] = function(items[i])

    run([work] * min(available(), len(items)))
    return results


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into at most ``parts`` ranges of nearly equal length."""
    ends = [count * i // parts for i in range(parts + 1)]
    return [(low, high) for low, high in pairwise(ends) if high > low]
