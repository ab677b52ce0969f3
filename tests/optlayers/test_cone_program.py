"""The cone program layer: gradients against other means, failures, refusals, and routes."""

import re
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev

import optlayers as ol
from optlayers.solvers import SCS, ActiveSet, Clarabel, InteriorPoint
from solvers.cone import smat, svec
from solvers.solution import SolverError, Status
from tests.optlayers.oracles import (
    assert_gradients_close,
    finite_differences,
    gradients,
    weighted,
    weights_like,
)
from tests.solvers.cone.problems import (
    BOX,
    DEGENERATE,
    DISC,
    EYE,
    FAILURES,
    KINDS,
    MIXTURES,
    PLANTED,
    SMALL_BOX,
    SMOOTH,
    UNUSUAL,
    Data,
    Known,
    failing,
    parts,
    planted,
    tensor,
    times,
)

# Torch says so once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
OUTPUTS = ("x", "s", "z", "objective")
CORE_NDIM = {"P": 2, "q": 1, "A": 2, "b": 1}
POLICIES = ["warn", "ignore"]
CURVED = [name for name in KINDS if name not in SMOOTH]


def solve(data: Data, cones: Sequence[object], **policy: object) -> ol.Solution:
    return ol.cone_program(**({"P": None} | data), cones=cones, **policy)


def layer(
    cones: Sequence[object], *outputs: str, **policy: object
) -> Callable[[Data], list[Tensor]]:
    """Outputs of the layer as a function of the data."""
    # A solver of cone programs in any case: what goes to qp has a section of its own.
    policy = {"solver": Clarabel()} | policy

    def call(data: Data) -> list[Tensor]:
        solution = solve(data, cones, **policy)
        return [getattr(solution, name) for name in outputs]

    return call


def leaves_of(data: Data) -> Data:
    return {name: t.clone().requires_grad_() for name, t in data.items()}


# --- an independent oracle: the optimality conditions in other words ------------------------------


def surface(cone: object, u: Tensor) -> Tensor:
    """A function that is 0 on the curved boundary of the primal cone, and smooth around it."""
    if isinstance(cone, ol.ExponentialCone):
        x, y, z = u.unbind()
        return y * torch.log(z / y) - x
    if isinstance(cone, ol.PowerCone):
        alphas, w = tensor([cone.alpha, 1 - cone.alpha]), u[2:]
    else:
        alphas, w = tensor(cone.alphas), u[len(cone.alphas) :]
    return (alphas * torch.log(u[: len(alphas)])).sum() - torch.log(w.norm())


def conditions(cone: object, s: Tensor, z: Tensor, scale: Tensor, at: Tensor) -> Tensor:
    """As many equations as there are rows, and one more for the scalar ``scale``.

    Nothing here is a projection: symmetric cones have their product, the others the normal of the
    surface on which the slack, or for dual cones the multiplier, lies.

    Args:
        cone: The cone.
        s: The slack.
        z: The multiplier.
        scale: A scalar that some cones need.
        at: Slack and multiplier of the solution ``(2, rows)``, which say which rows are active.
    """
    unused = scale[None]
    if isinstance(cone, ol.ZeroCone):
        return torch.cat([s, unused])
    if not at[1].any():  # inside
        return torch.cat([z, unused])
    if not at[0].any():  # at the apex
        return torch.cat([s, unused])
    if isinstance(cone, ol.NonnegativeCone):
        return torch.cat([torch.where(at[0] > at[1], z, s), unused])
    if isinstance(cone, ol.BoxCone):
        # The slack obeys the rows that hold, the multiplier is a combination of them.
        rows, eye = [torch.eye(cone.rows, dtype=s.dtype)[:1]], torch.eye(cone.rows - 1).double()
        lower, upper = tensor(cone.lower), tensor(cone.upper)
        for ends, sign in ((lower, 1.0), (upper, -1.0)):
            kept = ends.isfinite() & ((lower < upper) | (sign > 0))
            rows.append(sign * torch.cat([-ends[:, None], eye], 1)[kept])
        T = torch.cat(rows)
        active = T[(T @ at[0]).abs() < 1e-9]
        _, _, Vh = torch.linalg.svd(active)
        rank = int(torch.linalg.matrix_rank(active))  # at the apex they depend on each other
        return torch.cat([Vh[:rank] @ s, Vh[rank:] @ z, unused])
    if isinstance(cone, ol.SecondOrderCone):
        return torch.cat([(s @ z)[None], s[0] * z[1:] + z[0] * s[1:], unused])
    if isinstance(cone, ol.PositiveSemidefiniteCone):
        S, Z = smat(s), smat(z)
        return torch.cat([svec(S @ Z + Z @ S), unused])
    on, normal = (z, s) if cone.dual else (s, z)
    if isinstance(cone, ol.ExponentialCone) and not cone.dual and at[0][1] == 0:  # on the face
        return torch.cat([torch.stack([z[0], s[1], z[2]]), unused])
    slope = jacrev(lambda u: surface(cone, u))(on)
    return torch.cat([normal - scale * slope, surface(cone, on)[None]])


def oracle(
    cones: Sequence[object], solution: ol.Solution, *outputs: str
) -> Callable[[Data], list[Tensor]]:
    """Outputs of one Newton step on the conditions, whose inverse Jacobian is held fixed.

    Its derivative is the implicit function theorem and nothing else.
    """

    def one(data: Data, x: Tensor, s: Tensor, z: Tensor) -> Data:
        n, m, k = len(x), len(s), len(cones)
        at = [torch.stack(pair) for pair in zip(parts(cones, s), parts(cones, z), strict=True)]
        q, A, b = data["q"], data["A"], data["b"]
        P = data.get("P", torch.zeros(n, n, dtype=q.dtype))
        P = 0.5 * (P + P.mT)

        def residual(w: Tensor, P: Tensor, q: Tensor, A: Tensor, b: Tensor) -> Tensor:
            x, s, z, scales = w.split([n, m, m, k])
            pieces = zip(cones, parts(cones, s), parts(cones, z), scales, at, strict=True)
            return torch.cat(
                [P @ x + q + A.mT @ z, A @ x + s - b, *(conditions(*piece) for piece in pieces)]
            )

        scales = []
        for cone, (slack, multiplier) in zip(cones, at, strict=True):
            scale = tensor(0.0)
            if isinstance(cone, ol.ExponentialCone | ol.PowerCone | ol.GeneralizedPowerCone):
                on, normal = (multiplier, slack) if cone.dual else (slack, multiplier)
                face = isinstance(cone, ol.ExponentialCone) and not cone.dual and slack[1] == 0
                if on.any() and normal.any() and not face:
                    slope = jacrev(lambda u, cone=cone: surface(cone, u))(on)
                    scale = (slope @ normal) / (slope @ slope)
            scales.append(scale)
        w = torch.cat([x, s, z, torch.stack(scales) if scales else x[:0]])
        fixed = [t.detach() for t in (P, q, A, b)]
        assert residual(w, *fixed).abs().max() < 1e-7
        J = jacrev(residual)(w, *fixed)
        inverse = torch.linalg.pinv(J, rtol=1e-11)
        assert torch.linalg.matrix_rank(J, rtol=1e-11) == len(w)
        x, s, z, _ = (w - inverse @ residual(w, P, q, A, b)).split([n, m, m, k])
        return {"x": x, "s": s, "z": z, "objective": 0.5 * x @ P @ x + q @ x}

    def step(data: Data) -> list[Tensor]:
        shape = solution.status.shape
        full = {
            name: t.expand(*shape, *t.shape[t.ndim - CORE_NDIM[name] :]) for name, t in data.items()
        }
        found = [
            one(
                {name: t[i] for name, t in full.items()},
                *(getattr(solution, name)[i].detach() for name in ("x", "s", "z")),
            )
            for i in np.ndindex(*shape)
        ]
        return [
            torch.stack([f[name] for f in found]).reshape((*shape, *found[0][name].shape))
            for name in outputs
        ]

    return step


def assert_gradients_follow_from_the_conditions(name: str, *outputs: str) -> None:
    known = PLANTED[name]()
    solution = solve(known.data, known.cones, solver=Clarabel())
    wanted = gradients(known.data, oracle(known.cones, solution, *outputs))
    found = gradients(known.data, layer(known.cones, *outputs))
    assert_gradients_close(found, wanted, 1e-8)


@pytest.mark.parametrize("name", PLANTED)
def test_gradients_are_those_of_the_conditions(name: str) -> None:
    assert_gradients_follow_from_the_conditions(name, *OUTPUTS)


@pytest.mark.parametrize("output", OUTPUTS)
def test_gradients_of_each_output_are_those_of_the_conditions(output: str) -> None:
    # The other outputs have no cotangent then: other terms of the same formulas.
    assert_gradients_follow_from_the_conditions("all kinds, P definite", output)


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", PLANTED)
def test_gradients_of_each_output_of_each_program(name: str, output: str) -> None:
    assert_gradients_follow_from_the_conditions(name, output)


SINGLE = [name for name in PLANTED if name != "a batch, all kinds"]


def directional_differences(
    data: Data, of: Callable[[Data], Sequence[Tensor]], names: Sequence[str], count: int = 4
) -> tuple[list[float], list[float]]:
    """Slopes of the weighted outputs along random directions, by differences and by gradients."""
    generator = torch.Generator().manual_seed(0)
    weights, step, found = weights_like(of(data)), 1e-6, gradients(data, of, names)
    by_differences, by_gradients = [], []
    for name in names:
        t = data[name]
        moves = torch.randn(count, *t.shape, generator=generator, dtype=t.dtype)
        ends = zip(*(of(data | {name: t + sign * step * moves}) for sign in (1, -1)), strict=True)
        slopes = [
            ((up - down) * w).reshape(count, -1).sum(1) / (2 * step)
            for (up, down), w in zip(ends, weights, strict=True)
        ]
        by_differences += torch.stack(slopes).sum(0).tolist()
        by_gradients += (found[name] * moves).reshape(count, -1).sum(1).tolist()
    return by_differences, by_gradients


def movable(name: str, known: Known) -> list[str]:
    """The data that may move; a step in a singular P would make it indefinite."""
    return [key for key in known.data if key != "P" or "singular" not in name]


@pytest.mark.parametrize("name", [n for n in SINGLE if "P singular" not in n and "P None" not in n])
def test_gradients_are_finite_differences(name: str) -> None:
    known = PLANTED[name]()
    evaluate = layer(known.cones, *OUTPUTS)
    wanted, found = directional_differences(known.data, evaluate, movable(name, known))
    scale = max(1.0, *map(abs, wanted))
    assert max(abs(w - f) for w, f in zip(wanted, found, strict=True)) <= 1e-5 * scale


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", SINGLE)
def test_gradients_of_each_output_are_finite_differences(name: str, output: str) -> None:
    known = PLANTED[name]()
    evaluate, names = layer(known.cones, output), movable(name, known)
    wanted = finite_differences(known.data, evaluate, names)
    assert_gradients_close(gradients(known.data, evaluate, names), wanted, 1e-5)


@pytest.mark.parametrize("name", ["all that SCS has, P definite", "second-order, P None"])
def test_gradients_of_another_solver(name: str) -> None:
    known = PLANTED[name]()
    one, other = (
        gradients(known.data, layer(known.cones, *OUTPUTS, solver=solver))
        for solver in (Clarabel(), SCS())
    )
    assert_gradients_close(one, other, 1e-8)


@pytest.mark.parametrize("name", ["all kinds, P definite", "all kinds, P None"])
def test_forward_mode_is_the_transpose(name: str) -> None:
    known = PLANTED[name]()
    names = list(known.data)
    evaluate = layer(known.cones, *OUTPUTS)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(evaluate(dict(zip(names, tensors, strict=True))))

    point = tuple(known.data.values())
    for forward, backward in zip(
        jacfwd(function, tuple(range(len(names))))(*point),
        jacrev(function, tuple(range(len(names))))(*point),
        strict=True,
    ):
        for one, other in zip(forward, backward, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_gradient_of_the_objective_is_the_envelope_theorem() -> None:
    known = PLANTED["all kinds, P definite"]()
    data = leaves_of(known.data)
    solve(data, known.cones).objective.backward()
    x, z = known.x, known.z
    wanted = {"P": 0.5 * torch.outer(x, x), "q": x, "A": torch.outer(z, x), "b": -z}
    for name, t in data.items():
        torch.testing.assert_close(t.grad, wanted[name], rtol=1e-9, atol=1e-9)


def test_only_what_is_asked_for_has_a_gradient() -> None:
    known = PLANTED["second-order and linear, P definite"]()
    together = gradients(known.data, layer(known.cones, *OUTPUTS))
    for name, t in known.data.items():
        leaf = t.clone().requires_grad_()
        weighted(layer(known.cones, *OUTPUTS)(known.data | {name: leaf})).backward()
        torch.testing.assert_close(leaf.grad, together[name], rtol=0, atol=1e-12)
    solution = solve(known.data, known.cones)
    assert not any(getattr(solution, name).requires_grad for name in OUTPUTS)
    solution = solve(leaves_of(known.data), known.cones)
    for t in (solution.status, solution.iterations, *solution.residuals):
        assert not t.requires_grad


# --- second derivatives ---------------------------------------------------------------------------


def second_order(name: str) -> tuple[Known, Callable[..., tuple[Tensor, ...]], tuple[Tensor, ...]]:
    known = PLANTED[name]()
    names = list(known.data)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(known.cones, *OUTPUTS)(dict(zip(names, tensors, strict=True))))

    return known, function, tuple(leaves_of(known.data).values())


@pytest.mark.parametrize("name", [f"{kind}, P definite" for kind in SMOOTH[:-1]])
def test_second_derivatives(name: str) -> None:
    _, function, leaves = second_order(name)
    assert gradcheck(function, leaves, atol=1e-6, fast_mode=True)
    assert gradgradcheck(function, leaves, atol=1e-5, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}, P definite" for kind in SMOOTH),
        "box, P None",
        "second-order, P None",
        "linear, P definite",
        "linear, P None",
        "second-order and linear, P definite",
    ],
)
def test_all_second_derivatives(name: str) -> None:
    _, function, leaves = second_order(name)
    torch.manual_seed(0)  # the weights of the check
    # Entries reach thousands, and differences err by 1e-8 of that.
    assert gradgradcheck(function, leaves, atol=1e-4)


NO_SECOND = r"second derivatives exist for .*; got .*\. Use first derivatives only"


@pytest.mark.parametrize("kind", CURVED)
def test_second_derivatives_that_do_not_exist_are_refused(kind: str) -> None:
    known = planted(1, *KINDS[kind])
    q = known.data["q"]

    def value(q: Tensor) -> Tensor:
        return solve(known.data | {"q": q}, known.cones).x.pow(3).sum()

    leaf = q.clone().requires_grad_()
    (first,) = torch.autograd.grad(value(leaf), leaf, create_graph=True)
    assert first.isfinite().all()
    with pytest.raises(NotImplementedError, match=NO_SECOND):
        first.sum().backward()
    for transform in (
        hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacrev(f)),
        lambda f: jacrev(jacfwd(f)), lambda f: jacfwd(jacfwd(f)),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=NO_SECOND):
            transform(value)(q)
    assert jacrev(value)(q).isfinite().all()


def test_second_derivatives_of_the_objective_alone_need_only_first_ones() -> None:
    """The gradient of the value is x itself, so that its Hessian is a first derivative of x."""
    known = planted(1, *KINDS["exponential"])
    q = known.data["q"]

    def solution(q: Tensor) -> ol.Solution:
        return solve(known.data | {"q": q}, known.cones)

    found = jacrev(jacrev(lambda q: solution(q).objective))(q)
    torch.testing.assert_close(found, jacrev(lambda q: solution(q).x)(q), rtol=1e-8, atol=1e-8)


# --- batches --------------------------------------------------------------------------------------


def shifted(kind: str, lead: dict[str, tuple[int, ...]]) -> tuple[Data, Sequence[object]]:
    """Programs near a planted one, with different leading dimensions of each tensor."""
    cones = (KINDS | MIXTURES)[kind]
    known = planted(4, *cones, n=sum(cone.rows for cone in cones))
    generator = torch.Generator().manual_seed(0)
    data = {}
    for name, t in known.data.items():
        noise = torch.randn(*lead.get(name, ()), *t.shape, generator=generator, dtype=t.dtype)
        data[name] = t + (0.0 if name == "P" else 0.005) * noise
    return data, cones


LEADS = {
    "only q": {"q": (3,)},
    "only A": {"A": (3,)},
    "only b": {"b": (3,)},
    "only P": {"P": (3,)},
    "all but q": {"P": (2,), "A": (2,), "b": (2,)},
    "ones": {"P": (1, 2), "q": (3, 1), "A": (1, 1), "b": (2,)},
    "ranks": {"q": (2, 1, 3), "b": (2, 1, 1)},
    "columns": {"A": (2,), "q": (3, 2), "b": (3, 1)},
}


@pytest.mark.parametrize(
    ("lead", "kind"),
    [
        *((lead, "second-order") for lead in LEADS),
        ("ones", "all kinds"),
    ],
)
def test_shared_tensors_get_the_sum_of_gradients(lead: str, kind: str) -> None:
    data, cones = shifted(kind, LEADS[lead])
    evaluate = layer(cones, *OUTPUTS)
    shape = torch.broadcast_shapes(*LEADS[lead].values())
    values = evaluate(data)
    assert values[0].shape[:-1] == shape
    found = gradients(data, evaluate)

    def loop(data: Data) -> list[Tensor]:
        full = {
            name: t.expand(*shape, *t.shape[t.ndim - CORE_NDIM[name] :]) for name, t in data.items()
        }
        each = [evaluate({name: t[i] for name, t in full.items()}) for i in np.ndindex(*shape)]
        return [
            torch.stack(part).reshape(*shape, *part[0].shape) for part in zip(*each, strict=True)
        ]

    for one, other in zip(values, loop(data), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    wanted = gradients(data, loop)
    for name, t in data.items():
        assert found[name].shape == t.shape
    assert_gradients_close(found, wanted, 1e-9)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_a_batch_of_none(batch: tuple[int, ...]) -> None:
    for name in ("second-order and linear, P definite", "semidefinite, P None", "linear, P None"):
        known = PLANTED[name]()
        data = known.data | {"q": known.data["q"].expand(*batch, -1)}
        data = leaves_of(data)
        solution = solve(data, known.cones)
        assert solution.x.shape == data["q"].shape
        assert solution.z.shape == (*batch, len(known.z))
        weighted([getattr(solution, output) for output in OUTPUTS]).backward()
        for key, t in data.items():
            assert torch.equal(t.grad, torch.zeros_like(t)), key


@pytest.mark.parametrize("adjoint", [None, ol.Smoothed(0.1)], ids=["exact", "smoothed"])
def test_float32_in_and_out(adjoint: object) -> None:
    known = PLANTED["second-order, P definite"]()
    data = {name: t.float() for name, t in known.data.items()}
    leaves = leaves_of(data)
    solution = solve(leaves, known.cones, adjoint=adjoint)
    for t in (*[getattr(solution, name) for name in OUTPUTS], *solution.residuals):
        assert t.dtype == torch.float32
    weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    wanted = gradients(
        {name: t.double() for name, t in data.items()},
        layer(known.cones, *OUTPUTS, adjoint=adjoint),
    )
    for name, t in leaves.items():
        assert t.grad.dtype == torch.float32
        torch.testing.assert_close(t.grad, wanted[name].float(), rtol=1e-4, atol=1e-4)


def test_mixed_precision_gives_the_wider_type() -> None:
    known = PLANTED["second-order, P definite"]()
    leaves = leaves_of(known.data | {"A": known.data["A"].float()})
    solution = solve(leaves, known.cones)
    assert solution.x.dtype == torch.float64
    solution.x.sum().backward()
    assert leaves["A"].grad.dtype == torch.float32
    assert leaves["q"].grad.dtype == torch.float64


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_programs_have_gradients(name: str) -> None:
    known = UNUSUAL[name]()
    solution = solve(known.data, known.cones)
    torch.testing.assert_close(solution.x, known.x, rtol=1e-8, atol=1e-8)
    evaluate = layer(known.cones, *OUTPUTS)
    names = [key for key in known.data if known.data[key].numel()]
    if name == "P of zeros":
        names.remove("P")
    wanted = finite_differences(known.data, evaluate, names)
    assert_gradients_close(gradients(known.data, evaluate, names), wanted, 1e-5)
    no_rows = gradients(known.data, evaluate)
    assert all(no_rows[key].shape == t.shape for key, t in known.data.items())


# --- sparse matrices ------------------------------------------------------------------------------


def with_zeros(kind: str, batch: tuple[int, ...] = ()) -> Known:
    """A planted program some of whose entries became zeros, around the same solution."""
    cones = (KINDS | MIXTURES)[kind]
    n = sum(cone.rows for cone in cones)
    known = planted(6, *cones, n=n, batch=batch)
    generator = torch.Generator().manual_seed(0)
    data = known.data
    mask = (torch.rand(n, n, generator=generator) < 0.5) | torch.eye(n, dtype=torch.bool)
    A = data["A"] * mask
    band = (torch.arange(n)[:, None] - torch.arange(n)).abs() <= 1
    P = data["P"] * band + 3 * torch.eye(n, dtype=torch.float64)
    data |= {"A": A, "P": P, "b": times(A, known.x) + known.s}
    data["q"] = -times(0.5 * (P + P.mT), known.x) - times(A.mT, known.z)
    return known


def csr(t: Tensor) -> Tensor:
    mask = (t != 0).reshape(-1, *t.shape[-2:]).any(0)
    rows, columns = mask.nonzero().T
    crow = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    indices = [i.expand(*t.shape[:-2], -1).contiguous() for i in (crow, columns)]
    return torch.sparse_csr_tensor(*indices, t[..., rows, columns], t.shape, check_invariants=True)


@pytest.mark.parametrize("names", [("A",), ("P",), ("P", "A")], ids="".join)
@pytest.mark.parametrize("kind", ["all kinds", "second-order and linear", "linear"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_sparse_matrices_as_dense_ones(
    kind: str, names: tuple[str, ...], batch: tuple[int, ...]
) -> None:
    known = with_zeros(kind, batch)
    dense, given = known.data, {k: csr(t) if k in names else t for k, t in known.data.items()}
    one, other = solve(given, known.cones), solve(dense, known.cones)
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(one.x, known.x, rtol=1e-7, atol=1e-7)
    found = gradients(given, layer(known.cones, *OUTPUTS))
    wanted = gradients(dense, layer(known.cones, *OUTPUTS))
    for name in names:
        g, t = found[name], given[name]
        assert g.layout == torch.sparse_csr
        assert torch.equal(g.crow_indices(), t.crow_indices())
        assert torch.equal(g.col_indices(), t.col_indices())
        mask = (dense[name] != 0).reshape(-1, *dense[name].shape[-2:]).any(0)
        rows, columns = mask.nonzero().T
        found[name], wanted[name] = g.values(), wanted[name][..., rows, columns]
    assert_gradients_close(found, wanted, 1e-7)


def test_sparse_programs_are_not_for_solvers_of_quadratic_programs() -> None:
    known = with_zeros("linear")
    given = known.data | {"A": csr(known.data["A"])}
    with pytest.raises(TypeError, match=r"got a sparse program with cones .*Clarabel\(\)"):
        solve(given, known.cones, solver=ActiveSet())


def test_sparse_batches_need_one_pattern() -> None:
    indices = torch.tensor([[0, 1, 2]] * 2), torch.tensor([[0, 1], [1, 0]])
    A = torch.sparse_csr_tensor(
        *indices, torch.ones(2, 2).double(), (2, 2, 2), check_invariants=True
    )
    with pytest.raises(ValueError, match=r"cone_program: A: .* one pattern; got .* explicit zeros"):
        ol.cone_program(None, torch.zeros(2).double(), A, tensor([1, 1]), [ol.NonnegativeCone(2)])


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["infeasible", "unbounded"])
def test_raises_by_default(failure: str) -> None:
    data, cones, status = failing(failure)
    with pytest.raises(SolverError, match=f"cone_program: of 3 problems 1 {status.name}") as caught:
        solve(data, cones)
    text = str(caught.value)
    assert status.message in text
    assert "elements 1)" in text
    assert "on_failure='ignore'" in text
    solution = caught.value.solution
    assert isinstance(solution, ol.Solution)
    assert solution.status.tolist() == [Status.SOLVED, status, Status.SOLVED]
    alone, _, _ = failing("infeasible")
    wanted = solve({name: t[0] for name, t in alone.items()}, cones)
    assert torch.equal(solution.x[0], wanted.x)
    assert torch.equal(solution.z[0], wanted.z)


@pytest.mark.parametrize("name", ["P", "q", "A", "b"])
def test_nan_is_refused_by_name(name: str) -> None:
    data, cones, _ = failing(name)
    pattern = f"cone_program: {name} must be finite; got 1 entries .* on_failure='ignore'"
    with pytest.raises(ValueError, match=pattern):
        solve(data, cones)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("failure", FAILURES)
def test_failed_elements_are_nan_with_zero_gradients(failure: str, policy: str) -> None:
    data, cones, status = failing(failure)
    good, _, _ = failing("infeasible")
    for name in good:
        good[name][1] = good[name][0]
    wanted = solve(good, cones)
    wanted_gradients = gradients(good, layer(cones, *OUTPUTS))
    leaves = leaves_of(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = solve(leaves, cones, on_failure=policy)
        weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    expected = [ol.SolverWarning] if policy == "warn" else []
    assert [w.category for w in caught] == expected
    if caught:
        assert f"1 {status.name}" in str(caught[0].message)
        assert "NaN" in str(caught[0].message)
        assert caught[0].filename == __file__
    assert solution.status.tolist() == [Status.SOLVED, status, Status.SOLVED]
    for name in OUTPUTS:
        value = getattr(solution, name)
        assert value[1].isnan().all(), name
        assert torch.equal(value[[0, 2]], getattr(wanted, name)[[0, 2]]), name
    for name, t in leaves.items():
        assert torch.equal(t.grad[1], torch.zeros_like(t[1])), name
        assert torch.equal(t.grad[[0, 2]], wanted_gradients[name][[0, 2]]), name


LOSSES = {
    "square": lambda x: x.pow(2).sum(),
    "product": lambda x: x.prod(-1).sum(),
    "logarithm": lambda x: x.abs().log().sum(),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1).sum(),
    "softmax": lambda x: x.softmax(-1).square().sum(),
}


@pytest.mark.parametrize("adjoint", [None, ol.Smoothed(0.1)], ids=["exact", "smoothed"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("failure", FAILURES)
def test_no_loss_brings_a_nan_back(failure: str, loss: str, adjoint: object) -> None:
    data, cones, _ = failing(failure)
    leaves = leaves_of(data)
    solution = solve(leaves, cones, on_failure="ignore", adjoint=adjoint)
    LOSSES[loss](solution.x).backward()
    for name, t in leaves.items():
        assert t.grad.isfinite().all(), name
        assert not t.grad[1].any(), name
    assert leaves["q"].grad[[0, 2]].any(-1).all()


@pytest.mark.parametrize("failure", FAILURES)
def test_no_nan_in_second_derivatives(failure: str) -> None:
    data, cones, _ = failing(failure)
    leaves = leaves_of(data)
    solution = solve(leaves, cones, on_failure="ignore")
    first = torch.autograd.grad(solution.x.pow(2).sum(), list(leaves.values()), create_graph=True)
    sum(g.pow(2).sum() for g in first).backward()
    for name, t in leaves.items():
        assert t.grad.isfinite().all(), name
        assert not t.grad[1].any(), name


@pytest.mark.parametrize("name", ["P", "A", "b"])
def test_nan_in_a_shared_tensor_fails_all(name: str) -> None:
    data, cones, _ = failing("q")
    data = {key: t if key == "q" else t[0] for key, t in data.items()}
    data["q"] = data["q"].nan_to_num(0.5)
    data[name].view(-1)[0] = torch.nan
    leaves = leaves_of(data)
    solution = solve(leaves, cones, on_failure="ignore")
    assert solution.status.tolist() == [Status.NUMERICAL_ERROR] * 3
    assert solution.x.isnan().all()
    solution.x.pow(2).sum().backward()
    assert all(not t.grad.any() for t in leaves.values())


def test_shared_tensors_get_the_sum_over_solved_elements() -> None:
    data, cones, _ = failing("infeasible")
    data = {key: t if key in ("q", "b") else t[0] for key, t in data.items()}
    found = gradients(data, layer(cones, "x", on_failure="ignore"), ["P", "A"])
    solved = data | {key: data[key][[0, 2]] for key in ("q", "b")}
    leaves = leaves_of(solved)
    full = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (solve(leaves, cones).x * full[[0, 2]]).sum().backward()
    for name in ("P", "A"):
        torch.testing.assert_close(found[name], leaves[name].grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("policy", ["raise", "warn", "ignore"])
def test_solvable_programs_pass_under_every_policy(policy: str) -> None:
    known = PLANTED["all kinds, P definite"]()
    plain, solution = (
        solve(known.data, known.cones, **more) for more in ({}, {"on_failure": policy})
    )
    for name in OUTPUTS:
        assert torch.equal(getattr(solution, name), getattr(plain, name)), name


def test_running_out_of_iterations_is_a_failure() -> None:
    known = planted(5, *MIXTURES["all that SCS has"], batch=(4,), n=26)
    with pytest.raises(SolverError, match=r"cone_program: of 4 problems [1-4] MAX_ITERATIONS"):
        solve(known.data, known.cones, solver=Clarabel(max_iter=1))


# --- refusals -------------------------------------------------------------------------------------

GOOD = {"P": tensor(EYE), "q": tensor([-3, -4]), "A": tensor(DISC), "b": tensor([1, 0, 0])}
SOC = [ol.SecondOrderCone(3)]
# What is wrong, the kind of error, and words for what was expected, what came, and what to do.
REFUSALS: dict[str, tuple[dict[str, object], type[Exception], tuple[str, str, str]]] = {
    "P of another size": (
        {"P": torch.eye(3).double()}, ValueError,
        ("P must have shape (*batch, 2, 2) because q has 2 entries", "got (3, 3)", "Check"),
    ),
    "A with other columns": (
        {"A": torch.zeros(3, 4).double()}, ValueError,
        ("A must have shape (*batch, 3, 2) because the cones have 3 rows", "got (3, 4)", "Check"),
    ),
    "b of another length": (
        {"b": torch.zeros(2).double()}, ValueError,
        ("b must have shape (*batch, 3) because the cones have 3 rows", "got (2,)", "Check"),
    ),
    "cones that do not add up": (
        {"cones": [ol.SecondOrderCone(2)]}, ValueError,
        ("A must have shape (*batch, 2, 2) because the cones have 2 rows", "got (3, 2)",
         "Check the sizes of the cones"),
    ),
    "batches that do not fit": (
        {"q": torch.zeros(2, 2).double(), "b": torch.zeros(3, 3).double()}, ValueError,
        ("must broadcast", "q (2,), A (), b (3,)", "Insert dimensions of size 1"),
    ),
    "a number without dimensions": (
        {"q": tensor(1.0)}, ValueError, ("q must have at least 1 dimensions", "got shape ()", ""),
    ),
    "q of integers": (
        {"q": torch.tensor([1, 2])}, TypeError,
        ("q must be a real floating-point tensor", "got torch.int64", "Convert it"),
    ),
    "A of complex numbers": (
        {"A": torch.zeros(3, 2, dtype=torch.complex128)}, TypeError,
        ("A must be a real floating-point tensor", "got torch.complex128", "Convert it"),
    ),
    "b as an array": (
        {"b": np.zeros(3)}, TypeError,
        ("b must be a real floating-point tensor", "got ndarray", "torch.as_tensor"),
    ),
    "A left out": (
        {"A": None}, TypeError, ("A must be a real floating-point tensor", "got NoneType", ""),
    ),
    "P on another device": (
        {"P": torch.eye(2, device="meta").double()}, ValueError,
        ("all tensors must be on one device", "got P on meta and q on cpu", ".to()"),
    ),
    "one cone alone": (
        {"cones": ol.SecondOrderCone(3)}, TypeError,
        ("cones must be a list or tuple of cones", "got a single SecondOrderCone", "Write ["),
    ),
    "a class of cones": (
        {"cones": [ol.SecondOrderCone]}, TypeError,
        ("every entry must be a cone", "got the class SecondOrderCone", "Give it its size"),
    ),
    "a number for a cone": (
        {"cones": [3]}, TypeError,
        ("every entry must be a cone", "got int in position 0", "NonnegativeCone(3)"),
    ),
    "a solver of quadratic programs": (
        {"solver": ActiveSet()}, TypeError,
        ("takes dense programs with zero and nonnegative cones only", "SecondOrderCone",
         "Leave solver out, or use Clarabel()"),
    ),
    "a class of solvers": (
        {"solver": Clarabel}, TypeError,
        ("solver must be an object of optlayers.solvers", "got <class", "as Clarabel()"),
    ),
    "a name of a solver": (
        {"solver": "clarabel"}, TypeError,
        ("solver must be an object of optlayers.solvers", "got 'clarabel'", "as Clarabel()"),
    ),
    "an unknown policy": (
        {"on_failure": "panic"}, ValueError,
        ("on_failure must be 'raise', 'warn' or 'ignore'", "got 'panic'", ""),
    ),
    "a warm start that is a tensor": (
        {"warm_start": torch.zeros(2)}, TypeError,
        ("warm_start must be a Solution", "got Tensor", "as cone_program returns it"),
    ),
    "a sparse vector": (
        {"q": tensor([1, 0]).to_sparse()}, TypeError,
        ("q must be a dense tensor", "got layout torch.sparse_coo", "q.to_dense()"),
    ),
    "a class of adjoints": (
        {"adjoint": ol.Smoothed}, TypeError,
        ("adjoint must be Exact() or Smoothed(mu)", "got <class", "Leave it out"),
    ),
    "a COO matrix": (
        {"A": tensor(DISC).to_sparse()}, TypeError,
        ("A must be a dense or a CSR tensor", "got layout torch.sparse_coo", "to_sparse_csr()"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_say_what_was_expected_what_came_and_what_to_do(name: str) -> None:
    changes, kind, words = REFUSALS[name]
    arguments = GOOD | {"cones": SOC} | changes
    with pytest.raises(kind) as caught:
        ol.cone_program(**arguments)
    text = str(caught.value)
    assert text.startswith(("cone_program: ", "ConeProduct.of: "))
    for word in words:
        assert word in text, text


def test_a_warm_start_of_another_size_is_refused() -> None:
    other = PLANTED["second-order, P definite"]()
    guess = solve(other.data, other.cones)
    pattern = re.escape("x, s and z of shapes ((2,), (3,), (3,)); got ((2,), (4,), (4,))")
    with pytest.raises(ValueError, match=f"{pattern}. Leave warm_start out"):
        ol.cone_program(**GOOD, cones=SOC, warm_start=guess)


def test_a_solver_without_these_cones_says_so() -> None:
    cones = [ol.GeneralizedPowerCone((0.5, 0.5), dim=1)]
    with pytest.raises(ValueError, match=r"SCS: a cone of type .* Use Clarabel\(\)"):
        ol.cone_program(**GOOD, cones=cones, solver=SCS())


# --- the route to qp ------------------------------------------------------------------------------


def linear_program() -> tuple[Known, dict[str, Tensor]]:
    """Rows of both kinds in turn, and the same program as qp takes it."""
    cones = [ol.NonnegativeCone(2), ol.ZeroCone(1), ol.NonnegativeCone(1), ol.ZeroCone(1)]
    known = planted(0, *cones, n=4, batch=(3,))
    equal, inequal = [2, 4], [0, 1, 3]
    data = known.data
    quadratic = {
        "P": data["P"], "q": data["q"], "G": data["A"][:, inequal], "h": data["b"][:, inequal],
        "A": data["A"][:, equal], "b": data["b"][:, equal],
    }  # fmt: skip
    return known, quadratic


@pytest.mark.parametrize("solver", [None, ActiveSet(), InteriorPoint()], ids=repr)
def test_elementwise_programs_are_quadratic_programs(solver: object) -> None:
    known, quadratic = linear_program()
    solution = solve(known.data, known.cones, solver=solver)
    wanted = ol.qp(**quadratic, solver=solver)
    assert torch.equal(solution.x, wanted.x)
    assert torch.equal(solution.objective, wanted.objective)
    assert torch.equal(solution.iterations, wanted.iterations)
    assert torch.equal(solution.z[:, [2, 4]], wanted.y)
    assert torch.equal(solution.z[:, [0, 1, 3]], wanted.z)
    assert torch.equal(solution.s[:, [0, 1, 3]], wanted.s)
    assert not solution.s[:, [2, 4]].any()
    assert solution.y is None
    assert solution.z_box is None
    for name in ("x", "s", "z"):
        torch.testing.assert_close(getattr(solution, name), getattr(known, name))


def test_both_routes_have_the_same_gradients() -> None:
    known, _ = linear_program()
    routes = (None, ActiveSet(), Clarabel(), SCS())
    first, *others = (
        gradients(known.data, layer(known.cones, *OUTPUTS, solver=solver)) for solver in routes
    )
    for other in others:
        assert_gradients_close(other, first, 1e-9)
    wanted = gradients(known.data, oracle(known.cones, solve(known.data, known.cones), *OUTPUTS))
    assert_gradients_close(first, wanted, 1e-9)


def test_programs_of_one_kind_of_row_only() -> None:
    for cones in ([ol.NonnegativeCone(5)], [ol.ZeroCone(3)]):
        known = planted(1, *cones)
        solution = solve(known.data, cones)
        for name in ("x", "s", "z"):
            torch.testing.assert_close(getattr(solution, name), getattr(known, name))


@pytest.mark.parametrize("solver", [None, ActiveSet(), Clarabel(), SCS()], ids=repr)
def test_warm_start(solver: object) -> None:
    known, _ = linear_program()
    cold = solve(known.data, known.cones, solver=solver)
    again = solve(known.data, known.cones, solver=solver, warm_start=cold)
    torch.testing.assert_close(again.x, cold.x, rtol=0, atol=1e-10)
    assert (again.iterations <= cold.iterations).all()
    assert (again.iterations < cold.iterations).any()
    # Solutions of one route are guesses for the other.
    other = solve(known.data, known.cones, solver=Clarabel(), warm_start=cold)
    assert not other.iterations.any()


def test_warm_start_does_not_change_gradients() -> None:
    known = PLANTED["all kinds, P definite"]()
    cold = solve(leaves_of(known.data), known.cones)
    wanted = gradients(known.data, layer(known.cones, *OUTPUTS))
    found = gradients(known.data, layer(known.cones, *OUTPUTS, warm_start=cold))
    assert_gradients_close(found, wanted, 1e-9)
    assert not solve(known.data, known.cones, warm_start=cold).iterations.any()


def test_failures_of_the_route_to_qp() -> None:
    data, cones, status = failing("infeasible")
    cones = [ol.NonnegativeCone(4)]
    leaves = leaves_of(data)
    solution = solve(leaves, cones, on_failure="ignore")
    assert solution.status.tolist() == [Status.SOLVED, status, Status.SOLVED]
    for name in OUTPUTS:
        assert getattr(solution, name)[1].isnan().all(), name
        assert not getattr(solution, name)[[0, 2]].isnan().any(), name
    weighted([getattr(solution, name) for name in OUTPUTS]).backward()
    for t in leaves.values():
        assert t.grad.isfinite().all()
        assert not t.grad[1].any()


@pytest.mark.parametrize("name", ["second-order, P definite", "linear, P definite"])
def test_only_the_symmetric_part_of_P_counts(name: str) -> None:
    known = PLANTED[name]()
    P = known.data["P"]
    assert not torch.equal(P, P.mT)
    straight = known.data | {"P": 0.5 * (P + P.mT)}
    one, other = (gradients(data, layer(known.cones, *OUTPUTS)) for data in (known.data, straight))
    assert_gradients_close(one, other, 1e-10)
    torch.testing.assert_close(one["P"], one["P"].mT, rtol=0, atol=1e-13)


# --- degenerate programs --------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_programs_have_finite_gradients(name: str) -> None:
    known = DEGENERATE[name]()
    leaves = leaves_of(known.data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solution = solve(leaves, known.cones, solver=Clarabel())
        weighted([getattr(solution, output) for output in OUTPUTS]).backward()
    assert all(w.category is ol.SolverWarning for w in caught)
    for key, t in leaves.items():
        assert t.grad.isfinite().all(), key
        assert t.grad.abs().max() < 1e3, key


def dependent(repeats: int) -> tuple[Data, list[object]]:
    """The nearest point of a line, which is stated several times."""
    data = {"P": tensor(EYE), "q": tensor([0.3, -0.2]), "A": tensor([[1, 2]] * repeats),
            "b": tensor([1] * repeats)}  # fmt: skip
    return data, [ol.ZeroCone(repeats)]


def test_multipliers_that_are_not_unique_do_not_disturb_x() -> None:
    """No warning, and the gradient of x is that of the program without the copies."""
    data, cones = dependent(2)
    single, once = dependent(1)
    for solver in (Clarabel(), SCS(), ActiveSet()):
        found = gradients(data, layer(cones, "x", solver=solver), ["q", "P"])
        wanted = gradients(single, layer(once, "x"), ["q", "P"])
        assert_gradients_close(found, wanted, 1e-9)


def test_equal_discs_do_not_disturb_x() -> None:
    known = DEGENERATE["two equal discs"]()
    disc = known.data | {"A": tensor(DISC), "b": tensor([1, 0, 0])}
    found = gradients(known.data, layer(known.cones, "x"), ["q"])
    wanted = gradients(disc, layer(SOC, "x"), ["q"])
    assert_gradients_close(found, wanted, 1e-7)


def test_a_move_that_would_leave_no_solution_is_a_warning() -> None:
    """Two equal equations whose ends part: b has no derivative in that direction."""
    data, cones = dependent(2)
    # z is any pair with a fixed sum; what the least norm leaves is its difference.
    leaves = leaves_of(data)
    solution = solve(leaves, cones, solver=Clarabel())
    with pytest.warns(ol.SolverWarning, match="no exact derivative.*Smoothed"):
        (solution.z @ tensor([1, -1])).backward()
    assert all(t.grad.isfinite().all() for t in leaves.values())


def test_a_warning_points_at_the_user_and_ignore_says_nothing() -> None:
    data, cones = dependent(2)
    leaves = leaves_of(data)
    solution = solve(leaves, cones, solver=Clarabel(), on_failure="ignore")
    (solution.z @ tensor([1, -1])).backward()  # a warning would be an error here
    assert all(t.grad.isfinite().all() for t in leaves.values())


def test_a_linear_program_with_many_solutions_has_the_least_norm_gradient() -> None:
    """As qp has it, up to what no solution moves along."""
    known = DEGENERATE["many solutions of a linear program"]()
    data = leaves_of(known.data)
    solution = solve(data, known.cones, solver=Clarabel())
    # The sum of x is 1 for all of them, and its derivative exists.
    solution.x.sum().backward()
    torch.testing.assert_close(data["b"].grad, tensor([1, 0, 0]), rtol=0, atol=1e-8)
    torch.testing.assert_close(data["q"].grad, tensor([0, 0]), rtol=0, atol=1e-8)
    solution = solve(data, known.cones, solver=Clarabel())
    with pytest.warns(ol.SolverWarning, match="not unique"):
        (solution.x @ tensor([1, -1])).backward()


def test_weak_activity_gives_one_of_the_one_sided_derivatives() -> None:
    """At the edge of the disc, x = q / max(1, |q|)."""
    known = DEGENERATE["weakly active disc"]()
    leaves = leaves_of(known.data)
    found = jacrev(lambda q: solve(known.data | {"q": q}, known.cones).x)(leaves["q"].detach())
    q = known.data["q"]
    inside, outside = -torch.eye(2).double(), -(torch.eye(2).double() - torch.outer(q, q))
    assert min((found - side).abs().max() for side in (inside, outside)) < 1e-6


# --- Smoothed -------------------------------------------------------------------------------------


def barrier_gradient(cone: object, s: Tensor) -> Tensor:
    """The gradient of the cone's barrier, as its docstring states the barrier."""

    def value(s: Tensor) -> Tensor:
        match cone:
            case ol.NonnegativeCone():
                return -torch.log(s).sum()
            case ol.SecondOrderCone():
                return -0.5 * torch.log(s[0] ** 2 - s[1:] @ s[1:])
            case ol.PositiveSemidefiniteCone():
                return -torch.logdet(smat(s))
            case ol.ExponentialCone():
                x, y, z = s.unbind()
                return -torch.log(y * torch.log(z / y) - x) - torch.log(y) - torch.log(z)
            case ol.PowerCone():
                return power((cone.alpha, 1 - cone.alpha), s)
            case ol.GeneralizedPowerCone():
                return power(cone.alphas, s)
        raise AssertionError(cone)

    def power(alphas: Sequence[float], s: Tensor) -> Tensor:
        a, u, w = tensor(alphas), s[: len(alphas)], s[len(alphas) :]
        return -torch.log((u ** (2 * a)).prod() - w @ w) - ((1 - a) * torch.log(u)).sum()

    return jacrev(value)(s)


def smooth_conditions(cones: Sequence[object], mu: float) -> Callable[..., Tensor]:
    """The residual whose root is the point of the central path, of that and the data."""

    def residual(w: Tensor, P: Tensor, q: Tensor, A: Tensor, b: Tensor) -> Tensor:
        n, m = len(q), len(b)
        x, z = w.split([n, m])
        s = b - A @ x
        rest = [0.5 * (P + P.mT) @ x + q + A.mT @ z]
        for cone, slack, multiplier in zip(cones, parts(cones, s), parts(cones, z), strict=True):
            if isinstance(cone, ol.ZeroCone):
                rest.append(slack)
            else:
                rest.append(multiplier + mu * barrier_gradient(cone, slack))
        return torch.cat(rest)

    return residual


def central_point(known: Known, mu: float) -> tuple[Tensor, list[Tensor]]:
    """Newton's method along the path, from a point that is known for a strong barrier."""
    data = {"P": torch.zeros(len(known.x), len(known.x)).double()} | known.data
    arguments = [data[name].detach() for name in ("P", "q", "A", "b")]
    with torch.no_grad():
        smooth = solve(known.data, known.cones, adjoint=ol.Smoothed(mu))
    assert torch.equal(smooth.x, solve(known.data, known.cones).x)
    from optlayers.smoothed_cone import CentralPoint
    from solvers.cone.product import ConeProduct

    problem = CentralPoint(ConeProduct.of(known.cones), "raise", mu)
    P = arguments[0] if "P" in known.data else None
    x, _, z = problem.solve(
        P, None, arguments[2], None, arguments[1], arguments[3], known.x, known.s, known.z,
        torch.zeros((), dtype=torch.long),
    )[:3]  # fmt: skip
    w = torch.cat([x, z])
    residual = smooth_conditions(known.cones, mu)(w, *arguments)
    # By the definition of the barrier: the only point of the path with this mu.
    assert residual.abs().max() < 1e-6 * (1 + w.abs().max()), residual
    return w, arguments


SMOOTHABLE = [
    "nonnegative", "second-order", "second-order of two rows", "semidefinite", "exponential",
    "power", "generalised power", "linear",
]  # fmt: skip


def with_room(kind: str, P: str | None = "definite") -> Known:
    """A planted program, whose rows are bounded so that the central path exists."""
    return planted(1, *(KINDS | MIXTURES)[kind], P=P)


@pytest.mark.parametrize("mu", [0.5, 1e-2])
@pytest.mark.parametrize("kind", SMOOTHABLE)
def test_smoothed_gradients_are_those_of_the_central_path(kind: str, mu: float) -> None:
    known = with_room(kind)
    w, arguments = central_point(known, mu)
    residual = smooth_conditions(known.cones, mu)
    inverse = torch.linalg.inv(jacrev(residual)(w, *arguments))
    n, m = len(known.x), len(known.s)

    def step(data: Data) -> list[Tensor]:
        at = [data[name] for name in ("P", "q", "A", "b")]
        x, z = (w - inverse @ residual(w, *at)).split([n, m])
        return [x, data["b"] - data["A"] @ x, z]

    wanted = gradients(known.data, step)
    found = gradients(known.data, layer(known.cones, "x", "s", "z", adjoint=ol.Smoothed(mu)))
    assert_gradients_close(found, wanted, 1e-6)
    exact = gradients(known.data, layer(known.cones, "x", "s", "z"))
    with pytest.raises(AssertionError):
        assert_gradients_close(found, exact, 1e-6)


def newton(residual: Callable[..., Tensor], w: Tensor, arguments: list[Tensor]) -> Tensor:
    for _ in range(8):
        w = w - torch.linalg.solve(jacrev(residual)(w, *arguments), residual(w, *arguments))
    return w


@pytest.mark.parametrize(
    "kind",
    [
        "second-order",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("semidefinite", "exponential", "power", "linear")
        ),
    ],
)
def test_smoothed_gradients_are_finite_differences_of_the_central_path(kind: str) -> None:
    mu, step = 0.1, 1e-5
    known = with_room(kind)
    w, arguments = central_point(known, mu)
    residual = smooth_conditions(known.cones, mu)
    n = len(known.x)
    for place, name in ((1, "q"), (3, "b")):
        found = jacrev(
            lambda t, name=name: (
                solve(known.data | {name: t}, known.cones, adjoint=ol.Smoothed(mu)).x
            )
        )(known.data[name])
        columns = []
        for e in step * torch.eye(len(known.data[name])).double():
            ends = []
            for sign in (1, -1):
                moved = list(arguments)
                moved[place] = moved[place] + sign * e
                ends.append(newton(residual, w, moved)[:n])
            columns.append((ends[0] - ends[1]) / (2 * step))
        torch.testing.assert_close(found, torch.stack(columns, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", SMOOTHABLE)
def test_smoothed_gradients_tend_to_the_exact_ones(kind: str) -> None:
    known = with_room(kind)
    exact = gradients(known.data, layer(known.cones, "x", "s", "z"))
    errors = []
    for mu in (1e-3, 1e-5, 1e-7):
        found = gradients(known.data, layer(known.cones, "x", "s", "z", adjoint=ol.Smoothed(mu)))
        errors.append(
            max(float((found[k] - g).abs().max() / g.abs().max()) for k, g in exact.items())
        )
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("mu", [1.0, 1e-2, 1e-4])
def test_smoothed_agrees_with_the_one_of_qp(mu: float) -> None:
    known, _ = linear_program()
    one, other = (
        gradients(known.data, layer(known.cones, *OUTPUTS, solver=solver, adjoint=ol.Smoothed(mu)))
        for solver in (Clarabel(), None)
    )
    assert_gradients_close(one, other, 1e-6)


@pytest.mark.parametrize("kind", ["nonnegative", "second-order", "linear"])
def test_second_derivatives_of_the_smoothed_solution(kind: str) -> None:
    known = with_room(kind)
    w, arguments = central_point(known, 0.1)
    residual = smooth_conditions(known.cones, 0.1)
    q = known.data["q"]
    n = len(q)

    def smooth_x(q: Tensor) -> Tensor:
        return solve(known.data | {"q": q}, known.cones, solver=Clarabel(),
                     adjoint=ol.Smoothed(0.1)).x  # fmt: skip

    def path_x(q: Tensor) -> Tensor:
        # Two steps of Newton's method from the root have its first and second derivatives.
        t, at = w, [arguments[0], q, *arguments[2:]]
        for _ in range(2):
            t = t - torch.linalg.solve(jacrev(residual)(t, *at), residual(t, *at))
        return t[:n]

    found = jacrev(jacrev(smooth_x))(q)
    torch.testing.assert_close(found, jacrev(jacrev(path_x))(q), rtol=1e-6, atol=1e-6)
    names = list(known.data)

    def first(*tensors: Tensor) -> Tensor:
        data = dict(zip(names, tensors, strict=True))
        x = layer(known.cones, "x", adjoint=ol.Smoothed(0.1))(data)[0]
        return torch.autograd.grad(x.sum() * 1.0, tensors, create_graph=True)[1]

    leaves = tuple(leaves_of(known.data).values())
    assert gradcheck(first, leaves, atol=1e-5, fast_mode=True)


def test_smoothed_batches() -> None:
    data, cones = shifted("second-order", {"q": (3,), "b": (2, 1)})
    evaluate = layer(cones, "x", "z", adjoint=ol.Smoothed(0.1))
    found = gradients(data, evaluate)
    full = {
        name: t.expand(2, 3, *t.shape[t.ndim - CORE_NDIM[name] :]).clone()
        for name, t in data.items()
    }
    apart = gradients(full, evaluate)
    for name, t in data.items():
        wanted = apart[name].sum_to_size(t.shape)
        torch.testing.assert_close(found[name], wanted, rtol=1e-8, atol=1e-8)


def without_interior() -> tuple[Data, list[object]]:
    """A point in the disc whose first coordinate is 1: there is one only."""
    data = {"P": tensor(EYE), "q": tensor([0, -1]), "A": tensor([*DISC, [1, 0], [-1, 0]]),
            "b": tensor([1, 0, 0, 1, -1])}  # fmt: skip
    return data, [ol.SecondOrderCone(3), ol.NonnegativeCone(2)]


def test_a_program_without_an_interior_has_no_smoothing() -> None:
    data, cones = without_interior()
    data["b"] = tensor([2, 0, 0, 1, -1])  # x_0 = 1 by two inequalities
    with pytest.raises(SolverError, match=r"Smoothed: .* interior, but 1 of 1 .* Exact\(\)") as e:
        solve(data, cones, adjoint=ol.Smoothed(0.1))
    torch.testing.assert_close(e.value.solution.x, tensor([1, 1]), rtol=0, atol=1e-5)
    leaves = leaves_of(data)
    with pytest.warns(ol.SolverWarning, match="interior.*gradients are zero"):
        solution = solve(leaves, cones, adjoint=ol.Smoothed(0.1), on_failure="warn")
    solution.x.sum().backward()
    assert all(not t.grad.any() for t in leaves.values())
    assert solution.x.isfinite().all()
    solve(data, cones, adjoint=ol.Smoothed(0.1), on_failure="ignore")
    # The same rows as an equation are fine.
    equal = data | {"A": data["A"][:4], "b": data["b"][:4]}
    assert solve(equal, [cones[0], ol.ZeroCone(1)], adjoint=ol.Smoothed(0.1)).solved


@pytest.mark.parametrize(
    "cone", [BOX, SMALL_BOX, ol.ExponentialCone(dual=True), ol.PowerCone(0.4, dual=True)], ids=repr
)
def test_cones_without_a_central_path_say_so(cone: object) -> None:
    known = planted(1, cone)
    with pytest.raises(NotImplementedError, match=r"central path"):
        solve(known.data, known.cones, adjoint=ol.Smoothed(0.1))


def test_values_under_smoothed_are_those_of_the_solution() -> None:
    known = planted(1, *MIXTURES["equal cones"])
    exact, smooth = (
        solve(known.data, known.cones, adjoint=adjoint) for adjoint in (None, ol.Smoothed(0.5))
    )
    for name in OUTPUTS:
        assert torch.equal(getattr(exact, name), getattr(smooth, name)), name
