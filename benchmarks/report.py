"""The benchmark's tables, made from its JSON.

``python benchmarks/report.py`` writes ``docs/benchmarks_table.md`` again and prints the short table
for the README.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "qp.json"
FRAGMENT = ROOT / "docs" / "benchmarks_table.md"

OURS, COPIES = "optlayers", "optlayers, copies"
ABSENT = "–"  # noqa: RUF001 - an en dash, as typographers mark an empty field

PICTURE = """```{image} _static/bench_qp.png
:alt: Time over the number of variables, one panel per batch size, one line per library
```"""

Record = dict[str, Any]


def write_report(found: Record) -> None:
    """Write the fragment that the documentation includes, and show the README's table."""
    FRAGMENT.write_text(documentation(found))
    print(f"Wrote {FRAGMENT}\n\nFor the README:\n\n{readme(found)}")


def cell_lines(table: str, record: Record) -> list[str]:
    """What the terminal shows of one cell."""
    busy = record.get("others_busy") or 0
    warning = f"  (other processes kept {busy:.0%} of the machine busy)" if busy > 0.05 else ""
    lines = [f"{table}: n = {record['n']}, batch = {record['batch']}{warning}"]
    ours = _total(record, OURS)
    for name, r in record["results"].items():
        if "skipped" in r:
            lines.append(f"  {name:<18} {r['skipped']}")
            continue
        accuracy = f"KKT {_error(r['kkt_residual'])}  gradient {_error(r['gradient_error'])}"
        if "forward_ms" not in r:
            lines.append(f"  {name:<18} {accuracy}")
            continue
        times = f"forward {_ms(r['forward_ms']):>6} ms  backward {_ms(r['backward_ms']):>6} ms"
        total = _total(record, name)
        ratio = f"{total / ours:6.2f} x ours" if total and ours and name != OURS else ""
        lines.append(f"  {name:<18} {times}  {accuracy}  {ratio}".rstrip())
    return lines


def documentation(found: Record) -> str:
    """All tables, for the page of the documentation."""
    dense, shared, single = found["dense"], found["shared"], found["float32"]
    parts = [
        PICTURE,
        _machine(found),
        "## Data of their own for every element",
        _summary(dense),
        "Forward / backward in milliseconds; the ratio is the fastest peer's sum over ours.",
        _times(dense),
        "Largest KKT residual / gradient error over the batch sizes:",
        _accuracy(dense),
        _notes(dense),
        "## One P, G and A for the whole batch",
        _summary(shared),
        "Forward / backward in milliseconds; the last two columns are the sums of the fastest peer "
        "and of our own layer on copies of the matrices, over ours.",
        _times(shared),
        "Largest KKT residual / gradient error over the batch sizes:",
        _accuracy(shared),
        _notes(shared),
        "## float32",
        "The same programs rounded to float32, against the exact answer to the rounded data:",
        _accuracy(single),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme(found: Record) -> str:
    """The short table, with what it says in one sentence."""
    header = ["n", "batch", "optlayers, ms", "fastest peer, ms", "ratio"]
    rows = [
        [
            str(r["n"]),
            str(r["batch"]),
            _ms(_total(r, OURS)),
            f"{_ms(_total(r, r['fastest_peer']))} ({r['fastest_peer']})",
            f"{r['ratio']:.1f}",
        ]
        for r in found["dense"]
        if "ratio" in r
    ]
    return f"{_markdown(header, rows)}\n\n{_summary(found['dense'])}\n"


def _machine(found: Record) -> str:
    m = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in m["versions"].items())
    busy = [r["others_busy"] or 0 for r in found["dense"] + found["shared"]]
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
        "Forward plus backward, the fastest peer of a cell takes "
        f"**{_geometric_mean(r['ratio'] for r in compared):.1f} times** as long as ours in the "
        f"geometric mean of {len(compared)} cells, and {worst['ratio']:.1f} times in the worst one "
        f"(n = {worst['n']}, batch {worst['batch']}, {worst['fastest_peer']})."
    )
    each = []
    for name in _names(records):
        ratios = [
            _total(r, name) / _total(r, OURS)
            for r in compared
            if name not in (OURS, COPIES) and _total(r, name)
        ]
        if ratios:
            each.append(f"{name} {_geometric_mean(ratios):.1f} (at least {min(ratios):.1f})")
    return f"{sentence} Peer by peer, in the geometric mean: {', '.join(each)}."


def _times(records: Sequence[Record]) -> str:
    names = _names(records)
    with_copies = any("ratio_to_copies" in r for r in records)
    header = ["n", "batch", *names, "ratio", *(["to copies"] if with_copies else [])]
    rows = []
    for r in records:
        row = [str(r["n"]), str(r["batch"])]
        for name in names:
            result = r["results"].get(name, {})
            timed = "forward_ms" in result
            row.append(
                f"{_ms(result['forward_ms'])} / {_ms(result['backward_ms'])}" if timed else ABSENT
            )
        row.append(f"**{r['ratio']:.1f}**" if "ratio" in r else ABSENT)
        if with_copies:
            row.append(f"{r['ratio_to_copies']:.1f}" if "ratio_to_copies" in r else ABSENT)
        rows.append(row)
    return _markdown(header, rows)


def _accuracy(records: Sequence[Record]) -> str:
    names = _names(records)
    rows = []
    for n in sorted({r["n"] for r in records}):
        row = [str(n)]
        for name in names:
            results = [r["results"].get(name, {}) for r in records if r["n"] == n]
            measured = [r for r in results if "kkt_residual" in r]
            residual = _largest(r["kkt_residual"] for r in measured)
            error = _largest(r["gradient_error"] for r in measured)
            row.append(f"{_error(residual)} / {_error(error)}" if measured else ABSENT)
        rows.append(row)
    return _markdown(["n", *names], rows)


def _notes(records: Sequence[Record]) -> str:
    """What was left out and why, and what this very run shows to be systematically wrong."""
    reasons: dict[str, list[str]] = {}
    for r in records:
        for name, result in r["results"].items():
            for text in (result.get("skipped"), *result.get("observed", ())):
                if text:
                    reasons.setdefault(f"{name}: {text}", []).append(f"({r['n']}, {r['batch']})")
    lines = []
    for text, cells in reasons.items():
        measured = sum("kkt_residual" in r["results"][text.partition(":")[0]] for r in records)
        where = "in every cell" if len(cells) == measured else f"(n, batch) = {', '.join(cells)}"
        lines.append(f"- {text}; {where}.")
    return "\n".join(lines)


def _names(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for r in records for name in r["results"]))


def _total(record: Record, name: str) -> float | None:
    result = record["results"].get(name, {})
    return result["forward_ms"] + result["backward_ms"] if "forward_ms" in result else None


def _geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def _largest(values: Iterable[float | None]) -> float | None:
    """``None`` stands for a value that is not finite, and is the largest."""
    found = list(values)
    return None if None in found else max(found, default=None)


def _ms(value: float) -> str:
    """Two significant digits below ten, none after the point above."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.0e}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns also line up for whoever reads the source."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


if __name__ == "__main__":
    write_report(json.loads(RESULTS.read_text()))
