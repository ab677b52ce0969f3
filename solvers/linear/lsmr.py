"""Least squares by Golub-Kahan bidiagonalisation, for matrices of any shape and rank."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates, Run
from .krylov import IterativeLinearSolver
from .operator import LinearOperator
from .solver import Preconditioner


@dataclass(frozen=True)
class LSMR(IterativeLinearSolver):
    r"""Minimise :math:`\|A^\top (b - A x)\|_2` over growing Krylov spaces; :math:`A` any matrix.

    Is :class:`MINRES` on the normal equations :math:`A^\top A x = A^\top b`, without forming them:
    finds least-squares solutions, from a start at zero the one of least norm, whatever the rank.
    One product with :math:`A` and one with :math:`A^\top` an iteration; the error shrinks by
    :math:`(\kappa - 1)/(\kappa + 1)`, with :math:`\kappa` the ratio of the largest singular value
    to the smallest that is not zero.

    A residual that is not zero never becomes small, so a sample is also solved when it is nearly
    orthogonal to the range: when the smaller one of :math:`\|r\|` and
    :math:`\|b\| \, \|A^\top r\| / (\|A\| \|r\|)` is within the tolerance, with an estimate of
    :math:`\|A\|` by one step of the power method. There is no preconditioner: scale the columns.

    References:
        Fong and Saunders, *LSMR: an iterative algorithm for sparse least-squares problems*, SIAM J.
        Sci. Comput. 33 (2011), section 2 for the method, section 3.2 for when to stop.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import LSMR
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> b = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
        >>> LSMR().solve(A, b).x.round(decimals=6)  # the line through three points
        tensor([-0.5000,  2.5000], dtype=torch.float64)
    """

    square: ClassVar[bool] = False

    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """One product with the matrix and one with its transpose an iteration."""
        if preconditioner is not None:
            raise ValueError(
                "LSMR.find: takes no preconditioner, which would have to be one of A.T A; "
                "scale the columns of A instead."
            )
        transposed = A.T
        scale, size, Atb = _sizes(A, transposed, b)
        if x0 is None:
            x, r, Atr = torch.zeros_like(Atb), b, Atb
        else:
            # At zero where that is the solution.
            x = torch.where((Atb != 0).any(-1, keepdim=True), x0, 0.0)
            r = b - A.matvec(x)
            Atr = transposed.matvec(r)
        u, beta = _normalised(r)
        v, alpha = _normalised(Atr / torch.where(beta == 0, 1.0, beta).unsqueeze(-1))
        zeta_bar, alpha_bar = alpha * beta, alpha
        rho = rho_bar = c_bar = torch.ones_like(alpha)
        s_bar = theta = torch.zeros_like(alpha)
        # Directions, and the products of A with them, which give the residual without a product.
        h = h_bar = torch.zeros_like(x)
        Ah = Ah_bar = torch.zeros_like(b)
        while True:
            residual = torch.linalg.vector_norm(r, dim=-1)
            yield Iterate(x, _distance(residual, zeta_bar.abs(), size, scale), scale=scale)
            Av = A.matvec(v)
            back = (theta / rho).unsqueeze(-1)
            h, Ah = v - back * h, Av - back * Ah
            u, beta = _normalised(Av - alpha.unsqueeze(-1) * u)
            v, alpha = _normalised(transposed.matvec(u) - beta.unsqueeze(-1) * v)
            rho_before, rho_bar_before = rho, rho_bar
            rho = torch.hypot(alpha_bar, beta)
            theta, alpha_bar = beta / rho * alpha, alpha_bar / rho * alpha
            back = (s_bar * rho * rho / (rho_before * rho_bar_before)).unsqueeze(-1)
            h_bar, Ah_bar = h - back * h_bar, Ah - back * Ah_bar
            cr = c_bar * rho
            rho_bar = torch.hypot(cr, theta)
            c_bar, s_bar = cr / rho_bar, theta / rho_bar
            step = (c_bar * zeta_bar / (rho * rho_bar)).unsqueeze(-1)
            zeta_bar = -s_bar * zeta_bar
            x, r = x + step * h_bar, r - step * Ah_bar

    def error(self, A: LinearOperator, b: Tensor, x: Tensor) -> Tensor:
        """The distance that the iterates aim at, computed from ``x``."""
        scale, size, _ = _sizes(A, A.T, b)
        r = b - A.matvec(x)
        residual, normal = _norms(A.T, r)
        return _distance(residual, normal, size, scale)

    def report(self, A: LinearOperator, b: Tensor, run: Run) -> Run:
        """Both residuals."""
        value, error = _norms(A.T, b - A.matvec(run.x))
        return run._replace(value=value, error=error)


def _normalised(v: Tensor) -> tuple[Tensor, Tensor]:
    length = torch.linalg.vector_norm(v, dim=-1)
    return v / torch.where(length == 0, 1.0, length).unsqueeze(-1), length


def _norms(transposed: LinearOperator, r: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm
    return norm(r, dim=-1), norm(transposed.matvec(r), dim=-1)


def _sizes(
    A: LinearOperator, transposed: LinearOperator, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The norms of b and, nearly, of A, and the product of the transpose with b."""
    norm = torch.linalg.vector_norm
    Atb = transposed.matvec(b)
    direction, _ = _normalised(Atb)
    return norm(b, dim=-1), norm(A.matvec(direction), dim=-1), Atb


def _distance(residual: Tensor, normal: Tensor, size: Tensor, scale: Tensor) -> Tensor:
    orthogonal = torch.where(normal == 0, 0.0, scale * normal / (size * residual))
    return torch.fmin(residual, orthogonal)
