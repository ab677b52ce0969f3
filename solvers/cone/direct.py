r"""Symmetric systems :math:`K = (P, C^\top; C, -\Lambda)` with semidefinite blocks, directly.

Such a matrix is singular where a solution is not unique, which canonical forms are full of (the
bound on a norm that is not active). Its null space is one of the first block times one of the
second; so :math:`K + \delta\,\mathrm{diag}(I, -I)`, never singular, has for a right-hand side in
the range of :math:`K` a solution near the one of least norm, and refinement goes there. Only where
that fails eigenvalues decide.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from .._threads import spread
from ..least_norm import least_norm
from .arrays import largest, product
from .factor import TINY, Solve, plan_of
from .sparse import Compressed

Floats = NDArray[np.float64]
# Of right-hand sides (B, side, columns), those that count (B) only.
Shifted = Callable[[Floats, NDArray[np.bool_]], Floats]
Times = Callable[[Floats], Floats]

# Up to this side a dense factorisation costs less than setting up a sparse one.
DENSE_SIDE = 160
# Share of entries from which a matrix counts as filled, and side up to which it may be.
FILLED, FILLED_SIDE = 0.25, 2000
# The shift, relative to the largest entry.
SHIFT = 1e-9
# Relative residual at which to stop refining, and from which a solution is none.
GOOD, BAD = 1e-14, 1e-9
ROUGH = 1e-5  # where the solution is a step of an iteration
REFINEMENTS = 6
# Negative eigenvalues of this size are rounding: for each variable, and of rough data.
INDEFINITE, ROUGHLY = 1e-14, 1e-5
# Side up to which eigenvalues are computed where a matrix is singular.
EIGENVALUES_SIDE = 2000


@np.errstate(all="ignore")
def are_semidefinite(P: Compressed, *, rough: bool = False) -> NDArray[np.bool_]:
    """Whether symmetric matrices, given by their upper triangles, are positive semidefinite.

    With a diagonal of ones, eigenvalues may be negative by rounding, which a ``rough`` matrix has
    more of. Most matrices show it by their diagonals alone.

    Args:
        P: A batch of finite matrices, or not; the others count as indefinite.
        rough: Whether the data have been rounded to less than double precision.

    Returns:
        One answer for each, ``(B)``.
    """
    n = P.shape[0]
    below = ROUGHLY if rough else n * INDEFINITE
    on = P.pattern.is_diagonal
    diagonal = P.data[:, on]
    good: NDArray[np.bool_] = np.all(diagonal >= 0, axis=1)
    if P.nnz == n:
        return good
    size = largest(P.data)
    ones = np.where(diagonal > 0, diagonal, np.where(size > 0, size, 1.0)[:, None])
    root = np.sqrt(np.where(good[:, None], ones, 1.0))
    P = P.with_data(P.data / (root[:, P.indices] * root[:, P.columns]))
    off = np.where(on, 0.0, abs(P.data))
    sums = P.pattern.summed(off, over_rows=True) + P.pattern.summed(off, over_rows=False)
    dominant = (P.data[:, on] - sums >= -below).all(1)
    for j in np.flatnonzero(good & ~dominant).tolist():
        good[j] = np.isfinite(size[j]) and _is_semidefinite(P.take(j), below)
    return good


def _is_semidefinite(P: Compressed, below: float) -> bool:
    """Whether no eigenvalue is further below zero."""
    n = P.shape[0]
    if n <= DENSE_SIDE or P.nnz > FILLED * n * n:
        shifted = torch.from_numpy(P.symmetric())
        shifted.diagonal().add_(below)
        return int(torch.linalg.cholesky_ex(shifted)[1]) == 0
    import qdldl

    data = P.data.copy()
    data[P.pattern.is_diagonal] += below
    try:
        pivots = qdldl.Solver(P.with_data(data), upper=True).factors()[1]
    except RuntimeError:  # a pivot is exactly zero
        return False
    return bool((pivots > 0).all())


def is_dense(side: int, entries: int) -> bool:
    """Whether a matrix with that many entries, or more, is best taken as a dense one."""
    return side <= DENSE_SIDE or (side <= FILLED_SIDE and entries > FILLED * side * side)


class Dense:
    """Dense matrices of one size, factored.

    Args:
        P: Symmetric ``(B, n, n)``, or one for all.
        C: ``(B, k, n)``.
        values: The diagonals of the last blocks, not negative ``(B, k)``.
    """

    def __init__(self, P: Floats, C: Floats, values: Floats) -> None:
        """Shift and factor."""
        count, k, n = C.shape
        # What MKL computes depends on whether a matrix begins at a multiple of 16 bytes: an odd
        # side gets one more row and column, so that in a batch they all do.
        self.odd = (n + k) % 2
        side = n + k + self.odd
        K = np.zeros((count, side, side))  # calls to numpy cost a third of those to torch
        K[:, :n, :n], K[:, n : n + k, :n], K[:, :n, n : n + k] = P, C, C.swapaxes(1, 2)
        diagonal = K.reshape(count, -1)[:, :: side + 1]
        diagonal[:, n : n + k] = -values
        largest = abs(K).max((1, 2), initial=0.0)
        self.finite = largest < np.inf  # False for NaN
        K[~self.finite] = 0.0
        if self.odd:
            diagonal[:, -1] = np.where(self.finite & (largest > 0.0), largest, 1.0)
        self.K = K
        shift = SHIFT * np.where(self.finite, np.maximum(largest, TINY), 1.0)[:, None]
        shifted = K.copy()
        shifted.reshape(count, -1)[:, : n * (side + 1) : side + 1] += shift
        shifted.reshape(count, -1)[:, n * (side + 1) :: side + 1] -= shift
        # LAPACK wants columns, of a symmetric matrix the same as rows.
        self.LU, self.pivots, _ = torch.linalg.lu_factor_ex(torch.from_numpy(shifted).mT)

    def take(self, which: NDArray[np.int64]) -> "Dense":
        """Some of them."""
        if len(which) == len(self.K):
            return self
        some = object.__new__(Dense)
        some.K, some.finite, some.odd = self.K[which], self.finite[which], self.odd
        index = torch.from_numpy(which)
        some.LU, some.pivots = self.LU[index], self.pivots[index]
        return some

    def _shifted(self, right: Floats, going: NDArray[np.bool_]) -> Floats:
        solution = torch.linalg.lu_solve(self.LU, self.pivots, torch.from_numpy(right))
        return solution.numpy()  # type: ignore[no-any-return]

    def solve(self, right: Floats, *, rough: bool = False) -> tuple[Floats, Floats]:
        """Solve for ``(B, side, columns)``; also the relative residuals ``(B, columns)``.

        A ``rough`` solution is good enough for a step of an iteration.
        """
        good, bad = (ROUGH, ROUGH) if rough else (GOOD, BAD)
        if self.odd:
            right = np.concatenate((right, np.zeros_like(right[:, :1])), 1)
        best, residual = refined(self._shifted, lambda t: product(self.K, t), right, good)
        own_rows = slice(best.shape[1] - self.odd)
        if self.finite.all() and not (residual > bad).any():
            return best[:, own_rows], residual
        unsolved = (residual > bad).any(1) & self.finite & np.isfinite(right).all((1, 2))
        for j in np.flatnonzero(unsolved).tolist():
            K, own = torch.from_numpy(self.K[j]), torch.from_numpy(right[j])
            best[j] = least_norm(K[None], own[None])[0].numpy()
            residual[j] = abs(right[j] - self.K[j] @ best[j]).max(0) / _size(right[j])
        best[~self.finite], residual[~self.finite] = np.nan, np.inf
        return best[:, own_rows], residual


class Sparse:
    """Sparse matrices, factored; all have the rows that a stack has, but each only some that count.

    Args:
        P: Upper triangles ``(n, n)``.
        CT: The transposed matrices ``C`` ``(n, m)``; rows that do not count are zero.
        values: The diagonals of the last blocks, not negative ``(B, m)``; 1 where rows do not
            count.
        counting: Which rows do ``(B, m)``.
    """

    def __init__(
        self, P: Compressed, CT: Compressed, values: Floats, counting: NDArray[np.bool_]
    ) -> None:
        """Shift and factor."""
        self.P, self.CT, self.values = P, CT, values
        self.plans = [plan_of(P.pattern, CT.pattern, rows) for rows in counting]
        self.shifted = spread(self._factored, range(len(values)))

    def take(self, which: NDArray[np.int64]) -> "Sparse":
        """Some of them."""
        if len(which) == len(self.shifted):
            return self
        some = object.__new__(Sparse)
        some.P, some.CT = self.P.take(which), self.CT.take(which)
        some.values = self.values[which]
        some.shifted = [self.shifted[j] for j in which.tolist()]
        some.plans = [self.plans[j] for j in which.tolist()]
        return some

    def _factored(self, j: int) -> Solve:
        return self.plans[j].factored(self.P.take(j).data, self.CT.take(j).data, self.values[j])

    def _solve_shifted(self, right: Floats, going: NDArray[np.bool_]) -> Floats:
        solution = np.zeros_like(right)

        def one(j: int) -> None:
            own = self.plans[j].own
            for column in range(right.shape[2]):
                solution[j, own, column] = self.shifted[j](right[j, own, column])

        spread(one, np.flatnonzero(going).tolist())
        return solution

    def _times(self, t: Floats) -> Floats:
        n = self.P.shape[0]
        result = np.empty_like(t)
        for column in range(t.shape[2]):
            x, nu = np.ascontiguousarray(t[:, :n, column]), np.ascontiguousarray(t[:, n:, column])
            result[:, :n, column] = self.P.symmetric_times(x) + self.CT.times(nu)
            result[:, n:, column] = self.CT.transposed_times(x) - self.values * nu
        return result

    def solve(self, right: Floats, *, rough: bool = False) -> tuple[Floats, Floats]:
        """As :meth:`Dense.solve`, for ``(B, n + m, columns)``."""
        good, bad = (ROUGH, ROUGH) if rough else (GOOD, BAD)
        best, residual = refined(self._solve_shifted, self._times, right, good)
        for j in np.flatnonzero((residual > bad).any(1) & np.isfinite(right).all((1, 2))).tolist():
            self._solve_singular(j, right[j], best[j], residual[j])
        return best, residual

    def _solve_singular(self, j: int, right: Floats, solution: Floats, residual: Floats) -> None:
        """The solution of least norm."""
        plan, own = self.plans[j], self.plans[j].own
        if len(own) <= EIGENVALUES_SIDE:
            P, C = self.P.take(j).symmetric(), self.CT.take(j).dense().T[plan.rows]
            dense = Dense(P[None], C[None], self.values[j, plan.rows][None])
            found, left = dense.solve(right[None, own])
            solution[own], residual[:] = found[0], left[0]
            return
        alone = self.take(np.array([j]))

        def times(t: Floats) -> Floats:
            full = np.zeros((1, len(right), 1))
            full[0, own, 0] = t
            return alone._times(full)[0, own, 0]  # type: ignore[no-any-return]

        for column in range(right.shape[1]):
            solution[own, column], residual[column] = _least_norm_iteratively(
                times, right[own, column]
            )


@np.errstate(all="ignore")
def refined(shifted: Shifted, times: Times, right: Floats, good: float) -> tuple[Floats, Floats]:
    """Refine what shifted matrices give, as long as that halves what is left of each column.

    Args:
        shifted: Solves with the shifted matrices.
        times: Multiplies with the matrices themselves.
        right: ``(B, side, columns)``.
        good: Relative residual at which to stop.

    Returns:
        The solutions, and their relative residuals ``(B, columns)``.
    """
    size = np.maximum(largest(right), TINY)
    best, left = np.zeros_like(right), right
    residual, going = np.ones_like(size), np.ones_like(size, bool)
    for _ in range(REFINEMENTS):
        solution = best + shifted(left, np.any(going, axis=1))
        after = right - times(solution)
        relative = largest(after) / size
        better = going & (relative < residual)
        going = better & (relative > good) & (relative <= 0.5 * residual)
        if better.all():
            best, left, residual = solution, after, relative
        else:
            best = np.where(better[:, None], solution, best)
            left = np.where(better[:, None], after, left)
            residual = np.where(better, relative, residual)
        if not going.any():
            break
    finite = np.isfinite(size)
    if not finite.all():
        best = np.where(finite[:, None], best, np.nan)
        residual = np.where(finite, residual, np.inf)
    return best, residual


def _least_norm_iteratively(times: Solve, right: Floats) -> tuple[Floats, float]:
    from scipy.sparse.linalg import LinearOperator, lsmr

    side = len(right)
    operator = LinearOperator((side, side), matvec=times, rmatvec=times, dtype=np.float64)
    solution: Floats = lsmr(operator, right, atol=1e-14, btol=1e-14, maxiter=10 * side)[0]
    return solution, float(abs(right - times(solution)).max(initial=0.0) / _size(right))


def _size(right: Floats) -> Floats:
    """The largest entry of each column."""
    size: Floats = np.maximum(abs(right).max(0, initial=0.0), TINY)
    return size
