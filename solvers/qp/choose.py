"""The default: the fastest solver that can, and another one for what it could not."""

from dataclasses import dataclass

import torch

from ..solution import Status
from .active_set import ActiveSet
from .interior_point import InteriorPoint
from .proximal_interior_point import ProximalInteriorPoint
from .rows import Rows
from .screening import malformed
from .solver import Outcome, Start, replace_part

UNSETTLED = (Status.SOLVED_INACCURATE, Status.MAX_ITERATIONS, Status.NUMERICAL_ERROR)


@dataclass(frozen=True)
class Automatic(ActiveSet):
    """Choose by device: compiled solvers on a CPU, the batched one in torch elsewhere.

    On a CPU that is :class:`ActiveSet`; problems that it leaves unsettled (no definite verdict, or
    one that the residuals do not support) go to :class:`ProximalInteriorPoint`, and the better of
    the two results counts.
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
        unsettled = torch.isin(outcome.status, torch.tensor(UNSETTLED)) & ~malformed(rows)
        for i in torch.nonzero(unsettled):  # alone: in company its roundings would depend on it
            fallback = ProximalInteriorPoint(self.eps_abs, self.eps_rel)
            second = fallback.solve_rows(rows.pick(i), with_factor=with_factor)
            better = second.status < outcome.status[i]
            outcome = replace_part(outcome, second, i, better)
        return outcome
