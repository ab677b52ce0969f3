"""LU factorisation, for square matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .._threads import calm
from .direct import DirectSolver, Factor


@dataclass(frozen=True)
class LU(DirectSolver):
    r"""Factor :math:`A = P L U` with partial pivoting, for square :math:`A`.

    The method to take where nothing is known of a square matrix. A sample whose matrix is singular
    has status NUMERICAL_ERROR.

    Attributes:
        eps_rel: Backward error allowed; by default 1e-10 in float64, 1e-6 in float32.

    References:
        Golub and Van Loan, *Matrix computations*, 4th ed. 2013, section 3.4.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import LU
        >>> A = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
        >>> LU().solve(A, torch.tensor([4.0, 3.0])).x
        tensor([1., 2.])
        >>> lu = LU()
        >>> lu.apply(lu.factor(A[None]), torch.tensor([[1.0, 5.0]]), transposed=True)
        tensor([[2., 1.]])
    """

    def factor(self, matrix: Tensor) -> Factor:
        """Both triangles in one matrix, and the pivots."""
        # Batches that MKL factors in several threads were seen to hang.
        with calm():
            factors, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return factors, pivots

    def columns(self, factor: Factor, right: Tensor, *, transposed: bool = False) -> Tensor:
        """Two triangular solves."""
        factors, pivots = factor
        with calm():
            x: Tensor = torch.linalg.lu_solve(factors, pivots, right, adjoint=transposed)
        return x
