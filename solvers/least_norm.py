"""Singular symmetric systems: the least-squares solution of least norm, by eigenvalues."""

import torch
from torch import Tensor

# Eigenvalues below this, relative to the largest, count as zero.
RANK_TOLERANCE = 1e-10


def least_norm(K: Tensor, right: Tensor) -> Tensor:
    """Solve ``K t = right`` with a finite symmetric ``K`` ``(n, n)`` of any rank.

    Args:
        K: The matrix.
        right: ``(n, columns)``.

    Returns:
        ``(n, columns)``; least squares and least norm are meant in the units given.
    """
    scale = _equilibrate(K)
    values, vectors = torch.linalg.eigh(scale[:, None] * K * scale)
    kept = values.abs() > RANK_TOLERANCE * values.abs().max()
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)[:, None]
    vectors = scale[:, None] * vectors
    # What lies in the null space of K itself is taken out on both sides.
    null, _ = torch.linalg.qr(vectors[:, ~kept])
    t = vectors @ (inverse * (vectors.mT @ (right - null @ (null.mT @ right))))
    solution: Tensor = t - null @ (null.mT @ t)
    return solution


def _equilibrate(K: Tensor) -> Tensor:
    """A diagonal that brings the largest entry of every row near one, so that ranks can be told."""
    scale = torch.ones_like(K[0])
    for _ in range(10):
        largest = (scale[:, None] * K * scale).abs().amax(-1)
        scale = scale * torch.where(largest > 0, largest, 1.0).rsqrt()
    return scale
