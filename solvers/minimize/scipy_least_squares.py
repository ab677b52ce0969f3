"""SciPy's least-squares solvers, one sample after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..derivatives import jacobian
from ..iteration import DEFAULT_EPS, Run, solution_of
from ..solution import Solution, Status
from .gauss_newton import check_residuals, half_square


class _NoWayOnError(Exception):
    """Derivatives are not finite where the method stands."""


@dataclass(frozen=True)
class ScipyLeastSquares:
    r"""Minimise :math:`\tfrac12\|r(x)\|_2^2` by :func:`scipy.optimize.least_squares`.

    For comparison, and for hard single problems: trust regions choose steps that
    :class:`LevenbergMarquardt` does not. Samples are solved one after the other on the CPU, and
    every evaluation evaluates the whole batch, so the time grows with the square of its size.

    Attributes:
        method: Trust region reflective, dogleg, or MINPACK's Levenberg-Marquardt, which wants at
            least as many residuals as unknowns.
        max_iter: Evaluations allowed to each sample.
        ftol: Stop when the objective changes by less than this fraction; by default 1e-10 in
            float64, 1e-6 in float32, as are the others.
        xtol: Stop when a step is shorter than this fraction of ``x``.
        gtol: Stop when the gradient is below this: its largest entry, or for ``"lm"`` the largest
            cosine between a column of the Jacobian and the residuals.

    References:
        Branch, Coleman and Li, *A subspace, interior, and conjugate gradient method for large-scale
        bound-constrained minimization problems*, SIAM J. Scientific Computing 21 (1999).

    Example:
        >>> import torch
        >>> residual = lambda x: x.square() - torch.tensor([4.0, 9.0], dtype=torch.float64)
        >>> ScipyLeastSquares().solve(residual, torch.ones(2, dtype=torch.float64)).x
        tensor([2.0000, 3.0000], dtype=torch.float64)
    """

    method: Literal["trf", "dogbox", "lm"] = "trf"
    max_iter: int = 1000
    ftol: float | None = None
    xtol: float | None = None
    gtol: float | None = None

    def solve(self, r: Callable[[Tensor], Tensor], x0: Tensor) -> Solution:
        r"""Find a local minimum for every sample of a batch.

        Args:
            r: Maps ``(*batch, n)`` to residuals ``(*batch, m)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``.

        Returns:
            A solution whose ``objective`` is half the sum of squares, whose ``dual_residual`` is
            the largest entry of its gradient :math:`J^\top r`, and whose ``iterations`` are those
            of SciPy, counted by Jacobians.
        """
        shape = x0.shape

        def residual(x: Tensor) -> Tensor:
            value = r(x.reshape(shape))
            return value.reshape(x.shape[0], value.shape[-1])

        return solution_of(self.find(residual, x0.reshape(-1, shape[-1])), shape)

    @torch.no_grad()
    def find(self, r: Callable[[Tensor], Tensor], x0: Tensor) -> Run:
        """The same on a flat batch ``(B, n)``."""
        at_start = r(x0)
        check_residuals("ScipyLeastSquares", at_start, x0)
        if self.method == "lm" and at_start.shape[-1] < x0.shape[-1]:
            raise ValueError(
                'ScipyLeastSquares: method "lm" wants at least as many residuals as unknowns, '
                f'{x0.shape[-1]}; got {at_start.shape[-1]}. "trf" takes any number.'
            )
        x, value = x0.clone(), half_square(at_start)
        error = torch.full_like(value, torch.nan)
        status = torch.full(value.shape, int(Status.NUMERICAL_ERROR), device=x.device)
        iterations = torch.zeros_like(status)
        for i in range(x0.shape[0]):
            try:
                found = self._one(r, x0, i)
            except _NoWayOnError:
                continue
            x[i] = torch.as_tensor(found.x)
            value[i], error[i] = float(found.cost), float(np.abs(found.grad).max(initial=0.0))
            status[i] = int(Status.MAX_ITERATIONS if found.status == 0 else Status.SOLVED)
            iterations[i] = int(found.njev)
        return Run(x, status, iterations, error, value, (), None)

    def _one(self, r: Callable[[Tensor], Tensor], x0: Tensor, i: int) -> Any:
        from scipy.optimize import least_squares  # slow to import, and seldom wanted

        def put(point: Any) -> Tensor:
            return x0.index_copy(
                0, torch.tensor([i], device=x0.device), torch.as_tensor(point).to(x0)[None]
            )

        def fun(point: Any) -> Any:
            return r(put(point))[i].double().cpu().numpy()

        def jac(point: Any) -> Any:
            J = jacobian(r, put(point))[i]
            if not bool(J.isfinite().all()):
                raise _NoWayOnError
            return J.double().cpu().numpy()

        start = x0[i].double().cpu().numpy()
        if not np.isfinite(fun(start)).all():
            raise _NoWayOnError
        default = DEFAULT_EPS[x0.dtype]
        ftol, xtol, gtol = (default if t is None else t for t in (self.ftol, self.xtol, self.gtol))
        with np.errstate(all="ignore"):
            return least_squares(
                fun,
                start,
                jac,
                method=self.method,
                ftol=ftol,
                xtol=xtol,
                gtol=gtol,
                max_nfev=self.max_iter,
            )
