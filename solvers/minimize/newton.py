"""Newton's method in a trust region: the method for few variables, from any start."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import hessian, value_and_gradient
from ..iteration import Iterate, Iterates
from .line_search import rounding_allowance
from .solver import MinimizeSolver

# Ratios of actual to predicted decrease: below the first a step is refused, below the second the
# region shrinks, above the third it grows.
REFUSED, POOR, GOOD = 1e-4, 0.25, 0.75
SHRINK, GROW = 0.25, 2.5
SECULAR_ITERATIONS, SECULAR_TOLERANCE = 20, 1e-3


class Model(NamedTuple):
    """What minimises a sample's parabola within its region.

    Attributes:
        step: ``(B, n)``.
        radius: Of the regions ``(B)``.
        error: Length of the step without a region ``(B)``.
        factor: Cholesky factors of the Hessians, NaN where they are not positive definite.
    """

    step: Tensor
    radius: Tensor
    error: Tensor
    factor: Tensor


@dataclass(frozen=True)
class TrustRegion(MinimizeSolver):
    r"""Minimise the parabola of Newton's method within a region where it is trusted.

    The step solves

    .. math::
        \min_p\; g^\top p + \tfrac12 p^\top \nabla^2 f(x)\, p \quad \text{s.t.}\quad
        \|p\|_2 \le \Delta

    exactly, so :math:`p = -(\nabla^2 f(x) + \sigma I)^{-1} g` with the :math:`\sigma \ge 0` that
    makes the matrix semidefinite and, if it is positive, :math:`\|p\| = \Delta`. The radius follows
    how well the parabola predicts the decrease. Where Newton's own step stays within the region a
    Cholesky factorisation finds it, elsewhere an eigendecomposition finds all of it.

    Converges from any start to a point with semidefinite Hessian, also from saddle points and
    maxima, and quadratically to a minimum with positive definite Hessian. Each iteration takes
    :math:`n` products with the Hessian and :math:`O(n^3)` arithmetic: the default for up to some
    hundred variables. The factors at the last points stay available to derivatives.

    Attributes:
        radius: :math:`\Delta` to begin with; by default the length of Newton's step at the start.

    References:
        More and Sorensen, *Computing a trust region step*, SIAM J. Sci. Stat. Comput. 4 (1983),
        section 3; Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, algorithm 4.1
        and section 4.3.

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import TrustRegion
        >>> x0 = torch.tensor([[-1.2, 1.0], [0.0, 0.0]], dtype=torch.float64)
        >>> valley = lambda x: (1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2
        >>> TrustRegion().solve(valley, x0).x.round(decimals=8)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """

    radius: float | None = None

    def __post_init__(self) -> None:
        """Check the radius."""
        if self.radius is not None and not self.radius > 0:
            raise ValueError(
                f"TrustRegion: radius must be positive; got {self.radius}. "
                "Leave it out to have it follow from the first Hessian."
            )

    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One gradient an iteration, and one Hessian if any sample moved."""
        value, g = value_and_gradient(f, x)
        H = hessian(f, x)
        radius = None if self.radius is None else torch.full_like(value, self.radius)
        allowance = rounding_allowance(value)
        running = torch.ones_like(value, dtype=torch.bool)
        while True:
            model = minimum_in_region(H, g, radius, running, 1 + vector_norm(x, dim=-1))
            p, radius = model.step, model.radius
            # Steps below the last digits of x that were still refused: there is no way on.
            least = torch.finfo(x.dtype).eps * vector_norm(x, dim=-1)
            hopeless = (radius <= least) & (model.error > radius)
            error = torch.where(hopeless, torch.nan, model.error)
            running = (yield Iterate(x, error, value, (model.factor,))).running
            # Samples that stopped stay where their factors are.
            x_t = torch.where(running[:, None], x + p, x)
            value_t, g_t = value_and_gradient(f, x_t)
            slope = vecdot(g, p)
            predicted = -(slope + vecdot(p, (H @ p[..., None])[..., 0]) / 2)
            # Where values are lost in rounding, both slopes tell the decrease, to third order.
            lost = (predicted <= allowance) & (value_t <= value + allowance)
            actual = torch.where(lost, -(slope + vecdot(g_t, p)) / 2, value - value_t)
            ratio = actual / predicted
            length = vector_norm(p, dim=-1)
            accepted = running & (ratio > REFUSED) & torch.isfinite(value_t)
            radius = torch.where(
                ratio >= POOR,
                torch.where(ratio > GOOD, torch.maximum(radius, GROW * length), radius),
                SHRINK * length,
            )
            column = accepted[:, None]
            x, g = torch.where(column, x_t, x), torch.where(column, g_t, g)
            value = torch.where(accepted, value_t, value)
            allowance = rounding_allowance(value, allowance)
            if bool(accepted.any()):
                H = hessian(f, x)

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """Solve with the Hessians at the last points; NaN where they are not positive definite."""
        return torch.cholesky_solve(v[..., None], kept[0])[..., 0]


def minimum_in_region(
    H: Tensor, g: Tensor, radius: Tensor | None, running: Tensor, size: Tensor
) -> Model:
    """Minimise every parabola within its region.

    Args:
        H: Hessians ``(B, n, n)``.
        g: Gradients ``(B, n)``.
        radius: Of the regions ``(B)``; None for that of Newton's step.
        running: Samples to look at ``(B)``.
        size: Of the points ``(B)``, for what is rounding in a gradient.
    """
    factor, info = torch.linalg.cholesky_ex(H)
    p = -torch.cholesky_solve(g[..., None], factor)[..., 0]
    length = vector_norm(p, dim=-1)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    rounding = 10 * H.shape[-1] * torch.finfo(H.dtype).eps
    convex = (info == 0) & (diagonal.amin(-1) ** 2 > rounding * diagonal.amax(-1) ** 2)
    if not bool(convex.all()):
        factor = torch.where(convex[:, None, None], factor, torch.nan)
    inside = convex if radius is None else convex & (length <= radius)
    rest = running & ~inside
    if not bool(rest.any()):
        return Model(p, length if radius is None else radius, length, factor)
    # The decomposition looks at the others only; it refuses whole batches for one that it cannot
    # do, and samples whose Hessian overflows, or nearly, keep the NaN that they got above.
    most = torch.finfo(H.dtype).max ** 0.5
    rest = rest & (H.abs().amax(dim=(-2, -1)) < most) & torch.isfinite(g).all(dim=-1)
    values, vectors = torch.ones_like(g), torch.zeros_like(H)
    values[rest], vectors[rest] = torch.linalg.eigh(H[rest])
    p_rest, radius_rest, error_rest = _by_eigenvalues(values, vectors, g, radius, size)
    skipped = ~convex & ~rest
    p = torch.where(skipped[:, None], torch.nan, p)
    length = torch.where(skipped, torch.nan, length)
    if radius is None:
        radius = torch.where(rest, radius_rest, length)
    return Model(
        torch.where(rest[:, None], p_rest, p),
        radius,
        torch.where(rest & ~convex, error_rest, length),
        factor,
    )


def _by_eigenvalues(
    values: Tensor, vectors: Tensor, g: Tensor, radius: Tensor | None, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, radii, and errors, from eigenvalues and eigenvectors of the Hessians."""
    c = (vectors.mT @ g[..., None])[..., 0]
    largest = values.abs().amax(-1, keepdim=True)
    flat = values.abs() <= 10 * values.shape[-1] * torch.finfo(g.dtype).eps * largest
    # Along flat directions a gradient that is rounding is worth a short step at most. Any other
    # leads far: as far as the region lets it, where there is no curvature to say how far.
    eps = torch.finfo(g.dtype).eps
    rounding = c.abs() <= 4 * eps * largest * size[:, None]
    slope = flat & ~rounding
    barely = torch.finfo(g.dtype).tiny ** 0.5
    values = torch.where(
        flat & rounding, largest, torch.where(slope, values.clamp(min=barely), values)
    )
    lowest = values.amin(-1)
    lengths = torch.where(c == 0, 0.0, c / values.abs())
    newton = vector_norm(lengths, dim=-1)
    if radius is None:
        # A maximum, a saddle or a slope has no scale of its own.
        free = (lowest > 0) & ~slope.any(-1)
        radius = torch.where(
            free, newton, torch.maximum(size, torch.where(slope.any(-1), 0.0, newton))
        )
    shift = torch.maximum((c.abs() / radius[:, None] - values).amax(-1), -lowest).clamp(min=0)
    # From the left the secular equation 1/length = 1/radius makes Newton's method monotone. A
    # sample that is near enough keeps its shift, whatever its neighbours still do.
    for _ in range(SECULAR_ITERATIONS):
        below = values + shift[:, None]
        p = torch.where(below > 0, -c / below, 0.0)
        square = vecdot(p, p)
        length = square.sqrt()
        too_long = length > (1 + SECULAR_TOLERANCE) * radius
        if not bool(too_long.any()):
            break
        slope = vecdot(p, torch.where(below > 0, p / below, 0.0))
        move = square / slope * (length - radius) / radius
        shift = torch.where(too_long, shift + move, shift)
    # The hard case: as far along the lowest eigenvector as the edge, both ways are as good. Nearly
    # hard ones are the same, since their shift is lost in the last digits of the eigenvalue.
    nearly = below[..., 0] <= torch.finfo(g.dtype).eps ** 0.5 * largest[..., 0]
    missing = (radius * radius - (square - p[..., 0] ** 2)).clamp(min=0).sqrt()
    hard = (lowest < 0) & ((length < radius) | nearly)
    p[..., 0] = torch.where(hard, torch.copysign(missing, p[..., 0]), p[..., 0])
    step = (vectors @ p[..., None])[..., 0]
    # There is no minimum around a point with negative curvature, however short the step.
    error = torch.where(lowest < 0, torch.maximum(newton, 1 + radius), newton)
    return step, radius, error
