"""Random quadratic programs, and their exact solutions and gradients by nobody's layer.

The reference takes the active rows from an interior point, solves the dense KKT system of these
rows, and accepts the point only if it proves itself optimal: positive multipliers on the active
rows and positive slacks on the others. For a strictly convex program that is a certificate, so it
does not matter who proposed the rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import piqp
import torch
from numpy.typing import NDArray
from scipy.linalg import lu_factor, lu_solve
from torch import Tensor

Array = NDArray[np.float64]


class Data(NamedTuple):
    """A batch of programs: minimise 1/2 x'Px + q'x subject to Gx <= h and Ax = b."""

    P: Tensor
    q: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor


@dataclass(frozen=True)
class Sizes:
    """A cell of a table; with ``shared``, one P, one G and one A serve the whole batch."""

    n: int
    batch: int
    shared: bool = False

    @property
    def m(self) -> int:
        """Inequalities."""
        return self.n

    @property
    def p(self) -> int:
        """Equalities."""
        return self.n // 5


def random_programs(sizes: Sizes, seed: int = 0) -> Data:
    """Strictly convex (P = U'U/n + 0.1 I) and feasible by construction."""
    generator = torch.Generator().manual_seed(seed)
    n, m, p, batch = sizes.n, sizes.m, sizes.p, (sizes.batch,)
    matrices = () if sizes.shared else batch

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    U = normal(*matrices, n, n) / n**0.5
    P = U @ U.mT + 0.1 * torch.eye(n, dtype=torch.float64)
    q, G, A, x = (
        normal(*batch, n),
        normal(*matrices, m, n),
        normal(*matrices, p, n),
        normal(*batch, n),
    )
    slack = torch.rand(*batch, m, generator=generator, dtype=torch.float64)
    return Data(P, q, G, (G @ x[..., None])[..., 0] + slack, A, (A @ x[..., None])[..., 0])


@dataclass(frozen=True)
class Reference:
    """What every layer should return for the loss ``(x * weight).sum()``.

    Attributes:
        x: Solutions ``(batch, n)``.
        gradients: In the order of :class:`Data`, in the shapes of the data: summed over the batch
            where a matrix is shared. That of P is symmetric.
        margin: Smallest multiplier of an active row or slack of another, over the batch: how far
            the programs are from the kinks, where there is no gradient to compare.
    """

    x: Array
    gradients: tuple[Array, ...]
    margin: float


def reference(data: Data, weight: Tensor) -> Reference:
    """Solve and differentiate each program by dense linear algebra in float64."""
    batch = data.q.shape[0]
    arrays = [t.detach().double().numpy() for t in data]
    full = [np.broadcast_to(a, (batch, *a.shape[-k:])) for a, k in zip(arrays, NDIM, strict=True)]
    w = weight.double().numpy()
    solved = [_solve(*(a[i] for a in full), w[i]) for i in range(batch)]
    gradients = []
    for k, a in enumerate(arrays):
        stacked = np.stack([s[1][k] for s in solved])
        gradients.append(stacked if a.ndim == stacked.ndim else stacked.sum(0))
    x = np.stack([s[0] for s in solved])
    return Reference(x, tuple(gradients), min(s[2] for s in solved))


NDIM = (2, 1, 2, 1, 2, 1)


def _solve(
    P: Array, q: Array, G: Array, h: Array, A: Array, b: Array, w: Array
) -> tuple[Array, tuple[Array, ...], float]:
    """Solution, the six gradients and the margin of one program."""
    n, p = q.size, b.size
    active = _proposed_rows(P, q, G, h, A, b)
    for _ in range(20):
        C = np.concatenate([A, G[active]])
        K = np.block([[P, C.T], [C, np.zeros((len(C), len(C)))]])
        solve = _accurate_solver(K)
        v = solve(np.concatenate([-q, b, h[active]]))
        x, y, z = v[:n], v[n : n + p], np.zeros_like(h)
        z[active] = v[n + p :]
        slack = h - G @ x
        margin = np.where(active, z, slack).min()
        if margin > 0:
            break
        active = np.where(active, z > 0, slack < 0)
    else:
        raise RuntimeError("reference: no set of active rows proves itself optimal")
    u = solve(np.concatenate([w, np.zeros(len(C))]))
    ux, uy, uz = u[:n], u[n : n + p], np.zeros_like(h)
    uz[active] = u[n + p :]
    gradients = (
        -0.5 * (np.outer(ux, x) + np.outer(x, ux)),
        -ux,
        -(np.outer(z, ux) + np.outer(uz, x)),
        uz,
        -(np.outer(y, ux) + np.outer(uy, x)),
        uy,
    )
    return x, gradients, float(margin)


def _proposed_rows(P: Array, q: Array, G: Array, h: Array, A: Array, b: Array) -> NDArray[np.bool_]:
    solver = piqp.DenseSolver()
    solver.settings.eps_abs = solver.settings.eps_rel = 1e-10
    solver.setup(P, q, A, b, G, None, h)
    solver.solve()
    return np.asarray(solver.result.z_u) > h - G @ solver.result.x


def _accurate_solver(K: Array) -> Callable[[Array], Array]:
    factor, wide = lu_factor(K), K.astype(np.longdouble)

    def solve(right: Array) -> Array:
        v = lu_solve(factor, right)
        # With the residual in extended precision, two corrections leave errors of the last digit.
        for _ in range(2):
            v = v + lu_solve(factor, (right - wide @ v).astype(np.float64))
        return v

    return solve


def kkt_residual(data: Data, x: Tensor, y: Tensor, z: Tensor) -> float:
    """Largest violation of an optimality condition, absolute, over the batch."""
    P, q, G, h, A, b = (t.detach().double().numpy() for t in data)
    x, y, z = (t.detach().double().numpy()[..., None] for t in (x, y, z))

    def transposed(M: Array) -> Array:
        return np.swapaxes(M, -1, -2)

    slack = h[..., None] - G @ x
    violations = (
        P @ x + q[..., None] + transposed(A) @ y + transposed(G) @ z,
        A @ x - b[..., None],
        np.minimum(slack, 0),
        np.minimum(z, 0),
        z * slack,
    )
    return float(max(np.abs(v).max(initial=0) for v in violations))


def gradient_error(gradients: Sequence[Tensor], exact: Sequence[Array]) -> float:
    """Largest error of an entry relative to the largest entry, the worst of the six gradients."""
    largest = max(np.abs(e).max() for e in exact)
    errors = []
    for gradient, e in zip(gradients, exact, strict=True):
        g = gradient.detach().double().numpy()
        if g.ndim > e.ndim:  # Copies of a shared matrix: the gradient of the matrix is their sum.
            g = g.sum(0)
        # Without any active row the gradients of G and h are zero but for rounding, with equalities
        # that leave no freedom that of q: then nothing is relative to it.
        size = np.abs(e).max()
        errors.append(np.abs(g - e).max() / (size if size > 1e-12 * largest else largest))
    return float(max(errors))


def observations(gradients: Sequence[Tensor], exact: Sequence[Array], batch: int) -> list[str]:
    """Name what is systematically wrong with gradients, as far as this run shows it."""
    found = []
    if all(torch.equal(g, g.float().double()) for g in gradients if g.dtype == torch.float64):
        found.append("gradients are rounded to float32")
    shared = [
        (g, e) for g, e, k in zip(gradients, exact, NDIM, strict=True) if k == g.ndim == e.ndim == 2
    ]
    if shared and batch > 1:
        returned, wanted = zip(*shared, strict=True)
        if (
            gradient_error(returned, wanted) > 0.1
            and gradient_error([g * batch for g in returned], wanted) < 1e-3
        ):
            found.append("a shared matrix gets the mean of its gradients instead of their sum")
    return found
