"""Compiled solvers that are used again, with other data: nobody can tell."""

from collections.abc import Iterator
from contextlib import contextmanager

import clarabel
import numpy as np
import pytest
import torch

from optlayers.solvers import Clarabel, ConeProgram, Status
from solvers.cone import (
    Cone,
    ExponentialCone,
    GeneralizedPowerCone,
    NonnegativeCone,
    PositiveSemidefiniteCone,
    PowerCone,
    SecondOrderCone,
    ZeroCone,
    stack,
)
from solvers.cone.factor import QDLDL_SIDE, plan_of
from solvers.cone.sparse import KEPT_NUMBERS, Assembly
from tests.solvers.cone.problems import planted

PRODUCTS: list[tuple[Cone, ...]] = [
    (ZeroCone(2), NonnegativeCone(5)),
    (SecondOrderCone(3), SecondOrderCone(7)),
    (PositiveSemidefiniteCone(3),),
    (ExponentialCone(), ExponentialCone()),
    (PowerCone(0.3), NonnegativeCone(2)),
    (GeneralizedPowerCone((0.2, 0.3, 0.5), 2),),
]


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many solvers are made from scratch."""
    made, original = [0], clarabel.DefaultSolver

    def make(*arguments: object) -> object:
        made[0] += 1
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(clarabel, "DefaultSolver", make)
        yield made


def forget() -> None:
    """Let dense programs have patterns that nothing is known of."""
    stack._filling.cache_clear()


def one_at_a_time(programs: list[ConeProgram], *, afresh: bool) -> list[torch.Tensor]:
    found = []
    forget()
    for program in programs:
        if afresh:
            forget()
        solution = Clarabel().solve(program)
        found.append(torch.cat([solution.x, solution.z, solution.status[None].double()]))
    return found


@pytest.mark.parametrize("cones", PRODUCTS, ids=lambda c: "-".join(type(k).__name__ for k in c))
def test_results_are_those_of_a_new_solver(
    cones: tuple[Cone, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, also after programs that have no solution or that are not finite."""
    programs = [planted(seed, *cones).program() for seed in range(5)]
    for i, entry in ((1, torch.nan), (3, 1e3)):  # the latter has no solution, mostly
        b = programs[i].b.clone()
        b[0] = -entry
        programs[i].b = b
    with counting(monkeypatch) as made:
        again = one_at_a_time(programs, afresh=False)
        with_reuse = made[0]
    with counting(monkeypatch) as made:
        new = one_at_a_time(programs, afresh=True)
    for a, b in zip(again, new, strict=True):
        assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))
    assert with_reuse < made[0]


def test_solvers_with_other_settings_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    program = planted(0, *PRODUCTS[1]).program()
    forget()
    Clarabel().solve(program)
    with counting(monkeypatch) as made:
        short = Clarabel(max_iter=1).solve(program)
        Clarabel().solve(program)
    assert made[0] >= 1
    assert int(short.iterations) <= 2


def systems(seed: int) -> tuple[Assembly, Assembly, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    diagonal = np.arange(4)
    P = Assembly(diagonal, diagonal, (4, 4), upper=True)
    rows, columns = (t.reshape(-1) for t in np.indices((4, 5)))
    return P, Assembly(rows, columns, (4, 5)), rng.uniform(1, 2, (3, 4)), rng.normal(size=(3, 20))


def test_factors_in_use_are_left_alone() -> None:
    """Two systems of one plan at once, then a third with what the first one leaves."""
    P, CT, of_P, of_C = systems(0)
    counts = np.array([True, False, True, True, False])
    values = np.random.default_rng(1).uniform(0, 1, (3, 5))
    plan = plan_of(P.pattern, CT.pattern, counts)
    assert plan_of(P.pattern, CT.pattern, counts.copy()) is plan
    assert plan_of(P.pattern, CT.pattern, ~counts) is not plan
    right = np.random.default_rng(2).normal(size=7)

    def expected(j: int) -> np.ndarray:
        C = CT.of(of_C[j][None]).dense()[0].T[counts]
        K = np.block([[np.diag(of_P[j]), C.T], [C, -np.diag(values[j, counts])]])
        solution: np.ndarray = np.linalg.solve(K, right)
        return solution

    def factored(j: int) -> object:
        return plan.factored(of_P[j], CT.of(of_C[j][None]).data[0], values[j])

    first, second = factored(0), factored(1)
    for solve, j in ((first, 0), (second, 1), (first, 0)):
        np.testing.assert_allclose(solve(right), expected(j), rtol=1e-5, atol=1e-6)  # type: ignore[operator]
    assert plan.idle.take() is None
    del solve, first
    third = factored(2)
    assert plan.idle.take() is None  # it was taken up again
    for solve, j in ((second, 1), (third, 2)):
        np.testing.assert_allclose(solve(right), expected(j), rtol=1e-5, atol=1e-6)  # type: ignore[operator]
    assert len(right) < QDLDL_SIDE


def test_what_is_derived_from_a_pattern_is_kept_within_bounds() -> None:
    pattern = systems(0)[0].pattern
    made: list[str] = []

    def derive(key: str, size: int) -> None:
        assert pattern.derived(key, size, lambda: made.append(key) or key) == key

    for _ in range(2):
        derive("small", 10)
        derive("too large", KEPT_NUMBERS + 1)
    assert made == ["small", "too large", "too large"]
    derive("large", KEPT_NUMBERS)  # puts everything else out
    derive("small", 10)
    assert made[3:] == ["large", "small"]


def test_statuses_do_not_depend_on_what_was_solved_before() -> None:
    """A solver that met a program without a solution is not used again."""
    forget()
    A = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    q = torch.ones(1, dtype=torch.float64)

    def status(*b: float) -> int:
        ends = torch.tensor(b, dtype=torch.float64)
        return int(Clarabel().solve(ConeProgram.of(None, q, A, ends, [NonnegativeCone(2)])).status)

    assert status(-1.0, 2.0) == Status.SOLVED
    assert status(-3.0, 2.0) == Status.PRIMAL_INFEASIBLE
    assert status(-1.0, 2.0) == Status.SOLVED
