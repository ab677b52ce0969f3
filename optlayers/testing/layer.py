"""The check of a whole layer."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .compiled import check_compile
from .derivatives import check_backward, check_transforms, check_values
from .mapped import check_vmap, subsets_of
from .modules import check_module, functional
from .report import Report, Runner
from .transforms import FlatLayer


def check_layer(
    layer: Callable[..., Any],
    inputs: Sequence[Tensor],
    *,
    differentiable: Sequence[int] | None = None,
    tol: float = 1e-8,
    fd_tol: float = 1e-5,
    fd_step: float = 1e-5,
    spread: float = 1e-2,
    vmap_subsets: Iterable[Sequence[int]] | None = None,
    third_order: bool = True,
    compile: bool = True,
    backend: str = "aot_eager",
    raises: Sequence[str] = (),
    skip: Sequence[str] = (),
) -> Report:
    """Check that a layer composes with all of torch, and is right wherever it does.

    Plain backward, once, twice and three times, is compared with finite differences. Everything
    else is compared with plain backward or with a loop, where only rounding may differ: forward
    mode, :mod:`torch.func` transforms, ``vmap`` over subsets of the inputs, transforms of ``vmap``
    and ``vmap`` of transforms, ``torch.compile``, ``no_grad`` and ``inference_mode``. A module is
    checked as a function of its parameters and inputs, and must survive ``deepcopy``, ``pickle``
    and ``state_dict``.

    Torch cannot compile some transforms of a layer; those must raise or be right. What your layer
    refuses on purpose belongs in ``raises``; that it then works counts as a failure.

    Args:
        layer: A function or module from tensors to a tensor, or to a tuple of tensors. It must be
            smooth around the inputs: finite differences over a kink say nothing.
        inputs: Its arguments, in float64 where they are floating-point. Keep them small: there are
            thousands of calls, with up to the square of all their entries as a batch.
        differentiable: Positions of the inputs with derivatives; all floating-point ones by
            default.
        tol: Largest error against plain backward, relative to the largest entry or 1.
        fd_tol: The same against finite differences.
        fd_step: Step of the finite differences; the error of your solver over ``fd_step`` should be
            well below ``fd_tol``.
        spread: How far the samples of a ``vmap`` lie from the inputs, relative to them or to 1.
        vmap_subsets: Positions of the inputs to map, a sequence for each ``vmap``; by default all
            subsets if there are at most 255, otherwise single inputs, pairs and all.
        third_order: Whether to check third derivatives.
        compile: Whether to check ``torch.compile``. This resets the compiler's caches.
        backend: Of the compiler; ``"inductor"`` takes longer.
        raises: Names of checks that must raise, as in the report; ``*`` stands for anything.
        skip: Names of checks to leave out, likewise.

    Returns:
        A report that prints as a table.

    Raises:
        AssertionError: If a check fails; the message lists all that do.
        ValueError: If there is nothing to differentiate or an input is not float64.

    Example:
        >>> import torch
        >>> from optlayers.testing import check_layer
        >>> class Cube(torch.autograd.Function):
        ...     generate_vmap_rule = True
        ...
        ...     @staticmethod
        ...     def forward(x):
        ...         return x**3
        ...
        ...     @staticmethod
        ...     def setup_context(ctx, inputs, output):
        ...         ctx.save_for_backward(*inputs)
        ...
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         (x,) = ctx.saved_tensors
        ...         return g * 3 * x**2
        >>> x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
        >>> forward_mode = ("*jvp*", "*jacfwd*", "*hessian*", "dot products", "gradcheck forward")
        >>> report = check_layer(Cube.apply, [x], raises=forward_mode, compile=False)
        >>> print(report.checks[0])
        value                              passed  0.0e+00 (<= 0e+00)
        >>> report.failures
        ()
    """
    inputs = tuple(t.detach() for t in inputs)
    module = layer if isinstance(layer, nn.Module) else None
    if module is not None:
        layer, inputs, own = functional(module, inputs)
        if differentiable is not None:
            differentiable = [*range(own), *(own + i for i in differentiable)]
    where = tuple(
        differentiable
        if differentiable is not None
        else (i for i, t in enumerate(inputs) if t.is_floating_point())
    )
    wrong = [i for i in where if inputs[i].dtype != torch.float64]
    if wrong or not where:
        raise ValueError(
            "check_layer: the differentiable inputs and the parameters must be float64 tensors, at "
            f"least one; got {[str(inputs[i].dtype) for i in where]}. Convert them, e.g. with "
            "layer.double()."
        )

    flat = FlatLayer(layer, inputs, where)
    run = Runner(tuple(raises), tuple(skip))
    kept = [t.clone() for t in inputs]
    check_values(run, flat)
    check_backward(run, flat, tol, fd_tol, fd_step, third_order)
    check_transforms(run, flat, tol)
    check_vmap(run, flat, tol, spread, subsets_of(len(inputs), vmap_subsets))
    if compile:
        check_compile(run, flat, tol, backend)
    if module is not None:
        check_module(run, module, inputs, own, tol)
    run("inputs unmodified", [("", lambda: (inputs, kept))])

    report = Report(tuple(run.checks))
    if report.failures:
        lines = "\n".join(f"  {check}" for check in report.failures)
        raise AssertionError(
            f"check_layer: {len(report.failures)} of {len(report.checks)} checks failed, where "
            f"errors are relative and the bounds in brackets:\n{lines}"
        )
    return report
