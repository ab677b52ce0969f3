"""A batch of matrices, dense or sparse on one pattern: products, and outer products on the pattern.

Plain torch that autograd, ``vmap`` and the compiler see through, unlike torch's own sparse
products.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Matrix:
    """A batch of matrices.

    Attributes:
        values: ``(*batch, rows, columns)``; for a sparse matrix its entries ``(*batch, entries)``.
        index: Rows and columns of the entries ``(2, entries)``, shared by the batch; entries at the
            same place add up. None for a dense matrix.
        rows: Number of rows.
        columns: Number of columns.
    """

    values: Tensor
    index: Tensor | None
    rows: int
    columns: int

    @property
    def core(self) -> int:
        """Number of trailing dimensions of ``values`` that belong to one matrix."""
        return 2 if self.index is None else 1

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.values.shape[: self.values.ndim - self.core]

    def times(self, x: Tensor) -> Tensor:
        """``A x`` for ``(*batch, columns)``."""
        if self.index is None:
            return (self.values @ x[..., None])[..., 0]
        return _scatter(self.values * x.index_select(-1, self.index[1]), self.index[0], self.rows)

    def transposed_times(self, y: Tensor) -> Tensor:
        """``A' y`` for ``(*batch, rows)``."""
        if self.index is None:
            return (self.values.mT @ y[..., None])[..., 0]
        terms = self.values * y.index_select(-1, self.index[0])
        return _scatter(terms, self.index[1], self.columns)

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        """The entries of ``a b'`` on the pattern, for ``(*batch, rows)`` and ``(*batch, columns)``.

        This is the gradient of ``a' A b`` in the values, before it is summed over a shared batch.
        """
        if self.index is None:
            return a[..., :, None] * b[..., None, :]
        return a.index_select(-1, self.index[0]) * b.index_select(-1, self.index[1])

    def with_values(self, values: Tensor) -> "Matrix":
        """Other values on the same pattern."""
        return Matrix(values, self.index, self.rows, self.columns)


def _scatter(terms: Tensor, where: Tensor, size: int) -> Tensor:
    """Sum ``terms`` ``(*batch, entries)`` into ``(*batch, size)``."""
    return terms.new_zeros(*terms.shape[:-1], size).index_add(-1, where, terms)


def of_csr(t: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(*batch, entries)`` and index ``(2, entries)`` of a CSR tensor.

    The values are differentiable; their gradient comes back as a CSR tensor of the same pattern.

    Raises:
        ValueError: If the matrices of a batch have different patterns.
    """
    crow, col = t.crow_indices(), t.col_indices()
    if crow.ndim > 1:
        crow, col = crow.reshape(-1, crow.shape[-1]), col.reshape(-1, col.shape[-1])
        if not (bool((crow == crow[:1]).all()) and bool((col == col[:1]).all())):
            raise ValueError(
                "the matrices of a sparse batch must share one pattern; got different indices. "
                "Store explicit zeros so that all have the same entries."
            )
        if not len(crow):  # an empty batch has no indices to share
            return t.values(), crow.new_zeros(2, t.values().shape[-1])
        crow, col = crow[0], col[0]
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    return t.values(), torch.stack([rows, col])
