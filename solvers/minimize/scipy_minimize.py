"""SciPy's minimisers, one sample after the other; also with bounds and constraints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..derivatives import hessian, jacobian, value_and_gradient
from ..iteration import LOOSE, Run
from ..solution import Solution, Status
from .lbfgsb import flat_bounds

Function = Callable[[Tensor], Tensor]
Array = Any

NO_GRADIENT = frozenset({"nelder-mead", "powell", "cobyla", "cobyqa"})
TAKES_HESSIAN = frozenset(
    {"newton-cg", "dogleg", "trust-ncg", "trust-krylov", "trust-exact", "trust-constr"}
)
TAKES_BOUNDS = frozenset(
    {"nelder-mead", "l-bfgs-b", "tnc", "slsqp", "powell", "trust-constr", "cobyla", "cobyqa"}
)
TAKES_CONSTRAINTS = frozenset({"slsqp", "trust-constr"})
METHODS = NO_GRADIENT | TAKES_HESSIAN | TAKES_BOUNDS | {"cg", "bfgs"}
# A row may be active this close to its end, relative to 1 + |x|: interior methods stop before it.
ACTIVE, FEASIBLE = 1e-5, 1e-6
# What the largest entry of the Lagrangian's gradient may be where SciPy stopped without success.
ACCEPTABLE = 1e-9
SCIPY_OUT_OF_ITERATIONS = {"slsqp": 9, "trust-constr": 0, "tnc": 3}


class Problem(NamedTuple):
    """What is to be minimised, on the flat batch."""

    f: Function
    x0: Tensor
    lower: Tensor | None
    upper: Tensor | None
    equalities: Function | None
    inequalities: Function | None


@dataclass(frozen=True)
class ScipyMinimize:
    r"""Adapter of :func:`scipy.optimize.minimize`.

    Minimises :math:`f(x)` subject to :math:`h(x) = 0`, :math:`c(x) \le 0`, :math:`l \le x \le u`.
    All derivatives are exact. Samples are solved one after the other on the CPU, and each call
    evaluates the functions on the whole batch, of which one row is used: meant for single problems,
    for constraints, and to check other solvers.

    The multipliers come from the conditions of optimality at the point found: nonnegative least
    squares on

    .. math::
        \nabla f + \nabla h\, y + \nabla c\, z + z_{\mathit{ub}} - z_{\mathit{lb}} = 0

    over the rows that are active there. A point where SciPy reports no success, but where these
    conditions hold to 1e-6, counts as solved inaccurately.

    Attributes:
        method: Of SciPy: ``"L-BFGS-B"``, ``"trust-exact"``, ...; with constraints ``"SLSQP"`` or
            ``"trust-constr"``. All but those without derivatives are handed gradients, and Hessians
            if they can use them.
        tol: SciPy's tolerance, which each method understands in its own way; None for its default.
        max_iter: Iterations allowed to each sample.

    References:
        Kraft, *A software package for sequential quadratic programming*, DFVLR-FB 88-28, 1988;
        Byrd, Lu, Nocedal and Zhu, *A limited memory algorithm for bound constrained optimization*,
        SIAM J. Sci. Comput. 16 (1995).

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import ScipyMinimize
        >>> f = lambda x: ((x - 1) ** 2).sum(-1)
        >>> budget = lambda x: x.sum(-1, keepdim=True) - 1
        >>> x0 = torch.zeros(2, dtype=torch.float64)
        >>> solution = ScipyMinimize("SLSQP").solve(f, x0, inequalities=budget)
        >>> solution.x.round(decimals=6), solution.z.round(decimals=6)
        (tensor([0.5000, 0.5000], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """

    method: str = "L-BFGS-B"
    tol: float | None = 1e-12
    max_iter: int = 1000

    def __post_init__(self) -> None:
        """Check the name of the method."""
        if self.method.lower() not in METHODS:
            raise ValueError(
                f"ScipyMinimize: method must be one of scipy.optimize.minimize; got "
                f"{self.method!r}. Take one of {', '.join(sorted(METHODS))}, in any case."
            )

    def find(
        self,
        f: Callable[[Tensor], Tensor],
        x0: Tensor,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
    ) -> Run:
        """Free or between bounds, on a flat batch ``(B, n)``, as the methods in torch."""
        found = self.solve(f, x0, lower=lower, upper=upper)
        error = torch.zeros_like(x0[:, 0]) if found.dual_residual is None else found.dual_residual
        return Run(found.x, found.status, found.iterations, error, found.objective, (), None)

    @torch.no_grad()
    def solve(
        self,
        f: Function,
        x0: Tensor,
        *,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
        equalities: Function | None = None,
        inequalities: Function | None = None,
    ) -> Solution:
        r"""Find a local minimum of :math:`f` for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``.
            lower: Lower bounds, of a shape that broadcasts to that of ``x0``.
            upper: Upper bounds, likewise.
            equalities: :math:`h`, maps ``(*batch, n)`` to ``(*batch, p)``.
            inequalities: :math:`c`, maps ``(*batch, n)`` to ``(*batch, m)``.

        Returns:
            A solution with ``objective``, ``primal_residual``, ``dual_residual``, and the
            multipliers ``y``, ``z``, ``z_box`` of those constraints that were given.

        Raises:
            ValueError: If the method does not take the constraints, or a bound does not broadcast.
        """
        method, shape = self.method.lower(), x0.shape
        for given, takes, kind, better in (
            ((lower, upper), TAKES_BOUNDS, "bounds", "L-BFGS-B"),
            ((equalities, inequalities), TAKES_CONSTRAINTS, "constraints", "SLSQP"),
        ):
            if method not in takes and any(g is not None for g in given):
                raise ValueError(
                    f"ScipyMinimize.solve: the method must be one that takes {kind}; got "
                    f"{self.method!r}. Take {better!r} or 'trust-constr'."
                )
        flat = x0.detach().reshape(-1, shape[-1])

        def on_flat(function: Function | None) -> Function | None:
            if function is None:
                return None
            return lambda x: _rows(function(x.reshape(shape)), len(flat))

        low, high = flat_bounds(lower, upper, x0)
        problem = Problem(
            lambda x: f(x.reshape(shape)).reshape(-1),
            flat,
            low,
            high,
            on_flat(equalities),
            on_flat(inequalities),
        )
        x, status, iterations = flat.clone(), [], []
        for i in range(len(flat)):
            found = self._minimize(Sample(problem, i))
            x[i] = torch.as_tensor(found.x).to(x)
            status.append(_status(found, method))
            iterations.append(found.get("nit", found.nfev))
        return _solution(problem, x, status, iterations, shape)

    def _minimize(self, sample: "Sample") -> Any:
        from scipy import optimize  # slow to import

        method, problem = self.method.lower(), sample.problem
        settings: dict[str, Any] = {"options": {_limit_of(method): self.max_iter}}
        if method not in NO_GRADIENT:
            settings["jac"] = sample.gradient
        if method in TAKES_HESSIAN:
            settings["hess"] = sample.hessian
        if problem.lower is not None or problem.upper is not None:
            settings["bounds"] = optimize.Bounds(*sample.bounds())
        constraints = []
        for c, least in ((problem.equalities, 0.0), (problem.inequalities, -np.inf)):
            if c is None:
                continue
            rows: dict[str, Any] = {"jac": partial(sample.jacobian, c)}
            if method in TAKES_HESSIAN:
                rows["hess"] = partial(sample.curvature, c)
            of_c = partial(sample.of, c)
            constraints.append(optimize.NonlinearConstraint(of_c, least, 0.0, **rows))
        if constraints:
            settings["constraints"] = constraints
        start = _array(problem.x0[sample.i])
        with np.errstate(all="ignore"):  # whatever happens on the way, the result is judged
            return optimize.minimize(sample.value, start, method=method, tol=self.tol, **settings)


class Sample:
    """One problem of a batch, in numpy: its row of what the functions say of the batch."""

    def __init__(self, problem: Problem, i: int) -> None:
        """Remember which; values come with gradients, so the last pair is kept."""
        self.problem, self.i = problem, i
        self._last: tuple[bytes, float, Array] | None = None

    def _placed(self, x: Array) -> Tensor:
        # The functions may hold data of every sample, so they get the whole batch.
        whole = self.problem.x0.clone()
        whole[self.i] = torch.as_tensor(x).to(whole)
        return whole

    def _both(self, x: Array) -> tuple[float, Array]:
        key = x.tobytes()
        if self._last is None or self._last[0] != key:
            value, gradient = value_and_gradient(self.problem.f, self._placed(x))
            self._last = key, float(value[self.i]), _array(gradient[self.i])
        return self._last[1:]

    def value(self, x: Array) -> float:
        """The objective."""
        return self._both(x)[0]

    def gradient(self, x: Array) -> Array:
        """Its gradient."""
        return self._both(x)[1]

    def hessian(self, x: Array) -> Array:
        """Its Hessian."""
        return _array(hessian(self.problem.f, self._placed(x))[self.i])

    def of(self, c: Function, x: Array) -> Array:
        """A constraint."""
        return _array(c(self._placed(x))[self.i])

    def jacobian(self, c: Function, x: Array) -> Array:
        """Its Jacobian."""
        return _array(jacobian(c, self._placed(x))[self.i])

    def curvature(self, c: Function, x: Array, v: Array) -> Array:
        """Hessian of its product with ``v``."""
        weights = torch.as_tensor(v).to(self.problem.x0)
        return _array(hessian(lambda x: (c(x) * weights).sum(-1), self._placed(x))[self.i])

    def bounds(self) -> tuple[Array, Array]:
        """Lower and upper bounds, infinite where there are none."""
        n = self.problem.x0.shape[-1]
        low, high = self.problem.lower, self.problem.upper
        return (
            np.full(n, -np.inf) if low is None else _array(low[self.i]),
            np.full(n, np.inf) if high is None else _array(high[self.i]),
        )


def _array(t: Tensor) -> Array:
    return t.detach().to("cpu", torch.float64).numpy()


def _rows(values: Tensor, batch: int) -> Tensor:
    return values.reshape(batch, values.shape[-1])


def _limit_of(method: str) -> str:
    return "maxfun" if method == "tnc" else "maxiter"


def _status(found: Any, method: str) -> Status:
    if method == "trust-constr":  # its successes are 1 and 2, and it is modest about the rest
        solved = found.status in (1, 2) and found.constr_violation < FEASIBLE
    else:
        solved = bool(found.success)
    if not np.isfinite(found.fun) or not np.isfinite(found.x).all():
        return Status.NUMERICAL_ERROR
    if solved:
        return Status.SOLVED
    stopped = found.status == SCIPY_OUT_OF_ITERATIONS.get(method, 1)
    return Status.MAX_ITERATIONS if stopped else Status.NUMERICAL_ERROR


def _solution(
    problem: Problem, x: Tensor, status: list[Status], iterations: list[int], shape: torch.Size
) -> Solution:
    """Multipliers, residuals, and the status that they justify."""
    batch, (count, n) = shape[:-1], x.shape
    value, gradient = value_and_gradient(problem.f, x)
    nothing = x.new_zeros(count, 0), x.new_zeros(count, 0, n)
    h, dh = _with_jacobian(problem.equalities, x) or nothing
    c, dc = _with_jacobian(problem.inequalities, x) or nothing
    low = torch.full_like(x, -torch.inf) if problem.lower is None else problem.lower
    high = torch.full_like(x, torch.inf) if problem.upper is None else problem.upper
    near = ACTIVE * (1 + torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    active = c >= -near, x - low <= near, high - x <= near
    y, z, z_box = torch.zeros_like(h), torch.zeros_like(c), torch.zeros_like(x)
    dual = torch.zeros_like(value)
    for i in range(count):
        rows = [t[i].cpu() for t in (gradient, dh, dc, *active)]
        found = [torch.as_tensor(part).to(x) for part in _multipliers(*rows)]
        y[i], z[i], z_box[i], dual[i] = found
    excess = torch.cat([h.abs(), c, low - x, x - high, x.new_zeros(count, 1)], dim=-1)
    primal = excess.amax(-1) if count else x.new_zeros(0)
    holds = (primal <= ACCEPTABLE) & (dual <= LOOSE * ACCEPTABLE)
    outcome = torch.tensor([int(s) for s in status], dtype=torch.long, device=x.device)
    outcome[(outcome > Status.SOLVED_INACCURATE) & holds] = Status.SOLVED_INACCURATE
    bounded = problem.lower is not None or problem.upper is not None
    return Solution(
        x.reshape(shape),
        outcome.reshape(batch),
        torch.tensor(iterations, dtype=torch.long, device=x.device).reshape(batch),
        y=None if problem.equalities is None else y.reshape(*batch, y.shape[-1]),
        z=None if problem.inequalities is None else z.reshape(*batch, z.shape[-1]),
        z_box=z_box.reshape(shape) if bounded else None,
        objective=value.reshape(batch),
        primal_residual=primal.reshape(batch),
        dual_residual=dual.reshape(batch),
    )


def _with_jacobian(c: Function | None, x: Tensor) -> tuple[Tensor, Tensor] | None:
    return None if c is None else (c(x), jacobian(c, x))


def _multipliers(
    gradient: Tensor, dh: Tensor, dc: Tensor, active: Tensor, at_low: Tensor, at_high: Tensor
) -> tuple[Array, Array, Array, Array]:
    """Multipliers of one sample, and the largest entry of the Lagrangian's gradient."""
    from scipy.optimize import nnls

    eye = np.eye(len(gradient))
    g, dh, dc = _array(gradient), _array(dh), _array(dc)
    masks = active.numpy(), at_low.numpy(), at_high.numpy()
    columns = np.concatenate([dh, -dh, dc[masks[0]], -eye[masks[1]], eye[masks[2]]]).T
    if not (np.isfinite(columns).all() and np.isfinite(g).all()):
        y, z, z_box = (np.full(len(m), np.nan) for m in (dh, dc, g))
        return y, z, z_box, np.nan
    w = nnls(columns, -g)[0] if columns.shape[1] else np.zeros(0)
    sizes = np.cumsum([len(dh), len(dh), *(int(m.sum()) for m in masks)])
    plus, minus, of_active, of_low, of_high = np.split(w, sizes[:-1])
    z, z_box = np.zeros(len(dc)), np.zeros(len(g))
    z[masks[0]] = of_active
    z_box[masks[1]] -= of_low
    z_box[masks[2]] += of_high
    return plus - minus, z, z_box, np.abs(columns @ w + g).max()
