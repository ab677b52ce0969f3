"""What all QP solvers share: the entry point, polishing on the active rows, and the verdict."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from .._threads import calm, spread
from ..batch import one_by_one
from ..outcomes import table
from ..solution import Solution, Status
from . import kkt
from .judge import judge
from .quadratic_program import QuadraticProgram
from .rows import Rows, empty, inequalities, pieces, stack, start_of, unstack

Start = tuple[Tensor, Tensor]


class Iterate(NamedTuple):
    """Where a solver stopped, in the flat form of :class:`~solvers.qp.rows.Rows`.

    Attributes:
        x: ``(B, n)``; NaN where there is nothing to show.
        nu: Multipliers ``(B, rows)``.
        status: What the solver itself claims, integer ``(B)``.
        iterations: Integer ``(B)``.
        active: Boolean ``(B, rows)`` if the solver knows it, else None.
        factor: Of the KKT system, if the solver made it on its way.
        exact: Boolean ``(B)``: where ``x`` and ``nu`` are as good as a solve on the active rows
            would make them; None for nowhere.
    """

    x: Tensor
    nu: Tensor
    status: Tensor
    iterations: Tensor
    active: Tensor | None = None
    factor: kkt.Factor | None = None
    exact: Tensor | None = None


@dataclass(eq=False)
class Outcome:
    """A judged solution in flat form, with what derivatives need.

    Attributes:
        x: ``(B, n)``.
        y: Multipliers of the equalities ``(B, p)``.
        z: Multipliers of the inequalities ``(B, m)``.
        z_box: Multipliers of the bounds ``(B, n)``, or without entries where there are none.
        s: Slacks of the inequalities ``(B, m)``.
        objective: ``(B)``.
        status: Integer ``(B)``.
        iterations: Integer ``(B)``.
        primal: Largest violation ``(B)``.
        dual: Largest entry of the Lagrangian's gradient ``(B)``.
        gap: Absolute duality gap ``(B)``.
        side: ``(B, rows)``, 8-bit integers: 0 inactive, 1 active at the upper end or an equality,
            -1 active at the lower end.
        factor: Of the KKT system; None if nobody asked for it.
    """

    x: Tensor
    y: Tensor
    z: Tensor
    z_box: Tensor
    s: Tensor
    objective: Tensor
    status: Tensor
    iterations: Tensor
    primal: Tensor
    dual: Tensor
    gap: Tensor
    side: Tensor
    factor: kkt.Factor | None = None


@dataclass(frozen=True)
class QPSolver(ABC):
    """Base of the QP solvers; a subclass provides ``iterate``.

    Attributes:
        eps_abs: Absolute tolerance on the primal and dual residuals and on the duality gap.
        eps_rel: The same relative to the largest term of each.
        max_iter: Iterations allowed to each problem.
        verbose: Print a table of outcomes.
    """

    eps_abs: float = 1e-9
    eps_rel: float = 1e-9
    max_iter: int = 10_000
    verbose: bool = False

    def solve(self, problem: QuadraticProgram, *, warm_start: Solution | None = None) -> Solution:
        """Solve every problem of the batch.

        Args:
            problem: The batch of problems.
            warm_start: Solution of a batch of the same shape; saves iterations if it is near.

        Returns:
            A solution with tensors of the problem's dtype. Elements whose ``status`` is beyond
            SOLVED_INACCURATE hold the best iterate or NaN: look at the status before the values.
        """
        double = problem.to(torch.float64)
        return unflatten(self.run(double, start_of(warm_start, double)), problem)

    def run(
        self, problem: QuadraticProgram, start: Start | None = None, *, with_factor: bool = False
    ) -> Outcome:
        """Solve in flat form, in pieces that suit a CPU's caches and cores.

        Args:
            problem: In float64.
            start: Flat guess of ``x`` and all multipliers.
            with_factor: Whether derivatives will be asked for.
        """

        def solve_piece(piece: tuple[int, int]) -> Outcome:
            guess = None if start is None else (start[0][slice(*piece)], start[1][slice(*piece)])
            return self.solve_rows(stack(problem, *piece), guess, with_factor=with_factor)

        with calm():
            outcome = join(spread(solve_piece, pieces(problem)))
        if self.verbose:
            print(table(type(self).__name__, outcome))
        return outcome

    @abstractmethod
    def iterate(self, rows: Rows, start: Start | None) -> Iterate:
        """Run the method on the flat form, from ``start`` (NaN says "no guess") if there is one."""

    def solve_rows(
        self, rows: Rows, start: Start | None = None, *, with_factor: bool = False
    ) -> Outcome:
        """Run the method on the flat form, polish where that is due, and judge."""
        found = self.iterate(rows, start)
        return assess(rows, found, self.eps_abs, self.eps_rel, with_factor=with_factor)


def assess(
    rows: Rows, found: Iterate, eps_abs: float, eps_rel: float, *, with_factor: bool
) -> Outcome:
    """Judge an iterate, after polishing it where it is not exact."""
    x, nu, active, factor = found.x, found.nu, found.active, found.factor
    verdict = judge(rows, x, nu, eps_abs, eps_rel)
    if active is None:
        slack = torch.minimum(rows.upper - verdict.Cx, verdict.Cx - rows.lower)
        # Multipliers and slacks each in their own units, where those are small.
        of_nu = _size(torch.cat([nu, rows.q.expand(rows.batch, -1)], -1))
        ends = torch.cat([rows.lower, rows.upper], -1)
        of_slack = _size(torch.where(ends.isfinite(), ends, 0.0))
        active = (nu.abs() * of_slack > slack * of_nu) | rows.fixed
    good = None if found.exact is None else found.exact & (verdict.error <= 1.0)
    polishing = good is None or not bool(good.all())
    if polishing:  # but a solver that found no solution has no active rows to solve on
        rough = found.status <= Status.MAX_ITERATIONS
        rough = rough if good is None else rough & ~good
        polishing = bool(rough.any())
    if factor is None and (with_factor or polishing):
        factor = kkt.factor_for(rows.P, rows.C, active)
    if factor is not None and polishing:
        polished_x, polished_nu = polish(rows, factor, active, nu)
        polished = judge(rows, polished_x, polished_nu, eps_abs, eps_rel)
        better = (rough & (polished.error < verdict.error))[:, None]
        x, nu = torch.where(better, polished_x, x), torch.where(better, polished_nu, nu)
        verdict = judge(rows, x, nu, eps_abs, eps_rel)
    return Outcome(
        x,
        *unstack(nu, rows),
        inequalities(rows.upper - verdict.Cx, rows),
        verdict.objective,
        verdict.status(found.status),
        found.iterations,
        verdict.primal,
        verdict.dual,
        verdict.gap,
        torch.where(nu < 0, -1, 1).mul_(active).to(torch.int8),
        factor if with_factor else None,
    )


def join(outcomes: list[Outcome]) -> Outcome:
    """Put the pieces of a batch together."""
    if len(outcomes) == 1:
        return outcomes[0]
    values = {
        field.name: torch.cat([getattr(outcome, field.name) for outcome in outcomes])
        for field in fields(Outcome)
        if field.name != "factor"
    }
    factors = [outcome.factor for outcome in outcomes if outcome.factor is not None]
    factor = None
    if factors:
        batches = [outcome.status.shape[0] for outcome in outcomes]

        def stacked(parts: tuple[Tensor, ...]) -> Tensor:
            whole = empty(parts[0], sum(batches), *parts[0].shape[1:])
            for t, piece in zip(parts, whole.split(batches), strict=True):
                piece.copy_(t)  # repeats what the piece shares
            return whole

        factor = kkt.Factor(*map(stacked, zip(*factors, strict=True)))
    return Outcome(**values, factor=factor)


def replace_part(
    whole: Outcome, part: Outcome, index: Tensor, chosen: Tensor | None = None
) -> Outcome:
    """Put a part of a batch, solved again, in its place; neighbours keep every bit.

    Args:
        whole: The batch.
        part: Results for the problems at ``index``.
        index: Their positions.
        chosen: Which of them to take; by default all.
    """
    if chosen is None:
        chosen = torch.ones_like(index, dtype=torch.bool)
    if not bool(chosen.any()):
        return whole
    batch = whole.status.shape[0]

    def put(a: Tensor, b: Tensor) -> Tensor:
        b = b.expand(len(index), *b.shape[1:])[chosen]
        return a.expand(batch, *a.shape[1:]).clone().index_copy_(0, index[chosen], b)

    values = {
        field.name: put(getattr(whole, field.name), getattr(part, field.name))
        for field in fields(Outcome)
        if field.name != "factor"
    }
    factor = None
    if whole.factor is not None and part.factor is not None:
        factor = kkt.Factor(*map(put, whole.factor, part.factor))
    return Outcome(**values, factor=factor)


def unflatten(outcome: Outcome, problem: QuadraticProgram) -> Solution:
    """Give a flat outcome the names, batch shape and dtype of the problem."""
    dtype, shape = problem.q.dtype, problem.batch_shape

    def vector(t: Tensor) -> Tensor:
        return t.to(dtype).reshape(*shape, t.shape[-1])

    def scalar(t: Tensor) -> Tensor:
        return (t.to(dtype) if t.is_floating_point() else t).reshape(shape)

    return Solution(
        vector(outcome.x),
        scalar(outcome.status),
        scalar(outcome.iterations),
        vector(outcome.y),
        vector(outcome.z),
        vector(outcome.z_box),
        vector(outcome.s),
        scalar(outcome.objective),
        scalar(outcome.primal),
        scalar(outcome.dual),
        scalar(outcome.gap),
    )


def _size(t: Tensor) -> Tensor:
    """Largest entry of each vector as ``(B, 1)`` where that is tiny; one elsewhere."""
    size = torch.linalg.vector_norm(t, torch.inf, -1) if t.shape[-1] else t.new_ones(t.shape[0])
    return torch.where((size > 0) & (size < 1e-3), size, 1.0)[:, None]


def polish(rows: Rows, factor: kkt.Factor, active: Tensor, nu: Tensor) -> Start:
    """Solve with the active rows as equalities, at the end where each multiplier says it is."""
    at = torch.where(nu < 0, rows.lower, rows.upper)
    at = torch.where(active & torch.isfinite(at), at, 0.0)[..., None]
    q = rows.q.expand(rows.batch, -1)[..., None]
    x, multipliers = torch.zeros_like(q), torch.zeros_like(at)
    for _ in range(2):  # the second time for what rounding left
        r_x = -q - one_by_one(rows.P, x) - one_by_one(rows.C.mT, multipliers)
        r_nu = torch.where(active[..., None], at - one_by_one(rows.C, x), 0.0)
        t_x, t_nu = kkt.solve(lambda: (rows.P, rows.C), factor, active, r_x, r_nu, size=rows.count)
        x, multipliers = x + t_x, multipliers + t_nu
    return x[..., 0], multipliers[..., 0]
