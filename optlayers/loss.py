"""A user's loss: one number a sample, its gradients, and step sizes that suit its curvature."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp
from torch.utils import _pytree as pytree

from .implicit.unknowns import ravel

# Products with the Hessian that estimate its largest eigenvalue; its order is enough.
CURVATURE_PRODUCTS = 3


@dataclass(frozen=True)
class Loss:
    """A user's loss, and how many dimensions of samples its values have."""

    function: Callable[..., Any]
    batch_ndim: int

    def __call__(self, x: Any, *params: Any) -> Tensor:
        """The loss of every sample.

        Raises:
            ValueError: If the loss does not return one number a sample.
        """
        value = self.function(x, *params)
        if not isinstance(value, Tensor) or value.ndim != self.batch_ndim:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"minimize: the loss must return one number a sample, a tensor with "
                f"{self.batch_ndim} dimensions as batch_ndim={self.batch_ndim}; got {got}. "
                "Sum over everything but the first batch_ndim dimensions."
            )
        return value

    def gradient(self, x: Any, *params: Any) -> Any:
        """Gradients of all samples, of the structure of ``x``."""
        return grad(lambda x: self(x, *params).sum())(x)

    def gradient_and_step(self, x: Any, *params: Any) -> tuple[Any, Tensor]:
        """Gradients, and step sizes ``(*batch)`` that suit the curvature, as constants.

        Conditions that hold for a step of any size do not change with it: it needs no derivative.
        """
        g, *rest = vjp(lambda x: self.gradient(x, *params), x)
        v = pytree.tree_map(torch.ones_like, x)
        for _ in range(CURVATURE_PRODUCTS):
            v = rest[0](self._unit(v))[0]
        curvature = self._norm(v).detach()
        return g, torch.where(curvature > 0, 1 / torch.where(curvature > 0, curvature, 1.0), 1.0)

    def descend(self, x: Any, step: Tensor, g: Any) -> Any:
        """A gradient step of each sample's own size."""
        return pytree.tree_map(lambda x, g: x - per_sample(step, x) * g, x, g)

    def inner(self, a: Any, b: Any) -> Tensor:
        """Inner products ``(*batch)`` of two trees like ``x``."""
        flat = [ravel(pytree.tree_leaves(t), self.batch_ndim) for t in (a, b)]
        return (flat[0] * flat[1]).sum(-1)

    def _norm(self, v: Any) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(
            ravel(pytree.tree_leaves(v), self.batch_ndim), dim=-1
        )
        return norm

    def _unit(self, v: Any) -> Any:
        norm = self._norm(v)
        norm = torch.where(norm > 0, norm, 1.0)
        return pytree.tree_map(lambda t: t / per_sample(norm, t), v)


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """One number a sample ``(*batch)``, to be combined with ``(*batch, ...)``."""
    return t.reshape((*t.shape, *[1] * (like.ndim - t.ndim)))
