"""Conditions at a point, ready for autograd: one graph serves all products with their Jacobian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import (
    _add_batch_dim,
    _remove_batch_dim,
    _vmap_decrement_nesting,
    _vmap_increment_nesting,
)
from torch.autograd.graph import _engine_run_backward


class Graph:
    r"""The graph of conditions :math:`R(x, \theta)`, or of :math:`T` if they are :math:`x - T(x)`.

    Args:
        function: Of ``x`` ``(B, n)``; its values have the shape of ``x``.
        x: The point.
        leaves: Parameters that the function uses, leaves of the graph as well.
        of_image: Whether the function is :math:`T`.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        leaves: Sequence[Tensor] = (),
        *,
        of_image: bool = False,
    ) -> None:
        self.function, self.leaves, self.of_image = function, tuple(leaves), of_image
        with torch.enable_grad():
            self.x = x.detach().requires_grad_()
            self.value = function(self.x)
        self._pulled: tuple[Tensor, Sequence[Tensor | None]] | None = None

    def conditions(self) -> Tensor:
        """The conditions at the point, ``(B, n)``."""
        value = self.value.detach()
        return self.x.detach() - value if self.of_image else value

    def product(self, u: Tensor) -> Tensor:
        """The transposed Jacobian of the conditions times ``(B, n)`` or ``(columns, B, n)``."""
        pulled = self._pull(u)
        return u - pulled if self.of_image else pulled

    def step(self, u: Tensor, v: Tensor) -> Tensor:
        r"""One step :math:`u \leftarrow u - (A^\top u - v)`, for ``u`` as in :meth:`product`."""
        pulled = self._pull(u)
        return v + pulled if self.of_image else u - pulled + v

    def last_product(self, u: Tensor, step: Tensor | None = None) -> Tensor:
        """The product with ``(columns, B, n)`` of which :meth:`for_leaves` may be asked next.

        Both come from one pass through the graph, and with ``step`` from the point a step on.
        """
        if step is None:
            there = self
        else:
            x = self.x.detach() + step
            there = Graph(self.function, x, self.leaves, of_image=self.of_image)
        if len(u) != 1:
            return there.product(u)
        pulled, *rest = there._run(u[0], (there.x, *self.leaves))
        self._pulled = u, rest
        pulled = torch.zeros_like(u) if pulled is None else pulled[None]
        return u - pulled if self.of_image else pulled

    def for_leaves(self, u: Tensor) -> list[Tensor | None]:
        """The negative transposed Jacobian in the leaves times ``(1, B, n)``; None where zero."""
        known = self._pulled
        found = known[1] if known and known[0] is u else self._run(u[0], self.leaves)
        return [g if g is None or self.of_image else -g for g in found]

    def _pull(self, u: Tensor) -> Tensor:
        if u.ndim == self.x.ndim:
            (pulled,) = self._run(u, (self.x,))
            return torch.zeros_like(u) if pulled is None else pulled
        # For a column at a time plain autograd takes a third of what torch.func does.
        if len(u) == 1:
            return self._pull(u[0])[None]
        # What torch.func.vmap does, in half of its time. A node that draws numbers, in a
        # recomputation say, draws the same for all columns.
        level = _vmap_increment_nesting(len(u), "same")
        try:
            pulled = self._pull(_add_batch_dim(u, 0, level))
            return _remove_batch_dim(pulled, level, len(u), 0)
        finally:
            _vmap_decrement_nesting()

    def _run(self, u: Tensor, leaves: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
        if not (leaves and self.value.requires_grad):
            return [None] * len(leaves)
        # What torch.autograd.grad calls, after checks of what is right by construction here, which
        # take as long as the pass itself where that is short.
        found: Sequence[Tensor | None] = _engine_run_backward(
            (self.value,), (u,), True, False, leaves, allow_unreachable=True, accumulate_grad=False
        )
        return found
