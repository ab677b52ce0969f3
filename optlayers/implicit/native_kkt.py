"""Gradients of quadratic programs from compiled code, and from elsewhere for what it leaves."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from solvers.batch import flat
from solvers.qp import native
from solvers.qp.quadratic_program import DATA_NDIM

from .batching import outer, sum_to
from .function import Tensors

# Entries of the gradients of shared matrices up to which each piece of a batch has sums of its own.
MOST_SUMS = 1 << 20
# Of x, y, z, z_box, s, objective.
COTANGENT_NDIM = (1, 1, 1, 1, 1, 0)
# Data, solution, sides and cotangents of some elements; returns the gradients.
Elsewhere = Callable[[Tensors, Sequence[Tensor], Tensor, Tensors], list[Tensor | None]]


def pull_back_natively(
    data: Tensors,
    solution: Sequence[Tensor],
    side: Tensor,
    cotangents: Tensors,
    needed: Sequence[bool],
    elsewhere: Elsewhere,
) -> list[Tensor | None] | None:
    """What ``pull_back`` of :mod:`~optlayers.implicit.kkt` returns, where nobody differentiates it.

    Args:
        data: ``P, q, G, h, A, b, lb, ub``.
        solution: ``x, y, z, z_box``.
        side: See :class:`~optlayers.implicit.system.System`.
        cotangents: Of ``x, y, z, z_box`` and perhaps of ``s, objective``; None for zero.
        needed: Which gradients are asked for.
        elsewhere: Does the same for a flat batch of elements whose KKT matrix is singular.

    Returns:
        The gradients, or None for programs that compiled code does not take.
    """
    x, shape = solution[0], side.shape[:-1]
    if x.shape[:-1] != shape or not native.is_plain(data[0], x, side.shape[-1]):
        return None
    own, shared = [False] * 8, []
    for i, (t, core) in enumerate(zip(data, DATA_NDIM, strict=True)):
        if t is not None and needed[i]:
            own[i] = core == 1 or t.shape[:-2] == shape
            if not own[i]:
                shared.append((i, t))
    # Matrices that all elements share are summed on the way.
    n, rows = x.shape[-1], side.shape[-1]
    by_all = all(t.shape[:-2].numel() == 1 for _, t in shared) and n * (n + rows) <= MOST_SUMS
    given = [*cotangents, None, None][:6]
    summed = [False] * 8
    for i, _ in shared if by_all else ():
        summed[i] = True
    grads, a, singular = native.adjoint(
        data, solution, side, given, own, bool(shared) and not by_all, summed
    )
    if a is not None:
        _, y, z, _ = solution
        a_x, a_y, a_z, _ = a.split([t.shape[-1] for t in solution], -1)
        factors = {0: (a_x, x, x, a_x), 2: (a_z, x, z, a_x), 4: (a_y, x, y, a_x)}
        for i, t in shared:
            product = outer(*factors[i], t.shape[:-2])
            grads[i] = product if i else 0.5 * product  # P is symmetric
    for i, (t, g) in enumerate(zip(data, grads, strict=True)):
        if t is not None and g is not None and g.shape != t.shape:
            grads[i] = g.reshape(t.shape) if summed[i] else sum_to(g, t.shape)
    if singular is not None:
        _add_others(grads, singular, data, solution, side, given, elsewhere)
    return grads + [None] * (len(needed) - 8)


def _add_others(
    grads: list[Tensor | None],
    chosen: Tensor,
    data: Tensors,
    solution: Sequence[Tensor],
    side: Tensor,
    cotangents: Tensors,
    elsewhere: Elsewhere,
) -> None:
    """Add gradients of elements whose part of ``grads`` is zero; the others keep their bits."""
    shape = side.shape[:-1]

    def pick(t: Tensor | None, core: int) -> Any:
        whole = None if t is None else flat(t, core, shape)
        return whole if whole is None or len(whole) != shape.numel() else whole[chosen]

    some = [pick(t, core) for t, core in zip(data, DATA_NDIM, strict=True)]
    found = elsewhere(
        some,
        [pick(t, 1) for t in solution],
        pick(side, 1),
        [pick(g, core) for g, core in zip(cotangents, COTANGENT_NDIM, strict=True)],
    )
    for i, (g, t, core) in enumerate(zip(found, data, DATA_NDIM, strict=False)):
        total = grads[i]
        if g is None or t is None or total is None:
            continue
        rest = t.shape[t.ndim - core :]
        if len(flat(t, core, shape)) == shape.numel():
            whole = t.new_zeros(shape.numel(), *rest)
            whole[chosen] = g
            g = sum_to(whole.reshape(*shape, *rest), t.shape)
        total += g.reshape(t.shape)
