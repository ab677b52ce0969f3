"""Numerical solvers: tensors in, a :class:`Solution` out. Users spell it ``optlayers.solvers``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .fixed_point import (
    Anderson,
    FixedPointSolver,
    Picard,
)
from .minimize import (
    BFGS,
    LBFGS,
    LBFGSB,
    SQP,
    BlockCoordinateDescent,
    Entropy,
    Euclidean,
    FrankWolfe,
    GaussNewton,
    GradientDescent,
    LeastSquaresSolver,
    LevenbergMarquardt,
    MinimizeSolver,
    MirrorDescent,
    NewtonCG,
    NonlinearCG,
    ProjectedGradient,
    ProximalGradient,
    ScipyLeastSquares,
    ScipyMinimize,
    TrustRegion,
)
from .qp import (
    ActiveSet,
    Automatic,
    InteriorPoint,
    ProximalInteriorPoint,
    QPSolver,
    QuadraticProgram,
)
from .root import (
    Bisection,
    Broyden,
    Newton,
    RootSolver,
    ScipyRoot,
)
from .solution import Residuals, Solution, SolverError, Status

if TYPE_CHECKING:
    from . import projection
    from .cone import (
        SCS,
        BoxCone,
        Clarabel,
        Cone,
        ConeProduct,
        ConeProgram,
        ConeSolver,
        ExponentialCone,
        GeneralizedPowerCone,
        NonnegativeCone,
        PositiveSemidefiniteCone,
        PowerCone,
        SecondOrderCone,
        ZeroCone,
    )
    from .linear import (
        CG,
        GMRES,
        LSMR,
        LU,
        MINRES,
        QR,
        BiCGSTAB,
        Cholesky,
        DirectSolver,
        IterativeLinearSolver,
        LinearOperator,
        LinearSolver,
        NeumannSeries,
    )
else:

    def __getattr__(name: str) -> Any:
        """What most layers do without is imported when it is used."""
        if not name.startswith("_"):
            if name == "projection":
                return import_module(".projection", __name__)
            for family in ("linear", "cone"):
                module = import_module(f".{family}", __name__)
                if name == family:
                    return module
                if name in module.__all__:
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Whatever there is, imported or not."""
        return sorted({*globals(), *__all__})


__all__ = [
    "BFGS",
    "CG",
    "GMRES",
    "LBFGS",
    "LBFGSB",
    "LSMR",
    "LU",
    "MINRES",
    "QR",
    "SCS",
    "SQP",
    "ActiveSet",
    "Anderson",
    "Automatic",
    "BiCGSTAB",
    "Bisection",
    "BlockCoordinateDescent",
    "BoxCone",
    "Broyden",
    "Cholesky",
    "Clarabel",
    "Cone",
    "ConeProduct",
    "ConeProgram",
    "ConeSolver",
    "DirectSolver",
    "Entropy",
    "Euclidean",
    "ExponentialCone",
    "FixedPointSolver",
    "FrankWolfe",
    "GaussNewton",
    "GeneralizedPowerCone",
    "GradientDescent",
    "InteriorPoint",
    "IterativeLinearSolver",
    "LeastSquaresSolver",
    "LevenbergMarquardt",
    "LinearOperator",
    "LinearSolver",
    "MinimizeSolver",
    "MirrorDescent",
    "NeumannSeries",
    "Newton",
    "NewtonCG",
    "NonlinearCG",
    "NonnegativeCone",
    "Picard",
    "PositiveSemidefiniteCone",
    "PowerCone",
    "ProjectedGradient",
    "ProximalGradient",
    "ProximalInteriorPoint",
    "QPSolver",
    "QuadraticProgram",
    "Residuals",
    "RootSolver",
    "ScipyLeastSquares",
    "ScipyMinimize",
    "ScipyRoot",
    "SecondOrderCone",
    "Solution",
    "SolverError",
    "Status",
    "TrustRegion",
    "ZeroCone",
    "projection",
]
