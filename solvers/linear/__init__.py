"""Systems of linear equations and linear least squares, for batches of independent samples."""

from .bicgstab import BiCGSTAB
from .cg import CG
from .cholesky import Cholesky
from .direct import DirectSolver
from .gmres import GMRES
from .krylov import IterativeLinearSolver
from .lsmr import LSMR
from .lu import LU
from .minres import MINRES
from .neumann_series import NeumannSeries
from .operator import LinearOperator
from .qr import QR
from .solver import LinearSolver

__all__ = [
    "CG",
    "GMRES",
    "LSMR",
    "LU",
    "MINRES",
    "QR",
    "BiCGSTAB",
    "Cholesky",
    "DirectSolver",
    "IterativeLinearSolver",
    "LinearOperator",
    "LinearSolver",
    "NeumannSeries",
]
