r"""Certificates that a problem has no solution, read off the steps of a diverging solver.

Where the iterates diverge, their steps settle to a direction that contains the proof, without the
bounded part that the iterates have. Both tests are statements about a region, in scaled units: "no
feasible (no optimal) point has a norm below this radius". A radius far beyond the iterates
themselves is as good as infinity.
"""

import torch
from torch import Tensor

from .barrier import Barrier, Point
from .condensed import hessian_times, times, transposed_times

RADIUS = 1e6
# The radius for x when no bound is found: a nearly flat objective has its minimum far away.
FLAT_RADIUS = 1e10
# A sum is trusted if it is this large relative to its terms.
CANCELLATION = 1e-10


def primal_infeasible(b: Barrier, point: Point, nu: Tensor) -> Tensor:
    r"""Whether multipliers ``nu`` separate the rows from the origin (Farkas).

    A feasible ``x`` has :math:`\nu^\top C x \le h(\nu)`, with the support function
    :math:`h(\nu) = \sum_i u_i \nu_i^+ - l_i \nu_i^-`; so where :math:`h(\nu) < 0`, it has
    :math:`\|x\|_1 \ge -h(\nu) / \|C^\top \nu\|_\infty`.

    Args:
        b: The problems.
        point: The iterate, whose norm the radius exceeds.
        nu: The last step of its multipliers ``(B, rows)``.

    Returns:
        Boolean ``(B)``.
    """
    upper, lower = nu > 0, nu < 0
    terms = torch.where(upper, b.ends[:, 1], torch.where(lower, b.ends[:, 0], 0.0)) * nu
    terms = torch.where(b.equal, b.value * nu, terms)
    # A direction may have the sign of an end that is not there only by rounding.
    absent = (upper & ~b.present[:, 1]) | (lower & ~b.present[:, 0])
    kept = torch.where(absent & ~b.equal, 0.0, nu)
    support = terms.sum(-1)
    pull = transposed_times(b.problem.C, kept).abs().amax(-1)
    radius = RADIUS * (1 + point.x.abs().sum(-1))
    significant = support < -CANCELLATION * terms.abs().sum(-1)
    return significant & (-support > radius * pull)


def dual_infeasible(b: Barrier, point: Point, x: Tensor) -> Tensor:
    r"""Whether ``x`` is a direction in which the objective falls and the rows never end.

    An optimal pair :math:`(w, \nu)` has :math:`q^\top x = -w^\top P x - \nu^\top C x`; so where
    :math:`q^\top x < 0`, either :math:`\|w\|_1` or :math:`\|\nu\|_1` is at least of the order of
    :math:`-q^\top x` over the size of :math:`P x` and of the part of :math:`C x` that leaves the
    recession cone.

    Args:
        b: The problems.
        point: The iterate, the norm of whose multipliers the radius exceeds.
        x: Its last step ``(B, n)``.

    Returns:
        Boolean ``(B)``.
    """
    terms = b.problem.q * x
    slope = terms.sum(-1)
    Cx = times(b.problem.C, x)
    outwards = torch.where(b.present, b.sign * Cx[:, None], 0.0).clamp(min=0).amax((-2, -1))
    outwards = torch.maximum(outwards, torch.where(b.equal, Cx.abs(), 0.0).amax(-1))
    curved = hessian_times(b.problem, x).abs().amax(-1)
    radius = RADIUS * (1 + point.nu.abs().sum(-1))
    significant = slope < -CANCELLATION * terms.abs().sum(-1)
    return significant & (-slope > FLAT_RADIUS * curved + radius * outwards)
