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

import numpy as np
from numpy.typing import NDArray

from .product import ConeProduct
from .sparse import Compressed

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# What is within these factors of one is left alone: most programs are, and stay as they are.
NORMAL, NORMAL_SIZE = 1e2, 1e3
ROUNDS, CLOSE = 12, 2.0


@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors of one program, see the module.

    Attributes:
        columns: The diagonal of ``D`` ``(n)``.
        rows: The diagonal of ``E`` ``(m)``.
        primal: The number sigma.
        dual: The number kappa.
    """

    columns: Floats
    rows: Floats
    primal: float
    dual: float

    @property
    def of_x(self) -> Floats:
        """What takes a scaled ``x`` to the user's."""
        return self.primal * self.columns

    @property
    def of_s(self) -> Floats:
        """The same for slacks."""
        return self.primal / self.rows

    @property
    def of_z(self) -> Floats:
        """The same for multipliers."""
        return self.rows / self.dual

    @property
    def of_value(self) -> float:
        """The same for the objective."""
        return self.primal / self.dual

    def of_P(self, P: Compressed) -> Compressed:
        """The scaled matrix."""
        factor = self.dual * self.primal
        data = P.data * (factor * self.columns[P.indices] * self.columns[P.columns])
        return Compressed(data, P.indices, P.indptr, P.shape)

    def of_A(self, A: Compressed) -> Compressed:
        """The scaled matrix."""
        data = A.data * (self.rows[A.indices] * self.columns[A.columns])
        return Compressed(data, A.indices, A.indptr, A.shape)


def blocks_of(cones: ConeProduct) -> Integers:
    """Which rows must be scaled alike: a number for each, shape ``(m)``."""
    lengths: list[int] = []
    for cone in cones.cones:
        lengths += [1] * cone.rows if cone.elementwise else [cone.rows]
    return np.repeat(np.arange(len(lengths)), lengths)


def scaling_of(
    P: Compressed, A: Compressed, blocks: Integers, primal: float, dual: float
) -> Scaling | None:
    """Equilibrate; None where nothing needs it.

    Args:
        P: Upper triangle.
        A: All rows.
        blocks: Rows that are scaled alike.
        primal: Size of the slacks, as far as it is known; 0 if it is not.
        dual: Size of the multipliers.
    """
    sigma = primal if primal and not 1 / NORMAL_SIZE < primal < NORMAL_SIZE else 1.0
    kappa = 1 / dual if dual and not 1 / NORMAL_SIZE < dual < NORMAL_SIZE else 1.0
    n, m = A.shape[1], A.shape[0]
    rows, columns = np.ones(m), np.ones(n)
    of_P, of_A = abs(P.data) * (sigma * kappa), abs(A.data)
    for turn in range(ROUNDS):
        in_columns, in_rows, in_blocks = np.zeros(n), np.zeros(m), np.zeros(m)
        np.maximum.at(in_columns, P.columns, of_P)
        np.maximum.at(in_columns, P.indices, of_P)
        np.maximum.at(in_columns, A.columns, of_A)
        np.maximum.at(in_rows, A.indices, of_A)
        np.maximum.at(in_blocks, blocks, in_rows)
        in_rows = in_blocks[blocks]
        sizes = np.concatenate((in_columns, in_rows))
        sizes = sizes[sizes > 0]
        far = NORMAL if turn == 0 else CLOSE
        if not len(sizes) or (sizes.max() <= far and sizes.min() >= 1 / far):
            break
        by_column = np.where(in_columns > 0, in_columns, 1.0) ** -0.5
        by_row = np.where(in_rows > 0, in_rows, 1.0) ** -0.5
        columns, rows = columns * by_column, rows * by_row
        of_P = of_P * by_column[P.indices] * by_column[P.columns]
        of_A = of_A * by_row[A.indices] * by_column[A.columns]
    else:
        turn = ROUNDS
    if turn == 0 and sigma == kappa == 1.0:
        return None
    return Scaling(columns, rows, sigma, kappa)
