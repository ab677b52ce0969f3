r"""Derivatives of quadratic programs through their KKT conditions on the active rows.

On its active rows the solution solves

.. math::

    K \begin{pmatrix} x \\ \nu_a \end{pmatrix} = \begin{pmatrix} -q \\ r_a \end{pmatrix},
    \qquad K = \begin{pmatrix} P & C_a^\top \\ C_a & 0 \end{pmatrix},

with :math:`C` the rows of ``A``, ``G`` and the identity, :math:`r` their ends and :math:`\nu` the
multipliers ``y``, ``z``, ``z_box``. A cotangent :math:`g` therefore becomes
:math:`a = -K^{-1} g`, and the gradients are outer products of :math:`a` with the solution. The
adjoint :math:`a` is itself the solution of a quadratic program with the same active rows, with
:math:`q = g_x` and :math:`r = -g_\nu`; so one problem class serves both, and differentiating the
adjoint again is differentiating that program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers._threads import calm
from solvers.batch import broadcast_shapes, flat
from solvers.qp import kkt
from solvers.qp.quadratic_program import DATA_NDIM

from .batching import batch_first, outer, pair, sum_to
from .function import Tensors, solve_implicitly
from .native_kkt import pull_back_natively
from .system import (
    SYSTEM_NDIM,
    System,
    nobody_differentiates,
    stacked_matrices,
)


@dataclass(frozen=True)
class KKTConditions:
    """What the solved program and its adjoint have in common: ``vjp`` and ``jvp``.

    The inputs begin with ``P, q, G, h, A, b, lb, ub``; the outputs begin with ``x, y, z, z_box``
    and, for the solved program, ``s, objective``.
    """

    @property
    def differentiable(self) -> int:
        """Number of differentiable outputs."""
        return 4

    def system(self, inputs: Tensors, outputs: Sequence[Tensor]) -> System:
        """Where this problem keeps its active rows."""
        return System(*inputs[8:13])  # type: ignore[arg-type]

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """Cotangents of the inputs; slack and objective need no linear solve of their own."""
        data, solution, system = inputs[:8], outputs[:4], self.system(inputs, outputs)
        given = cotangents[: self.differentiable]
        plain = system.L is None and not torch.compiler.is_compiling()
        if plain and nobody_differentiates(cotangents):
            grads = pull_back_natively(
                data,
                solution,
                system.side,
                given,
                needed,
                lambda data, solution, side, given: _pull(
                    data, solution, System(side), given, needed
                ),
            )
            if grads is not None:
                return grads
        return _pull(data, solution, system, given, needed)

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Tangents of the differentiable outputs."""
        P, _, G, _, A, _, _, _ = inputs[:8]
        x, y, z, z_box = outputs[:4]
        d_P, d_q, d_G, d_h, d_A, d_b, d_lb, d_ub = tangents[:8]
        system = self.system(inputs, outputs)

        r_x = torch.zeros_like(x) if d_q is None else d_q
        if d_P is not None:
            d_P = 0.5 * (d_P + d_P.mT)
            d_Px = (d_P @ x[..., None])[..., 0]
            r_x = r_x + d_Px
        d_Gx = None if d_G is None else (d_G @ x[..., None])[..., 0]
        d_Ax = None if d_A is None else (d_A @ x[..., None])[..., 0]
        if d_G is not None:
            r_x = r_x + (d_G.mT @ z[..., None])[..., 0]
        if d_A is not None:
            r_x = r_x + (d_A.mT @ y[..., None])[..., 0]
        r_z, r_y = _difference(d_h, d_Gx), _difference(d_b, d_Ax)
        t_x, t_y, t_z, t_box = solve_implicitly(
            FixedActiveRows(), P, r_x, G, r_z, A, r_y, d_lb, d_ub, *system
        )
        pushed = [t_x, t_y, t_z, t_box]
        if self.differentiable == 4:
            return pushed
        t_s = torch.zeros_like(z)
        if G is not None:
            moved = (G @ t_x[..., None])[..., 0]
            t_s = -moved if r_z is None else r_z - moved
        value = torch.zeros_like(x[..., 0])
        if d_q is not None:
            value = value + (d_q * x).sum(-1)
        if d_P is not None:
            value = value + 0.5 * (d_Px * x).sum(-1)
        for r, multiplier in ((r_z, z), (r_y, y)):
            if r is not None:
                value = value - (r * multiplier).sum(-1)
        side = system.side[..., system.side.shape[-1] - z_box.shape[-1] :]
        for tangent, at in ((d_lb, side < 0), (d_ub, side > 0)):
            if tangent is not None:
                value = value - (tangent * z_box * at).sum(-1)
        return [*pushed, t_s, value]


def _pull(
    data: Tensors,
    solution: Sequence[Tensor],
    system: System,
    cotangents: Tensors,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients whose adjoint is an implicit function again."""

    def adjoint(g_x: Tensor, *g_nu: Tensor | None) -> tuple[Tensor, ...]:
        minus_y, minus_z, minus_box = (None if g is None else -g for g in g_nu)
        P, _, G, _, A = data[:5]
        return solve_implicitly(
            FixedActiveRows(), P, g_x, G, minus_z, A, minus_y, minus_box, minus_box, *system
        )

    return pull_back(data, solution, system.side, cotangents, needed, adjoint)


def pull_back(
    data: Sequence[Any],
    solution: Sequence[Tensor],
    side: Tensor,
    cotangents: Sequence[Any],
    needed: Sequence[bool],
    adjoint: Callable[..., tuple[Tensor, ...]],
) -> list[Any]:
    r"""Gradients from cotangents.

    Args:
        data: ``P, q, G, h, A, b, lb, ub``.
        solution: ``x, y, z, z_box``.
        side: See :class:`System`.
        cotangents: Of ``x, y, z, z_box`` and perhaps of ``s, objective``; None for zero.
        needed: Which gradients are asked for.
        adjoint: Maps cotangents of the solution to :math:`a = -K^{-1} g`, in four parts.

    Returns:
        Gradients in the order of ``needed``, None where there is none.
    """
    P, q, G, h, A, b, lb, ub = data
    x = solution[0]
    g_x, g_y, g_z, g_box, g_s, g_value = (*cotangents, None, None)[:6]
    if G is None:
        g_s = None  # there is no slack
    if g_s is not None:  # s = h - G x
        pull = -(G.mT @ g_s[..., None])[..., 0]
        g_x = pull if g_x is None else g_x + pull
    a: list[Any] = [None] * 4
    if not (g_x is g_y is g_z is g_box is None):
        a = list(adjoint(0 * x if g_x is None else g_x, g_y, g_z, g_box))
    if g_s is not None:
        a[2] = a[2] - g_s
    ends = a
    if g_value is not None:  # by the envelope theorem; half of it through the products below
        half = 0.5 * g_value[..., None]
        a = [half * v if t is None else t + half * v for t, v in zip(a, solution, strict=True)]
        ends = [t + half * v for t, v in zip(a, solution, strict=True)]
    grads: list[Any] = [None] * len(needed)
    a_x = a[0]
    if a_x is None:
        return grads
    right = pair(x, a_x, -2) if needed[0] or needed[2] or needed[4] else None
    if needed[0] and P is not None:
        grads[0] = outer(0.5 * a_x, x, 0.5 * x, a_x, P.shape[:-2], right)
    if needed[1]:
        grads[1] = sum_to(ends[0], q.shape)
    for position, (M, v, row) in enumerate(((G, h, 2), (A, b, 1)), start=1):
        if needed[2 * position] and M is not None:
            grads[2 * position] = outer(a[row], x, solution[row], a_x, M.shape[:-2], right)
        if needed[2 * position + 1] and v is not None:
            grads[2 * position + 1] = sum_to(-ends[row], v.shape)
    for position, end, sign in ((6, lb, -1), (7, ub, 1)):
        if needed[position] and end is not None:
            at = side[..., side.shape[-1] - end.shape[-1] :]
            grads[position] = sum_to(-ends[3] * (at == sign), end.shape)
    return grads


def _difference(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if b is None:
        return a
    return -b if a is None else a - b


@dataclass(frozen=True)
class FixedActiveRows(KKTConditions):
    """The program whose active rows are known: one linear solve. Every adjoint is one of these.

    Inputs are ``P, q, G, h, A, b, lb, ub`` (the vectors may be None for zero, and are read on
    active rows only) and the parts of :class:`System`. Outputs are ``x, y, z, z_box``.
    """

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Solve with the factor that forward left, or make one."""
        P, q, G, h, A, b, lb, ub = inputs[:8]
        system = System(*inputs[8:])  # type: ignore[arg-type]
        assert q is not None
        side = system.side
        p = 0 if A is None else A.shape[-2]
        m = 0 if G is None else G.shape[-2]
        n, count = q.shape[-1], side.shape[-1]

        vectors = [t for t in (q, h, b, lb, ub) if t is not None]
        matrices = [t.shape[:-2] for t in (P, G, A) if t is not None]
        shared = broadcast_shapes(side.shape[:-1], *matrices)
        full = broadcast_shapes(shared, *(t.shape[:-1] for t in vectors))
        # Leading dimensions that the system lacks are columns of one right-hand side.
        aligned = (1,) * (len(full) - len(shared)) + tuple(shared)
        lead = next((i for i, size in enumerate(aligned) if size != 1), len(aligned))
        columns, batch_shape = full[:lead], full[lead:]
        batch = batch_shape.numel()

        def column(t: Tensor | None, size: int) -> Tensor:
            if t is None:
                return q.new_zeros(batch, size, columns.numel())
            t = t.expand(*full, size).reshape(columns.numel(), batch, size)
            return t.permute(1, 2, 0)

        def group(t: Tensor, core: int) -> Tensor:
            t = t.reshape(t.shape[max(t.ndim - core - len(batch_shape), 0) :])
            return flat(t, core, batch_shape)

        side = group(side, 1).expand(batch, count)
        ends = [column(b, p), column(h, m)]
        if count > p + m:
            at_lower = (side[:, p + m :] < 0)[..., None]
            ends.append(torch.where(at_lower, column(lb, n), column(ub, n)))
        active = side != 0
        r_nu = torch.cat(ends, 1) if len(ends) > 1 else ends[0]

        def whole() -> tuple[Tensor, Tensor]:
            grouped = [None if t is None else group(t, 2) for t in (P, G, A)]
            P_, G_, A_ = grouped
            return stacked_matrices(P_, G_, A_, n, count, torch.Size((batch,)))

        with calm():  # the threads of the solve call torch
            if system.L is None:
                factor = kkt.factor_for(*whole(), active)
            else:
                parts = zip(system[1:], SYSTEM_NDIM[1:], strict=True)
                factor = kkt.Factor(*(group(t, core) for t, core in parts if t is not None))
            t_x, t_nu = kkt.solve(whole, factor, active, -column(q, n), r_nu)

        def back(t: Tensor) -> Tensor:
            # A copy: forward mode cannot give a tangent to a view.
            return (
                t.permute(2, 0, 1)
                .clone(memory_format=torch.contiguous_format)
                .view(*full, t.shape[1])
            )

        return back(t_x), back(t_nu[:, :p]), back(t_nu[:, p : p + m]), back(t_nu[:, p + m :])

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        P, q, G, h, A, b, lb, ub = inputs[:8]
        side = inputs[8]
        assert q is not None
        assert side is not None
        full = broadcast_shapes(
            *(t.shape[:-1] for t in (q, h, b, lb, ub, side) if t is not None),
            *(t.shape[:-2] for t in (P, G, A) if t is not None),
        )
        p = 0 if A is None else A.shape[-2]
        m = 0 if G is None else G.shape[-2]
        sizes = (q.shape[-1], p, m, side.shape[-1] - p - m)
        return tuple(q.new_empty(*full, size) for size in sizes)

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["FixedActiveRows", Tensors]:
        """Move the mapped dimension to the front."""
        moved = batch_first(dims, inputs, (*DATA_NDIM, *SYSTEM_NDIM))
        return self, moved
