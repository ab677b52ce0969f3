"""The loop that all iterative solvers share: who still runs, who is done, who cannot get further.

A method is a generator. It yields where it is and how far it still wants to go, and is sent back
which samples still run; all it remembers are local variables. Samples never wait for each other to
be right: what a sample ends with is recorded when it stops, whatever the method does to it later.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .solution import Solution, Status

# Tolerances where none are given: what a well-conditioned problem reaches in this precision.
DEFAULT_EPS = {torch.float64: 1e-10, torch.float32: 1e-6, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# A sample that no longer improves counts as solved, inaccurately, within this many tolerances.
LOOSE = 100.0
# Improvement by less than this factor while patience lasts, near the tolerance, is none: rounding.
LEAST_PROGRESS = 0.99
STEPS_BETWEEN_CHECKS = 8  # where asking makes a device wait for the host


class Iterate(NamedTuple):
    """Where a method is.

    Attributes:
        x: ``(B, n)``.
        error: ``(B)``: 2-norm of the step that the method would take from here, or of what stands
            for it: in the units of ``x``. NaN says that there is no way on.
        value: Objective or merit ``(B)``, for tables and histories; None if there is none.
        kept: What derivatives may reuse, a factorisation say, as it was last.
        scale: What ``eps_rel`` is relative to ``(B)``, where that is not the norm of ``x``.
    """

    x: Tensor
    error: Tensor
    value: Tensor | None = None
    kept: tuple[Tensor, ...] = ()
    scale: Tensor | None = None


class Steps(NamedTuple):
    """Several iterates in a row, between which the method asked nobody: asking may cost more.

    What follows the step with which the last sample is done is not looked at.

    Attributes:
        x: As many tensors ``(B, n)``.
        error: As of one iterate ``(steps, B)``, an array on a CPU.
        scale: As of one iterate ``(steps, B)``, the same.
    """

    x: Sequence[Tensor]
    error: Any
    scale: Any


Iterates = Generator[Iterate | Steps, Tensor, None]


class Run(NamedTuple):
    """What came of a loop: all with the flat batch in front."""

    x: Tensor
    status: Tensor
    iterations: Tensor
    error: Tensor
    value: Tensor | None
    kept: tuple[Tensor, ...]
    history: Tensor | None


@dataclass(frozen=True)
class IterativeSolver:
    r"""Base of the iterative solvers: when to stop.

    A sample is solved when the step :math:`\Delta` that its method would take next is short,
    :math:`\|\Delta\|_2 \le` ``eps_abs`` + ``eps_rel`` :math:`\|x\|_2`. For methods that converge
    linearly with factor :math:`\rho` the distance to the solution may be :math:`1/(1-\rho)` times
    as long.

    Attributes:
        eps_abs: Absolute tolerance; by default 1e-10 in float64, 1e-6 in float32.
        eps_rel: Tolerance relative to ``x``; the same by default.
        max_iter: Iterations allowed to each sample.
        verbose: Print a line per iteration.
        keep_history: Keep the errors of all iterations, for plots.
    """

    eps_abs: float | None = None
    eps_rel: float | None = None
    max_iter: int = 1000
    verbose: bool = False
    keep_history: bool = False

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        r"""Solve with the Jacobian that the method factored last, as an :class:`Iterate` keeps it.

        Args:
            kept: Of the last iterate; never empty where this is called.
            v: Right-hand sides ``(B, n)``.
            transposed: Whether to solve with the transposed Jacobian.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps no factorisation")

    # Methods that go downhill end with their last point, others with the one of least error.
    keeps_last: ClassVar[bool] = False
    # So many iterations without progress, near the tolerance, mean that there will be none.
    patience: ClassVar[int] = 10

    def tolerances(self, dtype: torch.dtype) -> tuple[float, float]:
        """The absolute and the relative tolerance for this precision."""
        default = DEFAULT_EPS[dtype]
        eps_abs = default if self.eps_abs is None else self.eps_abs
        return eps_abs, default if self.eps_rel is None else self.eps_rel

    @torch.no_grad()
    @np.errstate(all="ignore")  # what is not finite is found and said in the status
    def run(self, iterates: Iterates) -> Run:
        """Run a method until every sample is done.

        Args:
            iterates: The method, at its start.

        Returns:
            For each sample its best or last point, and what became of it.
        """
        it = next(iterates)
        record = _Record(self, it)
        while not record.looks_at(it):
            it = iterates.send(record.everyone if record.together else record.mask())
        iterates.close()
        return record.run(() if isinstance(it, Steps) else it.kept)


class _Record:
    """What became of every sample so far; one number a sample.

    Args:
        solver: Says when to stop.
        first: The first iterate.
    """

    def __init__(self, solver: IterativeSolver, first: Iterate | Steps) -> None:
        steps = _steps(first)
        x = steps.x[0]
        self.solver = solver
        self.eps_abs, self.eps_rel = solver.tolerances(x.dtype)
        # On a CPU numpy does in a fraction of the time what little there is to do with numbers.
        self.on_cpu = x.device.type == "cpu"
        xp: Any = np if self.on_cpu else torch
        self.xp = xp
        count, dtype = len(x), steps.error.dtype
        like: dict[str, Any] = {} if self.on_cpu else {"device": x.device}
        self.best, self.best_value = x, None if isinstance(first, Steps) else first.value
        self.best_ratio = self.before = self.best_error = (
            xp.zeros(count, dtype=dtype, **like) + xp.inf
        )
        self.iterations = xp.zeros(count, dtype=xp.int64, **like)
        self.running = self.best_ratio > 0.0
        self.converged = self.lost = ~self.running
        self.everyone = torch.ones(count, dtype=torch.bool, device=x.device)
        self.errors: list[Tensor] = []
        # As long as all samples run, and nothing is written down.
        recorded = solver.verbose or solver.keep_history
        self.together = self.on_cpu and not recorded and count > 0
        self.k = 0  # the number of the next step

    def mask(self) -> Tensor:
        """Who still runs."""
        return torch.as_tensor(self.running)

    def looks_at(self, it: Iterate | Steps) -> bool:
        """Take account of what comes next; whether that was all."""
        steps, value = _steps(it), None if isinstance(it, Steps) else it.value
        tolerances = self.eps_abs + self.eps_rel * steps.scale
        for i in range(self._skips(steps, tolerances, value), len(steps.x)):
            if self._looks_closely(steps.x[i], steps.error[i], tolerances[i], value):
                return True
        return False

    def _skips(self, steps: Steps, tolerances: Any, value: Tensor | None) -> int:
        """Over how many of the steps, as nothing happened there.

        Most often all samples are better than before and none is there: then little is to do.
        """
        most = min(len(steps.x), self.solver.max_iter - self.k)
        if not self.together or most <= 0:
            return 0
        ratios = steps.error / tolerances
        bounds: Any
        if self.solver.keeps_last:
            bounds = np.inf
        elif len(steps.x) == 1:
            bounds = self.best_ratio
        else:
            bounds = np.concatenate((self.best_ratio[None], ratios[:-1]))
        quiet = (ratios > 1.0) & (ratios < bounds)
        if not np.logical_and.reduce(quiet, axis=None):
            most = min(most, int(quiet.all(-1).argmin()))
        for looks_back in range(self._until_looking_back(), most, self.solver.patience):
            if self._stuck(ratios[looks_back]).any():
                most = looks_back
                break
            self.before = ratios[looks_back]
        if most:
            last = most - 1
            self.best, self.best_value = steps.x[last], value
            self.best_error, self.best_ratio = steps.error[last], ratios[last]
            self.iterations += most
            self.k += most
        return most

    def _until_looking_back(self) -> int:
        patience = self.solver.patience
        return patience - 1 - self.k % patience

    def _stuck(self, best_ratio: Any) -> Any:
        """Who made no progress for a while, near the tolerance."""
        return (best_ratio > LEAST_PROGRESS * self.before) & (best_ratio <= LOOSE)

    def _looks_closely(self, x: Tensor, error: Any, tolerance: Any, value: Tensor | None) -> bool:
        """Take account of one step; whether it was the last one."""
        xp, k, solver = self.xp, self.k, self.solver
        ratio = error / tolerance.clip(torch.finfo(x.dtype).tiny)
        finite = xp.isfinite(error) & xp.isfinite(tolerance)  # the norm of x may overflow
        better = self.running & finite
        if not solver.keeps_last:
            better = better & (ratio < self.best_ratio)
        if self.on_cpu and better.all():
            self.best, self.best_value = x, value
            self.best_error, self.best_ratio = error, ratio
        else:
            mask = torch.as_tensor(better)
            self.best = torch.where(mask[:, None], x, self.best)
            self.best_error = xp.where(better, error, self.best_error)
            self.best_ratio = xp.where(better, ratio, self.best_ratio)
            if value is not None and self.best_value is not None:
                self.best_value = torch.where(mask, value, self.best_value)
        arrived = self.running & finite & (error <= tolerance)
        self.converged = self.converged | arrived
        self.lost = self.lost | (self.running & xp.isnan(error))
        self.running = self.running & ~(arrived | self.lost)
        if self._until_looking_back() == 0:
            self.running = self.running & ~self._stuck(self.best_ratio)
            self.before = self.best_ratio
        self.together = self.together and bool(self.running.all())
        if solver.keep_history:
            self.errors.append(torch.as_tensor(xp.where(self.iterations == k, error, xp.nan)))
        if solver.verbose:
            _print_line(k, self.running, error, value)
        checked = self.on_cpu or k % STEPS_BETWEEN_CHECKS == 0
        if k == solver.max_iter or (checked and not bool(self.running.any())):
            return True
        self.iterations = self.iterations + self.running
        self.k += 1
        return False

    def run(self, kept: tuple[Tensor, ...]) -> Run:
        """What came of it all."""
        where = self.xp.where
        status = where(self.lost, int(Status.NUMERICAL_ERROR), int(Status.MAX_ITERATIONS))
        status = where(self.best_ratio <= LOOSE, int(Status.SOLVED_INACCURATE), status)
        status = where(self.converged, int(Status.SOLVED), status)
        return Run(
            self.best,
            torch.as_tensor(status),
            torch.as_tensor(self.iterations),
            torch.as_tensor(self.best_error),
            self.best_value,
            kept,
            torch.stack(self.errors) if self.errors else None,
        )


def plain(t: Tensor) -> Any:
    """Numbers of samples as what handles them fastest."""
    return t.numpy() if t.device.type == "cpu" else t


def _steps(it: Iterate | Steps) -> Steps:
    if isinstance(it, Steps):
        return it
    scale = torch.linalg.vector_norm(it.x, dim=-1) if it.scale is None else it.scale
    return Steps((it.x,), plain(it.error)[None], plain(scale)[None])


def solution_of(run: Run, shape: torch.Size) -> Solution:
    """Give what came of a loop the batch shape of ``x0``, whose shape is ``(*batch, n)``."""
    batch = shape[:-1]
    return Solution(
        run.x.reshape(shape),
        run.status.reshape(batch),
        run.iterations.reshape(batch),
        objective=None if run.value is None else run.value.reshape(batch),
        dual_residual=run.error.reshape(batch),
        history=None if run.history is None else run.history.reshape(-1, *batch),
    )


def _print_line(k: int, running: Any, error: Any, value: Tensor | None) -> None:
    if k == 0:
        print(f"{'iteration':>9} {'running':>9} {'largest step':>14} {'median step':>14}", end="")
        print("" if value is None else f" {'mean value':>14}")
    error = torch.as_tensor(error)
    largest = float(error.nan_to_num(torch.inf).max()) if len(error) else 0.0
    median = float(error.median()) if len(error) else 0.0
    print(f"{k:9d} {int(running.sum()):9d} {largest:14.3e} {median:14.3e}", end="")
    print("" if value is None else f" {float(value.mean()):14.6e}")
