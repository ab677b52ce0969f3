r"""Dual active set: the default on a CPU, exact to rounding, problem by problem in compiled code."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..solution import Status
from . import _daqp, kkt, small
from .quadratic_program import QuadraticProgram
from .rows import Rows
from .solver import Iterate, Outcome, QPSolver, Start

EQUALITY, UPPER, LOWER = 5, 1, 3


@dataclass(frozen=True)
class ActiveSet(QPSolver):
    r"""Dual active-set method (DAQP) on least-distance problems prepared for the whole batch.

    With :math:`P = L L^\top` and :math:`u = L^\top x + L^{-1} q` a strictly convex program asks for
    the shortest :math:`u` that satisfies :math:`M u \le d`. The factorisation and :math:`M` come
    from batched linear algebra, are made once for what the batch shares, and are reused by the
    derivatives; the compiled solver walks from one active set to the next. Where :math:`P` is zero
    or singular it gets the program itself and adds proximal iterations; the solution is then
    polished on its active rows.

    Attributes:
        eps_abs: Absolute tolerance of the verdict.
        eps_rel: Relative tolerance of the verdict.
        max_iter: Changes of the active set allowed.
        verbose: Print a table of outcomes.

    References:
        Arnstrom, Bemporad, Axehill, *A dual active-set solver for embedded quadratic programming
        using recursive LDL' updates*, IEEE Trans. Automatic Control 67 (2022), section III.
    """

    def run(
        self, problem: QuadraticProgram, start: Start | None = None, *, with_factor: bool = False
    ) -> Outcome:
        """Solve a handful of plain problems without ceremony, all others in pieces."""
        if start is None and not self.verbose:
            outcome = small.solve(problem, self.eps_abs, self.eps_rel, self.max_iter)
            if outcome is not None:
                return outcome
        return super().run(problem, start, with_factor=with_factor)

    def iterate(self, rows: Rows, start: Start | None) -> Iterate:
        """Solve each problem; the active rows and the factor are exact."""
        if rows.q.device.type != "cpu":
            raise ValueError(
                f"ActiveSet runs on CPU tensors; got {rows.q.device}. "
                "Use InteriorPoint, which runs on any device, or move the problem with .cpu()."
            )
        factor, singular = kkt.factorise(rows.P, rows.C)
        sense = _sense(rows, start)
        if singular is None:
            x, nu, status, iterations = self._strictly_convex(rows, factor, sense)
            active = (nu != 0) | rows.fixed
            return Iterate(x, nu, status, iterations, active, factor, exact=True)
        x = rows.q.new_full((rows.batch, rows.n), torch.nan)
        nu = rows.q.new_full((rows.batch, rows.count), torch.nan)
        status = torch.zeros(rows.batch, dtype=torch.long)
        iterations = torch.zeros_like(status)
        flat = singular.expand(rows.batch)
        for mask, method in ((~flat, self._strictly_convex), (flat, self._singular)):
            index = torch.nonzero(mask).reshape(-1)
            if len(index):
                part = kkt.Factor(*(t if t.shape[0] == 1 else t[index] for t in factor))
                guess = sense if sense.shape[0] == 1 else sense[index.numpy()]
                found = method(rows.pick(index), part, guess)
                x[index], nu[index], status[index], iterations[index] = found
        active = ((nu != 0) & ~nu.isnan()) | rows.fixed
        factor = kkt.augment(rows.P, rows.C, factor, active, singular)
        return Iterate(x, nu, status, iterations, active, factor)

    def _strictly_convex(
        self, rows: Rows, factor: kkt.Factor, sense: "_daqp.Ints"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        L, M = factor.L, factor.M.numpy()
        norm = factor.norm.numpy()
        v = kkt.solve_lower(L, rows.q[..., None]).numpy()
        shift = (M @ v)[..., 0]
        upper, lower = rows.upper.numpy() / norm, rows.lower.numpy() / norm
        upper += shift
        lower += shift
        # The library reports success on NaN, having dropped the row.
        bad = np.isnan(upper).any(-1) | np.isnan(lower).any(-1) | np.isnan(v[..., 0]).any(-1)
        if bad.any():
            upper[bad], lower[bad] = 0.0, 0.0
            M = np.where(bad[:, None, None], 0.0, M)
        u, lam, status, iterations = _daqp.solve_batch(
            None, None, M, upper, lower, sense, rows.batch, self.max_iter
        )
        x = kkt.solve_upper(L, torch.from_numpy(u[..., None] - v))[..., 0]
        if bad.any():
            status[bad], x[torch.from_numpy(bad)] = Status.NUMERICAL_ERROR, torch.nan
        lam /= norm
        return x, *(torch.from_numpy(t) for t in (lam, status, iterations))

    def _singular(
        self, rows: Rows, factor: kkt.Factor, sense: "_daqp.Ints"
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The program itself, with unit rows and an objective of size one."""
        del factor
        size = rows.P.abs().amax((-2, -1))
        linear = bool((size == 0).all())
        scale = torch.where(size > 0, size, 1.0)
        norm = torch.linalg.vector_norm(rows.C, dim=-1)
        norm = torch.where(norm > 0, norm, 1.0)
        P, q = rows.P / scale[:, None, None], rows.q / scale[:, None]
        C, upper, lower = rows.C / norm[..., None], rows.upper / norm, rows.lower / norm
        # The library does not see NaN: it drops such rows and reports success.
        bad = ~(P.sum((-2, -1)) + q.sum(-1) + C.sum((-2, -1))).isfinite()
        bad = (bad | upper.isnan().any(-1) | lower.isnan().any(-1)).expand(rows.batch)
        x, lam, status, iterations = _daqp.solve_batch(
            None if linear else P.numpy(),
            q.numpy(),
            C.numpy(),
            upper.numpy(),
            lower.numpy(),
            sense,
            rows.batch,
            self.max_iter,
        )
        outcome = torch.where(bad, Status.NUMERICAL_ERROR, torch.from_numpy(status))
        nu = torch.from_numpy(lam) * scale[:, None] / norm
        return torch.from_numpy(x), nu, outcome, torch.from_numpy(iterations)


def _sense(rows: Rows, start: Start | None) -> "_daqp.Ints":
    """Equalities, and the guess of the active rows from an earlier solution."""
    fixed = rows.fixed
    if start is None:
        return (EQUALITY * fixed).to(torch.int32).numpy()
    nu = start[1]
    guess = UPPER * (nu > 0) + LOWER * (nu < 0)
    return torch.where(fixed, EQUALITY, guess).to(torch.int32).numpy().astype(np.int32, copy=False)
