"""Projections: the variational inequality that defines them, derivatives, transforms."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import vmap

from solvers.projection import (
    project_affine,
    project_box,
    project_halfspace,
    project_hyperplane,
    project_l1_ball,
    project_l2_ball,
    project_nonnegative,
    project_simplex,
)

B, N, P = 40, 6, 2


def rand(*shape, seed=0, low=-1.0, high=1.0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.uniform(low, high, shape))


NORMAL, OFFSET = rand(N, seed=1), torch.tensor(0.3, dtype=torch.float64)
ROWS, RIGHT = rand(P, N, seed=2), rand(P, seed=3)
LOWER, UPPER = rand(N, low=-1.0, high=-0.2), rand(N, low=0.1, high=1.0)
RADIUS = torch.tensor(0.8, dtype=torch.float64)

# The projection and its parameters, which it takes after x.
SETS = {
    "box": (project_box, (LOWER, UPPER)),
    "nonnegative": (project_nonnegative, ()),
    "simplex": (project_simplex, (RADIUS,)),
    "l1_ball": (project_l1_ball, (RADIUS,)),
    "l2_ball": (project_l2_ball, (RADIUS,)),
    "hyperplane": (project_hyperplane, (NORMAL, OFFSET)),
    "halfspace": (project_halfspace, (NORMAL, OFFSET)),
    "affine": (project_affine, (ROWS, RIGHT)),
}
IN_THE_SET = {
    "box": lambda u: (u >= LOWER).all() and (u <= UPPER).all(),
    "nonnegative": lambda u: (u >= 0).all(),
    "simplex": lambda u: (u >= 0).all() and ((u.sum(-1) - RADIUS).abs() < 1e-14).all(),
    "l1_ball": lambda u: (u.abs().sum(-1) <= RADIUS + 1e-14).all(),
    "l2_ball": lambda u: (u.norm(dim=-1) <= RADIUS + 1e-14).all(),
    "hyperplane": lambda u: ((u @ NORMAL - OFFSET).abs() < 1e-13).all(),
    "halfspace": lambda u: (u @ NORMAL - OFFSET < 1e-13).all(),
    "affine": lambda u: ((u @ ROWS.T - RIGHT).abs() < 1e-13).all(),
}


def points(seed=10):
    """Some near, some far, some with equal entries."""
    x = rand(B, N, seed=seed, low=-2.0, high=2.0)
    x[:10] *= 0.05
    x[10:15] = x[10:15].round()
    x[15] = 0.0
    return x


@pytest.mark.parametrize("name", SETS)
def test_gives_points_of_the_set_and_leaves_those_alone(name):
    project, parameters = SETS[name]
    u = project(points(), *parameters)
    assert IN_THE_SET[name](u)
    torch.testing.assert_close(project(u, *parameters), u, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SETS)
def test_no_point_of_the_set_is_nearer(name):
    """The variational inequality: <x - P(x), u - P(x)> <= 0 for all u in the set."""
    project, parameters = SETS[name]
    x = points()
    nearest = project(x, *parameters)
    others = project(points(11), *parameters)
    angles = torch.einsum("bn,bcn->bc", x - nearest, others[None] - nearest[:, None])
    assert angles.max() < 1e-12


@pytest.mark.parametrize("name", SETS)
def test_distances_do_not_grow(name):
    project, parameters = SETS[name]
    x, y = points(), points(12)
    moved = (project(x, *parameters) - project(y, *parameters)).norm(dim=-1)
    assert (moved <= (x - y).norm(dim=-1) + 1e-14).all()


@pytest.mark.parametrize("name", ["simplex", "l1_ball", "affine"])
def test_agrees_with_cvxpy(name):
    project, parameters = SETS[name]
    x, u = points()[::5], cp.Variable(N)
    constraints = {
        "simplex": [u >= 0, cp.sum(u) == 0.8],
        "l1_ball": [cp.norm1(u) <= 0.8],
        "affine": [ROWS.numpy() @ u == RIGHT.numpy()],
    }[name]
    for target, nearest in zip(x, project(x, *parameters), strict=True):
        cp.Problem(cp.Minimize(cp.sum_squares(u - target.numpy())), constraints).solve(cp.CLARABEL)
        np.testing.assert_allclose(nearest.numpy(), u.value, atol=1e-4)


@pytest.mark.parametrize("name", SETS)
def test_derivatives_away_from_kinks(name):
    project, parameters = SETS[name]
    inputs = [rand(3, N, seed=20, low=-2.0, high=2.0), *(p.clone() for p in parameters)]
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(project, inputs)
    assert torch.autograd.gradgradcheck(project, inputs)


@pytest.mark.parametrize("name", SETS)
def test_derivatives_are_finite_at_kinks(name):
    project, parameters = SETS[name]
    x = torch.cat((torch.zeros(1, N), torch.ones(1, N), torch.full((1, N), 0.8 / N))).double()
    inputs = [t.clone().requires_grad_() for t in (x, *parameters)]
    for gradient in torch.autograd.grad(project(*inputs).square().sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", SETS)
def test_vmap_is_a_batch(name):
    project, parameters = SETS[name]
    x = points()
    mapped = vmap(lambda x: project(x, *parameters))(x)
    torch.testing.assert_close(mapped, project(x, *parameters), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", [n for n in SETS if n not in ("nonnegative",)])
def test_parameters_of_each_sample(name):
    project, parameters = SETS[name]
    x = points()[:4]
    many = [torch.stack([p * (1 + 0.1 * i) for i in range(4)]) for p in parameters]
    together = project(x, *many)
    for i in range(4):
        alone = project(x[i], *(p[i] for p in many))
        torch.testing.assert_close(together[i], alone, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(0, N), (2, 3, N)])
def test_shapes_and_types(name, shape):
    project, parameters = SETS[name]
    for dtype in (torch.float32, torch.float64):
        x = rand(*shape).to(dtype)
        u = project(x, *(p.to(dtype) for p in parameters))
        assert (u.shape, u.dtype) == (x.shape, dtype)


@pytest.mark.parametrize("name", SETS)
def test_a_sample_that_is_not_a_number_stays_alone(name):
    project, parameters = SETS[name]
    x = points()
    spoiled = x.clone()
    spoiled[3] = torch.nan
    u, beside = project(x, *parameters), project(spoiled, *parameters)
    kept = torch.arange(B) != 3
    assert torch.equal(u[kept], beside[kept])
    assert beside[3].isnan().all()


def test_one_entry():
    x = torch.tensor([[3.0], [-2.0]])
    assert project_simplex(x).tolist() == [[1.0], [1.0]]
    assert project_l1_ball(x).tolist() == [[1.0], [-1.0]]
    assert project_l2_ball(x, 0.5).tolist() == [[0.5], [-0.5]]


def test_sets_that_are_points():
    x = points()
    assert (project_simplex(x, 0.0) == 0.0).all()
    assert (project_l1_ball(x, 0.0) == 0.0).all()
    assert (project_l2_ball(x, 0.0) == 0.0).all()


def test_affine_without_rows():
    x = points()
    nowhere = project_affine(x, torch.zeros(0, N).double(), torch.zeros(0).double())
    assert torch.equal(nowhere, x)


def test_wrong_arguments_are_refused():
    x = points()
    for project in (project_l1_ball, project_l2_ball):
        with pytest.raises(ValueError, match="radius must not be negative; got -1"):
            project(x, -1.0)
    with pytest.raises(ValueError, match="total must not be negative; got -2"):
        project_simplex(x, -2.0)
    for project in (project_hyperplane, project_halfspace):
        with pytest.raises(
            ValueError, match=r"a must have shape \(\*batch, 6\), like x; got \(5,\)"
        ):
            project(x, torch.ones(5), 1.0)
    with pytest.raises(ValueError, match=r"Did you mean A.mT\?"):
        project_affine(x, ROWS.T, RIGHT)
