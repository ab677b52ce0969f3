"""What only the interior point in torch has to get right; the contract of all solvers is apart."""

import pytest
import torch
from torch import Tensor

from solvers.qp import QuadraticProgram
from solvers.qp.interior_point import InteriorPoint
from solvers.qp.judge import judge
from solvers.qp.rows import Rows, stack
from solvers.qp.screening import nonconvex
from solvers.solution import Status
from tests.solvers.qp.problems import ALL, eye, qp, tensor

SOLVER = InteriorPoint()


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_rows(seed: int, batch: int, n: int, m: int, p: int) -> Rows:
    """Feasible with an interior; ``P`` definite."""
    F, x = normal(seed, batch, n, n), normal(seed + 1, batch, n, 1)
    G, A = normal(seed + 2, batch, m, n), normal(seed + 3, batch, p, n)
    return stack(
        QuadraticProgram(
            P=F @ F.mT / n + 0.1 * eye(n),
            q=normal(seed + 4, batch, n),
            G=G,
            h=(G @ x)[..., 0] + normal(seed + 5, batch, m).abs() + 0.01,
            A=A,
            b=(A @ x)[..., 0],
            lb=x[..., 0] - 1,
            ub=x[..., 0] + 1,
        )
    )


# --- the method itself, before polishing ----------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "p"), [(1, 1, 0), (5, 5, 1), (20, 30, 4), (60, 40, 10)])
def test_accurate_before_polishing(n: int, m: int, p: int) -> None:
    rows = random_rows(n, 6, n, m, p)
    found = SOLVER.iterate(rows, None)
    assert (found.status == Status.SOLVED).all()
    assert (judge(rows, found.x, found.nu, 1e-9, 1e-9).error <= 1).all()
    assert found.iterations.max() <= 20


@pytest.mark.parametrize(
    "name", ["weakly_active", "degenerate_vertex", "opposing_inequalities", "equality_twice",
             "dependent_equalities", "lp_many_solutions", "singular_P_many_solutions"],
)  # fmt: skip
def test_degenerate_problems_before_polishing(name: str) -> None:
    rows = stack(ALL[name].make())
    found = SOLVER.iterate(rows, None)
    assert (found.status == Status.SOLVED).all()
    assert (judge(rows, found.x, found.nu, 1e-9, 1e-9).error <= 1).all()


def test_a_vertex_of_many_rows() -> None:
    """Twenty times as many active rows as variables: W is huge in all directions."""
    G, x = normal(1, 80, 4), normal(2, 4)
    rows = stack(QuadraticProgram(P=eye(4), q=-3 * G.sum(0), G=G, h=G @ x))
    found = SOLVER.iterate(rows, None)
    torch.testing.assert_close(found.x[0], x, atol=1e-7, rtol=0)


def test_ten_thousand_problems_at_once() -> None:
    targets = normal(3, 10_000, 3)
    solution = SOLVER.solve(QuadraticProgram(P=eye(3), q=-targets, lb=tensor([0, 0, 0])))
    assert (solution.status == Status.SOLVED).all()
    torch.testing.assert_close(solution.x, targets.clamp(min=0), atol=1e-9, rtol=0)


@pytest.mark.parametrize("margin", [1, 1e-2, 1e-4])
@pytest.mark.parametrize("n", [2, 6])
def test_infeasible_by_a_margin(margin: float, n: int) -> None:
    G = normal(n, 10, 2 * n, n)
    weights = normal(n + 1, 10, 2 * n).abs() + 0.1
    # The weighted sum of the rows is 0 <= -margin.
    G[:, -1] = -(weights[:, :-1, None] * G[:, :-1]).sum(1) / weights[:, -1:]
    h = normal(n + 2, 10, 2 * n)
    h[:, -1] = (-margin - (weights * h)[:, :-1].sum(-1)) / weights[:, -1]
    found = SOLVER.iterate(stack(QuadraticProgram(P=eye(n), q=normal(0, 10, n), G=G, h=h)), None)
    assert (found.status == Status.PRIMAL_INFEASIBLE).all()
    assert found.x.isnan().all()


def test_far_away_is_not_infinity() -> None:
    """Large solutions must not pass for directions without end."""
    flat = SOLVER.solve(qp(P=1e-7 * eye(2), q=[1, -1], ub=[1, 1])())
    torch.testing.assert_close(flat.x, tensor([-1e7, 1]))
    corner = SOLVER.solve(qp(q=[-1, -1], ub=[1e7, 1])())
    torch.testing.assert_close(corner.x, tensor([1e7, 1]))
    steep = SOLVER.solve(qp(P=eye(1), q=[0], A=[[1e-7]], b=[1])())
    torch.testing.assert_close(steep.x, tensor([1e7]))


# --- one element and the others -------------------------------------------------------------------


def test_shared_tensors_give_what_copies_give() -> None:
    rows = random_rows(7, 1, 5, 6, 2)
    q = normal(8, 4, 5)
    shared = Rows(rows.P, q, rows.C, rows.lower, rows.upper, 4, rows.p, rows.m)
    parts = (t.repeat(4, *[1] * (t.ndim - 1)) for t in (rows.P, rows.C, rows.lower, rows.upper))
    P, C, lower, upper = parts
    copied = Rows(P, q, C, lower, upper, 4, rows.p, rows.m)
    one, other = SOLVER.iterate(shared, None), SOLVER.iterate(copied, None)
    torch.testing.assert_close(one.x, other.x, atol=1e-8, rtol=0)
    torch.testing.assert_close(one.nu, other.nu, atol=1e-7, rtol=0)


def test_frozen_when_finished() -> None:
    """An easy element ends where it would with a much slower mate, to the last bit."""
    easy = {"P": eye(2), "q": [[-2, -3], [-2, -3]], "G": [[1, 1]], "lb": [0, 0]}
    quick = SOLVER.iterate(stack(qp(**easy, h=[[1], [1]])()), None)
    mixed = SOLVER.iterate(stack(qp(**easy, h=[[1], [-1e-5]])()), None)
    assert mixed.iterations[1] > mixed.iterations[0]
    assert mixed.status[1] == Status.PRIMAL_INFEASIBLE
    for name in ("x", "nu", "status", "iterations"):
        assert torch.equal(getattr(quick, name)[0], getattr(mixed, name)[0])


def test_permuting_the_batch_permutes_the_results() -> None:
    rows = random_rows(9, 6, 4, 5, 1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    straight, permuted = SOLVER.iterate(rows, None), SOLVER.iterate(rows.pick(order), None)
    assert torch.equal(straight.x[order], permuted.x)
    assert torch.equal(straight.nu[order], permuted.nu)


# --- warm start and log ---------------------------------------------------------------------------


def solution(rows: Rows) -> tuple[Tensor, Tensor]:
    found = SOLVER.solve_rows(rows)
    return found.x, torch.cat([found.y, found.z, found.z_box], -1)


def test_warm_start_saves_iterations() -> None:
    rows = random_rows(10, 5, 10, 10, 2)
    cold = SOLVER.iterate(rows, None)
    start = solution(rows)
    assert (SOLVER.iterate(rows, start).iterations == 0).all()
    q = rows.q + 1e-5 * normal(11, *rows.q.shape)
    moved = Rows(rows.P, q, rows.C, rows.lower, rows.upper, rows.batch, rows.p, rows.m)
    warm = SOLVER.iterate(moved, start)
    assert (warm.status == Status.SOLVED).all()
    assert warm.iterations.sum() < 0.8 * cold.iterations.sum()


def test_warm_start_for_some() -> None:
    rows = random_rows(12, 3, 5, 5, 1)
    start = solution(rows)
    for t in start:
        t[1] = torch.nan
    found = SOLVER.iterate(rows, start)
    assert found.iterations.tolist()[::2] == [0, 0]
    assert found.iterations[1] > 0
    torch.testing.assert_close(found.x[1], SOLVER.iterate(rows, None).x[1], atol=0, rtol=0)


def test_verbose_logs_the_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    found = InteriorPoint(verbose=True).iterate(random_rows(13, 2, 4, 4, 1), None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["iteration", "running", "primal", "dual", "mu"]
    assert len(lines) > found.iterations.max()


def test_max_iter() -> None:
    found = InteriorPoint(max_iter=3).iterate(random_rows(14, 2, 10, 10, 2), None)
    assert (found.status == Status.MAX_ITERATIONS).all()
    assert (found.iterations == 3).all()
    assert torch.isfinite(found.x).all()


# --- the central path -----------------------------------------------------------------------------


@pytest.mark.parametrize("mu", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(("n", "m", "p"), [(1, 2, 0), (5, 5, 1), (20, 20, 4)])
def test_central_point(n: int, m: int, p: int, mu: float) -> None:
    rows = random_rows(20 + n, 4, n, m, p)
    point = SOLVER.central_point(rows, mu)
    assert (point.status == Status.SOLVED).all()
    Cx = (rows.C @ point.x[..., None])[..., 0]
    gradient = (rows.P @ point.x[..., None])[..., 0] + rows.q
    gradient = gradient + (rows.C.mT @ point.nu[..., None])[..., 0]
    assert gradient.abs().max() <= 1e-9
    below, above = Cx - rows.lower, rows.upper - Cx
    equal = rows.fixed
    assert below[equal].abs().max() <= 1e-10 if equal.any() else True
    assert (below[~equal] > 0).all()
    assert (above[~equal] > 0).all()
    expected = torch.where(equal, point.nu, mu / above - mu / below)
    torch.testing.assert_close(point.nu, expected, rtol=1e-7, atol=1e-9)
    weight = torch.where(equal, torch.inf, mu / above**2 + mu / below**2)
    torch.testing.assert_close(point.weight, weight, rtol=1e-7, atol=1e-9)


def test_central_point_in_closed_form() -> None:
    """min c x - mu log x - mu log(1 - x) for several c: a quadratic equation."""
    c = tensor([[-3], [0], [0.5], [40]])
    mu = 0.1
    point = SOLVER.central_point(stack(qp(q=c, lb=[0], ub=[1])()), mu)
    root = ((2 * mu + c) - (4 * mu**2 + c**2).sqrt()) / (2 * torch.where(c == 0, 1.0, c))
    torch.testing.assert_close(point.x, torch.where(c == 0, 0.5, root), rtol=1e-9, atol=0)
    torch.testing.assert_close(point.nu, -c, rtol=1e-8, atol=1e-10)


def test_central_point_is_in_the_units_of_the_problem() -> None:
    """Rows and variables in other units leave the path where it is."""
    plain = SOLVER.central_point(
        stack(qp(P=eye(2), q=[-2, -3], G=[[1, 1]], h=[1], lb=[0, 0])()), 1e-2
    )
    scaled = SOLVER.central_point(
        stack(qp(P=[[1e6, 0], [0, 1e-6]], q=[-2e3, -3e-3], G=[[1e2, 1e-4]], h=[0.1],
                 lb=[0, 0])()), 1e-2,
    )  # fmt: skip
    torch.testing.assert_close(scaled.x * tensor([1e3, 1e-3]), plain.x, rtol=1e-8, atol=0)


def test_central_point_without_inequalities_is_the_solution() -> None:
    known = ALL["no_inequalities"]
    point = SOLVER.central_point(stack(known.make()), 1e-3)
    torch.testing.assert_close(point.x[0], known.x, rtol=1e-10, atol=0)
    assert point.weight.isinf().all()


def test_central_point_gives_absent_rows_no_weight() -> None:
    point = SOLVER.central_point(stack(ALL["infinite_h"].make()), 1e-3)
    assert point.weight[0, 0] == 0
    assert point.nu[0, 0] == 0


@pytest.mark.parametrize(
    "name",
    ["infeasible_inequalities", "infeasible_crossed_bounds", "opposing_inequalities",
     "unbounded_lp", "nan_in_q", "indefinite_P"],
)  # fmt: skip
def test_central_point_that_does_not_exist(name: str) -> None:
    point = SOLVER.central_point(stack(ALL[name].make()), 1e-3)
    assert (point.status > Status.SOLVED).all()
    assert point.x.isnan().all()
    assert point.weight.isnan().all()


@pytest.mark.parametrize("mu", [0.0, -1.0, torch.nan, torch.inf])
def test_central_point_needs_a_positive_mu(mu: float) -> None:
    with pytest.raises(ValueError, match="mu must be positive"):
        SOLVER.central_point(random_rows(0, 1, 2, 2, 0), mu)


# --- screening ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("P", "expected"),
    [
        ([[1, 0], [0, 1]], False),
        ([[0, 0], [0, 0]], False),
        ([[1, 1], [1, 1]], False),
        ([[1e-12, 0], [0, 1e12]], False),
        ([[1, 0], [0, -1]], True),
        ([[0, 1], [1, 0]], True),
        ([[0, 1e-6], [1e-6, 1]], True),
        ([[1, 2], [2, 1]], True),
        ([[1, 0], [0, -1e-12]], True),
        ([[torch.nan, 0], [0, 1]], True),
    ],
)
def test_nonconvex(P: list[list[float]], expected: bool) -> None:
    assert nonconvex(tensor([P])).item() is expected


def test_low_rank_is_not_nonconvex() -> None:
    for n, rank in ((5, 1), (50, 3), (200, 10)):
        F = normal(n, 4, n, rank)
        assert not nonconvex(F @ F.mT).any()
