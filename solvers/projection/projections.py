r"""Nearest points of simple sets, :math:`P_C(x) = \arg\min_{u \in C} \|u - x\|_2`.

All work on the last dimension and broadcast over the others: a number that belongs to a sample,
such as a radius, is a float or a tensor ``(*batch)``; a vector is ``(*batch, n)``. They are made of
differentiable operations, with respect to the parameters of the set too; where a projection has a
kink the derivative is that of one of the adjacent pieces.

References:
    Parikh and Boyd, *Proximal algorithms*, Foundations and Trends in Optimization 1 (2014),
    section 6.2.
"""

import torch
from torch import Tensor

Number = Tensor | float


def project_box(x: Tensor, lower: Number, upper: Number) -> Tensor:
    r"""The nearest point of :math:`\{u : l \le u \le u_\max\}`.

    Args:
        x: ``(*batch, n)``.
        lower: A float, or a tensor that broadcasts with ``x``; may be infinite.
        upper: The same; not below ``lower``.

    Example:
        >>> import torch
        >>> project_box(torch.tensor([-1.0, 0.5, 3.0]), 0.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])
    """
    return torch.clamp(torch.clamp(x, min=lower), max=upper)


def project_nonnegative(x: Tensor) -> Tensor:
    r"""The nearest point of :math:`\{u : u \ge 0\}`.

    Example:
        >>> import torch
        >>> project_nonnegative(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    return torch.relu(x)


def project_simplex(x: Tensor, total: Number = 1.0) -> Tensor:
    r"""The nearest point of :math:`\{u : u \ge 0, \sum_i u_i = t\}`.

    It is :math:`\max(x - \tau, 0)` with the one :math:`\tau` for which the entries sum to
    :math:`t`; sorting finds how many are positive.

    Args:
        x: ``(*batch, n)``.
        total: :math:`t \ge 0`, a float or ``(*batch)``.

    References:
        Held, Wolfe and Crowder, *Validation of subgradient optimization*, Mathematical Programming
        6 (1974).

    Example:
        >>> import torch
        >>> project_simplex(torch.tensor([0.5, 1.0, -2.0]))
        tensor([0.2500, 0.7500, 0.0000])
    """
    if not isinstance(total, Tensor) and total < 0:
        raise ValueError(
            f"project_simplex: total must not be negative; got {total}. There is no such point."
        )
    return torch.relu(x - _threshold(x, _per_sample(total)))


def _threshold(x: Tensor, total: Number) -> Tensor:
    """What to subtract so that the positive parts sum to ``total``; ``(*batch, 1)``."""
    largest_first = torch.sort(x, dim=-1, descending=True).values
    counts = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    thresholds = (largest_first.cumsum(-1) - total) / counts
    positive = (largest_first > thresholds).sum(-1, keepdim=True).clamp(min=1)
    return thresholds.gather(-1, positive - 1)


def project_l1_ball(x: Tensor, radius: Number = 1.0) -> Tensor:
    r"""The nearest point of :math:`\{u : \|u\|_1 \le r\}`, by a projection onto a simplex.

    Args:
        x: ``(*batch, n)``.
        radius: :math:`r \ge 0`, a float or ``(*batch)``.

    References:
        Duchi, Shalev-Shwartz, Singer and Chandra, *Efficient projections onto the l1-ball for
        learning in high dimensions*, ICML 2008, section 4.

    Example:
        >>> import torch
        >>> project_l1_ball(torch.tensor([3.0, -1.0, 0.2]), 2.0)
        tensor([2., 0., 0.])
    """
    _refuse_negative_radius("project_l1_ball", radius)
    r, size = _per_sample(radius), x.abs()
    threshold = _threshold(size, r)
    outside = size.sum(-1, keepdim=True) > r
    return torch.where(outside, torch.relu(x - threshold) - torch.relu(-x - threshold), x)


def project_l2_ball(x: Tensor, radius: Number = 1.0) -> Tensor:
    r"""The nearest point of :math:`\{u : \|u\|_2 \le r\}`.

    Args:
        x: ``(*batch, n)``.
        radius: :math:`r \ge 0`, a float or ``(*batch)``.

    Example:
        >>> import torch
        >>> project_l2_ball(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    _refuse_negative_radius("project_l2_ball", radius)
    r = _per_sample(radius)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    outside = norm > r
    # The branch that is not taken must be finite too, or its derivative is 0 * inf.
    return torch.where(outside, x * (r / torch.where(outside, norm, 1.0)), x)


def project_hyperplane(x: Tensor, a: Tensor, b: Number) -> Tensor:
    r"""The nearest point of :math:`\{u : a^\top u = b\}`.

    Args:
        x: ``(*batch, n)``.
        a: Normal ``(*batch, n)``, not zero.
        b: Offset, a float or ``(*batch)``.

    Example:
        >>> import torch
        >>> project_hyperplane(torch.zeros(2), torch.tensor([1.0, 1.0]), 2.0)
        tensor([1., 1.])
    """
    return x - _excess("project_hyperplane", x, a, b) * a


def project_halfspace(x: Tensor, a: Tensor, b: Number) -> Tensor:
    r"""The nearest point of :math:`\{u : a^\top u \le b\}`.

    Args:
        x: ``(*batch, n)``.
        a: Normal ``(*batch, n)``, not zero.
        b: Offset, a float or ``(*batch)``.

    Example:
        >>> import torch
        >>> a = torch.tensor([1.0, 1.0])
        >>> project_halfspace(torch.tensor([[2.0, 2.0], [0.0, 0.0]]), a, 2.0)
        tensor([[1., 1.],
                [0., 0.]])
    """
    return x - torch.relu(_excess("project_halfspace", x, a, b)) * a


def project_affine(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    r"""The nearest point of :math:`\{u : A u = b\}`.

    Args:
        x: ``(*batch, n)``.
        A: ``(*batch, p, n)`` with independent rows; a sample whose rows depend on each other
            gets NaN or inaccurate numbers.
        b: ``(*batch, p)``.

    Example:
        >>> import torch
        >>> A = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
        >>> project_affine(torch.zeros(3), A, torch.tensor([1.0, 2.0])).round(decimals=4)
        tensor([1., 1., 1.])
    """
    p, n = A.shape[-2:]
    if n != x.shape[-1] or p > n:
        raise ValueError(
            f"project_affine: A must have shape (*batch, p, {x.shape[-1]}) with p at most "
            f"{x.shape[-1]}, because that is the length of x; got {tuple(A.shape)}. "
            "Did you mean A.mT?"
        )
    if p == 0:
        return x
    # QR, not A A^T: that would square the condition number.
    Q, R = torch.linalg.qr(A.mT)
    residual = (A @ x[..., None]) - b[..., None]
    inner: Tensor = torch.linalg.solve_triangular(R.mT, residual, upper=False)
    nearest: Tensor = x - (Q @ inner)[..., 0]
    return nearest


def _per_sample(number: Number) -> Number:
    return number[..., None] if isinstance(number, Tensor) else number


def _excess(where: str, x: Tensor, a: Tensor, b: Number) -> Tensor:
    """How far ``x`` is beyond the hyperplane, in multiples of ``a``; ``(*batch, 1)``."""
    if a.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"{where}: a must have shape (*batch, {x.shape[-1]}), like x; got {tuple(a.shape)}. "
            "Several rows belong to project_affine."
        )
    excess: Tensor = (a * x).sum(-1, keepdim=True) - _per_sample(b)
    return excess / (a * a).sum(-1, keepdim=True)


def _refuse_negative_radius(where: str, radius: Number) -> None:
    if not isinstance(radius, Tensor) and radius < 0:
        raise ValueError(f"{where}: radius must not be negative; got {radius}. Use 0 for a point.")
