"""Derivatives of a solution itself, and the check of what was asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .smoothed import Smoothed


@dataclass(frozen=True)
class Exact:
    """Derivatives of the solution itself, through its active rows.

    Where active rows depend on each other or the solution is not unique, the adjoint system is
    singular, and its solution of least norm is taken. A row that is active with multiplier zero
    counts as inactive: at such a kink that is one of the two one-sided derivatives.
    """


def check_adjoint(where: str, adjoint: "Exact | Smoothed | None") -> None:
    """Refuse what is none.

    Raises:
        TypeError: If it is something else.
    """
    from .smoothed import Smoothed

    given: object = adjoint  # whatever the annotations say
    if given is not None and not isinstance(given, Exact | Smoothed):
        raise TypeError(
            f"{where}: adjoint must be Exact() or Smoothed(mu); got {given!r}. Leave it out for "
            "exact derivatives."
        )
