"""What all linear solvers do, on a table of matrices."""

import numpy as np
import pytest
import torch

from optlayers.solvers import Status
from optlayers.solvers.linear import LSMR, QR, BiCGSTAB, Cholesky, DirectSolver, LinearOperator
from tests.solvers.linear.systems import (
    CASES,
    DIRECT,
    IDS,
    ITERATIVE,
    matrix_for,
    name_of,
    near_identity,
    random,
    symmetric,
)

SOLVERS = DIRECT + ITERATIVE
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name_of)


def product(A, x):
    return (A @ x[..., None])[..., 0]


@pytest.mark.parametrize(("name", "A", "solver", "rtol"), CASES, ids=IDS)
def test_agrees_with_numpy(name, A, solver, rtol):
    b = random(A.shape[0], A.shape[1], seed=1)
    solution = solver.solve(A, b)
    expected = np.stack(
        [np.linalg.lstsq(*pair)[0] for pair in zip(A.numpy(), b.numpy(), strict=True)]
    )
    if name == "condition 1e6":  # where rounding alone leaves about the tolerance
        assert solution.solved.all()
    else:
        assert solution.status.tolist() == [Status.SOLVED] * 3
    error = np.linalg.norm(solution.x.numpy() - expected, axis=-1)
    assert (error <= rtol * np.linalg.norm(expected, axis=-1)).all()
    r = b - product(A, solution.x)
    torch.testing.assert_close(solution.primal_residual, r.norm(dim=-1), rtol=1e-6, atol=1e-14)
    if isinstance(solver, (QR, LSMR)):
        normal = product(A.mT, r).norm(dim=-1)
        torch.testing.assert_close(solution.dual_residual, normal, rtol=1e-6, atol=1e-13)


@each_solver
def test_a_batch_is_a_loop(solver):
    A, b = matrix_for(solver, batch=4), random(4, 6)
    batch = solver.solve(A, b)
    for i in range(4):
        alone = solver.solve(A[i], b[i])
        torch.testing.assert_close(batch.x[i], alone.x, rtol=1e-9, atol=1e-12)
        assert batch.iterations[i] == alone.iterations
        assert batch.status[i] == alone.status
        assert alone.status.shape == ()


@each_solver
def test_leading_dimensions_broadcast(solver):
    A, b = matrix_for(solver, batch=2), random(3, 1, 6)
    solution = solver.solve(A, b)
    assert solution.x.shape == (3, 2, 6)
    assert solution.status.shape == solution.iterations.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            alone = solver.solve(A[j], b[i, 0])
            torch.testing.assert_close(solution.x[i, j], alone.x, rtol=1e-9, atol=1e-12)


@each_solver
def test_a_shared_matrix_serves_all_samples(solver):
    A, b = matrix_for(solver, batch=1), random(5, 6)
    shared, copied = solver.solve(A[0], b), solver.solve(A.repeat(5, 1, 1), b)
    torch.testing.assert_close(shared.x, copied.x, rtol=1e-9, atol=1e-12)
    assert shared.status.tolist() == [Status.SOLVED] * 5


@pytest.mark.parametrize("solver", DIRECT, ids=name_of)
def test_a_shared_matrix_is_factored_once(solver):
    seen = []

    class Counting(type(solver)):
        def factor(self, matrix):
            seen.append(matrix.shape)
            return super().factor(matrix)

    Counting().solve(matrix_for(solver, batch=1)[0], random(5, 6))
    assert seen == [(1, 6, 6)]


@each_solver
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 0.0], ids=str)
def test_a_lost_sample_leaves_its_mates_alone(solver, poison):
    A, b = matrix_for(solver), random(3, 6)
    poisoned = A.clone()
    poisoned[1] = poison
    good, bad = solver.solve(A, b), solver.solve(poisoned, b)
    for i in (0, 2):
        assert torch.equal(good.x[i], bad.x[i])
        assert good.status[i] == bad.status[i] == Status.SOLVED
        assert good.iterations[i] == bad.iterations[i]
    if isinstance(solver, LSMR) and poison == 0:  # least squares with A = 0
        assert bad.status[1] == Status.SOLVED
        assert bad.x[1].tolist() == [0.0] * 6
    else:
        assert bad.status[1] in (Status.NUMERICAL_ERROR, Status.MAX_ITERATIONS)


@each_solver
def test_a_lost_right_hand_side_leaves_its_mates_alone(solver):
    A, b = matrix_for(solver, batch=1)[0], random(3, 6)
    poisoned = b.clone()
    poisoned[1] = torch.nan
    good, bad = solver.solve(A, b), solver.solve(A, poisoned)
    assert torch.equal(good.x[[0, 2]], bad.x[[0, 2]])
    assert bad.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]


@each_solver
def test_float32(solver):
    A, b = matrix_for(solver).float(), random(3, 6).float()
    solution = solver.solve(A, b)
    assert solution.x.dtype == torch.float32
    assert solution.solved.all()
    expected = torch.linalg.solve(A.double(), b.double())
    torch.testing.assert_close(solution.x.double(), expected, rtol=1e-4, atol=1e-5)


@each_solver
@pytest.mark.parametrize("shared", [True, False])
def test_an_empty_batch(solver, shared):
    A = matrix_for(solver, batch=1)[0] if shared else random(0, 6, 6)
    solution = solver.solve(A, random(0, 6))
    assert solution.x.shape == (0, 6)
    assert solution.status.shape == (0,)


@each_solver
def test_inputs_are_not_modified(solver):
    A, b, x0 = matrix_for(solver), random(3, 6), random(3, 6, seed=2)
    before = A.clone(), b.clone(), x0.clone()
    solver.solve(A, b, x0=x0)
    assert all(map(torch.equal, before, (A, b, x0)))


@each_solver
def test_operators_and_matrices_give_the_same(solver):
    A, b = matrix_for(solver), random(3, 6)
    operator = LinearOperator(lambda v: product(A, v), lambda u: product(A.mT, u))
    torch.testing.assert_close(solver.solve(operator, b).x, solver.solve(A, b).x)


@each_solver
def test_zero_right_hand_sides_have_the_solution_zero(solver):
    A, b = matrix_for(solver), random(3, 6)
    b[1] = 0
    solution = solver.solve(A, b, x0=random(3, 6, seed=2))
    assert solution.x[1].tolist() == [0.0] * 6
    assert solution.status.tolist() == [Status.SOLVED] * 3


@each_solver
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_the_right_hand_side_does_not_matter(solver, scale):
    A, b = matrix_for(solver), random(3, 6)
    plain, scaled = solver.solve(A, b), solver.solve(A, scale * b)
    torch.testing.assert_close(scaled.x / scale, plain.x, rtol=1e-8, atol=1e-12)
    assert scaled.status.tolist() == [Status.SOLVED] * 3


# --- singular matrices ----------------------------------------------------------------------------


def singular(kind, n):
    if kind == "laplacian":
        W = random(1, n, n).abs()
        W = W + W.mT
        return torch.diag_embed(W.sum(-1)) - W
    if kind == "rank one less":
        return random(1, n, n - 1) @ random(1, n - 1, n, seed=1)
    if kind == "semidefinite":
        factor = random(1, n, n - 1)
        return factor @ factor.mT
    A = torch.eye(n, dtype=torch.float64)[None].clone()
    A[0, -1, -1] = 0
    return A


@pytest.mark.parametrize("n", [2, 12])
@pytest.mark.parametrize("kind", ["laplacian", "rank one less", "semidefinite", "zero pivot"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@each_solver
def test_a_singular_matrix_is_never_solved_in_silence(solver, kind, n, dtype):
    """With a right-hand side outside the range: only least squares has an answer."""
    A = torch.cat((singular(kind, n), matrix_for(solver, n, batch=2))).to(dtype)
    b = random(3, n, seed=3).to(dtype)
    solution = solver.solve(A, b)
    if not isinstance(solver, LSMR):
        assert not solution.solved[0]
    if isinstance(solver, DirectSolver):
        assert solution.status[0] == Status.NUMERICAL_ERROR
        assert solution.x[0].isnan().all()
    assert solution.solved[1:].all()
    assert solution.x[1:].isfinite().all()


@pytest.mark.parametrize("solver", DIRECT, ids=name_of)
def test_bad_scaling_is_not_bad_conditioning(solver):
    A = torch.diag_embed(torch.tensor([1.0, 1e-20, 1e20], dtype=torch.float64))
    solution = solver.solve(A, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(solution.x, torch.tensor([1.0, 1e20, 1e-20]).double())
    assert solution.status == Status.SOLVED


@pytest.mark.parametrize("solver", DIRECT, ids=name_of)
def test_the_condition_number_decides_between_the_statuses(solver):
    conditions = [10.0**k for k in range(9, 17)]
    A = torch.stack([symmetric([1.0, 0.5, 1 / c], batch=1)[0] for c in conditions])
    status = solver.solve(A, random(8, 3)).status.tolist()
    assert status == sorted(status)
    assert status[0] == Status.SOLVED
    assert Status.SOLVED_INACCURATE in status
    assert status[-1] == Status.NUMERICAL_ERROR


def test_rows_of_zeros_are_legal_in_least_squares():
    A, b = random(3, 7, 3), random(3, 7)
    A[:, 2] = 0
    solution = QR().solve(A, b)
    assert solution.status.tolist() == [Status.SOLVED] * 3
    torch.testing.assert_close(solution.x, product(torch.linalg.pinv(A), b))


def test_cholesky_flags_what_is_not_definite_or_not_symmetric():
    A = torch.tensor(
        [[[1.0, 2.0], [2.0, 1.0]], [[2.0, 1.0], [-1.0, 2.0]], [[2.0, 1.0], [1.0, 2.0]]]
    )
    solution = Cholesky().solve(A, torch.ones(3, 2))
    assert solution.status.tolist() == [Status.SOLVED if i == 2 else 5 for i in range(3)]


# --- factorisations -------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", DIRECT, ids=name_of)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_factorisation_serves_the_transposed_system(solver, batch, transposed):
    A, b = matrix_for(solver, batch=batch), random(3, 6)
    x = solver.apply(solver.factor(A), b, transposed=transposed)
    expected = torch.linalg.solve((A.mT if transposed else A).expand(3, 6, 6), b)
    torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("shape", [(7, 3), (3, 7)])
@pytest.mark.parametrize("transposed", [False, True])
def test_qr_of_a_rectangle_serves_the_transposed_system(shape, transposed):
    A = random(2, *shape)
    b = random(2, shape[1] if transposed else shape[0])
    x = QR().apply(QR().factor(A), b, transposed=transposed)
    pinv = torch.linalg.pinv(A.mT if transposed else A)
    torch.testing.assert_close(x, product(pinv, b))


@pytest.mark.parametrize("solver", DIRECT, ids=name_of)
def test_find_keeps_the_factorisation(solver):
    A, b = matrix_for(solver), random(3, 6)
    run = solver.find(LinearOperator.of(A), b)
    torch.testing.assert_close(solver.apply(run.kept, b), run.x)


# --- wrong arguments ------------------------------------------------------------------------------


@each_solver
def test_wrong_arguments(solver):
    A, b = random(6, 6), random(6)
    with pytest.raises(ValueError, match=r"b must have shape \(\*batch, 6\)"):
        solver.solve(A, random(5))
    with pytest.raises(ValueError, match="leading dimensions"):
        solver.solve(random(2, 6, 6), random(3, 6))
    with pytest.raises(ValueError, match="A must have shape"):
        solver.solve(b, b)
    with pytest.raises(TypeError, match="same floating-point type"):
        solver.solve(A, b.float())
    with pytest.raises(ValueError, match=r"x0 must have shape \(\*batch, 6\)"):
        solver.solve(A, b, x0=random(5))
    if not isinstance(solver, (QR, LSMR)):
        with pytest.raises(ValueError, match="must be square; got 6 by 4"):
            solver.solve(random(6, 4), b)
        with pytest.raises(ValueError, match=r"\.find: A must"):
            solver.find(LinearOperator.of(random(1, 6, 4)), b[None])


def test_the_transposed_matrix_is_guessed():
    with pytest.raises(ValueError, match=r"Did you mean A\.mT\?"):
        QR().solve(random(4, 6), random(6))


def test_lsmr_takes_no_preconditioner():
    with pytest.raises(ValueError, match="scale the columns"):
        LSMR().solve(random(6, 6), random(6), preconditioner=lambda v: v)


def test_tolerances_are_the_users():
    A, b = near_identity(20, 0.9), random(3, 20)
    rough = BiCGSTAB(eps_rel=1e-3).solve(A, b)
    assert (rough.iterations < BiCGSTAB().solve(A, b).iterations).all()
    assert (rough.primal_residual <= 1e-3 * b.norm(dim=-1)).all()
