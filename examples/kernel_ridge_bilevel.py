r"""
The width of a kernel, learned
==============================

Kernel ridge regression has its coefficients from a linear system, and the width of its kernel from
somebody's guess. Here the width comes from a second problem on top of the first: it is to make the
loss on validation data small, and its gradient goes through the minimum below.
"""

# %%
# A full run takes some seconds; with ``OPTLAYERS_SMALL=1`` the curves have fewer points.

import math
import os
import time

import matplotlib.pyplot as plt
import torch
from scipy.optimize import minimize

import optlayers as ol

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
POINTS, DTYPE = 100, torch.float64
TRUE_WIDTH, RIDGE = 0.2, 0.001
NOISE = RIDGE**0.5  # that of which this ridge takes just enough account
START = 0.03
LOG_RANGE = math.log(0.02), math.log(1.0)
CURVE_POINTS = 25 if SMALL else 121
PICTURE = "kernel_ridge_bilevel.png"
SEED = 0

torch.manual_seed(SEED)
torch.set_num_threads(1)  # a hundred unknowns leave a second thread nothing to do

# %%
# Data with a known width
# -----------------------
# The data are synthetic. The function behind them looks like a sine that lost its rhythm: it is a
# sum of Gaussian bumps of width 0.2 with random heights, so that one width is the true one. It is
# observed with noise at 100 points to learn from, and at 100 others for validation.


def kernel(x, centres, width):
    return torch.exp(-0.5 * ((x[:, None] - centres) / width).square())


x, x_validation = 4 * torch.rand(2, POINTS, dtype=DTYPE) - 2
centres = torch.arange(-2.2, 2.3, 0.1, dtype=DTYPE)
heights = 0.5 * torch.randn(len(centres), dtype=DTYPE)


def truth(x):
    return kernel(x, centres, TRUE_WIDTH) @ heights


y, y_validation = (truth(points) + NOISE * torch.randn_like(points) for points in (x, x_validation))

# %%
# The inner problem
# -----------------
# With the kernel matrix :math:`K_\sigma` of the training points, the coefficients minimise
#
# .. math:: \tfrac12 \alpha^\top (K_\sigma + 0.001\, I)\, \alpha - \alpha^\top y .
#
# ``ol.minimize`` is told the loss and nothing else, and what it returns is differentiable in the
# width.


def inner_loss(coefficients, width):
    K = kernel(x, x, width) + RIDGE * torch.eye(POINTS, dtype=DTYPE)
    return 0.5 * coefficients @ K @ coefficients - coefficients @ y


def predict(points, width):
    coefficients = ol.minimize(inner_loss, torch.zeros(POINTS, dtype=DTYPE), width).x
    return kernel(points, x, width) @ coefficients


# %%
# The outer problem
# -----------------
# The loss on the validation points is a function of one number. Its logarithm is what is searched
# over, since a width is positive and factors of it matter, not differences.


def outer_loss(log_width):
    return (predict(x_validation, log_width.exp()) - y_validation).square().mean()


def loss_and_hypergradient(log_width):
    log_width = torch.as_tensor(log_width, dtype=DTYPE).requires_grad_()
    loss = outer_loss(log_width)
    return loss.item(), torch.autograd.grad(loss, log_width)[0].item()


visited = []


def visit(log_width):
    loss, hypergradient = loss_and_hypergradient(log_width.item())
    visited.append((log_width.item(), loss, hypergradient))
    print(f"width {math.exp(log_width.item()):.4f}: validation loss {loss:.5f}, "
          f"hypergradient {hypergradient:+.1e}")  # fmt: skip
    return loss, [hypergradient]


start = time.perf_counter()
found = minimize(visit, math.log(START), jac=True, method="L-BFGS-B", bounds=[LOG_RANGE])
width = math.exp(found.x.item())
seconds = time.perf_counter() - start

# %%
# Is the hypergradient right?
# ---------------------------
# It is compared with central differences of the validation loss along the whole curve. These have
# an error of their own, of the square of their step and of the rounding errors over their step;
# agreement to seven digits or so is what they can show.

STEP = 1e-4
log_widths = torch.linspace(*LOG_RANGE, CURVE_POINTS, dtype=DTYPE)
losses, hypergradients = torch.tensor(
    [loss_and_hypergradient(s) for s in log_widths], dtype=DTYPE
).T
with torch.no_grad():
    differences = torch.stack(
        [(outer_loss(s + STEP) - outer_loss(s - STEP)) / (2 * STEP) for s in log_widths]
    )
error = ((hypergradients - differences).abs().max() / differences.abs().max()).item()
print(f"hypergradient against central differences: {error:.1e} of the largest")

# %%
# Where it ends
# -------------
# Left, the way down; in the middle, the hypergradient that shows the way; right, three fits. Too
# narrow a kernel falls back to zero between the points, too wide a one misses the bumps. The
# minimum need not be at the true width: 100 noisy points may well prefer another one.

visited_log_widths, visited_losses, _ = torch.tensor(visited, dtype=DTYPE).T
figure, (loss_axes, gradient_axes, fit_axes) = plt.subplots(
    1, 3, figsize=(12, 4.2), layout="constrained", width_ratios=(1, 1, 1.3)
)
widths = log_widths.exp()
loss_axes.loglog(widths, losses, color="0.6")
loss_axes.plot(visited_log_widths.exp(), visited_losses, "o-", color="tab:orange", markersize=5,
               linewidth=0.5, label="path of L-BFGS-B")  # fmt: skip
loss_axes.plot(width, found.fun, "*", color="tab:red", markersize=13,
               label=f"found: {width:.3f}")  # fmt: skip
loss_axes.axvline(TRUE_WIDTH, color="black", linestyle=":", label=f"truth: {TRUE_WIDTH}")
loss_axes.set(
    title="Validation loss", xlabel=r"width $\sigma$", ylim=(None, 12 * losses.max().item())
)
loss_axes.legend(frameon=False, loc="upper right")
gradient_axes.plot(widths, hypergradients, color="tab:blue", label="implicit")
gradient_axes.plot(widths[:: 1 + len(widths) // 25], differences[:: 1 + len(widths) // 25], "o",
                   color="black", markersize=4, fillstyle="none",
                   label="central differences")  # fmt: skip
gradient_axes.axhline(0, color="0.8", zorder=0)
gradient_axes.set(title=r"Hypergradient, by $\log\sigma$", xlabel=r"width $\sigma$", xscale="log")
gradient_axes.set_yscale("symlog", linthresh=0.01)
gradient_axes.legend(frameon=False)
line = torch.linspace(-2, 2, 600, dtype=DTYPE)
fit_axes.plot(x, y, ".", color="0.6", markersize=6, label="training data")
with torch.no_grad():
    fits = [(START, "tab:orange", 0.8), (1.0, "tab:green", 1.2), (width, "tab:red", 2)]
    for sigma, color, linewidth in fits:
        fit = predict(line, torch.tensor(sigma, dtype=DTYPE))
        fit_axes.plot(line, fit, color=color, linewidth=linewidth, label=f"width {sigma:.2g}")
lowest, highest = y.min().item(), y.max().item()
fit_axes.plot(line, truth(line), color="black", linestyle=":", label="truth")
fit_axes.set(title="Fits", xlabel="$x$", ylim=(lowest - 0.3, highest + 0.5 * (highest - lowest)))
fit_axes.legend(frameon=False, ncols=2, loc="upper center")
for axes in (loss_axes, gradient_axes, fit_axes):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(PICTURE, dpi=150)

# %%

print(
    f"Width {width:.4f} after {len(visited)} evaluations in {seconds:.1f} s (true: {TRUE_WIDTH}), "
    f"validation loss {found.fun:.5f}, hypergradient error {error:.1e}; see {PICTURE}"
)
