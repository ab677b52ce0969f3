r"""Quadratic programs in compiled code of our own: solved and differentiated one after the other.

What is plain (strictly convex, regular where it is solved) is done here from the user's tensors to
the gradients, in some microseconds an element and the same in any company; everything else is left
to the other methods. The code is in ``solvers/qp/c`` and is compiled when the package is installed.
Where it is not there, nothing is plain.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _threads
from ..batch import flat
from .quadratic_program import CORE_NDIM, QuadraticProgram
from .solver import Outcome

LIBRARY = Path(__file__).parent / "c" / "native.so"
# The form of the structures, which the library must confirm.
INTERFACE = 1
# Larger problems belong to libraries whose linear algebra works in blocks for the outer caches.
LARGEST = 600
# Microseconds of work from which a second thread pays.
WORTH_A_THREAD = 100.0

# Pointers and strides of one tensor.
Part = tuple[int, int]
ABSENT: Part = (0, 0)


@cache
def library() -> Any:
    """The compiled functions, or None where they were not compiled, or for another release."""
    try:
        found = ctypes.CDLL(str(LIBRARY))
        interface = found.optlayers_qp_interface
    except (OSError, AttributeError):
        return None
    word, number = ctypes.c_int64, ctypes.c_double
    interface.restype = word
    if interface() != INTERFACE:
        return None
    for function in (found.optlayers_qp_solve, found.optlayers_qp_adjoint):
        function.restype = word
    found.optlayers_qp_solve.argtypes = [ctypes.c_void_p] * 2 + [word] * 2 + [number] * 2
    found.optlayers_qp_adjoint.argtypes = [ctypes.c_void_p] * 2 + [word] * 2
    return found


def is_plain(P: Tensor | None, q: Tensor, rows: int) -> bool:
    """Whether problems with so many rows may be tried at all."""
    if P is None or q.device.type != "cpu" or q.shape[-1] + rows > LARGEST:
        return False
    return library() is not None


class _Call:
    """The arguments of a call: words for its structures, and the tensors they point into."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape, self.batch = shape, shape.numel()
        self.alive: list[Tensor] = []

    def part(self, t: Tensor | None, core: int) -> Part:
        """Where each element's part of ``t`` begins; it is in one piece."""
        if t is None:
            return ABSENT
        if t.ndim != core + 1 or t.shape[:1] != self.shape:
            t = flat(t, core, self.shape)
        if not t.is_contiguous() or t.is_neg():
            whole = core == 0 or (t.stride(-1) == 1 and (core == 1 or t.stride(-2) == t.shape[-1]))
            if not whole or t.is_neg():
                t = t.resolve_neg().contiguous()
        self.alive.append(t)
        return t.data_ptr(), t.stride(0) if t.shape[0] > 1 else 0

    def data(
        self, sizes: Sequence[int], tensors: Sequence[Tensor | None]
    ) -> "ctypes.Array[ctypes.c_int64]":
        """Sizes ``n, p, m, boxes``, and ``P, q, G, h, A, b, lb, ub``."""
        found = [*sizes, self.batch]
        for t, core in zip(tensors, CORE_NDIM.values(), strict=True):
            found += self.part(t, core)
        return words(found)

    def run(self, function: Callable[[int, int], int], sizes: Sequence[int]) -> int:
        """Call the function on ranges of the batch, in threads if that pays; the sum it returns."""
        n, p, m, boxes = sizes
        rows = p + m + boxes
        microseconds = self.batch * (1.0 + n * (n + rows) * (n + rows) / 10_000)
        threads = _threads.available() if microseconds > WORTH_A_THREAD else 1
        if threads == 1 or self.batch < 2:
            found = [function(0, self.batch)]
        else:
            pieces = _threads.split(self.batch, 4 * threads if microseconds > 2000 else threads)
            found = _threads.spread(lambda ends: function(*ends), pieces)
        if min(found) < 0:
            raise MemoryError("no memory for a quadratic program; reduce its size.")
        return sum(found)


def words(numbers: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    """A structure whose entries all have eight bytes."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def solve(
    problem: QuadraticProgram, guess: Tensor | None, eps_abs: float, eps_rel: float, max_iter: int
) -> Outcome | None:
    """Solve what is plain.

    Args:
        problem: In float64.
        guess: Multipliers ``(B, rows)`` whose signs say which rows may be active, and where.
        eps_abs: Absolute tolerance of the verdict.
        eps_rel: Relative tolerance of the verdict.
        max_iter: Changes of the active set allowed.

    Returns:
        The outcome, whose status is not zero where other methods have to look; what it holds there
        is not of use. None if nothing is plain.
    """
    n, p, m = problem.n, problem.p, problem.m
    boxes = 0 if problem.lb is problem.ub is None else n
    rows = p + m + boxes
    if not is_plain(problem.P, problem.q, rows):
        return None
    call = _Call(problem.batch_shape)
    batch, q = call.batch, problem.q
    sizes = n, p, m, boxes
    tensors = (problem.P, q, problem.G, problem.h, problem.A, problem.b, problem.lb, problem.ub)
    data = call.data(sizes, tensors)
    empty, double, integer = torch.empty, torch.float64, torch.int64
    found = [empty((batch, k), dtype=double) for k in (n, rows, m)]
    found.append(empty(batch, dtype=double))
    found += [empty(batch, dtype=integer), empty(batch, dtype=integer)]
    found += [empty(batch, dtype=double) for _ in range(3)]
    found.append(empty((batch, rows), dtype=torch.int8))
    out = words([max_iter, *call.part(guess, 1), *[t.data_ptr() for t in found]])
    function = library().optlayers_qp_solve
    call.run(lambda low, high: function(data, out, low, high, eps_abs, eps_rel), sizes)
    return Outcome.of(found)


def adjoint(
    data: Sequence[Tensor | None],
    solution: Sequence[Tensor],
    side: Tensor,
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
    with_adjoint: bool,
) -> tuple[list[Tensor | None], Tensor | None] | None:
    r"""Gradients of each element, from the KKT conditions on its active rows.

    Args:
        data: ``P, q, G, h, A, b, lb, ub``.
        solution: ``x, y, z, z_box``, each ``(*batch, ...)``.
        side: ``(*batch, rows)``, 8-bit integers: 0 where a row is not active.
        cotangents: Of ``x, y, z, z_box, s, objective``; None for zero.
        wanted: Which gradients to make.
        with_adjoint: Whether to return what outer products are made of.

    Returns:
        Gradients ``(*batch, ...)``, None for those not wanted, and :math:`a` with shape
        ``(*batch, n + rows)``: the gradient of ``G`` is :math:`a_z x^\top + z a_x^\top`. None if an
        element's KKT matrix is nearly singular.
    """
    x, shape = solution[0], side.shape[:-1]
    n, p, m, boxes = (t.shape[-1] for t in solution)
    sizes = n, p, m, boxes
    call = _Call(shape)
    problem = call.data(sizes, data)
    side = side.contiguous()
    entries: list[int] = []
    for t in solution:
        entries += call.part(t if t.shape[-1] else None, 1)
    entries.append(side.data_ptr())
    for g, core in zip(cotangents, (1, 1, 1, 1, 1, 0), strict=True):
        entries += call.part(g, core)
    cores = (n, n), (n,), (m, n), (m,), (p, n), (p,), (n,), (n,)
    grads = [
        torch.empty((*shape, *core), dtype=x.dtype) if want else None
        for want, core in zip(wanted, cores, strict=True)
    ]
    a = torch.empty((*shape, n + p + m + boxes), dtype=x.dtype) if with_adjoint else None
    task = words([*entries, *[0 if t is None else t.data_ptr() for t in (*grads, a)]])
    function = library().optlayers_qp_adjoint
    singular = call.run(lambda low, high: function(problem, task, low, high), sizes)
    return None if singular else (grads, a)
