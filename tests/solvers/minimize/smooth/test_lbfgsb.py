"""Minimisation between bounds: conditions of optimality, exact bounds, independent solvers."""

import numpy as np
import pytest
import scipy.optimize
import torch

from solvers.derivatives import gradient
from solvers.minimize.lbfgsb import LBFGSB
from solvers.solution import Status
from tests.solvers.minimize.smooth.problems import (
    exponentials,
    logistic,
    normal,
    quadratic,
    ridge,
    rosenbrock,
    times,
)

INF = torch.inf
PROBLEMS = [quadratic(100.0), ridge(), logistic(), exponentials(), rosenbrock(2), rosenbrock(10)]


def boxes(x):
    """Some bounds around and beside the minimum ``x``, some of them infinite or equal."""
    low = x + normal(*x.shape, seed=5) - 0.5
    high = low + normal(*x.shape, seed=6).abs()
    pick = normal(*x.shape, seed=7)
    low = torch.where(pick > 0.8, -INF, low)
    high = torch.where(pick < -0.8, INF, high)
    return low, torch.where((pick > 0) & (pick < 0.1), low, high)


def check_optimal(f, solution, low, high, tolerance=1e-7):
    x, g = solution.x, gradient(f, solution.x)
    assert ((low <= x) & (x <= high)).all()
    free = (low < x) & (x < high)
    assert g[free].abs().max() < tolerance if free.any() else True
    assert (g[(x == low) & (x < high)] >= -tolerance).all()
    assert (g[(x == high) & (low < x)] <= tolerance).all()
    assert (g + solution.z_box).abs().max() < tolerance
    assert (solution.z_box[x > low] >= 0).all()
    assert (solution.z_box[x < high] <= 0).all()


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_satisfies_the_conditions_of_optimality(problem):
    low, high = boxes(problem.x)
    solution = LBFGSB().solve(problem.f, problem.x0, low, high)
    assert solution.solved.all()
    check_optimal(problem.f, solution, low, high, 1e-7 * problem.condition)


@pytest.mark.parametrize("problem", PROBLEMS[:4], ids=lambda p: p.name)
def test_agrees_with_scipy_on_convex_problems(problem):
    low, high = boxes(problem.x)
    solution = LBFGSB().solve(problem.f, problem.x0, low, high)
    for i in range(3):
        one = problem.only(i)

        def fun(x, one=one):
            x = torch.as_tensor(x)[None]
            return one.f(x).item(), gradient(one.f, x)[0].numpy()

        start = np.clip(one.x0[0].numpy(), low[i].numpy(), high[i].numpy())
        box = scipy.optimize.Bounds(low[i].numpy(), high[i].numpy())
        options = {"ftol": 1e-16, "gtol": 1e-12}
        found = scipy.optimize.minimize(fun, start, jac=True, bounds=box, options=options)
        np.testing.assert_allclose(solution.x[i], found.x, atol=1e-6)
        assert solution.objective[i] <= found.fun + 1e-13 * abs(found.fun)


def test_nonnegative_least_squares():
    A, b = normal(4, 30, 12), normal(4, 30, seed=1)
    x0 = torch.zeros(4, 12, dtype=torch.float64)

    def f(x):
        return (times(A, x) - b).square().sum(-1) / 2

    solution = LBFGSB().solve(f, x0, lower=torch.tensor(0.0))
    expected = np.stack([scipy.optimize.nnls(a, c)[0] for a, c in zip(A, b, strict=True)])
    np.testing.assert_allclose(solution.x, expected, atol=1e-9)
    assert ((solution.x == 0).numpy() == (expected == 0)).all()


def test_bounds_are_met_exactly_also_in_single_precision():
    target = torch.tensor([[0.3, -0.1, 7.0], [-5.0, 0.7, 0.1]])
    low, high = torch.full((3,), 0.1), torch.full((3,), 0.7)
    solution = LBFGSB().solve(lambda x: (x - target).square().sum(-1), target, low, high)
    assert torch.equal(solution.x[0, 1:], torch.stack([low[1], high[2]]))
    assert torch.equal(solution.x[1], torch.tensor([0.1, 0.7, 0.1]))
    assert solution.status.tolist() == [Status.SOLVED] * 2


def test_a_vertex_may_be_the_minimum():
    c = normal(5, 4)
    solution = LBFGSB().solve(lambda x: (c * x).sum(-1), 0 * c, -torch.ones(4), torch.ones(4))
    assert torch.equal(solution.x, -c.sign())
    torch.testing.assert_close(solution.z_box, -c)


def test_weakly_active_bounds():
    # The minimum without bounds lies on a bound: its multiplier is zero.
    target = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64)

    def f(x):
        return torch.cosh(x - target).sum(-1) + 0.3 * (x - target).prod(-1) ** 2

    solution = LBFGSB().solve(f, target + 0.7, torch.zeros(3), torch.ones(3))
    torch.testing.assert_close(solution.x, target, rtol=0, atol=1e-9)
    assert solution.solved.all()


def test_without_bounds_or_with_infinite_ones():
    problem = logistic()
    free = LBFGSB().solve(problem.f, problem.x0)
    infinite = LBFGSB().solve(problem.f, problem.x0, -INF * torch.ones(5), INF * torch.ones(5))
    assert torch.equal(free.x, infinite.x)
    assert torch.equal(free.z_box, torch.zeros(3, 5).to(free.x))


def test_find_takes_flat_batches():
    problem = logistic()
    low, high = boxes(problem.x)
    run = LBFGSB().find(problem.f, problem.x0, low, high)
    solution = LBFGSB().solve(problem.f, problem.x0, low, high)
    assert torch.equal(run.x, solution.x)


def test_a_batch_is_a_loop_and_neighbours_do_not_matter():
    problem = logistic()
    low, high = boxes(problem.x)
    together = LBFGSB().solve(problem.f, problem.x0, low, high)
    for i in range(3):
        one = problem.only(i)
        alone = LBFGSB().solve(one.f, one.x0, low[i : i + 1], high[i : i + 1])
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-9)

    def broken(x):
        return torch.cat([problem.f(x)[:2], (x[2:] * torch.nan).sum(-1)])

    beside = LBFGSB().solve(broken, problem.x0, low, high)
    assert torch.equal(beside.x[:2], together.x[:2])
    assert beside.status.tolist() == [Status.SOLVED, Status.SOLVED, Status.NUMERICAL_ERROR]


@pytest.mark.parametrize(
    ("low", "high", "match"),
    [
        (torch.ones(2), torch.zeros(2), r"lower must not be above upper; it is in 6 of 6"),
        (torch.zeros(5), None, r"lower must broadcast .* \(3, 2\); got \(5,\)"),
        (None, torch.zeros(4, 2), r"upper must broadcast"),
    ],
)
def test_wrong_bounds_are_refused(low, high, match):
    with pytest.raises(ValueError, match=match):
        LBFGSB().solve(lambda x: x.sum(-1), torch.zeros(3, 2), low, high)
