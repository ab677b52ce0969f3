"""The linear system of the KKT conditions: which rows are active, and solving with it in numpy."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from solvers._threads import calm
from solvers.qp import kkt, small
from solvers.qp.rows import flat, symmetric

from .batching import legacy_vmap_level
from .function import Tensors


class System(NamedTuple):
    r"""Which rows are active, and a factor of :math:`K` if forward made one.

    Attributes:
        side: ``(*batch, rows)`` integers: 0 inactive, 1 active at the upper end or an equality,
            -1 active at the lower end.
        L: See :class:`solvers.qp.kkt.Factor`; each with the batch dimensions or as many ones.
        M: The same.
        norm: The same.
        rho: The same.
    """

    side: Tensor
    L: Tensor | None = None
    M: Tensor | None = None
    norm: Tensor | None = None
    rho: Tensor | None = None


SYSTEM_NDIM = (1, 2, 2, 1, 0)


def plain_solver(
    P: Tensor | None,
    G: Tensor | None,
    A: Tensor | None,
    n: int,
    batch_shape: torch.Size,
    system: System,
) -> Callable[[Any], Any]:
    """Solve with :math:`K` in numpy: from right-hand sides ``(B, n + rows)`` to solutions."""
    count = system.side.shape[-1]
    active = system.side.reshape(batch_shape.numel(), count) != 0
    matrices = partial(stacked_matrices, P, G, A, n, count, batch_shape)
    if system.L is None:
        quadratic, rows = matrices()
        solve = small.kkt_solver(quadratic.numpy(), rows.numpy(), active.numpy())
        if solve is not None:
            return solve
        with calm():
            factor = kkt.factor_for(quadratic, rows, active)
    else:
        parts = zip(system[1:], SYSTEM_NDIM[1:], strict=True)
        factor = kkt.Factor(*(flat(t, core, batch_shape) for t, core in parts if t is not None))

    def solve_by_factor(right: Any) -> Any:
        r = torch.from_numpy(right)[..., None]
        with calm():
            t_x, t_nu = kkt.solve(matrices, factor, active, r[:, :n], r[:, n:])
        return np.concatenate((t_x.numpy(), t_nu.numpy()), 1)[..., 0]

    return solve_by_factor


def stacked_matrices(
    P: Tensor | None,
    G: Tensor | None,
    A: Tensor | None,
    n: int,
    count: int,
    batch_shape: torch.Size,
) -> tuple[Tensor, Tensor]:
    """The symmetric ``P`` and the matrix of all rows, in flat form."""
    like = next(t for t in (P, G, A, torch.empty(0, dtype=torch.float64)) if t is not None)
    rows = [flat(t, 2, batch_shape) for t in (A, G) if t is not None]
    if count > sum(t.shape[-2] for t in rows):
        rows.append(torch.eye(n, dtype=like.dtype, device=like.device)[None])
    size = max((t.shape[0] for t in rows), default=1)
    C = [t.expand(size, *t.shape[1:]) for t in rows]
    quadratic = like.new_zeros(1, n, n) if P is None else symmetric(flat(P, 2, batch_shape))
    return quadratic, torch.cat(C, 1) if C else like.new_zeros(1, 0, n)


def nobody_differentiates(tensors: Tensors) -> bool:
    """Whether what is computed from these tensors now will not be differentiated in turn."""
    return not (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or legacy_vmap_level() > 0
    )
