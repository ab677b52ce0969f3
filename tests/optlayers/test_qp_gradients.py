"""Gradients of the quadratic programming layer against finite differences and dense algebra."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

import optlayers as ol
from optlayers.implicit import kkt as conditions
from optlayers.implicit import native_kkt
from optlayers.solvers import ActiveSet, InteriorPoint, ProximalInteriorPoint
from solvers.qp import kkt, native
from tests.optlayers.oracles import (
    INPUTS,
    OUTPUTS,
    assert_gradients_close,
    dense_kkt,
    finite_differences,
    gradients,
    layer,
    planted,
    solve,
    times,
    weighted,
)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


PROGRAMS = {
    "all kinds of rows": planted(0, 5, 4, 1, bounds=True)[0],
    "no equalities": planted(1, 4, 5, bounds=True)[0],
    "no inequalities": planted(2, 4, 0, 2, bounds=True)[0],
    "only bounds": planted(3, 4, bounds=True)[0],
    "unconstrained": planted(4, 3)[0],
    "one variable": planted(9, 1, 3)[0],
    "only lower bounds": {"P": eye(3), "q": tensor([1, -2, 3]), "lb": tensor([0, 0, -1])},
    "only upper bounds": {"P": eye(3), "q": tensor([1, -2, -3]), "ub": tensor([0, 0.5, 9])},
    "some bounds infinite": {
        "P": eye(3),
        "q": tensor([1, -2, 3]),
        "lb": tensor([-torch.inf, 0, -1]),
        "ub": tensor([5, 1, torch.inf]),
    },
    "an infinite h": {
        "P": eye(2), "q": tensor([-2, -3]), "G": tensor([[1, 0], [1, 1]]),
        "h": tensor([torch.inf, 1]),
    },
    "a singular P": planted(5, 5, 8, 1, rank=2)[0],
    "a linear program": planted(6, 4, 9, 1, linear=True)[0],
    "a linear program in bounds": {
        "q": tensor([1, -2, 3]), "lb": tensor([0, 0, 0]), "ub": tensor([1, 2, 3])
    },
}  # fmt: skip
every_output = pytest.mark.parametrize(
    ("name", "output"),
    # An infinite slack has no differences.
    [(n, o) for n in PROGRAMS for o in OUTPUTS if (n, o) != ("an infinite h", "s")],
)


# --- every output, every input --------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [True, False])
@every_output
def test_gradients_are_those_of_the_dense_kkt_system(name, output, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "library", lambda: None)
    data = PROGRAMS[name]
    oracle = dense_kkt(solve(data), output)
    assert_gradients_close(gradients(data, layer(output)), gradients(data, oracle), 1e-10)


@every_output
def test_gradients_are_finite_differences(name, output):
    data = PROGRAMS[name]
    finite = [key for key, t in data.items() if t.isfinite().all()]
    if name == "a singular P":  # a step would make it indefinite
        finite.remove("P")
    wanted = finite_differences(data, layer(output), finite)
    assert_gradients_close(gradients(data, layer(output), finite), wanted, 1e-7)


def clarabel(data):
    """Outputs of another solver, by way of cvxpy, for finite differences."""

    def one(P, q, G, h, A, b, lb, ub):
        x = cp.Variable(len(q))
        rows = [A @ x == b, G @ x <= h, lb <= x, x <= ub]
        cost = 0.5 * cp.quad_form(x, cp.psd_wrap(0.5 * (P + P.T))) + q @ x
        problem = cp.Problem(cp.Minimize(cost), rows)
        problem.solve(
            cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13, max_iter=300
        )
        y, z, lower, upper = (row.dual_value for row in rows)
        return x.value, y, z, upper - lower, h - G @ x.value, np.array(problem.value)

    shape = torch.broadcast_shapes(*(data[k].shape[:-1] for k in ("q", "h", "b", "lb", "ub")),
                                   *(data[k].shape[:-2] for k in ("P", "G", "A")))  # fmt: skip
    cores = (2, 1, 2, 1, 2, 1, 1, 1)
    arrays = [
        data[k].expand(*shape, *data[k].shape[data[k].ndim - c :]).numpy()
        for k, c in zip(INPUTS, cores, strict=True)
    ]
    found = [one(*(a[i] for a in arrays)) for i in np.ndindex(*shape)]
    return [
        torch.tensor(np.stack(parts)).reshape((*shape, *parts[0].shape))
        for parts in zip(*found, strict=True)
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_finite_differences_of_another_solver(seed):
    """Signs of the multipliers and conventions of the gradients in one: all outputs, all inputs."""
    data, _ = planted(10 + seed, 3, 2, 1, bounds=True)
    for mine, theirs in zip(layer(*OUTPUTS)(data), clarabel(data), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    wanted = finite_differences(data, clarabel, INPUTS, step=1e-3)
    assert_gradients_close(gradients(data, layer(*OUTPUTS)), wanted, 1e-4)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), n=st.sampled_from([5, 20, 50]), batch=st.sampled_from([1, 4]))
def test_gradient_error_on_random_programs(seed, n, batch):
    data, solution = planted(seed, n, n, n // 5, batch=(batch,), bounds=True)
    found = solve(data)
    for name, wanted in solution.items():
        torch.testing.assert_close(getattr(found, name), wanted, rtol=0, atol=1e-9)
    wanted = gradients(data, dense_kkt(found, *OUTPUTS))
    assert_gradients_close(gradients(data, layer(*OUTPUTS)), wanted, 1e-9)


# --- the optimal value ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all kinds of rows", "a singular P", "a linear program"])
def test_gradient_of_the_objective_is_the_envelope_theorem(name):
    data = {key: t.clone().requires_grad_() for key, t in PROGRAMS[name].items()}
    solution = solve(data)
    solution.objective.backward()
    x, y, z, z_box = (t.detach() for t in (solution.x, solution.y, solution.z, solution.z_box))
    wanted = {
        "P": 0.5 * torch.outer(x, x), "q": x, "G": torch.outer(z, x), "h": -z,
        "A": torch.outer(y, x), "b": -y, "lb": -z_box.clamp(max=0), "ub": -z_box.clamp(min=0),
    }  # fmt: skip
    for key, t in data.items():
        torch.testing.assert_close(t.grad, wanted[key], rtol=1e-12, atol=1e-12)


def test_gradient_of_the_objective_where_the_solution_is_not_unique():
    """The derivatives of x do not exist here; a subgradient of the value does."""
    data = {"q": tensor([-1, -1]), "G": tensor([[1, 1]]), "h": tensor([1]), "lb": tensor([0, 0])}
    data = {key: t.requires_grad_() for key, t in data.items()}
    solution = solve(data)
    solution.objective.backward()
    assert torch.equal(data["q"].grad, solution.x.detach())
    torch.testing.assert_close(data["h"].grad, tensor([-1]))


@pytest.mark.parametrize("compiled", [True, False])
def test_gradient_of_the_objective_needs_no_linear_solve(compiled, monkeypatch):
    data = {key: t.clone().requires_grad_() for key, t in PROGRAMS["all kinds of rows"].items()}
    value = solve(data).objective

    def refuse(*args, **kwargs):
        raise AssertionError("a linear solve")

    monkeypatch.setattr(kkt, "solve", refuse)
    if compiled:  # which does not answer if it has to solve with a matrix that became zero
        data["P"].data.zero_()
        adjoint = native.adjoint

        def spy(*args):
            assert adjoint(*args)[2] is None
            return adjoint(*args)

        monkeypatch.setattr(native, "adjoint", spy)
    else:
        monkeypatch.setattr(native, "library", lambda: None)
    value.backward()
    assert data["q"].grad is not None


# --- elements that are degenerate, among others ---------------------------------------------------


def degenerate_among_others(sharing):
    """Six programs, two of which have an equality twice; ``sharing`` names what elements share."""
    data, _ = planted(3, 5, 6, 2, bounds=True, batch=(2, 3))
    twice = data["A"].clone()
    for at in ((0, 1), (1, 2)):
        twice[at][1], data["b"][at][1] = twice[at][0], data["b"][at][0]
    data["A"] = twice
    if sharing == "P":
        data["P"] = data["P"][0, 0]
    if sharing == "G":
        data["G"], data["h"] = data["G"][:1, :1], data["h"] + 40
    if sharing == "a part":
        data["P"], data["q"] = data["P"][:, :1], data["q"][:1]
    return data


@pytest.mark.parametrize("sharing", ["nothing", "P", "G", "a part"])
def test_degenerate_elements_among_others(sharing, monkeypatch):
    data = degenerate_among_others(sharing)
    found = gradients(data, layer(*OUTPUTS))
    monkeypatch.setattr(native, "library", lambda: None)
    assert_gradients_close(found, gradients(data, layer(*OUTPUTS)), 1e-9)


def test_degenerate_elements_change_no_bit_of_others():
    data = degenerate_among_others("nothing")
    plain = data | {"A": data["A"].clone(), "b": data["b"].clone()}
    plain["A"][0, 1, 1] += torch.arange(5)
    plain["b"][0, 1, 1] += 0.1
    one, other = gradients(data, layer("x", "z")), gradients(plain, layer("x", "z"))
    others = torch.tensor([[True, False, True], [True, True, True]])
    for name, gradient in one.items():
        assert torch.equal(gradient[others], other[name][others]), name


@pytest.mark.parametrize("shape", [(0, 3), (1, 0, 3)])
def test_shared_matrices_without_rows(shape):
    P, q = torch.eye(3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    G, h = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[:-1], dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (P, q, G, h)]
    ol.qp(*leaves).x.sum().backward()
    assert G.grad.shape == shape
    torch.testing.assert_close(q.grad, -torch.ones_like(q))


# --- only what is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("name", INPUTS)
def test_a_gradient_alone_is_the_same_as_among_others(name):
    data, _ = planted(0, 5, 4, 1, bounds=True, batch=(3,))
    together, leaf = gradients(data, layer(*OUTPUTS)), data[name].clone().requires_grad_()
    weighted(layer(*OUTPUTS)(data | {name: leaf})).backward()
    torch.testing.assert_close(leaf.grad, together[name], rtol=0, atol=1e-12)
    assert all(t.grad is None for t in data.values())


@pytest.mark.parametrize("compiled", [True, False])
def test_no_matrix_gradient_is_computed_for_vectors(compiled, monkeypatch):
    data, _ = planted(0, 5, 4, 1, bounds=True, batch=(3,))
    leaves = {name: data[name].clone().requires_grad_() for name in ("q", "h", "b", "lb", "ub")}

    def refuse(*args):
        raise AssertionError("an outer product")

    monkeypatch.setattr(conditions, "outer", refuse)
    monkeypatch.setattr(native_kkt, "outer", refuse)
    if compiled:
        adjoint = native.adjoint

        def spy(*args):
            grads, a, singular = adjoint(*args)
            assert [t is not None for t in grads] == [name in leaves for name in INPUTS]
            assert a is None
            return grads, a, singular

        monkeypatch.setattr(native, "adjoint", spy)
    else:
        monkeypatch.setattr(native, "library", lambda: None)
    weighted(layer(*OUTPUTS)(data | leaves)).backward()
    assert all(t.grad is not None for t in leaves.values())


def test_nothing_requires_a_gradient():
    solution = solve(PROGRAMS["all kinds of rows"])
    assert not any(getattr(solution, name).requires_grad for name in OUTPUTS)


def test_what_is_not_differentiable_says_so():
    data = {key: t.clone().requires_grad_() for key, t in PROGRAMS["all kinds of rows"].items()}
    solution = solve(data)
    for t in (solution.status, solution.iterations, *solution.residuals):
        assert not t.requires_grad


def test_outputs_of_absent_constraints_are_empty_and_harmless():
    q = tensor([1, 2]).requires_grad_()
    solution = ol.qp(eye(2), q)
    assert solution.y.shape == solution.z.shape == solution.z_box.shape == solution.s.shape == (0,)
    (solution.y.sum() + solution.z.sum() + solution.z_box.sum() + solution.s.sum()).backward()
    assert q.grad is None or not q.grad.any()


def test_gradient_of_P_is_symmetric_and_sees_the_symmetric_part():
    data, _ = planted(0, 5, 4, 1)
    skew = 0.3 * torch.ones(5, 5, dtype=torch.float64).triu(1)
    twisted = data | {"P": data["P"] + skew - skew.mT}
    straight, turned = gradients(data, layer("x", "z")), gradients(twisted, layer("x", "z"))
    torch.testing.assert_close(turned["P"], turned["P"].mT, rtol=0, atol=1e-14)
    torch.testing.assert_close(turned["P"], straight["P"], rtol=0, atol=1e-12)


# --- batches --------------------------------------------------------------------------------------


def full(data, shape):
    cores = dict(zip(INPUTS, (2, 1, 2, 1, 2, 1, 1, 1), strict=True))
    return {
        name: t.expand(*shape, *t.shape[t.ndim - cores[name] :]).clone() for name, t in data.items()
    }


def broadcast_program(lead):
    """A feasible program whose parts have the given leading dimensions."""
    generator = torch.Generator().manual_seed(3)

    def normal(name, *shape):
        return torch.randn(*lead.get(name, ()), *shape, generator=generator, dtype=torch.float64)

    F = normal("P", 4, 4)
    return {
        "P": F @ F.mT + eye(4),
        "q": 3 * normal("q", 4),
        "G": normal("G", 5, 4),
        "h": normal("h", 5).abs() + 0.5,
        "A": normal("A", 1, 4),
        "b": 0.05 * normal("b", 1),
        "lb": -normal("lb", 4).abs() - 0.3,
        "ub": normal("ub", 4).abs() + 0.3,
    }


LEADING = {
    "q and h in different dimensions": ({"q": (2, 1), "h": (3,)}, (2, 3)),
    "everything shared but q": ({"q": (6,)}, (6,)),
    "everything shared but b": ({"b": (6,)}, (6,)),
    "everything shared but P": ({"P": (3,)}, (3,)),
    "matrices in different dimensions": ({"P": (2, 1), "G": (1, 3), "A": (2, 1)}, (2, 3)),
    "G batched": ({"G": (3,), "q": (3,)}, (3,)),
    "bounds in different dimensions": ({"lb": (2, 1, 1), "ub": (3, 1), "q": (2,)}, (2, 3, 2)),
    "dimensions of size one": ({"P": (1, 1), "q": (1, 4), "h": (1,)}, (1, 4)),
    "one element": ({"q": (1,)}, (1,)),
    "all dimensions of all": (dict.fromkeys(INPUTS, (2, 2)), (2, 2)),
    "no dimensions": ({}, ()),
}


@pytest.mark.parametrize("case", LEADING)
def test_shared_data_receive_the_sum_of_the_gradients(case, monkeypatch):
    lead, shape = LEADING[case]
    data = broadcast_program(lead)
    solution, copies = solve(data), solve(full(data, shape))
    assert solution.status.shape == solution.objective.shape == shape
    assert solution.x.shape == (*shape, 4)
    for name in OUTPUTS:
        torch.testing.assert_close(
            getattr(solution, name), getattr(copies, name), rtol=0, atol=1e-10
        )
    shared, own = gradients(data, layer(*OUTPUTS)), gradients(full(data, shape), layer(*OUTPUTS))
    wanted = {name: g.sum_to_size(data[name].shape) for name, g in own.items()}
    assert_gradients_close(shared, wanted, 1e-10)
    assert_gradients_close(shared, gradients(data, dense_kkt(solution, *OUTPUTS)), 1e-10)
    monkeypatch.setattr(native_kkt, "MOST_SUMS", 0)  # as for matrices that are too large
    assert_gradients_close(gradients(data, layer(*OUTPUTS)), shared, 1e-10)


def test_a_batch_is_a_loop():
    data, _ = planted(7, 6, 5, 1, batch=(3, 2), bounds=True)
    for output in OUTPUTS:
        together = gradients(data, layer(output))
        leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
        alone = [
            getattr(solve({name: t[i, j] for name, t in leaves.items()}), output)
            for i in range(3)
            for j in range(2)
        ]
        weighted([torch.stack(alone).unflatten(0, (3, 2))]).backward()
        for name, g in together.items():
            single = leaves[name].grad
            wanted = torch.zeros_like(g) if single is None else single
            torch.testing.assert_close(g, wanted, rtol=0, atol=1e-11)


def test_a_batch_too_large_for_the_cache():
    data, known = planted(5, 40, 40, 4, batch=(300,), bounds=True)
    torch.testing.assert_close(solve(data).x, known["x"], rtol=0, atol=1e-9)
    together = gradients(data, layer("x", "z"))
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    few = [0, 1, 93, 94, 95, 187, 188, 299]
    alone = {name: t[few] for name, t in leaves.items()}
    outputs = dense_kkt(solve(alone), "x", "z")(alone)
    everything = [outputs[0].new_zeros(300, 40).index_put((torch.tensor(few),), t) for t in outputs]
    weighted(everything).backward()
    for name, g in together.items():
        torch.testing.assert_close(g[few], leaves[name].grad[few], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("policy", ["raise", "ignore"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 2)])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
def test_a_batch_of_none(shape, shared, policy):
    data = broadcast_program({"q": shape})
    data = data if shared else full(data, shape)
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    solution = solve(leaves, on_failure=policy)
    assert solution.x.shape == (*shape, 4)
    assert solution.status.shape == shape
    weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    for name, t in leaves.items():
        assert t.grad.shape == t.shape, name
        assert not t.grad.any(), name


# --- degenerate points ----------------------------------------------------------------------------


DEPENDENT = {
    "dependent equalities": {
        "P": tensor([[2, 1], [1, 3]]), "q": tensor([1, -1]),
        "A": tensor([[1, 1], [2, 2]]), "b": tensor([1, 2]),
    },
    "more equalities than variables": {
        "P": eye(2), "q": tensor([0, 0]),
        "A": tensor([[1, 1], [1, -1], [2, 1]]), "b": tensor([1, 3, 3]),
    },
    "a zero row": {
        "P": eye(2), "q": tensor([1, 0]), "A": tensor([[1, 1], [0, 0]]), "b": tensor([1, 0]),
    },
    "an equality that fixes a bounded variable": {
        "P": eye(2), "q": tensor([3, 0.5]), "A": tensor([[1, 0]]), "b": tensor([2]),
        "lb": tensor([0, -9]), "ub": tensor([9, 9]),
    },
    "duplicated inequalities": {
        "P": eye(2), "q": tensor([-2, -3]), "G": tensor([[1, 1], [1, 1], [2, 2]]),
        "h": tensor([1, 1, 2]),
    },
    "dependent equalities and singular P": {
        "P": tensor([[1, 0], [0, 0]]), "q": tensor([1, 0]), "A": tensor([[1, 1], [1, 1]]),
        "b": tensor([1, 1]),
    },
    "dependent equalities in a linear program": {
        "q": tensor([1, 2]), "A": tensor([[1, 1], [1, 1]]), "b": tensor([1, 1]),
        "lb": tensor([0, 0]),
    },
    "a solution that is not unique": {
        "P": tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0]]), "q": tensor([-0.5, 0, 0]),
        "lb": tensor([-1, -1, -1]), "ub": tensor([1, 1, 1]),
    },
}  # fmt: skip


@pytest.mark.parametrize("solver", [None, InteriorPoint()], ids=["default", "InteriorPoint"])
@pytest.mark.parametrize("name", DEPENDENT)
def test_dependent_rows_take_the_adjoint_of_least_norm(name, solver):
    data = DEPENDENT[name]
    for output in ("x", "y", "z", "z_box"):
        oracle = dense_kkt(solve(data, solver=solver), output)
        found = gradients(data, layer(output, solver=solver))
        assert_gradients_close(found, gradients(data, oracle), 1e-8)


@pytest.mark.parametrize("n", [4, 70], ids=["small", "large"])
def test_a_degenerate_element_does_not_touch_its_neighbours(n):
    data, _ = planted(8, n, 0, 3, batch=(3,))
    wanted = gradients(data, layer("x", "y"))
    for name in ("A", "b"):  # dependent up to rounding
        data[name][1, 2] = 0.3 * data[name][1, 0] + 0.7 * data[name][1, 1]
    found = gradients(data, layer("x", "y"))
    for name in data:
        mates = torch.tensor([0, 2])
        torch.testing.assert_close(found[name][mates], wanted[name][mates], rtol=0, atol=1e-12)
    assert_gradients_close(found, gradients(data, dense_kkt(solve(data), "x", "y")), 1e-9)


def test_copies_of_an_inequality_share_its_gradient():
    """However it is shared out: moving all copies together moves x as the single row does."""
    data = DEPENDENT["duplicated inequalities"]
    single = data | {"G": data["G"][:1], "h": data["h"][:1]}
    # The third row is twice the first: it moves along if its end moves by two.
    moved = gradients(data, layer("x"))["h"] @ tensor([1, 1, 2])
    torch.testing.assert_close(moved, gradients(single, layer("x"))["h"].sum(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [None, InteriorPoint()], ids=["default", "InteriorPoint"])
def test_a_weakly_active_row_gives_the_derivative_of_one_side(solver):
    """Where x has a kink, moving into either side has a derivative; one of them is returned."""
    data = {"P": eye(2), "q": tensor([-1, -1]), "G": tensor([[1, 1]]), "h": tensor([2])}
    weights = tensor([1, 3])
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    (solve(leaves, solver=solver).x * weights).sum().backward()
    inactive, active = -weights, -tensor([-1, 1])  # minus the weights, projected onto the row
    assert min((leaves["q"].grad - side).abs().max() for side in (inactive, active)) <= 1e-6
    assert all(t.grad.isfinite().all() for t in leaves.values())


def test_a_weakly_active_bound():
    data = {"P": eye(2), "q": tensor([0, -1]), "lb": tensor([0, 0])}
    found = gradients(data, layer(*OUTPUTS))
    assert all(g.isfinite().all() for g in found.values())
    strict = gradients(data | {"q": tensor([-1e-3, -1])}, layer("x"))["q"]
    assert gradients(data, layer("x"))["q"][1] == strict[1]


@pytest.mark.parametrize("solver", [None, InteriorPoint()], ids=["default", "InteriorPoint"])
def test_many_solutions_have_finite_gradients(solver):
    data = {"q": tensor([-1, -1, 0]), "G": tensor([[1, 1, 0]]), "h": tensor([1]),
            "lb": tensor([0, 0, 0]), "ub": tensor([1, 1, 1])}  # fmt: skip
    found = gradients(data, layer(*OUTPUTS, solver=solver))
    assert all(g.isfinite().all() for g in found.values())


def test_a_fixed_variable_follows_its_bounds():
    """Equal bounds move the variable together, though neither could alone."""
    data = {"P": tensor([[2, 1], [1, 2]]), "q": tensor([-2, -2]), "lb": tensor([1, -torch.inf]),
            "ub": tensor([1, torch.inf])}  # fmt: skip
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    jacobian = []
    solution = solve(leaves)
    for i in range(2):
        lb, ub = torch.autograd.grad(solution.x[i], [leaves["lb"], leaves["ub"]], retain_graph=True)
        jacobian.append((lb + ub)[0])
    torch.testing.assert_close(torch.stack(jacobian), tensor([1, -0.5]))


# --- other types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 20, 50])
def test_float32(n):
    data, _ = planted(n, n, n, n // 5, batch=(4,), bounds=True)
    single = {name: t.float() for name, t in data.items()}
    double = {name: t.double() for name, t in single.items()}
    solution = solve(single)
    for name in (*OUTPUTS, "primal_residual", "dual_residual", "duality_gap"):
        assert getattr(solution, name).dtype == torch.float32, name
    x, q = solution.x.double(), double["q"]
    stationary = times(double["P"], x) + q + times(double["A"].mT, solution.y.double())
    stationary += times(double["G"].mT, solution.z.double()) + solution.z_box.double()
    assert stationary.abs().max() <= 1e-3
    assert (times(double["A"], x) - double["b"]).abs().max() <= 1e-3
    assert (times(double["G"], x) - double["h"]).max() <= 1e-3
    found = gradients(single, layer(*OUTPUTS))
    wanted = gradients(double, dense_kkt(solve(double), *OUTPUTS))
    for name, g in found.items():
        assert g.dtype == torch.float32
        assert torch.linalg.vector_norm(g - wanted[name]) <= 1e-4 * torch.linalg.vector_norm(
            wanted[name]
        )


def test_float32_equalities_that_depend_up_to_rounding():
    """Thirds and sums are rounded, so that strictly speaking they contradict each other."""
    for seed in range(5):
        data, _ = planted(seed, 6, 0, 2)
        A = data["A"].float()
        A = torch.cat([A, A / 3, (0.7 * A).sum(0, keepdim=True)])
        b = A @ torch.linspace(-1, 1, 6)
        q = data["q"].float().requires_grad_()
        x = ol.qp(torch.eye(6), q, A=A, b=b).x
        assert (A @ x - b).abs().max() <= 1e-3
        x[0].backward()
        independent = A[:2].double()
        onto_rows = independent.mT @ torch.linalg.solve(independent @ independent.mT, independent)
        torch.testing.assert_close(q.grad.double(), (onto_rows - eye(6))[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_double_precision_rounded(dtype):
    data = {name: t.to(dtype) for name, t in broadcast_program({"q": (3,)}).items()}
    exact = {name: t.double() for name, t in data.items()}
    solution, reference = solve(data), solve(exact)
    for name in OUTPUTS:
        assert torch.equal(getattr(solution, name), getattr(reference, name).to(dtype)), name
    ones = {name: t.clone().requires_grad_() for name, t in data.items()}
    solve(ones).x.sum().backward()
    exact = {name: t.requires_grad_() for name, t in exact.items()}
    solve(exact).x.sum().backward()
    for name, t in ones.items():
        assert torch.equal(t.grad, exact[name].grad.to(dtype)), name


@pytest.mark.parametrize("single", INPUTS)
def test_mixed_types_promote(single):
    data = broadcast_program({"q": (3,)})
    data[single] = data[single].float()
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    solution = solve(leaves)
    assert {getattr(solution, name).dtype for name in OUTPUTS} == {torch.float64}
    weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    assert all(t.grad.dtype == t.dtype for t in leaves.values())
    wanted = gradients({name: t.double() for name, t in data.items()}, layer(*OUTPUTS))[single]
    assert torch.equal(leaves[single].grad, wanted.float())


@pytest.mark.parametrize("P", [None, torch.eye(2, dtype=torch.float64)], ids=["LP", "QP"])
@pytest.mark.parametrize(
    "solver", [None, ActiveSet(), InteriorPoint(), ProximalInteriorPoint()], ids=repr
)
def test_a_view_that_negates(P, solver):
    q = torch.tensor([[1.0, -2.0], [-0.1, 0.2]], dtype=torch.float64)
    ends = torch.full((2,), -0.3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    found = ol.qp(P, torch._neg_view(q), lb=ends[0], ub=ends[1], solver=solver)
    assert torch.equal(found.x, ol.qp(P, -q, lb=ends[0], ub=ends[1], solver=solver).x)


def test_forward_mode_of_an_empty_batch_with_rows_and_bounds():
    q, G = torch.zeros(0, 2, dtype=torch.float64), torch.ones(0, 1, 2, dtype=torch.float64)
    P, h = torch.eye(2, dtype=torch.float64), torch.ones(0, 1, dtype=torch.float64)
    x, tangent = torch.func.jvp(lambda q: ol.qp(P, q, G, h, lb=-P[0]).x, (q,), (q,))
    assert x.shape == tangent.shape == (0, 2)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_data_without_memory_are_refused():
    with FakeTensorMode() as mode:
        P, q = (mode.from_tensor(t) for t in (torch.eye(2).double(), torch.ones(2).double()))
        with pytest.raises(TypeError, match=r"got FakeTensor.*Pass plain tensors"):
            ol.qp(P, q)
