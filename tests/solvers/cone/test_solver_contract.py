"""What holds for every solver of cone programs, on the whole table of problems."""

import multiprocessing
import threading

import pytest
import torch
from torch import Tensor

from optlayers.solvers import SCS, BoxCone, Clarabel, ConeProgram, ConeSolver, Solution, Status
from solvers.cone import Cone, ExponentialCone, GeneralizedPowerCone, NonnegativeCone, ZeroCone
from solvers.cone.clarabel import spell
from solvers.cone.product import ConeProduct
from tests.solvers.cone.problems import (
    DEGENERATE,
    FAILURES,
    INTERIORS,
    KINDS,
    MIXTURES,
    PLANTED,
    UNUSUAL,
    Data,
    Known,
    failing,
    infeasible,
    planted,
    program,
    tensor,
    unbounded,
    worst_violation,
)

# Torch says so once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
VECTORS = ("x", "s", "z")
OUTPUTS = (*VECTORS, "objective")
EVERYTHING = (
    *OUTPUTS, "status", "iterations", "primal_residual", "dual_residual", "duality_gap",
)  # fmt: skip
SOLVERS = (Clarabel(), SCS())
ALL = PLANTED | DEGENERATE | UNUSUAL


def takes(solver: ConeSolver, cones: tuple[Cone, ...]) -> bool:
    """Whether a solver has these cones."""
    boxes = sum(isinstance(cone, BoxCone) and cone.rows > 1 for cone in cones)
    general = any(isinstance(cone, GeneralizedPowerCone) for cone in cones)
    rows = sum(cone.rows for cone in cones)
    return isinstance(solver, Clarabel) or (boxes <= 1 and not general and rows > 0)


def name_of(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, ConeSolver) else None


each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=name_of)
# What is left out of the default run adds little to its other tests.
each_program = pytest.mark.parametrize(
    ("solver", "name"),
    [
        pytest.param(s, name, marks=[pytest.mark.slow] if "P singular" in name else [])
        for s in SOLVERS
        for name, make in ALL.items()
        if takes(s, make().cones)
    ],
    ids=name_of,
)
KINDS_AND_MIXTURES = KINDS | MIXTURES
each_kind = pytest.mark.parametrize(
    ("solver", "kind"),
    [
        pytest.param(s, kind, marks=[pytest.mark.slow] if kind in MIXTURES else [])
        for s in SOLVERS
        for kind, cones in KINDS_AND_MIXTURES.items()
        if takes(s, cones)
    ],
    ids=name_of,
)
each_mixture = pytest.mark.parametrize(
    ("solver", "kind"),
    [(s, kind) for s in SOLVERS for kind, cones in MIXTURES.items() if takes(s, cones)],
    ids=name_of,
)


def batch_of(kind: str, size: int, seed: int = 5) -> Known:
    """Programs with as many variables as rows, so that any rows may be active."""
    cones = KINDS_AND_MIXTURES[kind]
    return planted(seed, *cones, batch=(size,), n=sum(cone.rows for cone in cones))


def part(data: Data, index: object) -> Data:
    return {name: t[index] for name, t in data.items()}


def assert_equal(found: Solution, wanted: Solution, index: object = slice(None)) -> None:
    """To the last bit; ``index`` picks the elements of ``wanted``."""
    for name in EVERYTHING:
        assert torch.equal(getattr(found, name), getattr(wanted, name)[index]), name


def leftovers(problem: ConeProgram, solution: Solution) -> list[Tensor]:
    """Largest entries of the rows' and of the gradient's residual."""
    A, q, b, P = problem.A.values, problem.q, problem.b, problem.P
    Px = torch.zeros_like(q)
    if P is not None:
        Px = (0.5 * (P.values + P.values.mT) @ solution.x[..., None])[..., 0]
    rows = (A @ solution.x[..., None])[..., 0] + solution.s - b
    pull = Px + q + (A.mT @ solution.z[..., None])[..., 0]
    return [t.abs().amax(-1) if t.shape[-1] else t.sum(-1) for t in (rows, pull)]


# --- answers --------------------------------------------------------------------------------------


@each_program
def test_known_answer(solver: ConeSolver, name: str) -> None:
    known = ALL[name]()
    assert (worst_violation(known, known) <= 1e-12).all()
    problem = known.program()
    solution = solver.solve(problem)
    assert (solution.status == Status.SOLVED).all(), solution
    assert (worst_violation(known, solution) <= 1e-8).all()
    for output, size in zip(VECTORS, (problem.n, problem.m, problem.m), strict=True):
        assert getattr(solution, output).shape == (*problem.batch_shape, size)
    for scalar in (solution.objective, solution.status, solution.iterations, *solution.residuals):
        assert scalar.shape == problem.batch_shape
    terms = known.data["q"] * known.x, known.data["b"] * known.z
    size = 1 + sum(t.abs().sum(-1) for t in terms)
    for residual in solution.residuals:
        assert (residual <= 1e-8 * size).all()
    torch.testing.assert_close(solution.objective, known.objective, rtol=1e-8, atol=1e-8)
    # Residuals are those of the solution as returned.
    for found, residual in zip(leftovers(problem, solution), solution.residuals[:2], strict=True):
        torch.testing.assert_close(residual, found, rtol=1e-2, atol=1e-12)
    if known.unique:
        for output in VECTORS:
            found, wanted = getattr(solution, output), getattr(known, output)
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("cone", [cone for cone, _, _ in INTERIORS], ids=repr)
@each_solver
def test_infeasible_and_unbounded(solver: ConeSolver, cone: Cone) -> None:
    if not takes(solver, (cone,)):
        with pytest.raises(ValueError, match=r"SCS: .*Use Clarabel\(\)"):
            solver.solve(program(*_zero_program(cone)))
        return
    inside, dual = next((i, d) for c, i, d in INTERIORS if c == cone)
    solution = solver.solve(infeasible(cone, dual))
    assert solution.status == Status.PRIMAL_INFEASIBLE
    solution = solver.solve(unbounded(cone, inside))
    assert solution.status == Status.DUAL_INFEASIBLE


def _zero_program(cone: Cone) -> tuple[Data, list[Cone]]:
    rows = cone.rows
    zeros = {"q": torch.zeros(1), "A": torch.zeros(rows, 1), "b": torch.zeros(rows)}
    return {name: t.double() for name, t in zeros.items()}, [cone]


@pytest.mark.parametrize("failure", FAILURES)
@each_solver
def test_status_of_what_has_no_solution(solver: ConeSolver, failure: str) -> None:
    data, cones, status = failing(failure)
    solution = solver.solve(program(data, cones))
    assert solution.status.tolist() == [Status.SOLVED, status, Status.SOLVED]
    for name in OUTPUTS:
        assert getattr(solution, name)[[0, 2]].isfinite().all(), name
        assert getattr(solution, name)[1].isnan().all(), name


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@each_solver
def test_infinite_data_are_a_numerical_error(solver: ConeSolver, value: float) -> None:
    for name in ("P", "q", "A", "b"):
        data, cones, _ = failing(name)
        data[name][1].view(-1)[0] = value
        solution = solver.solve(program(data, cones))
        assert solution.status.tolist() == [Status.SOLVED, Status.NUMERICAL_ERROR, Status.SOLVED]


@each_solver
def test_max_iter_is_a_status(solver: ConeSolver) -> None:
    hasty = type(solver)(max_iter=1)
    known = batch_of("all that SCS has", 4)
    solution = hasty.solve(known.program())
    solved = solution.status == Status.SOLVED
    inaccurate = solution.status == Status.SOLVED_INACCURATE
    # Newton's method may get there from anywhere; then it is a solution like any other.
    if solved.any():
        assert (worst_violation(known, solution)[solved] <= 1e-8).all()
    if inaccurate.any():
        assert (worst_violation(known, solution)[inaccurate] <= 1e-4).all()
    rest = solution.status[~solved & ~inaccurate]
    assert (rest == Status.MAX_ITERATIONS).all()
    assert len(rest), "one iteration cannot do for all"
    assert (solution.iterations <= 2).all()


@each_solver
def test_indefinite_P_is_no_solution(solver: ConeSolver) -> None:
    data = {"P": tensor([[1, 0], [0, -1]]), "q": tensor([1, 1]), "A": tensor([[1, 0]]),
            "b": tensor([1])}  # fmt: skip
    solution = solver.solve(program(data, [NonnegativeCone(1)]))
    assert solution.status == Status.NUMERICAL_ERROR


@pytest.mark.parametrize("scale", [1e-4, 1e3, 1e6])
@pytest.mark.parametrize("kind", ["nonnegative", "second-order", "exponential", "semidefinite"])
def test_rows_in_other_units(kind: str, scale: float) -> None:
    """The same solution, whose slacks are large where its multipliers are small."""
    known = PLANTED[f"{kind}, P definite"]()
    rows = {name: scale * known.data[name] for name in ("A", "b")}
    solution = Clarabel().solve(program(known.data | rows, known.cones))
    assert solution.status == Status.SOLVED
    torch.testing.assert_close(solution.x, known.x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solution.s, scale * known.s, rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(solution.z, known.z / scale, rtol=1e-6, atol=1e-6 / scale)


# --- warm start -----------------------------------------------------------------------------------


@each_program
def test_warm_start_at_the_solution_takes_no_iterations_and_changes_nothing(
    solver: ConeSolver, name: str
) -> None:
    known, untouched = ALL[name](), ALL[name]()
    problem = known.program()
    cold = solver.solve(problem)
    kept = {output: getattr(cold, output).clone() for output in EVERYTHING}
    again = solver.solve(problem, warm_start=cold)
    for key, value in untouched.data.items():
        assert torch.equal(known.data[key], value), key
    for key, value in kept.items():
        assert torch.equal(getattr(cold, key), value), key
    assert (again.status == Status.SOLVED).all()
    assert (again.iterations == 0).all()
    for output in OUTPUTS:
        torch.testing.assert_close(
            getattr(again, output), getattr(cold, output), rtol=1e-8, atol=1e-8
        )


@each_kind
def test_warm_start_nearby_gives_the_same_answer(solver: ConeSolver, kind: str) -> None:
    known = batch_of(kind, 3)
    cold = solver.solve(known.program())
    moved = program(known.data | {"q": known.data["q"] + 0.01}, known.cones)
    found, wanted = solver.solve(moved, warm_start=cold), solver.solve(moved)
    assert (found.status == Status.SOLVED).all()
    assert (found.iterations <= wanted.iterations).all()
    for output in VECTORS:
        torch.testing.assert_close(
            getattr(found, output), getattr(wanted, output), rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize("far", [1e3, torch.nan])
@each_solver
def test_useless_warm_starts_do_no_harm(solver: ConeSolver, far: float) -> None:
    known = batch_of("second-order and linear", 3)
    guess = solver.solve(known.program())
    for output in VECTORS:
        getattr(guess, output)[1] += far
    solution = solver.solve(known.program(), warm_start=guess)
    assert (solution.status == Status.SOLVED).all()
    torch.testing.assert_close(solution.x, known.x, rtol=1e-8, atol=1e-8)
    assert solution.iterations[0] == solution.iterations[2] == 0


@each_solver
def test_warm_start_of_a_batch_with_failures(solver: ConeSolver) -> None:
    data, cones, status = failing("infeasible")
    first = solver.solve(program(data, cones))
    again = solver.solve(program(data, cones), warm_start=first)
    assert again.status.tolist() == [Status.SOLVED, status, Status.SOLVED]
    assert again.iterations[[0, 2]].tolist() == [0, 0]


# --- batches --------------------------------------------------------------------------------------


@each_kind
def test_the_size_of_the_batch_does_not_change_a_bit(solver: ConeSolver, kind: str) -> None:
    known = batch_of(kind, 33)
    whole = solver.solve(known.program())
    assert (whole.status == Status.SOLVED).all()
    torch.testing.assert_close(whole.x, known.x, rtol=1e-7, atol=1e-7)
    for index in (slice(0, 3), slice(30, 33), *(slice(i, i + 1) for i in (0, 8, 32))):
        few = solver.solve(program(part(known.data, index), known.cones))
        assert_equal(few, whole, index)
    single = solver.solve(program(part(known.data, 8), known.cones))
    assert_equal(single, whole, 8)


@pytest.mark.parametrize("failure", ["infeasible", "unbounded", "nan"])
@each_mixture
def test_mates_of_a_failed_element_do_not_change_a_bit(
    solver: ConeSolver, kind: str, failure: str
) -> None:
    known = batch_of(kind, 5)
    bad = {name: t.clone() for name, t in known.data.items()}
    if failure == "nan":
        bad["q"][2, 0] = torch.nan
    elif failure == "unbounded":
        bad["P"][2], bad["q"][2] = 0, 1
        bad["A"][2], bad["b"][2] = 0, known.s[2]
    else:
        bad["A"][2], bad["b"][2] = 0, -known.z[2] - 0.1 * known.s[2] - 1.0
        bad["b"][2, -1] = -1e3
    good, spoilt = solver.solve(known.program()), solver.solve(program(bad, known.cones))
    mates = torch.tensor([0, 1, 3, 4])
    assert spoilt.status[2] > Status.SOLVED_INACCURATE
    for name in EVERYTHING:
        assert torch.equal(getattr(spoilt, name)[mates], getattr(good, name)[mates]), name


@each_mixture
def test_several_batch_dimensions(solver: ConeSolver, kind: str) -> None:
    known = batch_of(kind, 6)
    flat = solver.solve(known.program())
    nested = {name: t.reshape(2, 1, 3, *t.shape[1:]) for name, t in known.data.items()}
    solution = solver.solve(program(nested, known.cones))
    for name in EVERYTHING:
        value = getattr(solution, name)
        assert value.shape[:3] == (2, 1, 3)
        assert torch.equal(value.flatten(0, 2), getattr(flat, name)), name


@each_mixture
def test_shared_data_are_as_copies(solver: ConeSolver, kind: str) -> None:
    known = batch_of(kind, 1)
    shift = 0.02 * torch.arange(4.0, dtype=torch.float64)[:, None]
    shared = part(known.data, 0) | {"q": known.data["q"] + shift}
    copies = {
        name: t if name == "q" else t.expand(4, *t.shape).clone() for name, t in shared.items()
    }
    found, wanted = (solver.solve(program(data, known.cones)) for data in (shared, copies))
    assert found.x.shape[0] == 4
    assert_equal(found, wanted)


@pytest.mark.parametrize("batch", [(0,), (3, 0)])
@each_mixture
def test_a_batch_of_none(solver: ConeSolver, kind: str, batch: tuple[int, ...]) -> None:
    known = batch_of(kind, 1)
    data = part(known.data, 0) | {"q": known.data["q"][0].expand(*batch, -1)}
    solution = solver.solve(program(data, known.cones))
    assert solution.x.shape == (*batch, known.data["q"].shape[-1])
    assert solution.s.shape == solution.z.shape == (*batch, known.data["b"].shape[-1])
    for name in EVERYTHING[3:]:
        assert getattr(solution, name).shape == batch
    again = solver.solve(program(data, known.cones), warm_start=solution)
    assert again.x.shape == solution.x.shape


# --- data as they come ----------------------------------------------------------------------------


def strided(t: Tensor) -> Tensor:
    return torch.stack([t, t + 1], -1).flatten(-2)[..., ::2]


LAYOUTS = {
    "every other entry": strided,
    "columns first": lambda t: t.mT.contiguous().mT,
    "batch last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "in a larger tensor": lambda t: torch.cat([t - 1, t])[t.shape[0] :],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_solver
def test_layouts(solver: ConeSolver, layout: str) -> None:
    known = batch_of("all that SCS has", 3)
    wanted = solver.solve(known.program())
    data = {name: LAYOUTS[layout](t) for name, t in known.data.items()}
    assert any(not t.is_contiguous() or t.storage_offset() for t in data.values())
    assert_equal(solver.solve(program(data, known.cones)), wanted)


@each_mixture
def test_deterministic(solver: ConeSolver, kind: str) -> None:
    known = batch_of(kind, 3)
    assert_equal(solver.solve(known.program()), solver.solve(known.program()))


def csr(t: Tensor) -> Tensor:
    """All entries, those that are zero as well, in every matrix of a batch."""
    batch, (rows, columns) = t.shape[:-2], t.shape[-2:]
    crow = torch.arange(0, rows * columns + 1, columns).expand(*batch, -1)
    col = torch.arange(columns).repeat(rows).expand(*batch, -1)
    entries = t.flatten(-2).contiguous()
    return torch.sparse_csr_tensor(
        crow.contiguous(), col.contiguous(), entries, t.shape, check_invariants=True
    )


@each_kind
def test_sparse_data_are_as_dense_ones(solver: ConeSolver, kind: str) -> None:
    known = batch_of(kind, 3)
    A, P, b = known.data["A"], known.data["P"], known.data["b"]
    if known.x.shape[-1] > 3:  # with zeros in them, and still a single solution
        b[..., 0] -= A[..., 0, -1] * known.x[..., -1]
        known.data["q"][..., -1] += A[..., 0, -1] * known.z[..., 0]
        A[..., 0, -1] = 0
        P[..., 0, -1] += P[..., -1, 0]
        P[..., -1, 0] = 0
    dense = solver.solve(known.program())
    matrices = {name: csr(known.data[name]) for name in ("P", "A")}
    found = solver.solve(program(known.data | matrices, known.cones))
    assert torch.equal(found.status, dense.status)
    torch.testing.assert_close(found.x, known.x, rtol=1e-7, atol=1e-7)
    for output in OUTPUTS:
        torch.testing.assert_close(
            getattr(found, output), getattr(dense, output), rtol=1e-7, atol=1e-7
        )


@each_solver
def test_only_one_matrix_is_sparse_or_shared(solver: ConeSolver) -> None:
    known = batch_of("second-order and linear", 1)
    shift = 0.1 * torch.arange(3.0, dtype=torch.float64)[:, None]
    data = part(known.data, 0) | {"q": known.data["q"] + shift}
    wanted = solver.solve(program(data, known.cones))
    for name in ("P", "A"):
        one = data | {name: data[name].to_sparse_csr()}
        found = solver.solve(program(one, known.cones))
        for output in OUTPUTS:
            torch.testing.assert_close(
                getattr(found, output), getattr(wanted, output), rtol=1e-9, atol=1e-9
            )


@each_solver
def test_float32_in_and_out(solver: ConeSolver) -> None:
    known = batch_of("second-order and linear", 2)
    data = {name: t.float() for name, t in known.data.items()}
    solution = solver.solve(program(data, known.cones))
    assert (solution.status == Status.SOLVED).all()
    for output in (*OUTPUTS, "primal_residual", "dual_residual", "duality_gap"):
        assert getattr(solution, output).dtype == torch.float32
    torch.testing.assert_close(solution.x, known.x.float(), rtol=1e-4, atol=1e-4)


# --- threads and processes ------------------------------------------------------------------------


@each_solver
def test_many_threads_at_once(solver: ConeSolver) -> None:
    programs = [batch_of("all that SCS has", 4, seed).program() for seed in range(4)]
    wanted = [solver.solve(problem) for problem in programs]
    found: list[Solution | None] = [None] * len(programs)
    start = threading.Barrier(len(programs))

    def work(i: int) -> None:
        start.wait(timeout=30)
        for _ in range(2):
            found[i] = solver.solve(programs[i])

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    for one, other in zip(found, wanted, strict=True):
        assert one is not None
        assert_equal(one, other)


@each_solver
def test_the_number_of_threads_does_not_matter(solver: ConeSolver) -> None:
    problem, before = batch_of("all that SCS has", 5).program(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(solver.solve(problem))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert_equal(*found)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@each_solver
def test_in_a_forked_process(solver: ConeSolver) -> None:
    known = batch_of("all that SCS has", 4)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        wanted = solver.solve(known.program())  # so that there are threads to be lost
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)

        def work() -> None:
            solution = solver.solve(known.program())
            theirs.send({name: getattr(solution, name).numpy() for name in EVERYTHING})

        process = context.Process(target=work)
        process.start()
        arrived = ours.poll(timeout=60)
        found = ours.recv() if arrived else None
        process.join(timeout=10)
        process.kill()
        assert arrived
    finally:
        torch.set_num_threads(before)
    for name in EVERYTHING:
        assert torch.equal(torch.from_numpy(found[name]), getattr(wanted, name)), name


# --- the rest -------------------------------------------------------------------------------------


@each_solver
def test_verbose_prints_a_table(solver: ConeSolver, capfd: pytest.CaptureFixture[str]) -> None:
    data, cones, _ = failing("infeasible")
    type(solver)(verbose=True).solve(program(data, cones))
    printed = capfd.readouterr().out
    assert type(solver).__name__ in printed
    assert "SOLVED" in printed
    assert "PRIMAL_INFEASIBLE" in printed
    solver.solve(program(data, cones))
    output = capfd.readouterr()
    assert output.out == output.err == ""


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
@each_solver
def test_looser_tolerances_are_kept(solver: ConeSolver, eps: float) -> None:
    known = batch_of("all that SCS has", 3)
    loose = type(solver)(eps_abs=eps, eps_rel=eps)
    solution = loose.solve(known.program())
    assert (solution.status == Status.SOLVED).all()
    torch.testing.assert_close(solution.objective, known.objective, rtol=10 * eps, atol=10 * eps)


def test_solvers_are_compared_by_value() -> None:
    assert Clarabel() == Clarabel()
    assert Clarabel() != Clarabel(max_iter=3)
    assert Clarabel() != SCS()
    assert len({SCS(), SCS(), SCS(eps_abs=1e-3)}) == 2


def test_scs_says_what_it_cannot() -> None:
    box = BoxCone((-1.0,), (1.0,))
    for cones, text in (
        ([box, box], "SCS: at most one BoxCone is possible; got 2. Use Clarabel"),
        ([GeneralizedPowerCone((0.5, 0.5), dim=1)], "SCS: a cone of type GeneralizedPowerCone"),
        ([], "SCS: at least one row is needed; got none. Use Clarabel"),
        ([ZeroCone(0)], "SCS: at least one row is needed; got none. Use Clarabel"),
    ):
        rows = sum(cone.rows for cone in cones)
        data = {"q": torch.zeros(2), "A": torch.zeros(rows, 2), "b": torch.zeros(rows)}
        problem: ConeProgram = program({k: t.double() for k, t in data.items()}, cones)
        with pytest.raises(ValueError, match=text):
            SCS().solve(problem)


def test_dual_cones_are_spelt_by_their_definition() -> None:
    """The image of a dual cone is Clarabel's cone, on the boundary and inside."""
    _, T = spell(ConeProduct.of([ExponentialCone(dual=True)]))
    assert T is not None
    u, v = -0.7, 0.4
    boundary = tensor([u, v, -u * 2.718281828459045 ** (v / u - 1)])
    x, y, z = (torch.from_numpy(T.toarray()) @ boundary).tolist()
    assert y * 2.718281828459045 ** (x / y) == pytest.approx(z)
