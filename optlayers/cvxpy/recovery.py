"""How the user's variables are read from the solution of the canonical problem."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .affine import FloatArray, IntArray
from .leaves import Part, is_hermitian, is_triangular, stored_positions

if TYPE_CHECKING:
    import cvxpy as cp

NOWHERE = -1  # the index of entries that are zero


@dataclass(frozen=True, eq=False)
class VariableSlot:
    """Where the entries of one variable, or of a dual variable, are in the solution.

    The value is ``weight * source[index]`` in row-major order, zero where the index is -1. An index
    of shape ``(terms, size)`` stands for the sum over its rows.

    Attributes:
        name: The user's name.
        source: Whether to read the primal solution ``x`` or the dual one ``z``.
        shape: The user's shape.
        index: Where each entry is, shape ``(size,)`` or ``(terms, size)``.
        weight: What it is multiplied by, of the same shape.
        imag_index: The same for imaginary parts; None if the variable is real.
        imag_weight: Their weights; None if the variable is real.
        exp: Whether the exponential of all that is the value, as in geometric programs.
    """

    name: str
    source: Literal["primal", "dual"]
    shape: tuple[int, ...]
    index: IntArray
    weight: FloatArray
    imag_index: IntArray | None = None
    imag_weight: FloatArray | None = None
    exp: bool = False

    def value(self, x: FloatArray, z: FloatArray) -> NDArray[Any]:
        """The value, from shapes ``(n,)`` and ``(rows,)`` to ``shape``."""
        # The appended zero is what the index -1 finds.
        solution = np.append(x if self.source == "primal" else z, 0.0)
        value: NDArray[Any] = np.atleast_2d(solution[self.index] * self.weight).sum(0)
        if self.imag_index is not None and self.imag_weight is not None:
            imaginary = np.atleast_2d(solution[self.imag_index] * self.imag_weight).sum(0)
            value = value + 1j * imaginary
        if self.exp:
            value = np.exp(value)
        return value.reshape(self.shape)


def primal_slot(
    variable: cp.Variable, program: Any, id_map: Mapping[int, list[int]], *, gp: bool
) -> VariableSlot:
    """Describe where a variable is in the primal solution.

    Args:
        variable: A variable of the user's problem.
        program: The parametrised cone program that cvxpy has made.
        id_map: What became of a variable: its id to the ids in ``program``.
        gp: Whether the solution has the logarithms of the variables.

    Returns:
        The slot.

    Raises:
        ValueError: If the variable is not in the program or stored in an unknown way.
    """
    final = list(id_map.get(variable.id, [variable.id]))
    shape = tuple(int(length) for length in variable.shape)
    if variable.is_complex():
        parts: tuple[Part, ...] = ("imag",) if variable.is_imag() else ("real", "imag")
        lowered = dict(zip(parts, final, strict=False))
        _check_complex_attributes(variable)
    else:
        lowered = {"real": final[0]}

    index, weight = _nowhere(variable.size)
    imag_index, imag_weight = _nowhere(variable.size)
    if "real" in lowered:
        index, weight = _part(variable, program, lowered["real"], "real")
    if "imag" in lowered:
        imag_index, imag_weight = _part(variable, program, lowered["imag"], "imag")
    if gp and (index == NOWHERE).any():
        raise ValueError(
            "CvxpyLayer: expected variables of geometric programs to be positive everywhere; "
            f"{variable.name()} has entries that are zero. Use a smaller variable."
        )
    if not variable.is_complex():
        return VariableSlot(variable.name(), "primal", shape, index, weight, exp=gp)
    return VariableSlot(
        variable.name(), "primal", shape, index, weight, imag_index, imag_weight, exp=gp
    )


def _part(
    variable: cp.Variable, program: Any, final: int, part: Part
) -> tuple[IntArray, FloatArray]:
    """Index and weight of the real or imaginary part."""
    index, weight = _nowhere(variable.size)
    if variable.size == 0:
        return index, weight
    if final not in program.var_id_to_col:
        raise ValueError(
            "CvxpyLayer: expected every variable asked for to be in the canonical problem; "
            f"{variable.name()} is not: neither objective nor constraints depend on it. "
            "Ask for the others only."
        )
    stored_shape = program.id_to_var[final].shape
    positions = stored_positions(variable, stored_shape, part)
    start = program.var_id_to_col[final]
    index[positions] = np.arange(start, start + positions.size)
    weight[positions] = 1.0
    skew = part == "imag" and is_hermitian(variable)
    if skew or is_triangular(variable, stored_shape):
        numbers = np.arange(variable.size, dtype=np.int64).reshape(variable.shape)
        mirrored = numbers.swapaxes(-1, -2).reshape(-1)[positions]
        index[mirrored] = index[positions]
        weight[mirrored] = -1.0 if skew else 1.0
    return index, weight


def _check_complex_attributes(variable: cp.Variable) -> None:
    """Refuse what cvxpy forgets when it splits a complex variable into two real ones."""
    forgotten = [name for name in ("diag", "sparsity", "symmetric") if variable.attributes[name]]
    if forgotten:
        raise ValueError(
            "CvxpyLayer: expected complex variables to be free, Hermitian or semidefinite; "
            f"{variable.name()} has the attribute {forgotten[0]}, which cvxpy does not keep. "
            "Write it as a constraint or use smaller variables."
        )


def _nowhere(size: int) -> tuple[IntArray, FloatArray]:
    """Index and weight of zeros."""
    return np.full(size, NOWHERE, dtype=np.int64), np.zeros(size)
