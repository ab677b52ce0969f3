"""What the root finders share: the entry point."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..iteration import Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution


@dataclass(frozen=True)
class RootSolver(IterativeSolver, ABC):
    """Base of the root finders; a subclass provides ``iterates``."""

    def solve(self, F: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        r"""Find :math:`F(x) = 0` for every sample of a batch.

        Args:
            F: Maps ``(*batch, n)`` to the same shape, each sample on its own.
            x0: Where to start, ``(*batch, n)``.

        Returns:
            A solution whose ``dual_residual`` is the length of the step that was left to take.
        """
        shape = x0.shape
        flat = x0.reshape(-1, shape[-1])

        def on_flat(x: Tensor) -> Tensor:
            return F(x.reshape(shape)).reshape(flat.shape)

        return solution_of(self.find(on_flat, flat), shape)

    def find(self, F: Callable[[Tensor], Tensor], x0: Tensor) -> Run:
        """The same on a flat batch ``(B, n)``."""
        return self.run(self.iterates(F, x0))

    @abstractmethod
    def iterates(self, F: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """Yield where the method is, from ``x`` on."""
