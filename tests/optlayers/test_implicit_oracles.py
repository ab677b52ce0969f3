"""Derivatives of implicit functions against closed forms, finite differences and autograd."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import optlayers as ol
from optlayers.solvers.fixed_point import Picard
from optlayers.solvers.minimize import SQP, GradientDescent
from optlayers.solvers.projection import project_nonnegative, project_simplex

DTYPE = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=DTYPE)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DTYPE)


def close(got, want, tol=1e-9):
    torch.testing.assert_close(got, want, rtol=tol, atol=tol)


# --- roots ----------------------------------------------------------------------------------------


def test_the_circle():
    y = tensor(-0.6, 0.0, 0.3, 0.8)

    def x(y):
        return ol.root(lambda x, y: x**2 + y**2 - 1, torch.ones_like(y), y, batch_ndim=1).x

    close(x(y), (1 - y**2).sqrt())
    close(torch.func.jacrev(x)(y), torch.diag(-y / (1 - y**2).sqrt()))


def test_the_quintic():
    level = torch.linspace(-3, 3, 7, dtype=DTYPE).requires_grad_()
    w = ol.root(
        lambda w, c: w**5 + w**3 + w - c, torch.zeros(7, dtype=DTYPE), level, batch_ndim=1
    ).x
    (slope,) = torch.autograd.grad(w.sum(), level, create_graph=True)
    dp = 5 * w**4 + 3 * w**2 + 1
    close(slope, 1 / dp)
    (curvature,) = torch.autograd.grad(slope.sum(), level)
    close(curvature, -(20 * w**3 + 6 * w) / dp**3)


def test_a_network_is_the_root_of_its_own_equations():
    """Reverse mode is back-substitution in the linear system of the implicit function theorem."""
    sizes = (3, 5, 4, 2)
    weights = [draw(b, a, seed=b) for a, b in pairwise(sizes)]
    u = draw(3)

    def layers(states, u, *weights):
        inputs = [u, *states[:-1]]
        return [s - torch.tanh(W @ v) for s, W, v in zip(states, weights, inputs, strict=True)]

    def by_root(u, *weights):
        start = [torch.zeros(n, dtype=DTYPE) for n in sizes[1:]]
        return ol.root(layers, start, u, *weights).x[-1]

    def directly(u, *weights):
        for W in weights:
            u = torch.tanh(W @ u)
        return u

    arguments = (u, *weights)
    everything = tuple(range(len(arguments)))
    got = torch.func.jacrev(by_root, everything)(*arguments)
    want = torch.func.jacrev(directly, everything)(*arguments)
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-12)


def test_a_double_root_is_flagged():
    """The Jacobian vanishes there: there is no derivative, and a number would be wrong."""
    level = tensor(0.5)

    def w(level, **policy):
        return ol.root(
            lambda w, c: (w - c) ** 2, torch.zeros(1, dtype=DTYPE), level, batch_ndim=1, **policy
        ).x

    level.requires_grad_()
    with pytest.raises(ol.SolverError, match="singular"):
        w(level).sum().backward()
    with pytest.warns(ol.SolverWarning, match="left out of the gradient"):
        (g,) = torch.autograd.grad(w(level, on_failure="warn").sum(), level)
    assert torch.equal(g, torch.zeros(1, dtype=DTYPE))


def test_a_singular_sample_does_not_disturb_its_mates():
    power = tensor(1.0, 2.0, 1.0)
    level = tensor(0.5, 0.5, 0.7).requires_grad_()

    def F(w, level, power):
        return torch.where(power == 2, (w - level) ** 2, w - level)

    # The double one is left beside its root, where its Jacobian is small but not zero.
    w = ol.root(F, torch.ones(3, dtype=DTYPE), level, power, batch_ndim=1, on_failure="ignore").x
    (g,) = torch.autograd.grad(w.sum(), level)
    close(g[[0, 2]], tensor(1.0, 1.0))
    assert g[1] == 0


def test_gradients_at_a_loose_solution_do_not_depend_on_the_company():
    """Those of parameters are taken a Newton step on, but not where a mate failed."""
    seen = []

    def F(x, theta):
        seen.append(x.detach())
        singular = torch.arange(len(x))[:, None] == 1
        return torch.where(singular, (x - theta[1]) ** 3, x**3 * theta[0] - 1)

    def gradient(samples):
        theta = torch.tensor([1.3, 0.7], dtype=torch.float64, requires_grad=True)
        start = torch.tensor([[1.2], [1.5]], dtype=torch.float64)[:samples]
        loose = ol.solvers.Newton(eps_abs=1e-3, eps_rel=0.0)
        x = ol.root(F, start, theta, batch_ndim=1, solver=loose, on_failure="ignore").x
        x.sum().backward()
        return theta.grad[0]

    alone = gradient(1)
    assert torch.equal(gradient(2), alone)
    assert max(float(x.abs().max()) for x in seen) < 10
    theta = torch.tensor(1.3, dtype=torch.float64)
    torch.testing.assert_close(alone, -(theta ** (-4 / 3)) / 3, rtol=1e-5, atol=0)


# --- minima ---------------------------------------------------------------------------------------


def ridge(seed=0):
    X, y = draw(20, 4, seed=seed), draw(20, seed=seed + 1)
    penalty = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=DTYPE) + 0.5

    def loss(w, X, y, penalty):
        return 0.5 * (X @ w - y).square().sum() + 0.5 * (penalty * w.square()).sum()

    return loss, (X, y, penalty)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ridge_regression_in_closed_form(dtype):
    loss, data = ridge()
    data = [t.to(dtype) for t in data]

    def w(*data):
        return ol.minimize(loss, torch.zeros(4, dtype=dtype), *data).x

    def closed_form(X, y, penalty):
        return torch.linalg.inv(X.mT @ X + torch.diag(penalty)) @ (X.mT @ y)

    got = torch.func.jacrev(w, (0, 1, 2))(*data)
    want = torch.func.jacrev(closed_form, (0, 1, 2))(*[t.double() for t in data])
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        error = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)
        assert error <= (1e-8 if dtype == torch.float64 else 1e-5)


def test_logistic_regression_against_finite_differences():
    X, labels = draw(30, 3), torch.sign(draw(30, seed=5))
    penalty = tensor(0.1, 0.5, 2.0)

    def loss(w, penalty):
        margins = labels * (X @ w)
        return nn.functional.softplus(-margins).sum() + 0.5 * (penalty * w.square()).sum()

    def w(penalty):
        return ol.minimize(loss, torch.zeros(3, dtype=DTYPE), penalty).x

    step = 1e-6
    columns = [(w(penalty + e) - w(penalty - e)) / (2 * step) for e in step * torch.eye(3)]
    close(torch.func.jacrev(w)(penalty), torch.stack(columns, -1), 1e-7)


@pytest.mark.parametrize("step", [1e-3, 0.05, 0.3, 1.0, 10.0])
def test_any_step_size_of_a_projected_gradient_gives_the_same_jacobian(step):
    loss, (X, y, penalty) = ridge()
    y = 3 * y

    def on_set(penalty):
        return ol.minimize(
            lambda w, p: loss(w, X, y, p),
            torch.full((4,), 0.25, dtype=DTYPE),
            penalty,
            projection=lambda w, p: project_simplex(w),
        ).x

    def conditions(w, penalty):
        g = torch.func.grad(loss)(w, X, y, penalty)
        return w - project_simplex(w - step * g)

    solution = on_set(penalty)
    assert (solution == 0).any()  # the set matters
    by_step = ol.implicit_function(lambda p: on_set(p), conditions)
    close(torch.func.jacrev(lambda p: by_step(p).x)(penalty), torch.func.jacrev(on_set)(penalty))


def test_the_lasso_on_its_active_set():
    X, y = draw(20, 6), draw(20, seed=3)
    y = X[:, :2] @ tensor(2.0, -1.5) + 0.1 * y
    penalty = tensor(3.0)

    def w(penalty):
        return ol.minimize(
            lambda w, p: 0.5 * (X @ w - y).square().sum(),
            torch.zeros(6, dtype=DTYPE),
            penalty,
            proximal=lambda w, s, p: torch.sign(w) * torch.relu(w.abs() - s * p),
        ).x

    x = w(penalty)
    active = x != 0
    assert 0 < active.sum() < 6
    Xa = X[:, active]
    slope = torch.zeros(6, 1, dtype=DTYPE)
    slope[active, 0] = -torch.linalg.solve(Xa.mT @ Xa, torch.sign(x[active]))
    close(torch.func.jacrev(w)(penalty), slope)


def test_bounds_and_projection_say_the_same():
    loss, (X, y, penalty) = ridge()
    lb, ub = tensor(-0.1, -0.2, 0.0, -1.0), tensor(0.1, 0.05, 0.3, 1.0)

    def by_bounds(y, lb, ub):
        s = ol.minimize(
            lambda w, y: loss(w, X, y, penalty), torch.zeros(4, dtype=DTYPE), y, bounds=(lb, ub)
        )
        return s.x, s.objective

    def by_projection(y, lb, ub):
        s = ol.minimize(
            lambda w, y, lb, ub: loss(w, X, y, penalty),
            torch.zeros(4, dtype=DTYPE),
            y,
            lb,
            ub,
            projection=lambda w, y, lb, ub: torch.minimum(torch.maximum(w, lb), ub),
        )
        return s.x, s.objective

    def by_multipliers(y, lb, ub):
        s = ol.minimize(
            lambda w, y: loss(w, X, y, penalty),
            torch.zeros(4, dtype=DTYPE),
            y,
            inequalities=lambda w, y: w[:1] - 100.0,  # never active
            bounds=(lb, ub),
        )
        return s.x, s.objective

    def by_qp(y, lb, ub):
        s = ol.qp(X.mT @ X + torch.diag(penalty), -X.mT @ y, lb=lb, ub=ub)
        return s.x, s.objective + 0.5 * y @ y

    want = torch.func.jacrev(by_qp, (0, 1, 2))(y, lb, ub)
    for way in (by_bounds, by_projection, by_multipliers):
        for a, b in zip(way(y, lb, ub), by_qp(y, lb, ub), strict=True):
            close(a, b, 1e-8)
        got = torch.func.jacrev(way, (0, 1, 2))(y, lb, ub)
        for (x_a, v_a), (x_b, v_b) in zip(
            zip(*got, strict=True), zip(*want, strict=True), strict=True
        ):
            close(x_a, x_b, 1e-7)
            close(v_a, v_b, 1e-7)


def test_constraints_and_multipliers_against_a_quadratic_program():
    P, q = torch.eye(3, dtype=DTYPE) + 0.2, tensor(1.0, -2.0, 0.5)
    G, h, A, b = draw(2, 3), tensor(-1.5, 3.0), torch.ones(1, 3, dtype=DTYPE), tensor(0.7)
    data = (q, G, h, A, b)

    def general(q, G, h, A, b):
        s = ol.minimize(
            lambda x, q, *rest: 0.5 * x @ P @ x + q @ x,
            torch.zeros(3, dtype=DTYPE),
            q, G, h, A, b,
            equalities=lambda x, q, G, h, A, b: A @ x - b,
            inequalities=lambda x, q, G, h, A, b: G @ x - h,
        )  # fmt: skip
        return s.x, s.y, s.z, s.objective

    def quadratic(q, G, h, A, b):
        s = ol.qp(P, q, G, h, A, b)
        return s.x, s.y, s.z, s.objective

    every = tuple(range(5))
    for a, c in zip(general(*data), quadratic(*data), strict=True):
        close(a, c, 1e-8)
    got, want = (torch.func.jacrev(f, every)(*data) for f in (general, quadratic))
    assert quadratic(*data)[2].max() > 1e-3  # an inequality is active
    for a, c in zip(got, want, strict=True):
        for one, other in zip(a, c, strict=True):
            close(one, other, 1e-7)


TWICE = {
    "equalities": {
        "equalities": lambda x, c: torch.stack([x.sum(-1) - c[0], 2 * c[0] - 2 * x.sum(-1)])
    },
    "curved equalities": {
        "equalities": lambda x, c: torch.stack(
            [x.square().sum() - c[0], 3 * (c[0] - x.square().sum())]
        )
    },
    "inequalities": {
        "inequalities": lambda x, c: torch.stack([x.sum(-1) - c[0], 2 * x.sum(-1) - 2 * c[0]])
    },
    "both": {
        "equalities": lambda x, c: x.sum(-1, keepdim=True) - c[0],
        "inequalities": lambda x, c: x.sum(-1, keepdim=True) - c[0],
    },
    "bounds": {
        "equalities": lambda x, c: x[:1] - 0.3,
        "bounds": (tensor(0.3, -1.0, -1.0), tensor(0.3, 1.0, 1.0)),
    },
}
ONCE = {
    "equalities": {"equalities": lambda x, c: x.sum(-1, keepdim=True) - c[0]},
    "curved equalities": {"equalities": lambda x, c: x.square().sum(-1, keepdim=True) - c[0]},
    "bounds": {"equalities": lambda x, c: x[:1] - 0.3, "bounds": (tensor(-1.0, -1.0, -1.0), None)},
}
ONCE["inequalities"] = ONCE["both"] = ONCE["equalities"]


@pytest.mark.parametrize("kind", TWICE)
@pytest.mark.parametrize("adjoint", [ol.Dense(), ol.Iterative()], ids=["dense", "iterative"])
def test_constraints_that_depend_on_each_other(kind, adjoint):
    """The multipliers are not unique, the minimum and its derivatives are."""
    c = tensor(0.5, 1.0, -0.3)

    def minimum(c, constraints):
        def loss(x, c):
            return (x - c).square().sum() + 0.1 * (x**4).sum() + x[0] * x[1] * c[2]

        start = tensor(0.1, 0.2, 0.3)
        return ol.minimize(loss, start, c, adjoint=adjoint, **constraints)

    def x(c, constraints=TWICE[kind]):
        return minimum(c, constraints).x

    close(x(c), x(c, ONCE[kind]), 1e-8)
    want = torch.func.jacrev(x)(c, ONCE[kind])
    assert want.abs().max() > 0.1
    for way in (torch.func.jacrev(x), torch.func.jacfwd(x)):
        close(way(c), want, 1e-6)
    step = 1e-5
    numerical = [
        (x(c + step * e) - x(c - step * e)) / (2 * step) for e in torch.eye(3, dtype=DTYPE)
    ]
    close(torch.stack(numerical, -1), want, 1e-6)
    second = torch.func.jacrev(torch.func.jacrev(lambda c: x(c).square().sum()))(c)
    wanted = torch.func.jacrev(torch.func.jacrev(lambda c: x(c, ONCE[kind]).square().sum()))(c)
    close(second, wanted, 1e-4)


@pytest.mark.parametrize(("scale", "limit"), [(1e-6, 1.9999), (1e-9, 1.5), (1e4, 1.5)])
def test_multipliers_of_very_different_size(scale, limit):
    limit = tensor(limit).requires_grad_()
    found = ol.minimize(
        lambda x, c: (x - 2).square().sum(),
        tensor(1.0, 1.0),
        limit,
        equalities=lambda x, c: scale * (x[:1] - 4),
        inequalities=lambda x, c: x[1:] - c,
    )
    close(found.x, torch.cat([tensor(4.0), limit]).detach())
    found.x[1].backward()
    close(limit.grad, tensor(1.0))


def test_a_contradiction_is_not_polished_away():
    def contradicting(x):
        return torch.cat([x + 0.3 * torch.sin(1.5 * x) - 2.2, 3.2 - x + 0.3 * torch.sin(0.3 * x)])

    with pytest.raises(ol.SolverError):
        ol.minimize(
            lambda x: (x + 1.1).square().sum() + torch.sin(3 * x).sum(),
            tensor(0.6),
            inequalities=contradicting,
        )


def test_what_is_not_solved_is_not_polished_to_a_maximum():
    found = ol.minimize(
        lambda x: -x.square().sum(),
        tensor(1e-3),
        inequalities=lambda x: torch.cat([x - 1, -1 - x]),
        solver=SQP(max_iter=0),
        on_failure="ignore",
    )
    assert found.status == ol.Status.MAX_ITERATIONS


class Claims(SQP):
    """Takes any start for a solution."""

    def solve(self, f, x0, **constraints):
        zeros = torch.zeros(len(x0), dtype=torch.long)
        return ol.Solution(x0, zeros, zeros, z=torch.zeros(len(x0), 1, dtype=x0.dtype))


def test_claims_are_judged_whatever_the_company():
    found = ol.minimize(
        lambda x, scale: scale * (x - 5).square().sum(-1),
        torch.zeros(2, 1, dtype=DTYPE),
        tensor(1.0, 1e12),
        inequalities=lambda x, scale: x - 100,
        batch_ndim=1,
        solver=Claims(),
        on_failure="ignore",
    )
    assert found.status.tolist() == [ol.Status.NUMERICAL_ERROR] * 2


@pytest.mark.parametrize("gap", [1e-4, 1e-6, 1e-8])
def test_equalities_that_nearly_depend_on_each_other(gap):
    rows = torch.tensor([[1.0, 1.0], [1.0, 1.0 + gap]], dtype=DTYPE)
    found = ol.minimize(
        lambda x: (x - 2).square().sum(),
        tensor(0.0, 0.0),
        equalities=lambda x: rows @ (x - tensor(0.0, 1.0)),
    )
    assert (rows @ (found.x - tensor(0.0, 1.0))).abs().max() < 1e-8
    if gap > 1e-7:  # what is less is within the tolerance of programs
        close(found.x, tensor(0.0, 1.0), 1e-7)


def test_sums_of_equalities_among_them():
    for seed in range(20):
        A = draw(2, 5, seed=seed)
        A = torch.cat([A, A.sum(0, keepdim=True)])
        b, q = A @ draw(5, seed=seed + 100), draw(5, seed=seed + 200)

        def general(q, A=A, b=b):
            return ol.minimize(
                lambda x, q: 0.5 * x.square().sum() + q @ x,
                torch.zeros(5, dtype=DTYPE),
                q,
                equalities=lambda x, q: A @ x - b,
            ).x

        def quadratic(q, A=A, b=b):
            return ol.qp(torch.eye(5, dtype=DTYPE), q, A=A, b=b).x

        close(general(q), quadratic(q), 1e-8)
        close(torch.func.jacrev(general)(q), torch.func.jacrev(quadratic)(q), 1e-7)


def test_a_variable_that_is_fixed_by_its_bounds_moves_with_them():
    end = tensor(1.0, 0.5).requires_grad_()
    found = ol.minimize(
        lambda x, c: (x - 2).square().sum(),
        tensor(0.0, 0.0),
        end,
        equalities=lambda x, c: x.sum(-1, keepdim=True) - c[0],
        bounds=(torch.stack([end[1], end[1] - 5]), torch.stack([end[1], end[1] + 5])),
    )
    close(torch.autograd.grad(found.x[0], end)[0], tensor(0.0, 1.0))


def test_only_multipliers_may_be_open():
    """A minimum that is not unique has no derivative; nor have multipliers that are not."""
    c = tensor(0.5).requires_grad_()
    twice = TWICE["equalities"]["equalities"]
    flat = ol.minimize(lambda x, c: (x.sum() - c[0]) ** 2, tensor(0.1, 0.2), c, equalities=twice)
    with pytest.raises(ol.SolverError, match="singular"):
        flat.x[0].backward()
    found = ol.minimize(lambda x, c: (x - c).square().sum(), tensor(0.1, 0.2), c, equalities=twice)
    with pytest.raises(ol.SolverError, match="singular"):
        found.y[0].backward()


def test_a_sample_with_dependent_constraints_beside_others():
    A = draw(4, 2, 3)
    A[1, 1], A[3, 1] = 2 * A[1, 0], -A[3, 0]
    point = draw(4, 3, seed=1)
    b = (A @ point[..., None])[..., 0]
    q = draw(4, 3, seed=2)

    def general(q):
        return ol.minimize(
            lambda x, q: 0.5 * x.square().sum(-1) + (q * x).sum(-1),
            torch.zeros(4, 3, dtype=DTYPE),
            q,
            equalities=lambda x, q: (A @ x[..., None])[..., 0] - b,
            batch_ndim=1,
        ).x

    def quadratic(q):
        return ol.qp(torch.eye(3, dtype=DTYPE), q, A=A, b=b).x

    close(general(q), quadratic(q), 1e-9)
    close(torch.func.jacrev(general)(q), torch.func.jacrev(quadratic)(q), 1e-8)


# --- optimal values -------------------------------------------------------------------------------


def test_the_optimal_value_needs_no_unique_minimum():
    """Danskin's theorem: the Hessian is singular, the value has a derivative all the same."""
    level = tensor(2.0)[0].requires_grad_()

    def loss(w, level):
        return 0.5 * (w.sum() - level) ** 2 + level**2

    value = ol.minimize(
        loss, torch.zeros(3, dtype=DTYPE), level, solver=GradientDescent(), on_failure="ignore"
    ).objective
    value.backward()
    close(level.grad, tensor(4.0)[0])


def test_second_derivatives_of_the_optimal_value():
    loss, (X, y, penalty) = ridge()

    def value(penalty):
        return ol.minimize(
            lambda w, p: loss(w, X, y, p), torch.zeros(4, dtype=DTYPE), penalty
        ).objective

    def closed_form(penalty):
        w = torch.linalg.inv(X.mT @ X + torch.diag(penalty)) @ (X.mT @ y)
        return loss(w, X, y, penalty)

    close(torch.func.grad(value)(penalty), torch.func.grad(closed_form)(penalty))
    close(torch.func.hessian(value)(penalty), torch.func.hessian(closed_form)(penalty))


# --- how precise a Jacobian is at an imprecise solution -------------------------------------------


def test_implicit_jacobians_are_as_precise_as_the_solution_and_unrolled_ones_lag():
    loss, (X, y, penalty) = ridge()
    step = 1 / float(torch.linalg.matrix_norm(X.mT @ X + torch.diag(penalty), 2))

    def closed_form(penalty):
        return torch.linalg.inv(X.mT @ X + torch.diag(penalty)) @ (X.mT @ y)

    exact, jacobian = closed_form(penalty), torch.func.jacrev(closed_form)(penalty)

    def descend(penalty, count):
        w = torch.zeros(4, dtype=DTYPE)
        for _ in range(count):
            w = w - step * torch.func.grad(loss)(w, X, y, penalty)
        return w

    distances, implicit, unrolled = [], [], []
    counts = range(10, 70, 10)
    for count in counts:
        layer = ol.implicit_function(
            lambda p, count=count: descend(p, count),
            lambda w, p: torch.func.grad(loss)(w, X, y, p),
            on_failure="ignore",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ol.SolverWarning)
            J = torch.func.jacrev(lambda p, layer=layer: layer(p).x)(penalty)
        distances.append(float(torch.linalg.vector_norm(descend(penalty, count) - exact)))
        implicit.append(float(torch.linalg.matrix_norm(J - jacobian)))
        J = torch.func.jacrev(lambda p, count=count: descend(p, count))(penalty)
        unrolled.append(float(torch.linalg.matrix_norm(J - jacobian)))
    slope = np.polyfit(np.log(distances), np.log(implicit), 1)[0]
    assert 0.95 < slope < 1.05
    assert all(a < b for a, b in zip(implicit, unrolled, strict=True))
    # With every step the unrolled one falls further behind, by the number of steps.
    behind = np.array(unrolled) / np.array(implicit)
    assert behind[-1] > 3 * behind[0]


# --- fixed points ---------------------------------------------------------------------------------


def test_adjoints_agree_on_a_fixed_point():
    W, u = 0.2 * draw(4, 4), draw(3, 4, seed=1)

    def z(W, u, adjoint):
        return ol.fixed_point(
            lambda z, W, u: torch.tanh(z @ W.mT + u),
            torch.zeros_like(u), W, u, batch_ndim=1, adjoint=adjoint,
        ).x  # fmt: skip

    def gradients(adjoint):
        return torch.func.grad(lambda W, u: z(W, u, adjoint).sin().sum(), (0, 1))(W, u)

    want = gradients(ol.Dense())
    for adjoint in (ol.Iterative(), ol.FixedPoint(), ol.FixedPoint(Picard()), ol.Neumann(80)):
        for a, b in zip(gradients(adjoint), want, strict=True):
            close(a, b, 1e-8)
    for checkpoint in (False, True):
        adjoint = ol.Unrolled(60, checkpoint=checkpoint)
        leaves = [W.clone().requires_grad_(), u.clone().requires_grad_()]
        z(*leaves, adjoint).sin().sum().backward()
        for leaf, b in zip(leaves, want, strict=True):
            close(leaf.grad, b, 1e-8)


def test_approximate_adjoints_are_the_series_that_they_say():
    W, u = 0.3 * draw(4, 4), draw(4, seed=1)

    def f(z, W, u):
        return torch.tanh(W @ z + u)

    z = ol.fixed_point(f, torch.zeros(4, dtype=DTYPE), W, u).x
    J = torch.func.jacrev(f)(z, W, u)
    eye, v = torch.eye(4, dtype=DTYPE), tensor(1.0, -1.0, 2.0, 0.5)

    def gradient(adjoint):
        def value(u):
            return v @ ol.fixed_point(f, torch.zeros(4, dtype=DTYPE), W, u, adjoint=adjoint).x

        return torch.func.grad(value)(u)

    B = torch.func.jacrev(f, 2)(z, W, u)
    terms = [torch.linalg.matrix_power(J.mT, i) @ v for i in range(9)]
    close(gradient(ol.OneStep()), B.mT @ v)
    for k in (1, 4, 8):
        close(gradient(ol.Neumann(k)), B.mT @ torch.stack(terms[: k + 1]).sum(0))
    damped = 0.4 * J.mT + 0.6 * eye
    series = sum(0.4 * torch.linalg.matrix_power(damped, i) @ v for i in range(6))
    close(gradient(ol.Phantom(6, 0.4)), B.mT @ series)
    exact = B.mT @ torch.linalg.inv(eye - J.mT) @ v
    errors = [float((gradient(ol.Neumann(k)) - exact).norm()) for k in (1, 4, 8)]
    assert errors[0] > errors[1] > errors[2]


def test_an_inverse_function_has_the_inverse_jacobian():
    y = tensor(0.1, 0.5, 2.0)

    def x(y):
        return ol.inverse(nn.functional.softplus, y).x

    close(x(y), torch.log(torch.expm1(y)))
    close(torch.func.jacrev(x)(y), torch.diag(1 / torch.sigmoid(x(y))))
    p = tensor(0.01, 0.4, 0.999)
    quantile = ol.inverse(torch.special.ndtr, p, bracket=(-10.0, 10.0)).x
    close(quantile, torch.special.ndtri(p))


def test_exact_zeros_survive():
    w = ol.minimize(
        lambda w: 0.5 * (w - tensor(0.2, 1.0, -3.0)).square().sum(),
        torch.ones(3, dtype=DTYPE),
        proximal=lambda w, s: torch.sign(w) * torch.relu(w.abs() - 0.5 * s),
    ).x
    assert w[0] == 0
    nonnegative = ol.fixed_point(
        lambda w: project_nonnegative(w - 0.5 * (w - tensor(-0.2, 1.0, -3.0))),
        torch.ones(3, dtype=DTYPE),
    ).x
    assert torch.equal(nonnegative == 0, torch.tensor([True, False, True]))
