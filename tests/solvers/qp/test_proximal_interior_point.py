"""What only the adapter of PIQP has to get right; the contract of all solvers is tested apart."""

from typing import Any

import pytest
import torch

from solvers.qp import QuadraticProgram
from solvers.qp.judge import judge
from solvers.qp.proximal_interior_point import ProximalInteriorPoint
from solvers.qp.rows import Rows, stack
from solvers.solution import Status
from tests.solvers.qp.problems import ALL, eye, qp, tensor

SOLVER = ProximalInteriorPoint()


def refuse(*_: Any) -> Any:
    raise AssertionError("PIQP was called with a problem that it must not see")


@pytest.mark.parametrize(
    "name", ["nan_in_P", "nan_in_q", "nan_in_G", "nan_in_h", "nan_in_lb", "indefinite_P",
             "infeasible_crossed_bounds", "batch_of_none"],
)  # fmt: skip
def test_never_sees_what_it_cannot_handle(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProximalInteriorPoint, "_new_solver", refuse)
    known = ALL[name]
    found = SOLVER.iterate(stack(known.make()), None)
    assert torch.equal(found.status, known.statuses().reshape(-1))
    assert found.x.isnan().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("P", torch.zeros(1, 3, 3)),
        ("q", torch.zeros(2, 2)),
        ("C", torch.zeros(1, 4, 2)),
        ("lower", torch.zeros(1, 2)),
        ("upper", torch.zeros(3)),
        ("m", 2),
    ],
)
def test_wrong_shapes_raise_instead_of_crashing(field: str, value: Any) -> None:
    rows = stack(qp(P=eye(2), q=[1, 1], G=[[1, 1]], h=[1], lb=[0, 0])())
    parts = {name: getattr(rows, name) for name in ("P", "q", "C", "lower", "upper", "batch")}
    parts |= {"p": rows.p, "m": rows.m}
    parts[field] = value.double() if isinstance(value, torch.Tensor) else value
    with pytest.raises(ValueError, match="ProximalInteriorPoint: "):
        SOLVER.iterate(Rows(**parts), None)


@pytest.mark.parametrize(
    "name",
    ["HS21", "HS35", "HS53", "HS76", "all_kinds", "lp_simplex", "singular_P", "fixed_variable",
     "dependent_equalities", "weakly_active", "rows_badly_scaled", "variables_badly_scaled"],
)  # fmt: skip
def test_accurate_before_polishing(name: str) -> None:
    rows = stack(ALL[name].make())
    found = SOLVER.iterate(rows, None)
    verdict = judge(rows, found.x, found.nu, 1e-9, 1e-9)
    assert (found.status == Status.SOLVED).all()
    assert (verdict.error <= 1).all()


def test_rows_with_equal_ends_have_moderate_multipliers() -> None:
    """As inequalities they would get two huge ones, and only the difference means something."""
    problem = qp(P=eye(2), q=[-4, -1], lb=[1, 0], ub=[1, 3])()
    solution = SOLVER.solve(problem)
    torch.testing.assert_close(solution.z_box, tensor([3, 0]), atol=1e-9, rtol=0)


def test_results_are_copies() -> None:
    """A result of PIQP is a view of memory that the next solve overwrites."""
    first = SOLVER.solve(ALL["HS35"].make())
    kept = first.x.clone()
    SOLVER.solve(ALL["lp_simplex"].make())
    assert torch.equal(first.x, kept)


def test_silent_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("infinite_h", "all_h_infinite", "infinite_bounds", "huge_h", "unconstrained"):
        SOLVER.solve(ALL[name].make())
    assert capfd.readouterr() == ("", "")


def test_max_iter() -> None:
    problem = QuadraticProgram(
        P=eye(5), q=torch.arange(5).double(), G=-eye(5), h=torch.linspace(-1, 3, 5).double()
    )
    found = ProximalInteriorPoint(max_iter=2).iterate(stack(problem), None)
    assert found.status.item() == Status.MAX_ITERATIONS
    assert found.iterations.item() == 2
