r"""A primal-dual interior point in torch: a whole batch at once, on any device."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..solution import Status
from . import progress
from .barrier import (
    Barrier,
    Gradients,
    Point,
    barrier,
    cold_start,
    factorise,
    gradients,
    longest_step,
    mean_product,
    newton,
    warm_start,
)
from .certificates import dual_infeasible, primal_infeasible
from .condensed import Condensed
from .equilibrate import equilibrate
from .rows import Rows
from .screening import contradictory, equal_ends, malformed
from .solver import Iterate, QPSolver, Start

STEPS_BETWEEN_CHECKS = 4
# Part of the way to the boundary that a step may take.
FRACTION = 0.99
# After a shorter step, or one that made slack times multiplier larger, the next is a careful one:
# it only halves the products, and leaves out the second-order term, which may have misled it.
SHORT = 0.3
CAREFUL = 0.5
# Of the variables in the Newton system; it is raised where that is not definite in floating point.
REGULARISATION, LARGEST_REGULARISATION = 1e-8, 1e-1
# An element goes on beyond its tolerance, which separates active from inactive rows more clearly,
# until it is this much better or the error no longer halves in so many steps.
BEYOND = 1e-3
STALLED = 3


class CentralPoint(NamedTuple):
    r"""A point of the central path, where slack times multiplier is ``mu`` at every finite end.

    Attributes:
        x: ``(B, n)``.
        nu: Multipliers :math:`z_{upper} - z_{lower}`, ``(B, rows)``.
        weight: :math:`z_{upper} / s_{upper} + z_{lower} / s_{lower}`, ``(B, rows)``: zero for a row
            without finite ends, infinite for an equality.
        status: Integer ``(B)``.
    """

    x: Tensor
    nu: Tensor
    weight: Tensor
    status: Tensor


class _Found(NamedTuple):
    """Where the iterations ended, in the units of the problem."""

    point: Point
    status: Tensor
    iterations: Tensor


@dataclass(frozen=True)
class InteriorPoint(QPSolver):
    r"""Mehrotra's predictor-corrector on :math:`l \le C x \le u`, batched over all problems.

    An iteration is one batched Cholesky factorisation of :math:`P + C^\top W C` and two solves with
    it, whatever the number of active rows; some fifteen iterations solve a problem. Finished
    elements are frozen while their neighbours go on, and nothing an element does depends on the
    others. On CPU the compiled solvers are faster; this one is there for GPUs.

    Dependent rows, singular ``P`` and linear programs are welcome. A warm start saves iterations
    where it nearly solves the problem.

    Attributes:
        max_iter: Iterations allowed to each problem.

    References:
        Mehrotra, *On the implementation of a primal-dual interior point method*, SIAM J. Optim. 2
        (1992), section 7; Pougkakiotis & Gondzio, *An interior point-proximal method of multipliers
        for convex quadratic programming* (2021), section 2, for the regularisation.
    """

    max_iter: int = 100

    def iterate(self, rows: Rows, start: Start | None) -> Iterate:
        """Run the method on the flat form; see :class:`~solvers.qp.solver.QPSolver`."""
        # A tiny objective would pass absolute tolerances anywhere: bring it up to size one.
        size = rows.P.abs().amax((-2, -1))
        if rows.is_linear or not rows.count:
            size = torch.maximum(size, rows.q.abs().amax(-1))
        size = torch.where(size > 0, size, 1.0).clamp(max=1.0)
        scaled = replace(rows, P=rows.P / size[:, None, None], q=rows.q / size[:, None])
        if start is not None:
            start = (start[0], start[1] / size[:, None])
        found = self._run(scaled, start, None)
        nu = found.point.nu * size[:, None]
        return Iterate(found.point.x, nu, found.status, found.iterations)

    def central_point(self, rows: Rows, mu: float) -> CentralPoint:
        r"""The minimiser of the objective with a logarithmic barrier of strength ``mu``.

        .. math::

            x_\mu = \arg\min_x \tfrac12 x^\top P x + q^\top x
            - \mu \sum_i \left( \log(u_i - c_i^\top x) + \log(c_i^\top x - l_i) \right)

        over the finite ends, with the equalities as constraints. It is a smooth function of all
        data as long as the constraints have an interior.

        Args:
            rows: The problems.
            mu: Slack times multiplier, in the units of the objective; positive.

        Returns:
            The point, converged by Newton's method to about ten digits. Elements whose ``status``
            is not SOLVED hold NaN: their constraints have no interior, or objective and barrier
            together no minimiser.

        Raises:
            ValueError: If ``mu`` is not positive and finite.
        """
        if not 0 < mu < float("inf"):
            raise ValueError(
                f"InteriorPoint.central_point: mu must be positive and finite; got {mu}. For the "
                "limit as mu goes to zero, the solution itself, use solve()."
            )
        (x, nu, s, z), status, _ = self._run(rows, None, mu)
        weight = torch.where(equal_ends(rows), torch.inf, (z / s).sum(1))
        failed = (status != Status.SOLVED)[:, None]
        return CentralPoint(
            torch.where(failed, torch.nan, x),
            torch.where(failed, torch.nan, nu),
            torch.where(failed, torch.nan, weight),
            status,
        )

    def _run(self, rows: Rows, start: Start | None, mu: float | None) -> _Found:
        """Iterate to the solution or, given ``mu``, to a point of the central path."""
        count, rows = rows.count, _with_idle_row(rows)
        problem = equilibrate(rows)
        b = barrier(problem, rows.batch, equal_ends(rows))
        goal = problem.c.expand(rows.batch) * (mu or 0.0)
        if mu is None:
            measure = progress.distance_to_solution(self.eps_abs, self.eps_rel)
        else:
            measure = progress.distance_to_path(goal)

        hopeless = contradictory(rows, self.eps_abs, self.eps_rel)
        status = torch.where(hopeless, Status.PRIMAL_INFEASIBLE, Status.SOLVED)
        status = torch.where(malformed(rows), Status.NUMERICAL_ERROR, status)
        running = status == Status.SOLVED
        iterations, since_better = torch.zeros_like(status), torch.zeros_like(status)
        regularisation = torch.full_like(goal, REGULARISATION)

        point = cold_start(b)
        best, best_error = point, torch.full_like(goal, torch.inf)
        if start is not None:
            guess, near, usable = warm_start(b, *start)
            point = _choose(usable, near, point)
            best = _choose(usable, guess, best)
            error = measure(b, guess, gradients(b, guess))
            best_error = torch.where(usable & running, error, torch.inf)

        previous, careful = point, torch.zeros_like(running)
        for iteration in range(self.max_iter + 1):
            g = gradients(b, point)
            error = measure(b, point, g)
            broken = running & ~torch.isfinite(error)
            status = torch.where(broken, Status.NUMERICAL_ERROR, status)
            running = running & ~broken
            since_better = torch.where(error < 0.5 * best_error, 0, since_better + 1)
            better = running & (error < best_error)
            best = _choose(better, point, best)
            best_error = torch.where(better, error, best_error)
            stalled = (best_error <= 1) & (since_better >= STALLED)
            running = running & (best_error > BEYOND) & ~stalled
            infeasible = running & primal_infeasible(b, point, point.nu - previous.nu)
            status = torch.where(infeasible, Status.PRIMAL_INFEASIBLE, status)
            running = running & ~infeasible
            unbounded = running & dual_infeasible(b, point, point.x - previous.x)
            status = torch.where(unbounded, Status.DUAL_INFEASIBLE, status)
            running = running & ~unbounded
            if self.verbose:
                print(_log_line(iteration, running, b, point, g))
            # Asking whether all are done makes a GPU wait for the host: it is asked now and then.
            if iteration == self.max_iter or (
                iteration % STEPS_BETWEEN_CHECKS == 0 and not running.any()
            ):
                break

            system = factorise(b, point, regularisation)
            moved, careful = _predict_and_correct(
                b, system, point, g, goal, careful, rows.is_linear
            )
            previous, point = point, _choose(running & ~system.failed, moved, point)
            iterations += running
            # Not definite in floating point: stay, and try again with more regularisation.
            regularisation = torch.where(system.failed, 100 * regularisation, regularisation)
            hopeless = running & (regularisation > LARGEST_REGULARISATION)
            status = torch.where(hopeless, Status.NUMERICAL_ERROR, status)
            running = running & ~hopeless

        status = torch.where(running, Status.MAX_ITERATIONS, status)
        status = torch.where(best_error <= 1, Status.SOLVED, status)
        nothing = (status > Status.MAX_ITERATIONS) | torch.isinf(best_error)
        of_row, of_multiplier = 1 / problem.e, problem.e / problem.c[:, None]
        x = torch.where(nothing[:, None], torch.nan, best.x * problem.d)
        nu = torch.where(nothing[:, None], torch.nan, best.nu * of_multiplier)
        s, z = best.s * of_row[:, None], best.z * of_multiplier[:, None]
        point = Point(x, nu[:, :count], s[..., :count], z[..., :count])
        return _Found(point, status, iterations)


def _predict_and_correct(
    b: Barrier,
    system: Condensed,
    point: Point,
    g: Gradients,
    goal: Tensor,
    careful: Tensor,
    is_linear: bool,
) -> tuple[Point, Tensor]:
    """One step of the method: aim at ``goal (B)``, look how far that gets, correct and centre.

    Returns:
        The next point, and whether the step after this one should be careful, boolean ``(B)``.
    """
    products = point.s * point.z
    straight = newton(b, system, point, g, goal[:, None, None] - products)
    a = torch.minimum(longest_step(point.s, straight.s), longest_step(point.z, straight.z))
    a = a.clamp(max=1.0)[:, None, None]
    mu = mean_product(b, point.s, point.z)
    reached = mean_product(b, point.s + a * straight.s, point.z + a * straight.z)
    tiny = torch.finfo(mu.dtype).tiny
    ratio = ((reached - goal).abs() / (mu - goal).abs().clamp(min=tiny)).clamp(max=1.0)
    ratio = torch.where(careful, ratio.clamp(min=CAREFUL), ratio**3)
    target = goal + ratio * (mu - goal).clamp(min=0)
    curvature = torch.where(careful[:, None, None], 0.0, straight.s * straight.z)
    step = newton(b, system, point, g, target[:, None, None] - products - curvature)
    a_primal = (FRACTION * longest_step(point.s, step.s)).clamp(max=1.0)
    a_dual = (FRACTION * longest_step(point.z, step.z)).clamp(max=1.0)
    if not is_linear:
        # P x is part of the dual residual, so only a common step length reduces that.
        a_primal = a_dual = torch.minimum(a_primal, a_dual)
    moved = Point(
        point.x + a_primal[:, None] * step.x,
        point.nu + a_dual[:, None] * step.nu,
        point.s + a_primal[:, None, None] * step.s,
        point.z + a_dual[:, None, None] * step.z,
    )
    grown = mean_product(b, moved.s, moved.z) > mu
    return moved, grown | (torch.minimum(a_primal, a_dual) < SHORT)


def _choose(mask: Tensor, new: Point, old: Point) -> Point:
    """``new`` for the elements in ``mask (B)``, to the last bit ``old`` for the others."""
    one, two = mask[:, None], mask[:, None, None]
    return Point(
        torch.where(one, new.x, old.x),
        torch.where(one, new.nu, old.nu),
        torch.where(two, new.s, old.s),
        torch.where(two, new.z, old.z),
    )


def _with_idle_row(rows: Rows) -> Rows:
    """The problems with a row that never binds, if they have none: no reduction is over nothing."""
    if rows.count:
        return rows
    end = rows.q.new_full((1, 1), torch.inf)
    C = rows.q.new_zeros(1, 1, rows.n)
    return Rows(rows.P, rows.q, C, -end, end, rows.batch, 0, 1, rows.is_linear)


def _log_line(iteration: int, running: Tensor, b: Barrier, point: Point, g: Gradients) -> str:
    """The worst residuals among the running problems, in scaled units."""

    def worst(t: Tensor) -> float:
        return float(torch.where(running, t, 0.0).amax()) if running.numel() else 0.0

    primal = torch.maximum(g.ends.abs().amax((-2, -1)), g.equal.abs().amax(-1))
    line = (
        f"  {iteration:>9}{int(running.sum()):>9}{worst(primal):>10.1e}"
        f"{worst(g.dual.abs().amax(-1)):>10.1e}{worst(mean_product(b, point.s, point.z)):>10.1e}"
    )
    if iteration:
        return line
    header = ("iteration", "running", "primal", "dual", "mu")
    return "  {:>9}{:>9}{:>10}{:>10}{:>10}\n".format(*header) + line
