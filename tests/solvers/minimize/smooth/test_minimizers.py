"""What holds for every minimiser of smooth functions, on the whole table of problems."""

from dataclasses import replace

import pytest
import torch

from solvers.iteration import LOOSE
from solvers.minimize.gradient_descent import GradientDescent
from solvers.minimize.lbfgs import LBFGS
from solvers.minimize.lbfgsb import LBFGSB
from solvers.minimize.newton import TrustRegion
from solvers.minimize.newton_cg import NewtonCG
from solvers.solution import Status
from tests.solvers.minimize.smooth.problems import (
    EASY,
    FAST,
    HARD,
    SLOW,
    exponentials,
    logistic,
    name_of,
    worst_error,
)

ALL = pytest.mark.parametrize("solver", FAST + SLOW, ids=name_of)


@pytest.mark.parametrize("problem", EASY, ids=lambda p: p.name)
@ALL
def test_finds_the_minimum(solver, problem):
    solution = solver.solve(problem.f, problem.x0)
    assert solution.solved.all()
    assert worst_error(solution.x, problem) < (1e-8 if solver in FAST else 1e-6)
    torch.testing.assert_close(solution.objective, problem.f(solution.x))


@pytest.mark.parametrize("problem", HARD, ids=lambda p: p.name)
@pytest.mark.parametrize("solver", FAST, ids=name_of)
def test_finds_the_minimum_of_hard_functions(solver, problem):
    solution = solver.solve(problem.f, problem.x0)
    assert solution.solved.all()
    # The step that was left is short; the minimum may be further away than that by the condition.
    bound = 1e-8 * max(1.0, problem.condition / 100)
    bound = torch.where(solution.status == Status.SOLVED, bound, LOOSE * bound)
    assert ((solution.x - problem.x).norm(dim=-1) < bound).all()


@pytest.mark.parametrize("problem", EASY[:3], ids=lambda p: p.name)
@pytest.mark.parametrize("solver", FAST, ids=name_of)
def test_reaches_ten_digits(solver, problem):
    solution = solver.solve(problem.f, problem.x0)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    size = problem.x.norm(dim=-1)
    assert ((solution.x - problem.x).norm(dim=-1) <= 1e-9 * (1 + size)).all()


@ALL
def test_a_batch_is_a_loop_over_its_elements(solver):
    problem = logistic()
    together = solver.solve(problem.f, problem.x0)
    for i in range(3):
        alone = solver.solve(problem.only(i).f, problem.only(i).x0)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-8)
        assert alone.status[0] == together.status[i]


@ALL
def test_batch_dimensions_are_those_of_the_start(solver):
    c = exponentials().x.reshape(3, 2, 3)

    def f(x):
        return (torch.exp(x - c) - x).sum(-1)

    solution = solver.solve(f, torch.zeros_like(c))
    torch.testing.assert_close(solution.x, c, rtol=0, atol=1e-6)
    assert solution.status.shape == solution.objective.shape == (3, 2)
    alone = solver.solve(lambda x: (torch.exp(x - c[0, 0]) - x).sum(-1), torch.zeros_like(c[0, 0]))
    torch.testing.assert_close(alone.x, c[0, 0], rtol=0, atol=1e-6)
    assert alone.status.shape == ()


def two(x):
    """Second samples: nowhere finite, no minimum, a wall that makes searches long, harmless."""
    first, second = x[:1], x[1:]
    return torch.cat([(torch.exp(first) - 2 * first).sum(-1), two.second(second)])


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(lambda x: (x * torch.nan).sum(-1), id="NaN"),
        pytest.param(lambda x: x.sum(-1), id="linear"),
        pytest.param(lambda x: -(x**3).sum(-1), id="falls without end"),
        pytest.param(lambda x: (x - 1e-3 * torch.log(x)).sum(-1), id="wall"),
        pytest.param(lambda x: torch.sqrt(x - 0.9).sum(-1), id="edge"),
        pytest.param(lambda x: torch.exp(800 * x).sum(-1), id="overflow"),
    ],
)
@ALL
def test_neighbours_leave_results_alone_to_the_last_bit(solver, second, monkeypatch):
    solver = replace(solver, max_iter=100)
    x0 = torch.tensor([[0.3, -2.0], [1.0, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(two, "second", lambda x: ((x - 3) ** 2).sum(-1), raising=False)
    quiet = solver.solve(two, x0)
    monkeypatch.setattr(two, "second", second)
    loud = solver.solve(two, x0)
    for field in ("x", "status", "iterations", "objective", "dual_residual"):
        assert torch.equal(getattr(quiet, field)[0], getattr(loud, field)[0])
    assert quiet.status[0] == Status.SOLVED


@ALL
def test_not_a_number_is_a_numerical_error(solver):
    x0 = torch.tensor([[torch.nan, 1.0], [1.0, 1.0]], dtype=torch.float64)
    solution = solver.solve(lambda x: x.square().sum(-1), x0)
    assert solution.status.tolist() == [Status.NUMERICAL_ERROR, Status.SOLVED]


@ALL
def test_starting_at_the_minimum_is_the_end(solver):
    problem = logistic()
    solution = solver.solve(problem.f, problem.x)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    assert solution.iterations.tolist() == [0, 0, 0]
    exactly = solver.solve(lambda x: x.square().sum(-1), torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(exactly.x, torch.zeros(2, 3, dtype=torch.float64))
    assert exactly.status.tolist() == [Status.SOLVED] * 2


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("solver", FAST, ids=name_of)
def test_scales_of_the_function_do_not_matter(solver, scale):
    problem = logistic()
    solution = solver.solve(lambda x: scale * problem.f(x), problem.x0)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    assert worst_error(solution.x, problem) < 1e-8


@pytest.mark.parametrize("solver", FAST, ids=name_of)
def test_an_offset_that_hides_the_values_does_not_matter(solver):
    problem = exponentials()
    solution = solver.solve(lambda x: problem.f(x) + 1e6, problem.x0)
    assert worst_error(solution.x, problem) < 1e-8


@pytest.mark.parametrize("problem", EASY, ids=lambda p: p.name)
@ALL
def test_single_precision(solver, problem):
    single = problem.to(torch.float32)
    solution = solver.solve(single.f, single.x0)
    assert solution.x.dtype == solution.objective.dtype == torch.float32
    assert solution.solved.all()
    assert worst_error(solution.x, single) < (1e-3 if solver in FAST else 1e-2)


@ALL
def test_an_empty_batch(solver):
    solution = solver.solve(lambda x: x.square().sum(-1), torch.zeros(0, 3))
    assert solution.x.shape == (0, 3)
    assert solution.status.shape == (0,)


@ALL
def test_inputs_stay_as_they_are(solver):
    problem = logistic()
    x0 = problem.x0.clone() + 0.1
    before = x0.clone()
    solution = solver.solve(problem.f, x0)
    assert torch.equal(x0, before)
    assert not solution.x.requires_grad
    again = solver.solve(problem.f, x0)
    assert torch.equal(solution.x, again.x)


@ALL
def test_running_out_of_iterations_is_a_status(solver):
    problem = logistic()
    solution = replace(solver, max_iter=2).solve(problem.f, problem.x0 + 3)
    assert solution.status.tolist() == [Status.MAX_ITERATIONS] * 3
    assert solution.iterations.tolist() == [2, 2, 2]


BOTTOMLESS = {
    "cubic": lambda x: -(x**3).sum(-1),
    "linear": lambda x: x.sum(-1),  # slopes never tell how far to go
    "concave": lambda x: -x.square().sum(-1),
}


@pytest.mark.parametrize("f", BOTTOMLESS.values(), ids=BOTTOMLESS)
@pytest.mark.parametrize("solver", FAST, ids=name_of)
def test_a_function_without_a_lower_bound_is_not_solved(solver, f):
    solver = replace(solver, max_iter=100)
    solution = solver.solve(f, torch.ones(2, 2, dtype=torch.float64))
    assert not solution.solved.any()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GradientDescent(step=0.0), "step must be positive; got 0"),
        (lambda: GradientDescent(step=-1.0, acceleration=True), "step must be positive"),
        (lambda: LBFGS(memory=0), "LBFGS: memory must be an integer of at least 1; got 0"),
        (lambda: LBFGSB(memory=2.5), "LBFGSB: memory must be an integer"),
        (lambda: TrustRegion(radius=0.0), "radius must be positive"),
        (lambda: NewtonCG(max_cg_iter=0), "max_cg_iter must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
