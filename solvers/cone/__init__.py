"""Cone programs: closed convex cones with their projections, and solvers."""

from .clarabel import Clarabel
from .cone import Cone, Spectrum
from .cone_program import ConeProgram
from .exponential import ExponentialCone
from .polyhedral import BoxCone, NonnegativeCone, ZeroCone
from .positive_semidefinite import PositiveSemidefiniteCone, smat, svec
from .power import GeneralizedPowerCone, PowerCone
from .product import ConeProduct
from .scs import SCS
from .second_order import SecondOrderCone
from .solver import ConeSolver

__all__ = [
    "SCS",
    "BoxCone",
    "Clarabel",
    "Cone",
    "ConeProduct",
    "ConeProgram",
    "ConeSolver",
    "ExponentialCone",
    "GeneralizedPowerCone",
    "NonnegativeCone",
    "PositiveSemidefiniteCone",
    "PowerCone",
    "SecondOrderCone",
    "Spectrum",
    "ZeroCone",
    "smat",
    "svec",
]
