"""Small parametrised problems of every kind, with solutions that are unique and differentiable."""

from collections.abc import Callable
from typing import NamedTuple

import cvxpy as cp
import numpy as np


class Case(NamedTuple):
    problem: cp.Problem
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]  # dual variables of constraints among them
    values: list[np.ndarray]  # of the parameters, dense
    gp: bool = False


PROBLEMS: dict[str, Callable[[], Case]] = {}


def problem(build):
    PROBLEMS[build.__name__] = build
    return build


def random(seed=0):
    return np.random.default_rng(seed)


def spd(rng, n):
    root = rng.standard_normal((n, n))
    return root @ root.T / n + np.eye(n)


def duals(*constraints):
    return [dual for constraint in constraints for dual in constraint.dual_variables]


def quadratic(x, target):
    """A strongly convex term that makes solutions unique and depend on everything."""
    return 0.5 * cp.sum_squares(x - target)


# --- linear programs ------------------------------------------------------------------------------


@problem
def lp_inequality():
    rng = random()
    x, c, b = cp.Variable(3), cp.Parameter(3), cp.Parameter(4)
    G = np.vstack([-np.eye(3), np.ones((1, 3))])
    rows = G @ x <= b
    values = [-np.array([1.0, 2.0, 3.0]), np.append(rng.uniform(0.1, 0.3, 3), 1.0)]
    return Case(cp.Problem(cp.Minimize(c @ x), [rows]), [c, b], [x, *duals(rows)], values)


@problem
def lp_matrix_parameter_and_equality():
    x = cp.Variable(3, nonneg=True)
    A, b, c = cp.Parameter((2, 3)), cp.Parameter(2), cp.Parameter(3)
    rows = A @ x == b
    A0 = np.array([[1.0, 2.0, 0.5], [0.3, 1.0, 1.5]])
    values = [A0, A0 @ np.array([1.0, 0.7, 0.0]), np.array([1.0, 0.5, 2.0])]
    return Case(cp.Problem(cp.Minimize(c @ x), [rows]), [A, b, c], [x, *duals(rows)], values)


@problem
def lp_maximize_with_a_constant():
    x, c, u, d = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonneg=True), cp.Parameter()
    rows = [x <= u, x >= -1, cp.sum(x) <= 1.5]
    values = [np.array([1.0, 0.4]), np.array(1.2), np.array(0.7)]
    target = cp.Problem(cp.Maximize(c @ x + 3 * d + 2), rows)
    return Case(target, [c, u, d], [x, *duals(*rows)], values)


@problem
def lp_norm1_regression():
    rng = random(1)
    x, A, b = cp.Variable(2), cp.Parameter((5, 2)), cp.Parameter(5)
    values = [rng.standard_normal((5, 2)), rng.standard_normal(5)]
    return Case(cp.Problem(cp.Minimize(cp.norm1(A @ x - b))), [A, b], [x], values)


@problem
def lp_norm_inf_regression():
    rng = random(2)
    x, A, b = cp.Variable(2), cp.Parameter((5, 2)), cp.Parameter(5)
    values = [rng.standard_normal((5, 2)), rng.standard_normal(5)]
    return Case(cp.Problem(cp.Minimize(cp.norm_inf(A @ x - b))), [A, b], [x], values)


# --- quadratic programs ---------------------------------------------------------------------------


@problem
def qp_sum_squares():
    rng = random(3)
    x, S, h = cp.Variable(3), cp.Parameter((5, 3)), cp.Parameter(5)
    rows = [x >= 0, cp.sum(x) == 1]
    values = [rng.standard_normal((5, 3)), rng.standard_normal(5)]
    target = cp.Problem(cp.Minimize(cp.sum_squares(S @ x - h)), rows)
    return Case(target, [h, S], [x, *duals(*rows)], values[::-1])


@problem
def qp_sum_squares_wide():
    """Fewer auxiliaries than variables: one would not eliminate them."""
    rng = random(4)
    x, S, q = cp.Variable(6), cp.Parameter((2, 6)), cp.Parameter(6)
    objective = 0.5 * cp.sum_squares(S @ x) + q @ x + 0.5 * cp.sum_squares(x)
    rows = [x >= -0.2]
    values = [rng.standard_normal((2, 6)), rng.standard_normal(6)]
    return Case(cp.Problem(cp.Minimize(objective), rows), [S, q], [x, *duals(*rows)], values)


@problem
def qp_quad_form_constant():
    rng = random(5)
    x, q, A, b = cp.Variable(3), cp.Parameter(3), cp.Parameter((1, 3)), cp.Parameter(1)
    rows = [A @ x == b, x <= 0.5]
    values = [rng.standard_normal(3), rng.standard_normal((1, 3)), rng.standard_normal(1) / 4]
    objective = 0.5 * cp.quad_form(x, spd(rng, 3)) + q @ x
    return Case(cp.Problem(cp.Minimize(objective), rows), [q, A, b], [x, *duals(*rows)], values)


@problem
def qp_quad_form_parameter():
    rng = random(6)
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True), cp.Parameter(3)
    rows = [x >= -0.4, cp.sum(x) == 0.3]
    objective = 0.5 * cp.quad_form(x, P) + q @ x
    values = [spd(rng, 3), rng.standard_normal(3)]
    return Case(cp.Problem(cp.Minimize(objective), rows), [P, q], [x, *duals(*rows)], values)


@problem
def qp_quad_form_parameter_of_an_affine_argument():
    rng = random(107)
    x, P = cp.Variable(3), cp.Parameter((3, 3), PSD=True)
    shift = rng.standard_normal(3)
    rows = [x >= 0]
    target = cp.Problem(cp.Minimize(cp.quad_form(x - shift, P + 2 * np.eye(3))), rows)
    return Case(target, [P], [x, *duals(*rows)], [spd(rng, 3)])


@problem
def qp_quad_form_parameter_maximize():
    rng = random(53)
    x, N, q = cp.Variable(3), cp.Parameter((3, 3), NSD=True), cp.Parameter(3)
    rows = [cp.sum(x) == 1, x <= 0.6]
    values = [-spd(rng, 3), rng.standard_normal(3)]
    target = cp.Problem(cp.Maximize(cp.quad_form(x, N) + q @ x), rows)
    return Case(target, [q, N], [x, *duals(*rows)], values[::-1])


@problem
def qp_factor_model():
    rng = random(54)
    w, mu, F = cp.Variable(6), cp.Parameter(6), cp.Parameter((6, 2))
    variances = rng.uniform(0.2, 1, 6)
    risk = cp.sum_squares(F.T @ w) + cp.sum(cp.multiply(variances, cp.square(w)))
    rows = [cp.sum(w) == 1, w >= 0]
    values = [rng.standard_normal(6), rng.standard_normal((6, 2))]
    return Case(cp.Problem(cp.Maximize(mu @ w - risk), rows), [mu, F], [w, *duals(*rows)], values)


@problem
def qp_user_variable_defined_by_an_equality():
    rng = random(55)
    x, y, S = cp.Variable(2), cp.Variable(4), cp.Parameter((4, 2))
    rows = [y == S @ x - 1, x >= 0]
    target = cp.Problem(cp.Minimize(cp.sum(cp.square(y)) + cp.sum(x)), rows)
    return Case(target, [S], [y, x, *duals(*rows)], [rng.standard_normal((4, 2))])


@problem
def qp_weighted_squares():
    rng = random(8)
    x, w, c = cp.Variable(4), cp.Parameter(4, nonneg=True), cp.Parameter(4)
    objective = cp.sum(cp.multiply(w, cp.square(x))) - c @ x
    values = [rng.uniform(0.5, 2, 4), rng.standard_normal(4)]
    return Case(cp.Problem(cp.Minimize(objective), [cp.sum(x) <= 0.1]), [w, c], [x], values)


@problem
def qp_without_constraints():
    rng = random(9)
    x, q = cp.Variable(3), cp.Parameter(3)
    objective = 0.5 * cp.quad_form(x, spd(rng, 3)) + q @ x + 1.5
    return Case(cp.Problem(cp.Minimize(objective)), [q], [x], [rng.standard_normal(3)])


@problem
def qp_without_parameters():
    x = cp.Variable(2)
    rows = [x >= 0.5, cp.sum(x) == 2]
    target = cp.Problem(cp.Minimize(cp.sum_squares(x - np.array([3.0, 1.0]))), rows)
    return Case(target, [], [x, *duals(*rows)], [])


@problem
def qp_maximize():
    rng = random(10)
    x, mu, gamma = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    objective = mu @ x - gamma * cp.quad_form(x, spd(rng, 4))
    rows = [cp.sum(x) == 1, x >= 0]
    values = [rng.standard_normal(4), np.array(0.7)]
    return Case(cp.Problem(cp.Maximize(objective), rows), [mu, gamma], [x, *duals(*rows)], values)


@problem
def qp_matrix_variable():
    rng = random(11)
    X, T = cp.Variable((2, 3)), cp.Parameter((2, 3))
    rows = [cp.sum(X, axis=1) == np.array([1.0, 2.0]), X >= 0.1]
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), rows)
    return Case(target, [T], [X, *duals(*rows)], [rng.standard_normal((2, 3))])


@problem
def qp_three_dimensional():
    rng = random(112)
    X, T = cp.Variable((2, 3, 2)), cp.Parameter((2, 3, 2))
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), [X >= 0])
    return Case(target, [T], [X], [rng.standard_normal((2, 3, 2))])


@problem
def qp_scalar():
    x, a, b = cp.Variable(), cp.Parameter(), cp.Parameter(pos=True)
    rows = [x >= b, x <= 5]
    target = cp.Problem(cp.Minimize(cp.square(x - a) + x), rows)
    return Case(target, [a, b], [x, *duals(*rows)], [np.array(0.3), np.array(0.9)])


@problem
def qp_huber():
    rng = random(13)
    x, A, b = cp.Variable(2), cp.Parameter((6, 2)), cp.Parameter(6)
    objective = cp.sum(cp.huber(A @ x - b, 0.5)) + cp.sum_squares(x)
    values = [rng.standard_normal((6, 2)), 2 * rng.standard_normal(6)]
    return Case(cp.Problem(cp.Minimize(objective)), [A, b], [x], values)


@problem
def qp_lasso():
    rng = random(14)
    x, A, b = cp.Variable(3), rng.standard_normal((6, 3)), cp.Parameter(6)
    gamma = cp.Parameter(nonneg=True)
    objective = 0.5 * cp.sum_squares(A @ x - b) + gamma * cp.norm1(x)
    values = [rng.standard_normal(6), np.array(0.8)]
    return Case(cp.Problem(cp.Minimize(objective)), [b, gamma], [x], values)


@problem
def qp_max_and_abs():
    rng = random(15)
    x, c = cp.Variable(3), cp.Parameter(3)
    objective = quadratic(x, c) + 0.4 * cp.max(x) + 0.2 * cp.sum(cp.abs(x - 0.1))
    return Case(cp.Problem(cp.Minimize(objective)), [c], [x], [2 * rng.standard_normal(3)])


@problem
def qp_bounds_with_parameters():
    rng = random(16)
    u = cp.Parameter(3)
    x, c = cp.Variable(3, bounds=[-1, u]), cp.Parameter(3)
    values = [np.array([0.2, 0.3, 0.4]), 2 * rng.standard_normal(3)]
    return Case(cp.Problem(cp.Minimize(quadratic(x, c))), [u, c], [x], values)


# --- kinds of variables and parameters ------------------------------------------------------------


@problem
def parameter_sparse():
    rng = random(17)
    # Not sorted on purpose: cvxpy sorts them.
    pattern = [(2, 0, 1, 0), (1, 0, 2, 2)]
    x, A, c = cp.Variable(3), cp.Parameter((3, 3), sparsity=pattern), cp.Parameter(3)
    value = np.zeros((3, 3))
    value[pattern[0], pattern[1]] = rng.uniform(0.5, 1.5, 4)
    target = cp.Problem(cp.Minimize(quadratic(x, c)), [A @ x <= 0.3])
    return Case(target, [A, c], [x], [value, rng.standard_normal(3) + 1])


@problem
def parameter_diagonal():
    rng = random(18)
    x, D, c = cp.Variable(3), cp.Parameter((3, 3), diag=True), cp.Parameter(3)
    target = cp.Problem(cp.Minimize(quadratic(x, c)), [D @ x <= 0.3])
    return Case(target, [c, D], [x], [rng.standard_normal(3) + 1, np.diag([1.0, 2.0, 3.0])])


@problem
def parameter_symmetric():
    rng = random(19)
    x, S, c = cp.Variable(3), cp.Parameter((3, 3), symmetric=True), cp.Parameter(3)
    value = rng.standard_normal((3, 3))
    target = cp.Problem(cp.Minimize(quadratic(x, c)), [S @ x <= 0.3])
    return Case(target, [S, c], [x], [value + value.T, rng.standard_normal(3) + 1])


@problem
def parameter_matrix_on_the_right():
    rng = random(20)
    X, B = cp.Variable((2, 3)), cp.Parameter((3, 2))
    rows = [cp.Zero(X @ B - np.eye(2))]
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X)), rows)
    return Case(target, [B], [X, *duals(*rows)], [rng.standard_normal((3, 2))])


@problem
def parameter_in_a_convex_function():
    rng = random(21)
    x, p = cp.Variable(2), cp.Parameter(2)
    rows = [x >= cp.exp(p)]
    target = cp.Problem(cp.Minimize(cp.sum_squares(x + 1)), rows)
    return Case(target, [p], [x, *duals(*rows)], [rng.standard_normal(2) / 2])


@problem
def variable_symmetric():
    rng = random(22)
    X, T = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3))
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), [cp.trace(X) == 1])
    return Case(target, [T], [X], [rng.standard_normal((3, 3))])


@problem
def variable_diagonal():
    rng = random(23)
    X, T = cp.Variable((3, 3), diag=True), cp.Parameter((3, 3))
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), [cp.trace(X) == 1])
    return Case(target, [T], [X], [rng.standard_normal((3, 3))])


@problem
def variable_sparse():
    rng = random(24)
    X = cp.Variable((3, 3), sparsity=[(2, 0, 1, 0), (1, 0, 2, 2)])
    T = cp.Parameter((3, 3))
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), [cp.sum(X) == 1])
    return Case(target, [T], [X], [rng.standard_normal((3, 3))])


@problem
def variable_nonpos():
    rng = random(125)
    x, c = cp.Variable(4, nonpos=True), cp.Parameter(4)
    return Case(cp.Problem(cp.Minimize(quadratic(x, c))), [c], [x], [rng.standard_normal(4)])


# --- second-order cones ---------------------------------------------------------------------------


@problem
def socp_norm2():
    rng = random(26)
    x, A, b = cp.Variable(2), cp.Parameter((4, 2)), cp.Parameter(4)
    values = [rng.standard_normal((4, 2)), rng.standard_normal(4)]
    target = cp.Problem(cp.Minimize(cp.norm2(A @ x - b) + 0.1 * cp.sum(x)))
    return Case(target, [A, b], [x], values)


@problem
def socp_norm_constraint():
    rng = random(27)
    x, c, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
    rows = [cp.norm(x) <= r, cp.sum(x) == 0.5]
    values = [rng.standard_normal(3), np.array(1.3)]
    return Case(cp.Problem(cp.Minimize(c @ x), rows), [c, r], [x, *duals(*rows)], values)


@problem
def socp_cone_by_columns():
    rng = random(28)
    X, T, t = cp.Variable((3, 2)), cp.Parameter((3, 2)), cp.Parameter(2)
    rows = cp.SOC(t, X)
    values = [2 * rng.standard_normal((3, 2)) + 1, np.array([0.5, 0.8])]
    return Case(cp.Problem(cp.Minimize(quadratic(X, T)), [rows]), [T, t], [X, *duals(rows)], values)


@problem
def socp_cone_by_rows():
    rng = random(29)
    X, T, t = cp.Variable((2, 3)), cp.Parameter((2, 3)), cp.Parameter(2)
    rows = cp.SOC(t, X, axis=1)
    values = [2 * rng.standard_normal((2, 3)) + 1, np.array([0.5, 0.8])]
    return Case(cp.Problem(cp.Minimize(quadratic(X, T)), [rows]), [T, t], [X, *duals(rows)], values)


@problem
def socp_single_cone():
    rng = random(30)
    x, c, t = cp.Variable(3), cp.Parameter(3), cp.Variable()
    rows = cp.SOC(t, x - 1)
    values = [rng.standard_normal(3) / 2]
    target = cp.Problem(cp.Minimize(t + c @ x + 0.5 * cp.sum_squares(x)), [rows])
    return Case(target, [c], [x, t, *duals(rows)], values)


@problem
def socp_geo_mean():
    x, c = cp.Variable(3), cp.Parameter(3, pos=True)
    rows = [c @ x <= 1]
    target = cp.Problem(cp.Maximize(cp.geo_mean(x)), rows)
    return Case(target, [c], [x, *duals(*rows)], [np.array([1.0, 0.5, 2.0])])


@problem
def socp_pnorm():
    rng = random(31)
    x, c = cp.Variable(3), cp.Parameter(3)
    target = cp.Problem(cp.Minimize(quadratic(x, c) + cp.pnorm(x, 3)))
    return Case(target, [c], [x], [2 * rng.standard_normal(3)])


@problem
def socp_quad_over_lin():
    rng = random(32)
    x, y, c = cp.Variable(2), cp.Variable(), cp.Parameter(2)
    target = cp.Problem(cp.Minimize(cp.quad_over_lin(x - c, y) + y + cp.sum_squares(x)))
    return Case(target, [c], [x, y], [rng.standard_normal(2)])


@problem
def socp_power():
    rng = random(33)
    x, c = cp.Variable(2), cp.Parameter(2)
    target = cp.Problem(cp.Minimize(cp.sum(cp.power(x, 3)) - c @ x + cp.sum(cp.inv_pos(x))))
    return Case(target, [c], [x], [rng.standard_normal(2) + 1])


# --- exponential and power cones ------------------------------------------------------------------


@problem
def exp_log():
    x, c = cp.Variable(3), cp.Parameter(3, pos=True)
    rows = [cp.sum(x) == 1]
    target = cp.Problem(cp.Maximize(c @ cp.log(x)), rows)
    return Case(target, [c], [x, *duals(*rows)], [np.array([1.0, 2.0, 0.5])])


@problem
def exp_entropy():
    rng = random(34)
    x, c = cp.Variable(3), cp.Parameter(3)
    rows = [cp.sum(x) == 1]
    target = cp.Problem(cp.Minimize(c @ x - cp.sum(cp.entr(x))), rows)
    return Case(target, [c], [x, *duals(*rows)], [rng.standard_normal(3)])


@problem
def exp_logistic_regression():
    rng = random(35)
    w, X, gamma = cp.Variable(2), cp.Parameter((6, 2)), cp.Parameter(nonneg=True)
    objective = cp.sum(cp.logistic(X @ w)) + gamma * cp.sum_squares(w)
    values = [rng.standard_normal((6, 2)), np.array(0.3)]
    return Case(cp.Problem(cp.Minimize(objective)), [X, gamma], [w], values)


@problem
def exp_log_sum_exp():
    rng = random(36)
    x, A, b = cp.Variable(2), cp.Parameter((4, 2)), cp.Parameter(4)
    objective = cp.log_sum_exp(A @ x + b) + 0.5 * cp.sum_squares(x)
    values = [rng.standard_normal((4, 2)), rng.standard_normal(4)]
    return Case(cp.Problem(cp.Minimize(objective)), [A, b], [x], values)


@problem
def exp_kl_div():
    rng = random(37)
    x, p, A = cp.Variable(4), cp.Parameter(4, pos=True), rng.standard_normal((2, 4))
    start = rng.uniform(0.5, 1.5, 4)
    rows = [A @ x == A @ start]
    target = cp.Problem(cp.Minimize(cp.sum(cp.kl_div(x, p))), rows)
    return Case(target, [p], [x, *duals(*rows)], [rng.uniform(0.5, 1.5, 4)])


@problem
def exp_cone():
    rng = random(38)
    (x, y, z), c = (cp.Variable((2, 2)) for _ in range(3)), cp.Parameter((2, 2))
    rows = cp.constraints.ExpCone(x, y, z)
    objective = quadratic(x, c) + quadratic(y, 1) + quadratic(z, 0.5)
    values = [rng.standard_normal((2, 2)) + 1]
    return Case(cp.Problem(cp.Minimize(objective), [rows]), [c], [x, y, z, *duals(rows)], values)


@problem
def power_cone_3d():
    rng = random(39)
    x, y, z, c = cp.Variable(2), cp.Variable(2), cp.Variable(2), cp.Parameter(2)
    rows = cp.PowCone3D(x, y, z, np.array([0.3, 0.6]))
    objective = quadratic(x, 0.5) + quadratic(y, 0.2) + quadratic(z, c)
    values = [rng.uniform(1, 2, 2)]
    return Case(cp.Problem(cp.Minimize(objective), [rows]), [c], [x, y, z, *duals(rows)], values)


@problem
def power_cone_nd():
    rng = random(40)
    W, z, c = cp.Variable((3, 2)), cp.Variable(2), cp.Parameter(2)
    rows = cp.PowConeND(W, z, np.array([[0.2, 0.5], [0.3, 0.25], [0.5, 0.25]]))
    objective = quadratic(W, 0.4) + quadratic(z, c)
    values = [rng.uniform(1, 2, 2)]
    return Case(cp.Problem(cp.Minimize(objective), [rows]), [c], [W, z, *duals(rows)], values)


@problem
def power_cone_nd_by_rows():
    rng = random(41)
    W, z, c = cp.Variable((2, 3)), cp.Variable(2), cp.Parameter(2)
    rows = cp.PowConeND(W, z, np.array([[0.2, 0.3, 0.5], [0.5, 0.25, 0.25]]), axis=1)
    objective = quadratic(W, 0.4) + quadratic(z, c)
    values = [rng.uniform(1, 2, 2)]
    return Case(cp.Problem(cp.Minimize(objective), [rows]), [c], [W, z, *duals(rows)], values)


@problem
def power_cone_nd_single():
    W, z, c = cp.Variable(3), cp.Variable(), cp.Parameter()
    rows = cp.PowConeND(W, z, np.array([0.2, 0.3, 0.5]))
    objective = quadratic(W, 0.4) + quadratic(z, c)
    return Case(
        cp.Problem(cp.Minimize(objective), [rows]), [c], [W, z, *duals(rows)], [np.array(1.4)]
    )


# --- semidefinite programs ------------------------------------------------------------------------


@problem
def sdp_projection():
    rng = random(42)
    X, T = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True)
    rows = [X >> 0, cp.trace(X) == 1]
    value = rng.standard_normal((3, 3))
    target = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - T)), rows)
    return Case(target, [T], [X, *duals(*rows)], [value + value.T])


@problem
def sdp_trace():
    rng = random(43)
    X, C, b = cp.Variable((3, 3), PSD=True), cp.Parameter((3, 3), symmetric=True), cp.Parameter()
    rows = [cp.trace(X) == b, X[0, 1] == 0.1]
    value = rng.standard_normal((3, 3))
    target = cp.Problem(cp.Minimize(cp.trace(C @ X)), rows)
    return Case(target, [C, b], [X, *duals(*rows)], [value + value.T, np.array(1.0)])


@problem
def sdp_lambda_max():
    rng = random(44)
    x, A = cp.Variable(2), cp.Parameter((3, 3), symmetric=True)
    value = rng.standard_normal((3, 3))
    B = [np.diag([1.0, -1.0, 0.5]), np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0.0]])]
    objective = cp.lambda_max(A + x[0] * B[0] + x[1] * B[1]) + 0.5 * cp.sum_squares(x)
    return Case(cp.Problem(cp.Minimize(objective)), [A], [x], [value + value.T])


@problem
def sdp_nuclear_norm():
    rng = random(45)
    X, T = cp.Variable((2, 3)), cp.Parameter((2, 3))
    target = cp.Problem(cp.Minimize(quadratic(X, T) + 0.3 * cp.normNuc(X)))
    return Case(target, [T], [X], [rng.standard_normal((2, 3))])


@problem
def sdp_log_det():
    rng = random(46)
    X, S = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2), symmetric=True)
    target = cp.Problem(cp.Maximize(cp.log_det(X) - cp.trace(S @ X)))
    return Case(target, [S], [X], [spd(rng, 2)])


@problem
def sdp_negative_constraint():
    rng = random(47)
    X, T = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2))
    rows = X << 0.2 * np.eye(2)
    target = cp.Problem(cp.Minimize(quadratic(X, T)), [rows])
    return Case(target, [T], [X, *duals(rows)], [rng.standard_normal((2, 2)) + np.eye(2)])


# --- geometric programs ---------------------------------------------------------------------------


@problem
def gp_box():
    """The largest box; the exponent is a parameter, too."""
    h, w, d = (cp.Variable(pos=True, name=name) for name in "hwd")
    wall, floor, ratio = (cp.Parameter(pos=True) for _ in range(3))
    exponent = cp.Parameter()
    rows = [
        2 * (h * w + h * d) <= wall,
        w * d <= floor,
        h / w <= ratio,
        w / d <= 1.3,
        d / w <= 2,
    ]
    values = [np.array(value) for value in (100.0, 10.0, 0.8, 1.1)]
    target = cp.Problem(cp.Maximize(h * w * d**exponent), rows)
    return Case(target, [wall, floor, ratio, exponent], [h, w, d], values, gp=True)


@problem
def gp_parameter_as_factor_and_exponent():
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a = cp.Parameter(pos=True)
    b = cp.Parameter(pos=True)
    rows = [b / (x * y**a) <= 1]
    target = cp.Problem(cp.Minimize(a * x + y + b * x * y), rows)
    return Case(target, [a, b], [x, y, *duals(*rows)], [np.array(1.3), np.array(0.7)], gp=True)


@problem
def gp_vector():
    x, c = cp.Variable(3, pos=True), cp.Parameter(3, pos=True)
    rows = [cp.prod(x) >= 2.0]
    target = cp.Problem(cp.Minimize(cp.sum(cp.multiply(c, x))), rows)
    return Case(target, [c], [x], [np.array([0.5, 1.0, 2.0])], gp=True)


# --- complex problems -----------------------------------------------------------------------------


@problem
def complex_least_squares():
    rng = random(48)
    z, A, b = cp.Variable(2, complex=True), cp.Parameter((3, 2), complex=True), cp.Parameter(3)
    objective = cp.sum_squares(A @ z - b) + 0.1 * cp.sum_squares(z)
    values = [rng.standard_normal((3, 2)) + 1j * rng.standard_normal((3, 2))]
    return Case(cp.Problem(cp.Minimize(objective)), [A, b], [z], [*values, rng.standard_normal(3)])


@problem
def complex_equality():
    rng = random(49)
    z, b = cp.Variable(3, complex=True), cp.Parameter(2, complex=True)
    A = rng.standard_normal((2, 3)) + 1j * rng.standard_normal((2, 3))
    rows = [A @ z == b]
    values = [rng.standard_normal(2) + 1j * rng.standard_normal(2)]
    target = cp.Problem(cp.Minimize(cp.sum_squares(z)), rows)
    return Case(target, [b], [z, *duals(*rows)], values)


@problem
def complex_hermitian():
    rng = random(50)
    X, T = cp.Variable((3, 3), hermitian=True), cp.Parameter((3, 3), hermitian=True)
    rows = [X >> 0, cp.real(cp.trace(X)) == 1]
    value = rng.standard_normal((3, 3)) + 1j * rng.standard_normal((3, 3))
    target = cp.Problem(cp.Minimize(cp.sum_squares(X - T)), rows)
    return Case(target, [T], [X, *duals(*rows)], [value + value.conj().T])


@problem
def complex_imaginary():
    rng = random(51)
    z, p = cp.Variable(2, imag=True), cp.Parameter(2, imag=True)
    rows = [cp.sum(z) == 0.5j]
    target = cp.Problem(cp.Minimize(cp.sum_squares(cp.imag(z - p))), rows)
    return Case(target, [p], [z, *duals(*rows)], [1j * rng.standard_normal(2)])


@problem
def complex_abs():
    rng = random(52)
    z, c = cp.Variable(2, complex=True), cp.Parameter(2, complex=True)
    rows = [cp.abs(z) <= 0.8]
    target = cp.Problem(cp.Minimize(cp.sum_squares(z - c)), rows)
    # Both bounds are active: the auxiliary of one that is not could be anything in between.
    values = [np.exp(1j * rng.standard_normal(2)) * np.array([1.2, 2.0])]
    return Case(target, [c], [z, *duals(*rows)], values)
