"""How fast the methods converge: what the theory says of each of them."""

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from solvers.minimize.bfgs import BFGS, updated
from solvers.minimize.gradient_descent import GradientDescent
from solvers.minimize.lbfgs import Memory
from solvers.minimize.newton import TrustRegion
from solvers.minimize.newton_cg import NewtonCG
from solvers.minimize.nonlinear_cg import NonlinearCG
from tests.solvers.minimize.smooth.problems import (
    exponentials,
    logistic,
    normal,
    quadratic,
    ridge,
    softplus_sums,
    times,
    worst_error,
)


def errors(solver, problem, count):
    """Distances to the minimum of the first iterates, ``(count, B)``."""
    everyone = SimpleNamespace(running=torch.ones(len(problem.x0), dtype=torch.bool))
    iterates = solver.iterates(problem.f, problem.x0)
    found = [next(iterates).x]
    found += [iterates.send(everyone).x for _ in range(count - 1)]
    return torch.stack([(x - problem.x).norm(dim=-1) for x in found])


def order(sequence):
    """Of convergence, from the last three errors that rounding has not touched yet."""
    e = sequence[sequence > 1e-12][-3:].log()
    return ((e[2] - e[1]) / (e[1] - e[0])).item()


@pytest.mark.parametrize("make", [exponentials, softplus_sums, logistic], ids=lambda m: m.__name__)
def test_newton_converges_quadratically(make):
    found = errors(TrustRegion(), make(), 15)
    assert min(order(found[:, i]) for i in range(3)) > 1.7


def test_newton_needs_few_iterations_and_evaluations():
    calls = []
    for problem, most in ((ridge(), 1), (logistic(), 6)):
        calls.clear()
        solution = TrustRegion().solve(lambda x, p=problem: calls.append(0) or p.f(x), problem.x0)
        assert solution.iterations.max() <= most
        assert len(calls) <= 2 * most + 2
        assert worst_error(solution.x, problem) < 1e-10 * (1 + problem.x.norm())


def test_truncated_newton_converges_faster_than_linearly():
    found = errors(NewtonCG(), logistic(), 12)
    assert min(order(found[:, i]) for i in range(3)) > 1.2


def test_bfgs_has_the_secant_property():
    s, y = normal(4, 6), normal(4, 6, seed=1)
    A = normal(4, 6, 6, seed=2)
    H = A @ A.mT + torch.eye(6).to(A)
    y = torch.where(((s * y).sum(-1) > 0)[:, None], y, -y)
    new = updated(H, s, y)
    torch.testing.assert_close(times(new, y), s)
    torch.testing.assert_close(new, new.mT)
    assert (torch.linalg.eigvalsh(new) > 0).all()
    eye = torch.eye(6).to(A)
    rho = 1 / (s * y).sum(-1)[:, None, None]
    left = eye - rho * s[:, :, None] * y[:, None, :]
    expected = left @ H @ left.mT + rho * s[:, :, None] * s[:, None, :]
    torch.testing.assert_close(new, expected)


def test_bfgs_leaves_out_pairs_of_negative_curvature():
    s = normal(2, 3)
    H = torch.eye(3).to(s).expand(2, 3, 3)
    assert torch.equal(updated(H, s, -s), H)
    assert torch.equal(updated(H, 0 * s, 0 * s), H)


def test_limited_memory_is_bfgs_while_all_pairs_fit():
    v, scale = normal(2, 5), torch.tensor([0.5, 2.0], dtype=torch.float64)
    memory, H = Memory(v, 4, scale), None
    pairs = [(normal(2, 5, seed=2 * k + 1), normal(2, 5, seed=2 * k + 2)) for k in range(6)]
    pairs = [(s, torch.where(((s * y).sum(-1) > 0)[:, None], y, -y)) for s, y in pairs]
    # The fourth pair has negative curvature in the second sample.
    pairs[3] = (pairs[3][0], pairs[3][1] * torch.tensor([[1.0], [-1.0]]).to(v))
    for s, y in pairs:
        memory.add(s, y)
    s, y = pairs[-1]
    H = ((s * y).sum(-1) / (y * y).sum(-1))[:, None, None] * torch.eye(5).to(v)
    for s, y in pairs[-4:]:
        H = updated(H, s, y)
    torch.testing.assert_close(memory.apply(v), times(H, v))
    memory.forget(torch.tensor([False, True]))
    torch.testing.assert_close(memory.apply(v)[0], times(H, v)[0])
    torch.testing.assert_close(memory.apply(v)[1], 2 * v[1])


@pytest.mark.parametrize("solver", [BFGS(curvature=1e-6), NonlinearCG(curvature=1e-6)], ids=str)
def test_exact_searches_end_on_a_quadratic_within_n_steps(solver):
    problem = quadratic(20.0, n=6)
    found = errors(solver, problem, 9)
    assert found[5].min() > 1e-4
    assert found[7].max() < 1e-6


def test_the_first_directions_of_bfgs_and_conjugate_gradients_are_the_same():
    # On a quadratic with exact searches all methods of Krylov's kind are the same method.
    problem = quadratic(20.0, n=6)
    first = errors(BFGS(curvature=1e-9), problem, 5)
    second = errors(NonlinearCG(curvature=1e-9), problem, 5)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=0)


@pytest.mark.parametrize("make", [logistic, softplus_sums], ids=lambda m: m.__name__)
def test_bfgs_converges_superlinearly(make):
    found = errors(BFGS(), make(), 25)
    for e in found.T:
        e = e[e > 1e-12]
        ratios = e[1:] / e[:-1]
        assert ratios[-3:].prod() < 0.02
        assert ratios[-3:].prod() < 0.1 * ratios[:3].prod()


def test_gradient_descent_has_its_linear_rate():
    problem = quadratic(50.0)
    found = errors(GradientDescent(step=1.0), problem, 200)  # 1 / L
    assert (found[1:] <= (1 - 1 / 50) * found[:-1] * (1 + 1e-12)).all()
    # The slowest component falls by exactly that.
    rate = torch.full((3,), 1 - 1 / 50).to(found)
    torch.testing.assert_close(found[199] / found[198], rate, rtol=1e-3, atol=0)


@pytest.mark.parametrize("step", [1.0, None])
def test_acceleration_takes_the_root_of_the_condition(step):
    condition = 1e3
    problem = quadratic(condition)
    count = 400
    plain = errors(GradientDescent(step=1.0), problem, count)
    fast = errors(GradientDescent(step=step, acceleration=True), problem, count)
    assert (fast[-1] <= (1 - 0.5 / condition**0.5) ** count * fast[0]).all()
    assert (fast[-1] < 1e-2 * plain[-1]).all()


def test_rounding_does_not_shrink_accelerated_steps():
    # A step that shrinks to nothing would look like convergence. Values with errors that gradients
    # do not have, as of sums of many terms:
    problem = quadratic(20.0)

    def rough(x, *data):
        return problem.loss(x, *data) + 1e-12 * torch.sin(1e9 * x.detach()).sum(-1)

    found = errors(GradientDescent(acceleration=True), replace(problem, loss=rough), 250)
    assert found[-1].max() < 1e-9


def test_searched_steps_do_better_than_the_safe_one():
    problem = quadratic(100.0)
    safe = errors(GradientDescent(step=1.0), problem, 100)
    searched = errors(GradientDescent(), problem, 100)
    assert (searched[-1] < 1e-3 * safe[-1]).all()


def test_conjugate_gradients_take_the_root_of_the_condition():
    condition = 400.0
    problem = quadratic(condition, n=60)
    found = errors(NonlinearCG(), problem, 51)
    root = condition**0.5
    # The bound is on the norm of the Hessian, which is within the root of the condition of this.
    assert (found[50] <= 2 * root * ((root - 1) / (root + 1)) ** 50 * found[0]).all()


def test_the_history_tells_the_steps():
    problem = logistic()
    solver = TrustRegion(keep_history=True)
    history = solver.solve(problem.f, problem.x0).history
    steps = [it.error for it in islice(solver.iterates(problem.f, problem.x0), 1)]
    assert torch.equal(history[0], steps[0])
    assert (history[-1][~history[-1].isnan()] < 1e-9).all()
