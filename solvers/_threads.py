"""One lazy pool of threads a process, for compiled solvers that release the interpreter's lock."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import torch

# A pool that was made before a fork has no threads in the child and would wait for ever: the key
# is the process. Workers must not call torch, whose own threads do not survive a fork either.
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def run(jobs: Sequence[Callable[[], None]]) -> None:
    """Run all jobs, the first one in the calling thread, and raise what any of them raised."""
    if len(jobs) < 2:
        for job in jobs:
            job()
        return
    key = (os.getpid(), torch.get_num_threads())
    pool = _pools.get(key)
    if pool is None:
        pool = _pools.setdefault(key, ThreadPoolExecutor(key[1], "optlayers"))
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
