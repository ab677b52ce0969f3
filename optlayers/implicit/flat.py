"""A user's functions of pytrees as functions of flat unknowns, which is what solvers work on."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from .arguments import Arguments
from .unknowns import Unknowns, in_order_of, ravel, unravel

Function = Callable[..., Any]
FlatFunction = Callable[..., Tensor]


class FlatFunctions:
    """Makes functions of ``(B, n)`` or ``(*batch, n)`` of a user's functions.

    Args:
        unknowns: Structure of what the functions take.
        arguments: Structure of the parameters.
        batch: Batch dimensions of the unknowns, mapped ones included.
        levels: For each ``vmap``, which of the tensors have its dimension.
        tensors: Those among the parameters.
        values: The parameters, if there are no levels; otherwise each call puts them together.
    """

    def __init__(
        self,
        unknowns: Unknowns,
        arguments: Arguments,
        batch: torch.Size,
        levels: Sequence[tuple[int | None, ...]],
        tensors: Sequence[Tensor],
        values: Sequence[Any] = (),
    ) -> None:
        self.unknowns, self.arguments, self.batch = unknowns, arguments, batch
        self.levels, self.tensors, self.values = levels, tensors, values
        self.samples = batch[len(levels) :]
        self._known: tuple[Function, Tensor, Tensor] | None = None

    def know(self, function: Function, x: Tensor, value: Tensor) -> None:
        """Say what a function is at ``x`` ``(B, n)``: it is not called there again."""
        self._known = function, x, value

    def __call__(self, function: Function, *, scalar: bool = False) -> FlatFunction:
        """Of ``function(x, *step, *params)``; ``(B)`` if it is scalar, else ``(B, m)``."""
        whole = self.unknowns.spec.is_leaf() and not (self.levels or scalar)
        flat = self._of_tensor(function) if whole else self._of_tree(function, scalar)
        if self._known is None or function is not self._known[0]:
            return flat
        _, start, value = self._known

        def not_at_the_start(x: Tensor, *step: Tensor) -> Tensor:
            return value if x is start and not step else flat(x, *step)

        return not_at_the_start

    def _of_tensor(self, function: Function) -> FlatFunction:
        """As most often the unknowns are one tensor: then the way to and from it is short."""
        batch_ndim, values, samples = len(self.batch), self.values, self.samples
        shape, ones = (*samples, *self.unknowns.shapes[0]), [1] * len(self.unknowns.shapes[0])

        def flat_function(x: Tensor, *step: Tensor) -> Tensor:
            rows = x.shape
            if rows != shape:
                x = x.reshape(shape)
            if step:
                step = tuple([t.reshape((*samples, *ones)) for t in step])
            value: Any = function(x, *step, *values)
            if not isinstance(value, Tensor):
                (value,) = pytree.tree_leaves(value)
            if value.shape == rows:
                return value  # type: ignore[no-any-return]
            flat = ravel([value], batch_ndim)
            return flat.reshape((*rows[:-1], flat.shape[-1]))

        return flat_function

    def _of_tree(self, function: Function, scalar: bool) -> FlatFunction:
        shapes, spec, batch, samples = (
            self.unknowns.shapes,
            self.unknowns.spec,
            self.batch,
            self.samples,
        )

        def call(x: Tensor, step: Sequence[Tensor], values: Sequence[Any]) -> list[Tensor]:
            leaves = unravel(x, samples, shapes)
            sized = [t.reshape((*samples, *[1] * len(shapes[0]))) for t in step]
            if spec.is_leaf():
                result = function(leaves[0], *sized, *values)
                return [result] if isinstance(result, Tensor) else pytree.tree_leaves(result)
            return in_order_of(spec, function(spec.unflatten(leaves), *sized, *values))

        if self.levels:

            def mapped(x: Tensor, step: Sequence[Tensor], *tensors: Tensor) -> list[Tensor]:
                with self.arguments.bound(tensors) as values:
                    return call(x, step, values)

            for dims in reversed(self.levels):
                mapped = vmap(mapped, in_dims=(0, 0, *dims))

            def evaluate(x: Tensor, step: Sequence[Tensor]) -> list[Tensor]:
                step = [t.reshape(batch) for t in step]
                return mapped(x.reshape((*batch, x.shape[-1])), step, *self.tensors)

        else:

            def evaluate(x: Tensor, step: Sequence[Tensor]) -> list[Tensor]:
                return call(x, step, self.values)

        def flat_function(x: Tensor, *step: Tensor) -> Tensor:
            leaves = evaluate(x, step)
            if scalar:
                return leaves[0].reshape(x.shape[:-1])
            flat = ravel(leaves, len(batch))
            return flat.reshape((*x.shape[:-1], flat.shape[-1]))

        return flat_function
