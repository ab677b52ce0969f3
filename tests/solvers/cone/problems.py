"""Cone programs whose answer is known, for every solver and for the layer to get right.

Most are built around a solution: slack and multiplier are the two parts of a vector ``v`` with room
around it, so that they are strictly complementary, and ``b`` and ``q`` are what makes them, with
some ``x``, optimal. Each comes in float64 from a function without arguments, so that no test can
spoil it for another.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers.cone import (
    BoxCone,
    Cone,
    ConeProduct,
    ConeProgram,
    ExponentialCone,
    GeneralizedPowerCone,
    NonnegativeCone,
    PositiveSemidefiniteCone,
    PowerCone,
    SecondOrderCone,
    ZeroCone,
    svec,
)
from solvers.solution import Status
from tests.solvers.cone.cones import INF, dual_violation, violation

Data = dict[str, Tensor]
DRAWS = 100
# Least size of slacks, of multipliers, and of the distance to what changes their kind.
ROOM = 0.05


@dataclass(frozen=True)
class Known:
    """A program and what is known of its solution.

    Attributes:
        data: ``q, A, b``, and ``P`` if there is one.
        cones: The cones.
        x: The solution, if it is unique; or one of them.
        s: Its slack.
        z: Its multiplier, or one of them.
        unique: Whether ``x``, ``s`` and ``z`` are the only ones.
    """

    data: Data
    cones: tuple[Cone, ...]
    x: Tensor
    s: Tensor
    z: Tensor
    unique: bool = True

    @property
    def objective(self) -> Tensor:
        """The optimal value."""
        return objective(self.data, self.x)

    def program(self) -> ConeProgram:
        return program(self.data, self.cones)


def program(data: Data, cones: Sequence[Cone]) -> ConeProgram:
    return ConeProgram.of(data.get("P"), data["q"], data["A"], data["b"], cones)


def tensor(values: Any) -> Tensor:
    return (
        values.double() if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    )


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def objective(data: Data, x: Tensor) -> Tensor:
    value = (data["q"] * x).sum(-1)
    return value + 0.5 * (x * times(data["P"], x)).sum(-1) if "P" in data else value


def parts(cones: Sequence[Cone], v: Tensor) -> list[Tensor]:
    """The rows of each cone."""
    return list(v.split([cone.rows for cone in cones], -1))


def worst_violation(known: Known | ConeProgram, solution: Any) -> Tensor:
    """Largest violation of an optimality condition, by definition of the cones, ``(*batch)``.

    Relative to the terms of each; nothing here uses a projection.
    """
    p = known.program() if isinstance(known, Known) else known
    P = None if p.P is None else 0.5 * (p.P.values + p.P.values.mT)
    A, q, b, cones = p.A.values, p.q, p.b, p.cones.cones
    x, s, z = solution.x, solution.s, solution.z

    def size(*terms: Tensor) -> Tensor:
        return 1 + sum(t.abs().amax(-1) if t.shape[-1] else t.sum(-1) for t in terms)

    def largest(t: Tensor) -> Tensor:
        return t.abs().amax(-1) if t.shape[-1] else t.sum(-1)

    Px = torch.zeros_like(x) if P is None else times(P, x)
    Ax, pull = times(A, x), times(A.mT, z)
    found = [
        largest(Ax + s - b) / size(Ax, s, b.expand_as(s)),
        largest(Px + q + pull) / size(Px, pull, q.expand_as(x)),
        (s * z).sum(-1).abs() / size(s) / size(z),
        ((x * Px).sum(-1) + (q * x).sum(-1) + (b * z).sum(-1)).abs()
        / (1 + (q * x).sum(-1).abs() + (b * z).sum(-1).abs()),
    ]
    for cone, slack, multiplier in zip(cones, parts(cones, s), parts(cones, z), strict=True):
        if cone.rows:
            found.append(violation(cone, slack).clamp(min=0) / size(slack))
            found.append(dual_violation(cone, multiplier).clamp(min=0) / size(multiplier))
    return torch.stack(torch.broadcast_tensors(*found)).amax(0)


# --- planted solutions ----------------------------------------------------------------------------


def _kinds(cone: Cone, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of eigenvalues of the projection's derivative that are 0, 1 and in between."""
    values = cone.spectrum(v).values
    zero, one = (values < 1e-9).sum(-1), (values > 1 - 1e-9).sum(-1)
    return zero, one, cone.rows - zero - one


def _with_room(cone: Cone, v: Tensor, where: str) -> Tensor:
    """Which points are where they should be, and away from all kinks."""
    good = torch.ones_like(v[..., 0], dtype=torch.bool)
    if isinstance(cone, ZeroCone) or not cone.rows:
        return good
    s, values = cone.project(v), cone.spectrum(v).values
    slack, multiplier = s.norm(dim=-1) > ROOM, (s - v).norm(dim=-1) > ROOM
    _, _, between = _kinds(cone, v)
    linear = isinstance(cone, NonnegativeCone | BoxCone) or cone.rows < 3
    if where == "inside":
        good &= slack & ~multiplier
    elif where == "apex":
        good &= ~slack & multiplier
    elif cone.rows > 1:
        good &= slack & multiplier & (linear | ((between == 0) if where == "face" else between > 0))
    edges = (values > 1e-9) & (values < 1 - 1e-9) & ((values < ROOM) | (values > 1 - ROOM))
    good &= ~edges.any(-1)
    left = v[good]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(10, 1, cone.rows, generator=generator, dtype=torch.float64)
    near = _kinds(cone, left + 2 * ROOM * noise / noise.norm(dim=-1, keepdim=True))
    here = _kinds(cone, left)
    good[good.clone()] = (near[0] == here[0]).all(0) & (near[1] == here[1]).all(0)
    return good


def _points(cone: Cone, where: str, generator: torch.Generator, count: int) -> Tensor:
    """Points ``v`` ``(count, rows)`` of one cone."""
    found = torch.zeros(0, cone.rows, dtype=torch.float64)
    while len(found) < count:
        v = 1.5 * torch.randn(DRAWS, cone.rows, generator=generator, dtype=torch.float64)
        found = torch.cat([found, v[_with_room(cone, v, where)]])
    return found[:count]


def planted(
    seed: int,
    *cones: Cone,
    P: str | None = "definite",
    where: str = "boundary",
    batch: Sequence[int] = (),
    n: int | None = None,
) -> Known:
    """A program built around its solution, which is strictly complementary and unique.

    Args:
        seed: Of the random numbers.
        cones: The cones.
        P: "definite", "singular" or None; never symmetric.
        where: "boundary", "face", "inside" or "apex" of the cones.
        batch: Leading dimensions of everything.
        n: Number of variables; by default few enough that multipliers are unique, and where ``P``
            does not see to it, enough for ``x``.
    """
    known = _planted(seed, cones, P, where, tuple(batch), n)
    copies = {name: t.clone() for name, t in known.data.items()}
    return Known(copies, known.cones, known.x.clone(), known.s.clone(), known.z.clone())


@functools.cache
def _planted(
    seed: int,
    cones: tuple[Cone, ...],
    P: str | None,
    where: str,
    batch: tuple[int, ...],
    n: int | None,
) -> Known:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)

    count = torch.Size(batch).numel()
    points = [_points(cone, where, generator, count) for cone in cones]
    v = torch.cat(points, -1).reshape(*batch, -1)
    product = ConeProduct.of(cones)
    s = product.project(v)
    z = s - v
    if n is None:
        # The rows that x must obey, and those that have a say in it at all.
        kinds = [_kinds(c, t) for c, t in zip(cones, points, strict=True) if c.rows]
        fixed = int(sum(zero for zero, _, _ in kinds).max())
        seen = int(sum(zero + between for zero, _, between in kinds).min())
        n = {"definite": fixed + 1, "singular": max(2, fixed + 1)}.get(
            str(P), max(1, min(fixed + 1, seen))
        )
    x, A = normal(n), normal(product.rows, n) / n**0.5
    data = {"A": A, "b": times(A, x) + s, "q": -times(A.mT, z)}
    if P is not None:
        F = normal(n, n if P == "definite" else max(1, n - 1))
        ridge = 0.5 if P == "definite" else 0.0
        full = F @ F.mT / n + ridge * torch.eye(n, dtype=torch.float64)
        skew = normal(n, n)
        data = {"P": full + skew - skew.mT} | data
        data["q"] = data["q"] - times(full, x)
    return Known(data, cones, x, s, z)


# With a bounded, two half-bounded and a fixed row.
BOX = BoxCone((-1.0, 0.5, -INF, 2.0), (1.0, INF, 3.0, 2.0))
KINDS: dict[str, tuple[Cone, ...]] = {
    "zero": (ZeroCone(3),),
    "nonnegative": (NonnegativeCone(5),),
    "box": (BOX,),
    "second-order": (SecondOrderCone(4),),
    "second-order of two rows": (SecondOrderCone(2),),
    "semidefinite": (PositiveSemidefiniteCone(3),),
    "exponential": (ExponentialCone(),),
    "dual exponential": (ExponentialCone(dual=True),),
    "power": (PowerCone(0.3),),
    "dual power": (PowerCone(0.6, dual=True),),
    "generalised power": (GeneralizedPowerCone((0.2, 0.3, 0.5), dim=2),),
    "dual generalised power": (GeneralizedPowerCone((0.4, 0.6), dim=2, dual=True),),
}
# The kinds that have derivatives of every order.
SMOOTH = ("zero", "nonnegative", "box", "second-order", "second-order of two rows")
SMALL_BOX = BoxCone((-1.0,), (1.0,))
MIXTURES: dict[str, tuple[Cone, ...]] = {
    "linear": (NonnegativeCone(2), ZeroCone(1), NonnegativeCone(2)),
    "second-order and linear": (SecondOrderCone(3), ZeroCone(1), NonnegativeCone(2), BOX),
    "equal cones": (
        SecondOrderCone(3), NonnegativeCone(1), SecondOrderCone(3), ExponentialCone(),
        ExponentialCone(),
    ),
    "all that SCS has": (
        ZeroCone(1), PowerCone(0.3), SecondOrderCone(3), BOX, ExponentialCone(dual=True),
        PositiveSemidefiniteCone(2), NonnegativeCone(2), ExponentialCone(),
        PowerCone(0.5, dual=True),
    ),
    "all kinds": (
        ExponentialCone(), GeneralizedPowerCone((0.5, 0.5), dim=2), ZeroCone(1),
        PositiveSemidefiniteCone(2), NonnegativeCone(2), PowerCone(0.3), SecondOrderCone(3),
        SMALL_BOX, BOX, ExponentialCone(dual=True), PowerCone(0.5, dual=True),
        GeneralizedPowerCone((0.3, 0.7), dim=1, dual=True),
    ),
}  # fmt: skip
ELSEWHERE: dict[str, tuple[Cone, ...]] = {
    "inside": (SecondOrderCone(3), PositiveSemidefiniteCone(2), ExponentialCone(), PowerCone(0.4),
               SMALL_BOX),
    "apex": (SecondOrderCone(3), PositiveSemidefiniteCone(2), ExponentialCone(), PowerCone(0.4),
             SMALL_BOX),
    "face": (ExponentialCone(),),
}  # fmt: skip


def _planted_programs() -> dict[str, Callable[[], Known]]:
    found: dict[str, Callable[[], Known]] = {}
    for name, cones in (KINDS | MIXTURES).items():
        for P in ("definite", "singular", None):
            if P is not None or name != "zero":  # where any feasible point would do
                seed = 3 if name == "semidefinite" else 1  # the others are badly conditioned
                found[f"{name}, P {P}"] = functools.partial(planted, seed, *cones, P=P)
    for where, cones in ELSEWHERE.items():
        for cone in cones:
            kind = type(cone).__name__
            found[f"{where} of {kind}"] = functools.partial(planted, 2, cone, where=where)
    cones = MIXTURES["all kinds"]
    found["a batch, all kinds"] = functools.partial(planted, 3, *cones, batch=(2, 3), n=35)
    return found


# One solution each, with a derivative.
PLANTED = _planted_programs()

# --- degenerate programs: solutions that are not unique, or have no derivative --------------------


def known(
    cones: Sequence[Cone], x: Any, z: Any, *, unique: bool = False, **data: Any
) -> Callable[[], Known]:
    """A function that makes the program from lists."""

    def make() -> Known:
        tensors = {name: tensor(value) for name, value in data.items()}
        point = tensor(x)
        s = tensors["b"] - times(tensors["A"], point)
        return Known(tensors, tuple(cones), point, s, tensor(z), unique)

    return make


EYE = [[1, 0], [0, 1]]
DISC = [[0, 0], [-1, 0], [0, -1]]  # with b = (1, 0, 0): the point x in the unit disc
DEGENERATE: dict[str, Callable[[], Known]] = {
    "dependent equations": known(
        [ZeroCone(2)], [0.5, 0.5], [-0.5, 0], P=EYE, q=[0, 0], A=[[1, 1], [2, 2]], b=[1, 2]
    ),
    "many solutions of a linear program": known(
        [NonnegativeCone(3)], [0.5, 0.5], [1, 0, 0],
        q=[-1, -1], A=[[1, 1], [-1, 0], [0, -1]], b=[1, 0, 0],
    ),
    "weakly active row": known(
        [NonnegativeCone(1)], [1, 1], [0], P=EYE, q=[-1, -1], A=[[1, 1]], b=[2], unique=True
    ),
    "weakly active disc": known(
        [SecondOrderCone(3)], [0.6, 0.8], [0, 0, 0], P=EYE, q=[-0.6, -0.8], A=DISC, b=[1, 0, 0],
        unique=True,
    ),
    "two equal discs": known(
        [SecondOrderCone(3)] * 2, [0.6, 0.8], [2.5, -1.5, -2, 2.5, -1.5, -2],
        q=[-3, -4], A=DISC * 2, b=[1, 0, 0] * 2,
    ),
    "a ray of solutions at the apex": known(  # t + x over |(x, y)| <= t
        [SecondOrderCone(3)], [0, 0, 0], [1, 1, 0],
        q=[1, 1, 0], A=[[-1, 0, 0], [0, -1, 0], [0, 0, -1]], b=[0, 0, 0],
    ),
    "a semidefinite matrix with a zero on both sides": known(  # the nearest to diag(1, 0, -1)
        [PositiveSemidefiniteCone(3)], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1],
        P=torch.eye(6), q=[-1, 0, 0, 0, 0, 1], A=-torch.eye(6), b=[0] * 6,
        unique=True,
    ),
    "a box cone at its apex": known(
        [BoxCone((-1.0,), (1.0,))], [0, 0], [0, 0], P=EYE, q=[0, 0], A=[[-1, 0], [0, -1]],
        b=[0, 0], unique=True,
    ),
}  # fmt: skip

# --- other shapes and scales ----------------------------------------------------------------------

UNUSUAL: dict[str, Callable[[], Known]] = {
    "no cones": known(
        [], [1, -2], [], P=EYE, q=[-1, 2], A=torch.zeros(0, 2), b=[],
        unique=True,
    ),
    "one variable and one row": known(
        [NonnegativeCone(1)], [1], [1], P=[[1]], q=[-2], A=[[1]], b=[1], unique=True
    ),
    "cones without rows": known(
        [ZeroCone(0), NonnegativeCone(1), NonnegativeCone(0)], [1], [1],
        P=[[1]], q=[-2], A=[[1]], b=[1], unique=True,
    ),
    "a box cone without a box": known(
        [BoxCone((), ())], [1], [1], P=[[1]], q=[-2], A=[[1]], b=[1], unique=True
    ),
    "P of zeros": known(
        [NonnegativeCone(2)], [1, 2], [1, 1], P=[[0, 0], [0, 0]], q=[-1, -1], A=EYE, b=[1, 2],
        unique=True,
    ),
    "the furthest point of a disc": known(
        [SecondOrderCone(3)], [0.6, 0.8], [5, -3, -4], q=[-3, -4], A=DISC, b=[1, 0, 0],
        unique=True,
    ),
    "a column of zeros in A": known(
        [ZeroCone(1)], [2, 1], [-2], P=EYE, q=[0, -1], A=[[1, 0]], b=[2], unique=True
    ),
    "rows of very different size": known(
        [NonnegativeCone(1), ZeroCone(1)], [1e3, 1e-3], [1e3, 1e3],
        P=EYE, q=[-2e3, -1e-3 - 1e3], A=[[1, 0], [0, 1]], b=[1e3, 1e-3], unique=True,
    ),
}  # fmt: skip

# --- no solution ----------------------------------------------------------------------------------

# A point of the interior, and one of the dual cone's.
INTERIORS: list[tuple[Cone, list[float], list[float]]] = [
    (ZeroCone(2), [0, 0], [1, -1]),
    (NonnegativeCone(2), [1, 2], [2, 1]),
    (BoxCone((-1.0, 0.0), (1.0, INF)), [1, 0.5, 1], [3, 1, 1]),
    (SecondOrderCone(3), [2, 1, -1], [3, 0, 1]),
    (PositiveSemidefiniteCone(2), svec(tensor([[2, 1], [1, 2]])).tolist(), [1, 0, 1]),
    (ExponentialCone(), [-0.5, 1, 2], [-1, 0.5, 2]),
    (ExponentialCone(dual=True), [-1, 0.5, 2], [-0.5, 1, 2]),
    (PowerCone(0.3), [1, 1, 0.2], [1, 2, -0.2]),
    (PowerCone(0.3, dual=True), [1, 2, -0.2], [1, 1, 0.2]),
    (GeneralizedPowerCone((0.4, 0.6), dim=2), [1, 1, 0.2, 0.3], [1, 2, -0.2, 0]),
    (GeneralizedPowerCone((0.4, 0.6), dim=2, dual=True), [1, 2, -0.2, 0], [1, 1, 0.2, 0.3]),
]


def infeasible(cone: Cone, dual: list[float]) -> ConeProgram:
    """A multiplier ``y`` of the dual's interior has ``A'y = 0`` and ``b'y < 0``."""
    y = tensor(dual)
    rows = y.shape[0]
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    A = A - torch.outer(y, y @ A) / (y @ y)
    return program({"P": tensor(EYE), "q": tensor([1, -1]), "A": A, "b": -y / (y @ y)}, [cone])


def unbounded(cone: Cone, inside: list[float]) -> ConeProgram:
    """A direction ``d`` has ``-A d`` inside of the cone, ``P d = 0`` and ``q'd < 0``."""
    s, d = tensor(inside), tensor([1, 2])
    A = -torch.outer(s, d) / (d @ d)
    normal = tensor([2, -1])
    P = torch.outer(normal, normal)
    return program({"P": P, "q": -d, "A": A, "b": s}, [cone])


def failing(failure: str) -> tuple[Data, list[Cone], Status]:
    """A batch of three programs, the second of which fails."""
    data = {
        "P": tensor(EYE).repeat(3, 1, 1), "q": tensor([[-3, -4], [-2, 1], [0.1, 0.2]]),
        "A": tensor(DISC + [[1, 1]]).repeat(3, 1, 1), "b": tensor([1, 0, 0, 5]).repeat(3, 1),
    }  # fmt: skip
    cones, status = [SecondOrderCone(3), NonnegativeCone(1)], Status.NUMERICAL_ERROR
    if failure == "infeasible":
        data["b"][1, 3], status = -5, Status.PRIMAL_INFEASIBLE
    elif failure == "unbounded":
        data["P"][1], data["A"][1], status = 0, 0, Status.DUAL_INFEASIBLE
    else:
        data[failure][1].view(-1)[0] = torch.nan
    return data, cones, status


FAILURES = ("infeasible", "unbounded", "P", "q", "A", "b")
