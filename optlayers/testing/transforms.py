"""What is compared: the transforms of torch, and what each must equal.

Everything is stated on a function of one vector: a layer's differentiable inputs laid end to end
come in, its floating-point outputs laid end to end go out. The truth is nested plain backward,
which finite differences check on their own; every other transform must agree with it to rounding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp
from torch.utils import _pytree as pytree

# How many directions stand for all of them where a derivative is repeated often.
DIRECTIONS = 4
Vector = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FlatLayer:
    """A layer as a function of one vector.

    Attributes:
        layer: From tensors to a tensor or any nest of them.
        inputs: Its arguments.
        where: Positions of the differentiable arguments; the others stay as they are.
        directions: If given, the vector holds coefficients of these columns, around the inputs.
    """

    layer: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    where: tuple[int, ...]
    directions: Tensor | None = None

    @property
    def center(self) -> Tensor:
        """The differentiable inputs end to end."""
        return torch.cat([self.inputs[i].detach().reshape(-1) for i in self.where])

    @property
    def point(self) -> Tensor:
        """The vector that stands for the inputs."""
        return self.center if self.directions is None else torch.zeros_like(self.directions[0])

    def arguments(self, t: Tensor) -> list[Tensor]:
        """All arguments of the layer, the differentiable ones cut from ``t``."""
        if self.directions is not None:
            t = self.center + self.directions @ t
        arguments = list(self.inputs)
        parts = t.split([self.inputs[i].numel() for i in self.where])
        for i, part in zip(self.where, parts, strict=True):
            arguments[i] = part.reshape(self.inputs[i].shape)
        return arguments

    def __call__(self, t: Tensor, offsets: Mapping[int, Tensor] | None = None) -> Tensor:
        """The outputs end to end, at ``t`` or with some arguments moved from there."""
        arguments = self.arguments(t)
        for i, offset in (offsets or {}).items():
            arguments[i] = arguments[i] + offset
        return flatten(self.layer(*arguments))

    def alone(self, i: int) -> "FlatLayer":
        """The same as a function of one argument; the others then carry no tangent at all."""
        return replace(self, where=(i,))

    def along(self, count: int) -> "FlatLayer":
        """The same along a few directions in general position, which costs a fraction.

        A wrong entry of a derivative shows in almost any direction.
        """
        center = self.center
        if center.numel() <= count:
            return self
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(center.numel(), count, generator=generator, dtype=center.dtype)
        return replace(self, directions=directions.to(center.device) / center.numel() ** 0.5)


def flatten(outputs: Any) -> Tensor:
    """All floating-point tensors of a nest, end to end."""
    return torch.cat([t.reshape(-1) for t in floating(outputs)])


def floating(outputs: Any) -> list[Tensor]:
    """The tensors of a nest that may have derivatives."""
    leaves = pytree.tree_leaves(outputs)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]


def pattern(like: Tensor) -> Tensor:
    """A fixed vector without symmetries, for directions, cotangents and weights."""
    return torch.cos(torch.arange(1, like.numel() + 1, dtype=like.dtype, device=like.device) ** 2)


def cubic(f: Vector) -> Vector:
    """A scalar of ``f`` whose derivatives up to the third depend on all of it."""

    def value(t: Tensor) -> Tensor:
        y = f(t)
        return ((y + pattern(y)) ** 3).sum() / 3

    return value


# --- the truth: plain backward -----------------------------------------------------------------


def pull(y: Tensor, t: Tensor, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
    """One backward, which may be repeated; zero where ``y`` does not depend on ``t``."""
    if not y.requires_grad:
        return torch.zeros_like(t)
    (g,) = torch.autograd.grad(
        y, t, cotangent, retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return g


def gradient(f: Vector, t: Tensor) -> Tensor:
    """Gradient of a scalar function that can be differentiated again."""
    y = f(t)
    return pull(y, t, torch.ones_like(y), create_graph=True)


def jacobian(f: Vector, t: Tensor) -> Tensor:
    """One backward an output."""
    t = t.detach().requires_grad_()
    y = f(t)
    rows = [pull(y, t, e) for e in torch.eye(y.numel(), dtype=y.dtype, device=y.device)]
    return torch.stack(rows) if rows else t.new_zeros(0, t.numel())


def third(f: Vector, t: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Third derivative of a scalar function along two directions, by three backwards."""
    t = t.detach().requires_grad_()
    g = gradient(f, t)
    along = pull(g, t, v, create_graph=True)
    return pull(along, t, w)


def curvature(f: Vector, t: Tensor, v: Tensor) -> Tensor:
    """Second derivative of a scalar function along one direction, by two backwards."""
    t = t.detach().requires_grad_()
    return pull(gradient(f, t), t, v)


class Truth:
    """What the transforms of ``f`` at ``t`` must give, computed once."""

    def __init__(self, f: Vector, t: Tensor) -> None:
        self.f, self.t = f, t

    @cached_property
    def jacobian(self) -> Tensor:
        """First derivatives of the outputs."""
        return jacobian(self.f, self.t)

    @cached_property
    def grad(self) -> Tensor:
        """First derivatives of the scalar."""
        return gradient(cubic(self.f), self.t.detach().requires_grad_()).detach()

    @cached_property
    def hessian(self) -> Tensor:
        """Second derivatives of the scalar."""
        return jacobian(lambda t: gradient(cubic(self.f), t), self.t)

    @property
    def vjp(self) -> Tensor:
        """Jacobian, transposed, times the pattern."""
        return pattern(self.jacobian[:, 0]) @ self.jacobian

    @property
    def jvp(self) -> Tensor:
        """Jacobian times the pattern."""
        return self.jacobian @ pattern(self.t)


# --- the transforms ------------------------------------------------------------------------------


def pulled(f: Vector, t: Tensor) -> Tensor:
    """``torch.func.vjp`` with a fixed cotangent."""
    y, *rest = vjp(f, t)
    result: Tensor = rest[0](pattern(y))[0]
    return result


def pushed(f: Vector, t: Tensor) -> Tensor:
    """``torch.func.jvp`` with a fixed tangent."""
    result: Tensor = jvp(f, (t,), (pattern(t),))[1]
    return result


# name -> (the transform as a function of f and t, the attribute of Truth that it must equal)
TRANSFORMS: dict[str, tuple[Callable[[Vector, Tensor], Tensor], str]] = {
    "grad": (lambda f, t: grad(cubic(f))(t), "grad"),
    "vjp": (pulled, "vjp"),
    "jvp": (pushed, "jvp"),
    "jacrev": (lambda f, t: jacrev(f)(t), "jacobian"),
    "jacfwd": (lambda f, t: jacfwd(f)(t), "jacobian"),
    "hessian": (lambda f, t: hessian(cubic(f))(t), "hessian"),
    "jacrev(jacrev)": (lambda f, t: jacrev(jacrev(cubic(f)))(t), "hessian"),
    "jacrev(jacfwd)": (lambda f, t: jacrev(jacfwd(cubic(f)))(t), "hessian"),
    "jacfwd(jacfwd)": (lambda f, t: jacfwd(jacfwd(cubic(f)))(t), "hessian"),
}
