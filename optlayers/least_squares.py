"""Nonlinear least squares as a differentiable function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.func import grad
from torch.utils import _pytree as pytree

from solvers.iteration import Run
from solvers.minimize import LeastSquaresSolver, LevenbergMarquardt, ScipyLeastSquares
from solvers.solution import Solution

from .failure import OnFailure
from .implicit.adjoints import Adjoint, Unrolled
from .implicit.automatic import Automatic
from .implicit.find import called, find
from .implicit.kind import Kind, OnFlat


@dataclass(frozen=True)
class Residuals(Kind):
    """Stationary points of half the sum of a user's residuals, squared."""

    function: Callable[..., Any]
    batch_ndim: int
    solver: Any

    where: ClassVar[str] = "least_squares"
    symmetric: ClassVar[bool] = True
    has_value: ClassVar[bool] = True

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those of least squares."""
        return (LeastSquaresSolver, ScipyLeastSquares)

    def value(self, x: Any, *params: Any) -> Tensor:
        """Half the sum of squares of every sample."""
        total: Tensor | float = 0.0
        for r in pytree.tree_leaves(self.function(x, *params)):
            squares = r.square()
            ndim = self.batch_ndim
            total = total + (squares.flatten(ndim).sum(-1) if r.ndim > ndim else squares)
        return 0.5 * total  # type: ignore[return-value]

    def residual(self, x: Any, *params: Any) -> Any:
        """The gradient of the value."""
        return grad(lambda x: self.value(x, *params).sum())(x)

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By Levenberg and Marquardt's method, unless told otherwise."""
        return self._solver().find(on_flat(self.function), x0)  # type: ignore[no-any-return]

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """By the matrix that the solver factored last, the Hessian without second derivatives."""
        solved: Tensor = self._solver().apply_inverse(kept, v, transposed=transposed)
        return solved

    def _solver(self) -> Any:
        return LevenbergMarquardt() if self.solver is None else self.solver


def least_squares(
    residual: Callable[..., Any],
    x0: Any,
    *params: Any,
    batch_ndim: int = 0,
    solver: Any = None,
    adjoint: Adjoint | Unrolled | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Find a local minimum of :math:`\tfrac12 \|r(x, \theta)\|_2^2`.

    Derivatives come from :math:`J^\top r = 0`, with the whole Hessian, not only its
    :math:`J^\top J`: they are exact for residuals of any size.

    Args:
        residual: Maps ``x`` and the parameters to residuals ``(*batch, ...)``, tensor or pytree.
        x0: Where to start: a tensor, or a pytree of tensors of one dtype.
        *params: Everything that derivatives are wanted for, see :func:`root`.
        batch_ndim: Leading dimensions of ``x`` that are independent samples: a batch of fits.
        solver: By default :class:`~optlayers.solvers.LevenbergMarquardt`.
        adjoint: By default :class:`Dense` for up to some hundred variables.
        on_failure: See :func:`root`.

    Returns:
        A solution with ``x`` and half the sum of squares as ``objective``, both differentiable.

    Raises:
        SolverError: If a sample is not solved, or its Hessian is singular in backward.

    References:
        Nocedal and Wright, *Numerical optimization*, 2006, chapter 10.

    Example:
        Fit a line through three points, and ask how its slope depends on the last one.

        >>> import torch, optlayers as ol
        >>> t = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
        >>> y = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
        >>> line = lambda x, y: x[0] + x[1] * t - y
        >>> x = ol.least_squares(line, torch.zeros(2, dtype=torch.float64), y).x
        >>> x
        tensor([1.0000, 1.0000], dtype=torch.float64, grad_fn=...)
        >>> torch.autograd.grad(x[1], y)[0].round(decimals=6)
        tensor([-0.5000,  0.0000,  0.5000], dtype=torch.float64)
    """
    function, params = called(residual, params)
    kind = Residuals(function, batch_ndim, solver)
    adjoint = Automatic() if adjoint is None else adjoint
    return find(kind, x0, params, batch_ndim=batch_ndim, adjoint=adjoint, on_failure=on_failure)
