r"""The one autograd function behind every layer whose solution is defined by conditions.

Forward runs any solver; nothing inside it is traced. Backward and forward mode are the problem's
own ``vjp`` and ``jvp``: compositions of differentiable torch code and of the linear solve with the
Jacobian of the conditions, which is such a function again. That recursion is what gives derivatives
of every order, in any mix of modes.

What torch needs said by hand, and why (each point was a silent error without it):

- ``vmap``: solvers are batched already, so the rule only moves the mapped dimension to the front. A
  generated rule would run ``jvp`` where ``unpack_dual`` has no batching rule.
- ``jvp`` works on the primal part of what was saved, with forward gradients switched on again;
  otherwise forward mode over forward mode loses the inner tangents.
- ``backward`` unwraps what belongs to a transform that has ended, as ``torch.func.vjp``'s has when
  its pullback runs: a transform that ``vjp`` itself uses would get the same level.
- Under ``torch.compile`` a twin takes over, see :mod:`optlayers.implicit.compiled`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor, unwrap_if_dead
from torch._functorch import eager_transforms
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual

from .batching import legacy_vmap_level
from .compiled import solve_compiled

Tensors = Sequence[Tensor | None]


class ImplicitProblem(Protocol):
    """A problem whose solution is differentiated by its conditions.

    It must be hashable and compare by value (a frozen dataclass), because the compiler keeps it
    apart from the tensors. All its callables are pure. It may have an attribute ``starts``: how
    many of the inputs, counted from the first, derivatives do without; they get None instead.
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
        """Cotangents of the inputs, in differentiable torch code; None for those not needed.

        A cotangent of an output that nobody used is None, and all of them may be.
        """

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
        outputs: tuple[Tensor, ...] = solve_compiled(problem, *inputs)
    elif legacy_vmap_level():
        outputs = _under_legacy_vmap(problem, inputs)
    else:
        outputs = _apply(problem, inputs)
    return outputs


_NOTHING: AbstractContextManager[None] = nullcontext()  # as most often there is nothing to do


def sharing_the_dual_level() -> AbstractContextManager[None]:
    """Let ``torch.func.jvp`` work inside ``forward_ad.dual_level``, which cannot be nested.

    Within another ``torch.func.jvp`` it opens no level of its own, for its wrappers keep tangents
    apart; here it must believe that it is within one.
    """
    nested = forward_ad._current_level < 0 or eager_transforms.JVP_NESTING
    return _NOTHING if nested else _within_a_jvp()


@contextmanager
def _within_a_jvp() -> Iterator[None]:
    eager_transforms.JVP_NESTING += 1
    try:
        yield
    finally:
        eager_transforms.JVP_NESTING -= 1


def in_full_precision(tensors: Tensors) -> AbstractContextManager[Any]:
    """Keep autocast out: it would round what derivatives are made of."""
    device = next((t.device.type for t in tensors if t is not None), "cpu")
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


def undisturbed(tensors: Tensors) -> AbstractContextManager[None]:
    """Let ``torch.func.jvp`` work inside ``dual_level``, and keep autocast out."""
    if forward_ad._current_level < 0 and not torch._C._is_any_autocast_enabled():
        return _NOTHING  # as most often, at once
    return _undisturbed(tensors)


@contextmanager
def _undisturbed(tensors: Tensors) -> Iterator[None]:
    with sharing_the_dual_level(), in_full_precision(tensors):
        yield


@contextmanager
def plainly(inputs: Sequence[Tensor | None]) -> Iterator[list[Tensor]]:
    """The inputs where solvers can use them: in full precision, and where derivatives exist."""
    given = [t for t in inputs if t is not None]
    seen = torch.inference_mode(False) if torch.is_inference_mode_enabled() else _NOTHING
    with seen, torch.no_grad(), undisturbed(given):
        ready = [t.clone() if t.is_inference() else t for t in given]
        if forward_ad._current_level >= 0:
            ready = [forward_ad.unpack_dual(t).primal for t in ready]
        yield ready


def _remember(
    ctx: Any, problem: ImplicitProblem, inputs: Tensors, outputs: tuple[Tensor, ...]
) -> None:
    """Save everything that derivatives may use, for those modes that may come."""
    ctx.problem, ctx.split = problem, len(inputs)
    ctx.set_materialize_grads(False)
    # Where a solver starts may change before backward: a buffer that warm starts are kept in, say.
    starts = getattr(problem, "starts", 0)
    saved = (*[None] * starts, *inputs[starts:], *outputs)
    ctx.save_for_backward(*saved)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        ctx.save_for_forward(*saved)


def _pull_back(ctx: Any, saved: Tensors, cotangents: Tensors) -> tuple[Any, ...]:
    inputs, outputs = saved[: ctx.split], saved[ctx.split :]
    with undisturbed(outputs):
        needed = ctx.needs_input_grad[-ctx.split :]
        return None, *ctx.problem.vjp(inputs, outputs, cotangents, needed)


def _push_forward(ctx: Any, tangents: Tensors) -> tuple[Tensors, int]:
    """Tangents of the differentiable outputs, and how many outputs there are in all."""
    with _set_fwd_grad_enabled(True), sharing_the_dual_level():
        saved = [None if t is None else unpack_dual(t).primal for t in ctx.saved_tensors]
        inputs, outputs = saved[: ctx.split], saved[ctx.split :]
        with in_full_precision(outputs):
            return ctx.problem.jvp(inputs, outputs, tangents), len(outputs)


class Implicit(torch.autograd.Function):
    """The eager function; see the module's docstring."""

    @staticmethod
    def forward(problem: ImplicitProblem, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Run the solver."""
        return problem.solve(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Save what derivatives need."""
        problem = inputs[0]
        ctx.mark_non_differentiable(*output[problem.differentiable :])
        _remember(ctx, problem, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        """Pull cotangents back through the conditions."""
        saved = [None if t is None else unwrap_if_dead(t) for t in ctx.saved_tensors]
        return _pull_back(ctx, saved, cotangents)

    @staticmethod
    def jvp(ctx: Any, _problem: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """Push tangents forward through the conditions."""
        pushed, count = _push_forward(ctx, tangents)
        return *pushed, *[None] * (count - len(pushed))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], problem: ImplicitProblem, *inputs: Tensor | None
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """Hand the mapped dimension to the batched solver."""
        mapped, moved = problem.map(info.batch_size, in_dims[1:], inputs)
        outputs = Implicit.apply(mapped, *moved)  # type: ignore[no-untyped-call]
        shared = [t.shape[0] == 1 != info.batch_size for t in outputs]
        return (
            tuple(t[0] if one else t for t, one in zip(outputs, shared, strict=True)),
            tuple(None if one else 0 for one in shared),
        )


def _under_legacy_vmap(
    problem: ImplicitProblem, inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """The rule for an older ``vmap``, behind ``is_grads_batched``, which asks for none."""
    level = legacy_vmap_level()
    dims = [0 if t is not None and is_legacy_batchedtensor(t) else None for t in inputs]
    if not any(d == 0 for d in dims):
        return _apply(problem, inputs)
    plain = [
        t if t is None or d is None else torch._remove_batch_dim(t, level, 0, 0)
        for t, d in zip(inputs, dims, strict=True)
    ]
    size = next(len(t) for t, d in zip(plain, dims, strict=True) if t is not None and d == 0)
    mapped, moved = problem.map(size, dims, plain)
    outputs = _apply(mapped, moved)
    return tuple(
        t[0] if len(t) == 1 != size else torch._add_batch_dim(t, 0, level) for t in outputs
    )


class _Plain(torch.autograd.Function):
    """The same where no functorch transform is around: its way of calling costs 50 us less."""

    @staticmethod
    def forward(
        ctx: Any, problem: ImplicitProblem, rest: list[Tensor], *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs = problem.solve(*inputs)
        _remember(ctx, problem, inputs, outputs)
        # What has no derivatives goes past torch, which takes half a microsecond for each.
        rest += outputs[problem.differentiable :]
        return outputs[: problem.differentiable]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        return None, *_pull_back(ctx, ctx.saved_tensors, cotangents)

    @staticmethod
    def jvp(
        ctx: Any, _problem: None, _rest: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        pushed, _ = _push_forward(ctx, tangents)
        return tuple(pushed)


# What ``_Plain.apply`` calls where no transform is active, after looking for dead wrappers in three
# times the time it takes here.
_apply_plain = super(torch.autograd.Function, _Plain).apply


def _apply(problem: ImplicitProblem, inputs: Tensors) -> tuple[Tensor, ...]:
    """Call the function for what is around, but for the compiler and the older ``vmap``."""
    if torch._C._are_functorch_transforms_active():
        return Implicit.apply(problem, *inputs)  # type: ignore[no-untyped-call, no-any-return]
    rest: list[Tensor] = []
    alive = [t if t is None else unwrap_if_dead(t) for t in inputs]
    outputs = _apply_plain(problem, rest, *alive)  # type: ignore[no-untyped-call]
    return *outputs, *rest
