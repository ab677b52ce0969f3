r"""A problem given by any conditions: unknowns and arguments are pytrees, the solver is anything.

With conditions :math:`R(x, \theta) = 0`, :math:`A = \partial_x R` and :math:`B = \partial_\theta
R`, the implicit function theorem says :math:`A\, dx = -B\, d\theta`; so cotangents :math:`g` of
:math:`x` give :math:`-B^\top u` with :math:`A^\top u = g`. The solve with :math:`A` is an implicit
function again, see :mod:`optlayers.implicit.linear_system`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.func import jvp, vjp, vmap
from torch.utils import _pytree as pytree

from solvers.iteration import Run
from solvers.solution import Solution, Status

from ..failure import OnFailure, check_policy, paint, report
from .adjoints import Adjoint, Linearised, OneStep, Unrolled
from .arguments import Arguments, ravel, take_apart, unravel
from .function import Tensors, in_full_precision, sharing_the_dual_level, solve_implicitly
from .linear_system import LinearSystem
from .system import nobody_differentiates

OnFlat = Callable[..., Callable[..., Tensor]]
CAPTURED = (
    "the function depends on a tensor that carries derivatives, or is mapped by vmap, and is not "
    "one of its arguments, so its gradient would be lost. Pass the tensor, or the module it "
    "belongs to, as a parameter: what follows x0 is handed on to the function. Detach it if it is "
    "meant to be a constant."
)


class Kind(ABC):
    """What is looked for, and who looks for it. Subclasses are frozen dataclasses.

    Attributes:
        where: The name of the function that the user called, for messages.
        symmetric: Whether the Jacobian of the residual is symmetric.
        has_value: Whether :meth:`value` is there.
    """

    where: ClassVar[str]
    symmetric: ClassVar[bool] = False
    has_value: ClassVar[bool] = False

    @abstractmethod
    def residual(self, x: Any, *params: Any) -> Any:
        """Zero at the solution, and of the structure of ``x``; differentiable torch code."""

    def value(self, x: Any, *params: Any) -> Tensor:
        """The Lagrangian ``(*batch)``: at the solution, its derivatives are the optimal value's."""
        raise NotImplementedError

    def number(self, x: Any, *params: Any) -> Tensor:
        """The value without the terms that are zero, but for rounding."""
        return self.value(x, *params)

    @abstractmethod
    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """Find a solution for every row of ``x0`` ``(B, n)``.

        ``on_flat(function)`` makes of a user's ``function(x, *params)`` a map from ``(B, n)`` to
        ``(B, m)``, or to ``(B)`` with ``scalar=True``. What else it is given, ``(B, 1)``, is handed
        on between ``x`` and the parameters.
        """

    def apply_inverse(self, kept: tuple[Tensor, ...], v: Tensor, *, transposed: bool) -> Tensor:
        """Solve approximately with the Jacobian of the residual, by what the solver kept."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unknowns:
    """The structure of the unknowns: of a pytree, with the shape of one sample of each leaf."""

    spec: pytree.TreeSpec
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, where: str, x0: Any, batch_ndim: int) -> tuple["Unknowns", list[Tensor]]:
        """Of a pytree of tensors that share dtype, device and batch dimensions.

        Raises:
            TypeError: If a leaf is no floating-point tensor.
            ValueError: If leaves do not share dtype or batch dimensions.
        """
        leaves, spec = pytree.tree_flatten(x0)
        if not leaves:
            raise ValueError(f"{where}: x0 must hold at least one tensor; got {x0!r}.")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.dtype not in (torch.float32, torch.float64):
                what = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(
                    f"{where}: x0 must be a tensor of float32 or float64, or a pytree of them; got "
                    f"{what}. Convert it, for example with .double()."
                )
        batches = {leaf.shape[:batch_ndim] for leaf in leaves}
        if len(batches) > 1 or min(leaf.ndim for leaf in leaves) < batch_ndim:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
            raise ValueError(
                f"{where}: the first {batch_ndim} dimensions of x0 count independent samples "
                f"(batch_ndim={batch_ndim}) and must agree; got shapes {shapes}."
            )
        if len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
            kinds = ", ".join(f"{leaf.dtype} on {leaf.device}" for leaf in leaves)
            raise ValueError(
                f"{where}: all tensors of x0 must have one dtype and device; got {kinds}."
            )
        return cls(spec, tuple(tuple(leaf.shape[batch_ndim:]) for leaf in leaves)), leaves

    @property
    def size(self) -> int:
        """Number of unknowns of a sample."""
        return sum(map(prod, self.shapes))


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
    def flat_functions(self, batch: torch.Size, tensors: Sequence[Tensor]) -> Iterator[OnFlat]:
        """Make functions of ``(B, n)`` or ``(*batch, n)`` from a user's functions."""
        shapes, spec = self.unknowns.shapes, self.unknowns.spec
        samples = batch[len(self.levels) :]

        def call(
            function: Callable[..., Any], x: Tensor, step: Sequence[Tensor], values: Sequence[Any]
        ) -> list[Tensor]:
            leaves = unravel(x, samples, shapes)
            sized = [t.reshape((*samples, *[1] * len(shapes[0]))) for t in step]
            if spec.is_leaf():
                result = function(leaves[0], *sized, *values)
                return [result] if isinstance(result, Tensor) else pytree.tree_leaves(result)
            return in_order_of(spec, function(spec.unflatten(leaves), *sized, *values))

        def on_flat(function: Callable[..., Any], *, scalar: bool = False) -> Callable[..., Tensor]:
            if self.levels:

                def mapped(x: Tensor, step: Sequence[Tensor], *tensors: Tensor) -> list[Tensor]:
                    with self.arguments.bound(tensors) as values:
                        return call(function, x, step, values)

                for dims in reversed(self.levels):
                    mapped = vmap(mapped, in_dims=(0, 0, *dims))

                def evaluate(x: Tensor, step: Sequence[Tensor]) -> list[Tensor]:
                    step = [t.reshape(batch) for t in step]
                    return mapped(x.reshape((*batch, x.shape[-1])), step, *tensors)

            else:

                def evaluate(x: Tensor, step: Sequence[Tensor]) -> list[Tensor]:
                    return call(function, x, step, values)

            def flat_function(x: Tensor, *step: Tensor) -> Tensor:
                leaves = evaluate(x, step)
                if scalar:
                    return leaves[0].reshape(x.shape[:-1])
                flat = ravel(leaves, len(batch))
                return flat.reshape((*x.shape[:-1], flat.shape[-1]))

            return flat_function

        if self.levels:
            yield on_flat
            return
        with self.arguments.bound(tensors) as values:
            yield on_flat

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
            leaves, tensors = given[:count], given[count:]
            self.check(leaves, tensors)
            x0 = ravel(leaves, self.batch_ndim)
            batch, size = x0.shape[:-1], x0.shape[-1]
            flat = x0.reshape(batch.numel(), size)
            with self.flat_functions(batch, tensors) as on_flat:
                run = self.kind.find(on_flat, flat) if size else _nothing_to_find(flat)
            value = None
            failed = run.status > Status.SOLVED_INACCURATE
            if bool(failed.any()):
                self._report(run, batch)
                # Derivatives are multiplied by zero there, and must be finite for that.
                run = run._replace(x=torch.where(failed[:, None], flat, run.x))
            x = run.x.reshape(*batch, size)
            if self.kind.has_value:
                with self.flat_functions(batch, tensors) as on_flat:
                    value = on_flat(self.kind.number, scalar=True)(x)
        found = [leaf.clone() for leaf in unravel(x, batch, self.unknowns.shapes)]
        numbers = [t.reshape(batch) for t in (run.status, run.iterations, run.error)]
        kept = [t.reshape((*batch, *t.shape[1:])) for t in run.kept]
        return (*found, *([] if value is None else [value]), *numbers, *kept)

    def check(self, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Refuse conditions of another shape than the unknowns, and gradients that would be lost.

        Raises:
            ValueError: If the conditions do not have the structure of ``x``.
            RuntimeError: If the conditions depend on something differentiable that is no argument.
        """
        if self.levels:
            return  # was done before it was mapped, or is a tangent of what was
        x = self.unknowns.spec.unflatten([leaf.detach() for leaf in leaves])
        with torch.enable_grad(), self.arguments.bound([t.detach() for t in tensors]) as values:
            before = [leaf._version for leaf in pytree.tree_leaves(x)]
            got = self.kind.residual(x, *values)
            value = self.kind.value(x, *values) if self.kind.has_value else None
        if [leaf._version for leaf in pytree.tree_leaves(x)] != before:
            raise RuntimeError(
                f"{self.kind.where}: the function must not change its argument; got one that "
                "writes into x. Work on x.clone(), or without operations in place."
            )
        residuals = self._leaves_like(leaves, got)
        if residuals and residuals[0].dtype != leaves[0].dtype:
            raise TypeError(
                f"{self.kind.where}: the function must return the dtype of x0, {leaves[0].dtype}; "
                f"got {residuals[0].dtype}. Convert x0 or the parameters."
            )
        if self.watched and any(
            t.requires_grad for t in (*residuals, *([] if value is None else [value]))
        ):
            raise RuntimeError(f"{self.kind.where}: {CAPTURED}")

    def _leaves_like(self, leaves: Sequence[Tensor], got: Any) -> list[Tensor]:
        """The leaves of what a function returned, in the order of ``x`` and of its shapes."""
        wanted = [tuple(leaf.shape) for leaf in leaves]
        residuals = in_order_of(self.unknowns.spec, got)
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else t for t in residuals]
        if shapes != wanted or not _matches(self.unknowns.spec, got):
            raise ValueError(
                f"{self.kind.where}: the function must return what has the structure and shapes of "
                f"x0, {wanted}; got {shapes}. It gets all samples at once, with their batch "
                "dimensions in front."
            )
        return residuals

    def check_transformed(self, leaves: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Refuse what is captured from around a transform, which nobody sees from within.

        The function is called with constants, so that only what it captures can carry derivatives
        or a mapped dimension.

        Raises:
            RuntimeError: If it captures such a tensor.
        """
        if torch.compiler.is_compiling():
            return
        transformed = torch._C._are_functorch_transforms_active()
        if not transformed and forward_ad._current_level < 0:
            return

        def constant(t: Tensor) -> Tensor:
            value = 0.5 if t.is_floating_point() else 0
            return torch.full(t.shape, value, dtype=t.dtype, device=t.device)

        x = self.unknowns.spec.unflatten([constant(t) for t in leaves])
        with torch.enable_grad(), self.arguments.bound([constant(t) for t in tensors]) as values:
            got = self._leaves_like(leaves, self.kind.residual(x, *values))
            if self.kind.has_value:
                got.append(self.kind.value(x, *values))
        if not self.watched:
            return
        for t in got:
            inner = t
            captured = forward_ad.unpack_dual(t).tangent is not None
            while is_functorch_wrapped_tensor(inner):
                captured = captured or is_batchedtensor(inner) or inner.requires_grad
                inner = get_unwrapped(inner)
            if captured or inner.requires_grad:
                raise RuntimeError(f"{self.kind.where}: {CAPTURED}")

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
        report(self.kind.where, self.on_failure, solution)

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
        pulled: list[Tensor | None] = [None] * len(chosen)

        def pull(function: Callable[..., Tensor], cotangent: Tensor, sign: float) -> None:
            def of_chosen(*values: Tensor) -> Tensor:
                return function(x, *_put(tensors, chosen, values))

            _, *rest = vjp(of_chosen, *(tensors[i] for i in chosen))
            for i, g in enumerate(rest[0](cotangent)):
                before = pulled[i]
                g = -g if sign < 0 else g
                pulled[i] = g if before is None else before + g

        g_x = self._of_unknowns(outputs, cotangents)
        if g_x is not None:
            pull(self.residual, self.linear(g_x, x, tensors, kept, True), -1.0)
        if self.kind.has_value:
            g_value = cotangents[count]
            if g_value is not None:
                pull(self.lagrangian, g_value, 1.0)
        for i, g in zip(chosen, pulled, strict=True):
            grads[first + i] = g
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

        def add(value: Tensor, cotangent: Tensor, sign: float) -> None:
            if not value.requires_grad:
                return
            found = torch.autograd.grad(value, leaves, cotangent, allow_unused=True)
            for i, g in enumerate(found):
                if g is not None:
                    before, g = grads[i], -g if sign < 0 else g
                    grads[i] = g if before is None else before + g

        g_x = self._of_unknowns(outputs, cotangents)
        g_value = cotangents[len(self.unknowns.shapes)] if self.kind.has_value else None
        with self.flat_functions(batch, whole) as on_flat:
            if g_x is not None:
                function = on_flat(self.kind.residual)
                with torch.enable_grad():
                    point = x.detach().reshape(rows, n).requires_grad_()
                    value = function(point)
                if value.requires_grad:
                    system = Linearised(
                        function,
                        point,
                        self.kind,
                        tuple(t.reshape(rows, *t.shape[len(batch) :]) for t in kept),
                        True,
                        self.on_failure,
                        (point, value),
                    )
                    with torch.no_grad():
                        u, _ = self.adjoint.solve(system, g_x.reshape(1, rows, n))
                    add(value, u[0], -1.0)
            if g_value is not None:
                with torch.enable_grad():
                    value = on_flat(self.kind.value, scalar=True)(x.detach().reshape(rows, n))
                add(value, g_value.reshape(rows), 1.0)
        return grads

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """Tangents of the unknowns and of the value."""
        x, tensors, kept = self._parts(inputs, outputs)
        given = tangents[self.starts :]
        chosen = [i for i, t in enumerate(given) if t is not None]
        moved = tuple(tensors[i] for i in chosen)
        along = tuple(t for t in given if t is not None)

        def push(function: Callable[..., Tensor]) -> Tensor:
            def of_chosen(*values: Tensor) -> Tensor:
                return function(x, *_put(tensors, chosen, values))

            pushed: Tensor = jvp(of_chosen, moved, along)[1]
            return pushed

        if not chosen:
            return [torch.zeros_like(t) for t in outputs[: self.differentiable]]
        d_x = -self.linear(push(self.residual), x, tensors, kept, False)
        pushed = [t.clone() for t in unravel(d_x, x.shape[:-1], self.unknowns.shapes)]
        return [*pushed, push(self.lagrangian)] if self.kind.has_value else pushed

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["Conditions", Tensors]:
        """Map the conditions, and let the solver see one more batch dimension."""
        moved = [
            t if t is None or d is None else t.movedim(d, 0)
            for t, d in zip(inputs, dims, strict=True)
        ]
        for i in range(self.starts):
            t = moved[i]
            if dims[i] is None and t is not None:
                moved[i] = t.expand(size, *t.shape)
        level = tuple(None if d is None else 0 for d in dims[self.starts :])
        return replace(self, batch_ndim=self.batch_ndim + 1, levels=(level, *self.levels)), moved


def in_order_of(spec: pytree.TreeSpec, tree: Any) -> list[Any]:
    """The leaves of a tree in the order of a structure, whose dictionaries may differ in theirs."""
    leaves, own = pytree.tree_flatten(tree)
    if own == spec or not _matches(spec, tree):
        return leaves
    return spec.flatten_up_to(tree)


def _matches(spec: pytree.TreeSpec, tree: Any) -> bool:
    if pytree.tree_structure(tree) == spec:
        return True
    try:
        return all(isinstance(t, Tensor) for t in spec.flatten_up_to(tree))
    except (ValueError, TypeError):
        return False


def _nothing_to_find(x: Tensor) -> Run:
    """The solution of problems without unknowns."""
    zeros = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return Run(x, zeros, zeros, zeros.to(x), None, (), None)


def _put(
    tensors: Sequence[Tensor], chosen: Sequence[int], values: Sequence[Tensor]
) -> list[Tensor]:
    """The tensors with others in the chosen places."""
    whole = list(tensors)
    for i, value in zip(chosen, values, strict=True):
        whole[i] = value
    return whole


@contextmanager
def plainly(inputs: Sequence[Tensor | None]) -> Iterator[list[Tensor]]:
    """The inputs where solvers can use them: in full precision, and where derivatives exist."""
    given = [t for t in inputs if t is not None]
    full = in_full_precision(given)
    with torch.inference_mode(False), torch.no_grad(), sharing_the_dual_level(), full:
        ready = [t.clone() if t.is_inference() else t for t in given]
        if forward_ad._current_level >= 0:
            ready = [forward_ad.unpack_dual(t).primal for t in ready]
        yield ready


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
    problem.check_transformed(leaves, tensors)
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
