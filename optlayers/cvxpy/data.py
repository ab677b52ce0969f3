r"""From the values of parameters to the data of the canonical problem, by one sparse product.

What no batched parameter enters stays without batch dimensions, so that a solver factors it once.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from solvers.batch import broadcast_shapes

from ..implicit.compiled import while_tracing
from ..implicit.linear_map import LinearMap, affine_map
from .affine import AffineMap
from .parameters import ParameterSlot


class Part(NamedTuple):
    """Data with the same leading dimensions.

    Attributes:
        slots: The parameters that enter; none for constants.
        key: Name of the map from their entries to the values.
        names: The data, end to end.
        sizes: Their sizes.
    """

    slots: tuple[int, ...]
    key: str
    names: tuple[str, ...]
    sizes: tuple[int, ...]


class Parts:
    """The data of a problem, sorted for any choice of batched parameters.

    Args:
        slots: The parameters.
        maps: From theta to each datum.
    """

    def __init__(self, slots: Sequence[ParameterSlot], maps: dict[str, AffineMap]) -> None:
        """Find out which parameters enter which data."""
        import scipy.sparse as sp

        sizes = [len(slot.pieces) * int(np.prod(slot.shape, dtype=np.int64)) for slot in slots]
        ends = np.cumsum([0, *sizes])
        self.columns = [np.arange(*pair) for pair in pairwise(ends)]
        # What picks and symmetrises entries is linear as well, and becomes a part of the maps.
        picking = [_picking(slot, i) for slot in slots for i in range(len(slot.pieces))]
        pick = sp.block_diag([*picking, sp.eye_array(1)], format="csr")
        self.matrices = {name: sp.csr_array(affine.matrix @ pick) for name, affine in maps.items()}
        owner = np.repeat(np.arange(len(slots)), sizes)
        self.entering = {
            name: frozenset(owner[np.unique(matrix[:, :-1].indices)].tolist())
            for name, matrix in self.matrices.items()
        }
        # Of these parameters what is solved does not depend, and its solution has their batch.
        seen = frozenset[int]().union(*(self.entering[name] for name in maps if name != "d"))
        self.unseen = tuple(i for i in range(len(slots)) if i not in seen)
        self._known: dict[tuple[bool, ...], tuple[Part, ...]] = {}
        self._maps: list[LinearMap] = []

    def __getstate__(self) -> dict[str, object]:
        """Without what is made again when needed."""
        return self.__dict__ | {"_known": {}, "_maps": []}

    def sorted_by(self, batched: tuple[bool, ...]) -> tuple[Part, ...]:
        """Constants, what only unbatched parameters enter, and the rest."""
        known = self._known.get(batched)
        if known is None:
            groups: dict[int, list[str]] = {0: [], 1: [], 2: []}
            for name, entering in self.entering.items():
                level = 0 if not entering else 2 if any(batched[i] for i in entering) else 1
                groups[level].append(name)
            made = [self._part(names) for names in groups.values() if names]
            known = self._known[batched] = tuple(made)
        return known

    def _part(self, names: list[str]) -> Part:
        import scipy.sparse as sp

        slots = sorted(set().union(*(self.entering[name] for name in names)))
        stacked = sp.vstack([self.matrices[name] for name in names], format="csr")
        offset = torch.from_numpy(stacked[:, [-1]].toarray()[:, 0])
        sizes = tuple(self.matrices[name].shape[0] for name in names)
        columns = np.concatenate([np.empty(0, np.int64), *[self.columns[i] for i in slots]])
        anything = bool((offset != 0).any())
        map_ = LinearMap(sp.csr_array(stacked[:, columns]), offset if anything else None)
        self._maps.append(map_)
        return Part(tuple(slots), map_.key, tuple(names), sizes)


@while_tracing
def _written(parts: Parts, batched: tuple[bool, ...]) -> str:
    """The parts as a string: the compiler takes no other objects from code it does not trace."""
    return ";".join(
        "|".join([",".join(map(str, field)) for field in (p.slots, (p.key,), p.names, p.sizes)])
        for p in parts.sorted_by(batched)
    )


def _read(text: str) -> list[Part]:
    found = []
    for part in text.split(";"):
        slots, key, names, sizes = part.split("|")
        entering = tuple([int(i) for i in slots.split(",")] if slots else [])
        of_names = tuple(names.split(","))
        found.append(Part(entering, key, of_names, tuple([int(i) for i in sizes.split(",")])))
    return found


def evaluate(
    parts: Parts, slots: Sequence[ParameterSlot], values: Sequence[Tensor], like: Tensor
) -> dict[str, Tensor]:
    """All data in float64, each ``(*batch, size)`` with the batch of what enters it.

    Args:
        parts: The sorted data.
        slots: The parameters.
        values: Their values ``(*batch, *shape)``, real ones in float64.
        like: A tensor on the device to work on.
    """
    batched = tuple(v.ndim > len(s.shape) for v, s in zip(values, slots, strict=True))
    entries: dict[int, Tensor] = {}
    data: dict[str, Tensor] = {}
    compiling = torch.compiler.is_compiling()
    chosen = _read(_written(parts, batched)) if compiling else parts.sorted_by(batched)
    for entering, key, names, sizes in chosen:
        for i in entering:
            if i not in entries:
                entries[i] = theta_of(slots[i], values[i])
        given = [entries[i] for i in entering]
        theta = given[0] if given else like.new_empty(0, dtype=torch.float64)
        if len(given) > 1:
            shape = broadcast_shapes(*(t.shape[:-1] for t in given))
            theta = torch.cat([t.expand(*shape, t.shape[-1]) for t in given], -1)
        stacked = affine_map(key, theta)
        data |= dict(zip(names, stacked.split(sizes, -1), strict=True))
    for i in parts.unseen:
        if batched[i]:
            q, batch = data["q"], values[i].shape[: values[i].ndim - len(slots[i].shape)]
            data["q"] = q.expand(*broadcast_shapes(q.shape[:-1], batch), q.shape[-1])
    return data


def theta_of(slot: ParameterSlot, value: Tensor) -> Tensor:
    """What enters the maps of a parameter: ``(*batch, *shape)`` to ``(*batch, pieces * size)``."""
    core = len(slot.shape)
    flat = value.flatten(-core) if core else value[..., None]
    if not slot.pieces:
        return flat[..., :0]
    pieces = [_transformed(flat, piece.transform) for piece in slot.pieces]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


def _transformed(flat: Tensor, transform: str) -> Tensor:
    match transform:
        case "real":
            return flat.real if flat.is_complex() else flat
        case "imag":
            return flat.imag if flat.is_complex() else torch.zeros_like(flat)
        case "log":
            return flat.log()
    return flat


def _picking(slot: ParameterSlot, i: int) -> Any:
    """The matrix from all entries of a value, transformed, to those of one piece."""
    import scipy.sparse as sp

    piece, size = slot.pieces[i], int(np.prod(slot.shape, dtype=np.int64))
    row = np.arange(len(piece.index))
    ones = np.ones(len(row))
    if not piece.symmetrise:
        return sp.csr_array((ones, (row, piece.index)), shape=(len(row), size))
    numbers = np.arange(size).reshape(slot.shape)
    mirrored = numbers.T.reshape(-1)[piece.index]
    sign = -1.0 if piece.transform == "imag" else 1.0  # of the conjugate
    halves = np.concatenate((0.5 * ones, 0.5 * sign * ones))
    places = np.concatenate((row, row)), np.concatenate((piece.index, mirrored))
    return sp.csr_array((halves, places), shape=(len(row), size))
