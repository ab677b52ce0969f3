"""Conditions at a point, ready for autograd: one graph serves all products with their Jacobian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from solvers.derivatives import at_once, pull_back


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
        pulled, *rest = pull_back(there.value, u[0], (there.x, *self.leaves))
        self._pulled = u, rest
        pulled = torch.zeros_like(u) if pulled is None else pulled[None]
        return u - pulled if self.of_image else pulled

    def for_leaves(self, u: Tensor) -> list[Tensor | None]:
        """The negative transposed Jacobian in the leaves times ``(1, B, n)``; None where zero."""
        known = self._pulled
        found = known[1] if known and known[0] is u else pull_back(self.value, u[0], self.leaves)
        return [g if g is None or self.of_image else -g for g in found]

    def _pull(self, u: Tensor) -> Tensor:
        if u.ndim > self.x.ndim:
            return at_once(self._pull, u)
        (pulled,) = pull_back(self.value, u, (self.x,))
        return torch.zeros_like(u) if pulled is None else pulled
