"""The whole transform matrix on implicit functions of every kind."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import nn

import optlayers as ol
from optlayers.solvers.minimize import ProjectedGradient, ProximalGradient
from optlayers.solvers.projection import project_simplex
from optlayers.testing import check_layer

DTYPE = torch.float64


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DTYPE)


def tensor(*values):
    return torch.tensor(values, dtype=DTYPE)


# Finite differences of second derivatives see errors of 1e-10.
ACCURATE = {"eps_abs": 1e-13, "eps_rel": 1e-13}
ZEROS = torch.zeros(3, dtype=DTYPE)
W, T = 0.3 * draw(3, 3), draw(2, 3, seed=1)
X, Y, PENALTY = draw(5, 3, seed=2), draw(5, seed=3), tensor(0.7)[0]


def loss(w, X, y, penalty, *others):
    return 0.5 * (X @ w - y).square().sum() + 0.5 * penalty * w.square().sum() + 0.1 * (w**4).sum()


def root(adjoint):
    def F(x, t, W):
        return x + 0.2 * x**3 - torch.sin(t) - torch.tanh(x @ W.mT) * t

    return lambda t, W: ol.root(F, torch.zeros_like(t), t, W, batch_ndim=1, adjoint=adjoint).x


def fixed_point(adjoint):
    def f(z, t, W):
        return torch.tanh(z @ W.mT + t)

    return lambda t, W: (
        ol.fixed_point(f, torch.zeros_like(t), t, W, batch_ndim=1, adjoint=adjoint).x
    )


def tree(adjoint):
    """Unknowns and parameters that are dictionaries."""

    def F(x, p):
        b = x["b"][0]
        return {
            "a": x["a"] - 0.3 * torch.sin(p["t"]) * b.sum(),
            "b": [b + 0.1 * b**3 - p["W"] @ x["a"] - 1],
        }

    start = {"a": ZEROS, "b": [ZEROS]}
    return lambda t, W: ol.root(F, start, {"t": t, "W": W}, adjoint=adjoint).x


def free(adjoint):
    def layer(X, y, penalty):
        solution = ol.minimize(loss, ZEROS, X, y, penalty, adjoint=adjoint)
        return solution.x, solution.objective

    return layer


def on_a_set(adjoint, start=ZEROS + 1 / 3):
    def layer(X, y, penalty):
        solution = ol.minimize(
            loss,
            start,
            X,
            y,
            penalty,
            projection=lambda w, *params: project_simplex(w),
            solver=ProjectedGradient(**ACCURATE),
            adjoint=adjoint,
        )
        return solution.x, solution.objective

    return layer


def between_bounds(adjoint, start=ZEROS):
    def layer(y, lb, ub):
        solution = ol.minimize(
            lambda w, y: loss(w, X, y, PENALTY), start, y, bounds=(lb, ub), adjoint=adjoint
        )
        return solution.x, solution.objective

    return layer


def with_a_penalty(adjoint, start=ZEROS):
    def soft_threshold(w, step, X, y, penalty):
        return torch.sign(w) * torch.relu(w.abs() - step * penalty)

    def layer(X, y, penalty):
        solution = ol.minimize(
            loss,
            ZEROS,
            X,
            y,
            penalty,
            proximal=soft_threshold,
            solver=ProximalGradient(**ACCURATE),
            adjoint=adjoint,
        )
        return solution.x, solution.objective

    return layer


def constrained(adjoint, start=ZEROS):
    def layer(y, total, radius):
        solution = ol.minimize(
            lambda w, y, total, radius: loss(w, X, y, PENALTY),
            start,
            y,
            total,
            radius,
            equalities=lambda w, y, total, radius: (w.sum() - total)[None],
            inequalities=lambda w, y, total, radius: torch.stack(
                [w[0] ** 2 + w[1] ** 2 - radius, w[2] - 10 * radius]
            ),
            adjoint=adjoint,
        )
        return solution.x, solution.y, solution.z, solution.objective

    return layer


def least_squares(adjoint):
    def layer(X, y):
        solution = ol.least_squares(
            lambda w, X, y: X @ torch.sin(w) + 0.1 * (X @ w) ** 2 - y, ZEROS, X, y, adjoint=adjoint
        )
        return solution.x, solution.objective

    return layer


def inverse(adjoint):
    return lambda y, a: ol.inverse(lambda x, a: x**3 + a * torch.tanh(x), y, a, adjoint=adjoint).x


def by_numpy(adjoint):
    """A solver that torch cannot see into, with conditions on a dictionary."""

    def solve(t, W):
        W, t = W.numpy(), t.numpy()
        found = scipy.optimize.root(lambda z: z - np.tanh(W @ z + t), np.zeros(3), tol=1e-13)
        return {"z": found.x}

    def conditions(z, t, W):
        return {"z": z["z"] - torch.tanh(W @ z["z"] + t)}

    layer = ol.implicit_function(solve, conditions, adjoint=adjoint)
    return lambda t, W: layer(t, W).x


KINDS = {
    "root": (root, (T, W)),
    "fixed point": (fixed_point, (T, W)),
    "tree": (tree, (T[0], W)),
    "minimize": (free, (X, Y, PENALTY)),
    "minimize on a set": (on_a_set, (X, 3 * Y, PENALTY)),
    "minimize between bounds": (
        between_bounds,
        (3 * Y, tensor(-0.2, -0.1, -0.3), tensor(0.2, 0.3, 0.1)),
    ),
    "minimize with a penalty": (with_a_penalty, (X, 3 * Y, PENALTY)),
    "minimize with constraints": (constrained, (3 * Y, tensor(1.7)[0], tensor(0.3)[0])),
    "least squares": (least_squares, (X, 0.3 * Y)),
    "inverse": (inverse, (tensor(0.3, 0.9), tensor(1.3)[0])),
    "by numpy": (by_numpy, (T[0], W)),
}


# Methods of the first order, and one that calls SciPy, start at the solution here: their way there
# is tested elsewhere, and would be taken some thousand times.
NEAR = (on_a_set, between_bounds, with_a_penalty, constrained)


def layer_of(name, adjoint):
    kind, inputs = KINDS[name]
    layer = kind(adjoint)
    if kind in NEAR:
        layer = kind(adjoint, start=layer(*inputs)[0].detach())
    return layer, inputs


SLOW = (
    "least squares",
    "minimize between bounds",
    "minimize on a set",
    "minimize with a penalty",
    "minimize with constraints",
)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in SLOW])
def test_dense(name):
    check_layer(*layer_of(name, ol.Dense()), vmap_subsets=[(0, 1)], compile=False)


@pytest.mark.parametrize("name", SLOW)
def test_a_part(name):
    few = ["vmap(*", "*of vmap*", "*(*)", "gradgradcheck", "triple*"]
    check_layer(*layer_of(name, None), vmap_subsets=[(0,)], compile=False, skip=few)


@pytest.mark.parametrize("name", ["root", "by numpy"])
def test_compiled(name):
    skip = ["*hessian*", "jac*", "vmap*", "*of vmap*", "triple*", "grad*check*"]
    check_layer(*layer_of(name, None), vmap_subsets=[], skip=skip)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_everything_with_dense(name):
    check_layer(*layer_of(name, ol.Dense()))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_everything_with_iterative(name):
    check_layer(*layer_of(name, ol.Iterative()))


@pytest.mark.slow
def test_everything_with_fixed_point():
    check_layer(*layer_of("fixed point", ol.FixedPoint()))


class Cell(nn.Module):
    """A small map with parameters."""

    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(W.clone()), nn.Parameter(T[0].clone())

    def forward(self, z, u):
        return torch.tanh(z @ self.W.mT + self.b + u)


def test_module():
    check_layer(ol.FixedPointLayer(Cell()), [T], vmap_subsets=[(0,), (2,)], compile=False)
