r"""
Learning to cut a graph
=======================

To divide the nodes of a graph so that the edges between the two sides weigh as much as possible is
hard. A semidefinite program comes close, as `Goemans and Williamson
<https://doi.org/10.1145/227683.227684>`_ found. As a layer it has a derivative with respect to the
weights of the edges. Here that derivative is first compared with what theory says it is, and then
used: from graphs that were divided by hand, a function is learned that tells the weight of an edge,
and with it the cut finds two moons in points that it never saw.
"""

# %%
# A full run takes under a minute; with ``OPTLAYERS_SMALL=1`` training ends after a few steps.

import itertools
import os
import time

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from tqdm import tqdm

import optlayers as ol

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
SMALL_GRAPH = 10  # few enough nodes to try all cuts
NODES, BATCH = 14 if SMALL else 20, 4
STEPS = 15 if SMALL else 80
TEST = 8 if SMALL else 40
SPREAD = 0.05  # noise of the moons
LEARNING_RATE = 0.1
PICTURE = "max_cut.png"
SEED = 1

torch.manual_seed(SEED)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the problems are too small for a second one

# %%
# The relaxation
# --------------
# With a side :math:`s_i = \pm 1` for each node, a cut weighs :math:`\tfrac12 \sum_{i<j} w_{ij} (1 -
# s_i s_j)`. The relaxation replaces :math:`s s^\top` by any positive semidefinite matrix :math:`X`
# with ones on its diagonal. Its value is an upper bound, and a random hyperplane between the rows
# of a root of :math:`X` gives a cut that, for weights that are not negative, is expected to reach
# 87.8 % of it.


def relaxation(nodes):
    X, W = cp.Variable((nodes, nodes), symmetric=True), cp.Parameter((nodes, nodes))
    problem = cp.Problem(cp.Minimize(cp.sum(cp.multiply(W, X))), [X >> 0, cp.diag(X) == 1])
    return ol.CvxpyLayer(problem, parameters=[W], variables=[X])


def weight_of_cut(W, X):
    return (W * (1 - X)).sum((-2, -1)) / 4  # each edge is in W twice


def best_of_hyperplanes(W, X, count=50):
    values, vectors = torch.linalg.eigh(X)
    root = vectors * values.clamp(min=0).sqrt()
    sides = (root @ torch.randn(X.shape[-1], count)).sign().T
    return sides[weight_of_cut(W, sides[:, :, None] * sides[:, None]).argmax()]


upper = torch.rand(SMALL_GRAPH, SMALL_GRAPH).triu(1)
upper *= torch.rand(SMALL_GRAPH, SMALL_GRAPH) < 0.6  # some pairs have no edge
W = (upper + upper.T).requires_grad_()
(X,) = relaxation(SMALL_GRAPH)(W)
bound = weight_of_cut(W, X)
signs = itertools.product((-1.0, 1.0), repeat=SMALL_GRAPH - 1)
all_sides = torch.tensor([(1.0, *rest) for rest in signs])
with torch.no_grad():
    optimum = weight_of_cut(W, all_sides[:, :, None] * all_sides[:, None]).max().item()
    sides = best_of_hyperplanes(W, X)
    rounded = weight_of_cut(W, torch.outer(sides, sides)).item()
print(
    f"{SMALL_GRAPH} nodes: bound {bound:.4f}, best of {len(all_sides)} cuts {optimum:.4f}, "
    f"best of 50 hyperplanes {rounded:.4f}"
)

# %%
# The derivative that theory demands
# ----------------------------------
# By the envelope theorem the bound changes with the weights as if :math:`X` stayed as it is: its
# gradient is :math:`(1 - X) / 4`. The layer does not know that. It differentiates :math:`X`, and
# what comes of that has to cancel.

(gradient,) = torch.autograd.grad(bound, W)
gradient = (gradient + gradient.T) / 2
envelope = (1 - X.detach()) / 4
error = ((gradient - envelope).norm() / envelope.norm()).item()
print(f"relative error of the gradient of the bound: {error:.1e}")

# %%
# Graphs that were divided by hand
# --------------------------------
# Points on two moons; all pairs are edges. The weight of an edge is a function of its length
# alone, piecewise linear, and the values at 13 knots are to be learned. It begins as the length
# itself, up to a constant: what is far apart is put on different sides.

knots = torch.linspace(0, 2.4, 13)
spacing = knots[1]


def draw(graphs):
    seeds = torch.randint(2**31, (graphs,)).tolist()
    moons = [make_moons(NODES, noise=SPREAD, random_state=seed) for seed in seeds]
    points, labels = zip(*moons, strict=True)
    points = torch.stack([torch.as_tensor(p) for p in points])
    return points, torch.stack([2.0 * torch.as_tensor(y) - 1 for y in labels])


def edge_weights(values, points):
    lengths = torch.cdist(points, points).clamp(max=knots[-1])
    hats = (1 - (lengths[..., None] - knots).abs() / spacing).clamp(min=0)
    return hats @ values * (1 - torch.eye(NODES))


# %%
# The loss is the share of pairs that :math:`X` has on the wrong sides, :math:`\tfrac12 (1 - s^\top
# X s / n^2)` with the given sides :math:`s`. A solution that is a cut already, of rank one, stays
# put when the weights change a little, and has nothing to say; others, and they are many, move.

layer = relaxation(NODES)


def share_of_wrong_pairs(X, sides):
    return (1 - (sides[:, None] @ X @ sides[:, :, None]).mean() / NODES**2) / 2


def divide(X):
    """The sides of all nodes: signs of the leading eigenvector."""
    return torch.linalg.eigh(X).eigenvectors[..., -1].sign()


@torch.no_grad()
def judge(values):
    (X,) = layer(edge_weights(values, test_points))
    sides = divide(X)
    agreement = (sides * test_sides).mean(1)  # nobody can tell which side is which
    sides *= agreement.sign()[:, None]
    return sides, (1 + agreement.abs()) / 2, share_of_wrong_pairs(X, test_sides).item()


test_points, test_sides = draw(TEST)
first_values = knots / knots[-1] - 0.5
values = first_values.clone().requires_grad_()
optimizer = torch.optim.Adam([values], lr=LEARNING_RATE)
schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=STEPS)
before = judge(values)
losses = []
start = time.perf_counter()
for _ in tqdm(range(STEPS), unit="step", mininterval=0.5, disable=SMALL):
    points, sides = draw(BATCH)
    (X,) = layer(edge_weights(values, points))
    loss = share_of_wrong_pairs(X, sides)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
seconds = time.perf_counter() - start
after = judge(values)
for name, (_, right, wrong) in (("before", before), ("after", after)):
    print(
        f"{name}: {right.mean():.1%} of the nodes of {TEST} test graphs on the right side, "
        f"{int((right == 1).sum())} graphs without a mistake, test loss {wrong:.3f}"
    )

# %%
# What it learned
# ---------------
# Neighbours on a moon are to stay together: short edges weigh less than nothing. Edges as long as
# from one moon to the next push apart, and so do the longest, from end to end of the picture. The
# lengths in between, which are as common within a moon as between two, hardly count any more.

with torch.no_grad():
    weights = {"before": edge_weights(first_values, test_points),
               "after": edge_weights(values, test_points)}  # fmt: skip
shown = int(after[1].argsort(stable=True)[TEST // 2])  # a graph of median quality
figure = plt.figure(figsize=(11.5, 7.2), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(6, 5))
curves = below.subplots(1, 2)
curves[0].plot(losses, color="0.6", label="train (batches)")
curves[0].axhline(before[2], color="tab:orange", linewidth=1.5, label="test, before")
curves[0].axhline(after[2], color="tab:blue", linewidth=1.5, label="test, after")
curves[0].set(title="Share of wrong pairs", xlabel="step", ylim=(0, None))
curves[0].legend(frameon=False, fontsize=9)
for curve, color, label in (
    (first_values, "tab:orange", "before"), (values.detach(), "tab:blue", "after"),
):  # fmt: skip
    scaled = curve / curve.abs().max()
    curves[1].plot(knots, scaled, "o-", color=color, markersize=4, label=label)
curves[1].axhline(0, color="black", linewidth=0.8)
curves[1].set(title="Weight of an edge (largest = 1)", xlabel="length")
curves[1].legend(frameon=False, fontsize=9)
for panel, (name, (sides, right, _)) in zip(
    above.subplots(1, 2), {"before": before, "after": after}.items(), strict=True
):
    points, W = test_points[shown], weights[name][shown]
    for i, j in itertools.combinations(range(NODES), 2):
        w = (W[i, j] / W.abs().max()).item()
        panel.plot(
            *points[[i, j]].T, color="tab:green" if w < 0 else "0.55", linewidth=2 * abs(w),
            alpha=0.65 * abs(w), zorder=0 if w > 0 else 1,
        )  # fmt: skip
    for side, color in ((-1, "tab:purple"), (1, "gold")):
        for truth, marker in ((-1, "s"), (1, "o")):
            chosen = (sides[shown] == side) & (test_sides[shown] == truth)
            panel.plot(
                *points[chosen].T, marker, color=color, markersize=8, markeredgecolor="black"
            )
    panel.set(title=f"{name.capitalize()}: {right[shown]:.0%} right", aspect="equal")
    panel.axis("off")
for panel in curves:
    panel.spines[["top", "right"]].set_visible(False)
figure.savefig(PICTURE, dpi=150)

# %%
# Above, colours are the sides of the cut and shapes the true moons; green edges hold together,
# grey ones push apart, the stronger the wider.

print(
    f"Right sides {before[1].mean():.1%} to {after[1].mean():.1%} of the test nodes after "
    f"{seconds:.0f} s, gradient error {error:.1e}; see {PICTURE}"
)
