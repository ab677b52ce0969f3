"""A layer under DistributedDataParallel: two processes give the gradients of one."""

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import optlayers as ol

PROCESSES = 2
BATCH = 12
SECONDS = 120  # far more than it takes: a deadlock fails the test, a busy machine does not

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="this build of torch comes without torch.distributed or without gloo",
)


def make_model():
    torch.manual_seed(0)
    layer = ol.QPLayer(4, inequalities=3, equalities=1, nonnegative=True, dtype=torch.float64)
    nn.init.constant_(layer.log_slack, -2.0)  # tight: inequalities are active, too
    return nn.Sequential(nn.Linear(6, 4, dtype=torch.float64), layer)


def make_batch():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return 3 * draw(BATCH, 6), draw(BATCH, 4)


def gradients(model, inputs, targets):
    nn.functional.mse_loss(model(inputs), targets).backward()
    return [p.grad.clone() for p in model.parameters()]


def work(rank, folder):
    """One process: its share of the batch, and what it has after backward."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )
    model = DistributedDataParallel(make_model())
    share = [t[rank::PROCESSES] for t in make_batch()]
    first = gradients(model, *share)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    second = gradients(model, *share)
    parameters = [p.detach() for p in model.parameters()]
    torch.save((first, second, parameters), folder / f"{rank}.pt")
    dist.barrier()  # nobody leaves while the other still talks
    dist.destroy_process_group()
    # Past here only teardown is left, where gloo's threads can outlive their group and end a
    # process on a busy machine with SIGABRT, long after its results were saved.
    os._exit(0)


def run_all(folder):
    """Run all processes; raise what any of them raised, and leave none behind."""
    context = mp.spawn(work, args=(folder,), nprocs=PROCESSES, join=False)
    deadline = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"still running after {SECONDS} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def test_two_processes_give_the_gradients_of_one(tmp_path):
    run_all(tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES)]

    model = make_model()
    first = gradients(model, *make_batch())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    second = gradients(model, *make_batch())
    alone = first, second, [p.detach() for p in model.parameters()]

    for got in ranks:
        torch.testing.assert_close(got, alone, rtol=0, atol=1e-10)
    for grad in (*first, *second):
        assert grad.abs().max() > 1e-6  # equal, but not for want of a gradient
    torch.testing.assert_close(ranks[0], ranks[1], rtol=0, atol=0)
