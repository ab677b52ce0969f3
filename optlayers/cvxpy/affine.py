"""Vectors and sparse matrices whose entries are affine functions of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AffineMap:
    r"""A vector :math:`M \, [\theta; 1]`.

    Attributes:
        matrix: The map :math:`M`, shape ``(k, p + 1)``; its last column is the constant part.
    """

    matrix: csr_array

    @property
    def size(self) -> int:
        """The number ``k`` of values."""
        return int(self.matrix.shape[0])

    def at(self, theta: FloatArray) -> FloatArray:
        r"""The values at :math:`\theta`, shapes ``(p,)`` to ``(k,)``."""
        values: FloatArray = self.matrix @ np.append(theta, 1.0)
        return values

    def rows(self, index: IntArray) -> AffineMap:
        """The map of the values at ``index`` alone."""
        return AffineMap(self.matrix[index])


@dataclass(frozen=True, eq=False)
class AffineMatrix:
    """A sparse matrix with a pattern that never changes and values that are affine.

    The pattern is that of a CSR matrix: sorted, every position once. It is structural: a position
    is in it if its value differs from zero for some parameters.

    Attributes:
        shape: Rows and columns.
        indptr: Where each row begins, shape ``(rows + 1,)``.
        indices: The column of each value, shape ``(nnz,)``.
        values: The values, ``nnz`` of them.
    """

    shape: tuple[int, int]
    indptr: IntArray
    indices: IntArray
    values: AffineMap

    @property
    def row_indices(self) -> IntArray:
        """The row of each value, shape ``(nnz,)``."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int64), np.diff(self.indptr))

    def at(self, theta: FloatArray) -> csr_array:
        r"""The matrix at :math:`\theta`, explicit zeros included."""
        from scipy.sparse import csr_array

        return csr_array((self.values.at(theta), self.indices, self.indptr), shape=self.shape)

    def where(self, rows: IntArray, columns: IntArray) -> AffineMatrix:
        """The matrix of the given rows and columns, in the given order, without repetition."""
        row_number = np.full(self.shape[0], -1, dtype=np.int64)
        row_number[rows] = np.arange(rows.size)
        column_number = np.full(self.shape[1], -1, dtype=np.int64)
        column_number[columns] = np.arange(columns.size)
        i, j = row_number[self.row_indices], column_number[self.indices]
        kept = np.flatnonzero((i >= 0) & (j >= 0))
        return affine_matrix(i[kept], j[kept], self.values.matrix[kept], (rows.size, columns.size))


def affine_matrix(
    rows: IntArray, columns: IntArray, values: csr_array, shape: tuple[int, int]
) -> AffineMatrix:
    """Put values where they belong, adding those that meet at one position.

    Args:
        rows: The row of each value, shape ``(k,)``.
        columns: The column of each value, shape ``(k,)``.
        values: Their map, shape ``(k, p + 1)``.
        shape: Shape of the result.

    Returns:
        The matrix; positions that are zero for all parameters are left out.
    """
    from scipy.sparse import csr_array

    # One number for each position, in row-major order: sorting them is what CSR asks for.
    keys = rows.astype(np.int64) * shape[1] + columns
    keys, position = np.unique(keys, return_inverse=True)
    adding = csr_array(
        (np.ones(position.size), (position, np.arange(position.size))),
        shape=(keys.size, position.size),
    )
    matrix = csr_array(adding @ values)
    matrix.eliminate_zeros()
    nonzero = np.flatnonzero(np.diff(matrix.indptr))
    keys = keys[nonzero]
    # With no columns there are no keys either; the divisor only has to be legal.
    i, j = np.divmod(keys, max(shape[1], 1))
    indptr = np.searchsorted(i, np.arange(shape[0] + 1)).astype(np.int64)
    return AffineMatrix(shape, indptr, j, AffineMap(matrix[nonzero]))
