r"""The one autograd function behind every layer whose solution is defined by conditions.

Forward runs any solver; nothing inside it is traced. Backward and forward mode are the problem's own
``vjp`` and ``jvp``: compositions of differentiable torch code and of the linear solve with the
Jacobian of the conditions, which is such a function again. That recursion is what gives derivatives
of every order, in any mix of modes.

What torch needs said by hand, and why (each point was a silent error without it):

- ``vmap``: solvers are batched already, so the rule only moves the mapped dimension to the front. A
  generated rule would run ``jvp`` where ``unpack_dual`` has no batching rule.
- ``jvp`` works on the primal part of what was saved, with forward gradients switched on again;
  otherwise forward mode over forward mode loses the inner tangents.
- Under ``torch.compile`` the solver hides behind an opaque operator, and a twin without ``jvp``
  takes over, because dynamo refuses functions that define one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

Tensors = Sequence[Tensor | None]


class ImplicitProblem(Protocol):
    """A problem whose solution is differentiated by its conditions.

    It must be hashable and compare by value (a frozen dataclass), because the compiler keeps it
    apart from the tensors. All its callables are pure.
    """

    @property
    def differentiable(self) -> int:
        """How many of the outputs, counted from the first, have derivatives."""

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Run the solver; any code at all. This is where values are looked at and errors raised."""

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Empty tensors of the shapes that ``solve`` returns, for the compiler."""

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """Cotangents of the inputs, in differentiable torch code; None for those not needed."""

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Tangents of the differentiable outputs, in differentiable torch code."""

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["ImplicitProblem", Tensors]:
        """The problem with one more batch dimension, in front of all outputs.

        An output whose first dimension is then 1 counts as shared by the batch.
        """


def solve_implicitly(problem: ImplicitProblem, *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """Solve a problem such that its outputs have derivatives of every order.

    Args:
        problem: What to solve and how its conditions are differentiated.
        *inputs: All tensors it depends on; a tensor hidden elsewhere would lose its gradient.

    Returns:
        The outputs of ``problem.solve``.
    """
    if torch.compiler.is_compiling():
        outputs: tuple[Tensor, ...] = _Compiled.apply(_key(problem), problem, *inputs)
    else:
        outputs = Implicit.apply(problem, *inputs)
    return outputs


class Implicit(torch.autograd.Function):
    """The eager function; see the module's docstring."""

    @staticmethod
    def forward(problem: ImplicitProblem, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Run the solver."""
        return problem.solve(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save everything that derivatives may use, for both modes."""
        ctx.problem, *tensors = inputs
        ctx.split = len(tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[ctx.problem.differentiable :])
        ctx.save_for_backward(*tensors, *output)
        ctx.save_for_forward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Pull cotangents back through the conditions."""
        inputs, outputs = ctx.saved_tensors[: ctx.split], ctx.saved_tensors[ctx.split :]
        return None, *ctx.problem.vjp(inputs, outputs, cotangents, ctx.needs_input_grad[1:])

    @staticmethod
    def jvp(ctx: Any, _problem: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Push tangents forward through the conditions."""
        with _set_fwd_grad_enabled(True):
            saved = [None if t is None else unpack_dual(t).primal for t in ctx.saved_tensors]
            inputs, outputs = saved[: ctx.split], saved[ctx.split :]
            pushed = ctx.problem.jvp(inputs, outputs, tangents)
            return *pushed, *[None] * (len(outputs) - len(pushed))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], problem: ImplicitProblem, *inputs: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """Hand the mapped dimension to the batched solver."""
        mapped, moved = problem.map(info.batch_size, in_dims[1:], inputs)
        outputs = Implicit.apply(mapped, *moved)
        shared = [t.shape[0] == 1 != info.batch_size for t in outputs]
        return (
            tuple(t[0] if one else t for t, one in zip(outputs, shared, strict=True)),
            tuple(None if one else 0 for one in shared),
        )


# --- torch.compile -----------------------------------------------------------------------------

_problems: list[ImplicitProblem] = []
_library = torch.library.Library("optlayers", "FRAGMENT")
_library.define("solve(Tensor?[] inputs, int key) -> Tensor[]")


@torch.compiler.assume_constant_result
def _key(problem: ImplicitProblem) -> int:
    """A number for a problem: operators take no Python objects."""
    if problem not in _problems:
        _problems.append(problem)
    return _problems.index(problem)


def _solve_opaquely(inputs: list[Tensor | None], key: int) -> list[Tensor]:
    # An operator may not return one of its inputs, nor two views of one tensor.
    return [t.clone() for t in _problems[key].solve(*inputs)]


_library.impl("solve", _solve_opaquely, "CompositeExplicitAutograd")


@torch.library.register_fake("optlayers::solve", lib=_library)
def _solve_fake(inputs: list[Tensor | None], key: int) -> list[Tensor]:
    return list(_problems[key].fake(*inputs))


class _Compiled(torch.autograd.Function):
    """The twin for the compiler: the same, with an opaque operator and without forward mode."""

    @staticmethod
    def forward(ctx: Any, key: int, problem: ImplicitProblem, *inputs: Tensor | None) -> Any:
        outputs = torch.ops.optlayers.solve(list(inputs), key)
        ctx.problem = problem
        ctx.split = len(inputs)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*outputs[problem.differentiable :])
        ctx.save_for_backward(*inputs, *outputs)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        inputs, outputs = ctx.saved_tensors[: ctx.split], ctx.saved_tensors[ctx.split :]
        pulled = ctx.problem.vjp(inputs, outputs, cotangents, ctx.needs_input_grad[2:])
        return None, None, *pulled
