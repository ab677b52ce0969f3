"""Numerical solvers: tensors in, a :class:`Solution` out. Users spell it ``optlayers.solvers``."""

from .solution import Residuals, Solution, SolverError, Status

__all__ = ["Residuals", "Solution", "SolverError", "Status"]
