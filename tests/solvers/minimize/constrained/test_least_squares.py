"""Gauss-Newton, Levenberg-Marquardt and SciPy on fits whose parameters are known."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from solvers.minimize.gauss_newton import GaussNewton
from solvers.minimize.levenberg_marquardt import LevenbergMarquardt
from solvers.minimize.scipy_least_squares import ScipyLeastSquares
from solvers.solution import Status
from tests.solvers.minimize.constrained.methods import LEAST_SQUARES, SCIPY

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"
)  # torch's own
T = torch.linspace(0, 5, 50, dtype=torch.float64)
CRUDE = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)


def decay(p):
    return p[..., :1] * torch.exp(-p[..., 1:2] * T.to(p)) + p[..., 2:]


def uniform(rng, *ranges, count):
    return torch.tensor(np.stack([rng.uniform(*r, count) for r in ranges], -1))


def fits(count=128, noise=0.0, seed=0):
    """Parameters and data of decays a exp(-k t) + c."""
    rng = np.random.default_rng(seed)
    true = uniform(rng, (0.5, 5), (0.3, 3), (-1, 1), count=count)
    return true, decay(true) + noise * torch.tensor(rng.standard_normal((count, len(T))))


@pytest.mark.parametrize("crude", [True, False])
def test_many_fits_from_crude_starts(crude):
    true, y = fits()
    rng = np.random.default_rng(1)
    start = CRUDE.expand(128, 3)
    if not crude:
        start = uniform(rng, (0.1, 8), (0.1, 4), (-3, 3), count=128)
    solution = LevenbergMarquardt().solve(lambda p: decay(p) - y, start)
    assert (solution.status == Status.SOLVED).all()
    assert (solution.x - true).abs().max() < 1e-7
    assert solution.iterations.max() < 30


# The last of the noise makes residuals large enough for the linear rate of Gauss-Newton to show.
@pytest.mark.parametrize(("noise", "most"), [(0.01, 30), (0.05, 30), (0.2, 60)])
def test_noisy_fits_are_those_of_scipy(noise, most):
    _, y = fits(noise=noise)
    solution = LevenbergMarquardt().solve(lambda p: decay(p) - y, CRUDE.expand(128, 3))
    assert (solution.status == Status.SOLVED).all()
    assert solution.iterations.max() < most
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    t = T.numpy()
    for i in range(0, 128, 4):
        d = y[i].numpy()

        def residual(p, d=d):
            return p[0] * np.exp(-p[1] * t) + p[2] - d

        def jac(p):
            e = np.exp(-p[1] * t)
            return np.stack([e, -p[0] * t * e, np.ones_like(t)], -1)

        found = least_squares(residual, solution.x[i].numpy(), jac, method="lm", **tight)
        assert np.abs(solution.x[i].numpy() - found.x).max() < 1e-7
        # Not only the same valley: from the crude start too.
        assert least_squares(residual, CRUDE.numpy(), jac).cost == pytest.approx(found.cost)


@pytest.mark.parametrize("method", [*LEAST_SQUARES, *SCIPY])
def test_all_methods_agree_on_an_easy_fit(method):
    true, y = fits(count=4)
    solver = (LEAST_SQUARES | SCIPY)[method]()
    solution = solver.solve(lambda p: decay(p) - y, true * 1.2)
    assert (solution.status == Status.SOLVED).all()
    torch.testing.assert_close(solution.x, true, rtol=1e-6, atol=1e-6)
    assert solution.objective.max() < 1e-10


def test_gauss_newton_is_quadratic_where_residuals_vanish():
    def residual(x):  # a zero at (1, 1), Rosenbrock and a third equation
        a, b = x.unbind(-1)
        return torch.stack((10 * (b - a * a), 1 - a, a * b - 1), -1)

    solver = GaussNewton(keep_history=True, eps_abs=1e-14, eps_rel=0.0)
    start = torch.tensor([1.2, 0.9], dtype=torch.float64)
    history = solver.solve(residual, start).history
    tail = history[(history < 0.1) & (history > 1e-7)]
    errors = history[history < 0.1]
    assert len(tail) >= 2
    assert (errors[1 : len(tail) + 1] <= 10 * tail**2 + 1e-15).all()


def test_levenberg_marquardt_ends_superlinearly_where_residuals_vanish():
    true, y = fits(count=8)
    solver = LevenbergMarquardt(keep_history=True, eps_abs=1e-13, eps_rel=1e-13)
    history = solver.solve(lambda p: decay(p) - y, true * 1.1).history
    for errors in history.T:
        e = errors[~errors.isnan()]
        close = (e[:-1] < 1e-2) & (e[1:] > 1e-13)
        ratios = (e[1:] / e[:-1])[close]
        assert (ratios[1:] < 0.2 * ratios[:-1]).all()


def test_gauss_newton_needs_its_line_search():
    # Undamped steps of arctan diverge from beyond 1.39.
    solution = GaussNewton().solve(torch.atan, torch.tensor([[3.0], [-20.0]], dtype=torch.float64))
    assert (solution.status == Status.SOLVED).all()
    assert solution.x.abs().max() < 1e-9


def test_levenberg_marquardt_where_gauss_newton_breaks_down():
    """Powell's function: the Jacobian is singular where x_1 = 0, and at the start."""

    def residual(x):
        a, b = x.unbind(-1)
        return torch.stack((a, 10 * a / (a + 0.1) + 2 * b * b), -1)

    def singular(x):  # the second column is zero at the start
        a, b = x.unbind(-1)
        return torch.stack((a - 1, b * b - 4 + b**3 * (a - 1)), -1)

    start = torch.tensor([3.0, 0.0], dtype=torch.float64)
    assert GaussNewton().solve(singular, start).status == Status.NUMERICAL_ERROR
    found = LevenbergMarquardt().solve(lambda x: singular(x + 1e-3), start)
    assert found.status == Status.SOLVED
    assert found.objective < 1e-18
    assert LevenbergMarquardt().solve(residual, torch.tensor([3.0, 1.0]).double()).x[0].abs() < 1e-4


def test_fewer_residuals_than_unknowns():
    def circle(x):
        return x.square().sum(-1, keepdim=True) - 4

    start = torch.tensor([[3.0, 1.0, 0.5], [0.1, 0.0, 0.0]], dtype=torch.float64)
    solution = LevenbergMarquardt().solve(circle, start)
    assert (solution.status == Status.SOLVED).all()
    torch.testing.assert_close(solution.x.norm(dim=-1), torch.full((2,), 2.0).double())


def test_a_parameter_without_effect_stays():
    _, y = fits(count=4)
    start = torch.cat((CRUDE.expand(4, 3), torch.full((4, 1), 7.0).double()), -1)
    solution = LevenbergMarquardt().solve(lambda p: decay(p[..., :3]) - y, start)
    assert (solution.status == Status.SOLVED).all()
    assert (solution.x[:, 3] == 7.0).all()


def test_units_do_not_matter():
    true, y = fits(count=16)
    units = torch.tensor([1e6, 1e-5, 1e3], dtype=torch.float64)
    solution = LevenbergMarquardt(eps_abs=0.0).solve(
        lambda p: decay(p / units) - y, (CRUDE * units).expand(16, 3)
    )
    assert solution.solved.all()
    torch.testing.assert_close(solution.x / units, true, rtol=1e-6, atol=1e-6)


def test_a_start_that_overflows_recovers_or_says_so():
    true, y = fits(count=3)
    start = torch.stack((CRUDE, torch.tensor([1.0, -400.0, 0.0]).double(), CRUDE))
    solution = LevenbergMarquardt().solve(lambda p: decay(p) - y, start)
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    assert (solution.x - true)[[0, 2]].abs().max() < 1e-7


@pytest.mark.parametrize("poison", [torch.nan, 1e150, -400.0])
def test_a_hopeless_fit_does_not_touch_the_others(poison):
    _, y = fits(count=32, noise=0.02)
    start = CRUDE.expand(32, 3).clone()
    harmless = LevenbergMarquardt().solve(lambda p: decay(p) - y, start)
    start[5] = poison
    beside = LevenbergMarquardt().solve(lambda p: decay(p) - y, start)
    kept = torch.arange(32) != 5
    for name in ("x", "status", "iterations", "objective", "dual_residual"):
        assert torch.equal(getattr(harmless, name)[kept], getattr(beside, name)[kept]), name
    assert (harmless.status == Status.SOLVED).all()


@pytest.mark.parametrize("method", LEAST_SQUARES)
def test_what_is_kept_inverts_the_normal_equations(method):
    true, y = fits(count=5)
    solver = LEAST_SQUARES[method]()
    run = solver.find(lambda p: decay(p) - y, true * 1.05)
    e = torch.exp(-run.x[:, 1:2] * T)
    J = torch.stack((e, -run.x[:, :1] * T * e, torch.ones_like(e)), -1)
    v = torch.ones(5, 3, dtype=torch.float64)
    w = solver.apply_inverse(run.kept, v, transposed=True)
    torch.testing.assert_close((J.mT @ (J @ w[..., None]))[..., 0], v, rtol=1e-8, atol=1e-8)


def test_residuals_that_are_large_and_curved_end_at_a_stationary_point():
    """Brown and Dennis, published optimum 85822.2."""
    t = torch.arange(1, 21, dtype=torch.float64) / 5

    def residual(x):
        a, b, c, d = x.unsqueeze(-1).unbind(-2)
        return (a + t * b - t.exp()).square() + (c + d * t.sin() - t.cos()).square()

    start = torch.tensor([25.0, 5.0, -5.0, -1.0], dtype=torch.float64)
    solution = LevenbergMarquardt(max_iter=1000).solve(residual, start)
    # Gauss-Newton steps of full length would leave it again: this needs damping to the end.
    assert solution.solved
    assert solution.dual_residual < 1e-6
    assert 2 * solution.objective.item() == pytest.approx(85822.2, rel=1e-6)


def test_scipy_statuses():
    r = torch.stack
    solution = ScipyLeastSquares(max_iter=2).solve(lambda p: decay(p) - 3 * T, CRUDE)
    assert solution.status == Status.MAX_ITERATIONS
    bad = ScipyLeastSquares().solve(
        lambda p: r((p[..., 0].sqrt() - 1, p[..., 0]), -1), torch.tensor([[-1.0], [2.0]])
    )
    assert bad.status.tolist() == [Status.NUMERICAL_ERROR, Status.SOLVED]
