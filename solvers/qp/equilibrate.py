r"""Scaling of rows, variables and objective, so that one set of thresholds serves all problems."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Rows

PASSES = 8
# Ends of this size are infinite by custom, and no use as numbers.
INFINITE = 1e20


@dataclass(eq=False)
class Equilibrated:
    r"""A flat batch in the variables :math:`\hat x = D^{-1} x`, with rows scaled by :math:`E`.

    .. math::

        \hat P = D P D,\quad \hat q = c D q,\quad \hat C = E C D,\quad
        \hat l = E l,\quad \hat u = E u,\quad \hat\nu = c E^{-1} \nu

    The factor ``c`` of the objective is kept out of ``P``, so that a shared ``P`` stays shared. All
    factors are powers of two: scaling there and back rounds nothing.

    Attributes:
        P: :math:`\hat P`, to be multiplied by ``c``: ``(1 or B, n, n)``.
        q: ``(1 or B, n)``, multiplied by ``c``.
        C: ``(1 or B, rows, n)``.
        lower: ``(1 or B, rows)``; minus infinity from -1e20 on.
        upper: ``(1 or B, rows)``; infinity from 1e20 on.
        d: Diagonal of :math:`D`, ``(1 or B, n)``.
        e: Diagonal of :math:`E`, ``(1 or B, rows)``.
        c: ``(1 or B)``.
    """

    P: Tensor
    q: Tensor
    C: Tensor
    lower: Tensor
    upper: Tensor
    d: Tensor
    e: Tensor
    c: Tensor


def equilibrate(rows: Rows) -> Equilibrated:
    r"""Bring the largest entry of every row and column of the KKT matrix near one.

    Zero rows and columns keep the factor 1, as do those with entries that are not finite.

    Args:
        rows: The problems; those without rows are welcome.

    Returns:
        The scaled problems. A tensor is shared by the batch where all that enters it is.

    References:
        Ruiz, *A scaling algorithm to equilibrate both rows and columns norms in matrices* (2001),
        algorithm 2.1; Stellato et al., *OSQP* (2020), algorithm 2, for the scale of the objective.
    """
    P, C = rows.P.abs(), rows.C.abs()
    batch = max(P.shape[0], C.shape[0])
    d, e = P.new_ones(batch, rows.n), P.new_ones(batch, rows.count)
    for _ in range(PASSES):
        # Products with the factors, never copies: P may be shared while d and e are not.
        scaled = C * e[..., None] * d[:, None, :]
        column = (P * d[..., None] * d[:, None, :]).amax(-2)
        if rows.count:
            column = torch.maximum(column, scaled.amax(-2))
            e = e * _inverse_root(scaled.amax(-1))
        d = d * _inverse_root(column)
    d, e = _power_of_two(d), _power_of_two(e)
    P = rows.P * d[..., None] * d[:, None, :]
    q = rows.q * d
    size = torch.maximum(P.abs().amax(-2).mean(-1), q.abs().amax(-1))
    c = _power_of_two(1 / torch.where((size > 0) & torch.isfinite(size), size, 1.0))
    return Equilibrated(
        P=P,
        q=q * c[:, None],
        C=rows.C * e[..., None] * d[:, None, :],
        lower=torch.where(rows.lower <= -INFINITE, -torch.inf, rows.lower * e),
        upper=torch.where(rows.upper >= INFINITE, torch.inf, rows.upper * e),
        d=d,
        e=e,
        c=c,
    )


def _inverse_root(size: Tensor) -> Tensor:
    return torch.where((size > 0) & torch.isfinite(size), size, 1.0).rsqrt()


def _power_of_two(t: Tensor) -> Tensor:
    return torch.exp2(torch.log2(t).round())
