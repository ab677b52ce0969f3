"""Cones of every kind, points for them, and what belongs to them by definition."""

import math

import numpy as np
import torch

from solvers.cone import (
    BoxCone,
    ExponentialCone,
    GeneralizedPowerCone,
    NonnegativeCone,
    PositiveSemidefiniteCone,
    PowerCone,
    SecondOrderCone,
    ZeroCone,
    smat,
)

INF = math.inf
CONES = [
    ZeroCone(3),
    NonnegativeCone(4),
    BoxCone((-1.0, 0.0, 1.0, -INF, 2.0, -INF, -3.0), (1.0, INF, 2.0, INF, 2.0, -1.0, -1.0)),
    BoxCone((), ()),
    SecondOrderCone(1),
    SecondOrderCone(2),
    SecondOrderCone(5),
    PositiveSemidefiniteCone(1),
    PositiveSemidefiniteCone(3),
    ExponentialCone(),
    ExponentialCone(dual=True),
    PowerCone(0.3),
    PowerCone(0.5),
    PowerCone(0.9, dual=True),
    GeneralizedPowerCone((0.2, 0.3, 0.5), dim=3),
    GeneralizedPowerCone((0.2, 0.8), dim=1, dual=True),
    GeneralizedPowerCone((0.4, 0.6), dim=2, dual=True),
    GeneralizedPowerCone((1.0,), dim=2),
]
SMOOTH = [cone for cone in CONES if cone.smooth]
WITH_CENTRAL_PATH = [
    cone
    for cone in CONES
    if not isinstance(cone, ZeroCone | BoxCone) and not getattr(cone, "dual", False)
]


def name(cone):
    return repr(cone).replace("(", "_").replace(")", "").replace(" ", "")


def points(cone, batch=200, seed=0, spread=0):
    """Some small, some of large size, some with entries up to 10^spread times larger or smaller."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(batch, cone.rows))
    v[: batch // 4] *= 0.03
    v *= 10.0 ** rng.integers(-spread, spread + 1, v.shape)
    return torch.tensor(v)


def special_points(cone):
    """The apex, axes, and points with entries that are equal, opposite or 0."""
    rng = np.random.default_rng(1)
    few = rng.integers(-1, 2, (40, cone.rows)).astype(float)
    return torch.tensor(np.concatenate([0 * few[:1], np.eye(cone.rows), -np.eye(cone.rows), few]))


def size(v):
    """The largest entry of every vector, to measure errors by; 1 for zero."""
    largest = v.abs().amax(-1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0)


def matrix(spectrum, rows):
    """The eigenvectors and the matrix of a spectrum, ``(*batch, rows, rows)``."""
    eye = torch.eye(rows, dtype=spectrum.values.dtype).expand(*spectrum.values.shape, rows)
    U = spectrum.back(eye)
    return U, U * spectrum.values[..., None, :] @ U.mT


def violation(cone, s):
    """How far ``s`` is outside by the definition of the cone; ``(*batch)``."""
    match cone:
        case ZeroCone():
            return s.abs().amax(-1)
        case NonnegativeCone():
            return (-s).amax(-1)
        case BoxCone():
            t, x = s[..., :1], s[..., 1:]
            lower, upper = s.new_tensor(cone.lower), s.new_tensor(cone.upper)
            below = torch.where(lower.isfinite(), lower * t - x, -INF)
            above = torch.where(upper.isfinite(), x - upper * t, -INF)
            return torch.cat([-t, below, above], -1).amax(-1)
        case SecondOrderCone():
            return s[..., 1:].norm(dim=-1) - s[..., 0]
        case PositiveSemidefiniteCone():
            return -torch.linalg.eigvalsh(smat(s))[..., 0]
        case ExponentialCone(dual=False):
            return _exponential_violation(s)
        case ExponentialCone():
            u, v, w = s.unbind(-1)
            # -u e^(v/u) <= e w is y e^(x/y) <= z of other arguments.
            return _exponential_violation(torch.stack([u - v, -u, w], -1))
        case PowerCone():
            alphas = (cone.alpha, 1 - cone.alpha)
            return _power_violation(s, s.new_tensor(alphas), cone.dual)
        case GeneralizedPowerCone():
            return _power_violation(s, s.new_tensor(cone.alphas), cone.dual)


def _exponential_violation(s):
    x, y, z = s.unbind(-1)
    positive = y > 0
    least = torch.where(positive, y * torch.exp(x / torch.where(positive, y, 1.0)), 0.0)
    # Where the surface is steep in x, the distance is the one along x.
    along_x = x - y * torch.log(torch.where(z > 0, z, 1.0) / torch.where(positive, y, 1.0))
    curved = torch.where(z > 0, torch.minimum(along_x, least - z), least - z)
    on_face = torch.stack([x, -y, -z]).amax(0)
    return torch.where(positive, torch.minimum(curved, torch.maximum(on_face, y)), on_face)


def _power_violation(s, alphas, dual):
    u, w = s[..., : len(alphas)], s[..., len(alphas) :].norm(dim=-1)
    scaled = u.clamp(min=0) / alphas if dual else u.clamp(min=0)
    return torch.maximum(w - (scaled**alphas).prod(-1), (-u).amax(-1))


def dual_violation(cone, z):
    """How far ``z`` is outside the dual cone; ``(*batch)``."""
    match cone:
        case ZeroCone():
            return torch.zeros_like(z[..., 0])
        case BoxCone():
            t, x = z[..., 0], z[..., 1:]
            lower, upper = z.new_tensor(cone.lower), z.new_tensor(cone.upper)
            # The least product of t with 1 and of x with a point of the box.
            at_lower = torch.where(lower.isfinite(), lower * x.relu(), 0.0)
            at_upper = torch.where(upper.isfinite(), upper * (-x).relu(), 0.0)
            unbounded = torch.cat(
                [
                    torch.where(lower.isfinite(), -INF, x),
                    torch.where(upper.isfinite(), -INF, -x),
                    -(t + (at_lower - at_upper).sum(-1))[..., None],
                ],
                -1,
            )
            return unbounded.amax(-1)
        case ExponentialCone():
            return violation(ExponentialCone(not cone.dual), z)
        case PowerCone():
            return violation(PowerCone(cone.alpha, not cone.dual), z)
        case GeneralizedPowerCone():
            return violation(GeneralizedPowerCone(cone.alphas, cone.dim, not cone.dual), z)
        case _:
            return violation(cone, z)
