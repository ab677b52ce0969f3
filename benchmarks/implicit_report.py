"""The benchmark's tables and plot, made from its JSON: ``python benchmarks/implicit_report.py``."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from report import ABSENT, _error, _markdown, _ms

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "implicit.json"
FRAGMENT = ROOT / "docs" / "implicit_benchmarks_table.md"
PICTURE = ROOT / "docs" / "_static" / "bench_implicit.png"

OURS, EQUAL = "optlayers", "optlayers, loose"

# The colours of Okabe and Ito, as in the plot of the quadratic programs; markers differ as well.
STYLE = {
    OURS: ("#0072B2", "o"),
    EQUAL: ("#56B4E9", "o"),
    "torchdeq": ("#D55E00", "s"),
    "torchdeq, Anderson": ("#999999", "s"),
    "torchopt": ("#009E73", "^"),
    "jaxopt": ("#CC79A7", "D"),
    "scipy": ("#E69F00", "v"),
}
ERRORS = ("failures", "residual", "parameter_error", "gradient_error")

Record = dict[str, Any]


def title(table: str, record: Record) -> str:
    """A cell in words."""
    if table == "equilibria":
        slow = f", radius {record['radius']:.2f}" if record["slow"] else ""
        return f"d = {record['d']}, batch {record['batch']}, {record['dtype']}{slow}"
    if table == "regressions":
        return f"{record['model']}, {record['dtype']}"
    return f"{record['curves']} curves"


def cell_lines(table: str, record: Record) -> list[str]:
    """What the terminal shows of one cell."""
    busy = record.get("others_busy") or 0
    warning = f"  (other processes kept {busy:.0%} of the machine busy)" if busy > 0.05 else ""
    lines = [f"{table}: {title(table, record)}{warning}"]
    ours = record["results"][OURS].get("ms")
    for name, r in record["results"].items():
        if "skipped" in r:
            lines.append(f"  {name:<18} {r['skipped']}")
            continue
        errors = "  ".join(f"{key} {_count_or_error(r[key])}" for key in ERRORS if key in r)
        ratio = f"{r['ms'] / ours:6.2f} x ours" if ours and name != OURS else ""
        lines.append(f"  {name:<18} {_ms(r['ms']):>6} ms  {errors}  {ratio}  {r['variant']}")
    return [line.rstrip() for line in lines]


def documentation(found: Record) -> str:
    """All tables, for the page of the documentation."""
    counts = found["evaluations"]
    easy, slow, single = counts["easy"], counts["slow"], counts["float32"]
    parts = [
        "```{image} _static/bench_implicit.png\n"
        ":alt: Time of equilibria over their size, and of hypergradients and curve fits, per "
        "library\n```",
        _machine(found),
        "## Equilibria",
        "Forward and backward together in milliseconds. The ratios are torchdeq's times over that "
        "of *optlayers*, whose forward pass has the same tolerance and whose backward pass has it, "
        "too, or is exact: of its fastest variant that is accurate enough, and of its Anderson "
        "acceleration, which is what ours is.",
        _times("equilibria", found, {"fastest": "torchdeq", "Anderson": "torchdeq, Anderson"}),
        "Largest relative residual / gradient error:",
        _accuracy("equilibria", found, ("residual", "gradient_error")),
        _variants("equilibria", found),
        "Evaluations of the map until the relative residual is below 1e-6, one of them to check "
        "the map beforehand:",
        _markdown(
            ["map", "spectral radius", "plain iteration", "Anderson"],
            [
                ["tanh(Wz + u)", f"{easy['radius']:.2g}", *_plain(easy)],
                ["linear, symmetric", f"{slow['radius']:.2g}", *_plain(slow)],
            ],
        ),
        f"In float32 with d = {single['d']} and default tolerances it stops by itself after "
        f"{single['iterations']} iterations ({', '.join(single['statuses'])}).",
        "## Hypergradients",
        "Forward and backward together in milliseconds:",
        _times("regressions", found),
        "Gradient error:",
        _accuracy("regressions", found, ("gradient_error",)),
        _variants("regressions", found),
        "## Curve fits",
        _curves(found),
        _variants("curves", found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_report(found: Record) -> None:
    """Write the fragment that the documentation includes."""
    FRAGMENT.write_text(documentation(found))
    print(f"Wrote {FRAGMENT}")


def draw(found: Record, path: Path = PICTURE) -> None:
    """Equilibria over their size, one panel a batch size; then the other problems as bars."""
    single = [r for r in found["equilibria"] if r["dtype"] == "float32" and not r["slow"]]
    batches = sorted({r["batch"] for r in single})
    figure, panels = plt.subplots(1, len(batches) + 1, figsize=(10.5, 3.7), squeeze=False)
    for panel, batch in zip(panels[0], batches, strict=False):
        _lines(panel, [r for r in single if r["batch"] == batch])
        panel.set_title(f"equilibria, batch {batch}, float32", fontsize=10)
    _bars(panels[0, -1], found)
    panels[0, 0].set_ylabel("forward + backward, ms")
    shown = {}
    for panel in panels[0]:
        handles, names = panel.get_legend_handles_labels()
        shown |= dict(zip(names, handles, strict=True)) | shown
    shown = {name: shown[name] for name in STYLE if name in shown}
    figure.legend(
        shown.values(), shown, loc="outside upper center", ncols=len(shown), frameon=False
    )
    figure.set_layout_engine("constrained")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"Wrote {path}")


def _lines(panel: Axes, records: Sequence[Record]) -> None:
    for name, (colour, marker) in STYLE.items():
        points = [(r["d"], _time(r, name)) for r in records if _time(r, name)]
        if points:
            ours = name == OURS
            panel.loglog(
                *zip(*points, strict=True),
                color=colour,
                marker=marker,
                linewidth=2.5 if ours else 1.3,
                zorder=3 if ours else 2,
                label=name,
            )
    sides = sorted({r["d"] for r in records})
    panel.set_xticks(sides, map(str, sides))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("variables d")
    panel.grid(alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _bars(panel: Axes, found: Record) -> None:
    records = [(r["model"], r) for r in found["regressions"] if r["dtype"] == "float64"] + [
        ("curve fits", r) for r in found["curves"]
    ]
    for place, (_, record) in enumerate(records):
        names = [name for name in STYLE if _time(record, name)]
        for i, name in enumerate(names):
            offset = (i - (len(names) - 1) / 2) * 0.25
            panel.bar(place + offset, _time(record, name), 0.23, color=STYLE[name][0], label=name)
    panel.set_xticks(range(len(records)), [name for name, _ in records])
    panel.set_yscale("log")
    panel.set_title("hypergradients and curve fits, float64", fontsize=10)
    panel.grid(axis="y", alpha=0.3, linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _machine(found: Record) -> str:
    m = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    cells = [*found["equilibria"], *found["regressions"], *found["curves"]]
    busy = [r["others_busy"] or 0 for r in cells]
    return (
        f"Measured on {m['date']}, {m['cpu']}, {m['cores']} cores ({m['system']}), torch using "
        f"{m['threads']} threads, in {found['minutes']} minutes. Other processes kept "
        f"{sum(busy) / len(busy):.0%} of the machine busy meanwhile, {max(busy):.0%} in the worst "
        f"cell. Releases: {versions}."
    )


def _times(table: str, found: Record, ratios: Mapping[str, str] | None = None) -> str:
    names, ratios = _names(found[table]), ratios or {}
    header = ["", *names, *ratios]
    rows = []
    for record in found[table]:
        row = [title(table, record), *(_optional(_time(record, name)) for name in names)]
        below = _time(record, OURS)
        times = [_time(record, name) for name in ratios.values()]
        row += [f"**{above / below:.1f}**" if above and below else ABSENT for above in times]
        rows.append(row)
    return _markdown(header, rows)


def _accuracy(table: str, found: Record, keys: Sequence[str]) -> str:
    names = _names(found[table])
    rows = []
    for record in found[table]:
        row = [title(table, record)]
        for name in names:
            result = record["results"].get(name, {})
            measured = [_error(result[key]) for key in keys if key in result]
            row.append(" / ".join(measured) or ABSENT)
        rows.append(row)
    return _markdown(["", *names], rows)


def _curves(found: Record) -> str:
    header = ["", "ms", "failures", "parameter error", "gradient error"]
    rows = []
    for record in found["curves"]:
        for name, r in record["results"].items():
            if "ms" in r:
                gradient = _error(r["gradient_error"]) if "gradient_error" in r else ABSENT
                rows.append(
                    [name, _ms(r["ms"]), str(r["failures"]), _error(r["parameter_error"]), gradient]
                )
    return _markdown(header, rows)


def _variants(table: str, found: Record) -> str:
    """Which variants were taken, what was not accurate enough, what did not run."""
    lines = []
    for name in _names(found[table]):
        results = [r["results"].get(name, {}) for r in found[table]]
        taken = sorted({r["variant"] for r in results if r.get("variant")})
        short = [
            title(table, record)
            for record, r in zip(found[table], results, strict=True)
            if r.get("accurate") is False
        ]
        skipped = sorted({r["skipped"] for r in results if "skipped" in r})
        text = [f"taken: {'; '.join(taken)}"] if taken else []
        text += [f"not as accurate as asked: {'; '.join(short)}"] if short else []
        text += skipped
        if text:
            lines.append(f"- {name}: {'. '.join(text)}.")
    return "\n".join(lines)


def _plain(counts: Record) -> list[str]:
    return [str(counts["plain"]), str(counts["anderson"])]


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for r in records for name in r["results"]))


def _time(record: Record, name: str) -> float | None:
    time: float | None = record["results"].get(name, {}).get("ms")
    return time


def _optional(time: float | None) -> str:
    return _ms(time) if time else ABSENT


def _count_or_error(value: float) -> str:
    return str(value) if isinstance(value, int) else _error(value)


if __name__ == "__main__":
    results = json.loads(RESULTS.read_text())
    write_report(results)
    draw(results)
