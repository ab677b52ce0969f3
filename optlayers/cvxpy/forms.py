"""Which form suits a problem: a dense quadratic program, or a sparse cone program."""

from solvers.cone.clarabel import Clarabel
from solvers.cone.solver import ConeSolver
from solvers.qp.solver import QPSolver

from .canonical import CanonicalProgram
from .conic_form import ConicForm, has_constant_definitions
from .elimination import Reduced, eliminate, keep_all
from .form import Form
from .quadratic_form import QuadraticForm

# Entries of the dense matrices of one problem up to which density does not matter, and the share of
# them that must be filled beyond, up to a limit.
SMALL, FILLED, LARGE = 100_000, 0.2, 4_000_000


def form_of(program: CanonicalProgram, solver: QPSolver | ConeSolver | None) -> Form:
    """Choose; a solver that was asked for decides.

    Raises:
        ValueError: If a solver of quadratic programs was asked for, and this is none.
    """
    linear = all(kind in ("zero", "nonneg") for kind, _ in program.cones)
    if isinstance(solver, QPSolver) and not linear:
        others = sorted({kind for kind, _ in program.cones} - {"zero", "nonneg"})
        raise ValueError(
            f"CvxpyLayer: solver {type(solver).__name__} solves quadratic programs; got a problem "
            f"whose canonical form has cones of the kinds {', '.join(others)}. Leave solver out, "
            "or use Clarabel()."
        )
    reduced = eliminate(program)
    if linear and not isinstance(solver, ConeSolver) and (solver or _is_dense(reduced)):
        return QuadraticForm(reduced, solver, program.variables)
    if not has_constant_definitions(reduced):
        reduced = keep_all(program)
    chosen = solver if isinstance(solver, ConeSolver) else Clarabel()
    return ConicForm(reduced, chosen, program.variables)


def _is_dense(reduced: Reduced) -> bool:
    (m, n), P = reduced.A.shape, reduced.P
    entries = n * (n + m)
    filled = len(reduced.A.indices) + (0 if P is None else len(P.indices)) + len(reduced.E.indices)
    return entries <= SMALL or (entries <= LARGE and filled >= FILLED * entries)
