"""Newton's method with dense Jacobians: the best choice for up to some hundred unknowns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._threads import calm
from ..derivatives import jacobian
from ..iteration import DEFAULT_EPS, Iterate, Iterates
from .solver import RootSolver

# Part of the decrease that the linear model promises which a step must bring, and how often a step
# is shortened (to between a tenth and a half) before another direction is tried.
DECREASE, SHORTENINGS = 1e-4, 15


class Point(NamedTuple):
    """A point with the function there, and its norm."""

    x: Tensor
    F: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Newton(RootSolver):
    r"""Step to the root of the linear model, :math:`x \leftarrow x - J(x)^{-1} F(x)`.

    The full step is tried first and shortened until :math:`\|F\|_2` falls. Where the Jacobian is
    singular, or no part of the step helps, a regularised step takes its place (Levenberg and
    Marquardt), :math:`-(J^\top J + \mu I)^{-1} J^\top F`.

    Converges quadratically to a root where :math:`J` is regular: the number of right digits doubles
    with each step. Where it is singular, convergence is linear, with factor 1/2 at a double root.
    A step costs :math:`n` forward products and a factorisation; :class:`Broyden` does without.

    The result lies one step beyond the point whose step was short enough, so that it usually is
    right to rounding; its Jacobian's factorisation is the one of the point before.

    Attributes:
        max_iter: Iterations allowed to each sample.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, sections 11.1 and 11.2.

    Example:
        >>> import torch
        >>> from optlayers.solvers.root import Newton
        >>> squares = torch.tensor([[4.0], [9.0]], dtype=torch.float64)
        >>> Newton().solve(lambda x: x**2 - squares, torch.ones_like(squares)).x
        tensor([[2.],
                [3.]], dtype=torch.float64)
    """

    max_iter: int = 100

    def iterates(self, F: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One Jacobian an iteration, and one evaluation unless steps are shortened."""
        at = evaluate(F, x.contiguous())  # forward derivatives refuse what is expanded
        running = torch.ones_like(at.norm, dtype=torch.bool)
        lost = torch.zeros_like(running)
        while True:
            J = jacobian(F, at.x)
            with calm():  # batched LU in several threads can hang in MKL
                LU, pivots, _ = torch.linalg.lu_factor_ex(J)
                step = -torch.linalg.lu_solve(LU, pivots, at.F[..., None])[..., 0]
            error = torch.linalg.vector_norm(step, dim=-1)
            new = evaluate(F, at.x + step)
            bad = running & ~(new.norm <= (1 - DECREASE) * at.norm)
            if bool(bad.any()):
                new, error, bad = _globalised(F, at, J, step, error, bad, new)
            error = error.masked_fill(lost, torch.nan)
            lost = lost | bad  # they tell their last step before they are given up
            running = (yield Iterate(new.x, error, new.norm, (LU, pivots))).running
            # Those that are done stay, so that what is kept does not depend on the others.
            at = choose(running, new, at)

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """Solve with the Jacobian at the point before the last."""
        LU, pivots = kept
        with calm():
            x: Tensor = torch.linalg.lu_solve(LU, pivots, v[..., None], adjoint=transposed)
            return x[..., 0]


def evaluate(F: Callable[[Tensor], Tensor], x: Tensor) -> Point:
    """Evaluate a function."""
    value = F(x)
    return Point(x, value, torch.linalg.vector_norm(value, dim=-1))


def choose(mask: Tensor, ours: Point, theirs: Point) -> Point:
    """Our points where the mask holds, theirs elsewhere."""
    rows = mask[:, None]
    return Point(
        torch.where(rows, ours.x, theirs.x),
        torch.where(rows, ours.F, theirs.F),
        torch.where(mask, ours.norm, theirs.norm),
    )


def shorten(
    F: Callable[[Tensor], Tensor], at: Point, step: Tensor, wanted: Tensor, new: Point
) -> tuple[Point, Tensor]:
    """Shorten the steps of some samples until the norm falls enough.

    Args:
        F: The function.
        at: Where the steps start.
        step: Full steps ``(B, n)``.
        wanted: For whom, ``(B)``.
        new: Where the full steps lead; kept for the other samples.

    Returns:
        The points reached, and who still has none.
    """
    t, trial = torch.ones_like(at.norm), new
    for _ in range(SHORTENINGS):
        # Minimum of the parabola through what is known of the squared norm along the step.
        growth = (trial.norm / at.norm).square()
        t = t * (t / (growth - 1 + 2 * t)).nan_to_num(0.0).clamp(0.1, 0.5)
        trial = evaluate(F, at.x + t[:, None] * step)
        good = wanted & (trial.norm <= (1 - DECREASE * t) * at.norm)
        new, wanted = choose(good, trial, new), wanted & ~good
        if not bool(wanted.any()):
            break
    return new, wanted


def _globalised(
    F: Callable[[Tensor], Tensor],
    at: Point,
    J: Tensor,
    step: Tensor,
    error: Tensor,
    bad: Tensor,
    new: Point,
) -> tuple[Point, Tensor, Tensor]:
    """Better steps for samples that a full Newton step does not help; who stays where it is."""
    # So close to the root, rounding decides whether the norm falls: the step is as good as any.
    short = DEFAULT_EPS[error.dtype] * (1 + torch.linalg.vector_norm(at.x, dim=-1))
    bad = bad & ~((error <= short) & new.norm.isfinite())
    # A root already, whatever its Jacobian is.
    root = bad & (at.norm == 0)
    new, error, bad = choose(root, at, new), error.masked_fill(root, 0.0), bad & ~root
    if bool(bad.any()):
        new, bad = shorten(F, at, step, bad, new)
    if bool(bad.any()):
        step, length = _regularised(J, at)
        error = torch.where(bad, length, error)
        full = evaluate(F, at.x + step)
        good = bad & (full.norm <= (1 - DECREASE) * at.norm)
        new, bad = choose(bad, full, new), bad & ~good
        if bool(bad.any()):
            new, bad = shorten(F, at, step, bad, new)
        new = choose(bad, at, new)
    return new, error, bad


def _regularised(J: Tensor, at: Point) -> tuple[Tensor, Tensor]:
    """The step of Levenberg and Marquardt, and its length as an error."""
    gram = J.mT @ J
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # Just enough for Cholesky, so that the step is nearly the shortest root of the linear model.
    diagonal += torch.finfo(J.dtype).eps ** 0.5 * diagonal.sum(-1, keepdim=True)
    with calm():
        L, _ = torch.linalg.cholesky_ex(gram)
        step = -torch.cholesky_solve(J.mT @ at.F[..., None], L)
    # At a minimum of the norm that is no root the step is short because it cannot help.
    left = torch.linalg.vector_norm(at.F + (J @ step)[..., 0], dim=-1)
    step = step[..., 0]
    length = torch.linalg.vector_norm(step, dim=-1)
    return step, torch.where(left <= 0.5 * at.norm, length, torch.inf)
