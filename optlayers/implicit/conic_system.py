"""The linear system of cone programs around a solution, itself an implicit function."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from solvers._threads import calm, spread
from solvers.batch import broadcast_shapes
from solvers.cone.arrays import largest
from solvers.cone.boundary import Boundary
from solvers.cone.cone_program import ConeProgram
from solvers.cone.kkt import Linearised
from solvers.cone.product import ConeProduct
from solvers.cone.stack import Stack, stacks_of
from solvers.matrix import Matrix
from solvers.solution import Status

from ..failure import OnFailure, warn
from .batching import batch_first, outer, sum_to
from .chosen import pull, push
from .function import Tensors, solve_implicitly

# Relative residual of the linear system from which a derivative does not exist.
INACCURATE = 1e-6
NO_SECOND_DERIVATIVE = (
    "second derivatives exist for zero, nonnegative, box and second-order cones; "
    "got a program with semidefinite, exponential or power cones. Use first derivatives only, or "
    "write the constraint with second-order cones."
)


def matrices(inputs: Tensors, n: int, m: int) -> tuple[Matrix | None, Matrix]:
    """``P`` and ``A`` from the first inputs of either problem: values and index of each."""
    P, P_index, A, A_index = inputs[:4]
    assert A is not None
    quadratic = None if P is None else Matrix(P, P_index, n, n)
    return quadratic, Matrix(A, A_index, m, n)


def matrix_ndim(inputs: Tensors) -> tuple[int, int, int, int]:
    """Numbers of core dimensions of these four."""
    return (1 if inputs[1] is not None else 2, 2, 1 if inputs[3] is not None else 2, 2)


def symmetric_times(P: Matrix, x: Tensor) -> Tensor:
    """The symmetric part of ``P`` times ``x``."""
    return 0.5 * (P.times(x) + P.transposed_times(x))


def gradient(M: Matrix, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """``a b' + c d'`` on the pattern of ``M``, summed over what its batch shares."""
    if M.index is None:
        return outer(a, b, c, d, M.batch_shape)
    return sum_to(M.outer(a, b) + M.outer(c, d), M.values.shape)


@dataclass(frozen=True)
class Conic:
    """What problems with cones have in common: the solution, the central path, the linear system.

    Attributes:
        cones: The product of cones.
        on_failure: Whether to say where a solution or a derivative does not exist.
        mu: Smoothing of the projection.
        where: The function that the user called, for messages.
    """

    cones: ConeProduct
    on_failure: OnFailure = "raise"
    mu: float = 0.0
    where: str = "cone_program"


@dataclass(frozen=True)
class ConicSystem(Conic):
    """The linear system at a point.

    Inputs are the values and indices of ``P`` and ``A``, the slack and the multiplier
    ``(*batch, m)``, ``status``, and the right-hand sides ``r_x`` and ``r_s``. Outputs are ``t_x``
    and ``t_z``; zero where the program was not solved.
    """

    @property
    def differentiable(self) -> int:
        """Both outputs."""
        return 2

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Solve, programs of one pattern at once."""
        s, z, status, r_x, r_s = (t for t in inputs[4:] if t is not None)
        n, m = r_x.shape[-1], r_s.shape[-1]
        P, A = matrices(inputs, n, m)
        own = broadcast_shapes(A.batch_shape, s.shape[:-1], *([] if P is None else [P.batch_shape]))
        full = broadcast_shapes(own, r_x.shape[:-1], r_s.shape[:-1])
        # Leading dimensions that the system lacks are columns of one right-hand side.
        aligned = (1,) * (len(full) - len(own)) + tuple(own)
        lead = next((i for i, size in enumerate(aligned) if size != 1), len(aligned))
        columns, shape = full[:lead], full[lead:]
        batch = shape.numel()

        def column(t: Tensor) -> Tensor:
            t = t.expand(*full, t.shape[-1]).reshape(columns.numel(), batch, t.shape[-1])
            return t.permute(1, 2, 0).cpu()

        def without_columns(t: Tensor, core: int) -> Tensor:
            extra = t.ndim - core - len(shape)
            return t.reshape(t.shape[extra:]) if extra > 0 else t

        def grouped(M: Matrix) -> Matrix:
            return M.with_values(without_columns(M.values, M.core))

        quadratic = None if P is None else grouped(P)
        vectors = r_x.new_zeros(*shape, n), r_s.new_zeros(*shape, m)
        program = ConeProgram(quadratic, vectors[0], grouped(A), vectors[1], self.cones)
        slacks, multipliers = (
            without_columns(t, 1).expand(*shape, m).reshape(batch, m).cpu().numpy() for t in (s, z)
        )
        sizes = largest(slacks), largest(multipliers)
        outcomes = without_columns(status, 0).expand(shape).reshape(batch).cpu().numpy()
        solved = np.flatnonzero(outcomes <= int(Status.SOLVED_INACCURATE)).tolist()
        right_x, right_s = column(r_x).numpy(), column(r_s).numpy()
        t_x = np.zeros((batch, n, columns.numel()))
        t_z = np.zeros((batch, m, columns.numel()))
        residual = np.zeros(batch)

        def one(stack: Stack) -> None:
            i, scaling = stack.numbers, stack.scaling
            right = right_x[i], right_s[i]
            slack, multiplier = slacks[i], multipliers[i]
            mu: np.typing.NDArray[np.float64] | float = self.mu
            if scaling is not None:
                right = right[0] / scaling.of_r_x[..., None], right[1] / scaling.of_s[..., None]
                slack, multiplier = slack / scaling.of_s, multiplier / scaling.of_z
                mu = self.mu / scaling.of_value if self.mu else 0.0
            boundary = Boundary(self.cones, slack - multiplier, slack, mu)
            t_x[i], t_z[i], residual[i] = Linearised(stack, boundary).solve(*right)
            if scaling is not None:
                t_x[i] *= scaling.of_x[..., None]
                t_z[i] *= scaling.of_z[..., None]

        with calm():
            spread(one, stacks_of(program, solved, sizes))
        self._report(residual)

        def back(t: np.ndarray) -> Tensor:
            moved = np.ascontiguousarray(t.transpose(2, 0, 1)).reshape(*full, t.shape[1])
            return torch.from_numpy(moved).to(s.device)

        return back(t_x), back(t_z)

    def _report(self, residual: "np.typing.NDArray[np.float64]") -> None:
        count = int((~(residual <= INACCURATE)).sum())
        if count and self.on_failure != "ignore":
            warn(
                f"{self.where}: the solutions of {count} of {len(residual)} programs have no exact "
                f"derivative: the linear system leaves a relative residual of {residual.max():.0e} "
                "(the solution is degenerate or not unique there). The least-norm solution stands "
                "in for it; adjoint=ol.Smoothed(mu) gives a derivative everywhere."
            )

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        s, _, _, r_x, r_s = (t for t in inputs[4:] if t is not None)
        P, A = matrices(inputs, r_x.shape[-1], r_s.shape[-1])
        full = broadcast_shapes(
            A.batch_shape, s.shape[:-1], r_x.shape[:-1], r_s.shape[:-1],
            *([] if P is None else [P.batch_shape]),
        )  # fmt: skip
        return r_x.new_empty(*full, r_x.shape[-1]), r_s.new_empty(*full, r_s.shape[-1])

    @property
    def _turns(self) -> bool:
        """Whether the derivative of the projection changes along with ``v``."""
        return self.mu > 0 or not self.cones.elementwise

    def _moving(self, v: Tensor, w: Tensor) -> Tensor:
        return self.cones.derivative(v, w, self.mu)

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """The system is its own adjoint."""
        s, z, status, r_x, r_s = inputs[4:]
        assert s is not None
        assert z is not None
        assert r_x is not None
        assert r_s is not None
        t_x, t_z = outputs[:2]
        grads: list[Tensor | None] = [None] * len(inputs)
        g_x, g_z = cotangents[:2]
        if g_x is g_z is None:
            return grads
        g_x = torch.zeros_like(t_x) if g_x is None else g_x
        g_z = torch.zeros_like(t_z) if g_z is None else g_z
        u_x, u_z = solve_implicitly(self, *inputs[:4], s, z, status, g_x, g_z)[:2]
        P, A = matrices(inputs, t_x.shape[-1], t_z.shape[-1])
        if needed[0] and P is not None:
            grads[0] = -0.5 * gradient(P, u_x, t_x, t_x, u_x)
        if needed[2]:
            grads[2] = -gradient(A, u_z, t_x, t_z, u_x)
        if (needed[4] or needed[5]) and self._turns:
            if not self.cones.smooth:
                raise NotImplementedError(f"{self.where}: {NO_SECOND_DERIVATIVE}")
            t_s, u_s = r_s - A.times(t_x), g_z - A.times(u_x)
            w, c = (t_s - t_z).broadcast_to(t_z.shape), (u_s - u_z).broadcast_to(t_z.shape)
            (g_v,) = pull(self._moving, [(s - z).broadcast_to(t_z.shape), w], [0], c)
            g_v = sum_to(g_v, s.shape)
            grads[4], grads[5] = g_v, -g_v
        if needed[7]:
            grads[7] = sum_to(u_x, r_x.shape)
        if needed[8]:
            grads[8] = sum_to(u_z, r_s.shape)
        return grads

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Solve again, with the change of the system on the right."""
        s, z, status, _, r_s = inputs[4:]
        assert s is not None
        assert z is not None
        assert r_s is not None
        t_x, t_z = outputs[:2]
        P, A = matrices(inputs, t_x.shape[-1], t_z.shape[-1])
        d_P, _, d_A, _, d_slack, d_z, _, d_x, d_s = tangents
        right_x = torch.zeros_like(t_x) if d_x is None else d_x
        right_s = torch.zeros_like(t_z) if d_s is None else d_s
        if d_P is not None and P is not None:
            right_x = right_x - symmetric_times(P.with_values(d_P), t_x)
        if d_A is not None:
            moving = A.with_values(d_A)
            right_x = right_x - moving.transposed_times(t_z)
            right_s = right_s - moving.times(t_x)
        change = None
        if (d_slack is not None or d_z is not None) and self._turns:
            if not self.cones.smooth:
                raise NotImplementedError(f"{self.where}: {NO_SECOND_DERIVATIVE}")
            none = torch.zeros_like(s)
            d_v = (none if d_slack is None else d_slack) - (none if d_z is None else d_z)
            v, w = s - z, r_s - A.times(t_x) - t_z
            shape = broadcast_shapes(v.shape, w.shape)
            change = push(
                self._moving, [v.broadcast_to(shape), w.broadcast_to(shape)], [0],
                [d_v.broadcast_to(shape)],
            )  # fmt: skip
            right_x = right_x - A.transposed_times(change)
            right_s = right_s - change
        pushed_x, pushed_z = solve_implicitly(self, *inputs[:4], s, z, status, right_x, right_s)[:2]
        return [pushed_x, pushed_z if change is None else pushed_z + change]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["ConicSystem", Tensors]:
        """Move the mapped dimension to the front."""
        return self, batch_first(dims, inputs, (*matrix_ndim(inputs), 1, 1, 0, 1, 1))
