"""Broyden's good method: one evaluation a step, and no more Jacobians than one now and then."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._threads import calm
from ..derivatives import jacobian
from ..iteration import DEFAULT_EPS, Iterate, Iterates
from .newton import DECREASE, Point, choose, evaluate, shorten
from .solver import RootSolver

# Relative to its ideal value, a denominator below this makes no update.
LEAST_DENOMINATOR = 1e-4


@dataclass(frozen=True)
class Broyden(RootSolver):
    r"""Step with an inverse Jacobian :math:`H` that learns from each step.

    With :math:`s = x_{k+1} - x_k` and :math:`y = F(x_{k+1}) - F(x_k)`, the smallest change of the
    Jacobian that explains the last step (the secant condition :math:`H_{k+1} y = s`) is

    .. math:: H_{k+1} = H_k + \frac{(s - H_k y) s^\top H_k}{s^\top H_k y}.

    The updates are kept as ``memory`` pairs of vectors. Full steps are tried first and shortened
    until :math:`\|F\|_2` falls. When the memory is full, or no part of a step helps, :math:`H`
    begins anew; where no part of its first step helps, the sample is given up.

    Converges superlinearly to a root where the Jacobian is regular. Takes more steps than
    :class:`Newton`, each of which costs one evaluation: worth it where Jacobians are dear.

    Attributes:
        max_iter: Iterations allowed to each sample.
        memory: Updates until :math:`H` begins anew.
        initial_inverse: :math:`H` begins as this multiple of the identity; by default as the
            inverse of the Jacobian. For :math:`F(z) = z - f(z)` with a map :math:`f` that contracts
            or nearly so, 1.0 is good, and no Jacobian is ever computed.

    References:
        Broyden, *A class of methods for solving nonlinear simultaneous equations*, Mathematics of
        Computation 19 (1965); Kelley, *Iterative methods for linear and nonlinear equations*, SIAM,
        1995, chapter 7.

    Example:
        >>> import torch
        >>> from optlayers.solvers.root import Broyden
        >>> squares = torch.tensor([[4.0], [9.0]], dtype=torch.float64)
        >>> Broyden().solve(lambda x: x**2 - squares, torch.ones_like(squares)).x
        tensor([[2.],
                [3.]], dtype=torch.float64)
    """

    max_iter: int = 200
    memory: int = 20
    initial_inverse: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.memory < 1:
            raise ValueError(f"Broyden: memory must be at least 1; got {self.memory}.")

    def iterates(self, F: Callable[[Tensor], Tensor], x: Tensor) -> Iterates:
        """One evaluation an iteration unless steps are shortened or H begins anew."""
        x = x.contiguous()  # forward derivatives refuse what is expanded
        at = evaluate(F, x)
        running = torch.ones_like(at.norm, dtype=torch.bool)
        lost, fresh = ~running, running
        H = InverseJacobian(self._beginning(F, x), self.memory, x)
        step = -H.times(at.F)
        while True:
            error = torch.linalg.vector_norm(step, dim=-1)
            new = evaluate(F, at.x + step)
            bad = running & ~(new.norm <= (1 - DECREASE) * at.norm)
            if bool(bad.any()):
                new, bad = _globalised(F, at, step, error, bad, new)
            error = error.masked_fill(lost, torch.nan)
            # What does not help with a new Jacobian never will; the step is told before.
            lost = lost | (bad & fresh)
            running = (yield Iterate(new.x, error, new.norm)).running
            again = bad & running & ~lost
            if H.count == self.memory:
                H = InverseJacobian(self._beginning(F, new.x), self.memory, x)
                step, fresh = -H.times(new.F), torch.ones_like(bad)
            else:
                step, fresh = H.learn(new.x - at.x, step, new.F), bad
                if bool(again.any()):
                    H.restart(again, self._beginning(F, new.x))
                    step = torch.where(again[:, None], -H.times(new.F), step)
            at = new

    def _beginning(self, F: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | float:
        if self.initial_inverse is not None:
            return self.initial_inverse
        J = jacobian(F, x)
        with calm():  # batched LU in several threads can hang in MKL
            inverse: Tensor = torch.linalg.inv_ex(J)[0]
        return inverse


class InverseJacobian:
    r"""An approximate inverse Jacobian, :math:`H = H_0 + \sum_i u_i v_i^\top`."""

    def __init__(self, beginning: Tensor | float, memory: int, like: Tensor) -> None:
        """Begin with matrices ``(B, n, n)`` or a multiple of the identity."""
        self.beginning = beginning
        self.U = like.new_zeros(like.shape[0], memory, like.shape[1])
        self.V = torch.zeros_like(self.U)
        self.count = 0

    def times(self, v: Tensor) -> Tensor:
        """Products with ``v`` ``(B, n)``."""
        return self._apply(self.beginning, self.V, self.U, v)

    def transposed_times(self, v: Tensor) -> Tensor:
        """Products of the transposed matrices with ``v`` ``(B, n)``."""
        H = self.beginning
        return self._apply(H.mT if isinstance(H, Tensor) else H, self.U, self.V, v)

    def _apply(self, H: Tensor | float, right: Tensor, left: Tensor, v: Tensor) -> Tensor:
        product = torch.bmm(H, v[..., None])[..., 0] if isinstance(H, Tensor) else H * v
        if self.count:
            right, left = right[:, : self.count], left[:, : self.count]
            weights = torch.bmm(right, v[..., None])
            product = torch.baddbmm(product[:, None], weights.mT, left)[:, 0]
        return product

    def learn(self, s: Tensor, step: Tensor, F: Tensor) -> Tensor:
        """Update with a step taken.

        Args:
            s: The step as it was taken.
            step: The full step, minus this matrix times the old value.
            F: The new value.

        Returns:
            The next full step.
        """
        HF = self.times(F)
        Hy = HF + step
        denominator = torch.linalg.vecdot(s, Hy)
        tells = denominator.abs() > LEAST_DENOMINATOR * torch.linalg.vecdot(s, s)
        u = torch.where(tells[:, None], (s - Hy) / denominator[:, None], 0.0)
        v = self.transposed_times(s)
        self.U[:, self.count] = u
        self.V[:, self.count] = v
        self.count += 1
        along: Tensor = torch.linalg.vecdot(s, HF)
        return -(HF + u * along[:, None])

    def restart(self, mask: Tensor, beginning: Tensor | float) -> None:
        """Forget the updates of some samples, and begin anew with theirs of these matrices."""
        rows = mask[:, None, None]
        self.U.masked_fill_(rows, 0.0)
        self.V.masked_fill_(rows, 0.0)  # what is not finite would survive a zero beside it
        if isinstance(beginning, Tensor) and isinstance(self.beginning, Tensor):
            self.beginning = torch.where(rows, beginning, self.beginning)


def _globalised(
    F: Callable[[Tensor], Tensor],
    at: Point,
    step: Tensor,
    error: Tensor,
    bad: Tensor,
    new: Point,
) -> tuple[Point, Tensor]:
    """Shorter steps for samples that a full one does not help; who stays where it is."""
    # So close to the root, rounding decides whether the norm falls: the step is as good as any.
    short = DEFAULT_EPS[error.dtype] * (1 + torch.linalg.vector_norm(at.x, dim=-1))
    bad = bad & ~((error <= short) & new.norm.isfinite())
    if bool(bad.any()):
        new, bad = shorten(F, at, step, bad, new)
        new = choose(bad, at, new)
    return new, bad
