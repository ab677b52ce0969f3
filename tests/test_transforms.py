"""The whole transform matrix on quadratic programs, as functions and as a module."""

import pytest
import torch

import optlayers as ol
from optlayers.testing import check_layer
from solvers.qp.interior_point import InteriorPoint
from solvers.qp.proximal_interior_point import ProximalInteriorPoint

OUTPUTS = ("x", "y", "z", "z_box", "s", "objective")
# What active rows leave free: strictly active and inactive rows, the multiplier or slack of each.
MULTIPLIERS = {"z": (0.8, 0.0), "z_box": (-0.6, 0.9, 0.0, 0.0, 0.0)}
SLACKS = {"h": (0.0, 0.7), "lb": (0.0, 0.8, 0.7, 0.9, 0.6), "ub": (0.9, 0.0, 0.8, 0.6, 0.7)}


def program(n=5, *, batch=(), linear=False, rows="GAb"):
    """Build a problem around its solution, so that every row is strictly active or inactive.

    ``rows`` names the constraints: G inequalities, A equalities, b bounds.
    """
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1

    def vector(values):
        return torch.tensor(values[:n], dtype=torch.float64)

    x, y = random(*batch, n), random(*batch, 1)
    P, G, A = random(n, n), random(2, n), random(1, n)
    P = torch.zeros(n, n, dtype=torch.float64) if linear else P @ P.mT + torch.eye(n) + 0.1 * G[0]
    # P is not symmetric, and must not need to be.
    force = (0.5 * (P + P.mT) @ x[..., None])[..., 0]
    data = {} if linear else {"P": P}
    if "G" in rows:
        z = vector(MULTIPLIERS["z"])
        force = force + z @ G
        data |= {"G": G, "h": (G @ x[..., None])[..., 0] + vector(SLACKS["h"])}
    if "A" in rows:
        force = force + y @ A
        data |= {"A": A, "b": (A @ x[..., None])[..., 0]}
    if "b" in rows:
        force = force + vector(MULTIPLIERS["z_box"])
        data |= {"lb": x - vector(SLACKS["lb"]), "ub": x + vector(SLACKS["ub"])}
    return data | {"q": -force}


def layer(data, outputs=OUTPUTS, **policy):
    """``ol.qp`` as a function of the tensors in ``data``, in their order."""

    def call(*tensors):
        given = {"P": None} | dict(zip(data, tensors, strict=True))
        solution = ol.qp(**given, **policy)
        return tuple(getattr(solution, name) for name in outputs)

    return call, list(data.values())


STRUCTURES = {
    "no inequalities": program(rows="Ab"),
    "no equalities": program(rows="Gb"),
    "only bounds": program(3, rows="b"),
    "no constraints": program(2, rows=""),
    "a linear program": program(4, linear=True, rows="GAb"),
    "shared matrices": program(batch=(2,), rows="GAb"),
}


def test_the_problem_is_as_built():
    data = program()
    solution = ol.qp(**data)
    for name in ("z", "z_box"):
        want = torch.tensor(MULTIPLIERS[name], dtype=torch.float64)
        torch.testing.assert_close(getattr(solution, name), want)


def test_all_inputs_and_outputs():
    data = program()
    assert len(data) == 8
    check_layer(*layer(data))


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_alone(output):
    # The other outputs have no cotangent then: other terms of the same formulas.
    check_layer(*layer(program(), [output]), vmap_subsets=[(0,), (1, 2), range(8)], compile=False)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure(name):
    data = STRUCTURES[name]
    check_layer(*layer(data), vmap_subsets=[(0,), range(1, len(data)), range(len(data))])


def test_module():
    torch.manual_seed(0)
    module = ol.QPLayer(3, inequalities=2, equalities=1, nonnegative=True, dtype=torch.float64)
    q = torch.tensor([-1.0, -3.0, 2.0], dtype=torch.float64)
    check_layer(module, [q])


@pytest.mark.slow
@pytest.mark.parametrize("solver", [InteriorPoint(), ProximalInteriorPoint()])
def test_other_solvers(solver):
    check_layer(*layer(program(), solver=solver))


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["raise", "ignore"])
def test_inductor(policy):
    check_layer(*layer(program(), on_failure=policy), backend="inductor")


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
def test_each_output_of_a_linear_program(output):
    check_layer(*layer(STRUCTURES["a linear program"], [output]))


def test_vmap_returns_a_solution():
    data = program(batch=(3,))
    dims = {name: 0 if t.shape[0] == 3 else None for name, t in data.items()}
    mapped = torch.func.vmap(lambda *a: ol.qp(*a), in_dims=tuple(dims[k] for k in "PqGhAb"))
    solution = mapped(*(data[k] for k in "PqGhAb"))
    assert isinstance(solution, ol.Solution)
    assert solution.status.shape == (3,)
    want = ol.qp(*(data[k] for k in "PqGhAb"))
    torch.testing.assert_close(solution.x, want.x)
