"""What is Newton's alone: its order, its factorisation, its ways around singular Jacobians."""

import math

import pytest
import torch

from optlayers.solvers.root import Newton
from solvers.derivatives import jacobian
from solvers.solution import Status
from tests.solvers.root.problems import posed, tanh_layer


def test_converges_quadratically():
    # The steps are as long as the errors before them, and shrink as their squares.
    solver = Newton(keep_history=True)
    solution = solver.solve(lambda w: w**3 - 2, torch.tensor([2.0], dtype=torch.float64))
    errors = solution.history.tolist()
    exponents = [
        math.log(errors[k + 1] / errors[k]) / math.log(errors[k] / errors[k - 1])
        for k in range(1, len(errors) - 1)
        if errors[k + 1] > 1e-13
    ]
    assert 1.8 < exponents[-1] < 2.2


def test_converges_linearly_to_a_double_root():
    solution = Newton(keep_history=True).solve(
        lambda w: (w - 0.3) ** 2, torch.ones(1, dtype=torch.float64)
    )
    ratios = solution.history[1:] / solution.history[:-1]
    assert torch.allclose(ratios, torch.full_like(ratios, 0.5), atol=1e-6)


def test_the_result_is_right_to_rounding():
    # The step is within the tolerance where the error is its square.
    F, root, start = posed(tanh_layer, torch.float64)
    solution = Newton(eps_abs=1e-5, eps_rel=1e-5).solve(F, start)
    assert (solution.x - root).abs().max() < 1e-9


def test_a_linear_system_takes_one_step():
    torch.manual_seed(0)
    A = torch.randn(3, 5, 5, dtype=torch.float64) + 5 * torch.eye(5, dtype=torch.float64)
    b = torch.randn(3, 5, dtype=torch.float64)
    run = Newton().find(lambda x: (A @ x[..., None])[..., 0] - b, torch.zeros_like(b))
    assert torch.allclose(run.x, torch.linalg.solve(A, b))
    assert (run.iterations <= 1).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_kept_solves_with_the_jacobian(transposed):
    torch.manual_seed(0)
    F, root, start = posed(tanh_layer, torch.float64)
    solver = Newton()
    run = solver.find(F, start)
    J, v = jacobian(F, root), torch.randn_like(root)
    found = solver.apply_inverse(run.kept, v, transposed=transposed)
    expected = torch.linalg.solve(J.mT if transposed else J, v[..., None])[..., 0]
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_what_is_kept_does_not_depend_on_how_long_mates_take():
    def kept(start):
        run = Newton().find(lambda w: w**3 - 8, torch.tensor([[3.0], [start]], dtype=torch.float64))
        return run.kept[0][0]

    assert torch.equal(kept(2.1), kept(300.0))


def test_steps_are_shortened():
    # Full steps from here go further and further from arctan's root.
    solution = Newton().solve(torch.atan, torch.tensor([20.0], dtype=torch.float64))
    assert solution.status == Status.SOLVED
    assert solution.x.abs() < 1e-12


def test_a_domain_is_not_left():
    solution = Newton().solve(torch.log, torch.tensor([[20.0], [0.1]], dtype=torch.float64))
    assert torch.allclose(solution.x, torch.ones(2, 1, dtype=torch.float64))


def test_dependent_equations_have_the_nearest_root():
    def F(x):
        total = x.sum(-1)
        return torch.stack([total - 1, 2 * total - 2], -1)

    solution = Newton().solve(F, torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    assert solution.solved.all()
    assert torch.allclose(solution.x, torch.tensor([[1.5, -0.5]], dtype=torch.float64), atol=1e-6)


def test_a_stationary_point_of_the_norm_is_no_root():
    # On the line x_0 = 0 the Jacobian is singular, and the norm has a minimum along it.
    def F(x):
        return torch.stack([x[..., 0] ** 2 - 1 + x[..., 1], x[..., 1] - 0.5], -1)

    start = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    solution = Newton().solve(F, start)
    assert solution.solved.tolist() == [False, True]
    assert solution.x.isfinite().all()
    assert torch.allclose(solution.x[1], torch.tensor([0.5**0.5, 0.5], dtype=torch.float64))


def test_a_singular_root_as_a_start():
    solution = Newton().solve(lambda w: w**2, torch.zeros(2, 1, dtype=torch.float64))
    assert (solution.status == Status.SOLVED).all()
    assert (solution.x == 0).all()


def test_powells_singular_function():
    def F(x):
        a, b, c, d = x.unbind(-1)
        return torch.stack(
            [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2], -1
        )

    solution = Newton().solve(F, torch.tensor([[3.0, -1.0, 0.0, 1.0]], dtype=torch.float64))
    assert solution.solved.all()
    assert solution.x.abs().max() < 1e-8
