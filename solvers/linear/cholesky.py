"""Cholesky factorisation, for positive definite matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .direct import DirectSolver, Factor


@dataclass(frozen=True)
class Cholesky(DirectSolver):
    r"""Factor :math:`A = L L^\top`, for symmetric positive definite :math:`A`.

    Half the work of :class:`LU`, and stable without pivoting. Only the lower triangle is read, but
    a matrix that is not symmetric shows in the residual. A sample whose matrix is not positive
    definite has status NUMERICAL_ERROR.

    Attributes:
        eps_rel: Backward error allowed; by default 1e-10 in float64, 1e-6 in float32.

    References:
        Golub and Van Loan, *Matrix computations*, 4th ed. 2013, section 4.2.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import Cholesky
        >>> A = torch.tensor([[4.0, 2.0], [2.0, 2.0]])
        >>> Cholesky().solve(A, torch.tensor([[8.0, 6.0], [4.0, 2.0]])).x
        tensor([[1., 2.],
                [1., 0.]])
    """

    def factor(self, matrix: Tensor) -> Factor:
        """``(L,)``, NaN where a matrix is not positive definite."""
        L, info = torch.linalg.cholesky_ex(matrix)
        return (torch.where((info == 0)[:, None, None], L, torch.nan),)

    def columns(self, factor: Factor, right: Tensor, *, transposed: bool = False) -> Tensor:
        """Two triangular solves; the transposed matrix is the same."""
        return torch.cholesky_solve(right, factor[0])
