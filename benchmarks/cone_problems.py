"""Families of cvxpy problems with parameters, and their exact solutions and gradients by no layer.

The loss of an element is the sum of w_i x_i^2 with fixed Gaussian w. Quadratic programs have the
reference of the other benchmark. The others are smooth where their active constraints are known:
Clarabel at a tolerance of 1e-11 says which those are, Newton's method takes the KKT conditions of
these to the last digit, and the implicit function theorem with derivatives by torch does the rest.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from problems import Data, Sizes, random_programs, reference
from torch import Tensor

Array = NDArray[np.float64]
Values = tuple[Tensor, ...]
Scalar = Callable[..., Tensor]

ACCURATE = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}
DTYPE = torch.float64


class Written(NamedTuple):
    """A problem as cvxpy has it, with what a layer takes and returns."""

    problem: cp.Problem
    parameters: list[cp.Parameter]
    variable: cp.Variable


class Exact(NamedTuple):
    """What a layer should return for the first elements of a batch.

    Attributes:
        x: Solutions, stacked.
        gradients: Of the loss with respect to every parameter, stacked.
        margin: Smallest multiplier of an active constraint or slack of another; infinite without
            constraints. Close to zero there is no gradient to compare.
    """

    x: Array
    gradients: tuple[Array, ...]
    margin: float


@dataclass(frozen=True)
class Family(ABC):
    """A kind of problem in a size.

    Attributes:
        n: What the size is said by.
        batch: Elements, all with data of their own.
        title: How the tables call the family.
        checked: So many elements, at most, are compared with the reference.
    """

    n: int
    batch: int
    title: ClassVar[str]
    checked: ClassVar[int] = 4

    @abstractmethod
    def written(self) -> Written:
        """Write the problem anew, without values."""

    @abstractmethod
    def data(self) -> Values:
        """One tensor a parameter, with a batch dimension, always the same ones."""

    @abstractmethod
    def exact(self) -> Exact:
        """Solve and differentiate the first elements."""

    def weight(self) -> Tensor:
        """The weights of the loss, in the shape of the solutions."""
        shape = self.written().variable.shape
        return torch.randn(self.batch, *shape, generator=_generator(1), dtype=DTYPE)

    def first(self, tensors: Values) -> Values:
        """What belongs to the elements that are checked."""
        return tuple(t[: self.checked] for t in tensors)


class DenseQP(Family):
    """Minimise 1/2 |Sx|^2 + q'x subject to Gx <= h, Ax = b, with all six as parameters."""

    title = "dense QP"

    def written(self) -> Written:
        n, m, p = self.n, self._sizes.m, self._sizes.p
        x = cp.Variable(n)
        S, q = cp.Parameter((n, n)), cp.Parameter(n)
        G, h, A, b = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter((p, n)), cp.Parameter(p)
        # A matrix P could not be a parameter of x'Px: that is not disciplined, but for one backend.
        objective = cp.Minimize(0.5 * cp.sum_squares(S @ x) + q @ x)
        return Written(cp.Problem(objective, [G @ x <= h, A @ x == b]), [S, q, G, h, A, b], x)

    def data(self) -> Values:
        P, *others = random_programs(self._sizes)
        return (torch.linalg.cholesky(P, upper=True), *others)

    def exact(self) -> Exact:
        S, *others = self.first(self.data())
        found = _exact_programs(Data(S.mT @ S, *others), *self.first((self.weight(),)))
        in_root = 2 * S.numpy() @ found.gradients[0]
        return found._replace(gradients=(in_root, *found.gradients[1:]))

    @property
    def _sizes(self) -> Sizes:
        return Sizes(self.n, self.batch)


class SparseQP(Family):
    """Minimise 1/2 |x|^2 + q'x subject to Gx <= h, Ax = b, with constant sparse G and A.

    There are n inequalities, a quarter of them active, and n / 4 equalities.
    """

    title = "sparse QP"
    checked = 2
    equalities: ClassVar[float] = 0.25  # As a share of n.
    active: ClassVar[float] = 0.25
    nonzeros: ClassVar[float] = 10.24  # Of a row on average: one percent of 1024.

    def written(self) -> Written:
        x = cp.Variable(self.n)
        q, h, b = cp.Parameter(self.n), cp.Parameter(self.n), cp.Parameter(self._p)
        G, A = self._matrices
        objective = cp.Minimize(0.5 * cp.sum_squares(x) + q @ x)
        return Written(cp.Problem(objective, [G @ x <= h, A @ x == b]), [q, h, b], x)

    def data(self) -> Values:
        G, A = self._matrices
        return self._vectors(G.data[None], A.data[None])

    def exact(self) -> Exact:
        G, A = self._matrices
        found = self._exact(G.data[None], A.data[None], self.first(self.data()))
        _, q, _, h, _, b = found.gradients
        return found._replace(gradients=(q, h, b))

    @property
    def _p(self) -> int:
        return int(self.n * self.equalities)

    @property
    def _matrices(self) -> tuple[sp.csr_array, sp.csr_array]:
        rng = np.random.default_rng(0)
        found = []
        for rows in (self.n, self._p):
            density = min(1.0, self.nonzeros / self.n)
            # The diagonal is there, so that no row is empty.
            pattern = sp.random_array((rows, self.n), density=density, rng=rng)
            pattern = pattern + sp.eye_array(rows, self.n)
            M = sp.csr_array(pattern)
            M.sort_indices()
            M.data = rng.standard_normal(M.nnz)
            found.append(M)
        return found[0], found[1]

    def _vectors(self, G_values: Array, A_values: Array) -> Values:
        """Vectors q, h and b that make a random x optimal, with a quarter of the rows active.

        Multipliers and slacks are at least 0.1, so that no kink is within reach of rough solvers.
        """
        rng = np.random.default_rng(1)
        G, A = self._matrices
        vectors = []
        for i in range(self.batch):
            Gi, Ai = _with(G, G_values[i % len(G_values)]), _with(A, A_values[i % len(A_values)])
            x, y = rng.standard_normal(self.n), rng.standard_normal(A.shape[0])
            active = rng.random(self.n) < self.active
            z, slack = 0.1 + rng.random((2, self.n))
            z, slack = np.where(active, z, 0), np.where(active, 0, slack)
            vectors.append((-(x + Gi.T @ z + Ai.T @ y), Gi @ x + slack, Ai @ x))
        q, h, b = (torch.from_numpy(np.stack(v)) for v in zip(*vectors, strict=True))
        return q, h, b

    def _exact(self, G_values: Array, A_values: Array, vectors: Values) -> Exact:
        q, h, b = vectors
        G, A = (
            torch.from_numpy(np.stack([_with(M, v[i % len(v)]).toarray() for i in range(len(q))]))
            for M, v in zip(self._matrices, (G_values, A_values), strict=True)
        )
        P = torch.eye(self.n, dtype=DTYPE).expand(len(q), -1, -1)
        return _exact_programs(Data(P, q, G, h, A, b), *self.first((self.weight(),)))


class SquareSparseQP(SparseQP):
    """The same with n equalities, as in the paper on cvxpylayers; nothing is left to minimise."""

    title = "sparse QP, p = n"
    equalities = 1.0
    active = 0.0


class SparseValuesQP(SparseQP):
    """The same with the nonzeros of G and A as parameters, a vector g and a vector a.

    Gx is written as R (g * (E x)) with constant E and R, E repeating the entries of x that nonzeros
    meet and R adding up rows: everybody can take that.
    """

    title = "sparse QP, values"

    def written(self) -> Written:
        x = cp.Variable(self.n)
        q, h, b = cp.Parameter(self.n), cp.Parameter(self.n), cp.Parameter(self._p)
        products, values = zip(*(self._product(M, x) for M in self._matrices), strict=True)
        problem = cp.Problem(
            cp.Minimize(0.5 * cp.sum_squares(x) + q @ x), [products[0] <= h, products[1] == b]
        )
        return Written(problem, [*values, q, h, b], x)

    def data(self) -> Values:
        generator = _generator(2)
        values = [
            torch.from_numpy(M.data)
            + 0.1 * torch.randn(self.batch, M.nnz, generator=generator, dtype=DTYPE)
            for M in self._matrices
        ]
        return (*values, *self._vectors(*(v.numpy() for v in values)))

    def exact(self) -> Exact:
        G_values, A_values, *vectors = self.first(SparseValuesQP.data(self))
        found = self._exact(G_values.numpy(), A_values.numpy(), tuple(vectors))
        _, q, G, h, A, b = found.gradients
        of_values = [
            M[:, rows, columns]
            for M, (rows, columns) in zip((G, A), map(_places, self._matrices), strict=True)
        ]
        return found._replace(gradients=(*of_values, q, h, b))

    def _product(self, M: sp.csr_array, x: cp.Variable) -> tuple[cp.Expression, cp.Parameter]:
        rows, columns = _places(M)
        ones, order = np.ones(M.nnz), np.arange(M.nnz)
        repeat = sp.csr_array((ones, (order, columns)), (M.nnz, M.shape[1]))
        add = sp.csr_array((ones, (rows, order)), (M.shape[0], M.nnz))
        values = cp.Parameter(M.nnz)
        return add @ cp.multiply(values, repeat @ x), values


class SparseAttributeQP(SparseValuesQP):
    """The same problem, written with sparse parameters, ``cp.Parameter(shape, sparsity=...)``.

    The layer takes whole matrices of that shape and reads what is on the pattern.
    """

    title = "sparse QP, sparsity"

    def data(self) -> Values:
        *values, q, h, b = super().data()
        G, A = map(self._whole, values, self._matrices)
        return G, A, q, h, b

    def exact(self) -> Exact:
        found = super().exact()
        G, A = map(self._whole, map(torch.from_numpy, found.gradients[:2]), self._matrices)
        return found._replace(gradients=(G.numpy(), A.numpy(), *found.gradients[2:]))

    def _product(self, M: sp.csr_array, x: cp.Variable) -> tuple[cp.Expression, cp.Parameter]:
        parameter = cp.Parameter(M.shape, sparsity=_places(M))
        return parameter @ x, parameter

    def _whole(self, values: Tensor, M: sp.csr_array) -> Tensor:
        whole = torch.zeros(len(values), *M.shape, dtype=DTYPE)
        whole[:, *map(torch.from_numpy, map(np.int64, _places(M)))] = values
        return whole


class Cones(Family):
    """Minimise 1/2 |x|^2 + c'x subject to |F_i x + f_i| <= r_i: ten second-order cones."""

    title = "SOCP"
    cones: ClassVar[int] = 10
    side: ClassVar[int] = 8  # With r_i, cones of dimension nine.

    def written(self) -> Written:
        x, rows = cp.Variable(self.n), self.cones * self.side
        c, F, f, r = (cp.Parameter(s) for s in (self.n, (rows, self.n), rows, self.cones))
        y = F @ x + f
        blocks = [y[i * self.side : (i + 1) * self.side] for i in range(self.cones)]
        inside = [cp.norm(block) <= r[i] for i, block in enumerate(blocks)]
        objective = cp.Minimize(0.5 * cp.sum_squares(x) + c @ x)
        return Written(cp.Problem(objective, inside), [c, F, f, r], x)

    def data(self) -> Values:
        generator = _generator(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.batch, *shape, generator=generator, dtype=DTYPE)

        rows = self.cones * self.side
        c, F, f, x = normal(self.n), normal(rows, self.n), normal(rows), normal(self.n)
        F = F / self.n**0.5
        slack = 0.1 + torch.rand(self.batch, self.cones, generator=generator, dtype=DTYPE)
        return 2 * c, F, f, self._norms(x[..., None], F, f) + slack

    def exact(self) -> Exact:
        def objective(x: Tensor, c: Tensor, *_: Tensor) -> Tensor:
            return 0.5 * x @ x + c @ x

        def constraints(x: Tensor, _c: Tensor, F: Tensor, f: Tensor, r: Tensor) -> Tensor:
            return self._norms(x[:, None], F, f) - r

        return _exact_smooth(self, objective, constraints)

    def _norms(self, x: Tensor, F: Tensor, f: Tensor) -> Tensor:
        return ((F @ x)[..., 0] + f).unflatten(-1, (self.cones, self.side)).norm(dim=-1)


class Logistic(Family):
    """Minimise the logistic loss of the margins Zw plus l/2 |w|^2: exponential cones."""

    title = "logistic regression"
    rows: ClassVar[int] = 60

    def written(self) -> Written:
        w, Z, penalty = (
            cp.Variable(self.n),
            cp.Parameter((self.rows, self.n)),
            cp.Parameter(nonneg=True),
        )
        loss = cp.sum(cp.logistic(-Z @ w)) + 0.5 * penalty * cp.sum_squares(w)
        return Written(cp.Problem(cp.Minimize(loss)), [Z, penalty], w)

    def data(self) -> Values:
        generator = _generator(0)
        X = torch.randn(self.batch, self.rows, self.n, generator=generator, dtype=DTYPE)
        truth = torch.randn(self.batch, self.n, 1, generator=generator, dtype=DTYPE)
        noise = torch.randn(self.batch, self.rows, 1, generator=generator, dtype=DTYPE)
        penalty = 1 + torch.rand(self.batch, generator=generator, dtype=DTYPE)
        return X * torch.sign(X @ truth + noise), penalty

    def exact(self) -> Exact:
        def objective(w: Tensor, Z: Tensor, penalty: Tensor) -> Tensor:
            return torch.nn.functional.softplus(-Z @ w).sum() + 0.5 * penalty * w @ w

        return _exact_smooth(self, objective)


class Semidefinite(Family):
    """Minimise tr(CX) + 0.05 |X|^2 over correlation matrices with eigenvalues of at least 0.01.

    The bound makes the semidefinite constraint one on an expression. What is on the variable alone
    some backends of cvxpy take as a cone of its own, which who reads their data has to know.
    """

    title = "semidefinite"
    smallest: ClassVar[float] = 0.01

    def written(self) -> Written:
        k = self.n
        X, C = cp.Variable((k, k), symmetric=True), cp.Parameter((k, k))
        bounded = X - self.smallest * np.eye(k) >> 0 if self.smallest else X >> 0
        objective = cp.Minimize(cp.trace(C @ X) + 0.05 * cp.sum_squares(X))
        return Written(cp.Problem(objective, [bounded, cp.diag(X) == 1]), [C], X)

    def data(self) -> Values:
        return (torch.randn(self.batch, self.n, self.n, generator=_generator(0), dtype=DTYPE),)

    def exact(self) -> Exact:
        """With X = smallest I + VV', where V has as many columns as X has larger eigenvalues."""
        elements = []
        for C, weight in zip(*self.first((*self.data(), self.weight())), strict=True):
            X = _accurately(self.written(), (C,))
            eigenvalues, vectors = torch.linalg.eigh(X - self.smallest * torch.eye(self.n))
            rank = eigenvalues > 1e-4
            start = (vectors[:, rank] * eigenvalues[rank].sqrt()).flatten()

            def matrix(v: Tensor) -> Tensor:
                V = v.unflatten(-1, (self.n, -1))
                return V @ V.mT + self.smallest * torch.eye(self.n, dtype=DTYPE)

            def objective(v: Tensor, C: Tensor, matrix: Any = matrix) -> Tensor:
                X = matrix(v)
                return (C * X).sum() + 0.05 * (X * X).sum()

            def constraints(v: Tensor, _: Tensor, matrix: Any = matrix) -> Tensor:
                return torch.diagonal(matrix(v)) - 1

            v, gradients, multipliers = _differentiated(
                objective,
                constraints,
                start,
                (C,),
                lambda v, weight=weight, matrix=matrix: (weight * matrix(v) ** 2).sum(),
            )
            slack = 0.5 * (C + C.mT) + 0.1 * matrix(v) + torch.diag(multipliers)
            # As many eigenvalues are zero as V has columns; the others have to be positive.
            margin = torch.linalg.eigvalsh(slack)[rank.sum()].item()
            if margin <= 0:
                raise RuntimeError("reference: this rank does not prove itself right")
            elements.append(Exact(matrix(v).numpy(), gradients, margin))
        return _stacked(elements)


class SemidefiniteVariable(Semidefinite):
    """The same with X itself semidefinite."""

    title = "semidefinite variable"
    smallest = 0.0


class Construction(Family):
    """Ridge regression with a dense 100 x n parameter: to be built, not to be solved."""

    title = "construction"

    def written(self) -> Written:
        x, A, b = cp.Variable(self.n), cp.Parameter((100, self.n)), cp.Parameter(100)
        objective = cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x))
        return Written(cp.Problem(objective), [A, b], x)

    def data(self) -> Values:
        raise NotImplementedError("this family is only built")

    def exact(self) -> Exact:
        raise NotImplementedError("this family is only built")


FAMILIES: dict[str, type[Family]] = {
    kind.__name__: kind
    for kind in (
        DenseQP,
        SparseQP,
        SquareSparseQP,
        SparseValuesQP,
        SparseAttributeQP,
        Cones,
        Logistic,
        Semidefinite,
        SemidefiniteVariable,
        Construction,
    )
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _places(M: sp.csr_array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.repeat(np.arange(M.shape[0]), np.diff(M.indptr)), M.indices


def _with(M: sp.csr_array, values: Array) -> sp.csr_array:
    return sp.csr_array((values, M.indices, M.indptr), M.shape)


def _stacked(elements: Sequence[Exact]) -> Exact:
    x, gradients, margins = zip(*elements, strict=True)
    return Exact(np.stack(x), tuple(map(np.stack, zip(*gradients, strict=True))), min(margins))


def _exact_programs(data: Data, weight: Tensor) -> Exact:
    """The reference of the other benchmark has a linear loss: its weights are the derivatives."""
    x = torch.from_numpy(reference(data, weight).x)
    found = reference(data, 2 * weight * x)
    return Exact(found.x, found.gradients, found.margin)


def _accurately(written: Written, values: Values) -> Tensor:
    for parameter, value in zip(written.parameters, values, strict=True):
        parameter.value = value.numpy()
    with warnings.catch_warnings():
        # It says when it does not reach so small a tolerance, which is not to be relied on here.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        written.problem.solve(solver=cp.CLARABEL, **ACCURATE)
    return torch.from_numpy(np.asarray(written.variable.value))


def _exact_smooth(family: Family, objective: Scalar, constraints: Scalar | None = None) -> Exact:
    """Of a family whose constraints are smooth near the solution, <= 0 each."""
    elements = []
    written, values = family.written(), family.first(family.data())
    for weight, *own in zip(*family.first((family.weight(),)), *values, strict=True):
        x, margin, active = _accurately(written, tuple(own)), float("inf"), None
        if constraints:
            rows = constraints(x, *own) > -1e-5

            def active(x: Tensor, *values: Tensor, rows: Tensor = rows) -> Tensor:
                return constraints(x, *values)[rows]

        x, gradients, multipliers = _differentiated(
            objective, active, x, tuple(own), lambda x, weight=weight: (weight * x * x).sum()
        )
        if constraints:
            slack = -constraints(x, *own)[~rows]
            margin = min(t.min().item() for t in (multipliers, slack) if t.numel())
            if margin <= 0:
                raise RuntimeError("reference: these active constraints do not prove themselves")
        elements.append(Exact(x.numpy(), gradients, margin))
    return _stacked(elements)


def _differentiated(
    objective: Scalar, active: Scalar | None, x: Tensor, values: Values, loss: Scalar
) -> tuple[Tensor, tuple[Array, ...], Tensor]:
    """Minimise subject to ``active`` == 0 from close by; solution, gradients and multipliers."""
    count, multipliers = x.numel(), x.new_zeros(0)
    if active:
        slopes = torch.func.jacrev(active)(x, *values)
        slope = torch.func.grad(objective)(x, *values)
        multipliers = torch.linalg.lstsq(slopes.mT, -slope[:, None]).solution[:, 0]

    def lagrangian(v: Tensor, *values: Tensor) -> Tensor:
        value = objective(v[:count], *values)
        return value + v[count:] @ active(v[:count], *values) if active else value

    slope, curvature = torch.func.grad(lagrangian), torch.func.hessian(lagrangian)

    def solve(v: Tensor, right: Tensor) -> Tensor:
        # A solution may have symmetries that change neither loss nor constraints: no step there.
        inverse = torch.linalg.pinv(curvature(v, *values), rtol=1e-8, hermitian=True)
        return inverse @ right

    v = torch.cat([x, multipliers])
    for _ in range(8):
        v = v - solve(v, slope(v, *values))
    rest = slope(v, *values).abs().max().item()
    if not rest < 1e-11 * (1 + v.abs().max().item()):
        raise RuntimeError(f"reference: Newton's method left a residual of {rest:.1e}")
    adjoint = -solve(v, torch.func.grad(lambda v: loss(v[:count]))(v))
    leaves = [value.clone().requires_grad_() for value in values]
    product = adjoint @ torch.func.grad(lagrangian)(v, *leaves)
    gradients = torch.autograd.grad(product, leaves)
    return v[:count], tuple(g.numpy() for g in gradients), v[count:]
