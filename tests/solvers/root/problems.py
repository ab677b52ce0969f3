"""Systems with known roots, which every root finder must find."""

import torch

POLYNOMIAL_ROOTS = [[-1.0], [0.0], [0.3], [1.0], [1.2]]


def quintic():
    """w^5 + w^3 + w = l, a batch of five."""
    roots = torch.tensor(POLYNOMIAL_ROOTS)
    return lambda w: w**5 + w**3 + w, roots, torch.full_like(roots, 0.5)


def cubic():
    """Newton's own example, w^3 - 2 w = 5."""
    root = torch.tensor([[2.0945514815423265]], dtype=torch.float64)
    return lambda w: w**3 - 2 * w, root, torch.tensor([[2.5]])


def rosenbrock():
    """As a system (Moré, Garbow and Hillstrom, problem 1)."""

    def F(x):
        return torch.stack([10 * (x[..., 1] - x[..., 0] ** 2), 1 - x[..., 0]], -1)

    return F, torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.2, 1.0]])


def helical_valley():
    """Moré, Garbow and Hillstrom, problem 7."""

    def F(x):
        a, b, c = x.unbind(-1)
        angle = torch.atan2(b, a) / (2 * torch.pi)
        return torch.stack([10 * (c - 10 * angle), 10 * (torch.hypot(a, b) - 1), c], -1)

    return F, torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]])


def trigonometric():
    """After Moré, Garbow and Hillstrom, problem 26; two samples from near their root at zero."""

    def F(x):
        n = x.shape[-1]
        i = torch.arange(1, n + 1, dtype=x.dtype)
        return (1 - torch.cos(x)).sum(-1, keepdim=True) + i * (1 - torch.cos(x)) - torch.sin(x)

    return F, torch.zeros(2, 6), torch.tensor([[0.02], [-0.05]]).expand(2, 6)


def tanh_layer():
    """z - tanh(W z + u) with u made so that z is the root."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    W *= 0.9 / torch.linalg.matrix_norm(W, 2)
    roots = torch.rand(4, 16, generator=generator, dtype=torch.float64) - 0.5
    u = torch.atanh(roots) - roots @ W.T

    def F(z):
        return z - torch.tanh(z @ W.T.to(z.dtype) + u.to(z.dtype))

    return F, roots, torch.zeros(4, 16)


PROBLEMS = [quintic, cubic, rosenbrock, helical_valley, trigonometric, tanh_layer]


def posed(problem, dtype):
    """The function with its value at the root taken off, the root, and where to start."""
    F, root, start = problem()
    root, start = root.to(dtype), start.to(dtype)
    at_root = F(root)
    return lambda x: F(x) - at_root, root, start
