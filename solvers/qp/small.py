r"""A small problem, or a few: everything in numpy, because calls cost more than arithmetic.

With five variables the compiled solver takes a microsecond, a call to numpy half of one and a call
to torch two. So a handful of small, well-scaled, strictly convex problems goes straight to the
compiled solver as it is, and derivatives solve with the KKT matrix itself. Whatever is not plain
(bad scaling, a failure, a residual that is not tiny, a matrix that is nearly singular) is left to
the methods that can deal with it.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._threads import calm
from ..batch import flat
from ..solution import Status
from . import _daqp
from .judge import NUMPY, measure
from .quadratic_program import QuadraticProgram
from .solver import Outcome

Floats = NDArray[np.float64]

# Largest side of a KKT matrix, of one problem's and of several's, and largest number of entries of
# all of them together: where calls stop to matter, batched Cholesky factors win, first in the
# derivatives.
SIDE_ALONE, SIDE, ENTRIES = 220, 130, 130_000
# Matrices of this side, if there are as many entries in all, are factored by torch's library.
# Numpy's is slower there, and has threads from a side of 100 on: with one of two cores busy
# elsewhere, 0.1 ms became a hundred.
TORCHS_SIDE, TORCHS_ENTRIES = 32, 10_000
# Lengths of rows, and of the longest row of the Hessian, between which all is plain: the compiled
# solver drops tiny rows, and takes large Hessians for rows that are tiny.
SMALLEST, LARGEST = 1e-2, 1e2
# Condition number, as a solution shows it, from which the solution is not trusted.
CONDITION = 1e10
# Its multiples modulo one are nowhere near each other.
GOLDEN = 0.5 * (1 + 5**0.5)


def is_small(batch: int, side: int) -> bool:
    """Whether this file should be tried at all."""
    largest = SIDE if batch > 1 else SIDE_ALONE
    return batch > 0 and side <= largest and batch * side * side <= ENTRIES


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

    M = np.empty((batch, n + count, n))  # the Hessian, and below it the rows
    P, C = M[:, :n], M[:, n:]
    upper, lower = np.empty((batch, count)), np.empty((batch, count))
    given = array(problem.P, 2)
    np.add(given, given.mT, out=P)
    P *= 0.5
    q = array(problem.q, 1)
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
    square = np.vecdot(M, M)
    largest, of_P = np.maximum.reduce(square, -1), np.maximum.reduce(square[:, :n], -1)
    smallest = np.minimum.reduce(square[:, n:], -1, initial=np.inf)
    # False for NaN.
    plain = (np.minimum(smallest, of_P) > SMALLEST**2) & (largest < LARGEST**2)
    if not plain.any():
        return None
    fixed = lower == upper
    sense = np.multiply(fixed, _daqp.EQUALITY, dtype=np.int32)
    data = (P, q, C, upper, lower, sense)
    if batch == 1:
        x, nu, settled, iterations = _daqp.solve_one(*data, max_iter)
    else:
        x, nu, claims, iterations = _daqp.solve_batch(*data, batch, max_iter, plain, proximal=False)
        settled = claims == Status.SOLVED
    products = (M @ x[..., None])[..., 0]
    Px, Cx = products[:, :n], products[:, n:]
    pull = (nu[:, None] @ C)[:, 0]
    _, objective, primal, dual, gap, error = measure(
        NUMPY, x, q, nu, lower, upper, Px, Cx, pull, eps_abs, eps_rel
    )
    solved = settled & plain & (error <= 1.0)
    side = (fixed & (nu == 0)) + np.sign(nu).astype(np.int8)
    slack = upper[:, p : p + m] - Cx[:, p : p + m]
    status = np.zeros(batch, np.int64)
    arrays = (x, nu, slack, objective, status, iterations, primal, dual, gap, side)
    (*tensors,) = map(torch.from_numpy, arrays)
    return Outcome.of(tensors), solved


def kkt_solve(
    P: Floats | None, parts: Sequence[Floats], active: NDArray[np.bool_], right: Floats
) -> Floats | None:
    r"""Solve with the KKT matrices on the active rows; None if one is not safely regular, or large.

    Args:
        P: ``(1 or B, n, n)``; None for zero.
        parts: The matrices of equalities and inequalities, each ``(1 or B, some rows, n)``.
        active: Boolean ``(B, rows)``; rows beyond those of ``parts`` are bounds.
        right: ``(B, n + rows)``; only active entries count.

    Returns:
        Solutions of the shape of ``right``, zero on the rows that are not active.
    """
    batch, count = active.shape
    side = right.shape[-1]
    n = side - count
    if not is_small(batch, side):
        return None
    C, low = np.empty((batch, count, n)), 0
    for part in parts:
        C[:, low : low + part.shape[-2]] = part
        low += part.shape[-2]
    if low < count:
        C[:, low:] = np.eye(n)
    # Room for as many active rows as there are at most; an identity where there are fewer.
    counts = np.add.reduce(active, -1)
    most = int(np.maximum.reduce(counts))
    taken = np.arange(most) < counts[:, None]
    side = n + most
    K = np.zeros((batch, side, side))
    if P is not None:
        symmetric = K[:, :n, :n]
        np.add(P, P.mT, out=symmetric)
        symmetric *= 0.5
    K[:, n:, :n][taken] = C[active]
    K[:, :n, n:] = K[:, n:, :n].mT
    entries = K.reshape(batch, -1)
    entries[:, n * (side + 1) :: side + 1] = ~taken
    both = np.zeros((batch, side, 2))
    both[:, :n, 0], both[..., 1] = right[:, :n], _probe(side)
    both[:, n:, 0][taken] = right[:, n:][active]
    solved = _solve_lu(K, both)
    if solved is None:
        return None
    # Row by row, for products of 10 000 entries and more have threads, as above.
    size = np.sqrt(np.add.reduce(np.vecdot(K, K), -1))
    if not (size * np.maximum.reduce(abs(solved[..., 1]), -1) < CONDITION).all():
        return None
    solution = np.zeros_like(right)
    solution[:, :n], solution[:, n:][active] = solved[:, :n, 0], solved[:, n:, 0][taken]
    return solution


def _solve_lu(K: Floats, right: Floats) -> Floats | None:
    """Solutions by LU, of torch's library where numpy's would use threads and wait for them."""
    if K.shape[-1] < TORCHS_SIDE or K.size < TORCHS_ENTRIES:
        try:
            return np.asarray(np.linalg.solve(K, right), np.float64)
        except np.linalg.LinAlgError:
            return None
    with calm():
        solved, info = torch.linalg.solve_ex(torch.from_numpy(K), torch.from_numpy(right))
    return None if info.numpy().any() else solved.numpy()


@cache
def _probe(size: int) -> Floats:
    """A vector in no special position, whose solution tells whether a matrix is regular."""
    probe: Floats = np.arange(1.0, 1 + size) * GOLDEN % 1 - 0.5
    return probe
