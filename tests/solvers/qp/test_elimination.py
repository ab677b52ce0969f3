"""Shared equalities, eliminated: the same solutions, and no elimination where it would not do."""

import numpy as np
import pytest
import torch
from torch import Tensor

from solvers.qp import _daqp
from solvers.qp.elimination import Elimination


def least_distance(n: int, p: int, m: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows ``(1, p + m, n)`` and ends ``(batch, p + m)`` that leave points between them."""
    generator = torch.Generator().manual_seed(n)
    M = torch.randn(1, p + m, n, generator=generator, dtype=torch.float64)
    M /= torch.linalg.vector_norm(M, dim=-1, keepdim=True)
    middle = 3 * torch.randn(batch, n, generator=generator, dtype=torch.float64) @ M[0].mT
    room = torch.rand(batch, p + m, generator=generator, dtype=torch.float64)
    room[:, :p] = 0.0
    return M, middle + room, middle - room


@pytest.mark.parametrize(("n", "p", "m", "batch"), [(6, 2, 5, 3), (30, 12, 40, 8), (5, 4, 0, 2)])
def test_the_same_solutions(n: int, p: int, m: int, batch: int) -> None:
    M, upper, lower = least_distance(n, p, m, batch)
    sense = np.zeros((1, p + m), np.int32)
    sense[:, :p] = _daqp.EQUALITY
    ends = upper.numpy(), lower.numpy()
    u, multipliers, _, _ = _daqp.solve_batch(None, None, M.numpy(), *ends, sense, batch, 1000)

    elimination = Elimination.of(M, p)
    assert elimination is not None
    C, high, low = (t.numpy() for t in elimination.reduce(upper, lower))
    assert C.shape == (1, m, n - p)
    reduced = _daqp.solve_batch(None, None, C, high, low, sense[:, p:], batch, 1000)
    assert not reduced[2].any()
    expanded = elimination.expand(*map(torch.from_numpy, reduced[:2]))
    np.testing.assert_allclose(expanded[0].numpy(), u, atol=1e-10)
    np.testing.assert_allclose(expanded[1].numpy(), multipliers, atol=1e-10)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, -1])
def test_not_where_rows_are_not_finite(row: int, value: float) -> None:
    M, *_ = least_distance(6, 2, 5, 1)
    M[0, row, 3] = value
    assert Elimination.of(M, 2) is None


def test_not_where_rows_depend_on_equalities() -> None:
    M, *_ = least_distance(6, 2, 5, 1)
    for row in (1, 4):
        dependent = M.clone()
        dependent[0, row] = M[0, 0]
        assert Elimination.of(dependent, 2) is None


def test_not_without_equalities_or_freedom_or_sharing() -> None:
    M, *_ = least_distance(6, 2, 6, 1)
    assert Elimination.of(M, 0) is None
    assert Elimination.of(M, 6) is None
    assert Elimination.of(M.expand(2, -1, -1), 2) is None


def test_structures_are_a_progression() -> None:
    """Each problem's pointers go to its own part of an array, or to the one that all share."""
    own, shared = np.zeros((3, 2, 2)), np.zeros((1, 2))
    made = _daqp._structures(
        _daqp.PROBLEM, 3, (2, 4, 0), (own, shared, None, None, None, None, None), (0, 0)
    )
    assert made["n"].tolist() == [2, 2, 2]
    assert made["m"].tolist() == [4, 4, 4]
    assert made["H"].tolist() == [part.ctypes.data for part in own]
    assert made["f"].tolist() == [shared.ctypes.data] * 3
    assert not made["A"].any()
    assert not made["kind"].any()
