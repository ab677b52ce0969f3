r"""What a closed convex cone offers to a solver: its projection and the derivative of that."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

Number = Tensor | float


class Spectrum(NamedTuple):
    r"""A symmetric matrix :math:`D = U \operatorname{diag}(\lambda) U^\top`, never written out.

    Attributes:
        values: Eigenvalues :math:`\lambda`, shape ``(*batch, rows)``, each in :math:`[0, 1]`.
        rotate: ``(*batch, rows, k)`` to :math:`U^\top a`, along dimension -2.
        back: ``(*batch, rows, k)`` to :math:`U a`, along dimension -2.
    """

    values: Tensor
    rotate: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


class Cone(ABC):
    r"""A closed convex cone :math:`K \subseteq \mathbb{R}^{rows}` that vectors are projected onto.

    For :math:`\mu = 0` the projection splits :math:`v = s - z` into the nearest point
    :math:`s \in K` and :math:`z = s - v \in K^*` with :math:`s^\top z = 0` (Moreau). For
    :math:`\mu > 0` it gives the point of the central path instead,

    .. math::
        s = \arg\min_u \tfrac12 \|u - v\|_2^2 + \mu f(u), \qquad z = s - v = -\mu \nabla f(s),

    with the barrier :math:`f` of the cone. Either is the gradient of a convex function with
    Lipschitz constant 1, so that its Jacobian :math:`D(v)` is symmetric with eigenvalues in
    :math:`[0, 1]`. At a kink one element of the generalised Jacobian is taken.

    Cones are compared and hashed by value; they hold no tensors. Vectors have any leading
    dimensions, and :math:`\mu` is a float or a positive tensor that broadcasts with those.

    Attributes:
        rows: Length of the vectors.
        elementwise: Whether every row is on its own, so that :math:`U = I`.
        smooth: Whether ``derivative`` may itself be differentiated by torch, in ``v`` and ``w``.
        iterative: Whether ``project`` takes a guess of the projection as a third argument, and
            ``spectrum`` the projection itself, which save time.

    References:
        Busseti, Moursi and Boyd, *Solution refinement at regular points of conic problems*,
        Computational Optimization and Applications 74 (2019), section 3.
    """

    elementwise: ClassVar[bool] = False
    smooth: ClassVar[bool] = False
    iterative: ClassVar[bool] = False

    # A property that exists would keep a dataclass from having a field of that name.
    if TYPE_CHECKING:

        @property
        def rows(self) -> int:  # noqa: D102 - said above
            ...

    @abstractmethod
    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The nearest point of :math:`K`, or the point of its central path.

        Args:
            v: ``(*batch, rows)``.
            mu: :math:`\mu \ge 0`, a float or a positive tensor ``(*batch)``.
        """

    @abstractmethod
    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The product :math:`D(v) w` with the Jacobian of ``project``.

        Args:
            v: ``(*batch, rows)``, where the Jacobian is taken.
            w: ``(*batch, rows)``.
            mu: As in ``project``.
        """

    @abstractmethod
    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        r"""The Jacobian of ``project`` as :math:`U \operatorname{diag}(\lambda) U^\top`.

        Args:
            v: ``(*batch, rows)``, where the Jacobian is taken.
            mu: As in ``project``.
        """

    def eigenvectors(
        self, v: Tensor, mu: Number = 0.0, nearest: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""The eigenvalues of that Jacobian and, as rows of a matrix, its eigenvectors.

        Args:
            v: ``(*batch, rows)``.
            mu: As in ``project``.
            nearest: The projection, if it is known.
        """
        known = (nearest,) if self.iterative and nearest is not None else ()
        spectrum = self.spectrum(v, mu, *known)
        eye = torch.eye(self.rows, dtype=v.dtype, device=v.device).expand(*v.shape, self.rows)
        return spectrum.values, spectrum.back(eye).mT


def apply(spectrum: Spectrum, w: Tensor) -> Tensor:
    r"""The product :math:`U \operatorname{diag}(\lambda) U^\top w`, with ``(*batch, rows)``."""
    values, rotate, back = spectrum
    return back(values[..., None] * rotate(w[..., None]))[..., 0]


def is_positive(mu: Number) -> bool:
    """Whether the central path is meant; a tensor is not asked, that would wait for a GPU."""
    return isinstance(mu, Tensor) or mu > 0


def per_row(mu: Number) -> Number:
    """``mu`` such that it broadcasts with ``(*batch, rows)``."""
    return mu[..., None] if isinstance(mu, Tensor) else mu


def check_count(where: str, name: str, count: int, least: int) -> None:
    """Raise unless ``count`` is a whole number and at least ``least``."""
    if type(count) is not int or count < least:
        raise ValueError(
            f"{where}: {name} must be an integer of at least {least}; got {count!r}. "
            "Give the number as an int."
        )
