r"""The exponential cone and its dual, by a root-finding problem in one variable."""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .arrays import Array, clamp, library, logaddexp, only, relu, run, sigmoid, some, split
from .cone import Cone, Number, Spectrum, apply, is_positive
from .dual_path import refuse_central_path_of_dual
from .exponential_path import PathPoint, exponential_path
from .monotone_root import SHORT, decreasing_root

# At this slope a ray of the boundary agrees with its limit (0, 0, 1), in any precision.
STEEPEST = 100.0
# At this one exp(-slope) is as large as double precision allows.
FLATTEST = -700.0
# Steps of Newton's method from a guess before the root is looked for: good guesses take 1 or 2.
TRIES = 4


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
        return run(partial(_project, self.dual), v, near)[0]

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
            values, frame = run(partial(_decompose, self.dual), v, nearest)
        return Spectrum(values, lambda a: frame.mT @ a, lambda a: frame @ a)

    def eigenvectors(
        self, v: Tensor, mu: Number = 0.0, nearest: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As they are; see :meth:`Cone.eigenvectors`."""
        if is_positive(mu):
            return super().eigenvectors(v, mu, nearest)
        values, frame = run(partial(_decompose, self.dual), v, nearest)
        return values, frame.mT

    def _path(self, v: Tensor, mu: Number) -> PathPoint:
        refuse_central_path_of_dual(self.dual, mu, "ExponentialCone")
        size = v.abs().amax(-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        unit = v / size
        s, jacobian = exponential_path(unit, mu / size[..., 0] ** 2, self.project(unit))
        return PathPoint(s * size, jacobian)


def _project(dual: bool, v: Array, near: Array | None) -> tuple[Array]:
    """The nearest point ``(..., 3)``, perhaps from a guess."""
    if dual:
        return (v + _nearest(_place(-v, None if near is None else near - v)),)
    return (_nearest(_place(v, near)),)


def _decompose(dual: bool, v: Array, nearest: Array | None) -> tuple[Array, Array]:
    """The eigenvalues ``(..., 3)`` of the derivative and its eigenvectors ``(..., 3, 3)``."""
    if dual:  # what is known of -v has lost digits to v: it is a guess
        values, frame = _spectrum(_place(-v, None if nearest is None else nearest - v))
        return 1 - values, frame
    return _spectrum(_place(v, None) if nearest is None else _known(v, nearest))


Vector = tuple[Array, ...]  # three entries, (...) each


class _Fit(NamedTuple):
    r"""The rays of both boundaries at some slope, and what there is of a vector along them.

    The rays are :math:`(\rho r, r, q)` and :math:`(-q, (\rho - 1) q, r)`. Of the factors one is 1
    and the other one :math:`e^{-|\rho|}`, so that nothing overflows.
    """

    slope: Array
    r: Array
    q: Array
    primal: Array  # the ray's length, squared
    dual: Array  # the dual ray's
    along: Array  # product of the vector and the primal ray
    against: Array  # minus the one with the dual ray
    across: Array  # with the cross product of both
    kept: Array  # how quickly the part along the primal ray turns with the slope
    lost: Array  # the other part, in the same unit

    @property
    def step(self) -> Array:
        """Newton's step to the slope where nothing is left across both rays."""
        return self.across * self.primal * self.dual / (self.kept + self.lost)


class _Elsewhere(NamedTuple):
    """Vectors whose nearest point is on no ray."""

    inside: Array
    polar: Array
    on_face: Array

    @property
    def any(self) -> Array:
        """Whether it is one of them."""
        return self.inside | self.polar | self.on_face


class _Place(NamedTuple):
    """What determines the nearest point of a vector and the derivative there."""

    v: Vector
    size: Array | None  # what the vector was divided by before the fit
    fit: _Fit
    elsewhere: _Elsewhere | None  # None if all are on rays


def _fit(v: Vector, slope: Array) -> _Fit:
    x, y, z = v
    xp = library(slope)
    steep, small, less = slope > 0, xp.exp(-abs(slope)), slope - 1
    r, q = xp.where(steep, small, 1.0), xp.where(steep, 1.0, small)
    rr, qq = r * r, q * q
    primal, dual = (slope * slope + 1) * rr + qq, (less * less + 1) * qq + rr
    along, against = r * (slope * x + y) + q * z, q * (x - less * y) - r * z
    across = rr * (x - slope * y) - qq * (less * x + y) + small * (slope * less + 1) * z
    # In this order: the lengths are as large as a slope squared.
    kept, lost = r * dual * dual * along, q * primal * primal * against
    return _Fit(slope, r, q, primal, dual, along, against, across, kept, lost)


def _root(x: Array, y: Array, z: Array, guess: Array | None = None) -> Array:
    r"""The slope of the ray that is nearest, given that it is neither a face nor the apex.

    The multiples of the rays are :math:`\alpha = ((\rho - 1) x + y) / (\rho^2 - \rho + 1)` and
    :math:`\beta = (x - \rho y) / (\rho^2 - \rho + 1)`, and the third equation is
    :math:`\alpha e^\rho - \beta e^{-\rho} = z`. Between the slopes where one of the two is zero it
    has one root; it is found after taking logarithms on both sides, in the logit of the place
    between the ends, because then it is almost linear.
    """
    xp = library(x)
    right_of, above_of = x > 0, y > 0
    flat, upright = x / xp.where(y == 0, 1.0, y), 1 - y / xp.where(x == 0, 1.0, x)
    high = clamp(xp.where(above_of, flat, STEEPEST), -math.inf, STEEPEST)
    low = clamp(
        xp.where(right_of, clamp(upright, FLATTEST, math.inf), 2 * high + FLATTEST),
        -math.inf,
        STEEPEST,
    )
    width = relu(high - low)
    # What is left of the numerators where an end is not their zero.
    alpha_low = relu((low - 1) * x + y) * (low != upright)
    beta_high = relu(x - high * y) * (high != flat)
    log_plus, log_minus = xp.log(relu(z)), xp.log(relu(-z))

    def place(logit: Array) -> tuple[Array, Array, Array]:
        above, below = width * sigmoid(logit), width * sigmoid(-logit)
        return xp.where(logit > 0, high - below, low + above), above, below

    def evaluate(logit: Array) -> tuple[Array, Array]:
        slope, above, below = place(logit)
        alpha = xp.where(right_of, alpha_low + x * above, (slope - 1) * x + y)
        beta = xp.where(above_of, beta_high + y * below, x - slope * y)
        square = slope * slope - slope + 1
        log_square, square_turn = xp.log(square), (2 * slope - 1) / square
        log_alpha, alpha_turn = xp.log(alpha) - log_square + slope, x / alpha - square_turn + 1
        log_beta, beta_turn = xp.log(beta) - log_square - slope, -y / beta - square_turn - 1
        left, right = logaddexp(log_alpha, log_minus), logaddexp(log_beta, log_plus)
        turn = xp.exp(log_beta - right) * beta_turn - xp.exp(log_alpha - left) * alpha_turn
        return right - left, turn * above * sigmoid(-logit)

    end = xp.full_like(x, 100.0)
    start = None
    if guess is not None:
        start = xp.log(relu(guess - low)) - xp.log(relu(high - guess))
        start = clamp(xp.where(xp.isnan(start), 0.0, start), -100.0, 100.0)
    return _polish((x, y, z), place(decreasing_root(evaluate, -end, end, start))[0])


def _polish(v: Vector, slope: Array) -> Array:
    """One step of Newton's method on what is left across both rays."""
    xp = library(slope)
    before = _fit(v, slope)
    after = _fit(v, slope + before.step)
    improves = abs(after.across) * xp.sqrt(before.primal * before.dual) < abs(
        before.across
    ) * xp.sqrt(after.primal * after.dual)
    return xp.where(improves, after.slope, slope)


def _follow(v: Vector, slope: Array) -> tuple[_Fit, Array]:
    """Newton's method from a guess, and where it did find the nearest ray."""
    xp = library(slope)
    reach = SHORT * xp.finfo(slope.dtype).eps ** 0.5
    slope = clamp(slope, -math.inf, STEEPEST)
    fit = _fit(v, slope)
    going = slope <= STEEPEST  # not so NaN
    for _ in range(TRIES):
        # Elements that are done stay where they are, so that the company does not matter.
        to = clamp(xp.where(going, slope + fit.step, slope), -math.inf, STEEPEST)
        short = abs(to - slope) <= reach * (1 + abs(to))
        slope, fit = to, _fit(v, to)
        # With these signs it is the nearest ray: by Moreau's theorem only that splits the vector
        # so. The steepest one stands for those beyond it, which vectors over the face do not have.
        split_well = (fit.along >= 0) & (fit.against >= 0) & ((to < STEEPEST) | (v[0] > 0))
        going = going & split_well & ~short
        if not some(going):
            break
    return fit, split_well & ~going


def _guess(v: Vector, s: Vector) -> Array:
    """A slope from a guess of the nearest point; NaN or infinite if there is no telling."""
    x, y = s[0] - v[0], s[1] - v[1]
    # Both rays tell it, and the one whose unit is longer less roughly.
    return library(x).where(s[1] >= -x, s[0] / s[1], 1 - y / x)


def _scaled(v: Vector) -> tuple[Vector, Array | None]:
    """The vector over its size, where that is so extreme that products of it are."""
    x, y, z = v
    xp = library(x)
    size = xp.maximum(xp.maximum(abs(x), abs(y)), abs(z))
    least = xp.finfo(x.dtype).tiny ** 0.25
    extreme = ((size > 1 / least) & (size < math.inf)) | ((size < least) & (size > 0))
    if not some(extreme):
        return v, None
    size = xp.where(extreme, size, 1.0)
    return (x / size, y / size, z / size), size


def _place(vector: Array, near: Array | None) -> _Place:
    """Find the nearest point of the primal cone, perhaps from a guess."""
    v = split(vector)
    unit, size = _scaled(v)
    given, harmless = list(unit), [1.0, 1.0, 0.0]
    found, slope = None, library(vector).zeros_like(v[0])
    if near is not None:
        guess = _guess(v, split(near))
        fit, found = _follow(unit, guess)
        if not some(~found):
            return _Place(v, size, fit, None)
        given, harmless = [*given, guess], [*harmless, 0.0]
        slope = library(vector).where(found, fit.slope, slope)
    elsewhere = _elsewhere(unit)
    if found is not None:
        elsewhere = _Elsewhere(*(mask & ~found for mask in elsewhere))
    sought = ~elsewhere.any if found is None else ~(elsewhere.any | found)
    return _Place(v, size, _fit(unit, only(sought, _root, given, harmless, slope)), elsewhere)


def _elsewhere(v: Vector) -> _Elsewhere:
    x, y, z = v
    xp = library(x)
    # exp may overflow to inf in these, which compares as it should.
    inside = (y > 0) & (y * xp.exp(x / xp.where(y > 0, y, 1.0)) <= z)
    apex = (x == 0) & (y == 0) & (z == 0)
    polar = (x > 0) & (x * xp.exp(y / xp.where(x > 0, x, 1.0)) <= -math.e * z)
    # So near the face that the square of the slope would overflow.
    on_face = (x <= 0) & (y <= -x * (xp.finfo(x.dtype).tiny ** 0.5 * 1e10))
    return _Elsewhere(inside | apex, polar, on_face)


def _known(vector: Array, nearest: Array) -> _Place:
    """What follows from the nearest point of the primal cone."""
    v, s = split(vector), split(nearest)
    apex, polar = ((a[0] == 0) & (a[1] == 0) & (a[2] == 0) for a in (v, s))
    on_face = (s[1] == 0) & (v[0] <= 0)
    same = (s[0] == v[0]) & (s[1] == v[1]) & (s[2] == v[2])
    elsewhere = _Elsewhere(apex | (same & ~on_face), polar, on_face)
    unit, size = _scaled(v)
    # On so steep a ray that y is lost, the limit stands for it.
    xp = library(vector)
    slope = xp.where(s[1] > 0, s[0] / xp.where(s[1] > 0, s[1], 1.0), STEEPEST)
    slope = xp.where(elsewhere.any, 0.0, slope)
    return _Place(v, size, _fit(unit, slope), elsewhere)


def _nearest(place: _Place) -> Array:
    """The nearest point ``(..., 3)``."""
    (x, _, z), size, fit, elsewhere = place
    xp = library(x)
    multiple = relu(fit.along) / fit.primal
    multiple = multiple if size is None else multiple * size
    y = multiple * fit.r
    s = [y * fit.slope, y, multiple * fit.q]
    if elsewhere is not None and some(elsewhere.any):
        inside, polar, on_face = elsewhere
        for i, flat in enumerate((x, 0.0, relu(z))):
            edge = xp.where(polar, 0.0, xp.where(on_face, flat, s[i]))
            s[i] = xp.where(inside, place.v[i], edge)
    return xp.stack(s, -1)


def _spectrum(place: _Place) -> tuple[Array, Array]:
    """The eigenvalues ``(..., 3)`` of the derivative and its eigenvectors ``(..., 3, 3)``."""
    _, _, fit, elsewhere = place
    xp = library(fit.slope)
    slope, r, q, less = fit.slope, fit.r, fit.q, fit.slope - 1
    one, zero = xp.ones_like(slope), xp.zeros_like(slope)
    kept, total = relu(fit.kept), relu(fit.kept) + relu(fit.lost)
    values = [one, zero, kept / xp.where(total > 0, total, 1.0)]
    across = (r * r - less * q * q, -q * q - slope * r * r, r * q * (slope * less + 1))
    p, d = 1 / xp.sqrt(fit.primal), 1 / xp.sqrt(fit.dual)
    frame = [
        *(slope * r * p, -q * d, across[0] * p * d),
        *(r * p, less * q * d, across[1] * p * d),
        *(q * p, r * d, across[2] * p * d),
    ]
    if elsewhere is not None and some(elsewhere.any):
        inside, polar, on_face = elsewhere
        flat = xp.where(place.v[2] >= 0, one, zero)
        last = xp.where(polar, 0.0, xp.where(on_face, flat, values[2]))
        values = [xp.where(polar, zero, one), zero, last]
        values = [xp.where(inside, 1.0, value) for value in values]
        none = elsewhere.any
        frame = [xp.where(none, float(i % 4 == 0), entry) for i, entry in enumerate(frame)]
    return xp.stack(values, -1), xp.stack(frame, -1).reshape(*slope.shape, 3, 3)
