"""Maps with known or independently computed fixed points."""

import torch

N = 64


def _normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def symmetric(radius, n=N):
    """A symmetric matrix with eigenvalues from 0 to the radius."""
    Q = torch.linalg.qr(_normal(n, n))[0]
    return (Q * torch.linspace(0, radius, n, dtype=torch.float64)) @ Q.T


def affine(dtype, radius=0.9, n=N, batch=2):
    """W z + u, and its fixed points."""
    W, u = symmetric(radius, n), _normal(batch, n)
    fixed = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - W, u.T).T
    W, u = W.to(dtype), u.to(dtype)
    return lambda z: z @ W.T + u, torch.zeros_like(u), fixed.to(dtype)


def network(dtype, radius=0.9, n=N, batch=2):
    """tanh(W z + u) with u made so that the fixed points are known."""
    W, fixed = symmetric(radius, n), 0.1 * _normal(batch, n)
    u = torch.atanh(fixed) - fixed @ W.T
    W, u = W.to(dtype), u.to(dtype)
    return lambda z: torch.tanh(z @ W.T + u), torch.zeros_like(u), fixed.to(dtype)


def rectified(dtype, batch=2):
    """relu(W z + u): piecewise affine, with exact zeros."""
    W, fixed = symmetric(0.9), _normal(batch, N)
    u = fixed - fixed.clamp(min=0) @ W.T
    W, u = W.to(dtype), u.to(dtype)
    return (
        lambda z: torch.relu(z @ W.T + u),
        torch.ones_like(u),
        fixed.clamp(min=0).to(dtype),
    )


def cosine(dtype):
    """Elementwise, one variable."""
    start = torch.tensor([[0.0], [1.0], [3.0]], dtype=dtype)
    return torch.cos, start, torch.full_like(start, 0.7390851332151607)


MAPS = [affine, network, rectified, cosine]
