r"""
Digits by a network of infinite depth
=====================================

A deep equilibrium model has one layer, applied to its own output until that no longer changes. It
is trained at the equilibrium: no iteration is kept or differentiated, as in
`Deep Equilibrium Models <https://arxiv.org/abs/1909.01377>`_. Here one with 64 units learns to
read handwritten digits, twice: left alone, and with a price on how strongly its layer reacts to
itself, which makes the equilibrium cheaper to find.
"""

# %%
# A full run takes under a minute; with ``OPTLAYERS_SMALL=1`` training ends after a few epochs.

import os
import time

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from tqdm import tqdm

import optlayers as ol
from optlayers.equilibrium import jacobian_penalty, spectral_radius

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
EPOCHS = 3 if SMALL else 60
STATES, BATCH = 64, 64
LEARNING_RATE, WEIGHT_DECAY = 0.01, 0.01
NOISE, DROPOUT = 0.5, 0.1  # against learning 1347 pictures by heart
PENALTY = 1.0
LARGEST_GAIN = 0.95
PICTURE = "deep_equilibrium_digits.png"
SEED = 0

# Batches this small gain little from a second thread, and lose much if its core is busy.
torch.set_num_threads(1)

# %%
# Small pictures
# --------------
# scikit-learn brings 1797 pictures of digits, 8 by 8 pixels in 17 shades of grey. A quarter of each
# digit's pictures is kept for the test.

digits = load_digits()
*pictures, train_digits, test_digits = map(
    torch.as_tensor,
    train_test_split(
        digits.data, digits.target, test_size=0.25, stratify=digits.target, random_state=SEED
    ),
)
mean, deviation = pictures[0].mean(), pictures[0].std()
train_pictures, test_pictures = (((p - mean) / deviation).float() for p in pictures)
print(f"{len(train_digits)} pictures to learn from, {len(test_digits)} for the test")

# %%
# The model
# ---------
# The layer is a module of two arguments, the state :math:`z` and the picture :math:`u`. For
# ``ol.FixedPointLayer`` that is enough: it finds
#
# .. math:: z = \tanh(W z + U u + b),
#
# by Anderson's acceleration unless told otherwise, every picture with as many iterations as it
# needs. Its gradient solves one linear system a picture.


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.W = nn.Linear(STATES, STATES, bias=False)
        self.U = nn.Linear(64, STATES)
        nn.init.normal_(self.W.weight, std=0.3 / STATES**0.5)
        nn.init.normal_(self.U.weight, std=1 / 64**0.5)

    def forward(self, z, u):
        return torch.tanh(self.W(z) + self.U(u))


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.equilibrium = ol.FixedPointLayer(Cell(), state_shape=(STATES,))
        self.classes = nn.Linear(STATES, 10)


# %%
# Nothing says that there is an equilibrium, or only one. But :math:`\tanh` never stretches, so
# there is exactly one if :math:`W` shrinks: after each step its singular values are cut off at
# 0.95. Without that, training may drive the layer for some picture to where it stops contracting,
# and both solves, forward and backward, become hard there.


@torch.no_grad()
def keep_contracting(W):
    left, gains, right = torch.linalg.svd(W)
    W.copy_(left * gains.clamp(max=LARGEST_GAIN) @ right)


# %%
# Training
# --------
# The loss is cross-entropy plus, in the second run, :math:`\|\partial_z f\|_F^2 / 64` at the
# equilibrium, as `Bai, Koltun and Kolter <https://arxiv.org/abs/2106.14342>`_ propose; one random
# vector estimates it. The spectral radius of that Jacobian is the factor by which a step of plain
# iteration shrinks the error.


@torch.no_grad()
def test(reader):
    solution = reader.equilibrium.solve(test_pictures)
    answers = reader.classes(solution.x).argmax(-1)
    radius = spectral_radius(reader.equilibrium.module, solution.x, test_pictures)
    return answers, solution.iterations, radius.mean().item()


def train(penalty):
    torch.manual_seed(SEED)
    reader = Reader()
    cell = reader.equilibrium.module
    optimizer = torch.optim.AdamW(reader.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = -(-len(train_digits) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=EPOCHS * batches
    )
    curves = []
    with tqdm(total=EPOCHS * batches, unit="batch", mininterval=0.5, disable=SMALL) as bar:
        for epoch in range(1, EPOCHS + 1):
            losses = []
            for index in torch.randperm(len(train_digits)).split(BATCH):
                u = train_pictures[index]
                u = u + NOISE * torch.randn_like(u)
                z = reader.equilibrium(u)
                loss = cross_entropy(reader.classes(dropout(z, DROPOUT)), train_digits[index])
                losses.append(loss.item())
                if penalty:
                    loss = loss + penalty * jacobian_penalty(cell, z, u).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                keep_contracting(cell.W.weight)
                schedule.step()
                bar.update()
            answers, iterations, radius = test(reader)
            loss = sum(losses) / batches
            accuracy = (answers == test_digits).double().mean().item()
            mean_iterations = iterations.double().mean().item()
            curves.append((loss, accuracy, mean_iterations, radius))
            bar.write(
                f"epoch {epoch:2}: loss {loss:.3f}, test accuracy {accuracy:.1%}, "
                f"{mean_iterations:.1f} iterations, spectral radius {radius:.2f}"
            )
    return answers, iterations, curves


start = time.perf_counter()
runs = {}
for name, penalty in {"no penalty": 0.0, "with penalty": PENALTY}.items():
    print(f"\n{name}")
    runs[name] = train(penalty)
seconds = time.perf_counter() - start

# %%
# What became of it
# -----------------
# Both read about equally well, and the penalised one needs fewer iterations. The mistakes are those
# of the penalised one: what they are, and what it took them for.

figure = plt.figure(figsize=(11, 5.6), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(6, 3))
loss_axes, accuracy_axes, iteration_axes = above.subplots(1, 3)
epochs = range(1, EPOCHS + 1)
for color, (name, (_, iterations, curves)) in zip(("0.6", "tab:blue"), runs.items(), strict=True):
    losses, accuracies, _, radii = zip(*curves, strict=True)
    loss_axes.semilogy(epochs, losses, color=color, label=name)
    accuracy_axes.plot(epochs, [100 * (1 - a) for a in accuracies], color=color)
    counts = iterations.bincount().tolist()
    iteration_axes.bar(
        range(len(counts)), counts, width=0.9, alpha=0.75, color=color,
        label=f"{name}: mean {iterations.double().mean():.1f}, spectral radius {radii[-1]:.2f}",
    )  # fmt: skip
loss_axes.set(title="Training loss", xlabel="epoch")
accuracy_axes.set(title="Misread test pictures, %", xlabel="epoch", yscale="log")
accuracy_axes.set_yticks([1, 2, 5, 10, 20, 50], labels=[1, 2, 5, 10, 20, 50], minor=False)
accuracy_axes.minorticks_off()
iteration_axes.set(title="Test pictures by iterations", xlabel="iterations")
fewest = min(run[1].min().item() for run in runs.values())
highest = max(run[1].bincount().max().item() for run in runs.values())
iteration_axes.set(xlim=(fewest - 1, None), ylim=(0, 1.35 * highest))
iteration_axes.legend(frameon=False, fontsize=8.5, loc="upper center")
loss_axes.legend(frameon=False)
for axes in (loss_axes, accuracy_axes, iteration_axes):
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[["top", "right"]].set_visible(False)

answers, iterations, curves = runs["with penalty"]
wrong = torch.nonzero(answers != test_digits).flatten()[:8].tolist()
below.suptitle("Misread test pictures")
for axes, i in zip(below.subplots(1, len(wrong), squeeze=False).flat, wrong, strict=True):
    axes.imshow(test_pictures[i].reshape(8, 8).numpy(), cmap="Greys")
    axes.set_title(f"{test_digits[i]} read as {answers[i]}", fontsize=10)
    axes.axis("off")
figure.savefig(PICTURE, dpi=150)

# %%

right = int((answers == test_digits).sum())
print(
    f"\nRead {right} of {len(test_digits)} test pictures ({right / len(test_digits):.1%}) with "
    f"{curves[-1][2]:.1f} iterations on average after {seconds:.0f} s for both runs; see {PICTURE}"
)
