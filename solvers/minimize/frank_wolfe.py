"""Frank-Wolfe: sets that are easy to minimise linear functions over, but hard to project onto."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution
from .proximal_gradient import MAX_TRIALS, ROUNDING, Objective, on_flat

SHRINK, DOUBLE = 0.9, 2.0  # of the estimate of L: after an iteration, after a failed trial


@dataclass(frozen=True)
class FrankWolfe(IterativeSolver):
    r"""Minimise a smooth :math:`f` over a compact convex set with a linear oracle.

    .. math::
        s = \arg\min_{u \in C} \langle \nabla f(x), u \rangle, \qquad
        x \leftarrow x + \gamma (s - x), \qquad
        \gamma = \min\Bigl(1, \frac{\langle \nabla f(x), x - s \rangle}{L \|s - x\|_2^2}\Bigr),

    with an estimate :math:`L` of each sample that grows until :math:`f` lies below its quadratic
    model, or with :math:`\gamma = 2/(k+2)`. The latter lets values rise at first, but zigzags less
    where the solution lies on a face of a polytope, and is then often faster. Iterates are convex
    combinations of :math:`x_0` and of answers of the oracle. Only :math:`f(x_k) - f^* = O(1/k)`, so
    do not ask for many digits.

    **What tolerances mean here.** The length of a step says little. The number that is compared is
    the duality gap :math:`\langle \nabla f(x), x - s \rangle`, which is not less than
    :math:`f(x) - f^*` if :math:`f` is convex: a sample stops when its gap is at most
    ``eps_abs`` + ``eps_rel`` :math:`|f(x)|`. The gap is also what ``dual_residual`` and
    ``history`` hold.

    Attributes:
        eps_abs: Absolute tolerance of the gap.
        eps_rel: Tolerance of the gap relative to the value of ``f``.
        search: Whether to search for step lengths; else they are :math:`2/(k+2)`.

    References:
        Jaggi, *Revisiting Frank-Wolfe: projection-free sparse convex optimization*, ICML 2013,
        theorems 1 and 2. Pedregosa, Negiar, Askari and Jaggi, *Linearly convergent Frank-Wolfe
        with backtracking line-search*, AISTATS 2020, algorithm 2.

    Example:
        >>> import torch
        >>> b = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
        >>> f = lambda x: (x - b).square().sum(-1)
        >>> corner = lambda g: torch.eye(3, dtype=g.dtype)[g.argmin(-1)]
        >>> x0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        >>> FrankWolfe(eps_abs=1e-4).solve(f, x0, corner).objective < 1e-4
        tensor(True)
    """

    eps_abs: float | None = 1e-6
    eps_rel: float | None = 1e-6
    search: bool = True
    keeps_last: ClassVar[bool] = True
    patience: ClassVar[int] = 100  # slow is not stuck

    def solve(self, f: Objective, x0: Tensor, oracle: Callable[[Tensor], Tensor]) -> Solution:
        r"""Minimise :math:`f` over a set for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: A point of the set, ``(*batch, n)``.
            oracle: Maps gradients :math:`g` ``(*batch, n)`` to points :math:`s` of the set for
                which :math:`\langle g, s \rangle` is least, ``(*batch, n)``.

        Returns:
            A solution whose ``dual_residual`` is the duality gap.
        """
        shape = x0.shape
        run = self.find(
            on_flat(f, shape, shape[:-1], "FrankWolfe.solve: f"),
            x0.reshape(-1, shape[-1]),
            on_flat(oracle, shape, shape, "FrankWolfe.solve: oracle"),
        )
        return solution_of(run, shape)

    def find(self, f: Objective, x0: Tensor, oracle: Callable[[Tensor], Tensor]) -> Run:
        """The same on a flat batch ``(B, n)``."""
        return self.run(self._iterates(f, x0.detach(), oracle))

    def _iterates(self, f: Objective, x: Tensor, oracle: Callable[[Tensor], Tensor]) -> Iterates:
        value, gradient = value_and_gradient(f, x)
        lipschitz = torch.full_like(value, torch.nan)
        lost = torch.zeros_like(value, dtype=torch.bool)
        k = 0
        while True:
            toward = oracle(gradient) - x
            gap = -(gradient * toward).sum(-1)
            # A gap below zero is rounding, or the oracle's mistake, which is not ours to hide.
            error = gap.abs().masked_fill(lost | ~value.isfinite(), torch.nan)
            size = value.abs().nan_to_num(posinf=0.0)
            running = (yield Iterate(x, error, value, (), size)).running
            if self.search:
                square = (toward * toward).sum(-1)
                if k == 0:
                    lipschitz = _curvature(f, x, toward, value, gap, square)
                length, lipschitz, failed = _backtrack(
                    f, x, toward, value, gap, square, lipschitz, running
                )
                lost = lost | failed
                length = torch.where(failed, 0.0, length)
                x = x + length[:, None] * toward
            else:
                x = x + (2.0 / (k + 2.0)) * toward
            value, gradient = value_and_gradient(f, x)
            k += 1


def _curvature(
    f: Objective, x: Tensor, toward: Tensor, value: Tensor, gap: Tensor, square: Tensor
) -> Tensor:
    """A first estimate of L, along the first direction."""
    reach = torch.finfo(x.dtype).eps ** 0.25
    bend = f(x + reach * toward) - value + reach * gap
    # Where nothing bends, the first step should be a full one.
    least = gap / square
    estimate = torch.maximum(2.0 * bend / (reach * reach * square), 1e-3 * least)
    return torch.where(estimate.isfinite() & (estimate > 0.0), estimate, 1.0)


def _backtrack(
    f: Objective,
    x: Tensor,
    toward: Tensor,
    value: Tensor,
    gap: Tensor,
    square: Tensor,
    lipschitz: Tensor,
    running: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of the steps, the estimates that they belong to, and who found none."""
    rounding = ROUNDING * torch.finfo(x.dtype).eps * value.abs()
    lipschitz = torch.where(running, SHRINK * lipschitz, lipschitz)
    for _ in range(MAX_TRIALS):
        # 0/0 where the oracle answers with x itself: no step.
        length = (gap / (lipschitz * square)).nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0)
        model = value - length * gap + 0.5 * lipschitz * length * length * square
        failed = running & ~(f(x + length[:, None] * toward) <= model + rounding)
        if not bool(failed.any()):
            break
        lipschitz = torch.where(failed, DOUBLE * lipschitz, lipschitz)
    return length, lipschitz, failed
