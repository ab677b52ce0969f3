r"""
A batch of fits, and how far to trust them
==========================================

128 decays :math:`a\,e^{-k t} + c` are fitted at once, one of them to a broken record. Since a fit
is differentiable in its data, the uncertainty of its parameters follows from that of the data; what
follows is compared with fits to a few hundred repetitions of the experiment. The data are
synthetic: only so can the experiment be repeated.
"""

# %%
# A full run takes some seconds; with ``OPTLAYERS_SMALL=1`` the experiment is repeated less often.

import os
import time

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullFormatter
from torch.func import jacrev

import optlayers as ol

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
FITS, TIMES, DTYPE = 128, 40, torch.float64
NOISE = 0.1
REPETITIONS = 40 if SMALL else 250
TOGETHER = 25  # experiments whose fits are one batch, for the sake of memory
BROKEN = 7
PICTURE = "curve_fits.png"
SEED = 0

torch.manual_seed(SEED)
torch.set_num_threads(1)  # a few hundred thousand numbers keep no second thread busy

# %%
# Synthetic decays
# ----------------
# Each is seen at 40 times with noise of standard deviation 0.1. A dead sensor gives one of them
# nothing but NaN from some time on.

t = torch.linspace(0, 5, TIMES, dtype=DTYPE)
lowest, highest = torch.tensor([[1, 0.3, -1], [3, 2, 1]], dtype=DTYPE)  # a, k, c
truth = lowest + (highest - lowest) * torch.rand(FITS, 3, dtype=DTYPE)


def decay(parameters, t):
    a, k, c = (p[..., None] for p in parameters.unbind(-1))
    return a * torch.exp(-k * t) + c


def measure():
    return decay(truth, t) + NOISE * torch.randn(FITS, TIMES, dtype=DTYPE)


y = measure()
intact = y.clone()
y[BROKEN, 25:] = torch.nan

# %%
# All fits at once
# ----------------
# Every fit starts from the same crude guess. By default a failure raises, and says where.


def residual(parameters, y):
    return decay(parameters, t) - y


def fit(y, on_failure="raise"):
    guess = torch.ones(len(y), 3, dtype=DTYPE)
    return ol.least_squares(residual, guess, y, batch_ndim=1, on_failure=on_failure)


try:
    fit(y)
except ol.SolverError as error:
    print(f"SolverError: {error}\n")

# %%
# With ``on_failure="ignore"`` the failed fit is NaN, and the others are to the last bit what they
# are next to a healthy neighbour.

start = time.perf_counter()
solution = fit(y, on_failure="ignore")
seconds = time.perf_counter() - start
others = torch.arange(FITS) != BROKEN
solved = solution.x.isfinite().all(-1)
untouched = bool((solution.x[others] == fit(intact).x[others]).all())
print(
    f"{int(solved.sum())} of {FITS} fits in {1000 * seconds:.0f} ms, with "
    f"{solution.iterations[solved].double().mean():.1f} iterations on average; fit {BROKEN} is "
    f"{solution.x[BROKEN].tolist()}"
)
print(f"the others are the same with and without it, bit for bit: {untouched}")

# %%
# Uncertainty from the implicit Jacobian
# --------------------------------------
# To first order, noise of covariance :math:`\Sigma` in the data gives parameters of covariance
# :math:`J \Sigma J^\top` with the Jacobian :math:`J = \partial x / \partial y`, the delta method.
# Fits do not mix, so the Jacobian of the sum of all fits is their Jacobians side by side: three
# backward solves for the whole batch. The variance of the noise is estimated from what the fits
# leave over, for 40 - 3 degrees of freedom each.

J = jacrev(lambda y: fit(y, "ignore").x.sum(0))(y).movedim(0, 1)  # (fits, 3, times)
variance = 2 * solution.objective[solved].mean() / (TIMES - 3)
covariance = variance * J @ J.mT
predicted = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
print(
    f"noise estimated from the residuals: {variance.sqrt():.4f} (true: {NOISE}); "
    f"largest derivative of the broken fit: {J[BROKEN].abs().max():.0f}"
)

# %%
# Uncertainty from repetition
# ---------------------------
# Since the data are synthetic, so can be a few hundred more experiments: the same decays, other
# noise. The scatter of their fits is what was predicted from one experiment.

start = time.perf_counter()
fits = []
for experiments in torch.arange(REPETITIONS).split(TOGETHER):
    repeated = torch.cat([measure() for _ in experiments])
    fits.append(fit(repeated, on_failure="ignore").x)
fits = torch.cat(fits)
seconds = time.perf_counter() - start
failed = int(fits.isnan().any(-1).sum())
print(f"{len(fits)} more fits in {seconds:.1f} s, {failed} of them failed")
draws = fits.unflatten(0, (REPETITIONS, FITS))
empirical = (draws - draws.nanmean(0)).square().nanmean(0).sqrt()
ratios = (predicted / empirical)[others]
for name, ratio in zip("akc", ratios.unbind(-1), strict=True):
    print(f"predicted / empirical deviation of {name}: median {ratio.median():.3f}, "
          f"from {ratio.min():.2f} to {ratio.max():.2f}")  # fmt: skip

# %%
# How good that is
# ----------------
# On the left, fits with twice their standard deviation to both sides; that of a curve at a time is
# the delta method once more. On the right, a point is a parameter of a fit. The predictions scatter
# since each comes from one noisy experiment, most of all for slow decays, of which the record shows
# too little to tell their amplitude from their offset.

fine = torch.linspace(0, 5, 200, dtype=DTYPE)


def band(parameters, covariance):
    slopes = jacrev(lambda p: decay(p, fine))(parameters)  # (200, 3)
    return ((slopes @ covariance) * slopes).sum(-1).sqrt()


figure = plt.figure(figsize=(11.5, 5), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(7, 5))
uncertainty = torch.where(others, predicted[:, 1] / truth[:, 1], torch.nan)
ranks = uncertainty.nan_to_num(torch.inf).argsort()
shown = [*ranks[[5, FITS // 3, 2 * FITS // 3, FITS - 12, FITS - 2]].tolist(), BROKEN]
for axes, i in zip(left.subplots(2, 3, sharex=True).flat, shown, strict=True):
    axes.plot(t, y[i], ".", color="0.55", markersize=4, label="data")
    axes.plot(fine, decay(truth[i], fine), ":", color="black", linewidth=1.2, label="truth")
    if i == BROKEN:
        axes.set_title(f"fit {i}: NaN in the data", fontsize=10, color="tab:red")
    else:
        curve, deviation = decay(solution.x[i], fine), band(solution.x[i], covariance[i])
        axes.plot(fine, curve, color="tab:blue", label="fit")
        axes.fill_between(fine, curve - 2 * deviation, curve + 2 * deviation,
                          color="tab:blue", alpha=0.3, linewidth=0)  # fmt: skip
        axes.set_title(f"fit {i}: $k$ = {solution.x[i, 1]:.2f} ± {predicted[i, 1]:.2f}",
                       fontsize=10)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
left.axes[0].legend(frameon=False, fontsize=9)
left.supxlabel("$t$", fontsize=10)
axes = right.subplots()
for name, color, x, y in zip(
    "akc", ("tab:blue", "tab:orange", "tab:green"), empirical[others].T, predicted[others].T,
    strict=True,
):  # fmt: skip
    axes.loglog(
        x, y, "o", color=color, markersize=4, alpha=0.6, markeredgewidth=0, label=f"${name}$"
    )
for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(ticks := [0.02, 0.05, 0.1, 0.2, 0.5], labels=ticks)
    axis.set_minor_formatter(NullFormatter())
ends = [0.8 * empirical[others].min(), 1.2 * empirical[others].max()]
axes.plot(ends, ends, color="black", linewidth=0.8, zorder=0)
axes.set(
    title="Standard deviations of the parameters", aspect="equal",
    xlabel=f"empirical, of {REPETITIONS} experiments", ylabel="predicted from one",
)  # fmt: skip
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(PICTURE, dpi=150)

# %%

print(
    f"Fitted {int(solved.sum())} of {FITS} decays; predicted over empirical deviations: median "
    f"{ratios.median():.3f}; see {PICTURE}"
)
