"""Stabilised biconjugate gradients, for square matrices, in fixed memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates
from .krylov import IterativeLinearSolver
from .operator import LinearOperator
from .solver import Preconditioner


@dataclass(frozen=True)
class BiCGSTAB(IterativeLinearSolver):
    r"""Follow biconjugate residuals, smoothed by a residual step; :math:`A` any square matrix.

    Two products with :math:`A` an iteration and a fixed number of vectors, where :class:`GMRES`
    stores them all. The residual may jump up and down, and there is no bound on its way; where
    :math:`A` is nearly skew it breaks down, which ends a sample with NUMERICAL_ERROR. Where the
    residual becomes orthogonal to its first one the method starts again. A preconditioner is
    applied from the right.

    References:
        van der Vorst, *Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG*, SIAM J. Sci.
        Stat. Comput. 13 (1992).

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import BiCGSTAB
        >>> A = torch.tensor([[3.0, 2.0], [1.0, 1.0]], dtype=torch.float64)
        >>> BiCGSTAB().solve(A, torch.tensor([7.0, 3.0], dtype=torch.float64)).x.round(decimals=6)
        tensor([1., 2.], dtype=torch.float64)
    """

    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """Two products an iteration."""
        norm, dot = torch.linalg.vector_norm, torch.linalg.vecdot
        x, r = self.start(A, b, x0)
        scale, length = norm(b, dim=-1), norm(r, dim=-1)
        shadow, p = r, r
        rho, shadow_length = length * length, length
        tiny = torch.finfo(b.dtype).eps
        while True:
            yield Iterate(x, length, scale=scale)
            p_hat = p if preconditioner is None else preconditioner(p)
            v = A.matvec(p_hat)
            sigma = dot(shadow, v)
            # NaN stays NaN, and says that there is no way on.
            possible = sigma.abs() > tiny * shadow_length * norm(v, dim=-1)
            alpha = torch.where(possible, rho / sigma, torch.nan)
            s = r - alpha.unsqueeze(-1) * v
            s_hat = s if preconditioner is None else preconditioner(s)
            t = A.matvec(s_hat)
            tt = dot(t, t)
            omega = torch.where(tt == 0, 0.0, dot(t, s) / tt)
            x = x + alpha.unsqueeze(-1) * p_hat + omega.unsqueeze(-1) * s_hat
            r = s - omega.unsqueeze(-1) * t
            length = norm(r, dim=-1)
            rho, before = dot(shadow, r), rho
            anew = (rho.abs() <= tiny * shadow_length * length) | (omega == 0)
            beta = torch.where(anew, 0.0, rho / before * (alpha / omega)).unsqueeze(-1)
            fresh = anew.unsqueeze(-1)
            p = r + torch.where(fresh, 0.0, beta * (p - omega.unsqueeze(-1) * v))
            shadow = torch.where(fresh, r, shadow)
            shadow_length = torch.where(anew, length, shadow_length)
            rho = torch.where(anew, length * length, rho)
