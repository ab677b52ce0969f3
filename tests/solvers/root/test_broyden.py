"""What is Broyden's alone: the secant condition, its order, how often it evaluates."""

import math

import pytest
import torch

from optlayers.solvers.root import Broyden
from solvers.root.broyden import InverseJacobian
from solvers.solution import Status
from tests.solvers.root.problems import posed, quintic, rosenbrock, tanh_layer


@pytest.mark.parametrize("beginning", ["a multiple of the identity", "matrices"])
def test_the_last_step_is_explained(beginning):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    identity = torch.eye(4, dtype=torch.float64)
    H = InverseJacobian(
        0.5 if beginning != "matrices" else identity + 0.1 * randn(3, 4, 4), 5, randn(3, 4)
    )
    dense = torch.stack([H.times(e.expand(3, 4)) for e in identity], -1)
    value = randn(3, 4)
    step = -H.times(value)
    for _ in range(3):
        s, new = 0.7 * step, randn(3, 4)
        y = new - value
        # The formula, densely.
        Hy = (dense @ y[..., None])[..., 0]
        row = (s[:, None] @ dense) / (s * Hy).sum(-1)[:, None, None]
        dense = dense + (s - Hy)[..., None] @ row
        step, value = H.learn(s, step, new), new
        assert torch.allclose(H.times(y), s)
        assert torch.allclose(step, -(dense @ new[..., None])[..., 0])
        assert torch.allclose(H.transposed_times(new), (dense.mT @ new[..., None])[..., 0])


def test_a_step_that_tells_nothing_is_not_learned_from():
    H = InverseJacobian(1.0, 2, torch.ones(2, 3, dtype=torch.float64))
    value = torch.ones(2, 3, dtype=torch.float64)
    before = H.times(value)
    # The first sample stays, and the second one's function did not change.
    s = torch.stack([torch.zeros(3), torch.ones(3)]).double()
    step = H.learn(s, -before, value)
    assert torch.equal(H.times(value), before)
    assert torch.equal(step, -before)


def test_converges_superlinearly():
    F, _, start = posed(tanh_layer, torch.float64)
    errors = Broyden(initial_inverse=1.0, keep_history=True).solve(F, start).history
    assert errors.shape[0] > 15
    for mine in errors.T:
        mine = mine[mine.isfinite()]
        ratios = mine[1:] / mine[:-1]
        assert ratios[-5:].log().mean().exp() < 0.6 * ratios[:5].log().mean().exp()


def test_with_one_variable_it_is_the_secant_method():
    # Whose order is the golden ratio.
    solution = Broyden(keep_history=True).solve(
        lambda w: w**3 - 2, torch.tensor([1.5], dtype=torch.float64)
    )
    errors = [error for error in solution.history.tolist() if error > 1e-14]
    order = math.log(errors[-1] / errors[-2]) / math.log(errors[-2] / errors[-3])
    assert 1.5 < order < 1.75


def test_one_evaluation_a_step():
    F, _, start = posed(tanh_layer, torch.float64)
    count = 0

    def counted(z):
        nonlocal count
        count += 1
        return F(z)

    solution = Broyden(initial_inverse=1.0).solve(counted, start)
    assert (solution.status == Status.SOLVED).all()
    assert count == solution.iterations.max() + 2


@pytest.mark.parametrize("memory", [1, 3, 50])
def test_any_memory_will_do(memory):
    F, root, start = posed(quintic, torch.float64)
    solution = Broyden(memory=memory).solve(F, start)
    assert torch.allclose(solution.x, root, atol=1e-9)
    F, root, start = posed(rosenbrock, torch.float64)
    assert torch.allclose(Broyden(memory=memory).solve(F, start).x, root, atol=1e-9)


def test_an_inverse_of_the_wrong_sign_is_given_up():
    start = torch.tensor([[1.0]], dtype=torch.float64)
    solution = Broyden(initial_inverse=-1.0).solve(lambda x: x**3 + x, start)
    assert solution.status.tolist() == [Status.NUMERICAL_ERROR]


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Broyden(memory=0)
