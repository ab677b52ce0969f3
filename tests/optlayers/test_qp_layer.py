"""The module that owns the data of its quadratic program."""

import copy
import io
import pickle

import pytest
import torch

import optlayers as ol
from optlayers.solvers import InteriorPoint

KINDS = {
    "unconstrained": {},
    "inequalities": {"inequalities": 4},
    "equalities": {"equalities": 2},
    "both": {"inequalities": 4, "equalities": 2},
    "both, nonnegative": {"inequalities": 4, "equalities": 2, "nonnegative": True},
    "only nonnegative": {"nonnegative": True},
    "fixed P": {"inequalities": 4, "learn_P": False},
    "as for Sudoku": {"equalities": 3, "nonnegative": True, "learn_P": False},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def make(kind, *, spread=None, **more):
    """A layer of 6 variables in float64, with parameters drawn at random if ``spread`` is given."""
    torch.manual_seed(0)
    layer = ol.QPLayer(6, **{"dtype": torch.float64} | KINDS[kind] | more)
    if spread is not None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(std=spread)
    return layer


def inputs(*batch, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*batch, 6, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3), (0,)])
@kinds
def test_shapes(kind, batch):
    layer = make(kind)
    q = inputs(*batch)
    x, solution = layer(q), layer.solve(q)
    assert x.shape == q.shape
    assert isinstance(solution, ol.Solution)
    assert torch.equal(solution.x, x)
    assert solution.status.shape == batch
    assert solution.y.shape == (*batch, layer.equalities)
    assert solution.z.shape == (*batch, layer.inequalities)
    assert solution.z_box.shape == (*batch, 6 if layer.nonnegative else 0)


@pytest.mark.parametrize("spread", [None, 0.1, 1.0, 3.0])
@kinds
def test_feasible_whatever_the_parameters(kind, spread):
    for _ in range(5):
        layer = make(kind, spread=spread)
        q = 3 * inputs(4)
        solution = layer.solve(q)
        assert solution.solved.all()
        P, G, h, A, b, lb = layer.data()
        assert torch.linalg.eigvalsh(P).min() >= layer.eps * (1 - 1e-6)
        if G is not None:
            assert (solution.x @ G.mT - h).max() <= 1e-6
        if A is not None:
            assert (solution.x @ A.mT - b).abs().max() <= 1e-6
        assert (lb is None) == (not layer.nonnegative)
        if lb is not None:
            assert not lb.any()
            assert solution.x.min() >= -1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("equalities", [6, 8])
def test_feasible_with_redundant_equalities(equalities, dtype):
    """Nothing is left to choose; b is A x0 up to rounding, and x must be x0."""
    for seed in range(5):
        torch.manual_seed(seed)
        layer = ol.QPLayer(6, equalities=equalities, nonnegative=True, dtype=dtype)
        torch.testing.assert_close(
            layer(inputs(2, dtype=dtype)), torch.ones(2, 6, dtype=dtype), rtol=0, atol=1e-3
        )


@kinds
def test_is_the_function_on_its_data(kind):
    layer, q = make(kind, spread=0.7), inputs(3)
    P, G, h, A, b, lb = layer.data()
    torch.testing.assert_close(layer(q), ol.qp(P, q, G, h, A, b, lb).x)


@kinds
def test_every_parameter_learns(kind):
    layer = make(kind, spread=0.5)
    q = (3 * inputs(16)).requires_grad_()
    solution = layer.solve(q)
    (solution.x.pow(3).sum() + solution.y.sum() + solution.z.sum()).backward()
    assert q.grad.any()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_gradients_of_the_parameters():
    layer, q = make("both, nonnegative", spread=0.5), inputs(2)
    names = [name for name, _ in layer.named_parameters()]

    def call(*parameters):
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(layer, given, (q,))

    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(call, values, atol=1e-5)


def test_learns_a_layer_like_itself():
    torch.manual_seed(0)
    target = ol.QPLayer(5, inequalities=4, equalities=1)
    torch.manual_seed(1)
    layer = ol.QPLayer(5, inequalities=4, equalities=1)
    q = torch.randn(64, 5)
    with torch.no_grad():
        wanted = target(q)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (layer(q) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_inside_a_network():
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(3, 6), ol.QPLayer(6, inequalities=4), torch.nn.Linear(6, 1)
    )
    network(torch.randn(8, 3)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_types(dtype):
    layer = make("both, nonnegative", dtype=dtype)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert layer(inputs(2, dtype=dtype)).dtype == dtype
    other = torch.float32 if dtype == torch.float64 else torch.float64
    moved = layer.to(other)
    assert moved(inputs(2, dtype=other)).dtype == other


def test_float32_by_default():
    layer = ol.QPLayer(6, inequalities=4, equalities=2)
    q = inputs(3, dtype=torch.float32).requires_grad_()
    x = layer(q)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x.double(), copy.deepcopy(layer).double()(q.double()))
    x.sum().backward()
    assert q.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_without_parameters_has_a_type_nevertheless(dtype):
    layer = ol.QPLayer(6, nonnegative=True, learn_P=False, dtype=dtype)
    assert not list(layer.parameters())
    q = inputs(2, dtype=dtype)
    x = layer(q)
    assert x.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(x, (-q / 0.1).clamp(min=0), rtol=0, atol=tolerance)


# --- copies ---------------------------------------------------------------------------------------


@kinds
def test_state_dict(kind):
    layer, other, q = make(kind, spread=0.5), make(kind), inputs(3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(q), layer(q))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    third = make(kind)
    third.load_state_dict(torch.load(file))
    assert torch.equal(third(q), layer(q))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(copied):
    policy = {"solver": InteriorPoint(), "adjoint": ol.Smoothed(0.1), "on_failure": "ignore"}
    layer, q = make("both", spread=0.5, **policy), inputs(3)
    other = copied(layer)
    assert (other.solver, other.adjoint, other.on_failure) == tuple(policy.values())
    assert torch.equal(other(q), layer(q))
    with torch.no_grad():
        other.G.add_(1.0)
    assert not torch.equal(other.G, layer.G)


def test_copies_after_use():
    layer, q = make("both"), inputs(3)
    layer(q).sum().backward()
    assert torch.equal(pickle.loads(pickle.dumps(layer))(q), layer(q))


@kinds
def test_reset_parameters(kind):
    layer, q = make(kind, spread=0.5), inputs(3)
    torch.manual_seed(0)
    layer.reset_parameters()
    assert torch.equal(layer(q), make(kind)(q))


# --- policies and what it says --------------------------------------------------------------------


def test_solver_and_adjoint_reach_the_solver(capsys):
    layer, q = make("both", solver=InteriorPoint(verbose=True)), inputs(2)
    layer(q)
    assert "InteriorPoint: 2 problems" in capsys.readouterr().out

    smooth, exact = make("both", adjoint=ol.Smoothed(1.0)), make("both")
    q.requires_grad_()
    gradients = [torch.autograd.grad(module(q).pow(2).sum(), q)[0] for module in (smooth, exact)]
    assert not torch.allclose(*gradients)


def test_on_failure_reaches_the_solver():
    q = inputs(3)
    q[1, 0] = torch.nan
    with pytest.raises(ValueError, match="q must be finite"):
        make("both")(q)
    x = make("both", on_failure="ignore")(q)
    assert x.isnan().any(-1).tolist() == [False, True, False]


def test_warm_start():
    layer, q = make("both"), inputs(4)
    earlier = layer.solve(q)
    later = layer.solve(q + 0.01, warm_start=earlier)
    torch.testing.assert_close(later.x, layer(q + 0.01))


def test_repr():
    text = repr(ol.QPLayer(6, inequalities=4, equalities=2, nonnegative=True, learn_P=False))
    assert text == (
        "QPLayer(6, inequalities=4, equalities=2, nonnegative=True, learn_P=False, eps=0.1)"
    )


WRONG = [
    pytest.param({"n": 0}, id="no variables"),
    pytest.param({"n": 6, "inequalities": -1}, id="negative inequalities"),
    pytest.param({"n": 6, "equalities": -1}, id="negative equalities"),
    pytest.param({"n": 6, "eps": 0.0}, id="eps of zero"),
    pytest.param({"n": 6, "eps": -1.0}, id="negative eps"),
]


@pytest.mark.parametrize("sizes", WRONG)
def test_wrong_sizes(sizes):
    with pytest.raises(ValueError, match=r"^QPLayer: expected n >= 1"):
        ol.QPLayer(**sizes)


def test_an_unknown_policy():
    with pytest.raises(ValueError, match=r"QPLayer: on_failure must be .* got 'shrug'"):
        ol.QPLayer(6, on_failure="shrug")


def test_an_input_of_another_size():
    with pytest.raises(ValueError, match=r"q .*\(\*batch, 6\)|P must have shape"):
        make("both")(torch.zeros(3, 5))
