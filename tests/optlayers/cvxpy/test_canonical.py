"""Canonical data solved directly gives what cvxpy gives, and what cannot be a layer is refused."""

import copy
import pickle
import time
import tracemalloc

import cvxpy as cp
import numpy as np
import pytest

from optlayers.cvxpy.canonical import canonicalise
from optlayers.cvxpy.cones import cone_size
from tests.optlayers.cvxpy.problems import PROBLEMS
from tests.optlayers.cvxpy.reference import (
    assign,
    canonical,
    parameter_vector,
    solve_by_cvxpy,
    solve_program,
    users_value,
)


@pytest.fixture(params=PROBLEMS)
def case(request):
    return PROBLEMS[request.param]()


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY expression:RuntimeWarning")
def test_solution_is_that_of_cvxpy(case):
    program = canonical(case)
    x, z, value = solve_program(program, parameter_vector(program, case.values))
    expected_value, expected = solve_by_cvxpy(case)
    assert users_value(program, value) == pytest.approx(expected_value, rel=1e-6, abs=1e-6)
    for slot, wanted in zip(program.variables, expected, strict=True):
        assert slot.value(x, z).shape == wanted.shape
        np.testing.assert_allclose(slot.value(x, z), wanted, rtol=1e-6, atol=1e-6)


def test_data_is_consistent(case):
    program = canonical(case)
    rows, size = program.A.shape
    p = sum(slot.size for slot in program.parameters)
    assert sum(cone_size(cone) for cone in program.cones) == rows == program.b.size
    assert program.q.size == size
    assert program.d.size == 1
    matrices = [program.A] + ([program.P] if program.P else [])
    for matrix in matrices:
        positions = matrix.row_indices * size + matrix.indices
        assert (np.diff(positions) > 0).all()
        assert matrix.indptr[-1] == matrix.indices.size == matrix.values.size
    for part in (program.q, program.d, program.b, *(matrix.values for matrix in matrices)):
        assert part.matrix.shape[1] == p + 1
        assert part.matrix.format == "csr"
    if program.P:
        theta = np.random.default_rng(0).standard_normal(p)
        P = program.P.at(theta).toarray()
        np.testing.assert_array_equal(P, P.T)


def test_copies_are_equal(case):
    program = canonical(case)
    theta = parameter_vector(program, case.values)
    for other in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        np.testing.assert_array_equal(other.A.at(theta).toarray(), program.A.at(theta).toarray())
        np.testing.assert_array_equal(other.q.at(theta), program.q.at(theta))
        assert other.cones == program.cones


@pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY expression:RuntimeWarning")
def test_problem_is_left_alone_and_its_memory_ignored(case):
    first = canonical(case)
    assert all(
        parameter.value is None for parameter in case.parameters if parameter.sparse_idx is None
    )
    # Now there are values, and cvxpy remembers what it did for this solver, in another way.
    theta = parameter_vector(first, case.values)
    assign(case.parameters, case.values)
    case.problem.get_problem_data("CLARABEL", gp=case.gp, canon_backend="SCIPY")
    second = canonical(case)
    for part in ("A", "q", "b"):
        one, two = getattr(first, part).at(theta), getattr(second, part).at(theta)
        if part == "A":
            one, two = one.toarray(), two.toarray()
        np.testing.assert_array_equal(one, two)


def test_order_of_the_parameters_is_the_users():
    x, a, b = cp.Variable(2), cp.Parameter(2, name="a"), cp.Parameter(name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + a @ x), [cp.sum(x) == b])
    for parameters in ([a, b], [b, a]):
        program = canonicalise(problem, parameters, [x])
        assert [slot.name for slot in program.parameters] == [p.name() for p in parameters]
        values = {"a": np.array([1.0, 2.0]), "b": np.array(3.0)}
        theta = parameter_vector(program, [values[p.name()] for p in parameters])
        np.testing.assert_array_equal(program.q.at(theta), [1, 2])
        np.testing.assert_array_equal(program.b.at(theta), [3])


def test_symmetric_parameters_are_read_from_both_triangles():
    x, P = cp.Variable(2), cp.Parameter((2, 2), PSD=True)
    program = canonicalise(cp.Problem(cp.Minimize(cp.quad_form(x, P) + cp.sum(x))), [P], [x])
    theta = parameter_vector(program, [np.array([[2.0, 1.0], [0.0, 3.0]])])
    np.testing.assert_allclose(program.P.at(theta).toarray(), [[4, 1], [1, 6]])


def test_a_value_that_is_not_symmetric_is_read_from_both_triangles():
    x, P = cp.Variable(2), cp.Parameter((2, 2))
    objective = cp.quad_form(x, P, assume_PSD=True) + cp.sum(x)
    program = canonicalise(cp.Problem(cp.Minimize(objective)), [P], [x])
    theta = parameter_vector(program, [np.array([[2.0, 1.0], [0.0, 3.0]])])
    np.testing.assert_allclose(program.P.at(theta).toarray(), [[4, 1], [1, 6]])


def test_a_parameter_of_a_geometric_program_can_enter_twice():
    program = canonical(PROBLEMS["gp_parameter_as_factor_and_exponent"]())
    transforms = [[piece.transform for piece in slot.pieces] for slot in program.parameters]
    assert transforms == [["log", "identity"], ["log"]]


@pytest.mark.parametrize("stack", [(2,), (2, 3)])
def test_stacks_of_semidefinite_matrices(stack):
    rng = np.random.default_rng(0)
    target = rng.standard_normal((*stack, 2, 2))
    target = target + target.swapaxes(-1, -2)
    X, T = cp.Variable(target.shape), cp.Parameter(target.shape)
    rows = X >> 0
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), [rows])
    program = canonicalise(problem, [T], [X, rows.dual_variables[0]])
    x, z, _ = solve_program(program, parameter_vector(program, [target]))
    # The projection of a symmetric matrix leaves the negative part to the dual variable.
    primal, dual = (slot.value(x, z) for slot in program.variables)
    np.testing.assert_allclose(primal - dual, target, atol=1e-6)
    np.testing.assert_allclose(primal @ dual, 0, atol=1e-6)
    assert np.linalg.eigvalsh(primal).min() > -1e-6
    assert np.linalg.eigvalsh(dual).min() > -1e-6


def test_large_parameters_take_little_time_and_memory():
    x, A, b = cp.Variable(1000), cp.Parameter((100, 1000)), cp.Parameter(100)
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [A @ x == b, x >= 0])
    tracemalloc.start()
    start = time.perf_counter()
    program = canonicalise(problem, [A, b], [x])
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert program.A.indices.size == 101_000
    assert seconds < 5  # 0.1 on a quiet machine; other backends need 20
    assert peak < 100e6


# --- what is refused ------------------------------------------------------------------------------


def refusal(message, problem, parameters, variables, *, error=ValueError, gp=False):
    with pytest.raises(error, match=f"(?s)CvxpyLayer: expected.*{message}"):
        canonicalise(problem, parameters, variables, gp=gp)


@pytest.fixture
def simple():
    x, p = cp.Variable(2, name="x"), cp.Parameter(2, name="p")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - p))), p, x


def test_wrong_parameters_are_refused(simple):
    problem, p, x = simple
    refusal("missing: p", problem, [], [x])
    refusal("not in the problem: q", problem, [p, cp.Parameter(name="q")], [x])
    refusal("given twice: p", problem, [p, p], [x])
    refusal("got Variable", problem, [x], [x], error=TypeError)
    refusal("list or tuple", problem, p, [x], error=TypeError)


def test_wrong_variables_are_refused(simple):
    problem, p, x = simple
    refusal("y is neither", problem, [p], [cp.Variable(name="y")])
    refusal("got Parameter", problem, [p], [p], error=TypeError)
    refusal("got none", problem, [p], [])
    refusal("got Minimize", problem.objective, [p], [x], error=TypeError)


def test_a_problem_without_variables_is_refused():
    p = cp.Parameter(name="p")
    refusal("without", cp.Problem(cp.Minimize(p)), [p], [cp.Variable()])
    nothing = cp.Variable(0)
    refusal("constant", cp.Problem(cp.Minimize(p + cp.sum(nothing))), [p], [nothing])


@pytest.mark.parametrize("kind", ["boolean", "integer"])
def test_integers_are_refused(kind):
    x, p = cp.Variable(2, name="x", **{kind: True}), cp.Parameter(2)
    refusal("x is discrete", cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x])


def test_problems_that_are_not_convex_are_refused():
    x, p = cp.Variable(pos=True, name="x"), cp.Parameter(pos=True, name="p")
    refusal("minimize", cp.Problem(cp.Minimize(cp.sqrt(x) + p)), [p], [x])
    y = cp.Variable(pos=True)
    refusal("gp=True", cp.Problem(cp.Minimize(p / (x * y)), [x * y <= 1]), [p], [x])
    refusal("Without gp=True", cp.Problem(cp.Minimize(cp.abs(x - p))), [p], [x], gp=True)


def test_problems_that_are_not_parametrised_affinely_are_refused():
    x, p, q = cp.Variable(2, name="x"), cp.Parameter(nonneg=True, name="p"), cp.Parameter(name="q")
    refusal(r"p \* q", cp.Problem(cp.Minimize(cp.sum_squares(x) + p * q * x[0])), [p, q], [x])
    P = cp.Parameter((2, 2), PSD=True, name="P")
    refusal("not in constraints", cp.Problem(cp.Minimize(0), [cp.quad_form(x, P) <= 1]), [P], [x])
    refusal("QuadForm", cp.Problem(cp.Minimize(p * cp.quad_form(x, P))), [p, P], [x])


def test_parameters_as_exponents_of_cones_are_refused():
    x, alpha = cp.Variable(3, name="x"), cp.Parameter(name="alpha", value=0.4)
    cone = cp.PowCone3D(x[0], x[1], x[2], alpha)
    refusal("", cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [cone]), [alpha], [x])
    cone = cp.PowCone3D(x[0], x[1], x[2], alpha / 2)
    refusal("constant", cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [cone]), [], [x])


def test_complex_variables_whose_structure_cvxpy_forgets_are_refused():
    X = cp.Variable((2, 2), complex=True, diag=True)
    refusal("diag", cp.Problem(cp.Minimize(cp.sum_squares(X - 1j))), [], [X])


def test_duals_that_do_not_exist_are_refused():
    x, p = cp.Variable(2, complex=True), cp.Parameter(2)
    cone = cp.SOC(cp.Constant(1.0), x)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cone])
    refusal("SOC", problem, [p], [cone.dual_variables[0]])
