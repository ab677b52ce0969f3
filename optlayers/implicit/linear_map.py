"""Products with a fixed sparse matrix, by numpy and SciPy: the fastest that a CPU has for them.

Torch's own sparse product has no rule for ``vmap`` or forward mode, and takes far longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .batching import in_front
from .function import Tensors, solve_implicitly


class LinearMap:
    """A constant matrix ``(k, p)``, compared by identity.

    Args:
        matrix: A SciPy matrix in CSR form.
        transposed: The map of the transposed matrix, if there is one already.
    """

    def __init__(self, matrix: Any, transposed: "LinearMap | None" = None) -> None:
        """Look for the simple case: rows that pick one entry each."""
        self.matrix = matrix
        if transposed is not None:
            self.transposed = transposed
        counts = np.diff(matrix.indptr)
        self.picks: Tensor | None = None
        self.weights: Tensor | None = None
        if matrix.shape[1] and (counts <= 1).all():
            picks = np.zeros(matrix.shape[0], np.int64)
            weights = np.zeros(matrix.shape[0])
            picks[counts == 1], weights[counts == 1] = matrix.indices, matrix.data
            self.picks = torch.from_numpy(picks)
            if not (weights == 1).all():
                self.weights = torch.from_numpy(weights)

    @cached_property
    def transposed(self) -> "LinearMap":
        """The map of the transposed matrix."""
        return LinearMap(self.matrix.T.tocsr(), self)

    def times(self, x: Tensor) -> Tensor:
        """``(*batch, p)`` to ``(*batch, k)``."""
        if self.picks is not None:
            picked = x.index_select(-1, self.picks.to(x.device))
            return picked if self.weights is None else picked.mul_(self.weights.to(x.device))
        columns = x.reshape(-1, x.shape[-1]).cpu().numpy().T
        product = np.ascontiguousarray((self.matrix @ columns).T)
        return torch.from_numpy(product).reshape((*x.shape[:-1], len(product.T))).to(x.device)


@dataclass(frozen=True)
class _Product:
    """The product as an implicit problem; the input is ``x`` in float64."""

    map_: LinearMap

    @property
    def differentiable(self) -> int:
        """The product."""
        return 1

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Multiply."""
        (x,) = inputs
        assert x is not None
        return (self.map_.times(x),)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shape of the product."""
        (x,) = inputs
        assert x is not None
        return (x.new_empty(*x.shape[:-1], self.map_.matrix.shape[0]),)

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """The transposed product."""
        g = cotangents[0]
        return [None if g is None else solve_implicitly(_Product(self.map_.transposed), g)[0]]

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """The same product."""
        t = tangents[0]
        return [None if t is None else solve_implicitly(self, t)[0]]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["_Product", Tensors]:
        """A batch dimension more."""
        return self, in_front(size, dims, inputs)


def linear_map(map_: LinearMap, x: Tensor) -> Tensor:
    """The matrix times ``x`` ``(*batch, p)``, differentiable to any order."""
    return solve_implicitly(_Product(map_), x)[0]
