"""Sequential quadratic programming against known optima, SciPy, and optimality conditions."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from solvers.derivatives import gradient, jacobian
from solvers.minimize import SQP, ScipyMinimize
from solvers.minimize.sqp import Problem, _iterates
from solvers.solution import Status

F64 = torch.float64


def rows(*parts):
    return torch.stack(parts, -1)


def times(x, places):
    return x[..., places].prod(-1)


def four(x):
    a, b, c, d = x.unbind(-1)
    return a**2 + b**2 + 2 * c**2 + d**2 - 5 * a - 5 * b - 21 * c + 7 * d


def limits_of_four(x):
    a, b, c, d = x.unbind(-1)
    return rows(
        a**2 + b**2 + c**2 + d**2 + a - b + c - d - 8,
        a**2 + 2 * b**2 + c**2 + 2 * d**2 - a - d - 10,
        2 * a**2 + b**2 + c**2 + 2 * a - b - d - 5,
    )


def curves_of_four(x):
    a, b, c, d = x.unbind(-1)
    return rows(a**3 + b**2 - 1, a**2 * d - c, d**2 - b)


def of_five(x):
    a, b, c, d, e = x.unbind(-1)
    return rows(x.square().sum(-1) - 10, b * c - 5 * d * e, a**3 + b**3 + 1)


def seven(x):
    a, b, c, d, e, f, g = x.unbind(-1)
    squares = (a - 10) ** 2 + 5 * (b - 12) ** 2 + 3 * (d - 11) ** 2 + 7 * f**2
    return squares + c**4 + 10 * e**6 + g**4 - 4 * f * g - 10 * f - 8 * g


def limits_of_seven(x):
    a, b, c, d, e, f, g = x.unbind(-1)
    return rows(
        2 * a**2 + 3 * b**4 + c + 4 * d**2 + 5 * e - 127,
        7 * a + 3 * b + 10 * c**2 + d - e - 282,
        23 * a + b**2 + 6 * f**2 - 8 * g - 196,
        4 * a**2 + b**2 - 3 * a * b + 2 * c**2 + 5 * f - 11 * g,
    )


def twice(function):
    return lambda x: torch.cat([function(x), 2 * function(x)], -1)


BOX = torch.tensor([2.3, 2.3, 3.2, 3.2, 3.2], dtype=F64)
# Of Hock and Schittkowski, Test examples for nonlinear programming codes, 1981, by their numbers;
# Maratos's circle, on which steps along the curve raise both the objective and the violation.
PROBLEMS = {
    "6": (
        lambda x: (1 - x[..., 0]) ** 2,
        [-1.2, 1],
        {"equalities": lambda x: rows(10 * (x[..., 1] - x[..., 0] ** 2))},
        0.0,
    ),
    "7": (
        lambda x: torch.log1p(x[..., 0] ** 2) - x[..., 1],
        [2, 2],
        {"equalities": lambda x: rows((1 + x[..., 0] ** 2) ** 2 + x[..., 1] ** 2 - 4)},
        -math.sqrt(3),
    ),
    "39": (
        lambda x: -x[..., 0],
        [2, 2, 2, 2],
        {
            "equalities": lambda x: rows(
                x[..., 1] - x[..., 0] ** 3 - x[..., 2] ** 2,
                x[..., 0] ** 2 - x[..., 1] - x[..., 3] ** 2,
            )
        },
        -1.0,
    ),
    "40": (lambda x: -x.prod(-1), [0.8] * 4, {"equalities": curves_of_four}, -0.25),
    "43": (four, [0.0] * 4, {"inequalities": limits_of_four}, -44.0),
    "71": (
        lambda x: times(x, [0, 3]) * x[..., :3].sum(-1) + x[..., 2],
        [1, 5, 5, 1],
        {
            "equalities": lambda x: rows(x.square().sum(-1) - 40),
            "inequalities": lambda x: rows(25 - x.prod(-1)),
            "lower": torch.tensor(1.0, dtype=F64),
            "upper": torch.tensor(5.0, dtype=F64),
        },
        17.0140172891,
    ),
    "78": (lambda x: x.prod(-1), [-2, 1.5, 2, -1, -1], {"equalities": of_five}, -2.91970040911),
    "80": (
        lambda x: x.prod(-1).exp(),
        [-2, 2, 2, -1, -1],
        {"equalities": of_five, "lower": -BOX, "upper": BOX},
        0.0539498477624,
    ),
    "100": (seven, [1, 2, 0, 4, 0, 1, 1], {"inequalities": limits_of_seven}, 680.630057374),
    "Maratos": (
        lambda x: 2 * (x.square().sum(-1) - 1) - x[..., 0],
        [math.cos(1.0), math.sin(1.0)],
        {"equalities": lambda x: rows(x.square().sum(-1) - 1)},
        -1.0,
    ),
    "linear": (
        lambda x: -x.sum(-1),
        [0.1, 0.2, 0.3],
        {
            "inequalities": lambda x: rows(x.sum(-1) - 1, x[..., 0] - 0.2),
            "lower": torch.tensor(0.0, dtype=F64),
        },
        -1.0,
    ),
    "dependent inequalities": (four, [0.0] * 4, {"inequalities": twice(limits_of_four)}, -44.0),
    "dependent equalities": (
        lambda x: -x.prod(-1),
        [0.8] * 4,
        {"equalities": twice(curves_of_four)},
        -0.25,
    ),
    "other units": (
        lambda x: 1e4 * four(100 * x),
        [0.0] * 4,
        {"inequalities": lambda x: 1e-3 * limits_of_four(100 * x)},
        -44e4,
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_known_optima(name):
    f, start, constraints, best = PROBLEMS[name]
    x0 = torch.tensor([start], dtype=F64)
    solution = SQP().solve(f, x0, **constraints)
    assert solution.status.tolist() == [Status.SOLVED]
    assert solution.primal_residual.item() < 1e-9
    assert solution.objective.item() == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert int(solution.iterations) < 30
    # Karush, Kuhn and Tucker.
    x, of_rows = solution.x, 0.0
    for of, multipliers in (("equalities", solution.y), ("inequalities", solution.z)):
        if of in constraints:
            J = jacobian(constraints[of], x)
            of_rows = of_rows + (J.mT @ multipliers[..., None])[..., 0]
    of_box = 0.0 if solution.z_box is None else solution.z_box
    g = gradient(f, x)
    assert (g + of_rows + of_box).norm() <= 1e-7 * (1 + g.norm())
    if "inequalities" in constraints:
        assert (solution.z >= -1e-12).all()
        assert (solution.z * constraints["inequalities"](x)).abs().max() <= 1e-7 * (1 + g.norm())


def random_problem(batch, n, dtype=F64):
    rng = torch.Generator().manual_seed(n)
    Q = torch.randn(*batch, n, n, generator=rng, dtype=F64)
    Q = (Q @ Q.mT / n + 0.1 * torch.eye(n, dtype=F64)).to(dtype)
    q, a, b, x0 = torch.randn(4, *batch, n, generator=rng, dtype=F64).to(dtype)

    def f(x):
        return 0.5 * (x[..., None, :] @ Q @ x[..., None])[..., 0, 0] + (q * x).sum(-1)

    def h(x):
        return rows(torch.tanh(a * x).sum(-1) - 0.1)

    def c(x):
        return rows(x.square().sum(-1) - 1, (b * x).sum(-1) - 0.2, x[..., 0].exp() + x[..., 1] - 2)

    return f, x0, h, c


def test_several_batch_dimensions_agree_with_scipy_one_by_one():
    f, x0, h, c = random_problem((2, 3), 6)
    found = SQP().solve(f, x0, equalities=h, inequalities=c, upper=torch.tensor(0.5))
    wanted = ScipyMinimize("SLSQP").solve(
        f, x0, equalities=h, inequalities=c, upper=torch.tensor(0.5)
    )
    assert found.status.shape == (2, 3)
    assert found.solved.all()
    torch.testing.assert_close(found.objective, wanted.objective, rtol=1e-8, atol=1e-8)
    for name in ("x", "y", "z", "z_box"):
        one, other = getattr(found, name), getattr(wanted, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert found.z.count_nonzero() >= 6
    assert found.z_box.count_nonzero() >= 1


def test_samples_do_not_depend_on_their_company():
    f, x0, h, c = random_problem((5,), 4)
    whole = SQP().solve(f, x0, equalities=h, inequalities=c)
    start = x0.clone()
    start[2] = torch.nan
    spoilt = SQP().solve(f, start, equalities=h, inequalities=c)
    others = [0, 1, 3, 4]
    assert spoilt.status.tolist() == [0, 0, Status.NUMERICAL_ERROR, 0, 0]
    torch.testing.assert_close(spoilt.x[others], whole.x[others], rtol=1e-10, atol=1e-10)
    assert torch.equal(spoilt.iterations[others], whole.iterations[others])


def test_single_precision_and_inputs_unmodified():
    f, x0, h, c = random_problem((3,), 4, torch.float32)
    before = x0.clone()
    found = SQP().solve(f, x0, equalities=h, inequalities=c)
    assert torch.equal(x0, before)
    assert found.x.dtype == found.z.dtype == torch.float32
    assert found.solved.all()
    assert found.primal_residual.max() < 1e-5
    double, start, h, c = random_problem((3,), 4)
    exact = SQP().solve(double, start, equalities=h, inequalities=c)
    torch.testing.assert_close(found.x.double(), exact.x, rtol=0, atol=1e-3)


def test_without_batch_dimensions_and_without_samples():
    f, x0, h, c = random_problem((), 5)
    alone = SQP().solve(f, x0, equalities=h, inequalities=c)
    assert (alone.x.shape, alone.status.shape, alone.y.shape) == ((5,), (), (1,))
    f, x0, h, c = random_problem((0,), 5)
    nobody = SQP().solve(f, x0, equalities=h, inequalities=c)
    assert (nobody.x.shape, nobody.status.shape, nobody.z.shape) == ((0, 5), (0,), (0, 3))


def test_free_and_between_bounds():
    target = torch.tensor([[0.5, 2.0, -3.0]], dtype=F64)

    def f(x):
        return (x - target).square().sum(-1)

    x0 = torch.full((1, 3), 7.0, dtype=F64)
    free = SQP().solve(f, x0)
    torch.testing.assert_close(free.x, target, rtol=1e-9, atol=1e-9)
    assert free.y is free.z is free.z_box is None
    boxed = SQP().solve(f, x0, lower=torch.zeros(3), upper=torch.ones(3))
    assert ((boxed.x >= 0) & (boxed.x <= 1)).all()
    torch.testing.assert_close(boxed.x, target.clamp(0, 1), rtol=0, atol=1e-15)
    wanted = torch.tensor([[0.0, 2.0, -6.0]], dtype=F64)
    torch.testing.assert_close(boxed.z_box, wanted, rtol=1e-9, atol=1e-9)


def test_linearisations_without_a_point_in_common_are_overcome():
    # At the start the circle's linearisation is out of the half-plane's reach.
    def circle(x):
        return rows(x.square().sum(-1) - 1)

    def half_plane(x):
        return rows(x[..., 0] - 0.5, 0.4 - x[..., 0], -x[..., 1])

    x0 = torch.tensor([[0.1, 1e-3]], dtype=F64)
    found = SQP().solve(lambda x: x[..., 0], x0, equalities=circle, inequalities=half_plane)
    assert found.solved.all()
    wanted = torch.tensor([[0.4, math.sqrt(1 - 0.16)]], dtype=F64)
    torch.testing.assert_close(found.x, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["contradiction", "stuck", "unbounded", "not a number"])
def test_what_has_no_solution_is_not_called_solved(case):
    def circle(x):
        return rows(x.square().sum(-1) - 1)

    def far(x):
        return rows(2 - x[..., 0])

    def f(x):
        if case == "stuck":
            return x.square().sum(-1)
        return x.sum(-1) * (torch.nan if case == "not a number" else 1.0)

    start = torch.tensor([[0.0, 0.0] if case == "stuck" else [0.3, 0.1]], dtype=F64)
    constraints = {
        "contradiction": {"equalities": circle, "inequalities": far},
        "stuck": {"equalities": circle},  # all gradients vanish there
        "unbounded": {"inequalities": lambda x: rows(x[..., 0] - 1)},
        "not a number": {"inequalities": far},
    }
    found = SQP().solve(f, start, **constraints[case])
    assert found.status.item() > Status.SOLVED_INACCURATE


def test_running_out_of_iterations_is_a_status():
    f, x0, h, c = random_problem((3,), 6)
    found = SQP(max_iter=2).solve(f, x0, equalities=h, inequalities=c)
    assert (found.status == Status.MAX_ITERATIONS).all()
    assert (found.iterations == 2).all()


@pytest.mark.parametrize("name", ["7", "40", "43", "71", "100"])
def test_convergence_is_superlinear(name):
    f, start, constraints, _ = PROBLEMS[name]
    x0 = torch.tensor([start], dtype=F64)
    best = SQP(eps_abs=1e-14, eps_rel=1e-14).solve(f, x0, **constraints).x
    parts = [constraints[k] for k in ("equalities", "inequalities") if k in constraints]
    p = constraints["equalities"](x0).shape[-1] if "equalities" in constraints else 0
    ends = [None if k not in constraints else constraints[k].expand(1, x0.shape[-1])
            for k in ("lower", "upper")]  # fmt: skip
    everything = lambda x: torch.cat([f(x)[:, None], *[c(x) for c in parts]], -1)  # noqa: E731
    iterates = _iterates(Problem(everything, p, *ends), x0)
    seen = SimpleNamespace(running=torch.ones(1, dtype=torch.bool))
    with torch.no_grad():
        points = [next(iterates).x] + [iterates.send(seen).x for _ in range(25)]
    errors = [float((x[:, : x0.shape[-1]] - best).norm()) for x in points]
    errors = [e for e in errors if e > 1e-8]
    rates = [b / a for a, b in pairwise(errors)]
    assert min(rates[-3:]) < 0.1
    assert math.prod(rates[-3:]) ** (1 / 3) < 0.3


def test_bounds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="upper"):
        SQP().solve(lambda x: x.sum(-1), torch.zeros(2, 3), upper=torch.ones(2))


def test_a_history_is_kept():
    x0 = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=F64)
    found = SQP(keep_history=True).solve(lambda x: x.square().sum(-1), x0)
    assert found.history.shape == (int(found.iterations.max()) + 1, 2)


def test_weights_of_the_merit_may_fall_again():
    """A first step that hardly helps violations made them weigh so much that steps got tiny."""
    rng = torch.Generator().manual_seed(3)
    E, q = (
        torch.randn(16, 2, 3, generator=rng, dtype=F64),
        torch.randn(16, 3, generator=rng).double(),
    )

    def f(x):
        return (x**4).sum(-1) - x.square().sum(-1) + (q * x).sum(-1)

    def h(x):
        return (E @ (x.tanh() + 0.2 * x)[..., None])[..., 0]

    def c(x):
        return rows(x.square().sum(-1) - 4, x[..., 0] - 1)

    x0 = 2 * torch.randn(16, 3, generator=rng, dtype=F64)
    found = SQP().solve(f, x0, equalities=h, inequalities=c)
    assert found.solved.all()
    assert (found.iterations < 60).all()
