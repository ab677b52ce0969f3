r"""Equalities that a whole batch shares, eliminated once instead of activated by every problem."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rows have unit length. A diagonal entry of R below this says that equalities depend on each other,
# a projected row shorter than this that an inequality depends on them: not worth special cases.
DEPENDENT = 1e-6


class Elimination:
    r"""Least-distance problems on the solutions of shared equalities.

    For :math:`\min \tfrac12 \|u\|^2` subject to :math:`M_e u = d_e,\; l \le M_i u \le d_i`, with
    :math:`M_e^\top = Q_1 R` and :math:`Q_2` the rest of the orthogonal basis, :math:`u = Q_1 c +
    Q_2 w`, where :math:`R^\top c = d_e` is known beforehand and :math:`w` solves a least-distance
    problem of its own with the rows :math:`M_i Q_2`.
    """

    def __init__(self, M: Floats, p: int) -> None:
        """Factor the equalities."""
        self.p = p
        basis, R = np.linalg.qr(M[:p].T, mode="complete")
        self.Q1, self.Q2, self.R = basis[:, :p], basis[:, p:], R[:p]
        rows = M[p:]
        self.along = rows @ self.Q1
        self.rows = rows @ self.Q2
        self.norm = np.sqrt(np.square(self.rows).sum(-1))

    @classmethod
    def of(cls, M: Floats, p: int) -> "Elimination | None":
        """For rows ``(1 or B, rows, n)``, the first ``p`` equalities; None where it won't do."""
        if len(M) != 1 or not 0 < p < M.shape[-1] or not np.isfinite(M).all():
            return None
        made = cls(M[0], p)
        regular = abs(np.diagonal(made.R)).min() > DEPENDENT
        return made if regular and made.norm.min(initial=1.0) > DEPENDENT else None

    def reduce(self, upper: Floats, lower: Floats) -> tuple[Floats, Floats, Floats]:
        """Rows ``(1, rows - p, n - p)`` and their ends for the smaller problems."""
        self.c = np.linalg.solve(self.R.T, upper[:, : self.p].T).T
        shift = self.c @ self.along.T
        return (
            (self.rows / self.norm[:, None])[None],
            (upper[:, self.p :] - shift) / self.norm,
            (lower[:, self.p :] - shift) / self.norm,
        )

    def expand(self, w: Floats, multipliers: Floats) -> tuple[Floats, Floats]:
        """The point and all multipliers of the original problems."""
        multipliers = multipliers / self.norm
        u = self.c @ self.Q1.T + w @ self.Q2.T
        of_equalities = -np.linalg.solve(self.R, (self.c + multipliers @ self.along).T).T
        return u, np.concatenate((of_equalities, multipliers), -1)
