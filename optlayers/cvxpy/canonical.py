r"""The canonical form of a parametrised cvxpy problem: cone programs affine in the parameters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .affine import AffineMap, AffineMatrix, IntArray, affine_matrix
from .checks import check_arguments, check_problem
from .cones import Cone, cone_size, list_cones
from .duals import DualMaps, dual_slot
from .parameters import ParameterSlot, parameter_slots
from .recovery import VariableSlot, primal_slot

if TYPE_CHECKING:
    import cvxpy as cp


@dataclass(frozen=True, eq=False)
class CanonicalProgram:
    r"""A family of cone programs, one for each parameter vector :math:`\theta`.

    .. math::
        \min_{x,\, s} \tfrac12 x^\top P x + q^\top x + d
        \quad \text{s.t.} \quad A x + s = b, \quad s \in K

    All data is affine in :math:`\theta`. Rows and their scaling are those of Clarabel: zero,
    nonnegative, second-order, semidefinite (upper triangles by columns, entries off the diagonal
    times :math:`\sqrt 2`), exponential and power cones.

    Attributes:
        P: Quadratic term, ``(n, n)``, symmetric with both triangles; None if there is none.
        q: Linear term, ``n`` values.
        d: Constant, one value.
        A: Constraint matrix, ``(rows, n)``.
        b: Right-hand side, ``rows`` values.
        cones: Kinds and arguments in the order of the rows: ``("zero", rows)``,
            ``("nonneg", rows)``, ``("soc", rows)``, ``("psd", order)``, ``("exp", None)``,
            ``("pow", alpha)``, ``("genpow", (alphas, 1))``.
        maximize: Whether the user maximises; the program above minimises the negative.
        gp: Whether the user's objective is the exponential of that of the program.
        parameters: How values of the parameters become :math:`\theta`, in the user's order.
        variables: How the solution becomes what the user asked for, in the user's order.
    """

    P: AffineMatrix | None
    q: AffineMap
    d: AffineMap
    A: AffineMatrix
    b: AffineMap
    cones: tuple[Cone, ...]
    maximize: bool
    gp: bool
    parameters: tuple[ParameterSlot, ...]
    variables: tuple[VariableSlot, ...]


def canonicalise(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    *,
    gp: bool = False,
) -> CanonicalProgram:
    """Take a problem apart, once and for all values of its parameters.

    Args:
        problem: A convex problem that follows the DPP rules of cvxpy. It is left as it is.
        parameters: All its parameters, in the order in which values will be given.
        variables: Variables of the problem and dual variables of its constraints.
        gp: Whether it is a geometric program.

    Returns:
        The program. It has no objects of cvxpy and can be copied and pickled.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the problem cannot be a layer, or cvxpy makes something unknown of it.
    """
    import cvxpy as cp
    from cvxpy import settings

    check_arguments(problem, parameters, variables)
    check_problem(problem, gp=gp)
    # A problem remembers how it was canonicalised the first time, whatever is asked of it later;
    # a fresh one of the same expressions does not, and leaves the memory of the user's alone.
    fresh = cp.Problem(problem.objective, problem.constraints)
    # COO is the one backend that is fast with large parameters.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Of the values that leaves have at present, which do not matter here.
        warnings.filterwarnings("ignore", "Reading from a sparse CVXPY expression")
        data, chain, inverse = fresh.get_problem_data(
            "CLARABEL", gp=gp, enforce_dpp=True, canon_backend=settings.COO_CANON_BACKEND
        )
    program = data.get(settings.PARAM_PROB) if isinstance(data, dict) else None
    if program is None or program.x.size == 0:
        raise ValueError(
            "CvxpyLayer: expected a problem in which something is left to choose; cvxpy finds that "
            "it is a constant. Compute its value with torch instead."
        )
    _check_program(program)

    slots, columns = parameter_slots(
        parameters, program, chain.compose_param_id_map(), _logarithms(chain)
    )
    size = int(program.x.size)
    cones, rows = list_cones(program.constraints)
    A, b = _constraints(program, columns, sum(cone_size(cone) for cone in cones))
    objective = program.q.tocsr()[:, columns]
    maps = DualMaps(rows, chain.compose_constr_id_map(), _imaginary_ids(chain, inverse))
    return CanonicalProgram(
        P=_quadratic(program, columns),
        q=AffineMap(objective[:size]),
        d=AffineMap(objective[size:]),
        A=A,
        b=b,
        cones=cones,
        maximize=isinstance(problem.objective, cp.Maximize),
        gp=gp,
        parameters=slots,
        variables=_variable_slots(
            problem, variables, program, chain.compose_var_id_map(), maps, gp
        ),
    )


def _variable_slots(
    problem: cp.Problem,
    variables: Sequence[cp.Variable],
    program: Any,
    id_map: Mapping[int, list[int]],
    maps: DualMaps,
    gp: bool,
) -> tuple[VariableSlot, ...]:
    """Describe where the user's variables are, primal and dual ones."""
    duals = {
        dual.id: (constraint, number)
        for constraint in problem.constraints
        for number, dual in enumerate(constraint.dual_variables)
    }
    return tuple(
        dual_slot(*duals[variable.id], maps)
        if variable.id in duals
        else primal_slot(variable, program, id_map, gp=gp)
        for variable in variables
    )


def _constraints(program: Any, columns: IntArray, rows: int) -> tuple[AffineMatrix, AffineMap]:
    """Split the map of cvxpy, whose last column is the right-hand side."""
    from scipy.sparse import csr_array

    size = int(program.x.size)
    i, j, values = _entries(program.reduced_A, columns)
    _check_rows(program, rows)
    in_A = np.flatnonzero(j < size)
    in_b = np.flatnonzero(j == size)
    # cvxpy states the constraints as M x + b in K, hence the sign.
    A = affine_matrix(i[in_A], j[in_A], -values[in_A], (rows, size))
    scatter = csr_array((np.ones(in_b.size), (i[in_b], np.arange(in_b.size))), (rows, in_b.size))
    b = csr_array(scatter @ values[in_b])
    b.eliminate_zeros()
    return A, AffineMap(b)


def _quadratic(program: Any, columns: IntArray) -> AffineMatrix | None:
    """The symmetric part of the quadratic term, or None if it is zero."""
    from scipy.sparse import vstack

    if program.P is None:
        return None
    size = int(program.x.size)
    i, j, values = _entries(program.reduced_P, columns)
    # A parameter that is only assumed to be symmetric may have a value that is not; solvers would
    # read one triangle, but x' P x depends on the mean of the two.
    halves = vstack([values / 2, values / 2], format="csr")
    P = affine_matrix(np.append(i, j), np.append(j, i), halves, (size, size))
    return P if P.indices.size else None


def _entries(reduced: Any, columns: IntArray) -> tuple[IntArray, IntArray, Any]:
    """Rows, columns and map of the entries of a matrix, which cvxpy keeps as CSC."""
    from scipy.sparse import csr_array

    reduced.cache()
    if reduced.problem_data_index is None:  # there is nothing in it
        none = np.empty(0, dtype=np.int64)
        return none, none, csr_array((0, columns.size))
    indices, indptr, _ = reduced.problem_data_index
    j = np.repeat(np.arange(indptr.size - 1, dtype=np.int64), np.diff(indptr))
    return np.asarray(indices, dtype=np.int64), j, reduced.reduced_mat.tocsr()[:, columns]


def _logarithms(chain: Any) -> Mapping[int, list[int]]:
    """The parameters that geometric programs use through their logarithm."""
    from cvxpy.reductions.dgp2dcp.dgp2dcp import Dgp2Dcp

    steps = [step for step in chain.reductions if isinstance(step, Dgp2Dcp)]
    return steps[0].param_id_map if steps else {}


def _imaginary_ids(chain: Any, inverse: Sequence[Any]) -> Mapping[int, int]:
    """The ids of the imaginary parts of complex constraints."""
    from cvxpy.reductions.complex2real.complex2real import Complex2Real

    for step, data in zip(chain.reductions, inverse, strict=False):
        if isinstance(step, Complex2Real):
            ids: Mapping[int, int] = data.real2imag
            return ids
    return {}


def _check_program(program: Any) -> None:
    """Refuse parts of a program that the canonical form has no place for."""
    bounds = ("lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor")
    surprises = [name for name in bounds if getattr(program, name, None) is not None]
    surprises += ["dir_cones"] if getattr(program, "dir_cones", None) else []
    if surprises:
        raise ValueError(
            "CvxpyLayer: expected cvxpy to state all constraints as rows of A; it also used "
            f"{', '.join(surprises)}. Report this with the problem and the version of cvxpy."
        )


def _check_rows(program: Any, rows: int) -> None:
    """Refuse programs of which a row would be lost."""
    given = program.A.shape[0] // (int(program.x.size) + 1)
    if given != rows:
        raise ValueError(
            f"CvxpyLayer: expected the cones to take the {given} rows that cvxpy has made; they "
            f"take {rows}. Report this with the problem and the version of cvxpy."
        )
