r"""Quadratic programs as a differentiable function."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from solvers.batch import flat
from solvers.qp.choose import Automatic
from solvers.qp.kkt import Factor
from solvers.qp.quadratic_program import (
    CORE_NDIM,
    DATA_NDIM,
    Form,
    QuadraticProgram,
    check,
    fit,
    shapes_of,
)
from solvers.qp.solver import Outcome, QPSolver, unflatten
from solvers.solution import Solution, Status

from .box import for_all
from .exact import Exact, check_adjoint
from .failure import OnFailure, check_policy, paint, report
from .implicit.batching import batch_first
from .implicit.function import Tensors, solve_implicitly
from .implicit.kkt import KKTConditions
from .implicit.system import System
from .smoothed import Smoothed, smooth_solution

if TYPE_CHECKING:
    from solvers.cone.solver import ConeSolver

# The second for data in single precision or less, whose dependent rows contradict by rounding.
EXACT, ROUGH = Automatic(), Automatic(1e-6, 1e-6)


def qp(
    P: Tensor | None,
    q: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    lb: Tensor | float | None = None,
    ub: Tensor | float | None = None,
    *,
    solver: "QPSolver | ConeSolver | None" = None,
    adjoint: Exact | Smoothed | None = None,
    warm_start: Solution | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Solve a batch of convex quadratic programs, differentiably.

    .. math::

        \min_x \tfrac12 x^\top P x + q^\top x
        \quad\text{s.t.}\quad G x \le h,\; A x = b,\; lb \le x \le ub

    Everything but ``q`` may be left out or None; without ``P`` this is a linear program. Leading
    dimensions broadcast against each other: a matrix without them is shared by the batch, factored
    once, and receives the sum of the gradients. The computation runs in float64; results have the
    type of the arguments. Entries of ``h``, ``lb`` and ``ub`` may be infinite.

    ``P``, ``G`` and ``A`` may be sparse (CSR): one pattern for the whole batch, values for each
    element or for all. Their gradients have the same pattern.

    Args:
        P: ``(*batch, n, n)`` positive semidefinite; enters as :math:`(P + P^\top)/2`.
        q: ``(*batch, n)``.
        G: ``(*batch, m, n)``.
        h: ``(*batch, m)``.
        A: ``(*batch, p, n)``; rows may depend on each other.
        b: ``(*batch, p)``.
        lb: ``(*batch, n)``, or a number for all variables.
        ub: As ``lb``; equal entries of ``lb`` and ``ub`` fix a variable.
        solver: An object of :mod:`optlayers.solvers`; by default the fastest that can.
        adjoint: :class:`Exact` (default) or :class:`Smoothed`.
        warm_start: Solution of a similar batch of the same shape; it only saves time.
        on_failure: What to do about problems without a solution: ``"raise"``, or ``"warn"`` or
            ``"ignore"`` to get NaN for them, with gradients that are exactly zero, and leave their
            neighbours in the batch untouched.

    Returns:
        A :class:`Solution`; ``x``, ``y``, ``z``, ``z_box``, ``s`` and ``objective`` are
        differentiable, to any order. Multipliers of absent constraints have no entries.

    Raises:
        TypeError: If an argument is not a real floating-point tensor.
        ValueError: If shapes or devices do not fit, or (where the policy is to raise) data are NaN.
        SolverError: If problems have no solution and the policy is to raise.

    References:
        Amos and Kolter, *OptNet: differentiable optimization as a layer in neural networks*, ICML
        2017, equations 6 to 8, for the derivative of the KKT conditions.

    Example:
        The point of a halfspace nearest to the origin, and how it moves with the halfspace:

        >>> import torch, optlayers as ol
        >>> h = torch.tensor([-2.0], requires_grad=True)
        >>> solution = ol.qp(torch.eye(2), torch.zeros(2), torch.tensor([[-1.0, -1.0]]), h)
        >>> solution.x
        tensor([1., 1.], grad_fn=...)
        >>> solution.x.sum().backward()
        >>> h.grad
        tensor([-1.])
    """
    low = lb if lb is None else for_all(q, lb)
    high = ub if ub is None else for_all(q, ub)
    form = check("qp", P, q, G, h, A, b, low, high)
    check_policy("qp", on_failure)
    if adjoint is not None:
        check_adjoint("qp", adjoint)
    data = [P, q, G, h, A, b, low, high]
    sparse = P is not None and P.layout is not torch.strided
    sparse = sparse or (G is not None and G.layout is not torch.strided)
    sparse = sparse or (A is not None and A.layout is not torch.strided)
    if sparse or not (solver is None or isinstance(solver, QPSolver)):
        return _as_cone_program(data, solver, adjoint, warm_start, on_failure)
    return solve_quadratic_program("qp", data, form, solver, adjoint, warm_start, on_failure)


def _as_cone_program(
    data: list[Tensor | None],
    solver: "QPSolver | ConeSolver | None",
    adjoint: Exact | Smoothed | None,
    warm_start: Solution | None,
    on_failure: OnFailure,
) -> Solution:
    # Imported here, since most programs do without cones.
    from solvers.cone.solver import ConeSolver

    from .sparse_qp import sparse_qp

    if solver is None or isinstance(solver, ConeSolver):
        P, q, G, h, A, b, lb, ub = data
        assert q is not None
        return sparse_qp(P, q, G, h, A, b, lb, ub, solver, adjoint, warm_start, on_failure)
    if not isinstance(solver, QPSolver):
        raise TypeError(
            f"qp: solver must be an object of optlayers.solvers, as ActiveSet(); got {solver!r}."
        )
    raise TypeError(
        f"qp: sparse matrices need a solver as Clarabel(); got {solver!r}. Leave solver out, "
        "or pass dense matrices."
    )


def solve_quadratic_program(
    where: str,
    given: list[Tensor | None],
    form: Form,
    solver: QPSolver | None,
    adjoint: Exact | Smoothed | None,
    warm_start: Solution | None,
    on_failure: OnFailure,
    precision: torch.dtype | None = None,
) -> Solution:
    """Solve checked programs, differentiably; see :func:`qp`.

    Args:
        where: The function that the user called, for messages.
        given: ``P, q, G, h, A, b, lb, ub``, dense.
        form: What their shapes say.
        solver: See :func:`qp`, as the following.
        adjoint: Which derivatives.
        warm_start: An earlier solution.
        on_failure: The policy.
        precision: Type that the data had once; by default the type they have.
    """
    q = given[1]
    assert q is not None
    dtype, data = q.dtype, given
    double = dtype == torch.float64
    for t in given:
        if t is not None and t.dtype != dtype:
            dtype, double = torch.promote_types(dtype, t.dtype), False
    if not double:
        data = [None if t is None else t.double() for t in given]
    if solver is None:
        solver = EXACT if (precision or dtype) == torch.float64 else ROUGH
    # Compiled code makes the factor again: an operator's output shapes may not depend on values.
    keep_factor = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    keep_factor = keep_factor and not isinstance(adjoint, Smoothed)
    known = None if torch.compiler.is_compiling() else form
    problem = SolvedProgram(solver, on_failure, keep_factor, where, known)
    shape = form.batch_shape
    finite = None
    if on_failure != "raise":
        data, finite = _without_rubbish(data, shape)
    outputs = solve_implicitly(problem, *data, finite, *_guess(where, warm_start, data, shape))
    x, y, z, z_box, s, objective, status, iterations, primal, dual, gap = outputs[:11]
    solved = None
    if isinstance(adjoint, Smoothed) or on_failure != "raise":
        solved = status <= int(Status.SOLVED_INACCURATE)  # the compiler takes no enumeration
    if isinstance(adjoint, Smoothed) and solved is not None:
        carriers = smooth_solution(adjoint.mu, on_failure, data, solved)
        # The value of one, the derivatives of the other.
        x, y, z, z_box, s = (
            value.detach() + (carrier - carrier.detach())
            for value, carrier in zip((x, y, z, z_box, s), carriers, strict=True)
        )
    if on_failure != "raise" and solved is not None:
        x, y, z, z_box, s, objective = (paint(t, solved) for t in (x, y, z, z_box, s, objective))
    if dtype != torch.float64:
        x, y, z, z_box, s, objective, primal, dual, gap = (
            t.to(dtype) for t in (x, y, z, z_box, s, objective, primal, dual, gap)
        )
    return Solution(x, status, iterations, y, z, z_box, s, objective, primal, dual, gap)


def _without_rubbish(
    data: list[Tensor | None], shape: torch.Size
) -> tuple[list[Tensor | None], Tensor]:
    """Zeros in place of problems with NaN (or inf where it has no meaning), and a mask of the rest.

    A NaN that entered a product would come back in gradients, where zero times NaN is NaN.
    """
    q = data[1]
    assert q is not None
    finite = torch.ones(shape, dtype=torch.bool, device=q.device)
    clean: list[Tensor | None] = []
    for (name, core), t in zip(CORE_NDIM.items(), data, strict=True):
        if t is not None:
            good = ~t.isnan() if name in ("h", "lb", "ub") else t.isfinite()
            good = good.flatten(-core).all(-1)
            finite = finite & good
            t = torch.where(good.reshape(*good.shape, *[1] * core), t, 0.0)
        clean.append(t)
    return clean, finite


# The data, which problems are finite, and the guess.
INPUT_NDIM = (*DATA_NDIM, 0, 1, 1)


@dataclass(frozen=True)
class SolvedProgram(KKTConditions):
    """A quadratic program whose active rows a solver finds.

    Inputs are ``P, q, G, h, A, b, lb, ub``, a mask of the problems with finite data, and a guess of
    ``x`` and all multipliers. Outputs are ``x, y, z, z_box, s, objective``, ``status, iterations``,
    the three residuals, and the parts of :class:`~optlayers.implicit.system.System`.
    """

    solver: QPSolver = field(default_factory=Automatic)
    on_failure: OnFailure = "raise"
    keep_factor: bool = True
    where: str = "qp"
    form: Form | None = None  # of the inputs, if it is known

    @property
    def differentiable(self) -> int:
        """Number of differentiable outputs."""
        return 6

    def system(self, inputs: Tensors, outputs: Sequence[Tensor]) -> System:
        """The active rows are the last outputs."""
        return System(*outputs[11:])

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Solve, report failures, and make failed elements harmless for derivatives."""
        program = QuadraticProgram.trusted(*inputs[:8], form=self.form)
        finite, start_x, start_nu = inputs[8:]
        shape = program.batch_shape
        start = None
        if start_x is not None and start_nu is not None:
            start = (flat(start_x, 1, shape), flat(start_nu, 1, shape))
        found = self.solver.run(program, start, with_factor=self.keep_factor)
        if finite is not None:
            found.status[~finite.expand(shape).reshape(-1)] = Status.NUMERICAL_ERROR
        if any(found.status.tolist()):
            failed = found.status > Status.SOLVED_INACCURATE
            if bool(failed.any()):
                self._report(program, found)
                found = _harmless(found, failed)
        # Forward mode cannot give a tangent to a view.
        vectors = found.x, found.y, found.z, found.z_box, found.s
        outputs = [t.clone() if t._is_view() else t for t in vectors]
        outputs += [found.objective, found.status, found.iterations]
        outputs += [found.primal, found.dual, found.gap, found.side, *(found.factor or ())]
        batch = found.status.shape[0]
        if len(shape) == 1:
            return tuple(outputs)
        ones = (1,) * len(shape)
        return tuple(
            t.reshape((*(shape if t.shape[0] == batch else ones), *t.shape[1:])) for t in outputs
        )

    def _report(self, program: QuadraticProgram, found: Outcome) -> None:
        if self.on_failure == "raise":
            for name in CORE_NDIM:
                t = getattr(program, name)
                if t is None:
                    continue
                infinite = name in ("h", "lb", "ub")
                wrong = int((t.isnan() if infinite else ~t.isfinite()).sum())
                if wrong:
                    raise ValueError(
                        f"{self.where}: {name} must {'not be NaN' if infinite else 'be finite'}; "
                        f"got {wrong} entries that are not, of {t.numel()}. Mend the data, or pass "
                        "on_failure='ignore' to get NaN for these problems only."
                    )
        report(self.where, self.on_failure, unflatten(found, program))

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs when no factor is kept."""
        q = inputs[1]
        assert q is not None
        shape, n, p, m, boxes = fit.__wrapped__(self.where, shapes_of(inputs[:8]))
        vectors = [q.new_empty(*shape, size) for size in (n, p, m, boxes, m)]
        integers = [q.new_empty(shape, dtype=torch.long) for _ in range(2)]
        scalars = [q.new_empty(shape) for _ in range(4)]
        side = q.new_empty(*shape, p + m + boxes, dtype=torch.int8)
        return (*vectors, scalars[0], *integers, *scalars[1:], side)

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["SolvedProgram", Tensors]:
        """Move the mapped dimension to the front."""
        return replace(self, form=None), batch_first(dims, inputs, INPUT_NDIM)


def _harmless(found: Outcome, failed: Tensor) -> Outcome:
    """Zeros and an identity where there is no solution, so that no NaN gets into a product."""

    def blank(t: Tensor, value: Tensor | float = 0.0) -> Tensor:
        mask = failed.reshape(-1, *[1] * (t.ndim - 1))
        return torch.where(mask, value, t)

    factor = found.factor
    if factor is not None:
        eye = torch.eye(found.x.shape[-1]).to(found.x)
        factor = Factor(
            blank(factor.L, eye), blank(factor.M), blank(factor.norm, 1.0), blank(factor.rho)
        )
    return replace(
        found,
        x=blank(found.x),
        y=blank(found.y),
        z=blank(found.z),
        z_box=blank(found.z_box),
        s=blank(found.s),
        objective=blank(found.objective),
        side=found.side.masked_fill(failed[:, None], 0),
        factor=factor,
    )


def _guess(
    where: str, warm_start: Solution | None, data: Sequence[Tensor | None], shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """The point and all multipliers of an earlier solution."""
    if warm_start is None:
        return None, None
    if not isinstance(warm_start, Solution):
        raise TypeError(
            f"{where}: warm_start must be a Solution, as {where} returns it; got "
            f"{type(warm_start).__name__}."
        )
    _, q, G, _, A, _, lb, ub = data
    assert q is not None
    parts = (warm_start.y, warm_start.z, warm_start.z_box)
    wanted = (
        0 if A is None else A.shape[-2],
        0 if G is None else G.shape[-2],
        0 if lb is None and ub is None else q.shape[-1],
    )
    sizes = tuple(0 if part is None else part.shape[-1] for part in parts)
    given = (warm_start.x.shape[:-1], warm_start.x.shape[-1], sizes)
    if given != (shape, q.shape[-1], wanted):
        raise ValueError(
            f"{where}: warm_start must be a Solution of a problem with {q.shape[-1]} variables and "
            f"{wanted} equalities, inequalities and bounds in a batch of shape {tuple(shape)}; got "
            f"{given[1]}, {sizes} and {tuple(given[0])}. Leave warm_start out where the problem "
            "changes shape."
        )
    nu = torch.cat([part for part in parts if part is not None], -1)
    return warm_start.x.detach().to(torch.float64), nu.detach().to(torch.float64)
