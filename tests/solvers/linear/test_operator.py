"""Linear operators: what they multiply with, and how they become matrices."""

import pytest
import torch

from optlayers.solvers import Status
from optlayers.solvers.linear import LSMR, LU, QR, LinearOperator
from tests.solvers.linear.systems import random


def product(A, x):
    return (A @ x[..., None])[..., 0]


@pytest.mark.parametrize("batch", [1, 3])
def test_products_and_transposes_of_a_matrix(batch):
    A, x, u = random(batch, 4, 6), random(3, 6), random(3, 4)
    operator = LinearOperator.of(A)
    torch.testing.assert_close(operator.matvec(x), product(A, x))
    torch.testing.assert_close(operator.rmatvec(u), product(A.mT, u))
    torch.testing.assert_close(operator.T.matvec(u), product(A.mT, u))
    torch.testing.assert_close(operator.T.T.matvec(x), product(A, x))
    assert operator.matrix(x) is A
    assert torch.equal(operator.T.matrix(u), A.mT)


def test_positive_definite_is_symmetric_and_its_own_transpose():
    operator = LinearOperator(lambda v: 2 * v, positive_definite=True)
    assert operator.symmetric
    assert operator.T is operator
    assert not LinearOperator(lambda v: v).symmetric


def test_the_matrix_by_products():
    A = random(3, 4, 6)
    operator = LinearOperator(lambda v: product(A, v))
    torch.testing.assert_close(operator.matrix(random(3, 6)), A)


def test_the_matrix_by_chunks_of_products(monkeypatch):
    monkeypatch.setattr("solvers.linear.operator.CHUNK_ENTRIES", 40)
    A = random(3, 4, 6)
    torch.testing.assert_close(LinearOperator(lambda v: product(A, v)).matrix(random(3, 6)), A)


def test_the_matrix_of_a_product_in_numpy():
    A = random(3, 4, 6)

    def matvec(v):
        return torch.from_numpy((A.numpy() @ v.numpy()[..., None])[..., 0])

    torch.testing.assert_close(LinearOperator(matvec).matrix(random(3, 6)), A)


def test_what_is_wrong_with_a_product_is_raised():
    with pytest.raises(RuntimeError, match="mine"):
        LinearOperator(_raise).matrix(random(3, 6))


def _raise(v):
    raise RuntimeError("mine")


def test_operators_that_solvers_turn_into_matrices():
    A, b = random(3, 6, 6), random(3, 6)
    solution = LU().solve(LinearOperator(lambda v: product(A, v)), b)
    torch.testing.assert_close(solution.x, torch.linalg.solve(A, b))


@pytest.mark.parametrize("solver", [QR(), LSMR()])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
@pytest.mark.parametrize("start", [False, True])
def test_rectangular_operators(solver, shape, start):
    A, b = random(3, *shape), random(3, shape[0])
    operator = LinearOperator(lambda v: product(A, v), lambda u: product(A.mT, u))
    x0 = torch.zeros(3, shape[1], dtype=torch.float64) if start else None
    solution = solver.solve(operator, b, x0=x0)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    torch.testing.assert_close(solution.x, product(torch.linalg.pinv(A), b), rtol=1e-7, atol=1e-8)


def test_leading_dimensions_of_a_right_hand_side_are_flattened():
    A, b = random(6, 5, 5), random(2, 3, 5)
    solution = LU().solve(LinearOperator(lambda v: product(A, v)), b)
    torch.testing.assert_close(solution.x, torch.linalg.solve(A.reshape(2, 3, 5, 5), b))


def test_a_missing_transpose_is_named():
    with pytest.raises(ValueError, match="Pass rmatvec="):
        LSMR().solve(LinearOperator(lambda v: v), random(3, 4))


def test_a_matrix_needs_three_dimensions():
    with pytest.raises(ValueError, match=r"got \(4, 6\)"):
        LinearOperator.of(random(4, 6))
