"""Our own compiled code: the answers of the other methods, in any company, for any processor."""

import ctypes
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from optlayers.solvers import Automatic, ProximalInteriorPoint, QuadraticProgram, Solution, Status
from solvers import _native
from solvers.qp import native
from solvers.qp.quadratic_program import CORE_NDIM, DATA_NDIM, Form
from solvers.qp.solver import Outcome
from tests.solvers.qp.problems import Uncompiled, tensor


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def program(
    n: int, m: int, p: int, boxes: str = "", batch: int = 4, seed: int = 0, shared: bool = False
) -> QuadraticProgram:
    """Strictly convex and feasible; ``boxes`` names the bounds."""
    g = torch.Generator().manual_seed(seed)
    matrices = () if shared else (batch,)
    root, x = normal(g, *matrices, n, n), normal(g, batch, n)
    G, A = normal(g, *matrices, m, n), normal(g, *matrices, p, n)
    room = torch.rand(batch, m + 2 * n, generator=g, dtype=torch.float64)
    return QuadraticProgram(
        P=root @ root.mT / n + 0.1 * torch.eye(n, dtype=torch.float64),
        q=3 * normal(g, batch, n),
        G=G if m else None,
        h=(G @ x[..., None])[..., 0] + room[:, :m] if m else None,
        A=A if p else None,
        b=(A @ x[..., None])[..., 0] if p else None,
        lb=x - room[:, m : m + n] if "l" in boxes else None,
        ub=x + room[:, m + n :] if "u" in boxes else None,
    )


def solve(problem: QuadraticProgram, guess: Tensor | None = None) -> tuple[Outcome, int]:
    found = native.solve(problem, guess, 1e-9, 1e-9, 10_000)
    assert found is not None
    return found


def same(one: Outcome | Solution, other: Outcome | Solution, tolerance: float = 0.0) -> None:
    for name in ("x", "y", "z", "z_box", "s", "objective"):
        a, b = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- the same as others find ----------------------------------------------------------------------

# Around the width of the panels; nothing at all of each; more rows than products are kept of.
SIZES = [
    (1, 0, 0, ""), (1, 1, 0, ""), (1, 0, 1, ""), (1, 2, 0, "lu"), (3, 0, 0, "l"), (3, 0, 0, "u"),
    (7, 9, 3, ""), (8, 8, 8, ""), (8, 16, 0, "lu"), (9, 7, 1, "l"), (16, 0, 9, ""),
    (17, 23, 8, "lu"), (33, 40, 7, ""), (4, 200, 0, ""), (5, 120, 2, "lu"), (60, 70, 20, "u"),
]  # fmt: skip


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_solutions(size: tuple[int, int, int, str], shared: bool) -> None:
    problem = program(*size, shared=shared)
    found, unsettled = solve(problem)
    assert unsettled == 0
    assert not found.status.any()
    assert found.primal.max() < 1e-11
    assert found.dual.max() < 1e-11
    assert found.gap.max() < 1e-10
    same(found, Uncompiled().solve(problem), 1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_another_method_agrees(seed: int) -> None:
    problem = program(6, 9, 2, "lu", batch=64, seed=seed)
    found, unsettled = solve(problem)
    assert unsettled == 0
    same(found, ProximalInteriorPoint().solve(problem), 1e-7)


def test_the_constraint_that_is_active_says_where() -> None:
    problem = program(7, 9, 3, "lu", batch=32)
    found, _ = solve(problem)
    nu = torch.cat([found.y, found.z, found.z_box], -1)
    assert torch.equal(found.side, nu.sign().to(torch.int8))
    assert (found.side[:, :3] != 0).all()
    assert (found.side[:, 3:12] >= 0).all()
    assert {-1, 0, 1} == set(found.side[:, 12:].unique().tolist())


# --- every processor ------------------------------------------------------------------------------

LEVELS = {"base": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}


def can_run(level: str) -> bool:
    order = list(LEVELS.values())
    here = torch.backends.cpu.get_cpu_capability()
    if not hasattr(ctypes.CDLL(str(_native.LIBRARY)), f"optlayers_qp_solve_{level}"):
        return False  # another family of processors
    return order.index(LEVELS[level]) <= (order.index(here) if here in order else 0)


@pytest.mark.parametrize("level", [level for level in LEVELS if can_run(level)])
def test_every_version_of_the_code(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Level:
        def __init__(self) -> None:
            usual = native.library()
            for name in ("solve", "adjoint"):
                function = getattr(usual, f"optlayers_qp_{name}_{level}")
                given = getattr(usual, f"optlayers_qp_{name}")
                function.argtypes, function.restype = given.argtypes, given.restype
                setattr(self, f"optlayers_qp_{name}", function)

    problem = program(17, 23, 8, "lu", batch=8)
    expected, gradients = solve(problem)[0], differentiate(problem)
    chosen = Level()
    monkeypatch.setattr(native, "library", lambda: chosen)
    found, unsettled = solve(problem)
    assert unsettled == 0
    same(found, expected, 1e-11)
    for one, other in zip(differentiate(problem), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def differentiate(problem: QuadraticProgram) -> list[Tensor]:
    found, _ = solve(problem)
    data = [getattr(problem, field.name) for field in fields(problem)]
    solution = (found.x, found.y, found.z, found.z_box)
    g = torch.Generator().manual_seed(1)
    cotangents = [normal(g, *t.shape) for t in (*solution, found.s, found.objective)]
    grads, *_ = native.adjoint(data, solution, found.side, cotangents, all_of(problem))
    return [t for t in grads if t is not None]


def all_of(problem: QuadraticProgram) -> native.Wanted:
    """All gradients, of each element."""
    cores = [getattr(problem, name) for name in CORE_NDIM]
    shape = problem.batch_shape
    shapes = [
        None if t is None else (*shape, *t.shape[-core:])
        for t, core in zip(cores, DATA_NDIM, strict=True)
    ]
    return native.Wanted(problem.form, tuple(shapes), (False,) * 8, with_adjoint=False)


def test_the_library_was_compiled() -> None:
    assert native.library() is not None


@pytest.mark.parametrize("reason", ["missing", "another release"])
def test_without_a_library_that_fits(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "missing":
        monkeypatch.setattr(_native, "LIBRARY", _native.LIBRARY.with_name("missing.so"))
    else:
        monkeypatch.setattr(_native, "INTERFACE", _native.INTERFACE + 1)
    problem = program(5, 6, 1)
    expected = Automatic().solve(problem)
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    assert native.library() is None
    assert native.solve(problem, None, 1e-9, 1e-9, 100) is None
    same(Automatic().solve(problem), expected, 1e-9)


def test_no_memory() -> None:
    call = native._Call(Form(torch.Size([2]), 3, 0, 1, 0))

    def without_memory(job: int) -> None:
        ctypes.c_int64.from_address(job + 5 * 8).value = 1

    with pytest.raises(MemoryError, match="3 variables"):
        call.run(without_memory, ())


# --- company --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
def test_an_element_is_the_same_in_any_company(shared: bool) -> None:
    problem = program(12, 15, 3, "lu", batch=40, shared=shared)
    whole, _ = solve(problem)
    assert problem.h is not None
    others = problem.h.clone()
    others[1::2] += 1.0
    mixed, _ = solve(QuadraticProgram(**vars_of(problem) | {"h": others}))
    for field in fields(Outcome):
        if field.name != "factor":
            one, other = getattr(whole, field.name), getattr(mixed, field.name)
            assert torch.equal(one[::2], other[::2]), field.name


def vars_of(problem: QuadraticProgram) -> dict[str, Tensor | None]:
    return {field.name: getattr(problem, field.name) for field in fields(problem)}


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "negative", "nested"])
def test_layouts(layout: str) -> None:
    problem = program(6, 8, 2, "l", batch=6)
    data = vars_of(problem)

    def change(t: Tensor) -> Tensor:
        if layout == "transposed":
            return t.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "strided":
            return t.repeat_interleave(2, -1)[..., ::2]
        if layout == "negative":
            return torch._neg_view(-t)
        if layout == "nested":
            return t.reshape(2, 3, *t.shape[1:])
        return t[:1].expand_as(t)

    given = {name: None if t is None else change(t) for name, t in data.items()}
    plain = {name: None if t is None else t.clone().contiguous() for name, t in given.items()}
    found, unsettled = solve(QuadraticProgram(**given))
    assert unsettled == 0
    same(found, solve(QuadraticProgram(**plain))[0], 1e-12)


def test_nothing_to_solve() -> None:
    found, unsettled = solve(program(4, 3, 1, batch=0))
    assert unsettled == 0
    assert found.x.shape == (0, 4)


# --- what is not plain ----------------------------------------------------------------------------


def unsettled_elements(problem: QuadraticProgram) -> list[bool]:
    found, count = solve(problem)
    assert count == int((found.status != 0).sum())
    return found.status.bool().tolist()


def test_others_look_at_what_is_not_plain() -> None:
    problem = program(5, 6, 2, batch=8)
    data = {name: t for name, t in vars_of(problem).items() if t is not None}
    data["P"][0] = 0.0
    data["P"][1] = -torch.eye(5, dtype=torch.float64)
    data["q"][2, 0] = torch.nan
    data["P"][3, 1, 1] = torch.inf
    data["A"][4, 1] = data["A"][4, 0]
    data["G"][5], data["h"][5] = data["A"][5, :1], data["b"][5, :1] - 1
    data["h"][6] = torch.nan
    problem = QuadraticProgram(**data)
    assert unsettled_elements(problem) == [True] * 7 + [False]
    alone = program(5, 6, 2, batch=8)
    last = Automatic().solve(problem)
    assert torch.equal(last.x[7], Automatic().solve(alone).x[7])
    assert last.status[7] == Status.SOLVED
    assert last.status[5] == Status.PRIMAL_INFEASIBLE


def test_rows_that_depend_on_active_ones() -> None:
    """A vertex is left for another one: one row comes as another goes."""
    g = torch.Generator().manual_seed(3)
    G = normal(g, 16, 60, 3)
    P, q = 1e-3 * torch.eye(3, dtype=torch.float64), normal(g, 16, 3)
    h = torch.linalg.vector_norm(G, dim=-1)
    problem = QuadraticProgram(P, q, G, h)
    found, unsettled = solve(problem)
    assert unsettled == 0
    assert (found.side.sum(-1) == 3).any()
    same(found, Uncompiled().solve(problem), 1e-9)


@pytest.mark.parametrize("copies", [2, 5])
def test_rows_that_are_there_more_than_once(copies: int) -> None:
    problem = program(6, 8, 0, batch=32)
    assert problem.G is not None
    assert problem.h is not None
    G, h = problem.G.repeat(1, copies, 1), problem.h.repeat(1, copies)
    found, unsettled = solve(QuadraticProgram(problem.P, problem.q, G, h))
    assert unsettled == 0
    torch.testing.assert_close(found.x, solve(problem)[0].x, rtol=0, atol=1e-12)
    split = found.z.unflatten(-1, (copies, -1))
    assert ((split > 0).sum(-2) <= 1).all()


def test_iterations_run_out() -> None:
    problem = program(10, 20, 0, batch=3)
    found = native.solve(problem, None, 1e-9, 1e-9, 2)
    assert found is not None
    assert found[1] == 3


def test_opposite_rows_that_are_nearly_parallel() -> None:
    """Multipliers of the wrong sign were once cut off, and the residual was that of before."""
    near, side, other = tensor([0.79, -0.73, 1.11]), tensor([-0.18, 1.13, 0.86]), tensor([1, -2, 1])
    G = torch.stack([near, -near + 2.6866203599346e-05 * side, other])
    q = -G.mT @ tensor([1e3, 1e3, 0])
    problem = QuadraticProgram(torch.eye(3, dtype=torch.float64), q, G, torch.zeros(3).double())
    found = Automatic().solve(problem)
    assert found.status == Status.SOLVED
    assert (found.x + q + G.mT @ found.z).abs().max() < 1e-9
    assert found.x.abs().max() < 1e-6


@pytest.mark.parametrize(("q", "row"), [(-2.0, 1e308), (-1e120, 1e200)])
def test_what_overflows_is_not_solved(q: float, row: float) -> None:
    P = torch.eye(1, dtype=torch.float64)
    problem = QuadraticProgram(P, tensor([q]), tensor([[row]]), tensor([1]))
    assert solve(problem)[1] == 1


# --- guesses --------------------------------------------------------------------------------------


def test_the_solution_as_a_guess_needs_no_change() -> None:
    problem = program(10, 15, 3, "lu", batch=16)
    cold, _ = solve(problem)
    warm, unsettled = solve(problem, torch.cat([cold.y, cold.z, cold.z_box], -1))
    assert unsettled == 0
    assert warm.iterations.max() == 1
    assert cold.iterations.min() > 2
    same(warm, cold, 1e-12)


@pytest.mark.parametrize("value", ["noise", "nan", "inf", "all up", "all down"])
@pytest.mark.parametrize("many", [False, True])
def test_a_bad_guess_costs_only_time(value: str, many: bool) -> None:
    problem = program(5, 60 if many else 7, 1, "lu", batch=16)
    cold, _ = solve(problem)
    noise = normal(torch.Generator().manual_seed(5), 16, cold.side.shape[1])
    values = {"nan": torch.nan, "inf": torch.inf, "all up": 1.0, "all down": -1.0}
    guess = noise if value == "noise" else torch.full_like(noise, values[value])
    warm, unsettled = solve(problem, guess)
    assert unsettled == 0
    same(warm, cold, 1e-10)


# --- derivatives ----------------------------------------------------------------------------------


def test_no_derivative_where_active_rows_depend_on_each_other() -> None:
    problem = program(5, 6, 2, batch=3)
    found, _ = solve(problem)
    assert problem.G is not None
    data = [getattr(problem, field.name) for field in fields(problem)]
    data[2] = problem.G.clone()
    data[2][1, :2] = problem.G[1, :1]
    side = found.side.clone()
    side[1, 2:4] = 1
    solution = (found.x, found.y, found.z, found.z_box)
    ones = torch.ones_like(found.x)
    wanted = all_of(problem)
    grads, _, singular = native.adjoint(data, solution, side, [ones, *[None] * 5], wanted)
    assert singular is not None
    assert singular.tolist() == [False, True, False]
    assert all(t is None or (t[0].any() and not t[1].any()) for t in grads)
    ones[1] = 0.0  # where nobody asks there is nothing to solve
    assert native.adjoint(data, solution, side, [ones, *[None] * 5], wanted)[2] is None


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_what_outer_products_are_made_of(shared: bool, many: bool) -> None:
    problem = program(5, 90 if many else 6, 2, batch=7, shared=shared)
    found, _ = solve(problem)
    data = [getattr(problem, field.name) for field in fields(problem)]
    solution = (found.x, found.y, found.z, found.z_box)
    cotangents: list[Tensor | None] = [torch.ones_like(found.x), *[None] * 5]
    given = data, solution, found.side, cotangents
    wanted = all_of(problem)
    grads, a, singular = native.adjoint(*given, wanted._replace(with_adjoint=True))
    assert singular is None
    assert a is not None
    a_x, _, a_z, _ = a.split([5, 2, found.z.shape[1], 0], -1)
    expected = a_z[..., None] * found.x[:, None] + found.z[..., None] * a_x[:, None]
    torch.testing.assert_close(grads[2], expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(grads[1], a_x, rtol=0, atol=1e-14)
    # Of matrices that all share, the sums alone.
    summed = tuple([core == 2 for core in DATA_NDIM])
    shapes = [
        shape[1:] if one and shape is not None else shape
        for shape, one in zip(wanted.shapes, summed, strict=True)
    ]
    totals, *_ = native.adjoint(*given, wanted._replace(shapes=tuple(shapes), summed=summed))
    for total, gradient, one in zip(totals, grads, summed, strict=True):
        if gradient is None:
            assert total is None
            continue
        expected = gradient.sum(0) if one else gradient
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-13)
