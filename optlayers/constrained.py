"""Minima under constraints, by the conditions of Karush, Kuhn and Tucker."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad
from torch.utils import _pytree as pytree

from solvers.derivatives import gradient
from solvers.iteration import Run
from solvers.minimize import SQP, ScipyMinimize
from solvers.root import Newton
from solvers.solution import Solution, Status

from .box import clamp, ends_of
from .failure import OnFailure
from .implicit.adjoints import Adjoint, Unrolled
from .implicit.automatic import Automatic
from .implicit.find import find
from .implicit.kind import Kind, OnFlat
from .loss import Loss


@dataclass(frozen=True)
class Constrained(Kind):
    r"""Points with multipliers, of a loss under constraints.

    The unknowns are a dictionary of ``x``, ``y``, ``z`` and ``z_box``; the first two parameters are
    the bounds. With the Lagrangian :math:`L = f + y^\top e + z^\top g + z_{box}^\top x` the
    conditions are :math:`\nabla_x L = 0`, :math:`e = 0`, :math:`z = \max(0, z + g)` and
    :math:`x = \mathrm{clamp}(x + z_{box}, lb, ub)`.
    """

    loss: Loss
    equalities: Callable[..., Tensor] | None
    inequalities: Callable[..., Tensor] | None
    bounded: bool
    solver: Any

    where: ClassVar[str] = "minimize"
    has_value: ClassVar[bool] = True
    has_multipliers: ClassVar[bool] = True

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those that know constraints."""
        return (SQP, ScipyMinimize)

    def _lagrangian(self, x: Any, unknowns: dict[str, Any], *params: Any) -> Tensor:
        total = self.loss(x, *params)
        for f, name in ((self.equalities, "y"), (self.inequalities, "z")):
            if f is not None:
                total = total + (unknowns[name] * f(x, *params)).sum(-1)
        return total

    def residual(self, x: Any, *params: Any) -> Any:
        """The conditions, in the places of the unknowns that they determine."""
        point, (lb, ub, *rest) = x["x"], params
        found = {"x": grad(lambda p: self._lagrangian(p, x, *rest).sum())(point)}
        if self.equalities is not None:
            found["y"] = self.equalities(point, *rest)
        if self.inequalities is not None:
            found["z"] = x["z"] - _positive_part(x["z"], self.inequalities(point, *rest))
        if self.bounded:
            found["x"] = pytree.tree_map(torch.add, found["x"], x["z_box"])
            inside = clamp(pytree.tree_map(torch.add, point, x["z_box"]), lb, ub)
            found["z_box"] = pytree.tree_map(torch.sub, point, inside)
        return found

    def signs(self, x: Any, *params: Any) -> Any:
        """Those of the rows of inequalities differ, as they hold minus the inequality."""
        of = {"x": 0.0, "y": -1.0, "z": 1.0, "z_box": -1.0}
        return {
            name: pytree.tree_map(lambda t, sign=of[name]: torch.full_like(t, sign), part)
            for name, part in x.items()
        }

    def value(self, x: Any, *params: Any) -> Tensor:
        """The Lagrangian; a bound counts as a constraint where its multiplier is not zero."""
        point, (lb, ub, *rest) = x["x"], params
        total = self._lagrangian(point, x, *rest)
        if self.bounded:
            inside = clamp(pytree.tree_map(torch.add, point, x["z_box"]), lb, ub)
            beyond = pytree.tree_map(torch.sub, point, inside)
            total = total + self.loss.inner(x["z_box"], beyond)
        return total

    def number(self, x: Any, *params: Any) -> Tensor:
        """The loss."""
        return self.loss(x["x"], *params[2:])

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By the solver, then by Newton's method on the conditions, which gives the last digits."""

        def point(x: Any, *params: Any) -> Any:
            return x["x"]

        start = on_flat(point)(x0)
        rest = x0[:, start.shape[-1] :]

        def on_point(function: Callable[..., Any], **how: Any) -> Callable[[Tensor], Tensor]:
            def of_unknowns(x: Any, *params: Any) -> Any:
                return function(x["x"], *params[2:])

            of_all = on_flat(of_unknowns, **how)
            return lambda p: of_all(torch.cat([p, rest], -1))

        solver = SQP() if self.solver is None else self.solver
        ends = {}
        if self.bounded:
            lower, upper = ends_of(on_flat, x0, lambda x, lb, ub, *params: (x["x"], lb, ub))
            ends = {"lower": lower, "upper": upper}
        rough = solver.solve(
            on_point(self.loss, scalar=True),
            start,
            equalities=None if self.equalities is None else on_point(self.equalities),
            inequalities=None if self.inequalities is None else on_point(self.inequalities),
            **ends,
        )
        parts = [rough.x, rough.y, rough.z, rough.z_box]
        x = torch.cat([t for t in parts if t is not None], -1)
        conditions = on_flat(self.residual)
        polished = Newton(max_iter=20).find(conditions, x)
        n, solved = start.shape[-1], rough.status <= Status.SOLVED_INACCURATE
        moved = torch.linalg.vector_norm((polished.x - x)[:, :n], dim=-1)
        near = moved <= 1e-2 * (1 + torch.linalg.vector_norm(rough.x, dim=-1))
        good = solved & (polished.status <= Status.SOLVED_INACCURATE) & near
        status = torch.where(good, polished.status, rough.status)
        if not bool((good | ~solved).all()):
            # Where the conditions are singular the point may be right all the same.
            g = gradient(on_point(self.loss, scalar=True), rough.x)
            slope = torch.linalg.vector_norm(g, dim=-1)
            left = torch.linalg.vector_norm(conditions(x), dim=-1)
            fits = left <= torch.finfo(x.dtype).eps ** 0.5 * (1 + slope)
            status = status.masked_fill(solved & ~good & ~fits, Status.NUMERICAL_ERROR)
        return Run(
            torch.where(good[:, None], polished.x, x),
            status,
            rough.iterations + polished.iterations,
            torch.where(good, polished.error, moved),
            None,
            (),
            None,
        )


def _positive_part(z: Tensor, g: Tensor) -> Tensor:
    r""":math:`\max(0, z + g)`, without a derivative where the multiplier is zero.

    Where constraints depend on each other some multipliers are zero though their constraints are
    active: rounding of these shall not decide on derivatives.
    """
    pushed = z + g
    active = (pushed > 0) & (z > 0)
    return torch.where(active, pushed, torch.relu(pushed).detach())


def minimize_constrained(
    loss: Loss,
    x0: Any,
    params: tuple[Any, ...],
    equalities: Callable[..., Tensor] | None,
    inequalities: Callable[..., Tensor] | None,
    bounds: tuple[Any, Any] | None,
    batch_ndim: int,
    solver: Any,
    adjoint: Adjoint | Unrolled | None,
    on_failure: OnFailure,
) -> Solution:
    """What :func:`optlayers.minimize` does with constraints."""
    unknowns = {"x": x0}
    batch = pytree.tree_leaves(x0)[0].shape[:batch_ndim]
    for name, f in (("y", equalities), ("z", inequalities)):
        if f is not None:
            with torch.no_grad():
                value: Any = f(x0, *params)
            if not isinstance(value, Tensor) or value.ndim != batch_ndim + 1:
                what = "equalities" if name == "y" else "inequalities"
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"minimize: {what} must return a tensor of shape (*batch, count) with "
                    f"{batch_ndim} batch dimensions; got {got}. Stack single constraints with "
                    "torch.stack(..., -1)."
                )
            unknowns[name] = value.new_zeros((*batch, value.shape[-1]))
    lb, ub = (None, None) if bounds is None else bounds
    bounded = lb is not None or ub is not None
    if bounded:
        unknowns["z_box"] = pytree.tree_map(torch.zeros_like, x0)
    kind = Constrained(loss, equalities, inequalities, bounded, solver)
    solution = find(
        kind,
        unknowns,
        (lb, ub, *params),
        batch_ndim=batch_ndim,
        adjoint=Automatic() if adjoint is None else adjoint,
        on_failure=on_failure,
    )
    found = solution.x
    solution.x = found["x"]
    solution.y, solution.z = found.get("y"), found.get("z")
    solution.z_box = found.get("z_box")
    return solution
