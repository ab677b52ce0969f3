"""The unknowns of a problem: a pytree whose leaves share batch dimensions, laid end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

LEAF = pytree.tree_structure(0)  # the structure of a tensor


@dataclass(frozen=True)
class Unknowns:
    """The structure of the unknowns: of a pytree, with the shape of one sample of each leaf."""

    spec: pytree.TreeSpec
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, where: str, x0: Any, batch_ndim: int) -> tuple["Unknowns", list[Tensor]]:
        """Of a pytree of tensors that share dtype, device and batch dimensions.

        Raises:
            TypeError: If a leaf is no floating-point tensor.
            ValueError: If leaves do not share dtype or batch dimensions.
        """
        leaves: list[Any]
        if isinstance(x0, Tensor) and not torch.compiler.is_compiling():
            leaves, spec = [x0], LEAF  # as most often, and a pytree takes its time
        else:
            leaves, spec = pytree.tree_flatten(x0)
        if not leaves:
            raise ValueError(f"{where}: x0 must hold at least one tensor; got {x0!r}.")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or leaf.dtype not in (torch.float32, torch.float64):
                what = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(
                    f"{where}: x0 must be a tensor of float32 or float64, or a pytree of them; got "
                    f"{what}. Convert it, for example with .double()."
                )
        alike = len(leaves) == 1 or len({leaf.shape[:batch_ndim] for leaf in leaves}) == 1
        if not alike or min([leaf.ndim for leaf in leaves]) < batch_ndim:
            shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
            raise ValueError(
                f"{where}: the first {batch_ndim} dimensions of x0 count independent samples "
                f"(batch_ndim={batch_ndim}) and must agree; got shapes {shapes}."
            )
        if len(leaves) > 1 and len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
            kinds = ", ".join(f"{leaf.dtype} on {leaf.device}" for leaf in leaves)
            raise ValueError(
                f"{where}: all tensors of x0 must have one dtype and device; got {kinds}."
            )
        sizes = [tuple(leaf.shape[batch_ndim:]) for leaf in leaves]
        if torch.compiler.is_compiling():  # they are part of the problem, and symbols may not be
            sizes = [tuple([len(range(size)) for size in own]) for own in sizes]
        return cls(spec, tuple(sizes)), leaves


def in_order_of(spec: pytree.TreeSpec, tree: Any) -> list[Any]:
    """The leaves of a tree in the order of a structure, whose dictionaries may differ in theirs."""
    if isinstance(tree, Tensor):
        return [tree]
    leaves, own = pytree.tree_flatten(tree)
    if own == spec or not matches(spec, tree):
        return leaves
    return spec.flatten_up_to(tree)


def matches(spec: pytree.TreeSpec, tree: Any) -> bool:
    """Whether a tree of tensors has this structure, whatever the order of its dictionaries."""
    if isinstance(tree, Tensor):
        return spec.is_leaf()
    if pytree.tree_structure(tree) == spec:
        return True
    try:
        return all(isinstance(t, Tensor) for t in spec.flatten_up_to(tree))
    except (ValueError, TypeError):
        return False


def ravel(leaves: Sequence[Tensor], batch_ndim: int) -> Tensor:
    """Leaves ``(*batch, ...)`` laid end to end: ``(*batch, n)``; a leaf that is so already."""
    if len(leaves) == 1 and leaves[0].ndim == batch_ndim + 1:
        return leaves[0]
    parts = [
        leaf.reshape(*leaf.shape[:batch_ndim], leaf.shape[batch_ndim:].numel()) for leaf in leaves
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def unravel(x: Tensor, batch: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Cut ``(..., n)``, whose leading dimensions are those of ``batch``, into leaves."""
    if len(shapes) == 1:
        shape = (*batch, *shapes[0])
        return [x if x.shape == shape else x.reshape(shape)]
    parts = x.split([prod(shape) for shape in shapes], -1)
    return [part.reshape((*batch, *shape)) for part, shape in zip(parts, shapes, strict=True)]
