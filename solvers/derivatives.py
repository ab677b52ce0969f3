"""Derivatives of a user's function on a batch of independent samples, for solvers that need them.

Functions map ``(B, n)`` to ``(B, m)`` or to ``(B)`` and never mix samples, so one pass gives a
product for every sample at once. Where nobody differentiates what comes out, as within the loop of
a solver, plain autograd is at work, which takes half the time of ``torch.func``.
"""

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
from torch.func import jvp, vjp, vmap

Function = Callable[[Tensor], Tensor]
# Entries of tangents held at a time while a Jacobian is built, in chunks of columns.
CHUNK_ENTRIES = 1 << 24


def jacobian(f: Function, x: Tensor) -> Tensor:
    """Jacobian of every sample ``(B, m, n)``: see :func:`value_and_jacobian`."""
    return value_and_jacobian(f, x)[1]


def value_and_jacobian(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(B, m)`` and Jacobians ``(B, m, n)``, by all products of one mode at once.

    Reverse mode costs less a product, and as many products as there are outputs.
    """
    x = x.contiguous()
    batch, n = x.shape
    value, pull = _vjp(f, x)
    m = value.shape[-1]
    count = min(m, n)
    chunk = max(CHUNK_ENTRIES // max(batch * count, 1), 1)
    basis = torch.eye(count, dtype=x.dtype, device=x.device)
    if m <= n:
        columns = basis[:, None].expand(-1, batch, m)
        rows = [pull(part) for part in columns.split(chunk)] if m else [x.new_zeros(0, batch, n)]
        return value, (rows[0] if len(rows) == 1 else torch.cat(rows)).movedim(0, 1)

    def push(e: Tensor) -> Tensor:
        pushed: Tensor = jvp(f, (x,), (e.expand_as(x),))[1]
        return pushed

    size = None if chunk >= count else chunk
    pushed: Tensor = vmap(push, chunk_size=size)(basis)
    return value, pushed.movedim(0, -1)


def value_and_gradient(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(B)`` and gradients ``(B, n)``."""
    value, pull = _vjp(f, x)
    return value, pull(torch.ones_like(value))


def gradient(f: Function, x: Tensor) -> Tensor:
    """Gradients ``(B, n)`` of a function with values ``(B)``."""
    return value_and_gradient(f, x)[1]


def hessian(f: Function, x: Tensor) -> Tensor:
    """Hessians ``(B, n, n)`` of a function with values ``(B)``."""
    return jacobian(lambda x: gradient(f, x), x)


def jacobian_product(f: Function, x: Tensor) -> Function:
    """The map from ``v`` ``(B, n)`` to the product of each Jacobian with it."""

    def product(v: Tensor) -> Tensor:
        pushed: Tensor = jvp(f, (x,), (v,))[1]
        return pushed

    return product


def transposed_product(f: Function, x: Tensor) -> Function:
    """The map from ``u`` ``(B, m)`` to the product of each transposed Jacobian with it."""
    return _vjp(f, x)[1]


def _vjp(f: Function, x: Tensor) -> tuple[Tensor, Function]:
    """Values, and the map from ``(*value.shape)`` or ``(columns, *value.shape)`` to products."""
    watched = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
    if watched or torch.is_inference_mode_enabled():
        value, *rest = vjp(f, x)  # its annotation tells of a third part that is rarely there
        (pull,) = rest

        def pulled(u: Tensor) -> Tensor:
            if u.ndim > value.ndim:
                return vmap(lambda u: pull(u)[0])(u)  # type: ignore[no-any-return]
            return pull(u)[0]  # type: ignore[no-any-return]

        return value, pulled
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = f(x)

    def plainly_pulled(u: Tensor) -> Tensor:
        if u.ndim > value.ndim:
            return at_once(plainly_pulled, u)
        (found,) = pull_back(value, u, (x,))
        return torch.zeros_like(x) if found is None else found

    return value.detach(), plainly_pulled


def pull_back(value: Tensor, u: Tensor, leaves: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
    """Products with ``u`` of the transposed Jacobians in the leaves of a graph; None where zero.

    It is what ``torch.autograd.grad`` calls, after checks of what is right by construction here,
    which take as long as the pass itself where that is short.
    """
    if not (leaves and value.requires_grad):
        return [None] * len(leaves)
    found: Sequence[Tensor | None] = _engine_run_backward(
        (value,), (u,), True, False, leaves, allow_unreachable=True, accumulate_grad=False
    )
    return found


def at_once(pull: Function, u: Tensor) -> Tensor:
    """Pull all columns ``(columns, ...)`` back in one pass; the columns stay in front.

    What ``torch.func.vmap`` does, in half of its time. A node that draws numbers, in a
    recomputation say, draws the same for all columns.
    """
    if len(u) == 1:  # for a column at a time plain autograd takes a third of the time
        return pull(u[0])[None]
    level = _vmap_increment_nesting(len(u), "same")
    try:
        pulled = pull(_add_batch_dim(u, 0, level))
        return _remove_batch_dim(pulled, level, len(u), 0)
    finally:
        _vmap_decrement_nesting()
