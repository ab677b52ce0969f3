r"""Cone programs as a differentiable function."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from solvers.cone.clarabel import Clarabel
from solvers.cone.cone import Cone
from solvers.cone.cone_program import ConeProgram
from solvers.cone.solver import ConeSolver
from solvers.qp.quadratic_program import check
from solvers.qp.solver import QPSolver
from solvers.solution import Solution

from .conic import guess_of, solve_cone_program
from .csr import program_with_derivatives
from .exact import Exact, check_adjoint
from .failure import OnFailure, check_policy
from .qp import solve_quadratic_program
from .smoothed import Smoothed


def cone_program(
    P: Tensor | None,
    q: Tensor,
    A: Tensor,
    b: Tensor,
    cones: Sequence[Cone],
    *,
    solver: ConeSolver | QPSolver | None = None,
    adjoint: Exact | Smoothed | None = None,
    warm_start: Solution | None = None,
    on_failure: OnFailure = "raise",
) -> Solution:
    r"""Solve a batch of convex cone programs, differentiably.

    .. math::

        \min_{x, s} \tfrac12 x^\top P x + q^\top x \quad\text{s.t.}\quad A x + s = b,\; s \in K

    where :math:`K` is a product of cones, whose rows are those of ``A`` in order. Leading
    dimensions broadcast against each other; what lacks them is shared by the batch and receives the
    sum of the gradients. The computation runs in float64 on the CPU; results have the type and the
    device of the arguments. Dense programs with zero and nonnegative cones only go to :func:`qp`.

    ``P`` and ``A`` may be sparse (CSR): one pattern for the whole batch, values for each element or
    for all. Their gradients have the same pattern, and large programs never become dense.

    Args:
        P: ``(*batch, n, n)`` positive semidefinite; enters as :math:`(P + P^\top)/2`, or None.
        q: ``(*batch, n)``.
        A: ``(*batch, m, n)``.
        b: ``(*batch, m)``.
        cones: Cone objects as :class:`SecondOrderCone`, whose sizes add up to ``m``.
        solver: :class:`optlayers.solvers.Clarabel` (default), :class:`optlayers.solvers.SCS`, or a
            solver of quadratic programs where the cones allow it.
        adjoint: :class:`Exact` (default) or :class:`Smoothed`.
        warm_start: Solution of a similar batch of the same shape; it only saves time.
        on_failure: What to do about programs without a solution, see :func:`qp`.

    Returns:
        A :class:`Solution`; ``x``, ``s``, ``z`` (all multipliers, in the order of the rows) and
        ``objective`` are differentiable. Derivatives of every order exist for zero, nonnegative,
        box and second-order cones; for the others second derivatives raise.

    Raises:
        TypeError: If an argument is not a real floating-point tensor, or no cone.
        ValueError: If shapes, devices or patterns do not fit, or data are NaN.
        SolverError: If programs have no solution and the policy is to raise.

    References:
        Busseti, Moursi and Boyd, *Solution refinement at regular points of conic problems*,
        Computational Optimization and Applications 74 (2019), section 3, for the derivative.

    Example:
        The point of a disc that is furthest in a direction, and how it turns with it:

        >>> import torch, optlayers as ol
        >>> direction = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
        >>> A = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
        >>> b = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        >>> solution = ol.cone_program(None, -direction, A, b, [ol.SecondOrderCone(3)])
        >>> solution.x
        tensor([0.6000, 0.8000], dtype=torch.float64, grad_fn=...)
        >>> solution.x[0].backward()
        >>> direction.grad
        tensor([ 0.1280, -0.0960], dtype=torch.float64)
    """
    check_policy("cone_program", on_failure)
    check_adjoint("cone_program", adjoint)
    program = ConeProgram.of(P, q, A, b, cones, "cone_program")
    program = program_with_derivatives(program, P, A)
    dense = program.A.index is None and (program.P is None or program.P.index is None)
    quadratic = dense and program.cones.elementwise
    if isinstance(solver, QPSolver) or (solver is None and quadratic):
        if not quadratic:
            raise TypeError(
                f"cone_program: solver {solver!r} takes dense programs with zero and nonnegative "
                f"cones only; got {'' if dense else 'a sparse program with '}cones "
                f"{program.cones.cones}. Leave solver out, or use Clarabel()."
            )
        return _as_quadratic_program(program, solver, adjoint, warm_start, on_failure)
    if solver is not None and not isinstance(solver, ConeSolver):
        raise TypeError(
            "cone_program: solver must be an object of optlayers.solvers, as Clarabel(); got "
            f"{solver!r}."
        )
    return solve_cone_program(program, solver or Clarabel(), adjoint, warm_start, on_failure)


class _Rows(NamedTuple):
    """Where the rows of the two kinds are, and the permutation that puts both in order."""

    equal: Tensor
    inequal: Tensor
    back: Tensor


def _as_quadratic_program(
    program: ConeProgram,
    solver: QPSolver | None,
    adjoint: Exact | Smoothed | None,
    warm_start: Solution | None,
    on_failure: OnFailure,
) -> Solution:
    """Equalities and inequalities in their order, solved by :func:`qp`."""
    kinds = program.cones.equalities
    equal = torch.tensor([i for i, zero in enumerate(kinds) if zero], dtype=torch.long)
    inequal = torch.tensor([i for i, zero in enumerate(kinds) if not zero], dtype=torch.long)
    device = program.q.device
    rows = _Rows(
        *(t.to(device) for t in (equal, inequal, torch.argsort(torch.cat([equal, inequal]))))
    )
    A, b = program.A.values, program.b
    start = warm_start
    if warm_start is not None:
        _, s, z = guess_of("cone_program", warm_start, program)
        assert s is not None
        assert z is not None
        start = Solution(
            warm_start.x, warm_start.status, warm_start.iterations, y=z[..., rows.equal],
            z=z[..., rows.inequal], z_box=z[..., :0], s=s[..., rows.inequal],
        )  # fmt: skip
    data = [
        None if program.P is None else program.P.values, program.q,
        A.index_select(-2, rows.inequal) if len(inequal) else None,
        b.index_select(-1, rows.inequal) if len(inequal) else None,
        A.index_select(-2, rows.equal) if len(equal) else None,
        b.index_select(-1, rows.equal) if len(equal) else None,
        None, None,
    ]  # fmt: skip
    P, q, *rest = data
    assert q is not None
    form = check("cone_program", P, q, *rest)
    solution = solve_quadratic_program(
        "cone_program", data, form, solver, adjoint, start, on_failure
    )
    y, z, s = solution.y, solution.z, solution.s
    assert y is not None
    assert z is not None
    assert s is not None
    solution.z = torch.cat([y, z], -1).index_select(-1, rows.back)
    solution.s = torch.cat([torch.zeros_like(y), s], -1).index_select(-1, rows.back)
    solution.y = solution.z_box = None
    return solution
