"""Cone programs as solvers read them: those of one pattern stacked, in units that suit each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..batch import flat
from ..matrix import Matrix
from .arrays import largest
from .cone_program import ConeProgram
from .direct import are_semidefinite, is_dense
from .product import ConeProduct
from .scaling import Scaling, scaling_of
from .sparse import Assembly, Compressed, Pattern, pattern_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Numbers that work on one stack may hold, 128 MB; longer ones are cut.
STACKED_NUMBERS = 1 << 24
# Entries of equalities up to which their dependences are looked for.
MENDED_ENTRIES = 1 << 22


class Instance(NamedTuple):
    """One program.

    Attributes:
        P: Upper triangle.
        q: ``(n)``.
        A: All rows.
        b: ``(m)``.
    """

    P: Compressed
    q: Floats
    A: Compressed
    b: Floats


@dataclass(eq=False)
class Stack:
    """Programs of a batch with the same pattern.

    Whatever is done to all of them at once gives each the same bits as it would get alone.

    Attributes:
        numbers: Which ones of the flat batch they are ``(B)``.
        P: Upper triangles.
        q: ``(B, n)``.
        A: All rows.
        b: ``(B, m)``.
        cones: The product of cones.
        scaling: How they have been scaled; None if they are as they were.
        rough: Whether the data have been rounded to less than double precision.
    """

    numbers: Integers
    P: Compressed
    q: Floats
    A: Compressed
    b: Floats
    cones: ConeProduct
    scaling: Scaling | None
    rough: bool = False

    def __len__(self) -> int:
        """How many programs there are."""
        return len(self.numbers)

    def __getitem__(self, j: int) -> Instance:
        """One of them."""
        return Instance(self.P.take(j), self.q[j], self.A.take(j), self.b[j])

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.P.pattern.indptr) - 1

    def take(self, which: Integers) -> "Stack":
        """Some of them."""
        if len(which) == len(self) and (which == np.arange(len(self))).all():
            return self
        return replace(
            self, numbers=self.numbers[which], P=self.P.take(which), q=self.q[which],
            A=self.A.take(which), b=self.b[which],
            scaling=None if self.scaling is None else self.scaling.take(which),
        )  # fmt: skip

    @np.errstate(all="ignore")
    def usable(self) -> Integers:
        """Those with finite data, and a semidefinite ``P`` but for rounding."""
        good = np.ones(len(self), bool)
        for t in (self.P.data, self.q, self.A.data, self.b):
            good &= np.isfinite(t).all(1)
        if self.P.data.any():
            good &= are_semidefinite(self.P, rough=self.rough)
        return np.flatnonzero(good)

    def mended(self, tolerance: float) -> "Stack":
        """Without what rounding the data may have done, within a relative tolerance.

        Equalities that depend on each other and contradict by that are moved to where they do not,
        and a singular ``P`` that is indefinite by that is lifted.
        """
        equal = np.flatnonzero(self.cones.equalities)
        if len(equal) * self.n > MENDED_ENTRIES:
            equal = equal[:0]
        b = self.b.copy()
        for j in range(len(self)):
            rows = self.A.take(j).dense()[equal] if len(equal) else np.empty((0, self.n))
            inverse = torch.linalg.pinv(torch.from_numpy(rows), rtol=tolerance).numpy()
            own = b[j, equal]
            left = own - rows @ (inverse @ own)
            if abs(left).max(initial=0.0) <= tolerance * (1 + abs(own).max(initial=0.0)):
                b[j, equal] = own - left
        data = self.P.data.copy()
        data[:, self.P.pattern.is_diagonal] *= 1 + tolerance
        return replace(self, P=self.P.with_data(data), b=b)


def stacks_of(
    program: ConeProgram,
    which: Sequence[int] | None = None,
    sizes: tuple[Floats, Floats] | None = None,
) -> list[Stack]:
    """The programs of a batch, sorted by their patterns.

    Args:
        program: The batch, in float64.
        which: Numbers of those that are wanted, increasing; all by default.
        sizes: Sizes of slacks and multipliers where they are known, each ``(B)``; by default those
            of ``b`` and ``q``.
    """
    shape = program.batch_shape
    batch = shape.numel()
    numbers = np.arange(batch) if which is None else np.array(which, dtype=np.int64)
    q, b = (_all(flat(t, 1, shape).cpu().numpy(), batch) for t in (program.q, program.b))
    P = _diagonal(program.n) if program.P is None else _entries(program.P, shape, upper=True)
    A = _entries(program.A, shape)
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for i in numbers.tolist():
        alike.setdefault((P.key_of(i), A.key_of(i)), []).append(i)
    return [
        _stack(program, some, P.of(some), q[some], A.of(some), b[some], sizes)
        for members in alike.values()
        for some in _cut(np.array(members), P.pattern(members[0]), A.pattern(members[0]), program)
    ]


@np.errstate(all="ignore")
def _stack(
    program: ConeProgram,
    numbers: Integers,
    P: Compressed,
    q: Floats,
    A: Compressed,
    b: Floats,
    sizes: tuple[Floats, Floats] | None,
) -> Stack:
    """Scale where that is needed."""
    if sizes is None:
        primal, dual = largest(b), largest(q)
    else:
        primal, dual = sizes[0][numbers], sizes[1][numbers]
    scaling = scaling_of(P, A, program.cones, primal, dual)
    if scaling is not None:
        q, b = q / scaling.of_r_x, b / scaling.of_s
        P, A = scaling.of_P(P), scaling.of_A(A)
    return Stack(numbers, P, q, A, b, program.cones, scaling, program.rough)


def _cut(numbers: Integers, P: Pattern, A: Pattern, program: ConeProgram) -> list[Integers]:
    """Pieces that fit into memory with what is made of them."""
    if len(numbers) == 1:
        return [numbers]
    side = program.n + program.m
    each = len(P.indices) + len(A.indices) + side
    groups = program.cones.groups
    each += sum(cone.rows * rows.numel() for cone, rows in groups if not cone.elementwise)
    if is_dense(side, 2 * len(P.indices)):
        each += side * side
    length = max(1, STACKED_NUMBERS // max(each, 1))
    return [numbers[i : i + length] for i in range(0, len(numbers), length)]


def _all(t: Floats, batch: int) -> Floats:
    return t if len(t) == batch else np.broadcast_to(t, (batch, t.shape[1]))


class _Entries(ABC):
    """A batch of matrices in flat form ``(B, entries)``, or one that all share."""

    def __init__(self, values: Floats) -> None:
        self.values = values

    def key_of(self, i: int) -> bytes:
        """What tells matrices of different patterns apart."""
        return b""

    @abstractmethod
    def pattern(self, i: int) -> Pattern:
        """That of number ``i``."""

    @abstractmethod
    def of(self, numbers: Integers) -> Compressed:
        """Those of one pattern."""

    def _values(self, numbers: Integers) -> Floats:
        return self.values if len(self.values) == 1 else self.values[numbers]


class _Sparse(_Entries):
    """Entries whose places are given."""

    def __init__(self, values: Floats, assembly: Assembly) -> None:
        super().__init__(values)
        self.assembly = assembly

    def pattern(self, i: int) -> Pattern:
        return self.assembly.pattern

    def of(self, numbers: Integers) -> Compressed:
        return self.assembly.of(self._values(numbers))


class _Dense(_Entries):
    """Dense matrices, of which only the entries that are not zero count, each for itself."""

    def __init__(self, matrices: Floats, upper: bool) -> None:
        if upper:
            matrices = 0.5 * (matrices + matrices.swapaxes(1, 2))
        self.shape = matrices.shape[1:]
        by_column = matrices.swapaxes(1, 2)
        filled = by_column != 0
        if upper:  # numpy's rows are our columns
            filled = np.tril(filled) | np.eye(self.shape[0], dtype=bool)
        super().__init__(by_column.reshape(len(matrices), -1))
        self.filled = filled.reshape(self.values.shape)
        if (self.filled == self.filled[:1]).all():
            self.filled = self.filled[:1]

    def _filled(self, i: int) -> NDArray[np.bool_]:
        filled: NDArray[np.bool_] = self.filled[i if len(self.filled) > 1 else 0]
        return filled

    def key_of(self, i: int) -> bytes:
        return b"" if len(self.filled) == 1 else np.packbits(self._filled(i)).tobytes()

    def pattern(self, i: int) -> Pattern:
        return _filling(np.packbits(self._filled(i)).tobytes(), *self.shape)

    def of(self, numbers: Integers) -> Compressed:
        first = int(numbers[0])
        return Compressed(self._values(numbers)[:, self._filled(first)], self.pattern(first))


@lru_cache(maxsize=32)
def _filling(filled: bytes, rows: int, columns: int) -> Pattern:
    """The pattern of those entries, a bit for each, column by column."""
    bits = np.frombuffer(filled, np.uint8)
    places = np.flatnonzero(np.unpackbits(bits, count=rows * columns))
    return pattern_of(places % max(rows, 1), places // max(rows, 1), (rows, columns))


def _diagonal(n: int) -> _Entries:
    """A zero matrix, whose diagonal is stored."""
    return _Sparse(np.zeros((1, n)), _zero(n))


@lru_cache(maxsize=32)
def _zero(n: int) -> Assembly:
    diagonal = np.arange(n)
    return Assembly(diagonal, diagonal, (n, n), upper=True)


def _entries(matrix: Matrix, shape: torch.Size, *, upper: bool = False) -> _Entries:
    values = flat(matrix.values, matrix.core, shape).cpu().numpy()
    if matrix.index is None:
        return _Dense(values, upper)
    return _Sparse(values, _assembly(matrix, matrix.index, upper))


# Layers come again and again with the same tensor of indices, whose sorting takes a while.
_assemblies: "WeakIdKeyDictionary" = WeakIdKeyDictionary()


def _assembly(matrix: Matrix, index: Tensor, upper: bool) -> Assembly:
    known: dict[tuple[int, int, int, bool], Assembly] = _assemblies.setdefault(index, {})
    key = (index._version, matrix.rows, matrix.columns, upper)
    if key not in known:
        rows, columns = index.cpu().numpy()
        known[key] = Assembly(rows, columns, (matrix.rows, matrix.columns), upper=upper)
    return known[key]
