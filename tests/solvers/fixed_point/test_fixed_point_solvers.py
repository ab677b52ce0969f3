"""What all fixed-point solvers do, on a table of maps."""

import pytest
import torch

from optlayers.solvers.fixed_point import Anderson, Picard
from solvers.solution import Status
from tests.solvers.fixed_point.maps import MAPS, affine, rectified

SOLVERS = [
    pytest.param(Picard(max_iter=5000), id="Picard"),
    pytest.param(Picard(max_iter=5000, damping=0.8), id="Picard, damped"),
    pytest.param(Anderson(), id="Anderson"),
    pytest.param(Anderson(memory=1), id="Anderson, one change"),
    pytest.param(Anderson(memory=100), id="Anderson, all changes"),
    pytest.param(Anderson(damping=0.5), id="Anderson, damped"),
]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("problem", MAPS, ids=lambda problem: problem.__name__)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 5e-3)])
def test_finds_the_fixed_point(solver, problem, dtype, tolerance):
    f, start, fixed = problem(dtype)
    before = start.clone()
    solution = solver.solve(f, start)
    assert solution.x.dtype == dtype
    assert solution.solved.all()
    assert torch.allclose(solution.x, fixed, rtol=tolerance, atol=tolerance)
    assert torch.equal(start, before)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_is_its_elements(solver):
    torch.manual_seed(0)
    W = 0.5 * torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    u = torch.randn(2, 3, 5, dtype=torch.float64)
    batch = solver.solve(lambda z: torch.tanh(z @ W + u), torch.zeros_like(u))
    assert batch.x.shape == u.shape
    assert batch.status.shape == batch.iterations.shape == batch.dual_residual.shape == (2, 3)
    for i, j in [(0, 0), (0, 2), (1, 1)]:
        mine = u[i, j]
        alone = solver.solve(lambda z, mine=mine: torch.tanh(z @ W + mine), torch.zeros_like(mine))
        assert alone.status.shape == ()
        assert alone.iterations == batch.iterations[i, j]
        assert torch.allclose(alone.x, batch.x[i, j], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
def test_values_of_the_map_come_back(solver):
    f, start, fixed = rectified(torch.float64)
    solution = solver.solve(f, start)
    assert torch.equal(solution.x == 0, fixed == 0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("bad", [torch.nan, 3.0], ids=["nan", "diverges"])
def test_mates_of_a_failure_are_untouched(solver, bad):
    u = torch.tensor([[0.1, 0.2], [0.3, 0.1], [0.5, -0.2]], dtype=torch.float64)

    def with_mate(slope):
        slopes = torch.tensor([0.5, slope, 0.9], dtype=torch.float64)[:, None]
        return solver.solve(lambda z: slopes * (z.abs() + 1) + u, torch.zeros_like(u))

    failed, fine = with_mate(bad), with_mate(0.4)
    assert not failed.solved[1]
    assert (fine.status == Status.SOLVED).all()
    assert torch.equal(failed.x[[0, 2]], fine.x[[0, 2]])
    assert torch.equal(failed.iterations[[0, 2]], fine.iterations[[0, 2]])


def test_a_sample_that_no_longer_improves_stops_while_its_mates_go_on():
    # The first one creeps within the looser tolerance; the second one comes from far away.
    rates = torch.tensor([[0.9995], [0.9]], dtype=torch.float64)
    start = torch.tensor([[1.0], [1e6]], dtype=torch.float64)
    solver = Picard(eps_abs=1e-5, eps_rel=0.0)
    both = solver.solve(lambda z: rates * z, start)
    assert both.iterations[0] < both.iterations[1]
    assert both.status.tolist() == [Status.SOLVED_INACCURATE, Status.SOLVED]
    for i in range(2):
        alone = solver.solve(lambda z, i=i: rates[i] * z, start[i])
        assert torch.equal(alone.x, both.x[i])
        assert alone.iterations == both.iterations[i]


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_samples(solver):
    solution = solver.solve(torch.cos, torch.ones(0, 3))
    assert solution.x.shape == (0, 3)
    assert solution.status.shape == (0,)


@pytest.mark.parametrize("solver", [Picard(max_iter=7), Anderson(max_iter=7)])
def test_running_out_of_iterations_is_a_status(solver):
    f, start, _ = affine(torch.float64)
    solution = solver.solve(f, start)
    assert (solution.status == Status.MAX_ITERATIONS).all()
    assert (solution.iterations == 7).all()


@pytest.mark.parametrize("solver", [Picard(max_iter=50), Anderson(max_iter=50)])
def test_a_map_without_a_fixed_point_is_a_status(solver):
    # Its residual never changes, so that there is nothing to mix.
    solution = solver.solve(lambda z: z + 1.0, torch.zeros(2, 3))
    assert (solution.status == Status.MAX_ITERATIONS).all()
    assert solution.x.isfinite().all()
