"""Sparse matrices of one pattern, sorted once into the compressed columns that solvers read."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Derived = TypeVar("Derived")

# Numbers that what is derived from a pattern may hold, 32 MB; beyond that it is derived again.
KEPT_NUMBERS = 1 << 22


@dataclass(eq=False)
class Pattern:
    """Where the entries of a matrix in compressed columns are.

    Attributes:
        indices: Row of each entry, increasing in each column.
        indptr: Where each column begins.
        shape: Rows and columns.
    """

    indices: Integers
    indptr: Integers
    shape: tuple[int, int]
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    _held: int = field(default=0, repr=False)

    def derived(self, key: Hashable, size: int, make: Callable[[], Derived]) -> Derived:
        """What is made from the pattern alone, kept for the next time.

        Args:
            key: What tells it from other things.
            size: How many numbers it holds.
            make: Makes it.
        """
        known: Derived | None = self._derived.get(key)
        if known is None:
            known = make()
            if size <= KEPT_NUMBERS:
                if self._held + size > KEPT_NUMBERS:
                    self._derived, self._held = {}, 0
                self._derived[key] = known
                self._held += size
        return known

    @cached_property
    def columns(self) -> Integers:
        """Column of each entry."""
        return np.repeat(np.arange(self.shape[1]), np.diff(self.indptr))

    @cached_property
    def is_diagonal(self) -> NDArray[np.bool_]:
        """Which entries are on the diagonal."""
        return np.equal(self.indices, self.columns)

    def summed(self, terms: Floats, *, over_rows: bool) -> Floats:
        """Sums of ``(*batch, entries)`` over the rows or the columns, in the order of entries."""
        size = self.shape[1 if over_rows else 0]
        where = self.columns if over_rows else self.indices
        if terms.ndim == 1:
            return np.bincount(where, terms, size).astype(np.float64, copy=False)
        count = len(terms)
        keys = where
        if count > 1:
            make = partial(_repeated, where, size, count)
            keys = self.derived((over_rows, count), count * len(where), make)
        sums = np.bincount(keys, terms.reshape(-1), count * size)
        return sums.astype(np.float64, copy=False).reshape(count, size)

    @cached_property
    def by_row(self) -> "_Segments":
        """The entries sorted by row."""
        return _Segments.of(self.indices, np.argsort(self.indices, kind="stable"), self.shape[0])

    @cached_property
    def by_column(self) -> "_Segments":
        """The entries as they are."""
        return _Segments.of(self.columns, None, self.shape[1])

    def largest(self, values: Floats, *, of_rows: bool) -> Floats:
        """The largest of ``(batch, entries)``, not negative, of each row or column; else 0."""
        return (self.by_row if of_rows else self.by_column).largest(values)


def _repeated(places: Integers, size: int, count: int) -> Integers:
    """The same places in each of several vectors, end to end."""
    return (places + size * np.arange(count)[:, None]).reshape(-1)


def pattern_of(rows: Integers, columns: Integers, shape: tuple[int, int]) -> Pattern:
    """The pattern of entries that are sorted by column, then by row."""
    indptr = np.zeros(shape[1] + 1, np.int64)
    np.cumsum(np.bincount(columns, minlength=shape[1]), out=indptr[1:])
    return Pattern(rows, indptr, shape)


@dataclass(frozen=True, eq=False)
class _Segments:
    """Entries that belong together, one after the other.

    Attributes:
        order: The order that puts them so; None if they are.
        starts: Where each segment begins, those without entries left out.
        places: Which ones these are.
        count: How many segments there are.
    """

    order: Integers | None
    starts: Integers
    places: Integers
    count: int

    @classmethod
    def of(cls, where: Integers, order: Integers | None, count: int) -> "_Segments":
        places, starts = np.unique(where if order is None else where[order], return_index=True)
        return cls(order, starts, places, count)

    def largest(self, values: Floats) -> Floats:
        if not len(self.starts):
            return np.zeros((len(values), self.count))
        values = values if self.order is None else values[:, self.order]
        found: Floats = np.maximum.reduceat(values, self.starts, axis=1)
        if len(self.starts) == self.count:
            return found
        largest = np.zeros((len(values), self.count))
        largest[:, self.places] = found
        return largest


@dataclass(eq=False)
class Compressed:
    """A matrix in compressed columns, or a batch; one is what solvers take for a SciPy matrix.

    Attributes:
        data: Values ``(*batch, entries)`` with at most one batch dimension.
        pattern: Where they are.
    """

    data: Floats
    pattern: Pattern

    has_canonical_format: ClassVar[bool] = True  # what Clarabel asks before it reads the rest

    @property
    def indices(self) -> Integers:
        """Rows of the entries."""
        return self.pattern.indices

    @property
    def indptr(self) -> Integers:
        """Where each column begins."""
        return self.pattern.indptr

    @property
    def columns(self) -> Integers:
        """Columns of the entries."""
        return self.pattern.columns

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pattern.shape

    @property
    def nnz(self) -> int:
        """Number of entries of one matrix."""
        return len(self.pattern.indices)

    def with_data(self, data: Floats) -> "Compressed":
        """Other values on the same pattern."""
        return Compressed(data, self.pattern)

    def take(self, which: Integers | int) -> "Compressed":
        """Some of a batch, or one; a matrix that all share stays one."""
        if len(self.data) == 1:
            return self if isinstance(which, np.ndarray) else self.with_data(self.data[0])
        return self.with_data(self.data[which])

    def absolute(self) -> "Compressed":
        """The matrix of absolute values."""
        return self.with_data(abs(self.data))

    def dense(self) -> Floats:
        """All entries ``(*batch, rows, columns)``."""
        full = np.zeros((*self.data.shape[:-1], *self.shape))
        full[..., self.indices, self.columns] = self.data
        return full

    def symmetric(self) -> Floats:
        """All entries of the symmetric matrix of which this is the upper triangle."""
        full = self.dense()
        full[..., self.columns, self.indices] = self.data
        return full

    def times(self, x: Floats) -> Floats:
        """The matrix times vectors ``(*batch, columns)``."""
        return self.pattern.summed(self.data * x[..., self.columns], over_rows=False)

    def transposed_times(self, y: Floats) -> Floats:
        """Its transpose times vectors ``(*batch, rows)``."""
        return self.pattern.summed(self.data * y[..., self.indices], over_rows=True)

    def symmetric_times(self, x: Floats) -> Floats:
        """The symmetric matrix of which this is the upper triangle, times vectors."""
        lower = np.where(self.pattern.is_diagonal, 0.0, self.data) * x[..., self.indices]
        return self.times(x) + self.pattern.summed(lower, over_rows=True)


class Assembly:
    """Puts given entries into compressed columns; entries at the same place are added up.

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
        self.weights: Floats | None = None
        given = len(rows)
        if upper:
            if (rows != columns).any():
                self.weights = np.where(rows == columns, 1.0, 0.5)
            diagonal = np.arange(shape[0])
            above, below = np.minimum(rows, columns), np.maximum(rows, columns)
            rows, columns = np.append(above, diagonal), np.append(below, diagonal)
        keys, place = np.unique(columns * shape[0] + rows, return_inverse=True)
        self.place = place[:given]
        height = max(shape[0], 1)
        self.pattern = pattern_of(keys % height, keys // height, shape)
        # The entry at each place, if there is one and no more.
        self.order: Integers | None = None
        if given == len(keys) and (np.bincount(self.place, minlength=given) == 1).all():
            self.order = np.argsort(self.place)

    def of(self, values: Floats) -> Compressed:
        """The matrices with these values of the given entries, ``(batch, entries)``."""
        if self.weights is not None:
            values = values * self.weights
        if self.order is not None:
            return Compressed(values[:, self.order], self.pattern)
        count, size = len(values), len(self.pattern.indices)
        keys = self.place if count == 1 else _repeated(self.place, size, count)
        data = np.bincount(keys, values.reshape(-1), count * size)
        return Compressed(data.astype(np.float64, copy=False).reshape(count, size), self.pattern)
