"""Block coordinate descent: proximal gradient steps on one group of unknowns after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution
from .proximal_gradient import Objective, Proximal, StepSizes, Trial, on_flat, proximal_on_flat


@dataclass(frozen=True)
class BlockCoordinateDescent(IterativeSolver):
    r"""Minimise :math:`f(x) + \sum_b g_b(x_b)` over blocks :math:`x_b` in turn (Gauss-Seidel).

    .. math:: x_b \leftarrow \operatorname{prox}_{s_b g_b}(x_b - s_b \nabla_b f(x))

    Each block of each sample has a step :math:`s_b` of its own, found by search, so blocks may
    differ in scale and curvature; later blocks of a sweep already see what the earlier have become.
    Worth it where blocks are little coupled and few: a sweep costs a gradient and a search for
    every block. For convex :math:`f` values converge like :math:`O(1/k)` in sweeps, for strongly
    convex :math:`f` linearly.

    A sample stops when a whole sweep moves it little: ``dual_residual`` is the length of that move.

    Attributes:
        blocks: How many blocks of consecutive entries, or the indices of each block.

    References:
        Beck and Tetruashvili, *On the convergence of block coordinate descent type methods*, SIAM
        J. Optimization 23 (2013), theorems 3.3 and 3.6. Bolte, Sabach and Teboulle, *Proximal
        alternating linearized minimization for nonconvex and nonsmooth problems*, Mathematical
        Programming 146 (2014), algorithm PALM.

    Example:
        >>> import torch
        >>> scale = torch.tensor([1.0, 1e4], dtype=torch.float64)
        >>> f = lambda x: (scale * (x - 1).square()).sum(-1)
        >>> x0 = torch.zeros(2, dtype=torch.float64)
        >>> BlockCoordinateDescent(blocks=2).solve(f, x0).x
        tensor([1., 1.], dtype=torch.float64)
    """

    blocks: int | tuple[tuple[int, ...], ...] = 2
    keeps_last: ClassVar[bool] = True
    patience: ClassVar[int] = 100  # slow is not stuck

    def solve(self, f: Objective, x0: Tensor, proximal: Proximal | None = None) -> Solution:
        r"""Minimise :math:`f + g` for every sample of a batch.

        Args:
            f: The smooth part, maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``.
            proximal: Maps ``x`` ``(*batch, n)`` and steps ``(*batch, 1)`` to the minimiser of
                :math:`g(u) + \|u - x\|_2^2 / (2 s)`; what it does to a block must depend on that
                block alone. None for :math:`g = 0`.

        Returns:
            A solution whose ``objective`` is that of :math:`f` alone.
        """
        shape = x0.shape
        run = self.find(
            on_flat(f, shape, shape[:-1], "BlockCoordinateDescent.solve: f"),
            x0.reshape(-1, shape[-1]),
            None
            if proximal is None
            else proximal_on_flat(proximal, shape, "BlockCoordinateDescent.solve: proximal"),
        )
        return solution_of(run, shape)

    def find(self, f: Objective, x0: Tensor, proximal: Proximal | None = None) -> Run:
        """The same on a flat batch ``(B, n)``, with steps ``(B, 1)``."""
        groups = [torch.tensor(g, device=x0.device) for g in self._groups(x0.shape[-1])]
        return self.run(_sweeps(f, x0.detach(), proximal, groups))

    def _groups(self, n: int) -> list[list[int]]:
        if isinstance(self.blocks, int):
            if not 1 <= self.blocks <= n:
                raise ValueError(
                    f"BlockCoordinateDescent: blocks must be between 1 and {n}, the number of "
                    f"unknowns; got {self.blocks}."
                )
            ends = [n * i // self.blocks for i in range(self.blocks + 1)]
            return [list(range(*pair)) for pair in pairwise(ends)]
        groups = [list(group) for group in self.blocks]
        if sorted(chain(*groups)) != list(range(n)) or not all(groups):
            raise ValueError(
                f"BlockCoordinateDescent: blocks must hold each index from 0 to {n - 1} once, and "
                f"none may be empty; got {self.blocks}."
            )
        return groups


def _sweeps(f: Objective, x: Tensor, proximal: Proximal | None, groups: list[Tensor]) -> Iterates:
    steps: list[StepSizes] = []
    running = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    while True:
        before, lost, value = x, torch.zeros_like(running), x.new_zeros(x.shape[0])
        for i, group in enumerate(groups):
            place, on_block = _block(f, x, group)
            block = x[:, group]
            value, gradient = value_and_gradient(on_block, block)
            trial = _trial(x, block, gradient, group, place, proximal)
            if len(steps) == i:
                steps.append(StepSizes.probe(on_block, trial, value, gradient, block))
            found, value, length = steps[i].search(on_block, trial, value, block, running)
            steps[i].grow(running)
            if bool((blind := running & steps[i].blind).any()):
                _, beyond = value_and_gradient(on_block, found.x)
                steps[i].fit_gradients(found.x - block, beyond - gradient, blind)
            lost = lost | length.isnan()
            x = place(found.x)
        error = torch.linalg.vector_norm(x - before, dim=-1).masked_fill(lost, torch.nan)
        running = (yield Iterate(x, error, value, tuple(s.step for s in steps))).running


def _block(f: Objective, x: Tensor, group: Tensor) -> tuple[Objective, Objective]:
    """How to put a block into ``x``, and ``f`` as a function of that block."""

    def place(block: Tensor) -> Tensor:
        return x.index_copy(1, group, block)

    return place, lambda block: f(place(block))


def _trial(
    x: Tensor,
    block: Tensor,
    gradient: Tensor,
    group: Tensor,
    place: Objective,
    proximal: Proximal | None,
) -> Callable[[Tensor], Trial]:
    def trial(step: Tensor) -> Trial:
        column = step[:, None]
        u = block - column * gradient
        if proximal is not None:
            u = proximal(place(u), column)[:, group]
        move = u - block
        return Trial(u, (gradient * move).sum(-1), 0.5 * (move * move).sum(-1))

    return trial
