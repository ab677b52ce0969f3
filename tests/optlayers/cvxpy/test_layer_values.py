"""Values and gradients of the layer, over the whole table of problems."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import optlayers as ol
from optlayers.cvxpy import forms
from optlayers.cvxpy.conic_form import ConicForm
from optlayers.cvxpy.elimination import keep_all
from optlayers.cvxpy.quadratic_form import QuadraticForm
from optlayers.solvers import Clarabel
from tests.optlayers.cvxpy.problems import PROBLEMS
from tests.optlayers.cvxpy.reference import assign, solve_by_cvxpy

STEP, DIRECTIONS = 1e-5, 3
# Clarabel stops where residuals are 1e-10; where the objective is flat, x is known to the root.
REFERENCE = {
    "exp_entropy": 1e-5,
    "exp_kl_div": 1e-5,
    "exp_log": 1e-4,
    "exp_logistic_regression": 1e-5,
    "exp_cone": 1e-5,
    "gp_parameter_as_factor_and_exponent": 1e-5,
    "gp_vector": 1e-5,
    "sdp_lambda_max": 1e-5,
    "sdp_log_det": 1e-4,
    "sdp_trace": 3e-4,
    "socp_geo_mean": 1e-5,
    "socp_power": 1e-5,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:Solution may be inaccurate"),
    pytest.mark.filterwarnings("ignore:Reading from a sparse CVXPY expression:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def double():
    """The type of results where no parameter has one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


class Subject:
    """A problem of the table with its layer, which is made once for all tests."""

    def __init__(self, name):
        self.name, self.case = name, PROBLEMS[name]()
        self.layer = self.make()
        self.values = [torch.as_tensor(value) for value in self.case.values]

    def make(self, **options):
        case = self.case
        return ol.CvxpyLayer(case.problem, case.parameters, case.variables, gp=case.gp, **options)


@pytest.fixture(scope="module", params=PROBLEMS)
def subject(request):
    return Subject(request.param)


def functional(solution):
    """A real number for each element, in which every entry of every output counts."""
    rng, total = np.random.default_rng(1), solution.objective * 0.7
    for output in solution.x:
        for part in (output.real, output.imag) if output.is_complex() else (output,):
            entries = part.reshape(*solution.status.shape, -1)
            total = total + entries @ torch.as_tensor(rng.standard_normal(entries.shape[-1]))
    return total


def gradients(layer, values):
    leaves = [value.clone().requires_grad_() for value in values]
    if not leaves:
        return ()
    return torch.autograd.grad(functional(layer.solve(*leaves)), leaves, materialize_grads=True)


def test_values_are_those_of_cvxpy(subject):
    solution = subject.layer.solve(*subject.values)
    objective, wanted = solve_by_cvxpy(subject.case)
    assert float(solution.objective) == pytest.approx(objective, rel=1e-6, abs=1e-6)
    tolerance = REFERENCE.get(subject.name, 1e-6)
    assert len(solution.x) == len(wanted)
    for found, want in zip(solution.x, wanted, strict=True):
        assert found.shape == want.shape
        assert found.dtype == (torch.complex128 if np.iscomplexobj(want) else torch.float64)
        np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance)


def test_points_are_optimal_in_the_users_problem(subject):
    """The problem as written says so: feasible, and as good as what cvxpy finds."""
    case, solution = subject.case, subject.layer.solve(*subject.values)
    assert solution.status == 0
    assert max(float(residual) for residual in solution.residuals) < 1e-9
    best, _ = solve_by_cvxpy(case)
    assign(case.parameters, case.values)
    own = {variable.id: value for variable, value in zip(case.variables, solution.x, strict=True)}
    for variable in case.problem.variables():
        value = own[variable.id].numpy()
        if variable.sparse_idx is None:
            variable.value = value
        else:
            entries = value[variable.sparse_idx]
            variable.value_sparse = sp.coo_array((entries, variable.sparse_idx), variable.shape)
    for constraint in case.problem.constraints:
        if not isinstance(constraint, cp.ExpCone | cp.PowCone3D | cp.constraints.PowConeND):
            # Of these cones cvxpy projects by a solver, to its tolerance.
            assert np.max(constraint.violation(), initial=0) < 1e-8
    value = float(case.problem.objective.value)
    assert value == pytest.approx(float(solution.objective), rel=1e-9, abs=1e-9)
    excess = value - best if isinstance(case.problem.objective, cp.Minimize) else best - value
    assert excess < 1e-8 * max(1, abs(best))


def test_gradients_are_those_of_finite_differences(subject):
    layer, values = subject.layer, subject.values
    rng = np.random.default_rng(5)
    for k, (value, gradient) in enumerate(zip(values, gradients(layer, values), strict=True)):
        assert gradient.shape == value.shape
        assert gradient.dtype == value.dtype
        shape = (DIRECTIONS, *value.shape)
        along = torch.as_tensor(rng.standard_normal(shape))
        if value.is_complex():
            along = torch.complex(along, torch.as_tensor(rng.standard_normal(shape)))
        moved = [*values[:k], value + STEP * torch.stack([along, -along]), *values[k + 1 :]]
        ahead, behind = functional(layer.solve(*moved))
        wanted = (ahead - behind) / (2 * STEP)
        found = (gradient.conj() * along).real.reshape(DIRECTIONS, -1).sum(-1)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_single_precision(subject):
    values = [v.to(torch.complex64 if v.is_complex() else torch.float32) for v in subject.values]
    if not values:
        return
    found = subject.layer(*values)
    wanted = subject.layer(*(v.to(w.dtype) for v, w in zip(values, subject.values, strict=True)))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == (torch.complex64 if other.is_complex() else torch.float32)
        assert torch.equal(one, other.to(one.dtype))


def compare(one, other, values, tolerance):
    first, second = one.solve(*values), other.solve(*values)
    for a, b in zip((*first.x, first.objective), (*second.x, second.objective), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    pairs = zip(gradients(one, values), gradients(other, values), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


QUADRATIC = [name for name in PROBLEMS if name.startswith(("lp", "qp", "parameter", "variable"))]


@pytest.mark.parametrize("name", QUADRATIC)
def test_the_two_forms_agree(name):
    subject = Subject(name)
    if name != "parameter_in_a_convex_function":
        assert isinstance(subject.layer._form, QuadraticForm)
    conic = subject.make(solver=Clarabel())
    assert isinstance(conic._form, ConicForm)
    compare(subject.layer, conic, subject.values, 1e-7)


def test_elimination_changes_nothing(subject, monkeypatch):
    monkeypatch.setattr(forms, "eliminate", keep_all)
    whole = subject.make()
    assert whole._form.k == 0
    if subject.layer._form.k:
        compare(subject.layer, whole, subject.values, 1e-7)


def test_hermitian_duals_are_differentiated_without_a_warning():
    """In the doubled real form they are not unique; what they mean for the user is."""
    subject = Subject("complex_hermitian")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gradient,) = gradients(subject.layer, subject.values)
    X, Z, _ = subject.layer(*subject.values)
    torch.testing.assert_close(Z, Z.mH)
    assert torch.linalg.eigvalsh(Z).min() > -1e-9
    torch.testing.assert_close(X @ Z, torch.zeros_like(X), rtol=0, atol=1e-9)
    torch.testing.assert_close(gradient, gradient.mH)
