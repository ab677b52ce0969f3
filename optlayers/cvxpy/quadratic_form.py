"""A problem as a dense quadratic program."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from solvers.matrix import Matrix
from solvers.qp.quadratic_program import check
from solvers.qp.solver import QPSolver
from solvers.solution import Solution

from ..exact import Exact
from ..failure import OnFailure
from ..qp import solve_quadratic_program
from ..smoothed import Smoothed
from .affine import AffineMap, AffineMatrix
from .elimination import Reduced
from .form import Data, Form
from .recovery import VariableSlot


class QuadraticForm(Form):
    r"""A dense quadratic program in the variables kept, with Hessian :math:`P + E^\top P_t E`."""

    def __init__(
        self, reduced: Reduced, solver: QPSolver | None, slots: Sequence[VariableSlot]
    ) -> None:
        """Lay out the dense matrices."""
        super().__init__(reduced, slots)
        self.solver = solver
        self.p = sum(rows for kind, rows in reduced.cones if kind == "zero")
        self.m = reduced.A.shape[0] - self.p
        rows, columns = np.split(np.arange(reduced.A.shape[0]), [self.p]), np.arange(self.n)
        if reduced.P is not None:
            self.maps["P"] = _dense(reduced.P)
        for matrix, vector, where in (("A", "b", rows[0]), ("G", "h", rows[1])):
            if len(where):
                self.maps[matrix] = _dense(reduced.A.where(where, columns))
                self.maps[vector] = reduced.b.rows(where)
        if self.k:
            self.maps["E"] = _dense(reduced.E)

    def _matrix(self, data: Data, name: str, rows: int) -> Tensor | None:
        return data[name].unflatten(-1, (rows, self.n)) if name in data else None

    def defining(self, data: Data) -> Matrix:
        """The matrix ``E``."""
        return Matrix(data["E"].unflatten(-1, (self.k, self.n)), None, self.k, self.n)

    def solve(
        self,
        data: Data,
        adjoint: Exact | Smoothed | None,
        warm_start: Solution | None,
        on_failure: OnFailure,
        precision: torch.dtype,
    ) -> Solution:
        """Put t in and solve."""
        P = self._matrix(data, "P", self.n)
        if self.k:
            E = self.defining(data).values
            square = E.mT @ self.curved(E)
            P = square if P is None else P + square
        q, d = self.without_t(data)
        G, A = self._matrix(data, "G", self.m), self._matrix(data, "A", self.p)
        h, b = data.get("h"), data.get("b")
        form = check("CvxpyLayer", P, q, G, h, A, b, None, None)
        program = [P, q, G, h, A, b, None, None]
        solution = solve_quadratic_program(
            "CvxpyLayer", program, form, self.solver, adjoint, warm_start, on_failure, precision
        )
        assert solution.objective is not None
        solution.objective = solution.objective + d
        return solution

    def multipliers(self, solution: Solution) -> Tensor:
        """Of equalities and inequalities."""
        assert solution.y is not None
        assert solution.z is not None
        return torch.cat([solution.y, solution.z], -1)


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
