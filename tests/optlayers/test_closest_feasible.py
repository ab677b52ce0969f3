"""The closest feasible program: the shift against least squares, both steps against differences."""

import pytest
import torch
from scipy.optimize import minimize

import optlayers as ol

DOUBLE = torch.float64


def contradictory(batch=(3,), n=4, m=6, p=2, seed=0):
    """Random constraints, too many to hold together."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    U = normal(n, n)
    P = U @ U.T + torch.eye(n, dtype=DOUBLE)
    h = normal(*batch, m) - 1.0
    return [P, normal(n), normal(*batch, m, n), h, normal(p, n), normal(p)]


def test_meets_half_way():
    G, h = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE), torch.tensor([0.0, -1.0], dtype=DOUBLE)
    found = ol.closest_feasible_qp(torch.eye(1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE), G, h)
    assert found.solution.x.item() == pytest.approx(0.5, abs=1e-12)
    assert found.h_shift.tolist() == pytest.approx([0.5, 0.5], abs=1e-12)


def test_shifts_are_the_least():
    P, q, G, h, A, b = contradictory(batch=())
    lb = torch.full((4,), -1.0, dtype=DOUBLE)
    found = ol.closest_feasible_qp(P, q, G, h, A, b, lb)

    def violation(x):
        x = torch.from_numpy(x)
        return 0.5 * float((G @ x - h).clamp(min=0).square().sum() + (A @ x - b).square().sum())

    least = minimize(violation, [0.0] * 4, bounds=[(-1.0, None)] * 4, tol=1e-14)
    ours = 0.5 * float(found.h_shift.square().sum() + found.b_shift.square().sum())
    assert ours == pytest.approx(least.fun, rel=1e-6)
    x = found.solution.x
    assert float((G @ x - h - found.h_shift).max()) < 1e-9
    assert float((A @ x - b - found.b_shift).abs().max()) < 1e-9


def test_solves_the_program_on_the_shifted_constraints():
    P, q, G, h, A, b = contradictory()
    found = ol.closest_feasible_qp(P, q, G, h, A, b)
    again = ol.qp(P, q, G, h + found.h_shift + 1e-9, A, b + found.b_shift)
    assert torch.allclose(found.solution.x, again.x, atol=1e-6)
    assert bool((found.h_shift.sum(-1) + found.b_shift.abs().sum(-1) > 0.1).any())


def test_leaves_a_feasible_program_alone():
    P, q, G, h, A, b = contradictory(m=2)
    x0 = torch.ones(4, dtype=DOUBLE)
    h, b = (G @ x0) + 1.0, A @ x0
    found = ol.closest_feasible_qp(P, q, G, h, A, b)
    assert float(found.h_shift.abs().max()) < 1e-9
    assert torch.allclose(found.solution.x, ol.qp(P, q, G, h, A, b).x, atol=1e-8)


@pytest.mark.filterwarnings("ignore:::torch")
@pytest.mark.parametrize("seed", [0, 1])
def test_both_steps_are_differentiated(seed):
    data = [t.requires_grad_() for t in contradictory(batch=(2,), seed=seed)]
    lb = torch.full((4,), -1.0, dtype=DOUBLE)

    def layer(*data):
        found = ol.closest_feasible_qp(*data, lb)
        return found.solution.x, found.h_shift, found.b_shift, found.solution.objective

    assert torch.autograd.gradcheck(layer, data, atol=1e-5)
    assert torch.autograd.gradcheck(layer, data, check_forward_ad=True, atol=1e-5)
    assert torch.autograd.gradgradcheck(layer, data, atol=1e-4)


def test_types_and_batches():
    data = [t.float() for t in contradictory()]
    found = ol.closest_feasible_qp(*data)
    assert found.h_shift.dtype == found.solution.x.dtype == torch.float32
    assert found.solution.x.shape == (3, 4)
    assert found.solution.status.dtype == torch.int64
    empty = [t[:0] if t.ndim == 3 or t.shape == (3, 6) else t for t in data]
    assert ol.closest_feasible_qp(*empty).solution.x.shape == (0, 4)


def test_bounds_that_exclude_each_other_still_fail():
    P, q, G, h, *_ = contradictory(batch=())
    one = torch.ones(4, dtype=DOUBLE)
    with pytest.raises(ol.SolverError, match="PRIMAL_INFEASIBLE"):
        ol.closest_feasible_qp(P, q, G, h, lb=one, ub=-one)
