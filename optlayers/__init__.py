"""Optimization problems, roots and fixed points as differentiable layers for PyTorch."""

# First, since what follows imports `solvers`: a user's file of that name is reported here.
from ._alias import solvers  # isort: split
from .failure import SolverWarning
from .qp import Exact, qp
from .qp_layer import QPLayer
from .solvers import Solution, SolverError, Status

__all__ = [
    "Exact",
    "QPLayer",
    "Solution",
    "SolverError",
    "SolverWarning",
    "Status",
    "qp",
    "solvers",
]
__version__ = "0.1.0"
