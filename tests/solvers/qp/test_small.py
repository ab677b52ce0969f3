"""KKT matrices of small problems: the same solutions by either library, or none."""

import numpy as np
import pytest
from numpy.typing import NDArray

from solvers.qp import small

Floats = NDArray[np.float64]


def data(batch: int, n: int, rows: int) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """``P``, rows, which of them are active, and right-hand sides."""
    generator = np.random.default_rng(0)
    root = generator.normal(size=(batch, n, n))
    C = generator.normal(size=(batch, rows, n))
    active = generator.random((batch, rows)) < 0.4
    active[:, :2] = True
    right = generator.normal(size=(batch, n + rows))
    return root @ root.mT / n + 0.1 * np.eye(n), C, active, right


# The second and third are torch's, for their side and for their number.
SIZES = [(1, 6, 5), (1, 100, 80), (8, 40, 30), (3, 12, 9)]


@pytest.mark.parametrize(("batch", "n", "rows"), SIZES)
def test_solutions(batch: int, n: int, rows: int) -> None:
    P, C, active, right = data(batch, n, rows)
    found = small.kkt_solve(P, [C], active, right)
    assert found is not None
    for i in range(batch):
        Ca, a = C[i][active[i]], active[i]
        K = np.block([[P[i], Ca.T], [Ca, np.zeros((len(Ca), len(Ca)))]])
        wanted = np.linalg.solve(K, np.concatenate([right[i, :n], right[i, n:][a]]))
        np.testing.assert_allclose(found[i, :n], wanted[:n], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found[i, n:][a], wanted[n:], rtol=0, atol=1e-9)
        assert not found[i, n:][~a].any()


@pytest.mark.parametrize("entry", ["dependent", "zero", "nan"])
@pytest.mark.parametrize(("batch", "n", "rows"), SIZES)
def test_none_where_a_matrix_is_singular(batch: int, n: int, rows: int, entry: str) -> None:
    P, C, active, right = data(batch, n, rows)
    C[-1, 1] = {"dependent": C[-1, 0], "zero": 0.0, "nan": np.nan}[entry]
    assert small.kkt_solve(P, [C], active, right) is None


@pytest.mark.parametrize(
    ("batch", "n", "tried"), [(2, small.SIDE, False), (1, small.SIDE, True), (1, 220, False)]
)
def test_none_where_it_would_be_large(batch: int, n: int, tried: bool) -> None:
    P, C, active, right = data(batch, n, 2)
    assert (small.kkt_solve(P, [C], active, right) is not None) == tried
