r"""The linear systems of cone programs' optimality conditions around points.

Slacks and multipliers are the two parts of one vector, :math:`s = \Pi_K(v)` and
:math:`z = s - v`, so a change of the solution obeys

.. math::

    P\,dx + A^\top dz = r_x, \qquad A\,dx + ds = r_s, \qquad ds = D\,dv,\; dz = (D - I)\,dv

with the derivative :math:`D = U \Lambda U^\top` of the projection. With the unknown
:math:`\nu`, :math:`dz = U (I - \Lambda)^{1/2} \nu`, this is the symmetric system

.. math::

    \begin{pmatrix} P & A^\top W^\top \\ W A & -\Lambda \end{pmatrix}
    \begin{pmatrix} dx \\ \nu \end{pmatrix} = \begin{pmatrix} r_x \\ W r_s \end{pmatrix},
    \qquad W = (I - \Lambda)^{1/2} U^\top,

whose entries stay bounded whichever part of a cone's boundary the point is on.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._threads import available, split, spread
from .boundary import Boundary
from .direct import Dense, Sparse, is_dense
from .stack import Stack

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Dense systems have a multiple of so many rows, for those of one size to be factored together.
ROWS = 16


class Step(NamedTuple):
    """Solutions for some right-hand sides.

    Attributes:
        x: ``(B, n, columns)``.
        z: ``(B, m, columns)``.
        residual: Of the system, relative to its right-hand side ``(B)``.
    """

    x: Floats
    z: Floats
    residual: Floats


class Linearised:
    """The systems of a stack of programs at a point of each, factored.

    Args:
        stack: The programs.
        boundary: Of the points.
    """

    def __init__(self, stack: Stack, boundary: Boundary) -> None:
        """Factor, each by whatever suits size and sparsity."""
        self.n, self.boundary = stack.n, boundary
        self.active = boundary.active
        self.counts = _rounded(self.active.sum(1), self.active.shape[1])
        dense = np.array(
            [is_dense(self.n + k, 2 * stack.P.nnz) for k in self.counts.tolist()], bool
        )
        # Dense ones of one size together, in as many pieces as there are threads.
        pieces = []
        for k in np.unique(self.counts[dense]).tolist():
            alike = np.flatnonzero(dense & (self.counts == k))
            pieces += [alike[low:high] for low, high in split(len(alike), available())]
        self.parts = spread(lambda which: self._dense(stack, which), pieces)
        others = np.flatnonzero(~dense)
        if len(others):
            self.parts.append(self._sparse(stack, others))

    def _dense(self, stack: Stack, which: Integers) -> "_Part":
        some, boundary = stack.take(which), self.boundary.take(which)
        C, k = boundary.times(some.A.dense()), self.counts[which[0]]
        if k == C.shape[1]:
            return _Part(which, Dense(some.P.symmetric(), C, boundary.values), None)
        # Active rows, and inactive ones to fill up the number.
        order = np.argsort(~self.active[which], axis=1, kind="stable")
        rows = np.sort(order[:, :k], axis=1)
        each = np.arange(len(which))[:, None]
        systems = Dense(some.P.symmetric(), C[each, rows], boundary.values[each, rows])
        of_x = np.broadcast_to(np.arange(self.n), (len(which), self.n))
        return _Part(which, systems, np.concatenate((of_x, self.n + rows), 1))

    def _sparse(self, stack: Stack, which: Integers) -> "_Part":
        some, boundary = stack.take(which), self.boundary.take(which)
        CT = boundary.rotated(some.A)
        return _Part(which, Sparse(some.P, CT, boundary.values, self.active[which]), None)

    def solve(
        self, r_x: Floats, r_s: Floats, which: Integers | None = None, *, rough: bool = False
    ) -> Step:
        """Solve; the least-norm solution where a system is singular.

        Args:
            r_x: ``(B, n, columns)``.
            r_s: ``(B, m, columns)``.
            which: Numbers of the programs that these are for, increasing; all by default.
            rough: Whether a few digits suffice.
        """
        parts, boundary = self.parts, self.boundary
        if which is not None and len(which) < len(self.active):
            boundary = boundary.take(which)
            parts = [part.take(which) for part in parts]
        right = np.concatenate((r_x, boundary.times(r_s)), 1)
        if len(parts) == 1 and parts[0].rows is None:
            solution, residual = parts[0].systems.solve(right, rough=rough)
        else:
            solution, residual = np.zeros_like(right), np.zeros((len(right), right.shape[2]))

            def one(part: _Part) -> None:
                places: Any = part.members
                if part.rows is not None:
                    places = part.members[:, None], part.rows
                solution[places], residual[part.members] = part.systems.solve(
                    right[places], rough=rough
                )

            spread(one, [part for part in parts if len(part.members)])
        z = boundary.transposed_times(solution[:, self.n :])
        return Step(solution[:, : self.n], z, residual.max(1, initial=0.0))


class _Part(NamedTuple):
    """Systems that are factored together.

    Attributes:
        members: Numbers of their programs.
        systems: The factors.
        rows: Which entries of ``(x, nu)`` are in each system; None for all.
    """

    members: Integers
    systems: Dense | Sparse
    rows: Integers | None

    def take(self, which: Integers) -> "_Part":
        """Those of some programs, numbered anew."""
        wanted = np.flatnonzero(np.isin(self.members, which, assume_unique=True))
        members = np.searchsorted(which, self.members[wanted])
        rows = None if self.rows is None else self.rows[wanted]
        return _Part(members, self.systems.take(wanted), rows)


def _rounded(counts: Integers, most: int) -> Integers:
    """Somewhat more rows than are active, so that there are fewer sizes."""
    return np.minimum(-(-counts // ROWS) * ROWS, most)
