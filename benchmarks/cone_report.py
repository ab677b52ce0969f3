"""The benchmark's tables and plot, made from its JSON: ``python benchmarks/cone_report.py``."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from cone_peers import CONTENDERS, DENSE, DIFFCP, LSMR, MOREAU, MOREAU_TIGHT, OURS, OURS_SPARSE
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from report import ABSENT, _error, _geometric_mean, _markdown, _ms

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cone.json"
FRAGMENT = ROOT / "docs" / "cone_benchmarks_table.md"
PICTURE = ROOT / "docs" / "_static" / "bench_cone.png"

# The colours of Okabe and Ito, as in the plot of the quadratic programs; markers differ as well.
STYLE = {
    OURS: ("#0072B2", "o"),
    OURS_SPARSE: ("#56B4E9", "o"),
    MOREAU: ("#D55E00", "s"),
    MOREAU_TIGHT: ("#F0E442", "s"),
    DENSE: ("#009E73", "^"),
    LSMR: ("#CC79A7", "D"),
    DIFFCP: ("#E69F00", "v"),
}
LINES = "DenseQP"  # The family that comes in several sizes.

Record = dict[str, Any]


def write_report(found: Record) -> None:
    """Write the fragment that the documentation includes."""
    FRAGMENT.write_text(documentation(found))
    print(f"Wrote {FRAGMENT}")


def cell_lines(record: Record) -> list[str]:
    """What the terminal shows of one cell."""
    busy = record.get("others_busy") or 0
    warning = f"  (other processes kept {busy:.0%} of the machine busy)" if busy > 0.05 else ""
    lines = [f"{_title(record)}{warning}"]
    for name, r in record["results"].items():
        parts = []
        if "build_s" in r:
            parts.append(f"build {r['build_s']:.2g} s, {_ms(r['build_mb'])} MB")
        if "x_error" in r:
            parts.append(f"step {_ms(r['step_mb'])} MB")
            parts.append(f"x {_error(r['x_error'])}  gradient {_error(r['gradient_error'])}")
        if "forward_ms" in r:
            parts.append(f"forward {_ms(r['forward_ms'])} ms  backward {_ms(r['backward_ms'])} ms")
        if name in record.get("ratios", {}):
            parts.append(f"{record['ratios'][name]:.2f} x ours")
        if r.get("wrong"):
            parts.append("WRONG")
        parts += [r["skipped"]] if "skipped" in r else []
        lines.append(f"  {name:<20} {'  '.join(parts)}")
    return lines


def documentation(found: Record) -> str:
    """All tables, for the page of the documentation."""
    cells = found["cells"]
    solved = [r for r in cells if any("x_error" in result for result in r["results"].values())]
    parts = [
        "```{image} _static/bench_cone.png\n"
        ":alt: Time of dense quadratic programs over their size, and of the other problems, per "
        "library\n```",
        _machine(found),
        "## Times",
        _summary(solved),
        "Forward / backward in milliseconds and, in parentheses, their sum over ours. The last "
        "column is that of the fastest peer whose answer and gradients are right; **wrong** are an "
        "answer or gradients with a relative error above 1e-3.",
        _table(solved, _times, last=("ratio", _ratio)),
        "## Errors",
        "Relative error of the solution / of the gradients:",
        _table(solved, _errors),
        "## Construction and memory",
        "Seconds to build the layer / megabytes at the peak of building it / megabytes at the peak "
        "of a first step forward and backward:",
        _table(cells, _resources),
        _notes(cells),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def draw(found: Record, path: Path = PICTURE) -> None:
    """Dense programs over their size, one panel a batch size; then the other problems as bars."""
    dense = [r for r in found["cells"] if r["family"] == LINES]
    # The semidefinite variable is there to see who solves it at all.
    others = [
        r
        for r in found["cells"]
        if r["family"] not in (LINES, "SemidefiniteVariable") and _total(r, *r["results"])
    ]
    batches = sorted({r["batch"] for r in dense})
    ratios = [1.0] * len(batches) + [0.35 * max(3, len(others))]
    figure, panels = plt.subplots(
        1,
        len(ratios),
        figsize=(2.6 * sum(ratios), 3.9),
        sharey=True,
        squeeze=False,
        width_ratios=ratios,
    )
    for panel, batch in zip(panels[0], batches, strict=False):
        _lines(panel, [r for r in dense if r["batch"] == batch])
        panel.set_title(f"dense QP, batch {batch}", fontsize=10)
    _bars(panels[0, -1], others)
    panels[0, 0].set_ylabel("forward + backward, ms")
    shown: dict[str, Any] = {}
    for panel in panels[0]:
        handles, names = panel.get_legend_handles_labels()
        shown = dict(zip(names, handles, strict=True)) | shown
    shown = {name: shown[name] for name in STYLE if name in shown}
    figure.legend(
        shown.values(), shown, loc="outside upper center", ncols=len(shown) or 1, frameon=False
    )
    figure.text(0.005, 0.005, "open markers and hatches: wrong", fontsize=8)
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"Wrote {path}")


def _lines(panel: Axes, records: Sequence[Record]) -> None:
    for name, (colour, marker) in STYLE.items():
        points = [(r["n"], _total(r, name), r["results"][name]) for r in records if _total(r, name)]
        if not points:
            continue
        ours = name == OURS
        panel.loglog(
            [n for n, _, _ in points],
            [ms for _, ms, _ in points],
            color=colour,
            linewidth=2.5 if ours else 1.3,
            zorder=3 if ours else 2,
        )
        for n, ms, result in points:
            inside = "white" if result["wrong"] else colour
            panel.plot(n, ms, marker, color=colour, mfc=inside, zorder=4)
        panel.plot([], [], marker=marker, color=colour, label=name)
    sizes = sorted({r["n"] for r in records})
    panel.set_xticks(sizes, map(str, sizes))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("variables n")
    panel.grid(alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _bars(panel: Axes, records: Sequence[Record]) -> None:
    width = 0.85 / len(STYLE)
    for place, record in enumerate(records):
        names = [name for name in STYLE if _total(record, name)]
        for i, name in enumerate(names):
            panel.bar(
                place + (i - (len(names) - 1) / 2) * width,
                _total(record, name),
                0.9 * width,
                color=STYLE[name][0],
                hatch="////" if record["results"][name]["wrong"] else None,
                edgecolor="white",
                linewidth=0,
                label=name,
            )
    labels = [f"{r['title'].replace(' ', chr(10))}\nbatch {r['batch']}" for r in records]
    panel.set_xticks(range(len(records)), labels, fontsize=7)
    panel.set_yscale("log")
    panel.grid(axis="y", alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _title(record: Record) -> str:
    return f"{record['title']}, n = {record['n']}, batch {record['batch']}"


def _machine(found: Record) -> str:
    m = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    busy = [r["others_busy"] or 0 for r in found["cells"]]
    return (
        f"Measured on {m['date']}, {m['cpu']}, {m['cores']} cores ({m['system']}), torch using "
        f"{m['threads']} threads, in {found['minutes']} minutes. Other processes kept "
        f"{sum(busy) / len(busy):.0%} of the machine busy meanwhile, {max(busy):.0%} in the worst "
        f"cell. Releases: {versions}."
    )


def _summary(records: Sequence[Record]) -> str:
    """Geometric mean and worst cell of the ratio, and the peers one by one."""
    compared = [r for r in records if "ratio" in r]
    if not compared:
        return ""
    worst = min(compared, key=lambda r: r["ratio"])
    sentence = (
        "Forward plus backward, the fastest peer that is right takes "
        f"**{_ms(_geometric_mean(r['ratio'] for r in compared))} times** as long as ours in the "
        f"geometric mean of {len(compared)} cells, and {_ms(worst['ratio'])} times in the worst "
        f"one ({_title(worst)}, {worst['fastest_right_peer']})."
    )
    each = []
    for name in _names(records):
        ratios = [r["ratios"][name] for r in compared if name in r["ratios"]]
        wrong = sum(r["results"].get(name, {}).get("wrong", False) for r in records)
        if ratios and name not in (OURS, OURS_SPARSE):
            text = f"{name} {_ms(_geometric_mean(ratios))} (at least {_ms(min(ratios))}"
            each.append(f"{text}; {wrong} times wrong)" if wrong else f"{text})")
    return f"{sentence} Peer by peer, in the geometric mean: {', '.join(each)}."


def _table(
    records: Sequence[Record],
    shown: Callable[[Record, str], str],
    last: tuple[str, Callable[[Record], str]] | None = None,
) -> str:
    names = _names(records)
    rows = [
        [_title(r), *(shown(r, name) or ABSENT for name in names), *([last[1](r)] if last else [])]
        for r in records
    ]
    return _markdown(["", *names, *([last[0]] if last else [])], rows)


def _times(record: Record, name: str) -> str:
    result = record["results"].get(name, {})
    if "forward_ms" not in result:
        return ""
    times = f"{_ms(result['forward_ms'])} / {_ms(result['backward_ms'])}"
    ratio = record.get("ratios", {}).get(name)
    times += f" ({_ms(ratio)})" if ratio is not None else ""
    return f"{times} **wrong**" if result["wrong"] else times


def _ratio(record: Record) -> str:
    return f"**{_ms(record['ratio'])}**" if "ratio" in record else ABSENT


def _errors(record: Record, name: str) -> str:
    result = record["results"].get(name, {})
    if "x_error" not in result:
        return ""
    errors = f"{_error(result['x_error'])} / {_error(result['gradient_error'])}"
    return f"**{errors}**" if result["wrong"] else errors


def _resources(record: Record, name: str) -> str:
    result = record["results"].get(name, {})
    keys = ("build_mb", "step_mb")
    if "build_s" not in result:
        return ""
    return " / ".join([f"{result['build_s']:.2g}", *(_ms(result[k]) for k in keys if k in result)])


def _notes(records: Sequence[Record]) -> str:
    """What was left out and why."""
    reasons: dict[str, list[str]] = {}
    for r in records:
        for name, result in r["results"].items():
            if "skipped" in result:
                reasons.setdefault(f"{name}: {result['skipped']}", []).append(_title(r))
    return "\n".join(f"- {text} ({'; '.join(cells)})." for text, cells in reasons.items())


def _names(records: Sequence[Record]) -> list[str]:
    present = {name for r in records for name in r["results"]}
    return [name for name in CONTENDERS if name in present]


def _total(record: Record, *names: str) -> float | None:
    """Forward plus backward of the first of these that was timed."""
    for name in names:
        result = record["results"].get(name, {})
        if "forward_ms" in result:
            time: float = result["forward_ms"] + result["backward_ms"]
            return time
    return None


if __name__ == "__main__":
    results = json.loads(RESULTS.read_text())
    write_report(results)
    draw(results)
