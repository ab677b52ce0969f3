"""What all solvers of cone programs share: the entry point, refinement, and the verdict."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._threads import calm, spread
from ..batch import flat
from ..outcomes import table
from ..solution import Solution, Status
from .arrays import largest
from .cone_program import ConeProgram
from .judge import Candidates, Judge
from .product import ConeProduct
from .scaling import Points
from .stack import Instance, Stack, stacks_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
# A solver's last digits cost it the most, where rounding sets in; Newton's method gets them for a
# few steps. Only where that fails the solver has to get as near as it can.
NEAR, AS_NEAR_AS_IT_CAN = 1e-6, 0.1
# Least tolerance for data in lower precision, whose dependent rows contradict by rounding.
ROUGH = 1e-6
BY_ROUNDING = [
    int(s) for s in (Status.PRIMAL_INFEASIBLE, Status.NUMERICAL_ERROR, Status.MAX_ITERATIONS)
]
# Steps of Newton's method after a solver, and from a user's guess.
POLISH, FROM_A_GUESS = 5, 10


class Point(NamedTuple):
    """A point ``x`` ``(n)`` of one program with slack and multiplier ``s, z`` ``(m)``."""

    x: Floats
    s: Floats
    z: Floats

    @property
    def is_finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(np.isfinite(t).all()) for t in self)


class Answer(NamedTuple):
    """What a solver says of one program.

    Attributes:
        point: None if it has nothing to show.
        claim: What it claims.
        iterations: How many it took.
    """

    point: Point | None
    claim: Status
    iterations: int


Finder = Callable[[Instance, Point | None], Answer]


@dataclass(eq=False)
class Outcome:
    """A judged batch in flat form; see :class:`~solvers.solution.Solution` for the parts."""

    x: Tensor
    s: Tensor
    z: Tensor
    objective: Tensor
    status: Tensor
    iterations: Tensor
    primal: Tensor
    dual: Tensor
    gap: Tensor

    @classmethod
    def empty(cls, batch: int, n: int, m: int) -> "Outcome":
        """Room for the results, NaN until they are there."""

        def nan(*shape: int) -> Tensor:
            return torch.from_numpy(np.full(shape, np.nan))

        status = torch.from_numpy(np.full(batch, int(Status.NUMERICAL_ERROR)))
        iterations = torch.from_numpy(np.zeros(batch, np.int64))
        vectors = nan(batch, n), nan(batch, m), nan(batch, m)
        return cls(*vectors, nan(batch), status, iterations, nan(batch), nan(batch), nan(batch))

    def put(self, stack: Stack, found: Candidates, status: Integers) -> None:
        """Keep the results of some programs; of those without a solution, the status only."""
        numbers, scaling = stack.numbers, stack.scaling
        points, r_x, r_s = found.points, found.r_x, found.r_s
        value, gap = found.objective, found.gap
        if scaling is not None:
            points = scaling.out_of(points)
            r_x, r_s = r_x * scaling.of_r_x, r_s * scaling.of_s
            value, gap = value * scaling.of_value, gap * scaling.of_value
        self.status.numpy()[numbers] = status
        self.primal.numpy()[numbers] = largest(r_s)
        self.dual.numpy()[numbers] = largest(r_x)
        self.gap.numpy()[numbers] = gap
        shown = status <= int(Status.MAX_ITERATIONS)
        for own, part in (
            (self.x, points.x), (self.s, points.s), (self.z, points.z), (self.objective, value),
        ):  # fmt: skip
            own.numpy()[numbers[shown]] = part[shown]


@dataclass(frozen=True)
class ConeSolver(ABC):
    """Base of the solvers of cone programs; a subclass provides ``prepare``.

    After the solver, Newton's method on the optimality conditions takes what is left of the error,
    so that derivatives are those of a point that is right to rounding.

    Attributes:
        eps_abs: Absolute tolerance on the primal and dual residuals and on the duality gap.
        eps_rel: The same relative to the largest term of each.
        max_iter: Iterations allowed to each program.
        verbose: Print a table of outcomes.
    """

    eps_abs: float = 1e-8
    eps_rel: float = 1e-8
    max_iter: int = 200
    verbose: bool = False

    @abstractmethod
    def prepare(self, cones: ConeProduct, batch: int, eps_abs: float, eps_rel: float) -> Finder:
        """What finds a point of one program after the other, perhaps from several threads."""

    def solve(self, program: ConeProgram, *, warm_start: Solution | None = None) -> Solution:
        """Solve every program of the batch.

        Args:
            program: The batch.
            warm_start: Solution of a batch of the same shape; saves time if it is near.

        Returns:
            A solution with tensors of the program's dtype. Elements whose ``status`` is beyond
            SOLVED_INACCURATE hold the best iterate or NaN: look at the status before the values.
        """
        double, dtype = program.to(torch.float64), program.q.dtype
        shape = program.batch_shape
        start = None
        if warm_start is not None:
            parts = (warm_start.x, warm_start.s, warm_start.z)
            start = tuple(flat(t.double(), 1, shape) for t in parts if t is not None)
        found = self.run(double, start)

        def back(t: Tensor) -> Tensor:
            t = t.to(dtype) if t.is_floating_point() else t
            return t.reshape((*shape, *t.shape[1:])).to(program.q.device)

        return Solution(
            back(found.x), back(found.status), back(found.iterations), z=back(found.z),
            s=back(found.s), objective=back(found.objective), primal_residual=back(found.primal),
            dual_residual=back(found.dual), duality_gap=back(found.gap),
        )  # fmt: skip

    def run(self, program: ConeProgram, start: tuple[Tensor, ...] | None = None) -> Outcome:
        """Solve in flat form on the CPU, as many programs at a time as there are threads.

        Args:
            program: In float64.
            start: Flat guesses of ``x, s, z``; NaN where there is none.
        """
        batch = program.batch_shape.numel()
        outcome = Outcome.empty(batch, program.n, program.m)
        if batch:
            with calm():
                spread(lambda stack: self._run(stack, outcome, start), stacks_of(program))
        if self.verbose:
            print(table(type(self).__name__, outcome))
        return outcome

    def _run(self, stack: Stack, outcome: Outcome, start: tuple[Tensor, ...] | None) -> None:
        least = ROUGH if stack.rough else 0.0
        tolerances = max(self.eps_abs, least), max(self.eps_rel, least)
        judge = Judge(stack, *tolerances)
        usable = stack.usable()
        left, guesses = usable, None
        if start is not None:
            guesses = _guesses(start, stack)
            left = self._from_guesses(judge, outcome, left, guesses)
        for share in (NEAR, 0.0):
            near = max(share, AS_NEAR_AS_IT_CAN * self.eps_abs)
            near_rel = max(share, AS_NEAR_AS_IT_CAN * self.eps_rel)
            if len(left):
                left = self._find(judge, outcome, left, guesses, near, near_rel)
        if stack.rough:
            failed = usable[np.isin(outcome.status.numpy()[stack.numbers[usable]], BY_ROUNDING)]
            if len(failed):
                judge = Judge(stack.take(failed).mended(ROUGH), *tolerances)
                self._find(judge, outcome, np.arange(len(failed)), None, near, near_rel)

    def _from_guesses(
        self, judge: Judge, outcome: Outcome, which: Integers, guesses: Points
    ) -> Integers:
        """Let Newton's method try, and say which programs it did not settle."""
        given = which[np.all(np.isfinite(np.concatenate(guesses, 1)), axis=1)[which]]
        if not len(given):
            return which
        near = judge.of(given)
        found = near.refine(near.measure(guesses.take(given)), FROM_A_GUESS)
        done = found.error <= 1.0
        stack = judge.of(given[done]).stack
        status = np.full(len(stack), int(Status.SOLVED))
        outcome.put(stack, found.take(np.flatnonzero(done)), status)
        outcome.iterations.numpy()[stack.numbers] = 0
        return np.setdiff1d(which, given[done])

    def _find(
        self,
        judge: Judge,
        outcome: Outcome,
        which: Integers,
        guesses: Points | None,
        eps_abs: float,
        eps_rel: float,
    ) -> Integers:
        """Let the solver come this near, and say which programs are not settled by that."""
        stack = judge.stack
        find = self.prepare(stack.cones, len(outcome.status), eps_abs, eps_rel)

        def one(j: int) -> Answer:
            guess = None if guesses is None else Point(*(t[j] for t in guesses))
            return find(stack[j], guess if guess and guess.is_finite else None)

        answers = spread(one, which.tolist())
        status, iterations = outcome.status.numpy(), outcome.iterations.numpy()
        status[stack.numbers[which]] = [int(answer.claim) for answer in answers]
        iterations[stack.numbers[which]] += [answer.iterations for answer in answers]
        points = [answer.point for answer in answers if answer.point is not None]
        shown = which[[answer.point is not None for answer in answers]]
        unsettled = np.zeros(len(stack), bool)
        unsettled[which] = status[stack.numbers[which]] == int(Status.NUMERICAL_ERROR)
        if points:
            near = judge.of(shown)
            found = near.measure(Points(*(np.stack(parts) for parts in zip(*points, strict=True))))
            found = near.refine(found, POLISH)
            verdict = found.status(status[near.stack.numbers])
            verdict[(verdict == int(Status.SOLVED)) & ~near.are_even(found)] = int(
                Status.SOLVED_INACCURATE
            )
            outcome.put(near.stack, found, verdict)
            unsettled[shown] = verdict != int(Status.SOLVED)
        return np.flatnonzero(unsettled)


def _guesses(start: tuple[Tensor, ...], stack: Stack) -> Points:
    """Those of these programs, scaled as they are; NaN where there is none."""
    shared = np.zeros_like(stack.numbers)
    points = Points(*(t.cpu().numpy()[stack.numbers if len(t) > 1 else shared] for t in start))
    return points if stack.scaling is None else stack.scaling.into(points)
