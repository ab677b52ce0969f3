"""``vmap`` against a loop."""

from collections.abc import Iterable, Sequence
from itertools import chain, combinations
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap
from torch.utils import _pytree as pytree

from .report import EXACT, Comparison, Runner
from .transforms import DIRECTIONS, TRANSFORMS, FlatLayer, Truth, Vector, jacobian

SAMPLES = 3


def check_vmap(
    run: Runner, flat: FlatLayer, tol: float, spread: float, subsets: Sequence[tuple[int, ...]]
) -> None:
    """``vmap`` against a loop: values, of transforms and inside transforms, and nested."""
    few = flat.along(DIRECTIONS)
    t, everything = few.point, tuple(range(len(flat.inputs)))
    generator = torch.Generator().manual_seed(0)

    def offset(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return torch.zeros_like(x).expand(SAMPLES, *x.shape)
        noise = 2 * torch.rand(SAMPLES, *x.shape, generator=generator, dtype=torch.float64) - 1
        return spread * x.abs().clamp_min(1.0) * noise.to(x)

    offsets = [offset(x) for x in flat.inputs]

    def moved(subset: Iterable[int], sample: int | None = None) -> dict[int, Tensor]:
        return {i: offsets[i] if sample is None else offsets[i][sample] for i in subset}

    def plain(subset: tuple[int, ...], in_dim: int) -> Comparison:
        # out_dims stays 0: vmap itself returns garbage for other values if an output is not mapped.
        samples = {i: flat.inputs[i] + offsets[i] for i in subset}

        def compare() -> tuple[Any, Any]:
            arguments = [
                samples[i].movedim(0, in_dim) if i in subset else flat.inputs[i] for i in everything
            ]
            dims = tuple(in_dim if i in subset else None for i in everything)
            loop = [
                flat.layer(*(samples[i][k] if i in subset else flat.inputs[i] for i in everything))
                for k in range(SAMPLES)
            ]
            got = vmap(flat.layer, in_dims=dims)(*arguments)
            return got, pytree.tree_map(lambda *parts: torch.stack(parts), *loop)

        return f"inputs {subset}, in_dims {in_dim}", compare

    run("vmap", [plain(subset, 0) for subset in subsets], EXACT)
    ends = [(i,) for i in everything] + [everything]
    elsewhere = [plain(s, -1) for s in ends]
    elsewhere += [plain(s, 1) for s in ends if all(flat.inputs[i].ndim for i in s)]
    run("vmap over other dimensions", elsewhere, EXACT)

    mapped = [everything] + ([(i,) for i in everything] if len(everything) > 1 else [])
    alone = {
        s: [Truth(lambda t, s=s, k=k: few(t, moved(s, k)), t) for k in range(SAMPLES)]  # type: ignore[misc]
        for s in mapped
    }

    def together(s: tuple[int, ...]) -> Vector:
        return lambda t: vmap(lambda o: few(t, o))(moved(s)).reshape(-1)

    loops = {
        s: Truth(lambda t, s=s: torch.cat([few(t, moved(s, k)) for k in range(SAMPLES)]), t)  # type: ignore[misc]
        for s in mapped
    }

    def of_transform(name: str, s: tuple[int, ...]) -> Comparison:
        transform, quantity = TRANSFORMS[name]

        def compare() -> tuple[Any, Any]:
            got = vmap(lambda o: transform(lambda t: few(t, o), t))(moved(s))
            return got, torch.stack([getattr(truth, quantity) for truth in alone[s]])

        return f"inputs {s} mapped", compare

    def in_transform(name: str, s: tuple[int, ...]) -> Comparison:
        transform, quantity = TRANSFORMS[name]
        return (
            f"inputs {s} mapped",
            lambda: (transform(together(s), t), getattr(loops[s], quantity)),
        )

    for name in TRANSFORMS:
        run(f"vmap({name})", [of_transform(name, s) for s in mapped], tol)
        run(f"{name} of vmap", [in_transform(name, s) for s in mapped], tol)

    def nested(outer: tuple[int, ...], inner: tuple[int, ...], derivative: bool) -> Comparison:
        # Two samples each way will do: an output of the loop costs a backward through all of it.
        a = {i: offsets[i][:2] for i in outer}
        b = {i: offsets[i][-2:] for i in inner}

        def add(a: dict[int, Tensor], b: dict[int, Tensor]) -> dict[int, Tensor]:
            return a | {i: a[i] + b[i] if i in a else b[i] for i in b}

        def both(t: Tensor) -> Tensor:
            rows = vmap(lambda a: vmap(lambda b: few(t, add(a, b)))(b))(a)
            return rows.reshape(-1)

        def loop(t: Tensor) -> Tensor:
            pick = [
                ({i: a[i][k] for i in a}, {i: b[i][j] for i in b}) for k in (0, 1) for j in (0, 1)
            ]
            return torch.cat([few(t, add(*pair)) for pair in pick])

        def compare() -> tuple[Any, Any]:
            return (jacrev(both)(t), jacobian(loop, t)) if derivative else (both(t), loop(t))

        return f"inputs {outer}, then {inner}", compare

    rest = everything[1:] or everything
    pairs = [(everything, everything), ((0,), rest), (rest, (0,))]
    run("vmap(vmap)", [nested(*pair, False) for pair in pairs], EXACT)
    run("jacrev of vmap(vmap)", [nested(*pair, True) for pair in pairs], tol)


def subsets_of(count: int, wanted: Iterable[Sequence[int]] | None) -> list[tuple[int, ...]]:
    """Which inputs to map together."""
    if wanted is not None:
        return [tuple(subset) for subset in wanted]
    sizes = list(range(1, count + 1)) if 2**count <= 256 else [1, 2, count]
    return list(chain.from_iterable(combinations(range(count), size) for size in sizes))
