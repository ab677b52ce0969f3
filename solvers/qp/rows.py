r"""The form in which solvers see a quadratic program: :math:`l \le C x \le u`, one batch dimension."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..solution import Solution
from .quadratic_program import CORE_NDIM, QuadraticProgram


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
        return Rows(
            *(take(t) for t in (self.P, self.q, self.C, self.lower, self.upper)),
            batch, self.p, self.m, self.is_linear,
        )  # fmt: skip


def flat(t: Tensor, core: int, batch_shape: torch.Size) -> Tensor:
    """Merge the leading dimensions of ``t`` to the batch's number, or to 1 if it is shared."""
    lead, rest = t.shape[: t.ndim - core], t.shape[t.ndim - core :]
    if lead.numel() == 1:
        return t.reshape(1, *rest)
    return t.expand(*batch_shape, *rest).reshape(batch_shape.numel(), *rest)


def stack(problem: QuadraticProgram) -> Rows:
    """Stack the constraints of a problem and flatten its batch."""
    shape, n = problem.batch_shape, problem.n
    q = problem.q
    part = {
        name: flat(t, CORE_NDIM[name], shape)
        for name in CORE_NDIM
        if (t := getattr(problem, name)) is not None
    }
    P = part.get("P")
    matrices, lowers, uppers = [], [], []
    if "A" in part:
        matrices.append(part["A"])
        lowers.append(part["b"])
        uppers.append(part["b"])
    if "G" in part:
        matrices.append(part["G"])
        lowers.append(torch.full_like(part["h"], -torch.inf))
        uppers.append(part["h"])
    if "lb" in part or "ub" in part:
        matrices.append(torch.eye(n, dtype=q.dtype, device=q.device)[None])
        lower, upper = part.get("lb"), part.get("ub")
        if lower is None:
            assert upper is not None
            lower = torch.full_like(upper, -torch.inf)
        lowers.append(lower)
        uppers.append(torch.full_like(lower, torch.inf) if upper is None else upper)
    return Rows(
        q.new_zeros(1, n, n) if P is None else torch.add(P, P.mT).mul_(0.5),
        part["q"],
        _concatenate(matrices, q.new_zeros(1, 0, n)),
        _concatenate(lowers, q.new_zeros(1, 0)),
        _concatenate(uppers, q.new_zeros(1, 0)),
        shape.numel(),
        problem.p,
        problem.m,
        P is None,
    )


def _concatenate(parts: list[Tensor], empty: Tensor) -> Tensor:
    """Stack the rows of parts whose batch is 1 or B."""
    if len(parts) < 2:
        return parts[0] if parts else empty
    batch = max(part.shape[0] for part in parts) if min(p.shape[0] for p in parts) else 0
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], 1)


def unstack(multipliers: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``(*, rows)`` into equalities, inequalities and bounds."""
    p, m = rows.p, rows.m
    return multipliers[..., :p], multipliers[..., p : p + m], multipliers[..., p + m :]


def start_of(warm_start: Solution | None, rows: Rows) -> tuple[Tensor, Tensor] | None:
    """The flat ``x`` and multipliers of an earlier solution, or None if it does not fit.

    Failed elements of the earlier solution hold NaN, which says "no guess" to every solver.
    """
    if warm_start is None:
        return None
    x, parts = warm_start.x, [warm_start.y, warm_start.z, warm_start.z_box]
    multipliers = [part.detach() for part in parts if part is not None and part.shape[-1]]
    nu = torch.cat(multipliers, -1) if multipliers else x.new_zeros(*x.shape[:-1], 0)
    if x.shape[-1] != rows.n or nu.shape[-1] != rows.count or x.shape[:-1].numel() != rows.batch:
        raise ValueError(
            f"warm_start: expected a Solution of a problem with the same sizes ({rows.n} variables, "
            f"{rows.count} multipliers, {rows.batch} problems); got {x.shape[-1]}, {nu.shape[-1]} "
            f"and {x.shape[:-1].numel()}. Leave warm_start out where the problem changes shape."
        )
    return (
        x.detach().reshape(rows.batch, rows.n).to(rows.q),
        nu.reshape(rows.batch, rows.count).to(rows.q),
    )
