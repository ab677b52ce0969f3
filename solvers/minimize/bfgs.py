"""BFGS with dense inverse Hessians: the method for few variables and gradients only."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates
from .line_search import first_step, rounding_allowance, search, without_a_way
from .solver import MinimizeSolver


@dataclass(frozen=True)
class BFGS(MinimizeSolver):
    r"""Step :math:`-H \nabla f(x)` with an estimate :math:`H` of the inverse Hessian.

    After a step :math:`s` that changed the gradient by :math:`y`, :math:`H` becomes the closest
    matrix, in a norm that makes scales irrelevant, with the secant property :math:`H y = s`:

    .. math::
        H \leftarrow \Bigl(I - \frac{s y^\top}{s^\top y}\Bigr) H
        \Bigl(I - \frac{y s^\top}{s^\top y}\Bigr) + \frac{s s^\top}{s^\top y}.

    The line search (strong conditions of Wolfe) makes :math:`s^\top y > 0`, so :math:`H` stays
    positive definite. Converges superlinearly to a minimum with positive definite Hessian; with
    exact searches it ends on a quadratic within :math:`n` steps. Memory and arithmetic grow with
    :math:`n^2` per sample: for a few hundred variables; beyond that take :class:`LBFGS`.

    Attributes:
        curvature: Constant of the second condition of Wolfe; a small one makes searches exact.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, equations 6.17 and 6.20.

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import BFGS
        >>> x0 = torch.tensor([[-1.2, 1.0], [2.0, 2.0]], dtype=torch.float64)
        >>> valley = lambda x: (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
        >>> BFGS().solve(valley, x0).x.round(decimals=6)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """

    curvature: float = 0.9

    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """Mostly one gradient an iteration."""
        value, g = value_and_gradient(f, x)
        scale = first_step(f, x, g)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        H = scale[:, None, None] * eye
        # Samples whose H is a multiple of the identity: none after a while.
        fresh: Tensor | None = torch.ones_like(value, dtype=torch.bool)
        one, allowance = torch.ones_like(value), rounding_allowance(value)
        while True:
            d = -times(H, g)
            running = (yield Iterate(x, vector_norm(d, dim=-1), value)).running
            point = search(
                f,
                (x, value, g),
                d,
                one,
                running,
                allowance,
                curvature=self.curvature,
                strong=True,
            )
            s, y = point.x - x, point.gradient - g
            if fresh is not None:
                # The first pair knows the scale of the Hessian better than the start did.
                ratio = vecdot(s, y) / vecdot(y, y)
                better = fresh & (ratio > 0)
                H = torch.where(better[:, None, None], ratio[:, None, None] * eye, H)
            hopeless = None
            if point.failed is not None:
                hopeless = point.failed if fresh is None else point.failed & fresh
                H = torch.where(point.failed[:, None, None], scale[:, None, None] * eye, H)
            fresh = point.failed
            H = updated(H, s, y)
            x, value, g = point.x, point.value, point.gradient
            if hopeless is not None:
                x = without_a_way(x, hopeless)
                g = without_a_way(g, hopeless)
            allowance = rounding_allowance(value, allowance)


def times(H: Tensor, v: Tensor) -> Tensor:
    """Product of every matrix with its vector."""
    return (H @ v[..., None])[..., 0]


def updated(H: Tensor, s: Tensor, y: Tensor) -> Tensor:
    r"""The update of BFGS; samples whose :math:`s^\top y` is not positive keep their matrix.

    Args:
        H: Inverse Hessians ``(B, n, n)``.
        s: Steps ``(B, n)``.
        y: Changes of the gradient ``(B, n)``.
    """
    sy, Hy = vecdot(s, y), times(H, y)
    w = ((1 + vecdot(y, Hy) / sy) / 2)[:, None] * s - Hy
    enough = sy > torch.finfo(s.dtype).eps * vecdot(y, y).sqrt() * vecdot(s, s).sqrt()
    w = torch.where(enough[:, None], w / sy[:, None], 0.0)
    half = w[:, :, None] * s[:, None, :]
    return H + half + half.mT
