"""One adapter per library: the same programs in, its layer's answer out.

A layer is built once per cell, outside the timing. Whatever a library needs done to the data at
every call (concatenation, a Cholesky factor) is inside ``solve`` and is timed. Settings are the
library's defaults unless a comment says why not.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from problems import Data, Sizes
from torch import Tensor

import optlayers as ol


class Layer(ABC):
    """A library's layer for the programs of one cell.

    Attributes:
        name: How the tables call it.
        packages: Distributions whose versions belong to the result.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __init__(self, sizes: Sizes) -> None:
        """Build what does not depend on the data."""

    def leaves(self, data: Data) -> Data:
        """The tensors that are passed and differentiated."""
        return Data(*(t.detach().clone().requires_grad_() for t in data))

    @abstractmethod
    def solve(self, P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Any:
        """The timed forward pass: whatever the library returns."""

    @abstractmethod
    def answer(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``x, y, z`` in what ``solve`` returned, with Px + q + A'y + G'z = 0."""


class Ours(Layer):
    """``ol.qp`` with nothing chosen by hand."""

    name = "optlayers"
    packages = ("optlayers", "daqp", "piqp")

    def __init__(self, sizes: Sizes) -> None:
        pass

    def solve(self, *data: Tensor) -> ol.Solution:
        return ol.qp(*data)

    def answer(self, output: ol.Solution) -> tuple[Tensor, Tensor, Tensor]:
        return output.x, output.y, output.z


class OursCopied(Ours):
    """The same where the caller copies shared matrices for every element of the batch."""

    name = "optlayers, copies"

    def __init__(self, sizes: Sizes) -> None:
        self.batch = sizes.batch

    def leaves(self, data: Data) -> Data:
        P, q, G, h, A, b = data
        P, G, A = (M.repeat(self.batch, 1, 1) for M in (P, G, A))
        return super().leaves(Data(P, q, G, h, A, b))


class Moreau(Layer):
    """The torch solver of moreau with its active set method, which it takes by itself as well."""

    name = "moreau"
    packages = ("moreau", "moreau-cpu")

    def __init__(self, sizes: Sizes) -> None:
        import moreau
        import moreau.torch

        n, rows = sizes.n, sizes.p + sizes.m
        self.shared = sizes.shared
        self.p = sizes.p
        columns = torch.arange(n)
        self.solver = moreau.torch.Solver(
            n,
            rows,
            torch.arange(n + 1) * n,
            columns.repeat(n),
            torch.arange(rows + 1) * n,
            columns.repeat(rows),
            moreau.Cones(num_zero_cones=sizes.p, num_nonneg_cones=sizes.m),
            moreau.Settings(
                solver="active_set", device="cpu", batch_size=sizes.batch, enable_grad=True
            ),
        )

    def solve(self, P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Any:
        rows, right = torch.cat([A, G], -2), torch.cat([b, h], -1)
        return self.solver.solve(P.flatten(-2), rows.flatten(-2), q, right)

    def answer(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        return output.x, output.z[:, : self.p], output.z[:, self.p :]


class ProxSuite(Layer):
    """The QPFunction of proxsuite (QPLayer)."""

    name = "proxsuite"
    packages = ("proxsuite",)

    def __init__(self, sizes: Sizes) -> None:
        from proxsuite.torch.qplayer import QPFunction

        self.function = QPFunction()
        # Inequalities have two sides; this is what the library itself takes for "none".
        self.lower = torch.full((sizes.batch, sizes.m), -1e20, dtype=torch.float64)

    def solve(self, P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Any:
        return self.function(P, q, A, b, G, self.lower, h)

    def answer(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        return output


class Qpth(Layer):
    """The QPFunction of qpth (OptNet)."""

    name = "qpth"
    packages = ("qpth",)

    def __init__(self, sizes: Sizes) -> None:
        from qpth.qp import QPFunction

        # The check is a Cholesky factorisation that nothing uses; -1 silences a warning per call.
        self.function = QPFunction(check_Q_spd=False, verbose=-1)

    def solve(self, P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Any:
        return self.function(P, q, G, h, A, b)

    def answer(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        # It does not return multipliers, but keeps them for its backward pass.
        return output, output.grad_fn.nus, output.grad_fn.lams


class CvxpyLayers(Layer):
    """cvxpylayers with its default backend, diffcp."""

    name = "cvxpylayers"
    packages = ("cvxpylayers", "diffcp", "cvxpy", "scs")

    def __init__(self, sizes: Sizes) -> None:
        import cvxpy as cp
        from cvxpylayers.torch import CvxpyLayer

        n, m, p = sizes.n, sizes.m, sizes.p
        x = cp.Variable(n)
        root, q = cp.Parameter((n, n)), cp.Parameter(n)
        G, h, A, b = cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter((p, n)), cp.Parameter(p)
        # A parametrised P must enter through a root: disciplined parametrised programming has no
        # x'Px with P a parameter, but for one backend.
        objective = cp.Minimize(0.5 * cp.sum_squares(root @ x) + q @ x)
        equal, below = A @ x == b, G @ x <= h
        self.layer = CvxpyLayer(
            cp.Problem(objective, [equal, below]),
            parameters=[root, q, G, h, A, b],
            variables=[x, equal.dual_variables[0], below.dual_variables[0]],
        )

    def solve(self, P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor, b: Tensor) -> Any:
        return self.layer(torch.linalg.cholesky(P, upper=True), q, G, h, A, b)

    def answer(self, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        return output


PEERS: Sequence[type[Layer]] = (Moreau, ProxSuite, Qpth, CvxpyLayers)
