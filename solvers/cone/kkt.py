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

from typing import NamedTuple

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
        self.parts: list[tuple[Integers, Dense | Sparse]] = list(
            zip(pieces, spread(lambda which: self._dense(stack, which), pieces), strict=True)
        )
        others = np.flatnonzero(~dense)
        if len(others):
            self.parts.append((others, self._sparse(stack.take(others), others)))

    def _dense(self, stack: Stack, which: Integers) -> Dense:
        some, boundary = stack.take(which), self.boundary.take(which)
        rows = self._rows(which)
        C = np.take_along_axis(boundary.times(some.A.dense()), rows[..., None], 1)
        values = np.take_along_axis(boundary.values, rows, 1)
        return Dense(some.P.symmetric(), C, values)

    def _rows(self, which: Integers) -> Integers:
        """Active rows, and inactive ones to fill up the number, of systems of one size."""
        order = np.argsort(~self.active[which], axis=1, kind="stable")
        return np.sort(order[:, : self.counts[which[0]]], axis=1)

    def _sparse(self, stack: Stack, which: Integers) -> Sparse:
        boundary = self.boundary.take(which)
        CT = boundary.rotated(stack.A)
        return Sparse(stack.P, CT, boundary.values, self.active[which])

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
        count = len(r_x)
        which = np.arange(count) if which is None else which
        boundary = self.boundary.take(which)
        right = np.concatenate((r_x, boundary.times(r_s)), 1)
        solution, residual = np.zeros_like(right), np.zeros((count, right.shape[2]))

        def one(part: tuple[Integers, Dense | Sparse]) -> None:
            members, systems = part
            if count < len(self.active):
                wanted = np.flatnonzero(np.isin(members, which, assume_unique=True))
                if not len(wanted):
                    return
                systems, members = systems.take(wanted), np.searchsorted(which, members[wanted])
            if isinstance(systems, Sparse):
                solution[members], residual[members] = systems.solve(right[members], rough=rough)
                return
            of_x = np.broadcast_to(np.arange(self.n), (len(members), self.n))
            rows = np.concatenate((of_x, self.n + self._rows(which[members])), 1)
            index = members[:, None], rows
            solution[index], residual[members] = systems.solve(right[index], rough=rough)

        spread(one, self.parts)
        z = boundary.transposed_times(solution[:, self.n :])
        return Step(solution[:, : self.n], z, residual.max(1, initial=0.0))


def _rounded(counts: Integers, most: int) -> Integers:
    """Somewhat more rows than are active, so that there are fewer sizes."""
    return np.minimum(-(-counts // ROWS) * ROWS, most)
