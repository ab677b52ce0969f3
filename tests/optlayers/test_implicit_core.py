"""The implicit core on a problem that is no quadratic program: A x + tanh(x) = b."""

from dataclasses import dataclass

import pytest
import torch

from optlayers.implicit import solve_implicitly
from optlayers.implicit.batching import batch_first
from optlayers.testing import check_layer


def jacobian(A, x):
    return A + torch.diag_embed(1 - torch.tanh(x) ** 2)


def times(A, x):
    return (A @ x[..., None])[..., 0]


def total(t, like):
    return t.sum_to_size(like.shape)


@dataclass(frozen=True)
class LinearSystem:
    """J u = g."""

    differentiable: int = 1

    def solve(self, J, g):
        return (torch.linalg.inv(J).matmul(g[..., None])[..., 0],)

    def fake(self, J, g):
        return (g.new_empty(torch.broadcast_shapes(J.shape[:-1], g.shape)),)

    def vjp(self, inputs, outputs, cotangents, needed):
        if cotangents[0] is None:
            return [None, None]
        (J, g), (u,) = inputs, outputs
        (v,) = solve_implicitly(LinearSystem(), J.mT, cotangents[0])
        return total(-v[..., :, None] * u[..., None, :], J), total(v, g)

    def jvp(self, inputs, outputs, tangents):
        J, right = inputs[0], torch.zeros_like(outputs[0])
        if tangents[1] is not None:
            right = right + tangents[1]
        if tangents[0] is not None:
            right = right - times(tangents[0], outputs[0])
        return solve_implicitly(LinearSystem(), J, right)

    def map(self, size, dims, inputs):
        return self, batch_first(dims, inputs, (2, 1))


@dataclass(frozen=True)
class TanhSystem(LinearSystem):
    """A x + tanh(x) = b, by Newton's method; beside x it returns the number of steps."""

    steps: int = 30

    def solve(self, A, b):
        x = b.new_zeros(torch.broadcast_shapes(A.shape[:-1], b.shape))
        for _ in range(self.steps):
            residual = times(A, x) + torch.tanh(x) - b
            x = x - times(torch.linalg.inv(jacobian(A, x)), residual)
        return x, torch.full(x.shape[:-1], self.steps)

    def fake(self, A, b):
        x = b.new_empty(torch.broadcast_shapes(A.shape[:-1], b.shape))
        return x, x.new_empty(x.shape[:-1], dtype=torch.long)

    def vjp(self, inputs, outputs, cotangents, needed):
        if cotangents[0] is None:
            return [None, None]
        A, x = inputs[0], outputs[0]
        (u,) = solve_implicitly(LinearSystem(), jacobian(A, x).mT, cotangents[0])
        grads = -u[..., :, None] * x[..., None, :], u
        return [
            total(g, t) if need else None for g, t, need in zip(grads, inputs, needed, strict=True)
        ]

    def jvp(self, inputs, outputs, tangents):
        A, x = inputs[0], outputs[0]
        return LinearSystem().jvp((jacobian(A, x), None), (x,), tangents)


def tanh_system(A, b):
    return solve_implicitly(TanhSystem(), A, b)


def problem(*batch):
    generator = torch.Generator().manual_seed(0)
    A, b = (
        torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
        for shape in [(3, 3), (3,)]
    )
    return A + 4 * torch.eye(3, dtype=torch.float64), b


def test_composes_with_all_of_torch():
    check_layer(tanh_system, problem())


def test_a_shared_matrix_receives_the_sum():
    check_layer(tanh_system, [problem()[0], problem(2)[1]])


@pytest.mark.slow
def test_compiles_with_inductor():
    check_layer(tanh_system, problem(), backend="inductor")


def test_steps_have_no_derivative():
    A, b = problem()
    x, steps = tanh_system(A.requires_grad_(), b)
    assert x.requires_grad
    assert not steps.requires_grad


@pytest.mark.filterwarnings(r"ignore:::torch\.")
def test_equal_problems_compile_once():
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    compiled = torch.compile(tanh_system, backend=backend, fullgraph=True)
    for _ in range(3):
        compiled(*problem())
    assert len(graphs) == 1
