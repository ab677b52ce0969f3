r"""
Learning the rules of Sudoku
============================

A network is shown 4x4 Sudoku puzzles with their solutions, and nothing else: not that a digit
stands once in each row, column and box, not even which cells make up a row. Its only layer is a
quadratic program, and what it learns are the constraints of that program, as in section 4.4 of
`OptNet <https://arxiv.org/abs/1703.00443>`_. In the end it solves puzzles on grids that it has
never seen, and the rules can be read off its weights.
"""

# %%
# A full run takes some ten seconds; with ``OPTLAYERS_SMALL=1`` it trains on fewer puzzles.

import itertools
import os
import time

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import mse_loss, one_hot
from tqdm import tqdm

import optlayers as ol

SMALL = os.environ.get("OPTLAYERS_SMALL") == "1"
TRAIN, TEST, BATCH = (3000, 200, 25) if SMALL else (9000, 1000, 50)
EPOCHS = 4
LEARNING_RATE = 0.02
FEWEST_GIVENS, MOST_GIVENS = 4, 10
TEST_GRIDS = 32
PICTURE = "sudoku.png"
SEED = 0

torch.manual_seed(SEED)
# Batches this small gain a tenth from a second thread, and lose tenfold if its core is busy.
torch.set_num_threads(1)

# %%
# Puzzles on grids that the network never sees
# --------------------------------------------
# There are only 288 completed grids. Puzzles are divided by grid, 256 to learn from and 32 for the
# test: otherwise it would do to know the few grids by heart.


def is_sudoku(rows):
    columns = zip(*rows, strict=True)
    boxes = (rows[i][j : j + 2] + rows[i + 1][j : j + 2] for i in (0, 2) for j in (0, 2))
    return all(len(set(digits)) == 4 for digits in itertools.chain(columns, boxes))


lines = itertools.permutations((1, 2, 3, 4))
grids = torch.tensor([rows for rows in itertools.product(lines, repeat=4) if is_sudoku(rows)])
grids = grids.flatten(1)[torch.randperm(len(grids))]
test_grids, train_grids = grids[:TEST_GRIDS], grids[TEST_GRIDS:]
print(f"{len(grids)} grids: {len(train_grids)} to learn from, {len(test_grids)} for the test")

# %%
# A puzzle shows 4 to 10 of the 16 digits and has zeros in the other cells. Few givens may leave
# several solutions, and nobody can tell which of them is meant: such puzzles are drawn again, until
# one grid of the 288 fits and no other. For the network a digit becomes four numbers, a one and
# three zeros; those of an empty cell are all zero.


def encode(cells):
    return one_hot(cells, 5)[..., 1:].flatten(-2).to(torch.get_default_dtype())


def draw_puzzles(from_grids, count):
    solutions = from_grids[torch.randint(len(from_grids), (count,))]
    givens = torch.randint(FEWEST_GIVENS, MOST_GIVENS + 1, (count, 1))
    puzzles = torch.zeros_like(solutions)
    ambiguous = torch.arange(count)
    while len(ambiguous):
        rank = torch.rand(len(ambiguous), 16).argsort(-1).argsort(-1)
        shown = torch.where(rank < givens[ambiguous], solutions[ambiguous], 0)
        puzzles[ambiguous] = shown
        matches = encode(shown) @ encode(grids).T
        fitting_grids = (matches == givens[ambiguous]).sum(-1)
        ambiguous = ambiguous[fitting_grids > 1]
    return puzzles, solutions


train_puzzles, train_solutions = draw_puzzles(train_grids, TRAIN)
test_puzzles, test_solutions = draw_puzzles(test_grids, TEST)

# %%
# The layer
# ---------
# From the 64 numbers of a puzzle the layer computes
#
# .. math::
#
#     x^\star = \arg\min_x \; \tfrac{1}{20} \|x\|^2 - \text{puzzle}^\top x
#     \quad \text{subject to} \quad A x = b, \; x \ge 0.
#
# A given only pulls at a number of its own cell: whatever connects one cell with another has to be
# in the 40 equations, and these are random to begin with. Their right-hand side is
# :math:`b = A e^w` with a vector :math:`w` that is learned, too, so that they have a solution
# whatever training does to them.

layer = ol.QPLayer(64, equalities=40, nonnegative=True, learn_P=False, eps=0.1)


def answer(puzzles):
    return layer(-encode(puzzles))


# %%
# Training
# --------
# As with any other layer: a loss, ``backward()``, a step of Adam. The gradient is that of the exact
# solution, from the optimality conditions of the program. The learning rate falls to zero batch by
# batch, which settles the last few puzzles.

optimizer = torch.optim.Adam(layer.parameters(), lr=LEARNING_RATE)
batches = TRAIN // BATCH
schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=EPOCHS * batches)
train_losses, test_losses, shares = [], [], []


def decode(x):
    return x.unflatten(-1, (16, 4)).argmax(-1) + 1


start = time.perf_counter()
with tqdm(total=EPOCHS * batches, unit="batch", mininterval=0.5, disable=SMALL) as bar:
    for epoch in range(1, EPOCHS + 1):
        for index in torch.randperm(TRAIN).split(BATCH):
            loss = mse_loss(answer(train_puzzles[index]), encode(train_solutions[index]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            train_losses.append(loss.item())
            bar.update()

        with torch.no_grad():
            x = answer(test_puzzles)
        test_losses.append(mse_loss(x, encode(test_solutions)).item())
        solved = (decode(x) == test_solutions).all(-1)
        shares.append(solved.float().mean().item())
        bar.write(
            f"epoch {epoch}: train loss {sum(train_losses[-batches:]) / batches:.4f}, "
            f"test loss {test_losses[-1]:.4f}, wholly solved test puzzles {shares[-1]:.1%}"
        )
seconds = time.perf_counter() - start

# %%
# What it does with a puzzle
# --------------------------
# Givens are bold, answers of the layer blue, mistakes red. The puzzles are those with a mistake, if
# there are any, and then those with the fewest givens.

answers = decode(x)
hardest = torch.argsort(20 * solved + (test_puzzles > 0).sum(-1), stable=True)[:6].tolist()


def draw_curves(loss_axes, share_axes):
    by_batch = torch.arange(1, len(train_losses) + 1) / batches
    by_epoch = range(1, EPOCHS + 1)
    loss_axes.semilogy(by_batch, train_losses, color="0.7", linewidth=0.8, label="train (batches)")
    loss_axes.semilogy(by_epoch, test_losses, "o-", color="tab:blue", label="test")
    loss_axes.set(title="Mean squared error")
    loss_axes.legend(frameon=False)
    share_axes.plot(by_epoch, [100 * share for share in shares], "o-", color="tab:blue")
    share_axes.set(title="Wholly solved test puzzles, %", xlabel="epoch", ylim=(-4, 108))
    for axes in (loss_axes, share_axes):
        axes.set_xticks(range(EPOCHS + 1))
        axes.spines[["top", "right"]].set_visible(False)


def draw_puzzle(axes, puzzle, answer, solution):
    for row, column in zip(*torch.where(puzzle.reshape(4, 4) > 0), strict=True):
        axes.add_patch(plt.Rectangle((column, row), 1, 1, color="0.92"))
    for line in range(5):
        width = 2.0 if line % 2 == 0 else 0.6
        axes.plot([0, 4], [line, line], color="black", linewidth=width, solid_capstyle="projecting")
        axes.plot([line, line], [0, 4], color="black", linewidth=width, solid_capstyle="projecting")
    for cell in range(16):
        row, column = divmod(cell, 4)
        given, right = puzzle[cell] > 0, answer[cell] == solution[cell]
        axes.text(
            column + 0.5, row + 0.5, str(answer[cell].item()),
            color="tab:red" if not right else "black" if given else "tab:blue",
            weight="bold" if given else "normal", fontsize=17, ha="center", va="center_baseline",
        )  # fmt: skip
    axes.set(xlim=(-0.05, 4.05), ylim=(4.05, -0.05), aspect="equal")
    axes.set_title(f"{int((puzzle > 0).sum())} givens", fontsize=10)
    axes.axis("off")


figure = plt.figure(figsize=(11, 5), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(4, 6), wspace=0.05)
draw_curves(*left.subplots(2, 1, sharex=True))
right.suptitle("Test puzzles: givens bold, answers blue, mistakes red")
for axes, i in zip(right.subplots(2, 3).flat, hardest, strict=True):
    draw_puzzle(axes, test_puzzles[i], answers[i], test_solutions[i])
figure.savefig(PICTURE, dpi=150)

# %%
# The rules, read off the weights
# -------------------------------
# Each rule of Sudoku says that four of the 64 numbers add up to one: those of a cell, or those of
# one digit in a row, a column or a box. The layer knows a rule if its row is a combination of the
# rows of :math:`A`, that is, if it lies in their span. With random rows, about 40/64 of it would.

number = torch.arange(64).reshape(4, 4, 4)  # row, column, digit
boxes = number.reshape(2, 2, 2, 2, 4).permute(0, 2, 4, 1, 3)
fours = torch.cat([f.reshape(16, 4) for f in (number, number.mT, number.permute(1, 2, 0), boxes)])
rules = torch.zeros(64, 64).scatter_(1, fours, 0.5)  # of length one
span = torch.linalg.svd(layer.A.detach(), full_matrices=False).Vh
known = (rules @ span.T).square().sum(-1)
print(f"share of each of the 64 rules that the layer knows: {known.min():.1%} to {known.max():.1%}")

# %%
# Nobody told it: all this came from examples, through the gradient of the solution.

print(
    f"Solved {int(solved.sum())} of {TEST} test puzzles on unseen grids ({shares[-1]:.1%}) "
    f"after {seconds:.0f} s of training; see {PICTURE}"
)
