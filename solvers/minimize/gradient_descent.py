"""Gradient descent, plain or accelerated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates
from .line_search import MAX_TRIALS, first_step, rounding_allowance, search, without_a_way
from .solver import MinimizeSolver

MEMORY = 0.85  # weight of the past in the average that values are compared with
GROW, SHRINK = 1.1, 0.6  # of accelerated steps


@dataclass(frozen=True)
class GradientDescent(MinimizeSolver):
    r"""Step against the gradient, :math:`x \leftarrow x - t \nabla f(x)`.

    On a function whose Hessian has its eigenvalues in :math:`[\mu, L]` a step :math:`t = 1/L`
    shortens the distance to the minimum by a factor of :math:`1 - \mu/L` at least. With
    ``acceleration`` the gradient is taken at a point beyond :math:`x`,

    .. math::
        x_{k+1} = y_k - t \nabla f(y_k), \qquad
        y_{k+1} = x_{k+1} + \frac{\theta_k - 1}{\theta_{k+1}} (x_{k+1} - x_k), \qquad
        \theta_{k+1} = \tfrac12 \bigl(1 + \sqrt{1 + 4 \theta_k^2}\bigr),

    and the momentum is dropped whenever it points uphill, :math:`\nabla f(y_k)^\top (x_{k+1} - x_k)
    > 0`. That needs no knowledge of :math:`\mu`, and the factor becomes
    :math:`1 - c \sqrt{\mu / L}`.

    Without a given step, plain descent begins each search at the step of Barzilai and Borwein,
    :math:`s^\top s / s^\top y` of the step before, and halves it until Armijo's condition holds
    relative to an average of the last values; this is often as fast as acceleration. Accelerated
    descent shortens its step wherever the parabola of curvature :math:`1/t` is not an upper bound,
    and lengthens it a little otherwise.

    Attributes:
        step: The step :math:`t`, the same for all samples; None to search for it.
        acceleration: Whether to use Nesterov's acceleration.

    References:
        Nesterov, *Lectures on convex optimization*, 2018, section 2.2; O'Donoghue and Candes,
        *Adaptive restart for accelerated gradient schemes*, Found. Comput. Math. 15 (2015), section
        3; Barzilai and Borwein, *Two-point step size gradient methods*, IMA J. Numer. Anal. 8
        (1988); Zhang and Hager, *A nonmonotone line search technique and its application to
        unconstrained optimization*, SIAM J. Optim. 14 (2004).

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import GradientDescent
        >>> target = torch.tensor([[0.25, 1.0], [2.0, -3.0]], dtype=torch.float64)
        >>> f = lambda x: ((x - target) ** 2).sum(-1) + x.sum(-1)
        >>> GradientDescent(step=0.3).solve(f, target).x.round(decimals=6)
        tensor([[-0.2500,  0.5000],
                [ 1.5000, -3.5000]], dtype=torch.float64)
    """

    step: float | None = None
    acceleration: bool = False

    patience: ClassVar[int] = 50  # its steps do not shrink one by one

    def __post_init__(self) -> None:
        """Check the step."""
        if self.step is not None and not self.step > 0:
            raise ValueError(
                f"GradientDescent: step must be positive; got {self.step}. "
                "Leave it out to have it searched for."
            )

    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One gradient an iteration, and a value if it has to find an accelerated step."""
        if self.acceleration:
            return self._accelerated(f, x)
        return self._searched(f, x) if self.step is None else _fixed(f, x, self.step)

    def _searched(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        value, g = value_and_gradient(f, x)
        t, allowance = first_step(f, x, g), rounding_allowance(value)
        ceiling, weight = value, 1.0
        while True:
            running = (yield Iterate(x, t * vector_norm(g, dim=-1), value)).running
            point = search(
                f, (x, value, g), -g, t, running, allowance, curvature=None, ceiling=ceiling
            )
            y = g - point.gradient
            # A step of -t g: the s's / s'y of Barzilai and Borwein needs no s.
            curvature = vecdot(g, y) / vecdot(g, g)
            t = torch.where(curvature > 0, point.t / curvature, 2 * point.t)
            x, value, g = point.x, point.value, point.gradient
            # An average of the values so far, on which the step may fall back now and then.
            weight = MEMORY * weight + 1
            ceiling = torch.maximum(value, ceiling + (value - ceiling) / weight)
            if point.failed is not None:
                x, g = without_a_way(x, point.failed), without_a_way(g, point.failed)
            allowance = rounding_allowance(value, allowance)

    def _accelerated(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        value, g = value_and_gradient(f, x)
        t = first_step(f, x, g) if self.step is None else torch.full_like(value, self.step)
        y, theta, allowance = x, torch.ones_like(value), rounding_allowance(value)
        while True:
            running = (yield Iterate(y, t * vector_norm(g, dim=-1), value)).running
            if self.step is None:
                t = _shortened(f, (y, value, g), GROW * t, running, allowance)
            ahead = torch.addcmul(y, t[:, None], g, value=-1)
            move = ahead - x
            theta = torch.where(vecdot(g, move) > 0, 1.0, theta)
            grown = (1 + (1 + 4 * theta * theta).sqrt()) / 2
            y = torch.addcmul(ahead, ((theta - 1) / grown)[:, None], move)
            x, theta = ahead, grown
            value, g = value_and_gradient(f, y)
            allowance = rounding_allowance(value, allowance)


def _fixed(f: Callable[[Tensor], Tensor], x: Tensor, step: float) -> Iterates:
    while True:
        value, g = value_and_gradient(f, x)
        yield Iterate(x, step * vector_norm(g, dim=-1), value)
        x = torch.add(x, g, alpha=-step)


def _shortened(
    f: Callable[[Tensor], Tensor],
    start: tuple[Tensor, Tensor, Tensor],
    t: Tensor,
    running: Tensor,
    allowance: Tensor,
) -> Tensor:
    """Steps whose parabola is above the function; NaN where there are none."""
    y, value, g = start
    half_square = vecdot(g, g) / 2
    pending = running
    for _ in range(2 * MAX_TRIALS):
        ahead = torch.addcmul(y, t[:, None], g, value=-1)
        pending = pending & ~(f(ahead) <= value - t * half_square)
        if not bool(pending.any()):
            return t
        # Where rounding hides the decrease: on a parabola it is the same that the slope keeps its
        # sign. A gradient more is paid only where the values refuse.
        value_t, gradient_t = value_and_gradient(f, ahead)
        pending = pending & ~((value_t <= value + allowance) & (vecdot(gradient_t, g) >= 0))
        if not bool(pending.any()):
            return t
        t = torch.where(pending, SHRINK * t, t)
    return torch.where(pending, torch.nan, t)
