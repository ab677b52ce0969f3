"""What all root finders do, on a table of systems with known roots."""

import pytest
import torch

from optlayers.solvers.root import Broyden, Newton, ScipyRoot
from solvers.solution import Status
from tests.solvers.root.problems import PROBLEMS, posed, quintic, rosenbrock, tanh_layer

NATIVE = [Newton(), Broyden()]
SOLVERS = [*NATIVE, ScipyRoot(), ScipyRoot(method="lm")]


def name(value):
    return getattr(value, "__name__", None) or type(value).__name__


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_finds_the_root(solver, problem, dtype, tolerance):
    F, root, start = posed(problem, dtype)
    before = start.clone()
    solution = solver.solve(F, start)
    assert solution.x.dtype == dtype
    assert (solution.status == Status.SOLVED).all()
    assert torch.allclose(solution.x, root, rtol=tolerance, atol=tolerance)
    assert torch.equal(start, before)


@pytest.mark.parametrize("solver", NATIVE, ids=name)
def test_a_batch_is_its_elements(solver):
    F, root, start = posed(quintic, torch.float64)
    batch = solver.solve(F, start)
    for i in range(len(root)):
        offset = root[i] ** 5 + root[i] ** 3 + root[i]
        alone = solver.solve(lambda w, offset=offset: w**5 + w**3 + w - offset, start[i])
        assert alone.status.shape == ()
        assert torch.allclose(batch.x[i], alone.x, rtol=1e-13, atol=1e-13)
        assert batch.iterations[i] == alone.iterations


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_any_batch_shape(solver):
    targets = torch.tensor([[1.0, 4.0, 9.0], [16.0, 25.0, 36.0]], dtype=torch.float64)[..., None]
    solution = solver.solve(lambda x: x**2 - targets, torch.ones_like(targets))
    assert torch.allclose(solution.x, targets.sqrt())
    assert solution.status.shape == solution.iterations.shape == (2, 3)
    assert solution.dual_residual.shape == (2, 3)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_no_samples(solver):
    solution = solver.solve(lambda x: x - 1, torch.ones(0, 3))
    assert solution.x.shape == (0, 3)
    assert solution.status.shape == (0,)


@pytest.mark.parametrize("solver", NATIVE, ids=name)
@pytest.mark.parametrize(
    "bad",
    [torch.nan, torch.inf, 0.0],  # 0.0: x^2 + 1 = 0 below
    ids=["nan", "inf", "no root"],
)
def test_mates_of_a_failure_are_untouched(solver, bad):
    def with_mate(factor):
        factors = torch.tensor([1.0, factor, 2.0], dtype=torch.float64)[:, None]
        shift = torch.where(factors == 0, 1.0, -factors)
        start = torch.tensor([[3.0], [2.0], [10.0]], dtype=torch.float64)
        return solver.solve(lambda x: x**2 + shift + 0 * factors, start)

    failed, fine = with_mate(bad), with_mate(4.0)
    assert failed.status[1] in (Status.NUMERICAL_ERROR, Status.MAX_ITERATIONS)
    assert fine.status[1] == Status.SOLVED
    assert torch.equal(failed.x[[0, 2]], fine.x[[0, 2]])
    assert torch.equal(failed.iterations[[0, 2]], fine.iterations[[0, 2]])


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_a_double_root_is_no_crash(solver):
    start = torch.ones(2, 1, dtype=torch.float64)
    solution = solver.solve(lambda w: (w - 0.3) ** 2, start)
    assert solution.solved.all()
    assert torch.allclose(solution.x, torch.full_like(start, 0.3), atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=name)
def test_no_root_is_a_status(solver):
    solution = solver.solve(lambda w: w**2 + 1, torch.tensor([[0.5], [3.0]], dtype=torch.float64))
    assert not solution.solved.any()


@pytest.mark.parametrize("solver", [Newton(max_iter=2), Broyden(max_iter=2)], ids=name)
def test_running_out_of_iterations_is_a_status(solver):
    F, _, start = posed(rosenbrock, torch.float64)
    solution = solver.solve(F, start)
    assert solution.status.tolist() == [Status.MAX_ITERATIONS]
    assert solution.iterations.tolist() == [2]


def test_scipy_running_out_of_evaluations_is_a_status():
    F, _, start = posed(rosenbrock, torch.float64)
    solution = ScipyRoot(max_iter=3).solve(F, start)
    assert solution.status.tolist() == [Status.MAX_ITERATIONS]


def test_scipy_agrees():
    F, _, start = posed(tanh_layer, torch.float64)
    reference = ScipyRoot().solve(F, start).x
    for solver in NATIVE:
        assert torch.allclose(solver.solve(F, start).x, reference, atol=1e-10)


def test_scipy_refuses_methods_without_jacobians():
    with pytest.raises(ValueError, match="one of hybr, lm; got 'krylov'"):
        ScipyRoot(method="krylov")


def test_scipy_says_what_it_did(capsys):
    ScipyRoot(verbose=True).solve(lambda x: x - 1, torch.zeros(2, 1))
    assert capsys.readouterr().out.count("evaluations") == 2
