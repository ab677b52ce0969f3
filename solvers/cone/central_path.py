r"""Points of the central path: the optimality conditions with the smoothed projection."""

import numpy as np
from numpy.typing import NDArray

from .cone_program import Instances
from .judge import Candidate, Judge

Floats = NDArray[np.float64]

# Where Newton's method has arrived: absolute and relative error of the conditions.
EPSILON = 1e-11
MAX_STEPS, MAX_HALVINGS = 50, 30
# Strengths of the barrier on the way, where the direct way is too far.
FIRST, FACTOR = 1e2, 0.2


def central_point(
    instances: Instances, i: int, x: Floats, v: Floats, mu: float
) -> tuple[Floats, Floats, Floats] | None:
    """The point ``x, s, z`` with barrier ``mu``; None if there is none.

    Args:
        instances: The programs.
        i: Which of them is meant.
        x: A point to start from ``(n)``, as the solution.
        v: Slack minus multiplier there ``(m)``.
        mu: Strength of the barrier.
    """
    found = _newton(instances, i, x, v, mu)
    if found is None:  # from far out, where the path is nearly straight
        strength = FIRST * max(1.0, mu)
        while strength > mu:
            way = _newton(instances, i, x, v, strength)
            if way is not None:
                x, v = way.x, way.v
            strength *= FACTOR
        found = _newton(instances, i, x, v, mu)
    return None if found is None else (found.x, found.s, found.z)


def _newton(instances: Instances, i: int, x: Floats, v: Floats, mu: float) -> Candidate | None:
    """Newton's method with halved steps, until the error is gone or no longer shrinks."""
    judge = Judge(instances, EPSILON, EPSILON, mu)
    (best,) = judge.measure([i], [(x, v)])
    for _ in range(MAX_STEPS):
        if best.error <= 1.0:
            return best
        ((dx, dv),) = judge.steps([i], [best])
        length = 1.0
        for _ in range(MAX_HALVINGS):
            (candidate,) = judge.measure([i], [(best.x + length * dx, best.v + length * dv)])
            if candidate.norm < (1 - 0.1 * length) * best.norm:
                break
            length *= 0.5
        else:
            return None
        best = candidate
    return None
