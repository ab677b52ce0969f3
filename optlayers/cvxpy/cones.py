"""The cones of a canonical problem and the rows they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Cone = tuple[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of one constraint of the canonical problem.

    Attributes:
        kind: The kind of its cones.
        start: The first row.
        size: How many rows.
        cones: How many cones; rows of zero and nonnegative cones count as one.
    """

    kind: str
    start: int
    size: int
    cones: int


def cone_size(cone: Cone) -> int:
    """The number of rows of a cone."""
    kind, argument = cone
    match kind:
        case "zero" | "nonneg" | "soc":
            return int(argument)
        case "psd":
            return int(argument) * (int(argument) + 1) // 2
        case "exp" | "pow":
            return 3
        case "genpow":
            return len(argument[0]) + int(argument[1])
        case _:
            raise ValueError(f"CvxpyLayer: expected a kind of cone that exists, got {kind!r}.")


def list_cones(constraints: Sequence[Any]) -> tuple[tuple[Cone, ...], dict[int, Rows]]:
    """List the cones of a canonical problem in the order of its rows.

    Args:
        constraints: The constraints of the parametrised cone program.

    Returns:
        The cones, and the rows of each constraint by its id. Zero cones are joined to one, and so
        are nonnegative ones.

    Raises:
        ValueError: If a constraint is none of the cones that exist here.
    """
    cones: list[Cone] = []
    rows: dict[int, Rows] = {}
    start = 0
    for constraint in constraints:
        own = _cones(constraint)
        size = sum(cone_size(cone) for cone in own)
        rows[constraint.id] = Rows(own[0][0], start, size, len(own))
        start += size
        for kind, argument in own:
            if kind in ("zero", "nonneg") and cones and cones[-1][0] == kind:
                cones[-1] = (kind, cones[-1][1] + argument)
            else:
                cones.append((kind, argument))
    return tuple(cones), rows


def _cones(constraint: Any) -> list[Cone]:
    """The cones of one constraint, at least one."""
    from cvxpy.constraints.exponential import ExpCone
    from cvxpy.constraints.nonpos import NonNeg
    from cvxpy.constraints.power import PowCone3D, PowConeND
    from cvxpy.constraints.psd import SvecPSD
    from cvxpy.constraints.second_order import SOC
    from cvxpy.constraints.zero import Zero

    # Exact types: a subclass may have rows of another order.
    kind = type(constraint)
    if kind is Zero:
        return [("zero", int(constraint.size))]
    if kind is NonNeg:
        return [("nonneg", int(constraint.size))]
    if kind is SOC:
        return [("soc", int(size)) for size in constraint.cone_sizes()]
    if kind is SvecPSD:
        return [("psd", int(order)) for order in constraint.cone_sizes()]
    if kind is ExpCone:
        return [("exp", None)] * int(constraint.num_cones())
    if kind is PowCone3D:
        return [("pow", float(alpha)) for alpha in np.ravel(constraint.alpha.value, order="F")]
    if kind is PowConeND:
        # cvxpy has turned the cones into columns by now.
        alphas = np.asarray(constraint.alpha.value)
        alphas = alphas.reshape(alphas.shape[0], -1)
        return [("genpow", (tuple(map(float, alpha)), 1)) for alpha in alphas.T]
    raise ValueError(
        "CvxpyLayer: expected zero, nonnegative, second-order, semidefinite, exponential and power "
        f"cones; cvxpy has made a {kind.__name__} of the problem. Report this with the problem and "
        "the version of cvxpy."
    )
