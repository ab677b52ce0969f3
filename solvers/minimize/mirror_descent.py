"""Mirror descent: gradient steps measured by a distance that suits the set."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..derivatives import value_and_gradient
from ..iteration import Iterate, Iterates, IterativeSolver, Run, solution_of
from ..solution import Solution
from .proximal_gradient import Objective, StepSizes, Trial, check_step, on_flat, with_value


class Mirror(ABC):
    r"""A distance :math:`D(u, x)`, that of a convex function :math:`h`, and steps it makes easy.

    Points are known by their images :math:`z = \nabla h(x)`, in which a step is a subtraction.
    """

    @abstractmethod
    def image(self, x: Tensor) -> Tensor:
        """What stands for ``x`` ``(B, n)``."""

    @abstractmethod
    def point(self, z: Tensor) -> Tensor:
        """The point that ``z`` stands for."""

    @abstractmethod
    def move(self, z: Tensor, change: Tensor) -> Tensor:
        """The image after a step by ``change`` down, back on the set."""

    @abstractmethod
    def distance(self, u: Tensor, z_u: Tensor, x: Tensor, z_x: Tensor) -> Tensor:
        r""":math:`D(u, x)` ``(B)``."""


@dataclass(frozen=True)
class Entropy(Mirror):
    r"""Positive vectors with the sum of the start: :math:`D(u, x) = \sum_i u_i \log(u_i/x_i)`.

    A step multiplies each entry and scales their sum back:
    :math:`x_i \propto x_i e^{-s g_i}`. It is taken in logarithms, so an entry that has become zero
    can come back.
    """

    def image(self, x: Tensor) -> Tensor:
        """Logarithms."""
        return x.log()

    def point(self, z: Tensor) -> Tensor:
        """Positive entries."""
        return z.exp()

    def move(self, z: Tensor, change: Tensor) -> Tensor:
        """Multiply, and scale to the sum there was."""
        moved = z - change
        total = torch.logsumexp(z, -1, keepdim=True)
        return moved + (total - torch.logsumexp(moved, -1, keepdim=True))

    def distance(self, u: Tensor, z_u: Tensor, x: Tensor, z_x: Tensor) -> Tensor:
        """Kullback-Leibler, as a sum of terms that are not negative."""
        change = z_u - z_x
        # u log(u/x) - u + x = x (1 + e^c (c - 1)); as differences of sums it would be all rounding.
        return (u * change - x * torch.expm1(change)).sum(-1)


@dataclass(frozen=True)
class Euclidean(Mirror):
    r"""All vectors: :math:`D(u, x) = \tfrac12\|u - x\|_2^2`, plain gradient descent."""

    def image(self, x: Tensor) -> Tensor:
        """The point itself."""
        return x

    def point(self, z: Tensor) -> Tensor:
        """The point itself."""
        return z

    def move(self, z: Tensor, change: Tensor) -> Tensor:
        """Subtract."""
        return z - change

    def distance(self, u: Tensor, z_u: Tensor, x: Tensor, z_x: Tensor) -> Tensor:
        """Half the squared distance."""
        return 0.5 * (u - x).square().sum(-1)


@dataclass(frozen=True)
class MirrorDescent(IterativeSolver):
    r"""Minimise a smooth :math:`f` over a set with a distance :math:`D` of its own.

    .. math:: x \leftarrow \arg\min_u \langle \nabla f(x), u \rangle + \tfrac1s D(u, x)

    With :class:`Entropy` the set is the simplex, a step costs no more than a softmax, and
    the rate depends on the number of entries only through its logarithm. The step :math:`s` of a
    sample is the longest found for which :math:`f(u) \le f(x) + \langle \nabla f(x), u - x \rangle
    + D(u, x)/s`. If that holds for a fixed :math:`s`, as it does for :math:`s = 1/L`, then
    :math:`f(x_k) - f^* \le D(x^*, x_0) / (s k)`. Entries that are zero at the solution shrink
    towards it geometrically and are never exactly zero: use :class:`ProjectedGradient` for those.

    A sample stops when its next step :math:`\|u - x\|_2` is short.

    Attributes:
        step: A step size for all samples; by default found by search.

    References:
        Beck and Teboulle, *Mirror descent and nonlinear projected subgradient methods for convex
        optimization*, Operations Research Letters 31 (2003). Lu, Freund and Nesterov, *Relatively
        smooth convex optimization by first-order methods, and applications*, SIAM J. Optimization
        28 (2018), theorem 3.1.

    Example:
        >>> import torch
        >>> b = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
        >>> f = lambda x: (x - b).square().sum(-1)
        >>> start = torch.full((3,), 1 / 3, dtype=torch.float64)
        >>> MirrorDescent().solve(f, start, Entropy()).x
        tensor([0.3333, 0.0833, 0.5833], dtype=torch.float64)
    """

    step: float | None = None
    keeps_last: ClassVar[bool] = True
    patience: ClassVar[int] = 100  # slow is not stuck

    def solve(self, f: Objective, x0: Tensor, mirror: Mirror) -> Solution:
        r"""Minimise :math:`f` for every sample of a batch.

        Args:
            f: Maps ``(*batch, n)`` to ``(*batch)``, each sample on its own.
            x0: Where to start, ``(*batch, n)``; for :class:`Entropy` its entries are positive, and
                their sum is that of all iterates.
            mirror: :class:`Entropy`, :class:`Euclidean`, or another :class:`Mirror`.

        Returns:
            A solution whose ``dual_residual`` is the length of the last step.
        """
        shape = x0.shape
        flattened = on_flat(f, shape, shape[:-1], "MirrorDescent.solve: f")
        return solution_of(self.find(flattened, x0.reshape(-1, shape[-1]), mirror), shape)

    def find(self, f: Objective, x0: Tensor, mirror: Mirror) -> Run:
        """The same on a flat batch ``(B, n)``."""
        check_step(self.step)
        if isinstance(mirror, Entropy) and bool((x0 <= 0.0).any()):
            raise ValueError(
                "MirrorDescent: with Entropy the entries of x0 must be positive; got "
                f"{float(x0.min())}. A zero stays zero: start from the uniform vector."
            )
        return with_value(self.run(self._iterates(f, x0.detach(), mirror)), f)

    def _iterates(self, f: Objective, x: Tensor, mirror: Mirror) -> Iterates:
        z = mirror.image(x)
        value, gradient = value_and_gradient(f, x)
        image = z

        def trial(step: Tensor) -> Trial:
            nonlocal image
            image = mirror.move(z, step[:, None] * gradient)
            u = mirror.point(image)
            linear = (gradient * (u - x)).sum(-1)
            return Trial(u, linear, mirror.distance(u, image, x, z))

        fixed = self.step is not None
        if self.step is None:
            steps = StepSizes.probe(f, trial, value, gradient, x)
        else:
            steps = StepSizes(torch.full_like(value, self.step))
        running = torch.ones_like(value, dtype=torch.bool)
        while True:
            if fixed:
                found, reached = trial(steps.step), None
                error = torch.linalg.vector_norm(found.x - x, dim=-1)
                error = torch.where(error.isfinite(), error, torch.nan)
            else:
                found, reached, error = steps.search(f, trial, value, x, running)
            running = (yield Iterate(found.x, error, reached, (steps.step,))).running
            steps.grow(running)
            x, z = found.x, image
            value, gradient = value_and_gradient(f, x)
