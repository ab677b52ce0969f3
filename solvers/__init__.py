"""Numerical solvers: tensors in, a :class:`Solution` out. Users spell it ``optlayers.solvers``."""

from .qp import (
    ActiveSet,
    Automatic,
    InteriorPoint,
    ProximalInteriorPoint,
    QPSolver,
    QuadraticProgram,
)
from .solution import Residuals, Solution, SolverError, Status

__all__ = [
    "ActiveSet",
    "Automatic",
    "InteriorPoint",
    "ProximalInteriorPoint",
    "QPSolver",
    "QuadraticProgram",
    "Residuals",
    "Solution",
    "SolverError",
    "Status",
]
