"""From a user's arguments to a solution: what all functions on the implicit core have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import isabstract
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from solvers.solution import Solution, Status

from ..failure import OnFailure, check_policy, paint
from .adjoints import Adjoint, OneStep, Unrolled
from .arguments import has_modules, take_apart
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
    if torch.compiler.is_compiling() and has_modules(params):
        from .uncompiled import find_uncompiled

        solution: Solution = find_uncompiled(
            kind, x0, params, batch_ndim=batch_ndim, adjoint=adjoint, on_failure=on_failure
        )
        return solution
    check_policy(kind.where, on_failure)
    _check_chosen(kind, adjoint)
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


def _check_chosen(kind: Kind, adjoint: object) -> None:
    """Refuse a solver of something else, which would find something else.

    Raises:
        TypeError: If the solver or the adjoint is none of those that fit.
    """
    solver = getattr(kind, "solver", None)
    if solver is not None and kind.solvers and not isinstance(solver, kind.solvers):
        raise TypeError(
            f"{kind.where}: solver must be an object of optlayers.solvers that solves this, one of "
            f"{', '.join(_names(kind.solvers))}; got {solver!r}. Leave it out for the default."
        )
    if not isinstance(adjoint, Adjoint | Unrolled):
        raise TypeError(
            f"{kind.where}: adjoint must be an object as Dense() or Iterative(GMRES()); got "
            f"{adjoint!r}. Leave it out for one that suits the size of the problem."
        )


def _names(classes: Sequence[type]) -> list[str]:
    """Of classes that there are objects of."""
    names = [_names(c.__subclasses__()) if isabstract(c) else [c.__name__] for c in classes]
    return sorted(chain.from_iterable(names))


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
