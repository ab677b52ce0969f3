r"""Leave out variables that equalities define, before the program is solved.

cvxpy writes ``sum_squares(S @ x)`` as :math:`\|t\|^2` with :math:`t = S x`. Such a :math:`t` can be
put in: the program becomes smaller, and often one that solvers of quadratic programs like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .affine import AffineMap, AffineMatrix, FloatArray, IntArray, affine_matrix
from .cones import Cone

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from .canonical import CanonicalProgram

# The quadratic term may get this many times the entries that are left out. A dense S with k rows
# and n columns has k n of them and makes n^2: worth it from k = n / 2. Below, as in factor models
# with a handful of factors, solvers that know sparsity do better with t.
FILL = 2
# Division by a coefficient smaller than this times the largest in its row would lose digits.
PIVOT = 1e-3


@dataclass(frozen=True, eq=False)
class Reduced:
    r"""A canonical program without the variables :math:`t = e - E x_X`.

    With :math:`X` the kept columns and :math:`T` the eliminated ones the program is

    .. math::
        P_2 = P_{XX} + E^\top P_{TT} E, \quad q_2 = q_X - E^\top (q_T + P_{TT} e)

    with the kept rows as they were; it is quadratic in :math:`\theta`, its parts are affine.

    Attributes:
        kept: The columns :math:`X` of the program, sorted, ``nX`` of them.
        eliminated: The columns :math:`T`, ``k`` of them; empty if nothing is worth it.
        rows_kept: The rows that are left, sorted.
        rows_used: The row that defines each entry of :math:`t`, in the order of ``eliminated``.
        P: :math:`P_{XX}`, symmetric, None if zero.
        q: :math:`q_X`, ``nX`` values.
        d: The constant of the program, one value.
        A: Kept rows and columns of the constraint matrix.
        b: Right-hand side of the kept rows.
        cones: Cones of the kept rows.
        E: The matrix of :math:`t`, ``(k, nX)``.
        e: The offset of :math:`t`, ``k`` values.
        P_t: The constant :math:`P_{TT}`, ``(k, k)``.
        q_t: :math:`q_T`, ``k`` values.
        B: The constant coefficient of each entry of :math:`t` in its row, ``(k,)``.
    """

    kept: IntArray
    eliminated: IntArray
    rows_kept: IntArray
    rows_used: IntArray
    P: AffineMatrix | None
    q: AffineMap
    d: AffineMap
    A: AffineMatrix
    b: AffineMap
    cones: tuple[Cone, ...]
    E: AffineMatrix
    e: AffineMap
    P_t: csr_array
    q_t: AffineMap
    B: FloatArray

    def evaluate(
        self, theta: FloatArray
    ) -> tuple[csr_array, FloatArray, float, csr_array, FloatArray]:
        r"""The data of the reduced program.

        Args:
            theta: The parameters, shape ``(p,)``.

        Returns:
            ``P2`` of shape ``(nX, nX)``, ``q2``, the constant of the objective, ``A`` and ``b``.
        """
        from scipy.sparse import csr_array

        E, e, q_t = self.E.at(theta), self.e.at(theta), self.q_t.at(theta)
        P = csr_array(E.T @ self.P_t @ E)
        if self.P is not None:
            P = P + self.P.at(theta)
        q = self.q.at(theta) - E.T @ (q_t + self.P_t @ e)
        d = self.d.at(theta)[0] + e @ self.P_t @ e / 2 + q_t @ e
        return P, q, float(d), self.A.at(theta), self.b.at(theta)

    def expand(
        self, x: FloatArray, z: FloatArray, theta: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        r"""The solution of the whole program.

        Args:
            x: Solution of the reduced program, shape ``(nX,)``.
            z: Its dual solution, one entry for each kept row.
            theta: The parameters, shape ``(p,)``.

        Returns:
            Primal and dual solution of the canonical program. The duals of the rows that are gone
            follow from the gradient by :math:`t`: :math:`z_R = -B^{-1} (P_{TT} t + q_T)`.
        """
        t = self.e.at(theta) - self.E.at(theta) @ x
        full_x = np.empty(self.kept.size + self.eliminated.size)
        full_x[self.kept], full_x[self.eliminated] = x, t
        full_z = np.empty(self.rows_kept.size + self.rows_used.size)
        full_z[self.rows_kept] = z
        full_z[self.rows_used] = -(self.P_t @ t + self.q_t.at(theta)) / self.B
        return full_x, full_z


def eliminate(program: CanonicalProgram) -> Reduced:
    """Find the variables that are worth leaving out, from the structure alone.

    A variable can go if a single equality has it, with a constant coefficient, and if the
    quadratic term couples it, by constants, only to variables that go as well. It is worth it if
    the quadratic term does not become much larger; see ``FILL``.

    Args:
        program: The canonical program.

    Returns:
        The reduced program, with an empty ``eliminated`` if nothing is worth it.
    """
    columns, rows, pivots = _definitions(program)
    columns, rows, pivots = _closed(program, columns, rows, pivots)
    chosen = _worth_it(program, columns, rows)
    columns, rows, pivots = columns[chosen], rows[chosen], pivots[chosen]
    if columns.size == program.A.shape[1]:  # a program without variables is none
        columns, rows, pivots = columns[:0], rows[:0], pivots[:0]
    return _split(program, columns, rows, pivots)


def keep_all(program: CanonicalProgram) -> Reduced:
    """The program with nothing eliminated, for those who cannot put in what is."""
    none = np.empty(0, dtype=np.int64)
    return _split(program, none, none, np.empty(0))


def _definitions(program: CanonicalProgram) -> tuple[IntArray, IntArray, FloatArray]:
    """Columns that one equality defines, at most one for each equality, with their coefficients."""
    A = program.A
    row, matrix = A.row_indices, A.values.matrix
    zeros = program.cones[0][1] if program.cones and program.cones[0][0] == "zero" else 0
    constant = _is_constant(matrix)
    value = np.abs(matrix[:, [-1]].toarray()[:, 0])
    largest = np.zeros(A.shape[0])
    np.maximum.at(largest, row, value)
    single = np.bincount(A.indices, minlength=A.shape[1])[A.indices] == 1
    fit = np.flatnonzero(single & (row < zeros) & constant & (value >= PIVOT * largest[row]))

    # Of several in one row the auxiliaries come first: what the user asks for had better stay.
    # Then those with a quadratic term, as the others make the row a bound on the rest.
    users = np.zeros(A.shape[1], dtype=bool)
    for slot in program.variables:
        if slot.source == "primal":
            users[slot.index[slot.index >= 0]] = True
            if slot.imag_index is not None:
                users[slot.imag_index[slot.imag_index >= 0]] = True
    curved = np.zeros(A.shape[1], dtype=bool)
    if program.P is not None:
        curved[program.P.indices] = True
    column = A.indices[fit]
    order = np.lexsort((column, ~curved[column], users[column], row[fit]))
    _, first = np.unique(row[fit][order], return_index=True)
    entries = fit[order[first]]
    pivots: FloatArray = matrix[entries][:, [-1]].toarray()[:, 0]
    return A.indices[entries], row[entries], pivots


def _closed(
    program: CanonicalProgram, columns: IntArray, rows: IntArray, pivots: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Leave out those that the quadratic term ties to others, or by parameters."""
    if program.P is None:
        return columns, rows, pivots
    P, size = program.P, program.A.shape[1]
    component = _components(P.row_indices, P.indices, size)
    bad = np.ones(size, dtype=bool)
    bad[columns] = False
    bad[P.indices[~_is_constant(P.values.matrix)]] = True
    bad_component = np.bincount(component, weights=bad) > 0
    good = ~bad_component[component[columns]]
    return columns[good], rows[good], pivots[good]


def _worth_it(program: CanonicalProgram, columns: IntArray, rows: IntArray) -> IntArray:
    """Decide for each group of columns that share entries of the new quadratic term."""
    kept = np.setdiff1d(np.arange(program.A.shape[1]), columns)
    k, size = columns.size, columns.size + kept.size
    E, P = program.A.where(rows, kept), _pattern_of(program.P, columns)
    # Nodes are the entries of t, then the kept columns; P ties the former, E these to those.
    i, j = E.row_indices, k + E.indices
    group = _components(np.append(P.row_indices, i), np.append(P.indices, j), size)
    groups = int(group.max(initial=-1)) + 1
    width = np.bincount(group[np.unique(j)], minlength=groups)
    curved = np.bincount(group[P.row_indices], minlength=groups)
    enough = FILL * (
        np.bincount(group[:k], minlength=groups) + np.bincount(group[i], minlength=groups) + curved
    )
    # A group fills a square at most; only where that is too much its entries are counted.
    good = (curved == 0) | (width**2 <= enough)
    E_ones, P_ones = _ones(E), _ones(P)
    for label in np.flatnonzero(~good):
        own = np.flatnonzero(group[:k] == label)
        after = _entries_after(E_ones[own], P_ones[own][:, own], enough[label])
        good[label] = after <= enough[label]
    return np.flatnonzero(good[group[:k]])


def _entries_after(E: csr_array, P: csr_array, enough: int) -> int:
    """Count the entries of ``E' P E``, or say more than enough."""
    # As many products are added up: far too many with a single row that has every column.
    in_row = np.diff(E.indptr)
    products = int((P @ in_row) @ in_row)
    if products > 64 * enough:
        return products
    return int((E.T @ P @ E).nnz)


def _ones(matrix: AffineMatrix) -> csr_array:
    """The pattern as a matrix of ones, in which nothing cancels."""
    from scipy.sparse import csr_array

    ones = np.ones(matrix.indices.size)
    return csr_array((ones, matrix.indices, matrix.indptr), shape=matrix.shape)


def _pattern_of(P: AffineMatrix | None, columns: IntArray) -> AffineMatrix:
    """The quadratic term among the columns, empty if there is none."""
    from scipy.sparse import csr_array

    if P is None:
        none = np.empty(0, dtype=np.int64)
        return affine_matrix(none, none, csr_array((0, 1)), (columns.size, columns.size))
    return P.where(columns, columns)


def _components(i: IntArray, j: IntArray, size: int) -> IntArray:
    """Number the connected components of a graph, shape ``(size,)``."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    graph = csr_array((np.ones(i.size), (i, j)), shape=(size, size))
    labels: IntArray = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _is_constant(matrix: csr_array) -> NDArray[np.bool_]:
    """Which rows of a map do not depend on the parameters, shape ``(k,)``."""
    constant: NDArray[np.bool_] = np.diff(matrix[:, :-1].indptr) == 0
    return constant


def _split(
    program: CanonicalProgram, columns: IntArray, rows: IntArray, pivots: FloatArray
) -> Reduced:
    """Take the program apart into what stays and what goes."""
    from scipy.sparse import csr_array, diags_array

    A = program.A
    kept = np.setdiff1d(np.arange(A.shape[1], dtype=np.int64), columns)
    rows_kept = np.setdiff1d(np.arange(A.shape[0], dtype=np.int64), rows)
    cones = list(program.cones)
    if rows.size:
        left = cones[0][1] - rows.size
        cones[:1] = [("zero", left)] if left else []

    defining = A.where(rows, kept)
    per_entry = diags_array(1 / pivots[defining.row_indices])
    E = AffineMatrix(
        defining.shape,
        defining.indptr,
        defining.indices,
        AffineMap(csr_array(per_entry @ defining.values.matrix)),
    )
    e = AffineMap(csr_array(diags_array(1 / pivots) @ program.b.rows(rows).matrix))
    P_t = _pattern_of(program.P, columns)
    constant = P_t.values.matrix[:, [-1]].toarray()[:, 0]
    P = None if program.P is None else program.P.where(kept, kept)
    return Reduced(
        kept=kept,
        eliminated=columns,
        rows_kept=rows_kept,
        rows_used=rows,
        P=P if P is not None and P.indices.size else None,
        q=program.q.rows(kept),
        d=program.d,
        A=A.where(rows_kept, kept),
        b=program.b.rows(rows_kept),
        cones=tuple(cones),
        E=E,
        e=e,
        P_t=csr_array((constant, P_t.indices, P_t.indptr), shape=P_t.shape),
        q_t=program.q.rows(columns),
        B=pivots,
    )
