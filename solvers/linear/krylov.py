"""What the iterative linear solvers share: where to start, and a verdict on the true residual."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..iteration import LOOSE, Iterates, IterativeSolver, Run
from ..solution import Status
from .operator import LinearOperator
from .solver import LinearSolver, Preconditioner


@dataclass(frozen=True)
class IterativeLinearSolver(IterativeSolver, LinearSolver):
    r"""Base of the iterative linear solvers; a subclass provides ``iterates``.

    A sample is solved when :math:`\|b - A x\|_2 \le` ``eps_abs`` + ``eps_rel`` :math:`\|b\|_2`.
    The methods update the residual instead of computing it, and rounding makes the two drift apart.
    So at the end it is computed from ``x``: samples for which it is not small enough after all
    start again from there, once, and whatever then remains is judged as it is.

    Attributes:
        eps_abs: Absolute tolerance; zero by default, since a system may be scaled at will.
        eps_rel: Tolerance relative to ``b``; by default 1e-10 in float64, 1e-6 in float32.
        max_iter: Iterations allowed to each sample, from each of its starts.
    """

    eps_abs: float | None = 0.0
    patience: ClassVar[int] = 100  # residuals of Krylov methods rest on plateaus

    @torch.no_grad()
    def find(
        self,
        A: LinearOperator,
        b: Tensor,
        x0: Tensor | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> Run:
        """Iterate, compute the true residuals, iterate again where they are too large."""
        if self.square and A.dense is not None and A.dense.shape[1:] != (b.shape[-1],) * 2:
            raise ValueError(
                f"{type(self).__name__}.find: A must have shape (B or 1, m, m) with m = "
                f"{b.shape[-1]}, the entries of b; got {tuple(A.dense.shape)}."
            )
        eps_abs, eps_rel = self.tolerances(b.dtype)
        tolerance = eps_abs + eps_rel * torch.linalg.vector_norm(b, dim=-1)
        run = self.run(self.iterates(A, b, x0, preconditioner))
        error = self.error(A, b, run.x)
        again = (run.status == Status.SOLVED) & (error > tolerance)
        if bool(again.any()):
            # The others get a system that zero solves, so that they keep nobody waiting.
            mask = again.unsqueeze(-1)
            b_again, x_again = torch.where(mask, b, 0), torch.where(mask, run.x, 0)
            more = self.run(self.iterates(A, b_again, x_again, preconditioner))
            error_more = self.error(A, b_again, more.x)
            better = again & (error_more < error)
            error = torch.where(better, error_more, error)
            run = run._replace(
                x=torch.where(better.unsqueeze(-1), more.x, run.x),
                status=torch.where(again, more.status, run.status),
                iterations=run.iterations + more.iterations,
            )
        # A method that lost its way may believe anything.
        believed = run.status <= Status.SOLVED_INACCURATE
        status = run.status.masked_fill(believed, int(Status.NUMERICAL_ERROR))
        status = status.masked_fill(error <= LOOSE * tolerance, int(Status.SOLVED_INACCURATE))
        status = status.masked_fill(error <= tolerance, int(Status.SOLVED))
        return self.report(A, b, run._replace(status=status, error=error))

    @abstractmethod
    def iterates(
        self, A: LinearOperator, b: Tensor, x0: Tensor | None, preconditioner: Preconditioner | None
    ) -> Iterates:
        """Yield where the method is, with the residual as error and the norm of b as scale."""

    def error(self, A: LinearOperator, b: Tensor, x: Tensor) -> Tensor:
        """What has to be small, computed from ``x``."""
        residual: Tensor = torch.linalg.vector_norm(b - A.matvec(x), dim=-1)
        return residual

    def report(self, A: LinearOperator, b: Tensor, run: Run) -> Run:
        """Put what :meth:`find` promises into ``error`` and ``value``."""
        return run

    def start(self, A: LinearOperator, b: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where to start, and the residual there; at zero where that is the solution."""
        x = self._unknowns(A, b, x0)
        if x0 is None:
            return x, b
        x = torch.where((b != 0).any(-1, keepdim=True), x0, x)
        return x, b - A.matvec(x)
