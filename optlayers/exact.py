"""Derivatives of a solution itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exact:
    """Derivatives of the solution itself, through its active rows.

    Where active rows depend on each other or the solution is not unique, the adjoint system is
    singular, and its solution of least norm is taken. A row that is active with multiplier zero
    counts as inactive: at such a kink that is one of the two one-sided derivatives.
    """
