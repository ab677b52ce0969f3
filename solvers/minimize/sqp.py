"""Sequential quadratic programming: minima under constraints, for batches."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import value_and_jacobian
from ..iteration import Iterate, Iterates, IterativeSolver
from ..qp import Automatic, QuadraticProgram
from ..solution import Solution, Status
from .lbfgsb import flat_bounds
from .line_search import first_step, without_a_way

Function = Callable[[Tensor], Tensor]

# Part of the decrease that the model promises which a step must bring; steps are halved so often.
DECREASE, HALVINGS = 1e-4, 30
# Merits of the last few points that a step is compared with: with one alone, good steps along a
# curved constraint would be refused (Maratos).
MERITS = 4
# Part of the violation's decrease that the merit gives away for the objective.
GIVEN_AWAY = 0.5
# What violations of a linearisation without a solution cost, relative to the model's curvature.
ELASTIC = 1e6
# What is added to diagonals, relatively, so that programs have one solution each.
REGULAR = 1e-8
# Powell's damping: the least curvature that an update may have, relative to the old one.
LEAST_CURVATURE = 0.2


@dataclass(frozen=True)
class SQP(IterativeSolver):
    r"""Minimise :math:`f(x)` where :math:`h(x) = 0`, :math:`c(x) \le 0`, :math:`l \le x \le u`.

    Each iteration solves one quadratic program a sample, all of them at once,

    .. math::
        \min_d \; \tfrac12 d^\top B d + \nabla f^\top d \quad\text{s.t.}\quad
        h + \nabla h\, d = 0,\; c + \nabla c\, d \le 0,\; l \le x + d \le u,

    and goes along :math:`d` as far as :math:`f + \mu (\|h\|_1 + \|\max(0, c)\|_1)` falls, compared
    with the last few points. :math:`B` is Powell's damped update of BFGS for the Lagrangian, so
    first derivatives are enough, and convergence is superlinear where the multipliers are unique
    and the Lagrangian is convex along the active constraints. Where linearised constraints have no
    point in common, they are violated as little as possible meanwhile; a sample that ends there has
    status ``NUMERICAL_ERROR``. Constraints may depend on each other.

    Attributes:
        max_iter: Iterations allowed to each sample.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, sections 18.3 to 18.6;
        Powell, *A fast algorithm for nonlinearly constrained optimization calculations*, 1978;
        Grippo, Lampariello and Lucidi, *A nonmonotone line search technique for Newton's method*,
        SIAM J. Numer. Anal. 23 (1986).

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import SQP
        >>> f = lambda x: ((x - 1) ** 2).sum(-1)
        >>> disk = lambda x: x.square().sum(-1, keepdim=True) - 1
        >>> x0 = torch.tensor([[0.5, 0.0], [-1.0, 2.0]], dtype=torch.float64)
        >>> solution = SQP().solve(f, x0, inequalities=disk)
        >>> solution.x.round(decimals=6)
        tensor([[0.7071, 0.7071],
                [0.7071, 0.7071]], dtype=torch.float64)
    """

    max_iter: int = 200
    keeps_last: ClassVar[bool] = True

    def solve(
        self,
        f: Function,
        x0: Tensor,
        *,
        lower: Tensor | None = None,
        upper: Tensor | None = None,
        equalities: Function | None = None,
        inequalities: Function | None = None,
    ) -> Solution:
        r"""Find a local minimum of :math:`f` for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``; need not satisfy anything.
            lower: Lower bounds, of a shape that broadcasts to that of ``x0``.
            upper: Upper bounds, likewise.
            equalities: :math:`h`, maps ``(*batch, n)`` to ``(*batch, p)``.
            inequalities: :math:`c`, maps ``(*batch, n)`` to ``(*batch, m)``.

        Returns:
            A solution with ``objective``, the largest violation as ``primal_residual``, the length
            of the step that was left to take as ``dual_residual``, and the multipliers ``y``,
            ``z``, ``z_box`` of those constraints that were given.

        Raises:
            ValueError: If a bound does not broadcast.
        """
        shape, batch, n = x0.shape, x0.shape[:-1], x0.shape[-1]
        x = x0.detach().reshape(batch.numel(), n)

        def everything(x: Tensor) -> Tensor:
            """The objective, the equalities and the inequalities side by side."""
            at = x.reshape(shape)
            parts = [
                f(at)[..., None],
                *[c(at) for c in (equalities, inequalities) if c is not None],
            ]
            return torch.cat([part.reshape(len(x), part.shape[-1]) for part in parts], -1)

        low, high = flat_bounds(lower, upper, x0)
        with torch.no_grad():
            p = 0 if equalities is None else equalities(x0).shape[-1]
            run = self.run(_iterates(Problem(everything, p, low, high), x))
            m = run.x.shape[-1] - 2 * n - p
            x, y, z, z_box = run.x.split([n, p, m, n], -1)
            violated = excess(everything(x)[:, 1:], p)
            largest = torch.cat([violated, torch.zeros_like(x[:, :1])], -1).amax(-1)
        return Solution(
            x.reshape(shape),
            run.status.reshape(batch),
            run.iterations.reshape(batch),
            y=None if equalities is None else y.reshape(*batch, p),
            z=None if inequalities is None else z.reshape(*batch, m),
            z_box=None if low is None and high is None else z_box.reshape(shape),
            objective=None if run.value is None else run.value.reshape(batch),
            primal_residual=largest.reshape(batch),
            dual_residual=run.error.reshape(batch),
            history=None if run.history is None else run.history.reshape(-1, *batch),
        )


class Problem(NamedTuple):
    """What is to be minimised, on flat batches.

    Attributes:
        everything: Maps ``(B, n)`` to the objective, the equalities and the inequalities
            ``(B, 1 + p + m)``.
        p: Number of equalities.
        lower: ``(B, n)`` or None.
        upper: ``(B, n)`` or None.
    """

    everything: Function
    p: int
    lower: Tensor | None
    upper: Tensor | None

    def within(self, x: Tensor) -> Tensor:
        """The nearest point between the bounds."""
        if self.lower is None and self.upper is None:
            return x
        return x.clamp(self.lower, self.upper)


class Model(NamedTuple):
    """The functions at a point, and their derivatives there.

    Attributes:
        x: ``(B, n)``.
        value: Of the objective ``(B)``.
        rows: Of the constraints ``(B, p + m)``.
        gradient: ``(B, n)``.
        jacobian: ``(B, p + m, n)``.
    """

    x: Tensor
    value: Tensor
    rows: Tensor
    gradient: Tensor
    jacobian: Tensor

    def rows_after(self, d: Tensor) -> Tensor:
        """The linear model of the constraints a step on."""
        return self.rows + (self.jacobian @ d[..., None])[..., 0]

    def of_lagrangian(self, multipliers: Tensor) -> Tensor:
        """Gradient of the Lagrangian, but for what bounds add ``(B, n)``."""
        return self.gradient + (self.jacobian.mT @ multipliers[..., None])[..., 0]


class Step(NamedTuple):
    """What the quadratic programs say.

    Attributes:
        d: ``(B, n)``; NaN where there is no step.
        multipliers: Of the constraints ``(B, p + m)``.
        z_box: Of the bounds ``(B, n)``.
        elastic: Where linearised constraints had to be violated ``(B)``.
    """

    d: Tensor
    multipliers: Tensor
    z_box: Tensor
    elastic: Tensor


def excess(rows: Tensor, p: int) -> Tensor:
    """By how much each row is violated, the first ``p`` being equalities."""
    return torch.cat([rows[:, :p].abs(), rows[:, p:].clamp_min(0.0)], -1)


def _model(problem: Problem, x: Tensor) -> Model:
    values, derivatives = value_and_jacobian(problem.everything, x)
    return Model(x, values[:, 0], values[:, 1:], derivatives[:, 0], derivatives[:, 1:])


def _choose(mask: Tensor, ours: Model, theirs: Model) -> Model:
    return Model(
        *(
            torch.where(mask.reshape(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(ours, theirs, strict=True)
        )
    )


def _iterates(problem: Problem, x: Tensor) -> Iterates:
    """Points with their multipliers ``(B, n + p + m + n)``, from ``x`` on."""
    p, roundings = problem.p, 10 * torch.finfo(x.dtype).eps
    at = _model(problem, problem.within(x))
    flat = first_step(lambda x: problem.everything(x)[:, 0], at.x, at.gradient)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    initial = eye / flat.clamp_min(roundings)[:, None, None]
    B, fresh = initial, torch.ones_like(flat, dtype=torch.bool)
    weight = torch.zeros_like(flat)
    violation = excess(at.rows, p).sum(-1)
    merits = deque([(at.value, violation)], maxlen=MERITS)
    while True:
        d, multipliers, z_box, elastic = step = _step(problem, at, B)
        length, scale = vector_norm(d, dim=-1), vector_norm(at.x, dim=-1)
        # Where constraints contradict each other there is no solution, however short steps are.
        contradicted = elastic & (length <= roundings**0.5 * (1 + scale))
        error = torch.where(elastic, length + torch.inf, length)  # and NaN remains
        error = error.masked_fill(contradicted, torch.nan)
        whole = torch.cat([at.x, multipliers, z_box], -1)
        running = (yield Iterate(whole, error, at.value, (), scale)).running
        # The weight of violations that makes the step one of descent.
        slope = vecdot(at.gradient, d)
        drop = violation - excess(at.rows_after(d), p).sum(-1)
        weight = _weighed(weight, step, slope, drop, violation)
        promised = slope - weight * drop
        ceiling = torch.stack([value + weight * v for value, v in merits]).amax(0)
        ceiling = ceiling + roundings * (1 + ceiling.abs())
        t, found = _search(problem, at, d, running, (ceiling, weight, promised))
        new = _choose(running & found, _model(problem, problem.within(at.x + t[:, None] * d)), at)
        lost = running & ~found
        B = _updated(B, at, new, multipliers, fresh & ~lost)
        B = torch.where(lost[:, None, None], initial, B)
        # From the steepest descent there is no other way to go.
        hopeless = lost & fresh
        fresh = (fresh & ~found) | lost
        at = new._replace(gradient=without_a_way(new.gradient, hopeless))
        violation = excess(at.rows, p).sum(-1)
        merits.append((at.value, violation))


def _step(problem: Problem, at: Model, B: Tensor) -> Step:
    """Solve the quadratic programs; where constraints contradict each other, elastic ones."""
    p = problem.p
    low, high = (None if end is None else end - at.x for end in (problem.lower, problem.upper))
    A, G = at.jacobian[:, :p], at.jacobian[:, p:]
    b, h = -at.rows[:, :p], -at.rows[:, p:]
    bounds = {"lb": low, "ub": high}
    # Tolerances of programs are absolute: the objective's unit is made such that they suit it.
    unit = at.gradient.abs().amax(-1, keepdim=True)
    unit = torch.where(unit > torch.finfo(unit.dtype).tiny, unit, 1.0)
    P, q = B / unit[..., None], at.gradient / unit
    P.diagonal(dim1=-2, dim2=-1).mul_(1 + REGULAR)
    found = Automatic().solve(QuadraticProgram(P, q, G, h, A, b, **bounds))
    d, multipliers, z_box = _parts(found)
    multipliers, z_box = unit * multipliers, unit * z_box
    if low is None and high is None:
        z_box = torch.zeros_like(d)
    elastic = found.status > Status.SOLVED_INACCURATE
    step = Step(d, multipliers, z_box, elastic)
    which = torch.nonzero(elastic & at.gradient.isfinite().all(-1))[:, 0]
    return _elastic(problem, at, B, step, which) if len(which) else step


def _elastic(problem: Problem, at: Model, B: Tensor, step: Step, which: Tensor) -> Step:
    """Steps for some samples that violate linearised constraints, but not by more than necessary.

    Each row gets a variable for its violation, which costs its square.
    """
    p, n, count = problem.p, at.x.shape[-1], at.rows.shape[-1]
    rows, J = at.rows[which], at.jacobian[which]
    P = B.new_zeros(len(which), n + count, n + count)
    P[:, :n, :n] = B[which]
    cost = ELASTIC * P.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / n
    P.diagonal(dim1=-2, dim2=-1)[:, n:] = cost
    aside = torch.eye(count, dtype=B.dtype, device=B.device).expand(len(which), -1, -1)
    A, G = torch.cat([J, aside], -1)[:, :p], torch.cat([J, -aside], -1)[:, p:]
    q = torch.cat([at.gradient[which], torch.zeros_like(rows)], -1)
    free = torch.full_like(rows, torch.inf)
    low, high = (
        None if end is None else torch.cat([end[which] - at.x[which], side], -1)
        for end, side in ((problem.lower, -free), (problem.upper, free))
    )
    program = QuadraticProgram(P, q, G, -rows[:, p:], A, -rows[:, :p], low, high)
    found = Automatic().solve(program)
    d, multipliers, z_box = (t.clone() for t in (step.d, step.multipliers, step.z_box))
    longer, multipliers[which], of_bounds = _parts(found)
    d[which] = longer[:, :n]
    if low is not None or high is not None:
        z_box[which] = of_bounds[:, :n]
    return Step(d, multipliers, z_box, step.elastic)


def _weighed(weight: Tensor, step: Step, slope: Tensor, drop: Tensor, violation: Tensor) -> Tensor:
    """What violations weigh in the merit ``(B)``, from what they weighed so far.

    More than any multiplier, which is enough for descent; where constraints had to be violated, as
    much as makes the decrease of the violation outweigh what the objective rises by.
    """
    if not step.multipliers.shape[-1]:
        return weight
    largest = step.multipliers.abs().amax(-1)
    regular = torch.maximum(largest, 0.5 * (weight + largest))
    outweighing = slope / ((1 - GIVEN_AWAY) * drop)
    more = drop > 1e-3 * violation
    elastic = torch.where(more, torch.maximum(weight, outweighing), weight)
    return torch.where(step.elastic, elastic, regular)


def _parts(found: Solution) -> tuple[Tensor, Tensor, Tensor]:
    """The solution of a program, multipliers of all its rows, and of its bounds."""
    assert found.y is not None
    assert found.z is not None
    assert found.z_box is not None
    return found.x, torch.cat([found.y, found.z], -1), found.z_box


def _search(
    problem: Problem, at: Model, d: Tensor, running: Tensor, merit: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The longest of the steps 1, 1/2, 1/4, ... that is good enough, and who has one.

    Args:
        problem: Says what is to be looked at.
        at: Where steps start.
        d: Steps ``(B, n)``.
        running: Samples to look at.
        merit: What it may be at most, what violations weigh, and the change that the model
            promises, all ``(B)``.
    """
    ceiling, weight, promised = merit
    t, pending = torch.ones_like(ceiling), running
    for _ in range(HALVINGS):
        values = problem.everything(problem.within(at.x + t[:, None] * d))
        reached = values[:, 0] + weight * excess(values[:, 1:], problem.p).sum(-1)
        pending = pending & ~(reached <= ceiling + DECREASE * t * promised)
        if not bool(pending.any()):
            break
        t = torch.where(pending, 0.5 * t, t)
    return t, running & ~pending


def _updated(B: Tensor, at: Model, new: Model, multipliers: Tensor, fresh: Tensor) -> Tensor:
    """The damped update of BFGS, which keeps matrices positive definite ``(B, n, n)``."""
    s = new.x - at.x
    y = new.of_lagrangian(multipliers) - at.of_lagrangian(multipliers)
    sy = vecdot(s, y)
    # The first pair knows the scale of the curvature better than the start did.
    first = fresh & (sy > 0)
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    B = torch.where(first[:, None, None], (vecdot(y, y) / sy)[:, None, None] * eye, B)
    Bs = (B @ s[..., None])[..., 0]
    sBs = vecdot(s, Bs)
    damping = (1 - LEAST_CURVATURE) * sBs / (sBs - sy)
    damping = torch.where(sy < LEAST_CURVATURE * sBs, damping, 1.0)[:, None]
    r = damping * y + (1 - damping) * Bs
    sr = vecdot(s, r)
    change = r[:, :, None] * r[:, None, :] / sr[:, None, None]
    change = change - Bs[:, :, None] * Bs[:, None, :] / sBs[:, None, None]
    usable = (sBs > 0) & (sr > 0) & change.isfinite().all(-1).all(-1)
    return torch.where(usable[:, None, None], B + change, B)
