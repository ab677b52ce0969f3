"""Small dense systems of linear equations, and lengths relative to others: each one call.

On a CPU this is compiled code, where torch takes a dozen calls that each cost more than the work.
"""

from array import array

import torch
from torch import Tensor

from ._native import laid_out, library_for, word
from ._threads import calm

LARGE = 96  # sides of matrices from which LAPACK is faster


def solve_both(M: Tensor, v: Tensor, w: Tensor, *, crossed: bool = False) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`M u = v` and :math:`M x = w`, or :math:`M^\top x = w`, for each of a batch.

    Where a matrix is singular, what comes back is not finite or no solution.

    Args:
        M: Matrices ``(B, n, n)``.
        v: Right-hand sides ``(columns, B, n)``.
        w: Right-hand sides ``(B, n)``.
        crossed: Whether :math:`x` solves with the transposed matrices.

    Returns:
        :math:`u` as ``v``, :math:`x` as ``w``.
    """
    batch, n = w.shape
    alike = n < LARGE and M.dtype == v.dtype == w.dtype
    compiled = library_for(M, v, w) if alike else None
    if compiled is not None:
        across = M.mT.is_contiguous()
        given = [laid_out(t) for t in (M.mT if across else M, v, w)]
        u, x = torch.empty_like(given[1]), torch.empty_like(given[2])
        places = [t.data_ptr() for t in (*given, u, x)]
        settings = batch, n, len(v), M.dtype == torch.float32, across, across ^ crossed
        job = array("q", (*places, *settings, 0))
        address, _ = job.buffer_info()
        compiled.optlayers_lu(address)
        if not job[-1]:
            return u, x
    with calm():
        LU, pivots, _ = torch.linalg.lu_factor_ex(M)
        u = torch.linalg.lu_solve(LU, pivots, v.movedim(0, -1))
        x = torch.linalg.lu_solve(LU, pivots, w[..., None], adjoint=crossed)
    return u.movedim(-1, 0), x[..., 0]


def ratios(a: Tensor, b: Tensor, floor: float, least: Tensor | None = None) -> tuple[Tensor, float]:
    r"""Lengths :math:`\|a\|_2 / (\|b\|_2 + \text{floor})`.

    Args:
        a: ``(..., B, n)``.
        b: As ``a``.
        floor: Positive.
        least: What each is at least ``(B)``.

    Returns:
        The ratios ``(..., B)`` and the largest of them: NaN if there is one, zero of none.
    """
    given = (a, b) if least is None else (a, b, least)
    compiled = library_for(*given) if len({t.dtype for t in given}) == 1 else None
    if compiled is not None:
        ready = [laid_out(t) for t in given]
        found = torch.empty(a.shape[:-1], dtype=a.dtype)
        places = [t.data_ptr() for t in ready] + [0] * (3 - len(ready))
        settings = found.numel(), a.shape[-1], a.shape[-2], a.dtype == torch.float32
        job = array("q", (*places, found.data_ptr(), *settings, word(floor), 0))
        compiled.optlayers_ratios(job.buffer_info()[0])
        return found, array("d", job[-1:].tobytes())[0]
    found = torch.linalg.vector_norm(a, dim=-1)
    found = found / (torch.linalg.vector_norm(b, dim=-1) + floor)
    if least is not None:
        found = torch.maximum(found, least)
    return found, float(found.max()) if found.numel() else 0.0
