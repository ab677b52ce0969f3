"""Gradients of quadratic programs from compiled code, and from elsewhere for what it leaves."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers.batch import flat
from solvers.qp import native
from solvers.qp.quadratic_program import DATA_NDIM, Form, Shapes, shapes_of

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
    x = solution[0]
    if not native.is_plain(data[0], x, side.shape[-1]):
        return None
    plan = _plan(shapes_of(data), tuple(needed[:8]), x.shape, side.shape)
    if plan is None:
        return None
    given = [*cotangents, None, None][:6]
    grads, a, singular = native.adjoint(data, solution, side, given, plan.wanted)
    if a is not None:
        _, y, z, _ = solution
        a_x, a_y, a_z, _ = a.split([t.shape[-1] for t in solution], -1)
        factors = {0: (a_x, x, x, a_x), 2: (a_z, x, z, a_x), 4: (a_y, x, y, a_x)}
        for i in plan.by_products:
            product = outer(*factors[i], plan.shapes[i][:-2])
            grads[i] = product if i else 0.5 * product  # P is symmetric
    for i in plan.others:
        g, shape = grads[i], plan.shapes[i]
        if g is not None:
            grads[i] = g.reshape(shape) if plan.wanted.summed[i] else sum_to(g, shape)
    if singular is not None:
        _add_others(grads, singular, data, solution, side, given, elsewhere)
    return grads + [None] * (len(needed) - 8)


class _Plan(NamedTuple):
    """How gradients are to be had.

    Attributes:
        wanted: What compiled code makes.
        shapes: Of the data, empty for what is absent.
        by_products: Matrices that parts of the batch share: products of the adjoint.
        others: Gradients that compiled code makes in another shape.
    """

    wanted: native.Wanted
    shapes: tuple[tuple[int, ...], ...]
    by_products: tuple[int, ...]
    others: tuple[int, ...]


@lru_cache(maxsize=1024)
def _plan(
    shapes: Shapes, needed: tuple[bool, ...], of_x: torch.Size, of_side: torch.Size
) -> _Plan | None:
    """Remembered, as shapes most often come again; None where elements share their solution.

    Args:
        shapes: Of the data.
        needed: Which gradients are asked for.
        of_x: Shape of the solution.
        of_side: Shape of the sides.
    """
    batch_shape = of_side[:-1]
    if of_x[:-1] != batch_shape:
        return None
    G, A = shapes[2], shapes[4]
    n, p, m = of_x[-1], 0 if A is None else A[-2], 0 if G is None else G[-2]
    boxes = of_side[-1] - p - m
    form = Form(batch_shape, n, p, m, boxes)
    asked = [i for i in range(8) if needed[i] and shapes[i] is not None]
    plain = [() if shape is None else tuple(shape) for shape in shapes]
    cores = (n, n), (n,), (m, n), (m,), (p, n), (p,), (n,), (n,)
    shared = [i for i in asked if DATA_NDIM[i] == 2 and plain[i][:-2] != batch_shape]
    # Matrices that all elements share are summed on the way.
    by_all = all(prod(plain[i][:-2]) == 1 for i in shared) and n * (n + p + m + boxes) <= MOST_SUMS
    made: list[tuple[int, ...] | None] = [None] * 8
    for i in asked:
        if i not in shared:
            made[i] = (*batch_shape, *cores[i])
        elif by_all:
            made[i] = cores[i]
    summed = tuple([by_all and i in shared for i in range(8)])
    wanted = native.Wanted(form, tuple(made), summed, bool(shared) and not by_all)
    others = [i for i in asked if made[i] not in (None, plain[i])]
    return _Plan(wanted, tuple(plain), () if by_all else tuple(shared), tuple(others))


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
