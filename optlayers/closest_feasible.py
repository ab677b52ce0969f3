r"""The quadratic program nearest to one whose constraints contradict each other."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solvers.qp.quadratic_program import check
from solvers.qp.solver import QPSolver
from solvers.solution import Solution

from .box import for_all
from .failure import OnFailure
from .qp import qp


class ClosestFeasible(NamedTuple):
    """What :func:`closest_feasible_qp` returns.

    Attributes:
        solution: Of the program with the shifted constraints.
        h_shift: What was added to ``h``, ``(*batch, m)``; not negative, zero where all was well.
        b_shift: What was added to ``b``, ``(*batch, p)``.
    """

    solution: Solution
    h_shift: Tensor
    b_shift: Tensor


def closest_feasible_qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lb: Tensor | float | None = None,
    ub: Tensor | float | None = None,
    *,
    solver: QPSolver | None = None,
    on_failure: OnFailure = "raise",
) -> ClosestFeasible:
    r"""Solve a quadratic program after shifting its constraints as little as makes them feasible.

    The shifts solve

    .. math::

        \min_{x, \sigma, \tau} \tfrac12 \|\sigma\|^2 + \tfrac12 \|\tau\|^2
        \quad\text{s.t.}\quad G x \le h + \sigma,\; A x = b + \tau,\; lb \le x \le ub,

    and are unique; they are zero for a feasible program, whose solution is then that of :func:`qp`.
    Both steps are differentiated: where constraints contradict each other, gradients say how to
    bring them together. The bounds stay as they are.

    Args:
        P: See :func:`qp`, like the others.
        q: Linear term.
        G: Inequality matrix.
        h: Inequality bounds.
        A: Equality matrix.
        b: Equality values.
        lb: Lower bounds, or a number for all variables.
        ub: Upper bounds, likewise.
        solver: See :func:`qp`.
        on_failure: See :func:`qp`; bounds that exclude each other and objectives without a minimum
            still fail.

    Returns:
        The solution and the two shifts.

    Raises:
        TypeError: See :func:`qp`.
        ValueError: See :func:`qp`.
        SolverError: See :func:`qp`.

    References:
        Bambade, Schramm, Taylor, Carpentier, *Leveraging augmented-Lagrangian techniques for
        differentiating over infeasible quadratic programs in machine learning*, ICLR 2024, section
        3, for the idea of differentiating the closest feasible program.

    Example:
        Between :math:`x \le 0` and :math:`x \ge 1` the least shift meets half way:

        >>> import torch, optlayers as ol
        >>> G, h = torch.tensor([[1.0], [-1.0]]), torch.tensor([0.0, -1.0])
        >>> found = ol.closest_feasible_qp(torch.eye(1), torch.zeros(1), G, h)
        >>> found.solution.x, found.h_shift
        (tensor([0.5000]), tensor([0.5000, 0.5000]))
    """
    low, high = for_all(q, lb), for_all(q, ub)
    shape = check("closest_feasible_qp", P, q, G, h, A, b, low, high).batch_shape
    for name, M in (("P", P), ("G", G), ("A", A)):
        if M is not None and M.layout != torch.strided:
            raise TypeError(
                f"closest_feasible_qp: {name} must be a dense tensor; got layout {M.layout}. "
                f"Convert it with {name}.to_dense()."
            )
    dtype = q.dtype
    for t in (P, G, h, A, b, low, high):
        dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
    q = q.to(torch.float64)
    P, G, h, A, b, low, high = (
        None if t is None else t.to(torch.float64) for t in (P, G, h, A, b, low, high)
    )
    n, m, p = q.shape[-1], 0 if G is None else G.shape[-2], 0 if A is None else A.shape[-2]
    h_shift, b_shift = q.new_zeros(*shape, m), q.new_zeros(*shape, p)
    if m + p:
        # The multipliers of this program are the shifts themselves.
        slack = torch.eye(m + p, dtype=q.dtype, device=q.device)

        def widen(M: Tensor | None, columns: Tensor) -> Tensor | None:
            if M is None:
                return None
            return torch.cat([M, -columns.expand(*M.shape[:-1], m + p)], -1)

        def lengthen(t: Tensor | None, value: float) -> Tensor | None:
            if t is None:
                return None
            return torch.cat([t, t.new_full((*t.shape[:-1], m + p), value)], -1)

        weights = torch.cat([q.new_zeros(n), q.new_ones(m + p)])
        shifts = qp(
            torch.diag(weights), torch.zeros_like(weights).expand(*shape, -1),
            widen(G, slack[:m]), h, widen(A, slack[m:]), b,
            lengthen(low, -torch.inf), lengthen(high, torch.inf),
            solver=solver, on_failure=on_failure,
        )  # fmt: skip
        assert shifts.z is not None
        assert shifts.y is not None
        h_shift, b_shift = shifts.z, shifts.y
        # The point found satisfies the shifted constraints up to rounding; let it satisfy them.
        x = shifts.x[..., :n, None]
        if h is not None and G is not None:
            h = h + ((G @ x)[..., 0] - h - h_shift).clamp(min=0).detach()
        if b is not None and A is not None:
            b = b + ((A @ x)[..., 0] - b - b_shift).detach()
    solution = qp(
        P, q, G, None if h is None else h + h_shift, A, None if b is None else b + b_shift,
        low, high, solver=solver, on_failure=on_failure,
    )  # fmt: skip
    if dtype == torch.float64:
        return ClosestFeasible(solution, h_shift, b_shift)
    solution = pytree.tree_map_only(
        Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, solution
    )
    return ClosestFeasible(solution, h_shift.to(dtype), b_shift.to(dtype))
