"""Plain iteration, perhaps damped: the best there is where a map contracts well."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..iteration import Iterate, Iterates
from .solver import FixedPointSolver


@dataclass(frozen=True)
class Picard(FixedPointSolver):
    r"""Iterate :math:`z \leftarrow z + \beta (f(z) - z)`.

    Converges linearly with factor :math:`|1 - \beta + \beta\lambda|`, where :math:`\lambda` is the
    eigenvalue of the Jacobian of :math:`f` for which it is largest.

    Attributes:
        damping: :math:`\beta`; 1 for the plain iteration.

    References:
        Ortega and Rheinboldt, *Iterative solution of nonlinear equations in several variables*,
        1970, section 10.1.
    """

    damping: float = 1.0

    def iterates(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Iterates:
        """One evaluation an iteration."""
        while True:
            fz = f(z)
            yield Iterate(fz, None, start=z)
            z = fz if self.damping == 1.0 else z + self.damping * (fz - z)
