"""A batch of small problems through DAQP's C function, with half a microsecond of overhead each.

``daqp.solve`` spends some 4 us a call on unpacking arguments and building results, four times what
a problem with five variables takes. The wheel's library exports the C entry point it calls, so for
the release whose structures are written down here we call that, with pointers into whole batches.
With any other release, or where the symbol is not exported, the Python function serves.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.metadata import version
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

# Up to here calling the Python function is cheaper than preparing pointers.
FEW = 6
KNOWN_VERSION = "0.11.0"
PROBLEM = np.dtype(
    [("n", "i4"), ("m", "i4"), ("ms", "i4")]
    + [(name, "u8") for name in ("H", "f", "A", "upper", "lower", "sense", "break_points")]
    + [("nh", "i4"), ("kind", "i4")],
    align=True,
)
SETTINGS = np.dtype(
    [(name, "f8") for name in ("primal", "dual", "zero", "pivot", "progress")]
    + [("cycle", "i4"), ("max_iter", "i4")]
    + [(name, "f8") for name in ("fval_bound", "eps_prox", "eta_prox", "rho_soft", "rel_subopt")]
    + [(name, "f8") for name in ("abs_subopt", "singular", "refactor", "time", "w_soft")]
    + [("eq_reduction", "i4"), ("presolve", "i4")],
    align=True,
)
RESULT = np.dtype(
    [("x", "u8"), ("lam", "u8"), ("fval", "f8"), ("soft_slack", "f8")]
    + [("flag", "i4"), ("iterations", "i4"), ("nodes", "i4")]
    + [("solve_time", "f8"), ("setup_time", "f8")],
    align=True,
)


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
    proximal: bool = True,
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
        proximal: Whether to solve problems with a singular ``H``, too.
        loose: Tolerance with which problems that look infeasible are asked again: rows that depend
            on each other contradict each other by rounding. The verdict is the caller's.

    Returns:
        ``x`` ``(B, n)``, multipliers ``(B, rows)``, statuses and iterations ``(B)``. Problems that
        failed have NaN in the first two.
    """
    rows, n = A.shape[-2:]
    given = [None if t is None else _contiguous(t) for t in (H, f, A, upper, lower, sense)]
    x, lam = np.empty((batch, n)), np.empty((batch, rows))
    if wanted is None:
        wanted = np.ones(batch, np.bool_)
    function, ranges = _c_function(), _ranges(batch, n, rows)
    eps_prox = -1e-6 if proximal else 0.0  # negative: where it is needed
    if function is None or batch < FEW:
        solve_ranges = _by_python(given, x, lam, max_iter, eps_prox)
    else:
        solve_ranges = _by_pointers(function, given, x, lam, max_iter, eps_prox)
    flags, iterations = solve_ranges(ranges, wanted, PRIMAL_TOLERANCE)
    if (flags == 1).all():
        return x, lam, np.zeros(batch, np.int64), iterations.astype(np.int64)
    infeasible = wanted & ((flags == -1) | (flags == -6))
    if infeasible.any():
        flags, iterations = solve_ranges(ranges, infeasible, max(loose, PRIMAL_TOLERANCE))
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


def solve_one(
    H: Floats, f: Floats, A: Floats, upper: Floats, lower: Floats, sense: Ints, max_iter: int
) -> tuple[Floats, Floats, bool, NDArray[np.int64]]:
    """One strictly convex problem, all contiguous but ``f``; the third says if it is solved."""
    import daqp

    x, _, flag, info = daqp.solve(
        H[0], np.ascontiguousarray(f[0]), A[0], upper[0], lower[0], sense[0],
        primal_tol=PRIMAL_TOLERANCE, iter_limit=max_iter, eps_prox=0.0, eq_reduction=-1,
    )  # fmt: skip
    return x[None], info["lam"][None], flag == 1, np.array([info["iterations"]])


def _ranges(batch: int, n: int, rows: int) -> list[tuple[int, int]]:
    """Split the batch over threads if that pays: solves of 15 us or more, 1 ms in all."""
    steps = min(n, rows) / 2
    microseconds = steps * (rows * n + steps**2) / 5000
    if microseconds < 15 or microseconds * batch < 1000:
        return [(0, batch)]
    return _threads.split(batch, _threads.available())


Ranges = list[tuple[int, int]]
SolveRanges = Callable[[Ranges, NDArray[np.bool_], float], tuple[Ints, Ints]]


def _by_pointers(
    function: Any,
    given: list[Any],
    x: Floats,
    lam: Floats,
    max_iter: int,
    eps_prox: float,
) -> SolveRanges:
    batch, n = x.shape
    problems = _structures(PROBLEM, batch, (n, lam.shape[1], 0), given, (0, 0, 0))
    results = _structures(RESULT, batch, (), (x, lam), (0.0, 0.0, 0, 0, 0, 0.0, 0.0))

    def solve(low: int, high: int, wanted: NDArray[np.bool_], settings: NDArray[Any]) -> None:
        result = results.ctypes.data + low * RESULT.itemsize
        problem = problems.ctypes.data + low * PROBLEM.itemsize
        setting = settings.ctypes.data
        for want in wanted[low:high].tolist():
            if want:
                function(result, problem, setting)
            result += RESULT.itemsize
            problem += PROBLEM.itemsize

    def solve_ranges(
        ranges: Ranges, wanted: NDArray[np.bool_], tolerance: float
    ) -> tuple[Ints, Ints]:
        settings = np.array(
            (
                tolerance, 1e-12, 1e-11, 1e-8, 1e-14, 10, max_iter, 1e30, eps_prox,
                PROXIMAL_TOLERANCE, 1e-6, 0.0, 0.0, 3.7e-11, 1e-9, 0.0, 0.0, -1, 1,
            ),
            SETTINGS,
        )  # fmt: skip
        _threads.run([partial(solve, low, high, wanted, settings) for low, high in ranges])
        return results["flag"], results["iterations"]

    return solve_ranges


def _structures(
    kind: np.dtype[Any],
    batch: int,
    before: tuple[int, ...],
    arrays: Sequence[NDArray[Any] | None],
    after: tuple[float, ...],
) -> NDArray[Any]:
    """A structure for each problem, with pointers to its part of the arrays amid plain numbers.

    All entries are words or halves of words, so the structures are an arithmetic progression.
    """
    starts = [0 if t is None else t.ctypes.data for t in arrays]
    steps = [0 if t is None or len(t) == 1 else t.strides[0] for t in arrays]
    first = np.array([(*before, *starts, *after)], kind).view(np.uint64)
    step = np.array([(*[0] * len(before), *steps, *[0] * len(after))], kind).view(np.uint64)
    return (first + np.arange(batch, dtype=np.uint64)[:, None] * step).view(kind)[:, 0]


def _by_python(
    given: list[Any], x: Floats, lam: Floats, max_iter: int, eps_prox: float
) -> SolveRanges:
    import daqp

    batch = x.shape[0]
    flags, iterations = np.zeros(batch, np.int32), np.zeros(batch, np.int32)

    def pick(array: NDArray[Any] | None, i: int) -> NDArray[Any] | None:
        return None if array is None else array[i if array.shape[0] > 1 else 0]

    def solve(low: int, high: int, wanted: NDArray[np.bool_], tolerance: float) -> None:
        for i in (np.flatnonzero(wanted[low:high]) + low).tolist():
            x[i], _, flags[i], info = daqp.solve(
                *(pick(array, i) for array in given),
                primal_tol=tolerance,
                eps_prox=eps_prox,
                eta_prox=PROXIMAL_TOLERANCE,
                iter_limit=max_iter,
                eq_reduction=-1,
            )
            lam[i], iterations[i] = info["lam"], info["iterations"]

    def solve_ranges(
        ranges: Ranges, wanted: NDArray[np.bool_], tolerance: float
    ) -> tuple[Ints, Ints]:
        _threads.run([partial(solve, low, high, wanted, tolerance) for low, high in ranges])
        return flags, iterations

    return solve_ranges


@cache
def _c_function() -> Any:
    """DAQP's entry point, or None where its structures may differ from ours."""
    import daqp

    if version("daqp") != KNOWN_VERSION:
        return None
    try:
        function = ctypes.CDLL(daqp.__file__).daqp_quadprog
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p] * 3
    function.restype = None
    return function
