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

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import direct
from .cone_program import Instance
from .product import ConeProduct

if TYPE_CHECKING:
    import scipy.sparse as sp

Floats = NDArray[np.float64]


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
        mu: Smoothing of the projection, see :meth:`solvers.cone.cone.Cone.project`.
    """

    def __init__(self, cones: ConeProduct, v: Tensor, mu: float = 0.0) -> None:
        """Take the spectrum of all cones, those of a kind at once."""
        self.m = cones.rows
        self.parts: list[tuple[Floats, Floats | None, NDArray[np.int64]]] = []
        for cone, index in cones.groups:
            spectrum = cone.spectrum(v[:, index], mu)
            frames = None
            if not cone.elementwise:
                eye = torch.eye(cone.rows, dtype=v.dtype)
                frames = spectrum.back(eye.expand(len(v), len(index), *eye.shape)).mT.numpy()
            self.parts.append((spectrum.values.numpy(), frames, index.numpy()))

    def of(self, i: int) -> "tuple[sp.csr_array, Floats]":
        """The matrix ``W`` ``(active, m)`` of one point and its eigenvalues, those below 1."""
        import scipy.sparse as sp  # imported when used, as everywhere here: it takes its time

        entries, columns = [np.empty(0)], [np.empty(0, np.int64)]
        lengths, kept_values = [np.zeros(1, np.int64)], [np.empty(0)]
        for values, frames, index in self.parts:
            kept = values[i] < 1.0
            weights = np.sqrt(1.0 - values[i][kept])
            kept_values.append(values[i][kept])
            if frames is None:
                entries.append(weights)
                columns.append(index[kept])
                lengths.append(np.ones(len(weights), np.int64))
            else:
                rows = np.broadcast_to(index[:, None], frames.shape[1:])[kept]
                entries.append((weights[:, None] * frames[i][kept]).reshape(-1))
                columns.append(rows.reshape(-1))
                lengths.append(np.full(len(weights), index.shape[1]))
        indptr = np.cumsum(np.concatenate(lengths))
        parts = (np.concatenate(entries), np.concatenate(columns), indptr)
        return sp.csr_array(parts, (len(indptr) - 1, self.m)), np.concatenate(kept_values)


def solve(
    instance: Instance,
    boundary: Boundary,
    i: int,
    r_x: Floats,
    r_s: Floats,
    *,
    rough: bool = False,
) -> Step:
    """Solve the system of one program; the least-norm solution where it is singular.

    Args:
        instance: The program.
        boundary: Of a batch of points.
        i: Which of them is meant.
        r_x: ``(n, columns)``.
        r_s: ``(m, columns)``.
        rough: Whether a few digits suffice.
    """
    W, values = boundary.of(i)
    n, P, A = len(instance.q), instance.P, instance.A
    if direct.is_dense(n + len(values), 2 * P.nnz):
        W_dense = torch.from_numpy(W.toarray())
        C = W_dense @ torch.from_numpy(A.dense())
        right = torch.cat([torch.from_numpy(r_x), W_dense @ torch.from_numpy(r_s)])
        t, residual = direct.solve_dense(torch.from_numpy(P.symmetric()), C, values, right)
        return Step(t[:n].numpy(), (W_dense.mT @ t[n:]).numpy(), residual)
    import scipy.sparse as sp

    C = (W @ sp.csc_array((A.data, A.indices, A.indptr), A.shape)).tocsc()
    columns = np.concatenate((r_x, W @ r_s))
    solution, residual = direct.solve_sparse(P, C, values, columns, rough=rough)
    return Step(solution[:n], W.T @ solution[n:], residual)
