"""Equalities, eliminated: the same solutions, and no elimination where it would not do."""

import numpy as np
import pytest
import torch
from torch import Tensor

from optlayers.solvers import ActiveSet, QuadraticProgram
from solvers.qp import _daqp, elimination
from solvers.qp.elimination import Elimination
from solvers.solution import Status


def least_distance(
    n: int, p: int, m: int, batch: int, own: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows ``(1, p + m, n)`` and ends ``(batch, p + m)`` that leave points between them."""
    generator = torch.Generator().manual_seed(n)
    M = torch.randn(batch if own else 1, p + m, n, generator=generator, dtype=torch.float64)
    M /= torch.linalg.vector_norm(M, dim=-1, keepdim=True)
    points = 3 * torch.randn(batch, n, 1, generator=generator, dtype=torch.float64)
    middle = (M @ points)[..., 0]
    room = torch.rand(batch, p + m, generator=generator, dtype=torch.float64)
    room[:, :p] = 0.0
    return M, middle + room, middle - room


def program(n: int, p: int, m: int, batch: int) -> dict[str, Tensor]:
    """Strictly convex, with matrices of their own."""
    M, upper, _ = least_distance(n, p, m, batch, own=True)
    generator = torch.Generator().manual_seed(n)
    root = torch.randn(batch, n, n, generator=generator, dtype=torch.float64) / n**0.5
    P = root @ root.mT + 0.1 * torch.eye(n, dtype=torch.float64)
    q = torch.randn(batch, n, generator=generator, dtype=torch.float64)
    A, G, b, h = M[:, :p], M[:, p:], upper[:, :p], upper[:, p:]
    return {"P": P, "q": q, "G": G, "h": h, "A": A, "b": b}


@pytest.fixture
def at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eliminate as in large problems."""
    monkeypatch.setattr(elimination, "LARGE", 1)
    monkeypatch.setattr(elimination, "LARGE_ALONE", 1)


@pytest.mark.usefixtures("at_any_size")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("n", "p", "m", "batch"), [(6, 2, 5, 3), (30, 12, 40, 8), (5, 4, 0, 2), (6, 2, 5, 1)]
)
def test_the_same_solutions(n: int, p: int, m: int, batch: int, own: bool) -> None:
    M, upper, lower = least_distance(n, p, m, batch, own)
    sense = np.zeros((1, p + m), np.int32)
    sense[:, :p] = _daqp.EQUALITY
    ends = upper.numpy(), lower.numpy()
    u, multipliers, _, _ = _daqp.solve_batch(None, None, M.numpy(), *ends, sense, batch, 1000)

    made = Elimination.of(M, p, batch)
    assert made is not None
    assert made.regular.all()
    C, high, low = (t.numpy() for t in made.reduce(upper, lower))
    assert C.shape == (batch if own else 1, m, n - p)
    reduced = _daqp.solve_batch(None, None, C, high, low, sense[:, p:], batch, 1000)
    assert not reduced[2].any()
    expanded = made.expand(*map(torch.from_numpy, reduced[:2]))
    np.testing.assert_allclose(expanded[0].numpy(), u, atol=1e-10)
    np.testing.assert_allclose(expanded[1].numpy(), multipliers, atol=1e-10)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("row", [0, -1])
def test_not_where_rows_are_not_finite(row: int, value: float) -> None:
    M, *_ = least_distance(6, 2, 5, 1)
    M[0, row, 3] = value
    assert Elimination.of(M, 2, 3) is None


def test_not_where_rows_depend_on_equalities() -> None:
    M, *_ = least_distance(6, 2, 5, 1)
    for row in (1, 4):
        dependent = M.clone()
        dependent[0, row] = M[0, 0]
        assert Elimination.of(dependent, 2, 3) is None


def test_not_without_equalities_or_freedom_or_sharing() -> None:
    M, *_ = least_distance(6, 2, 6, 1)
    assert Elimination.of(M, 0, 3) is None
    assert Elimination.of(M, 6, 3) is None
    assert Elimination.of(M, 2, 1) is None
    assert Elimination.of(M.expand(2, -1, -1), 2, 2) is None


@pytest.mark.parametrize(("n", "batch"), [(100, 5), (150, 1)])
def test_large_problems_with_matrices_of_their_own(
    n: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = QuadraticProgram(**program(n, n // 5, n, batch))
    found = ActiveSet().solve(problem)
    monkeypatch.setattr(elimination, "PART", 1.0)
    walked = ActiveSet().solve(problem)
    assert (found.status == Status.SOLVED).all()
    assert not torch.equal(found.x, walked.x)
    for name in ("x", "y", "z"):
        torch.testing.assert_close(getattr(found, name), getattr(walked, name), rtol=0, atol=1e-10)


@pytest.mark.usefixtures("at_any_size")
@pytest.mark.parametrize("failure", ["none", "dependent", "contradictory", "nan"])
def test_mates_of_irregular_equalities(failure: str) -> None:
    """They are solved with all their rows, and the others do not notice."""
    good = program(40, 10, 100, 5)  # too large for the small problems
    bad = {name: t.clone() for name, t in good.items()}
    if failure == "nan":
        bad["A"][2, 0, 0] = torch.nan
    elif failure != "none":
        bad["A"][2, 1], bad["b"][2, 1] = 2 * bad["A"][2, 0], 2 * bad["b"][2, 0]
        bad["b"][2, 1] += failure == "contradictory"
    one, other = (ActiveSet().solve(QuadraticProgram(**data)) for data in (good, bad))
    expected = {"contradictory": Status.PRIMAL_INFEASIBLE, "nan": Status.NUMERICAL_ERROR}
    assert (one.status == Status.SOLVED).all()
    assert int(other.status[2]) == expected.get(failure, Status.SOLVED)
    if failure == "dependent":
        alone = {name: t[2] for name, t in bad.items()}
        alone["A"], alone["b"] = (torch.cat((alone[k][:1], alone[k][2:])) for k in "Ab")
        wanted = ActiveSet().solve(QuadraticProgram(**alone)).x
        torch.testing.assert_close(other.x[2], wanted, rtol=0, atol=1e-9)
    mates = torch.tensor([0, 1, 3, 4])
    for name in ("x", "y", "z", "s", "objective", "status", "iterations"):
        assert torch.equal(getattr(one, name)[mates], getattr(other, name)[mates]), name


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
