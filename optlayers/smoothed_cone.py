r"""Smoothed derivatives of cone programs, through the central path.

With the barrier :math:`f` of the cone, the point of the central path has :math:`z = -\mu \nabla
f(s)` where the solution has :math:`s^\top z = 0`. As :math:`s = \Pi_\mu(v)`, :math:`z = s - v`
that is the smooth relative of the projection, :math:`\Pi_\mu(v) = \arg\min_s \tfrac12 \|s - v\|^2
+ \mu f(s)`; so conditions and derivatives are those of the solution with :math:`\Pi_\mu` in place
of :math:`\Pi`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers._threads import calm, spread
from solvers.batch import flat
from solvers.cone.central_path import central_point
from solvers.cone.cone_program import ConeProgram
from solvers.cone.product import ConeProduct
from solvers.cone.scaling import Points
from solvers.cone.stack import Stack, stacks_of
from solvers.solution import Solution, SolverError, Status

from .failure import OnFailure, warn
from .implicit.batching import batch_first
from .implicit.conic import ConeConditions
from .implicit.conic_system import matrices, matrix_ndim
from .implicit.function import Tensors, solve_implicitly


def smooth_solution(
    mu: float,
    cones: ConeProduct,
    on_failure: OnFailure,
    data: Tensors,
    start: tuple[Tensor, Tensor, Tensor],
    status: Tensor,
    where: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The point ``x, s, z`` of the central path, differentiable in all data.

    Args:
        mu: Strength of the barrier.
        cones: The product of cones.
        on_failure: Whether a program without an interior raises.
        data: Values and indices of ``P`` and ``A``, ``q, b``, in float64.
        start: The solution.
        status: Which programs have a solution at all; others are left alone.
        where: The function that the user called, for messages.

    Raises:
        SolverError: If the constraints of a solved program have no interior.
    """
    problem = CentralPoint(cones, on_failure, mu, where)
    x, s, z = solve_implicitly(problem, *data, *(t.detach() for t in start), status)[:3]
    return x, s, z


@dataclass(frozen=True)
class CentralPoint(ConeConditions):
    """The central point as an implicit problem.

    Further inputs are the solution ``x, s, z`` and its status. Outputs are those of the solved
    program, as far as derivatives need them.
    """

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Newton's method from the solution."""
        q, b, x, s, z, status = (t for t in inputs[4:] if t is not None)
        P, A = matrices(inputs, q.shape[-1], b.shape[-1])
        program = ConeProgram(P, q, A, b, self.cones)
        shape = program.batch_shape
        batch = shape.numel()
        given = [flat(t, 1, shape).expand(batch, -1).cpu().numpy() for t in (x, s, z)]
        found = [np.zeros_like(t) for t in given]
        outcome = flat(status, 0, shape).expand(batch).cpu().clone()

        def one(member: tuple[Stack, int]) -> None:
            stack, j = member
            own = stack.take(np.array([j]))
            i = own.numbers
            start = Points(given[0][i], given[1][i], given[2][i])
            scaling = own.scaling
            point = central_point(own, start if scaling is None else scaling.into(start), self.mu)
            if point is None:
                outcome[i] = int(Status.NUMERICAL_ERROR)
                return
            parts = point if scaling is None else scaling.out_of(point)
            found[0][i], found[1][i], found[2][i] = parts

        wanted = torch.nonzero(outcome <= Status.SOLVED_INACCURATE).reshape(-1).tolist()
        with calm():
            stacks = stacks_of(program, wanted)
            spread(one, [(stack, j) for stack in stacks for j in range(len(stack))])
        without = int((outcome[wanted] > Status.SOLVED_INACCURATE).sum())
        if without and self.on_failure != "ignore":
            self._report(without, batch, Solution(x, status, torch.zeros_like(status), z=z, s=s))
        vectors = [torch.from_numpy(t).reshape(*shape, t.shape[-1]).to(q.device) for t in found]
        return *vectors, vectors[0].new_zeros(shape), outcome.reshape(shape).to(q.device)

    def _report(self, without: int, batch: int, solution: Solution) -> None:
        text = (
            f"Smoothed: the constraints need an interior, but {without} of {batch} programs have "
            "no point strictly inside all cones. Use Exact(), or write constraints that must hold "
            "with equality with a ZeroCone."
        )
        if self.on_failure == "raise":
            # The solution itself is fine; it is the smoothing that is not.
            raise SolverError(text, solution)
        warn(f"{text} Their gradients are zero.")

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        _, _, x, s, z, status = (t for t in inputs[4:] if t is not None)
        shape = status.shape
        return (
            x.new_empty(x.shape),
            s.new_empty(s.shape),
            z.new_empty(z.shape),
            x.new_empty(shape),
            status.new_empty(shape),
        )

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["CentralPoint", Tensors]:
        """Move the mapped dimension to the front."""
        return self, batch_first(dims, inputs, (*matrix_ndim(inputs), 1, 1, 1, 1, 1, 0))
