"""Modules: as functions of their parameters, and what else a module must survive."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .report import EXACT, Runner
from .transforms import FlatLayer, Truth, flatten, pattern


def functional(
    module: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Callable[..., Any], tuple[Tensor, ...], int]:
    """A module as a function of its learned parameters and its inputs."""
    learned = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def call(*arguments: Tensor) -> Any:
        parameters = dict(zip(learned, arguments, strict=False))
        return functional_call(module, parameters, arguments[len(learned) :])

    return call, (*learned.values(), *inputs), len(learned)


def check_module(
    run: Runner, module: nn.Module, inputs: tuple[Tensor, ...], own: int, tol: float
) -> None:
    """Copies give the same values and gradients; so do parameters passed by ``functional_call``."""
    data = inputs[own:]

    def outcome(module: nn.Module) -> tuple[Any, Any]:
        leaves: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        given = data
        if not leaves:  # nothing is learned: what comes in stands for it
            given = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in data)
            leaves = [t for t in given if t.requires_grad]
        value = module(*given)
        y = flatten(value)
        return value, torch.autograd.grad(y, leaves, pattern(y), materialize_grads=True)

    def copied(make: Callable[[nn.Module], nn.Module]) -> Callable[[], tuple[Any, Any]]:
        return lambda: (outcome(make(module)), outcome(module))

    def reloaded(module: nn.Module) -> nn.Module:
        twin = copy.deepcopy(module)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        twin.load_state_dict(module.state_dict())
        return twin

    def by_functional_call() -> tuple[Any, Any]:
        call, _, _ = functional(module, data)
        flat = FlatLayer(call, inputs, tuple(range(own)))
        return Truth(flat, flat.point).vjp, flatten(outcome(module)[1])

    run("deepcopy", [("", copied(copy.deepcopy))], EXACT)
    run("pickle", [("", copied(lambda m: pickle.loads(pickle.dumps(m))))], EXACT)
    run("state_dict", [("", copied(reloaded))], EXACT)
    if own:
        run("gradients of parameters", [("", by_functional_call)], tol)
