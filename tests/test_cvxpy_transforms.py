"""The whole transform matrix on layers of cvxpy problems of every kind."""

import cvxpy as cp
import pytest
import torch

import optlayers as ol
from optlayers.solvers import Clarabel
from optlayers.testing import check_layer

# Refused where there are other cones than linear and second-order ones.
SECOND_ORDER = (
    "double backward", "gradgradcheck*", "*hessian*", "*jacrev(jacrev)*", "*jacrev(jacfwd)*",
    "*jacfwd(jacfwd)*",
)  # fmt: skip


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def regression(**options):
    """Squares of S x, whose auxiliaries are left out, and a dual variable."""
    x, S, q, h = cp.Variable(2), cp.Parameter((2, 2)), cp.Parameter(2), cp.Parameter(2)
    rows = [x <= h]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(S @ x) + q @ x), rows)
    layer = ol.CvxpyLayer(problem, [S, q, h], [x, rows[0].dual_variables[0]], **options)
    return layer, [tensor([[1.2, 0.3], [-0.2, 0.9]]), tensor([-3, -1]), tensor([0.3, 5])]


def ball(**options):
    x, q, r = cp.Variable(2), cp.Parameter(2), cp.Parameter(nonneg=True)
    rows = [cp.norm(x) <= r]
    problem = cp.Problem(cp.Minimize(0.1 * cp.sum_squares(x) + q @ x), rows)
    layer = ol.CvxpyLayer(problem, [q, r], [x, rows[0].dual_variables[0]], **options)
    return layer, [tensor([-3, -1]), tensor(1.3)]


def log_sum_exp(**options):
    x, q = cp.Variable(2), cp.Parameter(2)
    objective = cp.log_sum_exp(x + q) + 0.5 * cp.sum_squares(x)
    return ol.CvxpyLayer(cp.Problem(cp.Minimize(objective)), [q], [x], **options), [
        tensor([-1, 0.5])
    ]


def spectral(**options):
    """The nearest matrix that is semidefinite, and of a trace."""
    X, C, b = cp.Variable((2, 2), symmetric=True), cp.Parameter((2, 2)), cp.Parameter()
    rows = [X >> 0, cp.trace(X) == b]
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - C)), rows)
    layer = ol.CvxpyLayer(problem, [C, b], [X, rows[0].dual_variables[0]], **options)
    return layer, [tensor([[2, 1], [0.5, -1]]), tensor(1.5)]


def geometric(**options):
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    a, b = cp.Parameter(pos=True), cp.Parameter()
    problem = cp.Problem(cp.Minimize(a * x + y**b + 1 / (x * y)), [x <= 2])
    return ol.CvxpyLayer(problem, [a, b], [x, y], gp=True, **options), [tensor(1.3), tensor(1.1)]


ONCE = {"third_order": False, "raises": SECOND_ORDER}
KINDS = {
    regression: {},
    ball: {},
    log_sum_exp: ONCE,
    spectral: ONCE,
    geometric: ONCE,
}
kinds = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


@pytest.mark.parametrize("make", [regression, geometric], ids=lambda make: make.__name__)
def test_some_of_the_transforms(make):
    layer, inputs = make()
    few = {"vmap_subsets": [range(len(inputs))], "third_order": False}
    check_layer(layer, inputs, compile=make is regression, **KINDS[make] | few)


@pytest.mark.slow
@kinds
def test_all_transforms(make):
    check_layer(*make(), **KINDS[make])


@pytest.mark.slow
def test_the_conic_form_of_a_quadratic_program():
    check_layer(*regression(solver=Clarabel()))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["warn", "ignore"])
@pytest.mark.parametrize("make", [regression, ball], ids=lambda make: make.__name__)
def test_policies(make, policy):
    check_layer(*make(on_failure=policy))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("make", [regression, geometric], ids=lambda make: make.__name__)
def test_failures_under_the_compiler(make):
    layer, inputs = make(on_failure="ignore")
    batch = [t.expand(3, *t.shape).clone() for t in inputs]
    batch[0][1] = torch.nan
    outcomes = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in batch]
        outputs = call(*leaves)
        gradients = torch.autograd.grad(sum(t.sum() for t in outputs), leaves)
        assert all(t[1].isnan().all() for t in outputs)
        assert all(not g[1].any() for g in gradients)
        outcomes.append([*outputs, *gradients])
    torch.testing.assert_close(*outcomes, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", [regression, ball], ids=lambda make: make.__name__)
def test_inductor(make):
    layer, inputs = make()
    check_layer(layer, inputs, vmap_subsets=[(0,), range(len(inputs))], backend="inductor")
