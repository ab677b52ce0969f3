r"""How good candidates are, on the programs as the user posed them, and Newton's method on them.

A candidate is a pair ``x, v``: slack and multiplier are :math:`s = \Pi_K(v)` and :math:`z = s - v`,
so that both are in their cones and orthogonal, and what is left are the linear equations.
Projections are taken for a whole batch at once, everything else for one program at a time: results
then do not depend on the company.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .._threads import spread
from ..solution import Status
from .cone_program import Instance, Instances
from .kkt import Boundary, Linearised

Floats = NDArray[np.float64]

# Residuals up to this multiple of the tolerance are inaccurate, beyond it there is no solution.
INACCURATE = 1e3
# Share of the tolerance at which Newton's method has nothing to better.
EXACT = 1e-4
# An entry of a residual that is larger than this share of its terms is not solved, unless it is
# rounding, which is below this share of the largest terms.
UNEVEN, ROUNDING = 0.1, 1e-13
# A step that shrinks the error by as much is worth another one with the same factor.
QUICKLY = 1e-2


class Point(NamedTuple):
    """A point ``x`` ``(n)`` with slack and multiplier ``s, z`` ``(m)``, or a step between two."""

    x: Floats
    s: Floats
    z: Floats


class Candidate(NamedTuple):
    """A point and its residuals.

    Attributes:
        x: ``(n)``.
        s: Slack ``(m)``, in the cone.
        z: Multiplier ``(m)``, in the dual cone.
        r_x: Gradient of the Lagrangian ``(n)``.
        r_s: Violation of the rows ``(m)``.
        objective: Value of the objective.
        gap: Absolute duality gap.
        error: Largest residual relative to what is allowed: at most 1 means solved.
    """

    x: Floats
    s: Floats
    z: Floats
    r_x: Floats
    r_s: Floats
    objective: float
    gap: float
    error: float

    def moved(self, step: Point, length: float = 1.0) -> Point:
        """The point some way along a step."""
        return Point(*(a + length * d for a, d in zip(self[:3], step, strict=True)))

    @property
    def norm(self) -> float:
        """Length of both residuals, along which Newton's steps descend."""
        return float(np.hypot(np.linalg.norm(self.r_x), np.linalg.norm(self.r_s)))

    def status(self, claim: Status) -> Status:
        """SOLVED or SOLVED_INACCURATE where the residuals say so, else what the solver claims."""
        if self.error <= 1.0:
            return Status.SOLVED
        if self.error <= INACCURATE and claim <= Status.MAX_ITERATIONS:
            return Status.SOLVED_INACCURATE
        return Status.NUMERICAL_ERROR if claim <= Status.SOLVED_INACCURATE else claim


class Judge:
    """Measures candidates for the programs of a batch.

    Args:
        instances: The programs.
        eps_abs: Absolute tolerance, the same for all three residuals.
        eps_rel: Tolerance relative to the largest term that enters a residual.
        mu: Smoothing of the projection; the gap of a smoothed point does not count.
    """

    def __init__(
        self, instances: Instances, eps_abs: float, eps_rel: float, mu: float = 0.0
    ) -> None:
        self.instances, self.mu = instances, mu
        self.eps_abs, self.eps_rel = eps_abs, eps_rel

    def measure(self, which: list[int], points: list[Point]) -> list[Candidate]:
        """Candidates near points, one for each program in ``which``."""
        if not which:
            return []
        v = np.stack([p.s - p.z for p in points])
        near = torch.from_numpy(np.stack([p.s for p in points]))
        s = self.instances.cones.project(torch.from_numpy(v), self.mu, near).numpy()

        def one(j: int) -> Candidate:
            return self._measure(self.instances[which[j]], points[j].x, s[j], s[j] - v[j])

        return [one(j) for j in range(len(which))]

    @np.errstate(all="ignore")
    def _measure(self, instance: Instance, x: Floats, s: Floats, z: Floats) -> Candidate:
        P, q, A, b = instance
        Px, Ax, pull = P.symmetric_times(x), A.times(x), A.transposed_times(z)
        r_x, r_s = Px + q + pull, Ax + s - b
        quadratic, linear, support = float(x @ Px), float(x @ q), float(b @ z)
        gap = abs(quadratic + linear + support)
        error = max(
            self._excess(_size(r_s), max(_size(Ax), _size(s), _size(b))),
            self._excess(_size(r_x), max(_size(Px), _size(q), _size(pull))),
            0.0 if self.mu else self._excess(gap, abs(quadratic) + abs(linear) + abs(support)),
        )
        if not np.isfinite(error + gap):  # NaN counts as infinitely wrong
            error = float("inf")
        return Candidate(x, s, z, r_x, r_s, 0.5 * quadratic + linear, gap, error)

    def is_even(self, i: int, found: Candidate) -> bool:
        """Whether small entries are solved as well, which large ones hide from the tolerances.

        An entry of a residual that is all that its terms are, while these are far above rounding,
        says that a variable or a row has not been looked at.
        """
        P, q, A, b = self.instances[i]
        A, x, z = A.absolute(), abs(found.x), abs(found.z)
        of_x = abs(q) + P.absolute().symmetric_times(x) + A.transposed_times(z)
        of_s = abs(b) + A.times(x) + abs(found.s)
        return _is_even(abs(found.r_x), of_x) and _is_even(abs(found.r_s), of_s)

    def _excess(self, residual: float, scale: float) -> float:
        return residual / (self.eps_abs + self.eps_rel * scale)

    def linearise(self, which: list[int], at: list[Candidate]) -> list[Linearised]:
        """The conditions around candidates, one for each program in ``which``."""
        s = np.stack([c.s for c in at])
        v = s - np.stack([c.z for c in at])
        cones = self.instances.cones
        boundary = Boundary(cones, torch.from_numpy(v), torch.from_numpy(s), self.mu)
        return spread(
            lambda j: Linearised(self.instances[which[j]], boundary, j), range(len(which))
        )

    def step(self, i: int, at: Candidate, conditions: Linearised) -> Point:
        """Newton's step of program ``i``, with the conditions around that or a nearby point."""
        step = conditions.solve(-at.r_x[:, None], -at.r_s[:, None], rough=True)
        dx = step.x[:, 0]
        return Point(dx, -at.r_s - self.instances[i].A.times(dx), step.z[:, 0])

    def refine(self, which: list[int], start: list[Candidate], max_steps: int) -> list[Candidate]:
        """Better candidates by Newton's method, each as long as it does get better.

        The projection has kinks, so this is safe near a solution only: a step that shrinks neither
        the error nor the residuals' length is not taken. A row that changes sides may raise the one
        for a step, where many are close to their kinks. As long as steps shrink the error a lot,
        the conditions around the first point serve the next ones as well.
        """
        best, here = list(start), list(start)
        known: dict[int, Linearised] = {}
        going = list(range(len(which)))
        for _ in range(max_steps):
            going = [j for j in going if EXACT < here[j].error < float("inf")]
            if not going:
                break
            fresh = [j for j in going if j not in known]
            if fresh:
                made = self.linearise([which[j] for j in fresh], [here[j] for j in fresh])
                known.update(zip(fresh, made, strict=True))
            steps = spread(lambda j: self.step(which[j], here[j], known[j]), going)
            moved = [here[j].moved(step) for j, step in zip(going, steps, strict=True)]
            better = []
            for j, candidate in zip(
                going, self.measure([which[j] for j in going], moved), strict=True
            ):
                if not candidate.error < QUICKLY * here[j].error:
                    known.pop(j)
                if candidate.error < best[j].error:
                    best[j] = candidate
                if candidate.error < here[j].error or candidate.norm < here[j].norm:
                    here[j] = candidate
                    better.append(j)
            going = better
        return best


def _is_even(residual: Floats, terms: Floats) -> bool:
    # Where a solution is zero its terms are rounding themselves; programs come in units near one.
    rounding = ROUNDING * max(1.0, _size(terms))
    return not bool((residual > np.maximum(UNEVEN * terms, rounding)).any())


def _size(t: Floats) -> float:
    return float(abs(t).max(initial=0.0))
