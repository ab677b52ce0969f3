"""The linear system of the KKT conditions: which rows are active, and the matrices of all rows."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from solvers.batch import broadcast_shapes, flat
from solvers.qp.rows import symmetric

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
    size = broadcast_shapes(*(t.shape[:1] for t in rows), (1,))[0]
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
