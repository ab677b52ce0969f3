"""Methods on sets against closed forms, SciPy and the QP solvers."""

import pytest
import torch

from solvers.minimize.frank_wolfe import FrankWolfe
from solvers.minimize.mirror_descent import Entropy, MirrorDescent
from solvers.minimize.projected_gradient import ProjectedGradient
from solvers.minimize.proximal_gradient import ProximalGradient
from solvers.projection import prox_l1
from solvers.solution import Status
from tests.solvers.minimize.constrained.methods import COMPOSITE, EPS, corner
from tests.solvers.minimize.constrained.problems import (
    LASSO_WEIGHT,
    PROBLEMS,
    data,
    half_square,
    zeros,
)

# Blocks stop anywhere on a set that ties them together.
PAIRS = [
    (method, name)
    for method in COMPOSITE
    for name in PROBLEMS
    if "block" not in method or PROBLEMS[name]().separable
]


def relative_error(x, exact):
    norm = torch.linalg.vector_norm
    return float((norm(x - exact, dim=-1) / norm(exact, dim=-1)).max())


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_finds_the_solution(name, method):
    problem = PROBLEMS[name]()
    solution = COMPOSITE[method](**EPS).solve(problem.f, problem.x0, problem.proximal)
    assert (solution.status == Status.SOLVED).all()
    assert relative_error(solution.x, problem.x) < 1e-10
    assert torch.equal(solution.objective, problem.f(solution.x))


@pytest.mark.parametrize("acceleration", [True, False])
@pytest.mark.parametrize("name", ["nonnegative", "box", "simplex", "l1_ball", "curved"])
def test_projected_gradient_finds_the_solution(name, acceleration):
    problem = PROBLEMS[name]()
    solution = ProjectedGradient(acceleration=acceleration, **EPS).solve(
        problem.f, problem.x0, lambda x: problem.proximal(x, None)
    )
    assert (solution.status == Status.SOLVED).all()
    assert relative_error(solution.x, problem.x) < 1e-10
    # A value of the projection: zeros and bounds are exact.
    again = problem.proximal(solution.x, None)
    torch.testing.assert_close(again, solution.x, rtol=0, atol=1e-15)


@pytest.mark.parametrize("acceleration", [True, False])
def test_the_steps_kept_are_those_of_the_fixed_point(acceleration):
    problem = PROBLEMS["simplex"]()
    solver = ProjectedGradient(acceleration=acceleration)
    run = solver.find(problem.f, problem.x0, lambda x: problem.proximal(x, None))
    (step,) = run.kept
    A, b = data(3)
    slope = (A.mT @ ((A @ run.x[..., None]) - b[..., None]))[..., 0]
    again = problem.proximal(run.x - step[:, None] * slope, None)
    assert step.shape == (6,)
    assert ((again - run.x).norm(dim=-1) <= 2e-10).all()
    # Longer than 2/L would not contract, much shorter than 1/L would tell little.
    curvature = torch.linalg.matrix_norm(A, 2) ** 2
    assert (step * curvature > 0.1).all()


def test_zeros_are_exact():
    problem = PROBLEMS["nonnegative"]()
    x = ProjectedGradient().solve(problem.f, problem.x0, lambda x: problem.proximal(x, None)).x
    assert torch.equal(x == 0.0, problem.x == 0.0)
    assert (problem.x == 0.0).any()


@pytest.mark.parametrize("method", COMPOSITE)
def test_lasso_is_optimal_and_sparse(method):
    torch.manual_seed(0)
    A, b = torch.randn(4, 12, 5).double(), 3 * torch.randn(4, 12).double()
    solution = COMPOSITE[method](**EPS).solve(
        half_square(A, b), zeros(b), lambda x, step: prox_l1(x, 3.0 * LASSO_WEIGHT * step)
    )
    x, weight = solution.x, 3.0 * LASSO_WEIGHT
    slope = (A.mT @ ((A @ x[..., None]) - b[..., None]))[..., 0]
    zero = x == 0.0
    assert zero.any()
    assert (~zero).any()
    assert (slope[zero].abs() <= weight).all()
    assert (slope + weight * x.sign())[~zero].abs().max() < 1e-9


def test_steps_recover_from_a_poor_scale():
    """Curvatures from 1e-6 to 1e6, and a start from where none of it shows."""
    scale = torch.logspace(-6, 6, 13, dtype=torch.float64)
    x0 = torch.full((13, 2), 1e-9, dtype=torch.float64)
    for acceleration in (True, False):
        solution = ProjectedGradient(acceleration=acceleration).solve(
            lambda x: scale * (x - torch.tensor([1.0, -1.0])).square().sum(-1),
            x0,
            lambda x: x.clamp(min=0.0),
        )
        assert relative_error(solution.x, torch.tensor([[1.0, 0.0]])) < 1e-9
        assert solution.iterations.max() < 60


def test_values_with_a_large_constant_do_not_stall():
    problem = PROBLEMS["nonnegative"]()
    solution = ProximalGradient(**EPS).solve(
        lambda x: problem.f(x) + 1e6, problem.x0, problem.proximal
    )
    assert relative_error(solution.x, problem.x) < 1e-10


def test_extrapolation_stays_in_the_domain():
    b = torch.tensor([[0.1, 1.0, 3.0]], dtype=torch.float64)
    solution = ProximalGradient().solve(
        lambda x: (x - b * x.log()).sum(-1),
        torch.full_like(b, 20.0),
        lambda x, step: x.clamp(min=0.05),
    )
    torch.testing.assert_close(solution.x, b, rtol=1e-8, atol=0)


# --- the simplex ----------------------------------------------------------------------------------


def test_mirror_descent_finds_the_solution_on_the_simplex():
    problem = PROBLEMS["simplex"]()
    solution = MirrorDescent(eps_abs=1e-13, eps_rel=1e-13, max_iter=5000).solve(
        problem.f, problem.x0, Entropy()
    )
    assert solution.solved.all()
    assert relative_error(solution.x, problem.x) < 1e-6
    torch.testing.assert_close(solution.x.sum(-1), torch.ones(6).double(), rtol=1e-13, atol=0)


def test_mirror_descent_keeps_the_sum_of_its_start():
    b = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    solution = MirrorDescent().solve(
        lambda x: (x - b).square().sum(-1), torch.ones(1, 3).double(), Entropy()
    )
    torch.testing.assert_close(solution.x, torch.tensor([[0.0, 0.5, 2.5]]).double())


def test_an_entry_of_mirror_descent_comes_back_from_zero():
    mirror, x = Entropy(), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    push = torch.tensor([[2000.0, 0.0]], dtype=torch.float64)
    gone = mirror.move(mirror.image(x), push)
    assert mirror.point(gone).tolist() == [[0.0, 1.0]]
    torch.testing.assert_close(mirror.point(mirror.move(gone, -push)), x)


@pytest.mark.parametrize("search", [True, False])
def test_frank_wolfe_bounds_its_error_by_the_gap(search):
    problem = PROBLEMS["simplex"]()
    solution = FrankWolfe(search=search, eps_abs=1e-9, eps_rel=0.0, max_iter=500).solve(
        problem.f, problem.x0, corner
    )
    excess = solution.objective - problem.f(problem.x)
    assert (excess > -1e-9).all()
    assert (excess <= solution.dual_residual + 1e-9).all()
    assert (solution.dual_residual < 0.05).all()
    assert (solution.x >= 0.0).all()


def test_frank_wolfe_stops_at_its_tolerance_relative_to_the_value():
    problem = PROBLEMS["simplex"]()
    solution = FrankWolfe(eps_abs=0.0, eps_rel=0.05).solve(problem.f, problem.x0, corner)
    assert (solution.status == Status.SOLVED).all()
    assert (solution.dual_residual <= 0.05 * solution.objective).all()


def test_block_coordinate_descent_gives_each_block_its_step():
    scale = torch.tensor([1e-3, 1e3, 1.0, 1e2], dtype=torch.float64)
    solution = COMPOSITE["blocks"](**EPS).solve(
        lambda x: (
            (scale[:2] * x[..., :2]).square().sum(-1)
            + (x[..., 2:4].sum(-1) - 1).square()
            + (x[..., 4] - 2).square()
        ),
        torch.ones(3, 5).double(),
        lambda x, step: x,
    )
    assert solution.solved.all()
    assert (solution.x[:, 1].abs() < 1e-9).all()


@pytest.mark.parametrize("method", COMPOSITE)
def test_slow_is_not_stuck(method):
    curvature = torch.logspace(0, -1.5, 5, dtype=torch.float64)
    b = torch.linspace(-1.0, 2.0, 5, dtype=torch.float64)
    # What ties the blocks together.
    solution = COMPOSITE[method](max_iter=20_000, eps_abs=1e-12, eps_rel=1e-12).solve(
        lambda x: 0.5 * (curvature * (x - b).square()).sum(-1) + 0.25 * x.sum(-1).square(),
        torch.zeros(1, 5, dtype=torch.float64),
        lambda x, step: x,
    )
    # (C + 1 1^T / 2) x = C b, by Sherman and Morrison.
    total = b.sum() / (1 + 0.5 * (1 / curvature).sum())
    assert (solution.status == Status.SOLVED).all()
    assert relative_error(solution.x, (b - 0.5 * total / curvature)[None]) < 1e-9
