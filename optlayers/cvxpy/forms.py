r"""The two forms in which a canonical problem is solved: as a dense quadratic program, or as it is.

A form turns data into a solution of its own, and that into the vectors from which the user's values
are read. A quadratic program of moderate size is solved dense, without the variables that
equalities define; everything else goes to a solver of cone programs.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.cone.cone import Cone
from solvers.cone.cone_program import ConeProgram
from solvers.cone.exponential import ExponentialCone
from solvers.cone.polyhedral import NonnegativeCone, ZeroCone
from solvers.cone.positive_semidefinite import PositiveSemidefiniteCone
from solvers.cone.power import GeneralizedPowerCone, PowerCone
from solvers.cone.product import ConeProduct
from solvers.cone.second_order import SecondOrderCone
from solvers.cone.solver import ConeSolver
from solvers.matrix import Matrix
from solvers.qp.solver import QPSolver
from solvers.solution import Solution

from ..conic import solve_cone_program
from ..exact import Exact
from ..failure import OnFailure
from ..qp import qp
from ..smoothed import Smoothed
from .affine import AffineMap, AffineMatrix, IntArray
from .canonical import CanonicalProgram
from .elimination import Reduced
from .recovery import VariableSlot

Data = dict[str, Tensor]
# Entries of the dense matrices of one problem up to which density does not matter, and the share of
# them that must be filled beyond, up to a limit.
SMALL, FILLED, LARGE = 100_000, 0.2, 4_000_000


class Form(ABC):
    """A way to solve a problem.

    Attributes:
        maps: From theta to the data.
        slots: How values are read from the vectors that :meth:`primal` and :meth:`dual` give.
    """

    maps: dict[str, AffineMap]
    slots: tuple[VariableSlot, ...]

    @abstractmethod
    def solve(
        self,
        data: Data,
        adjoint: Exact | Smoothed | None,
        warm_start: Solution | None,
        on_failure: OnFailure,
    ) -> Solution:
        """Solve; the objective includes the constant."""

    @abstractmethod
    def primal(self, data: Data, solution: Solution) -> Tensor:
        """The vector from which primal values are read."""

    @abstractmethod
    def dual(self, data: Data, solution: Solution) -> Tensor:
        """The vector from which dual values are read."""


class ConicForm(Form):
    """The canonical problem as it is, its matrices sparse."""

    def __init__(self, program: CanonicalProgram, solver: ConeSolver) -> None:
        """Keep the patterns."""
        self.solver = solver
        self.cones = ConeProduct.of([cone_of(kind, argument) for kind, argument in program.cones])
        self.maps = {"q": program.q, "A": program.A.values, "b": program.b, "d": program.d}
        self.A_index, self.shape = _index(program.A), program.A.shape
        self.P_index = None if program.P is None else _index(program.P)
        if program.P is not None:
            self.maps["P"] = program.P.values
        self.slots = program.variables

    def solve(
        self,
        data: Data,
        adjoint: Exact | Smoothed | None,
        warm_start: Solution | None,
        on_failure: OnFailure,
    ) -> Solution:
        """Hand the sparse data on."""
        (m, n), device = self.shape, data["q"].device
        P = None
        if self.P_index is not None:
            P = Matrix(data["P"], self.P_index.to(device), n, n)
        A = Matrix(data["A"], self.A_index.to(device), m, n)
        program = ConeProgram(P, data["q"], A, data["b"], self.cones)
        solution = solve_cone_program(
            program, self.solver, adjoint, warm_start, on_failure, "CvxpyLayer"
        )
        assert solution.objective is not None
        solution.objective = solution.objective + data["d"][..., 0]
        return solution

    def primal(self, data: Data, solution: Solution) -> Tensor:
        """All canonical variables."""
        x: Tensor = solution.x
        return x

    def dual(self, data: Data, solution: Solution) -> Tensor:
        """All multipliers in the order of the rows."""
        assert solution.z is not None
        return solution.z


class QuadraticForm(Form):
    r"""A dense quadratic program in the variables kept; the others are :math:`t = e - E x`.

    Primal values are read from :math:`(x, t)`, dual ones from the multipliers of equalities, of
    inequalities and of the equalities that define :math:`t`.
    """

    def __init__(
        self, reduced: Reduced, solver: QPSolver | None, slots: Sequence[VariableSlot]
    ) -> None:
        """Lay out the dense matrices."""
        self.solver = solver
        self.n, self.k = len(reduced.kept), len(reduced.eliminated)
        self.p = sum(rows for kind, rows in reduced.cones if kind == "zero")
        self.m = reduced.A.shape[0] - self.p
        rows, columns = np.split(np.arange(reduced.A.shape[0]), [self.p]), np.arange(self.n)
        maps = {"q": reduced.q, "d": reduced.d}
        if reduced.P is not None:
            maps["P"] = _dense(reduced.P)
        for matrix, vector, where in (("A", "b", rows[0]), ("G", "h", rows[1])):
            if len(where):
                maps[matrix] = _dense(reduced.A.where(where, columns))
                maps[vector] = reduced.b.rows(where)
        self.curvature: Tensor | None = None
        if self.k:
            maps |= {"E": _dense(reduced.E), "e": reduced.e, "q_t": reduced.q_t}
            self.pivots = torch.from_numpy(np.asarray(reduced.B))
            self.curvature = torch.from_numpy(reduced.P_t.toarray())
            diagonal = self.curvature.diagonal()
            self.diagonal = bool((torch.diag(diagonal) == self.curvature).all())
            equal = self.diagonal and bool((diagonal == diagonal[0]).all())
            self.factor = float(diagonal[0]) if equal else None
        self.maps = maps
        of_columns = _inverse(np.concatenate((reduced.kept, reduced.eliminated)))
        of_rows = _inverse(np.concatenate((reduced.rows_kept, reduced.rows_used)))
        places = {"primal": of_columns, "dual": of_rows}
        self.slots = tuple(_moved(slot, places[slot.source]) for slot in slots)
        self.reads_t = any(_reaches(s, self.n) for s in self.slots if s.source == "primal")
        kept_rows = self.p + self.m
        self.reads_z_t = any(_reaches(s, kept_rows) for s in self.slots if s.source == "dual")

    def solve(
        self,
        data: Data,
        adjoint: Exact | Smoothed | None,
        warm_start: Solution | None,
        on_failure: OnFailure,
    ) -> Solution:
        """Put t in and solve."""

        def matrix(name: str, rows: int) -> Tensor | None:
            return data[name].unflatten(-1, (rows, self.n)) if name in data else None

        P, q, d = matrix("P", self.n), data["q"], data["d"]
        if self.curvature is not None:
            E, e, pull = matrix("E", self.k), data["e"], data["q_t"]
            assert E is not None
            of_e = self._curved(e[..., None])[..., 0]
            square = E.mT @ self._curved(E)
            P = square if P is None else P + square
            q = q - (E.mT @ (pull + of_e)[..., None])[..., 0]
            d = d + ((pull + 0.5 * of_e) * e).sum(-1, keepdim=True)
        solution = qp(
            P, q, matrix("G", self.m), data.get("h"), matrix("A", self.p), data.get("b"),
            solver=self.solver, adjoint=adjoint, warm_start=warm_start, on_failure=on_failure,
        )  # fmt: skip
        assert solution.objective is not None
        solution.objective = solution.objective + d[..., 0]
        return solution

    def _curved(self, E: Tensor) -> Tensor:
        """The curvature along t times a matrix with a row for each."""
        assert self.curvature is not None
        if self.factor is not None:
            return E if self.factor == 1 else E * self.factor
        curvature = self.curvature.to(E.device)
        return E * curvature.diagonal()[:, None] if self.diagonal else curvature @ E

    def _t(self, data: Data, solution: Solution) -> Tensor:
        E = data["E"].unflatten(-1, (self.k, self.n))
        t: Tensor = data["e"] - (E @ solution.x[..., None])[..., 0]
        return t

    def primal(self, data: Data, solution: Solution) -> Tensor:
        """The variables kept, and the others where somebody asks for them."""
        x: Tensor = solution.x
        return torch.cat([x, self._t(data, solution)], -1) if self.reads_t else x

    def dual(self, data: Data, solution: Solution) -> Tensor:
        """Multipliers of equalities and inequalities, and of what defines t."""
        assert solution.y is not None
        assert solution.z is not None
        parts = [solution.y, solution.z]
        if self.reads_z_t:
            t = self._t(data, solution)
            force = self._curved(t[..., None])[..., 0] + data["q_t"]
            parts.append(-force / self.pivots.to(t.device))
        return torch.cat(parts, -1)


def form_of(
    program: CanonicalProgram, reduced: Reduced, solver: QPSolver | ConeSolver | None
) -> Form:
    """Choose; a solver that was asked for decides.

    Raises:
        ValueError: If a solver of quadratic programs was asked for, and this is none.
    """
    from solvers.cone.clarabel import Clarabel

    linear = all(kind in ("zero", "nonneg") for kind, _ in program.cones)
    if isinstance(solver, QPSolver) and not linear:
        others = sorted({kind for kind, _ in program.cones} - {"zero", "nonneg"})
        raise ValueError(
            f"CvxpyLayer: solver {type(solver).__name__} solves quadratic programs; got a problem "
            f"whose canonical form has cones of the kinds {', '.join(others)}. Leave solver out, "
            "or use Clarabel()."
        )
    if isinstance(solver, ConeSolver) or not linear:
        return ConicForm(program, solver if isinstance(solver, ConeSolver) else Clarabel())
    (m, n), P = reduced.A.shape, reduced.P
    entries = n * (n + m)
    filled = len(reduced.A.indices) + (0 if P is None else len(P.indices)) + len(reduced.E.indices)
    dense = entries <= SMALL or (entries <= LARGE and filled >= FILLED * entries)
    if isinstance(solver, QPSolver) or dense:
        chosen = solver if isinstance(solver, QPSolver) else None
        return QuadraticForm(reduced, chosen, program.variables)
    return ConicForm(program, Clarabel())


def cone_of(kind: str, argument: Any) -> Cone:
    """The cone of a canonical problem."""
    match kind:
        case "zero":
            return ZeroCone(argument)
        case "nonneg":
            return NonnegativeCone(argument)
        case "soc":
            return SecondOrderCone(argument)
        case "psd":
            return PositiveSemidefiniteCone(argument)
        case "exp":
            return ExponentialCone()
        case "pow":
            return PowerCone(argument)
        case "genpow":
            return GeneralizedPowerCone(*argument)
    raise ValueError(f"CvxpyLayer: expected a kind of cone that exists, got {kind!r}.")


def _index(matrix: AffineMatrix) -> Tensor:
    return torch.from_numpy(np.stack([matrix.row_indices, matrix.indices]).astype(np.int64))


def _dense(matrix: AffineMatrix) -> AffineMap:
    """All entries of a matrix in row-major order."""
    import scipy.sparse as sp

    place = matrix.row_indices * matrix.shape[1] + matrix.indices
    size = matrix.shape[0] * matrix.shape[1]
    if len(place) == size:  # every entry is there, in this very order
        return matrix.values
    ones = np.ones(len(place))
    spread = sp.csr_array((ones, (place, np.arange(len(place)))), shape=(size, len(place)))
    return AffineMap(sp.csr_array(spread @ matrix.values.matrix))


def _inverse(order: IntArray) -> IntArray:
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return inverse


def _moved(slot: VariableSlot, place: IntArray) -> VariableSlot:
    """The same slot for a vector in another order."""

    def move(index: IntArray) -> IntArray:
        moved: IntArray = np.where(index < 0, -1, place[np.maximum(index, 0)])
        return moved

    imaginary = None if slot.imag_index is None else move(slot.imag_index)
    return replace(slot, index=move(slot.index), imag_index=imaginary)


def _reaches(slot: VariableSlot, size: int) -> bool:
    """Whether it reads beyond the first entries."""
    last = int(slot.index.max(initial=-1))
    if slot.imag_index is not None:
        last = max(last, int(slot.imag_index.max(initial=-1)))
    return last >= size
