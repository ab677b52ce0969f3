r"""How derivatives solve :math:`A^\top u = v`, or :math:`A u = v`, with the Jacobian :math:`A`.

Exact adjoints end with a residual and say so when it is not small. Approximate ones take the
conditions as :math:`x - T(x)` and sum a few terms of a series: cheaper, and as wrong as the series
is short.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from solvers.derivatives import jacobian_product, value_and_jacobian
from solvers.fixed_point import Anderson, FixedPointSolver
from solvers.solution import Solution, SolverError, Status
from solvers.systems import ratios, solve_both

from ..failure import OnFailure, warn
from .graph import Graph

if TYPE_CHECKING:
    from .kind import Kind

# Relative residuals from which an adjoint is inaccurate, and from which it is no solution at all.
INACCURATE = {torch.float64: 1e-6, torch.float32: 1e-3}
NO_SOLUTION = 0.1
REFINEMENTS = 3  # on a matrix whose factors are slightly wrong
# A Newton step is short relative to this if the solution is zero.
NEARBY = {torch.float64: 1e-4, torch.float32: 1e-2}


@dataclass(frozen=True)
class Linearised:
    """Conditions at a point, on flat batches.

    Attributes:
        function: The conditions, ``(B, n)`` to ``(B, n)``.
        x: The point ``(B, n)``.
        kind: What the conditions belong to.
        kept: What the solver kept.
        transposed: Whether the system is that of the transposed Jacobian.
        on_failure: What to do where there is no solution.
        graph: The conditions there, ready for autograd, if they are at hand.
        signs: Of ``x``, as :meth:`Kind.signs` says, where there are multipliers.
    """

    function: Callable[[Tensor], Tensor]
    x: Tensor
    kind: "Kind"
    kept: tuple[Tensor, ...]
    transposed: bool
    on_failure: OnFailure
    graph: Graph | None = None
    signs: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def product(self) -> Callable[[Tensor], Tensor]:
        """The matrix of the system times ``(columns, B, n)``."""
        if self.graph is not None:
            return self.graph.product
        return self._product_at(self.x, self.transposed)

    def other_product(self) -> Callable[[Tensor], Tensor]:
        """Its transpose times ``(columns, B, n)``."""
        return self._product_at(self.x, not self.transposed)

    def _product_at(self, x: Tensor, transposed: bool) -> Callable[[Tensor], Tensor]:
        if not (transposed or self.kind.symmetric):
            return over_columns(jacobian_product(self.function, x))
        return Graph(self.function, x).product

    def step(self, v: Tensor) -> Callable[[Tensor], Tensor]:
        r"""One of :math:`u \leftarrow u - (A u - v)`, where :math:`A` is the system's matrix.

        Args:
            v: The right-hand side ``(columns, B, n)``.

        Returns:
            A map of ``(columns * B, n)``.
        """
        flat, graph = v.reshape(-1, v.shape[-1]), self.graph
        if graph is not None and len(v) == 1:
            return lambda u: graph.step(u, flat)
        return lambda u: u - self.product(u.reshape(v.shape)).reshape(flat.shape) + flat

    def residual(self, u: Tensor, v: Tensor, step: Tensor | None = None) -> Tensor:
        """What a solution leaves of ``v``, ``(columns, B, n)``, perhaps with the matrix a step on.

        The derivatives in the parameters, which come with it, are then those a step on as well.
        """
        if self.graph is not None:
            return v - self.graph.last_product(u, step)
        if step is None:
            return v - self.product(u)
        return v - self._product_at(self.x + step, self.transposed)(u)

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The value of the conditions ``(B, n)`` and the matrix of the system ``(B, n, n)``."""
        if self.graph is None:
            value, A = value_and_jacobian(self.function, self.x)
        else:
            value = self.graph.conditions()
            basis = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
            A = self.graph.product(basis[:, None].expand(-1, *value.shape)).movedim(0, 1)
        return value, A.mT if self.transposed else A


class Adjoint(ABC):
    """Base of the adjoints."""

    @abstractmethod
    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for ``v`` ``(columns, B, n)``.

        Returns:
            The solution and its relative residuals ``(columns, B)``.
        """


@dataclass(frozen=True)
class Dense(Adjoint):
    r"""Form the Jacobian of each sample and factor it: exact to rounding, for up to some hundreds.

    If the solver factored the Jacobian already, that factorisation is used, refined on the true
    Jacobian. The residual is taken with the Jacobian one Newton step further on, and with it, where
    nobody differentiates again, come the derivatives in the parameters: where the solution is so
    inaccurate, or the Jacobian so nearly singular, that this matters, derivatives are not to be
    trusted, and the residual shows it.
    """

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Solve by LU."""
        if not v.numel():
            return torch.zeros_like(v), v.new_zeros(v.shape[:-1])
        found = _by_what_was_kept(system, v) if system.kept else None
        if found is None:
            value, M = system.matrix()
            found = solve_both(M, v, value, crossed=system.transposed)
            if system.signs is not None:
                found = _as_if_independent(system, M, v, value, found)
        u, back = found
        # A Newton step tells how far the point may be from the solution.
        far, farthest = ratios(back, system.x.detach(), NEARBY[v.dtype])
        step = -back
        if not farthest <= NO_SOLUTION:
            step = torch.where(far[:, None] <= NO_SOLUTION, step, 0.0)
        solved, residual = judged(system, v, u, relative(system.residual(u, v, step), v, far))
        if solved is not u:  # what is left out must not be looked at where it may be undefined
            system.residual(solved, v, torch.where(solved.any(-1).any(0)[:, None], step, 0.0))
        return solved, residual


def _as_if_independent(
    system: Linearised, M: Tensor, v: Tensor, w: Tensor, found: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Where a matrix is singular because multipliers are not unique: one solution of many.

    It is found by a small diagonal in their place, and refined on the matrix itself, which only
    succeeds where nothing else makes that singular.
    """
    assert system.signs is not None

    def left(u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        other = M.mT if system.transposed else M
        return v - (M @ u[..., None])[..., 0], w - (other @ x[..., None])[..., 0]

    def right(u: Tensor, x: Tensor, asked: float) -> Tensor:
        """Where both solve their systems ``(columns, B)``."""
        of_u, of_x = left(u, x)
        return (relative(of_u, v)[0] <= asked) & (relative(of_x, w)[0] <= asked)

    eps = torch.finfo(v.dtype).eps
    direct = right(*found, eps**0.75)
    if bool(direct.all()):
        return found
    small = eps**0.5
    largest = M.abs().amax((-2, -1))[:, None]
    N = M + torch.diag_embed(small * largest * system.signs(system.x.detach()))
    u, x = solve_both(N, v, w, crossed=system.transposed)
    for _ in range(REFINEMENTS):
        more = solve_both(N, *left(u, x), crossed=system.transposed)
        u, x = u + more[0], x + more[1]
    better = ~direct & (relative(left(u, x)[0], v)[0] <= small)
    # Not a step on: there rounding may choose other constraints of those that are active.
    size = 1 + torch.linalg.vector_norm(system.x.detach(), dim=-1)
    x = x.masked_fill((torch.linalg.vector_norm(x, dim=-1) <= small * size)[:, None], 0.0)
    return (
        torch.where(better[..., None], u, found[0]),
        torch.where(better.any(0)[:, None], x, found[1]),
    )


def _by_what_was_kept(system: Linearised, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """Solve for ``v`` and for the conditions, as ``solve_both`` does, with what forward factored.

    Refined; None if that does not get there.
    """

    def rough(v: Tensor, transposed: bool) -> Tensor:
        solved = [system.kind.apply_inverse(system.kept, c, transposed=transposed) for c in v]
        return torch.stack(solved)

    u = rough(v, system.transposed)
    u = u + rough(v - system.product(u), system.transposed)
    _, worst = relative(v - system.product(u), v)
    if not worst < torch.finfo(v.dtype).eps ** 0.75:
        return None
    return u, rough(system.function(system.x)[None], False)[0]


@dataclass(frozen=True)
class Iterative(Adjoint):
    """Solve by an iterative linear solver: products with the Jacobian, never the Jacobian itself.

    Attributes:
        linear_solver: One of ``optlayers.solvers``; by default MINRES where the Jacobian is
            symmetric, GMRES elsewhere.
        preconditioner: Maps ``(B, n)`` to an approximate solution ``(B, n)``.
    """

    linear_solver: Any = None
    preconditioner: Callable[[Tensor], Tensor] | None = None

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for all columns at once."""
        from solvers.linear import GMRES, MINRES, LinearOperator, LinearSolver

        solver: LinearSolver = self.linear_solver
        if solver is None:
            solver = MINRES() if system.kind.symmetric else GMRES()
        n = v.shape[-1]
        product, other = system.product, system.other_product()

        def on_all(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return lambda u: function(u.reshape(v.shape)).reshape(-1, n)

        operator = LinearOperator(on_all(product), on_all(other), symmetric=system.kind.symmetric)
        preconditioner = self.preconditioner  # of one column
        if preconditioner is not None:
            preconditioner = on_all(over_columns(preconditioner))
        run = solver.find(operator, v.reshape(-1, n), preconditioner=preconditioner)
        u = run.x.reshape(v.shape)
        return judged(system, v, u, relative(system.residual(u, v), v))


@dataclass(frozen=True)
class FixedPoint(Adjoint):
    r"""Iterate :math:`u \leftarrow u - (A^\top u - v)` by a fixed-point solver.

    For conditions :math:`x - f(x)` of a contraction that is :math:`u = J^\top u + v`, and converges
    as fast as forward did.

    Attributes:
        solver: By default the one that forward had, with its tolerances (relative to the
            cotangents), or Anderson acceleration if that was no fixed-point solver.
    """

    solver: FixedPointSolver | None = None

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Solve for all columns at once."""
        solver = self.solver
        if solver is None:
            forward = getattr(system.kind, "solver", None)
            solver = forward if isinstance(forward, FixedPointSolver) else Anderson()
        # Cotangents of any size become ones of length one, which tolerances are meant for.
        size = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        scaled = v / size.clamp_min_(torch.finfo(v.dtype).tiny)
        step = system.step(scaled)
        u = solver.find(step, scaled.reshape(-1, v.shape[-1])).x.reshape(v.shape) * size
        asked = 10.0 * ((solver.eps_abs or 0.0) + (solver.eps_rel or 0.0))
        return judged(system, v, u, relative(system.residual(u, v), v), asked)


@dataclass(frozen=True)
class Neumann(Adjoint):
    r"""Sum :math:`\sum_{i=0}^{k} (I - A^\top)^i v`: the first terms of the inverse's series.

    Approximate: the error is of the order of :math:`\rho^{k+1}` for a contraction with factor
    :math:`\rho`, and the series diverges where :math:`I - A` is no contraction.

    Attributes:
        k: Number of products with the Jacobian.
    """

    k: int = 5

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the series."""
        product, u = system.product, v
        for _ in range(self.k):
            u = u - product(u) + v
        return u, relative(v - product(u), v)[0]


@dataclass(frozen=True)
class Phantom(Adjoint):
    r"""Sum :math:`\tau \sum_{i=0}^{k-1} (I - \tau A^\top)^i v`, the phantom gradient.

    Attributes:
        k: Number of terms.
        tau: Damping :math:`\tau`.

    References:
        Geng, Zhang, Bai, Wang and Lin, *On training implicit models*, NeurIPS 2021, section 3.
    """

    k: int = 5
    tau: float = 0.5

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the series."""
        product, u = system.product, self.tau * v
        for _ in range(self.k - 1):
            u = u + self.tau * (v - product(u))
        return u, relative(v - product(u), v)[0]


@dataclass(frozen=True)
class OneStep(Adjoint):
    """Take the Jacobian of the conditions for the identity: backward through one last step only.

    References:
        Fung, Heaton, Li, McKenzie, Osher and Yin, *JFB: Jacobian-free backpropagation for implicit
        networks*, AAAI 2022.
    """

    def solve(self, system: Linearised, v: Tensor) -> tuple[Tensor, Tensor]:
        """The right-hand side itself."""
        return v, torch.full_like(v[..., 0], torch.nan)


@dataclass(frozen=True)
class Unrolled:
    r"""Differentiate steps :math:`x \leftarrow x - R(x, \theta)` from the solution on.

    No implicit function at all: plain torch through as many steps, starting at the detached
    solution. For fixed points these are evaluations of the map.

    Attributes:
        steps: Number of steps.
        checkpoint: Whether to keep only the points and to compute the rest again in backward.
    """

    steps: int = 1
    checkpoint: bool = False


def over_columns(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A map of ``(B, n)`` on ``(columns, B, n)``."""

    def mapped(v: Tensor) -> Tensor:
        return function(v[0])[None] if len(v) == 1 else vmap(function)(v)

    return mapped


def relative(residual: Tensor, v: Tensor, least: Tensor | None = None) -> tuple[Tensor, float]:
    """Lengths of residuals ``(..., B, n)`` relative to right-hand sides, and the largest.

    Zero where both are; nowhere below ``least`` ``(B)``.
    """
    return ratios(residual, v, torch.finfo(v.dtype).tiny, least)


def judged(
    system: Linearised,
    v: Tensor,
    u: Tensor,
    relative_to_v: tuple[Tensor, float],
    asked: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Say what is wrong with a solution, and let nothing wrong pass for a derivative.

    Args:
        system: That was solved.
        v: The right-hand side ``(columns, B, n)``; where it is zero there is nothing to be wrong.
        u: The solution ``(columns, B, n)``.
        relative_to_v: Relative residuals ``(columns, B)``, and the largest of them.
        asked: A residual that the user asked for, which needs no word.

    Raises:
        SolverError: Where the policy is to raise and a sample's system has no solution.
    """
    residual, worst = relative_to_v
    accepted = max(INACCURATE.get(u.dtype, 1e-1), asked)
    if worst <= accepted:
        return u, residual
    idle = ~v.any(-1)
    u = torch.where(idle[..., None], 0.0, u)
    residual = torch.where(idle, 0.0, residual)
    worst = float(residual.max())
    if worst <= accepted:
        return u, residual
    failed = ~(residual <= NO_SOLUTION)
    where = system.kind.where
    if bool(failed.any()):
        samples = torch.nonzero(failed.any(0)).reshape(-1).tolist()
        which = ", ".join(map(str, samples[:5])) + (", ..." if len(samples) > 5 else "")
        text = (
            f"{where}: the Jacobian of the conditions is singular, the solution too inaccurate, or "
            f"something that the function captures has changed since, at {len(samples)} of "
            f"{failed.shape[1]} samples ({which}): the linear system of the derivatives is left "
            f"with a relative residual of {worst:.1e}, so there are none"
        )
        if system.on_failure == "raise":
            status = torch.where(failed.any(0), Status.NUMERICAL_ERROR, Status.SOLVED)
            raise SolverError(
                f"{text}. Look whether the solution is unique, solve more accurately, or pass "
                "on_failure='warn' or 'ignore' to leave these samples out of the gradient.",
                Solution(system.x, status, torch.zeros_like(status)),
            )
        if system.on_failure == "warn":
            warn(f"{text}. They are left out of the gradient.")
        u = torch.where(failed[..., None], 0.0, u)
        worst = float(residual[~failed].max()) if bool((~failed).any()) else 0.0
    if worst > accepted and system.on_failure != "ignore":
        warn(
            f"{where}: the linear system of the derivatives is solved to a relative residual of "
            f"{worst:.1e} only; gradients are as inaccurate. Solve forward more accurately, or use "
            "another adjoint."
        )
    return u, residual
