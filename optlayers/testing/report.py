"""What a check reports, and how checks are run."""

import fnmatch
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch.utils import _pytree as pytree

EXACT = 1e-10
# One thing to compare: what it is, and a function that returns what there is and what should be.
Comparison = tuple[str, Callable[[], tuple[Any, Any]]]


@dataclass(frozen=True)
class Check:
    """One line of a report.

    Attributes:
        name: What was checked.
        outcome: ``"passed"``, ``"raised"`` (and that is right here) or ``"failed"``.
        error: Largest error, relative to the largest entry or 1; None if there is no number.
        tolerance: What is allowed.
        message: Where the error is largest, or what was raised.
    """

    name: str
    outcome: str
    error: float | None = None
    tolerance: float = 0.0
    message: str = ""

    def __str__(self) -> str:
        """One line of the table."""
        figure = "" if self.error is None else f"{self.error:.1e} (<= {self.tolerance:.0e})"
        shown = self.message if self.outcome != "passed" else ""
        return f"{self.name:34s} {self.outcome:7s} {figure:20s} {shown}".rstrip()


@dataclass(frozen=True)
class Report:
    """What :func:`check_layer` found; prints as a table."""

    checks: tuple[Check, ...]

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    def __str__(self) -> str:
        """All lines and a count."""
        lines = [str(check) for check in self.checks]
        lines.append(f"{len(self.checks) - len(self.failures)} of {len(self.checks)} hold")
        return "\n".join(lines)


@dataclass
class Runner:
    """Runs checks one by one and keeps what came of them."""

    raises: tuple[str, ...]
    skip: tuple[str, ...]
    checks: list[Check] = field(default_factory=list)

    def __call__(
        self,
        name: str,
        comparisons: Iterable[Comparison],
        tol: float = 0.0,
        *,
        or_raise: bool = False,
    ) -> None:
        """Take the worst of some comparisons; ``or_raise`` if raising is as good as being right."""
        if any(fnmatch.fnmatchcase(name, glob) for glob in self.skip):
            return
        must_raise = any(fnmatch.fnmatchcase(name, glob) for glob in self.raises)
        errors: list[tuple[float, str]] = []
        raised: list[str] = []
        for label, compare in comparisons:
            try:
                with warnings.catch_warnings():
                    # Torch warns of itself, which is no fault of the layer even where it raises.
                    warnings.filterwarnings("ignore", module=r"torch\.")
                    errors.append((difference(*compare()), label))
            except Exception as problem:  # noqa: BLE001 - whatever a layer raises is reported
                first_line = (str(problem).strip().splitlines() or [""])[0]
                raised.append(f"{label}: {type(problem).__name__}: {first_line}".lstrip(": "))
        worst, at = max(errors, key=lambda pair: _badness(pair[0]), default=(0.0, ""))
        if must_raise and errors:
            outcome, message = "failed", f"{at}: expected to raise".lstrip(": ")
        elif not worst <= tol:
            outcome, message = "failed", at
        elif raised:
            outcome, message = ("raised" if must_raise or or_raise else "failed"), raised[0]
        else:
            outcome, message = "passed", ""
        self.checks.append(Check(name, outcome, worst if errors else None, tol, message))


def _badness(error: float) -> tuple[bool, float]:
    """A NaN is worse than any number."""
    return math.isnan(error), error


def difference(got: Any, want: Any) -> float:
    """Largest difference of two nests of tensors, relative to the largest entry or 1."""
    errors = [0.0]
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if a is None and b is None:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            raise TypeError(
                f"expected {b.dtype} of shape {tuple(b.shape)}, got {a.dtype} of {tuple(a.shape)}"
            )
        if a.numel():
            a, b = a.detach().double(), b.detach().double()
            errors.append(((a - b).abs().max() / b.abs().max().clamp_min(1.0)).item())
    return max(errors, key=_badness)
