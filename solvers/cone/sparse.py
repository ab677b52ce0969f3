"""Entries sorted once for a whole batch, into the compressed columns that compiled solvers read."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(eq=False)
class Compressed:
    """One matrix in compressed columns; also what solvers take for a SciPy matrix.

    Attributes:
        data: Values.
        indices: Their rows.
        indptr: Where each column begins.
        shape: Rows and columns.
    """

    data: Floats
    indices: Integers
    indptr: Integers
    shape: tuple[int, int]

    has_canonical_format: ClassVar[bool] = True  # what Clarabel asks before it reads the rest

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return len(self.data)

    @cached_property
    def columns(self) -> Integers:
        """Column of each entry."""
        return np.repeat(np.arange(self.shape[1]), np.diff(self.indptr))

    def absolute(self) -> "Compressed":
        """The matrix of absolute values."""
        return Compressed(abs(self.data), self.indices, self.indptr, self.shape)

    def dense(self) -> Floats:
        """All entries of the matrix."""
        full = np.zeros(self.shape)
        full[self.indices, self.columns] = self.data
        return full

    def symmetric(self) -> Floats:
        """All entries of the symmetric matrix of which this is the upper triangle."""
        full = self.dense()
        full[self.columns, self.indices] = self.data
        return full

    def times(self, x: Floats) -> Floats:
        """The matrix times a vector."""
        terms = self.data * x[self.columns]
        return np.bincount(self.indices, terms, self.shape[0]).astype(np.float64, copy=False)

    def transposed_times(self, y: Floats) -> Floats:
        """Its transpose times a vector."""
        terms = self.data * y[self.indices]
        return np.bincount(self.columns, terms, self.shape[1]).astype(np.float64, copy=False)

    def symmetric_times(self, x: Floats) -> Floats:
        """The symmetric matrix of which this is the upper triangle, times a vector."""
        lower = self.data * (self.indices != self.columns)
        terms = lower * x[self.indices]
        return self.times(x) + np.bincount(self.columns, terms, self.shape[1])


class Pattern:
    """Where given entries go: sorted by column, entries at the same place added up.

    Args:
        rows: Row of each entry.
        columns: Its column.
        shape: Of the matrix.
        upper: Whether to keep the upper triangle of the symmetric part only, with all of its
            diagonal.
    """

    def __init__(
        self, rows: Integers, columns: Integers, shape: tuple[int, int], *, upper: bool = False
    ) -> None:
        """Sort."""
        self.shape = shape
        self.weights: Floats | None = None
        if upper:
            self.weights = np.where(rows == columns, 1.0, 0.5)
            diagonal = np.arange(shape[0])
            above, below = np.minimum(rows, columns), np.maximum(rows, columns)
            rows, columns = np.append(above, diagonal), np.append(below, diagonal)
        keys, place = np.unique(columns * shape[0] + rows, return_inverse=True)
        self.place = place if self.weights is None else place[: len(self.weights)]
        self.indices = keys % max(shape[0], 1)
        self.indptr = np.zeros(shape[1] + 1, np.int64)
        np.cumsum(np.bincount(keys // max(shape[0], 1), minlength=shape[1]), out=self.indptr[1:])

    def of(self, values: Floats) -> Compressed:
        """The matrix with these values of the given entries."""
        if self.weights is not None:
            values = values * self.weights
        data = np.bincount(self.place, values, len(self.indices)).astype(np.float64, copy=False)
        return Compressed(data, self.indices, self.indptr, self.shape)


def compress(matrix: Floats, *, upper: bool = False) -> Compressed:
    """The nonzero entries of a dense matrix, or of the upper triangle of its symmetric part.

    The triangle comes with all of its diagonal.
    """
    if upper:
        matrix = np.triu(0.5 * (matrix + matrix.T))
    by_column = matrix.T
    filled = by_column != 0
    if upper:
        np.fill_diagonal(filled, True)
    columns, rows = np.nonzero(filled)
    indptr = np.zeros(matrix.shape[1] + 1, np.int64)
    np.cumsum(filled.sum(1), out=indptr[1:])
    return Compressed(by_column[columns, rows], rows, indptr, (matrix.shape[0], matrix.shape[1]))
