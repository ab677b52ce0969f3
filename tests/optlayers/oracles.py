"""Programs with a planted solution, and gradients by other means than those of the layer."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import optlayers as ol

INPUTS = ("P", "q", "G", "h", "A", "b", "lb", "ub")
OUTPUTS = ("x", "y", "z", "z_box", "s", "objective")
CORE_NDIM = dict(zip(INPUTS, (2, 1, 2, 1, 2, 1, 1, 1), strict=True))
Data = dict[str, Tensor]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def planted(
    seed: int,
    n: int,
    m: int = 0,
    p: int = 0,
    *,
    batch: Sequence[int] = (),
    bounds: bool = False,
    rank: int | None = None,
    linear: bool = False,
) -> tuple[Data, Data]:
    """Data of feasible programs, and the solution around which they were built.

    Every row is strictly active or strictly inactive, by 0.3 at least, and which ones differs from
    one element of the batch to the next. ``rank`` is that of ``P``; a linear program has none, and
    as many active rows as variables.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    def positive(size: int) -> Tensor:
        return 0.3 + normal(size).abs()

    def some(size: int, most: int, least: int = 0) -> Tensor:
        """At least ``least`` and at most ``most`` of ``size``, at random."""
        count = torch.randint(least, most + 1, (*batch, 1), generator=generator)
        return normal(size).argsort(-1).argsort(-1) < count

    x, y, G, A = normal(n), normal(p), normal(m, n), normal(p, n)
    F = normal(n, n if rank is None else rank)
    P = F @ F.mT / n + (torch.eye(n, dtype=torch.float64) if rank is None else 0.0)
    if linear:
        active = some(m, n - p, n - p)
        P = torch.zeros_like(P)
    elif rank is not None:
        active = some(m, n - p, n - p - rank)
    else:
        active = some(m, m // 3)
    z = positive(m) * active
    data = {"P": P, "q": -times(P, x) - times(G.mT, z) - times(A.mT, y)}
    data |= {"G": G, "h": times(G, x) + positive(m) * ~active} if m else {}
    data |= {"A": A, "b": times(A, x)} if p else {}
    z_box = torch.zeros_like(x[..., :0])
    if bounds:
        at_lower = some(n, n // 10 + 1)
        at_upper = some(n, n // 10 + 1) & ~at_lower
        z_box = positive(n) * at_upper - positive(n) * at_lower
        data["q"] = data["q"] - z_box
        data |= {"lb": x - positive(n) * ~at_lower, "ub": x + positive(n) * ~at_upper}
    solution = {"x": x, "y": y, "z": z, "z_box": z_box, "s": (data["h"] if m else z) - times(G, x)}
    solution["objective"] = 0.5 * (x * times(P, x)).sum(-1) + (data["q"] * x).sum(-1)
    if linear:
        del data["P"]
    return data, solution


def solve(data: Data, **policy: object) -> ol.Solution:
    return ol.qp(**{"P": None} | data, **policy)


def weights_like(outputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """A cotangent for each output."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in outputs]


def weighted(outputs: Sequence[Tensor]) -> Tensor:
    """A loss in which every entry of the outputs counts, each with another weight."""
    pairs = zip(outputs, weights_like(outputs), strict=True)
    return torch.stack([(t * w.to(t)).sum() for t, w in pairs]).sum()


def gradients(
    data: Data,
    of: Callable[[Data], Sequence[Tensor]],
    wrt: Sequence[str] | None = None,
) -> Data:
    """Gradients of the weighted outputs in all data, zero where there is no dependence."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in data.items()}
    names = list(data if wrt is None else wrt)
    found = torch.autograd.grad(
        weighted(of(leaves)), [leaves[name] for name in names], allow_unused=True
    )
    return {
        name: torch.zeros_like(data[name]) if g is None else g
        for name, g in zip(names, found, strict=True)
    }


def layer(*outputs: str, **policy: object) -> Callable[[Data], list[Tensor]]:
    """Outputs of the layer as a function of the data."""
    return lambda data: [getattr(solve(data, **policy), name) for name in outputs]


def dense_kkt(solution: ol.Solution, *outputs: str) -> Callable[[Data], list[Tensor]]:
    """Outputs of one Newton step on the rows that are active at ``solution``, element by element.

    With the pseudo-inverse of the dense KKT matrix held fixed, its derivative is the implicit
    function theorem and nothing else; at degenerate points it has the least norm.
    """

    def step(data: Data) -> list[Tensor]:
        shape = solution.status.shape
        expanded = {
            name: t.expand(*shape, *t.shape[t.ndim - CORE_NDIM[name] :]) for name, t in data.items()
        }
        found = [
            _newton_step(
                {name: t[i] for name, t in expanded.items()},
                *(getattr(solution, name)[i].detach() for name in ("x", "y", "z", "z_box")),
            )
            for i in itertools.product(*map(range, shape))
        ]
        return [torch.stack([f[name] for f in found]).unflatten(0, shape) if shape else
                found[0][name] for name in outputs]  # fmt: skip

    return step


def _newton_step(data: Data, x: Tensor, y: Tensor, z: Tensor, z_box: Tensor) -> Data:
    n, eye = len(x), torch.eye(len(x), dtype=torch.float64)
    P, q = data.get("P", torch.zeros_like(eye)), data["q"]
    P = 0.5 * (P + P.mT)
    rows, ends, nu, at = [eye[:0]], [x[:0]], [x[:0]], []
    if "A" in data:
        rows, ends, nu = rows + [data["A"]], ends + [data["b"]], nu + [y]
        at.append(torch.arange(len(y)))
    if "G" in data:
        active = torch.nonzero(z > 0)[:, 0]
        rows, ends, nu = rows + [data["G"][active]], ends + [data["h"][active]], nu + [z[active]]
        at.append(len(y) + active)
    for name, active in (("lb", z_box < 0), ("ub", z_box > 0)):
        if name in data:
            index = torch.nonzero(active)[:, 0]
            rows, ends, nu = rows + [eye[index]], ends + [data[name][index]], nu + [z_box[index]]
            at.append(len(y) + len(z) + index)
    C, r, multipliers = torch.cat(rows), torch.cat(ends), torch.cat(nu)
    K = torch.cat([torch.cat([P, C.mT], 1), torch.cat([C, C.new_zeros(len(C), len(C))], 1)])
    point = torch.cat([x, multipliers])
    inverse = torch.linalg.pinv(K.detach(), rtol=1e-10, hermitian=True)
    point = point - inverse @ (K @ point - torch.cat([-q, r]))
    x = point[:n]
    where = torch.cat([*at, torch.zeros(0, dtype=torch.long)])
    nu_all = x.new_zeros(len(y) + len(z) + len(z_box)).index_put((where,), point[n:])
    y, z, z_box = nu_all.split([len(y), len(z), len(z_box)])
    s = data["h"] - data["G"] @ x if "G" in data else z
    return {"x": x, "y": y, "z": z, "z_box": z_box, "s": s, "objective": 0.5 * x @ P @ x + q @ x}


def finite_differences(
    data: Data, of: Callable[[Data], Sequence[Tensor]], names: Sequence[str], step: float = 1e-6
) -> Data:
    """Central differences of the weighted outputs of one program, all in one batch."""
    weights = weights_like(of(data))
    found = {}
    for name in names:
        t = data[name]
        moves = step * torch.eye(t.numel(), dtype=t.dtype).reshape(-1, *t.shape)
        ends = [of(data | {name: t + sign * moves}) for sign in (1, -1)]
        found[name] = sum(
            ((up - down) * w).reshape(t.numel(), -1).sum(1) / (2 * step)
            for up, down, w in zip(*ends, weights, strict=True)
        ).reshape(t.shape)
    return found


def assert_gradients_close(found: Data, wanted: Data, tolerance: float) -> None:
    """Errors relative to the largest entry of each gradient, if that is beyond 1."""
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        assert found[name].shape == want.shape, name
        if want.numel():
            error = (found[name].double() - want).abs().max() / want.abs().max().clamp(min=1)
            assert error <= tolerance, (name, float(error))
