"""What happens when some problems of a batch are not solved."""

import sys
import warnings
from collections.abc import Mapping
from types import FrameType
from typing import Literal

import torch
from torch import Tensor

from solvers.solution import Solution, SolverError, Status, describe_failures

INSIDE = ("optlayers", "solvers", "torch")
OnFailure = Literal["raise", "warn", "ignore"]


class SolverWarning(UserWarning):
    """Some problems of a batch were not solved; their results are NaN, their gradients zero."""


def check_policy(where: str, on_failure: str) -> None:
    """Refuse an unknown policy."""
    if on_failure not in ("raise", "warn", "ignore"):
        raise ValueError(
            f"{where}: on_failure must be 'raise', 'warn' or 'ignore'; got {on_failure!r}."
        )


def report(
    where: str,
    on_failure: OnFailure,
    solution: Solution,
    messages: Mapping[Status, str] | None = None,
) -> None:
    """Raise or warn if an element of the batch failed, and say why, perhaps in other words.

    Raises:
        SolverError: With ``solution`` attached, where the policy is to raise.
    """
    status: Tensor = solution.status
    if on_failure == "ignore" or not bool((status > Status.SOLVED_INACCURATE).any()):
        return
    text = describe_failures(where, status, messages)
    if on_failure == "raise":
        raise SolverError(
            f"{text}. Pass on_failure='ignore' or 'warn' to get NaN for these elements and to "
            "train on the others, or look at the .solution of this error.",
            solution,
        )
    warn(f"{text}. Their results are NaN and their gradients zero.")


def warn(text: str, category: type[Warning] = SolverWarning) -> None:
    """Warn at the line outside of this package and of torch that called a layer."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def paint(t: Tensor, solved: Tensor) -> Tensor:
    """NaN where the problem was not solved; the gradient there is exactly zero."""
    mask = solved.reshape((*solved.shape, *[1] * (t.ndim - solved.ndim)))
    return torch.where(mask, t, torch.nan)
