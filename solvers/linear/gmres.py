"""Generalised minimal residuals, for any square matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates
from .krylov import IterativeLinearSolver
from .operator import LinearOperator
from .solver import Preconditioner

# A remainder this many units of rounding small is rounding.
ROUNDING = 10


@dataclass(frozen=True)
class GMRES(IterativeLinearSolver):
    r"""Minimise :math:`\|b - A x\|_2` over growing Krylov spaces; :math:`A` any square matrix.

    One product with :math:`A` an iteration, and work and memory that grow with the dimension of the
    space: after ``restart`` iterations the method starts again from where it is. Without a restart
    it ends after at most :math:`n` iterations, and the residual never grows; with restarts it may
    stagnate. A preconditioner is applied from the right, so that residuals stay those of the
    system, and it need not be the same map each time.

    Attributes:
        restart: Dimension of the largest space.

    References:
        Saad and Schultz, *GMRES: a generalized minimal residual algorithm for solving nonsymmetric
        linear systems*, SIAM J. Sci. Stat. Comput. 7 (1986). Saad, *A flexible inner-outer
        preconditioned GMRES algorithm*, SIAM J. Sci. Comput. 14 (1993).

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import GMRES
        >>> A = torch.tensor([[0.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
        >>> GMRES().solve(A, torch.tensor([4.0, 3.0], dtype=torch.float64)).x.round(decimals=6)
        tensor([1., 2.], dtype=torch.float64)
    """

    restart: int = 30

    def __post_init__(self) -> None:
        if self.restart < 1:
            raise ValueError(f"GMRES: restart must be at least 1; got {self.restart}.")

    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """One product an iteration, and another one at each restart."""
        norm = torch.linalg.vector_norm
        x, r = self.start(A, b, x0)
        scale, length = norm(b, dim=-1), norm(r, dim=-1)
        batch, n = x.shape
        width = max(min(self.restart, n), 1)
        tiny = ROUNDING * torch.finfo(b.dtype).eps
        identity = torch.eye(width + 1, dtype=b.dtype, device=b.device)
        yield Iterate(x, length, scale=scale)
        while True:
            # A Z = V H, and Q takes H to the triangle R.
            V = b.new_zeros(batch, width + 1, n)
            Z = V if preconditioner is None else b.new_zeros(batch, width, n)
            R, Q = b.new_zeros(batch, width, width), identity.repeat(batch, 1, 1)
            V[:, 0] = r / length.unsqueeze(-1)
            closer = x
            for k in range(width):
                if preconditioner is not None:
                    Z[:, k] = preconditioner(V[:, k])
                w = A.matvec(Z[:, k])
                before = norm(w, dim=-1)
                # Gram-Schmidt twice is enough, and needs no loop over the basis.
                basis = V[:, : k + 1]
                h = basis @ w.unsqueeze(-1)
                w = w - (basis.mT @ h).squeeze(-1)
                h_more = basis @ w.unsqueeze(-1)
                w = w - (basis.mT @ h_more).squeeze(-1)
                after = norm(w, dim=-1)
                V[:, k + 1] = w / after.unsqueeze(-1)
                t = (Q[:, : k + 1, : k + 1] @ (h + h_more)).squeeze(-1)
                diagonal = torch.hypot(t[:, k], after)
                # The space cannot grow and does not hold the solution: the matrix is singular.
                diagonal = diagonal.masked_fill(diagonal <= tiny * before, torch.nan)
                cosine, sine = t[:, k] / diagonal, after / diagonal
                R[:, :k, k], R[:, k, k] = t[:, :k], diagonal
                row = Q[:, k, : k + 1]
                Q[:, k + 1, : k + 1] = -sine.unsqueeze(-1) * row
                Q[:, k, : k + 1] = cosine.unsqueeze(-1) * row
                Q[:, k + 1, k + 1], Q[:, k, k + 1] = cosine, sine
                right = (length.unsqueeze(-1) * Q[:, : k + 1, 0]).unsqueeze(-1)
                y = torch.linalg.solve_triangular(R[:, : k + 1, : k + 1], right, upper=True)
                closer = x + (y.mT @ Z[:, : k + 1]).squeeze(-2)
                yield Iterate(closer, length * Q[:, k + 1, 0].abs(), scale=scale)
            x = closer
            r = b - A.matvec(x)
            length = norm(r, dim=-1)
