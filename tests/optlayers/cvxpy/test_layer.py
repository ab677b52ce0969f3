"""How the layer behaves: batches, types, failures, copies, the names of cvxpylayers."""

import copy
import io
import itertools
import pickle
import subprocess
import sys
import threading
import warnings

import cvxpy as cp
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import optlayers as ol
from optlayers.cvxpy.conic_form import ConicForm
from optlayers.cvxpy.quadratic_form import QuadraticForm
from optlayers.solvers import SCS, ActiveSet, Clarabel, InteriorPoint, ProximalInteriorPoint
from solvers.solution import SolverError, Status

nan, inf = torch.nan, torch.inf


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- layers, each with values for a batch of three -----------------------------------------------


def regression(**options):
    """A variable that equalities define is left out, and its dual is asked for."""
    x, y = cp.Variable(2), cp.Variable(3)
    S, h = cp.Parameter((3, 2), name="S"), cp.Parameter(3, name="h")
    u, d = cp.Parameter(2, name="u"), cp.Parameter(name="d")
    rows = [x <= u, x >= 0, y == S @ x - h]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y) + d + cp.sum(h)), rows)
    duals = [row.dual_variables[0] for row in rows]
    layer = ol.CvxpyLayer(problem, [S, h, u, d], [x, y, *duals], **options)
    S = random(3, 3, 2)
    h = S @ tensor([0.7, 0.8]) + 0.1 * random(3, 3, seed=1)
    u = tensor([[0.5, 2], [2, 0.5], [0.3, 2]])
    return layer, {"S": S, "h": h, "u": u, "d": tensor([1, -2, 3])}


def linear(**options):
    x, y = cp.Variable(3), cp.Variable()
    c, b, d = cp.Parameter(3, name="c"), cp.Parameter(2, name="b"), cp.Parameter(name="d")
    A = tensor([[1, 1, 1], [1, -1, 0]]).numpy()
    rows = [x >= 0, A @ x <= b]
    problem = cp.Problem(cp.Maximize(c @ x - y + 2 * d), [*rows, y >= d, y >= x[0] - x[1]])
    layer = ol.CvxpyLayer(problem, [c, b, d], [x, y, rows[1].dual_variables[0]], **options)
    data = {"c": tensor([[1, 2, 0.5], [3, 0.5, 0.2], [0.1, 0.2, 3]])}
    return layer, data | {"b": tensor([[1, 0.5], [2, 1], [1.5, 1]]), "d": tensor([0.2, 0.3, 0.4])}


def ball(**options):
    x = cp.Variable(3)
    c, r, s = cp.Parameter(3, name="c"), cp.Parameter(name="r"), cp.Parameter(name="s")
    rows = [cp.norm(x) <= r, cp.sum(x) == s]
    problem = cp.Problem(cp.Minimize(c @ x + 3 * s), rows)
    layer = ol.CvxpyLayer(
        problem, [c, r, s], [x, *(row.dual_variables[0] for row in rows)], **options
    )
    return layer, {"c": random(3, 3), "r": tensor([1, 2, 1.5]), "s": tensor([0.2, 0.5, -0.3])}


def constrained_regression(**options):
    """The variable that is left out is defined by constants, as cone programs like it."""
    x, y = cp.Variable(2), cp.Variable(3)
    h, r = cp.Parameter(3, name="h"), cp.Parameter(name="r")
    rows = [y == random(3, 2).numpy() @ x - h, cp.norm(x) <= r]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(y)), rows)
    layer = ol.CvxpyLayer(
        problem, [h, r], [x, y, *(row.dual_variables[0] for row in rows)], **options
    )
    return layer, {"h": 3 * random(3, 3, seed=1), "r": tensor([0.4, 0.5, 0.3])}


def entropy(**options):
    x = cp.Variable(3)
    c, s = cp.Parameter(3, name="c"), cp.Parameter(name="s")
    problem = cp.Problem(cp.Maximize(cp.sum(cp.entr(x)) - c @ x + s), [cp.sum(x) == s])
    return ol.CvxpyLayer(problem, [c, s], [x], **options), {
        "c": random(3, 3),
        "s": tensor([1, 2, 0.5]),
    }


def geometric(**options):
    x, y = cp.Variable(pos=True), cp.Variable(2, pos=True)
    a, b = cp.Parameter(pos=True, name="a"), cp.Parameter(2, pos=True, name="b")
    e = cp.Parameter(name="e")
    rows = [x <= a, cp.prod(y) >= x, x >= 1]
    problem = cp.Problem(cp.Minimize(a * 5 / x + b[0] * y[0] + b[1] * y[1] ** e), rows)
    data = {"a": tensor([3, 2, 4]), "b": tensor([[1, 2], [0.5, 1], [2, 0.3]])}
    layer = ol.CvxpyLayer(problem, [a, b, e], [x, y], gp=True, **options)
    return layer, data | {"e": tensor([1, 1.5, 2])}


def semidefinite(**options):
    X, C, s = cp.Variable((2, 2), PSD=True), cp.Parameter((2, 2), name="C"), cp.Parameter(name="s")
    rows = [cp.trace(X) == s]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)), rows)
    layer = ol.CvxpyLayer(problem, [C, s], [X, rows[0].dual_variables[0]], **options)
    return layer, {"C": random(3, 2, 2), "s": tensor([1, 2, 0.5])}


def conic(make):
    """The same problem as a cone program."""

    def made(**options):
        return make(solver=Clarabel(), **options)

    made.__name__ = f"conic_{make.__name__}"
    return made


def name_of(value):
    return getattr(value, "__name__", None)


MAKERS = [regression, linear, ball, constrained_regression, entropy, geometric, semidefinite]
MAKERS += [conic(regression), conic(linear)]
makers = pytest.mark.parametrize("make", MAKERS, ids=name_of)
both_forms = pytest.mark.parametrize("make", [regression, conic(regression)], ids=name_of)


def outputs_of(solution):
    return [*solution.x, solution.objective]


def weighted(outputs):
    """A number in which every entry counts, each with another weight."""
    total = 0.0
    for t in outputs:
        weight = torch.linspace(0.5, 1.5, t.numel(), dtype=torch.float64).reshape(t.shape)
        total = total + (t * weight.to(t.dtype)).sum()
    return total


def solve_and_differentiate(layer, data, **more):
    leaves = {name: t.detach().clone().requires_grad_() for name, t in data.items()}
    solution = layer.solve(*leaves.values(), **more)
    gradients = torch.autograd.grad(
        weighted(outputs_of(solution)), list(leaves.values()), materialize_grads=True
    )
    return solution, dict(zip(data, gradients, strict=True))


def assert_same(one, other, tolerance=1e-9):
    """Solutions and gradients."""
    for a, b in zip(outputs_of(one[0]), outputs_of(other[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    assert one[1].keys() == other[1].keys()
    for name in one[1]:
        torch.testing.assert_close(one[1][name], other[1][name], rtol=tolerance, atol=tolerance)


def test_forms_are_as_expected():
    for make in MAKERS:
        dense = make in (regression, linear)
        form = make()[0]._form
        assert isinstance(form, QuadraticForm if dense else ConicForm), make
        left_out = {regression: 3, constrained_regression: 3, semidefinite: 4}
        assert form.k == left_out.get(make, 0), make


# --- batches --------------------------------------------------------------------------------------


@makers
def test_a_batch_is_a_loop(make):
    layer, data = make()
    batched = layer(*data.values())
    for i in range(3):
        single = layer(*(t[i] for t in data.values()))
        for one, other in zip(single, batched, strict=True):
            torch.testing.assert_close(one, other[i], rtol=1e-9, atol=1e-9)


@makers
def test_parameters_with_and_without_batch_dimensions_mix(make):
    """Each of three ways to have a batch, for each parameter."""
    layer, data = make()
    choices = [c for c in itertools.product(range(3), repeat=len(data)) if {1, 2} <= set(c)]
    for ways in choices[:: len(choices) // 12 + 1]:
        given, wide = {}, {}
        for way, (name, t) in zip(ways, data.items(), strict=True):
            given[name] = (t[0], t[1:, None], t)[way]
            core = t.shape[1:]
            wide[name] = lambda t, core=core: t.expand(2, 3, *core)
        leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
        solution = layer.solve(*leaves.values())
        expanded = layer.solve(*(wide[name](t) for name, t in leaves.items()))
        assert solution.status.shape == (2, 3)
        found, wanted = (
            torch.autograd.grad(weighted(outputs_of(s)), list(leaves.values()))
            for s in (solution, expanded)
        )
        for a, b in zip(outputs_of(solution), outputs_of(expanded), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        for g, want, t in zip(found, wanted, given.values(), strict=True):
            assert g.shape == t.shape
            torch.testing.assert_close(g, want, rtol=1e-7, atol=1e-7)


@makers
def test_a_batch_of_one_parameter(make):
    """Whichever it is, even one that enters the constant of the objective alone."""
    layer, data = make()
    for name, t in data.items():
        given = {other: value[0] for other, value in data.items()} | {name: t}
        wide = {k: v if k == name else v.expand(3, *v.shape) for k, v in given.items()}
        solution, wanted = layer.solve(*given.values()), layer.solve(*wide.values())
        for part in ("status", "iterations", "primal_residual", "dual_residual", "duality_gap"):
            assert getattr(solution, part).shape == (3,), (name, part)
        for one, other in zip(outputs_of(solution), outputs_of(wanted), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@both_forms
def test_gradients_of_shared_parameters_are_sums(make):
    layer, data = make()
    leaf = data["h"][0].clone().requires_grad_()
    x = layer(data["S"], leaf, data["u"], data["d"])[0]
    (found,) = torch.autograd.grad(x.sum(), leaf)
    single = 0
    for i in range(3):
        x = layer(data["S"][i], leaf, data["u"][i], data["d"][i])[0]
        single = single + torch.autograd.grad(x.sum(), leaf)[0]
    torch.testing.assert_close(found, single, rtol=1e-9, atol=1e-9)


@makers
@pytest.mark.parametrize("batch", [(0,), (2, 0), (2, 1, 3)])
def test_shapes(make, batch):
    layer, data = make()
    given = {name: t[0].expand(*batch, *t.shape[1:]) for name, t in data.items()}
    solution, gradients = solve_and_differentiate(layer, given)
    single = layer(*(t[0] for t in data.values()))
    for found, one in zip(solution.x, single, strict=True):
        assert found.shape == (*batch, *one.shape)
    for name in ("status", "iterations", "objective", "primal_residual", "dual_residual"):
        assert getattr(solution, name).shape == batch, name
    assert all(gradients[name].shape == t.shape for name, t in given.items())


@makers
def test_an_empty_batch_of_one_parameter(make):
    layer, data = make()
    given = {name: t[0] for name, t in data.items()}
    name = next(iter(given))
    given[name] = given[name].expand(0, *given[name].shape)
    solution, gradients = solve_and_differentiate(layer, given)
    assert solution.x[0].shape[0] == 0
    assert all(not g.any() for g in gradients.values())


@pytest.mark.parametrize("solver", [None, Clarabel()], ids=["quadratic", "conic"])
def test_without_parameters(solver):
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - tensor([3, 1]).numpy())), [cp.sum(x) == 2])
    layer = ol.CvxpyLayer(problem, [], [x], solver=solver)
    solution = layer.solve()
    assert solution.x[0].dtype == torch.get_default_dtype()
    torch.testing.assert_close(solution.x[0], torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(solution.objective, torch.tensor(2.0))
    assert solution.status.shape == ()


@pytest.mark.parametrize("solver", [None, Clarabel()], ids=["quadratic", "conic"])
def test_a_single_scalar_parameter(solver):
    x, p = cp.Variable(), cp.Parameter()
    layer = ol.CvxpyLayer(
        cp.Problem(cp.Minimize(cp.square(x - p)), [x <= 1]), [p], [x], solver=solver
    )
    for value in (tensor(0.5), tensor([0.5, 3.0]), tensor([[0.5], [3.0]])):
        leaf = value.clone().requires_grad_()
        (found,) = layer(leaf)
        torch.testing.assert_close(found, value.clamp(max=1))
        found.sum().backward()
        torch.testing.assert_close(leaf.grad, (value < 1).double())


# --- types ----------------------------------------------------------------------------------------


@makers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results_have_the_type_of_the_arguments(make, dtype):
    layer, data = make()
    rounded = {name: t.to(dtype) for name, t in data.items()}
    solution, gradients = solve_and_differentiate(layer, rounded)
    exact = layer.solve(*(t.double() for t in rounded.values()))
    for one, other in zip(outputs_of(solution), outputs_of(exact), strict=True):
        assert one.dtype == dtype
        assert torch.equal(one, other.to(dtype))
    assert {g.dtype for g in gradients.values()} == {dtype}
    assert all(g.isfinite().all() for g in gradients.values())


def test_the_widest_type_wins():
    layer, data = regression()
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float32]
    given = {name: t.to(dtype) for (name, t), dtype in zip(data.items(), types, strict=True)}
    solution, gradients = solve_and_differentiate(layer, given)
    assert {t.dtype for t in outputs_of(solution)} == {torch.float32}
    assert [g.dtype for g in gradients.values()] == types
    assert layer(*(given | {"d": data["d"]}).values())[0].dtype == torch.float64


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
def test_the_default_type_does_not_matter(default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        for make in (regression, ball, geometric):
            layer, data = make()
            found = solve_and_differentiate(layer, data)
            assert {t.dtype for t in outputs_of(found[0])} == {torch.float64}
            torch.set_default_dtype(before)
            assert_same(found, solve_and_differentiate(make()[0], data))
            torch.set_default_dtype(default)
    finally:
        torch.set_default_dtype(before)


def complex_layer():
    z, c = cp.Variable(2, complex=True), cp.Parameter(2, complex=True, name="c")
    r = cp.Parameter(name="r")
    rows = [cp.abs(z) <= r]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - c)), rows)
    return ol.CvxpyLayer(problem, [c, r], [z, rows[0].dual_variables[0]])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_types(dtype):
    layer, real = complex_layer(), dtype.to_real()
    c = torch.tensor([[1 + 2j, 2 - 2j], [3j, -2 + 0.5j]], dtype=dtype, requires_grad=True)
    z, multiplier = layer(c, torch.ones((), dtype=real))
    assert (z.dtype, multiplier.dtype) == (dtype, real)
    torch.testing.assert_close(z, c / c.abs())
    weight = torch.tensor([1 - 1j, 0.5 + 2j], dtype=dtype)
    (found,) = torch.autograd.grad((z * weight).real.sum(), c)
    (wanted,) = torch.autograd.grad((c / c.abs() * weight).real.sum(), c)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)


def test_a_complex_parameter_may_be_real():
    layer = complex_layer()
    c = tensor([2, -3]).requires_grad_()
    z, _ = layer(c, tensor(1))
    assert z.dtype == torch.complex128
    torch.testing.assert_close(z, torch.tensor([1 + 0j, -1], dtype=z.dtype))
    z.real.sum().backward()
    torch.testing.assert_close(c.grad, tensor([0, 0]))


def test_complex_parameters_in_a_batch_with_failures():
    z, c = cp.Variable(2, complex=True), cp.Parameter(2, complex=True)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - c)), [cp.real(z) <= 1])
    layer = ol.CvxpyLayer(problem, [c], [z], on_failure="ignore")
    given = torch.tensor([[2 + 1j, 1j], [complex(0, nan), 0], [3, 0.5]], dtype=torch.complex128)
    leaf = given.clone().requires_grad_()
    (found,) = layer(leaf)
    assert found.isnan().all(-1).tolist() == [False, True, False]
    torch.testing.assert_close(found[0], torch.tensor([1 + 1j, 1j], dtype=found.dtype))
    found.abs().sum().backward()
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[1].any()


# --- rare problems --------------------------------------------------------------------------------


def test_geometric_programs_of_monomials_are_linear_programs():
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a, b = cp.Parameter(pos=True, name="a"), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(x**2 * y), [x >= a, x * y >= b])
    layer = ol.CvxpyLayer(problem, [a, b], [x, y], gp=True, on_failure="ignore")
    assert isinstance(layer._form, QuadraticForm)
    leaves = [tensor([2, 0, 3]).requires_grad_(), tensor([4, 1, 5]).requires_grad_()]
    solution = layer.solve(*leaves)
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    torch.testing.assert_close(solution.x[0], tensor([2, nan, 3]), equal_nan=True)
    torch.testing.assert_close(solution.x[1], tensor([2, nan, 5 / 3]), equal_nan=True)
    torch.testing.assert_close(solution.objective, tensor([8, nan, 15]), equal_nan=True)
    found = torch.autograd.grad(solution.objective.sum(), leaves)
    torch.testing.assert_close(found[0], tensor([4, 0, 5]))
    torch.testing.assert_close(found[1], tensor([2, 0, 3]))
    with pytest.raises(ValueError, match="parameter a must be finite and positive"):
        ol.CvxpyLayer(problem, [a, b], [x, y], gp=True)(tensor(0), tensor(1))


def test_parameters_and_variables_without_entries():
    x, nothing = cp.Variable(2), cp.Variable(0)
    c, none = cp.Parameter(2), cp.Parameter(0)
    objective = cp.sum_squares(x - c) + cp.sum(nothing) + cp.sum(none)
    layer = ol.CvxpyLayer(cp.Problem(cp.Minimize(objective)), [none, c], [nothing, x])
    empty, found = layer(torch.zeros(3, 0, dtype=torch.float64), tensor([1, 2]))
    assert empty.shape == (3, 0)
    torch.testing.assert_close(found, tensor([1, 2]).expand(3, 2))


def test_constraints_on_parameters_alone():
    x, c, p = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [p >= 1])
    layer = ol.CvxpyLayer(problem, [c, p], [x], on_failure="ignore")
    solution = layer.solve(tensor([1, 2]), tensor([2, 0]))
    assert solution.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE]


def test_large_sparse_quadratic_programs_are_cone_programs():
    x, c = cp.Variable(400), cp.Parameter(400)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(x - c)), [x >= 0])
    layer = ol.CvxpyLayer(problem, [c], [x, problem.constraints[0].dual_variables[0]])
    assert isinstance(layer._form, ConicForm)
    leaf = random(2, 400).requires_grad_()
    solution = layer.solve(leaf)
    torch.testing.assert_close(solution.x[0], leaf.clamp(min=0))
    torch.testing.assert_close(solution.x[1], (-leaf).clamp(min=0))
    torch.testing.assert_close(solution.objective, 0.5 * leaf.clamp(max=0).square().sum(-1))
    solution.x[0].sum().backward()
    torch.testing.assert_close(leaf.grad, (leaf > 0).double())


# --- parameters with structure --------------------------------------------------------------------


def sparse_layer(**options):
    x, A, c = cp.Variable(3), cp.Parameter((3, 3), sparsity=[(2, 0, 1), (1, 0, 2)]), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [A @ x <= 0.1])
    return ol.CvxpyLayer(problem, [A, c], [x], **options)


# Torch has no backward of CSC tensors to dense ones.
SPARSE = {"coo": torch.Tensor.to_sparse, "csr": torch.Tensor.to_sparse_csr}


csr_warning = pytest.mark.filterwarnings("ignore:Sparse CS. tensor support is in beta")


@csr_warning
@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_parameters_may_be_sparse_tensors(layout):
    layer, c = sparse_layer(), tensor([1, 2, 3])
    dense = torch.zeros(3, 3, dtype=torch.float64)
    dense[(2, 0, 1), (1, 0, 2)] = tensor([1.5, 0.5, 2])
    given = SPARSE[layout](dense).requires_grad_()
    wanted = dense.clone().requires_grad_()
    found = layer(given, c)[0]
    torch.testing.assert_close(found, layer(wanted, c)[0])
    found.square().sum().backward()
    layer(wanted, c)[0].square().sum().backward()
    torch.testing.assert_close(given.grad.to_dense(), wanted.grad)
    assert wanted.grad.count_nonzero() == 3


@csr_warning
def test_batches_of_sparse_tensors():
    layer, c = sparse_layer(), tensor([1, 2, 3])
    dense = torch.zeros(2, 3, 3, dtype=torch.float64)
    dense[:, (2, 0, 1), (1, 0, 2)] = tensor([[1.5, 0.5, 2], [1, 1, 3]])
    wanted = layer(dense, c)[0]
    torch.testing.assert_close(layer(dense.to_sparse(), c)[0], wanted)
    torch.testing.assert_close(layer(dense.to_sparse_csr(), c)[0], wanted)
    torch.testing.assert_close(layer(dense[0].to_sparse_csc(), c)[0], wanted[0])


def test_what_is_outside_of_the_pattern_is_not_read():
    layer, c = sparse_layer(), tensor([1, 2, 3])
    dense = torch.zeros(3, 3, dtype=torch.float64)
    dense[(2, 0, 1), (1, 0, 2)] = tensor([1.5, 0.5, 2])
    full = (dense + (dense == 0)).requires_grad_()
    found = layer(full, c)[0]
    torch.testing.assert_close(found, layer(dense, c)[0])
    found.sum().backward()
    assert not full.grad[dense == 0].any()


def quadratic_form(kind):
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), **{kind: True}), cp.Parameter(3)
    objective = cp.quad_form(x, P, assume_PSD=kind == "symmetric")
    problem = cp.Problem(cp.Minimize(0.5 * objective + q @ x), [cp.sum(x) == 1])
    return ol.CvxpyLayer(problem, [P, q], [x])


@pytest.mark.parametrize("kind", ["PSD", "symmetric"])
def test_symmetric_parameters_count_by_both_triangles(kind):
    layer, q = quadratic_form(kind), tensor([1, -1, 0.5])
    root = random(3, 3)
    P = root @ root.mT + torch.eye(3)
    skew = random(3, 3, seed=1)
    leaf = (P + 0.3 * (skew - skew.mT)).requires_grad_()
    x = layer(leaf, q)[0]
    torch.testing.assert_close(x, layer(P, q)[0])
    (found,) = torch.autograd.grad(x.square().sum(), leaf)
    torch.testing.assert_close(found, found.mT)
    assert found.tril(-1).any()

    other = P.clone().requires_grad_()
    wanted = ol.qp(other, q, A=torch.ones(1, 3).double(), b=tensor([1])).x
    (wanted,) = torch.autograd.grad(wanted.square().sum(), other)
    torch.testing.assert_close(found, wanted)


# --- signs and fields -----------------------------------------------------------------------------


def test_objectives_have_the_sign_of_the_user():
    x, c = cp.Variable(2), cp.Parameter(2)
    lowest = ol.CvxpyLayer(cp.Problem(cp.Minimize(c @ x + 1), [cp.norm(x) <= 1]), [c], [x])
    highest = ol.CvxpyLayer(cp.Problem(cp.Maximize(c @ x + 1), [cp.norm(x) <= 1]), [c], [x])
    leaf = tensor([3, 4]).requires_grad_()
    for layer, sign in ((lowest, -1), (highest, 1)):
        solution = layer.solve(leaf)
        torch.testing.assert_close(solution.objective, tensor(1 + sign * 5))
        (g,) = torch.autograd.grad(solution.objective, leaf)
        torch.testing.assert_close(g, sign * tensor([0.6, 0.8]))


def test_objectives_of_geometric_programs():
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = ol.CvxpyLayer(cp.Problem(cp.Minimize(x + a / x)), [a], [x], gp=True)
    leaf = tensor([4, 9]).requires_grad_()
    solution = layer.solve(leaf)
    torch.testing.assert_close(solution.x[0], leaf.sqrt())
    torch.testing.assert_close(solution.objective, 2 * leaf.sqrt())
    (g,) = torch.autograd.grad(solution.objective.sum(), leaf, retain_graph=True)
    torch.testing.assert_close(g, 1 / leaf.sqrt())
    (g,) = torch.autograd.grad(solution.x[0].sum(), leaf)
    torch.testing.assert_close(g, 0.5 / leaf.sqrt())


@makers
def test_fields_of_solutions(make):
    layer, data = make()
    solution = layer.solve(*data.values())
    assert isinstance(solution, ol.Solution)
    assert isinstance(solution.x, tuple)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    assert solution.solved.all()
    assert (solution.iterations > 0).all()
    for residual in solution.residuals:
        assert residual.shape == (3,)
        assert residual.max() < 1e-8
    assert isinstance(solution.canonical, ol.Solution)
    assert torch.equal(solution.canonical.status, solution.status)
    assert "3 SOLVED" in repr(solution)
    for one, other in zip(solution.x, layer(*data.values()), strict=True):
        assert torch.equal(one, other)


def test_repr():
    text = repr(regression()[0])
    assert "S (3, 2)" in text
    assert "canonical variables=5" in text


# --- failures -------------------------------------------------------------------------------------

FAILURES = [
    (regression, {"u": -1.0}, Status.PRIMAL_INFEASIBLE),
    (regression, {"u": -1.0, "S": 0.0}, Status.PRIMAL_INFEASIBLE),
    (regression, {"S": nan}, Status.NUMERICAL_ERROR),
    (regression, {"S": inf}, Status.NUMERICAL_ERROR),
    (regression, {"h": nan}, Status.NUMERICAL_ERROR),
    (regression, {"u": nan}, Status.NUMERICAL_ERROR),
    (regression, {"d": nan}, Status.NUMERICAL_ERROR),
    (linear, {"b": -1.0}, Status.PRIMAL_INFEASIBLE),
    (linear, {"c": nan}, Status.NUMERICAL_ERROR),
    (linear, {"d": -inf}, Status.NUMERICAL_ERROR),
    (ball, {"r": -1.0}, Status.PRIMAL_INFEASIBLE),
    (ball, {"s": 9.0}, Status.PRIMAL_INFEASIBLE),
    (ball, {"c": nan}, Status.NUMERICAL_ERROR),
    (ball, {"r": nan}, Status.NUMERICAL_ERROR),
    (ball, {"s": nan}, Status.NUMERICAL_ERROR),
    (constrained_regression, {"r": -1.0}, Status.PRIMAL_INFEASIBLE),
    (constrained_regression, {"h": nan}, Status.NUMERICAL_ERROR),
    (entropy, {"s": -1.0}, Status.PRIMAL_INFEASIBLE),
    (entropy, {"c": nan}, Status.NUMERICAL_ERROR),
    (geometric, {"a": 0.5}, Status.PRIMAL_INFEASIBLE),
    (geometric, {"a": 0.0}, Status.NUMERICAL_ERROR),
    (geometric, {"b": -1.0}, Status.NUMERICAL_ERROR),
    (geometric, {"b": nan}, Status.NUMERICAL_ERROR),
    (geometric, {"e": nan}, Status.NUMERICAL_ERROR),
    (semidefinite, {"s": -1.0}, Status.PRIMAL_INFEASIBLE),
    (semidefinite, {"C": nan}, Status.NUMERICAL_ERROR),
]
FAILURES += [
    (conic(make), spoilt, status)
    for make, spoilt, status in FAILURES
    if make in (linear, regression)
]
failures = pytest.mark.parametrize(
    ("make", "spoilt", "status"),
    FAILURES,
    ids=[f"{make.__name__}-{spoilt}" for make, spoilt, _ in FAILURES],
)


def spoil(data, spoilt):
    bad = {name: t.clone() for name, t in data.items()}
    for name, value in spoilt.items():
        bad[name][1] = value
    return bad


@failures
def test_failed_elements_are_nan_and_neighbours_untouched(make, spoilt, status):
    layer, data = make(on_failure="ignore")
    bad, found = solve_and_differentiate(layer, spoil(data, spoilt))
    good, wanted = solve_and_differentiate(layer, data)
    assert good.solved.all()
    assert bad.status.tolist() == [Status.SOLVED, status, Status.SOLVED]
    for one, other in zip(outputs_of(bad), outputs_of(good), strict=True):
        assert one[1].isnan().all()
        assert torch.equal(one[[0, 2]], other[[0, 2]])
    for name, g in found.items():
        assert torch.equal(g[1].abs(), torch.zeros_like(g[1])), name
        torch.testing.assert_close(g[[0, 2]], wanted[name][[0, 2]], rtol=0, atol=1e-12)
        assert wanted[name].any(), name


@failures
def test_shared_parameters_get_the_sum_over_solved_elements(make, spoilt, status):
    layer, data = make(on_failure="ignore")
    name = next(iter(spoilt))
    shared = {other: t[0] for other, t in data.items() if other not in spoilt}
    spoiled = spoil(data, spoilt)

    def gradients(given, kept):
        leaves = {name: t.clone().requires_grad_() for name, t in given.items()}
        solution = layer.solve(*leaves.values())
        # The loss has the failed elements, too: their gradient is zero whatever it is.
        total = sum(weighted([t[i] for t in outputs_of(solution)]) for i in range(len(kept)))
        grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        return solution, dict(zip(given, grads, strict=True))

    order = list(data)
    given = {n: shared.get(n, spoiled[n]) for n in order}
    fine = {n: shared.get(n, data[n][[0, 2]]) for n in order}
    bad, found = gradients(given, [0, 1, 2])
    good, wanted = gradients(fine, [0, 2])
    assert bad.status[1] == status
    assert bad.solved[[0, 2]].equal(good.solved)
    for n in shared:
        assert found[n].isfinite().all(), n
        torch.testing.assert_close(found[n], wanted[n], rtol=1e-9, atol=1e-9)
    assert not found[name][1].any()


LOSSES = {
    "square": lambda x: x.pow(2).sum(),
    "logarithm": lambda x: x.abs().log().sum(),
    "product": lambda x: x.prod(-1).sum(),
    "norm": lambda x: torch.linalg.vector_norm(x.flatten(1), dim=-1).sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make", [regression, ball, geometric, conic(regression)], ids=name_of)
def test_gradients_are_zero_whatever_the_loss(make, loss):
    layer, data = make(on_failure="ignore")
    name = next(iter(data))
    bad = spoil(data, {name: nan})
    leaves = {name: t.requires_grad_() for name, t in bad.items()}
    solution = layer.solve(*leaves.values())
    for t in outputs_of(solution):
        LOSSES[loss](t.reshape(3, -1)).backward(retain_graph=True)
    for name, t in leaves.items():
        # The logarithm of a zero is not finite for good reason, elsewhere than in the failed one.
        assert torch.equal(t.grad[1].abs(), torch.zeros_like(t[1])), name


@pytest.mark.parametrize("make", [regression, ball, geometric, constrained_regression], ids=name_of)
def test_failures_under_vmap(make):
    layer, data = make(on_failure="ignore")
    bad = spoil(data, {next(iter(data)): nan})
    found = torch.func.vmap(layer)(*bad.values())
    for one, other in zip(found, layer(*bad.values()), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)

    def loss(*given):
        return sum(t.sum() for t in outputs_of(layer.solve(*given)))

    derivative = torch.func.grad(loss, argnums=tuple(range(len(bad))))
    leaves = [t.requires_grad_() for t in bad.values()]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    for g, want in zip(torch.func.vmap(derivative)(*bad.values()), wanted, strict=True):
        assert not g[1].any()
        torch.testing.assert_close(g, want, rtol=1e-9, atol=1e-9)


def test_second_derivatives_beside_a_failure():
    layer, data = regression(on_failure="ignore")
    leaves = [t.requires_grad_() for t in spoil(data, {"S": nan}).values()]
    x, y, *_ = layer(*leaves)
    first = torch.autograd.grad((x.pow(3).sum() + y.pow(3).sum()), leaves[:2], create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves[:2])
    for g in second:
        assert g.isfinite().all()
        assert not g[1].any()
        assert g[[0, 2]].any()


@pytest.mark.parametrize("solver", [None, Clarabel()], ids=["quadratic", "conic"])
def test_unbounded_problems(solver):
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 1])
    layer = ol.CvxpyLayer(problem, [c], [x], solver=solver, on_failure="ignore")
    leaf = tensor([[1, 2], [-1, 1], [3, 1]]).requires_grad_()
    solution = layer.solve(leaf)
    assert solution.status.tolist() == [Status.SOLVED, Status.DUAL_INFEASIBLE, Status.SOLVED]
    (solution.objective.sum() + solution.x[0].sum()).backward()
    torch.testing.assert_close(leaf.grad, tensor([[1, 1], [0, 0], [1, 1]]))


@pytest.mark.parametrize(
    ("make", "spoilt"),
    [(regression, {"u": -1.0}), (ball, {"r": -1.0}), (conic(linear), {"b": -1.0})],
    ids=["quadratic", "conic", "linear"],
)
def test_policies(make, spoilt):
    layer, data = make()
    bad = spoil(data, spoilt)
    with pytest.raises(SolverError, match=r"1 PRIMAL_INFEASIBLE .*elements 1\)") as caught:
        layer(*bad.values())
    assert isinstance(caught.value.solution, ol.Solution)
    assert caught.value.solution.status.tolist() == [0, Status.PRIMAL_INFEASIBLE, 0]

    layer, _ = make(on_failure="warn")
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        solution, gradients = solve_and_differentiate(layer, bad)
    assert [w.category for w in noted] == [ol.SolverWarning]
    assert noted[0].filename == __file__
    assert solution.solved.tolist() == [True, False, True]
    assert all(not g[1].any() for g in gradients.values())

    layer, _ = make(on_failure="ignore")
    assert layer(*bad.values())[0].isnan().flatten(1).all(1).tolist() == [False, True, False]


@makers
def test_policies_do_not_matter_for_problems_that_are_solved(make):
    wanted = solve_and_differentiate(*make())
    for policy in ("warn", "ignore"):
        assert_same(solve_and_differentiate(*make(on_failure=policy)), wanted, 1e-12)


@makers
def test_nan_is_refused_by_the_name_of_the_parameter(make):
    layer, data = make()
    for name in data:
        for value in (nan, inf):
            bad = spoil(data, {name: value})
            message = f"CvxpyLayer: parameter {name} must be finite.* got .* on_failure='ignore'"
            with pytest.raises(ValueError, match=message):
                layer(*bad.values())


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_logarithms_of_nothing_are_refused_by_the_name_of_the_parameter(value):
    layer, data = geometric()
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"parameter {name} must be finite and positive; got"):
            layer(*spoil(data, {name: value}).values())
    # An exponent may have any sign.
    assert layer.solve(*(data | {"e": tensor(1.3)}).values()).solved.all()


# --- warm starts, adjoints, solvers ---------------------------------------------------------------


@makers
def test_warm_starts_save_iterations(make):
    layer, data = make()
    earlier = layer.solve(*data.values())
    again = layer.solve(*data.values(), warm_start=earlier)
    assert (again.iterations < earlier.iterations).all()
    if isinstance(layer._form, ConicForm):
        assert not again.iterations.any()
    for one, other in zip(outputs_of(again), outputs_of(earlier), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    near = {name: t * 1.001 for name, t in data.items()}
    for start in (earlier, earlier.canonical):
        found = solve_and_differentiate(layer, near, warm_start=start)
        assert_same(found, solve_and_differentiate(layer, near), 1e-7)


def test_a_warm_start_may_come_from_failed_elements_and_has_no_gradient():
    for make in (regression, ball):
        layer, data = make(on_failure="ignore")
        leaves = [t.requires_grad_() for t in spoil(data, {next(iter(data)): nan}).values()]
        earlier = layer.solve(*leaves)
        later = layer.solve(*data.values(), warm_start=earlier)
        assert later.solved.all()
        assert not later.x[0].requires_grad


def test_warm_starts_of_other_shapes_are_refused():
    for make in (regression, ball):
        layer, data = make()
        earlier = layer.solve(*data.values())
        with pytest.raises(ValueError, match="warm_start must be a Solution"):
            layer(*(t[0] for t in data.values()), warm_start=earlier)
        with pytest.raises(TypeError, match="warm_start must be a Solution"):
            layer(*data.values(), warm_start=earlier.x[0])


@pytest.mark.parametrize("make", [linear, ball, conic(linear), regression], ids=name_of)
def test_smoothed_derivatives(make):
    exact_layer, data = make()
    smooth, exact = make(adjoint=ol.Smoothed(0.05))[0], solve_and_differentiate(exact_layer, data)
    found = solve_and_differentiate(smooth, data)
    for one, other in zip(outputs_of(found[0]), outputs_of(exact[0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert any(not torch.allclose(found[1][name], exact[1][name], atol=1e-4) for name in data)
    nearly = solve_and_differentiate(make(adjoint=ol.Smoothed(1e-7))[0], data)
    for name, g in exact[1].items():
        torch.testing.assert_close(nearly[1][name], g, rtol=1e-3, atol=1e-3)


def test_smoothed_derivatives_of_a_linear_program_are_those_of_qp():
    x, c = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(c @ x), [x >= 0, cp.sum(x) == 1])
    layer = ol.CvxpyLayer(problem, [c], [x], adjoint=ol.Smoothed(0.1))
    leaf = tensor([0.5, 0.4, 1]).requires_grad_()
    weight = tensor([1, 2, 3])
    (found,) = torch.autograd.grad(layer(leaf)[0] @ weight, leaf)
    G, h = -torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    A, b = torch.ones(1, 3, dtype=torch.float64), tensor([1])
    point = ol.qp(None, leaf, G, h, A, b, adjoint=ol.Smoothed(0.1)).x
    (wanted,) = torch.autograd.grad(point @ weight, leaf)
    assert wanted.any()
    torch.testing.assert_close(found, wanted)


def test_smoothed_derivatives_beside_a_failure():
    for make, spoilt in ((linear, {"b": -1.0}), (ball, {"c": nan}), (regression, {"S": nan})):
        layer, data = make(adjoint=ol.Smoothed(0.1), on_failure="ignore")
        _, found = solve_and_differentiate(layer, spoil(data, spoilt))
        for name, g in found.items():
            assert g.isfinite().all(), name
            assert not g[1].any(), name


SOLVERS = [ActiveSet(), InteriorPoint(), ProximalInteriorPoint(), Clarabel(), SCS()]
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


@solvers
@pytest.mark.parametrize("make", [regression, linear], ids=name_of)
def test_every_solver_gives_the_same(make, solver):
    layer, data = make(solver=solver)
    assert_same(
        solve_and_differentiate(layer, data), solve_and_differentiate(make()[0], data), 1e-6
    )


@pytest.mark.parametrize("make", [ball, entropy, geometric, semidefinite], ids=name_of)
def test_cone_solvers_give_the_same(make):
    layer, data = make(solver=SCS())
    assert_same(
        solve_and_differentiate(layer, data), solve_and_differentiate(make()[0], data), 1e-6
    )


def test_solvers_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"ActiveSet solves quadratic programs; got .* soc.*Clarab"
    ):
        ball(solver=ActiveSet())
    with pytest.raises(ValueError, match=r"ProximalInteriorPoint solves .* exp"):
        entropy(solver=ProximalInteriorPoint())
    for wrong in (3, Clarabel, object()):
        with pytest.raises(TypeError, match=r"solver must be an object of optlayers.solvers.* got"):
            regression(solver=wrong)


# --- what cvxpylayers takes -----------------------------------------------------------------------


def only_deprecation(call, *texts):
    """The result of a call that warns once for each text, at the line that calls it."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        result = call()
    assert [w.category for w in noted] == [DeprecationWarning] * len(texts)
    for w, text in zip(noted, texts, strict=True):
        assert str(w.message).startswith("CvxpyLayer: ")
        assert text in str(w.message)
        assert w.filename == __file__
    return result


@pytest.mark.parametrize(
    ("name", "form", "kind"),
    [
        ("DIFFCP", QuadraticForm, type(None)),
        ("MOREAU", QuadraticForm, type(None)),
        ("CLARABEL", ConicForm, Clarabel),
        ("SCS", ConicForm, SCS),
        ("scs", ConicForm, SCS),
    ],
)
def test_names_of_solvers(name, form, kind):
    layer, data = only_deprecation(lambda: regression(solver=name), f"solver='{name}'")
    assert isinstance(layer._form, form)
    assert isinstance(layer._form.solver, kind)
    assert_same(solve_and_differentiate(layer, data), solve_and_differentiate(*regression()), 1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match=r"one of the names DIFFCP, .*got 'OSQP'. Leave solver out"
    ):
        regression(solver="OSQP")


OPTIONS = {"eps": 1e-9, "max_iters": 321, "mode": "dense", "n_jobs_forward": 2}


def test_options_in_the_constructor():
    layer, data = only_deprecation(lambda: regression(solver_args=OPTIONS), "solver_args")
    assert isinstance(layer._form, QuadraticForm)
    assert_same(solve_and_differentiate(layer, data), solve_and_differentiate(*regression()))
    layer, _ = only_deprecation(
        lambda: regression(solver="CLARABEL", solver_args=OPTIONS), "CLARABEL", "solver_args"
    )
    assert layer._form.solver == Clarabel(eps_abs=1e-9, eps_rel=1e-9, max_iter=321)


def test_options_of_a_call():
    layer, data = ball(solver=SCS(eps_abs=1e-7, eps_rel=1e-7))
    wanted = solve_and_differentiate(layer, data)
    found = only_deprecation(
        lambda: solve_and_differentiate(layer, data, solver_args=OPTIONS | {"max_iters": 9999}),
        "solver_args",
    )
    assert_same(found, wanted, 1e-6)
    assert layer._form.solver == SCS(eps_abs=1e-7, eps_rel=1e-7)  # it was for that call only
    leaf = data["c"].clone().requires_grad_()
    given = (leaf, data["r"], data["s"])
    x = only_deprecation(lambda: layer(*given, solver_args={"eps": 1e-6})[0], "solver_args")
    (g,) = torch.autograd.grad(x.square().sum(), leaf)  # what solved it is gone by now
    (want,) = torch.autograd.grad(layer(*given)[0].square().sum(), leaf)
    torch.testing.assert_close(g, want, rtol=1e-5, atol=1e-5)


def test_options_of_a_call_reach_the_solver():
    layer, data = regression(solver=ActiveSet(), on_failure="ignore")
    stopped = only_deprecation(
        lambda: layer.solve(*data.values(), solver_args={"max_iters": 1}), "solver_args"
    )
    assert Status.MAX_ITERATIONS in stopped.status.tolist()
    assert layer.solve(*data.values()).solved.all()


def test_options_of_the_constructor_last():
    layer, _ = only_deprecation(
        lambda: ball(solver="CLARABEL", solver_args={"max_iters": 7}),
        "CLARABEL",
        "solver_args",
    )
    other = only_deprecation(lambda: layer._with_arguments({"eps": 1e-7}), "solver_args")
    assert other._form.solver == Clarabel(eps_abs=1e-7, eps_rel=1e-7, max_iter=7)
    assert layer._form.solver == Clarabel(max_iter=7)


def test_the_method_of_diffcp():
    for method, form in (("SCS", ConicForm), ("ECOS", QuadraticForm), ("Clarabel", QuadraticForm)):
        options = {"solve_method": method}
        layer, _ = only_deprecation(lambda o=options: regression(solver_args=o), "solver_args")
        assert isinstance(layer._form, form)


def test_unknown_options_are_refused():
    layer, data = regression()
    for call in (
        lambda: layer(*data.values(), solver_args={"foo": 1}),
        lambda: regression(solver_args={"foo": 1, "eps": 1e-6}),
    ):
        with pytest.raises(ValueError, match=r"solver_args may have eps, .* got foo. Pass a s"):
            call()
    with pytest.raises(ValueError, match=r"solve_method may be SCS, .* got MOSEK"):
        regression(solver_args={"solve_method": "MOSEK"})


def test_empty_options_are_none():
    layer, data = regression(solver_args={})
    layer(*data.values(), solver_args={})
    layer(*data.values(), solver_args=None)


# --- wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v: v[:3], ValueError, r"expected 4 tensors.*\(S, h, u, d\); got 3. Give them"),
        (lambda v: [*v, v[0]], ValueError, "expected 4 tensors, .* got 5. Give them"),
        (lambda v: [], ValueError, "expected 4 tensors, .* got 0. Give them"),
        (lambda v: [[1.0], *v[1:]], TypeError, "parameter S must be a floating.*got list. Convert"),
        (lambda v: [v[0].numpy(), *v[1:]], TypeError, "parameter S must be .*got ndarray. Convert"),
        (lambda v: [*v[:3], v[3].int()], TypeError, "d must be .*got torch.int32 tensor. Convert"),
        (lambda v: [*v[:3], 1.0], TypeError, "parameter d must be .*got float. Convert it"),
        (
            lambda v: [v[0] + 0j, *v[1:]],
            TypeError,
            "S is real; got a torch.complex128 tensor. D",
        ),
        (lambda v: [v[1], v[0], *v[2:]], ValueError, r"S must have shape \(\*batch, 3, 2\); got"),
        (lambda v: [v[0].mT, *v[1:]], ValueError, r"S must have shape .*; got \(3, 2, 3\). Lead"),
        (lambda v: [v[0], v[1][0, 0], *v[2:]], ValueError, r"h must have shape .*got \(\). Leadin"),
        (lambda v: [v[0], v[1][:2], *v[2:]], ValueError, r"broadcast .* S \(3,\), h \(2,\).*Inser"),
    ],
)
@both_forms
def test_wrong_arguments_are_refused(make, change, error, message):
    layer, data = make()
    with pytest.raises(error, match=f"(?s)CvxpyLayer: .*{message}"):
        layer(*change(list(data.values())))


def test_a_wrong_policy_is_refused():
    with pytest.raises(ValueError, match=r"CvxpyLayer: on_failure must be .* got 'quietly'"):
        regression(on_failure="quietly")


# --- a module -------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("make", [regression, constrained_regression, geometric], ids=name_of)
def test_copies(make, copied, used):
    layer, data = make(on_failure="ignore")
    if used:
        solve_and_differentiate(layer, data)
    other = COPIES[copied](layer)
    wanted = solve_and_differentiate(layer, data)
    del layer
    assert other.on_failure == "ignore"
    assert_same(solve_and_differentiate(other, data), wanted, 0)


def test_a_graph_outlives_its_layer():
    layer, data = regression()
    wanted = solve_and_differentiate(layer, data)[1]
    leaves = [t.clone().requires_grad_() for t in data.values()]
    total = weighted(outputs_of(layer.solve(*leaves)))
    del layer
    found = torch.autograd.grad(total, leaves)
    for g, want in zip(found, wanted.values(), strict=True):
        torch.testing.assert_close(g, want)


def test_torch_save():
    layer, data = ball()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert_same(solve_and_differentiate(again, data), solve_and_differentiate(layer, data), 0)


ELSEWHERE = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    cases = pickle.load(file)
for layer, given, wanted in cases:
    given = [t.requires_grad_() for t in given]
    found = layer(*given)[0]
    found.sum().backward()
    assert (found - wanted[0]).abs().max() < 1e-9
    assert (given[0].grad - wanted[1]).abs().max() < 1e-9
assert "cvxpy" not in sys.modules
print("as expected")
"""


def test_pickles_work_in_another_process_without_cvxpy(tmp_path):
    cases = []
    for make in (regression, ball, geometric):
        layer, data = make()
        leaves = [t.clone().requires_grad_() for t in data.values()]
        found = layer(*leaves)[0]
        found.sum().backward()
        cases.append((layer, list(data.values()), (found.detach(), leaves[0].grad)))
    file = tmp_path / "layers"
    file.write_bytes(pickle.dumps(cases))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", ELSEWHERE, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "as expected\n", run.stderr


def test_nothing_is_learned_and_nothing_saved():
    layer, _ = regression()
    assert not list(layer.parameters())
    assert not list(layer.buffers())
    assert not layer.state_dict()
    layer.load_state_dict({})


@makers
def test_moving_it_to_a_type_changes_nothing(make):
    layer, data = make()
    wanted = solve_and_differentiate(layer, data)
    moves = (lambda m: m.to(torch.float32), lambda m: m.half(), lambda m: m.double())
    for move in (*moves, lambda m: m.cpu(), lambda m: m.train(), lambda m: m.eval()):
        assert move(layer) is layer
        assert_same(solve_and_differentiate(layer, data), wanted, 0)


class Network(torch.nn.Module):
    """Predicts the objective of a projection onto the simplex."""

    def __init__(self):
        super().__init__()
        x, c = cp.Variable(3), cp.Parameter(3)
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0, cp.sum(x) == 1])
        self.before = torch.nn.Linear(4, 3)
        self.layer = ol.CvxpyLayer(problem, [c], [x])
        self.after = torch.nn.Linear(3, 1)

    def forward(self, t):
        (x,) = self.layer(self.before(t))
        return self.after(x)


def test_inside_a_network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(Network(), torch.nn.Tanh())
    inputs = torch.randn(16, 4)
    target = inputs.relu().sum(-1, keepdim=True).tanh() / 2
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (network(inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert set(network.state_dict()) == {
        "0.before.weight", "0.before.bias", "0.after.weight", "0.after.bias",
    }  # fmt: skip
    assert torch.equal(copy.deepcopy(network).eval()(inputs), network(inputs))


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@makers
def test_without_gradients(make, mode):
    layer, data = make()
    wanted = layer(*data.values())
    leaves = [t.clone().requires_grad_() for t in data.values()]
    with mode():
        found = layer(*leaves)
    for one, other in zip(found, wanted, strict=True):
        assert not one.requires_grad
        assert torch.equal(one, other)


def test_arguments_made_in_inference_mode():
    for make in (regression, ball):
        layer, data = make()
        wanted = layer(*data.values())
        with torch.inference_mode():
            frozen = [t.clone() for t in data.values()]
        for one, other in zip(layer(*frozen), wanted, strict=True):
            assert torch.equal(one, other)


@makers
def test_autocast_changes_nothing(make):
    layer, data = make()
    for dtype in (torch.float32, torch.float64):
        given = {name: t.to(dtype) for name, t in data.items()}
        wanted = solve_and_differentiate(layer, given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = solve_and_differentiate(layer, given)
        for one, other in zip(outputs_of(found[0]), outputs_of(wanted[0]), strict=True):
            assert one.dtype == other.dtype
        assert_same(found, wanted, 1e-12)


class Programs(Dataset):
    """Solves and differentiates by layers that were made in the parent."""

    def __init__(self):
        self.layers = [make() for make in (regression, ball, geometric)]

    def __len__(self):
        return len(self.layers)

    def __getitem__(self, index):
        solution, gradients = solve_and_differentiate(*self.layers[index])
        return solution.x[0].detach(), next(iter(gradients.values()))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will")
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_forked_data_loader_workers(used):
    dataset = Programs()
    if used:
        for i in range(len(dataset)):
            dataset[i]
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    found = list(loader)
    for i, (x, g) in enumerate(found):
        want_x, want_g = dataset[i]
        torch.testing.assert_close(x, want_x, rtol=0, atol=1e-9)
        torch.testing.assert_close(g, want_g, rtol=0, atol=1e-9)


@makers
def test_many_threads_at_once(make):
    """They use one layer that none has used before, with batches of different kinds."""
    layer, data = make()
    fresh = copy.deepcopy(layer)
    given = [data, {name: t[0] for name, t in data.items()}]
    name = next(iter(data))
    given += [given[1] | {name: data[name]}, data | {name: data[name][0]}]
    wanted = [solve_and_differentiate(layer, one) for one in given]
    found, errors = [None] * len(given), []
    start = threading.Barrier(len(given))

    def work(i):
        try:
            start.wait(timeout=30)
            for _ in range(3):
                found[i] = solve_and_differentiate(fresh, given[i])
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other, 1e-9)


def test_arguments_are_not_modified_and_outputs_may_be():
    # Those of geometric programs are exponentials, which torch wants unmodified.
    for make in set(MAKERS) - {geometric}:
        layer, data = make()
        leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
        solution = layer.solve(*leaves.values())
        total = weighted(outputs_of(solution))
        with torch.no_grad():
            for t in solution.x:
                t.zero_()
        found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        wanted = solve_and_differentiate(layer, data)[1]
        for g, (name, t) in zip(found, data.items(), strict=True):
            assert torch.equal(leaves[name], t)
            torch.testing.assert_close(g, wanted[name], rtol=1e-12, atol=1e-12)


def test_backward_twice():
    layer, data = ball()
    leaves = [t.clone().requires_grad_() for t in data.values()]
    total = weighted(layer(*leaves))
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    second = torch.autograd.grad(total, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- the problem ----------------------------------------------------------------------------------


def simple():
    x, c = cp.Variable(2), cp.Parameter(2)
    rows = [x >= 0, cp.sum(x) == 1]
    return cp.Problem(cp.Minimize(cp.sum_squares(x - c)), rows), c, x


def test_the_problem_is_left_alone():
    problem, c, x = simple()
    layer = ol.CvxpyLayer(problem, [c], [x])
    layer(tensor([1, 2]))
    assert c.value is None
    assert x.value is None
    assert problem.value is None
    assert problem.status is None
    assert problem.constraints[0].dual_value is None


def test_a_problem_that_was_solved_before():
    problem, c, x = simple()
    c.value = tensor([3, -1]).numpy()
    for solver in ("CLARABEL", "SCS", "OSQP"):
        problem.solve(solver)
    before, value = x.value.copy(), problem.value
    layer = ol.CvxpyLayer(problem, [c], [x])
    torch.testing.assert_close(layer(tensor([0.3, 0.5]))[0], tensor([0.4, 0.6]))
    assert (x.value == before).all()
    assert problem.value == value
    problem.solve("CLARABEL")
    torch.testing.assert_close(torch.as_tensor(x.value), tensor([1, 0]), rtol=0, atol=1e-6)


def test_one_problem_in_two_layers():
    problem, c, x = simple()
    dual = problem.constraints[1].dual_variables[0]
    one = ol.CvxpyLayer(problem, [c], [x])
    two = ol.CvxpyLayer(problem, [c], [dual, x], solver=Clarabel())
    given = tensor([0.3, 0.5])
    torch.testing.assert_close(one(given)[0], two(given)[1])
    torch.testing.assert_close(one(given)[0], tensor([0.4, 0.6]))


def test_variables_may_be_asked_for_in_any_order_and_twice():
    problem, c, x = simple()
    dual = problem.constraints[0].dual_variables[0]
    layer = ol.CvxpyLayer(problem, [c], (dual, x, x))
    z, one, two = layer(tensor([3, -1]))
    assert torch.equal(one, two)
    torch.testing.assert_close(one, tensor([1, 0]))
    torch.testing.assert_close(z, tensor([0, 6]))


LARGE = """
import resource, time
import cvxpy as cp, torch, optlayers as ol
small = cp.Variable(2), cp.Parameter(2)
ol.CvxpyLayer(cp.Problem(cp.Minimize(cp.sum_squares(small[0] - small[1]))), [small[1]], [small[0]])
x, A, b = cp.Variable(1000), cp.Parameter((100, 1000)), cp.Parameter(100)
problem = cp.Problem(cp.Minimize(cp.sum(x)), [A @ x == b, x >= 0])
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
layer = ol.CvxpyLayer(problem, [A, b], [x])
seconds = time.process_time() - start
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(seconds, grown)
"""


@pytest.mark.slow
def test_large_parameters_take_little_time_and_memory():
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, run.stdout.split())
    assert seconds < 2
    assert megabytes < 500


def test_large_parameters_are_solved_and_differentiated():
    x, A, b = cp.Variable(200), cp.Parameter((20, 200)), cp.Parameter(20)
    problem = cp.Problem(cp.Minimize(cp.sum(x) + 0.01 * cp.sum_squares(x)), [A @ x == b, x >= 0])
    layer = ol.CvxpyLayer(problem, [A, b], [x])
    data = random(20, 200).abs()
    A_value, b_value = data.requires_grad_(), (data @ random(200, seed=1).abs()).detach()
    (x_value,) = layer(A_value, b_value)
    torch.testing.assert_close(A_value @ x_value, b_value)
    (g,) = torch.autograd.grad(x_value.square().sum(), A_value)
    along = random(20, 200, seed=2)
    with torch.no_grad():
        moved = torch.stack([A_value + 1e-6 * along, A_value - 1e-6 * along])
        ahead, behind = layer(moved, b_value)[0].square().sum(-1)
    torch.testing.assert_close((g * along).sum(), (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-5)
