"""Derivatives of a user's function on a batch of independent samples, for solvers that need them.

Functions map ``(B, n)`` to ``(B, m)`` or to ``(B)`` and never mix samples, so one pass gives a
product for every sample at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

Function = Callable[[Tensor], Tensor]
# Entries of tangents held at a time while a Jacobian is built, in chunks of columns.
CHUNK_ENTRIES = 1 << 24


def jacobian(f: Function, x: Tensor) -> Tensor:
    """Jacobian of every sample ``(B, m, n)``, by n forward products at once."""
    batch, n = x.shape
    basis = torch.eye(n, dtype=x.dtype, device=x.device)

    def push(e: Tensor) -> Tensor:
        pushed: Tensor = jvp(f, (x,), (e.expand_as(x),))[1]
        return pushed

    chunk = max(CHUNK_ENTRIES // max(batch * n, 1), 1)
    columns: Tensor = vmap(push, chunk_size=None if chunk >= n else chunk)(basis)
    return columns.movedim(0, -1)


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
        pushed: Any = jvp(f, (x,), (v,))[1]
        return pushed  # type: ignore[no-any-return]

    return product


def transposed_product(f: Function, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The map from ``u`` ``(B, m)`` to the product of each transposed Jacobian with it."""
    return _vjp(f, x)[1]


def _vjp(f: Function, x: Tensor) -> tuple[Tensor, Function]:
    value, *rest = vjp(f, x)  # its annotation tells of a third part that is there only if asked for
    pull = rest[0]
    return value, lambda u: pull(u)[0]
