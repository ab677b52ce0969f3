"""What the README of cvxpylayers shows for torch runs here with another import and nothing else."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from optlayers import CvxpyLayer

STEP = 1e-5


def assert_finite_differences(loss, leaves):
    """Along a random direction of all leaves together."""
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in leaves]
    with torch.no_grad():
        ahead = loss(*(t + STEP * a for t, a in zip(leaves, along, strict=True)))
        behind = loss(*(t - STEP * a for t, a in zip(leaves, along, strict=True)))
    found = sum((t.grad * a).sum() for t, a in zip(leaves, along, strict=True))
    torch.testing.assert_close(found, (ahead - behind) / (2 * STEP), rtol=1e-6, atol=1e-6)


def solved_by_cvxpy(problem, values, variables, **more):
    for parameter, value in values.items():
        parameter.value = value.detach().numpy()
    problem.solve("CLARABEL", **more)
    return [np.asarray(variable.value) for variable in variables]


def norm1_problem(m=3, n=2):
    x = cp.Variable(n)
    A = cp.Parameter((m, n))
    b = cp.Parameter(m)
    constraints = [x >= 0]
    objective = cp.Minimize(0.5 * cp.pnorm(A @ x - b, p=1))
    problem = cp.Problem(objective, constraints)
    assert problem.is_dpp()
    return problem, A, b, x


def norm1_data(*batch):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(*batch, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    b = torch.randn(*batch, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    return A, b


def test_first_example():
    problem, A, b, x = norm1_problem()
    cvxpylayer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    A_tch, b_tch = norm1_data()

    # solve the problem
    (solution,) = cvxpylayer(A_tch, b_tch)

    # compute the gradient of the sum of the solution with respect to A, b
    solution.sum().backward()

    (wanted,) = solved_by_cvxpy(problem, {A: A_tch, b: b_tch}, [x])
    np.testing.assert_allclose(solution.detach(), wanted, atol=1e-6)
    assert A_tch.grad.any()
    assert_finite_differences(lambda A, b: cvxpylayer(A, b)[0].sum(), [A_tch, b_tch])


def test_first_example_in_batches():
    problem, A, b, x = norm1_problem()
    cvxpylayer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    A_tch, b_tch = norm1_data(4)
    (solution,) = cvxpylayer(A_tch, b_tch)
    assert solution.shape == (4, 2)
    (solution[:, 0] * torch.arange(1.0, 5.0)).sum().backward()
    for i in range(4):
        (wanted,) = solved_by_cvxpy(problem, {A: A_tch[i], b: b_tch[i]}, [x])
        np.testing.assert_allclose(solution[i].detach(), wanted, atol=1e-6)
    # b alone is batched
    (shared,) = cvxpylayer(A_tch[0], b_tch)
    torch.testing.assert_close(shared[0], solution[0])


def test_log_log_convex_example():
    x = cp.Variable(pos=True)
    y = cp.Variable(pos=True)
    z = cp.Variable(pos=True)

    a = cp.Parameter(pos=True, value=2.0)
    b = cp.Parameter(pos=True, value=1.0)
    c = cp.Parameter(value=0.5)

    objective_fn = 1 / (x * y * z)
    objective = cp.Minimize(objective_fn)
    constraints = [a * (x * y + x * z + y * z) <= b, x >= y**c]
    problem = cp.Problem(objective, constraints)
    assert problem.is_dgp(dpp=True)

    layer = CvxpyLayer(problem, parameters=[a, b, c], variables=[x, y, z], gp=True)
    a_tch = torch.tensor(a.value, dtype=torch.float64, requires_grad=True)
    b_tch = torch.tensor(b.value, dtype=torch.float64, requires_grad=True)
    c_tch = torch.tensor(c.value, dtype=torch.float64, requires_grad=True)

    x_star, y_star, z_star = layer(a_tch, b_tch, c_tch)
    sum_of_solution = x_star + y_star + z_star
    sum_of_solution.backward()

    wanted = solved_by_cvxpy(problem, {a: a_tch, b: b_tch, c: c_tch}, [x, y, z], gp=True)
    np.testing.assert_allclose([t.item() for t in (x_star, y_star, z_star)], wanted, atol=1e-5)
    assert_finite_differences(
        lambda a, b, c: torch.stack(layer(a, b, c)).sum(), [a_tch, b_tch, c_tch]
    )


def test_dual_variables_example():
    n = 2
    x = cp.Variable(n)
    A = cp.Parameter((1, n))
    b = cp.Parameter(1)
    c = cp.Parameter(n)
    eq_constraint = A @ x == b
    ineq_constraint = x >= 0
    problem = cp.Problem(
        cp.Minimize(c @ x + 0.5 * cp.sum_squares(x)), [eq_constraint, ineq_constraint]
    )
    layer = CvxpyLayer(
        problem,
        parameters=[c, A, b],
        variables=[x, eq_constraint.dual_variables[0], ineq_constraint.dual_variables[0]],
    )
    c_tch = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    A_tch = torch.tensor([[1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    b_tch = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    x_opt, eq_dual, ineq_dual = layer(c_tch, A_tch, b_tch)
    (x_opt[1] + 2 * eq_dual.sum() + 3 * ineq_dual[0]).backward()

    wanted = solved_by_cvxpy(problem, {c: c_tch, A: A_tch, b: b_tch}, [x])[0]
    np.testing.assert_allclose(x_opt.detach(), wanted, atol=1e-6)
    np.testing.assert_allclose(eq_dual.detach(), eq_constraint.dual_value, atol=1e-6)
    np.testing.assert_allclose(ineq_dual.detach(), ineq_constraint.dual_value, atol=1e-6)

    def loss(c, A, b):
        x, y, z = layer(c, A, b)
        return x[1] + 2 * y.sum() + 3 * z[0]

    assert_finite_differences(loss, [c_tch, A_tch, b_tch])


def test_solver_arguments_example():
    problem, A, b, x = norm1_problem()
    cvxpylayer = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    A_tch, b_tch = norm1_data()
    with pytest.warns(DeprecationWarning, match="solver_args"):
        (solution,) = cvxpylayer(A_tch, b_tch, solver_args={"max_iters": 10_000, "eps": 1e-9})
    torch.testing.assert_close(solution, cvxpylayer(A_tch, b_tch)[0])


def test_clarabel_is_asked_for_by_name():
    problem, A, b, x = norm1_problem()
    with pytest.warns(DeprecationWarning, match="Clarabel"):
        layer = CvxpyLayer(problem, parameters=[A, b], variables=[x], solver=cp.CLARABEL)
    values = norm1_data()
    other = CvxpyLayer(problem, parameters=[A, b], variables=[x])
    torch.testing.assert_close(layer(*values)[0], other(*values)[0])


def test_relu_example():
    """From the tutorials: the layer stands for torch's own function, and learns like it."""
    x, _x = cp.Parameter(4), cp.Variable(4)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(_x - x)), [_x >= 0])
    layer = CvxpyLayer(problem, [x], [_x])
    t = torch.tensor([[1.0, -2.0, 0.5, -0.1]] * 2, requires_grad=True)
    (found,) = layer(t)
    found.sum().backward()
    torch.testing.assert_close(found, t.relu())
    torch.testing.assert_close(t.grad, (t > 0).float())
