"""Levenberg-Marquardt: least squares from poor starts, each sample with its own damping."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..derivatives import jacobian
from ..iteration import Iterate, Iterates
from .gauss_newton import (
    check_residuals,
    half_square,
    residual_rounding,
    solve_normal_equations,
    triangle,
)
from .solver import LeastSquaresSolver

TRIALS = 4  # with one Jacobian: a trial costs much less
LEAST_GAIN, POOR_GAIN, GOOD_GAIN, FULL_GAIN = 1e-4, 0.25, 0.75, 0.95
LESS, MORE = 0.1, 8.0
MAX_DAMPING = 1e16


@dataclass(frozen=True)
class LevenbergMarquardt(LeastSquaresSolver):
    r"""Minimise :math:`\tfrac12\|r(x)\|_2^2` by damped Gauss-Newton steps.

    .. math:: p = \arg\min_p \|J p + r\|_2^2 + \lambda \|D p\|_2^2

    where :math:`D` holds the largest norms that the columns of :math:`J` have had, so that
    the units of the parameters do not matter. A step that does not lower the sum of squares as the
    linear model promises is not taken, and the sample's :math:`\lambda` grows; else it shrinks, and
    the method ends almost as fast as :class:`GaussNewton`: superlinearly if the residuals vanish,
    else linearly. Problems are solved by QR factorisations, never through :math:`J^\top J`.

    A sample stops when the step without damping is short, or when every column of :math:`J` is
    orthogonal to the residuals up to rounding. Columns of :math:`J` may depend on each other, and
    there may be fewer residuals than unknowns.

    Attributes:
        max_iter: Iterations, one Jacobian each.
        damping: The first :math:`\lambda`. More keeps the first steps from going far.

    References:
        Marquardt, *An algorithm for least-squares estimation of nonlinear parameters*, SIAM J. 11
        (1963). Moré, *The Levenberg-Marquardt algorithm: implementation and theory*, Lecture Notes
        in Mathematics 630 (1978), sections 3 and 6.

    Example:
        >>> import torch
        >>> t = torch.linspace(0, 2, 9, dtype=torch.float64)
        >>> y = 2 * torch.exp(-0.5 * t) + 1
        >>> def residual(p):
        ...     a, k, c = p.unsqueeze(-1).unbind(-2)
        ...     return a * torch.exp(-k * t) + c - y
        >>> LevenbergMarquardt().solve(residual, torch.zeros(3, dtype=torch.float64)).x
        tensor([2.0000, 0.5000, 1.0000], dtype=torch.float64)
    """

    max_iter: int = 200
    damping: float = 1e-2

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """Solve with :math:`J^T J`, which is its own transpose."""
        return solve_normal_equations(kept, v)

    def iterates(self, r: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One Jacobian and up to ``TRIALS`` evaluations an iteration."""
        if not self.damping > 0.0:
            raise ValueError(
                f"LevenbergMarquardt: damping must be positive; got {self.damping}. "
                "GaussNewton has none."
            )
        n, eps = x.shape[-1], torch.finfo(x.dtype).eps
        residual = r(x)
        check_residuals("LevenbergMarquardt", residual, x)
        value = half_square(residual)
        damping = torch.full_like(value, self.damping)
        none, largest = torch.full_like(value, eps), torch.zeros_like(x)
        blind, before = torch.zeros_like(value, dtype=torch.bool), x
        while True:
            R = triangle(jacobian(r, x), residual)
            factor, rotated = R[..., :n], R[..., n]
            columns = torch.linalg.vector_norm(factor, dim=-2)
            largest = torch.maximum(largest, columns)
            # Damping by rounding is none, but for directions that the residuals do not see.
            undamped, triangular = damped_step(R, columns, none)
            gradient = (factor * rotated[..., None]).sum(-2)
            noise = residual_rounding(value, columns, x)
            error = torch.linalg.vector_norm(undamped, dim=-1)
            error = torch.where((gradient.abs() <= noise[:, None] * columns).all(-1), 0.0, error)
            if bool(blind.any()):
                damping = _judge_by_steps(damping, columns * before, columns * undamped, blind)
                damping = damping.clamp(min=eps)
            error = torch.where(damping < MAX_DAMPING, error, torch.nan)
            running = (yield Iterate(x, error, value, (triangular.mT,))).running
            waiting, before = running, undamped
            rounding = noise * (2.0 * value).sqrt()
            blind = torch.zeros_like(running)
            for _ in range(TRIALS):
                p = damped_step(R, largest, damping)[0]
                trial = x + p
                at_trial = r(trial)
                value_there = half_square(at_trial)
                bent = (factor @ p[..., None])[..., 0]
                square = (largest * p).square().sum(-1)
                promised = 0.5 * (bent * bent).sum(-1) + damping * square
                gain = (value - value_there) / promised
                # Where all that is promised is rounding, values cannot tell.
                same = (promised <= rounding) & (value_there - value <= rounding)
                good = waiting & ((gain > LEAST_GAIN) | same)
                blind = blind | (good & same)
                x = torch.where(good[:, None], trial, x)
                residual = torch.where(good[:, None], at_trial, residual)
                value = torch.where(good, value_there, value)
                less = good & (gain > GOOD_GAIN) & ~same
                more = waiting & (~good | ((gain < POOR_GAIN) & ~same))
                factor_less = torch.where(gain > FULL_GAIN, LESS * LESS, LESS)
                damping = torch.where(less, (factor_less * damping).clamp(min=eps), damping)
                damping = torch.where(more, MORE * damping, damping)
                waiting = waiting & ~good
                if not bool(waiting.any()):
                    break


def _judge_by_steps(damping: Tensor, before: Tensor, now: Tensor, blind: Tensor) -> Tensor:
    """Where values could not tell: a step that has hardly become shorter wants other damping.

    More if it comes back, because the last went too far, and less if it goes on.
    """
    slow = blind & ((now * now).sum(-1) > 0.25 * (before * before).sum(-1))
    back = (now * before).sum(-1) < 0.0
    return torch.where(slow, torch.where(back, MORE, LESS) * damping, damping)


def damped_step(R: Tensor, scale: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    r"""The minimiser of :math:`\|R p + q\|^2 + \lambda\|D p\|^2`, and the triangle it came from."""
    n = R.shape[-1] - 1
    # A parameter without effect has to be damped by something.
    scale = torch.where(scale > 0.0, scale, 1.0)
    D = torch.diag_embed(damping.sqrt()[:, None] * scale)
    below = torch.cat((D, torch.zeros_like(scale)[..., None]), -1)
    both: Tensor = torch.linalg.qr(torch.cat((R, below), -2), mode="r")[1]
    triangular = both[..., :n, :n]
    p: Tensor = torch.linalg.solve_triangular(triangular, -both[..., :n, n:], upper=True)
    return p[..., 0], triangular
