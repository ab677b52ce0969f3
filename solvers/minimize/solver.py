"""What the minimisers share: entry points for a function alone, and for one with a second thing.

Second things are a projection, a proximal operator, a linear oracle, bounds: each has its base here
or its own signature in its own file.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..iteration import Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution


@dataclass(frozen=True)
class MinimizeSolver(IterativeSolver, ABC):
    """Base of the methods for smooth functions without constraints."""

    keeps_last: ClassVar[bool] = True

    def solve(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        r"""Find a local minimum of :math:`f` for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``.

        Returns:
            A solution with the ``objective``; its ``dual_residual`` is the length of the step that
            was left to take.
        """
        shape = x0.shape
        flat = x0.reshape(-1, shape[-1])
        return solution_of(self.find(lambda x: f(x.reshape(shape)).reshape(-1), flat), shape)

    def find(self, f: Callable[[Tensor], Tensor], x0: Tensor) -> Run:
        """The same on a flat batch ``(B, n)``."""
        return self.run(self.iterates(f, x0))

    @abstractmethod
    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """Yield where the method is, from ``x`` on."""


@dataclass(frozen=True)
class LeastSquaresSolver(IterativeSolver, ABC):
    """Base of the methods for sums of squares."""

    keeps_last: ClassVar[bool] = True

    def solve(self, r: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        r"""Find a local minimum of :math:`\tfrac12 \|r(x)\|_2^2` for every sample of a batch.

        Args:
            r: Maps ``(*batch, n)`` to residuals ``(*batch, m)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``.

        Returns:
            A solution whose ``objective`` is half the sum of squares.
        """
        shape = x0.shape
        flat = x0.reshape(-1, shape[-1])

        def residual(x: Tensor) -> Tensor:
            value = r(x.reshape(shape))
            return value.reshape(x.shape[0], value.shape[-1])

        return solution_of(self.find(residual, flat), shape)

    def find(self, r: Callable[[Tensor], Tensor], x0: Tensor) -> Run:
        """The same on a flat batch ``(B, n)``."""
        return self.run(self.iterates(r, x0))

    @abstractmethod
    def iterates(self, r: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """Yield where the method is, from ``x`` on."""
