"""Conjugate gradients, for positive definite matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates
from .krylov import IterativeLinearSolver
from .operator import LinearOperator
from .solver import Preconditioner


@dataclass(frozen=True)
class CG(IterativeLinearSolver):
    r"""Minimise :math:`\|x - A^{-1} b\|_A` over growing Krylov spaces; :math:`A` positive definite.

    One product with :math:`A` an iteration. The error in the norm of :math:`A` shrinks at least by
    :math:`(\sqrt\kappa - 1)/(\sqrt\kappa + 1)` an iteration, where :math:`\kappa` is the condition
    number, and vanishes after as many iterations as there are distinct eigenvalues. A direction of
    negative curvature ends a sample with NUMERICAL_ERROR: use :class:`MINRES`. A preconditioner
    must be positive definite too.

    References:
        Hestenes and Stiefel, *Methods of conjugate gradients for solving linear systems*, J. Res.
        NBS 49 (1952). Saad, *Iterative methods for sparse linear systems*, 2nd ed. 2003,
        algorithm 9.1.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import CG
        >>> A = torch.tensor([[4.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
        >>> solution = CG().solve(A, torch.tensor([8.0, 6.0], dtype=torch.float64))
        >>> solution.x.round(decimals=6), solution.iterations
        (tensor([1., 2.], dtype=torch.float64), tensor(2))
    """

    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """One product an iteration."""
        x, r = self.start(A, b, x0)
        scale = torch.linalg.vector_norm(b, dim=-1)
        z = r if preconditioner is None else preconditioner(r)
        p, rz = z, torch.linalg.vecdot(r, z)
        while True:
            yield Iterate(x, torch.linalg.vector_norm(r, dim=-1), scale=scale)
            Ap = A.matvec(p)
            curvature = torch.linalg.vecdot(p, Ap)
            # NaN stays NaN, and says that there is no way on.
            definite = (curvature > 0) & (rz > 0)
            step = torch.where(definite, rz / curvature, torch.nan).unsqueeze(-1)
            x = x + step * p
            r = r - step * Ap
            z = r if preconditioner is None else preconditioner(r)
            rz, before = torch.linalg.vecdot(r, z), rz
            p = z + (rz / before).unsqueeze(-1) * p
