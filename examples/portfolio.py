r"""
Forecasts that make money
=========================

Usually one forecasts returns as well as one can and then optimises the portfolio. But what is a
good forecast? Squared errors count a mistake the same whether or not it changes the decision. If
the optimiser is a layer, the network can be trained on the outcome of the decision itself. With a
network too small to know everything that makes a great difference; with one that is large enough,
none. The data are synthetic, and made so that this can be seen.
"""

# %%
# A full run takes under a minute; with ``OPTLAYERS_SMALL=1`` there is one seed.

import copy
import os
import time

import cvxpy as cp
import matplotlib.pyplot as plt
import torch
from torch import nn
from tqdm import tqdm

import optlayers as ol

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
SEEDS = 1 if SMALL else 5
TRAIN, TEST, BATCH = 600, 300 if SMALL else 1000, 50
ASSETS = 6
FORECAST_EPOCHS, DECISION_EPOCHS = 40, 8
LEARNING_RATE = 0.01
RISK_AVERSION = 0.5
SIZES = (1, 8)  # units of the hidden layer
PICTURE = "portfolio.png"

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # the problems are too small for a second one

# %%
# A market with two things to know
# --------------------------------
# Six assets, returns in percent a month. They all follow the market, whose expected return is told
# by a first feature. There are also two regimes that last for 20 months on average: in one of them
# the first two assets do better and the last two worse, in the other it is the other way round. A
# second feature is a noisy sign of the regime, and two more features mean nothing.
#
# The first feature explains most of what can be explained. For an investor who has to put all of
# the money into the six assets it is all but useless: the market takes all assets along.

market = torch.tensor([1.1, 0.9, 1.0, 1.1, 0.9, 1.0])
rotation = torch.tensor([0.5, 0.5, 0.0, 0.0, -0.5, -0.5])
covariance = 4 * torch.outer(market, market) + torch.eye(ASSETS)


def draw(months, seed):
    generator = torch.Generator().manual_seed(seed)
    changes = torch.rand(months, generator=generator) < 0.05
    regime = 1 - 2.0 * (changes.cumsum(0) % 2)
    features = torch.randn(months, 4, generator=generator)
    features[:, 1] = regime + 0.5 * features[:, 1]
    expected = 0.2 + features[:, :1] * market + regime[:, None] * rotation
    common = 2 * torch.randn(months, 1, generator=generator) * market
    noise = torch.randn(months, ASSETS, generator=generator)
    return features, expected + common + noise, regime


# %%
# The portfolio
# -------------
# Markowitz: the weights :math:`w \ge 0` sum to one and maximise :math:`\mu^\top w - \tfrac14
# w^\top \Sigma w`, the expected return less a price on risk. The covariance is known; the expected
# returns :math:`\mu` are what a network has to say.

w, mu = cp.Variable(ASSETS), cp.Parameter(ASSETS)
risk = cp.quad_form(w, covariance.numpy())
problem = cp.Problem(cp.Maximize(mu @ w - RISK_AVERSION / 2 * risk), [cp.sum(w) == 1, w >= 0])
portfolio = ol.CvxpyLayer(problem, parameters=[mu], variables=[w])


def utility(weights, returns):
    """What the investor gets, month by month: the realised return less the price of its risk."""
    risks = ((weights @ covariance) * weights).sum(-1)
    return (weights * returns).sum(-1) - RISK_AVERSION / 2 * risks


# %%
# Two ways to train
# -----------------
# First on squared errors. Then a copy of that network goes on with minus the utility of its
# portfolios as the loss: it is a better start than a random one, and leaves no doubt about what
# made the difference.


def squared_error(forecast, returns):
    return (forecast - returns).square().mean()


def lost_utility(forecast, returns):
    (weights,) = portfolio(forecast)
    return -utility(weights, returns).mean()


def train(network, loss, data, epochs, bar):
    features, returns, _ = data
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        for index in torch.randperm(len(features)).split(BATCH):
            value = loss(network(features[index]), returns[index])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        bar.update()
    return network


@torch.no_grad()
def judge(network, data):
    features, returns, regime = data
    forecast = network(features)
    (weights,) = portfolio(forecast)
    gains = (weights * returns).sum(-1)
    return {
        "error": squared_error(forecast, returns).item(),
        "utility": utility(weights, returns).mean().item(),
        "Sharpe": (gains.mean() / gains.std()).item() * 12**0.5,
        "wealth": gains.cumsum(0),
        "weights": weights,
        "regime": regime,
    }


epochs = SEEDS * len(SIZES) * (FORECAST_EPOCHS + DECISION_EPOCHS)
results = {(size, way): [] for size in SIZES for way in ("forecast", "decision")}
lazy = []
start = time.perf_counter()
with tqdm(total=epochs, unit="epoch", mininterval=0.5, disable=SMALL) as bar:
    for seed in range(SEEDS):
        data, test = draw(TRAIN, seed), draw(TEST, 1000 + seed)
        with torch.no_grad():  # no opinion at all: the portfolio of least risk
            (weights,) = portfolio(torch.zeros(ASSETS))
        lazy.append(utility(weights, test[1]).mean().item())
        for size in SIZES:
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Linear(4, size), nn.Tanh(), nn.Linear(size, ASSETS))
            train(network, squared_error, data, FORECAST_EPOCHS, bar)
            results[size, "forecast"].append(judge(network, test))
            network = train(copy.deepcopy(network), lost_utility, data, DECISION_EPOCHS, bar)
            results[size, "decision"].append(judge(network, test))
seconds = time.perf_counter() - start

# %%
# On months that nobody has seen
# ------------------------------
# The same market, other months: means over seeds, and in brackets the smallest and the largest.


def table_row(runs, key):
    values = torch.tensor([run[key] for run in runs])
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


means = {
    key: {name: sum(run[name] for run in runs) / SEEDS for name in ("error", "utility", "Sharpe")}
    for key, runs in results.items()
}
print(f"no forecast: utility {sum(lazy) / SEEDS:.3f} a month")
for (size, way), runs in results.items():
    print(f"{size} hidden unit{'s' * (size > 1)}, trained on the {way}:")
    for key, label in (("error", "squared error"), ("utility", "utility"), ("Sharpe", "Sharpe")):
        print(f"  {label:14} {table_row(runs, key)}")

# %%
# The small network cannot have both features. Trained on squared errors it takes the market, and
# invests no better than with no forecast at all. Trained on decisions it takes the regime and earns
# almost as much as the large ones, although its forecasts are by far the worst: only differences
# between assets move the portfolio, and of the level it has lost all notion. The network with eight
# units finds both features either way, and there the detour through the optimiser gains nothing: it
# is no better than plain forecasting, and slower. Training on decisions pays when a model cannot
# know everything, and most cannot.

colors = {"forecast": "tab:orange", "decision": "tab:blue"}
shades = plt.get_cmap("viridis")(torch.linspace(0.05, 0.95, ASSETS).numpy())
months = slice(0, 90)
figure = plt.figure(figsize=(13, 5), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(5, 7))
left.suptitle("What the small network holds in 90 test months", fontsize=11)
for axes, way in zip(left.subplots(2, 1, sharex=True), colors, strict=True):
    run = results[1, way][0]
    weights, regime = run["weights"][months].T, run["regime"][months]
    axes.stackplot(range(len(regime)), weights, colors=shades, step="mid", linewidth=0)
    axes.fill_between(
        range(len(regime)), 1.03, 1.1, where=regime > 0, step="mid", color="black", linewidth=0
    )
    axes.set(xlim=(0, len(regime) - 1), ylim=(0, 1.1), yticks=(0, 0.5, 1))
    axes.set_title(f"trained on the {way}", fontsize=10, color=colors[way])
axes.set_xlabel("month; black bars: the regime of the first two assets (dark colours)")

middle, last = right.subplots(1, 2, width_ratios=(3, 4))
for place, (size, way) in enumerate(results):
    gains = [run["utility"] for run in results[size, way]]
    middle.plot([place] * SEEDS, gains, "o", color=colors[way], alpha=0.6, markeredgewidth=0)
    middle.plot([place - 0.25, place + 0.25], [means[size, way]["utility"]] * 2, color=colors[way])
middle.axhline(sum(lazy) / SEEDS, color="black", linestyle=":", label="no forecast")
middle.set(title="Test utility a month", xlim=(-0.6, 3.6))
middle.set_xticks(
    range(4), [f"{size} unit{'s' * (size > 1)},\n{way}" for size, way in results], fontsize=8
)
middle.legend(frameon=False, fontsize=9, loc="center right")
for (size, way), runs in results.items():
    wealth = torch.stack([run["wealth"][:240] for run in runs]).mean(0)
    last.plot(
        torch.arange(len(wealth)) / 12, wealth, color=colors[way],
        linestyle="-" if size == 1 else "--", label=f"{size} unit{'s' * (size > 1)}, {way}",
    )  # fmt: skip
last.set(title="Sum of test returns, %, mean over seeds", xlabel="years", xticks=range(0, 21, 5))
last.legend(frameon=False, fontsize=9)
for axes in (middle, last):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(PICTURE, dpi=150)

# %%

summary = ", ".join(
    f"{size} unit{'s' * (size > 1)} {means[size, 'forecast']['utility']:.3f} to "
    f"{means[size, 'decision']['utility']:.3f}"
    for size in SIZES
)
print(f"Utility from forecast to decision in {seconds:.0f} s: {summary}; see {PICTURE}")
