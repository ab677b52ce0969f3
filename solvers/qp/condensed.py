r"""The Newton system of a primal-dual interior point, condensed, regularised and refined.

.. math::

    \begin{pmatrix} cP + \rho I & C^\top \\ C & -V \end{pmatrix}
    \begin{pmatrix} t_x \\ t_\nu \end{pmatrix} = \begin{pmatrix} r_x \\ r_\nu \end{pmatrix}

with a diagonal :math:`V > 0`: of the order of ``s / z`` for an inequality, almost zero for an
equality, infinite for a row without finite ends. Eliminating :math:`t_\nu` leaves a matrix of size
``n``, whose entries range over all the magnitudes of :math:`V^{-1}`; in the last iterations it
would lose definiteness. So both blocks are regularised, which makes a step one of a proximal method
(it stays near the iterate, and the solution is the same), and what rounding does to the Cholesky
factorisation is taken out by iterative refinement.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .equilibrate import Equilibrated

REFINEMENTS = 2


class Condensed(NamedTuple):
    """A factored system.

    Attributes:
        L: Cholesky factor ``(B, n, n)``.
        V: ``(B, rows)``, zero where the row is absent.
        weight: ``1 / V``, ``(B, rows)``, zero where the row is absent.
        rho: ``(B)``.
        failed: Boolean ``(B)``: not definite in floating point, the factor is not of use.
    """

    L: Tensor
    V: Tensor
    weight: Tensor
    rho: Tensor
    failed: Tensor


def factorise(problem: Equilibrated, V: Tensor, rho: Tensor) -> Condensed:
    """Factor the system.

    Args:
        problem: The scaled problems.
        V: ``(B, rows)``, infinite for rows that are absent.
        rho: ``(B)``.
    """
    weight = 1 / V
    H = (problem.C.mT * weight[:, None, :]) @ (
        problem.C[0] if problem.C.shape[0] == 1 else problem.C
    )
    H += problem.c[:, None, None] * problem.P
    H.diagonal(dim1=-2, dim2=-1).add_(rho[:, None])
    L, info = torch.linalg.cholesky_ex(H)
    return Condensed(L, torch.where(torch.isinf(V), 0.0, V), weight, rho, info != 0)


def solve(
    problem: Equilibrated, system: Condensed, r_x: Tensor, r_nu: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve the system.

    Args:
        problem: The scaled problems.
        system: Factored from the same problems.
        r_x: ``(B, n)``.
        r_nu: ``(B, rows)``.

    Returns:
        ``(B, n)`` and ``(B, rows)``.
    """
    t_x, t_nu = _solve_once(problem, system, r_x, r_nu)
    error_x, error_nu, size = _error(problem, system, r_x, r_nu, t_x, t_nu)
    for _ in range(REFINEMENTS):
        step_x, step_nu = _solve_once(problem, system, error_x, error_nu)
        new_x, new_nu = t_x + step_x, t_nu + step_nu
        new_error_x, new_error_nu, new_size = _error(problem, system, r_x, r_nu, new_x, new_nu)
        # Where the factor is too poor to help, another step would amplify the rounding errors.
        better = (new_size < size)[:, None]
        t_x, t_nu = torch.where(better, new_x, t_x), torch.where(better, new_nu, t_nu)
        error_x = torch.where(better, new_error_x, error_x)
        error_nu = torch.where(better, new_error_nu, error_nu)
        size = torch.where(better[:, 0], new_size, size)
    return t_x, t_nu


def _solve_once(
    problem: Equilibrated, system: Condensed, r_x: Tensor, r_nu: Tensor
) -> tuple[Tensor, Tensor]:
    right = r_x + transposed_times(problem.C, system.weight * r_nu)
    t_x = torch.cholesky_solve(right[..., None], system.L)[..., 0]
    return t_x, system.weight * (times(problem.C, t_x) - r_nu)


def _error(
    problem: Equilibrated, system: Condensed, r_x: Tensor, r_nu: Tensor, t_x: Tensor, t_nu: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What is left of the right-hand side, and its size; rows of little weight count little."""
    pulled = hessian_times(problem, t_x) + transposed_times(problem.C, t_nu)
    error_x = r_x - pulled - system.rho[:, None] * t_x
    error_nu = r_nu - times(problem.C, t_x) + system.V * t_nu
    size = torch.maximum(
        error_x.abs().amax(-1), (error_nu.abs() * system.weight.clamp(max=1.0)).amax(-1)
    )
    return error_x, error_nu, size


def hessian_times(problem: Equilibrated, x: Tensor) -> Tensor:
    r""":math:`c P x` for ``(B, n)``."""
    return problem.c[:, None] * times(problem.P, x)


def times(M: Tensor, x: Tensor) -> Tensor:
    """``M x`` for vectors ``(B, columns)``; a shared matrix takes them all in one product."""
    return x @ M[0].mT if M.shape[0] == 1 else (M @ x[..., None])[..., 0]


def transposed_times(M: Tensor, x: Tensor) -> Tensor:
    """``M' x`` for vectors ``(B, rows)``."""
    return x @ M[0] if M.shape[0] == 1 else (M.mT @ x[..., None])[..., 0]
