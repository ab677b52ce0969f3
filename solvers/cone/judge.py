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
from . import kkt
from .cone_program import Instance, Instances

Floats = NDArray[np.float64]

# Residuals up to this multiple of the tolerance are inaccurate, beyond it there is no solution.
INACCURATE = 1e3
# Share of the tolerance at which Newton's method has nothing to better.
EXACT = 1e-5


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

    @property
    def v(self) -> Floats:
        """Slack minus multiplier."""
        return self.s - self.z

    @property
    def norm(self) -> float:
        """Length of both residuals, along which Newton's steps descend."""
        return float(np.hypot(np.linalg.norm(self.r_x), np.linalg.norm(self.r_s)))

    @property
    def primal(self) -> float:
        """Largest violation of a row."""
        return float(abs(self.r_s).max(initial=0.0))

    @property
    def dual(self) -> float:
        """Largest entry of the gradient."""
        return float(abs(self.r_x).max(initial=0.0))

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

    def measure(self, which: list[int], points: list[tuple[Floats, Floats]]) -> list[Candidate]:
        """Candidates from pairs ``x, v``, one for each program in ``which``."""
        if not which:
            return []
        v = np.stack([v for _, v in points])
        s = self.instances.cones.project(torch.from_numpy(v), self.mu).numpy()

        def one(j: int) -> Candidate:
            return self._measure(self.instances[which[j]], points[j][0], s[j], s[j] - v[j])

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

    def _excess(self, residual: float, scale: float) -> float:
        return residual / (self.eps_abs + self.eps_rel * scale)

    def steps(self, which: list[int], at: list[Candidate]) -> list[tuple[Floats, Floats]]:
        """Newton's steps in ``x`` and ``v``, one for each program in ``which``."""
        v = torch.from_numpy(np.stack([c.v for c in at]))
        boundary = kkt.Boundary(self.instances.cones, v, self.mu)

        def one(j: int) -> tuple[Floats, Floats]:
            instance, c = self.instances[which[j]], at[j]
            right = -c.r_x[:, None], -c.r_s[:, None]
            step = kkt.solve(instance, boundary, j, *right, rough=True)
            dx, dz = step.x[:, 0], step.z[:, 0]
            return dx, -c.r_s - instance.A.times(dx) - dz

        return spread(one, range(len(which)))

    def refine(self, which: list[int], start: list[Candidate], max_steps: int) -> list[Candidate]:
        """Better candidates by Newton's method, each as long as it does get better.

        The projection has kinks, so this is safe near a solution only: a step that does not shrink
        the error is not taken.
        """
        best = list(start)
        going = list(range(len(which)))
        for _ in range(max_steps):
            going = [j for j in going if EXACT < best[j].error < float("inf")]
            if not going:
                break
            programs = [which[j] for j in going]
            steps = self.steps(programs, [best[j] for j in going])
            moved = [
                (best[j].x + dx, best[j].v + dv) for j, (dx, dv) in zip(going, steps, strict=True)
            ]
            better = []
            for j, candidate in zip(going, self.measure(programs, moved), strict=True):
                if candidate.error < best[j].error:
                    best[j] = candidate
                    better.append(j)
            going = better
        return best


def _size(t: Floats) -> float:
    return float(abs(t).max(initial=0.0))
