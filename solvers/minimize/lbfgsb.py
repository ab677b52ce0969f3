"""BFGS with limited memory between bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import gradient, value_and_gradient
from ..iteration import Iterate, Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution
from .lbfgs import Memory, check_memory
from .line_search import MAX_TRIALS, first_step, rounding_allowance, without_a_way

Function = Callable[[Tensor], Tensor]
State = tuple[Tensor, Tensor, Tensor]

DECREASE = 1e-4


@dataclass(frozen=True)
class LBFGSB(IterativeSolver):
    r"""Minimise :math:`f(x)` subject to :math:`l \le x \le u`.

    In each iteration the coordinates that are at a bound, or within a step of it, and that the
    gradient pushes against it, count as active: they take a gradient step, which the projection
    ends at the bound exactly. The others, the free ones, take the step of :class:`LBFGS` with
    pairs restricted to them. The search is along the projected path
    :math:`x(t) = \min(\max(x + t d, l), u)`.

    With strict complementarity the active bounds are found after finitely many iterations, and from
    then on it is :class:`LBFGS` on the free coordinates. The step that was left to take is
    :math:`x(1) - x`; it is zero exactly where the conditions of optimality hold.

    Attributes:
        memory: Pairs to remember, 3 to 30.

    References:
        Bertsekas, *Projected Newton methods for optimization problems with simple constraints*,
        SIAM J. Control Optim. 20 (1982), section 2; Kim, Sra and Dhillon, *Tackling box-constrained
        optimization via a new projected quasi-Newton approach*, SIAM J. Sci. Comput. 32 (2010).

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import LBFGSB
        >>> target = torch.tensor([[0.5, 2.0, -3.0]], dtype=torch.float64)
        >>> f = lambda x: ((x - target) ** 2).sum(-1)
        >>> lower, upper = torch.zeros(3), torch.ones(3)
        >>> solution = LBFGSB().solve(f, torch.zeros_like(target), lower, upper)
        >>> solution.x, solution.z_box
        (tensor([[0.5000, 1.0000, 0.0000]], dtype=torch.float64),
         tensor([[ 0.,  2., -6.]], dtype=torch.float64))
    """

    memory: int = 10
    keeps_last: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the memory."""
        check_memory(self)

    def solve(
        self,
        f: Function,
        x0: Tensor,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> Solution:
        r"""Find a local minimum of :math:`f` between bounds for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``; the nearest point between the bounds is taken.
            lower: Lower bounds, of a shape that broadcasts to that of ``x0``; ``-inf`` or None
                where there are none.
            upper: Upper bounds, likewise.

        Returns:
            A solution with the ``objective`` and the multipliers ``z_box`` of the bounds, negative
            at ``lower`` and positive at ``upper``.

        Raises:
            ValueError: If a bound does not broadcast, or a lower one is above the upper one.
        """
        shape = x0.shape
        flat = x0.reshape(-1, shape[-1])
        low, high = flat_bounds(lower, upper, x0)
        if low is not None and high is not None and bool((low > high).any()):
            raise ValueError(
                "LBFGSB.solve: lower must not be above upper; it is in "
                f"{int((low > high).sum())} of {low.numel()} places. Did you swap the two?"
            )

        def on_flat(x: Tensor) -> Tensor:
            return f(x.reshape(shape)).reshape(-1)

        run = self.find(on_flat, flat, low, high)
        solution = solution_of(run, shape)
        with torch.no_grad():
            low, high = _or_infinite(flat, low, high)
            pull = -gradient(on_flat, run.x)
            pushed = ((run.x <= low) & (pull < 0)) | ((run.x >= high) & (pull > 0))
            z_box = torch.where(pushed, pull, 0.0)
        solution.z_box = z_box.reshape(shape)
        return solution

    def find(
        self, f: Function, x0: Tensor, lower: Tensor | None = None, upper: Tensor | None = None
    ) -> Run:
        """The same on a flat batch ``(B, n)``."""
        return self.run(self.iterates(f, x0, *_or_infinite(x0, lower, upper)))

    def iterates(self, f: Function, x: Tensor, lower: Tensor, upper: Tensor) -> Iterates:
        """Yield where the method is; mostly one gradient an iteration."""
        x = torch.clamp(x, lower, upper)
        value, g = value_and_gradient(f, x)
        memory = Memory(x, self.memory, first_step(f, x, g))
        allowance = rounding_allowance(value)
        while True:
            step = memory.scale[:, None] * g
            # Within such a step of its bound, but never more than the whole projected step.
            reach = vector_norm(torch.clamp(x - step, lower, upper) - x, dim=-1, keepdim=True)
            at_low, at_high = x - lower <= reach, upper - x <= reach
            free = ~((at_low & (g > 0)) | (at_high & (g < 0)))
            d = -torch.where(free, memory.apply(g, free), step)
            error = vector_norm(torch.clamp(x + d, lower, upper) - x, dim=-1)
            running = (yield Iterate(x, error, value)).running
            state, failed = _search((f, lower, upper), (x, value, g), d, running, allowance)
            if failed is not None:
                hopeless = failed & memory.empty()
                memory.forget(failed)
                state = (without_a_way(state[0], hopeless), state[1], state[2])
            memory.add(state[0] - x, state[2] - g)
            x, value, g = state
            allowance = rounding_allowance(value, allowance)


def _search(
    problem: tuple[Function, Tensor, Tensor],
    start: State,
    d: Tensor,
    running: Tensor,
    allowance: Tensor,
) -> tuple[State, Tensor | None]:
    """Shorten the projected step until the function falls; and who found none."""
    f, lower, upper = problem
    x, value, g = start
    t = torch.ones_like(value)
    pending = running
    for trial in range(MAX_TRIALS):
        x_t = torch.clamp(torch.addcmul(x, t[:, None], d), lower, upper)
        value_t, g_t = value_and_gradient(f, x_t)
        move = x_t - x
        slope, slope_t = vecdot(g, move), vecdot(g_t, move)
        fallen = value_t <= value + DECREASE * slope
        flat = (value_t <= value + allowance) & (slope_t <= (2 * DECREASE - 1) * slope)
        accepted = (slope < 0) & (fallen | flat) & torch.isfinite(value_t)
        if trial == 0:
            found = x_t, value_t, g_t
        else:
            mask = pending[:, None]
            found = (
                torch.where(mask, x_t, found[0]),
                torch.where(pending, value_t, found[1]),
                torch.where(mask, g_t, found[2]),
            )
        pending = pending & ~accepted
        if not bool(pending.any()):
            return found, None
        # The minimum of the parabola through both slopes, as if the path were straight.
        part = torch.where(slope_t > 0, slope / (slope - slope_t), 0.5).clamp(0.1, 0.5)
        t = torch.where(pending, t * torch.where(torch.isfinite(value_t), part, 0.1), t)
    mask = pending[:, None]
    found = (
        torch.where(mask, x, found[0]),
        torch.where(pending, value, found[1]),
        torch.where(mask, g, found[2]),
    )
    return found, pending


def flat_bounds(
    lower: Tensor | None, upper: Tensor | None, x0: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Both bounds, where they are given, for the flat batch ``(B, n)`` of ``x0`` ``(*batch, n)``.

    Raises:
        ValueError: If one does not broadcast to the shape of ``x0``.
    """
    shape = x0.shape[:-1].numel(), x0.shape[-1]
    low = None if lower is None else _broadcast("lower", lower, x0).reshape(shape)
    high = None if upper is None else _broadcast("upper", upper, x0).reshape(shape)
    return low, high


def _broadcast(name: str, bound: Tensor, x0: Tensor) -> Tensor:
    try:
        return bound.detach().to(x0).expand(x0.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the shape of x0, {tuple(x0.shape)}; got "
            f"{tuple(bound.shape)}. One bound per variable has the shape ({x0.shape[-1]},)."
        ) from None


def _or_infinite(x: Tensor, lower: Tensor | None, upper: Tensor | None) -> tuple[Tensor, Tensor]:
    return (
        torch.full_like(x, -torch.inf) if lower is None else lower,
        torch.full_like(x, torch.inf) if upper is None else upper,
    )
