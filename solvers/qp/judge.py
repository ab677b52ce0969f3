"""Residuals and status of a candidate, on the problem as the user posed it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..solution import Status
from .rows import Rows

# A candidate this many times worse than the tolerance still counts as an inaccurate solution.
INACCURATE = 1e3


@dataclass(eq=False)
class Verdict:
    """What holds at a candidate; each entry has shape ``(B)`` but the first.

    Attributes:
        Cx: Values of the rows ``(B, rows)``.
        objective: Primal objective.
        primal: Largest violation of a row.
        dual: Largest entry of the gradient of the Lagrangian.
        gap: Primal minus dual objective, absolute; infinite where a multiplier has the wrong sign
            for a row with an infinite end.
        error: Largest of the three, each relative to what is allowed: at most 1 means solved.
    """

    Cx: Tensor
    objective: Tensor
    primal: Tensor
    dual: Tensor
    gap: Tensor
    error: Tensor

    def status(self, claim: Tensor) -> Tensor:
        """SOLVED or SOLVED_INACCURATE where the residuals say so, else what the solver claims.

        A solver that claims success without the residuals for it has NUMERICAL_ERROR.
        """
        solved = self.error <= 1.0
        if bool(solved.all()):
            return torch.zeros_like(claim)
        status = torch.where(claim <= Status.SOLVED_INACCURATE, Status.NUMERICAL_ERROR, claim)
        status = torch.where(self.error <= INACCURATE, Status.SOLVED_INACCURATE, status)
        return torch.where(solved, Status.SOLVED, status)


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
    given = (rows.P, rows.q, rows.C, rows.lower, rows.upper, x, nu)
    if x.device.type != "cpu":
        return Verdict(*measure(torch, given, eps_abs, eps_rel))
    # In numpy, whose calls cost a third of torch's: this is much of a small problem's time.
    with np.errstate(all="ignore"):
        measured = measure(np, [t.numpy() for t in given], eps_abs, eps_rel)
    return Verdict(*(torch.from_numpy(t) for t in measured))


def measure(xp: Any, given: Sequence[Any], eps_abs: float, eps_rel: float) -> tuple[Any, ...]:
    """The verdict's entries, in numpy or in torch, whose functions have the same names here.

    Args:
        xp: The module.
        given: ``P, q, C, lower, upper, x, nu`` as its arrays.
        eps_abs: See :func:`judge`.
        eps_rel: See :func:`judge`.
    """
    P, q, C, lower, upper, x, nu = given
    Px = (P @ x[..., None])[..., 0]
    Cx = (C @ x[..., None])[..., 0]
    pull = (C.mT @ nu[..., None])[..., 0]
    quadratic, linear = (x * Px).sum(-1), (x * q).sum(-1)
    # Zero times an infinite end is not a number, and means zero.
    ends = xp.where(nu > 0, upper, xp.where(nu < 0, lower, 0.0))
    support = (ends * nu).sum(-1)
    gap = abs(quadratic + linear + support)
    dual = xp.amax(abs(Px + q + pull), -1)
    primal = xp.zeros_like(gap)
    if nu.shape[-1]:
        primal = xp.amax(xp.maximum(Cx - upper, lower - Cx), -1).clip(0.0)
    error = xp.maximum(xp.maximum(primal, dual), gap) / eps_abs
    if not bool((error <= 1.0).all()):  # only now does it matter how large the terms are
        scale_primal = xp.amax(abs(Cx), -1) if nu.shape[-1] else primal
        scale_dual = xp.amax(xp.maximum(xp.maximum(abs(Px), abs(pull)), abs(q)), -1)
        scale_gap = abs(quadratic) + abs(linear) + abs(support)
        relative = xp.maximum(
            primal / (eps_abs + eps_rel * scale_primal), dual / (eps_abs + eps_rel * scale_dual)
        )
        relative = xp.maximum(relative, gap / (eps_abs + eps_rel * scale_gap))
        # Element by element, so that what one reads does not depend on the others.
        error = xp.where(error <= 1.0, error, xp.nan_to_num(relative, nan=xp.inf))
    return Cx, 0.5 * quadratic + linear, primal, dual, gap, error
