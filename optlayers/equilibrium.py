"""Looking after equilibria: how strongly a map contracts around them, and a price for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vjp


def jacobian_penalty(
    f: Callable[..., Tensor],
    z: Tensor,
    *params: Any,
    probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate :math:`\|\partial_z f\|_F^2 / n` of every sample, to be added to a loss.

    Hutchinson's estimate :math:`\frac1n \mathbb{E}\, \|v^\top \partial_z f\|_2^2` with normal
    :math:`v`: unbiased, and differentiable in everything. Keeping it small keeps :math:`f` a
    contraction, so that iterations stay few while training goes on.

    Args:
        f: A module, or a map of ``z`` and the parameters.
        z: Equilibria ``(B, ...)``.
        *params: What ``f`` takes besides ``z``.
        probes: Number of vectors; the variance falls as their number grows.
        generator: Of the vectors.

    Returns:
        Tensor ``(B)``.

    References:
        Bai, Koltun and Kolter, *Stabilizing equilibrium models by Jacobian regularization*, ICML
        2021, section 4.

    Example:
        >>> import torch
        >>> from optlayers.equilibrium import jacobian_penalty
        >>> z = torch.zeros(4, 100)
        >>> jacobian_penalty(lambda z: 0.6 * z, z, probes=64).mean().round(decimals=1)
        tensor(0.4000)
    """
    total = torch.zeros((), dtype=z.dtype, device=z.device)
    fz, pull = _vjp(f, z, params)
    for _ in range(probes):
        v = torch.randn(fz.shape, dtype=fz.dtype, device=fz.device, generator=generator)
        total = total + pull(v).square().flatten(1).mean(-1)
    return total / probes


def spectral_radius(
    f: Callable[..., Tensor],
    z: Tensor,
    *params: Any,
    iterations: int = 50,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Estimate the spectral radius of :math:`\partial_z f` at every sample, by the power method.

    Below one, plain iteration converges there, by this factor a step; Anderson's acceleration often
    does beyond. The estimate is the mean growth over the last half of the iterations, which also
    settles where the largest eigenvalues are a complex pair.

    Args:
        f: A module, or a map of ``z`` and the parameters.
        z: Equilibria ``(B, ...)``.
        *params: What ``f`` takes besides ``z``.
        iterations: Products with the Jacobian.
        generator: Of the first vector.

    Returns:
        Tensor ``(B)``, detached.

    Raises:
        ValueError: If there are fewer than two iterations.

    Example:
        >>> import torch
        >>> from optlayers.equilibrium import spectral_radius
        >>> A = torch.diag(torch.tensor([0.9, 0.5, 0.1]))
        >>> spectral_radius(lambda z: z @ A, torch.zeros(2, 3))
        tensor([0.9000, 0.9000])
    """
    if iterations < 2:
        raise ValueError(
            f"spectral_radius: needs at least 2 iterations, half of them to forget the start; got "
            f"{iterations}."
        )
    v = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
    growth = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
    with torch.no_grad():
        for i in range(iterations):
            v = v / _norm(v)
            pushed: Tensor = jvp(lambda z: f(z, *params), (z.detach(),), (v,))[1]
            v = pushed
            if i >= iterations // 2:
                growth = growth + _norm(v).reshape(-1).log()
    return (growth / (iterations - iterations // 2)).exp()


def _norm(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v.flatten(1), dim=-1)
    norm = norm.clamp_min(torch.finfo(v.dtype).tiny)
    return norm.reshape(-1, *[1] * (v.ndim - 1))


def _vjp(
    f: Callable[..., Tensor], z: Tensor, params: tuple[Any, ...]
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    value, *rest = vjp(lambda z: f(z, *params), z)
    return value, lambda v: rest[0](v)[0]
