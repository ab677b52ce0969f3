"""Roots, fixed points and minima as functions: arguments, batches, failures, what is refused."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn

import optlayers as ol
from optlayers.equilibrium import jacobian_penalty, spectral_radius
from optlayers.solvers import (
    GMRES,
    LBFGS,
    Anderson,
    Broyden,
    GaussNewton,
    GradientDescent,
    Newton,
    Picard,
    ScipyLeastSquares,
    ScipyMinimize,
    ScipyRoot,
    Status,
)

DTYPE = torch.float64


def tensor(*values, **kwargs):
    return torch.tensor(values, dtype=DTYPE, **kwargs)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DTYPE)


def cubic(x, c):
    return x**3 + x - c


class Cell(nn.Module):
    """A contraction with parameters."""

    def __init__(self, n=4, dtype=DTYPE, seed=0):
        super().__init__()
        self.linear = nn.Linear(n, n, dtype=dtype)
        with torch.no_grad():
            self.linear.weight.copy_(0.2 * draw(n, n, seed=seed))
            self.linear.bias.zero_()

    def forward(self, z, u):
        return torch.tanh(self.linear(z) + u)


def iterate(f, z, *params, count=200):
    for _ in range(count):
        z = f(z, *params)
    return z


# --- nothing loses its gradient in silence --------------------------------------------------------

CAPTURING = {
    "root": lambda c: ol.root(lambda x: cubic(x, c), torch.zeros_like(c)).x,
    "fixed_point": lambda c: ol.fixed_point(lambda x: torch.cos(x) * c, torch.zeros_like(c)).x,
    "minimize": lambda c: ol.minimize(lambda x: ((x - c) ** 2).sum(), torch.zeros_like(c)).x,
    "least_squares": lambda c: ol.least_squares(lambda x: x - c, torch.zeros_like(c)).x,
    "inverse": lambda c: ol.inverse(lambda x: c * x, torch.ones_like(c)).x,
    "implicit_function": lambda c: (
        ol.implicit_function(lambda p: p / 2 + 0 * c.detach(), lambda x, p: 2 * x - p + 0 * c)(
            tensor(1.0, 2.0)
        ).x
    ),
}


@pytest.mark.parametrize("name", CAPTURING)
def test_a_captured_tensor_that_requires_a_gradient_is_refused(name):
    c = tensor(0.5, 0.7, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"not one of its arguments.*would be lost"):
        CAPTURING[name](c)
    CAPTURING[name](c.detach())  # a constant may be captured
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda c: CAPTURING[name](c).sum())(c.detach())


def test_a_captured_module_is_refused_and_a_passed_one_gets_its_gradient():
    cell, u = Cell(), draw(3, 4)
    with pytest.raises(RuntimeError, match="module it belongs to"):
        ol.fixed_point(lambda z, u: cell(z, u), torch.zeros_like(u), u, batch_ndim=1)

    def gradients(z):
        return torch.autograd.grad(z.sin().sum(), cell.parameters())

    want = gradients(iterate(cell, torch.zeros_like(u), u))
    ways = {
        "as the function": lambda: ol.fixed_point(cell, torch.zeros_like(u), u, batch_ndim=1),
        "its method": lambda: ol.fixed_point(cell.forward, torch.zeros_like(u), u, batch_ndim=1),
        "among the parameters": lambda: ol.fixed_point(
            lambda z, p: p["cell"](z, p["u"]),
            torch.zeros_like(u),
            {"cell": cell, "u": u},
            batch_ndim=1,
        ),
        "in a layer": lambda: ol.FixedPointLayer(cell).solve(u),
    }
    for name, way in ways.items():
        for a, b in zip(gradients(way().x), want, strict=True):
            torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert all(isinstance(p, nn.Parameter) for p in cell.parameters())  # put back


def test_a_module_as_a_loss():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.center = nn.Parameter(tensor(0.2, -0.5))

        def forward(self, x):
            return (x - self.center).square().sum()

    loss = Loss()
    for constraint in ({}, {"bounds": (0.0, None)}, {"projection": lambda x: x.clamp_min(0)}):
        x = ol.minimize(loss, torch.zeros(2, dtype=DTYPE), **constraint).x
        (g,) = torch.autograd.grad(x.sum(), loss.center)
        torch.testing.assert_close(g, tensor(1.0, 0.0) if constraint else tensor(1.0, 1.0))


def test_only_what_requires_a_gradient_gets_one():
    c, unused = tensor(2.0, requires_grad=True), tensor(1.0, requires_grad=True)
    x0 = tensor(0.5, requires_grad=True)
    x = ol.root(lambda x, c, k, n, flag: cubic(x, c) if flag else x, x0, c, unused, 3, True).x
    x.backward()
    torch.testing.assert_close(c.grad, 1 / (3 * x.detach() ** 2 + 1))
    assert x0.grad is None  # the root does not depend on where the search started
    assert unused.grad is None


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3), (2, 0, 3)])
def test_any_number_of_batch_dimensions(batch):
    u = draw(*batch, 3)

    def f(z, u):
        return torch.tanh(0.4 * z.flip(-1) + u)

    solution = ol.fixed_point(f, torch.zeros_like(u), u, batch_ndim=len(batch))
    assert solution.status.shape == solution.iterations.shape == batch
    assert solution.dual_residual.shape == batch
    torch.testing.assert_close(solution.x, iterate(f, torch.zeros_like(u), u))
    leaf = u.clone().requires_grad_()
    x = ol.fixed_point(f, torch.zeros_like(u), leaf, batch_ndim=len(batch)).x
    x.sum().backward()
    assert leaf.grad.shape == u.shape


def test_a_pytree_of_unknowns_in_a_batch():
    t = draw(4)

    def F(x, t):
        return {"a": x["a"] - t[:, None, None] * torch.ones(2, 2), "b": x["b"] - x["a"].sum((1, 2))}

    start = {"a": torch.zeros(4, 2, 2, dtype=DTYPE), "b": torch.zeros(4, dtype=DTYPE)}
    solution = ol.root(F, start, t, batch_ndim=1)
    torch.testing.assert_close(solution.x["b"], 4 * t)
    assert solution.status.shape == (4,)


def test_an_element_is_as_it_is_alone():
    c = draw(6)
    together = ol.root(cubic, torch.zeros(6, dtype=DTYPE), c, batch_ndim=1)
    for i in range(6):
        alone = ol.root(cubic, torch.zeros(1, dtype=DTYPE), c[i : i + 1], batch_ndim=1)
        torch.testing.assert_close(together.x[i], alone.x[0], rtol=0, atol=1e-14)
        assert together.iterations[i] == alone.iterations[0]


def test_vmap_returns_a_solution():
    c = draw(3, 2)
    solution = torch.func.vmap(lambda c: ol.root(cubic, torch.zeros_like(c), c, batch_ndim=1))(c)
    assert solution.status.shape == (3, 2)
    assert solution.y is None
    torch.testing.assert_close(cubic(solution.x, c), torch.zeros_like(c))


# --- failures -------------------------------------------------------------------------------------


def no_root(x, c):
    return x**2 + c


def test_a_failure_raises_and_says_which():
    c = tensor(-4.0, 1.0, -9.0)
    with pytest.raises(ol.SolverError, match=r"root: of 3 problems 1 .*elements 1\)") as caught:
        ol.root(no_root, torch.ones(3, dtype=DTYPE), c, batch_ndim=1)
    assert caught.value.solution.status.tolist()[::2] == [Status.SOLVED] * 2
    torch.testing.assert_close(caught.value.solution.x[::2], tensor(2.0, 3.0))


@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_a_failure_leaves_the_others_alone(policy, recwarn):
    c, scale = tensor(-4.0, 1.0, -9.0, requires_grad=True), tensor(1.0, requires_grad=True)
    x = ol.root(
        lambda x, c, s: no_root(x, c) * s,
        torch.ones(3, dtype=DTYPE), c, scale, batch_ndim=1, on_failure=policy,
    ).x  # fmt: skip
    assert x[1].isnan()
    torch.testing.assert_close(x[::2], tensor(2.0, 3.0))
    x[::2].sum().backward()
    torch.testing.assert_close(c.grad, tensor(-0.25, 0.0, -1 / 6))
    torch.testing.assert_close(scale.grad, tensor(0.0))
    warned = [w for w in recwarn if w.category is ol.SolverWarning]
    assert len(warned) == (policy == "warn")


def test_an_adjoint_that_does_not_converge_says_so():
    W = tensor([0.0, 0.9], [-0.9, 0.0])
    u = tensor(0.1, 0.2, requires_grad=True)
    z = ol.fixed_point(
        lambda z, u: W @ z + u, torch.zeros(2, dtype=DTYPE), u,
        adjoint=ol.FixedPoint(Picard(max_iter=20)),
    ).x  # fmt: skip
    with pytest.warns(ol.SolverWarning, match="relative residual"):
        z.sum().backward()


# --- dtypes and modes -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype):
    c = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    solutions = [
        ol.root(cubic, torch.zeros_like(c), c, batch_ndim=1),
        ol.fixed_point(lambda x, c: torch.cos(x) * c / 3, torch.zeros_like(c), c),
        ol.minimize(lambda x, c: ((x - c) ** 4 + (x - c) ** 2).sum(), torch.zeros_like(c), c),
        ol.least_squares(lambda x, c: cubic(x, c), torch.zeros_like(c), c),
        ol.inverse(lambda x: x**3 + x, c),
        ol.implicit_function(lambda c: np.cbrt(c.numpy()), lambda x, c: x**3 - c)(c),
    ]
    for solution in solutions:
        assert solution.x.dtype == dtype
        (g,) = torch.autograd.grad(solution.x.sum(), c)
        assert g.dtype == dtype
        assert g.isfinite().all()


def test_under_autocast_gradients_keep_their_precision():
    cell = Cell(dtype=torch.float32)
    u = draw(3, 4).float()

    def gradients():
        z = ol.FixedPointLayer(cell)(u)
        return z, torch.autograd.grad(z.sum(), cell.linear.weight)[0]

    want = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        got = gradients()
        rounded = ol.FixedPointLayer(cell)(u.bfloat16())  # as an earlier layer may have left it
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    assert rounded.dtype == torch.float32


def test_inference_mode():
    with torch.inference_mode():
        u = draw(3, 4)
        z = ol.FixedPointLayer(Cell())(u)
    assert not z.requires_grad


# --- what is refused ------------------------------------------------------------------------------

REFUSED = {
    "another shape": (ValueError, lambda c: ol.root(lambda x, c: c.sum(), c, c)),
    "another structure": (ValueError, lambda c: ol.root(lambda x, c: [x - c], c, c)),
    "another dtype": (TypeError, lambda c: ol.root(lambda x, c: x - c, c.float(), c)),
    "integers": (TypeError, lambda c: ol.root(cubic, torch.zeros(2, dtype=torch.long), c)),
    "no tensor": (TypeError, lambda c: ol.root(cubic, 0.0, c)),
    "no unknowns": (ValueError, lambda c: ol.root(cubic, [], c)),
    "too many batch dimensions": (ValueError, lambda c: ol.root(cubic, c, c, batch_ndim=2)),
    "no number a sample": (
        ValueError,
        lambda c: ol.minimize(lambda x, c: (x - c) ** 2, torch.zeros_like(c), c),
    ),
    "two kinds of constraints": (
        ValueError,
        lambda c: ol.minimize(
            lambda x, c: ((x - c) ** 2).sum(), c, c, bounds=(0, 1), projection=lambda x, c: x
        ),
    ),
    "constraints of no shape": (
        ValueError,
        lambda c: ol.minimize(
            lambda x, c: ((x - c) ** 2).sum(), c, c, equalities=lambda x, c: x.sum()
        ),
    ),
    "a bracket for several variables": (
        ValueError,
        lambda c: ol.inverse(torch.sinh, c, bracket=(-1, 1), batch_ndim=0),
    ),
    "an unknown policy": (
        ValueError,
        lambda c: ol.root(cubic, torch.zeros_like(c), c, on_failure="hope"),
    ),
    "steps of general conditions": (
        TypeError,
        lambda c: ol.implicit_function(lambda c: c, lambda x, c: x - c, adjoint=ol.Unrolled(3)),
    ),
    "bounds that cross": (
        ValueError,
        lambda c: ol.minimize(lambda x, c: ((x - c) ** 2).sum(), c, c, bounds=(1.0, -1.0)),
    ),
    "bounds that cross, beside constraints": (
        ValueError,
        lambda c: ol.minimize(
            lambda x, c: ((x - c) ** 2).sum(),
            c,
            c,
            bounds=(1.0, -1.0),
            inequalities=lambda x, c: x - 5,
        ),
    ),
    "half precision": (TypeError, lambda c: ol.root(cubic, c.half(), c.half())),
    "complex parameters": (
        TypeError,
        lambda c: ol.root(lambda x, c: x - c.real, c, torch.complex(c, c)),
    ),
    "a state of another shape": (
        ValueError,
        lambda c: ol.FixedPointLayer(Cell(2))(c[None], z0=torch.zeros(2, 2, dtype=DTYPE)),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    error, call = REFUSED[name]
    with pytest.raises(error, match=r"got|requires"):
        call(tensor(0.3, 0.4))


# --- solvers are exchangeable ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", [Newton(), ScipyRoot(), None])
def test_any_root_finder(solver):
    c = tensor(1.0, 2.0, requires_grad=True)
    x = ol.root(cubic, torch.zeros(2, dtype=DTYPE), c, solver=solver).x
    x.sum().backward()
    torch.testing.assert_close(c.grad, 1 / (3 * x.detach() ** 2 + 1))


@pytest.mark.parametrize("solver", [LBFGS(), GradientDescent(), ScipyMinimize("BFGS"), None])
def test_any_minimizer(solver):
    c = tensor(1.0, 2.0, requires_grad=True)

    def loss(x, c):
        return torch.cosh(x - c).sum()

    x = ol.minimize(loss, torch.zeros(2, dtype=DTYPE), c, solver=solver).x
    x.sum().backward()
    torch.testing.assert_close(x, c)
    torch.testing.assert_close(c.grad, torch.ones(2, dtype=DTYPE))


@pytest.mark.parametrize("solver", [GaussNewton(), ScipyLeastSquares(), None])
def test_any_least_squares_method(solver):
    c = tensor(1.0, 2.0, requires_grad=True)
    x = ol.least_squares(cubic, torch.ones(2, dtype=DTYPE), c, solver=solver).x
    x.sum().backward()
    torch.testing.assert_close(c.grad, 1 / (3 * x.detach() ** 2 + 1), rtol=1e-6, atol=1e-6)


# --- 128 curve fits -------------------------------------------------------------------------------


def curves(poisoned=None):
    generator = torch.Generator().manual_seed(0)
    low, high = tensor(0.5, 0.3, -1.0), tensor(5.0, 3.0, 1.0)
    truth = low + (high - low) * torch.rand(128, 3, generator=generator, dtype=DTYPE)
    t = torch.linspace(0, 5, 50, dtype=DTYPE)
    y = model(truth, t)
    if poisoned is not None:
        y[poisoned] = torch.nan
    return truth, t, y


def model(p, t):
    a, k, c = p[..., 0:1], p[..., 1:2], p[..., 2:3]
    return a * torch.exp(-k * t) + c


def fit(y, t, **policy):
    start = tensor(1.0, 1.0, 0.0).expand(128, 3)
    return ol.least_squares(lambda p, y: model(p, t) - y, start, y, batch_ndim=1, **policy)


def test_many_curve_fits_from_crude_starts():
    truth, t, y = curves()
    y.requires_grad_()
    solution = fit(y, t)
    assert (solution.status == Status.SOLVED).all()
    assert (solution.x - truth).abs().max() <= 1e-7
    weights = draw(128, 3, seed=1)
    (g,) = torch.autograd.grad((solution.x * weights).sum(), y)
    # Without residuals the Hessian is J'J, and the Jacobian of the fit is J's pseudo-inverse.
    J = torch.func.vmap(torch.func.jacrev(lambda p: model(p, t)))(truth)
    want = (weights[:, None] @ torch.linalg.pinv(J))[:, 0]
    assert (g - want).abs().max() <= 1e-8


def test_a_poisoned_curve_leaves_the_other_fits_alone():
    _, t, y = curves()
    clean = fit(y, t)
    _, _, bad = curves(poisoned=17)
    bad.requires_grad_()
    solution = fit(bad, t, on_failure="ignore")
    others = torch.arange(128) != 17
    assert solution.x[17].isnan().all()
    assert torch.equal(solution.x[others], clean.x[others])
    (g,) = torch.autograd.grad(solution.x[others].sum(), bad)
    assert g[others].isfinite().all()
    assert not g[17].any()


# --- deep equilibria ------------------------------------------------------------------------------


def test_the_message_of_a_failure_speaks_of_functions():
    with pytest.raises(
        ol.SolverError, match=r"1 NUMERICAL_ERROR \(a function is not finite"
    ) as raised:
        ol.root(lambda x: x**2 + 1, tensor(1.0))
    assert "matrix" not in str(raised.value)


def test_where_the_search_started_may_change_before_backward():
    """A buffer that warm starts are kept in, say."""
    c = tensor(2.0, requires_grad=True)
    start = tensor(1.0)
    x = ol.root(lambda x, c: x**2 - c, start, c).x
    start.copy_(x.detach())
    (slope,) = torch.autograd.grad(x, c, create_graph=True)
    start.zero_()
    assert float(slope.detach()) == pytest.approx(0.5 / 2**0.5)
    (bend,) = torch.autograd.grad(slope, c)
    assert float(bend) == pytest.approx(-0.25 / 2**1.5)


def test_a_layer_starts_where_it_is_told():
    layer, u = ol.FixedPointLayer(Cell(), solver=Picard()), draw(5, 4)
    cold = layer.solve(u)
    warm = layer.solve(u, z0=cold.x.detach())
    assert (warm.iterations <= 1).all()
    assert (cold.iterations > 5).all()
    torch.testing.assert_close(warm.x, cold.x)


def test_a_state_of_its_own_shape():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.W = nn.Linear(2, 6, dtype=DTYPE), nn.Parameter(0.1 * draw(6, 6))

        def forward(self, z, u):
            return torch.tanh(z.flatten(1) @ self.W + self.up(u)).reshape(z.shape)

    layer = ol.FixedPointLayer(Wide(), state_shape=(2, 3), solver=Anderson(memory=3))
    assert layer(draw(5, 2)).shape == (5, 2, 3)
    assert "state_shape=(2, 3)" in repr(layer)


def test_a_layer_can_be_copied_and_saved():
    layer, u = ol.FixedPointLayer(Cell(), adjoint=ol.Phantom(3, 0.5)), draw(2, 4)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(u), layer(u))
    other = ol.FixedPointLayer(Cell(seed=3))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(u), layer(u))


def test_weight_normalisation_works_inside():
    cell, u = Cell(), draw(2, 4)
    cell.linear = nn.utils.parametrizations.weight_norm(cell.linear)
    z = ol.FixedPointLayer(cell)(u)
    g = torch.autograd.grad(z.sum(), list(cell.parameters()))
    want = iterate(cell, torch.zeros_like(u), u)
    for a, b in zip(g, torch.autograd.grad(want.sum(), list(cell.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_the_spectral_radius_and_the_price_of_the_jacobian():
    A = torch.diag(tensor(0.9, -0.5, 0.1))
    z = torch.zeros(4, 3, dtype=DTYPE)
    radius = spectral_radius(lambda z: z @ A, z, iterations=100)
    torch.testing.assert_close(radius, torch.full((4,), 0.9, dtype=DTYPE), rtol=1e-6, atol=0)
    turn = 0.7 * tensor([0.6, -0.8], [0.8, 0.6])  # a pair of complex eigenvalues
    radius = spectral_radius(lambda z: z @ turn, z[:, :2], iterations=100)
    torch.testing.assert_close(radius, torch.full((4,), 0.7, dtype=DTYPE))
    A = A.requires_grad_()
    many = torch.zeros(20_000, 3, dtype=DTYPE)
    generator = torch.Generator().manual_seed(0)
    penalty = jacobian_penalty(lambda z: z @ A, many, generator=generator).mean()
    torch.testing.assert_close(penalty, A.square().sum() / 3, rtol=0.05, atol=0)
    (g,) = torch.autograd.grad(penalty, A)
    torch.testing.assert_close(g, 2 * A / 3, rtol=0.1, atol=0.02)


# --- what an implicit function brings along -------------------------------------------------------


def test_auxiliary_outputs():
    def solve(c):
        return torch.sqrt(c), {"twice": 2 * c, "note": "by hand"}

    layer = ol.implicit_function(solve, lambda x, c: x**2 - c, has_aux=True, batch_ndim=1)
    c = tensor(1.0, 4.0, requires_grad=True)
    solution, aux = layer(c)
    assert torch.equal(aux["twice"], 2 * c.detach())
    assert aux["note"] == "by hand"
    assert not aux["twice"].requires_grad
    solution.x.sum().backward()
    torch.testing.assert_close(c.grad, tensor(0.5, 0.25))


def test_a_solver_that_reports_for_itself():
    def solve(c):
        status = torch.where(c > 0, Status.SOLVED, Status.PRIMAL_INFEASIBLE)
        return ol.Solution(c.abs().sqrt(), status, torch.full_like(status, 7))

    layer = ol.implicit_function(solve, lambda x, c: x**2 - c, batch_ndim=1, on_failure="ignore")
    solution = layer(tensor(4.0, -1.0))
    assert solution.iterations.tolist() == [7, 7]
    assert solution.x[0] == 2
    assert solution.x[1].isnan()


def test_a_solver_that_reports_nothing_is_judged():
    layer = ol.implicit_function(lambda c: c.sqrt() + 0.3, lambda x, c: x**2 - c)
    with pytest.raises(ol.SolverError, match="implicit_function"):
        layer(tensor(4.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own, while it gives up
def test_compiled_without_a_call_beforehand_it_says_what_to_do():
    layer = ol.implicit_function(lambda c: c.sqrt(), lambda x, c: x**2 - c)
    torch.compiler.reset()
    with pytest.raises(Exception, match="before you compile"):
        torch.compile(lambda c: layer(c).x, backend="eager", fullgraph=True)(tensor(4.0))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_says_what_to_do():
    torch.compiler.reset()
    with pytest.raises(Exception, match="functional_call"):
        torch.compile(ol.FixedPointLayer(Cell()), backend="eager", fullgraph=True)(draw(2, 4))


@pytest.mark.filterwarnings(r"ignore::Warning")  # of the compiler, which looks at what it leaves
def test_the_compiler_leaves_alone_what_has_a_module():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(4, 4), ol.FixedPointLayer(Cell()), nn.Linear(4, 1)).double()
    u = draw(2, 4)
    expected = model(u).sum()
    found = torch.compile(model, backend="eager")(u).sum()
    assert torch.equal(found, expected)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for g, e in zip(torch.autograd.grad(found, list(model.parameters())), wanted, strict=True):
        assert torch.equal(g, e)


# --- what a reviewer broke ------------------------------------------------------------------------


def square(x, *params):
    return x.square().sum()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda x: ol.fixed_point(torch.cos, x, solver=Newton()), "Anderson, Picard"),
        (lambda x: ol.FixedPointLayer(nn.Identity(), solver=Broyden())(x[None]), "Anderson"),
        (lambda x: ol.root(torch.cos, x, solver=Anderson()), "Broyden, Newton, ScipyRoot"),
        (lambda x: ol.root(torch.cos, x, solver=Newton), "Newton"),
        (lambda x: ol.inverse(torch.exp, x, bracket=(-1, 1), solver=Newton()), "Bisection"),
        (lambda x: ol.least_squares(torch.cos, x, solver=LBFGS()), "LevenbergMarquardt"),
        (lambda x: ol.minimize(square, x, solver=Newton()), "LBFGS.*ScipyMinimize, TrustRegion"),
        (lambda x: ol.minimize(square, x, bounds=(0, 1), solver=LBFGS()), "LBFGSB"),
        (
            lambda x: ol.minimize(square, x, projection=torch.relu, solver=LBFGS()),
            "ProjectedGradient",
        ),
        (
            lambda x: ol.minimize(square, x, proximal=lambda x, s: x, solver=LBFGS()),
            "ProximalGradient",
        ),
        (lambda x: ol.minimize(square, x, equalities=torch.cos, solver=LBFGS()), "ScipyMinimize"),
        (lambda x: ol.root(torch.cos, x, adjoint=GMRES()), r"Dense\(\)"),
    ],
)
def test_a_solver_of_something_else_is_refused(call, names):
    with pytest.raises(TypeError, match=names):
        call(tensor(0.5, 0.5))


def test_scipy_between_bounds():
    upper = tensor(0.5, 2.0, requires_grad=True)
    start, bounds, solver = torch.zeros_like(upper), (None, upper), ScipyMinimize("L-BFGS-B")
    x = ol.minimize(lambda x: (x - 1).square().sum(), start, bounds=bounds, solver=solver).x
    assert torch.allclose(x, tensor(0.5, 1.0), atol=1e-8)
    (g,) = torch.autograd.grad(x.sum(), upper)
    assert torch.allclose(g, tensor(1.0, 0.0))


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize(
    "set_", [{"bounds": (0.0, 2.0)}, {"projection": lambda x, y: x.clamp(0, 2)}]
)
def test_a_large_curvature_moves_no_point_off_its_set(set_, scale):
    t = torch.linspace(0, 5, 50, dtype=DTYPE)
    y = torch.exp(-0.7 * t).requires_grad_()

    def loss(x, y):
        return 0.5 * ((torch.exp(-x * t) - y) / scale).square().sum()

    solution = ol.minimize(loss, tensor(0.5), y, **set_)
    (g,) = torch.autograd.grad(solution.x.sum(), y)
    slope = -t * torch.exp(-0.7 * t)
    torch.testing.assert_close(g, slope / slope.square().sum(), rtol=1e-4, atol=1e-6)
    assert 0 <= solution.objective < 1e-6


def test_dictionaries_may_have_their_keys_in_any_order():
    def swapped(z, c):
        return {"b": 0.1 * z["b"] + 2 * c, "a": 0.1 * z["a"] + c}

    start = {"a": tensor(0.0), "b": tensor(0.0)}
    z = ol.fixed_point(swapped, start, tensor(0.9)).x
    torch.testing.assert_close(z, {"a": tensor(1.0), "b": tensor(2.0)})
    lower = {"b": tensor(5.0), "a": tensor(0.0)}
    x = ol.minimize(lambda z: (z["a"] ** 2 + z["b"] ** 2).sum(), start, bounds=(lower, None)).x
    torch.testing.assert_close(x, {"a": tensor(0.0), "b": tensor(5.0)})


def test_a_later_call_of_another_shape_changes_no_gradient():
    layer = ol.implicit_function(
        lambda c: 2 * c.flip(-1), lambda x, c: x - 2 * c.reshape(x.shape).flip(-1)
    )
    a = torch.arange(6.0, dtype=DTYPE).reshape(2, 3).requires_grad_()
    x = layer(a).x
    layer(torch.ones(3, 2, dtype=DTYPE))
    w = a.detach().clone()
    (g,) = torch.autograd.grad((w * x).sum(), a)
    assert torch.equal(g, 2 * w.flip(-1))


def test_what_is_captured_may_not_change_before_backward():
    c = tensor(1.0, requires_grad=True)
    factor = [2.0]
    x = ol.root(lambda x, c: x - factor[0] * c, torch.zeros_like(c), c).x
    factor[0] = 3.0
    with pytest.raises(ol.SolverError, match="has changed since"):
        x.sum().backward()


def test_a_captured_tensor_that_moves_only_the_value_is_refused():
    c = tensor(3.0, requires_grad=True)
    with pytest.raises(RuntimeError, match="not one of its arguments"):
        ol.minimize(lambda x: (x**2).sum() + c.sum(), tensor(1.0))


def test_jumps_and_poles_are_no_solutions():
    def jump(x):
        return 2 * x + torch.where(x >= 0.25, 1.0, -1.0)

    for f in (jump, lambda x: 1 / (x - 0.3)):
        with pytest.raises(ol.SolverError):
            ol.inverse(f, tensor(0.3), bracket=(-2.0, 2.0))


def test_a_function_that_writes_into_its_argument_is_refused():
    with pytest.raises(RuntimeError, match="must not change its argument"):
        ol.fixed_point(lambda x, c: x.mul_(0.9).add_(c), tensor(1.0), tensor(1.0))


def test_unrolled_steps_of_a_failed_sample_reach_nobody():
    c, w = tensor(0.1, 50.0), tensor(1.0, requires_grad=True)
    x = ol.fixed_point(
        lambda x, c, w: w * x**2 + c, torch.zeros(2, dtype=DTYPE), c, w,
        batch_ndim=1, on_failure="ignore", adjoint=ol.Unrolled(12),
    ).x  # fmt: skip
    x[0].backward()
    assert w.grad.isfinite().all()


def test_a_singular_sample_that_nobody_asks_for_is_no_failure():
    c = tensor(0.0, 1.0, requires_grad=True)
    x = ol.root(lambda x, c: x**2 - c, tensor(0.0, 2.0), c, batch_ndim=1).x
    x[1].backward()
    torch.testing.assert_close(c.grad, tensor(0.0, 0.5))


def test_tied_weights():
    pair = nn.ModuleList([nn.Linear(2, 2, dtype=DTYPE) for _ in range(2)])
    pair[1].weight = pair[0].weight

    def f(z, pair):
        return torch.tanh(0.2 * pair[1](pair[0](z)))

    start = torch.zeros(2, dtype=DTYPE)
    got = torch.autograd.grad(ol.fixed_point(f, start, pair).x.sum(), list(pair.parameters()))
    want = torch.autograd.grad(iterate(f, start, pair).sum(), list(pair.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_one_module_in_several_threads():
    cell, u = Cell(), draw(2, 4)
    parameters = list(cell.parameters())

    def gradient():
        return torch.autograd.grad(ol.FixedPointLayer(cell)(u).sum(), parameters)

    want, found = gradient(), []
    threads = [
        threading.Thread(target=lambda: found.extend(gradient() for _ in range(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 40
    for grads in found:
        for a, b in zip(grads, want, strict=True):
            torch.testing.assert_close(a, b)
    assert all(a is b for a, b in zip(cell.parameters(), parameters, strict=True))


def test_a_layer_within_a_layer_under_batched_gradients():
    def inner(x, c):
        return ol.root(cubic, torch.zeros_like(c), x + c, batch_ndim=1).x

    def outer(c):
        loss = lambda x, c: ((x - c) ** 2).sum() + 0.1 * inner(x, c).square().sum()  # noqa: E731
        return ol.minimize(loss, torch.zeros_like(c), c).x

    c = tensor(0.5, 1.5)
    got = torch.autograd.functional.jacobian(outer, c, vectorize=True)
    torch.testing.assert_close(got, torch.func.jacrev(outer)(c))


def test_problems_without_unknowns():
    nothing = torch.zeros(3, 0, dtype=DTYPE)
    for solution in (
        ol.root(lambda x: x, nothing, batch_ndim=1),
        ol.minimize(lambda x: x.sum(-1), nothing, batch_ndim=1),
        ol.minimize(lambda x: x.sum(-1), nothing, batch_ndim=1, bounds=(0.0, 1.0)),
    ):
        assert solution.x.shape == (3, 0)
        assert (solution.status == Status.SOLVED).all()
