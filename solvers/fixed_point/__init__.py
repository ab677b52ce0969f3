"""Fixed points of maps, for batches of independent samples."""

from .anderson import Anderson
from .picard import Picard
from .solver import FixedPointSolver

__all__ = ["Anderson", "FixedPointSolver", "Picard"]
