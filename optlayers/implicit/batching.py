"""Leading dimensions: moving a mapped one to the front, and summing over broadcast ones."""

from collections.abc import Sequence

from torch import Tensor


def batch_first(
    dims: Sequence[int | None], inputs: Sequence[Tensor | None], core: Sequence[int]
) -> list[Tensor | None]:
    """Move each input's mapped dimension to the front, aligned so that leading dimensions broadcast.

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


def outer(a: Tensor, b: Tensor, batch: Sequence[int]) -> Tensor:
    r"""The matrices :math:`a b^\top`, summed over the batch dimensions that ``batch`` lacks.

    Args:
        a: ``(*full, k)``.
        b: ``(*full, n)``.
        batch: Leading dimensions wanted, broadcastable to ``full``.

    Returns:
        ``(*batch, k, n)``. A matrix shared by the whole batch costs one product, not one a problem.
    """
    if a.shape[:-1].numel() != 1 and all(size == 1 for size in batch):
        product = a.reshape(-1, a.shape[-1]).mT @ b.reshape(-1, b.shape[-1])
        return product.reshape(*batch, *product.shape)
    product = a[..., :, None] * b[..., None, :]
    return product.sum_to_size(*batch, *product.shape[-2:])
