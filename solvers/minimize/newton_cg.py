"""Truncated Newton: Newton's method for many variables, by products with the Hessian."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import gradient, transposed_product, value_and_gradient
from ..iteration import Iterate, Iterates
from .line_search import first_step, rounding_allowance, search, without_a_way
from .solver import MinimizeSolver


@dataclass(frozen=True)
class NewtonCG(MinimizeSolver):
    r"""Newton's method whose systems are solved by conjugate gradients, as well as is worth while.

    The inner iteration on :math:`\nabla^2 f(x)\, p = -g` ends at a residual of
    :math:`\min(\tfrac12, \sqrt{\|g\| / \|g_0\|})\, \|g\|`, which makes the convergence superlinear
    (of order 3/2), or where it meets a direction of negative curvature, which is a way down too. A
    line search follows. One product with the Hessian costs about as much as two gradients.

    For many variables and Hessians of moderate condition. Unlike :class:`TrustRegion` it may stop
    at a saddle point if it hits one exactly.

    Attributes:
        max_cg_iter: Products with the Hessian in an iteration; by default twice the number of
            variables, and 200 at most.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, algorithm 7.1; Dembo,
        Eisenstat and Steihaug, *Inexact Newton methods*, SIAM J. Numer. Anal. 19 (1982).

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import NewtonCG
        >>> target = torch.linspace(-1, 1, 4, dtype=torch.float64)
        >>> bowl = lambda x: torch.cosh(x - target).sum(-1)
        >>> NewtonCG().solve(bowl, torch.zeros(2, 4, dtype=torch.float64)).x[0].round(decimals=6)
        tensor([-1.0000, -0.3333,  0.3333,  1.0000], dtype=torch.float64)
    """

    max_cg_iter: int | None = None

    def __post_init__(self) -> None:
        """Check the number of products."""
        if self.max_cg_iter is not None and self.max_cg_iter < 1:
            raise ValueError(
                f"NewtonCG: max_cg_iter must be at least 1; got {self.max_cg_iter}. "
                "Leave it out for twice the number of variables."
            )

    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """Some products with the Hessian an iteration, and mostly one gradient."""
        value, g = value_and_gradient(f, x)
        scale, largest = first_step(f, x, g), vector_norm(g, dim=-1)
        one, allowance = torch.ones_like(value), rounding_allowance(value)
        limit = min(2 * x.shape[-1], 200) if self.max_cg_iter is None else self.max_cg_iter
        running = torch.ones_like(value, dtype=torch.bool)
        while True:
            length = vector_norm(g, dim=-1)
            largest = torch.maximum(largest, length)
            tolerance = length * (length / largest).sqrt().clamp(max=0.5)
            product = transposed_product(lambda x: gradient(f, x), x)  # the Hessian is symmetric
            d = truncated_cg(product, g, tolerance, scale, running, limit)
            running = (yield Iterate(x, vector_norm(d, dim=-1), value)).running
            point = search(f, (x, value, g), d, one, running, allowance)
            x, value, g = point.x, point.value, point.gradient
            if point.failed is not None:
                x, g = without_a_way(x, point.failed), without_a_way(g, point.failed)
            allowance = rounding_allowance(value, allowance)


def truncated_cg(
    product: Callable[[Tensor], Tensor],
    g: Tensor,
    tolerance: Tensor,
    scale: Tensor,
    running: Tensor,
    limit: int,
) -> Tensor:
    """Directions of descent, from conjugate gradients on every sample's Hessian.

    Args:
        product: Maps ``(B, n)`` to the products of the Hessians with it.
        g: Gradients ``(B, n)``.
        tolerance: Norms of the residual at which to stop ``(B)``.
        scale: Lengths of a step along ``-g`` if there is no curvature at all ``(B)``.
        running: Samples to look at ``(B)``.
        limit: Products allowed.
    """
    d, residual = torch.zeros_like(g), g
    p, square = -g, vecdot(g, g)
    eps = torch.finfo(g.dtype).eps
    for k in range(limit):
        Hp = product(p)
        curvature = vecdot(p, Hp)
        convex = curvature > eps * vecdot(p, p) / scale
        if k == 0:
            # Against negative curvature one goes down as far as that curvature reaches.
            other = square / curvature.abs()
            other = torch.where(other < 10 * scale, other, 10 * scale)
            d = torch.where(convex | (square == 0), 0.0, other)[:, None] * p
        running = running & convex
        a = torch.where(running, square / curvature, 0.0)[:, None]
        d = torch.addcmul(d, a, p)
        residual = torch.addcmul(residual, a, Hp)
        before, square = square, vecdot(residual, residual)
        running = running & (square > tolerance * tolerance)
        if not bool(running.any()):
            break
        p = torch.addcmul(-residual, torch.where(running, square / before, 0.0)[:, None], p)
    return d
