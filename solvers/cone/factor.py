r"""One sparse system :math:`(P, C^\top; C, -\Lambda)`, shifted to be regular, and its factors.

Of the rows of ``C`` only some count. Where the entries go and in which order to eliminate them
depends on the patterns alone and takes most of the time, so it is kept for whoever comes next.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .idle import Idle
from .sparse import Compressed, Pattern

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
Solve = Callable[[Floats], Floats]  # of one right-hand side

# Up to this side the factorisation that is quickest to set up is quickest altogether.
QDLDL_SIDE = 1500
# Entries of all matrices whose solvers wait for others with the same pattern.
IDLE_ENTRIES = 1 << 17
# Numbers that a plan and a solver or two hold for each entry, more or less.
PLAN_NUMBERS = 40
# The shift, relative to the largest entry; without pivoting, rounding asks for a large one.
SHIFT = 1e-8
TINY = float(np.finfo(np.float64).tiny)


def plan_of(P: Pattern, CT: Pattern, counting: Booleans) -> "Plan":
    """What systems of these patterns have in common.

    Args:
        P: Of the upper triangle ``(n, n)``, with all of its diagonal.
        CT: Of the transposed matrix ``(n, m)``.
        counting: Which of its columns count ``(m)``.
    """
    make = partial(Plan, P, CT, counting)
    if P.shape[0] + np.count_nonzero(counting) > QDLDL_SIDE:
        return make()  # has no solver to keep, and would put others out
    size = PLAN_NUMBERS * (len(P.indices) + len(CT.indices))
    return CT.derived((P, counting.tobytes()), size, make)


class Plan:
    """The common part of systems with the same patterns; see :func:`plan_of`.

    Attributes:
        rows: The rows that count.
        own: The entries of ``(x, nu)`` that the system has.
    """

    def __init__(self, P: Pattern, CT: Pattern, counting: Booleans) -> None:
        """Lay out the upper triangle: the columns of ``P``, then the rows that count."""
        self.P, self.CT = P, CT
        n = P.shape[0]
        self.rows = np.flatnonzero(counting)
        self.own = np.append(np.arange(n), n + self.rows)
        self.kept = np.flatnonzero(counting[CT.columns])
        lengths = np.diff(CT.indptr)[self.rows]
        first, k, entries = len(P.indices), len(self.rows), len(self.kept)
        self.places = first + np.repeat(np.arange(k), lengths) + np.arange(entries)
        self.ends = first + np.cumsum(lengths) + np.arange(k)
        indices = np.empty(first + entries + k, np.int64)
        indices[:first], indices[self.places] = P.indices, CT.indices[self.kept]
        indices[self.ends] = n + np.arange(k)
        indptr = np.concatenate((P.indptr, self.ends + 1))
        self.upper = Pattern(indices, indptr, (n + k, n + k))
        self.idle = Idle(IDLE_ENTRIES // len(indices))

    def factored(self, P: Floats, CT: Floats, values: Floats) -> Solve:
        """Solve such a system, shifted; right-hand sides and solutions are its ``own`` entries.

        Args:
            P: Entries of the upper triangle.
            CT: Entries of the transposed matrix; those that do not count are zero or not looked at.
            values: The diagonal of the last block, not negative ``(m)``.
        """
        C, values = CT[self.kept], values[self.rows]
        if self.upper.shape[0] > QDLDL_SIDE:
            return self._by_clarabel(P, C, values)
        return self._by_qdldl(P, C, values)

    def _by_qdldl(self, P: Floats, C: Floats, values: Floats) -> Solve:
        """One factorisation without pivoting, for many right-hand sides."""
        import qdldl  # imported when used: it takes its time

        shift = SHIFT * max(abs(P).max(initial=0.0), abs(C).max(initial=0.0), TINY)
        data = np.empty(len(self.upper.indices))
        data[: len(P)], data[self.places], data[self.ends] = P, C, -values - shift
        data[self.P.indptr[1:] - 1] += shift
        upper = Compressed(data, self.upper)
        solver = self.idle.take()
        if solver is None:
            solver = qdldl.Solver(upper, upper=True)
        else:
            solver.update(upper, upper=True)
        return _Lent(solver, self.idle)

    def _by_clarabel(self, P: Floats, C: Floats, values: Floats) -> Solve:
        r"""The blocked factorisation of Clarabel, several times as fast where factors fill up.

        To a program with equalities only its answer is the solution of one such system. Minimising
        :math:`\tfrac12 x^\top P x - r_x^\top x + \tfrac12 \|u\|^2` subject to :math:`C x +
        \Lambda^{1/2} u = r_\nu` leaves :math:`u = -\Lambda^{1/2} \nu` and :math:`C x - \Lambda \nu
        = r_\nu`. Every solve factors again.
        """
        import clarabel  # imported when used: it costs every other user of the package time
        import scipy.sparse as sp

        n, k = self.P.shape[0], len(values)
        soft = np.flatnonzero(values)
        extra = len(soft)
        ends = np.arange(1, extra + 1)
        quadratic = Compressed(
            np.concatenate((P, np.ones(extra))),
            Pattern(
                np.concatenate((self.P.indices, n + np.arange(extra))),
                np.concatenate((self.P.indptr, self.P.indptr[-1] + ends)),
                (n + extra, n + extra),
            ),
        )
        indptr = np.append(0, np.cumsum(np.diff(self.CT.indptr)[self.rows]))
        by_column = sp.csr_array((C, self.CT.indices[self.kept], indptr), (k, n)).tocsc()
        rows = Compressed(
            np.concatenate((by_column.data, np.sqrt(values[soft]))),
            Pattern(
                np.concatenate((by_column.indices, soft)),
                np.concatenate((by_column.indptr, by_column.indptr[-1] + ends)),
                (k, n + extra),
            ),
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


class _Lent:
    """A compiled solver for as long as somebody needs its factors.

    Args:
        solver: From QDLDL.
        home: Where it goes afterwards.
    """

    def __init__(self, solver: Any, home: Idle) -> None:
        self.solver, self.home = solver, home

    def __call__(self, right: Floats) -> Floats:
        return self.solver.solve(right)  # type: ignore[no-any-return]

    def __del__(self) -> None:
        self.home.put(self.solver)
