r"""A problem given by any conditions: unknowns and arguments are pytrees, the solver is anything.

With conditions :math:`R(x, \theta) = 0`, :math:`A = \partial_x R` and :math:`B = \partial_\theta
R`, the implicit function theorem says :math:`A\, dx = -B\, d\theta`; so cotangents :math:`g` of
:math:`x` give :math:`-B^\top u` with :math:`A^\top u = g`. The solve with :math:`A` is an implicit
function again, see :mod:`optlayers.implicit.linear_system`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from solvers.iteration import Run
from solvers.solution import OF_FUNCTIONS, Solution, Status

from ..failure import OnFailure, report
from .adjoints import Adjoint, Linearised
from .arguments import Arguments
from .batching import in_front
from .checks import check
from .chosen import pull, push
from .flat import FlatFunctions
from .function import Tensors, plainly, solve_implicitly
from .graph import Graph
from .kind import Kind
from .linear_system import LinearSystem
from .system import nobody_differentiates
from .unknowns import Unknowns, ravel, unravel


@dataclass(frozen=True)
class Conditions:
    """A problem defined by its conditions, for :func:`optlayers.implicit.solve_implicitly`.

    Inputs are the leaves of ``x0`` and the tensors among the parameters. Outputs are the leaves of
    ``x``, the value if the kind has one, ``status``, ``iterations``, ``error``, and what the solver
    kept.

    Attributes:
        kind: What is looked for.
        unknowns: Structure of ``x``.
        arguments: Structure of the parameters.
        batch_ndim: Leading dimensions that are independent samples, mapped ones included.
        adjoint: How derivatives solve with the Jacobian.
        on_failure: What happens to samples that are not solved.
        levels: For each ``vmap`` around the problem, outermost first, which of the tensors have its
            dimension, in front; ``x`` always has it.
        watched: Whether gradients are wanted, so that one that would be lost is an error.
    """

    kind: Kind
    unknowns: Unknowns
    arguments: Arguments
    batch_ndim: int
    adjoint: Adjoint
    on_failure: OnFailure = "raise"
    levels: tuple[tuple[int | None, ...], ...] = field(default=())
    watched: bool = True

    @property
    def starts(self) -> int:
        """How many of the inputs, counted from the first, are where the solver starts."""
        return len(self.unknowns.shapes)

    @property
    def differentiable(self) -> int:
        """The unknowns and the value."""
        return len(self.unknowns.shapes) + self.kind.has_value

    # --- functions on flat unknowns ---------------------------------------------------------------

    @contextmanager
    def flat_functions(
        self, batch: torch.Size, tensors: Sequence[Tensor]
    ) -> Iterator[FlatFunctions]:
        """Make functions of ``(B, n)`` or ``(*batch, n)`` from a user's functions."""
        of = self.unknowns, self.arguments, batch, self.levels, tensors
        if self.levels:
            yield FlatFunctions(*of)
            return
        with self.arguments.bound(tensors) as values:
            yield FlatFunctions(*of, values)

    def residual(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """The conditions ``(*batch, n)`` at ``x`` ``(*batch, n)``."""
        with self.flat_functions(x.shape[:-1], tensors) as on_flat:
            return on_flat(self.kind.residual)(x)

    def lagrangian(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """The value ``(*batch)`` at ``x`` ``(*batch, n)``."""
        with self.flat_functions(x.shape[:-1], tensors) as on_flat:
            return on_flat(self.kind.value, scalar=True)(x)

    # --- the protocol of the autograd function ----------------------------------------------------

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Run the solver, report failures."""
        count = len(self.unknowns.shapes)
        with plainly(inputs) as given:
            leaves, tensors = given[:count], [t.detach() for t in given[count:]]
            x0 = ravel(leaves, self.batch_ndim)
            batch, size = x0.shape[:-1], x0.shape[-1]
            flat = x0.reshape(batch.numel(), size)
            value = None
            with self.flat_functions(batch, tensors) as on_flat:
                if not self.levels:  # else it was checked before it was mapped
                    first = check(self, leaves, on_flat.values)
                    if self.kind.image is not None:
                        first_flat = ravel(first, self.batch_ndim).reshape(flat.shape)
                        on_flat.know(self.kind.image, flat, first_flat)
                run = self.kind.find(on_flat, flat) if size else _nothing_to_find(flat)
                if max(run.status.tolist(), default=0) > Status.SOLVED_INACCURATE:
                    failed = run.status > Status.SOLVED_INACCURATE
                    self._report(run, batch)
                    # Derivatives are multiplied by zero there, and must be finite for that.
                    run = run._replace(x=torch.where(failed[:, None], flat, run.x))
                x = run.x.reshape(*batch, size)
                if self.kind.has_value:
                    value = on_flat(self.kind.number, scalar=True)(x)
        found = [leaf.clone() for leaf in unravel(x, batch, self.unknowns.shapes)]
        numbers = [run.status, run.iterations, run.error]
        if len(batch) != 1:
            numbers = [t.reshape(batch) for t in numbers]
        kept = [t.reshape((*batch, *t.shape[1:])) for t in run.kept]
        return (*found, *([] if value is None else [value]), *numbers, *kept)

    def _report(self, run: Run, batch: torch.Size) -> None:
        x = self.unknowns.spec.unflatten(
            unravel(run.x.reshape(*batch, -1), batch, self.unknowns.shapes)
        )
        solution = Solution(
            x,
            run.status.reshape(batch),
            run.iterations.reshape(batch),
            dual_residual=run.error.reshape(batch),
        )
        report(self.kind.where, self.on_failure, solution, OF_FUNCTIONS)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes of the outputs; compiled code keeps no factorisation."""
        leaves = [t for t in inputs[: len(self.unknowns.shapes)] if t is not None]
        batch = leaves[0].shape[: self.batch_ndim]
        value = [leaves[0].new_empty(batch)] if self.kind.has_value else []
        integers = [leaves[0].new_empty(batch, dtype=torch.long) for _ in range(2)]
        return (*map(torch.empty_like, leaves), *value, *integers, leaves[0].new_empty(batch))

    def _parts(
        self, inputs: Tensors, outputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The solution laid end to end, the tensors among the parameters, what the solver kept."""
        count = len(self.unknowns.shapes)
        x = ravel(outputs[:count], self.batch_ndim)
        tensors = [t for t in inputs[self.starts :] if t is not None]
        return x, tensors, list(outputs[self.differentiable + 3 :])

    def linear(
        self,
        v: Tensor,
        x: Tensor,
        tensors: Sequence[Tensor],
        kept: Sequence[Tensor],
        transposed: bool,
    ) -> Tensor:
        """Solve with the Jacobian of the conditions or its transpose."""
        flags = (False,) * self.batch_ndim
        system = LinearSystem(self, transposed, len(kept), flags)
        return solve_implicitly(system, v, x, *tensors, *kept)[0]

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """Cotangents of the parameters; the starting point has none."""
        count, first = len(self.unknowns.shapes), self.starts
        x, tensors, kept = self._parts(inputs, outputs)
        grads: list[Tensor | None] = [None] * len(inputs)
        chosen = [i for i, t in enumerate(tensors) if needed[first + i] and t.is_floating_point()]
        if not chosen:
            return grads
        if not torch.compiler.is_compiling() and nobody_differentiates(cotangents):
            found = self._vjp_plainly(outputs, cotangents, x, tensors, kept, chosen)
            for i, g in zip(chosen, found, strict=True):
                grads[first + i] = g
            return grads
        point = [x, *tensors]
        places = [1 + i for i in chosen]
        parts: list[tuple[Tensor, ...]] = []
        g_x = self._of_unknowns(outputs, cotangents)
        if g_x is not None:
            u = self.linear(g_x, x, tensors, kept, True)
            parts.append(pull(self.residual, point, places, -u))
        g_value = cotangents[count] if self.kind.has_value else None
        if g_value is not None:
            parts.append(pull(self.lagrangian, point, places, g_value))
        for i, *pulled in zip(chosen, *parts, strict=True):
            grads[first + i] = sum(pulled[1:], pulled[0]) if pulled else None
        return grads

    def _of_unknowns(self, outputs: Sequence[Tensor], cotangents: Tensors) -> Tensor | None:
        """Cotangents of all unknowns laid end to end, if there are any."""
        count = len(self.unknowns.shapes)
        given = cotangents[:count]
        if all(g is None for g in given):
            return None
        leaves = zip(given, outputs[:count], strict=True)
        whole = [torch.zeros_like(t) if g is None else g for g, t in leaves]
        return ravel(whole, self.batch_ndim)

    def _vjp_plainly(
        self,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        x: Tensor,
        tensors: Sequence[Tensor],
        kept: Sequence[Tensor],
        chosen: Sequence[int],
    ) -> list[Tensor | None]:
        """The same where nobody differentiates the gradients again: one graph serves all of it."""
        batch, n = x.shape[:-1], x.shape[-1]
        rows = batch.numel()
        whole = [t.detach() for t in tensors]
        for i in chosen:
            whole[i] = whole[i].requires_grad_()
        leaves = [whole[i] for i in chosen]
        grads: list[Tensor | None] = [None] * len(chosen)

        def add(found: Sequence[Tensor | None]) -> None:
            for i, g in enumerate(found):
                if g is not None:
                    before = grads[i]
                    grads[i] = g if before is None else before + g

        g_x = self._of_unknowns(outputs, cotangents)
        g_value = cotangents[len(self.unknowns.shapes)] if self.kind.has_value else None
        with self.flat_functions(batch, whole) as on_flat:
            if g_x is not None:
                graph = self._graph(on_flat, x.reshape(rows, n), leaves)
                if graph.value.requires_grad:
                    system = Linearised(
                        on_flat(self.kind.residual),
                        graph.x,
                        self.kind,
                        tuple([t.reshape(rows, *t.shape[len(batch) :]) for t in kept]),
                        True,
                        self.on_failure,
                        graph,
                        on_flat(self.kind.signs) if self.kind.has_multipliers else None,
                    )
                    with torch.no_grad():
                        u, _ = self.adjoint.solve(system, g_x.reshape(1, rows, n))
                        add(graph.for_leaves(u))
            if g_value is not None:
                with torch.enable_grad():
                    value = on_flat(self.kind.value, scalar=True)(x.detach().reshape(rows, n))
                if value.requires_grad:
                    given = g_value.reshape(rows)
                    add(torch.autograd.grad(value, leaves, given, allow_unused=True))
        return grads

    def _graph(self, on_flat: FlatFunctions, x: Tensor, leaves: Sequence[Tensor]) -> Graph:
        image = self.kind.image
        if image is None:
            return Graph(on_flat(self.kind.residual), x, leaves)
        return Graph(on_flat(image), x, leaves, of_image=True)

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Tangents of the unknowns and of the value."""
        x, tensors, kept = self._parts(inputs, outputs)
        given = tangents[self.starts :]
        places = [1 + i for i, t in enumerate(given) if t is not None]
        if not places:
            return [torch.zeros_like(t) for t in outputs[: self.differentiable]]
        point, along = [x, *tensors], [t for t in given if t is not None]
        d_x = -self.linear(push(self.residual, point, places, along), x, tensors, kept, False)
        pushed = [t.clone() for t in unravel(d_x, x.shape[:-1], self.unknowns.shapes)]
        if self.kind.has_value:
            pushed.append(push(self.lagrangian, point, places, along))
        return pushed

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["Conditions", Tensors]:
        """Map the conditions, and let the solver see one more batch dimension."""
        moved = in_front(size, dims, inputs, range(self.starts))
        level = tuple(None if d is None else 0 for d in dims[self.starts :])
        return replace(self, batch_ndim=self.batch_ndim + 1, levels=(level, *self.levels)), moved


def _nothing_to_find(x: Tensor) -> Run:
    """The solution of problems without unknowns."""
    zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return Run(x, zeros, zeros, zeros.to(x), None, (), None)
