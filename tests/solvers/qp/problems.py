"""Quadratic programs whose answer is known, for every solver to get right.

Each comes in float64 from a function without arguments, so that no test can spoil it for another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from solvers.qp import Automatic, QuadraticProgram
from solvers.qp.solver import QPSolver
from solvers.solution import Status

inf, nan = torch.inf, torch.nan


class Uncompiled(Automatic):
    """The default where our own code was not compiled."""

    run = QPSolver.run


@dataclass(frozen=True)
class Known:
    """A problem and what is known of its solution.

    Attributes:
        make: Returns the problem.
        x: The solution, if it is unique.
        objective: The optimal value, if ``x`` does not say it.
        constant: Belongs to the published optimal value but not to the problem.
        status: Expected of every element, or one for each of a flat batch.
    """

    make: Callable[[], QuadraticProgram]
    x: Tensor | None = None
    objective: float | None = None
    constant: float = 0.0
    status: Status | Sequence[Status] = Status.SOLVED

    def statuses(self) -> Tensor:
        """The expected status of each element."""
        shape = self.make().batch_shape
        return torch.as_tensor(self.status).expand(shape)


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def qp(**data: Any) -> Callable[[], QuadraticProgram]:
    """A function that makes the problem from lists or tensors."""
    return lambda: QuadraticProgram(
        **{"P": None}
        | {
            name: value.clone() if isinstance(value, Tensor) else tensor(value)
            for name, value in data.items()
        }
    )


def eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)


# --- linear and flat objectives -------------------------------------------------------------------

LINEAR = {
    "lp_box": Known(qp(q=[-1, 2], lb=[0, 0], ub=[1, 1]), tensor([1, 0])),
    "lp_zero_P": Known(qp(P=torch.zeros(2, 2).double(), q=[-1, 2], lb=[0, 0], ub=[1, 1]),
                       tensor([1, 0])),
    "lp_simplex": Known(qp(q=[3, 1, 2], A=[[1, 1, 1]], b=[1], lb=[0, 0, 0]), tensor([0, 1, 0])),
    "lp_inequalities": Known(
        qp(q=[-3, -2], G=[[1, 1], [1, 3], [-1, 0], [0, -1]], h=[4, 6, 0, 0]), tensor([4, 0])
    ),
    "lp_many_solutions": Known(qp(q=[-1, -1], G=[[1, 1]], h=[1], lb=[0, 0]), objective=-1.0),
    "lp_zero_objective": Known(qp(q=[0, 0], A=[[1, 2]], b=[1], lb=[0, 0]), objective=0.0),
    "lp_wide_bounds": Known(qp(q=[1, -1e-3], lb=[-1e6, -1], ub=[1, 1e6]), tensor([-1e6, 1e6])),
    "singular_P": Known(qp(P=[[1, 1], [1, 1]], q=[-1, 0], lb=[0, 0]), tensor([1, 0])),
    "singular_P_equality": Known(
        qp(P=[[1, 0], [0, 0]], q=[0, 0], A=[[1, 1]], b=[1]), tensor([0, 1])
    ),
    "singular_P_many_solutions": Known(
        qp(P=[[2, 0, 0], [0, 0, 0], [0, 0, 0]], q=[-2, 0, 0], lb=[0, 0, 0], ub=[1, 1, 1]),
        objective=-1.0,
    ),
}  # fmt: skip

# --- kinds of constraints that are there or not ---------------------------------------------------

KINDS = {
    "no_inequalities": Known(qp(P=eye(2), q=[0, 0], A=[[1, 1]], b=[2]), tensor([1, 1])),
    "no_equalities": Known(qp(P=eye(2), q=[-2, -3], G=[[1, 1]], h=[1]), tensor([0, 1])),
    "only_bounds": Known(
        qp(P=eye(3), q=[-2, 3, -0.5], lb=[0, 0, 0], ub=[1, 1, 1]), tensor([1, 0, 0.5])
    ),
    "only_lb": Known(qp(P=eye(2), q=[-2, 3], lb=[0, -1]), tensor([2, -1])),
    "only_ub": Known(qp(P=eye(2), q=[-2, 3], ub=[1, 1]), tensor([1, -3])),
    "unconstrained": Known(qp(P=[[2, 0], [0, 4]], q=[-2, -4]), tensor([1, 1])),
    "no_rows_in_G_and_A": Known(
        qp(P=eye(2), q=[-1, 2], G=torch.zeros(0, 2).double(), h=torch.zeros(0).double(),
           A=torch.zeros(0, 2).double(), b=torch.zeros(0).double()),
        tensor([1, -2]),
    ),
    "n_is_1": Known(qp(P=[[2]], q=[-4], G=[[1]], h=[1]), tensor([1])),
    "n_is_1_unconstrained": Known(qp(P=[[2]], q=[-4]), tensor([2])),
    "n_is_1_equality": Known(qp(P=[[2]], q=[-4], A=[[2]], b=[6]), tensor([3])),
    "all_kinds": Known(
        qp(P=eye(3), q=[-1, -1, -3], A=[[1, -1, 0]], b=[0], G=[[1, 1, 1]], h=[2], lb=[0, 0, 0],
           ub=[inf, inf, 1.5]),
        tensor([0.25, 0.25, 1.5]),
    ),
    "not_symmetric_P": Known(qp(P=[[2, 2], [0, 2]], q=[-3, -3]), tensor([1, 1])),
}  # fmt: skip

# --- degenerate constraints -----------------------------------------------------------------------

DEGENERATE = {
    "dependent_equalities": Known(
        qp(P=eye(2), q=[0, 0], A=[[1, 1], [2, 2]], b=[1, 2]), tensor([0.5, 0.5])
    ),
    "more_equalities_than_variables": Known(
        qp(P=eye(2), q=[0, 0], A=[[1, 1], [1, -1], [2, 1]], b=[1, 3, 3]), tensor([2, -1])
    ),
    "zero_equality": Known(
        qp(P=eye(2), q=[0, 0], A=[[1, 1], [0, 0]], b=[1, 0]), tensor([0.5, 0.5])
    ),
    "duplicated_inequalities": Known(
        qp(P=eye(2), q=[-2, -3], G=[[1, 1], [1, 1], [2, 2]], h=[1, 1, 2]), tensor([0, 1])
    ),
    "weakly_active": Known(qp(P=eye(2), q=[-1, -1], G=[[1, 1]], h=[2]), tensor([1, 1])),
    "weakly_active_bound": Known(qp(P=eye(2), q=[0, -1], lb=[0, 0]), tensor([0, 1])),
    "degenerate_vertex": Known(
        qp(P=eye(2), q=[-5, -5], G=[[1, 0], [0, 1], [1, 1], [1, 2]], h=[1, 1, 2, 3]),
        tensor([1, 1]),
    ),
    "opposing_inequalities": Known(
        qp(P=eye(2), q=[-1, 0], G=[[1, 1], [-1, -1]], h=[1, -1]), tensor([1, 0])
    ),
    "equality_twice": Known(
        qp(P=eye(2), q=[-1, 0], A=[[1, 1]], b=[1], G=[[1, 1]], h=[1]), tensor([1, 0])
    ),
    "fixed_variable": Known(
        qp(P=eye(3), q=[-2, -2, -2], lb=[0, 1, -inf], ub=[1, 1, inf]), tensor([1, 1, 2])
    ),
    "all_variables_fixed": Known(qp(P=eye(2), q=[1, 1], lb=[3, -4], ub=[3, -4]), tensor([3, -4])),
    "fixed_by_equality_and_bounds": Known(
        qp(P=eye(2), q=[0, 0], A=[[1, 0]], b=[2], lb=[2, -1], ub=[2, 1]), tensor([2, 0])
    ),
    "infinite_h": Known(
        qp(P=eye(2), q=[-2, -3], G=[[1, 0], [1, 1]], h=[inf, 1]), tensor([0, 1])
    ),
    "all_h_infinite": Known(
        qp(P=eye(2), q=[-2, -3], G=[[1, 0], [1, 1]], h=[inf, inf]), tensor([2, 3])
    ),
    "huge_h": Known(qp(P=eye(2), q=[-2, -3], G=[[1, 0], [1, 1]], h=[1e20, 1]), tensor([0, 1])),
    "infinite_bounds": Known(
        qp(P=eye(2), q=[-2, -3], lb=[-inf, -inf], ub=[inf, 1]), tensor([2, 1])
    ),
}  # fmt: skip

# --- badly scaled data: one well-scaled problem in other units ------------------------------------

SCALES = 10.0 ** tensor([-6, -3, -1, 1, 3, 6])
BASE_P = eye(6) + 0.2
BASE_G = torch.cat([eye(6), torch.ones(1, 6).double()])
BASE_H = tensor([1, 1, 1, 2, 2, 2, 4])
# Variables 0 to 2 at their bounds and the sum at its own: solves P x + q + G'z = 0 by construction.
BASE_X = tensor([1, 1, 1, 0.5, 0.25, 0.25])
BASE_Z = tensor([2, 1, 0.5, 0, 0, 0, 3])
BASE_Q = -(BASE_P @ BASE_X + BASE_G.mT @ BASE_Z)
ROOTS = SCALES.sqrt()

SCALED = {
    "rows_badly_scaled": Known(
        qp(P=BASE_P, q=BASE_Q, G=tensor([*SCALES, 1e6])[:, None] * BASE_G,
           h=tensor([*SCALES, 1e6]) * BASE_H),
        BASE_X,
    ),
    "variables_badly_scaled": Known(
        qp(P=ROOTS[:, None] * BASE_P * ROOTS, q=ROOTS * BASE_Q, G=BASE_G * ROOTS, h=BASE_H),
        BASE_X / ROOTS,
    ),
    "objective_scaled_up": Known(
        qp(P=1e6 * BASE_P, q=1e6 * BASE_Q, G=BASE_G, h=BASE_H), BASE_X
    ),
    "objective_scaled_down": Known(
        qp(P=1e-6 * BASE_P, q=1e-6 * BASE_Q, G=BASE_G, h=BASE_H), BASE_X
    ),
    "solution_scaled_up": Known(
        qp(P=BASE_P, q=1e6 * BASE_Q, G=BASE_G, h=1e6 * BASE_H), 1e6 * BASE_X
    ),
    "solution_scaled_down": Known(
        qp(P=BASE_P, q=1e-6 * BASE_Q, G=BASE_G, h=1e-6 * BASE_H), 1e-6 * BASE_X
    ),
    "equalities_badly_scaled": Known(
        qp(P=eye(3), q=[-1, 0, 0], A=[[1e-6, 1e-6, 0], [0, 1e6, 1e6]], b=[1e-6, 1e6]),
        tensor([2 / 3, 1 / 3, 2 / 3]),
    ),
    "flat_objective": Known(
        qp(P=1e-6 * eye(2), q=[-1, -1], G=[[1, 1]], h=[1], lb=[0, 0]), tensor([0.5, 0.5])
    ),
}  # fmt: skip

# --- no solution ----------------------------------------------------------------------------------

INFEASIBLE, UNBOUNDED, BROKEN = (
    Status.PRIMAL_INFEASIBLE,
    Status.DUAL_INFEASIBLE,
    Status.NUMERICAL_ERROR,
)
UNSOLVABLE = {
    "infeasible_inequalities": Known(
        qp(P=eye(2), q=[1, 1], G=[[1, 1], [-1, -1]], h=[-1, -1]), status=INFEASIBLE
    ),
    "infeasible_lp": Known(
        qp(q=[1, 1], G=[[1, 1]], h=[-1], lb=[0, 0], ub=[5, 5]), status=INFEASIBLE
    ),
    "infeasible_crossed_bounds": Known(
        qp(P=eye(2), q=[1, 1], lb=[0, 1], ub=[1, 0.5]), status=INFEASIBLE
    ),
    "infeasible_equalities": Known(
        qp(P=eye(2), q=[1, 1], A=[[1, 1], [1, 1]], b=[1, 2]), status=INFEASIBLE
    ),
    "infeasible_equality_and_bounds": Known(
        qp(P=eye(2), q=[1, 1], A=[[1, 1]], b=[3], ub=[1, 1]), status=INFEASIBLE
    ),
    "infeasible_by_little": Known(
        qp(P=eye(2), q=[1, 1], G=[[1, 1], [-1, -1]], h=[1, -1.001]), status=INFEASIBLE
    ),
    "unbounded_lp": Known(qp(q=[-1, 0], lb=[0, 0]), status=UNBOUNDED),
    "unbounded_lp_unconstrained": Known(qp(q=[1, 0]), status=UNBOUNDED),
    "unbounded_lp_inequality": Known(qp(q=[-1, -1], G=[[1, -1]], h=[1]), status=UNBOUNDED),
    "unbounded_lp_equality": Known(qp(q=[-1, -1], A=[[1, -1]], b=[1]), status=UNBOUNDED),
    "unbounded_singular_P": Known(
        qp(P=[[1, 0], [0, 0]], q=[0, -1], lb=[0, 0]), status=UNBOUNDED
    ),
    "unbounded_singular_P_unconstrained": Known(
        qp(P=[[1, -1], [-1, 1]], q=[-1, -1]), status=UNBOUNDED
    ),
    "indefinite_P": Known(
        qp(P=[[1, 0], [0, -1]], q=[1, 1], lb=[-1, -1], ub=[1, 1]), status=BROKEN
    ),
    "indefinite_P_zero_diagonal": Known(
        qp(P=[[0, 1], [1, 0]], q=[1, 1], lb=[-1, -1], ub=[1, 1]), status=BROKEN
    ),
    "nan_in_P": Known(qp(P=[[nan, 0], [0, 1]], q=[1, 1], lb=[0, 0]), status=BROKEN),
    "nan_in_q": Known(qp(P=eye(2), q=[nan, 1], lb=[0, 0]), status=BROKEN),
    "nan_in_G": Known(qp(P=eye(2), q=[-1, 1], G=[[1, nan]], h=[1]), status=BROKEN),
    "nan_in_h": Known(qp(P=eye(2), q=[-1, 1], G=[[1, 1]], h=[nan]), status=BROKEN),
    "nan_in_b": Known(qp(P=eye(2), q=[-1, 1], A=[[1, 1]], b=[nan]), status=BROKEN),
    "nan_in_lb": Known(qp(P=eye(2), q=[-1, 1], lb=[nan, 0]), status=BROKEN),
}  # fmt: skip

# --- batches --------------------------------------------------------------------------------------


def onto_half_space(t: Tensor, a: Tensor, h: Tensor) -> Tensor:
    """The point with ``a'x <= h`` that is nearest to ``t``."""
    excess = ((a * t).sum(-1) - h).clamp(min=0) / a.square().sum(-1)
    return t - excess[..., None] * a


TARGETS = tensor([[2, 0, 1], [0.1, 0.1, 0.1], [-3, 5, 0]])
NORMALS = tensor([[1, 1, 1], [1, -2, 0]])
GOOD = {"P": [[2, 0], [0, 2]], "G": [[1, 1]]}

BATCHES = {
    "several_batch_dimensions": Known(
        qp(P=eye(3), q=-TARGETS[:, None], G=NORMALS[None, :, None], h=[1]),
        onto_half_space(TARGETS[:, None], NORMALS, tensor(1)),
    ),
    "shared_matrices": Known(
        qp(P=eye(3), q=-TARGETS, G=NORMALS[:1], h=[1]),
        onto_half_space(TARGETS, NORMALS[0], tensor(1)),
    ),
    "only_h_batched": Known(
        qp(P=eye(3), q=-TARGETS[0], G=NORMALS[:1], h=[[1], [2], [9]]),
        onto_half_space(TARGETS[0], NORMALS[0], tensor([1, 2, 9])),
    ),
    "only_P_batched": Known(
        qp(P=eye(2) * tensor([1, 2, 4])[:, None, None], q=[-4, 0], ub=[3, 3]),
        tensor([[3, 0], [2, 0], [1, 0]]),
    ),
    "only_bounds_batched": Known(
        qp(P=eye(2), q=[-4, 0], A=[[1, -1]], b=[0], ub=[[3, 3], [1, 9]]), tensor([[2, 2], [1, 1]])
    ),
    "fixed_in_one_element": Known(
        qp(P=eye(2), q=[-4, -1], lb=[[1, 0], [0, 0]], ub=[[1, 3], [3, 3]]), tensor([[1, 1], [3, 1]])
    ),
    "infinite_in_one_element": Known(
        qp(P=eye(2), q=[-2, -3], G=[[1, 1]], h=[[inf], [1]]), tensor([[2, 3], [0, 1]])
    ),
    "batch_of_none": Known(
        qp(P=eye(2), q=torch.zeros(0, 2).double(), G=[[1, 1]], h=[1], lb=[0, 0]),
        torch.zeros(0, 2).double(),
    ),
    "batch_of_none_in_two_dimensions": Known(
        qp(P=eye(2), q=torch.zeros(3, 0, 2).double(), A=[[1, 1]], b=[1]),
        torch.zeros(3, 0, 2).double(),
    ),
    "one_infeasible": Known(
        qp(P=eye(2), q=[-2, -3], G=[[1, 1], [-1, -1]], h=[[1, 5], [-1, -1], [1, 5]]),
        tensor([[0, 1], [nan, nan], [0, 1]]),
        status=[Status.SOLVED, INFEASIBLE, Status.SOLVED],
    ),
    "one_unbounded": Known(
        qp(q=[[-1, 1], [1, 1]], ub=[[inf, 1], [inf, 1]], lb=[0, 0]),
        tensor([[nan, nan], [0, 0]]),
        status=[UNBOUNDED, Status.SOLVED],
    ),
    "one_with_nan": Known(
        qp(P=eye(2), q=[[-2, -3], [nan, 0]], G=[[1, 1]], h=[1]),
        tensor([[0, 1], [nan, nan]]),
        status=[Status.SOLVED, BROKEN],
    ),
    "one_of_each": Known(
        qp(P=torch.stack([eye(2), eye(2), torch.zeros(2, 2).double(), -eye(2)]), q=[-2, -3],
           G=[[1, 1]], h=[[1], [1], [inf], [1]], lb=[[-9, -9], [8, 8], [0, 0], [0, 0]]),
        tensor([[0, 1], [nan, nan], [nan, nan], [nan, nan]]),
        status=[Status.SOLVED, INFEASIBLE, UNBOUNDED, BROKEN],
    ),
}  # fmt: skip

# --- published: Hock & Schittkowski, Test Examples for Nonlinear Programming Codes (1981) ---------

PUBLISHED = {
    "HS21": Known(
        qp(P=[[0.02, 0], [0, 2]], q=[0, 0], G=[[-10, 1]], h=[-10], lb=[2, -50], ub=[50, 50]),
        tensor([2, 0]), objective=-99.96, constant=-100,
    ),
    "HS35": Known(
        qp(P=[[4, 2, 2], [2, 4, 0], [2, 0, 2]], q=[-8, -6, -4], G=[[1, 1, 2]], h=[3], lb=[0, 0, 0]),
        tensor([4 / 3, 7 / 9, 4 / 9]), objective=1 / 9, constant=9,
    ),
    "HS53": Known(
        qp(P=[[2, -2, 0, 0, 0], [-2, 4, 2, 0, 0], [0, 2, 2, 0, 0], [0, 0, 0, 2, 0],
              [0, 0, 0, 0, 2]], q=[0, -4, -4, -2, -2],
           A=[[1, 3, 0, 0, 0], [0, 0, 1, 1, -2], [0, 1, 0, 0, -1]], b=[0, 0, 0],
           lb=[-10] * 5, ub=[10] * 5),
        tensor([-33, 11, 27, -5, 11]) / 43, objective=4.09302326, constant=6,
    ),
    "HS76": Known(
        qp(P=[[2, 0, -1, 0], [0, 1, 0, 0], [-1, 0, 2, 1], [0, 0, 1, 1]], q=[-1, -3, 1, -1],
           G=[[1, 2, 1, 1], [3, 1, 2, -1], [0, -1, -4, 0]], h=[5, 4, -1.5], lb=[0] * 4),
        objective=-4.68181818,
    ),
}  # fmt: skip

ALL = LINEAR | KINDS | DEGENERATE | SCALED | UNSOLVABLE | BATCHES | PUBLISHED
PROBLEMS = [pytest.param(known, id=name) for name, known in ALL.items()]
