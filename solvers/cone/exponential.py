r"""The exponential cone and its dual, by a root-finding problem in one variable."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .cone import Cone, Number, Spectrum, apply, is_positive
from .dual_path import refuse_central_path_of_dual
from .exponential_path import PathPoint, exponential_path
from .logistic import logaddexp, sigmoid
from .monotone_root import decreasing_root

# At this slope a ray of the boundary agrees with its limit (0, 0, 1), in any precision.
STEEPEST = 100.0
# At this one exp(-slope) is as large as double precision allows.
FLATTEST = -700.0


@dataclass(frozen=True)
class ExponentialCone(Cone):
    r"""The cone :math:`K = \operatorname{cl}\{(x, y, z) : y > 0, y e^{x/y} \le z\}`, or its dual.

    The boundary consists of the rays :math:`r(\rho) = (\rho, 1, e^\rho)` and of the face
    :math:`x \le 0, y = 0, z \ge 0`; the boundary of :math:`K^*` consists of the rays
    :math:`q(\rho) = (-1, \rho - 1, e^{-\rho})` orthogonal to them and of a face too. If neither
    face is hit, :math:`v = \alpha r(\rho) - \beta q(\rho)` with the root :math:`\rho` of the
    decreasing function :math:`v^\top (r \times q) / (\|r\| \|q\|)`. The same three orthogonal
    directions are the eigenvectors of the derivative, with the eigenvalues 1, 0 and

    .. math::
        \frac{\|s\| \|\hat r'\|}{\|s\| \|\hat r'\| + \|z\| \|\hat q'\|},

    where :math:`\hat r'` says how quickly the unit vector along :math:`r` turns with :math:`\rho`.

    The barrier is :math:`f(x, y, z) = -\log(y \log(z/y) - x) - \log y - \log z`.

    Attributes:
        dual: Whether the dual cone :math:`K^* = \operatorname{cl}\{(u, v, w) : u < 0,
            -u e^{v/u} \le e w\}` is meant.

    References:
        Friberg, *Projection onto the exponential cone: a univariate root-finding problem*,
        Optimization Methods and Software 38 (2023), theorem 3.4.

    Example:
        >>> import torch
        >>> s = ExponentialCone().project(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
        >>> s.round(decimals=4)
        tensor([0.4263, 0.7517, 1.3254], dtype=torch.float64)
    """

    dual: bool = False
    iterative: ClassVar[bool] = True

    @property
    def rows(self) -> int:
        """Always 3."""
        return 3

    def project(self, v: Tensor, mu: Number = 0.0, near: Tensor | None = None) -> Tensor:
        """The nearest point, or a point of the central path; see :meth:`Cone.project`.

        Args:
            v: See there.
            mu: See there.
            near: A guess of the nearest point ``(*batch, 3)``.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        if is_positive(mu):
            return self._path(v, mu).s
        if self.dual:
            return v + _solve(-v, None if near is None else near - v).nearest
        return _solve(v, near).nearest

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """See :meth:`Cone.derivative`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        return apply(self.spectrum(v, mu), w)

    def spectrum(self, v: Tensor, mu: Number = 0.0, nearest: Tensor | None = None) -> Spectrum:
        """In closed form for ``mu = 0``; see :meth:`Cone.spectrum`.

        Args:
            v: See there.
            mu: See there.
            nearest: The nearest point ``(*batch, 3)``, if it is known.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        if is_positive(mu):
            values, frame = torch.linalg.eigh(self._path(v, mu).jacobian)
            values = values.clamp(0, 1)
        else:
            if nearest is not None and not self.dual:
                values, frame = _at(v, nearest)
            else:  # for the dual cone, what is known of -v would have lost its digits to v
                _, values, frame = _solve(-v if self.dual else v)
            values = 1 - values if self.dual else values
        return Spectrum(values, lambda a: frame.mT @ a, lambda a: frame @ a)

    def _path(self, v: Tensor, mu: Number) -> PathPoint:
        refuse_central_path_of_dual(self.dual, mu, "ExponentialCone")
        size = v.abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        unit = v / size
        s, jacobian = exponential_path(unit, mu / size[..., 0] ** 2, _solve(unit).nearest)
        return PathPoint(s * size, jacobian)


class _Rays(NamedTuple):
    """The rays of both boundaries at one slope, scaled such that nothing overflows."""

    primal: Tensor  # (..., 3)
    dual: Tensor  # (..., 3)
    across: Tensor  # (..., 3) their cross product
    primal_turn: Tensor  # (...) how quickly the direction of `primal` turns
    dual_turn: Tensor  # (...)


class _Split(NamedTuple):
    nearest: Tensor  # (..., 3)
    values: Tensor  # (..., 3) eigenvalues of the derivative
    frame: Tensor  # (..., 3, 3) its eigenvectors


def _rays(slope: Tensor) -> _Rays:
    steep = slope > 0
    small = torch.exp(-slope.abs())
    one = torch.ones_like(slope)
    # The primal ray is scaled by exp(-slope) where that is small, the dual one by exp(slope).
    r, q = torch.where(steep, small, one), torch.where(steep, one, small)
    primal = torch.stack([slope * r, r, torch.where(steep, one, small)], -1)
    dual = torch.stack([-q, (slope - 1) * q, torch.where(steep, small, one)], -1)
    across = torch.linalg.cross(primal, dual)
    primal_length = torch.linalg.vector_norm(primal, dim=-1)
    dual_length = torch.linalg.vector_norm(dual, dim=-1)
    return _Rays(
        primal / primal_length[..., None],
        dual / dual_length[..., None],
        across / (primal_length * dual_length)[..., None],
        r * dual_length / primal_length**2,
        q * primal_length / dual_length**2,
    )


def _slope(v: Tensor, guess: Tensor | None) -> Tensor:
    r"""The slope of the ray that is nearest, given that it is neither a face nor the apex.

    The multiples of the rays are :math:`\alpha = ((\rho - 1) x + y) / (\rho^2 - \rho + 1)` and
    :math:`\beta = (x - \rho y) / (\rho^2 - \rho + 1)`, and the third equation is
    :math:`\alpha e^\rho - \beta e^{-\rho} = z`. Between the slopes where one of the two is zero it
    has one root; it is found after taking logarithms on both sides, in the logit of the place
    between the ends, because then it is almost linear.
    """
    x, y, z = v.unbind(-1)
    safe_x, safe_y = torch.where(x == 0, 1.0, x), torch.where(y == 0, 1.0, y)
    high = torch.where(y > 0, x / safe_y, STEEPEST).clamp(max=STEEPEST)
    low = torch.where(x > 0, (1 - y / safe_x).clamp(min=FLATTEST), 2 * high + FLATTEST)
    low = low.clamp(max=STEEPEST)
    width = torch.relu(high - low)
    # What is left of the numerators where an end is not their zero.
    alpha_low = torch.relu((low - 1) * x + y) * (low != 1 - y / safe_x)
    beta_high = torch.relu(x - high * y) * (high != x / safe_y)
    log_plus, log_minus = torch.log(torch.relu(z)), torch.log(torch.relu(-z))

    def place(logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        above, below = width * sigmoid(logit), width * sigmoid(-logit)
        return torch.where(logit > 0, high - below, low + above), above, below

    def evaluate(logit: Tensor) -> tuple[Tensor, Tensor]:
        slope, above, below = place(logit)
        alpha = torch.where(x > 0, alpha_low + x * above, (slope - 1) * x + y)
        beta = torch.where(y > 0, beta_high + y * below, x - slope * y)
        square = torch.log(slope * slope - slope + 1)
        square_turn = (2 * slope - 1) / (slope * slope - slope + 1)
        log_alpha, alpha_turn = torch.log(alpha) - square + slope, x / alpha - square_turn + 1
        log_beta, beta_turn = torch.log(beta) - square - slope, -y / beta - square_turn - 1
        left, right = logaddexp(log_alpha, log_minus), logaddexp(log_beta, log_plus)
        turn = torch.exp(log_beta - right) * beta_turn - torch.exp(log_alpha - left) * alpha_turn
        return right - left, turn * above * sigmoid(-logit)

    end = torch.full_like(x, 100.0)
    start = None
    if guess is not None:
        start = torch.log(torch.relu(guess - low)) - torch.log(torch.relu(high - guess))
        start = torch.where(start.isnan(), 0.0, start).clamp(-100.0, 100.0)
    return place(decreasing_root(evaluate, -end, end, start))[0]


def _polish(unit: Tensor, slope: Tensor) -> Tensor:
    """One step of Newton's method on what is left of ``unit`` across both rays."""
    rays = _rays(slope)
    along, against = (unit * rays.primal).sum(-1), (unit * rays.dual).sum(-1)
    across = (unit * rays.across).sum(-1)
    better = slope + across / (rays.primal_turn * along - rays.dual_turn * against)
    improves = (unit * _rays(better).across).sum(-1).abs() < across.abs()
    return torch.where(improves, better, slope)


def _slope_of(s: Tensor) -> Tensor:
    """The slope of the ray through a point; of points on no ray, any number."""
    return s[..., 0] / torch.where(s[..., 1] > 0, s[..., 1], 1.0)


def _between(rays: _Rays, along: Tensor, against: Tensor) -> Tensor:
    """The eigenvalue between 0 and 1, for the lengths of both parts."""
    kept, lost = along * rays.primal_turn, against * rays.dual_turn
    some = kept + lost > 0
    return torch.where(some, kept / torch.where(some, kept + lost, 1.0), 0.0)


def _at(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors where the nearest point ``s`` of the primal cone is known."""
    z = s - v
    apex, polar, on_face = (v == 0).all(-1), (s == 0).all(-1), s[..., 1] == 0
    inside = apex | ((z == 0).all(-1) & ~on_face)
    regular = ~(inside | polar | on_face)
    rays = _rays(torch.where(regular, _slope_of(s), 0.0).clamp(FLATTEST, STEEPEST))
    lengths = torch.linalg.vector_norm(s, dim=-1), torch.linalg.vector_norm(z, dim=-1)
    zero, one = torch.zeros_like(s[..., 0]), torch.ones_like(s[..., 0])
    last = torch.where(on_face, (v[..., 2] >= 0).to(v.dtype), _between(rays, *lengths))
    values = torch.stack([one, zero, last], -1)
    values = torch.where(polar[..., None], 0.0, values)
    frame = torch.stack([rays.primal, rays.dual, rays.across], -1)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return (
        torch.where(inside[..., None], 1.0, values),
        torch.where(regular[..., None, None], frame, eye),
    )


def _solve(v: Tensor, near: Tensor | None = None) -> _Split:
    """The nearest point of the primal cone and the derivative there, perhaps from a guess."""
    size = v.abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    unit = v / size
    x, y, z = unit.unbind(-1)

    # exp may overflow to inf in these, which compares as it should.
    at_apex = (unit == 0).all(-1)
    inside = at_apex | ((y > 0) & (y * torch.exp(x / torch.where(y > 0, y, 1.0)) <= z))
    polar = (x > 0) & (x * torch.exp(y / torch.where(x > 0, x, 1.0)) <= -math.e * z)
    # So near the face that the square of the slope would overflow.
    on_face = (x <= 0) & (y <= -x * (torch.finfo(v.dtype).tiny ** 0.5 * 1e10))
    regular = ~(inside | polar | on_face)

    # Elements that need no root get a harmless problem of their own.
    outside = torch.where(regular[..., None], unit, unit.new_tensor([1.0, 1.0, 0.0]))
    guess = None if near is None else _slope_of(near)
    rays = _rays(_polish(unit, _slope(outside, guess)))
    along = torch.relu((unit * rays.primal).sum(-1))
    against = torch.relu(-(unit * rays.dual).sum(-1))
    between = _between(rays, along, against)

    zero, one = torch.zeros_like(x), torch.ones_like(x)
    on_ray = along[..., None] * rays.primal
    flat = torch.stack([x, zero, torch.relu(z)], -1)
    nearest = torch.where(on_face[..., None], flat, on_ray)
    nearest = size * torch.where(polar[..., None], 0.0, nearest)

    values = torch.stack([one, zero, between], -1)
    flat = torch.stack([one, zero, (z >= 0).to(v.dtype)], -1)
    values = torch.where(on_face[..., None], flat, values)
    values = torch.where(polar[..., None], 0.0, values)
    frame = torch.stack([rays.primal, rays.dual, rays.across], -1)
    return _Split(
        torch.where(inside[..., None], v, nearest),
        torch.where(inside[..., None], 1.0, values),
        torch.where(regular[..., None, None], frame, torch.eye(3, dtype=v.dtype, device=v.device)),
    )
