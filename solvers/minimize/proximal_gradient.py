"""Proximal gradient steps, accelerated, and the search for step sizes of all methods on sets."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution

Objective = Callable[[Tensor], Tensor]
Proximal = Callable[[Tensor, Tensor], Tensor]

MAX_TRIALS = 30
SHORTEST, LONGEST = 0.1, 0.7  # by what a step that was too long is multiplied
# A step grows a little after a success, after many in a row faster and faster.
GROWTH, MAX_GROWTH = 1.02, 2.0
# Rounding in a difference of values, in units of eps times the size of what is added up in them.
ROUNDING = 8.0


@dataclass(frozen=True)
class ProximalGradient(IterativeSolver):
    r"""Minimise :math:`f + g`, where :math:`f` is smooth and :math:`g` has a proximal operator.

    .. math::
        x \leftarrow \operatorname{prox}_{s g}(y - s \nabla f(y)), \qquad
        \operatorname{prox}_{s g}(v) = \arg\min_u g(u) + \frac{1}{2 s} \|u - v\|_2^2 .

    With acceleration (FISTA) :math:`y` lies beyond the last two iterates on their line, without it
    is the last one. Momentum starts anew where it leads uphill, which makes the method linear on
    strongly convex problems without their constants. The step :math:`s` of a sample is the longest
    found for which :math:`f` lies below its quadratic model, and may grow again.

    For convex :math:`f` with Lipschitz constant :math:`L` of the gradient,
    :math:`F(x_k) - F^* \le 2 L \|x_0 - x^*\|^2 / (k+1)^2` with acceleration and
    :math:`L \|x_0 - x^*\|^2 / (2k)` without. Where :math:`f` is not convex, the method
    without acceleration still converges to points where it stays. A sample stops when its step
    :math:`\|x - y\|_2` is short, which is not less than the step it would take from :math:`x`.

    Attributes:
        acceleration: Whether to use momentum.
        step: A step size for all samples, at most :math:`1/L`; by default found by search.

    References:
        Beck and Teboulle, *A fast iterative shrinkage-thresholding algorithm for linear inverse
        problems*, SIAM J. Imaging Sciences 2 (2009), theorem 4.4. Scheinberg, Goldfarb and Bai,
        *Fast first-order methods for composite convex optimization with backtracking*, Foundations
        of Computational Mathematics 14 (2014), for steps that grow. O'Donoghue and Candès,
        *Adaptive restart for accelerated gradient schemes*, Foundations of Computational
        Mathematics 15 (2015), section 3.2.

    Example:
        >>> import torch
        >>> from optlayers.solvers.projection import prox_l1
        >>> b = torch.tensor([3.0, -0.5, -2.0])
        >>> half_square = lambda x: 0.5 * (x - b).square().sum(-1)
        >>> soft_threshold = lambda x, step: prox_l1(x, 1.0 * step)
        >>> ProximalGradient().solve(half_square, torch.zeros(3), soft_threshold).x
        tensor([ 2.0000,  0.0000, -1.0000])
    """

    acceleration: bool = True
    step: float | None = None
    keeps_last: ClassVar[bool] = True
    patience: ClassVar[int] = 100  # slow is not stuck

    def solve(self, f: Objective, x0: Tensor, proximal: Proximal) -> Solution:
        r"""Minimise :math:`f + g` for every sample of a batch.

        Args:
            f: The smooth part, maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``.
            proximal: Maps ``x`` ``(*batch, n)`` and steps ``(*batch, 1)`` to the minimiser of
                :math:`g(u) + \|u - x\|_2^2 / (2 s)`, ``(*batch, n)``.

        Returns:
            A solution whose ``x`` is a value of ``proximal``, so that zeros survive; its
            ``objective`` is that of :math:`f` alone, its ``dual_residual`` the length of the last
            step.
        """
        name, shape = f"{type(self).__name__}.solve", x0.shape
        flat = x0.reshape(-1, shape[-1])
        run = self.find(
            on_flat(f, shape, shape[:-1], f"{name}: f"),
            flat,
            proximal_on_flat(proximal, shape, f"{name}: proximal"),
        )
        return solution_of(run, shape)

    def find(self, f: Objective, x0: Tensor, proximal: Proximal) -> Run:
        """The same on a flat batch ``(B, n)``, with steps ``(B, 1)``."""
        check_step(self.step)
        run = self.run(proximal_steps(f, x0, proximal, self.acceleration, self.step))
        return with_value(run, f)


def proximal_steps(
    f: Objective, x: Tensor, proximal: Proximal, acceleration: bool, fixed: float | None
) -> Iterates:
    """The iterates of proximal gradient methods; what is kept are the steps ``(B)``."""
    y = x
    value, gradient = value_and_gradient(f, y)

    def trial(step: Tensor) -> Trial:
        column = step[:, None]
        u = proximal(y - column * gradient, column)
        move = u - y
        return Trial(u, (gradient * move).sum(-1), 0.5 * (move * move).sum(-1))

    if fixed is None:
        steps = StepSizes.probe(f, trial, value, gradient, x)
    else:
        steps = StepSizes(torch.full_like(value, fixed))
    running, momentum = torch.ones_like(value, dtype=torch.bool), torch.ones_like(value)
    while True:
        reached: Tensor | None
        if fixed is None:
            found, reached, error = steps.search(f, trial, value, y, running)
        else:
            found, reached = trial(steps.step), None
            error = (2.0 * found.distance).sqrt()
            # Infinity is no way on, and must not be compared to an infinite tolerance.
            error = torch.where(error.isfinite(), error, torch.nan)
            found = found._replace(x=torch.where(error.isnan()[:, None], torch.nan, found.x))
        u, y_before, gradient_before = found.x, y, gradient
        running = (yield Iterate(u, error, reached, (steps.step,))).running
        used = steps.step
        if fixed is None:
            steps.grow(running)
        if acceleration:
            along = u - x
            momentum = torch.where(((u - y) * along).sum(-1) < 0.0, 1.0, momentum)
            # The proof of the rate asks for s t (t - 1) = s_before t_before^2 when steps grow.
            ahead = 0.5 + (0.25 + used / steps.step * momentum * momentum).sqrt()
            y = u + ((momentum - 1.0) / ahead)[:, None] * along
            momentum = ahead
        else:
            y = u
        x = u
        value, gradient = value_and_gradient(f, y)
        if acceleration:
            # Extrapolation may leave the domain of f.
            outside = running & ~value.isfinite()
            if bool(outside.any()):
                y = torch.where(outside[:, None], u, y)
                momentum = torch.where(outside, 1.0, momentum)
                value, gradient = value_and_gradient(f, y)
        if fixed is None and bool((blind := running & steps.blind).any()):
            steps.fit_gradients(y - y_before, gradient - gradient_before, blind)


class Trial(NamedTuple):
    """A point tried: itself, the linear change of ``f``, the distance (half the square, say)."""

    x: Tensor
    linear: Tensor
    distance: Tensor


class StepSizes:
    r"""Steps :math:`s` ``(B)`` for which :math:`f` lies below an upper model at the trial point.

    .. math:: f(u) \le f(y) + \langle \nabla f(y), u - y\rangle + D(u, y)/s

    Where the distance is so short that values of :math:`f` are only rounding apart, the search is
    blind: no step is refused and none grows, but gradients, which can still tell, may shorten them.
    """

    def __init__(self, step: Tensor) -> None:
        """Start from these steps."""
        self.step = step
        self.growth = torch.full_like(step, GROWTH)
        self.clean = self.blind = torch.zeros_like(step, dtype=torch.bool)

    @classmethod
    def probe(
        cls,
        f: Objective,
        trial: Callable[[Tensor], Trial],
        value: Tensor,
        gradient: Tensor,
        x: Tensor,
    ) -> "StepSizes":
        """First steps, from the curvature that a tiny step meets; one gradient.

        Values would not do: from a start near the solution they differ by rounding alone, and steps
        that came out far too short would look like having arrived.
        """
        slope = torch.linalg.vector_norm(gradient, dim=-1)
        size = 1.0 + torch.linalg.vector_norm(x, dim=-1)
        reach = torch.where(slope > 0.0, size / slope, 1.0)
        tiny = torch.finfo(x.dtype).eps ** 0.25 * reach
        move = trial(tiny).x - x
        straight = -tiny[:, None] * gradient
        # At a vertex nothing moves: then straight on, if not far.
        held = (move * move).sum(-1) < 1e-2 * (straight * straight).sum(-1)
        move = torch.where(held[:, None], straight, move)
        _, beyond = value_and_gradient(f, x + move)
        curvature = ((beyond - gradient) * move).sum(-1) / (move * move).sum(-1)
        longest = 10.0 * reach
        found = curvature.isfinite() & (curvature > 0.0)
        return cls(torch.where(found, torch.minimum(1.0 / curvature, longest), longest))

    def search(
        self,
        f: Objective,
        trial: Callable[[Tensor], Trial],
        value: Tensor,
        y: Tensor,
        running: Tensor,
    ) -> tuple[Trial, Tensor, Tensor]:
        """Shorten the steps of running samples until ``f`` lies below its model.

        Returns:
            The points reached, the values there, and the lengths of the steps, NaN for samples
            that found no step.
        """
        eps = ROUNDING * torch.finfo(y.dtype).eps
        absolute, relative = eps * value.abs(), eps * (y * y).sum(-1)
        first = True
        for _ in range(MAX_TRIALS):
            tried = trial(self.step)
            reached = f(tried.x)
            bend = reached - value - tried.linear
            rounding = absolute * self.step + relative
            below = bend * self.step <= tried.distance + rounding
            if first:
                self.blind = tried.distance <= 4.0 * rounding
                # A step that grew where values hardly tell would stay too long where they do not.
                self.clean = below & (tried.distance > 100.0 * rounding)
                first = False
            failed = running & ~below
            if not bool(failed.any()):
                break
            fitting = (0.9 * tried.distance / bend).nan_to_num(0.0, 0.0, 0.0)
            shorter = fitting.clamp(SHORTEST * self.step, LONGEST * self.step)
            self.step = torch.where(failed, shorter, self.step)
        length = torch.linalg.vector_norm(tried.x - y, dim=-1)
        return tried, reached, torch.where(failed, torch.nan, length)

    def grow(self, running: Tensor) -> None:
        """Try longer steps where the last was right at once."""
        clean = running & self.clean
        self.growth = torch.where(clean, (GROWTH * self.growth).clamp(max=MAX_GROWTH), GROWTH)
        self.step = torch.where(clean, self.step * self.growth, self.step)

    def fit_gradients(self, move: Tensor, change: Tensor, blind: Tensor) -> None:
        """Shorten blind steps that are longer than the curvature between two gradients allows."""
        fitting = 0.9 * (move * move).sum(-1) / (move * change).sum(-1)
        shorten = blind & (fitting > 0.0) & (fitting < self.step)
        shorter = torch.maximum(fitting, LONGEST * self.step)
        self.step = torch.where(shorten, shorter, self.step)


def on_flat(function: Objective, shape: torch.Size, result: torch.Size, what: str) -> Objective:
    """A function of ``(*batch, n)`` as one of ``(B, n)``, whose result is looked at."""

    def flattened(x: Tensor) -> Tensor:
        value = function(x.reshape(shape))
        check_shape(value, result, what)
        return value.reshape(x.shape[: 1 + len(result) - len(shape[:-1])])

    return flattened


def proximal_on_flat(proximal: Proximal, shape: torch.Size, what: str) -> Proximal:
    """The same for a proximal operator."""

    def flattened(x: Tensor, step: Tensor) -> Tensor:
        value = proximal(x.reshape(shape), step.reshape(*shape[:-1], 1))
        check_shape(value, shape, what)
        return value.reshape(x.shape)

    return flattened


def check_shape(value: Tensor, shape: torch.Size, what: str) -> None:
    """Refuse what a user's function returned."""
    if value.shape != shape:
        raise ValueError(
            f"{what} must return shape {tuple(shape)}; got {tuple(value.shape)}. "
            "Samples are the leading dimensions, entries of x the last: reduce with .sum(-1)."
        )


def check_step(step: float | None) -> None:
    """Refuse a step that goes nowhere or uphill."""
    if step is not None and not step > 0.0:
        raise ValueError(f"step must be positive; got {step}. None searches for one.")


def with_value(run: Run, f: Objective) -> Run:
    """Add the objective where the method did not need it."""
    with torch.no_grad():
        return run if run.value is not None else run._replace(value=f(run.x))
