"""A matrix as what it does to vectors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

Product = Callable[[Tensor], Tensor]
# Entries held at a time while a matrix is built from products with basis vectors.
CHUNK_ENTRIES = 1 << 24


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """One ``m`` by ``n`` matrix for each sample, known by its products with vectors.

    Attributes:
        matvec: Maps ``(B, n)`` to ``(B, m)``, each sample on its own.
        rmatvec: The same with the transposed matrix, ``(B, m)`` to ``(B, n)``. Not needed where
            ``symmetric``, nor by most of the solvers.
        symmetric: The matrix is equal to its transpose.
        positive_definite: It is symmetric and all its eigenvalues are positive.
        dense: The matrix itself ``(B or 1, m, n)``, where it is known; see :meth:`of`.

    Example:
        >>> import torch
        >>> from optlayers.solvers.linear import CG, LinearOperator
        >>> def second_difference(v):
        ...     inner = torch.nn.functional.pad(v, (1, 1))
        ...     return 2 * v - inner[:, :-2] - inner[:, 2:]
        >>> A = LinearOperator(second_difference, positive_definite=True)
        >>> CG().solve(A, torch.ones(1, 4)).x
        tensor([[2., 3., 3., 2.]])
    """

    matvec: Product
    rmatvec: Product | None = None
    symmetric: bool = False
    positive_definite: bool = False
    dense: Tensor | None = None

    def __post_init__(self) -> None:
        if self.positive_definite:
            object.__setattr__(self, "symmetric", True)

    @classmethod
    def of(
        cls, matrix: Tensor, *, symmetric: bool = False, positive_definite: bool = False
    ) -> "LinearOperator":
        """Wrap matrices.

        Args:
            matrix: ``(B, m, n)``, or ``(1, m, n)`` for one that all samples share.
            symmetric: They are equal to their transposes.
            positive_definite: They are symmetric, and all eigenvalues are positive.

        Raises:
            ValueError: If ``matrix`` has not three dimensions.
        """
        if matrix.ndim != 3:
            raise ValueError(
                "LinearOperator.of: matrix must have shape (B or 1, m, n); "
                f"got {tuple(matrix.shape)}. Give a single matrix a leading dimension of 1."
            )
        if matrix.shape[0] == 1:
            shared = matrix[0]
            forward, backward = (lambda v: v @ shared.mT), (lambda v: v @ shared)
        else:
            forward = lambda v: (matrix @ v.unsqueeze(-1)).squeeze(-1)  # noqa: E731
            backward = lambda v: (v.unsqueeze(-2) @ matrix).squeeze(-2)  # noqa: E731
        return cls(forward, backward, symmetric, positive_definite, matrix)

    @property
    def T(self) -> "LinearOperator":
        """The operator of the transposed matrix.

        Raises:
            ValueError: If the product with the transpose is not known.
        """
        if self.symmetric:
            return self
        if self.rmatvec is None:
            raise ValueError(
                "LinearOperator.T: needs the product with the transposed matrix; rmatvec is None. "
                "Pass rmatvec=, or symmetric=True if the matrix is."
            )
        dense = None if self.dense is None else self.dense.mT
        return LinearOperator(self.rmatvec, self.matvec, dense=dense)

    def matrix(self, like: Tensor) -> Tensor:
        """The matrices themselves, by ``n`` products unless they are known.

        Args:
            like: ``(B, n)``, for the batch, the dimension and the type; its values do not count.

        Returns:
            ``(B, m, n)``, or ``(1, m, n)`` if that is what the operator was made of.
        """
        if self.dense is not None:
            return self.dense
        batch, n = like.shape
        basis = torch.eye(n, dtype=like.dtype, device=like.device)
        chunk = max(CHUNK_ENTRIES // max(batch * n, 1), 1)

        def column(e: Tensor) -> Tensor:
            return self.matvec(e.expand(batch, n))

        try:
            columns: Tensor = vmap(column, chunk_size=None if chunk >= n else chunk)(basis)
        except (RuntimeError, TypeError, ValueError):
            # Code that leaves torch, for numpy say, cannot be mapped; what is wrong raises again.
            columns = torch.stack([column(e) for e in basis])
        return columns.movedim(0, -1)
