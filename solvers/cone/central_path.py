r"""Points of the central path: the optimality conditions with the smoothed projection."""

from .cone_program import Instances
from .judge import Candidate, Judge, Point

# Where Newton's method has arrived: absolute and relative error of the conditions.
EPSILON = 1e-11
MAX_STEPS, MAX_HALVINGS = 50, 30
# Strengths of the barrier on the way, where the direct way is too far.
FIRST, FACTOR = 1e2, 0.2


def central_point(instances: Instances, i: int, start: Point, mu: float) -> Candidate | None:
    """The point with barrier ``mu``; None if there is none.

    Args:
        instances: The programs.
        i: Which of them is meant.
        start: A point to start from, as the solution.
        mu: Strength of the barrier.
    """
    found = _newton(instances, i, start, mu)
    if found is None:  # from far out, where the path is nearly straight
        strength = FIRST * max(1.0, mu)
        while strength > mu:
            way = _newton(instances, i, start, strength)
            if way is not None:
                start = Point(way.x, way.s, way.z)
            strength *= FACTOR
        found = _newton(instances, i, start, mu)
    return found


def _newton(instances: Instances, i: int, start: Point, mu: float) -> Candidate | None:
    """Newton's method with halved steps, until the error is gone or no longer shrinks."""
    scaling = instances.scaling(i)
    judge = Judge(instances, EPSILON, EPSILON, mu if scaling is None else mu / scaling.of_value)
    (best,) = judge.measure([i], [start])
    for _ in range(MAX_STEPS):
        if best.error <= 1.0:
            return best
        (conditions,) = judge.linearise([i], [best])
        step = judge.step(i, best, conditions)
        length = 1.0
        for _ in range(MAX_HALVINGS):
            (candidate,) = judge.measure([i], [best.moved(step, length)])
            if candidate.norm < (1 - 0.1 * length) * best.norm:
                break
            length *= 0.5
        else:
            return None
        best = candidate
    return None
