"""Programs on which solvers or derivatives once went wrong, each with what is right."""

from dataclasses import replace

import pytest
import torch

import optlayers as ol
from optlayers.solvers import InteriorPoint

DOUBLE = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=DOUBLE)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5, 1e8])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_repeated_row_changes_no_gradient_at_any_scale(size, batch):
    P, A = size * torch.diag(tensor([1.0, 2.0, 3.0])), tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    gradients = []
    for rows in (1, 2):
        q = (size * tensor([1.0, -1.0, 2.0])).expand(batch, 3).clone().requires_grad_()
        x = ol.qp(P, q, A=A[:rows], b=torch.ones(rows, dtype=DOUBLE)).x
        gradients += torch.autograd.grad((x * tensor([1.0, -2.0, 0.5])).sum(), q)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=0)


def test_a_feasible_program_with_singular_hessian_is_not_called_infeasible():
    M = tensor([[-1.1, 0.8], [-0.4, 0.3], [0.3, -1.9]])
    q, x0 = tensor([-3.6, 1.3, 0.4]), tensor([-0.2, 1.8, -0.8])
    G = tensor([[0.5, -1.0, -1.2], [1.1, -1.6, -1.6], [-0.8, 1.4, 0.9]])
    solution = ol.qp(M @ M.T, q, G, G @ x0, lb=x0 - 1, ub=x0 + 1)
    reference = ol.qp(M @ M.T, q, G, G @ x0, lb=x0 - 1, ub=x0 + 1, solver=InteriorPoint())
    torch.testing.assert_close(solution.objective, reference.objective, atol=1e-8, rtol=0)


@pytest.mark.parametrize("unit", [1e-8, 1e-6, 1.0, 1e5, 1e8])
def test_a_linear_program_has_its_vertex_in_any_unit(unit):
    units = tensor([unit, 1.0])
    G = tensor([[1.0, 2.0], [3.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]) * units
    x = ol.qp(None, tensor([-1.0, -1.0]) * units, G, tensor([4.0, 6.0, 0.0, 0.0])).x
    torch.testing.assert_close(x * units, tensor([1.6, 1.2]), atol=1e-7, rtol=0)


def test_a_bounded_linear_program_is_not_called_unbounded():
    q, A = (
        tensor([2.7381499903029347, 2.515699183970444]),
        tensor([[0.32050358704069454, 0.24978506092652109]]),
    )
    G = tensor([[-1.637986697930666, 1.7796796270791442], [0.3807645238112383, 1.160689995630239]])
    h, b = tensor([0.8472836137850538, -1.8246391524729515]), tensor([-0.6860172164440566])
    ub = tensor([1.6935864493883632, 0.7847845501051602])
    solution = ol.qp(None, q, G, h, A, b, ub=ub)
    reference = ol.qp(None, q, G, h, A, b, ub=ub, solver=InteriorPoint())
    torch.testing.assert_close(solution.objective, reference.objective, atol=1e-8, rtol=0)


@pytest.mark.parametrize("guess", [[-1.0, -1.0], [-1e-300, -1.0], [1.0, 1.0], [0.0, -1.0]])
def test_no_guess_makes_a_program_infeasible(guess):
    data = (
        torch.eye(2, dtype=DOUBLE),
        tensor([0.4, 0.84]),
        tensor([[1.5, -0.3], [-2.2, 0.57]]),
        tensor([0.65, 0.79]),
    )
    cold = ol.qp(*data)
    warm = ol.qp(*data, warm_start=replace(cold, z=tensor(guess)))
    torch.testing.assert_close(warm.x, cold.x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [1e-8, 1e-12])
def test_a_tiny_objective_has_the_same_solution(size):
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(4, 4, generator=generator, dtype=DOUBLE)
    P, q = M @ M.T + torch.eye(4, dtype=DOUBLE), torch.randn(4, generator=generator, dtype=DOUBLE)
    G = torch.randn(3, 4, generator=generator, dtype=DOUBLE)
    h = torch.rand(3, generator=generator, dtype=DOUBLE) - 0.5
    x = ol.qp(size * P, size * q, G, h, solver=InteriorPoint()).x
    torch.testing.assert_close(x, ol.qp(P, q, G, h).x, atol=1e-9, rtol=0)


def test_asymmetry_beside_a_huge_entry_is_seen():
    P = tensor([[1e13, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    x = ol.qp(P, tensor([0.0, -1.0, -2.0])).x
    torch.testing.assert_close(x, tensor([0.0, 8 / 15, 28 / 15]), atol=1e-9, rtol=0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("sparse", [False, True])
def test_one_number_bounds_all_variables(sparse):
    P, q = torch.eye(3, dtype=torch.float64), torch.tensor([[1.0, -2.0, 0.25]] * 2).double()
    P = P.to_sparse_csr() if sparse else P
    whole = ol.qp(P, q, lb=torch.full((3,), -0.5).double(), ub=torch.ones(3).double())
    for lb, ub in ((-0.5, 1), (torch.tensor(-0.5).double(), torch.ones(3).double())):
        assert torch.equal(ol.qp(P, q, lb=lb, ub=ub).x, whole.x)
    end = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    ol.qp(P, q, lb=end, ub=1.0).x.sum().backward()
    assert float(end.grad) == pytest.approx(2.0)  # one variable of each element is there
    if not sparse:
        shifted = ol.closest_feasible_qp(P, q, lb=-0.5, ub=1.0)
        assert torch.equal(shifted.solution.x, whole.x)


def test_equalities_that_nearly_depend_on_each_other_do_not_contradict():
    q = torch.tensor([-4.0, -4.0], dtype=torch.float64)
    A = torch.tensor([[1.0, 1.0], [1.0, 1.0 + 1e-6]], dtype=torch.float64)
    found = ol.qp(2 * torch.eye(2, dtype=torch.float64), q, A=A, b=A[:, 1].clone())
    torch.testing.assert_close(found.x, torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-9)
    with pytest.raises(ol.SolverError, match="PRIMAL_INFEASIBLE"):
        ol.qp(2 * torch.eye(2, dtype=torch.float64), q, A=A, b=A[:, 1] + torch.tensor([0.0, 1.0]))
