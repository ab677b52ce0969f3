r"""The scalar function :math:`\psi_\mu(t) = (t + \sqrt{t^2 + 4\mu}) / 2` and its differences.

It is the positive root :math:`s` of :math:`s (s - t) = \mu`, that is, the central path of the
half-line; :math:`\psi_0(t) = \max(t, 0)`. Applied to eigenvalues it projects onto symmetric cones.

References:
    Chen and Mangasarian, *Smoothing methods for convex inequalities and linear complementarity
    problems*, Mathematical Programming 71 (1995).
"""

import torch
from torch import Tensor

from .cone import Number, is_positive


def smooth_relu(t: Tensor, mu: Number) -> Tensor:
    r"""The value :math:`\psi_\mu(t)`, relatively accurate for :math:`t < 0` too.

    Args:
        t: Any shape.
        mu: A float, or a positive tensor that broadcasts with ``t``.
    """
    if not is_positive(mu):
        return torch.relu(t)
    negative = t < 0
    # Not abs(t): its derivative at 0 is 0, and the one of psi there is 1/2.
    large = (torch.where(negative, -t, t) + radius(t, mu)) / 2
    return torch.where(negative, mu / large, large)


def radius(t: Tensor, mu: Number) -> Tensor:
    r"""The root :math:`\sqrt{t^2 + 4\mu} = \psi_\mu(t) + \psi_\mu(-t)`."""
    return torch.sqrt(t * t + 4 * mu) if is_positive(mu) else t.abs()


def divided_difference(a: Tensor, b: Tensor, mu: Number) -> Tensor:
    r"""The slope :math:`(\psi_\mu(a) - \psi_\mu(b)) / (a - b)`, for :math:`a = b` the derivative.

    Because :math:`r_a^2 - r_b^2 = a^2 - b^2` for the roots :math:`r` it is equal to
    :math:`(\psi_\mu(a) + \psi_\mu(b)) / (r_a + r_b)`, where nothing cancels. At
    :math:`\mu = a = b = 0` it is taken to be 1.

    Args:
        a: Any shape.
        b: A shape that broadcasts with the one of ``a``.
        mu: A float, or a positive tensor that broadcasts with ``a``.
    """
    total = radius(a, mu) + radius(b, mu)
    positive = total > 0
    slope = (smooth_relu(a, mu) + smooth_relu(b, mu)) / torch.where(positive, total, 1.0)
    return torch.where(positive, slope, 1.0)
