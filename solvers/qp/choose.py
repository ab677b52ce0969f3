"""The default: the fastest solver that can, and another one for what it could not."""

from dataclasses import dataclass

import torch

from ..solution import Status
from . import kkt
from .active_set import ActiveSet
from .interior_point import InteriorPoint
from .proximal_interior_point import ProximalInteriorPoint
from .rows import Rows
from .screening import malformed
from .solver import Outcome, Start, replace_part

CLAIMS = (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)


@dataclass(frozen=True)
class Automatic(ActiveSet):
    """Choose by device: compiled solvers on a CPU, the batched one in torch elsewhere.

    On a CPU that is :class:`ActiveSet`; problems that it leaves unsettled (no definite verdict, one
    that the residuals do not support, or no solution where ``P`` is singular or equalities nearly
    depend on each other, which it says too readily) go to :class:`ProximalInteriorPoint`, and the
    better of the two results counts.
    """

    def solve_rows(
        self, rows: Rows, start: Start | None = None, *, with_factor: bool = False
    ) -> Outcome:
        """Solve with the first choice, then again what that left open."""
        if rows.q.device.type != "cpu":
            elsewhere = InteriorPoint(self.eps_abs, self.eps_rel)
            return elsewhere.solve_rows(rows, start, with_factor=with_factor)
        outcome = super().solve_rows(rows, start, with_factor=with_factor)
        if not outcome.status.numpy().any():  # all SOLVED
            return outcome
        unsettled = (outcome.status != Status.SOLVED) & ~malformed(rows)
        claims = torch.isin(outcome.status, torch.tensor(CLAIMS))
        for i in torch.nonzero(unsettled):  # alone: in company its roundings would depend on it
            alone = rows.pick(i)
            if bool(claims[i]) and kkt.well_conditioned(alone.P) and _apart(alone):
                continue
            fallback = ProximalInteriorPoint(self.eps_abs, self.eps_rel)
            second = fallback.solve_rows(alone, with_factor=with_factor)
            better = second.status < outcome.status[i]
            outcome = replace_part(outcome, second, i, better)
        return outcome


def _apart(rows: Rows) -> bool:
    """Whether the equalities are far from depending on each other."""
    E = rows.C[:, : rows.p]
    return rows.p == 0 or kkt.well_conditioned(E @ E.mT)
