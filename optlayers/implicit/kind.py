"""What is looked for, and who looks for it: what one function on the core has for itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from solvers.iteration import Run

OnFlat = Callable[..., Callable[..., Tensor]]


class Kind(ABC):
    """What is looked for, and who looks for it. Subclasses are frozen dataclasses.

    Attributes:
        where: The name of the function that the user called, for messages.
        symmetric: Whether the Jacobian of the residual is symmetric.
        has_value: Whether :meth:`value` is there.
        has_multipliers: Whether some of the unknowns are multipliers, see :meth:`signs`.
    """

    where: ClassVar[str]
    symmetric: ClassVar[bool] = False
    has_value: ClassVar[bool] = False
    has_multipliers: ClassVar[bool] = False

    @property
    def solvers(self) -> tuple[type, ...]:
        """The classes of what may look for it, where the user can choose."""
        return ()

    @abstractmethod
    def residual(self, x: Any, *params: Any) -> Any:
        """Zero at the solution, and of the structure of ``x``; differentiable torch code."""

    @property
    def image(self) -> Callable[..., Any] | None:
        """The user's map :math:`T`, if the conditions are :math:`x - T(x)`, else None.

        What is known of it at the starting point is not computed again, and products with its
        Jacobian take the place of those with that of the conditions.
        """
        return None

    def value(self, x: Any, *params: Any) -> Tensor:
        """The Lagrangian ``(*batch)``: at the solution, its derivatives are the optimal value's."""
        raise NotImplementedError

    def number(self, x: Any, *params: Any) -> Tensor:
        """The value without the terms that are zero, but for rounding."""
        return self.value(x, *params)

    def signs(self, x: Any, *params: Any) -> Any:
        """What on the Jacobian's diagonal regularises it in the multipliers; of ``x``'s structure.

        Multipliers of constraints that depend on each other are not unique, and the Jacobian is
        singular, though the rest of the solution has derivatives.
        """
        raise NotImplementedError

    @abstractmethod
    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """Find a solution for every row of ``x0`` ``(B, n)``.

        ``on_flat(function)`` makes of a user's ``function(x, *params)`` a map from ``(B, n)`` to
        ``(B, m)``, or to ``(B)`` with ``scalar=True``. What else it is given, ``(B, 1)``, is handed
        on between ``x`` and the parameters.
        """

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """Solve approximately with the Jacobian of the residual, by what the solver kept."""
        raise NotImplementedError
