"""What holds for every QP solver, on the whole table of problems."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from optlayers.solvers import (
    ActiveSet,
    Automatic,
    InteriorPoint,
    ProximalInteriorPoint,
    QPSolver,
    QuadraticProgram,
    Solution,
    Status,
)
from solvers.qp.quadratic_program import CORE_NDIM
from tests.solvers.qp.problems import ALL, PROBLEMS, Known, Uncompiled, eye, qp, tensor

SOLVERS = [
    pytest.param(solver, id=type(solver).__name__)
    for solver in (Automatic(), ActiveSet(), Uncompiled(), InteriorPoint(), ProximalInteriorPoint())
]
pytestmark = pytest.mark.parametrize("solver", SOLVERS)

OUTPUTS = ("x", "y", "z", "z_box", "s", "objective")


def data(problem: QuadraticProgram) -> dict[str, Tensor]:
    return {name: t for name in CORE_NDIM if (t := getattr(problem, name)) is not None}


def worst_violation(problem: QuadraticProgram, solution: Solution) -> Tensor:
    """Largest violation of an optimality condition, each relative to its terms, ``(*batch)``."""
    x, y, z, z_box = solution.x, solution.y, solution.z, solution.z_box
    P = torch.zeros(problem.n, problem.n).to(x) if problem.P is None else problem.P
    P = (P + P.mT) / 2

    def times(M: Tensor, v: Tensor) -> Tensor:
        return (M @ v[..., None])[..., 0]

    def worst(excess: Tensor, *sizes: Tensor) -> Tensor:
        size = 1 + sum(t.abs().amax(-1) if t.shape[-1] else t.sum(-1) for t in sizes)
        return excess.clamp(min=0).sum(-1) / size

    Px = times(P, x)
    pull, box = torch.zeros_like(x), z_box if z_box.shape[-1] else torch.zeros_like(x)
    found = []
    if problem.A is not None:
        Ax, pull = times(problem.A, x), pull + times(problem.A.mT, y)
        found.append(worst((Ax - problem.b).abs(), Ax))
    if problem.G is not None:
        Gx, pull = times(problem.G, x), pull + times(problem.G.mT, z)
        found += [
            worst(Gx - problem.h, Gx),
            worst(-z, z),
            worst(torch.where(z == 0, 0.0, z * (problem.h - Gx)).abs(), z, Gx),
        ]
    lb = torch.full_like(x, -torch.inf) if problem.lb is None else problem.lb.expand_as(x)
    ub = torch.full_like(x, torch.inf) if problem.ub is None else problem.ub.expand_as(x)
    at_lower = torch.where(box < 0, box * (x - lb), 0.0).abs()
    at_upper = torch.where(box > 0, box * (ub - x), 0.0).abs()
    found += [
        worst(torch.maximum(lb - x, x - ub), x),
        worst(torch.where(lb == ub, 0.0, at_lower + at_upper), box, x),
        worst((Px + problem.q + pull + box).abs(), Px, problem.q, pull, box),
    ]
    return torch.stack(torch.broadcast_tensors(*found)).amax(0)


@pytest.mark.parametrize("known", PROBLEMS)
def test_known_answer(solver: QPSolver, known: Known) -> None:
    problem = known.make()
    solution = solver.solve(problem)
    expected = known.statuses()
    assert torch.equal(solution.status, expected), solution
    solved = expected == Status.SOLVED

    for name in ("x", *OUTPUTS):
        assert getattr(solution, name).shape[: solved.ndim] == problem.batch_shape
    assert solution.z.shape[-1] == problem.m
    assert solution.y.shape[-1] == problem.p
    assert solution.z_box.shape[-1] in (0, problem.n)
    assert (worst_violation(problem, solution)[solved] <= 1e-8).all()
    for residual in solution.residuals:
        assert torch.isfinite(residual[solved]).all()
    if known.x is not None:
        scale = known.x.abs().clamp(min=1e-6)
        off = ((solution.x - known.x).abs() / scale)[solved]
        off = torch.where((known.x == 0)[solved], off * 1e-6, off)
        assert (off <= 1e-6).all(), solution.x
    if known.objective is not None:
        value = solution.objective + known.constant
        assert abs(float(value) - known.objective) <= 1e-6


@pytest.mark.parametrize("known", PROBLEMS)
def test_no_finite_number_without_a_word(solver: QPSolver, known: Known) -> None:
    """What has no solution keeps its status when it is looked at in float32, too."""
    solution = solver.solve(known.make().to(torch.float32))
    assert solution.x.dtype == solution.z_box.dtype == solution.objective.dtype == torch.float32
    unsolvable = known.statuses() > Status.MAX_ITERATIONS
    assert (solution.status[unsolvable] > Status.SOLVED_INACCURATE).all()


def test_float32_in_and_out(solver: QPSolver) -> None:
    known = ALL["HS76"]
    solution = solver.solve(known.make().to(torch.float32))
    assert all(getattr(solution, name).dtype == torch.float32 for name in OUTPUTS)
    assert abs(float(solution.objective) - known.objective) <= 1e-5


@pytest.mark.parametrize("name", ["all_kinds", "HS53", "one_infeasible", "shared_matrices"])
def test_inputs_unmodified(solver: QPSolver, name: str) -> None:
    problem, untouched = ALL[name].make(), ALL[name].make()
    solver.solve(problem)
    for key, value in data(untouched).items():
        assert torch.equal(getattr(problem, key), value)


def test_strided_and_expanded_inputs(solver: QPSolver) -> None:
    batch = random_problem(0, 4, 3, 1, batch=3)
    plain = solver.solve(batch)

    def strided(t: Tensor) -> Tensor:
        wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
        wide[..., ::2] = t
        return wide[..., ::2]

    def turned(t: Tensor) -> Tensor:
        return t.mT.contiguous().mT if t.ndim > 1 else t

    for layout in (strided, turned):
        other = QuadraticProgram(**{k: layout(v) for k, v in data(batch).items()})
        torch.testing.assert_close(solver.solve(other).x, plain.x, rtol=0, atol=1e-10)

    first = QuadraticProgram(**{k: v[0] for k, v in data(batch).items()})
    copies = {k: v.expand(5, *v.shape) for k, v in data(first).items()}
    expanded = solver.solve(QuadraticProgram(**copies))
    single = solver.solve(first)
    torch.testing.assert_close(expanded.x, single.x.expand(5, 4), rtol=0, atol=1e-10)
    torch.testing.assert_close(expanded.z, single.z.expand(5, 3), rtol=0, atol=1e-8)


def test_deterministic(solver: QPSolver) -> None:
    problem = random_problem(1, 6, 6, 2, batch=4)
    first, second = solver.solve(problem), solver.solve(problem)
    for name in OUTPUTS:
        assert torch.equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("failure", ["infeasible", "unbounded", "nan", "indefinite", "slow"])
def test_mates_of_a_failed_element(solver: QPSolver, failure: str, seed: int) -> None:
    good = random_problem(seed, 5, 6, 2, batch=5)
    bad = {name: t.clone() for name, t in data(good).items()}
    if failure == "infeasible":
        bad["G"][2, 1], bad["h"][2, 1] = -bad["G"][2, 0], -bad["h"][2, 0] - 1
    elif failure == "unbounded":
        bad["P"][2], bad["G"][2], bad["A"][2] = 0.0, 0.0, 0.0
        bad["h"][2], bad["b"][2], bad["ub"][2] = 1.0, 0.0, torch.inf
        bad["q"][2] = -1.0
    elif failure == "nan":
        bad["q"][2, 0] = torch.nan
    elif failure == "indefinite":
        bad["P"][2] = -bad["P"][2]
    else:
        bad["G"][2] = bad["G"][2] * 10.0 ** torch.arange(-3, 3).double()[:, None]
    one, other = solver.solve(good), solver.solve(QuadraticProgram(**bad))
    mates = torch.tensor([0, 1, 3, 4])
    assert (one.status == Status.SOLVED).all()
    if failure != "slow":
        assert other.status[2] > Status.SOLVED_INACCURATE
    for name in (*OUTPUTS, "status", "iterations"):
        assert torch.equal(getattr(one, name)[mates], getattr(other, name)[mates]), name


@pytest.mark.parametrize("name", ["all_kinds", "HS76", "lp_simplex", "unconstrained"])
def test_warm_start(solver: QPSolver, name: str) -> None:
    problem = ALL[name].make()
    cold = solver.solve(problem)
    again = solver.solve(problem, warm_start=cold)
    assert again.status == Status.SOLVED
    assert again.iterations <= cold.iterations
    torch.testing.assert_close(again.x, cold.x, rtol=0, atol=1e-8)

    moved = QuadraticProgram(**{"P": None} | data(problem) | {"q": problem.q + 0.01})
    torch.testing.assert_close(
        solver.solve(moved, warm_start=cold).x, solver.solve(moved).x, rtol=0, atol=1e-7
    )


def test_warm_start_without_a_guess(solver: QPSolver) -> None:
    known = ALL["one_infeasible"]
    failed = solver.solve(known.make())
    failed.x[1], failed.z[1] = torch.nan, torch.nan
    again = solver.solve(known.make(), warm_start=failed)
    assert torch.equal(again.status, known.statuses())


def test_far_warm_start_does_no_harm(solver: QPSolver) -> None:
    problem = ALL["HS35"].make()
    guess = solver.solve(problem)
    guess.x, guess.z = guess.x + 1e3, guess.z + 1e3
    torch.testing.assert_close(solver.solve(problem, warm_start=guess).x, ALL["HS35"].x)


def test_verbose_prints_a_table(solver: QPSolver, capsys: pytest.CaptureFixture[str]) -> None:
    loud = type(solver)(verbose=True)
    loud.solve(ALL["one_infeasible"].make())
    printed = capsys.readouterr().out
    assert type(solver).__name__ in printed
    assert "SOLVED" in printed
    assert "PRIMAL_INFEASIBLE" in printed
    solver.solve(ALL["one_infeasible"].make())
    assert capsys.readouterr().out == ""


def test_max_iter_is_a_status(solver: QPSolver) -> None:
    hasty = type(solver)(max_iter=1)
    solution = hasty.solve(random_problem(3, 10, 20, 2, batch=2))
    unsolved = solution.status != Status.SOLVED
    assert (solution.status[unsolved] > Status.SOLVED).all()
    assert (
        worst_violation(random_problem(3, 10, 20, 2, batch=2), solution)[~unsolved] < 1e-8
    ).all()


def random_problem(
    seed: int, n: int, m: int, p: int, batch: int | None = None, rank: int | None = None
) -> QuadraticProgram:
    """Feasible, with a bounded feasible set; ``P`` has the given rank."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64)

    x, F = normal(n), normal(n, n if rank is None else rank)
    G, A = normal(m, n), normal(p, n)
    return QuadraticProgram(
        P=F @ F.mT / n,
        q=normal(n),
        G=G,
        h=(G @ x[..., None])[..., 0] + normal(m).abs() * (normal(m) > -0.5),
        A=A,
        b=(A @ x[..., None])[..., 0],
        lb=x - 2,
        ub=x + 2,
    )


def reference_value(problem: QuadraticProgram) -> float:
    """The optimal value, from Clarabel by way of CVXPY."""
    P, q, G, h, A, b, lb, ub = (t.numpy() for t in data(problem).values())
    x = cp.Variable(q.shape[0])
    constraints = [x >= lb, x <= ub]
    constraints += [G @ x <= h] if len(h) else []
    constraints += [A @ x == b] if len(b) else []
    objective = 0.5 * cp.quad_form(x, cp.psd_wrap((P + P.T) / 2)) + q @ x
    return float(cp.Problem(cp.Minimize(objective), constraints).solve(solver=cp.CLARABEL))


@pytest.mark.parametrize(
    ("n", "m", "p", "rank"),
    [(2, 1, 0, 2), (5, 5, 1, 5), (5, 20, 0, 5), (10, 10, 4, 3), (20, 20, 4, 20), (12, 30, 2, 0),
     (50, 50, 10, 50), (50, 20, 5, 10)],
)  # fmt: skip
def test_random_problems_against_clarabel(
    solver: QPSolver, n: int, m: int, p: int, rank: int
) -> None:
    for seed in range(2):
        problem = random_problem(100 * n + seed, n, m, p, rank=rank)
        solution = solver.solve(problem)
        assert solution.status == Status.SOLVED
        assert worst_violation(problem, solution) <= 1e-8
        value = reference_value(problem)
        assert abs(float(solution.objective) - value) <= 1e-6 * (1 + abs(value))


@pytest.mark.parametrize("n", [8, 30])
def test_dual_type_problems(solver: QPSolver, n: int) -> None:
    """Like DUAL1 to DUAL4 of Maros & Meszaros: a dense P on the simplex of bounded weights."""
    generator = np.random.default_rng(n)
    F = generator.normal(size=(n, n // 2))
    make = qp(
        P=torch.from_numpy(F @ F.T),
        q=torch.zeros(n).double(),
        G=torch.zeros(0, n).double(),
        h=torch.zeros(0).double(),
        A=torch.ones(1, n).double(),
        b=[1],
        lb=torch.zeros(n).double(),
        ub=torch.ones(n).double(),
    )
    problem = make()
    solution = solver.solve(problem)
    assert solution.status == Status.SOLVED
    assert worst_violation(problem, solution) <= 1e-8
    assert abs(float(solution.objective) - reference_value(problem)) <= 1e-6


def test_signs_of_the_multipliers(solver: QPSolver) -> None:
    """Gradient of the Lagrangian: P x + q + A'y + G'z + z_box, z_box < 0 at lb and > 0 at ub."""
    problem = qp(P=eye(2), q=[-3, 3], lb=[-1, -1], ub=[1, 1])()
    torch.testing.assert_close(solver.solve(problem).z_box, tensor([2, -2]))
    problem = qp(P=eye(2), q=[-3, 3], G=[[1, 0]], h=[1], A=[[0, 1]], b=[-1])()
    solution = solver.solve(problem)
    torch.testing.assert_close(solution.z, tensor([2]))
    torch.testing.assert_close(solution.y, tensor([-2]))
    torch.testing.assert_close(solution.s, tensor([0]), atol=1e-9, rtol=0)
