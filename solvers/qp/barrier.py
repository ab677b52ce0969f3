r"""Point, residuals and steps of a primal-dual interior point on two-sided rows.

Both ends of the rows are handled alike: tensors ``(B, 2, rows)`` hold the lower ends first, with

.. math:: s = \mp (b - C x) > 0, \quad z > 0, \quad \nu = z_{upper} - z_{lower}

Ends that are infinite, and both ends of an equality, are absent: ``s = 1`` and ``z = 0`` for ever.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import condensed
from .condensed import Condensed, hessian_times, times, transposed_times
from .equilibrate import Equilibrated

# A guess with a larger error, in scaled units, is no better than the cold start; one without any
# error would start at the boundary, from which the method does not get away.
WORTH_A_WARM_START = 1.0
CENTRED = 1e-4

# Regularisation of the rows as a part of that of the variables: small, because the multipliers of
# contradictory rows grow by the violation over it in each step.
ROWS = 1e-2
# Regularisation of the least-squares problem that is the start.
START = 1e-6


class Barrier(NamedTuple):
    """What does not change during the iterations.

    Attributes:
        problem: The scaled problems.
        ends: ``(B, 2, rows)``: lower and upper, zero where absent.
        present: Boolean ``(B, 2, rows)``.
        equal: Boolean ``(B, rows)``: equalities.
        value: ``(B, rows)``: their right-hand sides, zero elsewhere.
        sign: ``(2, 1)``: -1 for lower ends, 1 for upper ends.
        number: Number of present ends ``(B)``, at least 1.
    """

    problem: Equilibrated
    ends: Tensor
    present: Tensor
    equal: Tensor
    value: Tensor
    sign: Tensor
    number: Tensor


class Point(NamedTuple):
    """An iterate: ``x (B, n)``, ``nu (B, rows)``, ``s`` and ``z`` ``(B, 2, rows)``."""

    x: Tensor
    nu: Tensor
    s: Tensor
    z: Tensor


class Gradients(NamedTuple):
    """Residuals at a point and the products they are made of.

    Attributes:
        Px: ``c P x``, ``(B, n)``.
        Cx: ``(B, rows)``.
        pull: ``C' nu``, ``(B, n)``.
        dual: Gradient of the Lagrangian ``(B, n)``.
        ends: ``sign (b - C x) - s``, ``(B, 2, rows)``, zero where absent.
        equal: ``C x - b`` of the equalities ``(B, rows)``, zero elsewhere.
    """

    Px: Tensor
    Cx: Tensor
    pull: Tensor
    dual: Tensor
    ends: Tensor
    equal: Tensor


def barrier(problem: Equilibrated, batch: int, equal: Tensor) -> Barrier:
    """Sort the ends of the rows into present and absent; ``equal`` marks equalities ``(*, rows)``.

    An equality lies in the middle of its ends, which may differ by rounding.
    """
    n_rows = problem.C.shape[-2]
    equal = equal.expand(batch, n_rows)
    ends = torch.stack(
        [problem.lower.expand(batch, n_rows), problem.upper.expand(batch, n_rows)], 1
    )
    middle = 0.5 * (ends[:, 0] + ends[:, 1])
    present = torch.isfinite(ends) & ~equal[:, None]
    return Barrier(
        problem,
        torch.where(present, ends, 0.0),
        present,
        equal,
        torch.where(equal, middle, 0.0),
        torch.tensor([[-1.0], [1.0]], dtype=ends.dtype, device=ends.device),
        present.sum((-2, -1)).clamp(min=1),
    )


def gradients(b: Barrier, point: Point) -> Gradients:
    """Evaluate the residuals."""
    Px, Cx = hessian_times(b.problem, point.x), times(b.problem.C, point.x)
    pull = transposed_times(b.problem.C, point.nu)
    ends = torch.where(b.present, b.sign * (b.ends - Cx[:, None]) - point.s, 0.0)
    equal = torch.where(b.equal, Cx - b.value, 0.0)
    return Gradients(Px, Cx, pull, Px + b.problem.q + pull, ends, equal)


def mean_product(b: Barrier, s: Tensor, z: Tensor) -> Tensor:
    """Mean of slack times multiplier over the present ends, ``(B)``."""
    return (s * z).sum((-2, -1)) / b.number


def end_weights(b: Barrier, point: Point, delta: Tensor) -> Tensor:
    """``z / s`` of the present ends, ``(B, 2, rows)``, softened to be at most ``1 / delta (B)``."""
    softened = point.s + delta[:, None, None] * point.z
    return torch.where(b.present, point.z / softened, 0.0)


def factorise(b: Barrier, point: Point, regularisation: Tensor) -> Condensed:
    """Factor the Newton system at a point, with ``regularisation (B)`` of the variables."""
    delta = ROWS * regularisation
    weight = end_weights(b, point, delta).sum(1)
    V = torch.where(b.equal, delta[:, None], 1 / weight)
    return condensed.factorise(b.problem, V, regularisation)


def newton(
    b: Barrier, system: Condensed, point: Point, g: Gradients, complementarity: Tensor
) -> Point:
    r"""The proximal Newton step.

    It solves, with the small regularisations :math:`\rho` and :math:`\delta`,

    .. math::

        (cP + \rho I) \Delta x + C^\top \Delta\nu &= -g_{dual} \\
        C \Delta x - \delta \Delta\nu &= -g_{equal} \\
        \Delta s \pm C \Delta x - \delta \Delta z &= g_{ends} \\
        z \Delta s + s \Delta z &= \text{complementarity}

    whose terms vanish with the steps. Where the constraints contradict each other they leave slacks
    their room and let the multipliers grow into a certificate of that.

    Args:
        b: The problems.
        system: Factored at ``point``.
        point: Where the step starts.
        g: Residuals at ``point``.
        complementarity: Right-hand side ``(B, 2, rows)``.
    """
    delta = ROWS * system.rho[:, None, None]
    softened = point.s + delta * point.z
    weights = end_weights(b, point, delta[:, 0, 0])
    constant = torch.where(b.present, (complementarity - point.z * g.ends) / softened, 0.0)
    shift = (b.sign * constant).sum(1)
    dx, dnu = condensed.solve(
        b.problem, system, -g.dual, torch.where(b.equal, -g.equal, -shift * system.V)
    )
    Cdx = times(b.problem.C, dx)[:, None]
    dz = constant + weights * b.sign * Cdx
    # Rounding in a large weight makes dz disagree with dnu, and only dnu keeps the dual residual
    # small: the ends take up the difference in proportion to their weights.
    missing = torch.where(b.equal, 0.0, (dnu - (b.sign * dz).sum(1)) * system.V)
    dz = dz + b.sign * weights * missing[:, None]
    ds = torch.where(b.present, g.ends - b.sign * Cdx + delta * dz, 0.0)
    return Point(dx, torch.where(b.equal, dnu, (b.sign * dz).sum(1)), ds, dz)


def longest_step(value: Tensor, step: Tensor) -> Tensor:
    """Largest ``a`` with ``value + a step >= 0``, one for each problem, ``(B)``."""
    return torch.where(step < 0, -value / step, torch.inf).amin((-2, -1))


def cold_start(b: Barrier) -> Point:
    """Mehrotra's starting point: a least-squares solution, moved until slacks are positive."""
    both = b.present.all(1)
    target = torch.where(both, 0.5, 1.0) * b.ends.sum(1) + b.value
    absent = ~b.equal & ~b.present.any(1)
    V = torch.where(b.equal, START, torch.where(absent, torch.inf, 1.0))
    regularisation = target.new_full(target.shape[:1], START)
    system = condensed.factorise(b.problem, V, regularisation)
    q = b.problem.q.expand(target.shape[0], -1)
    x, nu = condensed.solve(b.problem, system, -q, target)
    return _interior(b, x, nu, torch.ones_like(regularisation))


def warm_start(b: Barrier, x: Tensor, nu: Tensor) -> tuple[Point, Point, Tensor]:
    """Turn a guess in the units of the problem into points.

    Args:
        b: The problems.
        x: ``(B, n)``; NaN says that there is no guess.
        nu: ``(B, rows)``.

    Returns:
        The guess itself; an interior point near it, the nearer the better the guess; and which
        guesses are worth it, boolean ``(B)``.
    """
    problem = b.problem
    x = x / problem.d
    if nu.shape[-1]:
        nu = nu * (problem.c[:, None] / problem.e)
    else:
        nu = x.new_zeros(x.shape[0], problem.C.shape[-2])
    s = torch.where(b.present, 0.0, 1.0)
    z = torch.where(b.present, (b.sign * nu[:, None]).clamp(min=0), 0.0)
    guess = Point(x, nu, s, z)
    g = gradients(b, guess)
    error = torch.maximum(g.dual.abs().amax(-1), g.equal.abs().amax(-1))
    error = torch.maximum(error, (-g.ends).amax((-2, -1)))
    slack_or_multiplier = torch.minimum(g.ends.clamp(min=0), z).amax((-2, -1))
    error = torch.maximum(error, slack_or_multiplier)
    usable = error <= WORTH_A_WARM_START
    return guess, _interior(b, x, nu, error.clamp(min=CENTRED)), usable


def _interior(b: Barrier, x: Tensor, nu: Tensor, floor: Tensor) -> Point:
    """An interior point near ``x`` and ``nu`` with slacks and multipliers of at least ``floor``."""
    s = torch.where(b.present, b.sign * (b.ends - times(b.problem.C, x)[:, None]), 0.0)
    z = torch.where(b.present, (b.sign * nu[:, None]).clamp(min=0), 0.0)
    s = s + 1.5 * (-s).amax((-2, -1)).clamp(min=0)[:, None, None]
    product = (s * z).sum((-2, -1))
    tiny = torch.finfo(s.dtype).tiny
    up_s = torch.maximum(0.5 * product / z.sum((-2, -1)).clamp(min=tiny), floor)
    up_z = torch.maximum(0.5 * product / s.sum((-2, -1)).clamp(min=tiny), floor)
    s = torch.where(b.present, s + up_s[:, None, None], 1.0)
    z = torch.where(b.present, z + up_z[:, None, None], 0.0)
    return Point(x, torch.where(b.equal, nu, (b.sign * z).sum(1)), s, z)
