r"""PIQP, a compiled proximal interior point, one problem after the other."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..solution import Status
from .equilibrate import Equilibrated, equilibrate
from .rows import Rows
from .screening import contradictory, equal_ends, malformed
from .solver import Iterate, QPSolver, Start

Array = NDArray[np.float64]
# PIQP stops at this multiple of the tolerance, so that scaling back stays within it.
TIGHTER = 1e-2
TIGHTEST = 1e-12


@dataclass(frozen=True)
class ProximalInteriorPoint(QPSolver):
    r"""The dense solver of PIQP, for problems on which active-set methods have a hard time.

    It takes linear programs, singular ``P``, dependent rows and degenerate vertices in its stride,
    at several times the cost of :class:`~solvers.qp.active_set.ActiveSet` on easy ones. It works
    on the CPU, instance by instance, and holds the interpreter lock; a warm start is ignored.

    PIQP trusts its caller: wrong shapes crash the process, NaN in a bound drops the row, an
    indefinite ``P`` runs until ``max_iter``. Everything is therefore checked before the call.

    Attributes:
        max_iter: Iterations allowed to each problem.

    References:
        Schwan, Jiang, Kuhn & Jones, *PIQP: A proximal interior-point quadratic programming solver*,
        CDC (2023), algorithm 1.
    """

    max_iter: int = 250

    def iterate(self, rows: Rows, start: Start | None) -> Iterate:
        """Run the method on the flat form; see :class:`~solvers.qp.solver.QPSolver`."""
        _check_shapes(rows)
        device = rows.q.device
        problem, equal = equilibrate(rows), equal_ends(rows)
        status = torch.where(
            contradictory(rows, self.eps_abs, self.eps_rel),
            Status.PRIMAL_INFEASIBLE,
            Status.SOLVED,
        )
        status = torch.where(malformed(rows), Status.NUMERICAL_ERROR, status).cpu()
        x = torch.full((rows.batch, rows.n), torch.nan, dtype=torch.float64)
        nu = torch.full((rows.batch, rows.count), torch.nan, dtype=torch.float64)
        iterations = torch.zeros_like(status)
        instances = _Instances(problem, equal, rows.p + rows.m)
        for i in torch.nonzero(status == Status.SOLVED).reshape(-1).tolist():
            answer = instances.solve(i, self._new_solver())
            status[i], iterations[i] = answer.status, answer.iterations
            x[i], nu[i] = torch.from_numpy(answer.x), torch.from_numpy(answer.nu)
        x = x.to(device) * problem.d
        nu = nu.to(device) * (problem.e / problem.c[:, None])
        return Iterate(x, nu, status.to(device), iterations.to(device))

    def _new_solver(self) -> Any:
        import piqp  # imported when used: it costs every other user of the package time

        solver = piqp.DenseSolver()
        settings = solver.settings
        settings.eps_abs = settings.eps_duality_gap_abs = max(TIGHTER * self.eps_abs, TIGHTEST)
        settings.eps_rel = settings.eps_duality_gap_rel = max(TIGHTER * self.eps_rel, TIGHTEST)
        settings.max_iter = self.max_iter
        return solver


class _Answer(NamedTuple):
    status: Status
    iterations: int
    x: Array
    nu: Array


class _Instances:
    """The problems of a batch as PIQP wants them, in scaled units."""

    def __init__(self, problem: Equilibrated, equal: Tensor, first_bound: int) -> None:
        self.P, self.q, self.C, self.lower, self.upper, self.equal, self.c = (
            t.detach().cpu().contiguous().numpy()
            for t in (
                problem.P, problem.q, problem.C, problem.lower, problem.upper, equal, problem.c
            )
        )  # fmt: skip
        self.first_bound = first_bound

    def solve(self, i: int, solver: Any) -> _Answer:
        """Solve problem ``i`` with a fresh solver object.

        Each row goes where PIQP handles it well: to ``A`` if its ends meet (as an inequality it
        would get two huge multipliers), to the bounds if it is one, else to ``G``.
        """
        P, q, C, lower, upper, equal, c = (
            t[i] if t.shape[0] > 1 else t[0]
            for t in (self.P, self.q, self.C, self.lower, self.upper, self.equal, self.c)
        )
        n, k = q.shape[0], self.first_bound
        is_bound = np.arange(C.shape[0]) >= k
        finite = np.isfinite(lower) | np.isfinite(upper)
        to_A = np.flatnonzero(equal)
        to_G = np.flatnonzero(~equal & ~is_bound & finite)
        x_l, x_u = np.full(n, -np.inf), np.full(n, np.inf)
        stretch = np.ones(n)
        if is_bound.any():
            # A bound is a row of the identity, scaled: its entry turns it into a bound on x.
            stretch = np.diagonal(C[k:])
            free = ~equal[k:]
            x_l[free], x_u[free] = lower[k:][free] / stretch[free], upper[k:][free] / stretch[free]
        constraints: dict[str, Array] = {}
        if to_A.size:
            constraints.update(A=C[to_A], b=0.5 * (lower[to_A] + upper[to_A]))
        if to_G.size:
            constraints.update(G=C[to_G], h_l=lower[to_G], h_u=upper[to_G])
        # PIQP writes a line to stderr for each pair of infinite bounds.
        if np.isfinite(x_l).any():
            constraints.update(x_l=x_l)
        if np.isfinite(x_u).any():
            constraints.update(x_u=x_u)
        solver.setup(np.asfortranarray(c * P), q, **_fortran(constraints))
        solver.solve()

        result = solver.result
        # The arrays of a result are views of memory that the solver uses again.
        x, nu = np.array(result.x), np.zeros(C.shape[0])
        nu[to_A] = result.y
        nu[to_G] = (result.z_u - result.z_l)[: to_G.size]
        if is_bound.any():
            nu[k:] = np.where(free, (result.z_bu - result.z_bl) / stretch, nu[k:])
        status = _STATUS.get(result.info.status.name, Status.NUMERICAL_ERROR)
        if status > Status.MAX_ITERATIONS:
            x[:], nu[:] = np.nan, np.nan
        elif not (np.isfinite(x).all() and np.isfinite(nu).all()):
            status = Status.NUMERICAL_ERROR
        return _Answer(status, int(result.info.iter), x, nu)


_STATUS = {
    "PIQP_SOLVED": Status.SOLVED,
    "PIQP_MAX_ITER_REACHED": Status.MAX_ITERATIONS,
    "PIQP_PRIMAL_INFEASIBLE": Status.PRIMAL_INFEASIBLE,
    "PIQP_DUAL_INFEASIBLE": Status.DUAL_INFEASIBLE,
}


def _fortran(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: np.asfortranarray(array) for name, array in arrays.items()}


def _check_shapes(rows: Rows) -> None:
    """Refuse what would make PIQP crash; problems that came through ``stack`` always pass."""
    n, count, bounds = rows.n, rows.count, rows.count - rows.p - rows.m
    expected = {"P": (n, n), "q": (n,), "C": (count, n), "lower": (count,), "upper": (count,)}
    for name, core in expected.items():
        t = getattr(rows, name)
        if t.ndim != len(core) + 1 or t.shape[1:] != core or t.shape[0] not in (1, rows.batch):
            shape = ", ".join(map(str, core))
            raise ValueError(
                f"ProximalInteriorPoint: {name} must have shape (1 or {rows.batch}, {shape}); got "
                f"{tuple(t.shape)}. Build the rows with solvers.qp.rows.stack."
            )
    if bounds not in (0, n):
        raise ValueError(
            f"ProximalInteriorPoint: after {rows.p} equalities and {rows.m} inequalities must come "
            f"no rows or {n} bounds; got {bounds}. Build the rows with solvers.qp.rows.stack."
        )
