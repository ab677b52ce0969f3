"""A user's arguments as plain tensors, and back: pytrees, modules, and constants among them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock, RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Arguments:
    """How arguments were taken apart.

    Attributes:
        spec: Of the pytree whose leaves are tensors, modules and constants.
        leaves: One entry a leaf: the number of a tensor, the module with the places and numbers of
            its parameters, or the constant itself.
    """

    spec: pytree.TreeSpec
    leaves: tuple["_Tensor | _Module | _Constant", ...]

    @contextmanager
    def bound(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
        """The arguments with these tensors in them, and in the modules among them meanwhile."""
        modules = [leaf for leaf in self.leaves if isinstance(leaf, _Module)]
        held: list[tuple[_Module, list[Any]]] = []
        try:
            for leaf in modules:
                lock_of(leaf.module).acquire()
                held.append((leaf, []))
                held[-1][1].extend(leaf.hold(tensors))
            yield self.plain(tensors)
        finally:
            for leaf, own in reversed(held):
                leaf.give_back(own)
                lock_of(leaf.module).release()

    def plain(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The arguments with these tensors in them; modules as they are."""
        values = [leaf.value(tensors) for leaf in self.leaves]
        if self.spec is _tuple_spec(len(values)):  # as most often, and a pytree takes its time
            return tuple(values)
        whole: tuple[Any, ...] = self.spec.unflatten(values)
        return whole


@dataclass(frozen=True)
class _Tensor:
    number: int

    def value(self, tensors: Sequence[Tensor]) -> Any:
        return tensors[self.number]


@dataclass(frozen=True)
class _Constant:
    constant: Any

    def value(self, tensors: Sequence[Tensor]) -> Any:
        return self.constant


@dataclass(frozen=True)
class _Module:
    module: nn.Module
    slots: tuple["_Slot", ...]

    def value(self, tensors: Sequence[Tensor]) -> Any:
        return self.module

    def hold(self, tensors: Sequence[Tensor]) -> list[Any]:
        """Put tensors in the place of the module's parameters, which are returned."""
        own: list[Any] = [slot.owner._parameters[slot.name] for slot in self.slots]
        for slot in self.slots:
            slot.owner._parameters[slot.name] = tensors[slot.number]  # type: ignore[assignment]
        return own

    def give_back(self, own: list[Any]) -> None:
        """Undo that."""
        for slot, parameter in zip(self.slots, own, strict=False):  # none if they were not found
            slot.owner._parameters[slot.name] = parameter


class _Slot(NamedTuple):
    """Where a module keeps a parameter, and which tensor that is; tied ones have several places."""

    owner: nn.Module
    name: str
    number: int


def _slots(module: nn.Module, tensors: list[Tensor]) -> tuple[_Slot, ...]:
    """All places of parameters in a module; the parameters themselves are appended to tensors."""
    found: list[_Slot] = []
    numbers: dict[int, int] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None:
                continue
            number = numbers.setdefault(id(parameter), len(tensors))
            if number == len(tensors):
                tensors.append(parameter)
            found.append(_Slot(owner, name, number))
    return tuple(found)


# While a module holds other tensors nobody else may look at it, or put in tensors of his own.
_locks: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
_making = Lock()


def lock_of(module: nn.Module) -> RLock:
    """The lock of a module, the same for all threads."""
    lock = _locks.get(module)
    if lock is not None:
        return lock
    with _making:
        return _locks.setdefault(module, RLock())


def _flatten(arguments: Any) -> tuple[list[Any], pytree.TreeSpec]:
    """Leaves, modules among them, and structure."""
    plain = type(arguments) is tuple and not torch.compiler.is_compiling()
    if plain and all(isinstance(t, (Tensor, nn.Module)) for t in arguments):
        return list(arguments), _tuple_spec(len(arguments))  # a pytree takes ten times as long
    return pytree.tree_flatten(arguments, is_leaf=lambda t: isinstance(t, nn.Module))


@lru_cache
def _tuple_spec(length: int) -> pytree.TreeSpec:
    return pytree.tree_structure((0,) * length)


def has_modules(arguments: Any) -> bool:
    """Whether there are modules among the leaves of a pytree."""
    return any(isinstance(leaf, nn.Module) for leaf in _flatten(arguments)[0])


def take_apart(arguments: Any) -> tuple[list[Tensor], Arguments]:
    """The tensors of a pytree, the parameters of modules in it included, and the rest.

    Raises:
        TypeError: If a tensor is complex.
        NotImplementedError: If there is a module while the compiler traces.
    """
    leaves, spec = _flatten(arguments)
    tensors: list[Tensor] = []
    kinds: list[_Tensor | _Module | _Constant] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            kinds.append(_Tensor(len(tensors)))
            tensors.append(leaf)
        elif isinstance(leaf, nn.Module):
            if torch.compiler.is_compiling():
                raise NotImplementedError(
                    "optlayers: torch.compile cannot take a module among the parameters; got one. "
                    "Pass its tensors, and call it by torch.func.functional_call, or leave this "
                    "uncompiled."
                )
            with lock_of(leaf):
                kinds.append(_Module(leaf, _slots(leaf, tensors)))
        else:
            kinds.append(_Constant(leaf))
    if any(t.is_complex() for t in tensors):
        raise TypeError(
            "optlayers: parameters must be real, as derivatives of complex ones are not supported; "
            "got a complex tensor. Pass torch.view_as_real(t), and put it together inside."
        )
    return tensors, Arguments(spec, tuple(kinds))
