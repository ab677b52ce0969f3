"""Jobs in several threads: order, errors, modes, and no jobs within jobs."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

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


# --- compiled code in several threads ---

# A job is when the first thread was done, how many there were, and how long the last one sleeps.
WORK = """
#include <stdint.h>
#include <time.h>
#include <unistd.h>
void work(void *job) {
    int64_t *words = job;
    int64_t before = __atomic_fetch_add(words + 1, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(words + 1, __ATOMIC_SEQ_CST) < 2) {}
    if (before) {
        usleep(words[2]);
    } else {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        words[0] = now.tv_sec * 1000000000LL + now.tv_nsec;
    }
}
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function that ends only where two threads call it at the same time."""
    (tmp_path / "work.c").write_text(WORK)
    command = ["cc", "-shared", "-fPIC", "-o", "work.so", "work.c"]
    subprocess.run(command, cwd=tmp_path, check=True)
    function = ctypes.CDLL(str(tmp_path / "work.so")).work
    function.restype, function.argtypes = None, [ctypes.c_void_p]
    monkeypatch.setattr(_threads, "_without_team", 0)
    monkeypatch.setattr(_threads, "_pause", _threads.PAUSE)
    return function


def meet(function, sleep=0):
    job = (ctypes.c_int64 * 3)(0, 0, sleep)
    _threads.work_together(function, ctypes.addressof(job), 2)
    return job[1]


@pytest.mark.parametrize("team", ["torch's", "none"])
def test_compiled_code_is_called_in_two_threads_at_once(work, team, monkeypatch):
    if team == "none":
        monkeypatch.setattr(_threads, "_team", lambda: None)
    assert meet(work) == 2
    with _threads.calm():
        assert meet(work) == 2
    assert torch.get_num_threads() == 2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_compiled_code_in_a_forked_process_finds_other_threads(work):
    assert meet(work) == 2
    assert torch.ones(1 << 20).sum() == 1 << 20  # all of them are there by now
    child = os.fork()
    if not child:
        os._exit(0 if meet(work) == 2 else 1)
    patience = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > patience:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the forked process waits for ever")
        time.sleep(0.01)
    assert ended == (child, 0)


def test_several_threads_call_compiled_code(work):
    found = []
    callers = [threading.Thread(target=lambda: found.append(meet(work))) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert found == [2] * 4


def test_after_a_long_wait_compiled_code_does_without_openmp_for_a_while(work, monkeypatch):
    monkeypatch.setattr(_threads, "PAUSE", 3)
    used = []
    run = _threads.run
    monkeypatch.setattr(_threads, "run", lambda jobs: (used.append(len(jobs)), run(jobs)))
    meet(work, sleep=50_000)
    assert not used
    pause = _threads._without_team
    assert pause >= 3
    for _ in range(pause):
        assert meet(work) == 2
    assert used == [2] * pause
    monkeypatch.setattr(_threads, "LONG_WAIT", 10_000_000_000)  # whatever else the machine does
    assert meet(work) == 2
    assert len(used) == pause
    assert _threads._pause == 3


FORKED = """
import multiprocessing, sys, torch
def solve():
    import optlayers as ol
    I = torch.eye(10, dtype=torch.float64)
    x = ol.qp(I, -torch.ones(2000, 10, dtype=torch.float64), lb=torch.zeros(10).double()).x
    assert torch.allclose(x, torch.ones_like(x))
if sys.argv[1] == "before":
    import optlayers
torch.set_num_threads(2)
torch.zeros(3_000_000).exp_()
child = multiprocessing.get_context("fork").Process(target=solve)
child.start()
child.join(30)
if child.exitcode is None:
    child.kill()
assert child.exitcode == 0, child.exitcode
"""


@pytest.mark.parametrize("imported", ["before", "in the child"])
def test_a_forked_process_does_not_wait_for_the_threads_of_torch(imported):
    """It never came back: OpenMP had started them for torch, in the process that forked."""
    command = [sys.executable, "-W", "ignore", "-c", FORKED, imported]
    subprocess.run(command, check=True, timeout=100)
