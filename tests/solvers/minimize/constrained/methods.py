"""The methods as functions of f, proximal operator and start, one name each, for all tests."""

import torch

from solvers.minimize.block_coordinate_descent import BlockCoordinateDescent
from solvers.minimize.frank_wolfe import FrankWolfe
from solvers.minimize.gauss_newton import GaussNewton
from solvers.minimize.levenberg_marquardt import LevenbergMarquardt
from solvers.minimize.mirror_descent import Entropy, Euclidean, MirrorDescent
from solvers.minimize.projected_gradient import ProjectedGradient
from solvers.minimize.proximal_gradient import ProximalGradient
from solvers.minimize.scipy_least_squares import ScipyLeastSquares
from solvers.projection import project_nonnegative, project_simplex

EPS = {"eps_abs": 1e-13, "eps_rel": 1e-13}
LOOSE = {"eps_abs": 1e-2, "eps_rel": 1e-4}  # for gaps


def corner(g):
    """The vertex of the simplex for which <g, s> is least."""
    return torch.nn.functional.one_hot(g.argmin(-1), g.shape[-1]).to(g)


# Composite: solve(f, x0, proximal).
COMPOSITE = {
    "proximal": ProximalGradient,
    "proximal plain": lambda **s: ProximalGradient(acceleration=False, **s),
    "blocks": lambda **s: BlockCoordinateDescent(blocks=2, **s),
    "block each": lambda **s: BlockCoordinateDescent(blocks=((4, 0), (2,), (1, 3)), **s),
}

# Everything, on something it can do, as solve(f, x0).
ON_SETS = {
    "projected": lambda f, x, **s: ProjectedGradient(**s).solve(f, x, project_nonnegative),
    "projected plain": lambda f, x, **s: ProjectedGradient(acceleration=False, **s).solve(
        f, x, project_nonnegative
    ),
    "projected fixed": lambda f, x, **s: ProjectedGradient(step=0.1, **s).solve(
        f, x, project_nonnegative
    ),
    "projected simplex": lambda f, x, **s: ProjectedGradient(**s).solve(f, x, project_simplex),
    "proximal": lambda f, x, **s: ProximalGradient(**s).solve(
        f, x, lambda x, step: project_nonnegative(x - 0.1 * step)
    ),
    "entropy": lambda f, x, **s: MirrorDescent(**s).solve(f, x, Entropy()),
    "entropy fixed": lambda f, x, **s: MirrorDescent(step=0.8, **s).solve(f, x, Entropy()),
    "euclidean": lambda f, x, **s: MirrorDescent(**s).solve(f, x, Euclidean()),
    "frank wolfe": lambda f, x, **s: FrankWolfe(**(LOOSE | s)).solve(f, x, corner),
    "frank wolfe open loop": lambda f, x, **s: FrankWolfe(search=False, **(LOOSE | s)).solve(
        f, x, corner
    ),
    "blocks": lambda f, x, **s: BlockCoordinateDescent(**s).solve(
        f, x, lambda x, step: project_nonnegative(x)
    ),
}

LEAST_SQUARES = {
    "gauss newton": GaussNewton,
    "levenberg marquardt": LevenbergMarquardt,
}
SCIPY = {
    f"scipy {m}": (lambda m=m, **s: ScipyLeastSquares(m, **s)) for m in ("trf", "dogbox", "lm")
}
