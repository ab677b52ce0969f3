"""Nonlinear conjugate gradients: three vectors of memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates
from .line_search import first_step, rounding_allowance, search, without_a_way
from .solver import MinimizeSolver

# Hager and Zhang's truncation: directions may not forget all of their past at once.
TRUNCATION = 0.01


@dataclass(frozen=True)
class NonlinearCG(MinimizeSolver):
    r"""Conjugate gradients in the form of Hager and Zhang.

    With :math:`y` the change of the gradient along the last direction :math:`d`,

    .. math::
        d_{k+1} = -g_{k+1} + \beta_k d_k, \qquad
        \beta_k = \Bigl(y - 2 d_k \frac{y^\top y}{d_k^\top y}\Bigr)^\top
        \frac{g_{k+1}}{d_k^\top y},

    truncated from below. Every direction goes downhill,
    :math:`g^\top d \le -\tfrac78 \|g\|^2`, however inexact the searches are. On a quadratic with
    exact searches it is the linear method: it ends within :math:`n` steps, with an error that
    falls by :math:`(\sqrt\kappa - 1)/(\sqrt\kappa + 1)` each at least. It needs the least memory of
    the fast methods; :class:`LBFGS` needs fewer evaluations.

    Attributes:
        curvature: Constant of the strong condition of Wolfe; a small one makes searches exact.

    References:
        Hager and Zhang, *A new conjugate gradient method with guaranteed descent and an efficient
        line search*, SIAM J. Optim. 16 (2005), equations 1.5 to 1.7.

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import NonlinearCG
        >>> target = torch.linspace(-1, 1, 4, dtype=torch.float64)
        >>> bowl = lambda x: torch.cosh(x - target).sum(-1)
        >>> NonlinearCG().solve(bowl, torch.zeros(2, 4, dtype=torch.float64)).x[0].round(decimals=6)
        tensor([-1.0000, -0.3333,  0.3333,  1.0000], dtype=torch.float64)
    """

    curvature: float = 0.01

    patience: ClassVar[int] = 50  # its steps do not shrink one by one

    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One or two gradients an iteration."""
        value, g = value_and_gradient(f, x)
        first = t = first_step(f, x, g)
        d, allowance = -g, rounding_allowance(value)
        steepest: Tensor | None = torch.ones_like(value, dtype=torch.bool)
        while True:
            running = (yield Iterate(x, t * vector_norm(d, dim=-1), value)).running
            point = search(
                f,
                (x, value, g),
                d,
                t,
                running,
                allowance,
                curvature=self.curvature,
                strong=True,
            )
            failed = point.failed
            y, before = point.gradient - g, vector_norm(g, dim=-1)
            x, value, g = point.x, point.value, point.gradient
            dy, dd = vecdot(d, y), vecdot(d, d)
            convex = dy > 0
            beta = (vecdot(y, g) - 2 * vecdot(y, y) / dy * vecdot(d, g)) / dy
            least = -1 / (dd.sqrt() * before.clamp(max=TRUNCATION))
            beta = torch.where(convex, torch.maximum(beta, least), 0.0)
            d = torch.addcmul(-g, beta[:, None], d)
            # To the minimum along the direction, if the curvature is that of the last one.
            flatness = point.t * dd / dy
            t = torch.where(convex, -flatness * vecdot(g, d) / vecdot(d, d), first)
            t = torch.where(t > 0, t, first)
            if failed is not None:
                hopeless = failed if steepest is None else failed & steepest
                d = torch.where(failed[:, None], -g, d)
                t = torch.where(failed, first, t)
                x, g = without_a_way(x, hopeless), without_a_way(g, hopeless)
                d = without_a_way(d, hopeless)
            steepest = failed
            allowance = rounding_allowance(value, allowance)
