"""Which entries of a variable or parameter cvxpy stores, and in which order.

Symmetric, diagonal and sparse leaves are lowered to vectors of the entries that are free; complex
ones to a real and an imaginary part. Everything else is stored whole, column-major.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from .affine import IntArray

if TYPE_CHECKING:
    from cvxpy.expressions.leaf import Leaf

Part = Literal["real", "imag"]


def is_hermitian(leaf: Leaf) -> bool:
    """Whether a complex leaf equals its conjugate transpose by its attributes."""
    return bool(leaf.is_complex() and leaf.is_hermitian())


def is_triangular(leaf: Leaf, stored_shape: tuple[int, ...]) -> bool:
    """Whether a leaf is stored as its upper triangle."""
    symmetric = any(leaf.attributes[name] for name in ("symmetric", "PSD", "NSD"))
    return (symmetric or is_hermitian(leaf)) and tuple(stored_shape) != tuple(leaf.shape)


def stored_positions(leaf: Leaf, stored_shape: tuple[int, ...], part: Part = "real") -> IntArray:
    """Where the entries that cvxpy stores are in the leaf.

    Args:
        leaf: The user's variable or parameter.
        stored_shape: Shape of what cvxpy has made of it, or of this part of it.
        part: Which part of a complex leaf.

    Returns:
        Positions in the row-major flattening of the leaf, in the order in which cvxpy stores them,
        shape ``(stored,)``. Of a symmetric leaf they are those of the upper triangle.

    Raises:
        ValueError: If cvxpy stores the leaf in a way that is not known here.
    """
    positions = np.arange(leaf.size, dtype=np.int64).reshape(leaf.shape)
    if tuple(stored_shape) == tuple(leaf.shape):
        stored = positions.ravel(order="F")
    elif is_triangular(leaf, stored_shape):
        # The imaginary part of a Hermitian matrix has no diagonal.
        strictly = part == "imag" and is_hermitian(leaf)
        rows, columns = np.triu_indices(leaf.shape[-1], k=1 if strictly else 0)
        stored = positions[..., rows, columns].ravel(order="F")
    elif leaf.attributes["diag"]:
        stored = positions.diagonal()
    elif leaf.sparse_idx is not None:
        stored = positions[tuple(leaf.sparse_idx)]
    else:
        stored = positions[:0].ravel()
    if stored.size != int(np.prod(stored_shape, dtype=np.int64)):
        attributes = [name for name, value in leaf.attributes.items() if value]
        raise ValueError(
            f"CvxpyLayer: expected cvxpy to store {leaf.name()} of shape {tuple(leaf.shape)} "
            "whole, as a triangle, a diagonal or the entries of a sparsity pattern; with the "
            f"attributes {attributes} it came out with shape {tuple(stored_shape)}. Write the "
            "attributes as constraints instead, or report the version of cvxpy."
        )
    return stored.astype(np.int64)
