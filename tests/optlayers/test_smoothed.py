"""Smoothed derivatives against closed forms and an independent central path."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import optlayers as ol
from optlayers.smoothed import smooth_solution
from optlayers.solvers import SolverError, Status
from tests.optlayers.oracles import (
    CORE_NDIM,
    INPUTS,
    OUTPUTS,
    assert_gradients_close,
    finite_differences,
    gradients,
    layer,
    planted,
    solve,
    weighted,
)

POINT = ("x", "y", "z", "z_box", "s")


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def as_list(data):
    return [data.get(name) for name in INPUTS]


# --- closed forms ---------------------------------------------------------------------------------


def box_point(q, mu):
    """Minimum of q x - mu log x - mu log(1 - x): the root of its derivative in (0, 1)."""
    return 2 * mu / (q + 2 * mu + (q.square() + 4 * mu**2).sqrt())


@pytest.mark.parametrize("mu", [1.0, 0.1, 1e-3, 1e-5])
def test_a_linear_program_in_a_box(mu):
    q = tensor([-2, -0.1, 0.003, 0.5, 4]).requires_grad_()
    zero = torch.zeros(5, dtype=torch.float64)
    solution = ol.qp(None, q, lb=zero, ub=zero + 1, adjoint=ol.Smoothed(mu))
    torch.testing.assert_close(solution.x.detach(), (q.detach() < 0).double())
    weights = tensor([1, -2, 3, 0.5, 1])
    (found,) = torch.autograd.grad(solution.x @ weights, q, retain_graph=True)
    (wanted,) = torch.autograd.grad(box_point(q, mu) @ weights, q)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-10)
    # z_box = -q wherever the barrier is, so that its derivative has no smoothing to show.
    (found,) = torch.autograd.grad(solution.z_box @ weights, q)
    torch.testing.assert_close(found, -weights, rtol=1e-6, atol=1e-8)


def test_exact_derivatives_of_that_program_are_zero():
    q = tensor([-2, 4]).requires_grad_()
    solution = ol.qp(None, q, lb=tensor([0, 0]), ub=tensor([1, 1]))
    solution.x.sum().backward()
    assert not q.grad.any()


def test_a_positive_variable():
    """Minimum of x^2 / 2 + q x - mu log x: x = (sqrt(q^2 + 4 mu) - q) / 2."""
    mu = 0.05
    q = tensor([-1, 0.2, 3]).requires_grad_()
    solution = ol.qp(eye(3), q, lb=torch.zeros(3).double(), adjoint=ol.Smoothed(mu))
    (found,) = torch.autograd.grad(solution.x.sum(), q)
    wanted = 0.5 * (q / (q.square() + 4 * mu).sqrt() - 1)
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-8, atol=1e-8)


# --- an independent central path ------------------------------------------------------------------


def stacked_inequalities(data):
    """Rows and ends of all that has a barrier: G, lb and ub without their infinite entries."""
    n = data["q"].shape[0]
    rows, ends = [np.zeros((0, n))], [np.zeros(0)]
    for name, sign in (("lb", -1.0), ("ub", 1.0)):
        if name in data:
            rows, ends = rows + [sign * np.eye(n)], ends + [sign * data[name]]
    if "G" in data:
        rows, ends = rows + [data["G"]], ends + [data["h"]]
    C, r = np.concatenate(rows), np.concatenate(ends)
    return C[np.isfinite(r)], r[np.isfinite(r)], np.isfinite(r)


def central_point(data, mu):
    """Newton's method on the barrier problem from an interior point that a linear program finds."""
    n = len(data["q"])
    P = data.get("P", np.zeros((n, n)))
    P, q = 0.5 * (P + P.T), data["q"]
    A, b = data.get("A", np.zeros((0, n))), data.get("b", np.zeros(0))
    C, r, finite = stacked_inequalities(data)
    inside = linprog(
        np.append(np.zeros(n), -1.0),
        np.c_[C, np.ones(len(C))], r, np.c_[A, np.zeros(len(A))], b,
        bounds=[(-100, 100)] * n + [(None, 1.0)],
    )  # fmt: skip
    x, y = inside.x[:n], np.zeros(len(A))

    def value(x):
        s = r - C @ x
        return np.inf if s.min() <= 0 else 0.5 * x @ P @ x + q @ x - mu * np.log(s).sum()

    for _ in range(100):
        s = r - C @ x
        gradient = P @ x + q + C.T @ (mu / s)
        H = P + C.T @ (mu / s[:, None] ** 2 * C)
        K = np.block([[H, A.T], [A, np.zeros((len(A), len(A)))]])
        step = np.linalg.solve(K, np.r_[-gradient, b - A @ x])
        move, y, length = step[:n], step[n:], 1.0
        decrease = -gradient @ move
        # Close to the end values differ by rounding only, and full steps are right.
        while decrease > 1e-6 and value(x + length * move) > value(x) - 0.1 * length * decrease:
            length *= 0.5
        x = x + length * move
        if np.abs(move).max() < 1e-14:
            break
    z_all = np.zeros(len(finite))
    z_all[finite] = mu / (r - C @ x)
    parts = iter(np.split(z_all, np.cumsum([n for name in ("lb", "ub") if name in data])))
    boxed = "lb" in data or "ub" in data
    z_box = np.zeros(n if boxed else 0)
    for name, sign in (("lb", -1.0), ("ub", 1.0)):
        if name in data:
            z_box = z_box + sign * next(parts)
    z = next(parts)
    s = data["h"] - data["G"] @ x if "G" in data else z
    return x, y, z, z_box, s


def central_path(mu, *outputs):
    """Outputs of the central point for a batch, one program at a time."""

    def solve_each(data):
        shape = torch.broadcast_shapes(
            *(t.shape[: t.ndim - CORE_NDIM[name]] for name, t in data.items())
        )
        full = {
            name: t.expand(*shape, *t.shape[t.ndim - CORE_NDIM[name] :]).numpy()
            for name, t in data.items()
        }
        found = [
            dict(zip(POINT, central_point({k: v[i] for k, v in full.items()}, mu), strict=True))
            for i in np.ndindex(*shape)
        ]
        return [
            torch.tensor(np.stack([f[name] for f in found])).reshape((*shape, len(found[0][name])))
            for name in outputs
        ]

    return solve_each


PROGRAMS = {
    "all kinds of rows": planted(0, 3, 2, 1, bounds=True)[0],
    "only bounds": planted(1, 3, bounds=True)[0],
    "inequalities": planted(2, 3, 4)[0],
    "a linear program": planted(3, 3, 4, 1, linear=True)[0]
    | {"lb": tensor([-9, -9, -9]), "ub": tensor([9, 9, 9])},
    "infinite bounds": planted(4, 3, 2, 1)[0]
    | {"lb": tensor([-torch.inf, -4, -torch.inf]), "ub": tensor([4, torch.inf, torch.inf])},
    "many solutions": {
        "q": tensor([-1, -1]), "G": tensor([[1, 1]]), "h": tensor([1]), "lb": tensor([0, 0])
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_differences_of_the_central_path(name):
    data, mu = PROGRAMS[name], 0.1
    finite = [key for key, t in data.items() if t.isfinite().all()]
    found = gradients(data, layer(*POINT, adjoint=ol.Smoothed(mu)), finite)
    assert found["q"].any()
    wanted = finite_differences(data, central_path(mu, *POINT), finite, step=1e-5)
    assert_gradients_close(found, wanted, 1e-7)


INFINITE = {"an infinite h": {
    "P": eye(2), "q": tensor([-2, -3]), "G": tensor([[1, 0], [1, 1]]), "h": tensor([torch.inf, 1])
}}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS | INFINITE)
def test_values_are_those_of_the_solution(name):
    data = (PROGRAMS | INFINITE)[name]
    exact, smooth = solve(data), solve(data, adjoint=ol.Smoothed(0.5))
    for output in (*OUTPUTS, "status", "primal_residual", "dual_residual"):
        assert torch.equal(getattr(smooth, output), getattr(exact, output)), output


def test_the_objective_keeps_its_exact_gradient():
    data = PROGRAMS["all kinds of rows"]
    exact = gradients(data, layer("objective"))
    assert_gradients_close(gradients(data, layer("objective", adjoint=ol.Smoothed(1.0))), exact, 0)


def test_becomes_exact_as_mu_goes_to_zero():
    data, _ = planted(5, 6, 5, 1, bounds=True)
    exact = gradients(data, layer(*POINT))

    def error(mu):
        found = gradients(data, layer(*POINT, adjoint=ol.Smoothed(mu)))
        return max(float((found[name] - exact[name]).abs().max()) for name in data)

    errors = [error(mu) for mu in (1e-3, 1e-4, 1e-5)]
    for larger, smaller in itertools.pairwise(errors):
        assert 5 < larger / smaller < 20
    assert errors[-1] < 1e-2


def test_an_infinite_row_is_no_row():
    data, _ = planted(2, 3, 4)
    h = torch.cat([data["h"], tensor([torch.inf])])
    more = data | {"G": torch.cat([data["G"], data["G"][:1]]), "h": h}
    wanted = gradients(data, layer("x", adjoint=ol.Smoothed(0.1)))
    found = gradients(more, layer("x", adjoint=ol.Smoothed(0.1)))
    assert not found["G"][4].any()
    assert not found["h"][4].any()
    found |= {"G": found["G"][:4], "h": found["h"][:4]}
    assert_gradients_close(found, wanted, 1e-9)


def test_a_batch_with_shared_matrices():
    data, _ = planted(6, 4, 3, 1, bounds=True)
    data["q"] = data["q"] + torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3, 1)
    found = gradients(data, layer(*POINT, adjoint=ol.Smoothed(0.1)))
    copies = {
        name: t.expand(2, 3, *t.shape[t.ndim - CORE_NDIM[name] :]).clone()
        for name, t in data.items()
    }
    own = gradients(copies, layer(*POINT, adjoint=ol.Smoothed(0.1)))
    assert_gradients_close(
        found, {name: g.sum_to_size(data[name].shape) for name, g in own.items()}, 1e-9
    )


def test_a_batch_of_none():
    data, _ = planted(6, 4, 3, 1, bounds=True)
    data["q"] = data["q"].new_zeros(0, 4)
    found = gradients(data, layer(*POINT, adjoint=ol.Smoothed(0.1)))
    assert found["q"].shape == (0, 4)
    assert not found["P"].any()


def test_float32():
    data, _ = planted(6, 4, 3, 1, batch=(3,), bounds=True)
    single = {name: t.float() for name, t in data.items()}
    found = gradients(single, layer(*POINT, adjoint=ol.Smoothed(0.1)))
    assert {g.dtype for g in found.values()} == {torch.float32}
    wanted = gradients(data, layer(*POINT, adjoint=ol.Smoothed(0.1)))
    assert_gradients_close(found, wanted, 1e-4)


# --- where a barrier is not defined ---------------------------------------------------------------


def test_a_fixed_variable_is_an_equality():
    mu, at = 0.1, tensor(0.3).requires_grad_()
    P, q = tensor([[2, 0.5], [0.5, 1]]), tensor([-3, -2])
    ub = tensor([torch.inf, 1])

    def derivatives(x):
        return torch.stack([torch.autograd.grad(e, at, retain_graph=True)[0] for e in x])

    lower, upper = torch.stack([at, tensor(0)]), torch.stack([at, tensor(1)])
    fixed = ol.qp(P, q, lb=lower, ub=upper, adjoint=ol.Smoothed(mu)).x
    equal = ol.qp(
        P, q, A=tensor([[1, 0]]), b=at[None], lb=tensor([-torch.inf, 0]), ub=ub,
        adjoint=ol.Smoothed(mu),
    ).x  # fmt: skip
    wanted = derivatives(equal)
    assert wanted[0] == pytest.approx(1.0)
    assert abs(wanted[1]) > 1e-3
    torch.testing.assert_close(derivatives(fixed), wanted, rtol=1e-8, atol=1e-8)


def test_dependent_equalities():
    data, _ = planted(7, 4, 3, 1, bounds=True)
    twice = data | {
        "A": torch.cat([data["A"], 2 * data["A"]]), "b": torch.cat([data["b"], 2 * data["b"]])
    }  # fmt: skip
    wanted = gradients(data, layer("x", adjoint=ol.Smoothed(0.1)))
    found = gradients(twice, layer("x", adjoint=ol.Smoothed(0.1)))
    for name in ("P", "q", "G", "h", "lb", "ub"):
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found["b"] @ tensor([1, 2]), wanted["b"][0], rtol=1e-7, atol=1e-7)


NO_INTERIOR = {
    "opposing inequalities": {
        "P": eye(2), "q": tensor([-1, 0]), "G": tensor([[1, 1], [-1, -1]]), "h": tensor([1, -1])
    },
    "an equality along a bound": {
        "P": eye(2), "q": tensor([-1, 0]), "A": tensor([[1, 0]]), "b": tensor([0]),
        "lb": tensor([0, 0]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NO_INTERIOR)
def test_no_interior_raises(name):
    solve(NO_INTERIOR[name])  # it has a solution
    with pytest.raises(SolverError, match=r"Smoothed: .* need an interior.* 1 of 1 .*Exact\(\)"):
        solve(NO_INTERIOR[name], adjoint=ol.Smoothed(0.1))


@pytest.mark.parametrize("name", NO_INTERIOR)
def test_no_interior_warns(name):
    with pytest.warns(ol.SolverWarning, match="interior"):
        solve(NO_INTERIOR[name], adjoint=ol.Smoothed(0.1), on_failure="warn")


@pytest.mark.parametrize("name", NO_INTERIOR)
def test_no_interior_gives_zero_gradients(name):
    data = {key: t.clone().requires_grad_() for key, t in NO_INTERIOR[name].items()}
    solution = solve(data, adjoint=ol.Smoothed(0.1), on_failure="ignore")
    weighted([getattr(solution, output) for output in POINT]).backward()
    for key, t in data.items():
        assert torch.equal(t.grad, torch.zeros_like(t)), key


def test_failed_elements_do_not_touch_their_neighbours():
    """Element 1 is infeasible, element 2 has a NaN, element 3 no interior."""
    data, _ = planted(8, 3, 4, batch=(5,))
    policy = {"adjoint": ol.Smoothed(0.1), "on_failure": "ignore"}
    wanted = gradients(data, layer(*POINT, **policy))
    bad = {name: t.clone() for name, t in data.items()}
    bad["G"][[1, 3], 1] = -bad["G"][[1, 3], 0]
    bad["h"][1, 1], bad["h"][3, 1] = -bad["h"][1, 0] - 1, -bad["h"][3, 0]
    bad["q"][2, 0] = torch.nan
    status = solve(bad, **policy).status.tolist()
    assert status == [
        Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.NUMERICAL_ERROR, Status.SOLVED,
        Status.SOLVED,
    ]  # fmt: skip
    found = gradients(bad, layer(*POINT, **policy))
    for name, g in found.items():
        assert not g[1:4].any(), name
        torch.testing.assert_close(g[[0, 4]], wanted[name][[0, 4]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mu", [0.0, -1.0, float("inf"), float("nan")])
def test_a_barrier_without_strength_is_refused(mu):
    with pytest.raises(ValueError, match=r"^Smoothed: mu must be positive and finite; got .*Exact"):
        ol.Smoothed(mu)


# --- derivatives of the carrier -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["all kinds of rows", "a linear program", "inequalities"])
@pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
def test_the_central_point_is_differentiable(check, name):
    data = PROGRAMS[name]
    names, solved = list(data), torch.tensor(True)

    def carrier(*tensors):
        given = as_list(dict(zip(names, tensors, strict=True)))
        return tuple(t for t in smooth_solution(0.3, "raise", given, solved) if t.numel())

    leaves = [t.clone().requires_grad_() for t in data.values()]
    settings = {"gradcheck": {"check_forward_ad": True}, "gradgradcheck": {}}[check]
    assert getattr(torch.autograd, check)(carrier, leaves, fast_mode=True, **settings)


def test_the_central_point_satisfies_its_conditions():
    mu = 0.2
    data, _ = planted(9, 5, 4, 1, batch=(3,), bounds=True)
    x, y, z, z_box, s = smooth_solution(mu, "raise", as_list(data), torch.ones(3).bool())
    P, q, G, h, A, b, lb, ub = as_list(data)
    dual = (P @ x[..., None] + G.mT @ z[..., None] + A.mT @ y[..., None])[..., 0] + q + z_box
    torch.testing.assert_close(dual, torch.zeros_like(dual), rtol=0, atol=1e-8)
    torch.testing.assert_close((A @ x[..., None])[..., 0], b, rtol=0, atol=1e-8)
    torch.testing.assert_close((G @ x[..., None])[..., 0] + s, h, rtol=0, atol=1e-12)
    torch.testing.assert_close(z * s, torch.full_like(z, mu))
    torch.testing.assert_close(z_box, mu / (ub - x) - mu / (x - lb))
    assert min(t.min() for t in (s, z, x - lb, ub - x)) > 0
