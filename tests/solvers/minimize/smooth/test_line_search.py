"""The search along a line: its conditions, its bounds, samples that do not run."""

import pytest
import torch

from solvers.derivatives import value_and_gradient
from solvers.minimize.line_search import MAX_TRIALS, first_step, rounding_allowance, search

FUNCTIONS = [
    pytest.param(lambda x: (x - 3).square().sum(-1), id="parabola"),
    pytest.param(lambda x: (torch.exp(x) - 5 * x).sum(-1), id="exponential"),
    pytest.param(lambda x: (x**4 - 8 * x**2 - x).sum(-1), id="two wells"),
    pytest.param(lambda x: (x - 3e-2 * torch.log(4 - x) - 3 * x).sum(-1), id="wall"),
    pytest.param(lambda x: torch.sqrt(1 + 1e-2 * (x - 50) ** 2).sum(-1), id="far"),
]


def start(f, batch=4):
    x = torch.linspace(0.1, 0.7, batch, dtype=torch.float64)[:, None].repeat(1, 2)
    value, gradient = value_and_gradient(f, x)
    return (x, value, gradient), -gradient


@pytest.mark.parametrize("t", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("curvature", [0.9, 0.1, None])
@pytest.mark.parametrize("f", FUNCTIONS)
def test_steps_satisfy_the_conditions(f, t, curvature):
    point, d = start(f)
    x, value, gradient = point
    everyone = torch.ones(4, dtype=torch.bool)
    strong = curvature == 0.1
    found = search(
        f,
        point,
        d,
        torch.full((4,), t).to(x),
        everyone,
        rounding_allowance(value),
        curvature=curvature,
        strong=strong,
    )
    assert found.failed is None
    torch.testing.assert_close(found.x, x + found.t[:, None] * d)
    expected = value_and_gradient(f, found.x)
    torch.testing.assert_close((found.value, found.gradient), expected, rtol=0, atol=0)
    slope, slope_t = (gradient * d).sum(-1), (found.gradient * d).sum(-1)
    assert (found.value <= value + 1e-4 * found.t * slope).all()
    if curvature is not None:
        assert (slope_t >= curvature * slope).all()
        assert not strong or (slope_t.abs() <= -curvature * slope).all()


def test_the_second_trial_is_exact_on_a_parabola():
    calls = []

    def f(x):
        calls.append(0)
        return (x - 3).square().sum(-1)

    point, d = start(f)
    calls.clear()
    t = torch.full((4,), 0.4, dtype=torch.float64)
    everyone = torch.ones(4, dtype=torch.bool)
    found = search(f, point, d, t, everyone, 0 * t, curvature=1e-3, strong=True)
    torch.testing.assert_close(found.x, torch.full((4, 2), 3.0).to(found.x))
    assert len(calls) == 2


def test_an_uphill_direction_fails_within_bounds():
    calls = []

    def f(x):
        calls.append(0)
        return x.square().sum(-1)

    point, d = start(f)
    calls.clear()
    d = torch.where(torch.tensor([True, False, True, True])[:, None], d, -d)
    t, everyone = torch.full((4,), 0.5).to(d), torch.ones(4, dtype=torch.bool)
    found = search(f, point, d, t, everyone, 0 * t)
    assert found.failed.tolist() == [False, True, False, False]
    assert torch.equal(found.x[1], point[0][1])
    assert len(calls) <= MAX_TRIALS + 1


def test_samples_that_do_not_run_do_not_keep_the_others():
    calls = []

    def f(x):
        calls.append(0)
        return x.square().sum(-1)

    point, d = start(f)
    calls.clear()
    running = torch.tensor([True, False, True, True])
    t = torch.full((4,), 0.5).to(d)
    assert search(f, point, torch.where(running[:, None], d, -d), t, running, 0 * t).failed is None
    assert len(calls) == 1


def test_near_a_minimum_slopes_decide_where_values_are_rounding():
    x = torch.full((1, 2), 1e-10, dtype=torch.float64)

    def f(x):  # all values within reach are equal
        return 1 + (torch.cosh(x) - 1).sum(-1)

    point = (x, *value_and_gradient(f, x))
    one, everyone = torch.ones(1).to(x), torch.ones(1, dtype=torch.bool)
    found = search(f, point, -point[2], one, everyone, rounding_allowance(point[1]))
    assert found.failed is None
    assert found.x.abs().max() < 1e-20


def test_the_first_step_is_in_the_scale_of_the_function():
    for scale in (1e-12, 1.0, 1e12):
        x = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
        t = first_step(lambda x, s=scale: s * x.square().sum(-1), x, 2 * scale * x)
        assert t.item() == pytest.approx(0.5 / scale, rel=1e-6)


def test_the_first_step_is_finite_without_curvature_or_gradient():
    x = torch.ones(1, 2, dtype=torch.float64)
    linear = first_step(lambda x: x.sum(-1), x, torch.ones_like(x))
    assert 0 < linear.item() < 100
    assert first_step(lambda x: 0 * x.sum(-1), x, torch.zeros_like(x)).item() == 1.0
