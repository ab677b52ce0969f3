r"""The central path of the exponential cone, by Newton's method in two variables."""

from typing import NamedTuple

import torch
from torch import Tensor

from .cone import Number
from .smooth_relu import smooth_relu

# 20 are enough unless v has entries of very different size; then, and for small mu, up to 50.
STEPS = 50
# Within this decrement full steps converge quadratically.
QUADRATIC = 0.25
# The point that is minus the gradient of the barrier there.
CENTRE = (-1.051383945322714, 0.556409619469370, 1.258967884768947)


class PathPoint(NamedTuple):
    """A point of the central path and the derivative of that by ``v``."""

    s: Tensor  # (..., 3)
    jacobian: Tensor  # (..., 3, 3)


class _Curvature(NamedTuple):
    r"""The Hessian of what is minimised over :math:`(y, z)`, and its parts."""

    kappa: Tensor  # the dual variable of x, mu / psi
    theta: Tensor  # its derivative by x_0
    gradient: Tensor  # (..., 2) of y log(z / y)
    inverse: Tensor  # (..., 2, 2) of the Hessian
    residual: Tensor  # (..., 2)


def exponential_path(v: Tensor, mu: Number, nearest: Tensor) -> PathPoint:
    r"""Minimise :math:`\frac12\|s - v\|^2 - \mu(\log\psi + \log y + \log z)`.

    With :math:`\psi = y \log(z/y) - x` the best :math:`x = x_0 - \kappa` has
    :math:`\kappa = \mu/\psi = \psi_\mu(x_0 - y \log(z/y))`, the scalar function of
    :mod:`.smooth_relu`; so nothing cancels, as it would in :math:`\psi` close to the boundary.
    What is left is a self-concordant function of :math:`(y, z)`, for which damped steps converge
    from anywhere; longer ones are tried first and taken unless they go far beyond the minimum.

    Args:
        v: ``(..., 3)``.
        mu: A positive float, or a positive tensor ``(...)``.
        nearest: The projection of ``v`` with ``mu = 0``, ``(..., 3)``.

    References:
        Nesterov, *Lectures on Convex Optimization* (2018), section 5.2.2, for the damped steps;
        section 5.4.6 for the barrier.
    """
    mu = torch.as_tensor(mu, dtype=v.dtype, device=v.device)
    x0, target = v[..., 0], v[..., 1:]
    centre = v.new_tensor(CENTRE)
    point = nearest[..., 1:].clamp(min=0) + mu.sqrt()[..., None] * centre[1:]
    here = _curvature(x0, target, point, mu)
    fraction = torch.ones_like(point[..., :1])
    for _ in range(STEPS):
        step = -(here.inverse @ here.residual[..., None])[..., 0]
        decrement = -(step * here.residual).sum(-1, keepdim=True) / mu[..., None]
        damping = 1 / (1 + torch.sqrt(torch.relu(decrement)))
        # Never below a hundredth: the steps may go beyond the cone.
        trial = torch.maximum(point + torch.maximum(fraction, damping) * step, point / 100)
        there = _curvature(x0, target, trial, mu)
        ahead = ((trial - point) * there.residual).sum(-1, keepdim=True)
        behind = ((trial - point) * here.residual).sum(-1, keepdim=True)
        accepted = (ahead <= -behind / 2) | (fraction <= damping) | (decrement < QUADRATIC**2)
        fraction = torch.where(accepted, 1.0, fraction / 4)
        point = torch.where(accepted, trial, point)
        here = _choose(accepted, there, here)
    kappa, theta, gradient, inverse, _ = here
    corner = (1 - theta)[..., None, None]
    side = theta[..., None, None] * inverse @ gradient[..., None]
    corner = corner + theta[..., None, None] * gradient[..., None, :] @ side
    jacobian = torch.cat([torch.cat([corner, side.mT], -1), torch.cat([side, inverse], -1)], -2)
    return PathPoint(torch.cat([(x0 - kappa)[..., None], point], -1), jacobian)


def _curvature(x0: Tensor, target: Tensor, point: Tensor, mu: Tensor) -> _Curvature:
    y, z = point.unbind(-1)
    logarithm, share = torch.log(z / y), y / z
    rest = x0 - y * logarithm
    kappa, psi = smooth_relu(rest, mu), smooth_relu(-rest, mu)
    theta = kappa / (kappa + psi)
    residual = point - target
    residual = residual - torch.stack([kappa * (logarithm - 1) + mu / y, (kappa * y + mu) / z], -1)
    # The Hessian is diag(n) + k b b' + theta g g' with b = (1, -y/z) and g = (log(z/y) - 1, y/z).
    # Written out, its determinant is a sum of positive numbers.
    n_y, n_z, k, g_y = 1 + mu / y**2, 1 + mu / z**2, kappa / y, logarithm - 1
    determinant = (
        n_y * n_z
        + k * (n_z + n_y * share**2)
        + theta * (n_z * g_y**2 + n_y * share**2)
        + k * theta * (logarithm * share) ** 2
    )
    off = k * share - theta * g_y * share
    first = n_z + k * share**2 + theta * share**2
    last = n_y + k + theta * g_y**2
    inverse = torch.stack([first, off, off, last], -1) / determinant[..., None]
    gradient = torch.stack([g_y, share], -1)
    return _Curvature(kappa, theta, gradient, inverse.unflatten(-1, (2, 2)), residual)


def _choose(accepted: Tensor, new: _Curvature, old: _Curvature) -> _Curvature:
    """The new curvature where a step was accepted, ``(..., 1)``."""
    scalar, matrix = accepted[..., 0], accepted[..., None]
    return _Curvature(
        torch.where(scalar, new.kappa, old.kappa),
        torch.where(scalar, new.theta, old.theta),
        torch.where(accepted, new.gradient, old.gradient),
        torch.where(matrix, new.inverse, old.inverse),
        torch.where(accepted, new.residual, old.residual),
    )
