"""Any solver with any conditions as a differentiable function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar
from weakref import finalize

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solvers.iteration import Run
from solvers.solution import Solution, Status

from .failure import OnFailure, check_policy, paint
from .implicit.adjoints import Adjoint, Unrolled
from .implicit.arguments import Arguments, take_apart
from .implicit.automatic import Automatic
from .implicit.checks import check, check_transformed
from .implicit.conditions import Conditions
from .implicit.function import Tensors, plainly, solve_implicitly
from .implicit.kind import Kind, OnFlat
from .implicit.unknowns import Unknowns, ravel, unravel

# A sample whose solver said nothing is judged by the norm of its conditions, relative to 1 + |x|.
SOLVED = {torch.float64: 1e-6, torch.float32: 1e-4}
INACCURATE = 1e-2


@dataclass(frozen=True)
class Given(Kind):
    """Zeros of a user's conditions, found by a user's solver."""

    conditions: Callable[..., Any]

    where: ClassVar[str] = "implicit_function"

    def residual(self, x: Any, *params: Any) -> Any:
        """The conditions."""
        return self.conditions(x, *params)

    def find(self, on_flat: OnFlat, x0: Tensor) -> Run:
        """Nothing to look for: the solver has been called already."""
        raise NotImplementedError


NOT_YET_CALLED = (
    "implicit_function: torch.compile needs the shape of the solution, and only the solver knows "
    "it. Call the function once with inputs of these shapes before you compile it."
)


Shapes = tuple[tuple[int, ...], ...]


class Memory:  # kept alive by those who use it, and found by number by the compiler
    """What only the solver's answers tell, by the shapes of the inputs that gave them.

    Attributes:
        unknowns: Structure of the solution.
        aux: Structure of what came with it.
        outputs: Shapes and types of all outputs, by the shapes of the inputs that gave them.
    """

    def __init__(self) -> None:
        self.unknowns: dict[Shapes, Unknowns] = {}
        self.aux: dict[Shapes, Arguments] = {}
        self.outputs: dict[Shapes, list[tuple[torch.Size, torch.dtype]]] = {}


_memories: dict[int, Memory] = {}
_numbers = count()


@dataclass(frozen=True)
class Answers:
    """The structure of a solution, in place of :class:`Unknowns`: known from the first answer on.

    Attributes:
        number: Of the memory. The compiler takes numbers, and no objects.
        inputs: Shapes of the inputs.
        memory: What is known.
    """

    number: int
    inputs: Shapes
    memory: Memory = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find the memory, and keep it."""
        object.__setattr__(self, "memory", _memories[self.number])

    @property
    def spec(self) -> pytree.TreeSpec:
        """Of the solution's pytree."""
        return self._unknowns.spec

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of one sample of each of its leaves."""
        return self._unknowns.shapes

    @property
    def _unknowns(self) -> Unknowns:
        unknowns = self.memory.unknowns.get(self.inputs)
        if unknowns is None:
            raise NotImplementedError(NOT_YET_CALLED)
        return unknowns


@dataclass(frozen=True)
class SolvedByUser(Conditions):
    """Conditions whose solver is a user's function of the parameters.

    Attributes:
        solver: The user's function.
        has_aux: Whether it returns a pair.
    """

    solver: Callable[..., Any] = field(kw_only=True)
    has_aux: bool = field(kw_only=True)
    answers: Answers = field(kw_only=True)

    @property
    def starts(self) -> int:
        """The solver starts where it likes."""
        return 0

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Call the user's solver, once or, under ``vmap``, for every element."""
        with plainly(inputs) as tensors:
            leaves, (status, iterations), aux = self._call(tensors, self.levels)
            if not self.levels:  # else it was checked before it was mapped
                with self.arguments.bound([t.detach() for t in tensors]) as values:
                    check(self, leaves, values)
            x = ravel(leaves, self.batch_ndim)
            error = torch.linalg.vector_norm(self.residual(x, *tensors), dim=-1)
            status = _judged(x, error) if status is None else status
            iterations = torch.zeros_like(status) if iterations is None else iterations
            failed = status > Status.SOLVED_INACCURATE
            if bool(failed.any()):
                batch = x.shape[:-1]
                flat = [t.reshape(-1) for t in (status, iterations, error)]
                run = Run(x.reshape(batch.numel(), -1), flat[0], flat[1], flat[2], None, (), None)
                self._report(run, batch)
                # Derivatives are multiplied by zero there, and must be finite for that.
                x = torch.where(failed[..., None], 0.0, x)
                leaves = unravel(x, batch, self.unknowns.shapes)
        outputs = (*(t.clone() for t in leaves), status, iterations, error, *aux)
        if not self.levels:
            like = [(t.shape, t.dtype) for t in outputs]
            self.answers.memory.outputs[tuple(t.shape for t in tensors)] = like
        return outputs

    def _parts(
        self, inputs: Tensors, outputs: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What comes after the numbers is auxiliary here."""
        return super()._parts(inputs, outputs[: self.differentiable + 3])

    def _call(
        self, tensors: Sequence[Tensor], levels: Sequence[tuple[int | None, ...]]
    ) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
        """Solution, status and iterations, and auxiliary tensors."""
        if not levels:
            return self._answer(tensors)
        dims, *rest = levels
        size = next(t.shape[0] for t, d in zip(tensors, dims, strict=True) if d is not None)
        answers = [
            self._call([t if d is None else t[i] for t, d in zip(tensors, dims, strict=True)], rest)
            for i in range(size)
        ]

        def stack(part: int) -> list[Any]:
            columns = zip(*(answer[part] for answer in answers), strict=True)
            return [None if c[0] is None else torch.stack(c) for c in columns]

        return stack(0), stack(1), stack(2)

    def _answer(
        self, tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
        with self.arguments.bound([t.detach() for t in tensors]) as values:
            found = self.solver(*values)
        aux: list[Tensor] = []
        if self.has_aux:
            found, rest = found
            aux, self.answers.memory.aux[self.answers.inputs] = take_apart(rest)
        numbers: list[Tensor | None] = [None, None]
        if isinstance(found, Solution):
            numbers = [found.status, found.iterations]
            found = found.x
        like = next((t for t in tensors if t.is_floating_point()), None)

        def as_tensor(t: Any) -> Tensor:
            if like is None:
                return torch.as_tensor(t).detach().clone()
            return torch.as_tensor(t).detach().to(like, copy=True)  # numbers come as float64

        tree = pytree.tree_map(as_tensor, found)
        ndim = self.batch_ndim - len(self.levels)
        unknowns, leaves = Unknowns.of(self.kind.where, tree, ndim)
        self.answers.memory.unknowns[self.answers.inputs] = unknowns
        return leaves, numbers, [t.detach() for t in aux]

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shapes as they were when the solver got inputs of these shapes."""
        shapes = tuple(t.shape for t in inputs if t is not None)
        known = self.answers.memory.outputs.get(shapes)
        if known is None:
            raise NotImplementedError(NOT_YET_CALLED)
        device = next((t.device for t in inputs if t is not None), None)
        return tuple(torch.empty(size, dtype=dtype, device=device) for size, dtype in known)


def _judged(x: Tensor, error: Tensor) -> Tensor:
    """A status from the norm of the conditions."""
    relative = error / (1 + torch.linalg.vector_norm(x, dim=-1))
    status = torch.full_like(error, int(Status.MAX_ITERATIONS), dtype=torch.long)
    status[relative <= INACCURATE] = Status.SOLVED_INACCURATE
    status[relative <= SOLVED.get(x.dtype, INACCURATE)] = Status.SOLVED
    status[~error.isfinite()] = Status.NUMERICAL_ERROR
    return status


class ImplicitFunction:
    """What :func:`implicit_function` makes: a map from the parameters to a solution."""

    def __init__(
        self,
        solve: Callable[..., Any],
        conditions: Callable[..., Any],
        adjoint: Adjoint,
        has_aux: bool,
        batch_ndim: int,
        on_failure: OnFailure,
    ) -> None:
        self.solve, self.conditions = solve, conditions
        self.adjoint, self.has_aux = adjoint, has_aux
        self.batch_ndim, self.on_failure = batch_ndim, on_failure
        self.number = next(_numbers)
        self.memory = _memories[self.number] = Memory()
        finalize(self, _memories.pop, self.number, None)  # graphs of earlier calls keep their own

    def __call__(self, *params: Any) -> Any:
        """Solve; a :class:`Solution`, or a pair of one and the auxiliary output."""
        tensors, arguments = take_apart(params)
        answers = Answers(self.number, tuple([tuple(t.shape) for t in tensors]))
        problem = SolvedByUser(
            Given(self.conditions),
            answers,  # type: ignore[arg-type]
            arguments,
            self.batch_ndim,
            self.adjoint,
            self.on_failure,
            solver=self.solve,
            has_aux=self.has_aux,
            answers=answers,
            watched=torch.is_grad_enabled(),
        )
        outputs = solve_implicitly(problem, *tensors)
        check_transformed(problem, outputs[: problem.differentiable], tensors)
        leaves = len(answers.shapes)
        found = list(outputs[:leaves])
        status, iterations, error = outputs[leaves : leaves + 3]
        if self.on_failure != "raise":
            found = [paint(t, status <= int(Status.SOLVED_INACCURATE)) for t in found]
        x = answers.spec.unflatten(found)
        solution = Solution(x, status, iterations, dual_residual=error)
        if not self.has_aux:
            return solution
        return solution, self.memory.aux[answers.inputs].plain(outputs[leaves + 3 :])


def implicit_function(
    solve: Callable[..., Any],
    conditions: Callable[..., Any],
    *,
    adjoint: Adjoint | None = None,
    has_aux: bool = False,
    batch_ndim: int = 0,
    on_failure: OnFailure = "raise",
) -> Callable[..., Any]:
    r"""Make a differentiable function of any solver and of the conditions that its results satisfy.

    The solver may be anything: NumPy, SciPy, a C library, a subprocess. It is called with detached
    tensors and never differentiated; derivatives of every order and in every mode come from
    :math:`R(x(\theta), \theta) = 0`.

    Args:
        solve: Maps the parameters to the solution :math:`x`: a tensor, an array, a pytree of them,
            or a :class:`Solution`. Under ``vmap`` it is called once an element.
        conditions: Maps :math:`x` and the parameters to :math:`R`, which has the structure and
            shapes of :math:`x`; differentiable torch code.
        adjoint: How derivatives solve with the Jacobian of the conditions; by default
            :class:`Dense` for up to some hundred unknowns, :class:`Iterative` beyond.
        has_aux: Whether ``solve`` returns a pair, whose second part is handed on without
            derivatives.
        batch_ndim: Leading dimensions of :math:`x` that are independent samples.
        on_failure: See :func:`root`.

    Returns:
        A function of the parameters, as ``solve`` takes them, that returns a :class:`Solution`, or
        with ``has_aux`` a pair. If the solver gave no status, it is judged by the norm of the
        conditions: a sample counts as solved up to :math:`10^{-6} (1 + \|x\|)` in float64,
        :math:`10^{-4} (1 + \|x\|)` in float32. Under ``torch.compile``, call it once beforehand:
        only the solver knows the shape of :math:`x`.

    Raises:
        SolverError: If a sample does not satisfy the conditions, or they are singular in backward.
        RuntimeError: If the conditions capture something that requires a gradient.
        ValueError: If the conditions have another structure than :math:`x`.

    References:
        Blondel et al., *Efficient and modular implicit differentiation*, NeurIPS 2022.

    Example:
        >>> import scipy.optimize, torch, optlayers as ol
        >>> def solve(c):
        ...     return scipy.optimize.brentq(lambda x: x**3 + x - c.item(), 0, 10)
        >>> root = ol.implicit_function(solve, lambda x, c: x**3 + x - c)
        >>> c = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> x = root(c).x
        >>> x.backward()
        >>> c.grad
        tensor(0.2500, dtype=torch.float64)
    """
    check_policy("implicit_function", on_failure)
    if isinstance(adjoint, Unrolled):
        raise TypeError(
            "implicit_function: Unrolled differentiates steps of a fixed-point map; got it as the "
            "adjoint of general conditions. Use fixed_point, or another adjoint."
        )
    adjoint = Automatic() if adjoint is None else adjoint
    return ImplicitFunction(solve, conditions, adjoint, has_aux, batch_ndim, on_failure)
