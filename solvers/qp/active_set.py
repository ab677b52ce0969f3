r"""Dual active set: the default on a CPU, exact to rounding, each problem in compiled code."""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..outcomes import table
from ..solution import Status
from . import _daqp, kkt, native
from ._daqp import EQUALITY, LOWER, UPPER
from .quadratic_program import QuadraticProgram
from .rows import Rows
from .screening import malformed
from .solver import Iterate, Outcome, QPSolver, Start, replace_part

Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]
# Solutions, multipliers, statuses and iterations.
Found = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class ActiveSet(QPSolver):
    r"""Dual active-set method: our own where a program is strictly convex, DAQP elsewhere.

    With :math:`P = L L^\top` and :math:`u = L^\top x + L^{-1} q` a strictly convex program asks for
    the shortest :math:`u` that satisfies :math:`M u \le d`. Compiled code, see
    :mod:`solvers.qp.native`, makes :math:`M` and walks from one active set to the next. What it
    does not settle, and everything where it was not compiled, goes to DAQP: least-distance problems
    prepared for the whole batch by batched linear algebra. Where :math:`P` is zero or singular DAQP
    gets the program itself and adds proximal iterations; the solution is then polished on its
    active rows.

    Attributes:
        eps_abs: Absolute tolerance of the verdict.
        eps_rel: Relative tolerance of the verdict.
        max_iter: Changes of the active set allowed.
        verbose: Print a table of outcomes.

    References:
        Goldfarb and Idnani, *A numerically stable dual method for solving strictly convex quadratic
        programs*, Mathematical Programming 27 (1983), section 3; Arnstrom, Bemporad, Axehill, *A
        dual active-set solver for embedded quadratic programming using recursive LDL' updates*,
        IEEE Trans. Automatic Control 67 (2022), section III.
    """

    def run(
        self, problem: QuadraticProgram, start: Start | None = None, *, with_factor: bool = False
    ) -> Outcome:
        """Solve what is plain in compiled code, and everything else in pieces."""
        guess = None if start is None else start[1]
        found = native.solve(problem, guess, self.eps_abs, self.eps_rel, self.max_iter)
        if found is None:
            return super().run(problem, start, with_factor=with_factor)
        outcome, unsettled = found
        if not unsettled:
            if self.verbose:
                print(table(type(self).__name__, outcome))
            return outcome
        # The whole batch again, for in smaller company an element would get other roundings.
        whole = super().run(problem, start, with_factor=with_factor)
        if unsettled == len(outcome.status):
            return whole
        index = torch.arange(len(outcome.status))
        return replace_part(outcome, whole, index, outcome.status != 0)

    @np.errstate(all="ignore")  # what is not finite is found and said in the verdict
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
            x, nu, status, iterations = self._strictly_convex(rows, factor, sense, None)
            active = (nu != 0) | rows.fixed
            exact = torch.ones_like(status, dtype=torch.bool)
            return Iterate(x, nu, status, iterations, active, factor, exact)
        # Each kind of problem runs with the others in their places: an element that moved in
        # memory would get other roundings.
        singular, bad = singular.expand(rows.batch), malformed(rows)
        linear = (rows.P == 0).all(-1).all(-1) & ~bad
        x = rows.q.new_full((rows.batch, rows.n), torch.nan)
        nu = rows.q.new_full((rows.batch, rows.count), torch.nan)
        status = torch.full((rows.batch,), int(Status.NUMERICAL_ERROR))
        iterations = torch.zeros_like(status)
        for mask, method in (
            (~singular & ~bad, self._strictly_convex),
            (linear, self._linear),
            (singular & ~linear & ~bad, self._singular),
        ):
            if bool(mask.any()):
                found = method(rows, factor, sense, mask.numpy())
                for whole, part in zip((x, nu, status, iterations), found, strict=True):
                    whole[mask] = part[mask]
        active = ((nu != 0) & ~nu.isnan()) | rows.fixed
        factor = kkt.augment(rows.P, rows.C, factor, active, singular)
        return Iterate(x, nu, status, iterations, active, factor, ~singular)

    def _strictly_convex(
        self, rows: Rows, factor: kkt.Factor, sense: Ints, wanted: Mask | None
    ) -> Found:
        L, M, norm = factor.L, factor.M, factor.norm
        v = kkt.solve_lower(L, rows.q[..., None])
        shift = (M.numpy() @ v.numpy())[..., 0]
        upper, lower = (end.numpy() / norm.numpy() + shift for end in (rows.upper, rows.lower))
        # The library reports success on NaN, having dropped the row.
        numbers = (v.numpy()[..., 0], upper, lower)
        bad = reduce(np.logical_or, [np.isnan(t).any(-1) for t in numbers])
        if bad.any():
            bad = np.broadcast_to(bad, rows.batch)
            wanted = ~bad if wanted is None else wanted & ~bad
        ends = torch.from_numpy(upper), torch.from_numpy(lower)
        u, lam, status, iterations = self._walk(rows.batch, None, None, M, *ends, sense, wanted)
        x = kkt.solve_upper(L, u[..., None] - v)[..., 0]
        return x, lam / norm, status, iterations

    def _walk(
        self,
        batch: int,
        P: Tensor | None,
        q: Tensor | None,
        C: Tensor,
        upper: Tensor,
        lower: Tensor,
        sense: Ints,
        wanted: Mask | None,
    ) -> Found:
        """The compiled solver; without ``P`` and ``q`` it looks for the shortest points."""
        P_, q_ = (None if t is None else t.numpy() for t in (P, q))
        x, lam, status, iterations = _daqp.solve_batch(
            P_, q_, C.numpy(), upper.numpy(), lower.numpy(), sense, batch, self.max_iter, wanted,
            loose=self.eps_abs,
        )  # fmt: skip
        found = [torch.from_numpy(t) for t in (x, lam, status, iterations)]
        return found[0], found[1], found[2], found[3]

    def _linear(self, rows: Rows, factor: kkt.Factor, sense: Ints, wanted: Mask) -> Found:
        """A linear program as it is, with unit rows."""
        return self._unfactored(rows, None, rows.q, sense, wanted)

    def _singular(self, rows: Rows, factor: kkt.Factor, sense: Ints, wanted: Mask) -> Found:
        """The program as it is, with unit rows and an objective of size one."""
        scale = rows.P.abs().amax((-2, -1))
        scale = torch.where(scale > 0, scale, 1.0)
        x, nu, status, iterations = self._unfactored(
            rows, rows.P / scale[:, None, None], rows.q / scale[:, None], sense, wanted
        )
        return x, nu * scale[:, None], status, iterations

    def _unfactored(
        self, rows: Rows, P: Tensor | None, q: Tensor, sense: Ints, wanted: Mask
    ) -> Found:
        norm = torch.linalg.vector_norm(rows.C, dim=-1)
        norm = torch.where(norm > 0, norm, 1.0)
        x, lam, status, iterations = self._walk(
            rows.batch, P, q, rows.C / norm[..., None], rows.upper / norm, rows.lower / norm,
            sense, wanted,
        )  # fmt: skip
        return x, lam / norm, status, iterations


def _sense(rows: Rows, start: Start | None) -> Ints:
    """Equalities, and the guess of the active rows from an earlier solution."""
    if start is None:
        equal = rows.lower.numpy() == rows.upper.numpy()
        sense: Ints = np.multiply(equal, EQUALITY, dtype=np.int32)
        return sense
    fixed, nu = rows.fixed, start[1]
    # A row cannot be active at an end that is infinite, whatever the guess says.
    guess = UPPER * ((nu > 0) & rows.upper.isfinite()) + LOWER * ((nu < 0) & rows.lower.isfinite())
    return torch.where(fixed, EQUALITY, guess).to(torch.int32).numpy().astype(np.int32, copy=False)
