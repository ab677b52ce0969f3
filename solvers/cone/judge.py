r"""How good candidates are, on the programs as the user posed them, and Newton's method on them.

A candidate is a pair ``x, v``: slack and multiplier are :math:`s = \Pi_K(v)` and :math:`z = s - v`,
so that both are in their cones and orthogonal, and what is left are the linear equations.
"""

from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..solution import Status
from .arrays import largest
from .boundary import Boundary
from .kkt import Linearised
from .scaling import Points
from .stack import Stack

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

# Residuals up to this multiple of the tolerance are inaccurate, beyond it there is no solution.
INACCURATE = 1e3
# Share of the tolerance at which Newton's method has nothing to better.
EXACT = 1e-4
# An entry of a residual that is larger than this share of its terms is not solved, unless it is
# rounding, which is below this share of the largest terms.
UNEVEN, ROUNDING = 0.1, 1e-13
# A step that shrinks the error by as much is worth another one with the same factor.
QUICKLY = 1e-2


class Candidates(NamedTuple):
    """Points and their residuals, one for each program.

    Attributes:
        x: ``(B, n)``.
        s: Slacks ``(B, m)``, in the cone.
        z: Multipliers ``(B, m)``, in the dual cone.
        r_x: Gradients of the Lagrangian ``(B, n)``.
        r_s: Violations of the rows ``(B, m)``.
        objective: Values of the objective ``(B)``.
        gap: Absolute duality gaps ``(B)``.
        error: Largest residuals relative to what is allowed: at most 1 means solved ``(B)``.
    """

    x: Floats
    s: Floats
    z: Floats
    r_x: Floats
    r_s: Floats
    objective: Floats
    gap: Floats
    error: Floats

    @property
    def points(self) -> Points:
        """The points alone."""
        return Points(self.x, self.s, self.z)

    def take(self, which: Integers) -> "Candidates":
        """Some of them, in their order."""
        return self if len(which) == len(self.error) else Candidates(*(t[which] for t in self))

    def replaced(self, which: Integers, others: "Candidates", mask: Booleans) -> "Candidates":
        """These, with those of ``others`` that ``mask`` says in the places ``which``."""
        if len(which) == len(self.error) and mask.all():
            return others
        whole, places = Candidates(*(t.copy() for t in self)), which[mask]
        for own, other in zip(whole, others, strict=True):
            own[places] = other[mask]
        return whole

    def moved(self, step: Points, length: float = 1.0) -> Points:
        """The points some way along a step."""
        return Points(*(a + length * d for a, d in zip(self.points, step, strict=True)))

    @property
    @np.errstate(over="ignore")
    def norm(self) -> Floats:
        """Length of both residuals, along which Newton's steps descend ``(B)``."""
        length: Floats = np.sqrt(np.vecdot(self.r_x, self.r_x) + np.vecdot(self.r_s, self.r_s))
        return length

    def status(self, claims: Integers) -> Integers:
        """SOLVED or SOLVED_INACCURATE where the residuals say so, else what the solver claims."""
        wrong = np.where(
            claims <= int(Status.SOLVED_INACCURATE), int(Status.NUMERICAL_ERROR), claims
        )
        near = (self.error <= INACCURATE) & (claims <= int(Status.MAX_ITERATIONS))
        inexact = np.where(near, int(Status.SOLVED_INACCURATE), wrong)
        return np.where(self.error <= 1.0, int(Status.SOLVED), inexact)


class Judge:
    """Measures candidates for a stack of programs.

    Args:
        stack: The programs.
        eps_abs: Absolute tolerance, the same for all three residuals.
        eps_rel: Tolerance relative to the largest term that enters a residual.
        mu: Smoothing of the projection; the gap of a smoothed point does not count.
    """

    def __init__(self, stack: Stack, eps_abs: float, eps_rel: float, mu: float = 0.0) -> None:
        self.stack, self.mu = stack, mu
        self.eps_abs, self.eps_rel = eps_abs, eps_rel

    def of(self, which: Integers) -> "Judge":
        """The same for some of the programs."""
        return Judge(self.stack.take(which), self.eps_abs, self.eps_rel, self.mu)

    @np.errstate(all="ignore")
    def measure(self, points: Points) -> Candidates:
        """Candidates near points, one for each program."""
        x, v = points.x, points.s - points.z
        P, A, q, b = self.stack.P, self.stack.A, self.stack.q, self.stack.b
        s = self.stack.cones.nearest(v, points.s, self.mu)
        z = s - v
        Px, Ax, pull = P.symmetric_times(x), A.times(x), A.transposed_times(z)
        r_x, r_s = Px + q + pull, Ax + s - b
        quadratic, linear, support = np.vecdot(x, Px), np.vecdot(x, q), np.vecdot(b, z)
        gap = abs(quadratic + linear + support)
        error = np.maximum(
            self._excess(largest(r_s), reduce(np.maximum, map(largest, (Ax, s, b)))),
            self._excess(largest(r_x), reduce(np.maximum, map(largest, (Px, q, pull)))),
        )
        if not self.mu:
            scale = abs(quadratic) + abs(linear) + abs(support)
            error = np.maximum(error, self._excess(gap, scale))
        error = np.where(np.isfinite(error + gap), error, np.inf)  # NaN is infinitely wrong
        return Candidates(x, s, z, r_x, r_s, 0.5 * quadratic + linear, gap, error)

    def are_even(self, found: Candidates) -> Booleans:
        """Whether small entries are solved as well, which large ones hide from the tolerances.

        An entry of a residual that is all that its terms are, while these are far above rounding,
        says that a variable or a row has not been looked at.
        """
        if (largest(found.r_x) <= ROUNDING).all() and (largest(found.r_s) <= ROUNDING).all():
            return np.ones(len(found.error), bool)
        P, A = self.stack.P.absolute(), self.stack.A.absolute()
        x, z = abs(found.x), abs(found.z)
        of_x = abs(self.stack.q) + P.symmetric_times(x) + A.transposed_times(z)
        of_s = abs(self.stack.b) + A.times(x) + abs(found.s)
        return _are_even(abs(found.r_x), of_x) & _are_even(abs(found.r_s), of_s)

    def _excess(self, residual: Floats, scale: Floats) -> Floats:
        return residual / (self.eps_abs + self.eps_rel * scale)

    def linearise(self, at: Candidates) -> Linearised:
        """The conditions around candidates, one for each program."""
        boundary = Boundary(self.stack.cones, at.s - at.z, at.s, self.mu)
        return Linearised(self.stack, boundary)

    def step(self, at: Candidates, conditions: Linearised, which: Integers | None = None) -> Points:
        """Newton's steps, with the conditions around these or nearby points."""
        found = conditions.solve(-at.r_x[..., None], -at.r_s[..., None], which, rough=True)
        dx = found.x[..., 0]
        return Points(dx, -at.r_s - self.stack.A.times(dx), found.z[..., 0])

    def refine(self, start: Candidates, max_steps: int) -> Candidates:
        """Better candidates by Newton's method, each as long as it does get better.

        The projection has kinks, so this is safe near a solution only: a step that shrinks neither
        the error nor the residuals' length is not taken. A row that changes sides may raise the one
        for a step, where many are close to their kinks. As long as steps shrink the error a lot,
        the conditions around the first point serve the next ones as well.
        """
        best, here, going = start, start, np.arange(len(start.error))
        # The conditions that each has: which ones, and the number there.
        made: list[Linearised] = []
        source, place = np.full(len(going), -1), np.zeros(len(going), np.int64)
        for _ in range(max_steps):
            kept = np.flatnonzero((here.error > EXACT) & (here.error < np.inf))
            going, here = going[kept], here.take(kept)
            if not len(going):
                break
            judge = self.of(going)
            fresh = np.flatnonzero(source[going] < 0)
            if len(fresh):
                made.append(judge.of(fresh).linearise(here.take(fresh)))
                source[going[fresh]], place[going[fresh]] = len(made) - 1, np.arange(len(fresh))
            step = here.points
            for number in set(source[going].tolist()):
                own = np.flatnonzero(source[going] == number)
                part = judge.of(own).step(here.take(own), made[number], place[going[own]])
                step = step.put(own, part)
            moved = judge.measure(here.moved(step))
            source[going[~(moved.error < QUICKLY * here.error)]] = -1
            best = best.replaced(going, moved, moved.error < best.error[going])
            better = np.flatnonzero((moved.error < here.error) | (moved.norm < here.norm))
            going, here = going[better], moved.take(better)
        return best


def _are_even(residual: Floats, terms: Floats) -> Booleans:
    # Where a solution is zero its terms are rounding themselves; programs come in units near one.
    rounding = ROUNDING * np.maximum(1.0, largest(terms))[:, None]
    even: Booleans = np.all(~(residual > np.maximum(UNEVEN * terms, rounding)), axis=1)
    return even
