"""Problems on sets and with regularisers whose solutions are known, for every method that fits.

Data are drawn anew by each call, from a seed, so that no test can spoil them for another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import lsq_linear, nnls
from torch import Tensor

from solvers.projection import (
    project_box,
    project_l1_ball,
    project_nonnegative,
    project_simplex,
    prox_l1,
)
from solvers.qp import InteriorPoint, QuadraticProgram

B, M, N = 6, 12, 5
LASSO_WEIGHT = 2.0


@dataclass(frozen=True)
class Known:
    """A smooth function, what is added to it, where to start, and the solution.

    Attributes:
        separable: Whether ``proximal`` treats every entry on its own.
        simplex: Whether the set is the simplex.
    """

    f: Callable[[Tensor], Tensor]
    proximal: Callable[[Tensor, Tensor], Tensor]
    x0: Tensor
    x: Tensor
    separable: bool = True
    simplex: bool = False


def data(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Well-conditioned matrices ``(B, M, N)`` and right-hand sides ``(B, M)``."""
    rng = np.random.default_rng(seed)
    A = np.linalg.qr(rng.standard_normal((B, M, N)))[0] * rng.uniform(1, 3, (B, 1, N))
    return torch.tensor(A, dtype=dtype), torch.tensor(rng.standard_normal((B, M)), dtype=dtype)


def half_square(A: Tensor, b: Tensor) -> Callable[[Tensor], Tensor]:
    """Half the squared residuals of ``A x = b``."""
    return lambda x: 0.5 * ((A @ x[..., None])[..., 0] - b).square().sum(-1)


def zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape[0], N, dtype=like.dtype)


def each(solve: Callable[..., np.ndarray], A: Tensor, b: Tensor) -> Tensor:
    return torch.stack(
        [torch.tensor(solve(a.numpy(), c.numpy())) for a, c in zip(A, b, strict=True)]
    )


def nonnegative() -> Known:
    A, b = data(1)
    return Known(
        half_square(A, b),
        lambda x, step: project_nonnegative(x),
        zeros(b),
        each(lambda a, c: nnls(a, c)[0], A, b),
    )


def box() -> Known:
    A, b = data(2)
    exact = {"method": "bvls", "tol": 1e-15}
    return Known(
        half_square(A, b),
        lambda x, step: project_box(x, -0.1, 0.2),
        zeros(b),
        each(lambda a, c: lsq_linear(a, c, (-0.1, 0.2), **exact).x, A, b),
    )


def simplex() -> Known:
    A, b = data(3)
    program = QuadraticProgram(
        A.mT @ A,
        -(A.mT @ b[..., None])[..., 0],
        A=torch.ones(1, N, dtype=b.dtype),
        b=torch.ones(1, dtype=b.dtype),
        lb=torch.zeros(N, dtype=b.dtype),
    )
    x = InteriorPoint(eps_abs=1e-12, eps_rel=1e-12).solve(program).x
    return Known(
        half_square(A, b),
        lambda x, step: project_simplex(x),
        zeros(b) + 1 / N,
        x,
        separable=False,
        simplex=True,
    )


def l1_ball() -> Known:
    # With orthonormal columns the answer is the projection of A^T b.
    A, b = data(4)
    A = A / torch.linalg.vector_norm(A, dim=1, keepdim=True)
    return Known(
        half_square(A, b),
        lambda x, step: project_l1_ball(x, 0.7),
        zeros(b),
        project_l1_ball((A.mT @ b[..., None])[..., 0], 0.7),
        separable=False,
    )


def lasso() -> Known:
    """Orthogonal columns of different lengths: every entry is a soft threshold of its own."""
    A, b = data(5)
    b = 4 * b
    curvature = A.square().sum(1)
    x = prox_l1((A.mT @ b[..., None])[..., 0], LASSO_WEIGHT) / curvature
    return Known(half_square(A, b), lambda x, step: prox_l1(x, LASSO_WEIGHT * step), zeros(b), x)


def curved() -> Known:
    """Not quadratic: f = sum of exp(x_i) - b_i x_i over x >= 0, so x = max(log b, 0)."""
    b = torch.tensor([[0.5, 1.5, 2.0, 4.0, 0.1]] * B, dtype=torch.float64)
    b = b * torch.linspace(0.8, 1.2, B, dtype=b.dtype)[:, None]
    return Known(
        lambda x: (x.exp() - b * x).sum(-1),
        lambda x, step: project_nonnegative(x),
        zeros(b) + 2.0,
        b.log().clamp(min=0.0),
    )


PROBLEMS = {p.__name__: p for p in (nonnegative, box, simplex, l1_ball, lasso, curved)}
