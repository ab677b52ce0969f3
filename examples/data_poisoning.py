r"""
Which data points could spoil a classifier
==========================================

A classifier is a function of the data it was fitted to. With logistic regression as a convex layer
that function has a derivative, and the derivative of the *test* loss with respect to each
*training* point tells which points to move, and where to, to do the most harm. The experiment is
that of `Differentiable Convex Optimization Layers <https://arxiv.org/abs/1910.12430>`_, section 6,
with data drawn anew; and since arrows are cheap, we move the points and fit again.
"""

# %%
# A full run takes some seconds; with ``OPTLAYERS_SMALL=1`` the attack and its control are shorter.

import os
import time

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from scipy.optimize import minimize
from torch.nn.functional import softplus

import optlayers as ol

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
POINTS = 30  # to train on, and again to test with
L1, L2 = 0.05, 0.05
REACH = 0.3  # how far the attack may move a point
ROUNDS = 3 if SMALL else 15
LENGTHS = torch.linspace(0, 1, 3 if SMALL else 9)  # of a step, as shares of REACH
RANDOM_MOVES = 5 if SMALL else 40
PICTURE = "data_poisoning.png"
SEED = 3

torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the problems are too small for a second one

# %%
# Two clouds, and an elastic net
# ------------------------------
# Points of two classes in the plane, :math:`y = \pm 1`. Logistic regression minimises
#
# .. math::
#
#     \frac1N \sum_i \log\bigl(1 + e^{-y_i (a^\top x_i + b)}\bigr)
#     + 0.05 \, \|a\|_1 + 0.05 \, \|a\|_2^2 .
#
# As a conic program it needs two exponential cones for each point. Here it is as one would write it
# down, with the points as its parameter.


def draw():
    y = torch.ones(POINTS)
    y[::2] = -1
    centre = torch.tensor([1.0, 0.6])
    return y[:, None] * centre + torch.randn(POINTS, 2), y


(X, y), (X_test, y_test) = draw(), draw()

a, b, points = cp.Variable(2), cp.Variable(), cp.Parameter((POINTS, 2))
losses = cp.logistic(cp.multiply(-y.numpy(), points @ a + b))
penalty = L1 * cp.norm1(a) + L2 * cp.sum_squares(a)
problem = cp.Problem(cp.Minimize(cp.sum(losses) / POINTS + penalty))
layer = ol.CvxpyLayer(problem, parameters=[points], variables=[a, b])


def test_loss(X):
    """Fit to X (or to each of a batch) and say what the fit is worth on the test points."""
    a, b = layer(X)
    scores = a @ X_test.T + b[..., None]
    return softplus(-y_test * scores).mean(-1)


def gradient(X):
    X = X.clone().requires_grad_()
    loss = test_loss(X)
    (direction,) = torch.autograd.grad(loss, X)
    return loss.item(), direction


start = time.perf_counter()
clean_loss, arrows = gradient(X)
seconds = time.perf_counter() - start
print(f"test loss {clean_loss:.4f}, and its gradient for {POINTS} points in {seconds:.2f} s")

# %%
# Are the arrows right?
# ---------------------
# An independent witness: another solver fits the same model, to data in which one coordinate of one
# point is moved by a little to either side. With :math:`a = p - m` and :math:`p, m \ge 0` the
# elastic net is smooth, as a quasi-Newton method wants it.


def test_loss_by_scipy(X):
    def objective(v):
        v = torch.tensor(v, requires_grad=True)
        a = v[:2] - v[2:4]
        loss = softplus(-y * (X @ a + v[4])).mean() + L1 * v[:4].sum() + L2 * a.square().sum()
        (slope,) = torch.autograd.grad(loss, v)
        return loss.item(), slope.numpy()

    bounds = [(0, None)] * 4 + [(None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-10}
    v = torch.tensor(
        minimize(objective, [0.1] * 5, jac=True, bounds=bounds, options=options).x
    )  # fmt: skip
    return softplus(-y_test * (X_test @ (v[:2] - v[2:4]) + v[4])).mean().item()


def difference_quotient(i, j, h=0.01):
    there, back = X.clone(), X.clone()
    there[i, j] += h
    back[i, j] -= h
    return (test_loss_by_scipy(there) - test_loss_by_scipy(back)) / (2 * h)


strongest = arrows.norm(dim=1).argsort(descending=True)[:5].tolist()
quotients = torch.tensor([[difference_quotient(i, j) for j in (0, 1)] for i in strongest])
error = ((arrows[strongest] - quotients).norm() / quotients.norm()).item()
print(f"relative error against refitting with scipy, for the five largest arrows: {error:.1e}")

# %%
# One step, and a control
# -----------------------
# All points move along their arrows, those with long arrows more: at most by 0.3 for the first of
# them. The straight line of the gradient is a promise about small steps; refitting tells how long
# it holds. Moves of the same size in random directions show what noise alone would do.

step = REACH * arrows / arrows.norm(dim=1).max()
random_moves = torch.randn(RANDOM_MOVES, POINTS, 2)
random_moves *= (step.norm() / random_moves.flatten(1).norm(dim=1))[:, None, None]
with torch.no_grad():
    along = test_loss(X + LENGTHS[:, None, None] * step)
    at_random = test_loss(X + random_moves)
promised = clean_loss + LENGTHS * (arrows * step).sum()
print(
    f"a step of {REACH} along the gradient: {clean_loss:.4f} to {along[-1]:.4f} refitted, "
    f"{promised[-1]:.4f} promised; {RANDOM_MOVES} random moves of that size: "
    f"{at_random.min():.4f} to {at_random.max():.4f}"
)

# %%
# An attack in several rounds
# ---------------------------
# Nobody says that points with short arrows have to stay where they are. Now every point may go
# anywhere within 0.3 of its place: go along the gradient, return to the disc, fit again.

poisoned, attack = X.clone(), [clean_loss]
for _ in range(ROUNDS):
    _, direction = gradient(poisoned)
    move = poisoned + REACH / 2 * direction / direction.norm(dim=1, keepdim=True) - X
    poisoned = X + move * (REACH / move.norm(dim=1, keepdim=True)).clamp(max=1)
    with torch.no_grad():
        attack.append(test_loss(poisoned).item())
by_scipy = test_loss_by_scipy(poisoned)
with torch.no_grad():
    weights = layer(poisoned)[0].round(decimals=3).abs()
print(
    f"after {ROUNDS} rounds of all points within {REACH}: test loss {attack[-1]:.4f} "
    f"({by_scipy:.4f} refitted with scipy), weights {weights[0]:.3f} and {weights[1]:.3f}"
)

# %%
# The pictures
# ------------
# On the left, arrows at the training points. Those near the line and on its wrong side pull the
# most: well-classified points have little say in the fit. In the middle, the points have moved and
# the line with them, although none of the points has gone far. The line ends up vertical: the
# attack has pushed the second weight to the kink of the elastic net, where it is zero. There a
# little more or less does not change it, the gradient is silent about it, and the attack is over.


def draw_points(axes, X):
    for label, color in ((1, "tab:blue"), (-1, "tab:orange")):
        axes.plot(*X[y == label].T, "o", color=color, markersize=6, markeredgecolor="white")
        axes.plot(*X_test[y_test == label].T, "x", color=color, markersize=4, alpha=0.45)
    axes.set(xlim=(-4, 4), ylim=(-3.2, 4.2), aspect="equal", xlabel="$x_1$", ylabel="$x_2$")


def draw_line(axes, X, **style):
    with torch.no_grad():
        a, b = layer(X)
    ends = torch.tensor([-5.0, 5.0])
    axes.plot(-(b + a[1] * ends) / a[0], ends, **style)


figure, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4.4), width_ratios=(5, 5, 4), layout="constrained"
)  # fmt: skip
draw_points(left, X)
draw_line(left, X, color="black", linewidth=1.2)
left.quiver(
    *X.T, *arrows.T, angles="xy", scale_units="xy", scale=arrows.norm(dim=1).max().item() / 1.2,
    width=0.006, color="tab:red", zorder=3,
)  # fmt: skip
left.set(title="Gradient of the test loss")
draw_points(middle, poisoned)
for old, new in zip(X, poisoned, strict=True):
    middle.plot(*torch.stack([old, new]).T, color="0.5", linewidth=1)
draw_line(middle, X, color="black", linewidth=1.2, linestyle=":", label="before")
draw_line(middle, poisoned, color="tab:red", linewidth=1.5, label="after")
middle.legend(frameon=False, fontsize=9, loc="lower left")
middle.set(title=f"{ROUNDS} rounds, no point moved more than {REACH}")
right.plot(REACH * LENGTHS, along, "o-", color="tab:red", markersize=4, label="one step, refitted")
right.plot(REACH * LENGTHS, promised, "--", color="tab:red", label="one step, promised")
right.plot(
    [REACH] * RANDOM_MOVES, at_random, "_", color="0.5", markersize=12, label="random, same size"
)
right.axhline(attack[-1], color="black", linewidth=1, label=f"{ROUNDS} rounds")
right.set(title="Test loss", xlabel="largest move of a point")
right.legend(frameon=False, fontsize=9)
for axes in (left, middle, right):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(PICTURE, dpi=150)

# %%

print(
    f"Test loss {clean_loss:.4f} to {along[-1]:.4f} in one step ({promised[-1]:.4f} promised) and "
    f"to {attack[-1]:.4f} in {ROUNDS} rounds, gradient error {error:.1e}; see {PICTURE}"
)
