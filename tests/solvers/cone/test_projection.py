"""Projections onto cones: what defines them, other solvers, extreme scales."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

from solvers.cone import (
    BoxCone,
    ExponentialCone,
    GeneralizedPowerCone,
    NonnegativeCone,
    PositiveSemidefiniteCone,
    PowerCone,
    SecondOrderCone,
    ZeroCone,
    smat,
    svec,
)
from tests.solvers.cone.cones import (
    CONES,
    dual_violation,
    name,
    points,
    size,
    special_points,
    violation,
)

every_cone = pytest.mark.parametrize("cone", CONES, ids=name)


def all_points(cone):
    return torch.cat([points(cone), points(cone, 300, 1, spread=8), special_points(cone)])


@every_cone
def test_splits_into_a_point_of_the_cone_and_an_orthogonal_one_of_the_dual(cone):
    """This is Moreau's theorem: nothing else than the projection does so."""
    v = all_points(cone)
    v = v / size(v)
    s = cone.project(v)
    z = s - v
    # Near a corner a rounding error in one entry asks for a large change of another, so that the
    # point of the cone near by is looked for towards the interior.
    curved = isinstance(cone, PowerCone | GeneralizedPowerCone | ExponentialCone)
    inward = 1e-13 * interior(cone) if curved else 0.0
    assert violation(cone, s + inward).max() < 1e-13
    assert dual_violation(cone, z + inward).max() < 1e-12
    assert (s * z).sum(-1).abs().max() < 1e-14 * cone.rows**2


def interior(cone):
    """A point inside of both the cone and its dual."""
    if isinstance(cone, ExponentialCone):
        return torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    count = 2 if isinstance(cone, PowerCone) else len(cone.alphas)
    return (torch.arange(cone.rows) < count).double()


@every_cone
def test_leaves_its_points_alone_and_scales_along(cone):
    v = all_points(cone)
    s = cone.project(v)
    torch.testing.assert_close(cone.project(s) / size(v), s / size(v), rtol=0, atol=4e-14)
    for factor in (1e-8, 1e8):
        scaled = cone.project(v * factor) / factor
        torch.testing.assert_close(scaled / size(v), s / size(v), rtol=0, atol=4e-14)


@every_cone
def test_is_firmly_nonexpansive(cone):
    v, w = points(cone), points(cone, seed=1)
    difference = cone.project(v) - cone.project(w)
    lost = (difference * (v - w)).sum(-1) - (difference**2).sum(-1)
    assert lost.min() > -1e-13


@every_cone
def test_agrees_in_single_precision(cone):
    v = points(cone, 300, spread=3)
    v = v / size(v)
    expected = cone.project(v.float().double())
    torch.testing.assert_close(cone.project(v.float()).double(), expected, rtol=0, atol=5e-6)
    assert cone.project(v.float()).dtype == torch.float32


@every_cone
def test_takes_any_leading_dimensions_and_maps(cone):
    v = points(cone, 6)
    expected = cone.project(v)
    torch.testing.assert_close(cone.project(v.reshape(2, 3, -1)), expected.reshape(2, 3, -1))
    torch.testing.assert_close(cone.project(v[0]), expected[0])
    torch.testing.assert_close(vmap(cone.project)(v), expected)
    assert cone.project(v[:0]).shape == (0, cone.rows)


def constraints(cone, s):
    match cone:
        case ZeroCone():
            return [s == 0]
        case NonnegativeCone():
            return [s >= 0]
        case BoxCone():
            bounds = enumerate(zip(cone.lower, cone.upper, strict=True), start=1)
            pairs = [(i, low, high) for i, (low, high) in bounds]
            return (
                [s[0] >= 0]
                + [s[i] >= low * s[0] for i, low, _ in pairs if np.isfinite(low)]
                + [s[i] <= high * s[0] for i, _, high in pairs if np.isfinite(high)]
            )
        case SecondOrderCone():
            return [cp.SOC(s[0], s[1:])] if cone.rows > 1 else [s >= 0]
        case PositiveSemidefiniteCone():
            # smat of the unit vectors says which matrix every entry stands for.
            return [sum(s[i] * E.numpy() for i, E in enumerate(smat(torch.eye(cone.rows)))) >> 0]
        case ExponentialCone(dual=False):
            return [cp.ExpCone(s[0], s[1], s[2])]
        case ExponentialCone():
            return [cp.ExpCone(s[0] - s[1], -s[0], s[2])]
        case PowerCone(dual=False):
            return [cp.PowCone3D(s[0], s[1], s[2], cone.alpha)]
        case PowerCone():
            return [cp.PowCone3D(s[0] / cone.alpha, s[1] / (1 - cone.alpha), s[2], cone.alpha)]
        case GeneralizedPowerCone():
            alphas = np.array(cone.alphas)
            count = len(alphas)
            u = [s[i] / (alphas[i] if cone.dual else 1) for i in range(count)]
            length = cp.Variable()
            at_least = cp.PowConeND(cp.hstack(u), length, alphas) if count > 1 else u[0] >= length
            return [at_least, cp.SOC(length, s[count:])]


@every_cone
def test_agrees_with_an_interior_point_solver(cone):
    v = points(cone, 40, seed=5)[[0, 20, 30]]
    s = cp.Variable(cone.rows)
    target = cp.Parameter(cone.rows)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(s - target)), constraints(cone, s))
    for point, nearest in zip(v, cone.project(v), strict=True):
        target.value = point.numpy()
        problem.solve(solver=cp.CLARABEL)
        np.testing.assert_allclose(nearest.numpy(), s.value, atol=3e-5)


numbers = st.floats(-1e8, 1e8, allow_subnormal=False)


@settings(max_examples=20, deadline=None)
@given(st.tuples(numbers, numbers, numbers))
def test_three_rows_of_any_size(entries):
    v = torch.tensor(entries, dtype=torch.float64)
    for cone in (ExponentialCone(), PowerCone(0.2), ExponentialCone(True), PowerCone(0.01, True)):
        s = cone.project(v)
        unit = size(v)
        assert s.isfinite().all()
        assert ((s / unit) @ ((s - v) / unit)).abs() < 1e-14
        assert ((cone.project(s) - s) / unit).abs().max() < 2e-14


def test_faces_of_the_exponential_cone_are_exact():
    cone = ExponentialCone()
    v = torch.tensor(
        [[-1.0, -2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 1.0], [-1.0, 1e-300, -1.0]],
        dtype=torch.float64,
    )
    expected = torch.tensor(
        [[-1.0, 0.0, 3.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]], dtype=v.dtype
    )
    assert torch.equal(cone.project(v) + 0.0, expected)


def test_svec_keeps_inner_products_and_has_the_order_of_clarabel():
    M = torch.tensor([[1.0, 2.0, 4.0], [2.0, 3.0, 5.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    root = 2**0.5
    expected = torch.tensor([1, 2 * root, 3, 4 * root, 5 * root, 6], dtype=torch.float64)
    torch.testing.assert_close(svec(M), expected)
    torch.testing.assert_close(smat(svec(M)), M)
    torch.testing.assert_close(svec(M) @ svec(M), (M * M).sum())
    v = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: svec(smat(v) @ smat(v)), (v,))
    with pytest.raises(ValueError, match=r"k \* \(k \+ 1\) / 2.*got \(2, 5\)"):
        smat(v[:, :5])
    with pytest.raises(ValueError, match=r"svec: M must have shape"):
        svec(v)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NonnegativeCone(-1), "at least 0; got -1"),
        (lambda: ZeroCone(1.5), "at least 0; got 1.5"),
        (lambda: SecondOrderCone(0), "at least 1; got 0"),
        (lambda: PositiveSemidefiniteCone(True), "at least 1; got True"),
        (lambda: BoxCone((0.0,), (1.0, 2.0)), "got 1 and 2 bounds"),
        (lambda: BoxCone((2.0,), (1.0,)), "Did you swap"),
        (lambda: BoxCone((float("nan"),), (1.0,)), "lower <= upper"),
        (lambda: PowerCone(1.0), "between 0 and 1"),
        (lambda: GeneralizedPowerCone((0.5, 0.4), 1), "sum to 1"),
        (lambda: GeneralizedPowerCone((1.5, -0.5), 1), "positive numbers"),
        (lambda: GeneralizedPowerCone((0.5, 0.5), 0), "dim must be an integer"),
    ],
)
def test_says_what_is_wrong_with_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cones_are_compared_by_value():
    assert PowerCone(0.5) == PowerCone(0.5) != PowerCone(0.5, dual=True)
    assert SecondOrderCone(3) != NonnegativeCone(3)
    assert len({BoxCone((0,), (1,)), BoxCone([0.0], [1.0])}) == 1
