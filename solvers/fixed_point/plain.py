"""Plain steps of a fixed-point iteration, as many at a time as are sure to be needed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..iteration import IterativeSolver, Steps, plain

# Steps taken at a time at most, and entries of their points, which are all held meanwhile.
MOST, HELD = 16, 1 << 20
# Entries of a point up to which a copy costs less than a call.
SMALL_COPY = 1 << 11
# Before the rate is known, steps gain a decade each at most, and at most so many are taken.
FIRST = 2
# A part of a step that is needed with less than this is not taken at once.
ROUNDING = 0.75
# If a step gains so many decades more than the one before, nothing is known of the next one.
STEADY = 0.3


class Walk(NamedTuple):
    """Consecutive plain steps.

    Attributes:
        starts: Where each of them was taken, tensors ``(B, n)``, and where the next one is to be.
        values: What the map gave there.
        error: Norms of the differences ``(steps, B)``, an array on a CPU.
        scale: Norms of the values ``(steps, B)``, the same.
    """

    starts: list[Tensor]
    values: list[Tensor]
    error: Any
    scale: Any

    def part(self, low: int, high: int) -> Steps:
        """Some of the steps, as iterates."""
        return Steps(self.values[low:high], self.error[low:high], self.scale[low:high])


def walk(f: Callable[[Tensor], Tensor], z: Tensor, damping: float, count: int) -> Walk:
    """Take steps from ``z`` ``(B, n)``."""
    starts, values = [z], []
    for _ in range(count):
        fz = f(z)
        z = fz if damping == 1.0 else z + damping * (fz - z)
        values.append(fz)
        starts.append(z)
    if z.numel() <= SMALL_COPY:
        together = torch.stack(values + starts[:-1])
        together[count:].sub_(together[:count])
        norms = plain(torch.linalg.vector_norm(together, dim=-1))
        return Walk(starts, values, norms[count:], norms[:count])
    changes = [fz - z for fz, z in zip(values, starts, strict=False)]
    norms = [torch.linalg.vector_norm(t, dim=-1) for t in changes + values]
    numbers = plain(torch.stack(norms))
    return Walk(starts, values, numbers[:count], numbers[count:])


class Pace:
    """How many steps to take before one looks again: as many as it takes until all have arrived.

    Args:
        solver: Says how far to go.
        first: The first step.
    """

    def __init__(self, solver: IterativeSolver, first: Walk) -> None:
        z = first.starts[0]
        self.eps_abs, self.eps_rel = solver.tolerances(z.dtype)
        self.taken, self.allowed = 1, solver.max_iter
        self.most = min(MOST, HELD // max(z.numel(), 1))
        self.lengths = np.log10(host(first.error))  # of the last three changes, in decades

    def see(self, steps: Walk) -> None:
        """Take account of steps."""
        self.taken += len(steps.values)
        last = np.log10(host(steps.error)[-3:])
        self.lengths = np.concatenate((self.lengths, last))[-3:]

    def ahead(self, steps: Walk) -> int:
        """How many steps to take after these, which have been seen.

        Errors go on shrinking as they did last, and if they do not, no more steps are in vain than
        have been taken before. After the first one nothing is known of how fast they shrink.
        """
        left = self.lengths[-1] - np.log10(self.eps_abs + self.eps_rel * host(steps.scale)[-1])
        if len(self.lengths) < 3:
            needed, most = left, FIRST
        else:
            before, last = self.lengths[1:] - self.lengths[:-1]  # negative where errors shrink
            needed = left / np.where(last > before - STEADY, -last, np.inf)
            most = min(self.taken, self.most)
        ahead = np.fmax.reduce(needed, initial=0.0) + ROUNDING
        return max(int(min(ahead, most, self.allowed + 1 - self.taken)), 1)


def host(numbers: Any) -> Any:
    """One number a sample, where numpy compares them in no time."""
    return numbers if isinstance(numbers, np.ndarray) else numbers.cpu().numpy()
