"""The adapter of SciPy: every method, constraints, multipliers, statuses."""

import pytest
import torch

from solvers.derivatives import gradient, jacobian
from solvers.minimize.lbfgsb import LBFGSB
from solvers.minimize.scipy_minimize import (
    METHODS,
    NO_GRADIENT,
    TAKES_CONSTRAINTS,
    TAKES_HESSIAN,
    ScipyMinimize,
)
from solvers.solution import Status
from tests.solvers.minimize.smooth.problems import logistic, normal, times, worst_error

CONSTRAINED = pytest.mark.parametrize("method", ["SLSQP", "trust-constr"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_finds_the_minimum(method):
    problem = logistic()
    rough = method in NO_GRADIENT
    # Methods that judge by the gradient, and those that judge by the value.
    tol = 1e-8 if rough or method in TAKES_HESSIAN else 1e-12
    solver = ScipyMinimize(method, tol=tol, max_iter=2000)
    part = problem.only(0) if rough else problem
    solution = solver.solve(part.f, part.x0)
    assert worst_error(solution.x, part) < (1e-4 if rough else 1e-5)
    assert solution.status.max() <= Status.SOLVED_INACCURATE
    torch.testing.assert_close(solution.objective, part.f(solution.x))
    assert solution.y is solution.z is solution.z_box is None


@pytest.mark.parametrize("method", ["Nelder-Mead", "CG", "L-BFGS-B", "trust-exact"])
def test_rows_of_a_batch_see_their_own_data(method):
    c = normal(2, 3, 2)
    solution = ScipyMinimize(method).solve(lambda x: torch.cosh(x - c).sum(-1), 0 * c)
    torch.testing.assert_close(solution.x, c, rtol=0, atol=1e-5)
    assert solution.status.shape == solution.iterations.shape == (2, 3)


def constrained(dtype=torch.float64):
    A, b = normal(3, 2, 4).to(dtype), normal(3, 2, seed=1).to(dtype)
    c = 2 * normal(3, 4, seed=2).to(dtype)

    def f(x):
        return (torch.exp(0.3 * x) + (x - c) ** 2).sum(-1)

    def on_plane(x):
        return times(A, x) - b

    def in_ball(x):
        return torch.stack([x.square().sum(-1) - 4, x[:, 0] - 50], dim=-1)

    return f, on_plane, in_ball, torch.zeros_like(c)


@CONSTRAINED
def test_constraints_and_multipliers_satisfy_the_conditions_of_optimality(method):
    f, h, c, x0 = constrained()
    low, high = torch.full((4,), -1.0).to(x0), torch.full((3, 4), 1.3).to(x0)
    solution = ScipyMinimize(method).solve(
        f, x0, lower=low, upper=high, equalities=h, inequalities=c
    )
    assert solution.solved.all()
    x, y, z, z_box = solution.x, solution.y, solution.z, solution.z_box
    assert h(x).abs().max() < 1e-6
    assert c(x).max() < 1e-6
    assert ((low - 1e-8 <= x) & (x <= high + 1e-8)).all()
    assert (z >= 0).all()
    assert (z * c(x)).abs().max() < 1e-4
    assert (z[:, 1] == 0).all()
    assert (z_box[x > low + 1e-4] >= 0).all()
    assert (z_box[x < high - 1e-4] <= 0).all()
    lagrangian = gradient(f, x) + z_box
    lagrangian += times(jacobian(h, x).mT, y) + times(jacobian(c, x).mT, z)
    assert lagrangian.abs().max() < 1e-4
    torch.testing.assert_close(lagrangian.abs().amax(-1), solution.dual_residual)
    assert (solution.primal_residual < 1e-6).all()


@CONSTRAINED
def test_a_projection_onto_a_simplex_has_known_multipliers(method):
    v = torch.tensor([[1.0, 0.6, -0.5]], dtype=torch.float64)
    solution = ScipyMinimize(method).solve(
        lambda x: (x - v).square().sum(-1) / 2,
        torch.full_like(v, 1 / 3),
        lower=torch.zeros(3),
        equalities=lambda x: x.sum(-1, keepdim=True) - 1,
    )
    torch.testing.assert_close(solution.x, v.new_tensor([[0.7, 0.3, 0.0]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(solution.y, v.new_tensor([[0.3]]), rtol=0, atol=1e-5)
    expected = v.new_tensor([[0.0, 0.0, -0.8]])
    torch.testing.assert_close(solution.z_box, expected, rtol=0, atol=1e-5)
    assert solution.z is None


def test_bounds_agree_with_our_own_solver():
    problem = logistic()
    upper = problem.x.abs().mean() / 2
    ours = LBFGSB().solve(problem.f, problem.x0, -upper, upper)
    for method in ("L-BFGS-B", "TNC", "SLSQP", "trust-constr"):
        theirs = ScipyMinimize(method).solve(problem.f, problem.x0, lower=-upper, upper=upper)
        torch.testing.assert_close(theirs.x, ours.x, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.z_box, ours.z_box, rtol=0, atol=1e-5)


def test_without_batch_dimensions():
    x0 = torch.zeros(2, dtype=torch.float64)
    solution = ScipyMinimize("SLSQP").solve(
        lambda x: x.square().sum(-1), x0, inequalities=lambda x: 1 - x.sum(-1, keepdim=True)
    )
    torch.testing.assert_close(solution.x, torch.full((2,), 0.5).to(x0))
    torch.testing.assert_close(solution.z, torch.ones(1).to(x0))
    assert solution.status.shape == ()


def test_single_precision_and_inputs_unmodified():
    f, h, c, x0 = constrained(torch.float32)
    before = x0.clone()
    solution = ScipyMinimize("SLSQP", tol=1e-6).solve(f, x0, equalities=h, inequalities=c)
    assert {t.dtype for t in (solution.x, solution.y, solution.z)} == {torch.float32}
    f, h, c, start = constrained()
    exact = ScipyMinimize("SLSQP").solve(f, start, equalities=h, inequalities=c)
    torch.testing.assert_close(solution.x.double(), exact.x, rtol=0, atol=1e-2)
    assert torch.equal(x0, before)


@pytest.mark.parametrize("method", ["L-BFGS-B", "SLSQP", "trust-constr", "BFGS", "TNC"])
def test_running_out_of_iterations_is_a_status(method):
    problem = logistic()
    solution = ScipyMinimize(method, max_iter=2).solve(problem.f, problem.x0)
    assert solution.status.tolist() == [Status.MAX_ITERATIONS] * 3


def test_contradictory_constraints_are_not_solved():
    def both(x):  # x <= -1 and x >= 1
        return torch.cat([x + 1, 1 - x], dim=-1)

    x0 = torch.zeros(1, 1, dtype=torch.float64)
    solution = ScipyMinimize("SLSQP").solve(lambda x: x.square().sum(-1), x0, inequalities=both)
    assert not solution.solved.any()
    assert solution.primal_residual.item() >= 1


def test_an_empty_batch():
    solution = ScipyMinimize("SLSQP").solve(
        lambda x: x.square().sum(-1),
        torch.zeros(0, 3),
        equalities=lambda x: x[..., :2],
        lower=torch.zeros(3),
    )
    assert solution.x.shape == solution.z_box.shape == (0, 3)
    assert solution.y.shape == (0, 2)
    assert solution.status.shape == (0,)


def test_not_a_number_is_a_numerical_error_of_its_sample_alone():
    x0 = torch.ones(2, 2, dtype=torch.float64)

    def f(x):
        return (x - 3).square().sum(-1) * torch.tensor([1.0, torch.nan])

    solution = ScipyMinimize().solve(f, x0)
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR]
    torch.testing.assert_close(solution.x[0], torch.full((2,), 3.0).to(x0))


def test_wrong_arguments_are_refused():
    x0 = torch.zeros(1, 2)
    with pytest.raises(ValueError, match=r"one of scipy\.optimize\.minimize; got 'x'"):
        ScipyMinimize("x")
    with pytest.raises(ValueError, match="takes bounds; got 'BFGS'"):
        ScipyMinimize("BFGS").solve(lambda x: x.sum(-1), x0, lower=torch.zeros(2))
    for method in METHODS - TAKES_CONSTRAINTS:
        with pytest.raises(ValueError, match="takes constraints; got"):
            ScipyMinimize(method).solve(lambda x: x.sum(-1), x0, equalities=lambda x: x)
    with pytest.raises(ValueError, match="lower must broadcast"):
        ScipyMinimize().solve(lambda x: x.sum(-1), x0, lower=torch.zeros(3))
