"""Programs with variables left out have the same solutions."""

import copy

import cvxpy as cp
import numpy as np
import pytest

from optlayers.cvxpy.canonical import canonicalise
from optlayers.cvxpy.elimination import eliminate
from tests.optlayers.cvxpy.problems import PROBLEMS
from tests.optlayers.cvxpy.reference import (
    canonical,
    parameter_vector,
    solve,
    solve_program,
)


@pytest.mark.parametrize("name", PROBLEMS)
def test_solution_stays_the_same(name):
    case = PROBLEMS[name]()
    program = canonical(case)
    reduced = copy.deepcopy(eliminate(program))
    theta = parameter_vector(program, case.values)
    P, q, d, A, b = reduced.evaluate(theta)
    x, z, value = solve(P, q, A, b, reduced.cones)
    x, z = reduced.expand(x, z, theta)
    expected_x, expected_z, expected_value = solve_program(program, theta)
    assert value + d == pytest.approx(expected_value, rel=1e-6, abs=1e-6)
    # Rounding differs, and solutions are known to the root of the tolerance where cones are round.
    for slot in program.variables:
        np.testing.assert_allclose(
            slot.value(x, z), slot.value(expected_x, expected_z), rtol=3e-5, atol=3e-5
        )


@pytest.mark.parametrize("name", PROBLEMS)
def test_expanded_solutions_are_stationary_in_what_was_left_out(name):
    """For any solution of the reduced program, to rounding."""
    case = PROBLEMS[name]()
    program = canonical(case)
    reduced = eliminate(program)
    theta = parameter_vector(program, case.values)
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal(reduced.kept.size), rng.standard_normal(reduced.rows_kept.size)
    P, q, _, A, b = reduced.evaluate(theta)
    gradient, residual = P @ x + q + A.T @ z, A @ x - b
    x, z = reduced.expand(x, z, theta)
    A, b = program.A.at(theta), program.b.at(theta)
    full = program.q.at(theta) + A.T @ z
    if program.P:
        full = full + program.P.at(theta) @ x
    np.testing.assert_allclose(full[reduced.kept], gradient, atol=1e-10)
    np.testing.assert_allclose(full[reduced.eliminated], 0, atol=1e-10)
    np.testing.assert_allclose((A @ x - b)[reduced.rows_kept], residual, atol=1e-10)
    np.testing.assert_allclose((A @ x - b)[reduced.rows_used], 0, atol=1e-10)


def reduce(objective, constraints, parameters, variables):
    problem = cp.Problem(cp.Minimize(objective), constraints)
    return eliminate(canonicalise(problem, parameters, variables))


def test_least_squares_becomes_dense():
    x, S, h = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    reduced = reduce(cp.sum_squares(S @ x - h), [x >= 0], [S, h], [x])
    assert reduced.kept.size == 3
    assert reduced.cones == (("nonneg", 3),)
    rng = np.random.default_rng(0)
    S0, h0 = rng.standard_normal((5, 3)), rng.standard_normal(5)
    P, q, d, _, _ = reduced.evaluate(np.concatenate([S0.ravel(order="F"), h0]))
    np.testing.assert_allclose(P.toarray(), 2 * S0.T @ S0)
    np.testing.assert_allclose(q, -2 * S0.T @ h0)
    assert d == pytest.approx(h0 @ h0)


def test_factors_are_kept():
    w, F = cp.Variable(50), cp.Parameter((50, 3))
    risk = cp.sum_squares(F.T @ w) + cp.sum_squares(w)
    assert reduce(risk, [cp.sum(w) == 1], [F], [w]).eliminated.size == 0


def test_groups_are_decided_one_by_one():
    w, x, F, S = cp.Variable(50), cp.Variable(3), cp.Parameter((2, 50)), cp.Parameter((6, 3))
    objective = cp.sum_squares(F @ w) + cp.sum_squares(w - 1) + cp.sum_squares(S @ x)
    reduced = reduce(objective, [x >= 1], [F, S], [w, x])
    # Those of w - 1 and F @ w share w, where the factors forbid it.
    assert reduced.eliminated.size == 6


def test_differences_stay_sparse():
    x, c = cp.Variable(100), cp.Parameter(100)
    reduced = reduce(cp.sum_squares(x - c) + cp.sum_squares(cp.diff(x)), [], [c], [x])
    assert reduced.kept.size == 100
    assert reduced.evaluate(np.zeros(100))[0].nnz == 298


def test_a_row_with_everything_is_not_worth_it():
    x, c = cp.Variable(200), cp.Parameter(201)
    S = np.vstack([np.eye(200), np.ones((1, 200))])
    assert reduce(cp.sum_squares(S @ x - c), [], [c], [x]).eliminated.size == 0


def test_the_users_variables_are_kept_if_there_is_a_choice():
    x, c = cp.Variable(4), cp.Parameter(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)))
    program = canonicalise(problem, [c], [x])
    np.testing.assert_array_equal(eliminate(program).kept, program.variables[0].index)


def test_coefficients_that_depend_on_parameters_are_not_divided_by():
    x, t, p, c = cp.Variable(2), cp.Variable(2), cp.Parameter(2), cp.Parameter(2)
    constraints = [cp.multiply(p, t) + x[::-1] == c, x >= 0]
    objective = cp.sum(cp.square(t)) + cp.sum(x)
    assert reduce(objective, constraints, [p, c], [x, t]).eliminated.size == 0


def test_something_is_always_left():
    x, p = cp.Variable(2), cp.Parameter(2)
    reduced = reduce(cp.sum(cp.square(x)), [x == p], [p], [x])
    assert reduced.kept.size > 0
