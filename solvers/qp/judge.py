"""Residuals and status of a candidate, on the problem as the user posed it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..solution import Status
from .rows import Rows

# A candidate this many times worse than the tolerance still counts as an inaccurate solution.
INACCURATE = 1e3


@dataclass(eq=False)
class Verdict:
    """What holds at a candidate, each entry ``(B)`` but the two products.

    Attributes:
        Px: ``P x``, shape ``(B, n)``.
        Cx: ``C x``, shape ``(B, rows)``.
        objective: Primal objective.
        primal: Largest violation of a row.
        dual: Largest entry of the gradient of the Lagrangian.
        gap: Primal minus dual objective, absolute; infinite where a multiplier has the wrong sign
            for a row with an infinite end.
        error: Largest of the three, each relative to what is allowed: at most 1 means solved.
    """

    Px: Tensor
    Cx: Tensor
    objective: Tensor
    primal: Tensor
    dual: Tensor
    gap: Tensor
    error: Tensor

    def status(self, failure: Tensor) -> Tensor:
        """SOLVED or SOLVED_INACCURATE where the residuals say so, else the solver's ``failure``.

        A solver that claims success without the residuals for it has NUMERICAL_ERROR.
        """
        claimed = failure <= Status.SOLVED_INACCURATE
        status = torch.where(claimed, Status.NUMERICAL_ERROR, failure)
        status = torch.where(self.error <= INACCURATE, Status.SOLVED_INACCURATE, status)
        return torch.where(self.error <= 1.0, Status.SOLVED, status)


def judge(rows: Rows, x: Tensor, nu: Tensor, eps_abs: float, eps_rel: float) -> Verdict:
    """Measure a candidate.

    Args:
        rows: The problems.
        x: ``(B, n)``.
        nu: Multipliers ``(B, rows)``.
        eps_abs: Absolute tolerance, the same for all three residuals.
        eps_rel: Tolerance relative to the largest term that enters a residual.

    Returns:
        The verdict; NaN residuals count as unsolved.
    """
    Px = (rows.P @ x[..., None])[..., 0]
    Cx = (rows.C @ x[..., None])[..., 0]
    pull = (rows.C.mT @ nu[..., None])[..., 0]
    gradient = Px + rows.q + pull
    dual = _largest(gradient)
    primal = torch.maximum(Cx - rows.upper, rows.lower - Cx)
    primal = primal.amax(-1).clamp(min=0) if rows.count else x.new_zeros(rows.batch)
    quadratic, linear = (x * Px).sum(-1), (x * rows.q).sum(-1)
    ends = torch.where(nu > 0, rows.upper, torch.where(nu < 0, rows.lower, 0.0))
    support = (ends * nu).sum(-1)
    gap = (quadratic + linear + support).abs()
    objective = 0.5 * quadratic + linear
    allowed_primal = eps_abs + eps_rel * _largest(Cx)
    allowed_dual = eps_abs + eps_rel * torch.maximum(
        torch.maximum(_largest(Px), _largest(pull)), _largest(rows.q)
    )
    allowed_gap = eps_abs + eps_rel * (quadratic.abs() + linear.abs() + support.abs())
    error = torch.maximum(
        torch.maximum(primal / allowed_primal, dual / allowed_dual), gap / allowed_gap
    )
    return Verdict(Px, Cx, objective, primal, dual, gap, torch.nan_to_num(error, nan=torch.inf))


def _largest(t: Tensor) -> Tensor:
    """Largest absolute entry of each vector; zero for empty ones."""
    return torch.linalg.vector_norm(t, torch.inf, -1) if t.shape[-1] else t.new_zeros(t.shape[0])
