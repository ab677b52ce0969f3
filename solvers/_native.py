"""Compiled code of our own, from ``solvers/c``: what takes microseconds in it.

It is compiled when the package is installed. Where it is not there, everything is done without it.
"""

import ctypes
from array import array
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).parent / "c" / "native.so"
# The form of the structures, which the library must confirm.
INTERFACE = 7


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
    for function in (found.optlayers_qp_solve, found.optlayers_qp_adjoint, found.optlayers_step):
        function.restype, function.argtypes = None, [ctypes.c_void_p]
    return found


@lru_cache
def word(number: float) -> int:
    """The integer that has the bits of a floating-point number, for structures of such words."""
    return array("q", array("d", (number,)).tobytes())[0]
