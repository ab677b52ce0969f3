r"""The linear system that is left once the active rows are known, for a whole batch.

.. math::

    K = \begin{pmatrix} P & C_a^\top \\ C_a & 0 \end{pmatrix}

It gives the solution from its active set (polishing, warm starts) and, being the Jacobian of the
optimality conditions as well, every derivative. With :math:`P = L L^\top` and :math:`M` the rows of
:math:`C L^{-\top}` at unit length, all that depends on the active set is the Schur complement
:math:`S = M_a M_a^\top`, whose size is the number of active rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._threads import available, split, spread
from ..batch import one_by_one
from ..least_norm import least_norm

# Rows have unit length, so a pivot of S is the squared distance of a row to the span of those
# before it; below this it depends on them.
DEPENDENT = 1e-11
# A definite matrix with pivots this small, relative to its diagonal, is treated as singular: where
# pivots shrink, rounding grows, and a zero can come out as 1e-6.
SINGULAR = 1e-5
# Verdicts of "no solution" are believed without a second opinion down to here.
WELL_CONDITIONED = 1e-3
# Entries of gathered rows held at a time: 8 MB stay in cache, and no element swells the others.
CHUNK_ENTRIES = 1 << 20
# Entries that are work for half a millisecond; with less, threads cost more than they save.
WORTH_A_THREAD = 1 << 15


class Factor(NamedTuple):
    r"""What a solve with :math:`K` needs, whichever rows are active.

    Attributes:
        L: Cholesky factor ``(1 or B, n, n)`` of ``P``, or of :math:`P + \rho C_a^\top C_a`.
        M: Unit rows ``(1 or B, rows, n)`` of :math:`C L^{-\top}`.
        norm: Lengths ``(1 or B, rows)`` of these rows before scaling.
        rho: ``(1 or B)``: zero where ``P`` is definite by itself, NaN where even the augmented
            matrix is singular and only the least-norm solution exists.
    """

    L: Tensor
    M: Tensor
    norm: Tensor
    rho: Tensor


def factorise(P: Tensor, C: Tensor) -> tuple[Factor, Tensor | None]:
    """Factor ``P`` and transform the rows.

    Args:
        P: Symmetric ``(1 or B, n, n)``.
        C: ``(1 or B, rows, n)``.

    Returns:
        The factor, and a mask ``(1 or B)`` of the problems whose ``P`` is singular or indefinite,
        or None where there are none. Their part of the factor is not of use: see :func:`augment`.
    """
    L, info = torch.linalg.cholesky_ex(P)
    pivots, scale = (t.diagonal(dim1=-2, dim2=-1) for t in (L, P))
    if P.device.type == "cpu":  # small problems notice that a call to torch costs three to numpy
        smallest = pivots.numpy() ** 2 - SINGULAR**2 * scale.numpy()
        if (smallest > 0).all() and not info.numpy().any():
            M, norm = transform(L, C)
            return Factor(L, M, norm, L.new_zeros(1)), None
    definite = _pivots_above(SINGULAR**2, L, info, P)
    L = torch.where(definite[:, None, None], L, torch.eye(P.shape[-1]).to(L))
    M, norm = transform(L, C)
    return Factor(L, M, norm, L.new_zeros(1)), None if bool(definite.all()) else ~definite


def well_conditioned(P: Tensor) -> bool:
    """Whether all ``P`` are safely positive definite."""
    L, info = torch.linalg.cholesky_ex(P)
    return bool(_pivots_above(WELL_CONDITIONED**2, L, info, P).all())


def _pivots_above(least: float, L: Tensor, info: Tensor, P: Tensor) -> Tensor:
    """Which factors have no pivot below ``least`` times the diagonal of what was factored."""
    pivots, diagonal = (t.diagonal(dim1=-2, dim2=-1) for t in (L, P))
    return (pivots.square() > least * diagonal).all(-1) & (info == 0)


def transform(L: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    r"""The rows of :math:`C L^{-\top}` at unit length, and their lengths."""
    M = solve_lower(L, C.mT).mT
    norm = torch.linalg.vector_norm(M, dim=-1)
    norm.masked_fill_(norm == 0, 1.0)
    return M.div_(norm[..., None]), norm


def augment(P: Tensor, C: Tensor, factor: Factor, active: Tensor, singular: Tensor) -> Factor:
    r"""Refactor singular problems as :math:`P + \rho C_a^\top C_a`, which has the same solution.

    Args:
        P: Symmetric ``(1 or B, n, n)``.
        C: ``(1 or B, rows, n)``.
        factor: As :func:`factorise` made it.
        active: Boolean ``(B, rows)``.
        singular: Boolean ``(1 or B)``.

    Returns:
        A factor with the full batch dimension.
    """
    batch, n = active.shape[0], P.shape[-1]
    chosen = singular.expand(batch)
    Ca = C * (active & chosen[:, None])[..., None]
    P_size = P.diagonal(dim1=-2, dim2=-1).mean(-1)
    C_size = Ca.square().sum((-2, -1)) / n
    rho = torch.where(P_size > 0, P_size, 1.0) / torch.where(C_size > 0, C_size, 1.0)
    H = P + rho[:, None, None] * one_by_one(Ca.mT, Ca)
    L, info = torch.linalg.cholesky_ex(H)
    regular = _pivots_above(1e-12, L, info, H)
    L = torch.where(regular[:, None, None], L, torch.eye(n).to(L))
    L = torch.where(chosen[:, None, None], L, factor.L)
    M, norm = transform(L, C)
    rho = torch.where(chosen, torch.where(regular, rho, torch.nan), factor.rho)
    return Factor(L, M, norm, rho)


def factor_for(P: Tensor, C: Tensor, active: Tensor) -> Factor:
    """A factor that serves these active rows, whether or not ``P`` is definite."""
    factor, singular = factorise(P, C)
    return factor if singular is None else augment(P, C, factor, active, singular)


def solve(
    system: Callable[[], tuple[Tensor, Tensor]],
    factor: Factor,
    active: Tensor,
    r_x: Tensor,
    r_nu: Tensor,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Solve :math:`K (t_x, t_\nu) = (r_x, r_\nu)` on the active rows.

    Where :math:`K` is singular (dependent rows, a solution that is not unique) the least-squares
    solution of least norm is returned.

    Args:
        system: Makes ``P`` and ``C``, each ``(1 or B, ...)``; asked only for singular problems.
        factor: Of the same problems.
        active: Boolean ``(B, rows)``.
        r_x: ``(B, n, columns)``.
        r_nu: ``(B, rows, columns)``; only active entries count.
        size: Number of active rows to make room for; by default as many as there are at most. A
            size that does not depend on the batch gives results that do not, to the last bit.

    Returns:
        ``t_x`` ``(B, n, columns)`` and ``t_nu`` ``(B, rows, columns)``, zero on inactive rows.
    """
    batch = active.shape[0]
    n = r_x.shape[-2]
    most = size
    if most is None:
        most = int(active.sum(-1).max()) if active.numel() else 0
    entries = batch * max(most, 1) * n
    count = max(-(-entries // CHUNK_ENTRIES), min(available(), entries // WORTH_A_THREAD))
    if count < 2 or batch < 2 or factor.M.shape[0] == 1:
        return _solve_chunk(system, factor, active, r_x, r_nu, size)

    def cut(t: Tensor, part: slice) -> Tensor:
        return t if t.shape[0] == 1 else t[part]

    def solve_part(ends: tuple[int, int]) -> tuple[Tensor, Tensor]:
        part = slice(*ends)

        def system_of_part() -> tuple[Tensor, Tensor]:
            P, C = system()
            return cut(P, part), cut(C, part)

        parts = Factor(*(cut(t, part) for t in factor)), active[part], r_x[part], r_nu[part]
        return _solve_chunk(system_of_part, *parts, size)

    t_x, t_nu = zip(*spread(solve_part, split(batch, count)), strict=True)
    return torch.cat(t_x), torch.cat(t_nu)


def _solve_chunk(
    system: Callable[[], tuple[Tensor, Tensor]],
    factor: Factor,
    active: Tensor,
    r_x: Tensor,
    r_nu: Tensor,
    size: int | None,
) -> tuple[Tensor, Tensor]:
    L, M, norm, rho = factor
    times = torch.matmul if size is None else one_by_one
    right = r_x
    augmented = bool((rho != 0).any())
    if augmented:
        weighted = (r_nu * active[..., None]) * torch.nan_to_num(rho)[:, None, None]
        right = r_x + times(system()[1].mT, weighted)
    w = solve_lower(L, right)
    singular = torch.isnan(rho) if augmented else None
    target = r_nu / norm[..., None]
    if active.any():
        shared = M.shape[0] == 1 and (active.shape[0] > 1 or size is not None)
        solve_rows = _shared_rows if shared else _own_rows
        multipliers, pull, dependent = solve_rows(M, active, w, target, size)
        singular = dependent if singular is None else dependent | singular
        w = w - pull
        t_nu = multipliers / norm[..., None]
    else:
        t_nu = torch.zeros_like(target)
    t_x = solve_upper(L, w)
    if singular is not None and bool(singular.any()):
        P, C = (t.expand(len(active), *t.shape[1:]) for t in system())
        which = torch.nonzero(singular.expand(len(active)))[:, 0]
        counts = active[which].sum(-1)
        for count in counts.unique().tolist():
            at_once = max(CHUNK_ENTRIES // (P.shape[-1] + count) ** 2, 1)
            for part in which[counts == count].split(at_once):
                given = (t[part] for t in (P, C, active, r_x, r_nu))
                t_x[part], t_nu[part] = _least_norm(*given)
    return t_x, t_nu


def _own_rows(
    M: Tensor, active: Tensor, w: Tensor, target: Tensor, size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Multipliers with :math:`M_a M_a^\top \lambda = M_a w - target`, where ``M`` is one's own.

    Returns:
        The multipliers ``(B, rows, columns)``, :math:`M_a^\top \lambda`, and a mask ``(B)`` of the
        problems whose active rows depend on each other.
    """
    times = torch.matmul if size is None else one_by_one
    index, valid = padded_indices(active, size)
    columns = index[..., None].expand(*index.shape, w.shape[-1])
    Ma = gather_rows(M, index)
    if valid is not None:
        Ma *= valid[..., None]
    found, dependent = _solve_schur(
        times(Ma, Ma.mT), times(Ma, w) - target.gather(1, columns), valid, size
    )
    return torch.zeros_like(target).scatter_add_(1, columns, found), times(Ma.mT, found), dependent


def _shared_rows(
    M: Tensor, active: Tensor, w: Tensor, target: Tensor, size: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same where all problems have the same rows: one Gram matrix serves them all.

    Rows that are active everywhere (equalities, above all) are eliminated from it once.
    """
    times = torch.matmul if size is None else one_by_one
    residual, gram = times(M, w) - target, times(M, M.mT)[0]
    everywhere = active.all(0)
    common = torch.nonzero(everywhere).reshape(-1)
    eliminated = size is None and len(active) > 1 and len(common) > 0
    if eliminated:
        Le, info = torch.linalg.cholesky_ex(gram[common][:, common])
        eliminated = int(info) == 0 and float(Le.diagonal().min()) ** 2 > DEPENDENT
    if eliminated:
        E = torch.cholesky_solve(gram[common], Le)
        gram_rest = gram - gram[:, common] @ E
        residual_common = residual[:, common]
        residual = residual - E.mT @ residual_common
        rest = active & ~everywhere
    else:
        gram_rest, rest = gram, active
    index, valid = padded_indices(rest, size)
    columns = index[..., None].expand(*index.shape, w.shape[-1])
    S = gram_rest[index[:, :, None], index[:, None, :]]
    if valid is not None:
        S *= valid[:, :, None] & valid[:, None, :]
    found, dependent = _solve_schur(S, residual.gather(1, columns), valid, size)
    multipliers = torch.zeros_like(target).scatter_add_(1, columns, found)
    if eliminated:
        left = residual_common - gram[common] @ multipliers
        wide = left.permute(1, 0, 2).reshape(len(common), -1)
        solved = torch.cholesky_solve(wide, Le).reshape(len(common), *left.shape[::2])
        multipliers[:, common] = solved.permute(1, 0, 2)
    return multipliers, times(M.mT, multipliers), dependent


def _solve_schur(
    S: Tensor, residual: Tensor, valid: Tensor | None, size: int | None
) -> tuple[Tensor, Tensor]:
    """Solve with Schur complements whose padding is zero, in place; say which are singular."""
    if valid is not None:
        residual = residual * valid[..., None]
        S.diagonal(dim1=-2, dim2=-1).add_((~valid).to(S))
    if not S.shape[-1]:
        return residual, torch.zeros(len(S), dtype=torch.bool, device=S.device)
    LS, info = torch.linalg.cholesky_ex(S)
    dependent = (info != 0) | (LS.diagonal(dim1=-2, dim2=-1).amin(-1) ** 2 < DEPENDENT)
    found = solve_upper(LS, solve_lower(LS, residual))  # without the copies of cholesky_solve
    if valid is not None:
        found = found * valid[..., None]  # dependent rows leave rubbish in the padding, too
    return found, dependent


def _least_norm(
    P: Tensor, C: Tensor, active: Tensor, r_x: Tensor, r_nu: Tensor
) -> tuple[Tensor, Tensor]:
    """Problems with equally many active rows by the eigenvalues of the whole of K, without zeros.

    Args:
        P: ``(B, n, n)``.
        C: ``(B, rows, n)``.
        active: Boolean ``(B, rows)``.
        r_x: ``(B, n, columns)``.
        r_nu: ``(B, rows, columns)``.
    """
    n, (index, _) = P.shape[-1], padded_indices(active, int(active[0].sum()))
    Ca = C.take_along_dim(index[..., None], 1)
    corner = Ca.new_zeros(len(Ca), Ca.shape[1], Ca.shape[1])
    K = torch.cat([torch.cat([P, Ca.mT], 2), torch.cat([Ca, corner], 2)], 1)
    # The eigenvalue routine would give up on all of them.
    finite = K.isfinite().all(-1).all(-1)[:, None, None]
    right = torch.cat([r_x, r_nu.take_along_dim(index[..., None], 1)], 1)
    t = least_norm(torch.where(finite, K, 0.0), right)
    t = torch.where(finite, t, torch.nan)
    t_nu = torch.where(finite, torch.zeros_like(r_nu), torch.nan)
    return t[:, :n], t_nu.scatter(1, index[..., None].expand(-1, -1, t.shape[-1]), t[:, n:])


def padded_indices(active: Tensor, size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Positions of the active rows ``(B, most)``, and which of them are not padding.

    The second is None where every problem has the same number of active rows.
    """
    counts = active.sum(-1)
    if active.shape[0] == 1 and size is None:
        return torch.nonzero(active[0]).reshape(1, -1), None
    most = size
    if most is None:
        most = int(counts.max()) if counts.numel() else 0
    which, position = torch.nonzero(active, as_tuple=True)
    if which.numel() == active.shape[0] * most:
        return position.reshape(active.shape[0], most), None
    first = counts.cumsum(0) - counts
    rank = torch.arange(which.numel(), device=which.device) - first[which]
    index = active.new_zeros(active.shape[0], most, dtype=torch.long)
    index[which, rank] = position
    return index, torch.arange(most, device=counts.device) < counts[:, None]


def gather_rows(M: Tensor, index: Tensor) -> Tensor:
    """``M[b, index[b]]``: whole rows, so one ``index_select`` copies them as blocks."""
    batch, count, n = M.shape
    offset = torch.arange(batch, device=M.device)[:, None] * count
    picked = M.reshape(batch * count, n).index_select(0, (index + offset).reshape(-1))
    return picked.reshape(batch, -1, n)


def solve_lower(L: Tensor, X: Tensor) -> Tensor:
    r""":math:`L^{-1} X`; a shared ``L`` takes the whole batch as columns of one solve."""
    return _solve_triangular(L, X, upper=False)


def solve_upper(L: Tensor, X: Tensor) -> Tensor:
    r""":math:`L^{-\top} X`."""
    return _solve_triangular(L.mT, X, upper=True)


def _solve_triangular(T: Tensor, X: Tensor, upper: bool) -> Tensor:
    solved: Tensor
    if T.shape[0] == X.shape[0] or X.shape[0] == 1:
        X = X.expand(T.shape[0], -1, -1)
        solved = torch.linalg.solve_triangular(T, X, upper=upper)
        return solved
    batch, n, columns = X.shape
    wide = X.permute(1, 0, 2).reshape(n, batch * columns)
    solved = torch.linalg.solve_triangular(T[0], wide, upper=upper)
    return solved.reshape(n, batch, columns).permute(1, 0, 2)
