"""Products with the Jacobian of a function in some of its arguments only."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.func import jvp, vjp

Function = Callable[..., Tensor]


def pull(
    function: Function, arguments: Sequence[Tensor], chosen: Sequence[int], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """The transposed Jacobian times a cotangent, a part for each chosen argument."""
    _, *rest = vjp(_of(function, arguments, chosen), *(arguments[i] for i in chosen))
    parts: tuple[Tensor, ...] = rest[0](cotangent)
    return parts


def push(
    function: Function,
    arguments: Sequence[Tensor],
    chosen: Sequence[int],
    tangents: Sequence[Tensor],
) -> Tensor:
    """The Jacobian times tangents of the chosen arguments."""
    moved = tuple(arguments[i] for i in chosen)
    pushed: Tensor = jvp(_of(function, arguments, chosen), moved, tuple(tangents))[1]
    return pushed


def _of(function: Function, arguments: Sequence[Tensor], chosen: Sequence[int]) -> Function:
    def of_chosen(*values: Tensor) -> Tensor:
        whole = list(arguments)
        for i, value in zip(chosen, values, strict=True):
            whole[i] = value
        return function(*whole)

    return of_chosen
