"""Small dense systems, by compiled code and without, against numpy."""

import ctypes
import math

import numpy as np
import pytest
import torch

from solvers import _native
from solvers.systems import LARGE, ratios, solve_both

PRECISION = {torch.float64: 1e-11, torch.float32: 1e-3}


def systems(batch, n, columns=1, dtype=torch.float64):
    rng = np.random.default_rng(n)
    arrays = (rng.standard_normal(s) for s in [(batch, n, n), (columns, batch, n), (batch, n)])
    return [torch.tensor(a).to(dtype) for a in arrays]


@pytest.fixture(params=[True, False], ids=["compiled", "torch"])
def compiled(request, monkeypatch):
    assert _native.library() is not None
    if not request.param:
        monkeypatch.setattr(_native, "library", lambda: None)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("n", [*range(1, 14), 31, 64, LARGE - 1, LARGE])
def test_systems_are_solved(n, crossed, dtype, compiled):
    M, v, w = systems(3, n, 2, dtype)
    u, x = solve_both(M, v, w, crossed=crossed)
    assert (u.shape, x.shape, u.dtype, x.dtype) == (v.shape, w.shape, dtype, dtype)
    A = M.double().numpy()
    wanted_u = np.linalg.solve(A, v.double().numpy()[..., None])[..., 0]
    other = A.transpose(0, 2, 1) if crossed else A
    wanted_x = np.linalg.solve(other, w.double().numpy()[..., None])[..., 0]
    for found, wanted in ((u, wanted_u), (x, wanted_x)):
        error = np.linalg.norm(found.double().numpy() - wanted, axis=-1)
        assert (error <= PRECISION[dtype] * np.linalg.norm(wanted, axis=-1)).all()


def test_rows_are_exchanged_where_pivots_are_zero_or_small(compiled):
    tiny = 1e-18
    M = torch.tensor([[[tiny, 1.0], [1.0, 1.0]], [[0.0, 2.0], [3.0, 0.0]]], dtype=torch.float64)
    v = torch.tensor([[[1.0, 2.0], [4.0, 9.0]]], dtype=torch.float64)
    u, x = solve_both(M, v, v[0], crossed=True)
    assert u[0].tolist() == [[1.0, 1.0], [3.0, 2.0]]
    torch.testing.assert_close((M.mT @ x[..., None])[..., 0], v[0], rtol=1e-15, atol=1e-15)


def test_any_layout(compiled):
    M, v, w = systems(4, 6, 2)
    wanted = solve_both(M, v, w)
    across = M.mT.contiguous().mT
    spread = torch.stack([M, M], -1)[..., 1]
    for layout in (across, spread, torch.cat([M, M])[:4]):
        found = solve_both(layout, v.movedim(0, 2).contiguous().movedim(2, 0), w.mT.clone().mT)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    negative = torch.complex(torch.zeros_like(w), -w).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(solve_both(M, v, negative)[1], wanted[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 5, 8, 33])
def test_a_system_does_not_depend_on_its_company(n):
    M, v, w = systems(7, n)
    u, x = solve_both(M, v, w)
    for i in range(7):
        alone = solve_both(M[i : i + 1], v[:, i : i + 1], w[i : i + 1])
        assert torch.equal(alone[0], u[:, i : i + 1])
        assert torch.equal(alone[1], x[i : i + 1])


@pytest.mark.parametrize("n", [1, 3, 9])
def test_singular_matrices_do_not_pass_for_solved_ones(n, compiled):
    M, v, w = systems(3, n)
    M[1] = torch.outer(w[0], w[1]) if n > 1 else 0.0
    u, x = solve_both(M, v, w)
    left = (M @ u[0][..., None])[..., 0] - v[0]
    good = left.norm(dim=-1) < 1e-10
    assert good.tolist() == [True, False, True]
    assert x[[0, 2]].isfinite().all()


@pytest.mark.parametrize("crossed", [False, True])
def test_without_memory_torch_solves(crossed, monkeypatch):
    class Library:
        @staticmethod
        def optlayers_lu(address):
            ctypes.cast(address, ctypes.POINTER(ctypes.c_int64))[11] = 1  # its word for that

    M, v, w = systems(3, 5)
    wanted = solve_both(M.mT, v, w, crossed=crossed)
    monkeypatch.setattr(_native, "library", Library)
    for found, right in zip(solve_both(M.mT, v, w, crossed=crossed), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_solve(shape, compiled):
    batch, n = shape
    M, v, w = systems(batch, n)
    u, x = solve_both(M, v, w)
    assert (u.shape, x.shape) == ((1, batch, n), (batch, n))
    found, largest = ratios(v, v, 1.0)
    assert (found.shape, largest) == ((1, batch), 0.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ratios_of_lengths(dtype, compiled):
    a = torch.tensor([[[3.0, 4.0], [0.0, 0.0]], [[6.0, 8.0], [1.0, 0.0]]], dtype=dtype)
    b = torch.tensor([[[0.0, 2.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 0.0]]], dtype=dtype)
    found, largest = ratios(a, b, 0.5)
    assert found.tolist() == [[2.0, 0.0], [10.0 / 4.5, 2.0]] or found.dtype == torch.float32
    torch.testing.assert_close(found.double()[1, 0].item(), 10 / 4.5, rtol=1e-6, atol=0)
    assert largest == pytest.approx(10 / 4.5, rel=1e-6)
    least = torch.tensor([2.1, 0.25], dtype=dtype)
    found, largest = ratios(a, b, 0.5, least)
    torch.testing.assert_close(
        found.double(),
        torch.tensor([[2.1, 0.25], [10 / 4.5, 2.0]], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )
    assert largest == pytest.approx(10 / 4.5, rel=1e-6)


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_is_the_largest_ratio(where, compiled):
    a = torch.ones(3, 2, dtype=torch.float64)
    a[where, 0] = torch.nan
    found, largest = ratios(a, torch.ones_like(a), 0.0)
    assert math.isnan(largest)
    assert found.isnan().tolist() == [i == where for i in range(3)]
    least = torch.full((3,), 0.5, dtype=torch.float64)
    least[where] = torch.nan
    found, largest = ratios(torch.ones_like(a), torch.ones_like(a), 0.0, least)
    assert math.isnan(largest)
    assert found.isnan().tolist() == [i == where for i in range(3)]
    a[where, 0] = torch.inf
    assert ratios(a, torch.ones_like(a), 1.0)[1] == math.inf
