"""Bracketing: roots of functions of one variable that change their sign, without derivatives."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..iteration import Iterate, Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution

# How far inwards from the secant's root to look, for a bracket as long as the first one, relative
# to it.
TRUNCATION = 0.2


@dataclass(frozen=True)
class Bisection(IterativeSolver):
    r"""Halve brackets :math:`[l, u]` at whose ends :math:`F` has different signs, or do better.

    Each element is a sample of its own. A step goes to the root of the secant, and from there a
    little inwards so that the other end follows; where a step did not halve the bracket, the next
    one does. So :math:`2k` steps shorten it by :math:`2^{-k}` at least, whatever :math:`F` is like,
    and near a simple root of a smooth function convergence is superlinear: about 20 steps in all.
    Needs no derivative and no guess, only a sign change; :math:`F` may rise or fall, and may jump.

    Attributes:
        eps_abs: Half the length at which a bracket is short enough; rounding of 1 by default.
        eps_rel: The same relative to ``x``; two roundings of 1 by default.

    References:
        The step inwards is the truncation of Oliveira and Takahashi, *An enhancement of the
        bisection method average performance preserving minmax optimality*, ACM Transactions on
        Mathematical Software 47 (2020), section 2.

    Example:
        >>> import torch
        >>> from optlayers.solvers.root import Bisection
        >>> squares = torch.tensor([4.0, 9.0, -1.0], dtype=torch.float64)
        >>> lower, upper = torch.zeros_like(squares), torch.full_like(squares, 10.0)
        >>> Bisection().solve(lambda x: x**2 - squares, lower, upper).x
        tensor([2., 3., nan], dtype=torch.float64)
    """

    def solve(self, F: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Solution:
        r"""Find :math:`F(x) = 0` between two ends, elementwise.

        Args:
            F: Maps tensors of the shape of the ends to the same shape, each element on its own.
            lower: Left ends, of any shape that broadcasts with ``upper``.
            upper: Right ends, not below ``lower``.

        Returns:
            A solution whose ``x`` has the shape of the ends; ``dual_residual`` is half the length
            of the bracket. Where :math:`F` has the same sign at both ends ``x`` is NaN and the
            status NUMERICAL_ERROR.

        Raises:
            ValueError: If the shapes do not fit or a left end lies above the right one.
        """
        try:
            lower, upper = torch.broadcast_tensors(lower, upper)
        except RuntimeError as error:
            raise ValueError(
                "Bisection.solve: lower and upper must broadcast; got shapes "
                f"{tuple(lower.shape)} and {tuple(upper.shape)}."
            ) from error
        shape = lower.shape

        def on_flat(x: Tensor) -> Tensor:
            return F(x.reshape(shape)).reshape(-1, 1)

        run = self.find(on_flat, lower.reshape(-1, 1), upper.reshape(-1, 1))
        solution = solution_of(run, torch.Size([*shape, 1]))
        return replace(solution, x=solution.x[..., 0])

    def find(self, F: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Run:
        """The same on a flat batch: ``F`` maps ``(B, 1)`` to ``(B, 1)``."""
        wrong = int((lower > upper).sum())
        if wrong:
            raise ValueError(
                "Bisection: every bracket must have lower <= upper; "
                f"{wrong} of {lower.numel()} do not. Did you swap the two?"
            )
        rounding = torch.finfo(lower.dtype).eps
        to_rounding = replace(
            self,
            eps_abs=rounding if self.eps_abs is None else self.eps_abs,
            eps_rel=2 * rounding if self.eps_rel is None else self.eps_rel,
        )
        return to_rounding.run(self.iterates(F, lower, upper))

    def iterates(self, F: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Iterates:
        """One evaluation an iteration, and two before."""
        left, right = lower, upper
        at_left, at_right = F(left), F(right)
        # From here on F rises.
        falls = at_left > at_right
        at_left = torch.where(falls, -at_left, at_left)
        at_right = torch.where(falls, -at_right, at_right)
        left = torch.where(at_right == 0, right, left)
        right = torch.where(at_left == 0, lower, right)
        no_root = ~((at_left <= 0) & (at_right >= 0))
        left = left.masked_fill(no_root, torch.nan)
        inwards = TRUNCATION / (right - left)
        rounding = 2 * torch.finfo(lower.dtype).eps
        before = torch.full_like(left, torch.inf)
        while True:
            half = (right - left) / 2
            middle = left + half
            yield Iterate(middle, half[:, 0])
            # The secant's root, as a distance to the middle.
            away = half * (at_left + at_right) / (at_right - at_left)
            # Inwards by a rounding at least: where the secant is right the root is passed, and the
            # next bracket is that short.
            truncation = torch.maximum(inwards * (2 * half) ** 2, rounding * middle.abs())
            length = (away.abs() - truncation).clamp(min=0)
            # To the middle where the last step did not halve the bracket, or an end is infinite.
            length = torch.where((half <= before / 2) & length.isfinite(), length, 0.0)
            before = half
            x = middle - torch.copysign(length, away)
            at_x = F(x)
            at_x = torch.where(falls, -at_x, at_x)
            low, high = at_x <= 0, at_x >= 0
            left, at_left = torch.where(low, x, left), torch.where(low, at_x, at_left)
            right, at_right = torch.where(high, x, right), torch.where(high, at_x, at_right)
            left = torch.where(low | high, left, torch.nan)
