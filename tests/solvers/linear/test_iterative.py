"""How fast the iterative linear solvers are, and how they end (test_contract.py has the rest)."""

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from optlayers.solvers import Status
from optlayers.solvers.linear import (
    CG,
    GMRES,
    LSMR,
    MINRES,
    BiCGSTAB,
    LinearOperator,
    NeumannSeries,
)
from tests.solvers.linear.systems import (
    ITERATIVE,
    matrix_for,
    name_of,
    near_identity,
    nonsymmetric,
    random,
    symmetric,
)

TIGHT = {"eps_rel": 1e-12}
each_solver = pytest.mark.parametrize("solver", ITERATIVE, ids=name_of)


# --- rates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [CG(), GMRES(), MINRES()], ids=name_of)
@pytest.mark.parametrize("n", [1, 2, 7, 15])
def test_as_many_iterations_as_unknowns_at_most(solver, n):
    solution = solver.solve(symmetric(torch.linspace(1.0, 5.0, n)), random(3, n))
    assert (solution.iterations <= n).all()
    assert (solution.status == Status.SOLVED).all()


@pytest.mark.parametrize("solver", [CG(), GMRES(), MINRES(), BiCGSTAB(), LSMR()], ids=name_of)
def test_as_many_iterations_as_distinct_eigenvalues(solver):
    solution = solver.solve(symmetric([1.0] * 8 + [2.0] * 7 + [5.0] * 6), random(3, 21))
    assert solution.iterations.tolist() == [3, 3, 3]


def test_gmres_is_exact_after_n_iterations_and_not_before():
    """The cyclic shift: the residual stays as it is until the last iteration."""
    shift = torch.eye(7, dtype=torch.float64).roll(1, 0)
    b = torch.eye(7, dtype=torch.float64)[0]
    solution = GMRES(keep_history=True).solve(shift, b)
    assert solution.iterations == 7
    torch.testing.assert_close(solution.history[:-1], torch.ones(7).double())
    torch.testing.assert_close(solution.x, torch.linalg.solve(shift, b))


@pytest.mark.parametrize("condition", [10.0, 100.0])
def test_cg_is_as_fast_as_its_bound(condition):
    A = symmetric(torch.linspace(1.0, condition, 60))
    b = random(3, 60)
    exact = torch.linalg.solve(A, b)
    rate = (condition**0.5 - 1) / (condition**0.5 + 1)

    def energy(x):
        return ((x - exact) * (A @ (x - exact)[..., None])[..., 0]).sum(-1).sqrt()

    for k in (5, 10, 20):
        x = CG(max_iter=k).solve(A, b).x
        # The best residual among the iterates need not be the last one, hence the factor.
        assert (energy(x) <= 2 * condition**0.5 * rate**k * energy(0 * exact)).all()


@pytest.mark.parametrize("radius", [0.3, 0.9])
def test_the_rate_of_the_neumann_series_is_the_spectral_radius(radius):
    solver = NeumannSeries(keep_history=True)
    history = solver.solve(near_identity(5, radius), random(3, 5)).history
    last = history.isfinite().all(-1).sum() - 1
    rate = (history[last] / history[last - 4]) ** 0.25
    torch.testing.assert_close(rate, torch.full_like(rate, radius), rtol=1e-2, atol=0)


def test_the_terms_of_the_neumann_series():
    A, b = near_identity(5, 0.5), random(3, 5)
    power, total = b, torch.zeros_like(b)
    for _ in range(4):
        total = total + power
        power = power - (A @ power[..., None])[..., 0]
    solution = NeumannSeries(terms=4).solve(A, b)
    torch.testing.assert_close(solution.x, total)
    torch.testing.assert_close(solution.primal_residual, power.norm(dim=-1))
    assert solution.status.tolist() == [Status.MAX_ITERATIONS] * 3
    assert solution.iterations.tolist() == [4] * 3
    assert NeumannSeries(terms=0).solve(A, b).x.abs().sum() == 0


def test_a_diverging_neumann_series_is_no_solution():
    A = torch.stack((3 * torch.eye(2), 0.5 * torch.eye(2))).double()
    solution = NeumannSeries(max_iter=3000).solve(A, torch.ones(2, 2, dtype=torch.float64))
    assert solution.status.tolist() == [Status.NUMERICAL_ERROR, Status.SOLVED]


def test_residuals_of_minimal_residual_methods_never_grow():
    A, b = symmetric(torch.linspace(-3.0, 5.0, 30)), random(3, 30)
    for solver in (GMRES(restart=7, keep_history=True), MINRES(keep_history=True)):
        history = solver.solve(A, b).history
        assert (history.diff(dim=0).nan_to_num(0) <= 1e-9 * b.norm(dim=-1)).all()


def test_minres_and_gmres_agree_on_symmetric_matrices():
    A, b = symmetric(torch.linspace(1.0, 5.0, 30) * (-1) ** torch.arange(30)), random(3, 30)
    for k in (3, 8, 15):
        short = MINRES(max_iter=k).solve(A, b).x
        torch.testing.assert_close(short, GMRES(max_iter=k).solve(A, b).x, rtol=1e-6, atol=1e-8)


def test_a_restart_saves_memory_and_costs_iterations():
    A, b = nonsymmetric(40), random(3, 40)
    full, restarted = GMRES(restart=40).solve(A, b), GMRES(restart=4).solve(A, b)
    assert (restarted.iterations >= full.iterations).all()
    torch.testing.assert_close(restarted.x, full.x, rtol=1e-7, atol=1e-8)


# --- against scipy --------------------------------------------------------------------------------

SCIPY = [(CG, "cg"), (MINRES, "minres"), (BiCGSTAB, "bicgstab"), (GMRES, "gmres")]


@pytest.mark.parametrize(("solver", "name"), SCIPY)
@pytest.mark.parametrize("preconditioned", [False, True])
def test_takes_as_many_iterations_as_scipy(solver, name, preconditioned):
    A = (
        symmetric(torch.logspace(0, 2, 30), batch=1)[0]
        + torch.diag(torch.linspace(0, 90, 30)).double()
    )
    b = random(30)
    d = A.diagonal()
    count = 0

    def counting(_):
        nonlocal count
        count += 1

    M = scipy.sparse.diags(1 / d.numpy()) if preconditioned else None
    more = {"restart": 30, "callback_type": "pr_norm"} if name == "gmres" else {}
    function = getattr(scipy.sparse.linalg, name)
    expected, info = function(A.numpy(), b.numpy(), rtol=1e-8, M=M, callback=counting, **more)
    assert info == 0
    found = solver(eps_rel=1e-8).solve(
        A, b, preconditioner=(lambda v: v / d) if preconditioned else None
    )
    # They stop on other norms of the residual where there is a preconditioner.
    assert abs(int(found.iterations) - count) <= (6 if preconditioned or name == "minres" else 1)
    np.testing.assert_allclose(found.x, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (20, 20)])
def test_lsmr_follows_scipy(shape):
    A, b = random(*shape), random(shape[0])
    for k in (3, 7):
        expected = scipy.sparse.linalg.lsmr(A.numpy(), b.numpy(), maxiter=k, atol=0, btol=0)[0]
        np.testing.assert_allclose(LSMR(max_iter=k).solve(A, b).x, expected, rtol=1e-8, atol=1e-10)


def test_lsmr_finds_the_solution_of_least_norm_whatever_the_rank():
    A = random(3, 9, 2) @ random(3, 2, 6, seed=1)
    b = random(3, 9)
    solution = LSMR().solve(A, b)
    assert (solution.status == Status.SOLVED).all()
    expected = (torch.linalg.pinv(A, rtol=1e-10) @ b[..., None])[..., 0]
    torch.testing.assert_close(solution.x, expected, rtol=1e-7, atol=1e-8)
    assert (solution.primal_residual > 0.1).all()
    assert (solution.dual_residual < 1e-8).all()


def test_lsmr_where_nothing_can_be_explained():
    A = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    solution = LSMR().solve(A, torch.tensor([[0.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(solution.x, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert (solution.status == Status.SOLVED).all()


# --- preconditioners and starts -------------------------------------------------------------------

PRECONDITIONED = [CG(), MINRES(), GMRES(), BiCGSTAB()]


@pytest.mark.parametrize("solver", PRECONDITIONED, ids=name_of)
def test_a_preconditioner_saves_iterations(solver):
    d = torch.logspace(0, 4, 40, dtype=torch.float64)
    A = torch.diag(d) + symmetric(torch.linspace(0.1, 0.5, 40), batch=1)[0]
    b = random(3, 40)
    plain, helped = solver.solve(A, b), solver.solve(A, b, preconditioner=lambda v: v / d)
    assert (helped.status == Status.SOLVED).all()
    assert (3 * helped.iterations < plain.iterations).all()
    torch.testing.assert_close(
        helped.x, torch.linalg.solve(A.expand(3, 40, 40), b), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("solver", [*PRECONDITIONED, NeumannSeries()], ids=name_of)
def test_the_inverse_is_a_preconditioner_that_needs_one_iteration(solver):
    A, b = symmetric(torch.linspace(1.0, 9.0, 8)), random(3, 8)
    inverse = torch.linalg.inv(A)
    solution = solver.solve(A, b, preconditioner=lambda v: (inverse @ v[..., None])[..., 0])
    assert solution.iterations.tolist() == [1, 1, 1]
    assert (solution.status == Status.SOLVED).all()


def test_gmres_takes_a_preconditioner_that_changes():
    A, b = nonsymmetric(20), random(3, 20)
    solution = GMRES().solve(A, b, preconditioner=lambda v: v / (3 + v.abs().amax(-1, True)))
    assert (solution.status == Status.SOLVED).all()


@pytest.mark.parametrize("solver", [CG(), MINRES()], ids=name_of)
def test_an_indefinite_preconditioner_is_noticed(solver):
    A, b = symmetric(torch.linspace(1.0, 9.0, 8)), random(3, 8)
    signs = (-1.0) ** torch.arange(8)
    solution = solver.solve(A, b, preconditioner=lambda v: signs * v)
    assert (solution.status == Status.NUMERICAL_ERROR).all()


@each_solver
def test_starting_at_the_solution_takes_no_iteration(solver):
    A, b = matrix_for(solver), random(3, 6)
    solution = solver.solve(A, b, x0=torch.linalg.solve(A, b))
    assert solution.iterations.tolist() == [0, 0, 0]
    assert (solution.status == Status.SOLVED).all()


@each_solver
def test_starting_nearby_saves_iterations(solver):
    A, b = matrix_for(solver, n=20), random(3, 20)
    exact = torch.linalg.solve(A, b)
    near = solver.solve(A, b, x0=exact + 1e-9 * random(3, 20, seed=5))
    assert near.iterations.sum() < solver.solve(A, b).iterations.sum()
    torch.testing.assert_close(near.x, exact, rtol=1e-7, atol=1e-8)


# --- how it ends ----------------------------------------------------------------------------------


@each_solver
def test_running_out_of_iterations_is_a_status(solver):
    A, b = matrix_for(solver, n=20), random(3, 20)
    capped = type(solver)(max_iter=2, keep_history=True).solve(A, b)
    assert capped.status.tolist() == [Status.MAX_ITERATIONS] * 3
    assert capped.iterations.tolist() == [2, 2, 2]
    assert capped.history.shape == (3, 3)


@each_solver
def test_a_solved_sample_stops_on_its_own(solver):
    A, b = matrix_for(solver, n=20), random(3, 20)
    A[1] = torch.eye(20)
    solution = solver.solve(A, b)
    assert solution.iterations[1] == 1
    assert (solution.iterations[[0, 2]] > 5).all()


@pytest.mark.parametrize(
    "solver", [solver for solver in ITERATIVE if not isinstance(solver, LSMR)], ids=name_of
)
def test_what_is_solved_has_a_small_true_residual(solver):
    """Ill-conditioned: the residual that is carried along drifts away from the true one."""
    for seed in range(3):
        A = symmetric(torch.logspace(0, -8, 20), batch=20, seed=seed)
        b = random(20, 20, seed=seed)
        solution = solver.solve(A, b)
        r = (b - (A @ solution.x[..., None])[..., 0]).norm(dim=-1)
        solved = solution.status == Status.SOLVED
        assert (r[solved] <= 1.0001e-10 * b.norm(dim=-1)[solved]).all()
        assert (r[solution.solved] <= 1.0001e-7 * b.norm(dim=-1)[solution.solved]).all()


@each_solver
def test_a_start_far_away_costs_a_second_start_and_no_accuracy(solver):
    """Rounding in the first residual, relative to ``x0``, is larger than the tolerance."""
    A, b = matrix_for(solver), random(3, 6)
    solution = solver.solve(A, b, x0=1e8 * random(3, 6, seed=7))
    r = (b - (A @ solution.x[..., None])[..., 0]).norm(dim=-1)
    assert (solution.status == Status.SOLVED).all()
    assert (r <= 1.0001e-10 * b.norm(dim=-1)).all()


def test_a_lie_about_the_residual_is_found():
    """The product of another matrix after some time: what is carried along becomes worthless."""
    A, b = symmetric(torch.linspace(1.0, 9.0, 8)), random(3, 8)
    calls = 0

    def matvec(v):
        nonlocal calls
        calls += 1
        return (A @ v[..., None])[..., 0] * (2.0 if calls <= 3 else 1.0)

    solution = CG().solve(LinearOperator(matvec), b)
    r = (b - (A @ solution.x[..., None])[..., 0]).norm(dim=-1)
    assert ((r <= 1.001e-10 * b.norm(dim=-1)) == (solution.status == Status.SOLVED)).all()


@pytest.mark.parametrize("solver", [CG(), BiCGSTAB()], ids=name_of)
def test_a_breakdown_is_no_solution_and_leaves_mates_alone(solver):
    skew = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    b = torch.ones(3, 2, dtype=torch.float64)
    solution = solver.solve(torch.stack((good, skew, good)), b)
    plain = solver.solve(torch.stack((good, good, good)), b)
    assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]
    assert torch.equal(solution.x[[0, 2]], plain.x[[0, 2]])


def test_gmres_stops_where_a_singular_matrix_leaves_no_way_on():
    A = symmetric([1.0, 2.0, 3.0, 0.0], batch=20)
    solution = GMRES().solve(A, random(20, 4))
    assert (solution.status == Status.NUMERICAL_ERROR).all()
    assert (solution.iterations <= 8).all()


def test_cg_on_an_indefinite_matrix_ends_with_an_error():
    A = symmetric([-2.0, -1.0, 1.0, 2.0, 3.0], batch=20)
    solution = CG().solve(A, random(20, 5))
    assert (solution.status == Status.NUMERICAL_ERROR).all()


def test_bicgstab_starts_again_where_its_shadow_is_orthogonal():
    A = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    solution = BiCGSTAB().solve(A, b)
    assert solution.status == Status.SOLVED
    torch.testing.assert_close(solution.x, torch.linalg.solve(A, b))


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match="restart must be at least 1"):
        GMRES(restart=0)
    with pytest.raises(ValueError, match="terms must not be negative"):
        NeumannSeries(terms=-1)
