"""What the quadratic programming layer does about wrong arguments and unsolvable problems."""

import pickle
import warnings

import pytest
import torch

import optlayers as ol
from optlayers.solvers import ActiveSet
from solvers.solution import SolverError, Status
from tests.optlayers.oracles import INPUTS, OUTPUTS, planted, solve, weighted
from tests.solvers.qp.problems import ALL

inf, nan = torch.inf, torch.nan
POLICIES = ["warn", "ignore"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def data_of(name):
    problem = ALL[name].make()
    return {key: getattr(problem, key) for key in INPUTS if getattr(problem, key) is not None}


def leaves_of(data):
    return {name: t.clone().requires_grad_() for name, t in data.items()}


def solve_quietly(data, policy, **more):
    """Solve, and look at the warning apart."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ol.SolverWarning)
        return solve(data, on_failure=policy, **more)


# --- problems without a solution ------------------------------------------------------------------

UNSOLVABLE = {
    "infeasible_inequalities": Status.PRIMAL_INFEASIBLE,
    "infeasible_equalities": Status.PRIMAL_INFEASIBLE,
    "infeasible_crossed_bounds": Status.PRIMAL_INFEASIBLE,
    "infeasible_lp": Status.PRIMAL_INFEASIBLE,
    "unbounded_lp": Status.DUAL_INFEASIBLE,
    "unbounded_lp_unconstrained": Status.DUAL_INFEASIBLE,
    "unbounded_singular_P": Status.DUAL_INFEASIBLE,
    "unbounded_singular_P_unconstrained": Status.DUAL_INFEASIBLE,
    "indefinite_P": Status.NUMERICAL_ERROR,
}
unsolvable = pytest.mark.parametrize("name", UNSOLVABLE)


@unsolvable
def test_raises_by_default(name):
    status = UNSOLVABLE[name]
    with pytest.raises(SolverError, match=f"qp: of 1 problems 1 {status.name}") as caught:
        solve(data_of(name))
    assert caught.value.solution.status == status
    assert status.message in str(caught.value)


@pytest.mark.parametrize("policy", POLICIES)
@unsolvable
def test_results_are_nan_and_gradients_zero(name, policy):
    data = leaves_of(data_of(name))
    solution = solve_quietly(data, policy)
    assert solution.status == UNSOLVABLE[name]
    for output in OUTPUTS:
        assert getattr(solution, output).isnan().all(), output
    weighted([getattr(solution, output) for output in OUTPUTS]).backward()
    for key, t in data.items():
        assert torch.equal(t.grad, torch.zeros_like(t)), key


@pytest.mark.parametrize("output", OUTPUTS)
@unsolvable
def test_gradients_of_each_output_are_zero(name, output):
    data = leaves_of(data_of(name))
    getattr(solve(data, on_failure="ignore"), output).sum().backward()
    for key, t in data.items():
        assert t.grad is None or not t.grad.any(), key


def three_failures():
    """Elements 1 and 3 of six are infeasible, element 4 is unbounded."""
    return {
        "P": torch.stack([eye(2)] * 4 + [torch.zeros(2, 2).double(), eye(2)]),
        "q": tensor([-2, -3]),
        "G": tensor([[1, 1], [-1, -1]]),
        "h": tensor([[1, 5], [-1, -1], [1, 5], [-2, 1], [inf, inf], [1, 5]]),
    }


def test_the_error_says_how_many_and_which_and_why():
    with pytest.raises(SolverError) as caught:
        solve(three_failures())
    text = str(caught.value)
    assert text.startswith("qp: of 6 problems ")
    assert "2 PRIMAL_INFEASIBLE (no point satisfies the constraints; elements 1, 3)" in text
    assert "1 DUAL_INFEASIBLE (the objective has no lower bound" in text
    assert "elements 4)" in text
    assert "on_failure='ignore'" in text
    solution = caught.value.solution
    assert isinstance(solution, ol.Solution)
    assert solution.status.tolist() == [0, 3, 0, 3, 4, 0]
    torch.testing.assert_close(solution.x[0], tensor([0, 1]))


def test_the_error_of_a_large_batch_stays_short():
    data = three_failures()
    data["h"] = data["h"][1].expand(1000, 2)
    data["P"] = eye(2)
    with pytest.raises(SolverError, match=r"1000 PRIMAL_INFEASIBLE .* 0, 1, 2, 3, 4, \.\.\.\)"):
        solve(data)


def test_the_error_survives_the_way_home_from_a_worker_process():
    with pytest.raises(SolverError) as caught:
        solve(three_failures())
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert torch.equal(again.solution.status, caught.value.solution.status)


def test_warns_once():
    data = leaves_of(three_failures())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = solve(data, on_failure="warn")
        weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    assert [w.category for w in caught] == [ol.SolverWarning]
    text = str(caught[0].message)
    assert "2 PRIMAL_INFEASIBLE" in text
    assert "1 DUAL_INFEASIBLE" in text
    assert "NaN" in text


def test_ignore_says_nothing():
    solution = solve(three_failures(), on_failure="ignore")  # a warning would be an error here
    assert solution.x.isnan().any(-1).tolist() == [False, True, False, True, True, False]


@pytest.mark.parametrize("policy", ["raise", "warn", "ignore"])
def test_solvable_problems_pass_under_every_policy(policy):
    data, known = planted(0, 5, 4, 1, batch=(3,), bounds=True)
    plain, solution = solve(data), solve(data, on_failure=policy)
    torch.testing.assert_close(solution.x, known["x"])
    for name in OUTPUTS:
        assert torch.equal(getattr(solution, name), getattr(plain, name))


def test_running_out_of_iterations_is_a_failure():
    data, _ = planted(0, 20, 20, 4, bounds=True)
    with pytest.raises(SolverError, match="1 MAX_ITERATIONS"):
        solve(data, solver=ActiveSet(max_iter=1))
    solution = solve(data, solver=ActiveSet(max_iter=1), on_failure="ignore")
    assert solution.x.isnan().all()


# --- data that are not numbers --------------------------------------------------------------------


def spoilt(name, value, *, batch=(3,)):
    """A batch whose middle element has ``value`` in one argument."""
    data, _ = planted(1, 5, 4, 1, batch=batch, bounds=True)
    data[name][1].flatten()[1 if data[name][1].numel() > 1 else 0] = value
    return data


@pytest.mark.parametrize("name", INPUTS)
def test_nan_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"qp: {name} must .* got 1 entries .* on_failure="):
        solve(spoilt(name, nan))


@pytest.mark.parametrize("value", [inf, -inf])
@pytest.mark.parametrize("name", ["P", "q", "G", "A", "b"])
def test_infinity_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"qp: {name} must be finite"):
        solve(spoilt(name, value))


# Each has a NaN in its value or in its own derivative at the failed element.
LOSSES = {
    "sum": lambda x: x.sum(),
    "square": lambda x: x.pow(2).sum(),
    "product": lambda x: x.prod(-1).sum(),
    "logarithm": lambda x: x.abs().log().sum(),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1).sum(),
    "softmax": lambda x: x.softmax(-1).square().sum(),
    "mean": lambda x: x.mean(),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", INPUTS)
def test_nan_gives_nan_and_zero_gradients(name, policy, loss):
    data = leaves_of(spoilt(name, nan))
    solution = solve_quietly(data, policy)
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    for output in OUTPUTS:
        failed = getattr(solution, output).isnan().flatten(1).all(1) if output != "objective" else (
            solution.objective.isnan()
        )  # fmt: skip
        assert failed.tolist() == [False, True, False], output
    LOSSES[loss](solution.x).backward()
    for key, t in data.items():
        assert torch.equal(t.grad[1], torch.zeros_like(t[1])), key
        assert t.grad.isfinite().all(), key
    assert data["q"].grad[[0, 2]].any(-1).all()


@pytest.mark.parametrize("value", [inf, -inf])
@pytest.mark.parametrize("name", ["P", "q", "G", "A", "b"])
def test_infinity_gives_nan_and_zero_gradients(name, value):
    data = leaves_of(spoilt(name, value))
    solution = solve(data, on_failure="ignore")
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    assert solution.x.isnan().all(-1).tolist() == [False, True, False]
    weighted([getattr(solution, output) for output in OUTPUTS]).backward()
    for key, t in data.items():
        assert t.grad.isfinite().all(), key
        assert not t.grad[1].any(), key


@pytest.mark.parametrize("name", ["P", "G", "h", "A", "b", "lb"])
def test_nan_in_a_shared_argument_fails_all(name):
    data, _ = planted(1, 5, 4, 1, bounds=True)
    data["q"] = data["q"].expand(3, 5)
    data[name].view(-1)[0] = nan
    data = leaves_of(data)
    solution = solve(data, on_failure="ignore")
    assert solution.status.tolist() == [Status.NUMERICAL_ERROR] * 3
    assert solution.x.isnan().all()
    solution.x.pow(2).sum().backward()
    assert all(not t.grad.any() for t in data.values())


@pytest.mark.parametrize("name", ["q", "h", "G"])
def test_nan_and_second_derivatives(name):
    data = leaves_of(spoilt(name, nan))
    solution = solve(data, on_failure="ignore")
    first = torch.autograd.grad(solution.x.pow(2).sum(), list(data.values()), create_graph=True)
    sum(g.pow(2).sum() for g in first).backward()
    for key, t in data.items():
        assert t.grad.isfinite().all(), key
        assert not t.grad[1].any(), key


def test_infinite_ends_are_allowed():
    data = {"P": eye(2), "q": tensor([-2, -3]), "G": tensor([[1, 1], [1, 0]]),
            "h": tensor([1, inf]), "lb": tensor([-inf, 0]), "ub": tensor([inf, inf])}  # fmt: skip
    data = leaves_of(data)
    solution = solve(data)
    torch.testing.assert_close(solution.x, tensor([0, 1]))
    solution.x.pow(2).sum().backward()
    assert all(t.grad.isfinite().all() for t in data.values())
    assert data["h"].grad[1] == 0
    assert not data["lb"].grad.any()


@pytest.mark.parametrize(("name", "value"), [("h", -inf), ("lb", inf), ("ub", -inf)])
def test_ends_infinite_on_the_wrong_side_are_infeasible(name, value):
    data = leaves_of(spoilt(name, value))
    solution = solve(data, on_failure="ignore")
    assert solution.status.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    solution.x.pow(2).sum().backward()
    for t in data.values():
        assert t.grad.isfinite().all()
        assert not t.grad[1].any()


# --- neighbours -----------------------------------------------------------------------------------


def spoil(data, failure):
    """Element 2 of the batch gets the failure."""
    bad = {name: t.clone() for name, t in data.items()}
    if failure == "infeasible":
        bad["G"][2, 1], bad["h"][2, 1] = -bad["G"][2, 0], -bad["h"][2, 0] - 1
    elif failure == "unbounded":
        for name in ("P", "G", "A", "b"):
            bad[name][2] = 0.0
        bad["h"][2], bad["lb"][2], bad["q"][2] = 1.0, -inf, 1.0
    elif failure == "indefinite":
        bad["P"][2] = -bad["P"][2]
    else:
        bad[failure][2] = nan
    return bad


def solved_and_differentiated(data, policy="ignore"):
    leaves = leaves_of(data)
    solution = solve_quietly(leaves, policy)
    weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    return solution, {name: t.grad for name, t in leaves.items()}


@pytest.mark.parametrize("n", [5, 25])
@pytest.mark.parametrize("failure", ["infeasible", "unbounded", "indefinite", *INPUTS])
def test_neighbours_of_a_failed_element(failure, n):
    data, _ = planted(2, n, n, 1, batch=(5,), bounds=True)
    good, wanted = solved_and_differentiated(data)
    bad, found = solved_and_differentiated(spoil(data, failure))
    mates = [0, 1, 3, 4]
    assert good.solved.all()
    assert bad.solved.tolist() == [True, True, False, True, True]
    for name in (*OUTPUTS, "status", "iterations", "primal_residual", "dual_residual"):
        assert torch.equal(getattr(bad, name)[mates], getattr(good, name)[mates]), name
    for name, g in found.items():
        torch.testing.assert_close(g[mates], wanted[name][mates], rtol=0, atol=1e-12)
        assert torch.equal(g[2], torch.zeros_like(g[2])), name


@pytest.mark.parametrize("value", [-1e3, nan], ids=["infeasible", "nan"])
def test_shared_matrices_get_the_sum_over_solved_elements(value):
    data, _ = planted(3, 6, 5, 1, bounds=True)
    shifts = 0.1 * torch.arange(4.0, dtype=torch.float64)[:, None]
    data["q"], data["h"] = data["q"] + shifts, data["h"] + shifts
    spoiled = data | {"h": data["h"].clone()}
    spoiled["h"][2] = value
    kept = [0, 1, 3]

    def shared_gradients(data):
        leaves = leaves_of(data)
        solution = solve(leaves, on_failure="ignore")
        x, z = solution.x[solution.solved], solution.z[solution.solved]
        weighted([x, z]).backward()
        return {name: leaves[name].grad for name in ("P", "G", "A", "b", "lb", "ub")}

    wanted = shared_gradients(data | {"q": data["q"][kept], "h": data["h"][kept]})
    for name, g in shared_gradients(spoiled).items():
        torch.testing.assert_close(g, wanted[name], rtol=1e-12, atol=1e-12)


def test_failures_in_float32():
    data = {name: t.float().requires_grad_() for name, t in three_failures().items()}
    solution = solve(data, on_failure="ignore")
    assert solution.x.dtype == torch.float32
    assert solution.x.isnan().all(-1).tolist() == [False, True, False, True, True, False]
    solution.x.pow(2).sum().backward()
    assert not data["P"].grad[[1, 3, 4]].any()
    assert data["P"].grad[[0, 2, 5]].any()


def test_failures_in_several_batch_dimensions():
    data = three_failures()
    data["P"], data["h"] = data["P"].reshape(2, 3, 2, 2), data["h"].reshape(2, 3, 2)
    solution = solve(data, on_failure="ignore")
    assert solution.solved.tolist() == [[True, False, True], [False, False, True]]
    assert torch.equal(solution.x.isnan().all(-1), ~solution.solved)


# --- wrong arguments ------------------------------------------------------------------------------

ones = torch.ones(1, dtype=torch.float64)
WRONG = {
    "q is a list": ({"q": [1.0, 2.0]}, TypeError, "q must be a real floating-point tensor; got li"),
    "q is missing": ({"q": None}, TypeError, "q must be a real floating-point tensor; got NoneTyp"),
    "q has integers": ({"q": torch.tensor([1, 2])}, TypeError, "q must be .* got torch.int64"),
    "P is complex": ({"P": torch.eye(2) + 0j}, TypeError, "P must be .* got torch.complex64"),
    "G is an array": ({"G": eye(2).numpy()}, TypeError, "G must be .* got ndarray.*as_tensor"),
    "q is a number": ({"q": tensor(1.0)}, ValueError, r"q must have at .* q.reshape\(1\)"),
    "P is a number": ({"P": tensor(1.0)}, ValueError, r"P must have .* P.reshape\(1, 1\)"),
    "q is empty": ({"q": tensor([])}, ValueError, "q must have at least one entry"),
    "P of other size": ({"P": eye(3)}, ValueError, r"P must have shape \(\*batch, 2, 2\) beca"),
    "P is not square": ({"P": eye(2)[:1]}, ValueError, r"P must have .* got \(1, 2\)"),
    "G turned over": ({"G": torch.ones(2, 3).double(), "h": torch.ones(3).double()}, ValueError,
                      r"G must have shape \(\*batch, m, 2\).* got \(2, 3\)\. Did you mean G\.mT\?"),
    "A turned over": ({"A": torch.ones(2, 1).double(), "b": ones}, ValueError,
                      r"A must have .* got \(2, 1\)\. Did you mean A\.mT\?"),
    "G without h": ({"G": torch.ones(1, 2).double()}, ValueError, "G and h go .* got G without"),
    "h without G": ({"h": ones}, ValueError, "G and h go together; got h without G"),
    "A without b": ({"A": torch.ones(1, 2).double()}, ValueError, "A and b go .* got A without"),
    "b without A": ({"b": ones}, ValueError, "A and b go together; got b without A"),
    "h too long": ({"G": torch.ones(1, 2).double(), "h": tensor([1, 2])}, ValueError,
                   r"h must have shape \(\*batch, 1\) because G has 1 rows; got \(2,\)"),
    "b too long": ({"A": torch.ones(1, 2).double(), "b": tensor([1, 2])}, ValueError,
                   "b must have shape .* because A has 1 rows"),
    "lb of other size": ({"lb": ones}, ValueError, r"lb must have shape \(\*batch, 2\) because q"),
    "ub of other size": ({"ub": ones}, ValueError, r"ub must have shape \(\*batch, 2\) because q"),
    "batches that do not fit": ({"P": eye(2).expand(3, 2, 2), "q": torch.ones(4, 2).double()},
                                ValueError, r"leading \(batch\) dimensions .* P \(3,\), q \(4,\)"),
    "P on another device": ({"P": eye(2).to("meta")}, ValueError,
                            "one device; q is on cpu and P on meta"),
    "h on another device": ({"G": torch.ones(1, 2).double(), "h": ones.to("meta")}, ValueError,
                            "one device; q is on cpu and h on meta"),
    "unknown policy": ({"on_failure": "shrug"}, ValueError,
                       "on_failure must be 'raise', 'warn' or 'ignore'; got 'shrug'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case):
    given, error, text = WRONG[case]
    with pytest.raises(error, match=f"^qp: .*{text}"):
        ol.qp(**{"P": eye(2), "q": tensor([1, 2])} | given)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("case", ["P of other size", "G without h", "q has integers"])
def test_wrong_arguments_raise_under_every_policy(case, policy):
    given, error, text = WRONG[case]
    with pytest.raises(error, match=text):
        ol.qp(**{"P": eye(2), "q": tensor([1, 2])} | given, on_failure=policy)


def test_a_warm_start_from_another_problem():
    data, _ = planted(0, 5, 4, 1)
    other = solve(planted(0, 4, 4, 1)[0])
    with pytest.raises(ValueError, match=r"qp: warm_start must be a Solution of a problem with 5"):
        solve(data, warm_start=other)
    fewer = solve(planted(0, 5, 3, 1)[0])
    with pytest.raises(ValueError, match=r"\(1, 4, 0\) equalities.*; got 5, \(1, 3, 0\)"):
        solve(data, warm_start=fewer)


def test_a_warm_start_from_another_batch():
    data, _ = planted(0, 5, 4, 1, batch=(3,))
    other = solve(planted(0, 5, 4, 1, batch=(2,))[0])
    with pytest.raises(ValueError, match="qp: warm_start must"):
        solve(data, warm_start=other)


def test_a_warm_start_of_another_kind():
    data, _ = planted(0, 5, 4, 1)
    with pytest.raises(TypeError, match="qp: warm_start must be a Solution"):
        solve(data, warm_start=torch.zeros(5))


def test_a_solver_of_another_kind():
    data, _ = planted(0, 5, 4, 1)
    with pytest.raises(TypeError, match="qp: solver must be"):
        solve(data, solver="active_set")
