"""Conditions at a point, ready for autograd: one graph serves all products with their Jacobian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.func import vmap


class Graph:
    r"""The graph of conditions :math:`R(x, \theta)`, or of :math:`T` if they are :math:`x - T(x)`.

    Args:
        x: The point ``(B, n)``, a leaf of the graph.
        value: What was evaluated there ``(B, n)``.
        leaves: Parameters, leaves of the graph as well.
        of_image: Whether that was :math:`T`.
    """

    def __init__(self, x: Tensor, value: Tensor, leaves: Sequence[Tensor], of_image: bool) -> None:
        self.x, self.value, self.leaves, self.of_image = x, value, tuple(leaves), of_image
        self._pulled: tuple[Tensor, Sequence[Tensor | None]] | None = None

    @classmethod
    def of(
        cls,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        leaves: Sequence[Tensor] = (),
        *,
        of_image: bool = False,
    ) -> "Graph":
        """Evaluate a function at ``x`` ``(B, n)``, whose values have the shape of ``x``."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return cls(x, function(x), leaves, of_image)

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

    def last_product(self, u: Tensor) -> Tensor:
        """The product with ``(columns, B, n)`` of which :meth:`for_leaves` may be asked next.

        Both come from one pass through the graph.
        """
        if len(u) != 1:
            return self.product(u)
        pulled, *rest = self._run(u[0], (self.x, *self.leaves))
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
        # A node that draws numbers, in a recomputation say, draws the same for all columns.
        columns: Tensor = vmap(self._pull, randomness="same")(u)
        return columns

    def _run(self, u: Tensor, leaves: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
        if not (leaves and self.value.requires_grad):
            return [None] * len(leaves)
        # What torch.autograd.grad calls, after checks of what is right by construction here, which
        # take as long as the pass itself where that is short.
        found: Sequence[Tensor | None] = _engine_run_backward(
            (self.value,), (u,), True, False, leaves, allow_unreachable=True, accumulate_grad=False
        )
        return found
