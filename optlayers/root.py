"""Roots of systems of equations as differentiable functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from solvers.iteration import Run
from solvers.root import Newton
from solvers.root.solver import RootSolver
from solvers.solution import Solution

from .failure import OnFailure
from .implicit.adjoints import Adjoint, Dense, Unrolled
from .implicit.find import called, find
from .implicit.kind import Kind, OnFlat


@dataclass(frozen=True)
class RootOf(Kind):
    """Zeros of a function, found by a root finder."""

    function: Callable[..., Any]
    solver: RootSolver

    where: ClassVar[str] = "root"

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those of roots."""
        return (RootSolver,)

    def residual(self, x: Any, *params: Any) -> Any:
        """The function itself."""
        return self.function(x, *params)

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By the solver."""
        return self.solver.find(on_flat(self.function), x0)

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """By the Jacobian that the solver factored last."""
        return self.solver.apply_inverse(kept, v, transposed=transposed)


def root(
    F: Callable[..., Any],
    x0: Any,
    *params: Any,
    batch_ndim: int = 0,
    solver: RootSolver | None = None,
    adjoint: Adjoint | Unrolled | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Find :math:`x` with :math:`F(x, \theta) = 0`.

    Derivatives come from the implicit function theorem,
    :math:`dx = -(\partial_x F)^{-1}\, \partial_\theta F\, d\theta`, to any order; how the root was
    found does not matter to them.

    Args:
        F: Maps ``x`` and the parameters to what has the structure and shapes of ``x``.
        x0: Where to start: a tensor, or a pytree of tensors of one dtype.
        *params: Everything that derivatives are wanted for: tensors, pytrees of them, modules,
            whose parameters count; other objects are constants. A tensor that requires a gradient
            and is captured by ``F`` instead is an error.
        batch_ndim: Leading dimensions of ``x`` that are independent samples, each with its own
            convergence and status. ``F`` gets all of them at once and must not mix them.
        solver: By default :class:`~optlayers.solvers.Newton`.
        adjoint: How derivatives solve with the Jacobian; by default :class:`Dense`.
        on_failure: ``"raise"``; or ``"warn"`` or ``"ignore"``, which give NaN for samples that are
            not solved, and zero gradients there.

    Returns:
        A solution: ``x``, ``status``, ``iterations``, and the length of the last step as
        ``dual_residual``.

    Raises:
        SolverError: If a sample is not solved, or its Jacobian is singular in backward.
        RuntimeError: If ``F`` captures something that requires a gradient.
        ValueError: If ``F`` returns another structure than that of ``x``.

    References:
        Blondel and Roulet, *The elements of differentiable programming*, 2024, section 11.4.

    Example:
        >>> import torch, optlayers as ol
        >>> c = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> x = ol.root(lambda x, c: x**3 + x - c, torch.zeros_like(c), c).x
        >>> x
        tensor(1., dtype=torch.float64, grad_fn=...)
        >>> x.backward()
        >>> c.grad  # 1 / (3 x^2 + 1)
        tensor(0.2500, dtype=torch.float64)
    """
    function, params = called(F, params)
    kind = RootOf(function, Newton() if solver is None else solver)
    adjoint = Dense() if adjoint is None else adjoint
    return find(kind, x0, params, batch_ndim=batch_ndim, adjoint=adjoint, on_failure=on_failure)
