"""What the direct solvers share: factor, apply, refine, and doubt the result."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..iteration import DEFAULT_EPS, LOOSE, Run
from ..solution import Status
from .operator import LinearOperator
from .solver import LinearSolver, Preconditioner

Factor = tuple[Tensor, ...]

# Relative errors of x that the condition number makes likely: from the first on a solution counts
# as inaccurate, from the second on the matrix as singular. Of 217 800 random singular matrices
# (products of rank n - 1, Laplacians, Gram matrices; n from 2 to 100, both precisions), in 580 800
# solves by Cholesky, LU and QR, none was SOLVED and 3 were SOLVED_INACCURATE.
INACCURATE, SINGULAR = 1e-4, 5e-3
# Multiples of irrational numbers modulo one are vectors in no special position; both have a mean,
# or the null space of a Laplacian would go unseen.
IRRATIONAL, SHIFT = (0.5 * 5**0.5, 2**0.5), (0.25, 0.75)


@dataclass(frozen=True)
class DirectSolver(LinearSolver):
    r"""Base of the direct solvers, which factor the matrices.

    A solution is refined once: the residual :math:`r = b - A x` is solved for, and added. Then it
    must pass two tests. The residual, computed again, must satisfy
    :math:`\|r\| \le` ``eps_rel`` :math:`(\|A\|_F \|x\| + \|b\|)`. And the condition number must
    leave digits in ``x``: two right-hand sides :math:`p` in no special position, in proportion to
    the sums :math:`s` of the rows of :math:`|A|`, are solved along with :math:`b`, and
    :math:`\epsilon \max_i (|A| |A^{-1} p|)_i / s_i`, with the machine precision :math:`\epsilon`,
    is about the relative error that rounding causes, however badly rows and columns are scaled (for
    QR, whose rounding is in proportion to the largest row, :math:`s = 1`). Above 1e-4 the status is
    SOLVED_INACCURATE, above 5e-3 it is NUMERICAL_ERROR and ``x`` is NaN. This is an estimate: a
    matrix whose small singular vector is nearly orthogonal to both :math:`p` may pass.

    Attributes:
        eps_rel: Backward error allowed; by default 1e-10 in float64, 1e-6 in float32.

    References:
        Higham, *Accuracy and stability of numerical algorithms*, 2nd ed. 2002, section 7.2 for the
        condition number and chapter 12 for refinement.
    """

    eps_rel: float | None = None

    least_squares: ClassVar[bool] = False
    # Whether rounding in a row is in proportion to that row, not to the largest one.
    keeps_rows_apart: ClassVar[bool] = True

    @abstractmethod
    def factor(self, matrix: Tensor) -> Factor:
        """Factor matrices ``(B or 1, m, n)``; never raises for a singular one."""

    @abstractmethod
    def columns(self, factor: Factor, right: Tensor, *, transposed: bool = False) -> Tensor:
        """Solve for matrices of right-hand sides ``(B or 1, m, k)``."""

    def apply(self, factor: Factor, b: Tensor, transposed: bool = False) -> Tensor:
        """Solve with a factorisation; no test whether the matrices were regular.

        Args:
            factor: What :meth:`factor` returned.
            b: Right-hand sides ``(B, m)``, or ``(B, n)`` if ``transposed``.
            transposed: Whether to solve with the transposed matrices.
        """
        if factor[0].shape[0] == 1:  # one matrix: all samples are columns of one solve
            return self.columns(factor, b.mT.unsqueeze(0), transposed=transposed)[0].mT
        return self.columns(factor, b.unsqueeze(-1), transposed=transposed).squeeze(-1)

    @torch.no_grad()
    def find(
        self,
        A: LinearOperator,
        b: Tensor,
        x0: Tensor | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> Run:
        """Factor, solve, refine once, judge; ``kept`` holds the factorisation."""
        batch, m = b.shape
        matrix = A.matrix(self._unknowns(A, b, x0))
        n = matrix.shape[-1]
        if matrix.shape[-2] != m or (self.square and m != n):
            raise ValueError(
                f"{type(self).__name__}.find: A must have {m} rows because b has {m} entries"
                f"{' and be square' if self.square else ''}; got {tuple(matrix.shape)}."
            )
        product = A if A.dense is not None else LinearOperator.of(matrix)
        factor = self.factor(matrix)
        size = matrix.abs()
        rows = size.sum(-1, keepdim=True)
        if not self.keeps_rows_apart:
            rows = torch.ones_like(rows)
        probes = _probes(m, b) * rows
        if matrix.shape[0] == 1 and batch != 1:
            both = self.columns(factor, torch.cat((b.mT, probes[0]), -1).unsqueeze(0))
            x, probed = both[0, :, :batch].mT, both[..., batch:]
        else:
            both = self.columns(factor, torch.cat((b.unsqueeze(-1), probes), -1))
            x, probed = both[..., 0], both[..., 1:]
        # Of a tall matrix the solution sees only the part of the probe in its range.
        dilution = max(m / n, 1.0) ** 0.5 if n else 1.0
        doubt = (size @ probed.abs() / rows).flatten(1)
        uncertainty = dilution * torch.finfo(b.dtype).eps * _largest(doubt)

        x = x + self.apply(factor, b - product.matvec(x))
        r = b - product.matvec(x)
        norm = torch.linalg.vector_norm
        residual, norm_A = norm(r, dim=-1), norm(matrix, dim=(-2, -1))
        allowed = norm_A * norm(x, dim=-1) + norm(b, dim=-1)
        error = norm(product.T.matvec(r), dim=-1) if self.least_squares else residual
        # What should vanish: more equations than unknowns leave a residual.
        excess, allowed = (error, norm_A * allowed) if m > n else (residual, allowed)
        backward = excess / torch.where(allowed > 0, allowed, 1)
        eps = DEFAULT_EPS[b.dtype] if self.eps_rel is None else self.eps_rel
        good = (backward <= eps) & (uncertainty <= INACCURATE)
        usable = (backward <= LOOSE * eps) & (uncertainty <= SINGULAR)
        status = torch.full_like(residual, int(Status.NUMERICAL_ERROR), dtype=torch.long)
        status = status.masked_fill(usable, int(Status.SOLVED_INACCURATE))
        status = status.masked_fill(good, int(Status.SOLVED))
        x = torch.where(usable.unsqueeze(-1), x, torch.nan)
        error, residual = (torch.where(usable, t, torch.nan) for t in (error, residual))
        iterations = torch.ones_like(status)
        value = residual if self.least_squares else None
        return Run(x, status, iterations, error, value, factor, None)


def _probes(m: int, like: Tensor) -> Tensor:
    k = torch.arange(1, m + 1, dtype=like.dtype, device=like.device).unsqueeze(-1)
    return k * like.new_tensor(IRRATIONAL) % 1 - like.new_tensor(SHIFT)


def _largest(values: Tensor) -> Tensor:
    return values.amax(-1) if values.shape[-1] else values.new_zeros(values.shape[0])
