"""The loop that all iterative solvers share: who still runs, who is done, who cannot get further.

A method is a generator. It yields where it is and how far it still wants to go, and is sent back
which samples still run; all it remembers are local variables. Samples never wait for each other to
be right: what a sample ends with is recorded when it stops, whatever the method does to it later.
"""

from collections.abc import Generator
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


Iterates = Generator[Iterate, Tensor, None]


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
        eps_abs, eps_rel = self.tolerances(it.x.dtype)
        # One number a sample: on a CPU numpy does that in a fraction of a call to torch.
        on_cpu = it.x.device.type == "cpu"
        xp: Any = np if on_cpu else torch
        error = _plain(it.error)
        tiny = xp.full_like(error, torch.finfo(it.error.dtype).tiny)
        best, best_value = it.x, it.value
        best_error = best_ratio = before = infinity = xp.full_like(error, xp.inf)
        running = infinity > 0.0
        converged, lost = ~running, ~running
        iterations = xp.zeros_like(error, dtype=xp.int64)
        errors: list[Tensor] = []
        everyone = torch.as_tensor(running)
        recorded = self.verbose or self.keep_history
        together = on_cpu and not recorded  # as long as all samples run
        for k in range(self.max_iter + 1):
            looks_back, last = k % self.patience == self.patience - 1, k == self.max_iter
            error = _plain(it.error)
            tolerance = eps_abs + eps_rel * _scale(it.x, it.scale)
            ratio = error / xp.maximum(tolerance, tiny)
            if together and not (looks_back or last):
                # As most often, all are better and none is there: then little is to do.
                bound = infinity if self.keeps_last else best_ratio
                if np.logical_and.reduce((ratio > 1.0) & (ratio < bound)):
                    best, best_error, best_value, best_ratio = it.x, error, it.value, ratio
                    iterations += 1
                    it = iterates.send(everyone)
                    continue
            finite = xp.isfinite(error) & xp.isfinite(tolerance)  # the norm of x may overflow
            better = running & (finite if self.keeps_last else finite & (ratio < best_ratio))
            if on_cpu and better.all():
                best, best_error, best_value, best_ratio = it.x, error, it.value, ratio
            else:
                mask = torch.as_tensor(better)
                best = torch.where(mask[:, None], it.x, best)
                best_error = xp.where(better, error, best_error)
                best_ratio = xp.where(better, ratio, best_ratio)
                if it.value is not None and best_value is not None:
                    best_value = torch.where(mask, it.value, best_value)
            arrived = running & finite & (error <= tolerance)
            converged = converged | arrived
            lost = lost | (running & xp.isnan(error))
            running = running & ~(arrived | lost)
            if looks_back:
                stuck = best_ratio > LEAST_PROGRESS * before
                running = running & ~(stuck & (best_ratio <= LOOSE))
                before = best_ratio
            together = together and bool(running.all())
            if self.keep_history:
                errors.append(torch.as_tensor(xp.where(iterations == k, error, xp.nan)))
            if self.verbose:
                _print_line(k, running, it)
            checked = on_cpu or k % STEPS_BETWEEN_CHECKS == 0
            if last or (checked and not bool(running.any())):
                break
            iterations = iterations + running
            it = iterates.send(torch.as_tensor(running))
        iterates.close()
        status = xp.full_like(iterations, int(Status.MAX_ITERATIONS))
        status[lost] = Status.NUMERICAL_ERROR
        status[best_ratio <= LOOSE] = Status.SOLVED_INACCURATE
        status[converged] = Status.SOLVED
        return Run(
            best,
            torch.as_tensor(status),
            torch.as_tensor(iterations),
            torch.as_tensor(best_error),
            best_value,
            it.kept,
            torch.stack(errors) if errors else None,
        )


def _plain(t: Tensor) -> Any:
    return t.numpy() if t.device.type == "cpu" else t


def _scale(x: Tensor, scale: Tensor | None) -> Any:
    return _plain(torch.linalg.vector_norm(x, dim=-1) if scale is None else scale)


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


def _print_line(k: int, running: Any, it: Iterate) -> None:
    if k == 0:
        print(f"{'iteration':>9} {'running':>9} {'largest step':>14} {'median step':>14}", end="")
        print("" if it.value is None else f" {'mean value':>14}")
    largest = float(it.error.nan_to_num(torch.inf).max()) if len(it.error) else 0.0
    median = float(it.error.median()) if len(it.error) else 0.0
    print(f"{k:9d} {int(running.sum()):9d} {largest:14.3e} {median:14.3e}", end="")
    print("" if it.value is None else f" {float(it.value.mean()):14.6e}")
