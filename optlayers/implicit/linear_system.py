r"""The linear system of the implicit function theorem, itself an implicit function.

Its conditions are :math:`A u - v` or :math:`A^\top u - v`, where :math:`A` is the Jacobian of a
user's conditions. Derivatives solve with the other one of the two matrices: so one autograd
function, applied to itself, gives derivatives of every order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from .adjoints import Linearised
from .batching import in_front
from .chosen import pull, push
from .function import Tensors, plainly, solve_implicitly

if TYPE_CHECKING:
    from .conditions import Conditions


@dataclass(frozen=True)
class LinearSystem:
    """Solve with the Jacobian of some conditions.

    Inputs are ``v``, ``x`` ``(*batch, n)``, the tensors among the parameters, and what the solver
    kept. Outputs are ``u`` and the relative residuals.

    Attributes:
        conditions: Whose Jacobian it is.
        transposed: Whether it is transposed.
        kept: Number of tensors that the solver kept.
        extra: For each leading dimension of ``v``, whether it is one that the Jacobian lacks: these
            are columns of one right-hand side.
    """

    conditions: "Conditions"
    transposed: bool
    kept: int
    extra: tuple[bool, ...]

    @property
    def differentiable(self) -> int:
        """The solution."""
        return 1

    def _split(self, inputs: Tensors) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        v, x, *rest = (t for t in inputs if t is not None)
        end = len(rest) - self.kept
        return v, x, rest[:end], rest[end:]

    def _columns(self, v: Tensor) -> Tensor:
        """``v`` with all columns in front: ``(columns, *batch, n)``."""
        extra = [i for i, flag in enumerate(self.extra) if flag]
        moved = v.movedim(extra, list(range(len(extra))))
        return moved.reshape((prod(moved.shape[: len(extra)]), *moved.shape[len(extra) :]))

    def _back(self, columns: Tensor, like: Tensor) -> Tensor:
        """The inverse, also for tensors that lack the last dimension."""
        extra = [i for i, flag in enumerate(self.extra) if flag]
        sizes = [like.shape[i] for i in extra]
        t = columns.reshape((*sizes, *columns.shape[1:]))
        return t.movedim(list(range(len(extra))), extra)

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Let the adjoint solve."""
        with plainly(inputs) as given:
            v, x, tensors, kept = self._split(given)
            batch, n = x.shape[:-1], x.shape[-1]
            columns = self._columns(v)
            flat = [t.reshape(batch.numel(), *t.shape[len(batch) :]) for t in kept]
            with self.conditions.flat_functions(batch, tensors) as on_flat:
                kind = self.conditions.kind
                system = Linearised(
                    on_flat(kind.residual),
                    x.reshape(batch.numel(), n),
                    kind,
                    tuple(flat),
                    self.transposed,
                    self.conditions.on_failure,
                    signs=on_flat(kind.signs) if kind.has_multipliers else None,
                )
                u, residual = self.conditions.adjoint.solve(
                    system, columns.reshape(len(columns), batch.numel(), n)
                )
        u = self._back(u.reshape(columns.shape), v)
        residual = self._back(residual.reshape(columns.shape[:-1]), v)
        return u.clone(memory_format=torch.contiguous_format), residual.clone()

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs."""
        v = inputs[0]
        assert v is not None
        return v.new_empty(v.shape), v.new_empty(v.shape[:-1])

    def product(self, u: Tensor, x: Tensor, *tensors: Tensor) -> Tensor:
        """The Jacobian, or its transpose, times ``u``; differentiable in everything."""

        def residual(x: Tensor) -> Tensor:
            return self.conditions.residual(x, *tensors)

        def times(u: Tensor) -> Tensor:
            if self.transposed:
                _, *rest = vjp(residual, x)
                pulled: Tensor = rest[0](u)[0]
                return pulled
            pushed: Tensor = jvp(residual, (x,), (u,))[1]
            return pushed

        columns = self._columns(u)
        if len(columns) == 1:
            return self._back(times(columns[0])[None], u)
        return self._back(vmap(times)(columns), u)

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """Cotangents of the right-hand side, of the point and of the parameters."""
        grads: list[Tensor | None] = [None] * len(inputs)
        g, u = cotangents[0], outputs[0]
        if g is None:
            return grads
        other = replace(self, transposed=not self.transposed)
        s = solve_implicitly(other, g, *inputs[1:])[0]
        if needed[0]:
            grads[0] = s
        _, x, tensors, _ = self._split(inputs)
        point = [x, *tensors]
        chosen = [i for i, t in enumerate(point) if needed[1 + i] and t.is_floating_point()]
        places = [1 + i for i in chosen]  # the first argument of the product is u
        if places:
            for i, t in zip(places, pull(self.product, [u, *point], places, s), strict=True):
                grads[i] = -t
        return grads

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Tangent of the solution."""
        u = outputs[0]
        _, x, tensors, _ = self._split(inputs)
        point = [x, *tensors]
        right = tangents[0]
        given = tangents[1 : 1 + len(point)]
        chosen = [1 + i for i, t in enumerate(given) if t is not None]
        if chosen:
            along = [t for t in given if t is not None]
            pushed = push(self.product, [u, *point], chosen, along)
            right = -pushed if right is None else right - pushed
        if right is None:
            return [torch.zeros_like(u)]
        return [solve_implicitly(self, right, *inputs[1:])[0]]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["LinearSystem", Tensors]:
        """More columns where only the right-hand side is mapped, else more systems."""
        if all(d is None for d in dims[1:]):
            return replace(self, extra=(True, *self.extra)), in_front(size, dims, inputs)
        end = len(inputs) - self.kept
        moved = in_front(size, dims, inputs, (0, 1, *range(end, len(inputs))))
        level = tuple(None if d is None else 0 for d in dims[2:end])
        conditions = replace(
            self.conditions,
            batch_ndim=self.conditions.batch_ndim + 1,
            levels=(level, *self.conditions.levels),
        )
        return replace(self, conditions=conditions, extra=(False, *self.extra)), moved
