r"""Quadratic programs in compiled code of our own: solved and differentiated one after the other.

What is plain (strictly convex, regular where it is solved) is done here from the user's tensors to
the gradients, in some microseconds an element and the same in any company; everything else is left
to the other methods. The code is in ``solvers/qp/c`` and is compiled when the package is installed.
Where it is not there, nothing is plain.
"""

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _threads
from ..batch import flat
from .quadratic_program import QuadraticProgram
from .rows import doubles
from .solver import Outcome

LIBRARY = Path(__file__).parent / "c" / "native.so"
# The form of the structures, which the library must confirm.
INTERFACE = 6
# Variables and rows, together: larger problems belong to libraries whose linear algebra works in
# blocks for the outer caches, and would need 100 MB a thread.
LARGEST = 4000
# Microseconds of work from which a second thread pays.
WORTH_A_THREAD = 50.0

# Address of a tensor, and from one element to the next.
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
    interface.restype = ctypes.c_int64
    if interface() != INTERFACE:
        return None
    for function in (found.optlayers_qp_solve, found.optlayers_qp_adjoint):
        function.restype, function.argtypes = None, [ctypes.c_void_p]
    return found


def is_plain(P: Tensor | None, q: Tensor, rows: int) -> bool:
    """Whether problems with so many rows may be tried at all."""
    if P is None or not q.is_cpu or q.shape[-1] + rows > LARGEST:
        return False
    return library() is not None


class _Call:
    """A call of compiled code: the words of its structures, and the tensors they point into."""

    def __init__(self, shape: torch.Size, n: int, p: int, m: int, boxes: int) -> None:
        self.shape, self.batch, self.is_flat = shape, shape.numel(), len(shape) == 1
        self.sizes = n, p, m, boxes
        self.copies: list[Tensor] = []
        rows = p + m + boxes
        microseconds = self.batch * (1.0 + n * (n + rows) * (n + rows) / 10_000)
        worth_it = microseconds > WORTH_A_THREAD and self.batch > 1
        self.threads = _threads.available() if worth_it else 1
        # Several pieces each, so that nobody waits long for the last one.
        self.pieces = min(4 * self.threads, self.batch) if self.threads > 1 else 1

    def part(self, t: Tensor | None, core: int) -> Part:
        """Where each element's part of ``t`` begins; it is in one piece."""
        if t is None:
            return ABSENT
        if self.batch == 1 and t.is_contiguous() and not t.is_neg():
            return t.data_ptr(), 0
        if not (self.is_flat and t.ndim == core + 1 and t.is_contiguous()) or t.is_neg():
            t = flat(t, core, self.shape)
            whole = core == 0 or (t.stride(-1) == 1 and (core == 1 or t.stride(-2) == t.shape[-1]))
            if not whole or t.is_neg():
                t = t.resolve_neg().contiguous()
            self.copies.append(t)
        return t.data_ptr(), t.stride(0) if t.size(0) > 1 else 0

    def data(self, tensors: Sequence[Tensor | None]) -> tuple[int, ...]:
        """Sizes, and ``P, q, G, h, A, b, lb, ub``."""
        P, q, G, h, A, b, lb, ub = tensors
        part = self.part
        words = (*self.sizes, self.batch, *part(P, 2), *part(q, 1), *part(G, 2), *part(h, 1))
        return words + (*part(A, 2), *part(b, 1), *part(lb, 1), *part(ub, 1))

    def run(
        self, function: Any, words: Sequence[int], eps_abs: float = 0.0, eps_rel: float = 0.0
    ) -> int:
        """Let a function work on the batch, in threads if that pays; how many elements it leaves.

        Args:
            function: Of the library.
            words: The data, and what to do with them.
            eps_abs: Absolute tolerance, where there is one.
            eps_rel: Relative tolerance, where there is one.
        """
        job = bytearray(
            struct.pack(f"6q2d{len(words)}q", 0, 0, self.pieces, 0, 0, 0, eps_abs, eps_rel, *words)
        )
        address = ctypes.addressof(ctypes.c_char.from_buffer(job))
        if self.threads > 1:
            _threads.work_together(function, address, self.threads)
        else:
            function(address)
        left_over, no_memory = struct.unpack_from("2q", job, 4 * 8)
        if no_memory:
            raise MemoryError(f"no memory for a quadratic program with {self.sizes[0]} variables.")
        return left_over  # type: ignore[no-any-return]


def solve(
    problem: QuadraticProgram, guess: Tensor | None, eps_abs: float, eps_rel: float, max_iter: int
) -> tuple[Outcome, int] | None:
    """Solve what is plain.

    Args:
        problem: In float64.
        guess: Multipliers ``(B, rows)`` whose signs say which rows may be active, and where.
        eps_abs: Absolute tolerance of the verdict.
        eps_rel: Relative tolerance of the verdict.
        max_iter: Changes of the active set allowed.

    Returns:
        The outcome, and how many elements are unsettled: there its status is not zero, and what it
        holds is not of use. None if nothing is plain.
    """
    q, lb, ub = problem.q, problem.lb, problem.ub
    n, p, m, boxes = problem.n, problem.p, problem.m, 0 if lb is ub is None else problem.n
    rows = p + m + boxes
    if not is_plain(problem.P, q, rows):
        return None
    call = _Call(problem.batch_shape, n, p, m, boxes)
    batch, empty = call.batch, doubles
    words = call.data((problem.P, q, problem.G, problem.h, problem.A, problem.b, lb, ub))
    vectors = empty(batch, n), empty(batch, p), empty(batch, m), empty(batch, boxes)
    s, objective, primal, dual, gap = empty(batch, m), *[empty(batch) for _ in range(4)]
    status = torch.from_numpy(np.empty(batch, np.int64))
    iterations = torch.from_numpy(np.empty(batch, np.int64))
    side = torch.from_numpy(np.empty((batch, rows), np.int8))
    tensors = *vectors, s, objective, status, iterations, primal, dual, gap, side
    words += (max_iter, *call.part(guess, 1), *[t.data_ptr() for t in tensors])
    unsettled = call.run(library().optlayers_qp_solve, words, eps_abs, eps_rel)
    return Outcome(*tensors), unsettled


def adjoint(
    data: Sequence[Tensor | None],
    solution: Sequence[Tensor],
    side: Tensor,
    cotangents: Sequence[Tensor | None],
    wanted: Sequence[bool],
    with_adjoint: bool = False,
    summed: Sequence[bool] = (False,) * 8,
) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    r"""Gradients of each element, from the KKT conditions on its active rows.

    Args:
        data: ``P, q, G, h, A, b, lb, ub``.
        solution: ``x, y, z, z_box``, each ``(*batch, ...)``.
        side: ``(*batch, rows)``, 8-bit integers: 0 where a row is not active.
        cotangents: Of ``x, y, z, z_box, s, objective``; None for zero.
        wanted: Which gradients to make for each element.
        with_adjoint: Whether to return what outer products are made of.
        summed: Of which matrices to make the sum of the gradients over the batch.

    Returns:
        Gradients ``(*batch, ...)``, or without the batch's dimensions, None for those not wanted;
        :math:`a` with shape ``(*batch, n + rows)``: the gradient of ``G`` is
        :math:`a_z x^\top + z a_x^\top`; and which elements have a KKT matrix that is nearly
        singular, boolean ``(B)``, or None if none has: other methods have to look there, and all of
        the above is zero.
    """
    x, y, z, z_box = (t.contiguous() for t in solution)
    shape = side.shape[:-1]
    n, p, m, boxes = x.shape[-1], y.shape[-1], z.shape[-1], z_box.shape[-1]
    call = _Call(shape, n, p, m, boxes)
    part = call.part
    P, _, G, _, A, *_ = data  # the vectors do not enter
    words = call.data((P, None, G, None, A, None, None, None))
    of_x, of_y, of_z, of_box, of_s, of_value = cotangents
    side = side.contiguous()
    cores = (n, n), (n,), (m, n), (m,), (p, n), (p,), (n,), (n,)
    grads = [
        doubles(*shape, *core) if want else doubles(*core) if total else None
        for want, total, core in zip(wanted, summed, cores, strict=True)
    ]
    a = doubles(*shape, n + p + m + boxes) if with_adjoint else None
    sums = None
    if any(summed):  # compiled code wants it to begin where registers do, as torch's memory does
        sums = torch.zeros(call.pieces, n + p + m, (n + 7) // 8 * 8, dtype=torch.float64)
    singular = torch.from_numpy(np.empty(call.batch, np.bool_))
    words += (x.data_ptr(), n, y.data_ptr(), p, z.data_ptr(), m, z_box.data_ptr(), boxes)
    words += (side.data_ptr(), *part(of_x, 1), *part(of_y, 1), *part(of_z, 1), *part(of_box, 1))
    words += (*part(of_s, 1), *part(of_value, 0))
    own = [g if want else None for g, want in zip(grads, wanted, strict=True)]
    totals = [grads[i] if summed[i] else None for i in (0, 2, 4)]
    words += tuple([0 if t is None else t.data_ptr() for t in (*own, a, sums, *totals)])
    words += (singular.data_ptr(),)
    some = call.run(library().optlayers_qp_adjoint, words)
    return grads, a, singular if some else None
