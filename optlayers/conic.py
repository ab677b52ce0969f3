"""The differentiable solve of a checked cone program, behind every function that makes one."""

import torch
from torch import Tensor

from solvers.cone.cone_program import ConeProgram
from solvers.cone.solver import ConeSolver
from solvers.matrix import Matrix
from solvers.solution import Solution, Status

from .exact import Exact
from .failure import OnFailure, paint
from .implicit.conic import SolvedConeProgram
from .implicit.function import solve_implicitly
from .smoothed import Smoothed
from .smoothed_cone import smooth_solution


def solve_cone_program(
    program: ConeProgram,
    solver: ConeSolver,
    adjoint: Exact | Smoothed | None,
    warm_start: Solution | None,
    on_failure: OnFailure,
    where: str = "cone_program",
) -> Solution:
    """Solve a checked program, differentiably; see :func:`cone_program`."""
    tensors = [program.q, program.b, program.A.values]
    tensors += [] if program.P is None else [program.P.values]
    dtype = program.q.dtype
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    rough = program.rough or dtype != torch.float64
    program = program.to(torch.float64)
    finite = None
    if on_failure != "raise":
        program, finite = _without_rubbish(program)
    P, A = program.P, program.A
    data = (
        None if P is None else P.values, None if P is None else P.index, A.values, A.index,
        program.q, program.b,
    )  # fmt: skip
    guess = guess_of(where, warm_start, program)
    problem = SolvedConeProgram(program.cones, on_failure, 0.0, where, solver, rough=rough)
    x, s, z, objective, status, iterations, primal, dual, gap = solve_implicitly(
        problem, *data, finite, *guess
    )
    if isinstance(adjoint, Smoothed) or on_failure != "raise":
        solved = status <= int(Status.SOLVED_INACCURATE)  # the compiler takes no enumeration
        if isinstance(adjoint, Smoothed):
            carriers = smooth_solution(
                adjoint.mu, program.cones, on_failure, data, (x, s, z), status, where
            )
            # The value of one, the derivatives of the other.
            x, s, z = (
                value.detach() + (carrier - carrier.detach())
                for value, carrier in zip((x, s, z), carriers, strict=True)
            )
        if on_failure != "raise":
            x, s, z, objective = (paint(t, solved) for t in (x, s, z, objective))
    if dtype != torch.float64:
        x, s, z, objective, primal, dual, gap = (
            t.to(dtype) for t in (x, s, z, objective, primal, dual, gap)
        )
    return Solution(
        x, status, iterations, z=z, s=s, objective=objective, primal_residual=primal,
        dual_residual=dual, duality_gap=gap,
    )  # fmt: skip


def _without_rubbish(program: ConeProgram) -> tuple[ConeProgram, Tensor]:
    """Zeros in place of programs with data that are not finite, and a mask of the rest.

    A NaN that entered a product would come back in gradients, where zero times NaN is NaN.
    """
    finite = torch.ones(program.batch_shape, dtype=torch.bool, device=program.q.device)

    def clean(t: Tensor, core: int) -> Tensor:
        nonlocal finite
        good = t.isfinite().flatten(-core).all(-1)
        finite = finite & good
        return torch.where(good.reshape(*good.shape, *[1] * core), t, 0.0)

    def clean_matrix(M: Matrix) -> Matrix:
        return M.with_values(clean(M.values, M.core))

    P = None if program.P is None else clean_matrix(program.P)
    A, q, b = clean_matrix(program.A), clean(program.q, 1), clean(program.b, 1)
    return ConeProgram(P, q, A, b, program.cones), finite


def guess_of(
    where: str, warm_start: Solution | None, program: ConeProgram
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The point, slacks and multipliers of an earlier solution."""
    if warm_start is None:
        return None, None, None
    if not isinstance(warm_start, Solution):
        raise TypeError(
            f"{where}: warm_start must be a Solution, as {where} returns it; got "
            f"{type(warm_start).__name__}."
        )
    parts = (warm_start.x, warm_start.s, warm_start.z)
    shape = program.batch_shape
    wanted = tuple((*shape, size) for size in (program.n, program.m, program.m))
    given = tuple(None if t is None else tuple(t.shape) for t in parts)
    if given != wanted:
        raise ValueError(
            f"{where}: warm_start must be a Solution of a program of the same sizes, with x, s and "
            f"z of shapes {wanted}; got {given}. Leave warm_start out where the program changes."
        )
    x, s, z = (t.detach().to(torch.float64) for t in parts if t is not None)
    return x, s, z
