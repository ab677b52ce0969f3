r"""The second-order cone, by the two eigenvalues of its Jordan algebra."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .arrays import Array, library, run
from .cone import Cone, Number, Spectrum, check_count, is_positive, per_row
from .smooth_relu import divided_difference, radius, smooth_relu


class _Jacobian(NamedTuple):
    r"""The numbers in :math:`D`, each ``(..., 1)``, for :math:`v = (t, x)`.

    .. math::
        D = \begin{pmatrix} f & g x^\top \\ g x & d I + h x x^\top \end{pmatrix}

    None of them needs :math:`x / \|x\|`, so that they have derivatives where :math:`x = 0`.
    """

    f: Tensor
    g: Tensor
    d: Tensor
    h: Tensor


@dataclass(frozen=True)
class SecondOrderCone(Cone):
    r"""The cone :math:`K = \{(t, x) : \|x\|_2 \le t\}`, also called Lorentz or ice-cream cone.

    Its barrier is :math:`f(t, x) = -\frac12 \log(t^2 - x^\top x)`.

    A vector :math:`(t, x)` has the eigenvalues :math:`t \pm \|x\|` with the orthonormal frame
    :math:`(1, \pm x/\|x\|)/\sqrt2`; the projection applies :math:`\psi_\mu` to them. With this
    barrier, half of :math:`-\log\det`, points on the central path have :math:`s \circ z = \mu e`
    as in the solvers ECOS and Clarabel, and one row alone is a :class:`NonnegativeCone`.

    ``derivative`` is differentiable wherever the projection is twice; on :math:`x = 0` with
    :math:`\mu > 0` torch gets its first derivatives right, not the second.

    Attributes:
        rows: Length of the vectors, at least 1.

    References:
        Fukushima, Luo and Tseng, *Smoothing functions for second-order-cone complementarity
        problems*, SIAM Journal on Optimization 12 (2002), section 3 and proposition 5.2.

    Example:
        >>> import torch
        >>> SecondOrderCone(3).project(torch.tensor([1.0, 3.0, 4.0])).round(decimals=4)
        tensor([3.0000, 1.8000, 2.4000])
    """

    rows: int
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("SecondOrderCone", "rows", self.rows, 1)

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The function :math:`\psi_\mu` of the eigenvalues; see :meth:`Cone.project`."""
        if not is_positive(mu):
            return run(_nearest, v)[0]
        mu = per_row(mu)
        t, x, norm = _split(v)
        large, small = t + norm, t - norm
        mean = (smooth_relu(large, mu) + smooth_relu(small, mu)) / 2
        return torch.cat([mean, divided_difference(large, small, mu) * x], -1)

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """In O(rows); see :meth:`Cone.derivative`."""
        t, x, norm = _split(v)
        f, g, d, h = _jacobian(t, norm, per_row(mu))
        first, rest = w[..., :1], w[..., 1:]
        inner = (x * rest).sum(-1, keepdim=True)
        return torch.cat([f * first + g * inner, d * rest + (g * first + h * inner) * x], -1)

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        """The frame by one reflection, in O(rows) a column; see :meth:`Cone.spectrum`."""
        if self.rows == 1:
            t, _, norm = _split(v)
            return Spectrum(_slopes(t, norm, per_row(mu))[0], lambda a: a, lambda a: a)
        if is_positive(mu):
            values, mirror, weight, sign = _frame(v, per_row(mu))
        else:
            values, mirror, weight, sign = run(_frame, v)
        mirror, weight, sign = mirror[..., None], weight[..., None], sign[..., None]

        def reflect(a: Tensor) -> Tensor:
            reflected: Tensor = a - weight * mirror * (mirror * a).sum(-2, keepdim=True)
            return reflected

        def rotate(a: Tensor) -> Tensor:
            first, rest = a[..., :1, :], reflect(a[..., 1:, :])
            second = -sign * rest[..., :1, :]
            pair = [(first + second) * math.sqrt(0.5), (first - second) * math.sqrt(0.5)]
            return torch.cat([*pair, rest[..., 1:, :]], -2)

        def back(a: Tensor) -> Tensor:
            plus, minus = a[..., :1, :] * math.sqrt(0.5), a[..., 1:2, :] * math.sqrt(0.5)
            second = -sign * (plus - minus)
            others = a[..., 2:, :].expand(*second.shape[:-2], self.rows - 2, second.shape[-1])
            first = (plus + minus).expand_as(second)
            return torch.cat([first, reflect(torch.cat([second, others], -2))], -2)

        return Spectrum(values, rotate, back)

    def eigenvectors(
        self, v: Tensor, mu: Number = 0.0, nearest: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The columns of the reflection; see :meth:`Cone.eigenvectors`."""
        if self.rows == 1 or is_positive(mu):
            return super().eigenvectors(v, mu, nearest)
        values, frame = run(_eigenvectors, v)
        return values, frame


def _eigenvectors(v: Array) -> tuple[Array, Array]:
    """Eigenvalues and, as rows, eigenvectors."""
    xp = library(v)
    values, mirror, weight, sign = _frame(v)
    # The rows of the reflection, of which the first one is shared by two eigenvectors.
    reflected = -(weight * mirror)[..., None] * mirror[..., None, :]
    reflected = reflected + xp.eye(mirror.shape[-1], dtype=mirror.dtype)
    first = -sign * math.sqrt(0.5) * reflected[..., 0, :]
    rest = xp.concatenate((xp.stack((first, -first), -2), reflected[..., 1:, :]), axis=-2)
    head = xp.zeros_like(rest[..., :1])
    head[..., :2, :] = math.sqrt(0.5)
    return values, xp.concatenate((head, rest), axis=-1)


def _nearest(v: Array) -> tuple[Array]:
    """The nearest point."""
    xp = library(v)
    t, x, norm = _split(v)
    inside, mixed = norm <= t, norm > abs(t)
    scale = (t + norm) / 2
    tail = x * (scale / xp.where(mixed, norm, 1.0))
    on_the_boundary = xp.concatenate((scale, tail), axis=-1)
    return (xp.where(inside, v, xp.where(mixed, on_the_boundary, 0.0)),)


def _frame(v: Array, mu: Number = 0.0) -> tuple[Array, Array, Array, Array]:
    """Eigenvalues, and the reflection that makes the eigenvectors: mirror, weight and sign.

    The reflection sends the first unit vector to ``-sign * x / |x|``, where the sign is that of the
    first entry, so that nothing cancels. Where ``x = 0`` it is the unit vector itself.
    """
    xp = library(v)
    t, x, norm = _split(v)
    large, small, between = _slopes(t, norm, mu)
    somewhere = norm > 0
    unit = x / xp.where(somewhere, norm, 1.0)
    head = xp.where(somewhere, unit[..., :1], 1.0)
    one = xp.ones_like(head)  # in the precision of v
    sign = xp.where(head < 0, -one, one)
    mirror = xp.concatenate((head + sign, unit[..., 1:]), axis=-1)
    others = xp.ones_like(x[..., 1:]) * between
    values = xp.concatenate((large, small, others), axis=-1)
    return values, mirror, 2 / (mirror * mirror).sum(-1, keepdims=True), sign


def _split(v: Array) -> tuple[Array, Array, Array]:
    """The parts ``t`` and ``x`` and the norm of ``x``, whose derivative at 0 is 0 and not NaN."""
    xp = library(v)
    t, x = v[..., :1], v[..., 1:]
    # Scaled, so that squares neither overflow nor vanish; the scale is a constant to torch.
    constant = x.detach() if isinstance(x, Tensor) else x
    scale = xp.amax(abs(constant), -1, keepdims=True) if x.shape[-1] else xp.zeros_like(t)
    somewhere = scale > 0
    scale = xp.where(somewhere, scale, 1.0)
    square = ((x / scale) ** 2).sum(-1, keepdims=True)
    norm = scale * xp.sqrt(xp.where(somewhere, square, 1.0))
    return t, x, xp.where(somewhere, norm, 0.0)


def _slopes(t: Array, norm: Array, mu: Number) -> tuple[Array, Array, Array]:
    """Eigenvalues of the Jacobian: of the larger and the smaller one of ``v``, and the others."""
    if is_positive(mu):
        large, small = t + norm, t - norm
        return (
            divided_difference(large, large, mu),
            divided_difference(small, small, mu),
            divided_difference(large, small, mu),
        )
    xp = library(t)
    inside, mixed = norm <= t, norm > abs(t)
    zero, one = xp.zeros_like(t), xp.ones_like(t)  # in the precision of t
    between = (t / xp.where(mixed, norm, 1.0) + 1) / 2
    of_inside = xp.where(inside, one, zero)
    return xp.where(inside | mixed, one, zero), of_inside, xp.where(mixed, between, of_inside)


def _jacobian(t: Tensor, norm: Tensor, mu: Number) -> _Jacobian:
    r"""The entries of :math:`D` without division by :math:`\|x\|`, except between the cones."""
    large, small, between = _slopes(t, norm, mu)
    f = (large + small) / 2
    if not is_positive(mu):
        mixed = norm > t.abs()
        inverse = 1 / torch.where(mixed, norm, 1.0)
        g = torch.where(mixed, inverse / 2, 0.0)
        return _Jacobian(f, g, between, torch.where(mixed, -t * inverse**3 / 2, 0.0))
    # With a, b = t +- |x| and their roots r: a r_b - b r_a = (a - b) ratio, and ratio has no
    # cancellation but in a b + r_a r_b, which is rewritten where a b is negative.
    a, b = t + norm, t - norm
    r_a, r_b = radius(a, mu), radius(b, mu)
    product, roots = a * b, r_a * r_b
    opposite = product < 0
    rewritten = 4 * mu * (a * a + b * b + 4 * mu) / torch.where(opposite, roots - product, 1.0)
    denominator = 4 * mu + torch.where(opposite, rewritten, roots + product)
    ratio = 4 * mu * (r_a + r_b) / denominator
    g = ratio / (2 * roots)
    h = -2 * t * ratio / (roots * (r_a + r_b) ** 2)
    return _Jacobian(f, g, between, h)
