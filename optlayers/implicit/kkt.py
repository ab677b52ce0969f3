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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.qp import kkt
from solvers.qp.quadratic_program import CORE_NDIM
from solvers.qp.rows import flat

from .batching import batch_first, outer
from .function import Tensors, solve_implicitly

DATA_NDIM = tuple(CORE_NDIM.values())


class System(NamedTuple):
    r"""Which rows are active, and a factor of :math:`K` if forward made one.

    Attributes:
        side: ``(*batch, rows)`` integers: 0 inactive, 1 active at the upper end or an equality,
            -1 active at the lower end.
        L: See :class:`solvers.qp.kkt.Factor`; each with the batch dimensions or as many ones.
        M: The same.
        norm: The same.
        rho: The same.
    """

    side: Tensor
    L: Tensor | None = None
    M: Tensor | None = None
    norm: Tensor | None = None
    rho: Tensor | None = None


SYSTEM_NDIM = (1, 2, 2, 1, 0)


@dataclass(frozen=True)
class KKTConditions:
    """What the solved program and its adjoint have in common: ``vjp`` and ``jvp``.

    The inputs begin with ``P, q, G, h, A, b, lb, ub``; the outputs begin with ``x, y, z, z_box`` and,
    for the solved program, ``s, objective``.
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
        P, q, G, h, A, b, lb, ub = inputs[:8]
        x, y, z, z_box = outputs[:4]
        system = self.system(inputs, outputs)
        g_x, g_y, g_z, g_box, g_s, g_value = (*cotangents[: self.differentiable], None, None)[:6]
        if g_s is not None:  # s = h - G x
            assert G is not None
            pull = -(G.mT @ g_s[..., None])[..., 0]
            g_x = pull if g_x is None else g_x + pull

        a_x: Tensor | None = None
        a_y = a_z = a_box = None
        if any(g is not None for g in (g_x, g_y, g_z, g_box)):
            if g_x is None:
                g_x = torch.zeros_like(x)
            minus_y, minus_z, minus_box = (
                None if g is None else -g for g in (g_y, g_z, g_box)
            )
            a_x, a_y, a_z, a_box = solve_implicitly(
                FixedActiveRows(), P, g_x, G, minus_z, A, minus_y, minus_box, minus_box, *system
            )  # fmt: skip
        if g_s is not None:
            a_z = -g_s if a_z is None else a_z - g_s

        d_q, r_y, r_z, r_box = a_x, a_y, a_z, a_box
        if g_value is not None:  # by the envelope theorem, half of it through the products below
            half = 0.5 * g_value[..., None]
            a_x, a_y, a_z, a_box = (
                half * v if a is None else a + half * v
                for a, v in zip((a_x, a_y, a_z, a_box), (x, y, z, z_box), strict=True)
            )
            d_q, r_y, r_z, r_box = (
                a + half * v
                for a, v in zip((a_x, a_y, a_z, a_box), (x, y, z, z_box), strict=True)
            )  # type: ignore[operator]

        grads: list[Tensor | None] = [None] * len(inputs)
        if needed[0] and P is not None and a_x is not None:
            product = outer(0.5 * a_x, x, P.shape[:-2])
            grads[0] = product + product.mT
        if needed[1]:
            grads[1] = _sum_to(d_q, q)
        for position, (M, a, v) in ((2, (G, a_z, z)), (4, (A, a_y, y))):
            if needed[position] and M is not None and a_x is not None:
                total = None if a is None else outer(a, x, M.shape[:-2])
                rest = outer(v, a_x, M.shape[:-2])
                grads[position] = rest if total is None else total + rest
        if needed[3] and r_z is not None:
            grads[3] = _sum_to(-r_z, h)
        if needed[5] and r_y is not None:
            grads[5] = _sum_to(-r_y, b)
        if (needed[6] or needed[7]) and r_box is not None:
            side = system.side[..., -r_box.shape[-1] :]
            if needed[6]:
                grads[6] = _sum_to(-r_box * (side < 0), lb)
            if needed[7]:
                grads[7] = _sum_to(-r_box * (side > 0), ub)
        return grads

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


def _sum_to(t: Tensor | None, like: Tensor | None) -> Tensor | None:
    return None if t is None or like is None else t.sum_to_size(like.shape)


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
        shared = torch.broadcast_shapes(side.shape[:-1], *matrices)
        full = torch.broadcast_shapes(shared, *(t.shape[:-1] for t in vectors))
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
            rows = [group(t, 2) for t in (A, G) if t is not None]
            if count > p + m:
                rows.append(torch.eye(n, dtype=q.dtype, device=q.device)[None])
            size = max((t.shape[0] for t in rows), default=1)
            C = [t.expand(size, *t.shape[1:]) for t in rows]
            symmetric = q.new_zeros(1, n, n) if P is None else group(0.5 * (P + P.mT), 2)
            return symmetric, torch.cat(C, 1) if C else q.new_zeros(1, 0, n)

        if system.L is None:
            factor = kkt.factor_for(*whole(), active)
        else:
            parts = (system.L, system.M, system.norm, system.rho)
            factor = kkt.Factor(
                *(group(t, c) for t, c in zip(parts, SYSTEM_NDIM[1:], strict=True) if t is not None)
            )
        t_x, t_nu = kkt.solve(whole, factor, active, -column(q, n), r_nu)

        def back(t: Tensor) -> Tensor:
            # A copy: forward mode cannot give a tangent to a view.
            return t.permute(2, 0, 1).clone(memory_format=torch.contiguous_format).view(
                *full, t.shape[1]
            )

        return back(t_x), back(t_nu[:, :p]), back(t_nu[:, p : p + m]), back(t_nu[:, p + m :])

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        P, q, G, h, A, b, lb, ub = inputs[:8]
        side = inputs[8]
        assert q is not None and side is not None
        full = torch.broadcast_shapes(
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
