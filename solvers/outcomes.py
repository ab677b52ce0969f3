"""What ``verbose`` prints about a batch."""

from typing import Protocol

from torch import Tensor

from .solution import Status


class Judged(Protocol):
    """Outcomes of a batch, each ``(B)``."""

    status: Tensor
    iterations: Tensor
    primal: Tensor
    dual: Tensor
    gap: Tensor


def table(name: str, outcome: Judged) -> str:
    """Outcomes in a few lines: how many of each, iterations, worst residuals."""
    lines = [f"{name}: {outcome.status.numel()} problems"]
    header = ("status", "count", "iterations", "primal", "dual", "gap")
    lines.append("  {:<18}{:>7}{:>14}{:>10}{:>10}{:>10}".format(*header))
    for status in Status:
        of = outcome.status == status
        if bool(of.any()):
            its = outcome.iterations[of]
            worst = (float(t[of].max()) for t in (outcome.primal, outcome.dual, outcome.gap))
            lines.append(
                "  {:<18}{:>7}{:>14}{:>10.1e}{:>10.1e}{:>10.1e}".format(
                    status.name, int(of.sum()), f"{int(its.min())} to {int(its.max())}", *worst
                )
            )
    return "\n".join(lines)
