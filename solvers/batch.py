"""Leading dimensions: broadcasting them, and merging them to one."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """As torch's, which imports a computer algebra system for it.

    Raises:
        ValueError: If the shapes do not broadcast.
    """
    first: Sequence[int] = ()
    for shape in shapes:  # which the compiler follows as well
        if len(shape) > len(first):
            first = shape
    if all(shape == first or not shape for shape in shapes):  # as most often
        return torch.Size(first)
    return torch.Size(np.broadcast_shapes(*map(tuple, shapes)))


def flat(t: Tensor, core: int, batch_shape: torch.Size) -> Tensor:
    """Merge the leading dimensions of ``t`` to the batch's number, or to 1 if it is shared."""
    lead = t.shape[: t.ndim - core]
    if len(lead) == 1 and (lead == batch_shape or lead[0] == 1):
        return t
    rest = t.shape[t.ndim - core :]
    if lead.numel() == 1:
        return t.reshape(1, *rest)
    return t.expand(*batch_shape, *rest).reshape(batch_shape.numel(), *rest)


def one_by_one(a: Tensor, b: Tensor) -> Tensor:
    """The products of two batches of matrices, each the same to the last bit in any company.

    On a CPU torch multiplies a batch in blocks that depend on its size; numpy goes through it.
    """
    if a.device.type != "cpu":
        return a @ b
    shape = (max(a.shape[0], b.shape[0]), a.shape[1], b.shape[2])
    product = torch.empty(shape if a.shape[0] and b.shape[0] else (0, *shape[1:]), dtype=a.dtype)
    with np.errstate(all="ignore"):  # in torch's memory, for its alignment
        np.matmul(a.numpy(), b.numpy(), out=product.numpy())
    return product
