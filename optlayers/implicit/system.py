"""The linear system of the KKT conditions: which rows are active, and solving with it in numpy."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from solvers._threads import calm
from solvers.batch import flat
from solvers.qp import kkt, small
from solvers.qp.rows import symmetric

from .batching import legacy_vmap_level
from .function import Tensors

Floats = NDArray[np.float64]


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


def solve_plainly(
    P: Floats | None, G: Floats | None, A: Floats | None, system: System, right: Floats
) -> Floats:
    """Solve with :math:`K` in numpy, for a right-hand side ``(*batch, n + rows)``."""
    batch_shape, count = system.side.shape[:-1], system.side.shape[-1]
    n = right.shape[-1] - count
    active = system.side.numpy().reshape(batch_shape.numel(), count) != 0
    columns = right.reshape(-1, n + count)
    given = [None if t is None else torch.from_numpy(t) for t in (P, G, A)]
    if system.L is None:
        if len(batch_shape) != 1:
            P, G, A = (None if t is None else flat(t, 2, batch_shape).numpy() for t in given)
        solved = small.kkt_solve(P, [t for t in (A, G) if t is not None], active, columns)
        if solved is not None:
            return solved.reshape(right.shape)
    chosen = torch.from_numpy(active)

    def matrices() -> tuple[Tensor, Tensor]:
        P, G, A = given
        return stacked_matrices(P, G, A, n, count, batch_shape)

    r = torch.from_numpy(columns)[..., None]
    with calm():
        if system.L is None:
            factor = kkt.factor_for(*matrices(), chosen)
        else:
            parts = zip(system[1:], SYSTEM_NDIM[1:], strict=True)
            factor = kkt.Factor(*(flat(t, core, batch_shape) for t, core in parts if t is not None))
        t_x, t_nu = kkt.solve(matrices, factor, chosen, r[:, :n], r[:, n:])
    return np.concatenate((t_x.numpy(), t_nu.numpy()), 1).reshape(right.shape)


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
