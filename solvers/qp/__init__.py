"""Quadratic programs."""

from .active_set import ActiveSet
from .choose import Automatic
from .interior_point import InteriorPoint
from .proximal_interior_point import ProximalInteriorPoint
from .quadratic_program import QuadraticProgram
from .solver import QPSolver

__all__ = [
    "ActiveSet",
    "Automatic",
    "InteriorPoint",
    "ProximalInteriorPoint",
    "QPSolver",
    "QuadraticProgram",
]
