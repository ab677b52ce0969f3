"""Fixed points of maps, for batches of independent samples."""

from .picard import Picard
from .solver import FixedPointSolver

__all__ = ["FixedPointSolver", "Picard"]
