"""Cone programs whose numbers are large, small, or both, and data that have been rounded."""

import cvxpy as cp
import pytest
import torch

import optlayers as ol
from solvers.solution import Status

DISC = [ol.SecondOrderCone(3)]


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def disc(*scales):
    """Rows of ``|(s1 x1, s2 x2)| <= b1``."""
    rows = torch.diag(vector(*scales))
    return torch.cat([torch.zeros(1, len(scales), dtype=torch.float64), -rows])


@pytest.mark.parametrize("scale", [1e2, 1e3, 7e4, 1e6])
def test_units_of_the_variables_do_not_matter(scale):
    scales = vector(scale, 1 / scale)
    b = vector(1.0, 0.0, 0.0).requires_grad_()
    solution = ol.cone_program(None, scales, disc(*scales.tolist()), b, DISC)
    torch.testing.assert_close(solution.x * scales, vector(-1.0, -1.0) / 2**0.5)
    (g,) = torch.autograd.grad(solution.x[0], b)
    torch.testing.assert_close(g * scale, vector(-(0.5**0.5), -1.0, 0.0), atol=1e-9, rtol=0)


def test_units_of_a_quadratic_term_do_not_matter():
    P = torch.tensor([[1e5, 1e-4], [1e-4, 1e-5]], dtype=torch.float64)
    q = vector(1.0, 1e-5).requires_grad_()
    want = -torch.linalg.inv(P)[0]
    no_rows = torch.zeros(3, 2, dtype=torch.float64)
    for solution in (
        ol.cone_program(P, q, no_rows, vector(1.0, 0.0, 0.0), DISC),
        ol.qp(P, q, solver=ol.solvers.Clarabel()),
    ):
        (g,) = torch.autograd.grad(solution.x[0], q)
        torch.testing.assert_close(g, want, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("size", "radius"), [(1e-9, 1.0), (1.0, 1e-9), (3e-7, 100.0), (1e8, 1e-8)])
def test_size_of_costs_and_of_right_hand_sides_do_not_matter(size, radius):
    q, b = size * vector(3.0, 4.0), vector(radius, 0.0, 0.0).requires_grad_()
    solution = ol.cone_program(None, q, disc(1.0, 1.0), b, DISC)
    torch.testing.assert_close(solution.x / radius, vector(-0.6, -0.8), rtol=1e-9, atol=0)
    torch.testing.assert_close(solution.z / size, vector(5.0, 3.0, 4.0))
    (g,) = torch.autograd.grad(solution.x[0], b)
    torch.testing.assert_close(g, vector(-0.6, -1.0, 0.0), atol=1e-8, rtol=0)


def test_a_small_cost_does_not_hide_that_there_is_no_minimum():
    with pytest.raises(ol.SolverError, match="DUAL_INFEASIBLE"):
        ol.cone_program(
            None, vector(-1e-9, 0.0), -torch.eye(2, dtype=torch.float64), vector(0.0, 0.0),
            [ol.SecondOrderCone(2)],
        )  # fmt: skip


@pytest.mark.parametrize(
    ("costs", "radii"), [((1e4, 1e-4), (1.0, 1.0)), ((1e6, 1e-4), (1e6, 1e-4))]
)
def test_what_tolerances_cannot_see_is_not_called_solved(costs, radii):
    A = torch.block_diag(disc(1.0, 1.0), disc(1.0, 1.0))
    b = vector(radii[0], 0.0, 0.0, radii[1], 0.0, 0.0)
    q = vector(costs[0], 0.0, costs[1], 0.0)
    solution = ol.cone_program(None, q, A, b, DISC * 2)
    right = abs(solution.x[2] + radii[1]) <= 1e-6 * radii[1]
    assert right or solution.status == Status.SOLVED_INACCURATE


@pytest.mark.parametrize("P", [[1.0, -5e-10], [1e6, -1e-3], [1.0, -1.0]])
def test_an_indefinite_objective_is_refused(P):
    rows = torch.cat([torch.eye(2), -torch.eye(2)]).double()
    solution = ol.cone_program(
        torch.diag(vector(*P)), vector(0.0, 0.0), rows, torch.full((4,), 1e6).double(),
        [ol.NonnegativeCone(4)], solver=ol.solvers.Clarabel(), on_failure="ignore",
    )  # fmt: skip
    assert solution.status == Status.NUMERICAL_ERROR


@pytest.mark.parametrize("rank", [1, 5, 19])
def test_a_semidefinite_objective_is_not(rank):
    generator = torch.Generator().manual_seed(rank)
    for dtype in (torch.float64, torch.float32):
        root = torch.randn(20, rank, generator=generator, dtype=dtype)
        units = 10 ** (4 * torch.rand(20, generator=generator, dtype=dtype) - 2)
        root = units[:, None] * root
        q = root @ torch.randn(rank, generator=generator, dtype=dtype)
        disc_rows = torch.cat([torch.zeros(1, 20), -torch.eye(20)]).to(dtype)
        b = torch.cat([torch.full((1,), 1e4), torch.zeros(20)]).to(dtype)
        solution = ol.cone_program(root @ root.mT, q, disc_rows, b, [ol.SecondOrderCone(21)])
        assert solution.solved, solution


@pytest.mark.parametrize("kind", ["quadratic", "norm", "entropy"])
def test_dependent_equalities_that_rounding_contradicts(kind):
    X, r, c = cp.Variable((3, 3)), cp.Parameter(3), cp.Parameter(3)
    objective = {
        "quadratic": cp.sum_squares(X),
        "norm": cp.norm(X, "fro"),
        "entropy": -cp.sum(cp.entr(X)),
    }[kind]
    rows = [cp.sum(X, axis=1) == r, cp.sum(X, axis=0) == c]
    layer = ol.CvxpyLayer(cp.Problem(cp.Minimize(objective), rows), [r, c], [X])
    generator = torch.Generator().manual_seed(0)
    R, C = (torch.rand(20, 3, generator=generator).softmax(-1) for _ in range(2))
    (plan,) = layer(R, C)
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan.sum(-1), R, atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(-2), C, atol=1e-4, rtol=0)


def test_a_solver_that_panics_fails_alone():
    A = torch.tensor(
        [[1.8, 1.0, 0.5], [1.1, -1.6, 0.6], [1.4, 1.4, -1.6], [-0.9, 0.5, 0.3], [-0.8, 1.2, 0.0]],
        dtype=torch.float64,
    )
    cones = [ol.GeneralizedPowerCone((0.2, 0.3, 0.5), 2)]
    bad = vector(-1.374, -4.356, 14.739, -11.93, 15.23)
    easy_q, easy_A = vector(1.0, 1.0, 1.0), torch.cat([-torch.eye(3), torch.zeros(2, 3)]).double()
    easy_b = vector(0.0, 0.0, 0.0, 1.0, 0.0)
    solution = ol.cone_program(
        None, torch.stack([easy_q, vector(-0.3, -0.3, -0.3), easy_q]),
        torch.stack([easy_A, A, easy_A]), torch.stack([easy_b, bad, easy_b]), cones,
        on_failure="ignore",
    )  # fmt: skip
    assert solution.status[1] != Status.SOLVED
    assert solution.status[[0, 2]].tolist() == [Status.SOLVED, Status.SOLVED]
