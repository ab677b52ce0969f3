r"""A small problem, or a few: everything in numpy, because calls cost more than arithmetic.

With five variables the compiled solver takes a microsecond, a call to numpy half of one and a call
to torch two. So a handful of small, well-scaled, strictly convex problems goes straight to the
compiled solver as it is, and derivatives invert the KKT matrix itself. Whatever is not plain (bad
scaling, a failure, a residual that is not tiny, a matrix that is nearly singular) is left to the
methods that can deal with it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..solution import Status
from . import _daqp
from .judge import measure
from .quadratic_program import QuadraticProgram
from .rows import flat
from .solver import Outcome

Floats = NDArray[np.float64]

# Largest side of the KKT matrix of a problem on its own, and in a batch; and the largest number of
# entries of all of them together.
SIDE, BATCH_SIDE, ENTRIES = 130, 60, 40_000
# Largest side of KKT matrices that are inverted whole; beyond, factors of blocks are cheaper.
INVERSE_SIDE = 30
# The compiled solver drops tiny rows, and takes large Hessians for rows that are tiny.
SMALLEST, LARGEST = 1e-2, 1e2
# Condition number from which the inverse is not trusted.
CONDITION = 1e11


def is_small(batch: int, side: int) -> bool:
    """Whether this file should be tried at all."""
    if batch == 1:
        return side <= SIDE
    return batch > 0 and side <= BATCH_SIDE and batch * side * side <= ENTRIES


@np.errstate(all="ignore")
def solve(
    problem: QuadraticProgram, eps_abs: float, eps_rel: float, max_iter: int
) -> tuple[Outcome, NDArray[np.bool_]] | None:
    """Solve what is plain.

    Returns:
        The outcome, and a mask ``(B)`` of the problems that are solved; the others hold rubbish.
        None if there is nothing small here.
    """
    shape, n, p, m = problem.batch_shape, problem.n, problem.p, problem.m
    batch = shape.numel()
    boxed = problem.lb is not None or problem.ub is not None
    count = p + m + (n if boxed else 0)
    if problem.P is None or problem.q.device.type != "cpu" or not is_small(batch, n + count):
        return None

    def array(t: Tensor | None, core: int) -> Any:
        return None if t is None else flat(t, core, shape).numpy()

    C = np.empty((batch, count, n))
    upper, lower = np.empty((batch, count)), np.empty((batch, count))
    if p:
        C[:, :p], b = array(problem.A, 2), array(problem.b, 1)
        upper[:, :p], lower[:, :p] = b, b
    if m:
        C[:, p : p + m], upper[:, p : p + m] = array(problem.G, 2), array(problem.h, 1)
        lower[:, p : p + m] = -np.inf
    if boxed:
        C[:, p + m :] = np.eye(n)
        lower[:, p + m :] = -np.inf if problem.lb is None else array(problem.lb, 1)
        upper[:, p + m :] = np.inf if problem.ub is None else array(problem.ub, 1)
    P, q = array(problem.P, 2), array(problem.q, 1)
    P = 0.5 * (P + P.mT)
    scale = abs(P).max((-2, -1))
    plain = (scale > SMALLEST) & (scale < LARGEST)  # False for NaN
    if count:
        size = abs(C).max(-1)
        plain = plain & (size.min(-1) > SMALLEST) & (size.max(-1) < LARGEST)
    if not plain.any():
        return None
    fixed = lower == upper
    sense = np.where(fixed, np.int32(5), np.int32(0))
    data = (P, q, C, upper, lower, sense)
    if batch == 1:
        x, nu, settled, iterations = _daqp.solve_one(*data, max_iter)
    else:
        wanted = np.broadcast_to(plain, batch)
        x, nu, claims, iterations = _daqp.solve_batch(
            *data, batch, max_iter, wanted, proximal=False
        )
        settled = claims == Status.SOLVED
    Cx, objective, primal, dual, gap, error = measure(
        np, (P, q, C, lower, upper, x, nu), eps_abs, eps_rel
    )
    solved = settled & plain & (error <= 1.0)
    side = (fixed & (nu == 0)) + np.sign(nu).astype(np.int8)
    slack = upper[:, p : p + m] - Cx[:, p : p + m]
    status = np.zeros(batch, np.int64)
    arrays = (x, nu, slack, objective, status, iterations, primal, dual, gap, side)
    (*tensors,) = map(torch.from_numpy, arrays)
    return Outcome.of(tensors), solved


def kkt_solver(
    P: Floats, C: Floats, active: NDArray[np.bool_]
) -> Callable[[Floats], Floats] | None:
    r"""Solve with the KKT matrices on the active rows; None if one of them is not safely regular.

    Args:
        P: Symmetric ``(1 or B, n, n)``.
        C: ``(1 or B, rows, n)``.
        active: Boolean ``(B, rows)``.

    Returns:
        A function from right-hand sides ``(B, n + rows)`` to solutions of the same shape, which are
        zero on the rows that are not active.
    """
    batch, count = active.shape
    n = P.shape[-1]
    if batch == 1:
        return _one_solver(P[0], C[0], active[0]) if n + count <= SIDE else None
    if n + count > INVERSE_SIDE or batch * (n + count) ** 2 > ENTRIES:
        return None
    K = np.zeros((batch, n + count, n + count))
    K[:, :n, :n] = P
    K[:, n:, :n] = C * active[..., None]
    K[:, :n, n:] = K[:, n:, :n].mT
    diagonal = np.arange(n, n + count)
    K[:, diagonal, diagonal] = ~active  # an identity for the rows that are not active
    try:
        inverse = np.linalg.inv(K)
    except np.linalg.LinAlgError:
        return None
    condition = abs(K).sum(-1).max(-1) * abs(inverse).sum(-1).max(-1)
    if not (condition < CONDITION).all():
        return None

    def solve(right: Floats) -> Floats:
        right[:, n:] *= active
        return (inverse @ right[..., None])[..., 0]

    return solve


def _one_solver(
    P: Floats, C: Floats, active: NDArray[np.bool_]
) -> Callable[[Floats], Floats] | None:
    """One problem: only its active rows, by LU with a condition estimate."""
    from scipy.linalg import lapack

    n = len(P)
    index = np.flatnonzero(active)
    K = np.zeros((n + len(index), n + len(index)), order="F")
    K[:n, :n] = P
    K[n:, :n] = C[index]
    K[:n, n:] = K[n:, :n].T
    LU, pivots, info = lapack.dgetrf(K)
    if info or lapack.dgecon(LU, abs(K).sum(0).max())[0] < 1 / CONDITION:
        return None
    rows = np.concatenate((np.arange(n), n + index))

    def solve(right: Floats) -> Floats:
        solution = np.zeros_like(right)
        solution[0, rows] = lapack.dgetrs(LU, pivots, right[0, rows])[0]
        return solution

    return solve
