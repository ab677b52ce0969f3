"""BFGS with limited memory: the method for many variables."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates
from .line_search import first_step, rounding_allowance, search, without_a_way
from .solver import MinimizeSolver


class Memory:
    r"""The last pairs of steps :math:`s` and changes of the gradient :math:`y`, as a ring.

    A pair that a sample may not use (:math:`s^\top y` not positive) has weight zero for it.
    """

    def __init__(self, x: Tensor, size: int, scale: Tensor) -> None:
        """Begin without pairs, as :math:`H` = ``scale`` times the identity."""
        self.S = torch.zeros(size, *x.shape, dtype=x.dtype, device=x.device)
        self.Y, self.weight = torch.zeros_like(self.S), torch.zeros_like(self.S[..., 0])
        self.size, self.count = size, 0
        self.first_scale = self.scale = scale

    @property
    def newest_first(self) -> list[int]:
        """Places in the ring that are in use."""
        return [
            k % self.size for k in range(self.count - 1, max(self.count - self.size, 0) - 1, -1)
        ]

    def add(self, s: Tensor, y: Tensor) -> None:
        """Take a pair in, over the oldest."""
        slot = self.count % self.size
        sy, yy = vecdot(s, y), vecdot(y, y)
        usable = sy > torch.finfo(s.dtype).eps * yy.sqrt() * vecdot(s, s).sqrt()
        self.S[slot], self.Y[slot] = s, y
        self.weight[slot] = torch.where(usable, 1 / sy, 0.0)
        self.scale = torch.where(usable, sy / yy, self.scale)
        self.count += 1

    def forget(self, samples: Tensor) -> None:
        """Begin anew for some samples ``(B)``."""
        self.weight = torch.where(samples, 0.0, self.weight)
        self.scale = torch.where(samples, self.first_scale, self.scale)

    def empty(self) -> Tensor:
        """Samples without a usable pair ``(B)``."""
        return (self.weight == 0).all(dim=0)

    def apply(self, v: Tensor, free: Tensor | None = None) -> Tensor:
        """Product with the estimate of the inverse Hessian, in two loops over the pairs.

        Args:
            v: ``(B, n)``.
            free: Mask of the coordinates to which all is restricted; zero on the others.
        """
        if free is None:
            Y, weight, scale = self.Y, self.weight, self.scale
        else:
            v, Y = v * free, self.Y * free
            sy = vecdot(self.S, Y)
            weight = torch.where((self.weight > 0) & (sy * self.weight > 1e-8), 1 / sy, 0.0)
            scale = self.scale
        places, kept = self.newest_first, []
        for i in places:
            a = weight[i] * vecdot(self.S[i], v)
            kept.append(a)
            v = torch.addcmul(v, a[:, None], Y[i], value=-1)
        v = scale[:, None] * v
        for i, a in zip(reversed(places), reversed(kept), strict=True):
            v = torch.addcmul(v, (a - weight[i] * vecdot(Y[i], v))[:, None], self.S[i])
        return v if free is None else v * free


@dataclass(frozen=True)
class LBFGS(MinimizeSolver):
    r"""BFGS whose matrix is made of the last pairs of steps and changes of the gradient.

    The product :math:`H \nabla f(x)` takes :math:`4 m n` multiplications for :math:`m` pairs, and
    no matrix is formed. Converges linearly on strongly convex functions, in practice much faster
    than gradient descent and nonlinear conjugate gradients. The default for many variables.

    Attributes:
        memory: Pairs to remember, 3 to 30.

    References:
        Nocedal and Wright, *Numerical optimization*, 2nd edition, 2006, algorithms 7.4 and 7.5; Liu
        and Nocedal, *On the limited memory BFGS method for large scale optimization*, Math.
        Programming 45 (1989).

    Example:
        >>> import torch
        >>> from optlayers.solvers.minimize import LBFGS
        >>> target = torch.linspace(-1, 1, 4, dtype=torch.float64)
        >>> bowl = lambda x: (torch.exp(x - target) - (x - target)).sum(-1)
        >>> LBFGS().solve(bowl, torch.zeros(3, 4, dtype=torch.float64)).x[0].round(decimals=6)
        tensor([-1.0000, -0.3333,  0.3333,  1.0000], dtype=torch.float64)
    """

    memory: int = 10

    def __post_init__(self) -> None:
        """Check the memory."""
        check_memory(self)

    def iterates(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """Mostly one gradient an iteration."""
        value, g = value_and_gradient(f, x)
        memory = Memory(x, self.memory, first_step(f, x, g))
        one, allowance = torch.ones_like(value), rounding_allowance(value)
        while True:
            d = -memory.apply(g)
            running = (yield Iterate(x, vector_norm(d, dim=-1), value)).running
            point = search(f, (x, value, g), d, one, running, allowance)
            if point.failed is not None:
                # Old pairs may mislead; a sample for which even the gradient fails is at its end.
                hopeless = point.failed & memory.empty()
                memory.forget(point.failed)
                point = point._replace(
                    x=without_a_way(point.x, hopeless),
                    gradient=without_a_way(point.gradient, hopeless),
                )
            memory.add(point.x - x, point.gradient - g)
            x, value, g = point.x, point.value, point.gradient
            allowance = rounding_allowance(value, allowance)


def check_memory(solver: "LBFGS | object") -> None:
    """Refuse a memory without room for a pair."""
    memory = getattr(solver, "memory", None)
    if not isinstance(memory, int) or memory < 1:
        raise ValueError(
            f"{type(solver).__name__}: memory must be an integer of at least 1; got {memory!r}. "
            "Ten pairs serve most problems."
        )
