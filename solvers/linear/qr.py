"""QR factorisation, for least squares and least norms."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .direct import DirectSolver, Factor


@dataclass(frozen=True)
class QR(DirectSolver):
    r"""Factor :math:`A = Q R`, for matrices of full rank and any shape.

    With at least as many rows as columns, finds the least-squares solution
    :math:`\arg\min_x \|b - A x\|_2 = R^{-1} Q^\top b`. With more columns than rows,
    :math:`A^\top = Q R`, and it finds the solution of least norm :math:`Q R^{-\top} b`. The
    residual of least squares is that of the normal equations. A sample whose matrix is not of full
    rank has status NUMERICAL_ERROR; :class:`LSMR` finds the solution of least norm there.

    Attributes:
        eps_rel: Backward error allowed; by default 1e-10 in float64, 1e-6 in float32.

    References:
        Golub and Van Loan, *Matrix computations*, 4th ed. 2013, sections 5.3.3 and 5.6.2.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import QR
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> b = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
        >>> QR().solve(A, b).x.round(decimals=6)  # the line through three points
        tensor([-0.5000,  2.5000], dtype=torch.float64)
    """

    square: ClassVar[bool] = False
    least_squares: ClassVar[bool] = True
    keeps_rows_apart: ClassVar[bool] = False

    def factor(self, matrix: Tensor) -> Factor:
        """Two matrices whose product is ``matrix``: the orthogonal one has the longer side."""
        if matrix.shape[-2] >= matrix.shape[-1]:
            Q, R = torch.linalg.qr(matrix)
            return Q, R
        Q, R = torch.linalg.qr(matrix.mT)
        return R.mT, Q.mT

    def columns(self, factor: Factor, right: Tensor, *, transposed: bool = False) -> Tensor:
        """A product with the orthogonal factor and a triangular solve, in the order that fits."""
        left, last = factor
        tall = last.shape[-2] == last.shape[-1]  # A = Q R, otherwise A = R^T Q^T
        Q, R = (left, last) if tall else (last.mT, left.mT)
        if tall != transposed:
            x: Tensor = torch.linalg.solve_triangular(R, Q.mT @ right, upper=True)
        else:
            x = Q @ torch.linalg.solve_triangular(R.mT, right, upper=False)
        return x
