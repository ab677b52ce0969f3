"""The Neumann series, for matrices near the identity."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates, Run
from .krylov import IterativeLinearSolver
from .operator import LinearOperator
from .solver import Preconditioner


@dataclass(frozen=True)
class NeumannSeries(IterativeLinearSolver):
    r"""Add up :math:`x = \sum_k (I - A)^k b`.

    Converges linearly with the spectral radius of :math:`I - A` as its factor, if that is less than
    one: as for :math:`A = I - J` with the Jacobian :math:`J` of a contraction. One product an
    iteration and no inner products. With few ``terms`` it is a cheap, approximate inverse: ``x`` is
    the partial sum, whose status is MAX_ITERATIONS. With ``x0`` the sum is that of the correction.
    With a preconditioner :math:`M` it is :math:`\sum_k (I - M A)^k M b`.

    Attributes:
        terms: The number of terms at most; ``max_iter`` by default.

    References:
        Saad, *Iterative methods for sparse linear systems*, 2nd ed. 2003, sections 4.2 and 12.3.1.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import NeumannSeries
        >>> A = torch.tensor([[0.5]], dtype=torch.float64)
        >>> b = torch.ones(1, dtype=torch.float64)
        >>> NeumannSeries(terms=4).solve(A, b).x  # 1 + 1/2 + 1/4 + 1/8
        tensor([1.8750], dtype=torch.float64)
        >>> NeumannSeries().solve(A, b).x.round(decimals=6)
        tensor([2.], dtype=torch.float64)
    """

    terms: int | None = None

    # A partial sum is what was asked for, also where residuals grow before they fall.
    keeps_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.terms is not None and self.terms < 0:
            raise ValueError(f"NeumannSeries: terms must not be negative; got {self.terms}.")

    def find(
        self,
        A: LinearOperator,
        b: Tensor,
        x0: Tensor | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> Run:
        """Add up to ``terms`` terms."""
        if self.terms is not None:
            capped = replace(self, terms=None, max_iter=min(self.max_iter, self.terms))
            return capped.find(A, b, x0, preconditioner)
        return super().find(A, b, x0, preconditioner)

    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """One product an iteration: the residual is the next term."""
        x, r = self.start(A, b, x0)
        scale = torch.linalg.vector_norm(b, dim=-1)
        while True:
            yield Iterate(x, torch.linalg.vector_norm(r, dim=-1), scale=scale)
            term = r if preconditioner is None else preconditioner(r)
            x = x + term
            r = r - A.matvec(term)
