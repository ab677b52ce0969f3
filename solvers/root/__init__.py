"""Roots of functions, for batches of independent samples."""

from .bisection import Bisection
from .broyden import Broyden
from .newton import Newton
from .scipy_root import ScipyRoot
from .solver import RootSolver

__all__ = ["Bisection", "Broyden", "Newton", "RootSolver", "ScipyRoot"]
