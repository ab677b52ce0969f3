"""What a solver returns: one object for every family, one catalogue of outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Status(IntEnum):
    """Outcome of one problem of a batch, judged on the problem as the user posed it."""

    SOLVED = 0
    SOLVED_INACCURATE = 1
    MAX_ITERATIONS = 2
    PRIMAL_INFEASIBLE = 3
    DUAL_INFEASIBLE = 4
    NUMERICAL_ERROR = 5

    @property
    def message(self) -> str:
        """One sentence for people."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.SOLVED: "solved to the tolerance asked for",
    Status.SOLVED_INACCURATE: "solved, but only to a looser tolerance",
    Status.MAX_ITERATIONS: "stopped at max_iter",
    Status.PRIMAL_INFEASIBLE: "no point satisfies the constraints",
    Status.DUAL_INFEASIBLE: "the objective has no lower bound on the constraints",
    Status.NUMERICAL_ERROR: "data are not finite, a matrix is indefinite, or rounding won",
}


class Residuals(NamedTuple):
    """How far a point is from optimality, one number a problem, in the units of the problem."""

    primal: Tensor | None
    dual: Tensor | None
    gap: Tensor | None


@dataclass(eq=False)
class Solution:
    """A solution, or the best a solver could do, with its certificate.

    Tensors have the batch shape of the problem in front. Quantities that a family does not have
    are ``None``. A ``Solution`` is a pytree, so :func:`torch.func.vmap` can return one.

    Attributes:
        x: Primal solution ``(*batch, n)``; for roots and fixed points any pytree.
        status: Integer tensor ``(*batch)`` of :class:`Status` values.
        iterations: Integer tensor ``(*batch)``.
        y: Multipliers of the equalities ``(*batch, p)``.
        z: Multipliers of the inequalities ``(*batch, m)``, not negative.
        z_box: Multipliers of the bounds ``(*batch, n)``: negative at ``lb``, positive at ``ub``.
        s: Slacks of the inequalities ``(*batch, m)``.
        objective: Value of the objective ``(*batch)``.
        primal_residual: Largest violation of a constraint ``(*batch)``.
        dual_residual: Largest entry of the Lagrangian's gradient ``(*batch)``.
        duality_gap: Primal minus dual objective, absolute ``(*batch)``.
        history: Errors of all iterations ``(iterations, *batch)`` where the solver was told to keep
            them; NaN from where a sample stopped.
    """

    x: Any
    status: Tensor
    iterations: Tensor
    y: Tensor | None = None
    z: Tensor | None = None
    z_box: Tensor | None = None
    s: Tensor | None = None
    objective: Tensor | None = None
    primal_residual: Tensor | None = None
    dual_residual: Tensor | None = None
    duality_gap: Tensor | None = None
    history: Tensor | None = None

    @property
    def residuals(self) -> Residuals:
        """The three residuals together."""
        return Residuals(self.primal_residual, self.dual_residual, self.duality_gap)

    @property
    def solved(self) -> Tensor:
        """Boolean tensor ``(*batch)``: solved, if only to the looser tolerance."""
        return self.status <= int(Status.SOLVED_INACCURATE)  # the compiler takes no enumeration

    def __repr__(self) -> str:
        """Say the outcome first, then what there is."""
        counts = ", ".join(
            f"{int((self.status == status).sum())} {status.name}"
            for status in Status
            if bool((self.status == status).any())
        )
        shapes = ", ".join(
            f"{field.name} {tuple(value.shape)}"
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        )
        return f"Solution({counts or 'empty batch'}; {shapes})"


def register(cls: type[Solution], name: str) -> None:
    """Make a kind of solution a pytree. Only what is there counts: vmap refuses None as an output.

    Args:
        cls: :class:`Solution` or a dataclass derived from it.
        name: Under which it is serialised.
    """
    names = [field.name for field in fields(cls)]

    def flatten(solution: Any) -> tuple[list[Any], tuple[str, ...]]:
        present = tuple(k for k in names if getattr(solution, k) is not None)
        return [getattr(solution, k) for k in present], present

    def unflatten(values: Any, present: tuple[str, ...]) -> Solution:
        given: dict[str, Any] = dict.fromkeys(names)
        return cls(**given | dict(zip(present, values, strict=True)))

    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


register(Solution, "optlayers.Solution")


class SolverError(RuntimeError):
    """Some problems of a batch were not solved; ``solution`` holds what there is."""

    def __init__(self, message: str, solution: Solution) -> None:
        """Keep the solution beside the message."""
        super().__init__(message)
        self.solution = solution

    def __reduce__(self) -> tuple[type["SolverError"], tuple[str, Solution]]:
        """Both arguments, so that the error comes home from a worker process."""
        return type(self), (self.args[0], self.solution)


# Of what iterates on a user's functions, which need not have matrices.
OF_FUNCTIONS = {
    Status.NUMERICAL_ERROR: "a function is not finite where the solver went, or no step leads on"
}


def describe_failures(
    where: str, status: Tensor, messages: Mapping[Status, str] | None = None
) -> str:
    """Say how many problems of a batch failed, which, and why: the text of errors and warnings.

    Args:
        where: What the user called.
        status: ``(*batch)``.
        messages: Sentences that suit better than those of the statuses.
    """
    flat = status.detach().reshape(-1).cpu()
    lines = []
    for outcome in Status:
        failed = torch.nonzero(flat == outcome).reshape(-1).tolist()
        if outcome > Status.SOLVED_INACCURATE and failed:
            which = ", ".join(map(str, failed[:5])) + (", ..." if len(failed) > 5 else "")
            why = (messages or {}).get(outcome, outcome.message)
            lines.append(f"{len(failed)} {outcome.name} ({why}; elements {which})")
    return f"{where}: of {flat.numel()} problems " + "; ".join(lines)
