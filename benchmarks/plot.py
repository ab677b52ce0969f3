"""The benchmark's plot, made from its JSON: ``python benchmarks/plot.py``."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "qp.json"
PICTURE = ROOT / "docs" / "_static" / "bench_qp.png"

# The colours of Okabe and Ito, which the colour-blind can tell apart; markers differ as well.
STYLE = {
    "optlayers": ("#0072B2", "o"),
    "moreau": ("#D55E00", "s"),
    "proxsuite": ("#009E73", "^"),
    "qpth": ("#CC79A7", "D"),
    "cvxpylayers": ("#E69F00", "v"),
}


def draw(found: dict[str, Any], path: Path = PICTURE) -> None:
    """Plot forward plus backward time over the number of variables, one panel a batch size."""
    records = found["dense"]
    batches = sorted({r["batch"] for r in records})
    figure, panels = plt.subplots(
        1, len(batches), figsize=(2.9 * len(batches), 3.6), sharey=True, squeeze=False
    )
    for panel, batch in zip(panels[0], batches, strict=True):
        here = [r for r in records if r["batch"] == batch]
        for name, (colour, marker) in STYLE.items():
            points = [
                (r["n"], r["results"][name]["forward_ms"] + r["results"][name]["backward_ms"])
                for r in here
                if "forward_ms" in r["results"].get(name, {})
            ]
            if points:
                ours = name == "optlayers"
                panel.loglog(
                    *zip(*points, strict=True),
                    color=colour,
                    marker=marker,
                    markersize=6 if ours else 5,
                    linewidth=2.5 if ours else 1.3,
                    zorder=3 if ours else 2,
                    label=name,
                )
        panel.set_title(f"batch {batch}", fontsize=10)
        panel.set_xlabel("variables n")
        ticks = sorted({r["n"] for r in records})
        panel.set_xticks(ticks, map(str, ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlim(0.8 * ticks[0], 1.25 * ticks[-1])
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("forward + backward, ms")
    # A library may be missing from a panel, so each is taken from the first that has it.
    lines = {line.get_label(): line for panel in panels[0][::-1] for line in panel.get_lines()}
    lines = {name: lines[name] for name in STYLE if name in lines}
    figure.legend(
        lines.values(), lines, loc="outside upper center", ncols=len(lines), frameon=False
    )
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"Wrote {path}")


if __name__ == "__main__":
    draw(json.loads(RESULTS.read_text()))
