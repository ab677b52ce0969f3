r"""How the values of the user's parameters become the vector :math:`\theta`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .affine import FloatArray, IntArray
from .leaves import Part, is_hermitian, is_triangular, stored_positions

if TYPE_CHECKING:
    import cvxpy as cp

Transform = Literal["identity", "log", "real", "imag"]


@dataclass(frozen=True, eq=False)
class ParameterPiece:
    r"""Consecutive entries of :math:`\theta` that come from one parameter.

    Attributes:
        index: Positions in the row-major flattening of the value, shape ``(size,)``.
        transform: What is done with the entries there.
        symmetrise: Whether to take :math:`(V + V^H) / 2` of the value first. cvxpy reads the upper
            triangle only; without this step the lower one would never get a gradient.
    """

    index: IntArray
    transform: Transform
    symmetrise: bool


@dataclass(frozen=True, eq=False)
class ParameterSlot:
    r"""What one parameter contributes to :math:`\theta`.

    Attributes:
        name: The user's name.
        shape: The user's shape.
        is_complex: Whether its values may be complex.
        pieces: Its entries, piece after piece. None if the problem does not depend on it.
    """

    name: str
    shape: tuple[int, ...]
    is_complex: bool
    pieces: tuple[ParameterPiece, ...]

    @property
    def size(self) -> int:
        r"""The number of entries of :math:`\theta` that belong to the parameter."""
        return sum(piece.index.size for piece in self.pieces)

    def entries(self, value: NDArray[Any]) -> FloatArray:
        r"""The entries of :math:`\theta`, shapes ``shape`` to ``(size,)``."""
        value = np.asarray(value).reshape(self.shape)
        entries = [np.empty(0)]
        for piece in self.pieces:
            whole = (value + value.conj().swapaxes(-1, -2)) / 2 if piece.symmetrise else value
            entry = whole.reshape(-1)[piece.index]
            match piece.transform:
                case "identity":
                    entries.append(entry)
                case "log":
                    entries.append(np.log(entry))
                case "real":
                    entries.append(entry.real)
                case "imag":
                    entries.append(entry.imag)
        return np.concatenate(entries)


def parameter_slots(
    parameters: Sequence[cp.Parameter],
    program: Any,
    id_map: Mapping[int, list[int]],
    logarithms: Mapping[int, list[int]],
) -> tuple[tuple[ParameterSlot, ...], IntArray]:
    r"""Describe every parameter, and sort the columns of cvxpy's maps accordingly.

    Args:
        parameters: The user's parameters in the user's order.
        program: The parametrised cone program that cvxpy has made.
        id_map: What became of a parameter: its id to the ids in ``program``.
        logarithms: The same for the step from geometric to convex programs alone; its keys are the
            parameters that enter through their logarithm. Empty without such a step.

    Returns:
        The slots, and the column of cvxpy's maps that belongs to each entry of :math:`\theta`
        followed by that of the constant, shape ``(p + 1,)``.

    Raises:
        ValueError: If the program has parameters that come from none of the given ones, or the
            other way round.
    """
    slots = []
    columns = [np.empty(0, dtype=np.int64)]
    known = set()
    for parameter in parameters:
        pieces = []
        for final, transform in _final_ids(parameter, id_map, logarithms):
            # Of a complex parameter the problem may depend on one part only.
            if final not in program.param_id_to_col:
                continue
            known.add(final)
            pieces.append(_piece(parameter, program.id_to_param[final].shape, transform))
            start = program.param_id_to_col[final]
            columns.append(np.arange(start, start + program.param_id_to_size[final]))
        if not pieces and parameter.size > 0:
            raise ValueError(
                "CvxpyLayer: expected the canonical problem to depend on every parameter; "
                f"{parameter.name()} does not occur in it. Remove it from the problem."
            )
        shape = tuple(int(length) for length in parameter.shape)
        complex_valued = bool(parameter.is_complex())
        slots.append(ParameterSlot(parameter.name(), shape, complex_valued, tuple(pieces)))

    unknown = program.param_id_to_col.keys() - known - {-1}
    if unknown:
        names = sorted(program.id_to_param[final].name() for final in unknown)
        raise ValueError(
            "CvxpyLayer: expected every parameter of the canonical problem to come from one of "
            f"the given ones; {', '.join(names)} does not. Compute it outside the problem and "
            "pass it as a parameter of its own."
        )
    order = np.concatenate([*columns, [program.param_id_to_col[-1]]]).astype(np.int64)
    if not np.array_equal(np.sort(order), np.arange(program.total_param_size + 1)):
        raise ValueError(
            "CvxpyLayer: expected the parameters to cover the columns of the canonical problem, "
            f"0 to {program.total_param_size}; they cover {np.sort(order).tolist()}. Report this "
            "with the version of cvxpy."
        )
    return tuple(slots), order


def _final_ids(
    parameter: cp.Parameter,
    id_map: Mapping[int, list[int]],
    logarithms: Mapping[int, list[int]],
) -> list[tuple[int, Transform]]:
    """The ids a parameter may have in the canonical problem, with what is done to its value."""
    own = parameter.id
    final = id_map.get(own, [own])
    if own in logarithms:
        # As a factor it enters as a logarithm; as an exponent, under its own id, unchanged.
        return [(final[0], "log"), (own, "identity")]
    if parameter.is_complex():
        # A Hermitian 1 x 1 matrix has a real part only: zip leaves the other one out.
        parts: tuple[Part, ...] = ("imag",) if parameter.is_imag() else ("real", "imag")
        return list(zip(final, parts, strict=False))
    return [(final[0], "identity")]


def _piece(
    parameter: cp.Parameter, stored_shape: tuple[int, ...], transform: Transform
) -> ParameterPiece:
    """Describe the entries of one lowered parameter."""
    symmetrise = is_triangular(parameter, stored_shape) or is_hermitian(parameter)
    if symmetrise and parameter.ndim != 2:
        raise ValueError(
            "CvxpyLayer: expected symmetric parameters to be matrices, as cvxpy lowers no others; "
            f"{parameter.name()} has shape {tuple(parameter.shape)}. Use one parameter for each "
            "matrix."
        )
    part: Part = "imag" if transform == "imag" else "real"
    return ParameterPiece(stored_positions(parameter, stored_shape, part), transform, symmetrise)
