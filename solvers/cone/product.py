"""Products of cones: vectors whose rows are shared out among several cones."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cone import Cone, Number
from .polyhedral import NonnegativeCone, ZeroCone

Floats = NDArray[np.float64]


class Part(NamedTuple):
    """Equal cones and where they are.

    Attributes:
        cone: One of them.
        rows: Their rows, one cone after the other: a slice, which needs no copies, where possible.
        shape: Their number and the rows of each.
    """

    cone: Cone
    rows: slice | NDArray[np.int64]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ConeProduct:
    r"""The cone :math:`K = K_1 \times K_2 \times \dots`, its rows in that order.

    Equal cones are stacked and worked on together, so that a hundred second-order cones of one
    size cost the calls of one; cones whose rows are on their own become one cone of their type.

    Attributes:
        cones: The factors.

    Example:
        >>> import torch
        >>> from optlayers.solvers.cone import SecondOrderCone
        >>> K = ConeProduct.of([NonnegativeCone(1), SecondOrderCone(2), NonnegativeCone(1)])
        >>> K.project(torch.tensor([-1.0, 0.0, 2.0, 5.0]))
        tensor([0., 1., 1., 5.])
    """

    cones: tuple[Cone, ...]
    _on_device: dict[torch.device, "_Places"] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, cones: Iterable[Cone]) -> "ConeProduct":
        """A product of cones that have been checked.

        Args:
            cones: Cones of this package, in the order of the rows.

        Raises:
            TypeError: If something else is among them, such as a class or a number of rows.
        """
        if isinstance(cones, Cone):
            raise TypeError(
                "ConeProduct.of: cones must be a list or tuple of cones; got a single "
                f"{type(cones).__name__}. Write [{cones!r}]."
            )
        try:
            factors = tuple(cones)
        except TypeError as error:
            raise TypeError(
                "ConeProduct.of: cones must be a list or tuple of cones; got "
                f"{type(cones).__name__}. Write for example [NonnegativeCone(3)]."
            ) from error
        for position, cone in enumerate(factors):
            if isinstance(cone, type) and issubclass(cone, Cone):
                raise TypeError(
                    f"ConeProduct.of: every entry must be a cone; got the class {cone.__name__} in "
                    f"position {position}. Give it its size, such as NonnegativeCone(3)."
                )
            if not isinstance(cone, Cone):
                raise TypeError(
                    "ConeProduct.of: every entry must be a cone; got "
                    f"{type(cone).__name__} in position {position}. "
                    "Write for example NonnegativeCone(3) for 3 rows."
                )
        return cls(factors)

    @property
    def rows(self) -> int:
        """Length of the vectors."""
        return sum(cone.rows for cone in self.cones)

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        """Which rows belong together: the number of the cone or, if it is on its own, row."""
        lengths: list[int] = []
        for cone in self.cones:
            lengths += [1] * cone.rows if cone.elementwise else [cone.rows]
        return np.repeat(np.arange(len(lengths)), lengths)

    @cached_property
    def heads(self) -> NDArray[np.int64]:
        """The first row of each block."""
        return np.flatnonzero(np.diff(self.blocks, prepend=-1))

    @property
    def equalities(self) -> list[bool]:
        """Which rows are those of zero cones."""
        return [isinstance(cone, ZeroCone) for cone in self.cones for _ in range(cone.rows)]

    @property
    def smooth(self) -> bool:
        """Whether ``derivative`` may be differentiated by torch: whether it may for every cone."""
        return all(cone.smooth for cone in self.cones)

    @property
    def elementwise(self) -> bool:
        """Whether every row is on its own."""
        return all(cone.elementwise for cone in self.cones)

    @cached_property
    def groups(self) -> list[tuple[Cone, Tensor]]:
        """Equal cones with the rows they work on, a LongTensor ``(count, cone.rows)`` each."""
        starts: dict[Cone, list[list[int]]] = {}
        merged: dict[type[ZeroCone] | type[NonnegativeCone], list[int]] = {}
        start = 0
        for cone in self.cones:
            rows = list(range(start, start + cone.rows))
            start += cone.rows
            if not rows:
                continue
            if isinstance(cone, ZeroCone | NonnegativeCone):
                merged.setdefault(type(cone), []).extend(rows)
            else:
                starts.setdefault(cone, []).append(rows)
        elementwise: list[tuple[Cone, Tensor]] = [
            (kind(len(rows)), torch.tensor([rows])) for kind, rows in merged.items()
        ]
        return elementwise + [(cone, torch.tensor(rows)) for cone, rows in starts.items()]

    @cached_property
    def parts(self) -> list[Part]:
        """The same for arrays."""
        parts = []
        for cone, index in self.groups:
            rows = index.numpy().reshape(-1)
            in_a_row = rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all()
            where = slice(int(rows[0]), int(rows[-1]) + 1) if in_a_row else rows
            parts.append(Part(cone, where, tuple(index.shape)))
        return parts

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        r"""Every cone's nearest point or central path; see :meth:`Cone.project`.

        Args:
            v: ``(*batch, rows)``.
            mu: A float, or a positive tensor ``(*batch)``.
        """
        self._check("project", v=v)
        inner = _per_cone(mu)
        return self._map(lambda cone, part: cone.project(part, inner), v)

    def nearest(self, v: Floats, near: Floats, mu: float = 0.0) -> Floats:
        """What :meth:`project` gives, for arrays ``(B, rows)`` and with a guess of the result."""
        result = np.empty(v.shape)
        for cone, rows, shape in self.parts:
            own = v[:, rows].reshape(-1, *shape)
            guess: tuple[Tensor, ...] = ()
            if cone.iterative:
                guess = (torch.from_numpy(near[:, rows].reshape(own.shape)),)
            nearest = cone.project(torch.from_numpy(own), mu, *guess).numpy()
            result[:, rows] = nearest.reshape(len(v), -1)
        return result

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The product :math:`D(v) w`; see :meth:`Cone.derivative`.

        Args:
            v: ``(*batch, rows)``, where the Jacobian is taken.
            w: ``(*batch, rows)``.
            mu: As in ``project``.
        """
        self._check("derivative", v=v, w=w)
        inner = _per_cone(mu)
        return self._map(lambda cone, *parts: cone.derivative(*parts, inner), v, w)

    def _check(self, where: str, **vectors: Tensor) -> None:
        for name, vector in vectors.items():
            if vector.ndim == 0 or vector.shape[-1] != self.rows:
                raise ValueError(
                    f"ConeProduct.{where}: {name} must have shape (*batch, {self.rows}), one entry "
                    f"for each row of the cones; got {tuple(vector.shape)}. Do the cones have the "
                    "sizes you meant?"
                )

    def _map(self, work: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        """Apply ``work`` to every group's parts of the vectors and put the results together."""
        places = self._places(vectors[0].device)
        if not places.groups:
            return vectors[0] * 1
        results = []
        for cone, rows in places.groups:
            shape = (rows.numel() // cone.rows, cone.rows)
            parts = [
                vector.index_select(-1, rows).reshape(*vector.shape[:-1], *shape)
                for vector in vectors
            ]
            result = work(cone, *parts)
            results.append(result.reshape(*result.shape[:-2], rows.numel()))
        return torch.cat(results, -1).index_select(-1, places.back)

    def _places(self, device: torch.device) -> "_Places":
        """Where the rows are, on the device of the data; copied there once."""
        if device not in self._on_device:
            with (
                torch._C._DisableFuncTorch()
            ):  # what is kept must outlive a transform of torch.func
                groups = [(cone, rows.flatten().to(device)) for cone, rows in self.groups]
                order = torch.cat([rows for _, rows in groups]) if groups else None
                back = torch.empty(0, dtype=torch.long) if order is None else torch.argsort(order)
                self._on_device[device] = _Places(groups, back.to(device))
        return self._on_device[device]


@dataclass(frozen=True)
class _Places:
    """The rows of each group, flat, and the permutation that puts their union in order."""

    groups: list[tuple[Cone, Tensor]]
    back: Tensor


def _per_cone(mu: Number) -> Number:
    """``mu`` such that it broadcasts with ``(*batch, count)``."""
    return mu[..., None] if isinstance(mu, Tensor) else mu
