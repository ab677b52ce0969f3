"""Published optimal values through the layer, and their derivatives by the envelope theorem."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import optlayers as ol
from tests.optlayers.oracles import INPUTS, finite_differences, planted, solve
from tests.solvers.qp.problems import PUBLISHED

OPTIMA = {"HS21": -99.96, "HS35": 1 / 9, "HS53": 4.09302326, "HS76": -4.68181818}


def data_of(name):
    problem = PUBLISHED[name].make()
    return {key: getattr(problem, key) for key in INPUTS if getattr(problem, key) is not None}


def portfolio(n, rank):
    """As DUAL1 to DUAL4 of Maros and Meszaros: dense P, weights on the simplex."""
    F = torch.from_numpy(np.random.default_rng(n).normal(size=(n, rank)))
    ones = torch.ones(n, dtype=torch.float64)
    return {
        "P": F @ F.mT,
        "q": 0 * ones,
        "A": ones[None],
        "b": ones[:1],
        "lb": 0 * ones,
        "ub": ones,
    }


@pytest.mark.parametrize("name", OPTIMA)
def test_published_optima(name):
    solution = solve(data_of(name))
    assert float(solution.objective) + PUBLISHED[name].constant == pytest.approx(
        OPTIMA[name], rel=0, abs=1e-6
    )


def test_published_optima_in_float32():
    for name, wanted in OPTIMA.items():
        solution = solve({key: t.float() for key, t in data_of(name).items()})
        assert float(solution.objective) + PUBLISHED[name].constant == pytest.approx(
            wanted, rel=1e-5
        )


@pytest.mark.parametrize(("n", "rank"), [(10, 10), (30, 12), (75, 75)])
def test_dual_type_optima(n, rank):
    data = portfolio(n, rank)
    x = cp.Variable(n)
    risk = cp.quad_form(x, cp.psd_wrap(data["P"].numpy()))
    problem = cp.Problem(cp.Minimize(0.5 * risk), [cp.sum(x) == 1, x >= 0, x <= 1])
    wanted = problem.solve(cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert float(solve(data).objective) == pytest.approx(wanted, rel=0, abs=1e-6)


def test_dual_type_with_a_diagonal_has_a_closed_form():
    """Weights inversely proportional to the variances."""
    variance = torch.linspace(0.5, 4.0, 20, dtype=torch.float64)
    solution = solve(portfolio(20, 20) | {"P": torch.diag(variance)})
    precision = (1 / variance).sum()
    torch.testing.assert_close(solution.x, 1 / variance / precision, rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.objective, 0.5 / precision, rtol=0, atol=1e-12)


VALUES = {name: data_of(name) for name in OPTIMA} | {"DUAL-type": portfolio(6, 6)}


@pytest.mark.parametrize("name", VALUES)
def test_derivatives_of_the_optimal_value(name):
    """Against differences of the value alone."""
    data = VALUES[name]
    leaves = {key: t.clone().requires_grad_() for key, t in data.items()}
    weight = torch.randn((), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (solve(leaves).objective * weight).backward()  # the weight that finite_differences uses
    # A step in a singular P would make it indefinite.
    names = [key for key in data if key != "P" or torch.linalg.eigvalsh(data["P"]).min() > 1e-3]
    wanted = finite_differences(data, lambda given: [solve(given).objective], names, 1e-5)
    for key, want in wanted.items():
        torch.testing.assert_close(leaves[key].grad, want, rtol=1e-6, atol=1e-5)


def test_derivatives_of_the_optimal_value_of_another_solver():
    """Danskin and Rockafellar: dV/dq = x, dV/db = -y, dV/dh = -z, against Clarabel's values."""
    data, _ = planted(4, 4, 3, 1)
    solution = solve(data)
    P, q, G, h, A, b = (data[name].numpy() for name in INPUTS[:6])

    def value(q, h, b):
        x = cp.Variable(4)
        cost = 0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x
        tight = {"tol_gap_abs": 1e-13, "tol_gap_rel": 1e-13, "tol_feas": 1e-13}
        return cp.Problem(cp.Minimize(cost), [G @ x <= h, A @ x == b]).solve(cp.CLARABEL, **tight)

    vectors = [q, h, b]
    for i, wanted in enumerate((solution.x, -solution.z, -solution.y)):
        for j, want in enumerate(wanted.tolist()):
            ends = []
            for step in (1e-3, -1e-3):
                moved = [v.copy() for v in vectors]
                moved[i][j] += step
                ends.append(value(*moved))
            assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(want, abs=1e-5)


def test_the_value_of_a_network_is_its_capacity():
    """Maximal flow as a linear program: the derivative in the capacities is a minimal cut."""
    # Edges: source-a, source-b, a-b, a-sink, b-sink. Conservation at a and b.
    A = torch.tensor([[1, 0, -1, -1, 0], [0, 1, 1, 0, -1]], dtype=torch.float64)
    capacity = torch.tensor([3, 2, 1, 1, 4], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([-1, -1, 0, 0, 0], dtype=torch.float64)
    flow = ol.qp(None, q, None, None, A, 0 * q[:2], 0 * q, capacity)
    assert flow.objective.item() == pytest.approx(-4.0)
    flow.objective.backward()
    # The edges source-b, a-b and a-sink separate the source from the sink.
    torch.testing.assert_close(capacity.grad, torch.tensor([0, -1, -1, -1, 0]).double())
