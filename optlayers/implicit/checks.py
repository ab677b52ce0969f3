"""What a function must be: of the structure of the unknowns, and such that no gradient is lost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from .unknowns import in_order_of, matches

if TYPE_CHECKING:
    from .conditions import Conditions

CAPTURED = (
    "the function depends on a tensor that carries derivatives, or is mapped by vmap, and is not "
    "one of its arguments, so its gradient would be lost. Pass the tensor, or the module it "
    "belongs to, as a parameter: what follows x0 is handed on to the function. Detach it if it is "
    "meant to be a constant."
)


def check(problem: "Conditions", leaves: Sequence[Tensor], values: Sequence[Any]) -> list[Tensor]:
    """Refuse conditions of another shape than the unknowns, and gradients that would be lost.

    Args:
        problem: What is to be checked.
        leaves: Of the unknowns, where to evaluate.
        values: The parameters; nothing in them carries derivatives.

    Returns:
        The leaves of the conditions there, or of the image if that is what they are made of.

    Raises:
        ValueError: If the conditions do not have the structure of ``x``.
        RuntimeError: If the conditions depend on something differentiable that is no argument.
    """
    kind = problem.kind
    detached = [leaf.detach() for leaf in leaves]
    x = problem.unknowns.spec.unflatten(detached)
    with torch.enable_grad():
        before = [leaf._version for leaf in detached]
        got = (kind.residual if kind.image is None else kind.image)(x, *values)
        value = kind.value(x, *values) if kind.has_value else None
    if [leaf._version for leaf in detached] != before:
        raise RuntimeError(
            f"{kind.where}: the function must not change its argument; got one that "
            "writes into x. Work on x.clone(), or without operations in place."
        )
    found = _leaves_like(problem, leaves, got)
    if found and found[0].dtype != leaves[0].dtype:
        raise TypeError(
            f"{kind.where}: the function must return the dtype of x0, {leaves[0].dtype}; "
            f"got {found[0].dtype}. Convert x0 or the parameters."
        )
    if problem.watched and any(t.requires_grad for t in found + ([] if value is None else [value])):
        raise RuntimeError(f"{kind.where}: {CAPTURED}")
    return [t.detach() for t in found]


def _leaves_like(problem: "Conditions", leaves: Sequence[Tensor], got: Any) -> list[Tensor]:
    """The leaves of what a function returned, in the order of ``x`` and of its shapes."""
    wanted = [tuple(leaf.shape) for leaf in leaves]
    residuals = in_order_of(problem.unknowns.spec, got)
    shapes = [tuple(t.shape) if isinstance(t, Tensor) else t for t in residuals]
    if shapes != wanted or not matches(problem.unknowns.spec, got):
        raise ValueError(
            f"{problem.kind.where}: the function must return what has the structure and shapes of "
            f"x0, {wanted}; got {shapes}. It gets all samples at once, with their batch "
            "dimensions in front."
        )
    return residuals


def check_transformed(
    problem: "Conditions", leaves: Sequence[Tensor], tensors: Sequence[Tensor]
) -> None:
    """Refuse what is captured from around a transform, which nobody sees from within.

    The function is called with constants, so that only what it captures can carry derivatives
    or a mapped dimension.

    Raises:
        RuntimeError: If it captures such a tensor.
    """
    if torch.compiler.is_compiling():
        return
    transformed = torch._C._are_functorch_transforms_active()
    if not transformed and forward_ad._current_level < 0:
        return

    def constant(t: Tensor) -> Tensor:
        value = 0.5 if t.is_floating_point() else 0
        return torch.full(t.shape, value, dtype=t.dtype, device=t.device)

    x = problem.unknowns.spec.unflatten([constant(t) for t in leaves])
    with torch.enable_grad(), problem.arguments.bound([constant(t) for t in tensors]) as values:
        got = _leaves_like(problem, leaves, problem.kind.residual(x, *values))
        if problem.kind.has_value:
            got.append(problem.kind.value(x, *values))
    if not problem.watched:
        return
    for t in got:
        inner = t
        captured = forward_ad.unpack_dual(t).tangent is not None
        while is_functorch_wrapped_tensor(inner):
            captured = captured or is_batchedtensor(inner) or inner.requires_grad
            inner = get_unwrapped(inner)
        if captured or inner.requires_grad:
            raise RuntimeError(f"{problem.kind.where}: {CAPTURED}")
