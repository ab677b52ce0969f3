"""A compiled layer is called again with other sizes, as the last batch of an epoch is."""

import pytest
import torch

import optlayers as ol

EYE = torch.eye(4, dtype=torch.float64)
CONTRADICTION = torch.ones(2, 4, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])


def shared(q):
    return ol.qp(EYE, q, lb=torch.zeros(4, dtype=torch.float64)).x


def whole_batch(q):
    P = EYE.expand(len(q), 4, 4)
    return ol.qp(P, q, torch.ones_like(P[:, :2]), torch.ones_like(q[:, :2])).x


def solved_ones(q):
    solution = ol.qp(EYE, q, on_failure="ignore")
    return torch.where(solution.solved[:, None], solution.x, 0.0)


def smoothed(q):
    return ol.qp(EYE, q, lb=torch.zeros_like(q), adjoint=ol.Smoothed(1e-3)).x


def infeasible(q):
    ends = torch.full((2,), -1.0, dtype=torch.float64)
    return ol.closest_feasible_qp(EYE, q, CONTRADICTION, ends).solution.x


def cone(q):
    zeros = torch.zeros(4, dtype=torch.float64)
    return ol.cone_program(EYE, q, -EYE, zeros, cones=[ol.NonnegativeCone(4)]).x


def root(c):
    return ol.root(lambda x, c: x**3 + x - c, torch.zeros_like(c), c, batch_ndim=1).x


def root_of_one_sample(c):
    return ol.root(lambda x, c: x**3 + x - c, torch.zeros_like(c), c).x


def fixed_point(c):
    return ol.fixed_point(lambda x, c: 0.5 * torch.cos(x) + c, torch.zeros_like(c), c).x


def minimum(c):
    return ol.minimize(lambda x, c: ((x - c) ** 4 + x**2).sum(), torch.zeros_like(c), c).x


LAYERS = [shared, whole_batch, solved_ones, smoothed, infeasible, cone]
LAYERS += [root, root_of_one_sample, fixed_point, minimum]


@pytest.mark.filterwarnings(r"ignore:::torch\.")
@pytest.mark.parametrize("layer", LAYERS)
def test_other_sizes(layer):
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch in (3, 5, 6):
        given = torch.randn(batch, 4, dtype=torch.float64)
        gradients = []
        for function in (layer, compiled):
            leaf = given.clone().requires_grad_()
            x = function(leaf)
            (x**2).sum().backward()
            gradients.append((x.detach(), leaf.grad))
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
