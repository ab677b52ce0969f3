r"""Quadratic programs in compiled code of our own: solved and differentiated one after the other.

What is plain (strictly convex, regular where it is solved) is done here from the user's tensors to
the gradients, in some microseconds an element and the same in any company; everything else is left
to the other methods. The code is in ``solvers/c`` and is compiled when the package is installed.
Where it is not there, nothing is plain.
"""

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _threads
from .._native import library, word
from ..batch import flat
from .quadratic_program import Form, QuadraticProgram
from .solver import Outcome

# Variables and rows, together: larger problems belong to libraries whose linear algebra works in
# blocks for the outer caches, and would need 100 MB a thread.
LARGEST = 4000
# Microseconds of work from which a second thread pays.
WORTH_A_THREAD = 50.0

# Memory from numpy, which asks the system for huge pages, as tensors; each call counts here.
_new, _empty = torch.from_numpy, np.empty

# Address of a tensor, and from one element to the next.
Part = tuple[int, int]
ABSENT: Part = (0, 0)


def is_plain(P: Tensor | None, q: Tensor, rows: int) -> bool:
    """Whether problems with so many rows may be tried at all."""
    if P is None or not q.is_cpu or q.shape[-1] + rows > LARGEST:
        return False
    return library() is not None


class _Call:
    """A call of compiled code: the words of its structures, and the tensors they point into."""

    def __init__(self, form: Form) -> None:
        self.shape, n, p, m, boxes = form
        self.batch, self.is_flat = self.shape.numel(), len(self.shape) == 1
        self.sizes = n, p, m, boxes
        self.copies: list[Tensor] = []
        self.threads = self.pieces = 1
        if self.batch > 1:
            side = n + p + m + boxes
            if self.batch * (1.0 + n * side * side / 10_000) > WORTH_A_THREAD:
                self.threads = _threads.available()
                # Several pieces each, so that nobody waits long for the last one.
                self.pieces = min(4 * self.threads, self.batch) if self.threads > 1 else 1

    def part(self, t: Tensor | None, core: int) -> Part:
        """Where each element's part of ``t`` begins; it is in one piece."""
        if t is None:
            return ABSENT
        address = t.data_ptr()
        if not address and t.numel():
            raise TypeError(
                f"qp: data must be tensors with memory of their own; got {type(t).__name__}, which "
                "has none. Pass plain tensors."
            )
        if self.batch == 1 and t.is_contiguous() and not t.is_neg():
            return address, 0
        if not (self.is_flat and t.ndim == core + 1 and t.is_contiguous()) or t.is_neg():
            t = flat(t, core, self.shape)
            whole = core == 0 or (t.stride(-1) == 1 and (core == 1 or t.stride(-2) == t.shape[-1]))
            if not whole or t.is_neg():
                t = t.resolve_neg().contiguous()
            self.copies.append(t)
        return t.data_ptr(), t.stride(0) if t.size(0) > 1 else 0

    def data(
        self,
        P: Tensor | None,
        G: Tensor | None,
        A: Tensor | None,
        q: Tensor | None = None,
        h: Tensor | None = None,
        b: Tensor | None = None,
        lb: Tensor | None = None,
        ub: Tensor | None = None,
    ) -> tuple[int, ...]:
        """Sizes and data; derivatives do without the vectors."""
        part = self.part
        words = (*self.sizes, self.batch, *part(P, 2), *part(q, 1), *part(G, 2), *part(h, 1))
        return words + (*part(A, 2), *part(b, 1), *part(lb, 1), *part(ub, 1))

    def run(self, function: Any, words: Sequence[int], tolerances: tuple[int, int] = (0, 0)) -> int:
        """Let a function work on the batch, in threads if that pays; how many elements it leaves.

        Args:
            function: Of the library.
            words: The data, and what to do with them.
            tolerances: The absolute and the relative one, as words, where there are such.
        """
        job = array("q", (0, 0, self.pieces, 0, 0, 0, *tolerances, *words))
        address, _ = job.buffer_info()
        if self.threads > 1:
            _threads.work_together(function, address, self.threads)
        else:
            function(address)
        left_over, no_memory = job[4], job[5]
        if no_memory:
            raise MemoryError(f"no memory for a quadratic program with {self.sizes[0]} variables.")
        return left_over


def solve(
    problem: QuadraticProgram, guess: Tensor | None, eps_abs: float, eps_rel: float, max_iter: int
) -> tuple[Outcome, int] | None:
    """Solve what is plain.

    Args:
        problem: In float64.
        guess: Multipliers ``(1 or B, rows)`` whose signs say which rows may be active, and where.
        eps_abs: Absolute tolerance of the verdict.
        eps_rel: Relative tolerance of the verdict.
        max_iter: Changes of the active set allowed.

    Returns:
        The outcome, and how many elements are unsettled: there its status is not zero, and what it
        holds is not of use. None if nothing is plain.
    """
    q, form = problem.q, problem.form
    _, n, p, m, boxes = form
    rows = p + m + boxes
    if not is_plain(problem.P, q, rows):
        return None
    call = _Call(form)
    batch = call.batch
    matrices, bounds = (problem.P, problem.G, problem.A), (problem.lb, problem.ub)
    words = call.data(*matrices, q, problem.h, problem.b, *bounds)
    x, y, z, z_box, s = [_new(_empty((batch, size))) for size in (n, p, m, boxes, m)]
    objective, primal, dual, gap = [_new(_empty(batch)) for _ in range(4)]
    status, iterations = _new(_empty(batch, np.int64)), _new(_empty(batch, np.int64))
    side = _new(_empty((batch, rows), np.int8))
    tensors = x, y, z, z_box, s, objective, status, iterations, primal, dual, gap, side
    if guess is None:
        words += (max_iter, *ABSENT)
    else:
        guess = guess.resolve_neg().contiguous()
        words += (max_iter, guess.data_ptr(), rows if len(guess) > 1 else 0)
    words += tuple([t.data_ptr() for t in tensors])
    tolerances = word(eps_abs), word(eps_rel)
    unsettled = call.run(library().optlayers_qp_solve, words, tolerances)
    return Outcome(*tensors), unsettled


class Wanted(NamedTuple):
    """Which gradients to make.

    Attributes:
        form: Of the program.
        shapes: Of the gradients of ``P, q, G, h, A, b, lb, ub``, with the batch's dimensions, or
            for matrices summed over them; None for those not wanted.
        summed: Which of them are summed.
        with_adjoint: Whether to return what outer products are made of.
    """

    form: Form
    shapes: tuple[tuple[int, ...] | None, ...]
    summed: tuple[bool, ...]
    with_adjoint: bool


def adjoint(
    data: Sequence[Tensor | None],
    solution: Sequence[Tensor],
    side: Tensor,
    cotangents: Sequence[Tensor | None],
    wanted: Wanted,
) -> tuple[list[Tensor | None], Tensor | None, Tensor | None]:
    r"""Gradients of each element, from the KKT conditions on its active rows.

    Args:
        data: ``P, q, G, h, A, b, lb, ub``.
        solution: ``x, y, z, z_box``, each ``(*batch, ...)``.
        side: ``(*batch, rows)``, 8-bit integers: 0 where a row is not active.
        cotangents: Of ``x, y, z, z_box, s, objective``; None for zero.
        wanted: Which gradients to make.

    Returns:
        The gradients, None for those not wanted; :math:`a` with shape ``(*batch, n + rows)``: the
        gradient of ``G`` is :math:`a_z x^\top + z a_x^\top`; and which elements have a KKT matrix
        that is nearly singular, boolean ``(B)``, or None if none has: other methods have to look
        there, and all of the above is zero.
    """
    x, y, z, z_box = [t.contiguous() for t in solution]
    call = _Call(wanted.form)
    part = call.part
    shape, n, p, m, boxes = wanted.form
    words = call.data(data[0], data[2], data[4])
    of_x, of_y, of_z, of_box, of_s, of_value = cotangents
    side = side.contiguous()
    grads = [None if size is None else _new(_empty(size)) for size in wanted.shapes]
    places = [0 if t is None else t.data_ptr() for t in grads]
    a = _new(_empty((*shape, n + p + m + boxes))) if wanted.with_adjoint else None
    sums, totals = None, [0, 0, 0]
    if any(wanted.summed):
        # Compiled code wants them to begin where registers do, as torch's memory does.
        sums = torch.zeros(call.pieces, n + p + m, (n + 7) // 8 * 8, dtype=torch.float64)
        for i, summed in enumerate(wanted.summed):
            if summed:
                totals[i // 2], places[i] = places[i], 0
    singular = array("b", bytes(call.batch))
    words += (x.data_ptr(), n, y.data_ptr(), p, z.data_ptr(), m, z_box.data_ptr(), boxes)
    words += (side.data_ptr(), *part(of_x, 1), *part(of_y, 1), *part(of_z, 1), *part(of_box, 1))
    words += (*part(of_s, 1), *part(of_value, 0), *places)
    words += (0 if a is None else a.data_ptr(), 0 if sums is None else sums.data_ptr(), *totals)
    words += (singular.buffer_info()[0],)
    some = call.run(library().optlayers_qp_adjoint, words)
    return grads, a, torch.frombuffer(singular, dtype=torch.bool) if some else None
