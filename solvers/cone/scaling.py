r"""Units in which the numbers of a program are near one, for tolerances and shifts to mean much.

With positive diagonal matrices :math:`D` and :math:`E`, the latter constant within each cone, and
two numbers :math:`\sigma` and :math:`\kappa`,

.. math::

    x = \sigma D \hat x, \qquad s = \sigma E^{-1} \hat s, \qquad z = \kappa^{-1} E \hat z

solve a program with :math:`\hat P = \kappa \sigma D P D`, :math:`\hat A = E A D`,
:math:`\hat q = \kappa D q` and :math:`\hat b = E b / \sigma`, for the same cones.

References:
    Ruiz, *A scaling algorithm to equilibrate both rows and columns norms in matrices*, 2001.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .product import ConeProduct
from .sparse import Compressed

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# What is within these factors of one is left alone: most programs are, and stay as they are.
NORMAL, NORMAL_SIZE = 1e2, 1e3
ROUNDS, CLOSE = 12, 2.0


class Points(NamedTuple):
    """Points ``x`` ``(B, n)`` with slacks and multipliers ``s, z`` ``(B, m)``, or steps."""

    x: Floats
    s: Floats
    z: Floats

    def take(self, which: Integers) -> "Points":
        """Some of them, in their order."""
        return self if len(which) == len(self.x) else Points(*(t[which] for t in self))

    def put(self, which: Integers, others: "Points") -> "Points":
        """These, with others in some places."""
        if len(which) == len(self.x):
            return others
        whole = Points(*(t.copy() for t in self))
        for own, part in zip(whole, others, strict=True):
            own[which] = part
        return whole


@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors of a batch of programs, see the module.

    Attributes:
        columns: The diagonals of ``D`` ``(B, n)``.
        rows: The diagonals of ``E`` ``(B, m)``.
        primal: The numbers sigma ``(B)``.
        dual: The numbers kappa ``(B)``.
    """

    columns: Floats
    rows: Floats
    primal: Floats
    dual: Floats

    @property
    def of_x(self) -> Floats:
        """What takes a scaled ``x`` to the user's."""
        return self.primal[:, None] * self.columns

    @property
    def of_s(self) -> Floats:
        """The same for slacks."""
        return self.primal[:, None] / self.rows

    @property
    def of_z(self) -> Floats:
        """The same for multipliers."""
        return self.rows / self.dual[:, None]

    @property
    def of_value(self) -> Floats:
        """The same for the objective ``(B)``."""
        return self.primal / self.dual

    @property
    def of_r_x(self) -> Floats:
        """The same for gradients of the Lagrangian; violations of rows go as slacks do."""
        return 1 / (self.dual[:, None] * self.columns)

    def into(self, points: Points) -> Points:
        """Points of the user, scaled."""
        return Points(points.x / self.of_x, points.s / self.of_s, points.z / self.of_z)

    def out_of(self, points: Points) -> Points:
        """Scaled points in the user's units."""
        return Points(points.x * self.of_x, points.s * self.of_s, points.z * self.of_z)

    def of_P(self, P: Compressed) -> Compressed:
        """The scaled matrices."""
        factor = (self.dual * self.primal)[:, None]
        columns = self.columns
        return P.with_data(P.data * (factor * columns[:, P.indices] * columns[:, P.columns]))

    def of_A(self, A: Compressed) -> Compressed:
        """The scaled matrices."""
        return A.with_data(A.data * (self.rows[:, A.indices] * self.columns[:, A.columns]))

    def take(self, which: Integers) -> "Scaling":
        """Those of some programs."""
        factors = self.columns, self.rows, self.primal, self.dual
        return Scaling(*(t[which] for t in factors))


def scaling_of(
    P: Compressed, A: Compressed, cones: ConeProduct, primal: Floats, dual: Floats
) -> Scaling | None:
    """Equilibrate; None where no program needs it.

    Args:
        P: Upper triangles.
        A: All rows.
        cones: The product of cones, within each of which rows are scaled alike.
        primal: Sizes of the slacks, as far as they are known; 0 where not ``(B)``.
        dual: Sizes of the multipliers ``(B)``.
    """
    batch, n, m = len(primal), A.shape[1], A.shape[0]
    of_P, of_A = abs(P.data), abs(A.data)
    finite = np.isfinite(of_P.sum(1) + of_A.sum(1) + primal + dual)
    sigma = np.where(finite & (primal > 0) & ~_is_near(primal, NORMAL_SIZE), primal, 1.0)
    kappa = np.where(finite & (dual > 0) & ~_is_near(dual, NORMAL_SIZE), dual, 1.0) ** -1
    factor = sigma * kappa
    of_P = of_P if (factor == 1.0).all() else of_P * factor[:, None]
    far = finite & ~_is_even(*_sizes(P, A, cones, of_P, of_A), NORMAL)
    if not far.any() and (sigma == 1.0).all() and (kappa == 1.0).all():
        return None
    rows, columns = np.ones((batch, m)), np.ones((batch, n))
    which = np.flatnonzero(far)
    of_P, of_A = (t[which] if len(t) > 1 else np.repeat(t, len(which), 0) for t in (of_P, of_A))
    going = np.ones(len(which), bool)
    for _ in range(ROUNDS):
        in_columns, in_rows = _sizes(P, A, cones, of_P, of_A)
        going &= ~_is_even(in_columns, in_rows, CLOSE)
        if not going.any():
            break
        by_column, by_row = (
            np.where(going[:, None] & (sizes > 0), sizes, 1.0) ** -0.5
            for sizes in (in_columns, in_rows)
        )
        columns[which] *= by_column
        rows[which] *= by_row
        of_P = of_P * by_column[:, P.indices] * by_column[:, P.columns]
        of_A = of_A * by_row[:, A.indices] * by_column[:, A.columns]
    return Scaling(columns, rows, sigma, kappa)


def _sizes(
    P: Compressed, A: Compressed, cones: ConeProduct, of_P: Floats, of_A: Floats
) -> tuple[Floats, Floats]:
    """The largest entries of columns ``(B, n)``, and of rows that are scaled alike ``(B, m)``."""
    in_columns = P.pattern.largest(of_P, of_rows=False)
    if P.nnz > P.shape[0]:  # not a diagonal
        in_columns = np.maximum(in_columns, P.pattern.largest(of_P, of_rows=True))
    in_columns = np.maximum(in_columns, A.pattern.largest(of_A, of_rows=False))
    in_rows = A.pattern.largest(of_A, of_rows=True)
    if not cones.elementwise:
        in_rows = np.maximum.reduceat(in_rows, cones.heads, axis=1)[:, cones.blocks]
    return in_columns, in_rows


def _is_near(sizes: Floats, factor: float) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = (sizes <= factor) & (sizes >= 1 / factor)
    return near


def _is_even(in_columns: Floats, in_rows: Floats, factor: float) -> NDArray[np.bool_]:
    """Whether all sizes but zeros are within a factor of one ``(B)``."""
    columns, rows = (np.all((t == 0) | _is_near(t, factor), axis=1) for t in (in_columns, in_rows))
    even: NDArray[np.bool_] = columns & rows
    return even
