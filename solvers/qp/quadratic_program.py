r"""The quadratic program as users state it, and the one flat form that all solvers read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import broadcast_shapes

# name -> number of core dimensions, the last of which is n for matrices and bounds.
CORE_NDIM = {"P": 2, "q": 1, "G": 2, "h": 1, "A": 2, "b": 1, "lb": 1, "ub": 1}
DATA_NDIM = tuple(CORE_NDIM.values())


@dataclass(eq=False)
class QuadraticProgram:
    r"""A batch of convex quadratic programs.

    .. math::

        \min_x \tfrac12 x^\top P x + q^\top x
        \quad\text{s.t.}\quad G x \le h,\; A x = b,\; lb \le x \le ub

    with the Lagrangian :math:`\tfrac12 x^\top P x + q^\top x + y^\top (Ax - b) + z^\top (Gx - h)
    + z_{box}^\top x`-terms, where ``z_box`` is negative at ``lb`` and positive at ``ub``.

    Leading dimensions broadcast against each other as in torch. Entries of ``h``, ``lb`` and ``ub``
    may be infinite. ``P`` enters as :math:`(P + P^\top)/2`.

    Attributes:
        P: ``(*batch, n, n)`` positive semidefinite, or ``None`` for a linear program.
        q: ``(*batch, n)``.
        G: ``(*batch, m, n)`` or ``None``.
        h: ``(*batch, m)`` or ``None``.
        A: ``(*batch, p, n)`` or ``None``.
        b: ``(*batch, p)`` or ``None``.
        lb: ``(*batch, n)`` or ``None``.
        ub: ``(*batch, n)`` or ``None``.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes or devices do not fit together.
    """

    P: Tensor | None
    q: Tensor
    G: Tensor | None = None
    h: Tensor | None = None
    A: Tensor | None = None
    b: Tensor | None = None
    lb: Tensor | None = None
    ub: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the shapes, once, where the user's names are still known."""
        self.batch_shape = check("QuadraticProgram", **self.__dict__)

    @classmethod
    def trusted(cls, *data: Tensor | None) -> "QuadraticProgram":
        """From ``P, q, G, h, A, b, lb, ub`` that have passed the checks before."""
        problem = object.__new__(cls)
        P, q, G, h, A, b, lb, ub = data
        assert q is not None
        problem.P, problem.q, problem.G, problem.h = P, q, G, h
        problem.A, problem.b, problem.lb, problem.ub = A, b, lb, ub
        shape = q.shape[:-1]
        for t, core in zip(data, DATA_NDIM, strict=True):
            if t is not None and t.shape[:-core] != shape:
                shape = broadcast_shapes(shape, t.shape[:-core])
        problem.batch_shape = shape
        return problem

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.q.shape[-1]

    @property
    def m(self) -> int:
        """Number of inequalities."""
        return 0 if self.G is None else self.G.shape[-2]

    @property
    def p(self) -> int:
        """Number of equalities."""
        return 0 if self.A is None else self.A.shape[-2]

    def to(self, dtype: torch.dtype) -> "QuadraticProgram":
        """The same problem in another floating-point type."""
        if all(t is None or t.dtype == dtype for t in (getattr(self, k) for k in CORE_NDIM)):
            return self
        given = (getattr(self, name) for name in CORE_NDIM)
        return QuadraticProgram.trusted(*(None if t is None else t.to(dtype) for t in given))


def check(
    where: str,
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
) -> torch.Size:
    """Check types, devices and shapes of a quadratic program; return its batch shape.

    Args:
        where: The function that the user called, for messages.
        P: See :class:`QuadraticProgram`, like the others.
        q: Linear term.
        G: Inequality matrix.
        h: Inequality bounds.
        A: Equality matrix.
        b: Equality values.
        lb: Lower bounds.
        ub: Upper bounds.

    Returns:
        The broadcast batch shape.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes or devices do not fit together.
    """
    # First q, which the others are held against.
    given = {"q": q, "P": P, "G": G, "h": h, "A": A, "b": b, "lb": lb, "ub": ub}
    leading: dict[str, torch.Size] = {}
    for name, t in given.items():
        if t is None and name != "q":
            continue
        tensor: object = t  # whatever the annotations say
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(t).__name__
            raise TypeError(
                f"{where}: {name} must be a real floating-point tensor; got {got}. "
                f"Convert it, e.g. torch.as_tensor({name}, dtype=torch.float64)."
            )
        t, core = tensor, CORE_NDIM[name]
        leading[name] = t.shape[:-core]
        if t.ndim < core:
            raise ValueError(
                f"{where}: {name} must have at least {core} dimensions; got shape "
                f"{tuple(t.shape)}. A single number needs a dimension of size 1: {name}.reshape("
                f"{', '.join('1' * core)})."
            )
        if t.device != q.device:
            raise ValueError(
                f"{where}: all arguments must be on one device; q is on {q.device} and {name} on "
                f"{t.device}. Move them with .to()."
            )
    n = q.shape[-1]
    if n == 0:
        raise ValueError(f"{where}: q must have at least one entry; got shape {tuple(q.shape)}.")
    if P is not None and P.shape[-2:] != (n, n):
        _shape_error(where, "P", P, f"{n}, {n}", f"q has {n} entries")
    for matrix, vector, M, v, rows in (("G", "h", G, h, "m"), ("A", "b", A, b, "p")):
        if (M is None) != (v is None):
            given_one, missing = (vector, matrix) if M is None else (matrix, vector)
            raise ValueError(
                f"{where}: {matrix} and {vector} go together; got {given_one} without {missing}. "
                f"Pass both, or neither."
            )
        if M is None or v is None:
            continue
        if M.shape[-1] != n:
            _shape_error(where, matrix, M, f"{rows}, {n}", f"q has {n} entries")
        if v.shape[-1] != M.shape[-2]:
            _shape_error(where, vector, v, f"{M.shape[-2]}", f"{matrix} has {M.shape[-2]} rows")
    for name, t in (("lb", lb), ("ub", ub)):
        if t is not None and t.shape[-1] != n:
            _shape_error(where, name, t, f"{n}", f"q has {n} entries")
    # Asking torch to broadcast costs microseconds; mostly there is nothing to ask.
    if len(set(leading.values())) == 1:
        return leading["q"]
    try:
        return broadcast_shapes(*leading.values())
    except ValueError:
        shapes = ", ".join(f"{k} {tuple(leading[k])}" for k in CORE_NDIM if k in leading)
        raise ValueError(
            f"{where}: the leading (batch) dimensions must broadcast against each other; got "
            f"{shapes}. Insert dimensions of size 1 where an argument is shared."
        ) from None


def _shape_error(where: str, name: str, t: Tensor, core: str, because: str) -> None:
    hint = ""
    expected = [int(part) if part.isdigit() else None for part in core.split(", ")]
    turned = (
        [
            None if e is None else e == size
            for e, size in zip(expected, t.mT.shape[-2:], strict=True)
        ]
        if (t.ndim >= 2 and len(expected) == 2)
        else []
    )
    if turned and all(match is not False for match in turned):
        hint = f" Did you mean {name}.mT?"
    raise ValueError(
        f"{where}: {name} must have shape (*batch, {core}) because {because}; "
        f"got {tuple(t.shape)}.{hint or ' Check which argument has the wrong size.'}"
    )
