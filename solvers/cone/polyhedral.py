r"""The cones of linear programs: zero, the nonnegative orthant, and boxes that scale."""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .cone import Cone, Number, Spectrum, check_count, is_positive, per_row
from .smooth_relu import divided_difference, smooth_relu


def _unchanged(a: Tensor) -> Tensor:
    return a


@dataclass(frozen=True)
class ZeroCone(Cone):
    r"""The point :math:`K = \{0\}`: rows of :math:`A x + s = b` that are equations.

    It has no interior and no barrier; :math:`\mu` changes nothing.

    Attributes:
        rows: Length of the vectors, may be 0.

    Example:
        >>> import torch
        >>> ZeroCone(2).project(torch.tensor([3.0, -1.0]))
        tensor([0., 0.])
    """

    rows: int
    elementwise: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("ZeroCone", "rows", self.rows, 0)

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        """Zero; see :meth:`Cone.project`."""
        return torch.zeros_like(v)

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """Zero; see :meth:`Cone.derivative`."""
        return torch.zeros_like(v) * w

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        """All eigenvalues are 0; see :meth:`Cone.spectrum`."""
        return Spectrum(torch.zeros_like(v), _unchanged, _unchanged)


@dataclass(frozen=True)
class NonnegativeCone(Cone):
    r"""The orthant :math:`K = \{s : s \ge 0\}` with the barrier :math:`f(s) = -\sum_i \log s_i`.

    The central path is :math:`s_i = \psi_\mu(v_i) = (v_i + \sqrt{v_i^2 + 4\mu}) / 2`. Where
    :math:`v_i = \mu = 0` the derivative is taken to be 1.

    Attributes:
        rows: Length of the vectors, may be 0.

    Example:
        >>> import torch
        >>> NonnegativeCone(2).project(torch.tensor([3.0, -1.0]))
        tensor([3., 0.])
    """

    rows: int
    elementwise: ClassVar[bool] = True
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count("NonnegativeCone", "rows", self.rows, 0)

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The positive part, or :math:`\psi_\mu(v)`; see :meth:`Cone.project`."""
        return smooth_relu(v, per_row(mu))

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The product :math:`\psi_\mu'(v) w`; see :meth:`Cone.derivative`."""
        return self._slopes(v, mu) * w

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        r"""The slopes :math:`\psi_\mu'(v)` as they are; see :meth:`Cone.spectrum`."""
        return Spectrum(self._slopes(v, mu), _unchanged, _unchanged)

    def _slopes(self, v: Tensor, mu: Number) -> Tensor:
        if is_positive(mu):
            return divided_difference(v, v, per_row(mu))
        return (v >= 0).to(v.dtype)


class _Face(NamedTuple):
    """The face of a box cone that a projection ends on."""

    nearest: Tensor  # (..., rows)
    normal: Tensor  # (..., rows) the direction (1, ends of the rows that are held), not scaled
    free: Tensor  # (..., rows) 1 for rows strictly between their ends
    lifted: Tensor  # (..., 1) 1 where the first row may be positive


@dataclass(frozen=True)
class BoxCone(Cone):
    r"""A box that grows with the first row, :math:`K = \{(t, x) : t \ge 0, t l \le x \le t u\}`.

    The convention is that of SCS. An infinite bound is no bound, whatever :math:`t`. The nearest
    point is :math:`x_i = \operatorname{clip}(x_i, t l_i, t u_i)` with :math:`t` the root of an
    increasing piecewise linear function, or 0; a binary search among its kinks finds the piece, and
    there the root has a closed form.

    Attributes:
        lower: Bounds :math:`l`, may be ``-inf``.
        upper: Bounds :math:`u`, not below ``lower``; may be ``inf``.

    Raises:
        ValueError: If the bounds differ in number or cross, or are NaN or infinite on the wrong
            side.

    Example:
        >>> import torch
        >>> BoxCone((-1.0,), (1.0,)).project(torch.tensor([1.0, 3.0]))
        tensor([2., 2.])
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    smooth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # Lists would make a cone that cannot be hashed; ints one that prints differently.
        object.__setattr__(self, "lower", tuple(float(bound) for bound in self.lower))
        object.__setattr__(self, "upper", tuple(float(bound) for bound in self.upper))
        if len(self.lower) != len(self.upper):
            raise ValueError(
                "BoxCone: lower and upper must have one bound for each row after the first; got "
                f"{len(self.lower)} and {len(self.upper)} bounds. Use inf where a side has none."
            )
        for row, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if not low <= high or low == math.inf or high == -math.inf:
                raise ValueError(
                    "BoxCone: every row must have lower <= upper, with -inf or inf for no bound; "
                    f"got {low} and {high} in row {row}. Did you swap the two?"
                )

    @property
    def rows(self) -> int:
        """One more than there are bounds."""
        return 1 + len(self.lower)

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        """The nearest point, exact to rounding; see :meth:`Cone.project`.

        Raises:
            NotImplementedError: For ``mu > 0``.
        """
        return self._face(v, mu).nearest

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """The projection of ``w`` onto the span of a face; see :meth:`Cone.derivative`.

        Raises:
            NotImplementedError: For ``mu > 0``.
        """
        _, normal, free, lifted = self._face(v, mu)
        along = (normal * w).sum(-1, keepdim=True) / (normal * normal).sum(-1, keepdim=True)
        return free * w + lifted * along * normal

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        """Ones for the span of a face, zeros otherwise; see :meth:`Cone.spectrum`.

        Raises:
            NotImplementedError: For ``mu > 0``.
        """
        _, normal, free, lifted = self._face(v, mu)
        # The reflection that sends the first unit vector to -normal; the free rows stay.
        length = torch.linalg.vector_norm(normal, dim=-1, keepdim=True)
        mirror = torch.cat([normal[..., :1] + length, normal[..., 1:]], -1)[..., None]
        weight = 2 / (mirror * mirror).sum(-2, keepdim=True)

        def reflect(a: Tensor) -> Tensor:
            return a - weight * mirror * (mirror * a).sum(-2, keepdim=True)

        return Spectrum(torch.cat([lifted, free[..., 1:]], -1), reflect, reflect)

    def _face(self, v: Tensor, mu: Number) -> _Face:
        if is_positive(mu):
            raise NotImplementedError(
                "BoxCone: there is no central path for mu > 0, because infinite and equal bounds "
                f"have none; got mu = {mu}. Write the rows as a NonnegativeCone."
            )
        lower, upper = v.new_tensor(self.lower), v.new_tensor(self.upper)
        # A bound that is not there contributes nothing, like the bound 0.
        low = torch.where(lower.isfinite(), lower, 0.0)
        high = torch.where(upper.isfinite(), upper, 0.0)
        first, x = v[..., :1], v[..., 1:]

        def increasing(t: Tensor) -> Tensor:
            """Half the derivative of the squared distance to the box of size ``t``."""
            pull = low * torch.relu(t * low - x) - high * torch.relu(x - t * high)
            return t - first + pull.sum(-1, keepdim=True)

        kinks = torch.cat([x / low, x / high], -1)
        kinks = torch.where(kinks.isfinite(), kinks, 0.0).clamp(min=0)
        kinks = torch.cat([torch.zeros_like(first), kinks.sort(-1).values], -1)
        # The last kink at or before the root; the first is 0.
        piece = torch.zeros_like(first, dtype=torch.long)
        step = 1 << (kinks.shape[-1] - 1).bit_length()
        while step > 1:
            step //= 2
            further = (piece + step).clamp(max=kinks.shape[-1] - 1)
            piece = torch.where(increasing(kinks.gather(-1, further)) <= 0, further, piece)
        left = kinks.gather(-1, piece)
        after = (piece + 1).clamp(max=kinks.shape[-1] - 1)
        right = torch.where(after > piece, kinks.gather(-1, after), 2 * left + first.abs() + 1)

        inside = (left + right) / 2
        held_low = (x < inside * low) & lower.isfinite()
        held_high = (x > inside * high) & upper.isfinite()
        ends = torch.where(held_low, low, torch.where(held_high, high, 0.0))
        root = (first + (ends * x).sum(-1, keepdim=True)) / (
            1 + (ends * ends).sum(-1, keepdim=True)
        )
        # At the apex the cone counts as open: a root of 0 is a positive one.
        lifted = increasing(torch.zeros_like(first)) <= 0
        t = torch.where(lifted, root.clamp(min=0), 0.0)

        least = torch.where(lower.isfinite(), t * low, lower)
        most = torch.where(upper.isfinite(), t * high, upper)
        nearest = torch.cat([t, torch.minimum(torch.maximum(x, least), most)], -1)
        free = (x >= least) & (x <= most) & (lower < upper)
        ends = torch.where(free, 0.0, torch.where(x <= least, low, high))
        return _Face(
            nearest=nearest,
            normal=torch.cat([torch.ones_like(t), ends], -1),
            free=torch.cat([torch.zeros_like(t), free.to(v.dtype)], -1),
            lifted=lifted.to(v.dtype),
        )
