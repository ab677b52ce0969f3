r"""Smoothed derivatives of quadratic and linear programs, through the central path.

At a vertex the solution does not move with the objective, and its exact derivative is zero: right,
and of no use for learning. The point of the central path

.. math::

    x_\mu = \arg\min_{Ax = b} \tfrac12 x^\top P x + q^\top x - \mu \sum_i \log (h - G x)_i
    - \mu \sum_j \log (x - lb)_j - \mu \sum_j \log (ub - x)_j

does move. It is a smooth function of all data, tends to the solution as :math:`\mu \to 0`, and
satisfies ``slack * multiplier = mu`` where the solution has zero. Its conditions are those of an
equality-constrained program with Hessian
:math:`P + G^\top \mathrm{diag}(\mu / s^2) G + \mathrm{diag}(w)`, so that its derivatives are linear
solves of the same kind as the exact ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.qp.interior_point import InteriorPoint
from solvers.qp.quadratic_program import DATA_NDIM, QuadraticProgram, fit, shapes_of
from solvers.qp.rows import stack, unstack
from solvers.solution import SolverError, Status

from .failure import OnFailure, warn
from .implicit.batching import batch_first, sum_to
from .implicit.function import Tensors, solve_implicitly
from .implicit.kkt import FixedActiveRows, pull_back
from .implicit.system import System


@dataclass(frozen=True)
class Smoothed:
    r"""Derivatives of the point of the central path with barrier ``mu`` instead of the solution.

    Values stay those of the solution. As ``mu`` goes to zero the derivatives become exact; a larger
    one looks further around. The objective keeps its exact gradient. The constraints need an
    interior.

    Attributes:
        mu: Slack times multiplier, in the units of the objective; positive.
    """

    mu: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse what is no barrier."""
        if not 0 < self.mu < float("inf"):
            raise ValueError(
                f"Smoothed: mu must be positive and finite; got {self.mu}. For derivatives of the "
                "solution itself use Exact()."
            )


def smooth_solution(
    mu: float, on_failure: OnFailure, data: Tensors, solved: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The point ``x, y, z, z_box, s`` of the central path, differentiable in all data.

    Args:
        mu: Strength of the barrier.
        on_failure: Whether a problem without an interior raises.
        data: ``P, q, G, h, A, b, lb, ub`` in float64.
        solved: Which problems have a solution at all ``(*batch)``; others are left alone.

    Raises:
        SolverError: If the constraints of a solved problem have no interior.
    """
    x, y, w, fine = solve_implicitly(CentralPath(mu, on_failure), *data, solved)
    barrier = Barrier(mu, x, data, fine)
    z_box = barrier.z_upper - barrier.z_lower + w if w.shape[-1] else w
    # Slacks carry derivatives only, and infinite ones carry none.
    carrying = torch.isfinite(barrier.s) & fine[..., None]
    return x, y, barrier.z, z_box, torch.where(carrying, barrier.s, 0.0)


class Barrier:
    """Slacks, multipliers and curvatures of the barrier at ``x``; zero where there is none."""

    def __init__(self, mu: float, x: Tensor, data: Tensors, fine: Tensor) -> None:
        """Evaluate, with all that is infinite or unusable masked before it can make a NaN."""
        _, _, G, h, _, _, lb, ub = data
        good = fine[..., None]
        self.fixed = torch.zeros_like(x, dtype=torch.bool)
        if lb is not None and ub is not None:
            self.fixed = self.fixed | (lb == ub)
        none = torch.zeros_like(x)

        def part(slack: Tensor, end: Tensor, barred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            used = torch.isfinite(end) & ~barred & good
            z = torch.where(used, mu / torch.where(used, slack, 1.0), 0.0)
            return slack, z, z * z / mu

        self.s = self.z = self.weight = none[..., :0]
        if G is not None and h is not None:
            slack = h - (G @ x[..., None])[..., 0]
            self.s, self.z, self.weight = part(slack, h, torch.zeros_like(slack, dtype=torch.bool))
        self.z_lower = self.weight_lower = self.z_upper = self.weight_upper = none
        if lb is not None:
            _, self.z_lower, self.weight_lower = part(x - lb, lb, self.fixed)
        if ub is not None:
            _, self.z_upper, self.weight_upper = part(ub - x, ub, self.fixed)


@dataclass(frozen=True)
class CentralPath:
    """The central point as an implicit problem.

    Inputs are the data and a mask of problems worth trying. Outputs are ``x``, ``y``, the
    multipliers of variables fixed by their bounds, and which problems have a central point.
    """

    mu: float
    on_failure: OnFailure = "raise"

    @property
    def differentiable(self) -> int:
        """The point and its multipliers."""
        return 3

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Newton's method on the barrier problem."""
        problem = QuadraticProgram.trusted(*inputs[:8])
        wanted = inputs[8]
        assert wanted is not None
        shape = problem.batch_shape
        wanted = wanted.expand(shape).reshape(-1)
        rows = stack(problem)
        point = InteriorPoint().central_point(rows, self.mu)
        fine = (point.status == Status.SOLVED) & wanted
        without = int((wanted & ~fine).sum())
        if without and self.on_failure != "ignore":
            text = (
                f"Smoothed: the constraints need an interior, but {without} of {rows.batch} "
                "problems have no point strictly inside all inequalities and bounds (or their "
                "barrier problem has no minimum). Use Exact(), or write inequalities that must "
                "hold with equality as A x = b."
            )
            if self.on_failure == "raise":
                # The solution itself is fine; it is the smoothing that is not.
                raise SolverError(text, InteriorPoint().solve(problem))
            warn(f"{text} Their gradients are zero.")
        y, _, w = unstack(point.nu, rows)
        fixed = unstack(rows.fixed.expand(rows.batch, -1), rows)[2]
        w = torch.where(fixed, w, 0.0)
        found = [torch.where(fine[:, None], t, 0.0) for t in (point.x, y, w)]
        return *(t.reshape(*shape, t.shape[-1]).clone() for t in found), fine.reshape(shape)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        q = inputs[1]
        assert q is not None
        shape, n, p, _, boxes = fit.__wrapped__("qp", shapes_of(inputs[:8]))
        vectors = (q.new_empty(*shape, size) for size in (n, p, boxes))
        return *vectors, q.new_empty(shape, dtype=torch.bool)

    def _linear(
        self, inputs: Tensors, outputs: Sequence[Tensor], barrier: Barrier
    ) -> tuple[Tensor, System]:
        """Hessian and active rows of the linear system: equalities and fixed variables."""
        P, _, G, _, A = inputs[:5]
        x, _, w, fine = outputs
        good = fine[..., None]
        H = torch.diag_embed(torch.where(good, barrier.weight_lower + barrier.weight_upper, 1.0))
        if P is not None:
            H = H + 0.5 * (P + P.mT)
        if G is not None:
            H = H + G.mT @ (barrier.weight[..., None] * G)
        p = 0 if A is None else A.shape[-2]
        equal = torch.ones_like(x[..., :1], dtype=torch.int8).expand(*x.shape[:-1], p)
        parts = [equal, barrier.fixed.to(torch.int8)] if w.shape[-1] else [equal]
        return H, System(torch.cat(parts, -1) * good.to(torch.int8))

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """One linear solve, then the same outer products as for the exact derivative."""
        P, q, G, h, A, b, lb, ub = inputs[:8]
        x, y, w, fine = outputs
        g_x, g_y, g_w = (
            None if g is None else torch.where(fine[..., None], g, 0.0) for g in cotangents[:3]
        )
        if g_x is g_y is g_w is None:
            return [None] * len(inputs)
        barrier = Barrier(self.mu, x, inputs[:8], fine)
        H, system = self._linear(inputs, outputs, barrier)
        minus_w = None if g_w is None else -g_w
        a_x, a_y, _, a_w = solve_implicitly(
            FixedActiveRows(),
            H, torch.zeros_like(x) if g_x is None else g_x,
            None, None, A, None if g_y is None else -g_y, minus_w, minus_w, *system,
        )  # fmt: skip
        a_z = barrier.z if G is None else barrier.weight * (G @ a_x[..., None])[..., 0]
        grads = pull_back(
            [P, q, G, h, A, b, None, None],
            [x, y, barrier.z, w],
            system.side,
            [a_x, a_y, a_z, a_w],
            [*needed[:6], False, False],
            lambda *a: a,
        )
        grads += [None] * (len(needed) - len(grads))
        if w.shape[-1]:
            lower, upper = barrier.fixed & (w < 0), barrier.fixed & (w >= 0)
            if needed[6] and lb is not None:
                grads[6] = sum_to(-barrier.weight_lower * a_x - a_w * lower, lb.shape)
            if needed[7] and ub is not None:
                grads[7] = sum_to(-barrier.weight_upper * a_x - a_w * upper, ub.shape)
        return grads

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """The same solve with the change of the conditions on the right."""
        G, A = inputs[2], inputs[4]
        x, y, w, fine = outputs
        d_P, d_q, d_G, d_h, d_A, d_b, d_lb, d_ub = tangents[:8]
        barrier = Barrier(self.mu, x, inputs[:8], fine)
        H, system = self._linear(inputs, outputs, barrier)
        r_x = torch.zeros_like(x)
        if d_q is not None:
            r_x = r_x + d_q
        if d_P is not None:
            r_x = r_x + 0.5 * ((d_P + d_P.mT) @ x[..., None])[..., 0]
        d_slack = torch.zeros_like(barrier.z) if d_h is None else d_h
        if d_G is not None:
            r_x = r_x + (d_G.mT @ barrier.z[..., None])[..., 0]
            d_slack = d_slack - (d_G @ x[..., None])[..., 0]
        if G is not None:
            r_x = r_x - (G.mT @ (barrier.weight * d_slack)[..., None])[..., 0]
        r_y = torch.zeros_like(y) if d_b is None else d_b
        if d_A is not None:
            r_x = r_x + (d_A.mT @ y[..., None])[..., 0]
            r_y = r_y - (d_A @ x[..., None])[..., 0]
        r_w = torch.zeros_like(w)
        for d, weight, at in (
            (d_lb, barrier.weight_lower, w < 0),
            (d_ub, barrier.weight_upper, w >= 0),
        ):
            if d is not None:
                r_x = r_x - weight * d
                r_w = r_w + d * at
        good = fine[..., None]
        r_x, r_y = torch.where(good, r_x, 0.0), torch.where(good, r_y, 0.0)
        ends = (r_w, r_w) if w.shape[-1] else (None, None)
        t_x, t_y, _, t_w = solve_implicitly(
            FixedActiveRows(), H, r_x, None, None, A, r_y if A is not None else None, *ends, *system
        )
        return [t_x, t_y, t_w]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["CentralPath", Tensors]:
        """Move the mapped dimension to the front."""
        return self, batch_first(dims, inputs, (*DATA_NDIM, 0))
