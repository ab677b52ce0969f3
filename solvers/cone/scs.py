"""SCS, a compiled splitting method: many cheap steps, for programs too large to factor often."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..solution import Status
from .cone import Cone
from .exponential import ExponentialCone
from .polyhedral import BoxCone, NonnegativeCone, ZeroCone
from .positive_semidefinite import PositiveSemidefiniteCone
from .power import PowerCone
from .product import ConeProduct
from .second_order import SecondOrderCone
from .solver import Answer, ConeSolver, Finder, Point
from .stack import Instance

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class SCS(ConeSolver):
    """The splitting conic solver, which starts from a warm start and holds only one factor.

    It has no generalised power cones, and one box cone at most.

    Attributes:
        max_iter: Iterations allowed to each program.

    References:
        O'Donoghue, *Operator splitting for a homogeneous embedding of the linear complementarity
        problem*, SIAM J. Optimization 31 (2021).
    """

    max_iter: int = 100_000

    def prepare(self, cones: ConeProduct, batch: int, eps_abs: float, eps_rel: float) -> Finder:
        """Sort the rows once; see :class:`~solvers.cone.solver.ConeSolver`."""
        import scipy.sparse as sp
        import scs  # imported when used: it costs every other user of the package time

        if not cones.rows:
            raise ValueError("SCS: at least one row is needed; got none. Use Clarabel().")
        order, described = _arrange(cones)
        back = np.argsort(order)
        settings: dict[str, Any] = {
            "verbose": False,
            "eps_abs": eps_abs,
            "eps_rel": eps_rel,
            "eps_infeas": 1e-8,
            "max_iters": self.max_iter,
        }

        def find(instance: Instance, start: Point | None) -> Answer:
            P, q, A, b = instance
            # Sorting happens in place, and the data are not ours.
            rows = sp.csc_array((A.data.copy(), back[A.indices], A.indptr), A.shape)
            rows.sort_indices()
            data = {"A": sp.csc_matrix(rows), "b": b[order], "c": q}
            if P.nnz:
                data["P"] = sp.csc_matrix((P.data, P.indices, P.indptr), P.shape)
            guess = {}
            if start is not None:
                guess = {"x": start.x, "y": start.z[order], "s": start.s[order]}
            answer = scs.SCS(data, described, **settings).solve(**guess)
            info = answer["info"]
            claim = _STATUS.get(info["status_val"], Status.NUMERICAL_ERROR)
            if claim > Status.MAX_ITERATIONS:
                return Answer(None, claim, info["iter"])
            point = Point(answer["x"], answer["s"][back], answer["y"][back])
            return Answer(point, claim, info["iter"])

        return find


_STATUS = {
    1: Status.SOLVED,
    2: Status.MAX_ITERATIONS,
    -1: Status.DUAL_INFEASIBLE,
    -2: Status.PRIMAL_INFEASIBLE,
    -6: Status.DUAL_INFEASIBLE,
    -7: Status.PRIMAL_INFEASIBLE,
}


class _Kind(NamedTuple):
    """A key of SCS's description of cones, in the order in which it wants the rows.

    Attributes:
        key: The key.
        fits: Whether a cone belongs there.
        entry: What the cone adds to the list there, or to the number of rows.
    """

    key: str
    fits: Callable[[Cone], bool]
    entry: Callable[[Any], Any]


_KINDS = (
    _Kind("z", lambda c: isinstance(c, ZeroCone), lambda c: c.rows),
    # A box cone without a box is a ray, which SCS refuses.
    _Kind("l", lambda c: isinstance(c, NonnegativeCone) or c == BoxCone((), ()), lambda c: c.rows),
    _Kind("box", lambda c: isinstance(c, BoxCone) and c.rows > 1, lambda c: c),
    _Kind("q", lambda c: isinstance(c, SecondOrderCone), lambda c: c.rows),
    _Kind("s", lambda c: isinstance(c, PositiveSemidefiniteCone), lambda c: c.order),
    _Kind("ep", lambda c: isinstance(c, ExponentialCone) and not c.dual, lambda c: 1),
    _Kind("ed", lambda c: isinstance(c, ExponentialCone) and c.dual, lambda c: 1),
    # Negative exponents mean the dual cone.
    _Kind("p", lambda c: isinstance(c, PowerCone), lambda c: -c.alpha if c.dual else c.alpha),
)
_COUNTED = ("z", "l", "ep", "ed")


def _arrange(cones: ConeProduct) -> tuple[Integers, dict[str, Any]]:
    """The rows in the order SCS wants them, and its description of the cones."""
    starts = np.cumsum([0, *[cone.rows for cone in cones.cones]])
    order: list[Integers] = []
    described: dict[str, Any] = {}
    taken = 0
    for key, fits, entry in _KINDS:
        chosen = [(c, int(s)) for c, s in zip(cones.cones, starts, strict=False) if fits(c)]
        if not chosen:
            continue
        taken += len(chosen)
        order += [start + _within(cone) for cone, start in chosen]
        entries = [entry(cone) for cone, _ in chosen]
        if key == "box":
            if len(entries) > 1:
                raise ValueError(
                    f"SCS: at most one BoxCone is possible; got {len(entries)}. Use Clarabel(), or "
                    "write the others as NonnegativeCone rows."
                )
            described |= {"bl": np.array(entries[0].lower), "bu": np.array(entries[0].upper)}
        else:
            described[key] = sum(entries) if key in _COUNTED else entries
    if taken != len(cones.cones):
        other = next(c for c in cones.cones if not any(kind.fits(c) for kind in _KINDS))
        raise ValueError(
            f"SCS: a cone of type {type(other).__name__} is not among its cones. Use Clarabel()."
        )
    return np.concatenate([*order, np.empty(0, np.int64)]).astype(np.int64), described


def _within(cone: Cone) -> Integers:
    """The order of the rows of one cone: SCS has lower triangles by columns, we have upper ones."""
    if not isinstance(cone, PositiveSemidefiniteCone):
        return np.arange(cone.rows)
    k = cone.order
    columns, rows = np.triu_indices(k)  # of the lower triangle, by columns
    return rows * (rows + 1) // 2 + columns
