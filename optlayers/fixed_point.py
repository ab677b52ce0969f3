"""Fixed points of maps as differentiable functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solvers.fixed_point import Anderson
from solvers.fixed_point.solver import FixedPointSolver
from solvers.iteration import Run
from solvers.solution import Solution

from .failure import OnFailure
from .implicit.adjoints import Adjoint, Unrolled
from .implicit.automatic import Automatic
from .implicit.find import called, find
from .implicit.kind import Kind, OnFlat


@dataclass(frozen=True)
class FixedPointOf(Kind):
    """Fixed points of a map, found by iteration."""

    function: Callable[..., Any]
    solver: FixedPointSolver

    where: ClassVar[str] = "fixed_point"

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those of fixed points."""
        return (FixedPointSolver,)

    def residual(self, x: Any, *params: Any) -> Any:
        """What is left of the point when its image is taken away."""
        image = self.function(x, *params)
        if isinstance(x, Tensor) and isinstance(
            image, Tensor
        ):  # a pytree takes three times as long
            return x - image
        return pytree.tree_map(torch.sub, x, image)

    @property
    def image(self) -> Callable[..., Any]:
        """The map."""
        return self.function

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By the solver."""
        return self.solver.find(on_flat(self.image), x0)

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """By what the solver kept."""
        return self.solver.apply_inverse(kept, v, transposed=transposed)


def fixed_point(
    f: Callable[..., Any],
    x0: Any,
    *params: Any,
    batch_ndim: int = 0,
    solver: FixedPointSolver | None = None,
    adjoint: Adjoint | Unrolled | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Find :math:`x` with :math:`x = f(x, \theta)`.

    Derivatives solve :math:`(I - \partial_x f)\, dx = \partial_\theta f\, d\theta`, whatever found
    the point.

    Args:
        f: Maps ``x`` and the parameters to what has the structure and shapes of ``x``; or a module.
        x0: Where to start: a tensor, or a pytree of tensors of one dtype.
        *params: Everything that derivatives are wanted for, see :func:`root`.
        batch_ndim: Leading dimensions of ``x`` that are independent samples.
        solver: By default :class:`~optlayers.solvers.Anderson`; plain iteration is
            :class:`~optlayers.solvers.Picard`.
        adjoint: By default :class:`Dense` for few unknowns, and :class:`FixedPoint` for many.
        on_failure: See :func:`root`.

    Returns:
        A solution whose ``x`` is :math:`f` of the last iterate.

    Raises:
        SolverError: If a sample is not solved, or :math:`I - \partial_x f` is singular in backward.
        RuntimeError: If ``f`` captures something that requires a gradient.
        ValueError: If ``f`` returns another structure than that of ``x``.

    References:
        Bai, Kolter and Koltun, *Deep equilibrium models*, NeurIPS 2019.

    Example:
        >>> import torch, optlayers as ol
        >>> a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> x = ol.fixed_point(lambda x, a: 0.5 * (x + a / x), torch.ones_like(a), a).x
        >>> x  # Heron's square root
        tensor(1.4142, dtype=torch.float64, grad_fn=...)
        >>> x.backward()
        >>> a.grad
        tensor(0.3536, dtype=torch.float64)
    """
    function, params = called(f, params)
    kind = FixedPointOf(function, Anderson() if solver is None else solver)
    adjoint = Automatic(contracts=True) if adjoint is None else adjoint
    return find(kind, x0, params, batch_ndim=batch_ndim, adjoint=adjoint, on_failure=on_failure)
