"""``torch.compile``: right where it works, and an error where it does not."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from .report import Runner
from .transforms import TRANSFORMS, FlatLayer, Truth, pattern, pull


def check_compile(run: Runner, flat: FlatLayer, tol: float, backend: str) -> None:
    """Values and one backward, compiled as one graph; what else compiles must not be wrong."""
    t, truth = flat.point, Truth(flat, flat.point)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.compiler.reset()  # every layer has the same frames here: the limit on recompiling
        return torch.compile(lambda *a: function(*a), fullgraph=True, backend=backend)

    def value(mode: Any) -> tuple[Any, Any]:
        with mode:
            return compiled(flat.layer)(*flat.inputs), flat.layer(*flat.inputs)

    def backward() -> tuple[Any, Any]:
        leaf = t.clone().requires_grad_()
        y = FlatLayer(compiled(flat.layer), flat.inputs, flat.where)(leaf)
        return pull(y, leaf, pattern(y)), truth.vjp

    def inside(name: str) -> tuple[Any, Any]:
        transform, quantity = TRANSFORMS[name]
        return compiled(lambda t: transform(flat, t))(t), getattr(truth, quantity)

    def around(name: str) -> tuple[Any, Any]:
        transform, quantity = TRANSFORMS[name]
        f = FlatLayer(compiled(flat.layer), flat.inputs, flat.where)
        return transform(f, t), getattr(truth, quantity)

    def duals() -> tuple[Any, Any]:
        f = FlatLayer(compiled(flat.layer), flat.inputs, flat.where)
        f(t)  # a graph without gradients, which dual numbers may then enter
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(t, pattern(t)))).tangent
        return torch.zeros_like(truth.jvp) if tangent is None else tangent, truth.jvp

    values = [("with gradients", torch.enable_grad), ("no_grad", torch.no_grad)]
    run("compile", [(label, lambda mode=mode: value(mode())) for label, mode in values], tol)  # type: ignore[misc]
    run("compile backward", [("", backward)], tol)
    for name in ("grad", "jvp", "jacrev", "jacfwd"):
        run(f"compile of {name}", [("", lambda name=name: inside(name))], tol, or_raise=True)  # type: ignore[misc]
        run(f"{name} of compile", [("", lambda name=name: around(name))], tol, or_raise=True)  # type: ignore[misc]
    run("dual numbers through compile", [("", duals)], tol, or_raise=True)
