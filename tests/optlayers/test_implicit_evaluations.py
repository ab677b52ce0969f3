"""How often a user's map is evaluated and differentiated: nothing is computed twice."""

import pytest
import torch
from torch import nn

import optlayers as ol
from optlayers.solvers import Anderson, Picard

DTYPE = torch.float64


class Counted(torch.autograd.Function):
    """The tangent function, which counts its passes."""

    forwards = 0
    backwards = 0

    @staticmethod
    def forward(x):
        Counted.forwards += 1
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        Counted.backwards += 1
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(0.08 * torch.randn(8, 8, generator=generator, dtype=DTYPE))

    def forward(self, z, u):
        return Counted.apply(z @ self.W + u)


@pytest.fixture
def counted():
    Counted.forwards = Counted.backwards = 0
    return Counted


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=DTYPE)


@pytest.mark.parametrize("solver", [Anderson(), Picard(), Anderson(damping=0.7)], ids=str)
@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 8)], ids=str)
def test_forward_evaluates_once_an_iteration(counted, solver, shape):
    u = draw(*shape)
    solution = ol.FixedPointLayer(Cell(), solver=solver).solve(u)
    assert counted.forwards == int(solution.iterations.max()) + 1


@pytest.mark.parametrize("solver", [Anderson(), Picard(), Anderson(eps_abs=0.0, eps_rel=1e-3)])
def test_backward_is_a_product_a_step_and_a_pass_for_all_parameters(counted, solver):
    cell, u = Cell(), draw(3, 8).requires_grad_()
    z = ol.FixedPointLayer(cell, solver=solver, adjoint=ol.FixedPoint())(u)
    counted.forwards = 0
    g = draw(3, 8)
    got = torch.autograd.grad(z, (u, cell.W), g)
    assert counted.forwards == 1
    passes = counted.backwards
    # The same system, by the same solver.
    slope = 1 - torch.tanh(z.detach() @ cell.W.detach() + u.detach()) ** 2
    size = g.norm(dim=-1, keepdim=True)
    steps = solver.solve(lambda p: (slope * p) @ cell.W.detach().mT + g / size, g / size)
    assert passes == int(steps.iterations.max()) + 1 + 1
    inner = slope * steps.x * size
    torch.testing.assert_close(got, (inner, z.detach().mT @ inner), rtol=1e-8, atol=1e-8)


def test_a_linear_system_that_is_differentiated_again_evaluates_once(counted):
    cell, u = Cell(), draw(3, 8).requires_grad_()
    z = ol.FixedPointLayer(cell, adjoint=ol.FixedPoint())(u)
    counted.forwards = 0
    torch.autograd.grad(z.sum(), u, create_graph=True)
    assert counted.forwards == 2  # to solve, and to pull back


@pytest.mark.parametrize("adjoint", [ol.Dense(), ol.FixedPoint(), ol.Iterative(), ol.Neumann(40)])
@pytest.mark.parametrize("map_is_constant", [False, True])
def test_a_map_gives_the_gradients_of_its_conditions(adjoint, map_is_constant):
    """``fixed_point`` works with the map, ``root`` with what it leaves of the point."""
    W, u, zero = 0.1 * draw(4, 4), draw(3, 4).requires_grad_(), torch.zeros(3, 4, dtype=DTYPE)

    def f(z, u):
        return u.sin() if map_is_constant else torch.tanh(z @ W + u)

    x = ol.fixed_point(f, zero, u, batch_ndim=1, adjoint=adjoint).x
    wanted = ol.root(lambda z, u: z - f(z, u), zero, u, batch_ndim=1, adjoint=ol.Dense()).x
    got = torch.autograd.grad(x, u, draw(3, 4))
    torch.testing.assert_close(got, torch.autograd.grad(wanted, u, draw(3, 4)))


def test_a_solution_that_depends_on_nothing_has_no_gradient():
    u = draw(3, 4).requires_grad_()
    x = ol.fixed_point(lambda z, u: 0.5 * z.detach() + 1, torch.zeros(3, 4, dtype=DTYPE), u).x
    assert torch.autograd.grad(x.sum(), u, allow_unused=True) == (None,)


def test_a_map_of_another_shape_is_refused_even_if_it_broadcasts():
    with pytest.raises(ValueError, match="structure and shapes of x0"):
        ol.fixed_point(lambda z, c: 0.1 * z.sum(0) + c, torch.zeros(3, 4), torch.ones(4))


def test_parameters_are_back_in_their_module_after_an_error():
    cell = Cell()
    before = cell.W

    def broken(z, cell):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ol.fixed_point(broken, torch.zeros(8, dtype=DTYPE), cell)
    assert cell.W is before
