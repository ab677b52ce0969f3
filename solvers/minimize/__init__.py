"""Minima of functions, for batches of independent samples."""

from .bfgs import BFGS
from .block_coordinate_descent import BlockCoordinateDescent
from .frank_wolfe import FrankWolfe
from .gauss_newton import GaussNewton
from .gradient_descent import GradientDescent
from .lbfgs import LBFGS
from .lbfgsb import LBFGSB
from .levenberg_marquardt import LevenbergMarquardt
from .mirror_descent import Entropy, Euclidean, MirrorDescent
from .newton import TrustRegion
from .newton_cg import NewtonCG
from .nonlinear_cg import NonlinearCG
from .projected_gradient import ProjectedGradient
from .proximal_gradient import ProximalGradient
from .scipy_least_squares import ScipyLeastSquares
from .scipy_minimize import ScipyMinimize
from .solver import LeastSquaresSolver, MinimizeSolver
from .sqp import SQP

__all__ = [
    "BFGS",
    "LBFGS",
    "LBFGSB",
    "SQP",
    "BlockCoordinateDescent",
    "Entropy",
    "Euclidean",
    "FrankWolfe",
    "GaussNewton",
    "GradientDescent",
    "LeastSquaresSolver",
    "LevenbergMarquardt",
    "MinimizeSolver",
    "MirrorDescent",
    "NewtonCG",
    "NonlinearCG",
    "ProjectedGradient",
    "ProximalGradient",
    "ScipyLeastSquares",
    "ScipyMinimize",
    "TrustRegion",
]
