"""Residuals and status of a candidate, on the problem as the user posed it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

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
    tensors = (rows.P, rows.q, rows.C, rows.lower, rows.upper, x, nu)
    if x.device.type != "cpu":
        return Verdict(*measure(TORCH, eps_abs, eps_rel, *tensors))
    # In numpy, whose calls cost a third of torch's: this is much of a small problem's time.
    with np.errstate(all="ignore"):
        arrays = [t.numpy() for t in tensors]
        measured = measure(NUMPY, eps_abs, eps_rel, *arrays)
    return Verdict(*(torch.from_numpy(t) for t in measured))


class Library(NamedTuple):
    """The functions of numpy or torch that a verdict is made of."""

    where: Callable[..., Any]
    maximum: Callable[..., Any]
    dot: Callable[..., Any]
    largest: Callable[[Any], Any]
    nan_to_num: Callable[..., Any]


def _largest(t: Tensor) -> Tensor:
    return t.amax(-1).clamp(min=0.0) if t.shape[-1] else t.new_zeros(t.shape[:-1])


TORCH = Library(torch.where, torch.maximum, torch.linalg.vecdot, _largest, torch.nan_to_num)
# Ufuncs themselves: methods such as ``max`` spend more time in Python than they do on the numbers.
NUMPY = Library(
    np.where, np.maximum, np.vecdot, partial(np.maximum.reduce, axis=-1, initial=0.0), np.nan_to_num
)


def measure(
    library: Library,
    eps_abs: float,
    eps_rel: float,
    P: Any,
    q: Any,
    C: Any,
    lower: Any,
    upper: Any,
    x: Any,
    nu: Any,
) -> tuple[Any, ...]:
    """The verdict's entries.

    Args:
        library: Whose arrays all these are.
        eps_abs: See :func:`judge`.
        eps_rel: See :func:`judge`.
        P: See :class:`~solvers.qp.rows.Rows`, as the following four.
        q: Linear terms.
        C: The rows.
        lower: Their lower ends.
        upper: Their upper ends.
        x: ``(B, n)``.
        nu: Multipliers ``(B, rows)``.
    """
    where, maximum, dot, largest, nan_to_num = library
    Px, Cx = (P @ x[..., None])[..., 0], (C @ x[..., None])[..., 0]
    pull = (C.mT @ nu[..., None])[..., 0]
    quadratic, linear = dot(x, Px), dot(x, q)
    # Zero times an infinite end is not a number, and means zero.
    support = dot(where(nu > 0, upper, where(nu < 0, lower, 0.0)), nu)
    gap = abs(quadratic + linear + support)
    dual = largest(abs(Px + q + pull))
    primal = largest(maximum(Cx - upper, lower - Cx))
    error = maximum(maximum(primal, dual), gap) / eps_abs
    if not bool((error <= 1.0).all()):  # only now does it matter how large the terms are
        scale_primal = largest(abs(Cx))
        scale_dual = largest(maximum(maximum(abs(Px), abs(pull)), abs(q)))
        scale_gap = abs(quadratic) + abs(linear) + abs(support)
        relative = maximum(
            primal / (eps_abs + eps_rel * scale_primal), dual / (eps_abs + eps_rel * scale_dual)
        )
        relative = maximum(relative, gap / (eps_abs + eps_rel * scale_gap))
        # Element by element, so that what one reads does not depend on the others.
        error = where(error <= 1.0, error, nan_to_num(relative, nan=math.inf))
    return Cx, 0.5 * quadratic + linear, primal, dual, gap, error
