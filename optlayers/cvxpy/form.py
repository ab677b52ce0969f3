r"""What both forms of a problem have in common: variables that equalities define, and are put in.

A form turns data into a solution of its own, and that into the vectors from which the user's values
are read: primal values from :math:`(x, t)` with :math:`t = e - E x`, dual ones from the multipliers
of the rows that are left and of those that define :math:`t`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from solvers.matrix import Matrix
from solvers.solution import Solution

from ..exact import Exact
from ..failure import OnFailure
from ..smoothed import Smoothed
from .affine import AffineMap, IntArray
from .elimination import Reduced
from .recovery import VariableSlot

Data = dict[str, Tensor]


class Form(ABC):
    """A way to solve a problem.

    Args:
        reduced: The problem without the variables t.
        slots: How values are read from the canonical solution.

    Attributes:
        maps: From theta to the data; a subclass adds its matrices.
        slots: How values are read from the vectors that :meth:`primal` and :meth:`dual` give.
    """

    def __init__(self, reduced: Reduced, slots: Sequence[VariableSlot]) -> None:
        """Find out who reads what."""
        self.n, self.k = len(reduced.kept), len(reduced.eliminated)
        self.maps: dict[str, AffineMap] = {"q": reduced.q, "d": reduced.d}
        self.factor: float | None = None
        self.diagonal = True
        if self.k:
            self.maps |= {"e": reduced.e, "q_t": reduced.q_t}
            self.pivots = torch.from_numpy(np.asarray(reduced.B))
            self.curvature = torch.from_numpy(reduced.P_t.toarray())
            diagonal = self.curvature.diagonal()
            self.diagonal = bool((torch.diag(diagonal) == self.curvature).all())
            equal = self.diagonal and bool((diagonal == diagonal[0]).all())
            self.factor = float(diagonal[0]) if equal else None
        of_columns = _inverse(np.concatenate((reduced.kept, reduced.eliminated)))
        of_rows = _inverse(np.concatenate((reduced.rows_kept, reduced.rows_used)))
        places = {"primal": of_columns, "dual": of_rows}
        self.slots = tuple(_moved(slot, places[slot.source]) for slot in slots)
        rows = len(reduced.rows_kept)
        self.reads_t = any(_reaches(s, self.n) for s in self.slots if s.source == "primal")
        self.reads_z_t = any(_reaches(s, rows) for s in self.slots if s.source == "dual")

    @abstractmethod
    def solve(
        self,
        data: Data,
        adjoint: Exact | Smoothed | None,
        warm_start: Solution | None,
        on_failure: OnFailure,
        precision: torch.dtype,
    ) -> Solution:
        """Solve; the objective includes the constant.

        Args:
            data: In float64.
            adjoint: Which derivatives.
            warm_start: An earlier solution of this form.
            on_failure: The policy.
            precision: Type that the parameters had.
        """

    @abstractmethod
    def defining(self, data: Data) -> Matrix:
        """The matrix ``E``."""

    @abstractmethod
    def multipliers(self, solution: Solution) -> Tensor:
        """Of all rows that are left, in their order."""

    def curved(self, E: Tensor) -> Tensor:
        """The curvature along t times a matrix with a row for each."""
        if self.factor is not None:
            return E if self.factor == 1 else E * self.factor
        curvature = self.curvature.to(E.device)
        return E * curvature.diagonal()[:, None] if self.diagonal else curvature @ E

    def without_t(self, data: Data) -> tuple[Tensor, Tensor]:
        """Linear term and constant of the objective, with t put in."""
        q, d = data["q"], data["d"][..., 0]
        if self.k:
            e, pull = data["e"], data["q_t"]
            of_e = self.curved(e[..., None])[..., 0]
            q = q - self.defining(data).transposed_times(pull + of_e)
            d = d + ((pull + 0.5 * of_e) * e).sum(-1)
        return q, d

    def _t(self, data: Data, solution: Solution) -> Tensor:
        # A NaN would come back in the gradient of E, where zero times NaN is NaN.
        x = torch.where(solution.x.isnan(), 0.0, solution.x)
        t: Tensor = data["e"] - self.defining(data).times(x)
        return t

    def primal(self, data: Data, solution: Solution) -> Tensor:
        """The variables kept, and the others where somebody asks for them."""
        x: Tensor = solution.x
        return torch.cat([x, self._t(data, solution)], -1) if self.reads_t else x

    def dual(self, data: Data, solution: Solution) -> Tensor:
        """The multipliers, and those of what defines t where somebody asks for them."""
        z = self.multipliers(solution)
        if not self.reads_z_t:
            return z
        t = self._t(data, solution)
        force = self.curved(t[..., None])[..., 0] + data["q_t"]
        return torch.cat([z, -force / self.pivots.to(t.device)], -1)


def _inverse(order: IntArray) -> IntArray:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _moved(slot: VariableSlot, place: IntArray) -> VariableSlot:
    """The same slot for a vector in another order."""

    def move(index: IntArray) -> IntArray:
        moved: IntArray = np.where(index < 0, -1, place[np.maximum(index, 0)])
        return moved

    imaginary = None if slot.imag_index is None else move(slot.imag_index)
    return replace(slot, index=move(slot.index), imag_index=imaginary)


def _reaches(slot: VariableSlot, size: int) -> bool:
    """Whether it reads beyond the first entries."""
    last = int(slot.index.max(initial=-1))
    if slot.imag_index is not None:
        last = max(last, int(slot.imag_index.max(initial=-1)))
    return last >= size
