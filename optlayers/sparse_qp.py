"""Quadratic programs with sparse matrices, as cone programs without curved cones."""

import torch
from torch import Tensor

from solvers.batch import broadcast_shapes
from solvers.cone.clarabel import Clarabel
from solvers.cone.cone_program import ConeProgram, matrix_of
from solvers.cone.polyhedral import NonnegativeCone, ZeroCone
from solvers.cone.product import ConeProduct
from solvers.cone.solver import ConeSolver
from solvers.matrix import Matrix
from solvers.solution import Solution

from .conic import solve_cone_program
from .csr import with_derivatives
from .exact import Exact
from .failure import OnFailure
from .smoothed import Smoothed


def sparse_qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None,
    h: Tensor | None,
    A: Tensor | None,
    b: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    solver: ConeSolver | None,
    adjoint: Exact | Smoothed | None,
    warm_start: Solution | None,
    on_failure: OnFailure,
) -> Solution:
    """Solve checked programs some of whose matrices are CSR; see :func:`optlayers.qp`.

    Rows are those of ``A``, of ``G`` and of both bounds, one under the other.
    """
    n = q.shape[-1]
    for name, t in (("q", q), ("h", h), ("b", b), ("lb", lb), ("ub", ub)):
        if t is not None and t.layout != torch.strided:
            raise TypeError(
                f"qp: {name} must be a dense tensor; got layout {t.layout}. Convert it with "
                f"{name}.to_dense()."
            )
    rows = _Rows(n, q)
    if A is not None and b is not None:
        rows.add(_matrix("A", A), b)
    p = rows.count
    if G is not None and h is not None:
        rows.add(_matrix("G", G), h, may_be_infinite=True)
    m = rows.count - p
    eye = torch.arange(n, device=q.device).expand(2, n)
    for bound, sign in ((lb, -1.0), (ub, 1.0)):
        if bound is not None:
            ones = torch.full_like(bound[..., :1], sign).expand(bound.shape)
            rows.add(Matrix(ones, eye, n, n), sign * bound, may_be_infinite=True)
    cones = [ZeroCone(p), NonnegativeCone(rows.count - p)]
    quadratic = None if P is None else _matrix("P", P)
    program = ConeProgram(quadratic, q, rows.matrix(), rows.right(), ConeProduct.of(cones))
    start = None
    if warm_start is not None:
        start = _stacked(warm_start, lb is not None, ub is not None)
    solution = solve_cone_program(program, solver or Clarabel(), adjoint, start, on_failure, "qp")
    return _named(solution, p, m, n, h, lb is not None, ub is not None)


def _matrix(name: str, t: Tensor) -> Matrix:
    return with_derivatives(matrix_of("qp", name, t), t)


class _Rows:
    """Constraints on their way into one sparse matrix."""

    def __init__(self, n: int, like: Tensor) -> None:
        self.n, self.like, self.count = n, like, 0
        self.values: list[Tensor] = []
        self.index: list[Tensor] = []
        self.ends: list[Tensor] = []

    def add(self, M: Matrix, end: Tensor, *, may_be_infinite: bool = False) -> None:
        """Put rows below the others; those whose end is infinite become ``0 x <= 1`` or ``-1``."""
        values, index = M.values, M.index
        if index is None:
            place = torch.arange(M.rows * M.columns, device=values.device)
            index = torch.stack([place // M.columns, place % M.columns])
            values = values.flatten(-2)
        if may_be_infinite:
            infinite = end.isinf()
            values = torch.where(infinite.index_select(-1, index[0]), 0.0, values)
            end = torch.where(infinite, end.detach().sign(), end)
        self.values.append(values)
        self.index.append(torch.stack([index[0] + self.count, index[1]]))
        self.ends.append(end)
        self.count += M.rows

    def matrix(self) -> Matrix:
        """All rows."""
        index = torch.cat([*self.index, torch.zeros_like(self._nothing.expand(2, 0))], 1)
        return Matrix(self._together(self.values), index, self.count, self.n)

    def right(self) -> Tensor:
        """All ends."""
        return self._together(self.ends)

    @property
    def _nothing(self) -> Tensor:
        return torch.empty(2, 0, dtype=torch.long, device=self.like.device)

    def _together(self, parts: list[Tensor]) -> Tensor:
        if not parts:
            return self.like.new_zeros(0)
        shape = broadcast_shapes(*(t.shape[:-1] for t in parts))
        return torch.cat([t.expand(*shape, t.shape[-1]) for t in parts], -1)


def _named(
    solution: Solution, p: int, m: int, n: int, h: Tensor | None, lower: bool, upper: bool
) -> Solution:
    """Take multipliers and slacks apart, as a dense program has them."""
    z, s = solution.z, solution.s
    assert z is not None
    assert s is not None
    solution.y, solution.z, bounds = z[..., :p], z[..., p : p + m], z[..., p + m :]
    solution.s = s[..., p : p + m]
    if h is not None:
        solution.s = torch.where(h == torch.inf, torch.inf, solution.s)
    parts = list(bounds.split(n, -1)) if lower or upper else []
    at_lower = parts.pop(0) if lower else None
    at_upper = parts.pop(0) if upper else None
    if at_lower is None:
        solution.z_box = bounds if at_upper is None else at_upper
    else:
        solution.z_box = -at_lower if at_upper is None else at_upper - at_lower
    return solution


def _stacked(solution: Solution, lower: bool, upper: bool) -> Solution | None:
    """The multipliers of an earlier solution as one vector, and slacks that fit them."""
    if not isinstance(solution, Solution):
        return solution  # to be refused with all others
    y, z, s, z_box = solution.y, solution.z, solution.s, solution.z_box
    if y is None or z is None or s is None or z_box is None:
        return None
    sides = [(-z_box).clamp(min=0)] * lower + [z_box.clamp(min=0)] * upper
    multipliers = torch.cat([y, z, *sides], -1)
    none = [torch.zeros_like(t) for t in sides]
    slacks = torch.cat([torch.zeros_like(y), s.clamp(max=1e300), *none], -1)
    return Solution(solution.x, solution.status, solution.iterations, z=multipliers, s=slacks)
