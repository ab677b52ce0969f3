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
FEW = 64  # numbers that are looked at one by one in less time than numpy takes


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
        record = _Record(self, it)
        while not record.looks_at(it):
            it = iterates.send(record.mask())
        iterates.close()
        return record.run(it)


class _Record:
    """What became of every sample so far; one number a sample.

    Most often all samples run and get better in every step, and are there in the same one. As long
    as that is so, on a CPU, a step leaves nothing but its iterate, and its errors relative to the
    tolerances; only when something else happens it is written down for each sample.

    Args:
        solver: Says when to stop.
        first: The first iterate.
    """

    def __init__(self, solver: IterativeSolver, first: Iterate) -> None:
        x, count = first.x, len(first.x)
        self.solver = solver
        self.eps_abs, self.eps_rel = solver.tolerances(x.dtype)
        self.tiny = torch.finfo(x.dtype).tiny  # the least that errors are divided by
        # On a CPU numpy does in a fraction of the time what little there is to do with numbers, and
        # a loop over a few of them in a fraction of that.
        self.on_cpu = is_at_hand(x)
        self.xp: Any = np if self.on_cpu else torch
        self.few = self.on_cpu and count <= FEW
        self.everyone = torch.ones(count, dtype=torch.bool, device=x.device)
        recorded = solver.verbose or solver.keep_history
        self.together = self.on_cpu and not recorded and count > 0
        self.k = 0  # the number of the next step
        # The last step in which nothing happened, and how many there were since one was written.
        self.last, self.quiet = first, 0
        self.ratios: Any = [np.inf] * count if self.few else np.full(count, np.inf)
        self.before = self.ratios  # when one last looked back
        self.all_there = self.written = False
        self.errors: list[Tensor] = []

    def mask(self) -> Tensor:
        """Who still runs."""
        return self.everyone if self.together else torch.as_tensor(self.running)

    def looks_at(self, it: Iterate) -> bool:
        """Take account of what comes next; whether that was all."""
        scale = torch.linalg.vector_norm(it.x, dim=-1) if it.scale is None else it.scale
        if self.together and self.k < self.solver.max_iter and self._nothing_happens(it, scale):
            self.last = it
            return self.all_there
        self._write_down()
        return self._looks_closely(it, self.eps_abs + self.eps_rel * exact(scale))

    def _looks_back(self) -> bool:
        patience = self.solver.patience
        return self.k % patience == patience - 1

    def _nothing_happens(self, it: Iterate, scale: Tensor) -> bool:
        """Whether all samples are better than before and none is there, or all are."""
        eps_abs, eps_rel, tiny, best = self.eps_abs, self.eps_rel, self.tiny, self.ratios
        back = self._looks_back()
        if self.few:
            tolerances: Any = [max(eps_abs + eps_rel * size, tiny) for size in scale.tolist()]
            pairs = zip(it.error.tolist(), tolerances, strict=True)
            ratios: Any = [error / tolerance for error, tolerance in pairs]
            if self.solver.keeps_last:
                best = [np.inf] * len(ratios)
            quiet = all(1.0 < r < bound for r, bound in zip(ratios, best, strict=True))
            there = not quiet and all(0.0 < r < 1.0 for r in ratios)
            self.all_there = there and min(tolerances) > tiny
            stuck = back and any(map(_stuck, ratios, self.before))
        else:
            tolerances = (eps_abs + eps_rel * exact(scale)).clip(tiny)
            ratios = exact(it.error) / tolerances
            better = ratios < (np.inf if self.solver.keeps_last else best)
            quiet = bool(np.logical_and.reduce(better & (ratios > 1.0)))
            there = not quiet and bool(((ratios > 0.0) & (ratios < 1.0)).all())
            self.all_there = there and float(tolerances.min()) > tiny
            stuck = back and bool(_stuck(ratios, self.before).any())
        if quiet and not stuck:
            if back:
                self.before = ratios
            self.ratios, self.quiet, self.k = ratios, self.quiet + 1, self.k + 1
            return True
        return self.all_there

    def _write_down(self) -> None:
        """What has become of each sample in the steps in which nothing happened."""
        xp, last = self.xp, self.last
        if not self.written:
            self.written = True
            self.best, self.best_value = last.x, last.value
            self.best_error = xp.full_like(plain(last.error), xp.inf)
            self.best_ratio = xp.full_like(exact(last.error), xp.inf)
            self.iterations = xp.zeros_like(self.best_ratio, dtype=xp.int64)
            self.running = self.best_ratio > 0.0
            self.converged = self.lost = ~self.running
            if not self.together:
                self.before = self.best_ratio
        if self.quiet:
            self.best, self.best_value = last.x, last.value
            self.best_error, self.best_ratio = plain(last.error), np.asarray(self.ratios)
            self.iterations = self.iterations + self.quiet
            self.quiet = 0

    def _looks_closely(self, it: Iterate, tolerance: Any) -> bool:
        """Take account of one step; whether it was the last one."""
        xp, k, solver = self.xp, self.k, self.solver
        error = plain(it.error)
        ratio = exact(it.error) / tolerance.clip(self.tiny)
        finite = xp.isfinite(error) & xp.isfinite(tolerance)  # the norm of x may overflow
        better = self.running & finite
        if not solver.keeps_last:
            better = better & (ratio < self.best_ratio)
        if self.on_cpu and better.all():
            self.best, self.best_value = it.x, it.value
            self.best_error, self.best_ratio = error, ratio
        else:
            mask = torch.as_tensor(better)
            self.best = torch.where(mask[:, None], it.x, self.best)
            self.best_error = xp.where(better, error, self.best_error)
            self.best_ratio = xp.where(better, ratio, self.best_ratio)
            if it.value is not None and self.best_value is not None:
                self.best_value = torch.where(mask, it.value, self.best_value)
        arrived = self.running & finite & (error <= tolerance)
        self.converged = self.converged | arrived
        self.lost = self.lost | (self.running & xp.isnan(error))
        self.running = self.running & ~(arrived | self.lost)
        if self._looks_back():
            before = np.asarray(self.before) if self.on_cpu else self.before
            self.running = self.running & ~_stuck(self.best_ratio, before)
            self.before = self.best_ratio
        self.together = self.together and bool(self.running.all())
        if self.together:
            self.ratios = self.best_ratio.tolist() if self.few else self.best_ratio
        if solver.keep_history:
            self.errors.append(torch.as_tensor(xp.where(self.iterations == k, error, xp.nan)))
        if solver.verbose:
            _print_line(k, self.running, it)
        checked = self.on_cpu or k % STEPS_BETWEEN_CHECKS == 0
        if k == solver.max_iter or (checked and not bool(self.running.any())):
            return True
        self.iterations = self.iterations + self.running
        self.k += 1
        return False

    def run(self, it: Iterate) -> Run:
        """What came of it all, with the last iterate."""
        if self.all_there:
            iterations = torch.full((len(it.x),), self.k)
            solved = torch.zeros_like(iterations)
            return Run(it.x, solved, iterations, it.error, it.value, it.kept, None)
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
            it.kept,
            torch.stack(self.errors) if self.errors else None,
        )


def is_at_hand(t: Tensor) -> bool:
    """Whether looking at numbers makes nobody wait."""
    return t.device.type == "cpu"


def plain(t: Tensor) -> Any:
    """Numbers of samples as what handles them fastest."""
    return t.numpy() if is_at_hand(t) else t


def exact(t: Tensor) -> Any:
    """The same, on a CPU in double precision: then few and many samples get the same ratios."""
    return t.numpy().astype(np.float64) if is_at_hand(t) else t


def all_below(numbers: Tensor, factor: float, others: Tensor) -> bool:
    """Whether each number of ``(B)`` is less than ``factor`` times the other one, on a CPU."""
    if len(numbers) <= FEW:
        pairs = zip(numbers.tolist(), others.tolist(), strict=True)
        return all(a < factor * b for a, b in pairs)
    return bool((numbers < factor * others).all())


def _stuck(ratio: Any, before: Any) -> Any:
    """Who made no progress for a while, near the tolerance."""
    return (ratio > LEAST_PROGRESS * before) & (ratio <= LOOSE)


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
