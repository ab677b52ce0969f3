"""The implicit function under ``torch.compile``: an opaque operator and a function without ``jvp``.

The compiler cannot trace solvers, so one operator stands for all of them; and it refuses autograd
functions that define ``jvp``, so a twin without it takes over. What it compiles silently wrong
(forward mode loses its tangents, and ``torch.func`` transforms differentiate a custom function's
forward instead of calling its backward) raises here instead.
"""

from collections.abc import Callable
from dataclasses import _FIELD, is_dataclass  # type: ignore[attr-defined]
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from .function import ImplicitProblem

T = TypeVar("T")
NO_TRANSFORM = (
    "torch.compile of a layer allows neither torch.func transforms nor forward mode, because torch "
    "would lose the layer's derivatives in silence; got one of them around a layer that is being "
    "compiled. Use backward on the compiled function, or leave the transformed one uncompiled."
)


def solve_compiled(problem: "ImplicitProblem", *inputs: Tensor | None) -> tuple[Tensor, ...]:
    """What :func:`optlayers.implicit.solve_implicitly` does while the compiler traces it.

    Raises:
        NotImplementedError: If the layer is differentiated in forward mode or by ``torch.func``.
    """
    # Read in traced code the level becomes a guard: a graph compiled without dual numbers, which
    # would drop their tangents, is not used for them later.
    if forward_ad._current_level >= 0 or _transformed():
        raise NotImplementedError(NO_TRANSFORM)
    key = _key(_spell(problem))
    outputs: tuple[Tensor, ...] = _Compiled.apply(key, problem, *inputs)  # type: ignore[no-untyped-call]
    return outputs


class _Compiled(torch.autograd.Function):
    """The twin of :class:`optlayers.implicit.function.Implicit`."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        # Dynamo drops ctx where it takes as many arguments as a signature has names, ctx and the
        # starred one included; with one name besides ctx there are always more.
        key, problem, *inputs = arguments
        outputs = torch.ops.optlayers.solve(inputs, key)
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


_problems: dict[str, "ImplicitProblem"] = {}
_PROCESS = uuid4().hex
_library = torch.library.Library("optlayers", "FRAGMENT")
_library.define("solve(Tensor?[] inputs, str key) -> Tensor[]")


def while_tracing(function: Callable[..., T]) -> Callable[..., T]:
    """What torch.compiler.assume_constant_result does, which would import the whole compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


DATACLASS, LIST, TREE = "a dataclass", "a list", "a tree"


def _spell(value: Any) -> Any:
    """A dataclass as nested tuples: the compiler hands on no object that it made while tracing."""
    if isinstance(value, pytree.TreeSpec):
        return TREE, value.type, value._context, _spell(value._children)
    if is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        fields = cls.__dataclass_fields__.values()
        given = [f.name for f in fields if f.init and f._field_type is _FIELD]  # type: ignore[attr-defined]
        return DATACLASS, cls, *[(name, _spell(getattr(value, name))) for name in given]
    if isinstance(value, list):
        return LIST, *[_spell(part) for part in value]
    if isinstance(value, tuple):
        return tuple([_spell(part) for part in value])
    return value


def _unspell(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    if len(value) > 1 and value[0] == DATACLASS:
        return value[1](**{name: _unspell(part) for name, part in value[2:]})
    if value and value[0] == TREE:
        kind, context, children = value[1], value[2], _unspell(value[3])
        return pytree.TreeSpec(kind, context, children) if kind else pytree.treespec_leaf()
    if value and value[0] == LIST:
        return [_unspell(part) for part in value[1:]]
    return tuple([_unspell(part) for part in value])


@while_tracing
def _key(spelling: Any) -> str:
    """A name for a problem, as operators take no Python objects.

    It says all about the problem, since compiled graphs are cached on disk by what they contain.
    """
    problem = _unspell(spelling)
    key = repr(problem)
    if " at 0x" in key:  # functions, say: their addresses mean nothing in another process
        key = f"{key} in {_PROCESS}"
    while _problems.setdefault(key, problem) != problem:
        key += "'"
    return key


@while_tracing
def _transformed() -> bool:
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None


# Around a compiled graph torch runs operators with part of its dispatcher switched off, functorch
# and autograd among it, which solvers use. These are the settings as they are outside.
_OUTSIDE = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()


def _solve_opaquely(inputs: list[Tensor | None], key: str) -> list[Tensor]:
    with torch._C._ForceDispatchKeyGuard(*_OUTSIDE):
        found = _problems[key].solve(*inputs)
        # An operator may not return one of its inputs, nor two views of one tensor.
        return [t.clone() for t in found]


_library.impl("solve", _solve_opaquely, "CompositeExplicitAutograd")


@torch.library.register_fake("optlayers::solve", lib=_library)  # type: ignore[untyped-decorator]
def _solve_fake(inputs: list[Tensor | None], key: str) -> list[Tensor]:
    return list(_problems[key].fake(*inputs))
