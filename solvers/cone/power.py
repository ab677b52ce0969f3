r"""Power cones, by a root-finding problem in one variable and in closed form after that."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .arrays import logaddexp, sigmoid
from .cone import Cone, Number, Spectrum, apply, check_count, is_positive, per_row
from .dual_path import refuse_central_path_of_dual
from .monotone_root import decreasing_root
from .smooth_relu import smooth_relu


@dataclass(frozen=True)
class GeneralizedPowerCone(Cone):
    r"""The cone :math:`K = \{(u, w) : \prod_i u_i^{\alpha_i} \ge \|w\|_2, u \ge 0\}`, or its dual.

    By symmetry the nearest point keeps the direction of :math:`w`, so that only its length
    :math:`r` changes. With :math:`R` the one of :math:`v` and :math:`c = r (R - r)`, the others
    are :math:`u_i = \psi_{\alpha_i c}(v_i)` and the root of
    :math:`\sum_i \alpha_i \log u_i - \log r`, decreasing in :math:`r \in (0, R)`, is left.

    The barrier is :math:`f(u, w) = -\log(\prod_i u_i^{2\alpha_i} - w^\top w) -
    \sum_i (1 - \alpha_i) \log u_i`. With :math:`\eta = 1 / (1 - w^\top w / \prod_i
    u_i^{2\alpha_i})` its central path is :math:`u_i = \psi_{\mu (2 \alpha_i \eta + 1 -
    \alpha_i)}(v_i)` and one equation for :math:`\eta` is left.

    Attributes:
        alphas: Exponents :math:`\alpha`, positive with sum 1.
        dim: Entries of :math:`w`, at least 1.
        dual: Whether :math:`K^* = \{(u, w) : \prod_i (u_i / \alpha_i)^{\alpha_i} \ge \|w\|_2\}`
            is meant.

    References:
        Hien, *Differential properties of Euclidean projection onto power cone*, Mathematical
        Methods of Operations Research 82 (2015), theorem 2.2.

        Roy and Xiao, *On self-concordant barriers for generalized power cones*, Optimization
        Letters 16 (2022), for the barrier.

    Example:
        >>> import torch
        >>> v = torch.tensor([1.0, 1.0, 3.0, 4.0], dtype=torch.float64)
        >>> GeneralizedPowerCone((0.5, 0.5), dim=2).project(v).round(decimals=4)
        tensor([2.3333, 2.3333, 1.4000, 1.8667], dtype=torch.float64)
    """

    alphas: tuple[float, ...]
    dim: int
    dual: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas", tuple(float(alpha) for alpha in self.alphas))
        if not self.alphas or not all(0 < alpha <= 1 for alpha in self.alphas):
            raise ValueError(
                f"GeneralizedPowerCone: alphas must be positive numbers; got {self.alphas}. "
                "Leave out rows whose exponent is 0."
            )
        if abs(math.fsum(self.alphas) - 1) > 1e-9:
            raise ValueError(
                f"GeneralizedPowerCone: alphas must sum to 1; got {self.alphas} with the sum "
                f"{math.fsum(self.alphas)}. Divide them by it."
            )
        check_count("GeneralizedPowerCone", "dim", self.dim, 1)

    @property
    def rows(self) -> int:
        """The number of exponents and ``dim``."""
        return len(self.alphas) + self.dim

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        """The nearest point, or a point of the central path; see :meth:`Cone.project`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        refuse_central_path_of_dual(self.dual, mu, "GeneralizedPowerCone")
        return v + _nearest(-v, self.alphas, 0.0) if self.dual else _nearest(v, self.alphas, mu)

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """See :meth:`Cone.derivative`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        return apply(self.spectrum(v, mu), w)

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        """The directions of ``w`` by a reflection, the rest numerically; see :meth:`Cone.spectrum`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        refuse_central_path_of_dual(self.dual, mu, "GeneralizedPowerCone")
        count = len(self.alphas)
        split = _split(-v if self.dual else v, self.alphas, mu)
        values, frame = torch.linalg.eigh(_jacobian(split))
        values = values.clamp(0, 1)
        values = torch.cat([values, split.ratio.expand(*values.shape[:-1], self.dim - 1)], -1)

        # The reflection sends the first unit vector to -sign * w / |w|, which the frame calls w;
        # the sign is that of the first entry, so that nothing cancels.
        w = v[..., count:]
        length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        unit = w / torch.where(length > 0, length, 1.0)
        head = torch.where(length > 0, unit[..., :1], 1.0)
        sign = torch.where(head < 0, -1.0, 1.0).to(v.dtype)
        mirror = torch.cat([head + sign, unit[..., 1:]], -1)[..., None]
        weight = 2 / (mirror * mirror).sum(-2, keepdim=True)
        # The dual cone looks at -v, where the unit vector is the opposite.
        sign = -sign[..., None] * (-1.0 if self.dual else 1.0)

        def reflect(a: Tensor) -> Tensor:
            return a - weight * mirror * (mirror * a).sum(-2, keepdim=True)

        def rotate(a: Tensor) -> Tensor:
            rest = reflect(a[..., count:, :])
            upper = a[..., :count, :].expand(*rest.shape[:-2], count, rest.shape[-1])
            core = frame.mT @ torch.cat([upper, sign * rest[..., :1, :]], -2)
            return torch.cat([core, rest[..., 1:, :]], -2)

        def back(a: Tensor) -> Tensor:
            core = frame @ a[..., : count + 1, :]
            others = a[..., count + 1 :, :].expand(*core.shape[:-2], self.dim - 1, core.shape[-1])
            rest = reflect(torch.cat([sign * core[..., count:, :], others], -2))
            return torch.cat([core[..., :count, :], rest], -2)

        return Spectrum(1 - values if self.dual else values, rotate, back)


@dataclass(frozen=True)
class PowerCone(Cone):
    r"""The cone :math:`K = \{(x, y, z) : x^\alpha y^{1-\alpha} \ge |z|, x, y \ge 0\}`, or its dual.

    It is the :class:`GeneralizedPowerCone` with two exponents and ``dim=1``, which has the formulas
    and the barrier.

    Attributes:
        alpha: Exponent :math:`0 < \alpha < 1`.
        dual: Whether :math:`K^* = \{(x, y, z) : (x/\alpha)^\alpha (y/(1-\alpha))^{1-\alpha}
            \ge |z|\}` is meant.

    Example:
        >>> import torch
        >>> v = torch.tensor([1.0, 1.0, 5.0], dtype=torch.float64)
        >>> PowerCone(0.5).project(v).round(decimals=4)
        tensor([2.3333, 2.3333, 2.3333], dtype=torch.float64)
    """

    alpha: float
    dual: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(
                f"PowerCone: alpha must be between 0 and 1, both excluded; got {self.alpha!r}. "
                "With 0 or 1 the cone is polyhedral: write it with NonnegativeCone rows."
            )

    @property
    def rows(self) -> int:
        """Always 3."""
        return 3

    @property
    def _generalized(self) -> GeneralizedPowerCone:
        return GeneralizedPowerCone((self.alpha, 1 - self.alpha), 1, self.dual)

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        """The nearest point, or a point of the central path; see :meth:`Cone.project`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        refuse_central_path_of_dual(self.dual, mu, "PowerCone")
        return self._generalized.project(v, mu)

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """See :meth:`Cone.derivative`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        return apply(self.spectrum(v, mu), w)

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        """See :meth:`Cone.spectrum`.

        Raises:
            NotImplementedError: For ``mu > 0`` and the dual cone.
        """
        refuse_central_path_of_dual(self.dual, mu, "PowerCone")
        return self._generalized.spectrum(v, mu)


class _Split(NamedTuple):
    r"""A projection in the coordinates :math:`(u, r)`, and what its Jacobian is made of.

    .. math::
        D = \begin{pmatrix}
            \operatorname{diag}(d) + c (1 - 2 r/R) a a^\top / b & (c/R) a / b \\
            (c/R) a^\top / b & e / b
        \end{pmatrix},
        \qquad c = r (R - r)
    """

    u: Tensor  # (..., n)
    ratio: Tensor  # (..., 1) r / R, which is the derivative across the direction of w
    length: Tensor  # (..., 1) R
    c: Tensor  # (..., 1)
    d: Tensor  # (..., n)
    a: Tensor  # (..., n)
    e_over_b: Tensor  # (..., 1)
    b: Tensor  # (..., 1)


def _nearest(v: Tensor, alphas: tuple[float, ...], mu: Number) -> Tensor:
    split = _split(v, alphas, mu)
    return torch.cat([split.u, split.ratio * v[..., len(alphas) :]], -1)


def _jacobian(split: _Split) -> Tensor:
    """The matrix in :class:`_Split`, ``(..., n + 1, n + 1)``."""
    a = split.a[..., None]
    c, b, ratio = split.c[..., None], split.b[..., None], split.ratio[..., None]
    upper = torch.diag_embed(split.d) + (c * (1 - 2 * ratio) / b) * a @ a.mT
    side = c / (split.length[..., None] * b) * a
    corner = split.e_over_b[..., None]
    return torch.cat([torch.cat([upper, side], -1), torch.cat([side.mT, corner], -1)], -2)


def _split(v: Tensor, alphas: tuple[float, ...], mu: Number) -> _Split:
    """Scale to entries of size 1, so that squares neither overflow nor vanish, and solve."""
    mu = per_row(mu)
    alpha = v.new_tensor(alphas)
    count = len(alphas)
    size = v.abs().amax(-1, keepdim=True)
    # A power of two, so that what is inside comes back as it was.
    size = torch.exp2(torch.round(torch.log2(torch.where(size > 0, size, 1.0))))
    u = v[..., :count] / size
    length = torch.linalg.vector_norm(v[..., count:] / size, dim=-1, keepdim=True)
    if is_positive(mu):
        split = _central_path(u, length, alpha, mu / size / size)
    else:
        split = _moreau(u, length, alpha)
    return split._replace(u=split.u * size)


def _moreau(u0: Tensor, length: Tensor, alpha: Tensor) -> _Split:
    """The nearest point, in the coordinates of :class:`_Split`."""
    tiny = torch.finfo(u0.dtype).tiny
    log_alpha = torch.log(alpha)
    zero, one = torch.zeros_like(u0), torch.ones_like(length)

    # Squares of lengths shorter than this vanish: they count as 0.
    on_axis = length <= tiny**0.5
    log_mean = (alpha * torch.log(torch.relu(u0))).sum(-1, keepdim=True)
    inside = (u0 >= 0).all(-1, keepdim=True) & (on_axis | (log_mean >= torch.log(length)))
    log_mean = (alpha * (torch.log(torch.relu(-u0)) - log_alpha)).sum(-1, keepdim=True)
    polar = (u0 <= 0).all(-1, keepdim=True) & (on_axis | (log_mean >= torch.log(length))) & ~inside
    regular = ~(inside | polar | on_axis)
    R = torch.where(regular, length, 1.0)
    start = torch.where(regular, u0, 0.0)

    def evaluate(logit: Tensor) -> tuple[Tensor, Tensor]:
        ratio, rest = sigmoid(logit), sigmoid(-logit)
        log_ratio = _log_sigmoid(logit)
        log_c = 2 * torch.log(R) + log_ratio + log_ratio - logit
        root = torch.sqrt(start * start + 4 * alpha * torch.exp(log_c))
        large = (root + start.abs()) / 2
        log_u = torch.where(start < 0, log_alpha + log_c - torch.log(large), torch.log(large))
        value = (alpha * log_u).sum(-1, keepdim=True) - torch.log(R) - log_ratio
        # This is the derivative of psi.
        d = torch.where(start < 0, 1 - large / root, large / root)
        d_mean = (alpha * d).sum(-1, keepdim=True)
        return value, -(d_mean * rest + (1 - d_mean) * ratio)

    end = torch.full_like(R, min(100.0, -0.98 * math.log(tiny)))
    logit = decreasing_root(evaluate, -end, end)
    ratio, rest = sigmoid(logit), sigmoid(-logit)
    c = R * R * ratio * rest
    u = smooth_relu(start, alpha * c)
    below = smooth_relu(-start, alpha * c)
    root = torch.clamp(u + below, min=tiny)
    d_mean = (alpha * (u / root)).sum(-1, keepdim=True)
    e_mean = (alpha * (below / root)).sum(-1, keepdim=True)
    b = torch.clamp(d_mean * rest + e_mean * ratio, min=tiny)

    # On the axis w = 0: what the ratio tends to as w does.
    negative, at_zero = (alpha * (u0 < 0)), (alpha * (u0 == 0))
    weight = (negative + at_zero / 2).sum(-1, keepdim=True)
    log_limit = torch.where(u0 < 0, log_alpha - torch.log(u0.abs()), torch.log(u0.abs()))
    log_limit = torch.where(u0 == 0, log_alpha / 2, log_limit)
    limit = sigmoid(2 * (alpha * log_limit).sum(-1, keepdim=True))
    limit = torch.where(weight < 0.5, one, torch.where(weight > 0.5, 0.0, limit))
    limit = torch.where(inside, 1.0, torch.where(polar, 0.0, limit))

    step = torch.where(inside, 1.0, torch.where(polar, 0.0, (u0 >= 0).to(u0.dtype)))
    return _Split(
        u=torch.where(inside, u0, torch.where(polar, 0.0, torch.where(regular, u, u0.relu()))),
        ratio=torch.where(regular, ratio, limit),
        length=R,
        c=torch.where(regular, c, 0.0),
        d=torch.where(regular, u / root, step),
        a=torch.where(regular, alpha / root, zero),
        e_over_b=torch.where(regular, e_mean * ratio / b, limit),
        b=torch.where(regular, b, one),
    )


def _central_path(u0: Tensor, length: Tensor, alpha: Tensor, mu: Number) -> _Split:
    r"""The point of the central path, in the coordinates of :class:`_Split`.

    The unknown is the logit of :math:`r^2 / G^2 = 1 - 1/\eta` with :math:`G = \prod u^\alpha`; the
    equation is :math:`G \sqrt{1 - 1/\eta} (1 + 2 \mu \eta / G^2) = R`.
    """
    on_axis = length == 0
    R = torch.where(on_axis, 1.0, length)

    def point(logit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eta = 1 + torch.exp(logit)
        m = mu * (2 * alpha * eta + 1 - alpha)
        u = smooth_relu(u0, m)
        return eta, u, smooth_relu(-u0, m)

    def evaluate(logit: Tensor) -> tuple[Tensor, Tensor]:
        eta, u, below = point(logit)
        log_mean = (alpha * torch.log(u)).sum(-1, keepdim=True)
        log_k = torch.log(2 * mu * eta) - 2 * log_mean
        share = sigmoid(log_k)
        value = torch.log(R) - log_mean - _log_sigmoid(logit) / 2
        value = value + _log_sigmoid(-log_k)
        # d log u_i / d log m_i is below / (u + below).
        growth = alpha * below / (u + below) * (2 * alpha * eta) / (2 * alpha * eta + 1 - alpha)
        mean_turn = growth.sum(-1, keepdim=True) * sigmoid(logit)
        eta_turn = sigmoid(logit)
        slope = mean_turn + sigmoid(-logit) / 2 + share * (eta_turn - 2 * mean_turn)
        return value, -slope

    end = torch.full_like(R, -0.45 * math.log(torch.finfo(u0.dtype).tiny))
    logit = torch.where(on_axis, -torch.inf, decreasing_root(evaluate, -end, end))
    eta, u, below = point(logit)
    root = u + below
    d, e = u / root, below / root
    log_mean = (alpha * torch.log(u)).sum(-1, keepdim=True)
    log_k = torch.log(2 * mu * eta) - 2 * log_mean
    rest, ratio = sigmoid(log_k), sigmoid(-log_k)
    m = 2 * alpha * eta + 1 - alpha
    tau = (alpha * e * (2 * (eta - 1) * alpha / m)).sum(-1, keepdim=True)
    numerator = ratio / (2 * eta) + ratio * tau
    mean = alpha * (d * (1 - 1 / (2 * eta)) + e * (2 * eta - 1 + alpha) / (2 * eta * m))
    b = rest * mean.sum(-1, keepdim=True) + numerator
    return _Split(
        u=u,
        ratio=ratio,
        length=R,
        c=length * length * ratio * rest,
        d=d,
        a=alpha / root,
        e_over_b=numerator / b,
        b=b,
    )


def _log_sigmoid(t: Tensor) -> Tensor:
    softplus: Tensor = logaddexp(-t, torch.zeros_like(t))
    return -softplus
