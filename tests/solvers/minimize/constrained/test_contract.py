"""What all methods owe: samples on their own, types, statuses, plain words for wrong arguments."""

from functools import cache

import pytest
import torch

from solvers.minimize.block_coordinate_descent import BlockCoordinateDescent
from solvers.minimize.frank_wolfe import FrankWolfe
from solvers.minimize.gauss_newton import GaussNewton
from solvers.minimize.levenberg_marquardt import LevenbergMarquardt
from solvers.minimize.mirror_descent import Entropy, MirrorDescent
from solvers.minimize.projected_gradient import ProjectedGradient
from solvers.minimize.proximal_gradient import ProximalGradient
from solvers.minimize.scipy_least_squares import ScipyLeastSquares
from solvers.solution import Status
from tests.solvers.minimize.constrained.methods import LEAST_SQUARES, ON_SETS, SCIPY

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script:DeprecationWarning"
)  # torch's own

B, N = 5, 4


def targets(batch=(B,), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*batch, N, generator=generator, dtype=torch.float64).to(dtype)


def bowl(b):
    """A smooth convex function with curvature that varies."""
    weight = torch.linspace(0.5, 2.0, N, dtype=b.dtype)
    return lambda x: (weight * (x - b).square()).sum(-1) + 0.1 * (x - b).pow(4).sum(-1)


def residuals(b):
    return lambda x: torch.cat((x - b, 0.3 * (x - b[..., :1]).square()), -1)


def on_set(method):
    return lambda b, x0, **settings: ON_SETS[method](bowl(b), x0, **settings)


def fit(method):
    make = (LEAST_SQUARES | SCIPY)[method]
    return lambda b, x0, **settings: make(**settings).solve(residuals(b), x0)


TORCH = {m: on_set(m) for m in ON_SETS} | {m: fit(m) for m in LEAST_SQUARES}
ALL = TORCH | {m: fit(m) for m in SCIPY}


def start(b):
    return torch.full_like(b, 1 / N)


@pytest.mark.parametrize("method", ALL)
def test_a_batch_is_a_loop_over_its_samples(method):
    b = targets((2, 3))
    together = ALL[method](b, start(b))
    assert together.x.shape == b.shape
    assert together.status.shape == together.iterations.shape == together.objective.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone = ALL[method](b[i, j], start(b[i, j]))
            assert alone.status.shape == ()
            torch.testing.assert_close(alone.x, together.x[i, j], rtol=1e-12, atol=1e-12)
            assert alone.iterations == together.iterations[i, j]


@cache
def untroubled(method):
    b = targets()
    return ALL[method](b, start(b))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e200])
@pytest.mark.parametrize("method", ALL)
def test_a_bad_sample_leaves_its_mates_alone(method, poison):
    spoiled = targets()
    spoiled[2] = poison
    harmless, beside = untroubled(method), ALL[method](spoiled, start(spoiled))
    others = [0, 1, 3, 4]
    for name in ("x", "status", "iterations", "objective", "dual_residual"):
        assert torch.equal(getattr(harmless, name)[others], getattr(beside, name)[others]), name
    if poison != 1e200:
        assert beside.status[2] == Status.NUMERICAL_ERROR


@pytest.mark.parametrize("method", ALL)
def test_float32(method):
    b = targets(dtype=torch.float32)
    x = start(b)
    found = ALL[method](b, x)
    exact = untroubled(method)
    assert found.x.dtype == found.objective.dtype == torch.float32
    assert found.solved.all()
    loose = 0.1 if "wolfe" in method else 1e-2
    torch.testing.assert_close(found.x.double(), exact.x, rtol=loose, atol=loose)


@pytest.mark.parametrize("method", ALL)
def test_an_empty_batch(method):
    b = targets((0, 2))
    solution = ALL[method](b, start(b))
    assert solution.x.shape == (0, 2, N)
    assert solution.status.shape == (0, 2)


@pytest.mark.parametrize("method", ALL)
def test_inputs_are_not_modified(method):
    b = targets()
    x0 = start(b)
    before = b.clone(), x0.clone()
    solution = ALL[method](b, x0)
    assert torch.equal(b, before[0])
    assert torch.equal(x0, before[1])
    assert not solution.x.requires_grad
    assert solution.x.data_ptr() != x0.data_ptr()


@pytest.mark.parametrize("method", ALL)
def test_running_out_of_iterations_is_a_status(method):
    b = 1 / N + 0.05 * targets()
    settings = {} if "scipy" in method else {"eps_abs": 1e-15, "eps_rel": 0.0}
    solution = ALL[method](b, 2 * start(b).cumsum(-1) / (N + 1), max_iter=1, **settings)
    assert (solution.status == Status.MAX_ITERATIONS).any()
    assert (solution.iterations <= 1).all()


@pytest.mark.parametrize("method", TORCH)
def test_a_start_at_the_solution_is_soon_done(method):
    b = targets()
    x = TORCH[method](b, start(b), eps_abs=1e-9).x
    x = x.clamp(min=1e-12) if "entropy" in method else x
    loose = 5e-2 if "wolfe" in method else 1e-5
    again = TORCH[method](b, x, eps_abs=loose, eps_rel=1e-2)
    assert again.solved.all()
    assert again.iterations.max() <= 2


@pytest.mark.parametrize("method", ALL)
def test_one_unknown(method):
    b = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    x0 = torch.ones_like(b)
    if method in ON_SETS:
        solution = ON_SETS[method](
            lambda x: (x - b).square().sum(-1), x0, **({"blocks": 1} if method == "blocks" else {})
        )
        simplex = any(word in method for word in ("simplex", "entropy", "wolfe"))
        shift = 0.05 if method == "proximal" else 0.0
        exact = x0 if simplex else b - shift
    else:
        solution = (LEAST_SQUARES | SCIPY)[method]().solve(lambda x: x - b, x0)
        exact = b
    assert solution.solved.all()
    torch.testing.assert_close(solution.x, exact, rtol=1e-8, atol=1e-8)


WRONG = {
    "f sums over the batch": (
        lambda x: ProjectedGradient().solve(lambda x: x.square().sum(), x, torch.relu),
        r"ProjectedGradient.solve: f must return shape \(5,\); got \(\)",
    ),
    "f does not sum": (
        lambda x: ProximalGradient().solve(torch.square, x, lambda x, step: x),
        r"ProximalGradient.solve: f must return shape \(5,\); got \(5, 4\)",
    ),
    "projection": (
        lambda x: ProjectedGradient().solve(bowl(x), x, lambda x: x[..., :2]),
        r"ProjectedGradient.solve: projection must return shape \(5, 4\); got \(5, 2\)",
    ),
    "proximal": (
        lambda x: BlockCoordinateDescent().solve(bowl(x), x, lambda x, step: step),
        r"BlockCoordinateDescent.solve: proximal must return shape \(5, 4\); got \(5, 1\)",
    ),
    "oracle": (
        lambda x: FrankWolfe().solve(bowl(x), x, lambda g: g.argmin(-1)),
        r"FrankWolfe.solve: oracle must return shape \(5, 4\); got \(5,\)",
    ),
    "step": (
        lambda x: ProximalGradient(step=-1.0).solve(bowl(x), x, lambda x, step: x),
        "step must be positive; got -1.0",
    ),
    "x0 of entropy": (
        lambda x: MirrorDescent().solve(bowl(x), -x.abs(), Entropy()),
        "entries of x0 must be positive",
    ),
    "too many blocks": (
        lambda x: BlockCoordinateDescent(blocks=5).solve(bowl(x), x),
        "blocks must be between 1 and 4",
    ),
    "blocks overlap": (
        lambda x: BlockCoordinateDescent(blocks=((0, 1), (1, 2, 3))).solve(bowl(x), x),
        "blocks must hold each index from 0 to 3 once",
    ),
    "too few residuals": (
        lambda x: GaussNewton().solve(lambda x: x[..., :2], x),
        "at least as many residuals as unknowns, 4; got 2",
    ),
    "too few residuals for MINPACK": (
        lambda x: ScipyLeastSquares("lm").solve(lambda x: x[..., :2], x),
        "at least as many residuals as unknowns, 4; got 2",
    ),
    "damping": (
        lambda x: LevenbergMarquardt(damping=0.0).solve(residuals(x), x),
        "damping must be positive; got 0.0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(targets())


def test_an_oracle_of_one_point():
    x = torch.full((2, 3), 0.5, dtype=torch.float64)
    solution = FrankWolfe().solve(
        lambda x: x.square().sum(-1), x, lambda g: torch.full_like(g, 0.5)
    )
    assert (solution.status == Status.SOLVED).all()
    assert torch.equal(solution.x, x)
