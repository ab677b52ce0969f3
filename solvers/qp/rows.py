r"""How solvers see a quadratic program: :math:`l \le C x \le u` with one batch dimension."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._threads import available, split
from ..batch import flat
from ..solution import Solution
from .quadratic_program import QuadraticProgram


@dataclass(eq=False)
class Rows:
    r"""A flat batch: equalities, inequalities and bounds stacked as two-sided rows.

    A leading dimension of 1 says that the whole batch shares the tensor, so that solvers factor it
    once. A row's multiplier is positive at its upper end and negative at its lower end, which gives
    ``y``, ``z`` and ``z_box`` their signs.

    Attributes:
        P: Symmetric ``(1 or B, n, n)``; zeros for a linear program.
        q: ``(1 or B, n)``.
        C: ``(1 or B, rows, n)``.
        lower: ``(1 or B, rows)``, possibly minus infinity.
        upper: ``(1 or B, rows)``, possibly infinity.
        batch: Number of problems ``B``.
        p: The first ``p`` rows are equalities.
        m: The next ``m`` rows are inequalities; the rest are bounds.
        is_linear: Whether ``P`` is absent.
    """

    P: Tensor
    q: Tensor
    C: Tensor
    lower: Tensor
    upper: Tensor
    batch: int
    p: int
    m: int
    is_linear: bool = False

    @property
    def n(self) -> int:
        """Number of variables."""
        return self.q.shape[-1]

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.C.shape[-2]

    @property
    def fixed(self) -> Tensor:
        """Which rows are equalities, by position or because their ends meet: ``(1 or B, rows)``."""
        return self.lower == self.upper

    def pick(self, index: Tensor | slice) -> "Rows":
        """The problems of the batch at ``index``; what is shared stays shared."""

        def take(t: Tensor) -> Tensor:
            return t[index] if t.shape[0] == self.batch and self.batch > 1 else t

        batch = torch.empty(self.batch, device="cpu")[index].shape[0]
        if batch == self.batch == 1:
            return self
        P, q, C, lower, upper = map(take, (self.P, self.q, self.C, self.lower, self.upper))
        return Rows(P, q, C, lower, upper, batch, self.p, self.m, self.is_linear)


# Entries of the matrices stacked at a time, 4 MB: temporaries of this size stay in the outer cache,
# and the allocator hands them out again instead of asking the system for fresh pages.
PIECE_ENTRIES = 1 << 19
# Entries that are work for two milliseconds; with less, threads cost more than they save.
WORTH_A_THREAD = 1 << 17


def pieces(problem: QuadraticProgram) -> list[tuple[int, int]]:
    """Cut a batch into ranges, so that caches hold one of them and every thread has one."""
    batch, n = problem.batch_shape.numel(), problem.n
    matrices = [t for t in (problem.P, problem.G, problem.A) if t is not None]
    if problem.q.device.type != "cpu" or all(t.shape[:-2].numel() == 1 for t in matrices):
        return [(0, batch)]  # shared matrices are factored once; elsewhere, parallelism counts
    rows = problem.p + problem.m + problem.form.boxes
    entries, threads = batch * n * (n + rows), available()
    count = max(-(-entries // PIECE_ENTRIES), min(threads, entries // WORTH_A_THREAD), 1)
    if count > 1:
        count = threads * -(-count // threads)  # nobody waits for a last piece
    return split(batch, count) if batch else [(0, 0)]


def stack(problem: QuadraticProgram, low: int = 0, high: int | None = None) -> Rows:
    """Stack the constraints of a problem and flatten its batch.

    Args:
        problem: The batch of problems.
        low: First problem, counted in the flat batch.
        high: One past the last problem; None for all.
    """
    shape, n, q = problem.batch_shape, problem.n, problem.q
    batch = shape.numel()
    high = batch if high is None else high

    def part(t: Tensor | None, core: int) -> Tensor | None:
        if t is None:
            return None
        t = flat(t, core, shape).resolve_neg()  # which numpy does not do
        return t if t.shape[0] != batch or high - low == batch else t[low:high]

    P, linear_term = part(problem.P, 2), part(q, 1)
    assert linear_term is not None
    matrices = part(problem.A, 2), part(problem.G, 2)
    vectors = part(problem.b, 1), part(problem.h, 1), part(problem.lb, 1), part(problem.ub, 1)
    C, lower, upper = _stack(n, *matrices, *vectors, like=q)
    P_or_zero = q.new_zeros(1, n, n) if P is None else symmetric(P)
    return Rows(
        P_or_zero, linear_term, C, lower, upper, high - low, problem.p, problem.m, P is None
    )


def _stack(
    n: int,
    A: Tensor | None,
    G: Tensor | None,
    b: Tensor | None,
    h: Tensor | None,
    lb: Tensor | None,
    ub: Tensor | None,
    *,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows' matrix and their ends, from parts whose batch is 1 or B each."""
    p, m = (0 if t is None else t.shape[-2] for t in (A, G))
    count = p + m + (0 if lb is ub is None else n)
    batch_C = max((t.shape[0] for t in (A, G) if t is not None), default=1)
    batch_ends = max((t.shape[0] for t in (b, h, lb, ub) if t is not None), default=1)
    if 0 in (t.shape[0] for t in (A, G, b, h, lb, ub) if t is not None):
        batch_C = batch_ends = 0
    if m == count and G is not None and h is not None:  # nothing to copy
        return G, torch.full_like(h, -torch.inf), h
    C = empty(like, batch_C, count, n)
    lower, upper = empty(like, batch_ends, count), empty(like, batch_ends, count)
    if A is not None and b is not None:
        C[:, :p], lower[:, :p], upper[:, :p] = A, b, b
    if G is not None and h is not None:
        C[:, p : p + m], lower[:, p : p + m], upper[:, p : p + m] = G, -torch.inf, h
    if count > p + m:
        C[:, p + m :] = torch.eye(n, dtype=like.dtype, device=like.device)
        lower[:, p + m :] = -torch.inf if lb is None else lb
        upper[:, p + m :] = torch.inf if ub is None else ub
    return C, lower, upper


def empty(like: Tensor, *shape: int) -> Tensor:
    """Uninitialised memory like a tensor's."""
    if like.device.type == "cpu" and like.dtype == torch.float64:
        return torch.from_numpy(np.empty(shape))  # which asks the system for huge pages
    return like.new_empty(shape)


def symmetric(P: Tensor) -> Tensor:
    """The symmetric part; ``P`` itself where it is symmetric, for a copy costs as much as a solve.

    On a CPU the question is put to one vector with unrelated entries: its products with ``P`` and
    with the transpose differ unless the two matrices are the same to rounding.
    """
    if P.device.type == "cpu" and P.dtype == torch.float64:
        matrix = P.numpy()
        probe = np.modf(np.arange(1.0, P.shape[-1] + 1) * 0.6180339887498949)[0] + 0.5
        with np.errstate(invalid="ignore", over="ignore"):
            left, right = matrix @ probe, matrix.mT @ probe
            # Entries of a semidefinite matrix are bounded by its diagonal, so rounding is, too.
            root = np.sqrt(abs(np.diagonal(matrix, axis1=-2, axis2=-1)))
            allowed = 1e-12 * root * (root @ probe)[..., None]
            differ = (abs(left - right) > allowed).any(-1)
        if not differ.any():
            return P
        # Only those that need it: what happens to one does not depend on the others.
        index = torch.from_numpy(differ)
        P = P.clone()
        P[index] = 0.5 * (P[index] + P[index].mT)
        return P
    return torch.add(P, P.mT).mul_(0.5)


def unstack(multipliers: Tensor, like: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``(*, rows)`` into equalities, inequalities and bounds."""
    p, m = like.p, like.m
    return multipliers[..., :p], multipliers[..., p : p + m], multipliers[..., p + m :]


def inequalities(t: Tensor, rows: Rows) -> Tensor:
    """The part of ``(*, rows)`` that belongs to the inequalities."""
    return t[..., rows.p : rows.p + rows.m]


def start_of(
    warm_start: Solution | None, problem: QuadraticProgram
) -> tuple[Tensor, Tensor] | None:
    """The flat ``x`` and multipliers of an earlier solution.

    Failed elements of the earlier solution hold NaN, which says "no guess" to every solver.

    Raises:
        ValueError: If the earlier problem had other sizes.
    """
    if warm_start is None:
        return None
    parts = [t for t in (warm_start.y, warm_start.z, warm_start.z_box) if t is not None]
    shape, n, *sizes = problem.form
    wanted = (shape, n, tuple(sizes))
    x = warm_start.x
    given = (x.shape[:-1], x.shape[-1], tuple(t.shape[-1] for t in parts))
    if given != wanted:
        raise ValueError(
            "warm_start: expected a Solution of a problem of the same batch shape, number of "
            f"variables and numbers of equalities, inequalities and bounds, {wanted}; got {given}. "
            "Leave warm_start out where the problem changes size."
        )
    nu = torch.cat(parts, -1)
    q, batch = problem.q, problem.batch_shape.numel()
    return x.detach().reshape(batch, n).to(q), nu.detach().reshape(batch, nu.shape[-1]).to(q)
