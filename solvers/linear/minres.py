"""Minimal residuals, for symmetric matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates
from .krylov import IterativeLinearSolver
from .operator import LinearOperator
from .solver import Preconditioner


@dataclass(frozen=True)
class MINRES(IterativeLinearSolver):
    r"""Minimise :math:`\|b - A x\|_2` over growing Krylov spaces; :math:`A` symmetric.

    The matrix may be indefinite. One product with :math:`A` an iteration. With eigenvalues on both
    sides of zero the residual may shrink by :math:`(\kappa - 1)/(\kappa + 1)` in two iterations
    only; it never grows. A preconditioner :math:`M` must be symmetric positive definite all the
    same; what is minimised is then the residual in the norm of :math:`M`.

    References:
        Paige and Saunders, *Solution of sparse indefinite systems of linear equations*, SIAM J.
        Numer. Anal. 12 (1975). Elman, Silvester and Wathen, *Finite elements and fast iterative
        solvers*, 2005, section 6.1, for the preconditioned method.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import MINRES
        >>> A = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> MINRES().solve(A, torch.tensor([2.0, 1.0], dtype=torch.float64)).x.round(decimals=6)
        tensor([1., 2.], dtype=torch.float64)
    """

    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """One product an iteration."""
        x, r = self.start(A, b, x0)
        scale = torch.linalg.vector_norm(b, dim=-1)
        v, z = r, r if preconditioner is None else preconditioner(r)
        gamma = torch.linalg.vecdot(z, v).sqrt()
        # Lanczos vectors before v, the last two directions and the last two rotations.
        v_before = w = w_before = torch.zeros_like(x)
        c = c_before = gamma_before = torch.ones_like(gamma)
        s = s_before = torch.zeros_like(gamma)
        eta = gamma
        while True:
            yield Iterate(x, torch.linalg.vector_norm(r, dim=-1), scale=scale)
            z = z / gamma.unsqueeze(-1)
            Az = A.matvec(z)
            delta = torch.linalg.vecdot(z, Az)
            lanczos = Az - (delta / gamma).unsqueeze(-1) * v
            lanczos = lanczos - (gamma / gamma_before).unsqueeze(-1) * v_before
            v, v_before = lanczos, v
            z_new = v if preconditioner is None else preconditioner(v)
            # NaN if the preconditioner is not definite, and then x is from here on.
            gamma_new = torch.linalg.vecdot(z_new, v).sqrt()
            a0 = c * delta - c_before * s * gamma
            a1 = torch.hypot(a0, gamma_new)
            a2, a3 = s * delta + c_before * c * gamma, s_before * gamma
            direction = z - a3.unsqueeze(-1) * w_before - a2.unsqueeze(-1) * w
            w, w_before = direction / a1.unsqueeze(-1), w
            c, c_before, s, s_before = a0 / a1, c, gamma_new / a1, s
            x = x + (c * eta).unsqueeze(-1) * w
            eta = -s * eta
            # The residual in the new Lanczos vector, of which there is none where gamma is zero.
            share = torch.where(gamma_new > 0, eta * c / gamma_new, eta)
            r = (s * s).unsqueeze(-1) * r + share.unsqueeze(-1) * v
            z, gamma, gamma_before = z_new, gamma_new, gamma
