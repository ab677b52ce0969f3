"""The quadratic programming layer where training happens: workers, threads, autocast, layouts."""

import os
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

import optlayers as ol
from optlayers.solvers import ActiveSet, Automatic, InteriorPoint, ProximalInteriorPoint
from solvers import _threads
from tests.optlayers.oracles import (
    OUTPUTS,
    dense_kkt,
    finite_differences,
    gradients,
    layer,
    planted,
    solve,
    weighted,
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def solved_and_differentiated(data, **policy):
    """All outputs, then all gradients."""
    leaves = {name: t.detach().requires_grad_() for name, t in data.items()}
    solution = solve(leaves, **policy)
    outputs = [getattr(solution, name) for name in OUTPUTS]
    weighted(outputs).backward()
    return [t.detach() for t in outputs], [t.grad for t in leaves.values()]


def assert_equal(found, wanted):
    for one, other in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        assert torch.equal(one, other)


# --- precision settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [4, 30], ids=["small", "large"])
def test_autocast_changes_nothing(dtype, n):
    data, _ = planted(0, n, n, 1, batch=(3,), bounds=True)
    data = {name: t.to(dtype) for name, t in data.items()}
    wanted = solved_and_differentiated(data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = solved_and_differentiated(data)
    assert_equal(found, wanted)


def test_smoothed_derivatives_under_autocast():
    data, _ = planted(0, 4, 4, 1, batch=(3,), bounds=True)
    wanted = solved_and_differentiated(data, adjoint=ol.Smoothed(0.1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = solved_and_differentiated(data, adjoint=ol.Smoothed(0.1))
    assert_equal(found, wanted)


def test_second_derivatives_under_autocast():
    data, _ = planted(0, 5, 4, 1, bounds=True)

    def second():
        q = data["q"].clone().requires_grad_()
        G = data["G"].clone().requires_grad_()
        x = solve(data | {"q": q, "G": G}).x
        (first,) = torch.autograd.grad(x.pow(3).sum(), G, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), (q, G))

    wanted = second()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = second()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
def test_the_default_type_does_not_matter(default):
    data, _ = planted(0, 5, 4, 1, batch=(2,), bounds=True)
    wanted = solved_and_differentiated(data)
    linear, _ = planted(0, 4, 9, 1, linear=True)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert_equal(solved_and_differentiated(data), wanted)
        found, _ = solved_and_differentiated(linear)
        assert {t.dtype for t in found} == {torch.float64}
        solved_and_differentiated(data, adjoint=ol.Smoothed(0.1))
        solved_and_differentiated(data, solver=InteriorPoint())
    finally:
        torch.set_default_dtype(before)


# --- processes and threads ------------------------------------------------------------------------


def pooled(seed):
    """A batch that is worth a pool of threads."""
    return planted(seed, 100, 100, 2, batch=(24,), bounds=True)[0]


def has_pool():
    return any(process == os.getpid() for process, _ in _threads._pools)


class Programs(Dataset):
    """Solves and differentiates a batch of programs per item."""

    def __init__(self, pool_in_worker):
        self.pool_in_worker = pool_in_worker

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.pool_in_worker and get_worker_info() is not None:
            _threads.available = lambda: 2  # workers have one thread unless told otherwise
        (x, *_), (_, g_q, *_) = solved_and_differentiated(pooled(index))
        return x, g_q, has_pool()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will")
@pytest.mark.parametrize("pool_in_worker", [False, True], ids=["one thread", "two threads"])
def test_forked_data_loader_workers(two_threads, pool_in_worker):
    dataset = Programs(pool_in_worker)
    wanted = [dataset[i] for i in range(len(dataset))]
    _threads.run([lambda: None, lambda: None])
    assert has_pool()  # in the parent, where no worker will find its threads, nor those of OpenMP
    loader = DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for (x, g_q, pool), (want_x, want_g_q, _) in zip(loader, wanted, strict=True):
        torch.testing.assert_close(x, want_x, rtol=0, atol=1e-10)
        torch.testing.assert_close(g_q, want_g_q, rtol=0, atol=1e-10)
        assert pool == pool_in_worker


@pytest.mark.parametrize("kind", ["small", "pooled"])
def test_several_threads_at_once(two_threads, kind):
    small = [planted(seed, 5, 5, 1, batch=(8,), bounds=True)[0] for seed in range(6)]
    programs = small if kind == "small" else [pooled(seed) for seed in range(6)]
    wanted = [solved_and_differentiated(data) for data in programs]
    found, errors = [None] * len(programs), []
    start = threading.Barrier(len(programs))

    def work(i):
        try:
            start.wait(timeout=30)
            for _ in range(2):
                found[i] = solved_and_differentiated(programs[i])
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not errors
    for one, other in zip(found, wanted, strict=True):
        assert_equal(one, other)


def test_the_number_of_threads_does_not_matter(two_threads):
    data = pooled(0)
    wanted = solved_and_differentiated(data)
    torch.set_num_threads(1)
    found = solved_and_differentiated(data)
    for one, other in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shared", [False, True], ids=["own matrices", "shared matrices"])
def test_ten_thousand_problems(shared):
    count = 10_000
    data, known = planted(0, 5, 5, 1, batch=(1 if shared else count,), bounds=True)
    if shared:
        data["q"] = data["q"] + 0.1 * planted(1, 5, batch=(count,))[0]["q"]
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    solution = solve(leaves)
    weights = torch.linspace(-1, 1, 5, dtype=torch.float64)
    (solution.x @ weights).sum().backward()
    assert solution.x.shape == (count, 5)
    if not shared:
        torch.testing.assert_close(solution.x.detach(), known["x"], rtol=0, atol=1e-9)
    for i in (0, 1, 4999, count - 1):
        one = {
            name: t[i if t.shape[0] == count else 0].clone().requires_grad_()
            for name, t in data.items()
        }
        x = solve(one).x
        (x @ weights).backward()
        torch.testing.assert_close(solution.x[i], x, rtol=0, atol=1e-10)
        for name, t in one.items():
            if data[name].shape[0] == count:
                torch.testing.assert_close(leaves[name].grad[i], t.grad, rtol=0, atol=1e-9)


# --- layouts --------------------------------------------------------------------------------------

LAYOUTS = {
    "every other entry": lambda t: torch.stack([t, t + 1], -1).flatten(-2)[..., ::2],
    "columns first": lambda t: t.mT.contiguous().mT,
    "batch last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "an offset in a larger tensor": lambda t: torch.cat([t - 1, t])[t.shape[0] :],
    "flipped twice": lambda t: t.flip(0).contiguous().flip(0),
}


@pytest.mark.parametrize("n", [4, 25], ids=["small", "large"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, n):
    data, _ = planted(0, n, n, 1, batch=(3,), bounds=True)
    wanted = solved_and_differentiated(data)
    other = {name: LAYOUTS[layout](t) for name, t in data.items()}
    assert all(torch.equal(other[name], t) for name, t in data.items())
    found = solved_and_differentiated(other)
    for one, want in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [4, 25], ids=["small", "large"])
def test_expanded_inputs(n):
    data, _ = planted(0, n, n, 1, bounds=True)
    expanded = {name: t.expand(2, 3, *t.shape) for name, t in data.items()}
    copies = {name: t.clone() for name, t in expanded.items()}
    found, wanted = solved_and_differentiated(expanded), solved_and_differentiated(copies)
    for one, want in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("adjoint", [ol.Exact(), ol.Smoothed(0.1)], ids=["exact", "smoothed"])
@pytest.mark.parametrize("n", [4, 25], ids=["small", "large"])
def test_inputs_and_cotangents_are_not_modified(n, adjoint):
    data, _ = planted(0, n, n, 1, batch=(3,), bounds=True)
    data["P"] = data["P"] + torch.triu(torch.ones(n, n, dtype=torch.float64), 1)  # not symmetric
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    solution = solve(leaves, adjoint=adjoint)
    outputs = [getattr(solution, name) for name in OUTPUTS]
    values = [t.detach().clone() for t in outputs]
    cotangents = [torch.ones_like(t) for t in outputs]
    torch.autograd.backward(outputs, cotangents)
    assert all(torch.equal(leaves[name], t) for name, t in data.items())
    assert all(torch.equal(t, torch.ones_like(t)) for t in cotangents)
    assert all(torch.equal(t, value) for t, value in zip(outputs, values, strict=True))


def test_outputs_may_be_modified():
    """They share no memory with what backward uses, nor with each other."""
    data, _ = planted(0, 5, 4, 1, batch=(2,), bounds=True)
    wanted = gradients(data, layer("x"))
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    solution = solve(leaves)
    weighted([solution.x]).backward(retain_graph=True)
    with torch.no_grad():
        before = solution.x.clone()
        solution.z.zero_()
        solution.y.zero_()
        solution.z_box.zero_()
    assert torch.equal(solution.x, before)
    for name, t in leaves.items():
        torch.testing.assert_close(t.grad, wanted[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [4, 25], ids=["small", "large"])
def test_deterministic(n):
    data, _ = planted(0, n, n, 1, batch=(8,), bounds=True)
    assert_equal(solved_and_differentiated(data), solved_and_differentiated(data))


# --- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    data, known = planted(0, 5, 4, 1, batch=(2,), bounds=True)
    leaves = {name: t.clone().requires_grad_() for name, t in data.items()}
    with mode():
        solution = solve(leaves)
        for name, wanted in known.items():
            output = getattr(solution, name)
            assert not output.requires_grad
            torch.testing.assert_close(output, wanted)
        solve(leaves, adjoint=ol.Smoothed(0.1))
    if mode is torch.inference_mode:
        assert solution.x.is_inference()


def test_backward_later_and_twice():
    data, _ = planted(0, 5, 4, 1, batch=(2,))
    q = data["q"].clone().requires_grad_()
    x = solve(data | {"q": q}).x
    solve(planted(1, 5, 4, 1, batch=(2,))[0])  # another solve in between
    (first,) = torch.autograd.grad(x.sum(), q, retain_graph=True)
    (second,) = torch.autograd.grad(x.sum(), q)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(x.sum(), q)


# --- policies -------------------------------------------------------------------------------------

SOLVERS = [Automatic(), ActiveSet(), InteriorPoint(), ProximalInteriorPoint()]
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


@solvers
@pytest.mark.parametrize("kind", ["definite", "singular", "linear"])
def test_every_solver_gives_the_same(kind, solver):
    options = {"definite": {"bounds": True}, "singular": {"rank": 2}, "linear": {"linear": True}}
    data, known = planted(3, 5, 8, 1, batch=(3,), **options[kind])
    solution = solve(data, solver=solver)
    for name, wanted in known.items():
        torch.testing.assert_close(getattr(solution, name), wanted, rtol=0, atol=1e-8)
    found = gradients(data, layer(*OUTPUTS, solver=solver))
    for name, wanted in gradients(data, dense_kkt(solution, *OUTPUTS)).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-8)


@solvers
def test_every_solver_shares_matrices(solver):
    data, _ = planted(3, 5, 5, 1, bounds=True)
    data["q"] = data["q"] + torch.linspace(-1, 1, 3, dtype=torch.float64)[:, None]
    found = gradients(data, layer(*OUTPUTS, solver=solver))
    assert found["P"].shape == (5, 5)
    for name, wanted in gradients(data, layer(*OUTPUTS)).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("batch", [(), (3,), (3, 2), (1, 3), (2, 1)])
@solvers
def test_a_warm_start_changes_nothing_but_time(solver, batch):
    data, _ = planted(3, 8, 8, 2, batch=batch, bounds=True)
    earlier = solve(data | {"q": data["q"] + 0.1}, solver=solver)
    wanted = solved_and_differentiated(data, solver=solver)
    found = solved_and_differentiated(data, solver=solver, warm_start=earlier)
    for one, want in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-8)


def test_a_warm_start_has_no_gradient():
    data, _ = planted(3, 5, 4, 1)
    q = data["q"].clone().requires_grad_()
    earlier = solve(data | {"q": q + 0.1})
    later = solve(data, warm_start=earlier)
    assert not later.x.requires_grad


def test_a_warm_start_from_failed_problems():
    data, known = planted(3, 5, 4, 1, batch=(3,))
    bad = data | {"q": data["q"].clone()}
    bad["q"][1] = torch.nan
    earlier = solve(bad, on_failure="ignore")
    torch.testing.assert_close(solve(data, warm_start=earlier).x, known["x"])


def test_the_default_tolerance_is_tight():
    for seed in range(5):
        data, known = planted(seed, 30, 30, 5, bounds=True)
        solution = solve(data)
        assert max(float(t) for t in solution.residuals) <= 1e-8
        torch.testing.assert_close(solution.x, known["x"], rtol=0, atol=1e-9)


def test_verbose(capsys):
    data, _ = planted(3, 5, 4, 1, batch=(3,))
    solve(data)
    assert capsys.readouterr().out == ""
    solve(data, solver=ActiveSet(verbose=True))
    printed = capsys.readouterr().out
    assert "ActiveSet: 3 problems" in printed
    assert "SOLVED" in printed


def test_a_solver_of_ones_own_tolerance_still_differentiates():
    """A loose solver stops early, and its derivatives are those of its active rows."""
    data, _ = planted(3, 5, 4, 1, bounds=True)
    names = ["q", "h", "b"]
    found = gradients(data, layer("x", solver=InteriorPoint(eps_abs=1e-6, eps_rel=1e-6)), names)
    for name, wanted in finite_differences(data, layer("x"), names).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-4)
