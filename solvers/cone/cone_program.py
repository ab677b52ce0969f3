"""The cone program as users state it, and as solvers read it: one instance at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..batch import broadcast_shapes, flat
from ..matrix import Matrix, of_csr
from .cone import Cone
from .direct import is_semidefinite
from .polyhedral import ZeroCone
from .product import ConeProduct
from .scaling import Scaling, blocks_of, scaling_of
from .sparse import Compressed, Pattern, compress

Floats = NDArray[np.float64]


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


class Instance(NamedTuple):
    """One program of a batch.

    Attributes:
        P: Upper triangle.
        q: ``(n)``.
        A: All rows.
        b: ``(m)``.
    """

    P: Compressed
    q: Floats
    A: Compressed
    b: Floats


class Instances:
    """The programs of a batch one by one, in units that suit them.

    Args:
        program: The batch, in float64.
        sizes: Sizes of slacks and multipliers where they are known, each ``(B)``; by default those
            of ``b`` and ``q``.
    """

    def __init__(self, program: ConeProgram, sizes: tuple[Floats, Floats] | None = None) -> None:
        """Sort the patterns once."""
        shape = program.batch_shape
        self.batch, self.n, self.m = shape.numel(), program.n, program.m
        self.cones, self.rough, self.sizes = program.cones, program.rough, sizes
        self._q, self._b = (flat(t, 1, shape).cpu().numpy() for t in (program.q, program.b))
        self._P = None if program.P is None else _Entries(program.P, shape, upper=True)
        self._A = _Entries(program.A, shape)
        self._blocks = blocks_of(program.cones)
        diagonal = np.arange(self.n + 1)
        self._no_P = Compressed(np.zeros(self.n), diagonal[:-1], diagonal, (self.n, self.n))
        self._made: dict[int, tuple[Instance, Scaling | None]] = {}

    def is_usable(self, i: int) -> bool:
        """Whether number ``i`` has finite data, and a semidefinite ``P`` but for rounding."""
        instance = self[i]
        data = (instance.P.data, instance.q, instance.A.data, instance.b)
        if not all(bool(np.isfinite(t).all()) for t in data):
            return False
        return self._P is None or is_semidefinite(instance.P, rough=self.rough)

    def __getitem__(self, i: int) -> Instance:
        """Number ``i`` of the flat batch, scaled."""
        return self._scaled(i)[0]

    def scaling(self, i: int) -> Scaling | None:
        """How it is scaled; None if it is as it was."""
        return self._scaled(i)[1]

    def _scaled(self, i: int) -> tuple[Instance, Scaling | None]:
        known = self._made.get(i)
        if known is None:
            known = self._scale(i)
            # As far as memory goes; making one again costs little.
            if len(self._made) * (known[0].A.nnz + known[0].P.nnz) < KEPT_ENTRIES:
                self._made[i] = known
        return known

    def mend(self, i: int, tolerance: float) -> None:
        """Undo in number ``i`` what rounding the data may have done, within a relative tolerance.

        Equalities that depend on each other and contradict by that are moved to where they do not,
        and a singular ``P`` that is indefinite by that is lifted.
        """
        instance, scaling = self._scaled(i)
        P, b = instance.P, instance.b.copy()
        data = P.data.copy()
        data[P.indptr[1:] - 1] *= 1 + tolerance
        kinds = [isinstance(cone, ZeroCone) for cone in self.cones.cones for _ in range(cone.rows)]
        equal = np.flatnonzero(kinds)
        if len(equal) * self.n > MENDED_ENTRIES:
            equal = equal[:0]
        rows = instance.A.dense()[equal] if len(equal) else np.empty((0, self.n))
        inverse = torch.linalg.pinv(torch.from_numpy(rows), rtol=tolerance).numpy()
        left = b[equal] - rows @ (inverse @ b[equal])
        if abs(left).max(initial=0.0) <= tolerance * (1 + abs(b[equal]).max(initial=0.0)):
            b[equal] -= left
        lifted = Compressed(data, P.indices, P.indptr, P.shape)
        self._made[i] = instance._replace(P=lifted, b=b), scaling

    @np.errstate(all="ignore")
    def _scale(self, i: int) -> tuple[Instance, Scaling | None]:
        P = self._no_P if self._P is None else self._P[i]
        q, A, b = _row(self._q, i), self._A[i], _row(self._b, i)
        if self.sizes is None:
            primal, dual = (float(abs(t).max(initial=0.0)) for t in (b, q))
        else:
            primal, dual = float(self.sizes[0][i]), float(self.sizes[1][i])
        total = abs(P.data).sum() + abs(A.data).sum() + primal + dual
        scaling = None
        if np.isfinite(total):
            scaling = scaling_of(P, A, self._blocks, primal, dual)
        if scaling is None:
            return Instance(P, q, A, b), None
        q, b = scaling.dual * scaling.columns * q, b / scaling.of_s
        return Instance(scaling.of_P(P), q, scaling.of_A(A), b), scaling


# Entries of equalities up to which their dependences are looked for.
MENDED_ENTRIES = 1 << 22
# Entries of the matrices of a batch that are kept while it is worked on.
KEPT_ENTRIES = 1 << 24
# Layers come again and again with the same tensor of indices, whose sorting takes a while.
_patterns: "WeakIdKeyDictionary" = WeakIdKeyDictionary()


def _pattern(matrix: Matrix, index: Tensor, upper: bool) -> Pattern:
    known: dict[tuple[int, int, int, bool], Pattern] = _patterns.setdefault(index, {})
    key = (index._version, matrix.rows, matrix.columns, upper)
    if key not in known:
        rows, columns = index.cpu().numpy()
        known[key] = Pattern(rows, columns, (matrix.rows, matrix.columns), upper=upper)
    return known[key]


class _Entries:
    """A batch of matrices in flat form."""

    def __init__(self, matrix: Matrix, shape: torch.Size, *, upper: bool = False) -> None:
        self.values = flat(matrix.values, matrix.core, shape).cpu().numpy()
        self.upper = upper
        self.pattern = None if matrix.index is None else _pattern(matrix, matrix.index, upper)
        self.shared = self._make(0) if len(self.values) == 1 else None

    def __getitem__(self, i: int) -> Compressed:
        return self._make(i) if self.shared is None else self.shared

    def _make(self, i: int) -> Compressed:
        if self.pattern is not None:
            return self.pattern.of(self.values[i])
        return compress(self.values[i], upper=self.upper)


def _row(t: Floats, i: int) -> Floats:
    return np.ascontiguousarray(t[i if len(t) > 1 else 0])
