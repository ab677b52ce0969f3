"""The cone program as users state it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import broadcast_shapes
from ..matrix import Matrix, of_csr
from .cone import Cone
from .product import ConeProduct


@dataclass(eq=False)
class ConeProgram:
    r"""A batch of convex cone programs.

    .. math::

        \min_{x, s} \tfrac12 x^\top P x + q^\top x \quad\text{s.t.}\quad A x + s = b,\; s \in K

    with the Lagrangian :math:`\tfrac12 x^\top P x + q^\top x + z^\top (Ax + s - b)`, so that
    multipliers ``z`` lie in the dual cone. Use :meth:`of` to make one.

    Attributes:
        P: Positive semidefinite ``(*batch, n, n)``, entering as :math:`(P + P^\top)/2`, or None.
        q: ``(*batch, n)``.
        A: ``(*batch, m, n)``.
        b: ``(*batch, m)``.
        cones: The product of cones, whose rows are those of ``A`` in order.
        rough: Whether the data have been rounded to less than double precision.
    """

    P: Matrix | None
    q: Tensor
    A: Matrix
    b: Tensor
    cones: ConeProduct
    rough: bool = False

    @classmethod
    def of(
        cls,
        P: Tensor | None,
        q: Tensor,
        A: Tensor,
        b: Tensor,
        cones: Sequence[Cone],
        where: str = "ConeProgram",
    ) -> "ConeProgram":
        """From tensors, of which ``P`` and ``A`` may be sparse (CSR).

        Args:
            P: See the class.
            q: See the class.
            A: See the class.
            b: See the class.
            cones: Cone objects in the order of the rows.
            where: The function that the user called, for messages.

        Raises:
            TypeError: If an argument is not a real floating-point tensor, or no cone.
            ValueError: If shapes, devices or patterns do not fit together.
        """
        for name, t, ndim in (("q", q, 1), ("A", A, 2), ("b", b, 1), ("P", P, 2)):
            _check_tensor(where, name, t, ndim)
        product = ConeProduct.of(cones)
        n, m = q.shape[-1], product.rows
        for name, t, core, why in (
            ("P", P, (n, n), f"q has {n} entries"),
            ("A", A, (m, n), f"the cones have {m} rows and q has {n} entries"),
            ("b", b, (m,), f"the cones have {m} rows"),
        ):
            if t is not None and tuple(t.shape[t.ndim - len(core) :]) != core:
                wanted = ", ".join(map(str, core))
                raise ValueError(
                    f"{where}: {name} must have shape (*batch, {wanted}) because {why}; got "
                    f"{tuple(t.shape)}. Check the sizes of the cones and which argument is off."
                )
            if t is not None and t.device != q.device:
                raise ValueError(
                    f"{where}: all tensors must be on one device; got {name} on {t.device} and q "
                    f"on {q.device}. Move them with .to()."
                )
        quadratic = None if P is None else matrix_of(where, "P", P)
        program = cls(quadratic, q, matrix_of(where, "A", A), b, product)
        try:
            _ = program.batch_shape
        except ValueError:
            given = (("P", P, 2), ("q", q, 1), ("A", A, 2), ("b", b, 1))
            shapes = ", ".join(
                f"{k} {tuple(t.shape[: t.ndim - c])}" for k, t, c in given if t is not None
            )
            raise ValueError(
                f"{where}: the leading (batch) dimensions must broadcast against each other; got "
                f"{shapes}. Insert dimensions of size 1 where an argument is shared."
            ) from None
        return program

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions, broadcast."""
        shapes = [self.q.shape[:-1], self.A.batch_shape, self.b.shape[:-1]]
        return broadcast_shapes(*shapes, *([] if self.P is None else [self.P.batch_shape]))

    def to(self, dtype: torch.dtype) -> "ConeProgram":
        """The same program in another floating-point type."""
        A = self.A.with_values(self.A.values.to(dtype))
        P = None if self.P is None else self.P.with_values(self.P.values.to(dtype))
        given = [self.q, self.b, self.A.values] + ([] if self.P is None else [self.P.values])
        rough = self.rough or any(t.dtype != torch.float64 for t in given)
        return ConeProgram(P, self.q.to(dtype), A, self.b.to(dtype), self.cones, rough)

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.q.shape[-1]

    @property
    def m(self) -> int:
        """Number of rows."""
        return self.b.shape[-1]


def matrix_of(where: str, name: str, t: Tensor) -> Matrix:
    """A user's dense or CSR tensor.

    Raises:
        TypeError: If the layout is another one.
        ValueError: If the matrices of a batch have different patterns.
    """
    rows, columns = t.shape[-2:]
    if t.layout == torch.strided:
        return Matrix(t, None, rows, columns)
    if t.layout != torch.sparse_csr:
        raise TypeError(
            f"{where}: {name} must be a dense or a CSR tensor; got layout {t.layout}. Convert it "
            f"with {name}.to_sparse_csr()."
        )
    try:
        values, index = of_csr(t)
    except ValueError as error:
        raise ValueError(f"{where}: {name}: {error}") from None
    return Matrix(values, index, rows, columns)


def _check_tensor(where: str, name: str, t: object, core: int) -> None:
    if t is None and name == "P":
        return
    if not isinstance(t, Tensor) or not t.is_floating_point():
        got = f"{t.dtype} tensor" if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(
            f"{where}: {name} must be a real floating-point tensor; got {got}. "
            f"Convert it, e.g. torch.as_tensor({name}, dtype=torch.float64)."
        )
    if core == 1 and t.layout != torch.strided:
        raise TypeError(
            f"{where}: {name} must be a dense tensor; got layout {t.layout}. Convert it with "
            f"{name}.to_dense()."
        )
    if t.ndim < core:
        raise ValueError(
            f"{where}: {name} must have at least {core} dimensions; got shape {tuple(t.shape)}."
        )
