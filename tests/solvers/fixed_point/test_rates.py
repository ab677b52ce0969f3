"""How fast: rates that theory gives, and how many evaluations mixing saves."""

from dataclasses import replace

import pytest
import torch

from optlayers.solvers.fixed_point import Anderson, Picard
from solvers import _native, iteration
from solvers.fixed_point import anderson
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
    strict = replace(solver, eps_abs=tolerance, eps_rel=tolerance, max_iter=10_000)
    count, solution = evaluations(strict, f, start)
    assert solution.solved.all()
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


# --- the loop looks at all samples at once where it can: with the same results


def by_hand(f, z, tolerance, most=1000):
    """Points, iterations and residuals of plain iteration, a sample at a time where it stops."""
    found = [None] * len(z)
    for k in range(most + 1):
        fz = f(z)
        error, size = (fz - z).norm(dim=-1), fz.norm(dim=-1)
        for i in range(len(z)):
            if found[i] is None and (error[i] <= tolerance * (1 + size[i]) or k == most):
                found[i] = fz[i], k, error[i]
        if all(found):
            break
        z = fz
    x, iterations, errors = zip(*found, strict=True)
    return torch.stack(x), list(iterations), torch.stack(errors)


def contraction(dtype=torch.float64, n=20, batch=20):
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(n, n, generator=generator, dtype=dtype)
    W = 0.45 * W / torch.linalg.matrix_norm(W, 2)
    u = torch.randn(batch, n, generator=generator, dtype=dtype)
    u[0] *= 1e-3  # this one is there sooner
    return (lambda z: torch.tanh(z @ W.mT + u)), torch.zeros_like(u)


@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["Picard", "Anderson"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("batch", [3, 20, 21])
def test_samples_end_where_they_do_one_by_one(solver, tolerance, batch):
    f, start = contraction(batch=batch)
    strict = replace(solver, eps_abs=tolerance, eps_rel=tolerance)
    count, solution = evaluations(strict, f, start)
    x, iterations, errors = by_hand(f, start, tolerance)
    assert solution.iterations.tolist() == iterations
    assert len(set(iterations)) > 1
    assert torch.equal(solution.x, x)
    assert torch.allclose(solution.dual_residual, errors, rtol=1e-12)
    assert count == max(iterations) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 20, 21])
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["Picard", "Anderson"])
def test_samples_that_arrive_at_the_same_time(solver, batch, dtype):
    f, start = contraction(dtype, batch=1)

    def repeated(z):  # the same bits for each of them, whatever products of matrices do
        return f(z[:1]).expand_as(z)

    starts = start.repeat(batch, 1)
    solution = solver.solve(repeated, starts)
    recorded = replace(solver, keep_history=True).solve(repeated, starts)
    assert (solution.status == Status.SOLVED).all()
    for field in ("x", "status", "iterations", "dual_residual"):
        one, other = getattr(solution, field), getattr(recorded, field)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("batch", [2, 21])
def test_a_sample_that_makes_no_progress_is_seen(batch):
    # Near the tolerance, the residual of the last sample goes round at 30 tolerances.
    start = torch.zeros(batch, 1, dtype=torch.float64)
    solver = Picard(eps_abs=1e-3, eps_rel=0.0, max_iter=200)

    def f(z):
        z = z.clone()
        z[:-1] += 1.0 * 0.9999 ** count[0]
        z[-1] += 0.03 * (1 - 1e-6) ** count[0]
        count[0] += 1
        return z

    count = [0]
    solution = solver.solve(f, start)
    assert (solution.status[:-1] == Status.MAX_ITERATIONS).all()
    assert solution.status[-1] == Status.SOLVED_INACCURATE
    assert int(solution.iterations[-1]) < 40


@pytest.mark.parametrize("most", [0, 1, 2, 5, 9, 10, 19])
@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["Picard", "Anderson"])
def test_no_more_steps_are_taken_than_are_allowed(solver, most):
    f, start = contraction()
    strict = replace(solver, eps_abs=1e-300, eps_rel=0.0, max_iter=most)
    count, solution = evaluations(strict, f, start)
    x, iterations, _ = by_hand(f, start, 0.0, most)
    assert count == most + 1
    assert solution.iterations.tolist() == iterations
    assert torch.equal(solution.x, x)


@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["Picard", "Anderson"])
def test_no_step_is_in_vain_where_convergence_gets_faster(solver):
    a = torch.tensor([[2.0], [50.0]], dtype=torch.float64)
    count, solution = evaluations(solver, lambda x: 0.5 * (x + a / x), torch.ones_like(a))
    assert torch.allclose(solution.x, a.sqrt(), rtol=1e-14)
    assert count == int(solution.iterations.max()) + 1


def test_no_step_is_in_vain_where_convergence_gets_slower():
    # Each of the first steps shrinks the residual by four, later ones by less than two.
    rates = torch.tensor([0.25, 0.95], dtype=torch.float64)
    start = torch.tensor([[1.0, 1e-4]], dtype=torch.float64)
    count, solution = evaluations(Anderson(), lambda z: rates * z, start)
    assert solution.solved.all()
    assert count == int(solution.iterations.max()) + 1
    recorded = replace(Anderson(), keep_history=True).solve(lambda z: rates * z, start)
    assert torch.equal(recorded.x, solution.x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 21])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 1e-40])
def test_the_best_point_where_the_tolerance_is_next_to_nothing(dtype, batch, recorded, tolerance):
    steps = iter([1.0, 0.5, 0.9, 0.95])
    solver = Picard(eps_abs=tolerance, eps_rel=0.0, max_iter=3, keep_history=recorded)
    solution = solver.solve(lambda z: z + next(steps), torch.zeros(batch, 1, dtype=dtype))
    assert (solution.x == 1.5).all()
    assert (solution.dual_residual == 0.5).all()


@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["Picard", "Anderson"])
@pytest.mark.parametrize("recorded", [False, True])
def test_on_a_device_numbers_stay_there(solver, recorded, monkeypatch):
    f, start = contraction()
    start[1] = torch.nan
    solver = replace(solver, keep_history=recorded)
    expected = solver.solve(f, start)
    monkeypatch.setattr(_native, "library", lambda: None)
    monkeypatch.setattr(iteration, "is_at_hand", lambda t: False)
    monkeypatch.setattr(anderson, "is_at_hand", lambda t: False)
    monkeypatch.setattr(torch.Tensor, "numpy", None)
    solution = solver.solve(f, start)
    assert solution.status[1] == Status.NUMERICAL_ERROR
    for field in ("x", "status", "iterations", "dual_residual", "history"):
        one, other = getattr(solution, field), getattr(expected, field)
        if field == "history" and recorded:  # asked every eighth time whether to go on
            one = one[: len(other)]
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0, equal_nan=True)


def test_half_is_not_fast_in_any_company():
    # Damped by a half, a constant map shrinks residuals by exactly that; the mate ends plain steps.
    rates = torch.tensor([[0.0], [0.0], [0.9]], dtype=torch.float64)
    solver = Anderson(damping=0.5, max_iter=3)
    for seed in range(20):
        torch.manual_seed(seed)
        c, start = torch.randn(2, 3, 1, dtype=torch.float64)
        both = solver.solve(lambda z, c=c: c + rates * torch.sin(z), start)
        for i in range(2):
            alone = solver.solve(
                lambda z, c=c, i=i: c[i : i + 1] + 0.0 * torch.sin(z), start[i : i + 1]
            )
            assert alone.status[0] == both.status[i]
            assert torch.equal(alone.x[0], both.x[i])


@pytest.mark.parametrize("solver", [Picard(), Anderson()], ids=["Picard", "Anderson"])
def test_residuals_have_the_type_of_the_data(solver):
    solution = solver.solve(torch.sqrt, torch.tensor([[-1.0], [2.0]]))
    assert solution.status[0] == Status.NUMERICAL_ERROR
    assert solution.dual_residual.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rates_of_one_half_do_not_depend_on_the_company(dtype):
    """Rounding decides there whether a sample counts as fast: the same way for all."""
    rates = torch.tensor([[-0.5], [0.9], [0.5]], dtype=dtype)
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        c, start = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64).to(dtype)
        solver = Anderson(memory=3)
        whole = solver.solve(lambda z, c=c: rates * z + c, start)
        for i in range(3):
            own = slice(i, i + 1)
            alone = solver.solve(lambda z, c=c, own=own: rates[own] * z + c[own], start[own])
            assert torch.equal(alone.x, whole.x[own])
            assert torch.equal(alone.iterations, whole.iterations[own])
