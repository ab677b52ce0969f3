"""The record of what became of every sample: by compiled code as by torch."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from solvers import _native
from solvers.fixed_point import Anderson, Picard
from solvers.iteration import Iterate, Iterates, IterativeSolver, Run
from solvers.solution import Status


@dataclass(frozen=True)
class Ending(IterativeSolver):
    """Ends with the last point, as methods that go downhill do."""

    keeps_last = True


def told(seed: int, batch: int, steps: int, dtype: torch.dtype) -> list[Iterate]:
    """Steps of a method on whose samples everything happens at some time or other."""
    rng = np.random.default_rng(seed)
    rates = rng.choice([0.3, 0.9, 1.0, 1.1], batch)
    errors = np.cumprod(rates * rng.uniform(0.5, 1.5, (steps, batch)) ** rng.integers(2), 0)
    errors *= 10.0 ** rng.integers(-6, 3, batch)
    errors[rng.random((steps, batch)) < rng.choice([0.0, 0.01])] = np.nan
    errors[rng.random((steps, batch)) < rng.choice([0.0, 0.05])] = np.inf
    errors[rng.random((steps, batch)) < rng.choice([0.0, 0.05])] = 0.0
    points = rng.standard_normal((steps, batch, int(rng.integers(1, 20))))
    points[rng.random((steps, batch)) < rng.choice([0.0, 0.02])] = np.nan
    values = rng.standard_normal((steps, batch)) if rng.integers(2) else [None] * steps
    scales = rng.uniform(0.5, 2.0, (steps, batch)) if rng.integers(2) else [None] * steps

    def tensor(array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.as_tensor(array).to(dtype)

    rows = zip(points, errors, values, scales, strict=True)
    return [Iterate(tensor(x), tensor(e), tensor(v), (), tensor(s)) for x, e, v, s in rows]


def run(solver: IterativeSolver, steps: list[Iterate], slow: list[int] | None = None) -> Run:
    def method() -> Iterates:
        for it in steps:
            seen = yield it
            assert seen.running.shape == it.x.shape[:1]
            if slow is not None:
                slow.append(seen.slow)

    return solver.run(method())


def same(one: Run, other: Run) -> None:
    for field, a, b in zip(Run._fields, one, other, strict=True):
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype, field
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=field)
        else:
            assert a == b, field


@pytest.mark.parametrize("solver", [IterativeSolver(), Ending()], ids=["best", "last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("history", [False, True])
def test_compiled_code_and_torch_agree(solver, dtype, history, monkeypatch):
    assert _native.library() is not None
    outcomes = set()
    for seed in range(120):
        steps = told(seed, batch=1 + seed % 7, steps=40, dtype=dtype)
        most = (39, 25, 9, 0)[seed % 4]
        # Powers of two, so that neither precision rounds a tolerance.
        chosen = replace(solver, eps_abs=2.0**-17, eps_rel=0.0, max_iter=most, keep_history=history)
        compiled = run(chosen, steps)
        with monkeypatch.context() as patch:
            patch.setattr(_native, "library", lambda: None)
            same(compiled, run(chosen, steps))
        outcomes |= set(compiled.status.tolist())
    assert outcomes >= {
        Status.SOLVED, Status.SOLVED_INACCURATE, Status.MAX_ITERATIONS, Status.NUMERICAL_ERROR
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_errors_may_be_left_to_be_measured(dtype, monkeypatch):
    # The lengths are whole numbers, which no order of a sum rounds.
    rng = torch.Generator().manual_seed(0)
    start = torch.randint(-9, 9, (30, 5, 11), generator=rng)
    step = torch.zeros(30, 5, 11, dtype=torch.int64)
    lengths = torch.randint(0, 40, (30, 5), generator=rng)
    step[:, :, 4], step[:, :, 9] = 3 * lengths, -4 * lengths
    x = (start + step).to(dtype)
    start = start.to(dtype)
    measured = [Iterate(a, None, start=b) for a, b in zip(x, start, strict=True)]
    told = [Iterate(a, 5 * e) for a, e in zip(x, lengths.to(dtype), strict=True)]
    solver = IterativeSolver(eps_abs=2.5, eps_rel=0.0, max_iter=29, keep_history=True)
    slow: list[list[int]] = [[], [], []]
    compiled = run(solver, measured, slow[0])
    same(compiled, run(solver, told, slow[1]))
    monkeypatch.setattr(_native, "library", lambda: None)
    same(compiled, run(solver, measured, slow[2]))
    assert slow[0] == slow[1] == slow[2]
    assert 0 < slow[0][0] + slow[0][1] + slow[0][2] < 15
    assert set(compiled.status.tolist()) == {Status.SOLVED, Status.SOLVED_INACCURATE}


@pytest.mark.parametrize("compiled", [True, False])
def test_views_of_negative_numbers_are_read_as_such(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_native, "library", lambda: None)
    z = torch.full((2, 3), -1.0, dtype=torch.float64)
    twice = torch.complex(torch.zeros_like(z), -z).conj().imag
    assert twice.is_neg()
    found = run(IterativeSolver(eps_abs=0.1, max_iter=0), [Iterate(z, None, start=twice)])
    assert found.error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("compiled", [True, False])
def test_tolerances_are_relative_to_the_norm_or_to_what_the_method_says(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_native, "library", lambda: None)
    x = torch.full((2, 100), 3.0, dtype=torch.float64)  # of length 30
    error = torch.tensor([0.29, 0.31], dtype=torch.float64)
    solver = IterativeSolver(eps_abs=0.0, eps_rel=0.01, max_iter=0)
    assert run(solver, [Iterate(x, error)]).status.tolist() == [0, 1]
    scale = torch.tensor([28.0, 32.0], dtype=torch.float64)
    assert run(solver, [Iterate(x, error, scale=scale)]).status.tolist() == [1, 0]


@pytest.mark.parametrize("compiled", [True, False])
def test_numbers_of_any_layout(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_native, "library", lambda: None)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, 2, generator=rng, dtype=torch.float64)[::2, :, 1].mT
    numbers = torch.rand(4, 3, generator=rng, dtype=torch.float64)
    error, scale, value = numbers.unbind(1)
    solver = IterativeSolver(eps_abs=0.0, eps_rel=0.5, max_iter=0)
    found = run(solver, [Iterate(x, error, value, (), scale)])
    whole = Iterate(*(t.contiguous() for t in (x, error, value)), (), scale.contiguous())
    same(found, run(solver, [whole]))
    assert found.status.tolist() == torch.where(error <= 0.5 * scale, 0, 1).tolist()


@pytest.mark.parametrize("compiled", [True, False])
def test_nobody_at_all(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_native, "library", lambda: None)
    found = run(IterativeSolver(), [Iterate(torch.zeros(0, 3), torch.zeros(0))])
    assert found.x.shape == (0, 3)
    assert found.status.shape == found.iterations.shape == found.error.shape == (0,)
    assert found.status.dtype == found.iterations.dtype == torch.int64


@pytest.mark.parametrize("transform", ["grad", "jvp"])
@pytest.mark.parametrize("samples", [2, 21])
def test_a_solver_that_runs_within_a_transform(transform, samples):
    # There, whatever is computed is wrapped, and has no memory of its own.
    z = torch.ones(samples, 1, dtype=torch.float64)

    def weighted(c: Tensor) -> Tensor:
        return (Anderson().solve(torch.cos, z).x * c).sum()

    if transform == "grad":
        slope = torch.func.grad(weighted)(z)[0, 0]
    else:
        along = torch.zeros_like(z)
        along[0] = 1.0
        slope = torch.func.jvp(weighted, (z,), (along,))[1]
    assert float(slope) == pytest.approx(0.7390851332151607, abs=1e-9)


@pytest.mark.parametrize("compiled", [True, False])
def test_parameters_may_change_the_type_on_the_way(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_native, "library", lambda: None)
    a = torch.tensor([[2.0], [3.0]], dtype=torch.float64)
    solution = Picard().solve(lambda x: 0.5 * (x + a / x), torch.ones(2, 1))
    torch.testing.assert_close(solution.x, a.sqrt(), rtol=1e-6, atol=0)
    steps = told(0, 3, 20, torch.float64)
    steps[0] = steps[0]._replace(x=steps[0].x.float())
    assert run(IterativeSolver(max_iter=19), steps).x.dtype == torch.float64


def test_what_is_returned_shares_no_memory():
    found = run(IterativeSolver(max_iter=19), told(1, 3, 20, torch.float64))
    places = [t.untyped_storage().data_ptr() for t in (found.status, found.iterations, found.error)]
    assert len(set(places)) == 3


@dataclass(frozen=True)
class Impatient(IterativeSolver):
    """Never looks back."""

    patience = 0


@pytest.mark.parametrize("compiled", [True, False])
def test_settings_of_any_type(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(_native, "library", lambda: None)
    z, eps = torch.ones(2, 1, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    most = 1e3, float("inf"), np.float64(50), 2**70
    counts = [Picard(max_iter=m).solve(torch.cos, z).iterations.tolist() for m in most]
    assert counts[0] == counts[1] == counts[3] > [50, 50] == counts[2]
    assert Picard(eps_abs=np.array(1e-3)).solve(torch.cos, z).solved.all()
    solver = Picard(eps_abs=eps, eps_rel=0)
    few = solver.solve(torch.cos, z).iterations
    eps.fill_(1e-10)
    assert (solver.solve(torch.cos, z).iterations > few).all()
    found = run(Impatient(max_iter=19), told(2, 3, 20, torch.float64))
    assert found.status.shape == (3,)


def test_steps_of_another_shape_are_refused():
    x, error = torch.zeros(5, 2), torch.ones(5)
    for wrong in (
        Iterate(x, error[:1]),
        Iterate(x, error.sum()),
        Iterate(x, error, scale=error[:1]),
    ):
        with pytest.raises(ValueError, match=r"keep its shape, \(5,\).*got"):
            run(IterativeSolver(), [wrong])
    with pytest.raises(ValueError, match=r"keep its shape, \(5, 2\).*got \(1, 2\)"):
        run(IterativeSolver(), [Iterate(x, error), Iterate(x[:1], error)])


def test_tensors_without_memory_are_not_read():
    with FakeTensorMode() as mode, pytest.raises(DataDependentOutputException):
        Picard().solve(torch.cos, mode.from_tensor(torch.ones(3, 2)))


def test_a_history_of_nobody():
    found = Anderson(keep_history=True).solve(torch.cos, torch.ones(0, 2))
    assert found.history.shape == (1, 0)
