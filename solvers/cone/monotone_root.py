"""The root of a decreasing function, a batch at once and without asking whether it is done."""

from collections.abc import Callable

import torch
from torch import Tensor

# Newton's method alone takes 5 to 10; the rest is for elements that must bisect first.
STEPS = 22


def decreasing_root(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], low: Tensor, high: Tensor
) -> Tensor:
    r"""Newton's method that bisects where it leaves the bracket or does not halve its step.

    If the function has no sign change, the end is approached where its value is nearest to 0. The
    number of steps is fixed, so that nothing waits for a GPU and the code may be mapped by
    ``torch.func.vmap``.

    Args:
        evaluate: Gives value and slope, shape ``(*batch)``, at a point ``(*batch)``.
        low: Left ends, shape ``(*batch)``.
        high: Right ends, shape ``(*batch)``.

    Returns:
        The evaluated points whose values are nearest to 0, shape ``(*batch)``.

    References:
        Press, Teukolsky, Vetterling and Flannery, *Numerical Recipes*, 3rd ed. (2007), section 9.4.
    """
    x = (low + high) / 2
    step = high - low
    best, error = x, torch.full_like(x, torch.inf)
    for _ in range(STEPS):
        value, slope = evaluate(x)
        better = value.abs() < error
        best, error = torch.where(better, x, best), torch.where(better, value.abs(), error)
        positive = value > 0
        low, high = torch.where(positive, x, low), torch.where(positive, high, x)
        # 0/0 where a value underflows gives NaN, which compares false: it bisects.
        newton = x - value / slope
        trusted = (newton >= low) & (newton <= high) & ((newton - x).abs() <= step.abs() / 2)
        following = torch.where(trusted, newton, (low + high) / 2)
        step, x = following - x, following
    return best
