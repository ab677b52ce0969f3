"""Threads for work that releases the interpreter's lock; none for small torch calls."""

import ctypes
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
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
# Calls of compiled code in Python's threads that are still to come, and after the next long wait.
LONG_WAIT = 500_000  # nanoseconds
PAUSE, LONGEST_PAUSE = 20, 2000
_without_team, _pause = 0, PAUSE


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
    undo = _be_alone() if threads > 1 else None
    try:
        yield
    finally:
        if undo is not None:
            undo()
        with _lock:
            _inside -= 1


def _be_alone() -> Callable[[], None]:
    """Let torch compute in the calling thread alone; returns what undoes that.

    After ``torch.set_num_threads``, whatever the number, MKL lets factorisations within torch's
    parallel loops have threads of their own, and hangs: a batched ``torch.linalg.lu_factor`` of 200
    rows and more never ends. So OpenMP and MKL are told themselves, where torch uses them.
    """
    threads = torch.get_num_threads()  # asking lets torch do first what it does once in each thread
    set_openmp, set_mkl = _libraries()
    if set_openmp is None:
        torch.set_num_threads(1)
        return partial(torch.set_num_threads, threads)
    set_openmp(1)
    of_mkl = 0 if set_mkl is None else set_mkl(1)  # which goes by OpenMP's number where that is 0

    def undo() -> None:
        set_openmp(threads)
        if set_mkl is not None:
            set_mkl(of_mkl)

    return undo


@cache
def _libraries() -> tuple[Callable[[int], Any] | None, Callable[[int], int] | None]:
    """What sets the calling thread's number of threads in OpenMP and in MKL; the latter tells it.

    Neither if torch does not use the OpenMP that is found.
    """
    try:
        set_openmp = ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):
        return None, None
    before = torch.get_num_threads()
    set_openmp(before + 1)
    is_torchs = torch.get_num_threads() == before + 1
    set_openmp(before)
    if not is_torchs:
        return None, None
    try:
        torchs = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return set_openmp, torchs.MKL_Set_Num_Threads_Local
    except (AttributeError, OSError):
        return set_openmp, None


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
    if len(items) < 2:
        return [function(item) for item in items]
    results: list[Any] = [None] * len(items)
    left = iter(range(len(items)))  # whoever is done takes the next

    def work() -> None:
        for i in left:
            results[i] = function(items[i])

    run([work] * min(available(), len(items)))
    return results


def work_together(function: Any, job: int, threads: int) -> None:
    """Call compiled code in several threads, each with the same address, where it finds its share.

    The threads are those of torch's OpenMP, if that is to be had: after a parallel call of torch
    they are awake for a while, and would keep others from working. Where processes share cores, the
    calling thread waits for ones whose core was taken away; it then does without them for a while.

    Args:
        function: Of a library that ctypes loaded; takes an address. The thread that is done first
            leaves there when that was, in nanoseconds of the monotonic clock.
        job: That address.
        threads: How many, the calling one included.
    """
    global _without_team, _pause
    team = _team()
    if team is None or _forked or _without_team > 0:
        _without_team -= 1
        run([partial(function, job)] * threads)
        return
    start = time.monotonic_ns()
    team(ctypes.cast(function, ctypes.c_void_p), job, threads, 0)
    end = time.monotonic_ns()
    waited = end - ctypes.c_int64.from_address(job).value
    if waited < max(LONG_WAIT, (end - start) // 2):
        _pause = PAUSE
    else:
        _without_team, _pause = _pause, min(2 * _pause, LONGEST_PAUSE)


@cache
def _team() -> Any:
    """How compilers call OpenMP for a parallel region; None where it is not torch's.

    A function of another function, its argument, the number of threads, and flags.
    """
    if _libraries()[0] is None:
        return None
    try:
        call = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return None
    call.restype, number = None, ctypes.c_uint
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, number, number]
    return call


# In a forked process the threads of OpenMP are gone, and it would wait for them. One that imports
# this only after the fork is known if it comes from multiprocessing.
_forked = multiprocessing.parent_process() is not None


def _be_forked() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_be_forked)


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``range(count)`` into at most ``parts`` ranges of nearly equal length."""
    ends = [count * i // parts for i in range(parts + 1)]
    return [(low, high) for low, high in pairwise(ends) if high > low]
