"""Compiled code of our own, from ``solvers/c``: what takes microseconds in it.

It is compiled when the package is installed. Where it is not there, everything is done without it.
"""

import ctypes
from array import array
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

LIBRARY = Path(__file__).parent / "c" / "native.so"
# The form of the structures, which the library must confirm.
INTERFACE = 9


@cache
def library() -> Any:
    """The compiled functions, or None where they were not compiled, or for another release."""
    try:
        found = ctypes.CDLL(str(LIBRARY))
        interface = found.optlayers_interface
    except (OSError, AttributeError):
        return None
    interface.restype = ctypes.c_int64
    if interface() != INTERFACE:
        return None
    for name in ("qp_solve", "qp_adjoint", "step", "lu", "ratios"):
        function = getattr(found, f"optlayers_{name}")
        function.restype, function.argtypes = None, [ctypes.c_void_p]
    return found


def library_for(*tensors: Tensor) -> Any:
    """The compiled functions if they can read these: plain tensors on a CPU, of real numbers."""
    for t in tensors:
        if not (type(t) is Tensor and t.is_cpu and t.dtype in (torch.float32, torch.float64)):
            return None
        if is_functorch_wrapped_tensor(t):
            return None
    return library()


def laid_out(t: Tensor) -> Tensor:
    """A tensor with its numbers one after the other in memory, as they are."""
    return t if t.is_contiguous() and not t.is_neg() else t.resolve_neg().contiguous()


@lru_cache
def word(number: float) -> int:
    """The integer that has the bits of a floating-point number, for structures of such words."""
    return array("q", array("d", (number,)).tobytes())[0]
