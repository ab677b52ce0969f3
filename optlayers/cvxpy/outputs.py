"""From the canonical solution to the values of the user's variables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .affine import IntArray
from .recovery import VariableSlot


@dataclass(frozen=True, eq=False)
class Reading:
    """Where the entries of one value stand in a vector.

    Attributes:
        start: First entry, if they stand there in order and are taken as they are.
        index: Their places, ``(size)``; or ``(terms, size)``, where the terms are added.
        weight: What they are multiplied by, zero where there is nothing; None for one.
    """

    start: int | None
    index: Tensor
    weight: Tensor | None

    @classmethod
    def of(cls, index: IntArray, weight: "np.typing.NDArray[np.float64]") -> "Reading":
        """From places, -1 for zero, and weights."""
        weight = np.where(index < 0, 0.0, weight)
        index = np.maximum(index, 0)
        plain = bool((weight == 1).all())
        ordered = plain and index.ndim == 1 and len(index) > 0 and bool((np.diff(index) == 1).all())
        return cls(
            int(index[0]) if ordered else None,
            torch.from_numpy(index),
            None if plain else torch.from_numpy(weight),
        )

    def of_vector(self, t: Tensor) -> Tensor:
        """The entries of ``(*batch, size)``, in order."""
        if self.start is not None:
            # A copy: what is done to results must not reach what derivatives are made of.
            return t.narrow(-1, self.start, len(self.index)).clone()
        picked: Tensor = t.index_select(-1, self.index.to(t.device).flatten())
        if self.index.ndim == 2:
            picked = picked.unflatten(-1, self.index.shape)
        picked = picked if self.weight is None else picked * self.weight.to(t.device)
        return picked.sum(-2) if self.index.ndim == 2 else picked


@dataclass(frozen=True, eq=False)
class Output:
    """How one value is made.

    Attributes:
        source: Which vector has it.
        shape: Of the value.
        real: Its real part.
        imaginary: Its imaginary part; None if it is real.
        exp: Whether the exponential is meant.
    """

    source: Literal["primal", "dual"]
    shape: tuple[int, ...]
    real: Reading
    imaginary: Reading | None
    exp: bool

    @classmethod
    def of(cls, slot: VariableSlot) -> "Output":
        """From its description."""
        imaginary = None
        if slot.imag_index is not None and slot.imag_weight is not None:
            imaginary = Reading.of(slot.imag_index, slot.imag_weight)
        real = Reading.of(slot.index, slot.weight)
        return cls(slot.source, slot.shape, real, imaginary, slot.exp)

    def value(self, x: Tensor, z: Tensor) -> Tensor:
        """The value ``(*batch, *shape)``, from the primal and the dual solution."""
        vector = x if self.source == "primal" else z
        value = self.real.of_vector(vector)
        if self.imaginary is not None:
            value = torch.complex(value, self.imaginary.of_vector(vector))
        if self.exp:
            value = value.exp()
        return value.reshape((*vector.shape[:-1], *self.shape))


def outputs_of(slots: Sequence[VariableSlot]) -> tuple[Output, ...]:
    """One for each value that was asked for."""
    return tuple(Output.of(slot) for slot in slots)
