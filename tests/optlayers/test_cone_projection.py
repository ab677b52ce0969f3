"""Projections onto cones, differentiably."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optlayers as ol
from optlayers.testing import check_layer

SMOOTH = [ol.ZeroCone(1), ol.NonnegativeCone(2), ol.SecondOrderCone(3), ol.BoxCone((-1.0,), (2.0,))]
V = torch.tensor([0.3, 1.0, -0.7, 0.2, 1.0, -0.8, 0.5, 2.0], dtype=torch.float64)
OTHERS = {
    "semidefinite": (ol.PositiveSemidefiniteCone(2), [0.8, 0.5, -0.9]),
    "exponential": (ol.ExponentialCone(), [0.7, 0.6, 0.2]),
    "dual exponential": (ol.ExponentialCone(dual=True), [0.7, -0.6, 0.2]),
    "power": (ol.PowerCone(0.3), [0.5, 0.4, 1.0]),
    "generalised power": (ol.GeneralizedPowerCone((0.2, 0.3, 0.5), 2), [0.5, 0.4, 0.7, 1.0, -1.0]),
}


def test_smooth_cones_under_every_transform():
    check_layer(lambda v: ol.cone_projection(v, SMOOTH), [V])


@pytest.mark.parametrize("name", OTHERS)
def test_first_derivatives_of_the_other_cones(name):
    cone, values = OTHERS[name]
    v = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    batch = torch.stack([v.detach(), 1.1 * v.detach()]).requires_grad_()
    assert gradcheck(lambda v: ol.cone_projection(v, [cone]), (v,), check_forward_ad=True)
    assert gradcheck(lambda v: ol.cone_projection(v, [cone]), (batch,), check_batched_grad=True)


@pytest.mark.parametrize("name", OTHERS)
def test_second_derivatives_of_the_other_cones_raise(name):
    cone, values = OTHERS[name]
    v = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(ol.cone_projection(v, [cone]).square().sum(), v, create_graph=True)
    with pytest.raises(NotImplementedError, match="cone_projection: second derivatives exist for"):
        torch.autograd.grad(g.sum(), v)
    with pytest.raises(NotImplementedError, match="cone_projection: second derivatives exist for"):
        torch.func.hessian(lambda v: ol.cone_projection(v, [cone]).square().sum())(v.detach())


def test_smoothed_projection():
    cones = SMOOTH[:3]  # a box has no central path
    v = V[:6].clone().requires_grad_()
    assert gradcheck(lambda v: ol.cone_projection(v, cones, mu=0.1), (v,))
    assert gradgradcheck(lambda v: ol.cone_projection(v, cones, mu=0.1), (v,))
    near = ol.cone_projection(v, cones, mu=1e-12)
    torch.testing.assert_close(near, ol.cone_projection(v, cones), atol=1e-5, rtol=0)


def test_it_keeps_types_and_shapes():
    s = ol.cone_projection(V.float().expand(2, 3, 8), SMOOTH)
    assert (s.dtype, s.shape) == (torch.float32, (2, 3, 8))
    assert ol.cone_projection(V.new_zeros(0, 8), SMOOTH).shape == (0, 8)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"cone_projection: v must have shape \(\*batch, 8\)"):
        ol.cone_projection(V[:3], SMOOTH)
    with pytest.raises(TypeError, match="v must be a real floating-point tensor; got list"):
        ol.cone_projection([1.0], [ol.ZeroCone(1)])
    with pytest.raises(TypeError, match="int64"):
        ol.cone_projection(torch.ones(1, dtype=torch.long), [ol.ZeroCone(1)])
    with pytest.raises(TypeError, match="every entry must be a cone"):
        ol.cone_projection(V, [8])
