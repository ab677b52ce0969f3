"""The rates of convergence that the docstrings promise."""

import pytest
import torch

from solvers.minimize.block_coordinate_descent import BlockCoordinateDescent
from solvers.minimize.frank_wolfe import FrankWolfe
from solvers.minimize.mirror_descent import Entropy, MirrorDescent
from solvers.minimize.projected_gradient import ProjectedGradient
from tests.solvers.minimize.constrained.methods import corner
from tests.solvers.minimize.constrained.problems import PROBLEMS

NEVER = {"eps_abs": 0.0, "eps_rel": 0.0}


def ill_conditioned():
    """Convex, curvatures down to 0.0001 of the largest, which is 1."""
    curvature = torch.logspace(0, -4, 30, dtype=torch.float64)
    start = torch.ones(1, 30, dtype=torch.float64)
    return (lambda x: 0.5 * (curvature * x.square()).sum(-1)), start


@pytest.mark.parametrize("acceleration", [True, False])
def test_the_bound_of_gradient_methods_holds(acceleration):
    f, x0 = ill_conditioned()
    distance = float(x0.square().sum())
    for k in (1, 3, 10, 30, 100, 300):
        # The first iterate is already one step from the start.
        solver = ProjectedGradient(acceleration=acceleration, step=1.0, max_iter=k - 1, **NEVER)
        value = float(f(solver.solve(f, x0, lambda x: x).x))
        assert value <= (2 * distance / (k + 1) ** 2 if acceleration else distance / (2 * k))


def test_acceleration_beats_the_plain_method():
    f, x0 = ill_conditioned()
    values = [
        float(
            f(
                ProjectedGradient(acceleration=a, step=1.0, max_iter=299, **NEVER)
                .solve(f, x0, lambda x: x)
                .x
            )
        )
        for a in (True, False)
    ]
    assert values[0] < 1e-2 * values[1]


def test_projected_gradient_is_linear_where_convexity_is_strong():
    mu, L = 0.5, 2.0
    curvature = torch.linspace(mu, L, 8, dtype=torch.float64)
    b = torch.linspace(-1, 1, 8, dtype=torch.float64)
    solver = ProjectedGradient(
        acceleration=False, step=1 / L, max_iter=30, keep_history=True, **NEVER
    )
    history = solver.solve(
        lambda x: 0.5 * (curvature * (x - b).square()).sum(-1),
        torch.full((1, 8), 3.0, dtype=torch.float64),
        lambda x: x.clamp(min=0.0),
    ).history[:, 0]
    assert (history[1:] <= (1 - mu / L) * history[:-1] + 1e-14).all()


@pytest.mark.parametrize("search", [True, False])
def test_the_gap_of_frank_wolfe_falls_like_one_over_k(search):
    problem = PROBLEMS["simplex"]()
    solver = FrankWolfe(search=search, max_iter=400, keep_history=True, **NEVER)
    gaps = solver.solve(problem.f, problem.x0, corner).history
    # Curvature at most L times the squared diameter: 9 * 2, twice as much for the search.
    for k in (10, 50, 200, 400):
        best = gaps[: k + 1].amin(0)
        assert (best <= 27 / 4 * 2 * 9 * 2 / (k + 2)).all()
    # And not only the bound: four times the iterations make it much smaller.
    assert gaps.amin(0).sum() < 0.5 * gaps[:101].amin(0).sum()


def test_the_bound_of_mirror_descent_holds():
    problem = PROBLEMS["simplex"]()
    # L is the largest entry of A^T A in absolute value, at most 9 here.
    step, distance = 1 / 9, torch.log(torch.tensor(5.0)).item()
    for k in (1, 10, 100):
        solver = MirrorDescent(step=step, max_iter=k - 1, **NEVER)
        value = solver.solve(problem.f, problem.x0, Entropy()).objective
        assert (value - problem.f(problem.x) <= distance / (step * k)).all()


def test_block_coordinate_descent_is_linear_where_convexity_is_strong():
    problem = PROBLEMS["nonnegative"]()
    solver = BlockCoordinateDescent(blocks=5, max_iter=25, keep_history=True, **NEVER)
    history = solver.solve(problem.f, problem.x0, problem.proximal).history
    # NaN from where a sample stopped, at a step of exactly zero.
    assert (history[20].nan_to_num(0.0) < 1e-4 * history[2] + 1e-14).all()
