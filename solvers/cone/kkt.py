r"""The linear system of a cone program's optimality conditions around a point.

Slacks and multipliers are the two parts of one vector, :math:`s = \Pi_K(v)` and
:math:`z = s - v`, so a change of the solution obeys

.. math::

    P\,dx + A^\top dz = r_x, \qquad A\,dx + ds = r_s, \qquad ds = D\,dv,\; dz = (D - I)\,dv

with the derivative :math:`D = U \Lambda U^\top` of the projection. With the unknown
:math:`\nu`, :math:`dz = U (I - \Lambda)^{1/2} \nu`, this is the symmetric system

.. math::

    \begin{pmatrix} P & A^\top W^\top \\ W A & -\Lambda \end{pmatrix}
    \begin{pmatrix} dx \\ \nu \end{pmatrix} = \begin{pmatrix} r_x \\ W r_s \end{pmatrix},
    \qquad W = (I - \Lambda)^{1/2} U^\top,

whose entries stay bounded whichever part of a cone's boundary the point is on. Eigenvalue 0 means
an active row, 1 an inactive one, which drops out.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import direct
from .cone import Cone, Number
from .cone_program import Instance
from .product import ConeProduct

if TYPE_CHECKING:
    import scipy.sparse as sp

Floats = NDArray[np.float64]

# Entries of the eigenvectors of a batch that are held at a time, 32 MB.
FRAME_ENTRIES = 1 << 22


class Step(NamedTuple):
    """Solutions for some right-hand sides.

    Attributes:
        x: ``(n, columns)``.
        z: ``(m, columns)``.
        residual: Of the system, relative to its right-hand side.
    """

    x: Floats
    z: Floats
    residual: float


class Boundary:
    """Where on the boundary of its cones each point of a batch is.

    Args:
        cones: The cones.
        v: Slack minus multiplier ``(B, m)``.
        s: The slack.
        mu: Smoothing of the projection, see :meth:`solvers.cone.cone.Cone.project`; a number for
            all or a tensor ``(B)``.
    """

    def __init__(self, cones: ConeProduct, v: Tensor, s: Tensor, mu: Number = 0.0) -> None:
        """Take the spectrum of all cones, those of a kind at once."""
        self.m = cones.rows
        mu = mu[:, None] if isinstance(mu, Tensor) else mu
        # What makes the eigenvalues and the frames of one point.
        self.parts: list[tuple[Callable[[int], _Spectrum], NDArray[np.int64]]] = []
        for cone, index in cones.groups:
            known = (v[:, index], s[:, index])
            if len(v) * index.numel() * cone.rows > FRAME_ENTRIES:
                self.parts.append((partial(_one_by_one, cone, *known, mu), index.numpy()))
            else:
                values, frames = _spectrum(cone, *known, mu)
                self.parts.append((partial(_pick, values, frames), index.numpy()))

    def of(self, i: int) -> "tuple[sp.csr_array, Floats]":
        """The matrix ``W`` ``(active, m)`` of one point and its eigenvalues, those below 1."""
        import scipy.sparse as sp  # imported when used, as everywhere here: it takes its time

        entries, columns = [np.empty(0)], [np.empty(0, np.int64)]
        lengths, kept_values = [np.zeros(1, np.int64)], [np.empty(0)]
        for spectrum_of, index in self.parts:
            values, frames = spectrum_of(i)
            kept = values < 1.0
            weights = np.sqrt(1.0 - values[kept])
            kept_values.append(values[kept])
            if frames is None:
                entries.append(weights)
                columns.append(index[kept])
                lengths.append(np.ones(len(weights), np.int64))
            else:
                rows = np.broadcast_to(index[:, None], frames.shape)[kept]
                entries.append((weights[:, None] * frames[kept]).reshape(-1))
                columns.append(rows.reshape(-1))
                lengths.append(np.full(len(weights), index.shape[1]))
        indptr = np.cumsum(np.concatenate(lengths))
        parts = (np.concatenate(entries), np.concatenate(columns), indptr)
        return sp.csr_array(parts, (len(indptr) - 1, self.m)), np.concatenate(kept_values)


_Spectrum = tuple[Floats, Floats | None]


def _spectrum(cone: Cone, v: Tensor, s: Tensor, mu: Number) -> _Spectrum:
    """Eigenvalues ``(B, count, rows)`` and, as rows, eigenvectors; None for unit vectors."""
    known = (s,) if cone.iterative else ()
    spectrum = cone.spectrum(v, mu, *known)
    if cone.elementwise:
        return spectrum.values.numpy(), None
    eye = torch.eye(cone.rows, dtype=v.dtype).expand(*v.shape, cone.rows)
    return spectrum.values.numpy(), spectrum.back(eye).mT.numpy()


def _one_by_one(cone: Cone, v: Tensor, s: Tensor, mu: Number, i: int) -> _Spectrum:
    of_i = mu[i : i + 1] if isinstance(mu, Tensor) else mu
    values, frames = _spectrum(cone, v[i : i + 1], s[i : i + 1], of_i)
    return values[0], None if frames is None else frames[0]


def _pick(values: Floats, frames: Floats | None, i: int) -> _Spectrum:
    return values[i], None if frames is None else frames[i]


class Linearised:
    """The system of one program at one point, factored.

    Args:
        instance: The program.
        boundary: Of a batch of points.
        i: Which of them is meant.
    """

    def __init__(self, instance: Instance, boundary: Boundary, i: int) -> None:
        """Factor, by whatever suits size and sparsity."""
        W, values = boundary.of(i)
        P, A = instance.P, instance.A
        self.n, self.W = len(instance.q), W
        self.dense: direct.Dense | None = None
        if direct.is_dense(self.n + len(values), 2 * P.nnz):
            self.W_dense = torch.from_numpy(W.toarray())
            C = (self.W_dense @ torch.from_numpy(A.dense())).numpy()
            self.dense = direct.Dense(P.symmetric(), C, values)
        else:
            import scipy.sparse as sp

            WA = W @ sp.csc_array((A.data, A.indices, A.indptr), A.shape)
            self.sparse = direct.Sparse(P, WA, values)

    def solve(self, r_x: Floats, r_s: Floats, *, rough: bool = False) -> Step:
        """Solve; the least-norm solution where the system is singular.

        Args:
            r_x: ``(n, columns)``.
            r_s: ``(m, columns)``.
            rough: Whether a few digits suffice.
        """
        if self.dense is not None:
            right = torch.cat([torch.from_numpy(r_x), self.W_dense @ torch.from_numpy(r_s)])
            t, residual = self.dense.solve(right)
            return Step(t[: self.n].numpy(), (self.W_dense.mT @ t[self.n :]).numpy(), residual)
        columns = np.concatenate((r_x, self.W @ r_s))
        solution, residual = self.sparse.solve(columns, rough=rough)
        return Step(solution[: self.n], self.W.T @ solution[self.n :], residual)
