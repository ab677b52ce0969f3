"""Singular symmetric systems: the least-squares solution of least norm, by eigenvalues."""

import torch
from torch import Tensor

from .batch import one_by_one

# Eigenvalues below this, relative to the largest, count as zero.
RANK_TOLERANCE = 1e-10


def least_norm(K: Tensor, right: Tensor) -> Tensor:
    """Solve ``K t = right`` with finite symmetric matrices of any rank.

    Each is solved as if it were alone, to the last bit.

    Args:
        K: The matrices ``(B, n, n)``.
        right: ``(B, n, columns)``.

    Returns:
        ``(B, n, columns)``; least squares and least norm are meant in the units given.
    """
    scale = _equilibrate(K)[..., None]
    values, vectors = _eigen(scale * K * scale.mT)
    kept = values.abs() > RANK_TOLERANCE * values.abs().amax(-1, keepdim=True)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)[..., None]
    vectors = scale * vectors
    # What lies in the null space of K itself is taken out on both sides.
    nulls = _orthonormal(vectors, ~kept)
    pulled = one_by_one(vectors.mT, _without(nulls, right))
    return _without(nulls, one_by_one(vectors, inverse * pulled))


def _equilibrate(K: Tensor) -> Tensor:
    """Diagonals that bring the largest entry of every row near one, so that ranks can be told."""
    scale = torch.ones_like(K[..., 0])
    for _ in range(10):
        largest = (scale[..., None] * K * scale[..., None, :]).abs().amax(-1)
        scale = scale * torch.where(largest > 0, largest, 1.0).rsqrt()
    return scale


def _eigen(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of matrices whose entries are hardly larger than one.

    What LAPACK rounds depends on where in a cache line a matrix begins: each gets as many rows as
    make that the same, with eigenvalues of their own in front of all others.
    """
    n = S.shape[-1]
    more = -n % 4
    padded = torch.diag_embed(S.new_full((len(S), n + more), -4.0 * n))
    padded[:, :n, :n] = S
    values, vectors = torch.linalg.eigh(padded)
    return values[:, more:], vectors[:, :n, more:].contiguous()


def _orthonormal(vectors: Tensor, chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Bases of what the chosen columns span, with the numbers of the matrices that they belong to.

    Args:
        vectors: ``(B, n, n)``.
        chosen: Boolean ``(B, n)``.
    """
    found = []
    n, counts = vectors.shape[-1], chosen.sum(-1)
    for count in counts.unique().tolist():
        if count:
            which = torch.nonzero(counts == count)[:, 0]
            index = torch.nonzero(chosen[which])[:, 1].reshape(-1, 1, count)
            columns = vectors.new_zeros(len(which), n + -n % 8, count)  # as in _eigen
            columns[:, :n] = vectors[which].gather(-1, index.expand(-1, n, -1))
            Q, _ = torch.linalg.qr(columns)
            found.append((which, Q[:, :n].contiguous()))
    return found


def _without(bases: list[tuple[Tensor, Tensor]], t: Tensor) -> Tensor:
    """What is orthogonal to the bases in ``t`` ``(B, n, columns)``."""
    t = t.clone()
    for which, Q in bases:
        part = t[which]
        t[which] = part - one_by_one(Q, one_by_one(Q.mT, part))
    return t
