"""Bounds as users give them: None, numbers, tensors, or of the form of a pytree of unknowns."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .implicit.kind import OnFlat
from .implicit.unknowns import in_order_of


def ends_of(
    on_flat: OnFlat, x0: Tensor, bounds: Callable[..., tuple[Any, Any, Any]]
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds, each like ``x0`` ``(B, n)`` or a part of it.

    Args:
        on_flat: See :meth:`Kind.find`.
        x0: Where a solver starts.
        bounds: Maps the unknowns and the parameters to the bounded unknowns and both bounds.

    Raises:
        ValueError: If a lower bound exceeds an upper one.
    """

    def end(of: Callable[[Any, Any, Any], Any]) -> Tensor:
        return on_flat(lambda *arguments: of(*bounds(*arguments)))(x0)

    def filled(x: Any, value: float) -> Any:
        return pytree.tree_map(lambda t: torch.full_like(t, value), x)

    # Each on its own: together they would hide that they cross.
    lower = end(lambda x, lb, ub: clamp(filled(x, -torch.inf), lb, None))
    upper = end(lambda x, lb, ub: clamp(filled(x, torch.inf), None, ub))
    crossed = int((lower > upper).sum())
    if crossed:
        raise ValueError(
            f"minimize: lower bounds must not exceed upper ones; got {crossed} that do. Did you "
            "swap the two?"
        )
    return lower, upper


def for_all(q: Any, bound: Tensor | float | None) -> Tensor | None:
    """A number, or a tensor without dimensions, as bounds on all variables, as many as ``q``."""
    if isinstance(q, Tensor) and q.ndim:
        if isinstance(bound, int | float):
            return q.new_full(q.shape[-1:], bound)
        if isinstance(bound, Tensor) and bound.ndim == 0:
            return bound.expand(q.shape[-1:])
    return bound  # type: ignore[return-value]  # what is no tensor is refused with all the rest


def clamp(x: Any, lb: Any, ub: Any, *params: Any) -> Any:
    """The projection onto a box; the bounds are None, numbers, tensors, or of the form of ``x``."""
    if lb is not None:
        x = each(lambda t, b: _moved_in(torch.le, t, b), x, lb)
    if ub is not None:
        x = each(lambda t, b: _moved_in(torch.ge, t, b), x, ub)
    return x


def _moved_in(reaches: Callable[[Tensor, Tensor], Tensor], t: Tensor, bound: Any) -> Tensor:
    """The bound where it is reached: a point that is there moves with it."""
    end = torch.as_tensor(bound).to(t)
    return torch.where(reaches(t, end), end, t)


def each(function: Callable[[Tensor, Any], Tensor], x: Any, bound: Any) -> Any:
    """Apply a function to all leaves of ``x``, with the same bound or with one each."""
    leaves, spec = pytree.tree_flatten(x)
    bounds = in_order_of(spec, bound)
    if len(bounds) == 1:
        bounds = bounds * len(leaves)
    if len(bounds) != len(leaves):
        raise ValueError(
            f"minimize: a bound must be None, a number, a tensor, or of the structure of x0; got "
            f"{len(bounds)} parts for {len(leaves)} tensors. Make a tensor of a list of numbers."
        )
    return spec.unflatten([function(t, b) for t, b in zip(leaves, bounds, strict=True)])
