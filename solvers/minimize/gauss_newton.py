"""Gauss-Newton with step halving, and the factorisation that it shares with its damped relative."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..derivatives import jacobian
from ..iteration import Iterate, Iterates
from .solver import LeastSquaresSolver

MAX_HALVINGS = 30
LEAST_DECREASE = 1e-4
ROUNDING = 8.0  # what is taken for rounding, in units of eps


@dataclass(frozen=True)
class GaussNewton(LeastSquaresSolver):
    r"""Minimise :math:`\tfrac12\|r(x)\|_2^2` by a sequence of linear least-squares problems.

    .. math:: p = \arg\min_p \|J(x)\, p + r(x)\|_2, \qquad x \leftarrow x + s p,

    with :math:`s` halved until the sum of squares falls. Converges quadratically where the
    residuals vanish at the solution; else linearly, with a factor that is small as long as the
    residuals times their curvature are small against :math:`J^\top J`. For good starts and full
    column rank of :math:`J`; :class:`LevenbergMarquardt` needs neither. A sample whose Jacobian
    has dependent columns ends with NUMERICAL_ERROR.

    Attributes:
        max_iter: Iterations, one Jacobian each.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition 2006, section 10.3.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 2, 9, dtype=torch.float64)
        >>> y = 2 * torch.exp(-0.5 * t)
        >>> residual = lambda p: p[..., :1] * torch.exp(-p[..., 1:] * t) - y
        >>> GaussNewton().solve(residual, torch.ones(2, dtype=torch.float64)).x
        tensor([2.0000, 0.5000], dtype=torch.float64)
    """

    max_iter: int = 100

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """Solve with :math:`J^T J`, which is its own transpose."""
        return solve_normal_equations(kept, v)

    def iterates(self, r: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One Jacobian an iteration; halving costs an evaluation each."""
        n = x.shape[-1]
        residual = r(x)
        check_residuals("GaussNewton", residual, x)
        if residual.shape[-1] < n:
            raise ValueError(
                f"GaussNewton: there must be at least as many residuals as unknowns, {n}; got "
                f"{residual.shape[-1]}. LevenbergMarquardt takes any number."
            )
        value = half_square(residual)
        lost = torch.zeros_like(value, dtype=torch.bool)
        while True:
            R = triangle(jacobian(r, x), residual)
            factor, rotated = R[..., :n], R[..., n:]
            p = torch.linalg.solve_triangular(factor, -rotated, upper=True)[..., 0]
            error = torch.linalg.vector_norm(p, dim=-1).masked_fill(lost, torch.nan)
            # Singular triangles give inf, which is no length to go on with.
            error = torch.where(error.isfinite(), error, torch.nan)
            running = (yield Iterate(x, error, value, (factor.mT,))).running
            decrease = (rotated * rotated).sum((-2, -1))  # the slope along p, less its sign
            columns = torch.linalg.vector_norm(factor, dim=-2)
            rounding = residual_rounding(value, columns, x) * (2.0 * value).sqrt()
            # Where even all of the decrease is rounding, values cannot tell.
            ceiling = value + torch.where(0.5 * decrease <= rounding, rounding, 0.0)
            length = torch.ones_like(value)
            waiting = running
            for _ in range(MAX_HALVINGS):
                trial = x + length[:, None] * p
                at_trial = r(trial)
                value_there = half_square(at_trial)
                waiting = waiting & ~(value_there <= ceiling - LEAST_DECREASE * length * decrease)
                if not bool(waiting.any()):
                    break
                length = torch.where(waiting, 0.5 * length, length)
            lost = lost | waiting
            moved = running & ~waiting
            x = torch.where(moved[:, None], trial, x)
            residual = torch.where(moved[:, None], at_trial, residual)
            value = torch.where(moved, value_there, value)


def triangle(J: Tensor, residual: Tensor) -> Tensor:
    """``[R, q]`` ``(B, min(m, n), n + 1)`` with ``J = Q R`` and ``q = Q^T r``, without ``Q``."""
    both = torch.cat((J, residual[..., None]), -1)
    R: Tensor = torch.linalg.qr(both, mode="r")[1]
    return R[..., : J.shape[-1], :]


def half_square(residual: Tensor) -> Tensor:
    """The objective."""
    return 0.5 * (residual * residual).sum(-1)


def residual_rounding(value: Tensor, columns: Tensor, x: Tensor) -> Tensor:
    """Norm of the rounding in residuals, which are differences of numbers that may be larger."""
    largest = (2.0 * value).sqrt() + (columns * x.abs()).sum(-1)
    return ROUNDING * torch.finfo(x.dtype).eps * largest


def solve_normal_equations(kept: tuple[Tensor, ...], v: Tensor) -> Tensor:
    """Solve with ``L L^T``."""
    solved: Tensor = torch.cholesky_solve(v[..., None], kept[0])
    return solved[..., 0]


def check_residuals(name: str, residual: Tensor, x: Tensor) -> None:
    """Refuse residuals that are not one vector a sample."""
    if residual.dim() != 2 or residual.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name}: r must return residuals (*batch, m), a vector for each of the "
            f"{x.shape[0]} samples; got {tuple(residual.shape)}. Do not sum them."
        )
