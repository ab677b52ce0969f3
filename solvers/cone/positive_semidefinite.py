r"""The cone of positive semidefinite matrices, as vectors, by their eigenvalues."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .cone import Cone, Number, Spectrum, apply, check_count, per_row
from .smooth_relu import divided_difference, smooth_relu


def svec(M: Tensor) -> Tensor:
    r"""A symmetric matrix as a vector, such that inner products stay what they are.

    The upper triangle by columns, as in Clarabel: :math:`(M_{00}, \sqrt2 M_{01}, M_{11},
    \sqrt2 M_{02}, \sqrt2 M_{12}, M_{22}, \dots)`. Entries below the diagonal are not read.

    Args:
        M: ``(*batch, k, k)``.

    Returns:
        ``(*batch, k * (k + 1) / 2)``.

    Example:
        >>> import torch
        >>> svec(torch.tensor([[1.0, 2.0], [2.0, 3.0]]))
        tensor([1.0000, 2.8284, 3.0000])
    """
    if M.ndim < 2 or M.shape[-2] != M.shape[-1]:
        raise ValueError(
            f"svec: M must have shape (*batch, k, k); got {tuple(M.shape)}. "
            "Give symmetric matrices, of which the upper triangle is read."
        )
    row, column = _upper(M.shape[-1], M.device)
    one, root = M.new_ones(()), M.new_full((), math.sqrt(2))  # in the precision of M
    scale = torch.where(row == column, one, root)
    return M.flatten(-2).index_select(-1, row * M.shape[-1] + column) * scale


def smat(v: Tensor) -> Tensor:
    r"""The symmetric matrix of a vector, the inverse of :func:`svec`.

    Args:
        v: ``(*batch, k * (k + 1) / 2)``.

    Returns:
        ``(*batch, k, k)``.

    Example:
        >>> import torch
        >>> smat(torch.tensor([1.0, 2.8284, 3.0])).round(decimals=3)
        tensor([[1., 2.],
                [2., 3.]])
    """
    rows = v.shape[-1] if v.ndim else 0
    order = (math.isqrt(8 * rows + 1) - 1) // 2
    if rows == 0 or order * (order + 1) // 2 != rows:
        raise ValueError(
            "smat: v must have shape (*batch, k * (k + 1) / 2), such as 1, 3, 6 or 10 entries; got "
            f"{tuple(v.shape)}. Vectors of this form come from svec."
        )
    row, column = _upper(order, v.device)
    one, root = v.new_ones(()), v.new_full((), math.sqrt(0.5))
    scale = torch.where(row == column, one, root)
    along = torch.arange(order, device=v.device)
    low, high = torch.minimum(along[:, None], along), torch.maximum(along[:, None], along)
    place = (high * (high + 1) // 2 + low).flatten()
    matrix: Tensor = (v * scale).index_select(-1, place).unflatten(-1, (order, order))
    return matrix


@dataclass(frozen=True)
class PositiveSemidefiniteCone(Cone):
    r"""The cone :math:`K = \{svec(M) : M \succeq 0\}` with :math:`f = -\log\det M`.

    The projection applies :math:`\psi_\mu` to the eigenvalues :math:`\lambda` of
    :math:`V = Q \operatorname{diag}(\lambda) Q^\top`. Its derivative multiplies the entries
    :math:`(i, j)` of :math:`Q^\top W Q` by the divided differences
    :math:`\psi_\mu[\lambda_i, \lambda_j]`, which are the eigenvalues of :math:`D`.

    Attributes:
        order: The matrices are ``order`` by ``order``; vectors have ``order (order + 1) / 2``
            entries, as :func:`svec` makes them.

    References:
        Malick and Sendov, *Clarke generalized Jacobian of the projection onto the cone of positive
        semidefinite matrices*, Set-Valued Analysis 14 (2006), theorem 2.7.

    Example:
        >>> import torch
        >>> v = svec(torch.tensor([[0.0, 2.0], [2.0, 0.0]]))
        >>> smat(PositiveSemidefiniteCone(2).project(v)).round(decimals=4)
        tensor([[1., 1.],
                [1., 1.]])
    """

    order: int

    def __post_init__(self) -> None:
        check_count("PositiveSemidefiniteCone", "order", self.order, 1)

    @property
    def rows(self) -> int:
        """Entries on and above the diagonal."""
        return self.order * (self.order + 1) // 2

    def project(self, v: Tensor, mu: Number = 0.0) -> Tensor:
        r"""The function :math:`\psi_\mu` of the eigenvalues; see :meth:`Cone.project`."""
        eigenvalues, Q = torch.linalg.eigh(smat(v))
        nearest: Tensor = (Q * smooth_relu(eigenvalues, per_row(mu))[..., None, :]) @ Q.mT
        return svec(nearest)

    def derivative(self, v: Tensor, w: Tensor, mu: Number = 0.0) -> Tensor:
        """In O(order^3); see :meth:`Cone.derivative`."""
        return apply(self.spectrum(v, mu), w)

    def spectrum(self, v: Tensor, mu: Number = 0.0) -> Spectrum:
        r"""The maps :math:`W \mapsto Q^\top W Q` and back; see :meth:`Cone.spectrum`."""
        eigenvalues, Q = torch.linalg.eigh(smat(v))
        row, column = _upper(self.order, v.device)
        values = divided_difference(
            eigenvalues.index_select(-1, row), eigenvalues.index_select(-1, column), per_row(mu)
        )
        Q = Q[..., None, :, :]

        def rotate(a: Tensor) -> Tensor:
            return svec(Q.mT @ smat(a.mT) @ Q).mT

        def back(a: Tensor) -> Tensor:
            return svec(Q @ smat(a.mT) @ Q.mT).mT

        return Spectrum(values, rotate, back)


def _upper(order: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of the upper triangle, column by column."""
    column, row = torch.tril_indices(order, order, device=device)
    return row, column
