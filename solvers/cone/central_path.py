r"""Points of the central path: the optimality conditions with the smoothed projection."""

from .judge import Candidates, Judge
from .scaling import Points
from .stack import Stack

# Where Newton's method has arrived: absolute and relative error of the conditions.
EPSILON = 1e-11
MAX_STEPS, MAX_HALVINGS = 50, 30
# Strengths of the barrier on the way, where the direct way is too far.
FIRST, FACTOR = 1e2, 0.2


def central_point(program: Stack, start: Points, mu: float) -> Points | None:
    """The point with barrier ``mu``; None if there is none.

    Args:
        program: A stack of one.
        start: A point to start from, as the solution, in the units of the program.
        mu: Strength of the barrier, in the user's units.
    """
    if program.scaling is not None:
        mu = mu / float(program.scaling.of_value[0])
    found = _newton(program, start, mu)
    if found is None:  # from far out, where the path is nearly straight
        strength = FIRST * max(1.0, mu)
        while strength > mu:
            way = _newton(program, start, strength)
            start = start if way is None else way.points
            strength *= FACTOR
        found = _newton(program, start, mu)
    return None if found is None else found.points


def _newton(program: Stack, start: Points, mu: float) -> Candidates | None:
    """Newton's method with halved steps, until the error is gone or no longer shrinks."""
    judge = Judge(program, EPSILON, EPSILON, mu)
    best = judge.measure(start)
    for _ in range(MAX_STEPS):
        if best.error[0] <= 1.0:
            return best
        step = judge.step(best, judge.linearise(best))
        length = 1.0
        for _ in range(MAX_HALVINGS):
            candidate = judge.measure(best.moved(step, length))
            if candidate.norm[0] < (1 - 0.1 * length) * best.norm[0]:
                break
            length *= 0.5
        else:
            return None
        best = candidate
    return None
