"""Clarabel, a compiled interior-point method for all cones, one program after the other."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.weak import WeakIdKeyDictionary

from .._threads import available
from ..solution import Status
from .cone import Cone
from .exponential import ExponentialCone
from .idle import Idle
from .polyhedral import BoxCone, NonnegativeCone, ZeroCone
from .positive_semidefinite import PositiveSemidefiniteCone
from .power import GeneralizedPowerCone, PowerCone
from .product import ConeProduct
from .second_order import SecondOrderCone
from .solver import NEAR, Answer, ConeSolver, Finder, Point
from .sparse import Compressed, Pattern
from .stack import Instance

if TYPE_CHECKING:
    import scipy.sparse as sp


# Accuracy of the linear solves, as a share of the tolerance.
STEP_ACCURACY = 1e-2
# Cones whose linear systems are so ill-conditioned that their solutions have to be refined.
REFINED = SecondOrderCone, GeneralizedPowerCone
# Numbers that a solver holds for each that it is given, more or less.
SOLVER_NUMBERS = 20


@dataclass(frozen=True)
class Clarabel(ConeSolver):
    """The default: Clarabel's homogeneous embedding, robust on every kind of cone.

    It works on the CPU, a program at a time, in as many threads as torch may use. A warm start is
    used by Newton's method alone; where that does not arrive, Clarabel starts afresh.

    References:
        Goulart and Chen, *Clarabel: an interior-point solver for conic programs with quadratic
        objectives*, 2024.
    """

    def prepare(self, cones: ConeProduct, batch: int, eps_abs: float, eps_rel: float) -> Finder:
        """Spell the cones once; see :class:`~solvers.cone.solver.ConeSolver`."""
        import clarabel  # imported when used: it costs every other user of the package time
        import scipy.sparse as sp

        spelled = _spelled(cones)
        made, T = spelled.cones, spelled.T
        threads = 1 if batch > 1 else available()
        chosen = self.max_iter, eps_abs, eps_rel, spelled.kinds, threads
        settings, common = _settings(*chosen), (spelled.text, *chosen)
        nobody = partial(Idle, available())

        def find(instance: Instance, start: Point | None) -> Answer:
            A, b = instance.A, instance.b
            if T is not None:
                TA = (T @ sp.csc_array((A.data, A.indices, A.indptr), A.shape)).tocsc()
                A, b = Compressed(TA.data, Pattern(TA.indices, TA.indptr, TA.shape)), T @ b
            size = SOLVER_NUMBERS * (instance.P.nnz + A.nnz + sum(A.shape))
            idle = A.pattern.derived((*common, instance.P.pattern), size, nobody)
            try:
                solver = idle.take()
                if solver is None:
                    solver = clarabel.DefaultSolver(instance.P, instance.q, A, b, made, settings)
                else:
                    data = (t.tolist() for t in (instance.P.data, instance.q, A.data, b))
                    solver.update(**dict(zip("PqAb", data, strict=True)))  # lists are read faster
                answer = solver.solve()
            except BaseException as error:
                # Failed assertions, as of generalised power cones, are no Exception.
                if type(error).__name__ != "PanicException":
                    raise
                return Answer(None, Status.NUMERICAL_ERROR, 0)
            claim = _STATUS.get(str(answer.status), Status.NUMERICAL_ERROR)
            # One that met NaN would return nothing else from then on, whatever it is given.
            usable = claim == Status.SOLVED and solver.is_data_update_allowed()
            if usable and not settings.equilibrate_enable:
                idle.put(solver)
            if claim > Status.MAX_ITERATIONS:
                return Answer(None, claim, answer.iterations)
            x, z = np.array(answer.x), np.array(answer.z)
            if T is None:
                s = np.array(answer.s)
            else:
                s, z = instance.b - instance.A.times(x), T.T @ z
            return Answer(Point(x, s, z), claim, answer.iterations)

        return find


@lru_cache(maxsize=32)
def _settings(
    max_iter: int, eps_abs: float, eps_rel: float, kinds: frozenset[type[Cone]], threads: int
) -> Any:
    """Clarabel's settings, which nobody may change."""
    import clarabel

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.max_iter = max_iter
    settings.tol_feas = settings.tol_gap_abs = eps_abs
    settings.tol_gap_rel = eps_rel
    # Steps need not be much more accurate than what they lead to; 1e-13 is the default.
    accuracy = max(STEP_ACCURACY * eps_abs, 1e-13)
    settings.iterative_refinement_reltol = settings.iterative_refinement_abstol = accuracy
    settings.iterative_refinement_enable = eps_abs < NEAR or not kinds.isdisjoint(REFINED)
    settings.presolve_enable = False  # it would drop rows
    settings.equilibrate_enable = eps_abs < NEAR  # programs come scaled; a last resort
    settings.chordal_decomposition_enable = PositiveSemidefiniteCone in kinds
    settings.max_threads = threads
    return settings


# What ends without a definite answer may still be near enough for Newton's method.
_STATUS = {
    "Solved": Status.SOLVED,
    "AlmostSolved": Status.SOLVED_INACCURATE,
    "MaxIterations": Status.MAX_ITERATIONS,
    "InsufficientProgress": Status.MAX_ITERATIONS,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "AlmostPrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    "AlmostDualInfeasible": Status.DUAL_INFEASIBLE,
}
Spelling = list[tuple[str, tuple[Any, ...]]]


@dataclass(frozen=True, eq=False)
class _Spelled:
    """Clarabel's objects for a product of cones, and ``T``; see :func:`spell`.

    Attributes:
        cones: Clarabel's objects.
        T: The map into them.
        text: The same for equal cones; other keys that may be compared take longer to hash.
        kinds: Types of the cones.
    """

    cones: list[Any]
    T: "sp.csr_array | None"
    text: str
    kinds: frozenset[type[Cone]]


_known: "WeakIdKeyDictionary" = WeakIdKeyDictionary()


def _spelled(cones: ConeProduct) -> _Spelled:
    """Made once, for layers come back with the same product."""
    import clarabel

    if cones not in _known:
        kinds, T = spell(cones)
        made = [getattr(clarabel, name)(*arguments) for name, arguments in kinds]
        _known[cones] = _Spelled(made, T, repr(kinds), frozenset(map(type, cones.cones)))
    spelled: _Spelled = _known[cones]
    return spelled


def spell(cones: ConeProduct) -> "tuple[Spelling, sp.csr_array | None]":
    """Clarabel's cones, and ``T`` with: ``s`` in ours where ``T s`` in its; None for no change.

    Multipliers of ours are then ``T'`` times its.
    """
    import scipy.sparse as sp

    kinds, blocks = [], []
    for cone in cones.cones:
        kind, block = _spell(cone)
        kinds.append(kind)
        blocks.append(block)
    if all(block is None for block in blocks):
        return kinds, None
    full = [
        sp.eye_array(cone.rows) if block is None else sp.csr_array(block)
        for cone, block in zip(cones.cones, blocks, strict=True)
    ]
    return kinds, sp.block_diag(full, format="csr")


def _spell(cone: Cone) -> tuple[tuple[str, tuple[Any, ...]], Any]:
    """One cone of Clarabel, and the map into it."""
    match cone:
        case ZeroCone():
            return ("ZeroConeT", (cone.rows,)), None
        case NonnegativeCone():
            return ("NonnegativeConeT", (cone.rows,)), None
        case SecondOrderCone():
            return ("SecondOrderConeT", (cone.rows,)), None
        case PositiveSemidefiniteCone():
            return ("PSDTriangleConeT", (cone.order,)), None
        case ExponentialCone():
            # (u, v, w) is in the dual cone where (u - v, -u, w) is in the cone.
            dual = np.array([[1.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
            return ("ExponentialConeT", ()), dual if cone.dual else None
        case PowerCone():
            dual = np.diag([1 / cone.alpha, 1 / (1 - cone.alpha), 1.0])
            return ("PowerConeT", (cone.alpha,)), dual if cone.dual else None
        case GeneralizedPowerCone():
            dual = np.diag([1 / a for a in cone.alphas] + [1.0] * cone.dim)
            kind = ("GenPowerConeT", (list(cone.alphas), cone.dim))
            return kind, dual if cone.dual else None
        case BoxCone():
            T = _box(cone)
            return ("NonnegativeConeT", (T.shape[0],)), T
    raise TypeError(
        f"Clarabel: expected a cone of optlayers.solvers; got {type(cone).__name__}. Write the "
        "constraint with one of those."
    )


def _box(cone: BoxCone) -> Any:
    """Rows ``t``, ``s - t lower`` and ``t upper - s``, without those of infinite ends."""
    lower, upper = np.array(cone.lower), np.array(cone.upper)
    eye = np.eye(len(lower))
    below, above = np.isfinite(lower), np.isfinite(upper)
    return np.vstack(
        [
            np.eye(1, cone.rows),
            np.column_stack((-lower[below], eye[below])),
            np.column_stack((upper[above], -eye[above])),
        ]
    )
