"""Array code for both numpy and torch: where they agree by :func:`library`, else by what is here.

A call of numpy costs a fifth of one of torch, and for the cones of a single program calls are all
the cost. So tensors that are nothing but numbers of the CPU are worked on as arrays. Results are
the same to the last bit whatever the company, as torch's own logistic functions are not: they
compute eight elements at a time in one way and the rest of a tensor in another.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any  # a numpy array or a tensor; the functions of both have no type in common


def run(work: Callable[..., tuple[Array, ...]], *given: Tensor | None) -> tuple[Tensor, ...]:
    """Call ``work``, with arrays if it makes no difference and with the tensors if it does.

    Args:
        work: From ``(*batch, rows)`` for each of ``given``, to arrays ``(*batch, ...)``. As an
            array it gets one batch dimension.
        given: Tensors of one shape, or None.
    """
    tensors = [t for t in given if t is not None]
    shape = tensors[0].shape
    if not _are_plain(tensors) or any(t.shape != shape for t in tensors):
        return work(*given)
    with np.errstate(all="ignore"):
        results = work(
            *(None if t is None else t.numpy(force=True).reshape(-1, shape[-1]) for t in given)
        )
    return tuple(torch.from_numpy(a).reshape(*shape[:-1], *a.shape[1:]) for a in results)


def _are_plain(tensors: list[Tensor]) -> bool:
    """Whether they are doubles on the CPU and nobody differentiates, maps or compiles."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    recording = torch.is_grad_enabled()
    return all(
        type(t) is Tensor
        and t.dtype == torch.float64
        and t.device.type == "cpu"
        and not (recording and t.requires_grad)
        for t in tensors
    )


def library(a: Array) -> Any:
    """The module ``a`` is of."""
    return np if isinstance(a, np.ndarray) else torch


def some(mask: Array) -> bool:
    """Whether any is true; a tensor is not asked, that would wait for a GPU: it may be."""
    return not isinstance(mask, np.ndarray) or bool(np.count_nonzero(mask))


def only(
    mask: Array,
    work: Callable[..., Array],
    given: list[Array],
    harmless: list[float],
    otherwise: Array,
) -> Array:
    """``work(*given)`` on some elements, and what the others have already.

    Args:
        mask: Which elements, ``(*batch)``.
        work: Works element by element.
        given: Arrays ``(*batch)``.
        harmless: What ``work`` is given in place of other elements where all have to take part.
        otherwise: Results of the others, ``(*batch)``.
    """
    if not isinstance(mask, np.ndarray):
        pairs = zip(given, harmless, strict=True)
        return torch.where(mask, work(*(torch.where(mask, a, b) for a, b in pairs)), otherwise)
    count = np.count_nonzero(mask)
    if count == mask.size:
        return work(*given)
    if count:
        otherwise = otherwise.copy()
        otherwise[mask] = work(*(a[mask] for a in given))
    return otherwise


def split(v: Array) -> tuple[Array, ...]:
    """The entries ``(*batch)`` of vectors ``(*batch, rows)``."""
    return tuple(np.ascontiguousarray(v.T)) if isinstance(v, np.ndarray) else v.unbind(-1)


def relu(a: Array) -> Array:
    """The larger one of ``a`` and 0."""
    return np.maximum(a, 0.0) if isinstance(a, np.ndarray) else torch.relu(a)


def clamp(a: Array, low: float, high: float) -> Array:
    """The number between ``low`` and ``high`` that is nearest to ``a``."""
    if isinstance(a, np.ndarray):
        return np.minimum(np.maximum(a, low), high)  # np.clip takes longer than both
    return torch.clamp(a, low, high)


def sigmoid(t: Array) -> Array:
    """The function ``1 / (1 + exp(-t))``."""
    return 1 / (1 + library(t).exp(-t))


def logaddexp(a: Array, b: Array) -> Array:
    """The function ``log(exp(a) + exp(b))``; either may be infinite."""
    xp = library(a)
    distance = abs(xp.where(a == b, 0.0, a - b))  # inf - inf is NaN
    return xp.maximum(a, b) + xp.log1p(xp.exp(-distance))


def largest(a: Array) -> Array:
    """The largest absolute value along axis 1 of an array of numpy; 0 if there is none.

    The function itself: methods such as ``max`` go through Python, which takes as long again.
    """
    return np.maximum.reduce(abs(a), 1, initial=0.0)


def product(a: Array, b: Array) -> Array:
    """Products of matrices ``(*batch, k, l)`` and ``(*batch, l, columns)``, arrays of numpy.

    Results do not depend on the number of matrices. Larger products of numpy run in threads of its
    own, which get into the way of ours; torch for its part treats a single column in two ways.
    """
    if b.shape[-1] == 1:
        return a @ b
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()
