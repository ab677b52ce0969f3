"""Projected gradient steps, accelerated: smooth functions on sets that are easy to project onto."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..iteration import IterativeSolver, Run, solution_of
from ..solution import Solution
from .proximal_gradient import Objective, check_step, on_flat, proximal_steps, with_value


@dataclass(frozen=True)
class ProjectedGradient(IterativeSolver):
    r"""Minimise a smooth :math:`f` over a convex set :math:`C`.

    .. math:: x \leftarrow P_C(y - s \nabla f(y))

    This is :class:`ProximalGradient` for the indicator of :math:`C`, with the same acceleration,
    steps, rates and rule for stopping. Without acceleration the distance to the solution of a
    strongly convex problem shrinks by the factor :math:`1 - \mu/L` or better; with it the factor
    is about :math:`1 - \sqrt{\mu/L}`.

    Attributes:
        acceleration: Whether to use momentum.
        step: A step size for all samples, at most :math:`1/L`; by default found by search.

    References:
        Beck, *First-order methods in optimization*, SIAM 2017, chapter 10.

    Example:
        >>> import torch
        >>> from optlayers.solvers.projection import project_simplex
        >>> b = torch.tensor([0.5, 1.0, -2.0])
        >>> f = lambda x: (x - b).square().sum(-1)
        >>> ProjectedGradient().solve(f, torch.zeros(3), project_simplex).x
        tensor([0.2500, 0.7500, 0.0000])
    """

    acceleration: bool = True
    step: float | None = None
    keeps_last: ClassVar[bool] = True
    patience: ClassVar[int] = 100  # slow is not stuck

    def solve(self, f: Objective, x0: Tensor, projection: Callable[[Tensor], Tensor]) -> Solution:
        r"""Minimise :math:`f` over a set for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``; is projected first.
            projection: Maps ``(*batch, n)`` to the nearest points of the set.

        Returns:
            A solution whose ``x`` is a value of ``projection``, so that zeros survive; its
            ``dual_residual`` is the length of the last step.
        """
        name, shape = f"{type(self).__name__}.solve", x0.shape
        run = self.find(
            on_flat(f, shape, shape[:-1], f"{name}: f"),
            x0.reshape(-1, shape[-1]),
            on_flat(projection, shape, shape, f"{name}: projection"),
        )
        return solution_of(run, shape)

    def find(self, f: Objective, x0: Tensor, projection: Callable[[Tensor], Tensor]) -> Run:
        """The same on a flat batch ``(B, n)``."""
        check_step(self.step)

        def proximal(x: Tensor, step: Tensor) -> Tensor:
            return projection(x)

        start = projection(x0.detach())
        run = self.run(proximal_steps(f, start, proximal, self.acceleration, self.step))
        return with_value(run, f)
