"""Names and options of cvxpylayers, for code that changes its import and nothing else."""

from collections.abc import Mapping
from typing import Any

from solvers.cone.clarabel import Clarabel
from solvers.cone.scs import SCS
from solvers.cone.solver import ConeSolver
from solvers.qp.solver import QPSolver

from ..failure import warn

# What their solvers are here; None for whatever suits the problem.
NAMES = {"DIFFCP": None, "MOREAU": None, "CLARABEL": Clarabel, "SCS": SCS}
# Their options and the fields of ours. Those of the adjoint and of threads have none.
TOLERANCES = (
    "eps", "eps_abs", "eps_rel", "tol_gap_abs", "tol_gap_rel", "tol_feas", "abstol", "reltol",
    "feastol",
)  # fmt: skip
LIMITS = ("max_iter", "max_iters")
WITHOUT_EFFECT = (
    "mode", "solve_method", "n_jobs_forward", "n_jobs_backward", "acceleration_lookback",
    "use_indirect", "verbose", "warm_starts", "lsqr_iters",
)  # fmt: skip
METHODS = ("SCS", "ECOS", "CLARABEL")


def solver_of(
    solver: QPSolver | ConeSolver | str | None, solver_args: Mapping[str, Any] | None
) -> QPSolver | ConeSolver | None:
    """An object for what was given.

    Raises:
        TypeError: If the solver is neither an object nor a name.
        ValueError: If a name or an option has no counterpart.
    """
    if isinstance(solver, str):
        solver = _by_name(solver)
    elif solver is not None and not isinstance(solver, QPSolver | ConeSolver):
        raise TypeError(
            "CvxpyLayer: solver must be an object of optlayers.solvers, as Clarabel(); got "
            f"{solver!r}."
        )
    return _with_options(solver, solver_args) if solver_args else solver


def _by_name(name: str) -> ConeSolver | None:
    if name.upper() not in NAMES:
        raise ValueError(
            f"CvxpyLayer: expected a solver object, or one of the names {', '.join(NAMES)}; got "
            f"{name!r}. Leave solver out to have it chosen by the problem."
        )
    made = NAMES[name.upper()]
    instead = "leave it out" if made is None else f"write {made.__name__}()"
    _deprecated(f"solver={name!r} is a name of cvxpylayers; {instead}")
    return None if made is None else made()


def _with_options(
    solver: QPSolver | ConeSolver | None, options: Mapping[str, Any]
) -> QPSolver | ConeSolver | None:
    from dataclasses import replace

    unknown = sorted(set(options) - {*TOLERANCES, *LIMITS, *WITHOUT_EFFECT})
    if unknown:
        raise ValueError(
            f"CvxpyLayer: solver_args may have {', '.join((*TOLERANCES, *LIMITS))}; got "
            f"{', '.join(unknown)}. Pass a solver object instead, as Clarabel(eps_abs=1e-9)."
        )
    method = str(options.get("solve_method", "")).upper()
    if method and method not in METHODS:
        raise ValueError(
            f"CvxpyLayer: solve_method may be {', '.join(METHODS)}; got {method}. Leave it out to "
            "have a solver chosen by the problem."
        )
    if method == "SCS" and solver is None:
        solver = SCS()
    _deprecated("solver_args is an argument of cvxpylayers; pass a solver object of optlayers")
    given = [float(options[name]) for name in TOLERANCES if name in options]
    limits = [int(options[name]) for name in LIMITS if name in options]
    if solver is None:
        return None  # what is chosen by the problem is as good as any of their tolerances
    changes: dict[str, Any] = {}
    if given:
        changes = dict.fromkeys(("eps_abs", "eps_rel"), min(given))
    if limits:
        changes["max_iter"] = limits[0]
    return replace(solver, **changes)


def _deprecated(text: str) -> None:
    warn(f"CvxpyLayer: {text}.", DeprecationWarning)
