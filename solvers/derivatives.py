"""Derivatives of a user's function on a batch of independent samples, for solvers that need them.

Functions map ``(B, n)`` to ``(B, m)`` or to ``(B)`` and never mix samples, so one pass gives a
product for every sample at once.
"""

from collections.abc import Callable

import torch
from torch import Tensor
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
    size = None if chunk >= count else chunk
    basis = torch.eye(count, dtype=x.dtype, device=x.device)
    if m <= n:
        rows: Tensor = vmap(lambda e: pull(e.expand(batch, m)), chunk_size=size)(basis)
        return value, rows.movedim(0, 1)

    def push(e: Tensor) -> Tensor:
        pushed: Tensor = jvp(f, (x,), (e.expand_as(x),))[1]
        return pushed

    columns: Tensor = vmap(push, chunk_size=size)(basis)
    return value, columns.movedim(0, -1)


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


def jacobian_product(f: Function, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from ``v`` ``(B, n)`` to the product of each Jacobian with it."""

    def product(v: Tensor) -> Tensor:
        pushed: Tensor = jvp(f, (x,), (v,))[1]
        return pushed

    return product


def transposed_product(f: Function, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from ``u`` ``(B, m)`` to the product of each transposed Jacobian with it."""
    return _vjp(f, x)[1]


def _vjp(f: Function, x: Tensor) -> tuple[Tensor, Function]:
    value, *rest = vjp(f, x)  # its annotation tells of a third part that is there only if asked for
    pull = rest[0]
    return value, lambda u: pull(u)[0]
