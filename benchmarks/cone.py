"""Time convex problems written in cvxpy as layers: ours and cvxpylayers with several backends.

Run all of it with ``make bench-cone`` (about half an hour on two cores), or a part::

    python benchmarks/cone.py --quick                 # small problems, little repetition
    python benchmarks/cone.py --only DenseQP,Cones    # these families
    python benchmarks/cone.py --no-peers              # ours alone: accuracy and times
    python benchmarks/cone.py --peers-only            # the others alone

Only a complete run replaces what is published: ``benchmarks/results/cone.json``, the table
``docs/cone_benchmarks_table.md`` and the plot ``docs/_static/bench_cone.png``. The exit status is 1
if our own accuracy is not what ``LIMIT`` promises.

Every contender is first probed in a process of its own, with limits of time and memory: that says
what it builds, how much memory it takes and how right it is. Those that are quick enough then take
turns in this process for the times.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cone_peers import CONTENDERS, OURS, PACKAGES, Contender, is_ours
from cone_probe import new_leaves, probe_apart, step
from cone_problems import FAMILIES, Construction, Exact, Family
from cone_report import cell_lines
from problems import gradient_error
from qp import Benchmark, Call, Effort, Runner, _short, machine
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cone.json"

Cells = list[tuple[str, int, int]]
CELLS: Cells = [("DenseQP", n, batch) for n in (10, 50, 100) for batch in (1, 32, 128)]
CELLS += [(name, 1024, 32) for name in ("SparseQP", "SquareSparseQP", "SparseValuesQP")]
CELLS += [
    (family, n, batch)
    for family, n in (("Cones", 30), ("Logistic", 10), ("Semidefinite", 10))
    for batch in (1, 32)
]
CELLS += [("SemidefiniteVariable", 10, 1), ("Construction", 1000, 1)]
QUICK: Cells = [
    ("DenseQP", 5, 1),
    ("DenseQP", 10, 8),
    ("SparseQP", 64, 4),
    ("SquareSparseQP", 64, 4),
    ("SparseValuesQP", 64, 4),
    ("Cones", 30, 2),
    ("Logistic", 4, 2),
    ("Semidefinite", 5, 2),
    ("SemidefiniteVariable", 5, 1),
    ("Construction", 50, 1),
]

EFFORT = Effort(budget=3.0, limit=60.0)
QUICK_EFFORT = Effort(rounds=3, fewest_rounds=2, turn=0.02, budget=0.5, limit=10.0, patience=0.0)
# Seconds for a probe, which builds the layer and takes a step or two.
PROBE_LIMIT = {Construction: 120.0}
PROBE_LIMIT_ELSEWHERE = 300.0

WRONG = 1e-3  # An answer or a gradient with a larger relative error is called wrong.
LIMIT = {"x_error": 1e-6, "gradient_error": 1e-5}  # What is promised of ours.


class Contestant(Runner):
    """One contender in one cell, for the timing of the other benchmark."""

    def __init__(self, contender: Contender, family: Family) -> None:
        self.layer = contender.build(family.written())  # type: ignore[assignment]
        self.leaves, self.weight = new_leaves(family), family.weight()  # type: ignore[assignment]
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.seconds = float("nan")

    def call(self) -> Call:
        """Time the layer's call and the backward pass of the weighted sum of squares."""
        seconds, x, gradients = step(self.layer, self.leaves, self.weight)
        return Call(*seconds, x, gradients)

    def warm_up(self) -> None:
        """Learn how long a call takes."""
        self.call()
        call = self.call()
        self.seconds = call.forward + call.backward

    def _next_step(self) -> None:
        """Change the data in the last digits, as a training step changes them."""
        with torch.no_grad():
            self.leaves[0].mul_(1 + 2**-52)


class Comparison(Benchmark):
    """Contenders on the same problems."""

    def __init__(self, effort: Effort, wanted: Callable[[str], bool]) -> None:
        super().__init__(effort, peers=True)
        self.wanted = wanted

    def cell(self, family: Family, tell: Callable[[str], None]) -> dict[str, Any]:  # type: ignore[override]
        """Probe every contender, then time those that are quick enough in turns."""
        solves = not isinstance(family, Construction)
        tell("reference")
        exact = family.exact() if solves else None
        results: dict[str, dict[str, Any]] = {}
        contestants: dict[str, Contestant] = {}
        for name, contender in CONTENDERS.items():
            own = contender.family(family)
            if own is None or not self.wanted(name):
                continue
            reason = contender.why_not(family)
            if reason:
                results[name] = {"skipped": reason}
                continue
            tell(name)
            same = exact if type(own) is type(family) else own.exact()
            results[name] = result = self._probe(name, own, same)
            seconds = result.get("forward_ms", 0) / 1e3 + result.get("backward_ms", 0) / 1e3
            if not seconds or seconds * (2 + self.effort.fewest_rounds) > self.effort.limit:
                continue
            try:
                contestants[name] = Contestant(contender, own)
                contestants[name].warm_up()
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
                contestants.pop(name, None)
                result["skipped"] = f"{type(error).__name__}: {str(error)[:120]}"
        tell("taking turns")
        self._wait_for_quiet()
        busy = self._measure(list(contestants.values()))
        for name, c in contestants.items():
            results[name] |= {
                "forward_ms": _short(1e3 * median(c.forward)),
                "backward_ms": _short(1e3 * median(c.backward)),
                "repetitions": len(c.forward),
            }
        record: dict[str, Any] = {
            "family": type(family).__name__,
            "title": family.title,
            "n": family.n,
            "batch": family.batch,
            "others_busy": busy,
        }
        if exact:
            # Without constraints there is no kink to be away from.
            record["margin"] = _short(exact.margin)
        return record | {"results": results} | _ratios(results)

    def _probe(self, name: str, family: Family, exact: Exact | None) -> dict[str, Any]:
        """What one contender does in a process of its own."""
        limit = PROBE_LIMIT.get(type(family), PROBE_LIMIT_ELSEWHERE)
        found = probe_apart(name, family, limit)
        if "skipped" in found:
            return found
        result = {
            key: _short(found[key]) for key in ("build_s", "build_mb", "step_mb") if key in found
        }
        if exact:
            x, gradients = found["x"].numpy(), found["gradients"]
            errors = {
                "x_error": np.abs(x - exact.x).max() / np.abs(exact.x).max(),
                "gradient_error": gradient_error(gradients, exact.gradients),
            }
            result |= {key: _short(float(value)) for key, value in errors.items()}
            result["wrong"] = not all(value <= WRONG for value in errors.values())
            for key in ("forward", "backward"):
                result[f"{key}_ms"] = _short(1e3 * found[f"{key}_s"])
            result["repetitions"] = 1
        return result


def _ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Times of everybody over ours, forward plus backward, and the fastest peer that is right."""
    total = {
        name: r["forward_ms"] + r["backward_ms"] for name, r in results.items() if "forward_ms" in r
    }
    if OURS not in total:
        return {}
    ratios = {name: _short(t / total[OURS]) for name, t in total.items() if name != OURS}
    found: dict[str, Any] = {"ratios": ratios}
    right = [name for name in ratios if not (is_ours(name) or results[name]["wrong"])]
    if right:
        fastest = min(right, key=total.__getitem__)
        found |= {"fastest_right_peer": fastest, "ratio": ratios[fastest]}
    return found


def described_machine() -> dict[str, Any]:
    """The machine, with the versions of what was compared here."""
    found = machine()
    numbers = {name: found["versions"][name] for name in ("python", "torch", "numpy")}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue  # A peer that is not there is reported in every cell.
    return found | {"versions": numbers}


def shortcomings(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Name everything of ours that is not what is promised."""
    for record in records:
        for name, result in record["results"].items():
            if not is_ours(name):
                continue
            where = f"{record['family']} n={record['n']} batch={record['batch']} {name}"
            if "skipped" in result:
                yield f"{where}: {result['skipped']}"
                continue
            for key, limit in LIMIT.items():
                value = result.get(key, 0.0)
                if value is None or value > limit:
                    yield f"{where}: {key} {value}, promised {limit}"


def parse_families(text: str) -> list[str]:
    """``"DenseQP,Cones"`` as names of families."""
    names = text.split(",")
    known = list(dict.fromkeys(family for family, _, _ in CELLS))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"expected names of {', '.join(known)}, separated by commas; got {', '.join(unknown)}"
        )
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small problems, little repetition")
    parser.add_argument("--only", type=parse_families, metavar="NAME,...", help="these families")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--no-peers", action="store_true", help="ours alone")
    who.add_argument("--peers-only", action="store_true", help="the others alone")
    parser.add_argument("--output", type=Path, help="write the JSON of a partial run to this file")
    options = parser.parse_args(arguments)
    complete = not (options.quick or options.only or options.no_peers or options.peers_only)

    def wanted(name: str) -> bool:
        return not (options.peers_only if is_ours(name) else options.no_peers)

    cells = QUICK if options.quick else CELLS
    cells = [cell for cell in cells if cell[0] in (options.only or [cell[0]])]
    # Peers warn of what the table says: that SCS did not get to its tolerance, for one.
    warnings.simplefilter("ignore")
    comparison = Comparison(QUICK_EFFORT if options.quick else EFFORT, wanted)
    records: list[dict[str, Any]] = []
    started = time.monotonic()
    with tqdm(total=len(cells), unit="cell") as progress:
        for family, n, batch in cells:
            where = f"{family} n={n} batch={batch}"

            def tell(what: str, where: str = where) -> None:
                progress.set_description(f"{where}: {what}")

            record = comparison.cell(FAMILIES[family](n, batch), tell)
            records.append(record)
            progress.write("\n".join(cell_lines(record)))
            progress.update()

    minutes = round((time.monotonic() - started) / 60, 1)
    found = {"machine": described_machine(), "minutes": minutes, "cells": records}
    output = RESULTS if complete else options.output
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(f"Wrote {output}")
    if complete:
        from cone_report import draw, write_report

        write_report(found)
        draw(found)

    missed = list(shortcomings(records))
    for line in missed:
        print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
