r"""Symmetric systems :math:`K = (P, C^\top; C, -\Lambda)` with semidefinite blocks, directly.

Such a matrix is singular where a solution is not unique, which canonical forms are full of (the
bound on a norm that is not active). Its null space is one of the first block times one of the
second; so :math:`K + \delta\,\mathrm{diag}(I, -I)`, never singular, has for a right-hand side in
the range of :math:`K` a solution near the one of least norm, and refinement goes there. Only where
that fails eigenvalues decide.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..least_norm import least_norm
from .sparse import Compressed

if TYPE_CHECKING:
    import scipy.sparse as sp

Floats = NDArray[np.float64]
Solve = Callable[[Floats], Floats]

# Up to this side a dense factorisation costs less than setting up a sparse one.
DENSE_SIDE = 160
# Share of entries from which a matrix counts as filled, and side up to which it may be.
FILLED, FILLED_SIDE = 0.25, 2000
# Up to this side the factorisation that is quickest to set up is quickest altogether.
QDLDL_SIDE = 1500
# The shift, relative to the largest entry; without pivoting, rounding asks for a larger one.
SHIFT, SPARSE_SHIFT = 1e-9, 1e-8
# Relative residual at which to stop refining, and from which a solution is none.
GOOD, BAD = 1e-14, 1e-9
ROUGH = 1e-5  # where the solution is a step of an iteration
REFINEMENTS = 6
# Negative eigenvalues of this size are rounding: for each variable, and of rough data.
INDEFINITE, ROUGHLY = 1e-14, 1e-5
# Side up to which eigenvalues are computed where a matrix is singular.
EIGENVALUES_SIDE = 2000
TINY = float(np.finfo(np.float64).tiny)


def is_semidefinite(P: Compressed, *, rough: bool = False) -> bool:
    """Whether a symmetric matrix, given by its upper triangle, is positive semidefinite.

    With a diagonal of ones, eigenvalues may be negative by rounding, which a ``rough`` matrix has
    more of. Most matrices show it by their diagonals alone.
    """
    n = P.shape[0]
    below = ROUGHLY if rough else n * INDEFINITE
    diagonal = P.data[P.indptr[1:] - 1]
    if not (diagonal >= 0).all():
        return False
    root = np.sqrt(np.where(diagonal > 0, diagonal, abs(P.data).max(initial=0.0) or 1.0))
    P = Compressed(P.data / (root[P.indices] * root[P.columns]), P.indices, P.indptr, P.shape)
    off = abs(P.data) * (P.indices != P.columns)
    diagonal = P.data[P.indptr[1:] - 1]
    sums = np.bincount(P.indices, off, n) + np.bincount(P.columns, off, n)
    if (diagonal - sums >= -below).all():
        return True
    if n <= DENSE_SIDE or P.nnz > FILLED * n * n:
        shifted = torch.from_numpy(P.symmetric())
        shifted.diagonal().add_(below)
        return int(torch.linalg.cholesky_ex(shifted)[1]) == 0
    import qdldl
    import scipy.sparse as sp

    data = P.data.copy()
    data[P.indptr[1:] - 1] += below
    upper = sp.csc_matrix((data, P.indices, P.indptr), P.shape)
    try:
        pivots = qdldl.Solver(upper, upper=True).factors()[1]
    except RuntimeError:  # a pivot is exactly zero
        return False
    return bool((pivots > 0).all())


def is_dense(side: int, entries: int) -> bool:
    """Whether a matrix with that many entries, or more, is best taken as a dense one."""
    return side <= DENSE_SIDE or (side <= FILLED_SIDE and entries > FILLED * side * side)


class Dense:
    """A dense matrix, factored.

    Args:
        P: Symmetric ``(n, n)``.
        C: ``(k, n)``.
        values: The diagonal of the last block, not negative ``(k)``.
    """

    def __init__(self, P: Floats, C: Floats, values: Floats) -> None:
        """Shift and factor."""
        n, side = len(P), len(P) + len(values)
        K = np.zeros((side, side))  # calls to numpy cost a third of those to torch
        K[:n, :n], K[n:, :n], K[:n, n:] = P, C, C.T
        K.reshape(-1)[n * (side + 1) :: side + 1] = -values
        largest = float(abs(K).max(initial=0.0))
        self.K = torch.from_numpy(K)
        self.finite = largest < float("inf")  # False for NaN
        if self.finite and side:
            shift = SHIFT * max(largest, TINY)
            shifted = K.copy()
            shifted.reshape(-1)[: n * (side + 1) : side + 1] += shift
            shifted.reshape(-1)[n * (side + 1) :: side + 1] -= shift
            self.LU, self.pivots, _ = torch.linalg.lu_factor_ex(torch.from_numpy(shifted))

    def solve(self, right: Tensor) -> tuple[Tensor, float]:
        """Solve for ``(n + k, columns)``; also the largest relative residual."""
        if not right.numel():
            return right, 0.0
        if not (self.finite and bool(right.isfinite().all())):
            return torch.full_like(right, torch.nan), float("inf")
        size = right.abs().amax(0).clamp(min=TINY)
        best, left, residual = torch.zeros_like(right), right, float("inf")
        for _ in range(REFINEMENTS):
            solution = best + torch.linalg.lu_solve(self.LU, self.pivots, left)
            left = right - self.K @ solution
            relative = float((left.abs().amax(0) / size).max())
            if not relative < residual:
                break
            converged = relative <= GOOD or relative > 0.5 * residual
            best, residual = solution, relative
            if converged:
                break
        if residual > BAD:
            best = least_norm(self.K, right)
            residual = float(((right - self.K @ best).abs().amax(0) / size).max())
        return best, residual


class Sparse:
    """A sparse matrix, factored; see :class:`Dense`, but for ``P``, an upper triangle.

    Args:
        P: ``(n, n)``.
        C: ``(k, n)``.
        values: ``(k)``.
    """

    def __init__(self, P: Compressed, C: "sp.csr_array", values: Floats) -> None:
        """Shift and factor."""
        self.P, self.C, self.values = P, C, values
        self.transposed = C.T
        factored = _by_qdldl if P.shape[0] + len(values) <= QDLDL_SIDE else _by_clarabel
        self.shifted = factored(P, C, values)

    def _times(self, t: Floats) -> Floats:
        n = self.P.shape[0]
        x, nu = t[:n], t[n:]
        upper = self.P.symmetric_times(x) + self.transposed @ nu
        return np.concatenate((upper, self.C @ x - self.values * nu))

    def solve(self, right: Floats, *, rough: bool = False) -> tuple[Floats, float]:
        """Solve for ``(n + k, columns)``; also the largest relative residual.

        A ``rough`` solution is good enough for a step of an iteration.
        """
        good, bad = (ROUGH, ROUGH) if rough else (GOOD, BAD)
        solution, residual = np.zeros_like(right), np.zeros(right.shape[1])
        for j in range(right.shape[1]):
            solution[:, j], residual[j] = _refine(self.shifted, self._times, right[:, j], good)
        unsolved = np.flatnonzero(residual > bad)
        if len(unsolved) and len(right) <= EIGENVALUES_SIDE:
            columns = torch.from_numpy(right[:, unsolved])
            dense = Dense(self.P.symmetric(), self.C.toarray(), self.values)
            found, left = dense.solve(columns)
            solution[:, unsolved], residual[unsolved] = found.numpy(), left
        else:
            for j in unsolved.tolist():
                solution[:, j], residual[j] = _least_norm_iteratively(self._times, right[:, j])
        return solution, float(residual.max(initial=0.0))


def _refine(shifted: Solve, times: Solve, right: Floats, good: float) -> tuple[Floats, float]:
    """Refine what the shifted matrix gives; the solution and its relative residual."""
    size = max(float(abs(right).max(initial=0.0)), TINY)
    best, left = np.zeros_like(right), right
    residual = 1.0 if right.any() else 0.0
    for _ in range(REFINEMENTS):
        if residual <= good:
            break
        solution = best + shifted(left)
        left = right - times(solution)
        relative = float(abs(left).max()) / size
        if not relative < residual:
            break
        slow = relative > 0.5 * residual
        best, residual = solution, relative
        if slow:
            break
    return best, residual


def _by_qdldl(P: Compressed, C: "sp.csr_array", values: Floats) -> Solve:
    """One factorisation without pivoting, for many right-hand sides."""
    import qdldl  # imported when used, as what follows: they take their time
    import scipy.sparse as sp

    n, k = P.shape[0], len(values)
    C.sort_indices()
    largest = max(abs(P.data).max(initial=0.0), abs(C.data).max(initial=0.0), TINY)
    shift = SPARSE_SHIFT * largest
    # Columns of the upper triangle: those of P, whose diagonal is stored, then the rows of C.
    data = np.empty(P.nnz + C.nnz + k)
    indices = np.empty(len(data), np.int64)
    data[: P.nnz], indices[: P.nnz] = P.data, P.indices
    data[P.indptr[1:] - 1] += shift
    row = np.repeat(np.arange(k), np.diff(C.indptr))
    places = P.nnz + row + np.arange(C.nnz)
    data[places], indices[places] = C.data, C.indices
    ends = P.nnz + C.indptr[1:] + np.arange(k)
    data[ends], indices[ends] = -values - shift, n + np.arange(k)
    indptr = np.concatenate((P.indptr, ends + 1))
    upper = sp.csc_matrix((data, indices, indptr), (n + k, n + k))
    solve: Solve = qdldl.Solver(upper, upper=True).solve
    return solve


def _by_clarabel(P: Compressed, C: "sp.csr_array", values: Floats) -> Solve:
    r"""The blocked factorisation of Clarabel, several times as fast where factors fill up.

    To a program with equalities only its answer is the solution of one such system. Minimising
    :math:`\tfrac12 x^\top P x - r_x^\top x + \tfrac12 \|u\|^2` subject to :math:`C x +
    \Lambda^{1/2} u = r_\nu` leaves :math:`u = -\Lambda^{1/2} \nu` and :math:`C x - \Lambda \nu
    = r_\nu`. Every solve factors again.
    """
    import clarabel  # imported when used: it costs every other user of the package time

    n, k = P.shape[0], len(values)
    soft = np.flatnonzero(values)
    extra = len(soft)
    ends = np.arange(1, extra + 1)
    quadratic = Compressed(
        np.concatenate((P.data, np.ones(extra))),
        np.concatenate((P.indices, n + np.arange(extra))),
        np.concatenate((P.indptr, P.indptr[-1] + ends)),
        (n + extra, n + extra),
    )
    by_column = C.tocsc()
    rows = Compressed(
        np.concatenate((by_column.data, np.sqrt(values[soft]))),
        np.concatenate((by_column.indices, soft)),
        np.concatenate((by_column.indptr, by_column.indptr[-1] + ends)),
        (k, n + extra),
    )
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.presolve_enable, settings.max_threads = False, False, 1
    settings.max_iter = 1
    none = np.zeros(extra)

    def solve(right: Floats) -> Floats:
        linear, cones = np.concatenate((-right[:n], none)), [clarabel.ZeroConeT(k)]
        solver = clarabel.DefaultSolver(quadratic, linear, rows, right[n:], cones, settings)
        answer = solver.solve()
        return np.concatenate((answer.x[:n], answer.z))

    return solve


def _least_norm_iteratively(times: Solve, right: Floats) -> tuple[Floats, float]:
    from scipy.sparse.linalg import LinearOperator, lsmr

    side = len(right)
    operator = LinearOperator((side, side), matvec=times, rmatvec=times, dtype=np.float64)
    solution: Floats = lsmr(operator, right, atol=1e-14, btol=1e-14, maxiter=10 * side)[0]
    size = max(float(abs(right).max(initial=0.0)), TINY)
    return solution, float(abs(right - times(solution)).max(initial=0.0)) / size
