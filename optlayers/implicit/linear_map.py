"""Products with a fixed sparse matrix, by numpy and SciPy: the fastest that a CPU has for them.

Torch's own sparse product has no rule for ``vmap`` or forward mode, and takes far longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from uuid import uuid4
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from .batching import in_front
from .function import Tensors, solve_implicitly


class LinearMap:
    """A constant matrix ``(k, p)``, and a constant that is added to the product.

    Args:
        matrix: A SciPy matrix in CSR form.
        offset: ``(k)``; None for zero.
        transposed: The map of the transposed matrix, if there is one already.
    """

    def __init__(
        self,
        matrix: Any,
        offset: Tensor | None = None,
        transposed: "LinearMap | None" = None,
    ) -> None:
        """Look for the simple case: rows that pick one entry each."""
        self.matrix, self.offset = matrix, offset
        self.key = uuid4().hex
        _maps[self.key] = self
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
    def linear(self) -> "LinearMap":
        """The map without the constant."""
        return self if self.offset is None else LinearMap(self.matrix)

    @cached_property
    def transposed(self) -> "LinearMap":
        """The map of the transposed matrix, without a constant."""
        return LinearMap(self.matrix.T.tocsr(), None, self.linear)

    @property
    def constant(self) -> Tensor:
        """What is added to the product."""
        if self.offset is not None:
            return self.offset
        return torch.zeros(self.matrix.shape[0], dtype=torch.float64)

    def of(self, x: Tensor) -> Tensor:
        """``(*batch, p)`` to ``(*batch, k)``."""
        product = self._times(x)
        return product if self.offset is None else product.add_(self.offset.to(x.device))

    def _times(self, x: Tensor) -> Tensor:
        if self.picks is not None:
            picked = x.index_select(-1, self.picks.to(x.device))
            return picked if self.weights is None else picked.mul_(self.weights.to(x.device))
        columns = x.reshape((x.shape[:-1].numel(), x.shape[-1])).cpu().numpy().T
        product = np.ascontiguousarray((self.matrix @ columns).T)
        return torch.from_numpy(product).reshape((*x.shape[:-1], len(product.T))).to(x.device)


# The compiler keeps problems by value, in any process: it gets names instead of matrices.
_maps: WeakValueDictionary[str, LinearMap] = WeakValueDictionary()


@dataclass(frozen=True)
class _Product:
    """The map as an implicit problem; the input is ``x`` in float64.

    Attributes:
        key: Name of the map.
        kind: What of it is meant.
    """

    key: str
    kind: Literal["affine", "linear", "transposed"] = "affine"
    # A graph may outlive the layer that made it, so the map stays with whoever saved the problem.
    kept: LinearMap | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not torch.compiler.is_compiling():
            object.__setattr__(self, "kept", _maps[self.key])

    @property
    def differentiable(self) -> int:
        """The product."""
        return 1

    def _map(self) -> LinearMap:
        of_name = _maps[self.key]
        if self.kind == "affine":
            return of_name
        return of_name.linear if self.kind == "linear" else of_name.transposed

    def solve(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Multiply."""
        (x,) = inputs
        assert x is not None
        return (self._map().of(x),)

    def fake(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Shape of the product."""
        (x,) = inputs
        assert x is not None
        # The transposed map is not made here, where tensors are fake.
        size = _maps[self.key].matrix.shape[1 if self.kind == "transposed" else 0]
        return (x.new_empty(*x.shape[:-1], size),)

    def vjp(
        self,
        inputs: Tensors,
        outputs: Sequence[Tensor],
        cotangents: Tensors,
        needed: Sequence[bool],
    ) -> Tensors:
        """The transposed product."""
        g = cotangents[0]
        other = _Product(self.key, "linear" if self.kind == "transposed" else "transposed")
        return [None if g is None else solve_implicitly(other, g)[0]]

    def jvp(self, inputs: Tensors, outputs: Sequence[Tensor], tangents: Tensors) -> Tensors:
        """The same product, without the constant."""
        t = tangents[0]
        other = _Product(self.key, "linear" if self.kind == "affine" else self.kind)
        return [None if t is None else solve_implicitly(other, t)[0]]

    def map(
        self, size: int, dims: Sequence[int | None], inputs: Tensors
    ) -> tuple["_Product", Tensors]:
        """A batch dimension more."""
        return self, in_front(size, dims, inputs)


def affine_map(key: str, x: Tensor) -> Tensor:
    """The map of that name at ``x`` ``(*batch, p)``, differentiable to any order."""
    if x.shape == (0,) and not torch.compiler.is_compiling():
        return _maps[key].constant.to(x.device)
    return solve_implicitly(_Product(key), x)[0]
