r"""Equalities that a whole batch shares, eliminated once instead of activated by every problem."""

import torch
from torch import Tensor

# Rows have unit length. A diagonal entry of R below this says that equalities depend on each other,
# a projected row shorter than this that an inequality depends on them: not worth special cases.
DEPENDENT = 1e-6


class Elimination:
    r"""Least-distance problems on the solutions of shared equalities.

    For :math:`\min \tfrac12 \|u\|^2` subject to :math:`M_e u = d_e,\; l \le M_i u \le d_i`, with
    :math:`M_e^\top = Q_1 R` and :math:`Q_2` the rest of the orthogonal basis, :math:`u = Q_1 c +
    Q_2 w`, where :math:`R^\top c = d_e` is known beforehand and :math:`w` solves a least-distance
    problem of its own with the rows :math:`M_i Q_2`. The basis is never formed: its reflections are
    applied.

    All of this is torch's, for numpy's matrix routines have threads of their own, which on a busy
    machine wait for each other: the factorisation took a thousand times as long.
    """

    def __init__(self, M: Tensor, p: int) -> None:
        """Factor the equalities."""
        self.p = p
        self.R, self.tau = torch.geqrf(M[:p].mT)
        turned = torch.ormqr(self.R, self.tau, M[p:], left=False)
        self.along, self.rows = turned[:, :p], turned[:, p:]
        self.norm = torch.linalg.vector_norm(self.rows, dim=-1)

    @classmethod
    def of(cls, M: Tensor, p: int) -> "Elimination | None":
        """For rows ``(1 or B, rows, n)``, the first ``p`` equalities; None where it won't do."""
        if len(M) != 1 or not 0 < p < M.shape[-1]:
            return None
        made = cls(M[0], p)
        # What is not finite gives NaN, which is above nothing.
        regular = abs(made.R.diagonal().numpy()).min() > DEPENDENT
        return made if regular and made.norm.numpy().min(initial=1.0) > DEPENDENT else None

    def reduce(self, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``(1, rows - p, n - p)`` and their ends for the smaller problems."""
        equal = upper[:, : self.p]
        self.c = torch.linalg.solve_triangular(self.R[: self.p].mT, equal.mT, upper=False).mT
        shift = self.c @ self.along.mT
        return (
            (self.rows / self.norm[:, None])[None],
            (upper[:, self.p :] - shift) / self.norm,
            (lower[:, self.p :] - shift) / self.norm,
        )

    def expand(self, w: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """The point and all multipliers of the original problems."""
        multipliers = multipliers / self.norm
        turned = torch.cat((self.c, w), -1)
        u = torch.ormqr(self.R, self.tau, turned, left=False, transpose=True)
        pull = (self.c + multipliers @ self.along).mT
        of_equalities = -torch.linalg.solve_triangular(self.R[: self.p], pull, upper=True).mT
        return u, torch.cat((of_equalities, multipliers), -1)
