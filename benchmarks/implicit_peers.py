"""One function per library and problem: calls that go forward and backward once.

A library may have several ways to solve the same problem. Each is a variant; the benchmark takes
the fastest that is accurate enough. Whatever can be built once, compilation included, is built
outside the timing.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from implicit_problems import Curves, Equilibrium, Regression
from torch import Tensor, nn

import optlayers as ol
from optlayers.solvers import Anderson


class Call(NamedTuple):
    """One forward and backward pass.

    Attributes:
        forward: Seconds of the forward pass; of both where they are compiled together.
        backward: Seconds of the backward pass, or zero.
        x: The solution.
        gradients: None from a library that has none.
    """

    forward: float
    backward: float
    x: Any
    gradients: Sequence[Any] | None


Variants = dict[str, Callable[[], Call]]


def torch_call(
    solve: Callable[[], Tensor], loss: Callable[[Tensor], Tensor], leaves: Sequence[Tensor]
) -> Call:
    """Time a solution and the gradients of its loss."""
    start = time.perf_counter()
    x = solve()
    solved = time.perf_counter()
    gradients = torch.autograd.grad(loss(x), leaves)
    done = time.perf_counter()
    return Call(solved - start, done - solved, x, gradients)


def jax_call(
    loss: Callable[..., tuple[Any, Any]], argnums: tuple[int, ...], *arrays: Tensor
) -> Callable[[], Call]:
    """Compile a loss, which also returns the solution, with its gradients; and time that."""
    import jax

    # JAX keeps float64 only where it is told so.
    precision: Callable[[], AbstractContextManager[Any]]
    precision = partial(jax.enable_x64, any(a.dtype == torch.float64 for a in arrays))
    with precision():
        data = [jax.numpy.asarray(a.detach().numpy()) for a in arrays]
        compiled = jax.jit(jax.value_and_grad(loss, argnums, has_aux=True))

    def call() -> Call:
        with precision():
            start = time.perf_counter()
            (_, x), gradients = jax.block_until_ready(compiled(*data))
            return Call(time.perf_counter() - start, 0.0, x, gradients)

    return call


# --- equilibria: the same relative residual for everybody -----------------------------------------


class Cell(nn.Module):
    """The map of an equilibrium, which counts its evaluations."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.W = nn.Parameter(W.clone())
        self.evaluations = 0

    def forward(self, z: Tensor, u: Tensor) -> Tensor:
        self.evaluations += 1
        return torch.tanh(z @ self.W.mT + u)


def _of_cell(
    problem: Equilibrium, solve: Callable[[Cell, Tensor], Tensor]
) -> tuple[Cell, Callable[[], Call]]:
    cell, u = Cell(problem.W), problem.u.clone().requires_grad_()

    def loss(z: Tensor) -> Tensor:
        return (z * problem.weight).sum()

    return cell, lambda: torch_call(lambda: solve(cell, u), loss, (cell.W, u))


def equilibrium_ours(problem: Equilibrium, tolerance: float, adjoint: Any = None) -> Variants:
    """Nothing chosen but the tolerance."""
    solver = Anderson(eps_abs=0.0, eps_rel=tolerance)
    layers: list[ol.FixedPointLayer] = []

    def solve(_: Cell, u: Tensor) -> Tensor:
        z: Tensor = layers[0](u)
        return z

    cell, call = _of_cell(problem, solve)
    layers.append(ol.FixedPointLayer(cell, solver=solver, adjoint=adjoint))
    return {"": call}


def equilibrium_ours_equal(problem: Equilibrium, tolerance: float) -> Variants:
    """The tolerance for backward as well, which by default is exact or nearly so."""
    adjoint = ol.FixedPoint(Anderson(eps_abs=0.0, eps_rel=tolerance))
    return equilibrium_ours(problem, tolerance, adjoint)


def equilibrium_torchdeq(
    problem: Equilibrium,
    tolerance: float,
    solvers: Sequence[str] = ("anderson", "fixed_point_iter"),
) -> Variants:
    """Its solvers in both directions, with as many iterations as by default where these do."""
    from torchdeq import get_deq

    variants: Variants = {}

    def build(forward: str, backward: str, iterations: int) -> Callable[[], Call]:
        deq = get_deq(
            ift=True,
            f_solver=forward,
            b_solver=backward,
            f_max_iter=iterations,
            b_max_iter=iterations,
            f_tol=tolerance,
            b_tol=tolerance,
            f_stop_mode="rel",
            b_stop_mode="rel",
        )

        def solve(cell: Cell, u: Tensor) -> Tensor:
            states, _ = deq(lambda z: cell(z, u), torch.zeros_like(u))
            z: Tensor = states[-1]
            return z

        return _of_cell(problem, solve)[1]

    for forward, backward in product(solvers, repeat=2):
        # It pads its records to the largest number of iterations, which takes time.
        for iterations in (40, 200, 1000):
            call = build(forward, backward, iterations)
            if problem.residual(call().x) <= tolerance:
                break
        variants[f"{forward} / {backward}"] = call
    return variants


def equilibrium_torchdeq_anderson(problem: Equilibrium, tolerance: float) -> Variants:
    """Its Anderson acceleration in both directions, which is what ours is."""
    return equilibrium_torchdeq(problem, tolerance, ("anderson",))


def equilibrium_jaxopt(problem: Equilibrium, tolerance: float) -> Variants:
    """Both solvers, stopped when the whole batch is accurate, which is how they measure it."""
    import jax.numpy as jnp
    import jaxopt
    from jaxopt import linear_solve

    norm = float(torch.linalg.vector_norm(problem.answer().x))

    def build(kind: Any, linear: Any, factor: float) -> Callable[[], Call]:
        solver = kind(
            lambda z, W, u: jnp.tanh(z @ W.T + u),
            tol=factor * tolerance * norm,
            maxiter=2000,
            implicit_diff_solve=partial(linear, tol=tolerance),
        )

        def loss(W: Any, u: Any, weight: Any) -> tuple[Any, Any]:
            z = solver.run(jnp.zeros_like(u), W, u).params
            return (z * weight).sum(), z

        return jax_call(loss, (0, 1), problem.W, problem.u, problem.weight)

    variants: Variants = {}
    for kind, linear in (
        (jaxopt.AndersonAcceleration, linear_solve.solve_normal_cg),
        (jaxopt.FixedPointIteration, linear_solve.solve_normal_cg),
        (jaxopt.FixedPointIteration, linear_solve.solve_bicgstab),
    ):
        # The loosest tolerance of a batch with which every sample is accurate enough.
        for factor in (1.0, 0.25, 0.05):
            call = build(kind, linear, factor)
            if problem.residual(torch.tensor(np.asarray(call().x))) <= tolerance:
                break
        variants[f"{kind.__name__} / {linear.__name__.removeprefix('solve_')}"] = call
    return variants


# --- hypergradients: as accurate as float64 and float32 allow -------------------------------------

# Below these torch's L-BFGS and CG gain nothing more.
TIGHT = {torch.float64: 1e-11, torch.float32: 1e-7}


def regression_ours(problem: Regression) -> Variants:
    """Nothing chosen."""
    penalty = problem.penalty.clone().requires_grad_()
    start = torch.zeros_like(problem.penalty)

    def solve() -> Tensor:
        x: Tensor = ol.minimize(problem.training, start, penalty).x
        return x

    return {"": lambda: torch_call(solve, problem.validation, (penalty,))}


def regression_torchopt(problem: Regression) -> Variants:
    """Its implicit differentiation, with each of its linear solvers, around torch's L-BFGS."""
    from torchopt import linear_solve
    from torchopt.diff.implicit import custom_root

    tight = TIGHT[problem.penalty.dtype]
    penalty = problem.penalty.clone().requires_grad_()
    start = torch.zeros_like(problem.penalty)

    def minimise(w: Tensor, penalty: Tensor) -> Tensor:
        w = w.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [w],
            max_iter=500,
            tolerance_grad=tight,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            loss = problem.training(w, penalty.detach())
            (w.grad,) = torch.autograd.grad(loss, w)
            return loss

        optimizer.step(closure)
        return w.detach()

    variants: Variants = {}
    for name, linear in {
        "cg": linear_solve.solve_cg(rtol=tight, atol=0.0),
        "normal cg": linear_solve.solve_normal_cg(rtol=tight, atol=0.0),
        "inv": linear_solve.solve_inv(),
    }.items():
        gradient = torch.func.grad(problem.training)
        layer = custom_root(gradient, argnums=1, solve=linear)(minimise)
        variants[f"L-BFGS / {name}"] = lambda layer=layer: torch_call(
            lambda: layer(start, penalty), problem.validation, (penalty,)
        )
    return variants


def regression_jaxopt(problem: Regression) -> Variants:
    """L-BFGS and CG; Newton's method is not there."""
    import jax.numpy as jnp
    import jaxopt
    from jax.nn import softplus
    from jaxopt import linear_solve

    tight = TIGHT[problem.penalty.dtype]

    def mean_loss(w: Any, X: Any, y: Any) -> Any:
        predicted = X @ w
        if problem.logistic:
            return softplus(-y * predicted).mean()
        return 0.5 * ((predicted - y) ** 2).mean()

    def training(w: Any, penalty: Any, X: Any, y: Any) -> Any:
        return mean_loss(w, X, y) + 0.5 * (penalty * w * w).sum()

    variants: Variants = {}
    for linear in (linear_solve.solve_cg, linear_solve.solve_normal_cg):
        solver = jaxopt.LBFGS(
            training, tol=tight, implicit_diff_solve=partial(linear, tol=tight, maxiter=1000)
        )

        def loss(
            penalty: Any, X: Any, y: Any, Xv: Any, yv: Any, solver: Any = solver
        ) -> tuple[Any, Any]:
            w = solver.run(jnp.zeros_like(penalty), penalty, X, y).params
            return mean_loss(w, Xv, yv), w

        p = problem
        variants[f"LBFGS / {linear.__name__.removeprefix('solve_')}"] = jax_call(
            loss, (0,), p.penalty, p.X, p.y, p.X_validation, p.y_validation
        )
    return variants


# --- curve fits -----------------------------------------------------------------------------------


def curves_ours(problem: Curves) -> Variants:
    """Nothing chosen; a failure is to be counted, not raised."""
    y = problem.y.clone().requires_grad_()

    def solve() -> Tensor:
        x: Tensor = ol.least_squares(
            problem.residual, problem.start, y, batch_ndim=1, on_failure="ignore"
        ).x
        return x

    return {"": lambda: torch_call(solve, lambda x: (x * problem.weight).sum(), (y,))}


def curves_jaxopt(problem: Curves) -> Variants:
    """Levenberg and Marquardt's method, mapped; its first damping, and one as ours."""
    import jax
    import jax.numpy as jnp
    import jaxopt
    from jaxopt import linear_solve

    t = problem.t.numpy()

    def residual(x: Any, y: Any) -> Any:
        return x[0] * jnp.exp(-x[1] * t) + x[2] - y

    variants: Variants = {}
    for damping in (1e-6, 1e-2):
        solver = jaxopt.LevenbergMarquardt(
            residual,
            maxiter=200,
            tol=1e-9,
            damping_parameter=damping,
            implicit_diff_solve=partial(linear_solve.solve_cg, tol=1e-12),
        )

        def loss(y: Any, start: Any, weight: Any, solver: Any = solver) -> tuple[Any, Any]:
            x = jax.vmap(lambda x0, y: solver.run(x0, y).params)(start, y)
            return (x * weight).sum(), x

        variants[f"damping {damping:g}"] = jax_call(
            loss, (0,), problem.y, problem.start, problem.weight
        )
    return variants


def curves_scipy(problem: Curves) -> Variants:
    """One curve after the other with its Jacobian; no gradients."""
    from scipy.optimize import least_squares

    t, samples, starts = problem.t.numpy(), problem.y.numpy(), problem.start.numpy()

    def residual(x: Any, y: Any) -> Any:
        return x[0] * np.exp(-x[1] * t) + x[2] - y

    def jacobian(x: Any, _: Any) -> Any:
        decay = np.exp(-x[1] * t)
        return np.stack([decay, -x[0] * t * decay, np.ones_like(t)], -1)

    def call(method: str) -> Call:
        tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12)
        start = time.perf_counter()
        with np.errstate(over="ignore"):  # in steps that it refuses
            found = [
                least_squares(residual, x0, jacobian, method=method, args=(y,), **tight).x
                for x0, y in zip(starts, samples, strict=True)
            ]
        seconds = time.perf_counter() - start
        return Call(seconds, 0.0, np.stack(found), None)

    return {method: partial(call, method) for method in ("lm", "trf")}


OURS, EQUAL = "optlayers", "optlayers, loose"
EQUILIBRIUM = {
    OURS: equilibrium_ours,
    EQUAL: equilibrium_ours_equal,
    "torchdeq": equilibrium_torchdeq,
    "torchdeq, Anderson": equilibrium_torchdeq_anderson,
    "jaxopt": equilibrium_jaxopt,
}
REGRESSION = {
    OURS: regression_ours,
    "torchopt": regression_torchopt,
    "jaxopt": regression_jaxopt,
}
CURVES = {OURS: curves_ours, "jaxopt": curves_jaxopt, "scipy": curves_scipy}
PACKAGES = ("optlayers", "torchdeq", "torchopt", "jaxopt", "jax", "scipy")
