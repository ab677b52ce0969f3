"""The choice of an adjoint by the size of the problem."""

from dataclasses import dataclass

from torch import Tensor

from .adjoints import Adjoint, Dense, FixedPoint, Iterative, Linearised

# Unknowns of a sample up to which its Jacobian is formed, and entries of all Jacobians together.
SIDE, ENTRIES = 512, 1 << 24
# The same where iterating is cheap.
CONTRACTING_SIDE, CONTRACTING_ENTRIES = 64, 1 << 15


@dataclass(frozen=True)
class Automatic(Adjoint):
    """:class:`Dense` for few unknowns, products with the Jacobian for many.

    Attributes:
        contracts: Whether the conditions are those of a contraction's fixed point.
    """

    contracts: bool = False

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Let the one or the other solve."""
        batch, n = system.x.shape
        side, entries = SIDE, ENTRIES
        if self.contracts:
            side, entries = CONTRACTING_SIDE, CONTRACTING_ENTRIES
        if n <= side and batch * n * n <= entries:
            return Dense().solve(system, v)
        iterative = FixedPoint() if self.contracts else Iterative()
        return iterative.solve(system, v)
