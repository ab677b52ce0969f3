r"""Proximal operators: the :math:`u` that makes :math:`g(u) + \tfrac12 \|u - x\|_2^2` least.

They take the weight of :math:`g` as an argument: for a step :math:`s` of a proximal gradient
method, whose operator is that of :math:`s g`, pass ``step * weight``. A weight is a float, or a
tensor that broadcasts with ``x``, so one weight a sample has shape ``(*batch, 1)``. Derivatives are
as those of the projections.

References:
    Parikh and Boyd, *Proximal algorithms*, Foundations and Trends in Optimization 1 (2014),
    chapter 6.
"""

import torch
from torch import Tensor

Number = Tensor | float


def prox_l1(x: Tensor, weight: Number) -> Tensor:
    r"""Soft threshold, the operator of :math:`\lambda \|u\|_1`.

    Args:
        x: ``(*batch, n)``.
        weight: :math:`\lambda \ge 0`, which broadcasts with ``x``.

    Example:
        >>> import torch
        >>> prox_l1(torch.tensor([3.0, -0.5, -2.0]), 1.0)
        tensor([ 2.,  0., -1.])
    """
    return torch.relu(x - weight) - torch.relu(-x - weight)


def prox_nonnegative_l1(x: Tensor, weight: Number) -> Tensor:
    r"""The operator of :math:`\lambda \sum_i u_i` over :math:`u \ge 0`.

    Args:
        x: ``(*batch, n)``.
        weight: :math:`\lambda`, which broadcasts with ``x``.

    Example:
        >>> import torch
        >>> prox_nonnegative_l1(torch.tensor([3.0, -0.5, -2.0]), 1.0)
        tensor([2., 0., 0.])
    """
    return torch.relu(x - weight)


def prox_ridge(x: Tensor, weight: Number) -> Tensor:
    r"""The operator of :math:`\tfrac{\lambda}{2} \|u\|_2^2`.

    Args:
        x: ``(*batch, n)``.
        weight: :math:`\lambda \ge 0`, which broadcasts with ``x``.

    Example:
        >>> import torch
        >>> prox_ridge(torch.tensor([3.0, -1.0]), 1.0)
        tensor([ 1.5000, -0.5000])
    """
    return x / (1.0 + weight)


def prox_elastic_net(x: Tensor, l1: Number, l2: Number) -> Tensor:
    r"""The operator of :math:`\lambda_1 \|u\|_1 + \tfrac{\lambda_2}{2} \|u\|_2^2`.

    Args:
        x: ``(*batch, n)``.
        l1: :math:`\lambda_1 \ge 0`, which broadcasts with ``x``.
        l2: :math:`\lambda_2 \ge 0`, the same.

    Example:
        >>> import torch
        >>> prox_elastic_net(torch.tensor([3.0, -0.5, -2.0]), 1.0, 1.0)
        tensor([ 1.0000,  0.0000, -0.5000])
    """
    return prox_l1(x, l1) / (1.0 + l2)


def prox_group_lasso(x: Tensor, weight: Number, groups: Tensor) -> Tensor:
    r"""The operator of :math:`\lambda \sum_g \|u_g\|_2`, which sets whole groups to zero.

    Args:
        x: ``(*batch, n)``.
        weight: :math:`\lambda \ge 0`, a float, ``(*batch, 1)``, or one a group,
            ``(*batch, number of groups)``.
        groups: The group of each entry, from 0 on, an integer tensor ``(n)``.

    References:
        Yuan and Lin, *Model selection and estimation in regression with grouped variables*, Journal
        of the Royal Statistical Society B 68 (2006).

    Example:
        >>> import torch
        >>> groups = torch.tensor([0, 0, 1, 1])
        >>> prox_group_lasso(torch.tensor([3.0, 4.0, 0.3, 0.4]), 1.0, groups)
        tensor([2.4000, 3.2000, 0.0000, 0.0000])
    """
    if groups.shape != x.shape[-1:] or groups.is_floating_point():
        raise ValueError(
            f"prox_group_lasso: groups must be an integer tensor of shape ({x.shape[-1]},), the "
            f"group of each entry of x; got {tuple(groups.shape)}, {groups.dtype}."
        )
    count = int(groups.max()) + 1 if groups.numel() else 0
    member = _one_hot(groups, count, x)
    squares = (x * x) @ member
    lives = squares > (weight * weight if isinstance(weight, Tensor) else weight**2)
    # The branch that is not taken must be finite too, or its derivative is 0 * inf.
    factor = torch.where(lives, 1.0 - weight / torch.where(lives, squares, 1.0).sqrt(), 0.0)
    return x * factor[..., groups]


def _one_hot(groups: Tensor, count: int, like: Tensor) -> Tensor:
    """Membership ``(n, groups)``; torch's own is in ``torch.nn``."""
    names = torch.arange(count, device=groups.device)
    return (groups[:, None] == names).to(like.dtype)
