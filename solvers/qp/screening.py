r"""What can be said of problems before they are solved: malformed, contradictory, equal ends."""

import torch
from torch import Tensor

from .rows import Rows

# Eigenvalues above this, after scaling the diagonal of P to one, count as rounding errors of zero.
NEGATIVE = -1e-10
# Ends of a row nearer than this, relative to their size, leave no interior: an equality.
NO_INTERIOR = 1e-12


def malformed(rows: Rows) -> Tensor:
    """Which problems no solver can make sense of: NaN, an infinite matrix, ``P`` not semidefinite.

    Args:
        rows: The problems.

    Returns:
        Boolean ``(B)``. Infinite bounds are legal.
    """
    broken = ~torch.isfinite(rows.P).all(-1).all(-1)
    broken = broken | ~torch.isfinite(rows.q).all(-1)
    broken = broken | ~torch.isfinite(rows.C).all(-1).all(-1)
    broken = broken | torch.isnan(rows.lower).any(-1) | torch.isnan(rows.upper).any(-1)
    if not rows.is_linear:
        broken = broken | nonconvex(rows.P)
    return broken.expand(rows.batch)


def nonconvex(P: Tensor) -> Tensor:
    r"""Which ``P`` have a negative eigenvalue beyond rounding: one shifted Cholesky says it.

    Args:
        P: Symmetric ``(B, n, n)``.

    Returns:
        Boolean ``(B)``; NaN entries count as not convex.
    """
    diagonal = P.diagonal(dim1=-2, dim2=-1)
    negative = (diagonal < 0).any(-1)
    # A zero on the diagonal of a semidefinite matrix has a zero row; any entry there must show.
    largest = P.abs().amax((-2, -1))[:, None]
    tiny = torch.where(largest > 0, largest, 1.0) * torch.finfo(P.dtype).eps ** 2
    scale = torch.clamp(diagonal, min=tiny).rsqrt()
    unit = P * scale[..., None] * scale[:, None, :]
    shifted = unit + torch.eye(P.shape[-1], dtype=P.dtype, device=P.device) * -NEGATIVE
    _, info = torch.linalg.cholesky_ex(shifted)
    indefinite: Tensor = info != 0
    return negative | indefinite


def equal_ends(rows: Rows) -> Tensor:
    """Rows whose ends meet, but for rounding: boolean ``(1 or B, rows)``."""
    near = NO_INTERIOR * (1 + rows.lower.abs())
    return rows.fixed | (torch.isfinite(rows.lower) & (rows.upper - rows.lower <= near))


def contradictory(rows: Rows, eps_abs: float, eps_rel: float) -> Tensor:
    """Which problems have a row whose ends exclude each other by more than the tolerance.

    Returns:
        Boolean ``(B)``.
    """
    size = torch.where(torch.isfinite(rows.lower), rows.lower.abs(), 0.0)
    crossed = rows.lower - rows.upper > eps_abs + eps_rel * size
    crossed = crossed | (rows.lower == torch.inf) | (rows.upper == -torch.inf)
    return crossed.any(-1).expand(rows.batch)
