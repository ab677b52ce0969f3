"""The root of a decreasing function, a batch at once and without asking whether it is done."""

from collections.abc import Callable

import numpy as np
import torch

from .arrays import Array, library

# Newton's method alone takes 5 to 10; the rest is for elements that must bisect first.
STEPS = 22
# After a step of Newton's method as short as this, relative to 1 or the point, rounding is all that
# is left: the square root of the precision with something to spare.
SHORT = 0.1


def decreasing_root(
    evaluate: Callable[[Array], tuple[Array, Array]],
    low: Array,
    high: Array,
    start: Array | None = None,
) -> Array:
    r"""Newton's method that bisects where it leaves the bracket or does not halve its step.

    If the function has no sign change, the end is approached where its value is nearest to 0. Only
    on a CPU, outside of transforms, it is asked whether all are done; elsewhere the number of steps
    is fixed. Elements that are done stay where they are, so that the company does not matter.

    Args:
        evaluate: Gives value and slope, shape ``(*batch)``, at a point ``(*batch)``.
        low: Left ends, shape ``(*batch)``.
        high: Right ends, shape ``(*batch)``.
        start: Where to begin; by default in the middle.

    Returns:
        The evaluated points whose values are nearest to 0, shape ``(*batch)``.

    References:
        Press, Teukolsky, Vetterling and Flannery, *Numerical Recipes*, 3rd ed. (2007), section 9.4.
    """
    xp = library(low)
    x = (low + high) / 2 if start is None else start
    step = high - low
    best, error = x, xp.full_like(x, xp.inf)
    running = error > 0
    short = ~running
    reach = SHORT * xp.finfo(x.dtype).eps ** 0.5
    for _ in range(STEPS):
        value, slope = evaluate(x)
        size = abs(value)
        better = running & (size < error)
        best, error = xp.where(better, x, best), xp.where(better, size, error)
        positive = value > 0
        low, high = xp.where(positive, x, low), xp.where(positive, high, x)
        # 0/0 where a value underflows gives NaN, which compares false: it bisects.
        newton = x - value / slope
        trusted = (newton >= low) & (newton <= high) & (abs(newton - x) <= abs(step) / 2)
        following = xp.where(trusted, newton, (low + high) / 2)
        step, x = following - x, following
        running = running & ~short
        if _may_ask(running) and not bool(running.any()):
            break
        short = trusted & (abs(step) <= reach * (1 + abs(x)))
    return best


def _may_ask(mask: Array) -> bool:
    """Whether the answer is at hand and may decide what is done."""
    return isinstance(mask, np.ndarray) or (
        mask.device.type == "cpu" and not torch._C._are_functorch_transforms_active()
    )
