"""Minima of functions as differentiable functions: free, on a set, with a penalty, constrained."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solvers.iteration import Run
from solvers.minimize import (
    LBFGS,
    LBFGSB,
    BlockCoordinateDescent,
    ProjectedGradient,
    ProximalGradient,
    ScipyMinimize,
    TrustRegion,
)
from solvers.minimize.solver import MinimizeSolver
from solvers.solution import Solution

from .box import clamp, each, ends_of
from .constrained import minimize_constrained
from .failure import OnFailure
from .implicit.adjoints import Adjoint, Unrolled
from .implicit.automatic import Automatic
from .implicit.find import called, find
from .implicit.kind import Kind, OnFlat
from .loss import Loss, per_sample

# Variables up to which Newton's method forms Hessians by default.
DENSE_SIDE = 256


@dataclass(frozen=True)
class Free(Kind):
    """Stationary points of a loss."""

    loss: Loss
    solver: MinimizeSolver | None

    where: ClassVar[str] = "minimize"
    symmetric: ClassVar[bool] = True
    has_value: ClassVar[bool] = True

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those that need no constraint."""
        return (MinimizeSolver, LBFGSB, BlockCoordinateDescent, ScipyMinimize)

    def residual(self, x: Any, *params: Any) -> Any:
        """The gradient."""
        return self.loss.gradient(x, *params)

    def value(self, x: Any, *params: Any) -> Tensor:
        """The loss: at a minimum it does not change with ``x``."""
        return self.loss(x, *params)

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By the solver; by default Newton's method in a trust region where Hessians are small."""
        return self._solver(x0.shape[-1]).find(on_flat(self.loss, scalar=True), x0)

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """By the Hessian that the solver factored last."""
        return self._solver(v.shape[-1]).apply_inverse(kept, v, transposed=transposed)

    def _solver(self, n: int) -> MinimizeSolver:
        default = TrustRegion() if n <= DENSE_SIDE else LBFGS()
        return default if self.solver is None else self.solver


@dataclass(frozen=True)
class OnSet(Kind):
    r"""Minima on a convex set :math:`C(\theta)`: fixed points of a projected gradient step.

    Any positive step size gives the same points and the same derivatives; but a step that is long
    for the curvature would turn errors of the point into errors of where it lies on the set.
    """

    loss: Loss
    projection: Callable[..., Any]
    solver: Any

    where: ClassVar[str] = "minimize"
    has_value: ClassVar[bool] = True

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those that project."""
        return (ProjectedGradient,)

    def _step(self, x: Any, *params: Any) -> tuple[Any, Any]:
        g, step = self.loss.gradient_and_step(x, *params)
        moved = self.projection(self.loss.descend(x, step, g), *params)
        return g, each(torch.sub, x, moved)

    def residual(self, x: Any, *params: Any) -> Any:
        """What a projected gradient step would change."""
        return self._step(x, *params)[1]

    def value(self, x: Any, *params: Any) -> Tensor:
        r"""The loss, corrected such that its derivatives know of the set.

        :math:`f(x) - \langle \nabla f, x - P(x - s \nabla f)\rangle`: the second term is zero, and
        so is all of its derivative but that of :math:`P` in the parameters of the set, which is
        what the multipliers say about them.
        """
        g, rest = self._step(x, *params)
        return self.loss(x, *params) - self.loss.inner(g, rest)

    def number(self, x: Any, *params: Any) -> Tensor:
        """The loss."""
        return self.loss(x, *params)

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By projected gradients, unless told otherwise."""
        solver = ProjectedGradient() if self.solver is None else self.solver
        run: Run = solver.find(on_flat(self.loss, scalar=True), x0, on_flat(self.projection))
        return run._replace(kept=())


@dataclass(frozen=True)
class InBox(OnSet):
    """Minima between bounds, the first two of the parameters; either may be None."""

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those that know bounds."""
        return (LBFGSB, ScipyMinimize)

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By L-BFGS-B, unless told otherwise."""
        ends = ends_of(on_flat, x0, lambda x, lb, ub, *params: (x, lb, ub))
        solver = LBFGSB() if self.solver is None else self.solver
        run: Run = solver.find(on_flat(self.loss, scalar=True), x0, *ends)
        return run._replace(kept=())


@dataclass(frozen=True)
class WithPenalty(Kind):
    """Minima of a loss and a penalty that is known by its proximal operator."""

    loss: Loss
    proximal: Callable[..., Any]
    solver: Any

    where: ClassVar[str] = "minimize"

    @property
    def solvers(self) -> tuple[type, ...]:
        """Those that take proximal steps."""
        return (ProximalGradient, BlockCoordinateDescent)

    def residual(self, x: Any, *params: Any) -> Any:
        """What a proximal gradient step would change."""
        g, step = self.loss.gradient_and_step(x, *params)
        moved = self.loss.descend(x, step, g)
        sized = per_sample(step, pytree.tree_leaves(x)[0])
        return each(torch.sub, x, self.proximal(moved, sized, *params))

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """By proximal gradients, unless told otherwise."""
        solver = ProximalGradient() if self.solver is None else self.solver
        run: Run = solver.find(on_flat(self.loss, scalar=True), x0, on_flat(self.proximal))
        return run._replace(kept=())


@dataclass(frozen=True)
class _Skipping:
    """A function of ``x`` and of all parameters but the first few."""

    function: Callable[..., Any]
    skipped: int = 1

    def __call__(self, x: Any, *params: Any) -> Any:
        return self.function(x, *params[self.skipped :])


def minimize(
    loss: Callable[..., Tensor],
    x0: Any,
    *params: Any,
    projection: Callable[..., Any] | None = None,
    proximal: Callable[..., Any] | None = None,
    equalities: Callable[..., Tensor] | None = None,
    inequalities: Callable[..., Tensor] | None = None,
    bounds: tuple[Any, Any] | None = None,
    batch_ndim: int = 0,
    solver: Any = None,
    adjoint: Adjoint | Unrolled | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Find a local minimum :math:`x(\theta) = \arg\min_x f(x, \theta)`.

    Derivatives come from the optimality conditions at the minimum, whatever found it:

    ================================  ==============================================================
    given                             conditions
    ================================  ==============================================================
    nothing                           :math:`\nabla_x f = 0`
    ``projection``, or ``bounds``     :math:`x = P_{C(\theta)}(x - s \nabla_x f)`
    ``proximal``                      :math:`x = \mathrm{prox}_{s g}(x - s \nabla_x f)`
    ``equalities``, ``inequalities``  Karush, Kuhn and Tucker's, with ``bounds`` too if given
    ================================  ==============================================================

    with a step :math:`s` of the order of one over the curvature; any gives the same derivatives.
    The optimal value is differentiable as well, ``solution.objective``, by the envelope theorems of
    Danskin and Rockafellar: no linear system is solved for its gradient, which is right even where
    the minimum is not unique. With ``proximal`` it is the value of :math:`f` alone, and its
    derivatives go through :math:`x`.

    Args:
        loss: Maps ``x`` and the parameters to one number a sample, ``(*batch)``.
        x0: Where to start: a tensor, or a pytree of tensors of one dtype.
        *params: Everything that derivatives are wanted for, see :func:`root`.
        projection: Maps ``x`` and the parameters to the nearest point of a convex set, which may
            depend on the parameters.
        proximal: Maps ``x``, a step size :math:`s` (a tensor that broadcasts against ``x``), and
            the parameters to :math:`\arg\min_u g(u, \theta) + \|u - x\|^2 / (2 s)`.
        equalities: Maps ``x`` and the parameters to ``(*batch, p)``, zero at the solution.
        inequalities: Maps ``x`` and the parameters to ``(*batch, m)``, not positive at it.
        bounds: ``(lb, ub)``, each None, a number, a tensor that broadcasts against ``x``, or of the
            structure of ``x``; may require gradients.
        batch_ndim: Leading dimensions of ``x`` that are independent samples.
        solver: One of ``optlayers.solvers`` for this kind of problem. By default ``TrustRegion``
            for up to 256 variables and ``LBFGS`` beyond, ``ProjectedGradient``,
            ``ProximalGradient``, ``LBFGSB``; with constraints ``SQP``, polished by Newton's method
            on the conditions.
        adjoint: By default :class:`Dense` for up to some hundred variables, :class:`Iterative`
            beyond.
        on_failure: See :func:`root`.

    Returns:
        A solution: ``x``, ``objective``, and with constraints the multipliers ``y``, ``z`` and
        ``z_box``, all differentiable.

    Raises:
        SolverError: If a sample is not solved, or its conditions are singular in backward.
        RuntimeError: If a function captures something that requires a gradient.
        ValueError: If more than one kind of constraint is given, or shapes do not fit.

    References:
        Blondel and Roulet, *The elements of differentiable programming*, 2024, chapter 11; Blondel
        et al., *Efficient and modular implicit differentiation*, NeurIPS 2022, section 2.

    Example:
        Ridge regression, differentiated in its penalty.

        >>> import torch, optlayers as ol
        >>> X, y = torch.eye(2, dtype=torch.float64), torch.tensor([2.0, 4.0], dtype=torch.float64)
        >>> penalty = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        >>> def loss(w, penalty):
        ...     return 0.5 * (X @ w - y).square().sum() + 0.5 * penalty * w.square().sum()
        >>> w = ol.minimize(loss, torch.zeros(2, dtype=torch.float64), penalty).x
        >>> w.detach().round(decimals=4)
        tensor([1., 2.], dtype=torch.float64)
        >>> w.sum().backward()
        >>> penalty.grad  # -sum y / (1 + penalty)^2
        tensor(-1.5000, dtype=torch.float64)
    """
    function, params_of_loss = called(loss, params)
    if len(params_of_loss) > len(params):  # a module came first, which the others do not take
        projection, proximal, equalities, inequalities = (
            None if f is None else _Skipping(f)
            for f in (projection, proximal, equalities, inequalities)
        )
    params = params_of_loss
    constrained = equalities is not None or inequalities is not None
    chosen = {"projection": projection, "proximal": proximal}
    given = [name for name, f in chosen.items() if f is not None]
    if constrained:
        given.append("equalities or inequalities")
    if len(given) > 1 or (bounds is not None and not constrained and given):
        together = [*given, *([] if bounds is None else ["bounds"])]
        raise ValueError(
            f"minimize: {' and '.join(together)} exclude each other; got all of them. Put them "
            "into one projection, or state everything as equalities, inequalities and bounds."
        )
    of_batch = Loss(function, batch_ndim)
    kind: Kind
    if constrained:
        return minimize_constrained(
            of_batch, x0, params, equalities, inequalities, bounds, batch_ndim, solver, adjoint,
            on_failure,
        )  # fmt: skip
    if projection is not None:
        kind = OnSet(of_batch, projection, solver)
    elif proximal is not None:
        kind = WithPenalty(of_batch, proximal, solver)
    elif bounds is not None:
        lb, ub = bounds
        params = (lb, ub, *params)
        kind = InBox(Loss(_Skipping(function, 2), batch_ndim), clamp, solver)
    else:
        kind = Free(of_batch, solver)
    adjoint = Automatic() if adjoint is None else adjoint
    solution = find(kind, x0, params, batch_ndim=batch_ndim, adjoint=adjoint, on_failure=on_failure)
    if proximal is not None:
        solution.objective = of_batch(solution.x, *params)
    return solution
