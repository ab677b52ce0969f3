r"""Derivatives of cone programs through their optimality conditions.

Slack and multiplier are the two parts of :math:`v = s - z`, so that a change of the data moves the
solution by

.. math::

    P\,dx + A^\top dz = r_x, \qquad A\,dx + ds = r_s, \qquad (I - D)\,ds + D\,dz = 0

with :math:`D` the derivative of the projection onto the cones at :math:`v`, and
:math:`r_x = -(dP\,x + dq + dA^\top z)`, :math:`r_s = db - dA\,x`. The system is its own adjoint: it
maps cotangents of :math:`(x, z)` to :math:`(u_x, u_z)`, and gradients are products of these
with the solution. Where :math:`D` itself is differentiated, its change acts like a right-hand side
of the third equation. So one linear system, itself an implicit function, gives derivatives of every
order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from solvers.batch import broadcast_shapes, flat
from solvers.cone.clarabel import Clarabel
from solvers.cone.cone_program import ConeProgram
from solvers.cone.solver import ConeSolver
from solvers.solution import Solution, Status

from ..failure import report
from .batching import batch_first, sum_to
from .conic_system import Conic, ConicSystem, gradient, matrices, matrix_ndim, symmetric_times
from .function import Tensors, solve_implicitly


@dataclass(frozen=True)
class ConeConditions(Conic):
    """What the solution and the point of the central path have in common: ``vjp`` and ``jvp``.

    Inputs begin with the values and indices of ``P`` and ``A``, ``q, b``. Outputs are ``x, s, z``,
    the objective, and ``status`` among the rest.
    """

    @property
    def differentiable(self) -> int:
        """The solution and the objective."""
        return 4

    def _system(
        self, inputs: Tensors, outputs: Sequence[Tensor], r_x: Tensor, r_s: Tensor
    ) -> tuple[Tensor, Tensor]:
        s, z, status = outputs[1], outputs[2], outputs[4]
        system = ConicSystem(self.cones, self.on_failure, self.mu, self.where)
        return solve_implicitly(system, *inputs[:4], s, z, status, r_x, r_s)[:2]  # type: ignore[return-value]

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """One solve with the system; slack and objective need none of their own."""
        x, s, z = outputs[:3]
        P, A = matrices(inputs, x.shape[-1], s.shape[-1])
        q, b = inputs[4:6]
        assert q is not None
        assert b is not None
        g_x, g_s, g_z, g_value = cotangents[:4]
        w_x, w_z = torch.zeros_like(x), torch.zeros_like(z)
        if g_s is not None:  # s = b - A x
            pulled = A.transposed_times(g_s)
            g_x = -pulled if g_x is None else g_x - pulled
        if g_x is not None or g_z is not None:
            g_x = torch.zeros_like(x) if g_x is None else g_x
            g_z = torch.zeros_like(z) if g_z is None else g_z
            u_x, u_z = self._system(inputs, outputs, g_x, g_z)
            w_x, w_z = -u_x, -u_z
        if g_s is not None:
            w_z = w_z - g_s
        half_x, half_z = torch.zeros_like(x), torch.zeros_like(z)
        if g_value is not None:  # by the envelope theorem; half of it through the products below
            half_x, half_z = 0.5 * g_value[..., None] * x, 0.5 * g_value[..., None] * z
            w_x, w_z = w_x + half_x, w_z + half_z
        grads: list[Tensor | None] = [None] * len(inputs)
        if needed[0] and P is not None:
            grads[0] = 0.5 * gradient(P, w_x, x, x, w_x)
        if needed[2]:
            grads[2] = gradient(A, w_z, x, z, w_x)
        if needed[4]:
            grads[4] = sum_to(w_x + half_x, q.shape)
        if needed[5]:
            grads[5] = sum_to(-(w_z + half_z), b.shape)
        return grads

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """The same solve with the change of the conditions on the right."""
        x, s, z = outputs[:3]
        P, A = matrices(inputs, x.shape[-1], s.shape[-1])
        d_P, _, d_A, _, d_q, d_b = tangents[:6]
        r_x, r_s = torch.zeros_like(x), torch.zeros_like(s)
        value = torch.zeros_like(x[..., 0])
        if d_P is not None and P is not None:
            moved = symmetric_times(P.with_values(d_P), x)
            r_x = r_x - moved
            value = value + 0.5 * (moved * x).sum(-1)
        if d_q is not None:
            r_x = r_x - d_q
            value = value + (d_q * x).sum(-1)
        if d_b is not None:
            r_s = r_s + d_b
        if d_A is not None:
            moving = A.with_values(d_A)
            r_x = r_x - moving.transposed_times(z)
            r_s = r_s - moving.times(x)
        value = value - (r_s * z).sum(-1)
        t_x, t_z = self._system(inputs, outputs, r_x, r_s)
        return [t_x, r_s - A.times(t_x), t_z, value]


@dataclass(frozen=True)
class SolvedConeProgram(ConeConditions):
    """A cone program that a solver solves.

    Further inputs are a mask of the programs with finite data, and a guess of ``x, s, z``. Outputs
    are ``x, s, z, objective``, ``status, iterations`` and the three residuals.
    """

    solver: ConeSolver = field(default_factory=Clarabel)
    rough: bool = False

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Solve, report failures, and make failed elements harmless for derivatives."""
        q, b, finite, *guess = inputs[4:]
        assert q is not None
        assert b is not None
        P, A = matrices(inputs, q.shape[-1], b.shape[-1])
        program = ConeProgram(P, q, A, b, self.cones, self.rough)
        shape = program.batch_shape
        start = tuple(flat(t, 1, shape) for t in guess if t is not None)
        found = self.solver.run(program, start or None)
        if finite is not None:
            found.status[~finite.expand(shape).reshape(-1).cpu()] = Status.NUMERICAL_ERROR
        device = q.device
        values = (found.x, found.s, found.z, found.objective)
        rest = (found.status, found.iterations, found.primal, found.dual, found.gap)
        x, s, z, objective, status, *others = (
            t.reshape((*shape, *t.shape[1:])).to(device) for t in (*values, *rest)
        )
        primal, dual, gap = others[1:]
        failed = status > Status.SOLVED_INACCURATE
        if bool(failed.any()):
            solution = Solution(
                x, status, others[0], z=z, s=s, objective=objective, primal_residual=primal,
                dual_residual=dual, duality_gap=gap,
            )  # fmt: skip
            self._report(program, solution)
            x, s, z = (t.masked_fill(failed[..., None], 0.0) for t in (x, s, z))
            objective = objective.masked_fill(failed, 0.0)
        return x, s, z, objective, status, *others

    def _report(self, program: ConeProgram, solution: Solution) -> None:
        if self.on_failure == "raise":
            # The rows of a quadratic program come from several arguments.
            rows, ends = ("A and G", "b, h, lb and ub") if self.where == "qp" else ("A", "b")
            data = {"q": program.q, rows: program.A.values, ends: program.b}
            data |= {} if program.P is None else {"P": program.P.values}
            for name, t in data.items():
                wrong = int((~t.isfinite()).sum())
                if wrong:
                    raise ValueError(
                        f"{self.where}: {name} must be finite; got {wrong} entries that are not, "
                        f"of {t.numel()}. Mend the data, or pass on_failure='ignore' to get NaN "
                        "for these programs only."
                    )
        report(self.where, self.on_failure, solution)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        q, b = inputs[4:6]
        assert q is not None
        assert b is not None
        P, A = matrices(inputs, q.shape[-1], b.shape[-1])
        shape = broadcast_shapes(
            q.shape[:-1], b.shape[:-1], A.batch_shape, *([] if P is None else [P.batch_shape])
        )
        vectors = [q.new_empty(*shape, size) for size in (q.shape[-1], b.shape[-1], b.shape[-1])]
        integers = [q.new_empty(shape, dtype=torch.long) for _ in range(2)]
        scalars = [q.new_empty(shape) for _ in range(4)]
        return *vectors, scalars[0], *integers, *scalars[1:]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["SolvedConeProgram", Tensors]:
        """Move the mapped dimension to the front."""
        return self, batch_first(dims, inputs, (*matrix_ndim(inputs), 1, 1, 0, 1, 1, 1))
