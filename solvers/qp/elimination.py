r"""Equalities, eliminated by matrix routines instead of activated one by one."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import kkt

# Rows have unit length. A diagonal entry of R below this says that equalities depend on each other,
# a projected row shorter than this that an inequality depends on them: not worth special cases.
DEPENDENT = 1e-6
# With matrices of their own, problems gain by it from so many variables on, one alone and several,
# if such a part of these goes.
LARGE_ALONE, LARGE, PART = 150, 100, 0.15


class Elimination:
    r"""Least-distance problems on the solutions of their equalities.

    For :math:`\min \tfrac12 \|u\|^2` subject to :math:`M_e u = d_e,\; l \le M_i u \le d_i`, with
    :math:`M_e^\top = Q_1 R` and :math:`Q_2` the rest of the orthogonal basis, :math:`u = Q_1 c +
    Q_2 w`, where :math:`R^\top c = d_e` is known beforehand and :math:`w` solves a least-distance
    problem of its own with the rows :math:`M_i Q_2`. The basis is never formed: its reflections are
    applied.

    All of this is torch's, for numpy's matrix routines have threads of their own, which on a busy
    machine wait for each other: the factorisation took a thousand times as long.

    Attributes:
        regular: Which problems it is good for ``(1 or B)``.
    """

    def __init__(self, M: Tensor, p: int) -> None:
        """Factor the equalities, the first ``p`` of the rows ``(1 or B, rows, n)``."""
        self.p = p
        self.QR, self.tau = torch.geqrf(M[:, :p].mT)
        turned = torch.ormqr(self.QR, self.tau, M[:, p:].mT, transpose=True).mT
        self.along, self.rows = turned[..., :p], turned[..., p:]
        self.norm = torch.linalg.vector_norm(self.rows, dim=-1)
        self.L = self.QR[:, :p].mT
        pivots = abs(self.L.diagonal(dim1=-2, dim2=-1).numpy()).min(-1)
        # What is not finite gives NaN, which is above nothing.
        regular = np.minimum(pivots, self.norm.numpy().min(-1, initial=1.0)) > DEPENDENT
        self.regular: NDArray[np.bool_] = regular

    @classmethod
    def of(cls, M: Tensor, p: int, batch: int) -> "Elimination | None":
        """For the rows ``(1 or B, rows, n)`` of a batch; None where it won't do or won't pay."""
        n = M.shape[-1]
        large = n >= (LARGE if batch > 1 else LARGE_ALONE) and p >= PART * n
        if not 0 < p < n or not (large or len(M) < batch):
            return None
        made = cls(M, p)
        return made if made.regular.any() else None

    def reduce(self, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``(1 or B, rows - p, n - p)`` and their ends for the smaller problems."""
        self.c = kkt.solve_lower(self.L, upper[:, : self.p, None])[..., 0]
        shift = _times(self.along, self.c)
        return (
            self.rows / self.norm[..., None],
            (upper[:, self.p :] - shift) / self.norm,
            (lower[:, self.p :] - shift) / self.norm,
        )

    def expand(self, w: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """The point and all multipliers of the original problems."""
        multipliers = multipliers / self.norm
        turned = torch.cat((self.c, w), -1)
        shared = len(self.QR) == 1
        columns = turned.mT[None] if shared else turned[..., None]
        u = torch.ormqr(self.QR, self.tau, columns)
        u = u[0].mT if shared else u[..., 0]
        pull = self.c + _times(self.along.mT, multipliers)
        of_equalities = -kkt.solve_upper(self.L, pull[..., None])[..., 0]
        return u, torch.cat((of_equalities, multipliers), -1)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Products of ``(1 or B, k, l)`` with ``(B, l)``."""
    if len(matrix) == 1:
        return vectors @ matrix[0].mT
    return (matrix @ vectors[..., None])[..., 0]
