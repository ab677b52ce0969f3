"""Derivatives of projections, their spectra, and the central path."""

import pytest
import torch
from torch.func import jvp, vmap

from solvers.cone import (
    BoxCone,
    ExponentialCone,
    GeneralizedPowerCone,
    NonnegativeCone,
    PositiveSemidefiniteCone,
    PowerCone,
    SecondOrderCone,
    smat,
)
from tests.solvers.cone.cones import (
    CONES,
    SMOOTH,
    WITH_CENTRAL_PATH,
    matrix,
    name,
    points,
    size,
    special_points,
    violation,
)

every_cone = pytest.mark.parametrize("cone", CONES, ids=name)
central = pytest.mark.parametrize("cone", WITH_CENTRAL_PATH, ids=name)
strengths = pytest.mark.parametrize("mu", [0.1, 1e-8])


def check_spectrum(cone, v, mu):
    spectrum = cone.spectrum(v, mu)
    U, D = matrix(spectrum, cone.rows)
    w = points(cone, len(v), seed=9)
    eye = torch.eye(cone.rows, dtype=v.dtype).expand_as(U)
    torch.testing.assert_close(U.mT @ U, eye, rtol=0, atol=2e-14)
    torch.testing.assert_close(spectrum.rotate(eye), U.mT, rtol=0, atol=2e-14)
    assert (spectrum.values >= 0).all()
    assert (spectrum.values <= 1).all()
    assert spectrum.values.shape == v.shape
    values, rows = cone.eigenvectors(v, mu)
    torch.testing.assert_close(values, spectrum.values, rtol=0, atol=1e-15)
    torch.testing.assert_close(rows, U.mT, rtol=0, atol=2e-14)
    torch.testing.assert_close(
        cone.derivative(v, w, mu), (D @ w[..., None])[..., 0], rtol=0, atol=5e-14
    )
    # One set of columns may serve the whole batch.
    columns = points(cone, 2).mT
    together = spectrum.back(spectrum.values[..., None] * spectrum.rotate(columns))
    torch.testing.assert_close(together, D @ columns, rtol=0, atol=5e-14)
    return D


def check_finite_differences(cone, v, mu, h=1e-6):
    w = points(cone, len(v), seed=8)
    ahead, behind = v + h * w, v - h * w
    numerical = (cone.project(ahead, mu) - cone.project(behind, mu)) / (2 * h)
    error = (cone.derivative(v, w, mu) - numerical).abs().amax(-1)
    # Where the derivative itself changes on the way there is a kink.
    change = (cone.derivative(ahead, w, mu) - cone.derivative(behind, w, mu)).abs().amax(-1)
    smooth = change < 1e-3
    assert smooth.double().mean() > 0.95
    assert (error - change)[smooth].max() < 1e-7


@every_cone
def test_derivative_is_that_of_the_projection(cone):
    check_finite_differences(cone, points(cone, 400), 0.0)


@every_cone
def test_spectrum_is_orthogonal_and_belongs_to_the_derivative(cone):
    check_spectrum(cone, points(cone), 0.0)
    check_spectrum(cone, points(cone, 400, seed=1, spread=8), 0.0)


@every_cone
def test_special_points_have_an_element_of_the_generalised_jacobian(cone):
    v = special_points(cone)
    D = check_spectrum(cone, v, 0.0)
    s = cone.project(v)
    torch.testing.assert_close((D @ s[..., None])[..., 0], s, rtol=0, atol=2e-14)


@every_cone
def test_the_two_parts_are_eigenvectors(cone):
    """By homogeneity: D s = s and D z = 0."""
    v = torch.cat([points(cone), points(cone, 400, seed=1, spread=8)])
    v = v / size(v)
    s = cone.project(v)
    torch.testing.assert_close(cone.derivative(v, s), s, rtol=0, atol=5e-14)
    zero = cone.derivative(v, s - v)
    torch.testing.assert_close(zero, torch.zeros_like(v), rtol=0, atol=5e-14)


@pytest.mark.parametrize("cone", [NonnegativeCone(3), SecondOrderCone(3), BoxCone((-1.0,), (1.0,))])
def test_counts_the_apex_as_inside(cone):
    apex = torch.zeros(cone.rows)
    w = torch.arange(1.0, cone.rows + 1)
    torch.testing.assert_close(cone.derivative(apex, w), w)


@every_cone
def test_derivative_takes_any_leading_dimensions_and_maps(cone):
    v, w = points(cone, 6), points(cone, 6, seed=1)
    expected = cone.derivative(v, w)
    shaped = cone.derivative(v.reshape(2, 3, -1), w.reshape(2, 3, -1))
    torch.testing.assert_close(shaped, expected.reshape(2, 3, -1))
    torch.testing.assert_close(vmap(cone.derivative)(v, w), expected)
    assert cone.derivative(v[:0], w[:0]).shape == (0, cone.rows)
    assert cone.spectrum(v[:0]).values.shape == (0, cone.rows)
    single = cone.derivative(v.float(), w.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("cone", "mu"),
    [(cone, 0.0) for cone in SMOOTH]
    + [(cone, 0.3) for cone in SMOOTH if not isinstance(cone, BoxCone)],
)
def test_smooth_cones_have_derivatives_of_derivatives(cone, mu):
    v = points(cone, 12)[[0, 11]].requires_grad_()
    w = points(cone, 2, seed=1).requires_grad_()

    def derivative(v, w):
        return cone.derivative(v, w, mu)

    assert torch.autograd.gradcheck(derivative, (v, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(derivative, (v, w))
    _, tangent = jvp(lambda v: cone.derivative(v, w, mu), (v,), (w,))
    assert tangent.isfinite().all()


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_second_order_cone_has_derivatives_on_its_axis(mu):
    cone = SecondOrderCone(3)
    v = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[0.3, -1.0, 2.0]] * 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, w: cone.derivative(v, w, mu), (v, w))


def barrier(cone, s):
    match cone:
        case NonnegativeCone():
            return -s.log().sum(-1)
        case SecondOrderCone():
            return -torch.log(s[..., 0] ** 2 - (s[..., 1:] ** 2).sum(-1)) / 2
        case PositiveSemidefiniteCone():
            return -torch.logdet(smat(s))
        case ExponentialCone():
            x, y, z = s.unbind(-1)
            return -torch.log(y * torch.log(z / y) - x) - y.log() - z.log()
        case PowerCone():
            return barrier(GeneralizedPowerCone((cone.alpha, 1 - cone.alpha), 1), s)
        case GeneralizedPowerCone():
            alphas = s.new_tensor(cone.alphas)
            u, w = s[..., : len(alphas)], s[..., len(alphas) :]
            mean = torch.exp(2 * (alphas * u.log()).sum(-1))
            return -torch.log(mean - (w * w).sum(-1)) - ((1 - alphas) * u.log()).sum(-1)


@central
def test_central_path_is_stationary(cone):
    for mu in (10.0, 1.0, 1e-2):
        v = points(cone)
        s = cone.project(v, mu).requires_grad_()
        (gradient,) = torch.autograd.grad(barrier(cone, s).sum(), s)
        torch.testing.assert_close(s.detach() - v, -mu * gradient, rtol=1e-9, atol=1e-9)


@central
def test_central_path_tends_to_the_projection(cone):
    v = points(cone)
    nearest = cone.project(v)
    gaps = [(cone.project(v, mu) - nearest).abs().max() for mu in (1e-4, 1e-8, 1e-12)]
    assert gaps[0] < 0.1
    assert gaps[1] < 1e-3
    assert gaps[2] < 1e-5
    assert violation(cone, cone.project(v, 1e-8)).max() < 0


@central
@strengths
def test_derivative_along_the_central_path(cone, mu):
    check_spectrum(cone, points(cone), mu)
    check_finite_differences(cone, points(cone) if mu > 1e-6 else 2 * points(cone)[60:], mu, 1e-7)


@central
def test_central_path_takes_special_points_and_a_strength_for_each(cone):
    v = special_points(cone)
    mu = torch.linspace(0.1, 2.0, len(v), dtype=torch.float64)
    s = cone.project(v, mu)
    check_spectrum(cone, v, mu)
    for i in (0, 3, len(v) - 1):
        torch.testing.assert_close(cone.project(v[i], mu[i].item()), s[i], rtol=1e-12, atol=1e-12)
    assert cone.project(v[:0], 0.1).shape == (0, cone.rows)
    single = cone.project(v.float(), 0.1).double()
    torch.testing.assert_close(single, cone.project(v, 0.1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "cone",
    [
        BoxCone((0.0,), (1.0,)),
        ExponentialCone(dual=True),
        PowerCone(0.5, dual=True),
        GeneralizedPowerCone((1.0,), 1, dual=True),
    ],
    ids=name,
)
def test_says_where_there_is_no_central_path(cone):
    v = torch.ones(cone.rows)
    for call in (cone.project, cone.spectrum, lambda v, mu: cone.derivative(v, v, mu)):
        with pytest.raises(NotImplementedError, match=r"no central path.*got .*mu = 0.1"):
            call(v, 0.1)
