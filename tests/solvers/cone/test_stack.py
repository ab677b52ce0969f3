"""Programs stacked by their patterns, products with them, and their linear systems."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from optlayers.solvers import Clarabel, ConeProgram, Solution, Status
from solvers.cone import ExponentialCone, NonnegativeCone, SecondOrderCone, ZeroCone, direct, stack
from solvers.cone.boundary import Boundary
from solvers.cone.kkt import Linearised
from solvers.cone.sparse import Assembly, Compressed
from solvers.cone.stack import stacks_of
from tests.solvers.cone.problems import PLANTED, planted, program

Floats = NDArray[np.float64]
CONES = (ZeroCone(2), SecondOrderCone(4), NonnegativeCone(3), ExponentialCone(), ExponentialCone())
OUTPUTS = ("x", "s", "z", "objective", "status", "iterations", "primal_residual")


def of_many_patterns(batch: int = 9) -> ConeProgram:
    """Programs with zeros of their own in ``A``, in three patterns, one badly scaled."""
    known = planted(3, *CONES, batch=(batch,))
    data = {name: t.clone() for name, t in known.data.items()}
    for i in range(batch):
        data["A"][i, 2 + i % 3, 0] = 0.0
    data["q"][4] *= 1e5
    data["P"][4] *= 1e5
    return program(data, known.cones)


def alone(whole: ConeProgram, i: int) -> Solution:
    assert whole.P is not None
    parts = whole.P.values[i], whole.q[i], whole.A.values[i], whole.b[i]
    return Clarabel().solve(ConeProgram.of(*parts, whole.cones.cones))


def test_programs_of_different_patterns_come_out_as_alone() -> None:
    """To the last bit, each in its place."""
    whole = of_many_patterns()
    assert len(stacks_of(whole)) == 3
    together = Clarabel().solve(whole)
    assert (together.status <= Status.SOLVED_INACCURATE).all()
    for i in range(9):
        single = alone(whole, i)
        for name in OUTPUTS:
            assert torch.equal(getattr(single, name), getattr(together, name)[i]), (i, name)


def test_stacks_that_are_cut_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = planted(5, *CONES, batch=(7,)).program()
    together = Clarabel().solve(whole)
    monkeypatch.setattr(stack, "STACKED_NUMBERS", 1)
    assert [len(part) for part in stacks_of(whole)] == [1] * 7
    apart = Clarabel().solve(whole)
    for name in OUTPUTS:
        assert torch.equal(getattr(together, name), getattr(apart, name)), name


def test_a_stack_has_the_programs_that_are_asked_for() -> None:
    whole = of_many_patterns()
    stacks = stacks_of(whole, [1, 4, 7, 8])
    assert sorted(i for part in stacks for i in part.numbers.tolist()) == [1, 4, 7, 8]
    for part in stacks:
        for j, i in enumerate(part.numbers.tolist()):
            A = part[j].A.dense()
            scaling = part.scaling
            if scaling is not None:
                A = A / scaling.rows[j][:, None] / scaling.columns[j]
            np.testing.assert_allclose(A, whole.A.values[i].numpy(), rtol=1e-14, atol=0)


def random_entries(seed: int, *, upper: bool) -> tuple[Compressed, Floats]:
    """Three matrices with entries that meet, an empty row and an empty column; also dense."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(0, 5, 14), rng.integers(0, 6, 14)
    shape = (6, 6) if upper else (6, 7)
    values = rng.normal(size=(3, 14))
    dense = np.zeros((3, *shape))
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        dense[:, i, j] += values[:, k]
    if upper:
        dense = 0.5 * (dense + dense.swapaxes(1, 2))
    return Assembly(rows, columns, shape, upper=upper).of(values), dense


@pytest.mark.parametrize("seed", range(3))
def test_products_are_those_of_the_dense_matrices(seed: int) -> None:
    A, dense = random_entries(seed, upper=False)
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(3, 7)), rng.normal(size=(3, 6))
    np.testing.assert_allclose(A.dense(), dense, rtol=0, atol=1e-15)
    np.testing.assert_allclose(A.times(x), np.einsum("bij,bj->bi", dense, x), atol=1e-14)
    np.testing.assert_allclose(A.transposed_times(y), np.einsum("bij,bi->bj", dense, y), atol=1e-14)
    absolute = abs(A.data)
    for of_rows, axis in ((True, 2), (False, 1)):
        largest = A.pattern.largest(absolute, of_rows=of_rows)
        np.testing.assert_array_equal(largest, abs(A.dense()).max(axis))
    P, symmetric = random_entries(seed, upper=True)
    np.testing.assert_allclose(P.symmetric(), symmetric, rtol=0, atol=1e-15)
    x = rng.normal(size=(3, 6))
    expected = np.einsum("bij,bj->bi", symmetric, x)
    np.testing.assert_allclose(P.symmetric_times(x), expected, atol=1e-14)
    for j in range(3):
        np.testing.assert_array_equal(A.take(j).times(np.ones(7)), A.times(np.ones((3, 7)))[j])


@pytest.mark.parametrize("mu", [0.0, 0.1])
def test_sparse_systems_have_the_solutions_of_dense_ones(
    monkeypatch: pytest.MonkeyPatch, mu: float
) -> None:
    """And both those of the conditions, written with the derivative of the projection."""
    known = planted(7, *CONES[1:], batch=(4,))
    (whole,) = stacks_of(known.program())
    rng = np.random.default_rng(0)
    v = rng.normal(size=(4, whole.b.shape[1]))
    s = whole.cones.project(torch.from_numpy(v), mu).numpy()
    boundary = Boundary(whole.cones, v, s, mu)
    r_x, r_s = rng.normal(size=(4, whole.n, 2)), rng.normal(size=(4, v.shape[1], 2))
    by_lu = Linearised(whole, boundary).solve(r_x, r_s)
    some = np.array([1, 3])
    part = Linearised(whole, boundary).solve(r_x[some], r_s[some], some)
    np.testing.assert_allclose(part.x, by_lu.x[some], rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(direct, "DENSE_SIDE", 0)
    monkeypatch.setattr(direct, "FILLED", 1.0)
    sparsely = Linearised(whole, boundary)
    assert all(isinstance(part.systems, direct.Sparse) for part in sparsely.parts)
    by_ldl = sparsely.solve(r_x, r_s)
    part = sparsely.solve(r_x[some], r_s[some], some)
    np.testing.assert_allclose(part.z, by_ldl.z[some], rtol=1e-12, atol=1e-12)
    for found in (by_lu, by_ldl):
        assert found.residual.max() < 1e-12
        np.testing.assert_allclose(found.x, by_lu.x, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(found.z, by_lu.z, rtol=1e-8, atol=1e-9)
        P, A = whole.P.symmetric(), whole.A.dense()
        np.testing.assert_allclose(P @ found.x + A.swapaxes(1, 2) @ found.z, r_x, atol=1e-9)
        ds = torch.from_numpy(r_s - A @ found.x).mT
        dv = ds - torch.from_numpy(found.z).mT
        at = torch.from_numpy(v)[:, None].expand_as(dv)
        torch.testing.assert_close(whole.cones.derivative(at, dv, mu), ds, rtol=0, atol=1e-9)


def test_data_that_no_solver_can_use_are_told_apart() -> None:
    known = planted(2, *CONES, batch=(4,))
    data = {name: t.clone() for name, t in known.data.items()}
    data["q"][0, 0] = torch.nan
    data["P"][2] = -torch.eye(data["P"].shape[-1])
    usable = [
        i for part in stacks_of(program(data, known.cones)) for i in part.numbers[part.usable()]
    ]
    assert sorted(usable) == [1, 3]


@pytest.mark.parametrize("name", list(PLANTED)[::7])
def test_programs_that_share_a_matrix_come_out_as_with_copies(name: str) -> None:
    known = PLANTED[name]()
    data = known.data
    q = torch.stack([data["q"], 1.01 * data["q"], data["q"]])
    shared = Clarabel().solve(program(data | {"q": q}, known.cones))
    copies = {
        key: None if t is None else t.expand(3, *t.shape).clone()
        for key, t in (data | {"q": data["q"]}).items()
    }
    copied = Clarabel().solve(program(copies | {"q": q}, known.cones))
    for output in OUTPUTS:
        assert torch.equal(
            getattr(shared, output).nan_to_num(7.0), getattr(copied, output).nan_to_num(7.0)
        )
