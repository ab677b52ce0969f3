"""How far an iterate of an interior point is from what is wanted: at most 1 is near enough."""

from collections.abc import Callable

import torch
from torch import Tensor

from .barrier import Barrier, Gradients, Point

Measure = Callable[[Barrier, Point, Gradients], Tensor]

# Relative accuracy of points on the central path.
CENTRAL = 1e-10
# Rounding errors of a sum, in units of its largest terms.
ROUNDING = 1e-15


def distance_to_solution(eps_abs: float, eps_rel: float) -> Measure:
    """Measure as :func:`solvers.qp.judge.judge` does, from products that are known already."""

    def measure(b: Barrier, point: Point, g: Gradients) -> Tensor:
        problem = b.problem
        c = problem.c
        of_x, of_row = 1 / (c[:, None] * problem.d), 1 / problem.e
        equal = torch.where(b.equal, g.equal.abs(), 0.0)
        outside = torch.where(b.present, b.sign * (g.Cx[:, None] - b.ends), 0.0).amax(1)
        primal = (torch.maximum(equal, outside).clamp(min=0) * of_row).amax(-1)
        dual = (g.dual.abs() * of_x).amax(-1)
        ends = torch.where(point.nu > 0, b.ends[:, 1], b.ends[:, 0])
        support = (torch.where(b.equal, b.value, ends) * point.nu).sum(-1) / c
        quadratic = (point.x * g.Px).sum(-1) / c
        linear = (point.x * problem.q).sum(-1) / c
        gap = (quadratic + linear + support).abs()
        size_primal = (g.Cx.abs() * of_row).amax(-1)
        size_dual = (torch.maximum(g.Px.abs(), g.pull.abs()) * of_x).amax(-1)
        size_dual = torch.maximum(size_dual, (problem.q.abs() * of_x).amax(-1))
        size_gap = quadratic.abs() + linear.abs() + support.abs()
        return torch.maximum(
            torch.maximum(
                primal / (eps_abs + eps_rel * size_primal), dual / (eps_abs + eps_rel * size_dual)
            ),
            gap / (eps_abs + eps_rel * size_gap),
        )

    return measure


def distance_to_path(mu: Tensor) -> Measure:
    """Measure the distance to the central path at ``mu (B)``, in scaled units, relatively."""

    def measure(b: Barrier, point: Point, g: Gradients) -> Tensor:
        tiny = torch.finfo(mu.dtype).tiny
        x_size = point.x.abs().sum(-1)
        size = torch.maximum(torch.maximum(g.Px.abs(), g.pull.abs()), b.problem.q.abs()).amax(-1)
        size = torch.maximum(size, point.z.amax((-2, -1)))  # both ends may pull, and cancel
        dual = g.dual.abs().amax(-1) / (CENTRAL * size + tiny)
        equal = g.equal.abs() / (CENTRAL * (x_size[:, None] + b.value.abs()) + tiny)
        rounding = ROUNDING * (x_size[:, None, None] + b.ends.abs())
        ends = (g.ends.abs() / (CENTRAL * point.s + rounding)).amax((-2, -1))
        wanted = mu[:, None, None]
        products = torch.where(b.present, (point.s * point.z - wanted).abs() / wanted, 0.0)
        worst = torch.maximum(products.amax((-2, -1)) / CENTRAL, ends)
        return torch.maximum(torch.maximum(worst, equal.amax(-1)), dual)

    return measure
