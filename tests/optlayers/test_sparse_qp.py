"""Quadratic programs with sparse matrices against the same programs with dense ones."""

import itertools
import os
import re
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

import optlayers as ol
from optlayers.solvers import SCS, ActiveSet, Clarabel
from solvers.cone.sparse import Compressed
from solvers.solution import SolverError, Status
from tests.optlayers.oracles import (
    OUTPUTS,
    Data,
    assert_gradients_close,
    gradients,
    planted,
    solve,
    times,
    weighted,
)

# Torch says so once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
inf, nan = torch.inf, torch.nan
MATRICES = ("P", "G", "A")
SUBSETS = [s for size in (1, 2, 3) for s in itertools.combinations(MATRICES, size)]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def thinned(data: Data) -> Data:
    """The same kind of program with zeros in its matrices, and its right-hand sides to match."""
    generator = torch.Generator().manual_seed(7)
    kept = dict(data)
    for name in ("G", "A"):
        if name in data:
            t = data[name]
            mask = torch.rand(t.shape[-2:], generator=generator) < 0.6
            mask[:, 0] = True
            kept[name] = t * mask
    if "P" in data:
        n = data["P"].shape[-1]
        band = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= 1
        kept["P"] = data["P"] * band + 2 * torch.eye(n, dtype=torch.float64)
    return kept


def feasible(data: Data, thin: Data, x: Tensor) -> Data:
    """Ends moved along with the rows, so that slacks at ``x`` are what they were."""
    for end, matrix in (("h", "G"), ("b", "A")):
        if end in data:
            change = times(thin[matrix] - data[matrix], x)
            thin[end] = data[end] + change
    return thin


def program(seed: int = 0, n: int = 6, m: int = 5, p: int = 2, **more: object) -> Data:
    data, known = planted(seed, n, m, p, **more)
    return feasible(data, thinned(data), known["x"])


def csr(t: Tensor) -> Tensor:
    """A batch of matrices on the pattern of entries that any of them has."""
    mask = (t != 0).reshape(-1, *t.shape[-2:]).any(0)
    rows, columns = mask.nonzero().T
    crow = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    batch = t.shape[:-2]
    return torch.sparse_csr_tensor(
        crow.expand(*batch, -1).contiguous(), columns.expand(*batch, -1).contiguous(),
        t[..., rows, columns], t.shape, check_invariants=True,
    )  # fmt: skip


def sparse(data: Data, names: tuple[str, ...] = MATRICES) -> Data:
    return {name: csr(t) if name in names else t for name, t in data.items()}


def full(t: Tensor) -> Tensor:
    """A gradient as a dense tensor; torch does not convert batches on every pattern."""
    if t.layout == torch.strided:
        return t
    crow, col = t.crow_indices(), t.col_indices()
    if crow.ndim > 1:
        crow, col = crow.reshape(-1, crow.shape[-1])[0], col.reshape(-1, col.shape[-1])[0]
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1), crow.diff())
    dense = torch.zeros(t.shape, dtype=t.dtype)
    dense[..., rows, col] = t.values()
    return dense


def everything(data: Data, **policy: object) -> tuple[ol.Solution, Data]:
    """The solution, and gradients of all weighted outputs."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in data.items()}
    solution = solve(leaves, **policy)
    values = [getattr(solution, name) for name in OUTPUTS]
    weighted([torch.where(t == inf, 0.0, t) for t in values]).backward()
    return solution, {name: t.grad for name, t in leaves.items()}


def compare(
    data: Data,
    names: tuple[str, ...] = MATRICES,
    joint: tuple[str, ...] = (),
    **policy: object,
) -> ol.Solution:
    """Everything as with dense matrices, gradients as far as there are entries.

    Those of ``joint`` are compared as their sum.
    """
    names = tuple(name for name in names if name in data)
    given = sparse(data, names)
    found, found_gradients = everything(given, **policy)
    policy.pop("solver", None)
    wanted, wanted_gradients = everything(data, **policy)
    assert torch.equal(found.status, wanted.status)
    for name in OUTPUTS:
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.shape == other.shape, name
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-7, equal_nan=True)
    for name, t in given.items():
        g = found_gradients[name]
        if g is None:
            assert not wanted_gradients[name].any()
            continue
        assert g.layout == t.layout, name
        assert g.shape == t.shape, name
        wanted_gradient = wanted_gradients[name]
        if t.layout == torch.sparse_csr:
            assert torch.equal(g.crow_indices(), t.crow_indices())
            assert torch.equal(g.col_indices(), t.col_indices())
            there = full(t.detach().clone()) != 0
            there = there.reshape(-1, *there.shape[-2:]).any(0)
            wanted_gradient = wanted_gradient * there
        if name in joint:
            continue
        assert_gradients_close({name: full(g)}, {name: wanted_gradient}, 1e-7)
    if joint:
        sums = [sum(g[name] for name in joint) for g in (found_gradients, wanted_gradients)]
        torch.testing.assert_close(*sums, rtol=1e-7, atol=1e-7)
    return found


PROGRAMS = {
    "all kinds of rows": program(7, bounds=True),
    "no equalities": program(1, p=0, bounds=True),
    "no inequalities": program(2, m=0, bounds=True),
    "only bounds": program(3, m=0, p=0, bounds=True),
    "equalities only": program(4, m=0),
    "inequalities only": program(6, p=0),
    "unconstrained": program(6, m=0, p=0),
    "only lower bounds": {"P": tensor([[1, 0, 0], [0, 2, 0], [0, 0, 3]]),
                          "q": tensor([1, -2, 3]), "lb": tensor([0, 0, -0.5])},
    "only upper bounds": {"P": tensor([[1, 0, 0], [0, 2, 0], [0, 0, 3]]),
                          "q": tensor([1, -2, -3]), "ub": tensor([0, 0.5, 9])},
    "some bounds infinite": {
        "P": tensor([[1, 0, 0], [0, 2, 0], [0, 0, 3]]), "q": tensor([1, -2, 3]),
        "lb": tensor([-inf, 0, -0.5]), "ub": tensor([5, 0.5, inf]),
    },
    "all bounds infinite": {
        "P": tensor([[1, 0], [0, 2]]), "q": tensor([1, -2]), "lb": tensor([-inf, -inf]),
        "ub": tensor([inf, inf]),
    },
    "infinite ends": {
        "P": tensor([[1, 0], [0, 1]]), "q": tensor([-2, -3]), "G": tensor([[1, 0], [1, 1], [0, 1]]),
        "h": tensor([inf, 1, inf]),
    },
    "a linear program": {
        "q": tensor([-3, -2]), "G": tensor([[1, 1], [1, 3], [-1, 0], [0, -1]]),
        "h": tensor([4, 6, 0, 0]),
    },
    "a fixed variable": {
        "P": tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]), "q": tensor([-2, -2, -2]),
        "lb": tensor([0, 1, -inf]), "ub": tensor([1, 1, inf]),
    },
    "P without some diagonal entries": {
        "P": tensor([[0, 0, 0], [0, 2, 0], [0, 0, 0]]), "q": tensor([1, -1, -1]),
        "lb": tensor([0, -5, -1]), "ub": tensor([3, 5, 2]),
    },
    "P with entries above the diagonal only": {
        "P": tensor([[2, 2, 0], [0, 2, 1], [0, 0, 2]]), "q": tensor([-3, -3, 1]),
        "lb": tensor([0, -5, -1]),
    },
}  # fmt: skip


# --- as with dense matrices -----------------------------------------------------------------------


@pytest.mark.parametrize("names", SUBSETS, ids="".join)
def test_any_of_the_matrices(names: tuple[str, ...]) -> None:
    compare(PROGRAMS["all kinds of rows"], names)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_kind_of_program(name: str) -> None:
    data = PROGRAMS[name]
    # One of two bounds that fix a variable cannot move alone.
    solution = compare(data, joint=("lb", "ub") if name == "a fixed variable" else ())
    assert solution.status == Status.SOLVED
    with pytest.raises(TypeError, match="sparse matrices need a solver"):  # so it is another route
        solve(sparse(data), solver=ActiveSet())


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_alone(output: str) -> None:
    data = PROGRAMS["all kinds of rows"]

    def of(data: Data) -> list[Tensor]:
        return [getattr(solve(data), output)]

    found, wanted = gradients(sparse(data), of), gradients(data, of)
    for name in ("q", "h", "b", "lb", "ub"):
        assert_gradients_close({name: found[name]}, {name: wanted[name]}, 1e-8)
    for name in MATRICES:
        g = full(found[name])
        assert_gradients_close({name: g}, {name: wanted[name] * (data[name] != 0)}, 1e-8)


@pytest.mark.parametrize("solver", [Clarabel(), SCS()], ids=repr)
def test_other_solvers(solver: object) -> None:
    compare(PROGRAMS["all kinds of rows"], solver=solver)


def test_smoothed_derivatives() -> None:
    data = PROGRAMS["all kinds of rows"]
    compare(data, adjoint=ol.Smoothed(0.1))
    exact = everything(sparse(data))[1]["q"]
    smooth = everything(sparse(data), adjoint=ol.Smoothed(0.1))[1]["q"]
    assert (exact - smooth).abs().max() > 1e-3


def test_smoothed_derivatives_beside_infinite_ends() -> None:
    compare(PROGRAMS["some bounds infinite"], adjoint=ol.Smoothed(0.1))


def test_signs_of_the_multipliers() -> None:
    """Gradient of the Lagrangian: P x + q + A'y + G'z + z_box, z_box < 0 at lb and > 0 at ub."""
    data = {"P": tensor([[1, 0], [0, 1]]), "q": tensor([-3, 3]), "lb": tensor([-1, -1]),
            "ub": tensor([1, 1])}  # fmt: skip
    torch.testing.assert_close(solve(sparse(data)).z_box, tensor([2, -2]))
    data = {"P": tensor([[1, 0], [0, 1]]), "q": tensor([-3, 3]), "G": tensor([[1, 0]]),
            "h": tensor([1]), "A": tensor([[0, 1]]), "b": tensor([-1])}  # fmt: skip
    solution = solve(sparse(data))
    torch.testing.assert_close(solution.z, tensor([2]))
    torch.testing.assert_close(solution.y, tensor([-2]))
    torch.testing.assert_close(solution.s, tensor([0]), atol=1e-9, rtol=0)
    assert solution.z_box.shape == (0,)


def test_zeros_that_are_stored_have_a_gradient() -> None:
    data = {"P": tensor([[2, 0], [0, 2]]), "q": tensor([-2, -3]), "h": tensor([1])}
    dense, weights = tensor([[1, 1]]), tensor([1, -2])
    P = torch.sparse_csr_tensor(
        torch.tensor([0, 2, 4]), torch.tensor([0, 1, 0, 1]), tensor([2, 0, 0, 2]),
        check_invariants=True,
    ).requires_grad_()  # fmt: skip
    dense_P = data["P"].clone().requires_grad_()
    (solve(data | {"P": P, "G": dense}).x @ weights).backward()
    (solve(data | {"P": dense_P, "G": dense}).x @ weights).backward()
    assert P.grad.values()[1] != 0
    torch.testing.assert_close(full(P.grad), dense_P.grad, rtol=0, atol=1e-9)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", SUBSETS, ids="".join)
def test_batches_of_values_on_one_pattern(names: tuple[str, ...]) -> None:
    solution = compare(program(6, bounds=True, batch=(3,)), names)
    assert solution.x.shape == (3, 6)


def test_several_batch_dimensions() -> None:
    data = program(6, bounds=True, batch=(2, 3))
    solution = compare(data)
    assert solution.x.shape == (2, 3, 6)


@pytest.mark.parametrize("batched", ["q", "h", "b", "lb", "ub", *MATRICES])
def test_shared_and_batched_arguments(batched: str) -> None:
    """What lacks the batch dimension receives the sum."""
    data = PROGRAMS["all kinds of rows"]
    generator = torch.Generator().manual_seed(0)
    t = data[batched]
    noise = 0.01 * torch.randn(3, *t.shape, generator=generator, dtype=t.dtype)
    moved = t + noise * (t != 0 if batched in MATRICES else 1.0)
    solution = compare(data | {batched: moved})
    assert solution.x.shape == (3, 6)


def test_leading_dimensions_that_broadcast() -> None:
    data = PROGRAMS["all kinds of rows"]
    shifts = 0.01 * torch.arange(6.0, dtype=torch.float64)
    data = data | {
        "q": data["q"] + shifts[:3, None, None], "h": data["h"] + shifts[:2, None],
        "ub": data["ub"] + shifts[None, :1, None],
    }  # fmt: skip
    assert compare(data).x.shape == (3, 2, 6)


def test_different_patterns_are_refused() -> None:
    crow = torch.tensor([[0, 1, 2], [0, 1, 2]])
    col = torch.tensor([[0, 1], [1, 0]])
    P = torch.sparse_csr_tensor(
        crow, col, torch.ones(2, 2).double(), (2, 2, 2), check_invariants=True
    )
    with pytest.raises(ValueError, match=r"qp: P: .* share one pattern; got .* explicit zeros"):
        ol.qp(P, torch.zeros(2).double())


@pytest.mark.parametrize("convert", ["to_sparse", "to_sparse_csc"])
def test_other_layouts_are_refused(convert: str) -> None:
    P = getattr(torch.eye(2).double(), convert)()
    with pytest.raises(TypeError, match=r"qp: P must be .* CSR tensor; got layout .*to_sparse_csr"):
        ol.qp(P, torch.zeros(2).double())


@pytest.mark.parametrize("name", ["q", "h"])
def test_sparse_vectors_are_refused(name: str) -> None:
    data = PROGRAMS["inequalities only"]
    with pytest.raises(
        TypeError, match=f"qp: {name} must be a dense tensor; got layout .*to_dense"
    ):
        solve(sparse(data) | {name: data[name].to_sparse()})


def test_wrong_shapes_are_refused() -> None:
    data = sparse(PROGRAMS["all kinds of rows"])
    with pytest.raises(ValueError, match=r"qp: h must have shape .* got \(2,\)"):
        solve(data | {"h": tensor([1, 2])})
    with pytest.raises(ValueError, match=r"qp: lb must have shape .* got \(2,\)"):
        solve(data | {"lb": tensor([1, 2])})


def test_a_batch_of_none() -> None:
    data = PROGRAMS["all kinds of rows"]
    given = sparse(data) | {"q": data["q"].expand(0, 6)}
    solution, found = everything(given)
    assert solution.x.shape == (0, 6)
    assert solution.y.shape == (0, 2)
    assert solution.z.shape == solution.s.shape == (0, 5)
    assert solution.z_box.shape == (0, 6)
    for name, g in found.items():
        if g is not None:
            assert not full(g).any(), name


# --- warm start and failures ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_warm_start_at_the_solution_takes_no_iterations(name: str) -> None:
    data = sparse(PROGRAMS[name])
    cold = solve(data)
    again = solve(data, warm_start=cold)
    assert again.iterations == 0
    for output in OUTPUTS:
        torch.testing.assert_close(
            getattr(again, output), getattr(cold, output), rtol=1e-8, atol=1e-8
        )


def test_warm_start_from_a_dense_solution_and_nearby() -> None:
    data = PROGRAMS["all kinds of rows"]
    dense = solve(data)
    assert solve(sparse(data), warm_start=dense).iterations == 0
    moved = data | {"q": data["q"] + 1e-3}
    found = solve(sparse(moved), warm_start=dense)
    torch.testing.assert_close(found.x, solve(moved).x, rtol=0, atol=1e-8)
    assert found.iterations == 0
    solve(data, warm_start=solve(sparse(data)))  # and the other way round


def test_warm_starts_that_do_not_fit_are_refused() -> None:
    data = PROGRAMS["all kinds of rows"]
    with pytest.raises(TypeError, match="qp: warm_start must be a Solution"):
        solve(sparse(data), warm_start=torch.zeros(6))
    other = solve(sparse(PROGRAMS["only bounds"]))
    with pytest.raises(ValueError, match="qp: warm_start must be a Solution of a p"):
        solve(sparse(data), warm_start=other)


INFEASIBLE = {"P": tensor([[1, 0], [0, 1]]), "q": tensor([1, 1]), "G": tensor([[1, 0], [-1, 0]]),
              "h": tensor([[1, 1], [-1, -1], [2, 0]])}  # fmt: skip


def test_failures_raise() -> None:
    with pytest.raises(SolverError, match="qp: of 3 problems 1 PRIMAL_INFEASIBLE") as caught:
        solve(sparse(INFEASIBLE))
    assert caught.value.solution.status.tolist() == [0, Status.PRIMAL_INFEASIBLE, 0]
    with pytest.raises(SolverError, match="1 DUAL_INFEASIBLE"):
        solve({"q": tensor([-1, 0]), "G": csr(tensor([[0, 1]])), "h": tensor([1])})


@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_failures_are_nan_with_zero_gradients(policy: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution, found = everything(sparse(INFEASIBLE), on_failure=policy)
    assert [w.category for w in caught] == ([ol.SolverWarning] if policy == "warn" else [])
    assert solution.x.isnan().all(-1).tolist() == [False, True, False]
    assert not found["h"][1].any()
    solved = INFEASIBLE | {"h": INFEASIBLE["h"][[0, 2]]}
    leaves = {name: t.clone().requires_grad_() for name, t in sparse(solved).items()}
    two = solve(leaves)
    for name in OUTPUTS:
        assert torch.equal(getattr(two, name), getattr(solution, name)[[0, 2]]), name
    for g in found.values():
        assert full(g).isfinite().all()


@pytest.mark.parametrize("name", ["P", "q", "G", "h", "A", "b", "lb", "ub"])
def test_nan(name: str) -> None:
    data = program(6, bounds=True, batch=(3,))
    data[name][1].view(-1)[data[name][1].view(-1).abs().argmax()] = nan
    with pytest.raises(ValueError, match=f"qp: {name} must .* got 1 entries"):
        solve(data)
    pattern = rf"qp: [^;]*\b{name}\b[^;]* must be finite; got 1 entries .* on_failure='ignore'"
    with pytest.raises(ValueError, match=pattern):
        solve(sparse(data))
    solution, found = everything(sparse(data), on_failure="ignore")
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    for key, g in found.items():
        assert full(g).isfinite().all(), key
        assert not full(g)[1].any(), key


@pytest.mark.parametrize(("name", "value"), [("h", -inf), ("lb", inf), ("ub", -inf)])
def test_ends_infinite_on_the_wrong_side_fail_as_dense_ones_do(name: str, value: float) -> None:
    data = program(6, bounds=True, batch=(3,))
    data[name][1, 0] = value
    wanted = solve(data, on_failure="ignore").status
    assert wanted.tolist() == [Status.SOLVED, Status.PRIMAL_INFEASIBLE, Status.SOLVED]
    solution, found = everything(sparse(data), on_failure="ignore")
    assert torch.equal(solution.status, wanted)
    for g in found.values():
        assert full(g).isfinite().all()
        assert not full(g)[1].any()


def test_an_indefinite_P_is_no_solution() -> None:
    data = {"P": tensor([[1, 0], [0, -1]]), "q": tensor([1, 1]), "lb": tensor([-1, -1]),
            "ub": tensor([1, 1])}  # fmt: skip
    assert solve(sparse(data), on_failure="ignore").status == Status.NUMERICAL_ERROR


# --- precision, layouts, derivatives through the values -------------------------------------------


def test_float32_in_and_out() -> None:
    data = {name: t.float() for name, t in PROGRAMS["all kinds of rows"].items()}
    solution, found = everything(sparse(data))
    for name in (*OUTPUTS, "primal_residual", "dual_residual", "duality_gap"):
        assert getattr(solution, name).dtype == torch.float32, name
    wanted, wanted_gradients = everything(data)
    torch.testing.assert_close(solution.x, wanted.x, rtol=1e-4, atol=1e-4)
    for name, g in found.items():
        assert g.dtype == torch.float32
        want = wanted_gradients[name] * ((data[name] != 0) | torch.tensor(name not in MATRICES))
        torch.testing.assert_close(full(g), want, rtol=1e-3, atol=1e-3)


def values_program(batch: tuple[int, ...] = ()) -> tuple[object, tuple[Tensor, ...]]:
    """The layer as a function of the values of its three matrices and of the vectors."""
    data = program(7, n=4, m=3, p=1, bounds=True, batch=batch)
    given = sparse(data)
    patterns = {
        name: (given[name].crow_indices(), given[name].col_indices(), given[name].shape)
        for name in MATRICES
    }
    others = {name: t for name, t in data.items() if name not in MATRICES}

    def function(P: Tensor, G: Tensor, A: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        matrices = {
            name: torch.sparse_csr_tensor(crow, col, t, shape, check_invariants=False)
            for (name, (crow, col, shape)), t in zip(patterns.items(), (P, G, A), strict=True)
        }
        solution = solve(matrices | dict(zip(others, vectors, strict=True)))
        return tuple(getattr(solution, name) for name in OUTPUTS)

    leaves = (*(given[name].values() for name in MATRICES), *others.values())
    return function, tuple(t.detach().clone().requires_grad_() for t in leaves)


@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_gradcheck_through_the_values(batch: tuple[int, ...]) -> None:
    function, leaves = values_program(batch)
    assert gradcheck(function, leaves, atol=1e-6, fast_mode=bool(batch))


def test_second_derivatives() -> None:
    """Of sparse leaves, as of dense ones; torch itself cannot go through its constructor twice."""
    data = PROGRAMS["all kinds of rows"]
    found = []
    for given in (sparse(data), data):
        leaves = {name: t.detach().clone().requires_grad_() for name, t in given.items()}
        solution = solve(leaves)
        vectors = [leaves[name] for name in ("q", "h", "b", "lb", "ub")]
        first = torch.autograd.grad(
            weighted([solution.x.pow(2), solution.z]), vectors, create_graph=True
        )
        weighted(first).backward()
        found.append({name: full(t.grad) for name, t in leaves.items()})
    masks = {name: data[name] != 0 for name in MATRICES}
    wanted = {name: g * masks.get(name, 1.0) for name, g in found[1].items()}
    assert all(g.any() for g in wanted.values())
    assert_gradients_close(found[0], wanted, 1e-7)


def test_inputs_are_not_modified() -> None:
    given, kept = (sparse(PROGRAMS["all kinds of rows"]) for _ in range(2))
    everything(given)
    for name, t in given.items():
        assert torch.equal(full(t), full(kept[name]))


# --- large ones -----------------------------------------------------------------------------------


def banded(n: int) -> Data:
    """A chain of masses: P with three diagonals, rows that couple neighbours, and bounds."""
    i = torch.arange(n)
    generator = torch.Generator().manual_seed(0)
    diagonal, lower, upper = (torch.stack([i, i]), torch.stack([i[1:], i[:-1]]),
                              torch.stack([i[:-1], i[1:]]))  # fmt: skip
    numbers = torch.ones(n, dtype=torch.float64)

    def matrix(index: Tensor, values: Tensor, rows: int) -> Tensor:
        t = torch.sparse_coo_tensor(index, values, (rows, n), check_invariants=True)
        return t.coalesce().to_sparse_csr()

    P = matrix(
        torch.cat([diagonal, lower, upper], 1),
        torch.cat([2.5 * numbers, -numbers[1:], -numbers[1:]]), n,
    )  # fmt: skip
    G = matrix(
        torch.cat([diagonal[:, :-1], upper], 1), torch.cat([numbers[1:], -numbers[1:]]), n - 1
    )
    ones = numbers
    return {"P": P, "q": torch.randn(n, generator=generator, dtype=torch.float64), "G": G,
            "h": 0.3 * ones[1:], "lb": -0.5 * ones, "ub": 0.5 * ones}  # fmt: skip


def test_a_large_program_is_never_made_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Compressed) -> None:
        raise AssertionError(f"a dense matrix of shape {self.shape}")

    monkeypatch.setattr(Compressed, "dense", refuse)
    data = banded(3000)
    leaves = {name: t.requires_grad_() for name, t in data.items()}
    solution = solve(leaves)
    assert solution.status == Status.SOLVED
    assert solution.primal_residual < 1e-8
    assert solution.dual_residual < 1e-8
    assert 0 < int((solution.z > 1e-6).sum()) < 3000
    weighted([getattr(solution, name) for name in ("x", "z", "z_box", "objective")]).backward()
    for name in ("P", "G"):
        g = leaves[name].grad
        assert g.layout == torch.sparse_csr
        assert g.values().shape == data[name].values().shape
        assert g.values().isfinite().all()


def test_a_program_with_many_rows_near_their_kinks() -> None:
    """Steps of Newton's method may enlarge the largest residual there before they arrive."""
    solution = solve(banded(10_000))
    assert solution.status == Status.SOLVED
    assert max(solution.primal_residual, solution.dual_residual) < 1e-10


def test_gradients_of_a_large_program() -> None:
    """Along a direction in all data, against a difference."""
    data = banded(1000)
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    (solve(leaves).x.pow(2).sum()).backward()
    generator = torch.Generator().manual_seed(1)
    step = 1e-7
    moves = {
        name: torch.randn(
            (t.values() if name in MATRICES else t).shape, generator=generator, dtype=t.dtype
        )
        for name, t in data.items()
    }

    def value(sign: float) -> float:
        moved = {}
        for name, t in data.items():
            if name in MATRICES:
                entries = t.values() + sign * step * moves[name]
                moved[name] = torch.sparse_csr_tensor(
                    t.crow_indices(), t.col_indices(), entries, t.shape, check_invariants=True
                )
            else:
                moved[name] = t + sign * step * moves[name]
        return float(solve(moved).x.pow(2).sum())

    wanted = (value(1) - value(-1)) / (2 * step)
    found = sum(
        float(((t.grad.values() if name in MATRICES else t.grad) * moves[name]).sum())
        for name, t in leaves.items()
    )
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_memory_of_a_large_program_stays_small() -> None:
    """Far below one dense matrix, which would have 20000^2 numbers or 3.2 GB."""
    code = """
        import resource, warnings
        warnings.simplefilter("ignore")
        import torch
        from tests.optlayers.test_sparse_qp import banded, solve
        small = {name: t.requires_grad_() for name, t in banded(500).items()}
        solve(small).x.sum().backward()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        data = {name: t.requires_grad_() for name, t in banded(20000).items()}
        solution = solve(data)
        solution.x.sum().backward()
        assert data["P"].grad.values().isfinite().all()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    kilobytes = int(re.findall(r"\d+", found.stdout)[-1])
    assert kilobytes < 400_000
