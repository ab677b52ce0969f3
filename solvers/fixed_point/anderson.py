"""Anderson's mixing: the next point is made of the last few, so that their residuals cancel."""

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .._threads import calm
from ..iteration import Iterate, Iterates, is_at_hand
from .solver import FixedPointSolver

# Mixing pauses while the residual is this many times as long as the shortest so far.
LIMIT = 2.0
# Above the rounding errors of a Gram matrix, so that its factorisation fails hardly ever.
RIDGE_IN_ROUNDINGS = 100.0
SMALL = 1 << 18  # entries of the memory up to which one thread is enough
# A residual that halves by itself needs no mixing, which may cost more than f does; where the
# memory has more entries than this, all is mixed, and one step is held at a time.
PLAIN = 1 << 20


@dataclass(frozen=True)
class Anderson(FixedPointSolver):
    r"""Mix the last values of :math:`f` as makes the residual of a linear map shortest.

    With the residual :math:`g_k = f(z_k) - z_k` and the last changes of residuals and of values as
    columns of :math:`\Delta G` and :math:`\Delta F`,

    .. math:: z_{k+1} = z_k + \beta g_k - (\Delta F - (1 - \beta) \Delta G) \gamma,
        \qquad \gamma = \arg\min_\gamma \|g_k - \Delta G \gamma\|_2 .

    For the plain iteration's price and a few products of vectors this is the fixed-point iteration
    of choice: where that converges with factor :math:`\rho` close to 1, mixing takes a small part
    of its evaluations, and it converges on many maps that are no contractions. On a linear map it
    does what GMRES does, restarted by and by, and ends after :math:`n + 1` evaluations where
    ``memory`` is at least :math:`n`.

    A sample takes plain steps where the least-squares problem cannot be solved, while its residual
    is more than twice as long as its shortest so far, and, if the problem is small, to begin with
    for as long as each step more than halves its residual anyway.

    Attributes:
        memory: How many changes are remembered; as many as variables at most.
        damping: :math:`\beta`; 1 for no damping.
        regularisation: Added to the diagonal of :math:`\Delta G^\top \Delta G`, relative to each of
            its entries; by default 100 roundings.

    References:
        Walker and Ni, *Anderson acceleration for fixed-point iterations*, SIAM Journal on Numerical
        Analysis 49 (2011), section 2.

    Example:
        >>> import torch
        >>> from optlayers.solvers.fixed_point import Anderson
        >>> solution = Anderson().solve(torch.cos, torch.ones(2, 1, dtype=torch.float64))
        >>> solution.x
        tensor([[0.7391],
                [0.7391]], dtype=torch.float64)
        >>> bool((solution.iterations < 10).all())
        True
    """

    memory: int = 5
    damping: float = 1.0
    regularisation: float | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.memory < 1:
            raise ValueError(
                f"Anderson: memory must be at least 1; got {self.memory}. "
                "Picard iterates without mixing."
            )

    def iterates(self, f: Callable[[Tensor], Tensor], z: Tensor) -> Iterates:
        """One evaluation an iteration."""
        batch, n = z.shape
        m = max(min(self.memory, n), 1)
        beta, ridge = self.damping, self.regularisation
        if ridge is None:
            ridge = RIDGE_IN_ROUNDINGS * torch.finfo(z.dtype).eps
        # More threads than one would wait for each other in every product.
        quiet = calm if batch * n * m <= SMALL else nullcontext
        # While all that run shrink fast, no products are made.
        starts_plainly = batch * n * m <= PLAIN
        last: deque[tuple[Tensor, Tensor]] = deque(maxlen=m + 1)

        k, fz = 0, f(z)
        last.append((z, fz))
        seen = yield Iterate(fz, None, start=z)
        while starts_plainly and is_at_hand(z) and not seen.slow:
            z = fz if beta == 1.0 else z + beta * (fz - z)
            k, fz = k + 1, f(z)
            last.append((z, fz))
            seen = yield Iterate(fz, None, start=z)
        pairs = [(fz, fz - z) for z, fz in last]
        *before, norm = [torch.linalg.vector_norm(g, dim=-1) for _, g in pairs[-2:]]
        least = before[0] if before else torch.full_like(norm, torch.inf)
        fz, g = pairs[-1]

        # Changes of residuals, and in the last row the residual: one product makes all products of
        # them. All views that an iteration needs are made here, once.
        residuals = z.new_zeros(batch, m + 1, n)
        values = z.new_zeros(batch, m, n)
        *residual_rows, residual = residuals.unbind(1)
        value_rows = values.unbind(1)
        transposed = residuals.mT
        gram = z.new_empty(batch, m + 1, m + 1)
        ridges = torch.eye(m + 1, dtype=z.dtype, device=z.device).mul_(ridge).add_(1)
        ridges[m, m] = 2  # keeps the last pivot positive
        # Rows that are not filled yet have zeros in the Gram matrix, and a one on its diagonal.
        unfilled = torch.eye(m + 1, dtype=z.dtype, device=z.device)
        ones = unfilled.diagonal().unbind()
        ones[m].zero_()

        def remember(i: int, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> None:
            i %= m
            torch.sub(new[0], old[0], out=value_rows[i])
            torch.sub(new[1], old[1], out=residual_rows[i])
            ones[i].zero_()

        for i, (old, new) in enumerate(pairwise(pairs), k + 1 - len(pairs)):
            remember(i, new, old)
        while True:
            with quiet():
                residual.copy_(g)
                torch.bmm(residuals, transposed, out=gram)
                # The last row of the factor is the normal equations' forward substitution.
                L, info = torch.linalg.cholesky_ex(torch.addcmul(unfilled, gram, ridges))
                gamma = torch.linalg.solve_triangular(
                    L[:, :m, :m], L[:, m:, :m], upper=False, left=False
                )
                unmixed = info.bool() | (norm > LIMIT * least)
                if starts_plainly:  # as without the samples that are slower
                    unmixed = unmixed | seen.fast
                gamma = gamma.masked_fill(unmixed[:, None, None], 0.0)
                least = torch.minimum(least, norm)
                z = torch.baddbmm(fz[:, None], gamma, values, alpha=-1)[:, 0]
                if beta != 1.0:
                    mixed = torch.baddbmm(g[:, None], gamma, residuals[:, :m], alpha=-1)
                    z -= (1 - beta) * mixed[:, 0]
            old = fz, g
            fz = f(z)
            g = fz - z
            norm = torch.linalg.vector_norm(g, dim=-1)
            remember(k, (fz, g), old)
            k += 1
            seen = yield Iterate(fz, None, start=z)
