"""What the fixed-point solvers share: the entry point."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..iteration import Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution


@dataclass(frozen=True)
class FixedPointSolver(IterativeSolver, ABC):
    """Base of the fixed-point solvers; a subclass provides ``iterates``."""

    def solve(self, f: Callable[[Tensor], Tensor], z0: Tensor) -> Solution:
        r"""Find :math:`z = f(z)` for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to the same shape, each sample on its own.
            z0: Where to start, ``(*batch, n)``.

        Returns:
            A solution whose ``x`` is :math:`f` of the last iterate, so that zeros and other exact
            values that :math:`f` produces survive; ``dual_residual`` is :math:`\|f(z) - z\|_2`.
        """
        shape = z0.shape
        flat = z0.reshape(-1, shape[-1])

        def on_flat(z: Tensor) -> Tensor:
            return f(z.reshape(shape)).reshape(flat.shape)

        return solution_of(self.find(on_flat, flat), shape)

    def find(self, f: Callable[[Tensor], Tensor], z0: Tensor) -> Run:
        """The same on a flat batch ``(B, n)``."""
        return self.run(self.iterates(f, z0))

    @abstractmethod
    def iterates(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Iterates:
        """Yield where the method is, from ``z`` on; ``x`` is always a value of ``f``."""
