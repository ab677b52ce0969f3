r"""Whether problems are fit to be solved: finite data, convex objective."""

import torch
from torch import Tensor

from .rows import Rows

# Eigenvalues above this, after scaling the diagonal of P to one, count as rounding errors of zero.
NEGATIVE = -1e-10


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
    r"""Which ``P`` have a negative eigenvalue beyond rounding, by one shifted Cholesky factorisation.

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
    return negative | (info != 0)
