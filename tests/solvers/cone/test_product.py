"""Products of cones: the same as cone by cone, whatever the order."""

import copy
import random

import pytest
import torch
from torch.func import grad, jvp, vmap

from solvers.cone import ConeProduct, NonnegativeCone, PowerCone, SecondOrderCone, ZeroCone
from tests.solvers.cone.cones import CONES, WITH_CENTRAL_PATH


def shuffled(cones, seed):
    cones = list(cones) * 2
    random.Random(seed).shuffle(cones)
    return ConeProduct.of(cones)


def vectors(K, *batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, K.rows, dtype=torch.float64, generator=generator)


def cone_by_cone(K, work, *parts):
    split = zip(*(part.split([cone.rows for cone in K.cones], -1) for part in parts), strict=True)
    return torch.cat([work(c, *p) for c, p in zip(K.cones, split, strict=True)], -1)


@pytest.mark.parametrize("seed", range(2))
def test_is_the_same_as_cone_by_cone(seed):
    K = shuffled(CONES, seed)
    v, w = vectors(K, 2, 3), vectors(K, 2, 3, seed=1)
    expected = cone_by_cone(K, lambda cone, v: cone.project(v), v)
    torch.testing.assert_close(K.project(v), expected, rtol=1e-13, atol=1e-13)
    expected = cone_by_cone(K, lambda cone, v, w: cone.derivative(v, w), v, w)
    torch.testing.assert_close(K.derivative(v, w), expected, rtol=1e-13, atol=1e-13)


def test_has_a_central_path_with_one_strength_or_many():
    K = shuffled([ZeroCone(2), *WITH_CENTRAL_PATH], 0)
    v, w = vectors(K, 4), vectors(K, 4, seed=1)
    mu = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    s, d = K.project(v, mu), K.derivative(v, w, mu)
    for i in range(4):
        torch.testing.assert_close(s[i], K.project(v[i], mu[i].item()), rtol=1e-10, atol=1e-10)
        one = K.derivative(v[i], w[i], mu[i].item())
        torch.testing.assert_close(d[i], one, rtol=1e-10, atol=1e-10)


def test_outlives_a_transform_in_which_it_was_first_used():
    K = ConeProduct.of([NonnegativeCone(2), SecondOrderCone(3)])
    v, w = vectors(K), vectors(K, seed=1)
    inside = grad(lambda v: (K.derivative(v, w) ** 2).sum())(v)
    copied = copy.deepcopy(K)
    for product in (K, copied):
        after = grad(lambda v, product=product: (product.derivative(v, w) ** 2).sum())(v)
        torch.testing.assert_close(after, inside, rtol=0, atol=0)


def test_stacks_equal_cones_and_merges_rows_that_are_alone():
    K = ConeProduct.of(
        [
            NonnegativeCone(2),
            SecondOrderCone(3),
            ZeroCone(0),
            NonnegativeCone(1),
            SecondOrderCone(3),
        ]
    )
    groups = {cone: index.tolist() for cone, index in K.groups}
    assert groups == {
        NonnegativeCone(3): [[0, 1, 5]],
        SecondOrderCone(3): [[2, 3, 4], [6, 7, 8]],
    }
    assert K.rows == 9
    assert K.smooth
    assert not K.elementwise
    assert ConeProduct.of([ZeroCone(1), NonnegativeCone(2)]).elementwise
    assert not ConeProduct.of([PowerCone(0.5)]).smooth
    assert hash(K) == hash(ConeProduct(K.cones))
    assert len({K, ConeProduct(K.cones)}) == 1


def test_is_differentiable_and_maps():
    K = ConeProduct.of([SecondOrderCone(3), NonnegativeCone(2), ZeroCone(1), SecondOrderCone(3)])
    v, w = vectors(K, 3).requires_grad_(), vectors(K, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(K.project, (v,))
    assert torch.autograd.gradcheck(K.derivative, (v, w))
    assert torch.autograd.gradgradcheck(K.derivative, (v, w))
    torch.testing.assert_close(vmap(K.derivative)(v, w), K.derivative(v, w))
    _, tangent = jvp(K.project, (v,), (w,))
    torch.testing.assert_close(tangent, K.derivative(v, w))


def test_may_be_empty():
    for K in (ConeProduct.of([]), ConeProduct.of([ZeroCone(0)])):
        v = torch.zeros(3, 0)
        assert K.project(v).shape == K.derivative(v, v).shape == (3, 0)
    K = ConeProduct.of([SecondOrderCone(3)])
    assert K.project(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("cones", "message"),
    [
        (NonnegativeCone(3), r"list or tuple.*single NonnegativeCone.*Write"),
        (3, r"list or tuple.*got int"),
        ([NonnegativeCone], r"got the class NonnegativeCone in position 0"),
        ([ZeroCone(1), 4], r"got int in position 1"),
    ],
)
def test_says_what_is_not_a_cone(cones, message):
    with pytest.raises(TypeError, match=message):
        ConeProduct.of(cones)


def test_says_which_length_was_expected():
    K = ConeProduct.of([NonnegativeCone(3)])
    with pytest.raises(ValueError, match=r"v must have shape \(\*batch, 3\).*got \(2,\)"):
        K.project(torch.zeros(2))
    with pytest.raises(ValueError, match=r"w must have shape"):
        K.derivative(torch.zeros(3), torch.zeros(4))
