"""The loop that all iterative solvers share: who still runs, who is done, who cannot get further.

A method is a generator. It yields where it is and how far it still wants to go, and is told which
samples still run; all it remembers are local variables. Samples never wait for each other to be
right: what a sample ends with is recorded when it stops, whatever the method does to it later.
"""

from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ._native import laid_out, library_for, word
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
            for it: in the units of ``x``. NaN says that there is no way on. None if it is the
            distance of ``x`` from ``start``.
        value: Objective or merit ``(B)``, for tables and histories; None if there is none.
        kept: What derivatives may reuse, a factorisation say, as it was last.
        scale: What ``eps_rel`` is relative to ``(B)``, where that is not the norm of ``x``.
        start: ``(B, n)``, where there is no ``error``.
    """

    x: Tensor
    error: Tensor | None
    value: Tensor | None = None
    kept: tuple[Tensor, ...] = ()
    scale: Tensor | None = None
    start: Tensor | None = None


class Seen(Protocol):
    """What a method hears of its iterate.

    Attributes:
        running: Who goes on ``(B)``.
        fast: Whose error has at least halved at every step so far ``(B)``.
    """

    running: Tensor
    fast: Tensor

    @property
    def slow(self) -> int:
        """How many go on and are not fast."""


Iterates = Generator[Iterate, Seen, None]


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
        given = self.eps_abs, self.eps_rel
        eps_abs, eps_rel = [default if eps is None else float(eps) for eps in given]
        return eps_abs, eps_rel

    @torch.no_grad()
    def run(self, iterates: Iterates) -> Run:
        """Run a method until every sample is done.

        Args:
            iterates: The method, at its start.

        Returns:
            For each sample its best or last point, and what became of it.
        """
        it = next(iterates)
        record = _record_of(self, it)
        while not record.looks_at(it):
            it = iterates.send(record)
        iterates.close()
        return record.run(it)


class _Record:
    """What became of every sample so far, on any device.

    Args:
        solver: Says when to stop.
        first: The first iterate.
    """

    def __init__(self, solver: IterativeSolver, first: Iterate) -> None:
        x, error = first.x, _error_of(first)
        self.solver, self.k = solver, 0
        self.eps_abs, self.eps_rel = solver.tolerances(x.dtype)
        self.tiny = torch.finfo(x.dtype).tiny  # the least that errors are divided by
        # In single precision ratios may overflow, but not all devices have another.
        self.wide = torch.float64 if is_at_hand(x) else x.dtype
        self.best, self.best_value = x, first.value
        self.error = self.best_error = torch.full_like(error, torch.inf)
        self.best_ratio = self.before = self.best_error.to(self.wide)
        self.iterations = torch.zeros_like(error, dtype=torch.int64)
        self.running = self.fast = torch.ones_like(error, dtype=torch.bool)
        self.converged = self.lost = ~self.running
        self.asks = 1 if is_at_hand(x) else STEPS_BETWEEN_CHECKS
        self.errors: list[Tensor] = []

    def looks_at(self, it: Iterate) -> bool:
        """Take account of what comes next; whether that was all."""
        k, solver, error = self.k, self.solver, _error_of(it)
        self.fast = self.fast & (error < 0.5 * self.error)
        self.error = error
        scale = torch.linalg.vector_norm(it.x, dim=-1) if it.scale is None else it.scale
        tolerance = self.eps_abs + self.eps_rel * scale.to(self.wide)
        ratio = error.to(self.wide) / tolerance.clamp_min(self.tiny)
        finite = error.isfinite() & tolerance.isfinite()  # the norm of x may overflow
        better = self.running & finite
        if not solver.keeps_last:
            better = better & (ratio < self.best_ratio)
        self.best = torch.where(better[:, None], it.x, self.best)
        self.best_error = torch.where(better, error, self.best_error)
        self.best_ratio = torch.where(better, ratio, self.best_ratio)
        if it.value is not None and self.best_value is not None:
            self.best_value = torch.where(better, it.value, self.best_value)
        if solver.keep_history:
            self.errors.append(torch.where(self.running, error, torch.nan))
        arrived = self.running & finite & (error <= tolerance)
        self.converged = self.converged | arrived
        self.lost = self.lost | (self.running & error.isnan())
        self.running = self.running & ~(arrived | self.lost)
        if solver.patience and k % solver.patience == solver.patience - 1:
            stuck = self.best_ratio > LEAST_PROGRESS * self.before
            self.running = self.running & ~(stuck & (self.best_ratio <= LOOSE))
            self.before = self.best_ratio
        if solver.verbose:
            _print_line(k, self.running, error, it.value)
        if k == solver.max_iter or (k % self.asks == 0 and not bool(self.running.any())):
            return True
        self.iterations = self.iterations + self.running
        self.k += 1
        return False

    @property
    def slow(self) -> int:
        """See :class:`Seen`."""
        return int((self.running & ~self.fast).sum())

    def run(self, it: Iterate) -> Run:
        """What came of it all, with the last iterate."""
        status = torch.where(self.lost, int(Status.NUMERICAL_ERROR), int(Status.MAX_ITERATIONS))
        status = torch.where(self.best_ratio <= LOOSE, int(Status.SOLVED_INACCURATE), status)
        status = torch.where(self.converged, int(Status.SOLVED), status)
        return Run(
            self.best,
            status,
            self.iterations,
            self.best_error,
            self.best_value,
            it.kept,
            torch.stack(self.errors) if self.errors else None,
        )


# Words of the structure in ``solvers/c/steps.c`` that change at every step.
_X, _START, _ERROR, _SCALE, _K, _BETTER, _LEFT, _SLOW = range(8)
_KEPT = *[np.float64] * 4, *[np.int64] * 2, *[np.bool_] * 3


class _CompiledRecord:
    """The same on a CPU by compiled code: a call a step, where torch takes twenty.

    Args:
        step: That code.
        solver: Says when to stop.
        first: The first iterate.
    """

    def __init__(
        self, step: Callable[[int], None], solver: IterativeSolver, first: Iterate
    ) -> None:
        x = first.x
        self.step, self.solver, self.dtype = step, solver, x.dtype
        self.shape = x.shape
        self.count, n = self.shape
        self.best, self.best_value = x, first.value
        self.last: Tensor | None = None  # the last step's x as it was given, and as it was read
        self.x = self.start = x
        self.errors: list[Tensor] = []
        # What is kept for each sample, filled in at the first step; the third is the ratio of the
        # best error to its tolerance, the fourth what that was when one last looked back.
        self.kept = [torch.from_numpy(np.empty(self.count, kind)) for kind in _KEPT]
        self.error, self.best_error, _, _, *rest = self.kept
        self.iterations, self.status, self.running, self.better, self.fast = rest
        places = [t.data_ptr() for t in self.kept]
        is_single = x.dtype == torch.float32
        most = int(min(solver.max_iter, 1 << 62))
        settings = self.count, n, is_single, solver.keeps_last, solver.patience, most
        limits = *solver.tolerances(x.dtype), torch.finfo(x.dtype).tiny, LOOSE, LEAST_PROGRESS
        words = [word(limit) for limit in limits]
        self.job = array("q", (*[0] * 8, *places, *settings, *words))
        self.address, _ = self.job.buffer_info()

    def looks_at(self, it: Iterate) -> bool:
        """Take account of what comes next; whether that was all."""
        job, solver, k = self.job, self.solver, self.job[_K]
        if it.start is not None:
            # Plain steps start where the last one ended.
            same = it.start is self.last
            self.start = self.x if same else self._ready(it.start, self.shape)
            job[_START] = job[_X] if same else self.start.data_ptr()
        self.last, self.x = it.x, self._ready(it.x, self.shape)
        job[_X] = self.x.data_ptr()
        error = scale = None  # or numbers that must live until they have been read
        if it.error is not None:
            error = self._ready(it.error, self.shape[:1])
        if it.scale is not None:
            scale = self._ready(it.scale, self.shape[:1])
        job[_ERROR] = 0 if error is None else error.data_ptr()
        job[_SCALE] = 0 if scale is None else scale.data_ptr()
        self.step(self.address)
        if job[_BETTER] == self.count:
            self.best, self.best_value = it.x, it.value
        elif job[_BETTER]:
            self.best = torch.where(self.better[:, None], it.x, self.best)
            if it.value is not None and self.best_value is not None:
                self.best_value = torch.where(self.better, it.value, self.best_value)
        if solver.keep_history:
            error = self.error.to(self.dtype)
            self.errors.append(torch.where(self.iterations >= k, error, torch.nan))
        if solver.verbose:
            _print_line(k, self.running, self.error, it.value)
        return not job[_LEFT]

    @property
    def slow(self) -> int:
        """See :class:`Seen`."""
        return self.job[_SLOW]

    def _ready(self, t: Tensor, shape: tuple[int, ...]) -> Tensor:
        """As compiled code reads it: parameters of another type may have changed that of ``x``."""
        if t.shape != shape:
            raise ValueError(
                f"{type(self.solver).__name__}: a step must keep its shape, {tuple(shape)} here; "
                f"got {tuple(t.shape)}. Functions get all samples at once, and map each."
            )
        return laid_out(t if t.dtype == self.dtype else t.to(self.dtype))

    def run(self, it: Iterate) -> Run:
        """What came of it all, with the last iterate."""
        return Run(
            self.best,
            self.status,
            self.iterations,
            self.best_error.to(self.dtype),
            self.best_value,
            it.kept,
            torch.stack(self.errors) if self.errors else None,
        )


def _record_of(solver: IterativeSolver, first: Iterate) -> _Record | _CompiledRecord:
    length = first.start if first.error is None else first.error
    assert length is not None
    compiled = library_for(first.x, length)
    if compiled is None:
        return _Record(solver, first)
    return _CompiledRecord(compiled.optlayers_step, solver, first)


def is_at_hand(t: Tensor) -> bool:
    """Whether looking at numbers makes nobody wait."""
    return t.is_cpu


def _error_of(it: Iterate) -> Tensor:
    if it.error is not None:
        return it.error
    assert it.start is not None
    length: Tensor = torch.linalg.vector_norm(it.x - it.start, dim=-1)
    return length


def solution_of(run: Run, shape: torch.Size) -> Solution:
    """Give what came of a loop the batch shape of ``x0``, whose shape is ``(*batch, n)``."""
    batch = shape[:-1]
    return Solution(
        run.x.reshape(shape),
        run.status.reshape(batch),
        run.iterations.reshape(batch),
        objective=None if run.value is None else run.value.reshape(batch),
        dual_residual=run.error.reshape(batch),
        history=None if run.history is None else run.history.reshape(len(run.history), *batch),
    )


def _print_line(k: int, running: Tensor, error: Tensor, value: Tensor | None) -> None:
    if k == 0:
        print(f"{'iteration':>9} {'running':>9} {'largest step':>14} {'median step':>14}", end="")
        print("" if value is None else f" {'mean value':>14}")
    largest = float(error.nan_to_num(torch.inf).max()) if len(error) else 0.0
    median = float(error.median()) if len(error) else 0.0
    print(f"{k:9d} {int(running.sum()):9d} {largest:14.3e} {median:14.3e}", end="")
    print("" if value is None else f" {float(value.mean()):14.6e}")
