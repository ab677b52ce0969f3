"""Proximal operators: least values, closed forms, derivatives, transforms."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import vmap

from solvers.projection import (
    prox_elastic_net,
    prox_group_lasso,
    prox_l1,
    prox_nonnegative_l1,
    prox_ridge,
)

N = 6
GROUPS = torch.tensor([0, 1, 1, 0, 2, 2])
L1, L2 = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)


def group_norms(u):
    member = (GROUPS[:, None] == torch.arange(3)).to(u.dtype)
    return (u.square() @ member).sqrt().sum(-1)


# The operator after x, its weights, and the function it belongs to.
OPERATORS = {
    "l1": (prox_l1, (L1,), lambda u: L1 * u.abs().sum(-1)),
    "nonnegative_l1": (
        prox_nonnegative_l1,
        (L1,),
        lambda u: torch.where((u < 0).any(-1), torch.inf, L1 * u.sum(-1)),
    ),
    "ridge": (prox_ridge, (L2,), lambda u: 0.5 * L2 * u.square().sum(-1)),
    "elastic_net": (
        prox_elastic_net,
        (L1, L2),
        lambda u: L1 * u.abs().sum(-1) + 0.5 * L2 * u.square().sum(-1),
    ),
    "group_lasso": (
        lambda x, weight: prox_group_lasso(x, weight, GROUPS),
        (L1,),
        lambda u: L1 * group_norms(u),
    ),
}


def points(count=30, seed=0):
    x = torch.tensor(np.random.default_rng(seed).uniform(-2, 2, (count, N)))
    x[0] = 0.0
    return x


@pytest.mark.parametrize("name", OPERATORS)
def test_gives_the_least_value(name):
    prox, weights, g = OPERATORS[name]
    x = points()
    u = prox(x, *weights)

    def objective(u):
        return g(u) + 0.5 * (u - x).square().sum(-1)

    least = objective(u)
    for scale in (1e-3, 1e-1, 1.0):
        for seed in range(5):
            # Strong convexity says by how much others are worse.
            other = u + scale * points(seed=seed + 1)
            assert (objective(other) >= least + 0.5 * (other - u).square().sum(-1) - 1e-12).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_distances_do_not_grow(name):
    prox, weights, _ = OPERATORS[name]
    x, y = points(), points(seed=1)
    moved = (prox(x, *weights) - prox(y, *weights)).norm(dim=-1)
    assert (moved <= (x - y).norm(dim=-1) + 1e-14).all()


def test_group_lasso_agrees_with_cvxpy():
    x, u = points(), cp.Variable(N)
    penalty = sum(cp.norm(u[np.flatnonzero(GROUPS.numpy() == g)]) for g in range(3))
    for target, found in zip(x[::6], prox_group_lasso(x[::6], 0.7, GROUPS), strict=True):
        objective = 0.7 * penalty + 0.5 * cp.sum_squares(u - target.numpy())
        cp.Problem(cp.Minimize(objective)).solve(cp.CLARABEL)
        np.testing.assert_allclose(found.numpy(), u.value, atol=1e-4)


@pytest.mark.parametrize("name", ["l1", "nonnegative_l1", "elastic_net", "group_lasso"])
def test_zeros_are_exact(name):
    prox, weights, _ = OPERATORS[name]
    u = prox(0.3 * points(), *weights)
    assert (u == 0.0).any()
    assert not torch.signbit(u[u == 0.0]).any() or name == "group_lasso"


@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives(name):
    prox, weights, _ = OPERATORS[name]
    inputs = [points(4)[1:], *(w.clone() for w in weights)]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(prox, inputs)
    assert torch.autograd.gradgradcheck(prox, inputs)
    at_zero = torch.zeros(1, N, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(prox(at_zero, *weights).sum(), at_zero)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_is_a_batch(name):
    prox, weights, _ = OPERATORS[name]
    x = points()
    torch.testing.assert_close(vmap(lambda x: prox(x, *weights))(x), prox(x, *weights))


@pytest.mark.parametrize("name", OPERATORS)
def test_floats_samples_and_types(name):
    prox, weights, _ = OPERATORS[name]
    x = points().float()
    floats = [float(w) for w in weights]
    u = prox(x, *floats)
    assert u.dtype == torch.float32
    columns = [torch.full((30, 1), w) for w in floats]
    torch.testing.assert_close(prox(x, *columns), u)
    assert prox(x[:0], *floats).shape == (0, N)


def test_a_weight_for_each_group():
    x = torch.ones(N, dtype=torch.float64)
    u = prox_group_lasso(x, torch.tensor([0.0, 0.5, 9.0]).double(), GROUPS)
    shrunk = 1 - 0.5 / 2**0.5
    torch.testing.assert_close(u, torch.tensor([1, shrunk, shrunk, 1, 0, 0]).double())


@pytest.mark.parametrize("groups", [torch.tensor([0, 1]), torch.zeros(N)])
def test_wrong_groups_are_refused(groups):
    with pytest.raises(ValueError, match=r"groups must be an integer tensor of shape \(6,\)"):
        prox_group_lasso(points(), 1.0, groups)
