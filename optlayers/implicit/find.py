"""From a user's arguments to a solution: what all functions on the implicit core have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solvers.solution import Solution, Status

from ..failure import OnFailure, check_policy, paint
from .adjoints import Adjoint, OneStep, Unrolled
from .arguments import take_apart
from .checks import check_transformed
from .conditions import Conditions
from .function import solve_implicitly
from .kind import Kind
from .unknowns import Unknowns, ravel, unravel


def find(
    kind: Kind,
    x0: Any,
    params: tuple[Any, ...],
    *,
    batch_ndim: int,
    adjoint: Adjoint | Unrolled,
    on_failure: OnFailure,
) -> Solution:
    """Solve a problem of any kind, with derivatives with respect to everything in ``params``."""
    check_policy(kind.where, on_failure)
    unknowns, leaves = Unknowns.of(kind.where, x0, batch_ndim)
    tensors, arguments = take_apart(params)
    implicit = OneStep() if isinstance(adjoint, Unrolled) else adjoint
    watched = torch.is_grad_enabled()
    problem = Conditions(
        kind, unknowns, arguments, batch_ndim, implicit, on_failure, watched=watched
    )
    check_transformed(problem, leaves, tensors)
    outputs = solve_implicitly(problem, *(leaf.detach() for leaf in leaves), *tensors)
    count, after = len(leaves), problem.differentiable
    found, value = list(outputs[:count]), outputs[count] if kind.has_value else None
    status, iterations, error = outputs[after : after + 3]
    if isinstance(adjoint, Unrolled):
        found = _unrolled(adjoint, problem, [t.detach() for t in found], tensors, status)
    if on_failure != "raise":
        solved = status <= int(Status.SOLVED_INACCURATE)
        found = [paint(t, solved) for t in found]
        value = None if value is None else paint(value, solved)
    x = unknowns.spec.unflatten(found)
    return Solution(x, status, iterations, objective=value, dual_residual=error)


def _unrolled(
    adjoint: Unrolled,
    problem: Conditions,
    leaves: list[Tensor],
    tensors: list[Tensor],
    status: Tensor,
) -> list[Tensor]:
    """Plain torch from the solution on."""
    from torch.utils.checkpoint import checkpoint

    solved = (status <= int(Status.SOLVED_INACCURATE))[..., None]
    start = ravel(leaves, problem.batch_ndim)

    def step(x: Tensor, *tensors: Tensor) -> Tensor:
        # A sample that failed stays where derivatives are finite.
        x = torch.where(solved, x, start)
        return torch.where(solved, x - problem.residual(x, *tensors), x)

    x = start
    for _ in range(adjoint.steps):
        if adjoint.checkpoint:
            x = checkpoint(step, x, *tensors, use_reentrant=False)
        else:
            x = step(x, *tensors)
    return unravel(x, x.shape[:-1], problem.unknowns.shapes)


def called(function: Callable[..., Any], params: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """A module, or a method of one, as a function that has the module among its parameters."""
    if isinstance(function, nn.Module):
        return _call, (function, *params)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, nn.Module):
        return _Method(function.__func__), (owner, *params)  # type: ignore[attr-defined]
    return function, params


@dataclass(frozen=True)
class _Method:
    function: Callable[..., Any]

    def __call__(self, x: Any, module: nn.Module, *params: Any) -> Any:
        return self.function(module, x, *params)


def _call(x: Any, module: nn.Module, *params: Any) -> Any:
    return module(x, *params)
