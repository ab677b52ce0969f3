"""Jobs in several threads: order, errors, modes, and no jobs within jobs."""

import subprocess
import sys
import threading

import pytest
import torch

from solvers import _threads


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def together(function, items):
    with _threads.calm():
        return _threads.spread(function, items)


def test_results_come_in_the_order_of_the_items_from_both_threads():
    meet = threading.Barrier(2, timeout=30)  # passes only if two jobs run at the same time

    def work(i):
        if i < 2:
            meet.wait()
        return i, threading.get_ident()

    found = together(work, range(7))
    assert [i for i, _ in found] == list(range(7))
    assert len({thread for _, thread in found}) == 2


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_any_thread_is_raised(bad):
    meet = threading.Barrier(2, timeout=30)

    def work(i):
        meet.wait()
        if i == bad:
            raise ValueError(f"job {i}")

    with pytest.raises(ValueError, match=f"job {bad}"):
        together(work, range(2))
    assert together(abs, [-1, -2]) == [1, 2]  # and the threads are free again


@pytest.mark.parametrize("inference", [False, True])
def test_modes_reach_the_workers(inference):
    leaf = torch.ones(2, requires_grad=True)

    def work(i):
        return torch.is_inference_mode_enabled(), (leaf * i).requires_grad

    with torch.inference_mode(inference):
        assert together(work, range(2)) == [(inference, False)] * 2


def test_a_job_finds_no_other_threads():
    assert together(lambda _: _threads.available(), range(2)) == [1, 1]
    assert _threads.available() == 2
    nested = together(lambda i: _threads.spread(abs, [i, -i]), range(3))
    assert nested == [[0, 0], [1, 1], [2, 2]]


BATCHED_LU = """
import torch
from solvers import _threads
before = torch.get_num_threads()
with _threads.calm():
    assert torch.get_num_threads() == 1
    assert _threads.spread(lambda i: torch.get_num_threads(), range(2)) == [1, 1]
assert torch.get_num_threads() == before
for _ in range(20):
    torch.linalg.lu_factor(torch.randn(8, 250, 250, dtype=torch.float64))
"""


def test_factorisations_afterwards_end():
    """They did not where torch had been told a number of threads: MKL waits for itself."""
    subprocess.run([sys.executable, "-c", BATCHED_LU], check=True, timeout=100)
