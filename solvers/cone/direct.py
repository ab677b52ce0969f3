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

# Up to this side a dense factorisation costs less than setting up a sparse one.
DENSE_SIDE = 160
# Share of entries from which a matrix counts as filled, and side up to which it may be.
FILLED, FILLED_SIDE = 0.25, 2000
# The shift, relative to the largest entry.
SHIFT = 1e-9
# Relative residual at which to stop refining, and from which a solution is none.
GOOD, BAD = 1e-14, 1e-9
SPARSE_GOOD = 1e-12  # where a step of refinement costs another factorisation
ROUGH = 1e-5  # where the solution is a step of an iteration
REFINEMENTS = 6
# Side up to which eigenvalues are computed where a matrix is singular.
EIGENVALUES_SIDE = 2000
TINY = float(np.finfo(np.float64).tiny)


def is_dense(side: int, entries: int) -> bool:
    """Whether a matrix with that many entries, or more, is best taken as a dense one."""
    return side <= DENSE_SIDE or (side <= FILLED_SIDE and entries > FILLED * side * side)


def solve_dense(P: Tensor, C: Tensor, values: Floats, right: Tensor) -> tuple[Tensor, float]:
    """Solve with a dense matrix.

    Args:
        P: Symmetric ``(n, n)``.
        C: ``(k, n)``.
        values: The diagonal of the last block, not negative ``(k)``.
        right: ``(n + k, columns)``.

    Returns:
        The solutions ``(n + k, columns)`` and the largest relative residual.
    """
    n = len(P)
    K = torch.cat(
        [torch.cat([P, C.mT], 1), torch.cat([C, -torch.diag(torch.from_numpy(values))], 1)]
    )
    if not right.numel():
        return right, 0.0
    if not (bool(K.isfinite().all()) and bool(right.isfinite().all())):
        return torch.full_like(right, torch.nan), float("inf")
    shift = SHIFT * max(float(K.abs().max()), TINY)
    shifted = K.clone()
    shifted.diagonal()[:n].add_(shift)
    shifted.diagonal()[n:].sub_(shift)
    LU, pivots = torch.linalg.lu_factor(shifted)
    size = right.abs().amax(0).clamp(min=TINY)
    best, left, residual = torch.zeros_like(right), right, float("inf")
    for _ in range(REFINEMENTS):
        solution = best + torch.linalg.lu_solve(LU, pivots, left)
        left = right - K @ solution
        relative = float((left.abs().amax(0) / size).max())
        if not relative < residual:
            break
        converged = relative <= GOOD or relative > 0.5 * residual
        best, residual = solution, relative
        if converged:
            break
    if residual > BAD:
        best = least_norm(K, right)
        residual = float(((right - K @ best).abs().amax(0) / size).max())
    return best, residual


def solve_sparse(
    P: Compressed, C: "sp.csc_array", values: Floats, right: Floats, *, rough: bool = False
) -> tuple[Floats, float]:
    """Solve with a sparse matrix; see :func:`solve_dense`, but for ``P``, an upper triangle.

    The sparse factorisation is Clarabel's, for whom a program with equalities only is one system
    of this kind, shifted and refined. A ``rough`` solution is not refined further.
    """
    n, C_rows = P.shape[0], C.tocsr()

    def times(t: Floats) -> Floats:
        x, nu = t[:n], t[n:]
        return np.concatenate((P.symmetric_times(x) + C.T @ nu, C_rows @ x - values * nu))

    solution, residual = np.empty_like(right), np.zeros(right.shape[1])
    for j in range(right.shape[1]):
        solution[:, j], residual[j] = _solve_column(
            P, C, values, times, right[:, j], ROUGH if rough else SPARSE_GOOD
        )
    bad = np.flatnonzero(residual > (ROUGH if rough else BAD))
    if len(bad) and len(right) <= EIGENVALUES_SIDE:
        blocks = torch.from_numpy(P.symmetric()), torch.from_numpy(C.toarray())
        found, left = solve_dense(*blocks, values, torch.from_numpy(right[:, bad]))
        solution[:, bad], residual[bad] = found.numpy(), left
    else:
        for j in bad.tolist():
            solution[:, j], residual[j] = _least_norm_iteratively(times, right[:, j])
    return solution, float(residual.max(initial=0.0))


def _solve_column(
    P: Compressed,
    C: "sp.csc_array",
    values: Floats,
    times: Callable[[Floats], Floats],
    right: Floats,
    good: float,
) -> tuple[Floats, float]:
    r"""One column, by a program with a variable more for each :math:`\lambda_i > 0`.

    Minimising :math:`\tfrac12 x^\top P x - r_x^\top x + \tfrac12 \|u\|^2` subject to
    :math:`C x + \Lambda^{1/2} u = r_\nu` leaves :math:`u = -\Lambda^{1/2} \nu` and so
    :math:`C x - \Lambda \nu = r_\nu`.
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
    rows = Compressed(
        np.concatenate((C.data, np.sqrt(values[soft]))),
        np.concatenate((C.indices, soft)),
        np.concatenate((C.indptr, C.indptr[-1] + ends)),
        (k, n + extra),
    )
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.presolve_enable, settings.max_threads = False, False, 1
    settings.max_iter = 1
    size = max(float(abs(right).max(initial=0.0)), TINY)
    best, left, solver = np.zeros(n + k), right, None
    residual = 1.0 if right.any() else 0.0
    for _ in range(REFINEMENTS):
        if residual <= good:
            break
        linear = np.concatenate((-left[:n], np.zeros(extra)))
        if solver is None:
            cones = [clarabel.ZeroConeT(k)]
            solver = clarabel.DefaultSolver(quadratic, linear, rows, left[n:], cones, settings)
        else:
            solver.update(q=linear, b=left[n:])
        answer = solver.solve()
        solution = best + np.concatenate((answer.x[:n], answer.z))
        left = right - times(solution)
        relative = float(abs(left).max()) / size
        if not relative < residual:
            break
        slow = relative > 0.1 * residual
        best, residual = solution, relative
        if slow:
            break
    return best, residual


def _least_norm_iteratively(
    times: Callable[[Floats], Floats], right: Floats
) -> tuple[Floats, float]:
    from scipy.sparse.linalg import LinearOperator, lsmr

    side = len(right)
    operator = LinearOperator((side, side), matvec=times, rmatvec=times, dtype=np.float64)
    solution: Floats = lsmr(operator, right, atol=1e-14, btol=1e-14, maxiter=10 * side)[0]
    size = max(float(abs(right).max(initial=0.0)), TINY)
    return solution, float(abs(right - times(solution)).max(initial=0.0)) / size
