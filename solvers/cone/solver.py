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
from .cone_program import ConeProgram, Instance, Instances
from .judge import Candidate, Judge, Point
from .product import ConeProduct
from .scaling import Scaling

Floats = NDArray[np.float64]
# A solver's last digits cost it the most, where rounding sets in; Newton's method gets them for a
# few steps. Only where that fails the solver has to get as near as it can.
NEAR, AS_NEAR_AS_IT_CAN = 1e-6, 0.1
# Least tolerance for data in lower precision, whose dependent rows contradict by rounding.
ROUGH = 1e-6
BY_ROUNDING = (Status.PRIMAL_INFEASIBLE, Status.NUMERICAL_ERROR, Status.MAX_ITERATIONS)
# Steps of Newton's method after a solver, and from a user's guess.
POLISH, FROM_A_GUESS = 5, 10


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
            return torch.full(shape, torch.nan, dtype=torch.float64)

        status = torch.full((batch,), int(Status.NUMERICAL_ERROR))
        vectors = nan(batch, n), nan(batch, m), nan(batch, m)
        scalars = nan(batch), nan(batch), nan(batch)
        return cls(*vectors, nan(batch), status, torch.zeros_like(status), *scalars)

    def put(
        self, i: int, found: Candidate, scaling: Scaling | None, status: Status, iterations: int
    ) -> None:
        """Keep the result of one program; of those without a solution, the status only."""
        self.status[i], self.iterations[i] = int(status), iterations
        x, s, z, r_x, r_s, value, gap = found[:7]
        if scaling is not None:
            x, s, z = x * scaling.of_x, s * scaling.of_s, z * scaling.of_z
            r_x, r_s = r_x / (scaling.dual * scaling.columns), r_s * scaling.of_s
            value, gap = value * scaling.of_value, gap * scaling.of_value
        self.primal[i] = float(abs(r_s).max(initial=0.0))
        self.dual[i], self.gap[i] = float(abs(r_x).max(initial=0.0)), gap
        if status <= Status.MAX_ITERATIONS:
            self.objective[i] = value
            for own, part in ((self.x, x), (self.s, s), (self.z, z)):
                own[i] = torch.from_numpy(part)


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
                self._run(Instances(program), outcome, start)
        if self.verbose:
            print(table(type(self).__name__, outcome))
        return outcome

    def _run(
        self, instances: Instances, outcome: Outcome, start: tuple[Tensor, ...] | None
    ) -> None:
        least = ROUGH if instances.rough else 0.0
        judge = Judge(instances, max(self.eps_abs, least), max(self.eps_rel, least))
        usable = [i for i in range(instances.batch) if instances.is_usable(i)]
        left = list(usable)
        guesses = _guesses(start, left, instances)
        if guesses:
            which = list(guesses)
            near = judge.measure(which, list(guesses.values()))
            near = judge.refine(which, near, FROM_A_GUESS)
            for i, candidate in zip(which, near, strict=True):
                if candidate.error <= 1.0:
                    outcome.put(i, candidate, instances.scaling(i), Status.SOLVED, 0)
                    left.remove(i)
        for abs_share, rel_share in ((NEAR, NEAR), (0.0, 0.0)):
            eps_abs = max(abs_share, AS_NEAR_AS_IT_CAN * self.eps_abs)
            eps_rel = max(rel_share, AS_NEAR_AS_IT_CAN * self.eps_rel)
            if left:
                left = self._find(judge, outcome, left, guesses, eps_abs, eps_rel)
        if instances.rough:
            failed = [i for i in usable if outcome.status[i] in BY_ROUNDING]
            for i in failed:
                instances.mend(i, ROUGH)
            if failed:
                self._find(judge, outcome, failed, {}, eps_abs, eps_rel)

    def _find(
        self,
        judge: Judge,
        outcome: Outcome,
        which: list[int],
        guesses: dict[int, Point],
        eps_abs: float,
        eps_rel: float,
    ) -> list[int]:
        """Let the solver come this near, and say which programs are not settled by that."""
        instances = judge.instances
        find = self.prepare(instances.cones, instances.batch, eps_abs, eps_rel)
        answers = spread(lambda i: find(instances[i], guesses.get(i)), which)
        found, unsettled = [], []
        for i, answer in zip(which, answers, strict=True):
            outcome.status[i] = int(answer.claim)
            outcome.iterations[i] += answer.iterations
            if answer.point is not None:
                found.append((i, answer.point, answer.claim))
            elif answer.claim == Status.NUMERICAL_ERROR:
                unsettled.append(i)
        near = [i for i, _, _ in found]
        candidates = judge.measure(near, [point for _, point, _ in found])
        candidates = judge.refine(near, candidates, POLISH)
        for (i, _, claim), candidate in zip(found, candidates, strict=True):
            status = candidate.status(claim)
            if status == Status.SOLVED and not judge.is_even(i, candidate):
                status = Status.SOLVED_INACCURATE
            iterations = int(outcome.iterations[i])
            outcome.put(i, candidate, instances.scaling(i), status, iterations)
            if status != Status.SOLVED:
                unsettled.append(i)
        return unsettled


def _guesses(
    start: tuple[Tensor, ...] | None, which: list[int], instances: Instances
) -> dict[int, Point]:
    """The guesses that are there, scaled as the programs are."""
    if start is None:
        return {}
    given = [t.cpu().numpy() for t in start]
    guesses = {}
    for i in which:
        x, s, z = (t[i if len(t) > 1 else 0] for t in given)
        if all(bool(np.isfinite(t).all()) for t in (x, s, z)):
            scaling = instances.scaling(i)
            if scaling is not None:
                x, s, z = x / scaling.of_x, s / scaling.of_s, z / scaling.of_z
            guesses[i] = Point(x, s, z)
    return guesses
