"""Smooth functions whose minima are known, with data of each sample: shared by all the tests."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor
from torch.nn.functional import softplus

from solvers.minimize.bfgs import BFGS
from solvers.minimize.gradient_descent import GradientDescent
from solvers.minimize.lbfgs import LBFGS
from solvers.minimize.lbfgsb import LBFGSB
from solvers.minimize.newton import TrustRegion
from solvers.minimize.newton_cg import NewtonCG
from solvers.minimize.nonlinear_cg import NonlinearCG

FAST = [TrustRegion(), NewtonCG(), BFGS(), LBFGS(), LBFGSB(), NonlinearCG()]
SLOW = [GradientDescent(), GradientDescent(acceleration=True)]


def name_of(solver):
    return type(solver).__name__ + ("+acceleration" * getattr(solver, "acceleration", False))


@dataclass(frozen=True)
class Problem:
    """Minimise ``loss(x, *data)``; all tensors have the batch in front."""

    name: str
    loss: Callable[..., Tensor]
    data: tuple[Tensor, ...]
    x0: Tensor
    x: Tensor
    condition: float = 10.0

    def f(self, x):
        return self.loss(x, *self.data)

    def only(self, i):
        parts = (t[i : i + 1] for t in (self.x0, self.x))
        return Problem(self.name, self.loss, tuple(t[i : i + 1] for t in self.data), *parts)

    def to(self, dtype):
        data = tuple(t.to(dtype) for t in self.data)
        return Problem(self.name, self.loss, data, self.x0.to(dtype), self.x.to(dtype))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def times(A, x):
    return (A @ x[..., None])[..., 0]


def parabola(x, P, center):
    return ((x - center) * times(P, x - center)).sum(-1) / 2 + 1


def quadratic(condition, batch=3, n=8):
    Q = torch.linalg.qr(normal(batch, n, n)).Q
    eigenvalues = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
    center = normal(batch, n, seed=1)
    P = Q @ (eigenvalues[:, None] * Q.mT)
    data = ((P + P.mT) / 2, center)
    name = f"quadratic {condition:g}"
    return Problem(name, parabola, data, torch.zeros_like(center), center, condition)


def ridge():
    A, b = normal(3, 20, 5), normal(3, 20, seed=1)
    x = torch.linalg.solve(A.mT @ A + torch.eye(5).to(A), times(A.mT, b))

    def loss(x, A, b):
        return (times(A, x) - b).square().sum(-1) / 2 + x.square().sum(-1) / 2

    return Problem("ridge", loss, (A, b), torch.zeros_like(x), x)


def logistic():
    A = normal(3, 40, 5) * normal(3, 40, seed=1).sign()[..., None] + 0.3

    def loss(x, A):
        return softplus(-times(A, x)).mean(-1) + 0.05 * x.square().sum(-1)

    def with_numpy(A):
        def f(x):
            return np.logaddexp(0, -A @ x).mean() + 0.05 * x @ x

        def gradient(x):
            return -A.T @ (1 / (1 + np.exp(A @ x))) / len(A) + 0.1 * x

        def hessian(x):
            p = 1 / (1 + np.exp(A @ x))
            return A.T @ ((p * (1 - p))[:, None] * A) / len(A) + 0.1 * np.eye(A.shape[1])

        start = np.zeros(A.shape[1])
        for _ in range(20):
            start = start - np.linalg.solve(hessian(start), gradient(start))
        assert scipy.optimize.check_grad(f, gradient, start) < 1e-6
        return start

    x = torch.tensor(np.stack([with_numpy(a) for a in A.numpy()]))
    return Problem("logistic", loss, (A,), torch.zeros_like(x), x)


def rosenbrock(n):
    def loss(x, a):
        return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (a - x[:, :-1]) ** 2).sum(-1)

    one = torch.ones(3, n, dtype=torch.float64)
    starts = torch.tensor([[0.5], [2.0], [0.0]]) * one
    return Problem(f"rosenbrock {n}", loss, (one[:, :1],), starts, one, 2500.0)


def beale():
    def loss(x, c):
        u, v = x[:, :1], x[:, 1:]
        return (c - u + u * v ** torch.arange(1, 4)).square().sum(-1)

    c = torch.tensor([[1.5, 2.25, 2.625]] * 3, dtype=torch.float64)
    x0 = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.1]], dtype=torch.float64)
    return Problem("beale", loss, (c,), x0, torch.tensor([[3.0, 0.5]] * 3).to(c), 200.0)


def exponentials():
    c = normal(3, 6)
    x0 = torch.tensor([[2.0], [-3.0], [0.0]]) + torch.zeros_like(c)
    return Problem("exponentials", lambda x, c: (torch.exp(x - c) - x).sum(-1), (c,), x0, c)


def softplus_sums():
    c, slope = normal(3, 4), normal(3, 4, seed=1).sigmoid() * 0.6 + 0.2

    def loss(x, c, slope):
        return (softplus(x - c) - slope * x).sum(-1)

    return Problem("softplus", loss, (c, slope), torch.zeros_like(c), c + slope.logit())


def one_variable():
    c = normal(3, 1)
    return Problem("one variable", lambda x, c: torch.cosh(x - c).sum(-1), (c,), 0 * c, c)


EASY = [
    quadratic(1.0),
    ridge(),
    logistic(),
    exponentials(),
    softplus_sums(),
    one_variable(),
]
HARD = [quadratic(100.0), quadratic(1e4), rosenbrock(2), rosenbrock(10), beale()]


def worst_error(x, problem):
    return (x - problem.x).norm(dim=-1).max().item()
