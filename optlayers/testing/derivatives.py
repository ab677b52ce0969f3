"""Values, plain backward against finite differences, and the transforms of ``torch.func``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from .report import EXACT, Comparison, Runner
from .transforms import (
    DIRECTIONS,
    TRANSFORMS,
    FlatLayer,
    Truth,
    Vector,
    cubic,
    curvature,
    flatten,
    floating,
    gradient,
    jacobian,
    pattern,
    pull,
    pulled,
    pushed,
    third,
)


def check_values(run: Runner, flat: FlatLayer) -> None:
    """The same value whatever the mode, and time after time."""
    layer, inputs = flat.layer, flat.inputs

    def under(mode: Any) -> tuple[Any, Any]:
        with mode:
            return layer(*inputs), want

    want = layer(*inputs)
    run("value", [("again", lambda: (layer(*inputs), want))])
    run("no_grad", [("", lambda: under(torch.no_grad()))], EXACT)
    run("inference_mode", [("", lambda: under(torch.inference_mode()))], EXACT)


def check_backward(
    run: Runner, flat: FlatLayer, tol: float, fd_tol: float, step: float, third_order: bool
) -> None:
    """Plain backward against finite differences, and torch's own checks."""
    t = flat.point
    v, w = pattern(t), pattern(t.flip(0)).flip(0)
    scalar = cubic(flat)

    def slope(t: Tensor) -> Tensor:
        return gradient(scalar, t.detach().requires_grad_()).detach()

    def along(function: Vector, direction: Tensor) -> Tensor:
        e = step * direction
        return (function(t + e) - function(t - e)) / (2 * step)

    def columns(function: Vector) -> Tensor:
        basis = torch.eye(t.numel(), dtype=t.dtype, device=t.device)
        return torch.stack([along(function, e) for e in basis], -1)

    def values(t: Tensor) -> Tensor:
        return flat(t).detach()

    def twice() -> tuple[Any, Any]:
        x = t.clone().requires_grad_()
        y = flat(x)
        return [pull(y, x, pattern(y)) for _ in range(3)], [Truth(flat, t).vjp] * 3

    def accumulated() -> tuple[Any, Any]:
        leaves = [a.detach().clone() for a in flat.inputs]
        for i in flat.where:
            leaves[i].requires_grad_()
        y = flatten(flat.layer(*leaves))
        y.backward(pattern(y))
        grads = [leaves[i].grad for i in flat.where]
        zeros = [torch.zeros_like(leaves[i]) for i in flat.where]
        parts = zip(grads, zeros, strict=True)
        return flatten([z if g is None else g for g, z in parts]), Truth(flat, t).vjp

    run("backward", [("", lambda: (jacobian(flat, t), columns(values)))], fd_tol)
    run("backward again and again", [("", twice)], tol)
    run("backward into leaves", [("", accumulated)], tol)
    run("double backward", [("", lambda: (Truth(flat, t).hessian, columns(slope)))], fd_tol)
    if third_order:
        run(
            "triple backward",
            [("", lambda: (third(scalar, t, v, w), along(lambda t: curvature(scalar, t, v), w)))],
            fd_tol,
        )

    def by_torch(check: Callable[..., bool], **modes: bool) -> Comparison:
        arguments = [a.clone() for a in flat.inputs]
        for i in flat.where:
            arguments[i].requires_grad_()

        def call(*arguments: Tensor) -> tuple[Tensor, ...]:
            return tuple(y for y in floating(flat.layer(*arguments)) if y.numel())

        def compare() -> tuple[Any, Any]:
            check(call, arguments, eps=step, atol=fd_tol, rtol=fd_tol, fast_mode=True, **modes)
            return (), ()

        return "", compare

    run("gradcheck", [by_torch(gradcheck, check_batched_grad=True)])
    run(
        "gradcheck forward",
        [by_torch(gradcheck, check_forward_ad=True, check_backward_ad=False)],
    )
    run("gradgradcheck", [by_torch(gradgradcheck)])


def check_transforms(run: Runner, flat: FlatLayer, tol: float) -> None:
    """``torch.func`` on all inputs together, and on each alone: the others then have no tangent."""
    functions = {"all inputs": flat}
    if len(flat.where) > 1:
        functions |= {f"input {i}": flat.alone(i).along(DIRECTIONS) for i in flat.where}
    truths = {label: Truth(f, f.point) for label, f in functions.items()}

    def comparison(name: str, label: str) -> Comparison:
        transform, quantity = TRANSFORMS[name]
        f, truth = functions[label], truths[label]
        return label, lambda: (transform(f, f.point), getattr(truth, quantity))

    for name in TRANSFORMS:
        run(name, [comparison(name, label) for label in functions], tol)

    def products() -> tuple[Any, Any]:
        t = flat.point
        return pushed(flat, t) @ pattern(flat(t)), pulled(flat, t) @ pattern(t)

    run("dot products", [("<Jv, u> = <v, J'u>", products)], EXACT)
