r"""From the values of parameters to the data of the canonical problem, by one sparse product.

What no batched parameter enters stays without batch dimensions, so that a solver factors it once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..implicit.linear_map import LinearMap, linear_map
from .affine import AffineMap
from .parameters import ParameterSlot


@dataclass(frozen=True, eq=False)
class Part:
    """Data with the same leading dimensions.

    Attributes:
        slots: The parameters that enter; empty for constants.
        map_: From their entries to the values; None for constants.
        offset: The constant part of the values.
        names: The data, end to end.
        sizes: Their sizes.
    """

    slots: tuple[int, ...]
    map_: LinearMap | None
    offset: Tensor | None
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
        self._known: dict[tuple[bool, ...], tuple[Part, ...]] = {}

    def __getstate__(self) -> dict[str, object]:
        """Without what is made again when needed."""
        return self.__dict__ | {"_known": {}}

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
        map_ = None
        if slots:
            columns = np.concatenate([self.columns[i] for i in slots])
            map_ = LinearMap(sp.csr_array(stacked[:, columns]))
        nothing = bool((offset == 0).all()) and bool(slots)
        return Part(tuple(slots), map_, None if nothing else offset, tuple(names), sizes)


def _while_tracing(parts: Parts, batched: tuple[bool, ...]) -> tuple[Part, ...]:
    return parts.sorted_by(batched)


_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
    for part in _while_tracing(parts, batched):
        if part.map_ is None:
            assert part.offset is not None
            stacked = part.offset.to(like.device)
        else:
            for i in part.slots:
                if i not in entries:
                    entries[i] = theta_of(slots[i], values[i])
            given = [entries[i] for i in part.slots]
            theta = given[0]
            if len(given) > 1:
                shape = torch.broadcast_shapes(*(t.shape[:-1] for t in given))
                theta = torch.cat([t.expand(*shape, t.shape[-1]) for t in given], -1)
            stacked = linear_map(part.map_, theta)
            if part.offset is not None:
                stacked = stacked + part.offset.to(like.device)
        data |= zip(part.names, stacked.split(part.sizes, -1), strict=True)
    return data


def theta_of(slot: ParameterSlot, value: Tensor) -> Tensor:
    """What enters the maps of a parameter: ``(*batch, *shape)`` to ``(*batch, pieces * size)``."""
    flat = value.reshape((*value.shape[: value.ndim - len(slot.shape)], -1))
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
