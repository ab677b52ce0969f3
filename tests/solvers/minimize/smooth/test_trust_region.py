"""The trust region: bad starts, indefinite and singular Hessians, what it keeps for derivatives."""

import pytest
import torch

from solvers.derivatives import hessian
from solvers.minimize.newton import TrustRegion, minimum_in_region
from solvers.solution import Status
from tests.solvers.minimize.smooth.problems import logistic, normal, times


def double_well(x):
    return ((x**2 - 1) ** 2).sum(-1) + 0.1 * x[:, 0] * x[:, 1]


@pytest.mark.parametrize("start", [0.0, 0.1, 1e3, -1e5])
def test_converges_from_bad_starts(start):
    x0 = torch.tensor([[start, start], [start, -start], [start, 0.5]], dtype=torch.float64)
    solution = TrustRegion().solve(double_well, x0)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    H = hessian(double_well, solution.x)
    assert (torch.linalg.eigvalsh(H) > 0).all()


def test_leaves_a_saddle_point_and_a_maximum():
    x0 = torch.zeros(1, 2, dtype=torch.float64)

    def saddle(x):
        return x[:, 0] ** 2 - x[:, 1] ** 2 + x[:, 1] ** 4 / 2

    solution = TrustRegion().solve(saddle, x0)
    torch.testing.assert_close(solution.x.abs(), torch.tensor([[0.0, 1.0]]).to(x0))
    assert solution.objective.item() == pytest.approx(-0.5)


@pytest.mark.parametrize("shift", [0.0, 10.0], ids=["indefinite", "positive definite"])
@pytest.mark.parametrize("radius", [1e-3, 1.0, 50.0])
def test_the_step_minimises_the_parabola_within_the_region(shift, radius):
    A = normal(40, 5, 5)
    H = (A + A.mT) / 2 + shift * torch.eye(5).to(A)
    g = normal(40, 5, seed=1)
    # Hard cases: no gradient along the lowest eigenvector.
    v = torch.linalg.eigh(H)[1][:20, :, 0]
    g[:20] -= (g[:20] * v).sum(-1, keepdim=True) * v
    radii, everyone = torch.full((40,), radius).to(g), torch.ones(40, dtype=torch.bool)
    p = minimum_in_region(H, g, radii, everyone, torch.ones_like(radii)).step
    assert (p.norm(dim=-1) <= radius * 1.01).all()

    def parabola(p):
        return (g * p).sum(-1) + (p * times(H, p)).sum(-1) / 2

    # More and Sorensen: (H + sigma I) p = -g with a semidefinite matrix is the global minimum.
    pull = -(times(H, p) + g)
    sigma = (pull * p).sum(-1) / (p * p).sum(-1)
    lowest = torch.linalg.eigvalsh(H)[:, 0]
    assert (sigma >= torch.maximum(-lowest, torch.zeros_like(sigma)) - 1e-6).all()
    torch.testing.assert_close(pull, sigma[:, None] * p, rtol=1e-6, atol=1e-6)
    inside = p.norm(dim=-1) < radius * 0.99
    assert (sigma[inside].abs() < 1e-6).all()
    directions = torch.nn.functional.normalize(normal(200, 40, 5, seed=3), dim=-1)
    lengths = radius * torch.rand(200, 1, 1).to(g)
    assert (parabola(p) <= parabola(lengths * directions).amin(0) + 2e-2 * radius).all()


def test_a_singular_hessian_is_no_obstacle():
    # Minima form a line; where one lands depends on the start, that it is one does not.
    a = normal(3, 4)

    def f(x):
        return torch.cosh((a * x).sum(-1) - 1)

    solution = TrustRegion().solve(f, normal(3, 4, seed=1))
    assert solution.solved.all()
    torch.testing.assert_close((a * solution.x).sum(-1), torch.ones(3).to(a))


def test_a_minimum_of_fourth_order_is_approached_linearly():
    solution = TrustRegion().solve(lambda x: (x**4).sum(-1), torch.ones(1, 2, dtype=torch.float64))
    assert solution.solved.all()
    assert solution.x.abs().max() < 1e-7


def test_keeps_factors_of_the_last_hessians():
    problem = logistic()
    solver = TrustRegion()
    run = solver.find(problem.f, problem.x0)
    (factor,) = run.kept
    H, v = hessian(problem.f, run.x), normal(3, 5)
    torch.testing.assert_close(factor @ factor.mT, H, rtol=1e-12, atol=1e-12)
    for transposed in (False, True):
        u = solver.apply_inverse(run.kept, v, transposed=transposed)
        torch.testing.assert_close(times(H, u), v)


def test_a_factor_belongs_to_the_point_a_sample_stopped_at():
    centers = torch.tensor([[0.0, 0.0], [30.0, 30.0]], dtype=torch.float64)

    def f(x):  # the second takes longer
        return (torch.exp(x - centers) - x).sum(-1)

    run = TrustRegion().find(f, torch.zeros_like(centers) + 0.1)
    assert run.iterations[0] < run.iterations[1]
    factor = run.kept[0]
    torch.testing.assert_close(factor @ factor.mT, hessian(f, run.x), rtol=1e-14, atol=0)


def test_there_is_no_factor_where_the_hessian_is_indefinite():
    x0 = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64)
    solver = TrustRegion(max_iter=1)
    run = solver.find(lambda x: sign * x.square().sum(-1), x0)
    assert torch.isfinite(run.kept[0][0]).all()
    assert run.kept[0][1].isnan().all()
    assert run.status.tolist() == [Status.SOLVED, Status.MAX_ITERATIONS]


def test_the_first_radius_bounds_the_first_step():
    problem = logistic()
    run = TrustRegion(radius=0.01, max_iter=1).find(problem.f, problem.x0)
    torch.testing.assert_close(
        (run.x - problem.x0).norm(dim=-1), torch.full((3,), 0.01).to(run.x), rtol=1e-2, atol=0
    )


def test_where_nothing_bends_it_follows_the_slope():
    """Huber's loss is straight far from its minimum: no curvature, and yet a way to go."""
    target = torch.tensor([[10.0, 0.3], [-200.0, 50.0]], dtype=torch.float64)

    def huber(x):
        distance = (x - target).abs()
        return torch.where(distance < 1, distance**2 / 2, distance - 0.5).sum(-1)

    solution = TrustRegion().solve(huber, torch.zeros_like(target))
    assert (solution.status == Status.SOLVED).all()
    assert torch.allclose(solution.x, target)
    # Beside a direction that bends a lot, too.
    stiff = TrustRegion().solve(
        lambda x: 1e12 * (x[:, 0] - 1) ** 2 + 1e-2 * (x[:, 1] - 10) ** 2,
        torch.zeros(1, 2, dtype=torch.float64),
    )
    assert torch.allclose(stiff.x, torch.tensor([[1.0, 10.0]], dtype=torch.float64))


def test_a_loss_without_a_lower_bound_is_never_solved():
    solution = TrustRegion().solve(lambda x: -(x**4).sum(-1), torch.ones(2, 1, dtype=torch.float64))
    assert not solution.solved.any()
