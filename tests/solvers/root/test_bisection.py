"""Bracketing against closed forms."""

import math

import pytest
import torch

from optlayers.solvers.root import Bisection
from solvers.solution import Status

ROOTS = [
    pytest.param(lambda x: x**2 - 2, 0.0, 5.0, math.sqrt(2), id="square root"),
    pytest.param(lambda x: 1 - x**3, -1.0, 4.0, 1.0, id="falling"),
    pytest.param(lambda x: torch.exp(-x) - 0.01, -50.0, 50.0, math.log(100), id="exponential"),
    pytest.param(lambda x: torch.tan(x) - 100, -1.57, 1.57, math.atan(100), id="steep"),
    pytest.param(lambda x: torch.log(x) + 3, 0.0, 9.0, math.exp(-3), id="infinite at an end"),
    pytest.param(lambda x: (x - 0.7) ** 3, -1.0, 2.0, 0.7, id="triple root"),
    pytest.param(lambda x: torch.where(x < 0.3, -1.0, 2.0), -1.0, 1.0, 0.3, id="jump"),
    pytest.param(lambda x: x - 1, 1.0, 3.0, 1.0, id="left end"),
    pytest.param(lambda x: 3 - x, 1.0, 3.0, 3.0, id="right end"),
]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("F", "lower", "upper", "root"), ROOTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finds_the_root_to_rounding(F, lower, upper, root, dtype):
    lower, upper = torch.tensor(lower, dtype=dtype), torch.tensor(upper, dtype=dtype)
    solution = Bisection().solve(F, lower, upper)
    assert solution.status == Status.SOLVED
    assert solution.x.dtype == dtype
    # Values have a rounding error, which leaves the root of a flat function undetermined.
    assert solution.x.item() == pytest.approx(root, rel=16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("F", "lower", "upper", "root"), ROOTS)
def test_two_steps_halve_at_least(F, lower, upper, root):
    solution = Bisection(keep_history=True).solve(F, double(lower), double(upper))
    halves = solution.history[:, 0]
    assert (halves[2:] <= 0.5 * halves[:-2] * (1 + 1e-9)).all()
    assert halves[0] == (upper - lower) / 2 or root in (lower, upper)


def test_smooth_functions_take_a_third_of_bisections_steps():
    solution = Bisection().solve(lambda x: torch.cosh(x) - 3, double(0.0), double(10.0))
    assert solution.iterations.item() <= math.log2(10 / 2**-52) / 3


def test_every_element_is_on_its_own():
    targets = torch.linspace(-50, 50, 12, dtype=torch.float64).reshape(3, 4)
    solution = Bisection().solve(
        lambda w: w**5 + w**3 + w - targets, torch.full_like(targets, -10), double(10.0)
    )
    assert solution.x.shape == solution.status.shape == (3, 4)
    assert torch.allclose(solution.x**5 + solution.x**3 + solution.x, targets, rtol=1e-13)
    for i, target in enumerate(targets.flatten()):
        alone = Bisection().solve(
            lambda w, target=target: w**5 + w**3 + w - target, double(-10.0), double(10.0)
        )
        assert alone.x == solution.x.flatten()[i]
        assert alone.iterations == solution.iterations.flatten()[i]


@pytest.mark.parametrize("bad", [-1.0, torch.nan, -torch.inf])
def test_a_bracket_without_a_root_is_a_status(bad):
    def solve(second):
        squares = double(4.0, second, 9.0)
        return Bisection().solve(lambda x: x**2 - squares, torch.zeros(3).double(), double(10.0))

    solution, fine = solve(bad), solve(16.0)
    assert solution.status.tolist() == [0, Status.NUMERICAL_ERROR, 0]
    assert solution.x[1].isnan()
    assert torch.equal(solution.x[[0, 2]], fine.x[[0, 2]])
    assert torch.equal(solution.iterations[[0, 2]], fine.iterations[[0, 2]])


def test_not_a_number_inside_is_a_status():
    def F(x):
        return torch.where((x > 0) & (x < 5), torch.nan, x - 1)

    solution = Bisection().solve(F, double(-10.0), double(10.0))
    assert solution.status.tolist() == [Status.NUMERICAL_ERROR]


def test_flat_batches():
    run = Bisection().find(lambda x: x - 1, double([0.0], [-3.0]), double([2.0], [9.0]))
    assert run.x.tolist() == [[1.0], [1.0]]


def test_no_elements():
    solution = Bisection().solve(lambda x: x, torch.zeros(0, 2), torch.ones(0, 2))
    assert solution.x.shape == solution.status.shape == (0, 2)


def test_running_out_of_steps_is_a_status():
    solution = Bisection(max_iter=2).solve(lambda x: x**3 - 2, double(0.0), double(9.0))
    assert solution.status.tolist() == [Status.MAX_ITERATIONS]
    assert solution.iterations.tolist() == [2]


def test_the_ends_are_left_alone():
    lower, upper = double(0.0, -1.0), double(3.0, 5.0)
    Bisection().solve(lambda x: x**2 - 1 - x, lower, upper)
    assert lower.tolist() == [0.0, -1.0]
    assert upper.tolist() == [3.0, 5.0]


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="1 of 2 do not"):
        Bisection().solve(lambda x: x, double(1.0, -1.0), double(0.0, 1.0))


def test_ends_that_do_not_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        Bisection().solve(lambda x: x, torch.zeros(2), torch.ones(3))
