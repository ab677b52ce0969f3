"""Optimization problems, roots and fixed points as differentiable layers for PyTorch."""

from typing import TYPE_CHECKING, Any

# First, since what follows imports `solvers`: a user's file of that name is reported here.
from ._alias import solvers  # isort: split

from .closest_feasible import ClosestFeasible, closest_feasible_qp
from .cone import cone_program
from .cone_projection import cone_projection
from .exact import Exact
from .failure import SolverWarning
from .fixed_point import fixed_point
from .fixed_point_layer import FixedPointLayer
from .implicit.adjoints import (
    Dense,
    FixedPoint,
    Iterative,
    Neumann,
    OneStep,
    Phantom,
    Unrolled,
)
from .implicit_function import implicit_function
from .inverse import inverse
from .least_squares import least_squares
from .minimize import minimize
from .qp import qp
from .qp_layer import QPLayer
from .root import root
from .smoothed import Smoothed
from .solvers import (
    BoxCone,
    ExponentialCone,
    GeneralizedPowerCone,
    NonnegativeCone,
    PositiveSemidefiniteCone,
    PowerCone,
    SecondOrderCone,
    Solution,
    SolverError,
    Status,
    ZeroCone,
)

if TYPE_CHECKING:
    from .cvxpy import CvxpyLayer
else:

    def __getattr__(name: str) -> Any:
        """What most programs do without is imported when it is used."""
        if name == "CvxpyLayer":
            from .cvxpy import CvxpyLayer

            return CvxpyLayer
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BoxCone",
    "ClosestFeasible",
    "CvxpyLayer",
    "Dense",
    "Exact",
    "ExponentialCone",
    "FixedPoint",
    "FixedPointLayer",
    "GeneralizedPowerCone",
    "Iterative",
    "Neumann",
    "NonnegativeCone",
    "OneStep",
    "Phantom",
    "PositiveSemidefiniteCone",
    "PowerCone",
    "QPLayer",
    "SecondOrderCone",
    "Smoothed",
    "Solution",
    "SolverError",
    "SolverWarning",
    "Status",
    "Unrolled",
    "ZeroCone",
    "closest_feasible_qp",
    "cone_program",
    "cone_projection",
    "fixed_point",
    "implicit_function",
    "inverse",
    "least_squares",
    "minimize",
    "qp",
    "root",
    "solvers",
]
__version__ = "0.1.0"
