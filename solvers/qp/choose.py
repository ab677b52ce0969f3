"""The default: the fastest solver that can, and another one for what it could not."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..solution import Status
from .active_set import ActiveSet
from .interior_point import InteriorPoint
from .kkt import Factor
from .proximal_interior_point import ProximalInteriorPoint
from .rows import Rows
from .solver import Outcome, Start

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
        tolerances = {"eps_abs": self.eps_abs, "eps_rel": self.eps_rel}
        if rows.q.device.type != "cpu":
            return InteriorPoint(**tolerances).solve_rows(rows, start, with_factor=with_factor)
        outcome = super().solve_rows(rows, start, with_factor=with_factor)
        if not outcome.status.numpy().any():  # all SOLVED
            return outcome
        index = torch.nonzero(torch.isin(outcome.status, torch.tensor(UNSETTLED))).reshape(-1)
        if not len(index):
            return outcome
        second = ProximalInteriorPoint(**tolerances).solve_rows(
            rows.pick(index), with_factor=with_factor
        )
        return _merge(outcome, second, index)


def _merge(first: Outcome, second: Outcome, index: Tensor) -> Outcome:
    """Put the second result where it has the better status; neighbours keep every bit."""
    better = second.status < first.status[index]
    if not bool(better.any()):
        return first
    index = index[better]

    def put(whole: Tensor, part: Tensor) -> Tensor:
        batch = first.status.shape[0]
        part = part.expand(better.shape[0], *part.shape[1:])[better]
        return whole.expand(batch, *whole.shape[1:]).clone().index_copy_(0, index, part)

    values = {
        field.name: put(getattr(first, field.name), getattr(second, field.name))
        for field in fields(Outcome)
        if field.name != "factor"
    }
    factor = None
    if first.factor is not None and second.factor is not None:
        factor = Factor(*(put(a, b) for a, b in zip(first.factor, second.factor, strict=True)))
    return Outcome(**values, factor=factor)
