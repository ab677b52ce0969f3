"""How far to go along a direction: one search for a whole batch, each sample with its own bracket.

Differences of values are lost in rounding at a distance of about the square root of precision from
a minimum, slopes are not. So besides the usual test of sufficient decrease there is one on slopes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import gradient as gradient_of
from ..derivatives import value_and_gradient

Function = Callable[[Tensor], Tensor]

MAX_TRIALS = 30
# What the last trial made of the interval to search: within these parts of it, whatever a parabola
# says, and a part of it where the function was not finite.
LEAST_PART, LEAST_GROWTH, MOST_GROWTH, PART_IF_NOT_FINITE = 0.01, 0.1, 9.0, 0.1


class Point(NamedTuple):
    """Where a search ended.

    Attributes:
        t: Lengths ``(B)``, in units of the direction.
        x: ``(B, n)``.
        value: ``(B)``.
        gradient: ``(B, n)``.
        failed: Samples for which no step was acceptable, where they are, or for which the function
            fell as far as one looked, ``(B)``; None if there are none.
    """

    t: Tensor
    x: Tensor
    value: Tensor
    gradient: Tensor
    failed: Tensor | None


def rounding_allowance(value: Tensor, before: Tensor | None = None) -> Tensor:
    """By how much values may rise if slopes say that the function falls ``(B)``.

    It follows the size of the values slowly, because they may cancel at the minimum.
    """
    now = value.abs() * torch.finfo(value.dtype).eps ** 0.5
    return now if before is None else torch.maximum(now, 0.9 * before)


def first_step(f: Function, x: Tensor, gradient: Tensor) -> Tensor:
    """Length of a first step along the negative gradient, from the curvature along it ``(B)``.

    One more gradient makes a method independent of the scales of the function and of ``x``, saves
    the search for the first step, and is enough to know that a start is a minimum.
    """
    length = vector_norm(gradient, dim=-1)
    reach = 1 + vector_norm(x, dim=-1)
    h = torch.finfo(x.dtype).eps ** 0.5 * reach
    s = gradient * (-h / length)[:, None].nan_to_num(0.0, 0.0, 0.0)
    y = gradient_of(f, x + s) - gradient
    sy = vecdot(s, y)
    # Where the curvature is negative, its size is still the scale.
    t = torch.where(sy > 0, h * h / sy, h / vector_norm(y, dim=-1))
    longest = 10 * reach / length
    return torch.where(length > 0, torch.where(t < longest, t, longest), torch.ones_like(t))


def search(
    f: Function,
    start: tuple[Tensor, Tensor, Tensor],
    direction: Tensor,
    t: Tensor,
    running: Tensor,
    allowance: Tensor,
    *,
    decrease: float = 1e-4,
    curvature: float | None = 0.9,
    strong: bool = False,
    ceiling: Tensor | None = None,
) -> Point:
    r"""Find steps that satisfy the conditions of Wolfe, or Armijo's alone.

    With :math:`\phi(t) = f(x + t d)`, decrease :math:`\delta` and curvature :math:`\sigma`, a step
    is accepted if

    .. math::
        \phi(t) \le \phi(0) + \delta t \phi'(0) \quad\text{or}\quad
        \phi'(t) \le (2\delta - 1) \phi'(0),\; \phi(t) \le \phi(0) + \text{allowance},

    and :math:`\phi'(t) \ge \sigma \phi'(0)`; for the strong conditions
    :math:`|\phi'(t)| \le \sigma |\phi'(0)|`. The next trial is the minimum of the parabola through
    the slopes at the ends of the bracket, so the second one is exact on quadratics; for Armijo's
    condition alone it is half the last one.

    Args:
        f: Maps ``(B, n)`` to ``(B)``.
        start: Points ``(B, n)``, values ``(B)`` and gradients ``(B, n)`` to start from.
        direction: ``(B, n)``.
        t: First trial ``(B)``.
        running: Samples to look at ``(B)``; for the others any result will do.
        allowance: As of :func:`rounding_allowance`.
        decrease: :math:`\delta`, below a half.
        curvature: :math:`\sigma`; None leaves the second condition out, and steps only get shorter.
        strong: Whether to ask for the strong conditions.
        ceiling: What to compare values with in place of the one at the start ``(B)``.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, section 3.1; Hager and
        Zhang, *A new conjugate gradient method with guaranteed descent and an efficient line
        search*, SIAM J. Optim. 16 (2005), section 4.
    """
    x, value, gradient = start
    slope = vecdot(gradient, direction)
    low, high = torch.zeros_like(t), torch.full_like(t, torch.inf)
    slope_low, slope_high = slope, high
    ceiling = value if ceiling is None else ceiling
    highest, steepest = value + allowance, (2 * decrease - 1) * slope
    pending = running
    for trial in range(MAX_TRIALS):
        x_t = torch.addcmul(x, t[:, None], direction)
        value_t, gradient_t = value_and_gradient(f, x_t)
        slope_t = vecdot(gradient_t, direction)
        fallen = value_t <= ceiling + decrease * t * slope
        fallen = fallen | ((value_t <= highest) & (slope_t <= steepest))
        finite = torch.isfinite(value_t)
        fallen = fallen & finite
        if curvature is None:
            accepted = fallen
        elif strong:
            accepted = fallen & (slope_t.abs() <= -curvature * slope)
        else:
            accepted = fallen & (slope_t >= curvature * slope)
        if trial == 0:
            found = Point(t, x_t, value_t, gradient_t, None)
        else:
            found = _choose(pending, Point(t, x_t, value_t, gradient_t, None), found)
        pending = pending & ~accepted
        if not bool(pending.any()):
            return found
        too_long = ~fallen | (slope_t > 0)
        # Beyond the last trial: where the slope would be zero, going on as it changed so far.
        growth = slope_t / (slope_low - slope_t)
        growth = torch.where(growth >= 0, growth, MOST_GROWTH).clamp(LEAST_GROWTH, MOST_GROWTH)
        beyond = t + (t - low) * growth
        high, slope_high = (
            torch.where(too_long, t, high),
            torch.where(too_long, slope_t, slope_high),
        )
        low, slope_low = (
            torch.where(too_long, low, t),
            torch.where(too_long, slope_low, slope_t),
        )
        # Inside the bracket, by halves every other time, which no shape of a function slows down.
        # Steps that need not be near a minimum are better off with halves only.
        part = slope_low / (slope_low - slope_high)
        parabolas = curvature is not None and (trial == 0 or trial % 2 == 1)
        usable = (part > 0) & (slope_high > 0) & parabolas
        part = torch.where(usable, part.clamp(LEAST_PART, 1 - LEAST_PART), 0.5)
        part = torch.where(finite | ~too_long, part, PART_IF_NOT_FINITE)
        inside = low + part * (high - low)
        t = torch.where(pending, torch.where(torch.isfinite(high), inside, beyond), found.t)
    # The longest step that was at least a decrease.
    t = torch.where(pending, low, found.t)
    x_t = torch.addcmul(x, t[:, None], direction)
    found = _choose(pending, Point(t, x_t, *value_and_gradient(f, x_t), None), found)
    # A function that still falls at the end of all trials has no minimum this way.
    failed = pending & (~(low > 0) | high.isinf())
    return found._replace(failed=failed) if bool(failed.any()) else found


def _choose(mask: Tensor, a: Point, b: Point) -> Point:
    column = mask[:, None]
    return Point(
        torch.where(mask, a.t, b.t),
        torch.where(column, a.x, b.x),
        torch.where(mask, a.value, b.value),
        torch.where(column, a.gradient, b.gradient),
        None,
    )


def without_a_way(x: Tensor, hopeless: Tensor) -> Tensor:
    """NaN in place of the samples that cannot get on: what follows from them tells the loop."""
    return torch.where(hopeless[:, None], torch.nan, x)
