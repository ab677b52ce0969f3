"""Optimization problems, roots and fixed points as differentiable layers for PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# First, since what follows imports `solvers`: a user's file of that name is reported here.
from ._alias import solvers  # isort: split

from .closest_feasible import ClosestFeasible, closest_feasible_qp
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
from .solvers import Solution, SolverError, Status

if TYPE_CHECKING:
    from . import equilibrium, testing
    from .cone import cone_program
    from .cvxpy import CvxpyLayer
    from .projection import cone_projection
    from .solvers import (
        BoxCone,
        ExponentialCone,
        GeneralizedPowerCone,
        NonnegativeCone,
        PositiveSemidefiniteCone,
        PowerCone,
        SecondOrderCone,
        ZeroCone,
    )
else:
    _PLACES = {"cone_program": "cone", "cone_projection": "projection", "CvxpyLayer": "cvxpy"}

    def __getattr__(name: str) -> Any:
        """What most programs do without, cones and cvxpy say, is imported when it is used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name in ("equilibrium", "testing"):
            return import_module(f".{name}", __name__)
        place = import_module(f".{_PLACES.get(name, 'solvers')}", __name__)
        return getattr(place, name)

    def __dir__() -> list[str]:
        """Whatever there is, imported or not."""
        return sorted({*globals(), *__all__})


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
    "equilibrium",
    "fixed_point",
    "implicit_function",
    "inverse",
    "least_squares",
    "minimize",
    "qp",
    "root",
    "solvers",
    "testing",
]
__version__ = "0.1.0"
