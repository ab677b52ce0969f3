r"""The quadratic program as users state it, and the one flat form that all solvers read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..batch import broadcast_shapes

# name -> number of core dimensions, the last of which is n for matrices and bounds.
CORE_NDIM = {"P": 2, "q": 1, "G": 2, "h": 1, "A": 2, "b": 1, "lb": 1, "ub": 1}
DATA_NDIM = tuple(CORE_NDIM.values())


class Form(NamedTuple):
    """What the shapes of a quadratic program say.

    Attributes:
        batch_shape: All leading dimensions, broadcast.
        n: Number of variables.
        p: Number of equalities.
        m: Number of inequalities.
        boxes: Number of variables with bounds: ``n``, or 0 if there are none.
    """

    batch_shape: torch.Size
    n: int
    p: int
    m: int
    boxes: int


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
        self.form = check("QuadraticProgram", **self.__dict__)

    @classmethod
    def trusted(cls, *data: Tensor | None, form: Form | None = None) -> "QuadraticProgram":
        """From ``P, q, G, h, A, b, lb, ub`` that have passed the checks, which found the form."""
        problem = object.__new__(cls)
        P, q, G, h, A, b, lb, ub = data
        assert q is not None
        problem.P, problem.q, problem.G, problem.h = P, q, G, h
        problem.A, problem.b, problem.lb, problem.ub = A, b, lb, ub
        problem.form = fit("QuadraticProgram", shapes_of(data)) if form is None else form
        return problem

    @property
    def batch_shape(self) -> torch.Size:
        """All leading dimensions, broadcast."""
        return self.form.batch_shape

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.form.n

    @property
    def m(self) -> int:
        """Number of inequalities."""
        return self.form.m

    @property
    def p(self) -> int:
        """Number of equalities."""
        return self.form.p

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
) -> Form:
    """Check types, devices and shapes of a quadratic program.

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
        What the shapes say.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If shapes or devices do not fit together.
    """
    data = (P, q, G, h, A, b, lb, ub)
    device = getattr(q, "device", None)
    for t in data:
        fits = isinstance(t, Tensor) and t.is_floating_point() and t.device == device
        if not (fits or (t is None and q is not None)):
            _refuse(where, data, device)
    # The compiler has shapes of its own, which are not to be remembered.
    known = fit.__wrapped__ if torch.compiler.is_compiling() else fit
    return known(where, shapes_of(data))


def _refuse(where: str, data: Sequence[object], device: torch.device | None) -> None:
    """Say which argument is no tensor, or elsewhere than ``q``, which comes first."""
    given = dict(zip(CORE_NDIM, data, strict=True))
    for name, t in [("q", given.pop("q")), *given.items()]:
        if t is None and name != "q":
            continue
        if not isinstance(t, Tensor) or not t.is_floating_point():
            got = f"{t.dtype} tensor" if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(
                f"{where}: {name} must be a real floating-point tensor; got {got}. "
                f"Convert it, e.g. torch.as_tensor({name}, dtype=torch.float64)."
            )
        if t.device != device:
            raise ValueError(
                f"{where}: all arguments must be on one device; q is on {device} and {name} on "
                f"{t.device}. Move them with .to()."
            )


Shapes = tuple[torch.Size | None, ...]


def shapes_of(data: Sequence[Tensor | None]) -> Shapes:
    """The shapes of all parts; None for those that are absent."""
    return tuple([None if t is None else t.shape for t in data])


@lru_cache(maxsize=1024)
def fit(where: str, shapes: Shapes) -> Form:
    """What the shapes of ``P, q, G, h, A, b, lb, ub`` say; remembered, as most come again.

    Args:
        where: The function that the user called, for messages.
        shapes: Of all parts.

    Raises:
        ValueError: If they do not fit together.
    """
    given = dict(zip(CORE_NDIM, shapes, strict=True))
    for name, shape in given.items():
        core = CORE_NDIM[name]
        if shape is not None and len(shape) < core:
            raise ValueError(
                f"{where}: {name} must have at least {core} dimensions; got shape "
                f"{tuple(shape)}. A single number needs a dimension of size 1: {name}.reshape("
                f"{', '.join('1' * core)})."
            )
    P, q, G, h, A, b, lb, ub = shapes
    assert q is not None
    n = q[-1]
    if n == 0:
        raise ValueError(f"{where}: q must have at least one entry; got shape {tuple(q)}.")
    if P is not None and P[-2:] != (n, n):
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
        if M[-1] != n:
            _shape_error(where, matrix, M, f"{rows}, {n}", f"q has {n} entries")
        if v[-1] != M[-2]:
            _shape_error(where, vector, v, f"{M[-2]}", f"{matrix} has {M[-2]} rows")
    for name, bound in (("lb", lb), ("ub", ub)):
        if bound is not None and bound[-1] != n:
            _shape_error(where, name, bound, f"{n}", f"q has {n} entries")
    leading = {k: shape[: -CORE_NDIM[k]] for k, shape in given.items() if shape is not None}
    try:
        batch_shape = broadcast_shapes(*leading.values())
    except ValueError:
        got = ", ".join(f"{k} {tuple(lead)}" for k, lead in leading.items())
        raise ValueError(
            f"{where}: the leading (batch) dimensions must broadcast against each other; got "
            f"{got}. Insert dimensions of size 1 where an argument is shared."
        ) from None
    p, m = 0 if A is None else A[-2], 0 if G is None else G[-2]
    return Form(batch_shape, n, p, m, 0 if lb is ub is None else n)


def _shape_error(where: str, name: str, shape: torch.Size, core: str, because: str) -> None:
    hint = ""
    expected = [int(part) if part.isdigit() else None for part in core.split(", ")]
    turned = (
        [
            None if e is None else e == size
            for e, size in zip(expected, (shape[-1], shape[-2]), strict=True)
        ]
        if (len(shape) >= 2 and len(expected) == 2)
        else []
    )
    if turned and all(match is not False for match in turned):
        hint = f" Did you mean {name}.mT?"
    raise ValueError(
        f"{where}: {name} must have shape (*batch, {core}) because {because}; "
        f"got {tuple(shape)}.{hint or ' Check which argument has the wrong size.'}"
    )
