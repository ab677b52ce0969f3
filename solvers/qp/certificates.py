r"""Certificates that a problem has no solution, read off the diverging iterates of a solver.

Both tests are statements about a region, in scaled units: "no feasible point (no optimal point) has
a norm below this radius". A radius far beyond the iterates themselves is as good as infinity.
"""

import torch
from torch import Tensor

from .barrier import Barrier, Gradients, Point

RADIUS = 1e6
# The radius for x when no bound is found: a nearly flat objective has its minimum far away.
FLAT_RADIUS = 1e10
# A sum is trusted if it is this large relative to its terms.
CANCELLATION = 1e-10


def primal_infeasible(b: Barrier, point: Point, g: Gradients) -> Tensor:
    r"""Whether the multipliers separate the rows from the origin (Farkas).

    A feasible ``x`` has :math:`\nu^\top C x \le h(\nu)`, with the support function
    :math:`h(\nu) = \sum_i u_i \nu_i^+ - l_i \nu_i^-`; so where :math:`h(\nu) < 0`, it has
    :math:`\|x\|_1 \ge -h(\nu) / \|C^\top \nu\|_\infty`.

    Returns:
        Boolean ``(B)``.
    """
    ends = torch.where(point.nu > 0, b.ends[:, 1], b.ends[:, 0])
    terms = torch.where(b.equal, b.value, ends) * point.nu
    support = terms.sum(-1)
    radius = RADIUS * (1 + point.x.abs().sum(-1))
    significant = support < -CANCELLATION * terms.abs().sum(-1)
    return significant & (-support > radius * g.pull.abs().amax(-1))


def dual_infeasible(b: Barrier, point: Point, g: Gradients) -> Tensor:
    r"""Whether ``x`` is a direction in which the objective falls and the rows never end.

    An optimal pair :math:`(w, \nu)` has :math:`q^\top x = -w^\top P x - \nu^\top C x`; so where
    :math:`q^\top x < 0`, either :math:`\|w\|_1` or :math:`\|\nu\|_1` is at least of the order of
    :math:`-q^\top x` over the size of :math:`P x` and of the part of :math:`C x` that leaves the
    recession cone.

    Returns:
        Boolean ``(B)``.
    """
    terms = b.problem.q * point.x
    slope = terms.sum(-1)
    outwards = torch.where(b.present, b.sign * g.Cx[:, None], 0.0).clamp(min=0).amax((-2, -1))
    outwards = torch.maximum(outwards, torch.where(b.equal, g.Cx.abs(), 0.0).amax(-1))
    radius = RADIUS * (1 + point.nu.abs().sum(-1))
    significant = slope < -CANCELLATION * terms.abs().sum(-1)
    return significant & (-slope > FLAT_RADIUS * g.Px.abs().amax(-1) + radius * outwards)
