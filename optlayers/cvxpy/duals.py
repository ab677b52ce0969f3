"""How the dual variables of the user's constraints are read from the dual solution.

Signs are those of ``constraint.dual_value`` in cvxpy, which are those of the solver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .affine import FloatArray, IntArray
from .cones import Rows
from .recovery import NOWHERE, VariableSlot

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class DualMaps:
    """What cvxpy did with the constraints.

    Attributes:
        rows: The rows of each constraint of the canonical problem, by its id.
        constraint_ids: The user's ids of constraints to those in the canonical problem.
        imaginary_ids: The user's ids of complex constraints to those of their imaginary parts.
    """

    rows: Mapping[int, Rows]
    constraint_ids: Mapping[int, int]
    imaginary_ids: Mapping[int, int]

    def find(self, own: int) -> Rows | None:
        """The rows that a constraint has become."""
        return self.rows.get(self.constraint_ids.get(own, own))


def dual_slot(constraint: cp.Constraint, number: int, maps: DualMaps) -> VariableSlot:
    """Describe where a dual variable is in the dual solution.

    Args:
        constraint: A constraint of the user's problem.
        number: Which of ``constraint.dual_variables``.
        maps: What cvxpy did with the constraints.

    Returns:
        The slot.

    Raises:
        ValueError: If the constraint has become something that is not known here.
    """
    import cvxpy as cp
    from cvxpy.constraints.nonpos import Inequality, NonNeg, NonPos
    from cvxpy.constraints.power import PowConeND
    from cvxpy.constraints.zero import Equality, Zero

    variable = constraint.dual_variables[number]
    shape = tuple(int(length) for length in variable.shape)
    name = f"dual_variables[{number}] of {constraint}"
    # The order and scaling of every kind; a constraint that cvxpy approximates has another kind
    # of rows than its own, which `_rows` refuses.
    if variable.size == 0:
        index = np.empty(0, dtype=np.int64)
    elif isinstance(constraint, Equality | Zero) and constraint.is_complex():
        return _complex_equality(constraint, name, shape, maps)
    elif isinstance(constraint, Equality | Zero | Inequality | NonNeg | NonPos):
        kinds = ("zero",) if isinstance(constraint, Equality | Zero) else ("nonneg",)
        index = _whole(_rows(constraint, maps, kinds), shape)
    elif isinstance(constraint, cp.PSD):
        return _semidefinite(constraint, name, shape, maps)
    elif isinstance(constraint, cp.SOC) and not constraint.is_complex():
        rows = _rows(constraint, maps, ("soc",))
        index = _blocks(rows, shape, number, heads=1, cones_first=constraint.axis == 1)
    elif isinstance(constraint, cp.ExpCone | cp.PowCone3D):
        kind = "exp" if isinstance(constraint, cp.ExpCone) else "pow"
        rows = _rows(constraint, maps, (kind,))
        index = _row_major(rows.start + number + 3 * np.arange(variable.size), shape)
    elif isinstance(constraint, PowConeND):
        rows = _rows(constraint, maps, ("genpow",))
        # A block is w followed by z: counted backwards, it looks like a second-order cone.
        last = constraint.args[0].shape[constraint.axis]
        head = 1 - number
        index = _blocks(rows, shape, head, heads=0, cones_first=constraint.axis == 1)
        if head == 0:
            index = index + last
    else:
        raise _unknown(constraint)
    return VariableSlot(name, "dual", shape, index, np.ones(index.size))


def _complex_equality(
    constraint: cp.Constraint, name: str, shape: tuple[int, ...], maps: DualMaps
) -> VariableSlot:
    """Two equalities, one for each part; either may be missing if it holds trivially."""
    imaginary = maps.find(maps.imaginary_ids.get(constraint.id, constraint.id))
    real = None if constraint.is_imag() else maps.find(constraint.id)
    if real is None and imaginary is None:
        raise _unknown(constraint)
    indices, weights = [], []
    for rows in (real, imaginary):
        found = rows is not None and rows.kind == "zero"
        size = int(np.prod(shape, dtype=np.int64))
        indices.append(_whole(rows, shape) if found and rows else np.full(size, NOWHERE))
        weights.append(np.full(size, float(found)))
    return VariableSlot(
        name, "dual", shape, indices[0], weights[0], imag_index=indices[1], imag_weight=weights[1]
    )


def _semidefinite(
    constraint: cp.Constraint, name: str, shape: tuple[int, ...], maps: DualMaps
) -> VariableSlot:
    """Upper triangles by columns with entries off the diagonal times the root of 2."""
    rows = _rows(constraint, maps, ("psd",))
    order = shape[-1]
    if not constraint.is_complex():
        index, weight = _triangle(order)
        size = order * (order + 1) // 2
        # cvxpy numbers the matrices of a stack column-major.
        stack = shape[:-2]
        starts = rows.start + size * np.arange(int(np.prod(stack))).reshape(stack, order="F")
        index = starts[..., None, None] + index
        weight = np.broadcast_to(weight, shape)
        return VariableSlot(name, "dual", shape, index.reshape(-1), weight.reshape(-1).copy())
    # X is in the cone if and only if M = [[re, -im], [im, re]] is. The inner product of M with Z is
    # that of X with Z11 + Z22 + i (Z21 - Z12); these sums are unique even where Z is not.
    index, weight = _triangle(2 * order)
    index = index + rows.start
    first, second = np.s_[:order], np.s_[order:]

    def terms(entries: NDArray[Any], *blocks: tuple[slice, slice]) -> NDArray[Any]:
        return np.stack([entries[block].reshape(-1) for block in blocks])

    on, off = ((first, first), (second, second)), ((second, first), (first, second))
    return VariableSlot(
        name,
        "dual",
        shape,
        terms(index, *on),
        terms(weight, *on),
        imag_index=terms(index, *off),
        imag_weight=terms(weight, *off) * np.array([[1.0], [-1.0]]),
    )


def _triangle(order: int) -> tuple[IntArray, FloatArray]:
    """Index and weight of a symmetric matrix in its scaled triangle, shapes ``(order, order)``."""
    numbers = np.arange(order, dtype=np.int64)
    low, high = np.minimum.outer(numbers, numbers), np.maximum.outer(numbers, numbers)
    return high * (high + 1) // 2 + low, np.where(low == high, 1.0, 0.5**0.5)


def _blocks(
    rows: Rows, shape: tuple[int, ...], number: int, *, heads: int, cones_first: bool
) -> IntArray:
    """Read the scalars (number 0) or the vectors (number 1) out of a sequence of blocks."""
    length = rows.size // rows.cones
    starts = rows.start + length * np.arange(rows.cones, dtype=np.int64)
    if number == 0:
        return starts
    within = heads + np.arange(length - 1, dtype=np.int64)
    grid = np.add.outer(starts, within) if cones_first else np.add.outer(within, starts)
    return grid.reshape(shape).reshape(-1)


def _whole(rows: Rows, shape: tuple[int, ...]) -> IntArray:
    """All rows, column-major."""
    return _row_major(np.arange(rows.start, rows.start + rows.size), shape)


def _row_major(column_major: IntArray, shape: tuple[int, ...]) -> IntArray:
    """Sort a column-major index into row-major order."""
    return column_major.reshape(shape, order="F").reshape(-1).astype(np.int64)


def _rows(constraint: cp.Constraint, maps: DualMaps, kinds: tuple[str, ...]) -> Rows:
    """The rows of a constraint that must have stayed what it was."""
    rows = maps.find(constraint.id)
    if rows is None or rows.kind not in kinds:
        raise _unknown(constraint)
    complex_matrix = rows.kind == "psd" and constraint.is_complex()
    if rows.kind == "psd":
        order = constraint.args[0].shape[-1] * (2 if complex_matrix else 1)
        expected = order * (order + 1) // 2 * constraint.num_cones()
    else:
        expected = constraint.size
    if rows.size != expected:
        raise _unknown(constraint)
    return rows


def _unknown(constraint: cp.Constraint) -> ValueError:
    return ValueError(
        "CvxpyLayer: expected dual variables of equalities, inequalities, second-order, "
        "semidefinite, exponential or power cones that cvxpy keeps as they are; "
        f"{type(constraint).__name__} ({constraint}) is not one of them. Ask for other variables, "
        "or state the constraint by cones."
    )
