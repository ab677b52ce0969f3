r"""Where points are on the boundary of their cones: the derivative of the projection there.

It is :math:`D = U \Lambda U^\top`, and what linear systems are made of are the eigenvalues
:math:`\Lambda` and :math:`W = (I - \Lambda)^{1/2} U^\top`. Eigenvalue 0 means an active row, 1 an
inactive one, which drops out. Row number i of an eigenvector's cone stands for the eigenvector.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.weak import WeakIdKeyDictionary

from .arrays import product
from .product import ConeProduct
from .sparse import Assembly, Compressed, Pattern

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class _Group(NamedTuple):
    """Equal cones.

    Attributes:
        rows: See :class:`~solvers.cone.product.Part`.
        shape: Their number and the rows of each.
        weights: The roots of one minus the eigenvalues ``(B, count, rows)``.
        frames: The eigenvectors as rows ``(B, count, rows, rows)``; None for unit vectors.
    """

    rows: slice | Integers
    shape: tuple[int, ...]
    weights: Floats
    frames: Floats | None

    def take(self, which: Integers) -> "_Group":
        frames = None if self.frames is None else self.frames[which]
        return self._replace(weights=self.weights[which], frames=frames)

    @property
    def matrix(self) -> Floats:
        """The entries of ``W`` that may not be zero ``(B, entries)``."""
        if self.frames is None:
            return self.weights.reshape(len(self.weights), -1)
        return (self.weights[..., None] * self.frames).reshape(len(self.weights), -1)


class Boundary:
    """Where on the boundary of its cones each point of a batch is.

    Args:
        cones: The cones.
        v: Slack minus multiplier ``(B, m)``.
        s: The slack.
        mu: Smoothing of the projection, see :meth:`solvers.cone.cone.Cone.project`; a number for
            all or one for each ``(B)``.

    Attributes:
        values: Eigenvalues ``(B, m)``.
    """

    def __init__(self, cones: ConeProduct, v: Floats, s: Floats, mu: Floats | float = 0.0) -> None:
        """Take the spectrum of all cones, those of a kind at once."""
        self.cones = cones
        self.values = np.ones(v.shape)
        self.groups = []
        strength = torch.from_numpy(mu)[:, None] if isinstance(mu, np.ndarray) else mu
        for cone, rows, shape in cones.parts:
            frames, stacked = None, (len(v), *shape)
            part = torch.from_numpy(v[:, rows].reshape(stacked))
            if cone.elementwise:
                values = cone.spectrum(part, strength).values.numpy()
            else:
                known = torch.from_numpy(s[:, rows].reshape(stacked))
                values, frames = (t.numpy() for t in cone.eigenvectors(part, strength, known))
            self.values[:, rows] = values.reshape(len(v), -1)
            weights = np.sqrt(np.maximum(1.0 - values, 0.0))
            self.groups.append(_Group(rows, shape, weights, frames))

    @property
    def active(self) -> NDArray[np.bool_]:
        """Rows that do not drop out ``(B, m)``; NaN does not."""
        return ~(self.values >= 1.0)

    def take(self, which: Integers) -> "Boundary":
        """Some of the batch."""
        if len(which) == len(self.values):
            return self
        some = object.__new__(Boundary)
        some.cones, some.values = self.cones, self.values[which]
        some.groups = [group.take(which) for group in self.groups]
        return some

    def times(self, t: Floats) -> Floats:
        """``W t`` for ``(B, m, columns)``, or for one that all share."""
        result = np.zeros((len(self.values), *t.shape[1:]))
        for rows, shape, weights, frames in self.groups:
            part = t[:, rows].reshape(len(t), *shape, t.shape[2])
            part = part if frames is None else product(frames, part)
            part = weights[..., None] * part
            result[:, rows] = part.reshape(len(result), -1, t.shape[2])
        return result

    def transposed_times(self, t: Floats) -> Floats:
        """``W' t`` for ``(B, m, columns)``."""
        result = np.zeros(t.shape)
        for rows, shape, weights, frames in self.groups:
            part = weights[..., None] * t[:, rows].reshape(len(t), *shape, t.shape[2])
            part = part if frames is None else product(frames.swapaxes(2, 3), part)
            result[:, rows] = part.reshape(len(t), -1, t.shape[2])
        return result

    def rotated(self, A: Compressed) -> Compressed:
        """The sparse matrices ``(W A)'``."""
        rotation = _rotation(A.pattern, self.cones)
        matrix = np.concatenate([group.matrix for group in self.groups], axis=1)
        terms = matrix[:, rotation.in_w] * A.data[:, rotation.in_a]
        return rotation.assembly.of(terms)


class _Rotation(NamedTuple):
    """How the entries of ``W A`` are made: sums of products.

    Attributes:
        in_w: The entries of ``W`` in these.
        in_a: The entries of ``A``.
        assembly: Where the products go.
    """

    in_w: Integers
    in_a: Integers
    assembly: Assembly


_rotations: "WeakIdKeyDictionary" = WeakIdKeyDictionary()


def _rotation(pattern: Pattern, cones: ConeProduct) -> _Rotation:
    known: tuple[ConeProduct, _Rotation] | None = _rotations.get(pattern)
    if known is None or known[0] is not cones:
        known = _rotations[pattern] = cones, _make_rotation(pattern, cones)
    return known[1]


def _make_rotation(pattern: Pattern, cones: ConeProduct) -> _Rotation:
    n, m = pattern.shape[1], pattern.shape[0]
    in_w, in_a, to_row = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    start = 0
    for cone, index in cones.groups:
        rows = index.numpy()
        place = np.full(m, -1)
        place[rows.reshape(-1)] = np.arange(rows.size)
        entries = np.flatnonzero(place[pattern.indices] >= 0)
        places = place[pattern.indices[entries]]
        if cone.elementwise:
            in_w.append(start + places)
            in_a.append(entries)
            to_row.append(pattern.indices[entries])
            start += rows.size
            continue
        # Every entry of a cone's rows gets into each of the cone's rows.
        number, own = np.divmod(places, cone.rows)
        turns = np.arange(cone.rows)[:, None]
        in_w.append((start + (number * cone.rows + turns) * cone.rows + own).reshape(-1))
        in_a.append(np.tile(entries, cone.rows))
        to_row.append(rows[number, turns].reshape(-1))
        start += rows.size * cone.rows
    entry = np.concatenate(in_a)
    assembly = Assembly(pattern.columns[entry], np.concatenate(to_row), (n, m))
    return _Rotation(np.concatenate(in_w), entry, assembly)
