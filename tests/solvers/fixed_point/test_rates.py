"""How fast: rates that theory gives, and how many evaluations mixing saves."""

import pytest
import torch

from optlayers.solvers.fixed_point import Anderson, Picard
from solvers.solution import Status
from tests.solvers.fixed_point.maps import affine, network, symmetric


def evaluations(solver, f, start):
    count = 0

    def counted(z):
        nonlocal count
        count += 1
        return f(z)

    solution = solver.solve(counted, start)
    return count, solution


def evaluations_until(tolerance, solver, f, start):
    """How many it takes until all residuals are that short, relative to 1 + |z|."""
    iterates = solver.iterates(f, start)
    running = torch.ones(len(start), dtype=torch.bool)
    with torch.no_grad():
        iterate, count = next(iterates), 1
        while (iterate.error > tolerance * (1 + iterate.x.norm(dim=-1))).any():
            iterate, count = iterates.send(running), count + 1
            assert count < 10000
    return count


@pytest.mark.parametrize(("damping", "factor"), [(1.0, 0.9), (0.5, 0.95), (1.5, 0.85)])
def test_picard_converges_with_the_spectral_radius(damping, factor):
    f, start, _ = affine(torch.float64, radius=0.9)
    errors = Picard(damping=damping, keep_history=True).solve(f, start).history
    ratios = (errors[-50:] / errors[-51:-1])[:-10]
    assert torch.allclose(ratios.nanmean(), torch.tensor(factor).double(), rtol=5e-3)


def test_mixing_does_not_hurt_where_the_map_contracts_well():
    torch.manual_seed(0)
    W = symmetric(0.3)
    u = torch.randn(2, len(W), dtype=torch.float64)

    def f(z):
        return torch.tanh(z @ W + u)

    plain, _ = evaluations(Picard(), f, torch.zeros_like(u))
    mixed, solution = evaluations(Anderson(), f, torch.zeros_like(u))
    assert (solution.status == Status.SOLVED).all()
    assert mixed <= plain


@pytest.mark.parametrize("problem", [affine, network], ids=["affine", "network"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str
)
def test_mixing_saves_two_thirds_where_it_hardly_contracts(problem, dtype, tolerance):
    f, start, _ = problem(dtype, radius=0.99)
    plain = evaluations_until(tolerance, Picard(), f, start)
    mixed = evaluations_until(tolerance, Anderson(), f, start)
    assert 3 * mixed <= plain
    assert (Anderson().solve(f, start).status == Status.SOLVED).all()


def test_a_large_float32_map_stops_by_itself():
    f, start, fixed = network(torch.float32, radius=0.99, n=1024)
    # A tolerance that rounding does not allow.
    solution = Anderson(eps_abs=1e-7, eps_rel=1e-8).solve(f, start)
    assert solution.solved.all()
    assert (solution.iterations < 300).all()
    assert torch.allclose(solution.x, fixed, atol=1e-3)


@pytest.mark.parametrize("damping", [1.0, 0.7])
def test_an_affine_map_ends_after_as_many_evaluations_as_variables(damping):
    torch.manual_seed(0)
    n = 6
    W = torch.randn(3, n, n, dtype=torch.float64) / n**0.5
    u = torch.randn(3, n, dtype=torch.float64)
    count, solution = evaluations(
        Anderson(memory=n, damping=damping),
        lambda z: (W @ z[..., None])[..., 0] + u,
        torch.zeros_like(u),
    )
    assert (solution.status == Status.SOLVED).all()
    assert count <= n + 3  # one to see that it is there, one for rounding


def test_it_is_gmres_on_an_affine_map():
    torch.manual_seed(0)
    # With all changes remembered, the next residual is W times that of GMRES (Walker and Ni 2011,
    # theorem 2.2).
    n, steps = 12, 6
    W = 0.9 * torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    W, u = W @ torch.diag(torch.linspace(0.7, 1, n).double()), torch.randn(1, n).double()
    solver = Anderson(memory=n, max_iter=steps + 1, keep_history=True, regularisation=0.0)
    history = solver.solve(lambda z: z @ W.T + u, torch.zeros_like(u)).history[:, 0]
    A, r = torch.eye(n, dtype=torch.float64) - W, u[0]
    krylov = r[:, None]
    for k in range(1, steps + 1):
        products = A @ krylov
        weights = torch.linalg.lstsq(products, r[:, None]).solution[:, 0]
        expected = torch.linalg.vector_norm(W @ (r - products @ weights))
        assert torch.allclose(history[k + 1], expected, rtol=1e-5)
        krylov = torch.cat([krylov, A @ krylov[:, -1:]], -1)


def test_maps_that_do_not_contract():
    # The slope at the fixed point is about -2: plain steps go round and round.
    start = torch.tensor([[0.1], [0.6]], dtype=torch.float64)
    solution = Anderson().solve(lambda z: 1 - 1.5 * z**2, start)
    assert solution.solved.all()
    assert torch.allclose(solution.x, (-1 + 7**0.5) / 3 * torch.ones_like(start))
    assert not Picard().solve(lambda z: 1 - 1.5 * z**2, start).solved.any()


def test_value_iteration():
    # A piecewise affine contraction by 0.99 in another norm.
    generator = torch.Generator().manual_seed(0)
    P = torch.softmax(3 * torch.randn(4, 20, 20, generator=generator, dtype=torch.float64), -1)
    rewards = torch.randn(4, 20, generator=generator, dtype=torch.float64)

    def f(v):
        return (rewards + 0.99 * torch.einsum("aij,...j->...ai", P, v)).amax(-2)

    start = torch.zeros(1, 20, dtype=torch.float64)
    solution = Anderson().solve(f, start)
    assert (solution.status == Status.SOLVED).all()
    assert torch.allclose(f(solution.x), solution.x, rtol=1e-10)
    plain = evaluations_until(1e-10, Picard(), f, start)
    assert 10 * evaluations_until(1e-10, Anderson(), f, start) <= plain


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Anderson(memory=0)
