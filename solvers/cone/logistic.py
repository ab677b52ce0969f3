"""Logistic functions whose last bits do not depend on the company.

Those of torch compute eight elements at a time in one way and the rest of a tensor in another, so
that an element's result changes with its place in a batch; ``exp`` and ``log1p`` do not.
"""

import torch
from torch import Tensor


def sigmoid(t: Tensor) -> Tensor:
    """The function ``1 / (1 + exp(-t))``."""
    return 1 / (1 + torch.exp(-t))


def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """The function ``log(exp(a) + exp(b))``; either may be infinite."""
    distance = torch.where(a == b, 0.0, a - b).abs()  # inf - inf is NaN
    return torch.maximum(a, b) + torch.log1p(torch.exp(-distance))
