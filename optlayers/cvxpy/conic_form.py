"""A problem as a sparse cone program."""

from collections.abc import Sequence
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
from solvers.solution import Solution

from ..conic import solve_cone_program
from ..exact import Exact
from ..failure import OnFailure
from ..smoothed import Smoothed
from .affine import AffineMatrix, FloatArray, affine_matrix
from .elimination import Reduced
from .form import Data, Form
from .recovery import VariableSlot


class ConicForm(Form):
    """A sparse cone program; variables t go where the matrix ``E`` is constant."""

    def __init__(self, reduced: Reduced, solver: ConeSolver, slots: Sequence[VariableSlot]) -> None:
        """Keep the patterns, and put t into the quadratic term."""
        super().__init__(reduced, slots)
        self.solver = solver
        self.cones = ConeProduct.of([cone_of(kind, argument) for kind, argument in reduced.cones])
        self.maps |= {"A": reduced.A.values, "b": reduced.b}
        self.A_index, self.m = _index(reduced.A), reduced.A.shape[0]
        self.E_index = _index(reduced.E)
        self.E_values = torch.from_numpy(constant_values(reduced.E))
        P = _with_square(reduced) if self.k else reduced.P
        self.P_index = None if P is None else _index(P)
        if P is not None:
            self.maps["P"] = P.values

    def defining(self, data: Data) -> Matrix:
        """The matrix ``E``."""
        device = data["q"].device
        values, index = self.E_values.to(device), self.E_index.to(device)
        return Matrix(values, index, self.k, self.n)

    def solve(
        self,
        data: Data,
        adjoint: Exact | Smoothed | None,
        warm_start: Solution | None,
        on_failure: OnFailure,
        precision: torch.dtype,
    ) -> Solution:
        """Hand the sparse data on."""
        device = data["q"].device
        P = None
        if self.P_index is not None:
            P = Matrix(data["P"], self.P_index.to(device), self.n, self.n)
        A = Matrix(data["A"], self.A_index.to(device), self.m, self.n)
        q, d = self.without_t(data)
        rough = precision != torch.float64
        program = ConeProgram(P, q, A, data["b"], self.cones, rough)
        solution = solve_cone_program(
            program, self.solver, adjoint, warm_start, on_failure, "CvxpyLayer"
        )
        assert solution.objective is not None
        solution.objective = solution.objective + d
        return solution

    def multipliers(self, solution: Solution) -> Tensor:
        """All of them."""
        assert solution.z is not None
        return solution.z


def has_constant_definitions(reduced: Reduced) -> bool:
    """Whether the matrix ``E`` does not depend on the parameters."""
    return not reduced.E.values.matrix[:, :-1].nnz


def constant_values(matrix: AffineMatrix) -> FloatArray:
    """The entries of a matrix that does not depend on the parameters."""
    values: FloatArray = matrix.values.matrix[:, [-1]].toarray()[:, 0]
    return values


def _with_square(reduced: Reduced) -> AffineMatrix | None:
    """The quadratic term with t put in: a constant is added."""
    import scipy.sparse as sp

    E = sp.csr_array(
        (constant_values(reduced.E), reduced.E.indices, reduced.E.indptr), reduced.E.shape
    )
    square = sp.coo_array(E.T @ reduced.P_t @ E)
    if reduced.P is None and not square.nnz:
        return None
    size = reduced.q.matrix.shape[1]
    last = np.full(square.nnz, size - 1)
    constants = sp.csr_array((square.data, (np.arange(square.nnz), last)), shape=(square.nnz, size))
    rows, columns, values = [square.row], [square.col], [constants]
    if reduced.P is not None:
        rows.append(reduced.P.row_indices)
        columns.append(reduced.P.indices)
        values.append(reduced.P.values.matrix)
    n = len(reduced.kept)
    stacked = sp.csr_array(sp.vstack(values))
    return affine_matrix(np.concatenate(rows), np.concatenate(columns), stacked, (n, n))


def _index(matrix: AffineMatrix) -> Tensor:
    return torch.from_numpy(np.stack([matrix.row_indices, matrix.indices]).astype(np.int64))


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
