"""Inverses of functions as differentiable functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from solvers.iteration import Run
from solvers.root import Bisection, Newton
from solvers.root.solver import RootSolver
from solvers.solution import Solution, Status

from .failure import OnFailure
from .implicit.adjoints import Adjoint, Dense, Unrolled
from .implicit.find import called, find
from .implicit.kind import Kind, OnFlat

# What may be left of a value that is taken, relative to the ends of the bracket.
JUMP = 1e-3


@dataclass(frozen=True)
class Preimages(Kind):
    """Where a function takes given values; the first three parameters are bracket and values."""

    function: Callable[..., Any]
    solver: Any
    bracketed: bool

    where: ClassVar[str] = "inverse"

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those of roots, or what works within a bracket."""
        return (Bisection,) if self.bracketed else (RootSolver,)

    def residual(self, x: Any, lower: Any, upper: Any, y: Tensor, *params: Any) -> Any:
        """What is left to the values wanted."""
        return self.function(x, *params) - y

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By Newton's method, or by bisection within a bracket."""
        if not self.bracketed:
            solver = Newton() if self.solver is None else self.solver
            run: Run = solver.find(on_flat(self.residual), x0)
            return run._replace(kept=())

        def end(position: int) -> Tensor:
            def like_x(x: Tensor, *params: Any) -> Tensor:
                return torch.as_tensor(params[position]).to(x).expand_as(x)

            return on_flat(like_x)(x0)

        solver = Bisection() if self.solver is None else self.solver
        function, lower, upper = on_flat(self.residual), end(0), end(1)
        found: Run = solver.find(function, lower, upper)
        # A jump or a pole changes its sign like a value that is taken, but stays away from zero.
        left = torch.linalg.vector_norm(function(found.x), dim=-1)
        ends = [torch.linalg.vector_norm(function(t), dim=-1) for t in (lower, upper)]
        missed = ~(left <= JUMP * torch.maximum(*ends)) & (found.status <= Status.SOLVED_INACCURATE)
        status = found.status.masked_fill(missed, Status.NUMERICAL_ERROR)
        return found._replace(kept=(), status=status)


def inverse(
    f: Callable[..., Any],
    y: Tensor,
    *params: Any,
    x0: Tensor | None = None,
    bracket: tuple[Any, Any] | None = None,
    batch_ndim: int | None = None,
    solver: Any = None,
    adjoint: Adjoint | Unrolled | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Find :math:`x` with :math:`f(x, \theta) = y`, the inverse function at :math:`y`.

    By the inverse function theorem :math:`dx = (\partial_x f)^{-1} (dy - \partial_\theta f\,
    d\theta)`.

    Args:
        f: Maps ``x`` and the parameters to what has the shape of ``x``.
        y: The values, a tensor; derivatives with respect to it come with the others.
        *params: Everything else that derivatives are wanted for, see :func:`root`.
        x0: Where to start, of the shape of ``y``; by default zeros, or the middle of the bracket.
        bracket: ``(lower, upper)``, numbers or tensors that broadcast against ``y``, between which
            an elementwise :math:`f` takes each value: found safely by bisection.
        batch_ndim: Leading dimensions of ``y`` that are independent samples. By default all of
            them: :math:`f` acts on every element on its own.
        solver: By default :class:`~optlayers.solvers.Newton`, with a bracket
            :class:`~optlayers.solvers.Bisection`.
        adjoint: By default :class:`Dense`.
        on_failure: See :func:`root`.

    Returns:
        A solution with ``x`` of the shape of ``y``.

    Raises:
        SolverError: If a value is not reached, or :math:`\partial_x f` is singular in backward.
        ValueError: If a bracket is given for a function of several variables.

    References:
        Blondel and Roulet, *The elements of differentiable programming*, 2024, section 11.4.5.

    Example:
        Quantiles of the normal distribution, with their derivatives.

        >>> import torch, optlayers as ol
        >>> p = torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64, requires_grad=True)
        >>> x = ol.inverse(torch.special.ndtr, p, bracket=(-10.0, 10.0)).x
        >>> x
        tensor([-1.9600,  0.0000,  1.9600], dtype=torch.float64, grad_fn=...)
        >>> torch.autograd.grad(x.sum(), p)[0]  # one over the density
        tensor([17.1101,  2.5066, 17.1101], dtype=torch.float64)
    """
    ndim = y.ndim if batch_ndim is None else batch_ndim
    if bracket is not None and ndim != y.ndim:
        raise ValueError(
            f"inverse: a bracket is for functions of one variable, batch_ndim={y.ndim} for this y; "
            f"got batch_ndim={ndim}. Leave batch_ndim out if f acts on each element on its own, or "
            "start Newton's method at x0 instead."
        )
    lower, upper = (None, None) if bracket is None else bracket
    if x0 is None:
        x0 = torch.zeros_like(y)
        if bracket is not None:
            x0 = x0 + 0.5 * (torch.as_tensor(lower).to(y) + torch.as_tensor(upper).to(y))
    function, params = called(f, params)
    kind = Preimages(function, solver, bracket is not None)
    return find(
        kind,
        x0,
        (lower, upper, y, *params),
        batch_ndim=ndim,
        adjoint=Dense() if adjoint is None else adjoint,
        on_failure=on_failure,
    )
