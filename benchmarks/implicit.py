"""Time equilibria, hypergradients and curve fits as layers: ours and the peers', in one run.

Run all of it with ``make bench-implicit`` (under five minutes on two cores), or a part::

    python benchmarks/implicit.py --quick        # small problems, little repetition
    python benchmarks/implicit.py --no-peers     # ours alone: accuracy and times

Only a complete run replaces what is published: ``benchmarks/results/implicit.json``, the table
``docs/implicit_benchmarks_table.md`` and the plot ``docs/_static/bench_implicit.png``. The exit
status is 1 if our own accuracy, or our number of evaluations, is not what is promised.
"""

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from implicit_peers import CURVES, EQUAL, EQUILIBRIUM, OURS, PACKAGES, REGRESSION, Call, Variants
from implicit_problems import Answer, Curves, Equilibrium, Regression, slow_linear_map
from problems import gradient_error
from qp import Benchmark, Effort, Runner, machine
from torch import Tensor

import optlayers as ol
from optlayers.solvers import Anderson, FixedPointSolver, Picard

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "implicit.json"

EFFORT = Effort(budget=1.5, patience=30.0)
QUICK_EFFORT = Effort(rounds=3, fewest_rounds=2, turn=0.02, budget=0.5, patience=0.0)
CHOICE_BUDGET = 0.3  # Seconds to find out how fast a variant is.

Cells = list[tuple[int, int, torch.dtype, bool]]
EQUILIBRIA: Cells = [
    (d, batch, dtype, False)
    for dtype, sides in ((torch.float32, (64, 256, 1024)), (torch.float64, (64, 256)))
    for d in sides
    for batch in (1, 64)
]
EQUILIBRIA += [(64, 1, torch.float64, True), (256, 64, torch.float64, True)]
QUICK_EQUILIBRIA: Cells = [
    (16, 1, torch.float32, False),
    (16, 8, torch.float64, False),
    (16, 2, torch.float64, True),
]
LIPSCHITZ, SLOW = 0.9, 0.99

# Relative residuals of an equilibrium that everybody has to reach.
RESIDUAL = {torch.float32: 1e-4, torch.float64: 1e-6}
# Errors of gradients that such residuals allow, 1 / (1 - LIPSCHITZ) times as large, with a reserve.
RESERVE = 10.0
# What is promised of hypergradients, and of fitted parameters and their gradients.
HYPERGRADIENT = {torch.float32: 1e-5, torch.float64: 1e-8}
FITTED, FITTED_GRADIENT = 1e-6, 1e-6
FAILED = 1e-3  # A fit that is farther from the best parameters than that is a failure.
SAVING = 3.0  # Times as many evaluations that plain iteration needs on a slow linear map.


class Contestant(Runner):
    """One variant of one library in one cell, for the timing of the other benchmark."""

    def __init__(self, timed: Callable[[], Call]) -> None:
        self.timed = timed
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.seconds = math.inf

    def call(self) -> Call:  # type: ignore[override]
        """Go forward and backward once."""
        return self.timed()

    def _next_step(self) -> None:
        """Nothing is remembered from call to call."""

    def warm_up(self) -> Call:
        """Load and build things, and learn how long a call takes at best."""
        call, spent = self.call(), 0.0
        for _ in range(20):
            call = self.call()
            self.seconds = min(self.seconds, call.forward + call.backward)
            spent += call.forward + call.backward
            if spent > CHOICE_BUDGET:
                break
        return call


Measure = Callable[[Call], dict[str, Any]]


class Comparison(Benchmark):
    """Libraries on the same problem, each with its fastest variant that is accurate enough."""

    def cell(  # type: ignore[override]
        self,
        libraries: Mapping[str, Callable[[], Variants]],
        accuracy: Measure,
        accurate: Callable[[dict[str, Any]], bool],
    ) -> dict[str, Any]:
        """Measure all libraries."""
        results: dict[str, dict[str, Any]] = {}
        contestants: dict[str, Contestant] = {}
        for name, build in libraries.items():
            if not (self.peers or name in (OURS, EQUAL)):
                continue
            try:
                results[name], contestants[name] = self._choose(build(), accuracy, accurate)
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
                results[name] = {"skipped": f"{type(error).__name__}: {str(error)[:120]}"}
        busy = self._measure(list(contestants.values()))
        for name, c in contestants.items():
            both = [f + b for f, b in zip(c.forward, c.backward, strict=True)]
            results[name] |= {"ms": _short(1e3 * median(both)), "best_ms": _short(1e3 * min(both))}
            if any(c.backward):
                results[name]["forward_ms"] = _short(1e3 * median(c.forward))
            results[name]["repetitions"] = len(both)
        return {"others_busy": busy, "results": results}

    def _choose(
        self, variants: Variants, accuracy: Measure, accurate: Callable[[dict[str, Any]], bool]
    ) -> tuple[dict[str, Any], Contestant]:
        """The fastest accurate variant, or the most accurate of all if none is accurate."""
        tried = []
        for name, timed in variants.items():
            contestant = Contestant(timed)
            found = accuracy(contestant.warm_up())
            found = {"variant": name, **found, "accurate": accurate(found)}
            errors = sum(v for v in found.values() if isinstance(v, float))
            order = (False, contestant.seconds) if found["accurate"] else (True, errors)
            tried.append((order, found, contestant))
        _, found, contestant = min(tried, key=lambda t: t[0])
        # JSON has no word for infinity.
        return {k: None if v == math.inf else v for k, v in found.items()}, contestant


# --- the cells ------------------------------------------------------------------------------------


def equilibrium_cell(
    comparison: Comparison, d: int, batch: int, dtype: torch.dtype, slow: bool
) -> dict[str, Any]:
    """Everybody at the same residual."""
    lipschitz, tolerance = SLOW if slow else LIPSCHITZ, RESIDUAL[dtype]
    problem = Equilibrium.random(d, batch, dtype, lipschitz, slow=slow)
    exact = problem.answer()

    def accuracy(call: Call) -> dict[str, Any]:
        return {
            "residual": _finite(problem.residual(_tensor(call.x))),
            "gradient_error": _gradient_error(call, exact),
        }

    def accurate(found: dict[str, Any]) -> bool:
        return bool(
            found["residual"] <= tolerance
            and found["gradient_error"] <= RESERVE * tolerance / (1 - lipschitz)
        )

    libraries = {k: _with(v, problem, tolerance) for k, v in EQUILIBRIUM.items()}
    head = {"d": d, "batch": batch, "dtype": _name(dtype), "slow": slow, "tolerance": tolerance}
    if slow:
        head["radius"] = _short(problem.radius())
    return head | comparison.cell(libraries, accuracy, accurate)


def regression_cell(
    comparison: Comparison, logistic: bool, dtype: torch.dtype, n: int, d: int
) -> dict[str, Any]:
    """Everybody as accurate as it gets."""
    problem, limit = Regression.random(logistic, dtype, n, d), HYPERGRADIENT[dtype]
    exact = problem.answer()
    comparison_of = {k: _with(v, problem) for k, v in REGRESSION.items()}
    found = comparison.cell(
        comparison_of,
        lambda call: {"gradient_error": _gradient_error(call, exact)},
        lambda found: bool(found["gradient_error"] <= limit),
    )
    head = {"model": "logistic" if logistic else "ridge", "dtype": _name(dtype), "n": n, "d": d}
    return head | {"limit": limit} | found


def curves_cell(comparison: Comparison, curves: int) -> dict[str, Any]:
    """How many fits fail, and how good the others are."""
    problem = Curves.random(curves)
    exact = problem.answer()

    def accuracy(call: Call) -> dict[str, Any]:
        error = (_tensor(call.x).double() - exact.x).abs().amax(-1)
        good = error <= FAILED  # not true of NaN
        found: dict[str, Any] = {
            "failures": int((~good).sum()),
            "parameter_error": _finite(float(error[good].max())) if good.any() else math.inf,
        }
        if call.gradients is not None:
            (g,), (e,) = call.gradients, exact.gradients
            found["gradient_error"] = _finite(gradient_error([_tensor(g)[good]], [e[good].numpy()]))
        return found

    def accurate(found: dict[str, Any]) -> bool:
        return bool(
            not found["failures"]
            and found["parameter_error"] <= FITTED
            and found.get("gradient_error", 0.0) <= FITTED_GRADIENT
        )

    libraries = {k: _with(v, problem) for k, v in CURVES.items()}
    return {"curves": curves} | comparison.cell(libraries, accuracy, accurate)


def evaluation_counts() -> dict[str, Any]:
    """How often our solvers call the map, forward."""
    calls = 0

    def count(f: Callable[[Tensor], Tensor], n: int, solver: FixedPointSolver) -> int:
        nonlocal calls
        calls = 0

        def counted(z: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return f(z)

        ol.fixed_point(counted, torch.zeros(1, n, dtype=torch.float64), batch_ndim=1, solver=solver)
        return calls

    easy = Equilibrium.random(64, 1, torch.float64, 0.6)  # a spectral radius of 0.3
    radius = torch.linalg.eigvals(easy.W).abs().max()
    A, b = slow_linear_map(64, 0.99)
    maps: dict[str, Callable[[Tensor], Tensor]] = {
        "easy": lambda z: torch.tanh(z @ easy.W.mT + easy.u),
        "slow": lambda z: z @ A + b,
    }
    tolerances: dict[str, Any] = {"eps_abs": 0.0, "eps_rel": 1e-6, "max_iter": 10_000}
    found: dict[str, Any] = {
        name: {
            "radius": _short(float(radius)) if name == "easy" else 0.99,
            "anderson": count(f, 64, Anderson(**tolerances)),
            "plain": count(f, 64, Picard(**tolerances)),
        }
        for name, f in maps.items()
    }
    # With default tolerances, which in float32 are close to rounding.
    large = Equilibrium.random(1024, 64, torch.float32, LIPSCHITZ)
    solution = ol.fixed_point(
        lambda z: torch.tanh(z @ large.W.mT + large.u),
        torch.zeros_like(large.u),
        batch_ndim=1,
        on_failure="ignore",
    )
    found["float32"] = {
        "d": 1024,
        "statuses": sorted({ol.Status(s).name for s in solution.status.tolist()}),
        "iterations": int(solution.iterations.max()),
    }
    return found


# --- numbers --------------------------------------------------------------------------------------


def _with(build: Callable[..., Variants], *arguments: Any) -> Callable[[], Variants]:
    return lambda: build(*arguments)


def _tensor(x: Any) -> Tensor:
    return x.detach() if isinstance(x, Tensor) else torch.tensor(np.asarray(x))


def _gradient_error(call: Call, exact: Answer) -> float:
    assert call.gradients is not None
    found = [_tensor(g) for g in call.gradients]
    return _finite(gradient_error(found, [e.numpy() for e in exact.gradients]))


def _finite(value: float) -> float:
    """Four digits; infinite rather than NaN, which no comparison finds."""
    return float(f"{value:.4g}") if math.isfinite(value) else math.inf


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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


def shortcomings(found: dict[str, Any]) -> Iterator[str]:
    """Name everything of ours that is not what is promised."""
    for table in ("equilibria", "regressions", "curves"):
        for record in found[table]:
            where = ", ".join(f"{k}={v}" for k, v in record.items() if isinstance(v, str | int))
            for name in (OURS, EQUAL):
                result = record["results"].get(name)
                if result and not result.get("accurate"):
                    yield f"{table}: {where}: {name}: {result}"
    counts = found["evaluations"]
    if counts["easy"]["anderson"] > counts["easy"]["plain"]:
        yield f"evaluations: more than plain iteration where that is good: {counts['easy']}"
    if SAVING * counts["slow"]["anderson"] > counts["slow"]["plain"]:
        yield f"evaluations: not {SAVING:g} times fewer than plain iteration: {counts['slow']}"
    if counts["float32"]["statuses"] != ["SOLVED"]:
        yield f"evaluations: does not stop by itself in float32: {counts['float32']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small problems, little repetition")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--output", type=Path, help="write the JSON of a partial run to this file")
    options = parser.parse_args(arguments)
    complete = not (options.quick or options.no_peers)
    # Peers written for older releases of what they run on say so, many times.
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    # Ours warns of a backward pass that is as loose as is asked for here.
    warnings.filterwarnings("ignore", category=ol.SolverWarning)

    comparison = Comparison(QUICK_EFFORT if options.quick else EFFORT, not options.no_peers)
    n, d, curves = (60, 10, 8) if options.quick else (500, 100, 128)
    tables: dict[str, list[dict[str, Any]]] = {"equilibria": [], "regressions": [], "curves": []}
    started = time.monotonic()

    def add(table: str, record: dict[str, Any]) -> None:
        from implicit_report import cell_lines

        tables[table].append(record)
        print("\n".join(cell_lines(table, record)), flush=True)

    for cell in QUICK_EQUILIBRIA if options.quick else EQUILIBRIA:
        add("equilibria", equilibrium_cell(comparison, *cell))
    for dtype in (torch.float64, torch.float32):
        for logistic in (False, True):
            add("regressions", regression_cell(comparison, logistic, dtype, n, d))
    add("curves", curves_cell(comparison, curves))
    counts = evaluation_counts()
    print(f"evaluations: {json.dumps(counts)}")

    minutes = round((time.monotonic() - started) / 60, 1)
    found = {"machine": described_machine(), "minutes": minutes, **tables, "evaluations": counts}
    output = RESULTS if complete else options.output
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(f"Wrote {output}")
    if complete:
        from implicit_report import draw, write_report

        write_report(found)
        draw(found)

    missed = list(shortcomings(found))
    for line in missed:
        print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
