"""Leading dimensions: moving a mapped one to the front, and summing over broadcast ones."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def batch_first(
    dims: Sequence[int | None], inputs: Sequence[Tensor | None], core: Sequence[int]
) -> list[Tensor | None]:
    """Move each input's mapped dimension to the front, aligned so that leading ones broadcast.

    Args:
        dims: Position of the mapped dimension, None where an input is shared.
        inputs: The tensors.
        core: Number of trailing dimensions of each that are not batch dimensions.

    Returns:
        The inputs; shared ones are as they were, and broadcasting repeats them.
    """
    rank = max(
        t.ndim - c - (d is not None)
        for t, d, c in zip(inputs, dims, core, strict=True)
        if t is not None
    )

    def align(t: Tensor | None, d: int | None, c: int) -> Tensor | None:
        if t is None or d is None:
            return t
        t = t.movedim(d, 0)
        return t.reshape(t.shape[0], *[1] * (rank - (t.ndim - 1 - c)), *t.shape[1:])

    return [align(*triple) for triple in zip(inputs, dims, core, strict=True)]


def in_front(
    size: int,
    dims: Sequence[int | None],
    inputs: Sequence[Tensor | None],
    always: Sequence[int] = (),
) -> list[Tensor | None]:
    """Move each input's mapped dimension to the front, and give one to those that always have it.

    Args:
        size: Of the mapped dimension.
        dims: Its positions, None where an input lacks it.
        inputs: The tensors.
        always: Numbers of the inputs that are repeated where they lack it.
    """
    moved = [
        t if t is None or d is None else t.movedim(d, 0) for t, d in zip(inputs, dims, strict=True)
    ]
    for i in always:
        t = moved[i]
        if dims[i] is None and t is not None:
            moved[i] = t.expand(size, *t.shape)
    return moved


def pair(b: Tensor, d: Tensor, axis: int) -> Tensor:
    """Two vectors ``(*full, n)`` side by side on a new axis, -1 or -2: half of :func:`outer`."""
    return torch.stack([b, d], axis)


def outer(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    batch: Sequence[int],
    right: Tensor | None = None,
) -> Tensor:
    r"""The matrices :math:`a b^\top + c d^\top`, summed over the batch dimensions ``batch`` lacks.

    Args:
        a: ``(*full, k)``.
        b: ``(*full, n)``.
        c: ``(*full, k)``.
        d: ``(*full, n)``.
        batch: Leading dimensions wanted, broadcastable to ``full``.
        right: The :func:`pair` of ``b`` and ``d`` on axis -2, if there is one already.

    Returns:
        ``(*batch, k, n)``. A matrix shared by the whole batch costs one product, not one a problem.
    """
    full = a.shape[:-1]
    if math.prod(batch) == 1 != math.prod(full):
        a, b, c, d = (t.reshape(math.prod(full), t.shape[-1]) for t in (a, b, c, d))
        product = a.mT @ b + c.mT @ d
        return product.reshape(*batch, *product.shape)
    # As products of pairs, which pass over the result once.
    product = pair(a, c, -1) @ (pair(b, d, -2) if right is None else right)
    return product if batch == full else sum_to(product, (*batch, *product.shape[-2:]))


def sum_to(t: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over the leading dimensions that ``shape`` lacks or has as 1: a broadcast undone."""
    if tuple(t.shape) == tuple(shape):
        return t
    extra = t.ndim - len(shape)
    if extra:
        t = t.sum(tuple(range(extra)))
    kept = tuple(i for i, size in enumerate(shape) if size == 1 != t.shape[i])
    return t.sum(kept, keepdim=True) if kept else t


def legacy_vmap_level() -> int:
    """How many ``vmap`` of the kind behind ``is_grads_batched`` surround the call.

    Numpy and ``bool`` do not see through its tensors, and torch.func.vmap knows nothing of it.
    """
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level
