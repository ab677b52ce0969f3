"""A batch of problems through DAQP, one after the other in as many threads as pay."""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _threads
from ..solution import Status

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]

# How the library is told of equalities, and of rows that are guessed to be active.
EQUALITY, UPPER, LOWER = 5, 1, 3
# Violations below this are not seen; the default 1e-6 misses constraints, 1e-13 breaks the method.
PRIMAL_TOLERANCE = 1e-11
# Proximal iterations for a singular Hessian stop at this step.
PROXIMAL_TOLERANCE = 1e-12

FLAGS = {
    1: Status.SOLVED,
    -1: Status.PRIMAL_INFEASIBLE,
    -6: Status.PRIMAL_INFEASIBLE,  # equalities that contradict each other
    -3: Status.DUAL_INFEASIBLE,
    -4: Status.MAX_ITERATIONS,
}


def solve_batch(
    H: Floats | None,
    f: Floats | None,
    A: Floats,
    upper: Floats,
    lower: Floats,
    sense: Ints,
    batch: int,
    max_iter: int,
    wanted: NDArray[np.bool_] | None = None,
    loose: float = 1e-9,
) -> tuple[Floats, Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Minimise x'Hx/2 + f'x subject to lower <= A x <= upper for each problem.

    Args:
        H: ``(1 or B, n, n)`` or None for the identity (with ``f`` None) or zero.
        f: ``(1 or B, n)`` or None.
        A: ``(1 or B, rows, n)``.
        upper: ``(1 or B, rows)``.
        lower: ``(1 or B, rows)``.
        sense: ``(1 or B, rows)``; EQUALITY, or UPPER and LOWER to guess that a row is active at
            that end, or zero.
        batch: Number of problems B.
        max_iter: Iterations for each.
        wanted: Which to solve ``(B)``; by default all.
        loose: Tolerance with which problems that look infeasible are asked again: rows that depend
            on each other contradict each other by rounding. The verdict is the caller's.

    Returns:
        ``x`` ``(B, n)``, multipliers ``(B, rows)``, statuses and iterations ``(B)``. Problems that
        failed have NaN in the first two.
    """
    import daqp

    rows, n = A.shape[-2:]
    given = [None if t is None else _contiguous(t) for t in (H, f, A, upper, lower, sense)]
    x, lam = np.empty((batch, n)), np.empty((batch, rows))
    flags, iterations = np.zeros(batch, np.int32), np.zeros(batch, np.int32)
    if wanted is None:
        wanted = np.ones(batch, np.bool_)

    def solve(low: int, high: int, chosen: NDArray[np.bool_], tolerance: float) -> None:
        for i in (np.flatnonzero(chosen[low:high]) + low).tolist():
            x[i], _, flags[i], info = daqp.solve(
                *(None if t is None else t[i if len(t) > 1 else 0] for t in given),
                primal_tol=tolerance,
                eps_prox=-1e-6,  # where it is needed
                eta_prox=PROXIMAL_TOLERANCE,
                iter_limit=max_iter,
                eq_reduction=-1,
            )
            lam[i], iterations[i] = info["lam"], info["iterations"]

    ranges = _ranges(batch, n, rows)
    _threads.run([partial(solve, *ends, wanted, PRIMAL_TOLERANCE) for ends in ranges])
    if (flags == 1).all():
        return x, lam, np.zeros(batch, np.int64), iterations.astype(np.int64)
    infeasible = wanted & ((flags == -1) | (flags == -6))
    if infeasible.any():
        tolerance = max(loose, PRIMAL_TOLERANCE)
        _threads.run([partial(solve, *ends, infeasible, tolerance) for ends in ranges])
    status = np.full(batch, int(Status.NUMERICAL_ERROR), dtype=np.int64)
    for flag, outcome in FLAGS.items():
        status[flags == flag] = outcome
    failed = flags != 1
    if failed.any():  # what the library leaves there is uninitialised memory
        x[failed], lam[failed] = np.nan, np.nan
    return x, lam, status, iterations.astype(np.int64)


def _contiguous(t: NDArray[Any]) -> NDArray[Any]:
    """Each problem's part in one piece: the library takes pointers, and would read others wrong."""
    return t if len(t) and t[0].flags.c_contiguous else np.ascontiguousarray(t)


def _ranges(batch: int, n: int, rows: int) -> list[tuple[int, int]]:
    """Split the batch over threads if that pays: solves of 15 us or more, 1 ms in all."""
    steps = min(n, rows) / 2
    microseconds = steps * (rows * n + steps**2) / 5000
    if microseconds < 15 or microseconds * batch < 1000:
        return [(0, batch)]
    return _threads.split(batch, _threads.available())
