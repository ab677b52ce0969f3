"""Optimization problems, roots and fixed points as differentiable layers for PyTorch."""

# First, since what follows imports `solvers`: a user's file of that name is reported here.
from ._alias import solvers  # isort: split

from .closest_feasible import ClosestFeasible, closest_feasible_qp
from .failure import SolverWarning
from .qp import Exact, qp
from .qp_layer import QPLayer
from .smoothed import Smoothed
from .solvers import Solution, SolverError, Status

__all__ = [
    "ClosestFeasible",
    "Exact",
    "QPLayer",
    "Smoothed",
    "Solution",
    "SolverError",
    "SolverWarning",
    "Status",
    "closest_feasible_qp",
    "qp",
    "solvers",
]
__version__ = "0.1.0"
