"""The whole transform matrix on cone programs."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import optlayers as ol
from optlayers.solvers import Clarabel
from optlayers.testing import check_layer
from tests.solvers.cone.problems import planted

OUTPUTS = ("x", "s", "z", "objective")
# What needs the change of the projection's derivative; everything else is of first order.
SECOND_ORDER = (
    "double backward", "triple backward", "gradgradcheck", "hessian", "jacrev(jacrev)",
    "jacrev(jacfwd)", "jacfwd(jacfwd)", "vmap(hessian)", "vmap(jacrev(jacrev))",
    "vmap(jacrev(jacfwd))", "vmap(jacfwd(jacfwd))", "hessian of vmap", "jacrev(jacrev) of vmap",
    "jacrev(jacfwd) of vmap", "jacfwd(jacfwd) of vmap",
)  # fmt: skip
FIRST_ORDER = {"raises": SECOND_ORDER, "third_order": False}

Layer = tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]


def program(
    seed: int,
    *cones: object,
    P: str | None = "definite",
    n: int | None = None,
    outputs: Sequence[str] = OUTPUTS,
    **policy: object,
) -> Layer:
    """``ol.cone_program`` as a function of its tensors, at a strictly complementary solution."""
    known = planted(seed, *cones, P=P, n=n)
    names = list(known.data)

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        data = {"P": None} | dict(zip(names, tensors, strict=True))
        solution = ol.cone_program(**data, cones=cones, **policy)
        return tuple(getattr(solution, name) for name in outputs)

    return call, list(known.data.values())


def smooth(**more: object) -> Layer:
    """Three kinds of rows that have derivatives of every order."""
    cones = (ol.SecondOrderCone(3), ol.NonnegativeCone(1), ol.ZeroCone(1))
    return program(1, *cones, n=3, **more)


def linear(**more: object) -> Layer:
    """What goes to qp."""
    return program(1, ol.NonnegativeCone(2), ol.ZeroCone(1), n=3, **more)


FAST = [(0,), (1, 2), (0, 1, 2)]
# The Hessian stands for the other orders of two transforms.
ALIKE = (
    "*jacrev(jac*",
    "*jacfwd(jac*",
    "jacrev of vmap(vmap)",
    "gradcheck*",
    "vmap(jac*",
    "hessian of vmap",
)
CURVED = {
    "exponential": ol.ExponentialCone(),
    "dual exponential": ol.ExponentialCone(dual=True),
    "power": ol.PowerCone(0.4),
    "semidefinite": ol.PositiveSemidefiniteCone(2),
    "generalised power": ol.GeneralizedPowerCone((0.4, 0.6), dim=2),
}


def test_second_order_cones() -> None:
    small = program(1, ol.SecondOrderCone(3), n=2, outputs=("x", "z"), P=None)
    check_layer(*small, vmap_subsets=FAST, compile=False, third_order=False, skip=ALIKE)


def test_curved_cones() -> None:
    small = program(1, CURVED["exponential"], n=2, outputs=("x", "z"), P=None)
    few = (*ALIKE, "vmap(*", "*of vmap*")
    check_layer(*small, vmap_subsets=[(0, 1, 2)], compile=False, skip=few, **FIRST_ORDER)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled() -> None:
    """Value and gradient in one graph."""
    call, inputs = smooth()
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for t in inputs]
    others = [t.clone().requires_grad_() for t in inputs]
    for outputs in (compiled(*leaves), call(*others)):
        sum(t.pow(2).sum() for t in outputs).backward()
    for one, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-9)


def test_vmap_returns_a_solution() -> None:
    known = planted(2, ol.SecondOrderCone(3), ol.ExponentialCone(), batch=(3,), n=6)
    data = [known.data[name] for name in "PqAb"]
    solution = torch.func.vmap(lambda *t: ol.cone_program(*t, known.cones))(*data)
    assert isinstance(solution, ol.Solution)
    assert solution.status.shape == (3,)
    torch.testing.assert_close(solution.x, known.x, rtol=1e-8, atol=1e-8)
    # Mapped over q alone, and over another dimension than the first.
    P, q, A, b = (t[0] for t in data)
    shifted = q[:, None] + 0.01 * torch.arange(4.0, dtype=torch.float64)
    mapped = torch.func.vmap(lambda q: ol.cone_program(P, q, A, b, known.cones).x, in_dims=1)
    want = ol.cone_program(P, shifted.T, A, b, known.cones).x
    torch.testing.assert_close(mapped(shifted), want, rtol=1e-9, atol=1e-9)


def test_vmap_with_failures() -> None:
    known = planted(2, ol.SecondOrderCone(3), batch=(3,), n=3)
    data = {name: known.data[name].clone() for name in "PqAb"}
    data["q"][1, 0] = torch.nan

    def one(P: Tensor, q: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return ol.cone_program(P, q, A, b, known.cones, on_failure="ignore").x

    assert torch.func.vmap(one)(*data.values()).isnan().all(-1).tolist() == [False, True, False]

    def loss(P: Tensor, q: Tensor, A: Tensor, b: Tensor) -> Tensor:
        return one(P, q, A, b).pow(2).sum()

    for g in torch.func.vmap(torch.func.grad(loss, (0, 1, 2, 3)))(*data.values()):
        assert g.isfinite().all()
        assert not g[1].any()
        assert g[0].any()


# --- everything, for the long run -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("P", ["definite", None])
def test_all_inputs_and_outputs(P: str | None) -> None:
    check_layer(*smooth(P=P))


@pytest.mark.slow
def test_box_cones() -> None:
    check_layer(*program(1, ol.BoxCone((-1.0, 0.5), (1.0, 2.0)), n=3))


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, Clarabel()], ids=repr)
def test_linear_cones(solver: object) -> None:
    check_layer(*linear(solver=solver))


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_alone(output: str) -> None:
    # The other outputs have no cotangent then: other terms of the same formulas.
    check_layer(*smooth(outputs=[output]), vmap_subsets=FAST)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CURVED)
def test_curved_cones_of_every_kind(kind: str) -> None:
    check_layer(*program(1, CURVED[kind], ol.NonnegativeCone(1), n=3), **FIRST_ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["warn", "ignore"])
def test_policies(policy: str) -> None:
    check_layer(*smooth(on_failure=policy), vmap_subsets=FAST)


@pytest.mark.slow
def test_smoothed_derivatives() -> None:
    # The value is that of the solution, so that no finite difference is the derivative.
    differences = (
        "backward",
        "double backward",
        "triple backward",
        "gradcheck",
        "gradcheck forward",
    )
    call, inputs = smooth(adjoint=ol.Smoothed(0.1), outputs=("x", "s", "z"))
    check_layer(call, inputs, vmap_subsets=FAST, skip=differences)


@pytest.mark.slow
def test_inductor() -> None:
    check_layer(*smooth(), vmap_subsets=FAST, backend="inductor")
