"""Time quadratic programs as layers: ours and the peers', the same data, one process, one run.

Run all of it with ``make bench-qp`` (five to ten minutes on two cores), or a part::

    python benchmarks/qp.py --quick                      # a few cells, little repetition
    python benchmarks/qp.py --cells 20x128,50x16         # these cells: variables x batch
    python benchmarks/qp.py --no-peers                   # ours alone: accuracy and times

Only a complete run replaces what is published: ``benchmarks/results/qp.json``, the table
``docs/benchmarks_table.md`` and the plot ``docs/_static/bench_qp.png``. The exit status is 1 if
our own accuracy is not what ``LIMITS`` promises.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from peers import PEERS, CvxpyLayers, Layer, Ours, OursCopied
from problems import (
    Data,
    Reference,
    Sizes,
    gradient_error,
    kkt_residual,
    observations,
    random_programs,
    reference,
)
from report import cell_lines, write_report
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "qp.json"

DENSE = [(n, batch) for n in (5, 20, 50, 100, 200) for batch in (1, 16, 128)]
DENSE = sorted(DENSE + [(n, 1024) for n in (5, 20, 50)])
SHARED = [(n, batch) for n in (20, 50, 100) for batch in (128, 1024)]
FLOAT32 = [(5, 128), (20, 128), (50, 128), (100, 16), (200, 16)]
QUICK = {
    "dense": [(5, 1), (5, 128), (20, 16), (50, 16)],
    "shared": [(20, 128)],
    "float32": [(20, 16)],
}

# What is promised of our own layer, in every cell.
LIMITS = {
    torch.float64: {"kkt_residual": 1e-8, "gradient_error": 1e-9},
    torch.float32: {"kkt_residual": 1e-3, "gradient_error": 1e-4},
}
CVXPYLAYERS_UP_TO = 50  # There a call on a large batch already takes seconds.
# Below this a second, untimed call is cheap: it brings caches, and threads that another library
# left spinning, to where they are in a program that uses one library only.
WORTH_WARMING = 0.1  # seconds
QUIET = 0.1  # Share of the machine's cores that other processes may use.


@dataclass(frozen=True)
class Effort:
    """How much time a measurement may take.

    Attributes:
        rounds: Turns that each library gets, in alternation, so that noise hits all alike.
        fewest_rounds: For libraries so slow that ``budget`` allows no more.
        turn: A turn repeats the call for as many seconds, ten times at most, once at least.
        budget: Seconds for a library in a cell.
        limit: A library that is expected to need more than that for the fewest rounds is skipped.
        patience: Seconds, in the whole run, to wait for other processes and to repeat cells that
            they disturbed.
    """

    rounds: int = 7
    fewest_rounds: int = 3
    turn: float = 0.04
    budget: float = 4.0
    limit: float = 30.0
    patience: float = 180.0


QUICK_EFFORT = Effort(rounds=3, fewest_rounds=2, turn=0.02, budget=2.0, limit=10.0, patience=10.0)


class Call(NamedTuple):
    """One forward and backward pass."""

    forward: float  # seconds
    backward: float
    output: Any
    gradients: tuple[Tensor, ...]


class Runner:
    """One library in one cell."""

    def __init__(self, layer: Layer, data: Data, weight: Tensor) -> None:
        self.layer, self.weight = layer, weight
        self.leaves = layer.leaves(data)
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.seconds = math.nan

    def call(self) -> Call:
        """Time the layer's call and the backward pass of ``(x * weight).sum()``."""
        start = time.perf_counter()
        output = self.layer.solve(*self.leaves)
        solved = time.perf_counter()
        loss = (self.layer.answer(output)[0] * self.weight).sum()
        ready = time.perf_counter()
        gradients = torch.autograd.grad(loss, self.leaves)
        done = time.perf_counter()
        return Call(solved - start, done - ready, output, gradients)

    def turn(self, effort: Effort) -> None:
        """Repeat the timed call for a while."""
        if self.seconds < WORTH_WARMING:
            self._next_step()
            self.call()
        for _ in range(max(1, min(10, round(effort.turn / self.seconds)))):
            self._next_step()
            call = self.call()
            self.forward.append(call.forward)
            self.backward.append(call.backward)

    def _next_step(self) -> None:
        """Change P in the last digits, as a training step changes the data.

        Moreau keeps a setup if the matrices are equal to those of the call before, to the last
        bit; a layer whose matrices are learned never sees that.
        """
        with torch.no_grad():
            self.leaves.P.mul_(1 + 2**-52)


class OtherProcesses:
    """What the rest of the machine does meanwhile: it says how far the times can be trusted."""

    def __init__(self) -> None:
        self.start = self._now()

    def share(self) -> float | None:
        """Share of all cores that other processes have used since; ``None`` if nobody tells."""
        if self.start is None:
            return None
        busy, own, wall = (b - a for a, b in zip(self.start, self._now(), strict=True))
        return round(max(0.0, busy - own) / (wall * os.cpu_count()), 3)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        counters = Path("/proc/stat")
        if not counters.exists():
            return None
        user, nice, system, _idle, _wait, *interrupts = counters.read_text().split(None, 9)[1:9]
        ticks = sum(map(int, (user, nice, system, *interrupts)))
        return ticks / os.sysconf("SC_CLK_TCK"), time.process_time(), time.monotonic()


class Benchmark:
    """Runs cells, and remembers how slow a library was to skip what would take too long."""

    def __init__(self, effort: Effort, peers: bool) -> None:
        self.effort, self.peers, self.patience = effort, peers, effort.patience
        self.seen: dict[tuple[str, int], tuple[int, float]] = {}

    def cell(self, sizes: Sizes) -> dict[str, Any]:
        """Measure every library on the same programs."""
        data, weight = random_programs(sizes), _weight(sizes)
        exact = reference(data, weight)
        self._wait_for_quiet()
        results: dict[str, dict[str, Any]] = {}
        runners: dict[str, Runner] = {}
        for kind in self._libraries(sizes):
            reason = self._why_not(kind, sizes)
            if reason:
                results[kind.name] = {"skipped": reason}
                continue
            try:
                runner = Runner(kind(sizes), data, weight)
                call = self._first_calls(runner)
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
                results[kind.name] = {"skipped": _first_line(error)}
                continue
            self.seen[kind.name, sizes.n] = (sizes.batch, runner.seconds)
            runners[kind.name] = runner
            results[kind.name] = self._accuracy(runner.layer, call, data, exact, sizes)
        busy = self._measure(list(runners.values()))
        for name, runner in runners.items():
            results[name] |= {
                "forward_ms": _short(1e3 * median(runner.forward)),
                "backward_ms": _short(1e3 * median(runner.backward)),
                "forward_best_ms": _short(1e3 * min(runner.forward)),
                "backward_best_ms": _short(1e3 * min(runner.backward)),
                "repetitions": len(runner.forward),
            }
        record = asdict(sizes) | {"m": sizes.m, "p": sizes.p, "margin": _short(exact.margin)}
        return record | {"others_busy": busy, "results": results} | _ratios(results)

    def float32_cell(self, sizes: Sizes) -> dict[str, Any]:
        """Measure our accuracy in float32, against the float64 answer to the rounded data."""
        data = Data(*(t.float() for t in random_programs(sizes)))
        weight = _weight(sizes).float()
        exact = reference(data, weight)
        runner = Runner(Ours(sizes), data, weight)
        result = self._accuracy(runner.layer, runner.call(), data, exact, sizes)
        record = asdict(sizes) | {"m": sizes.m, "p": sizes.p, "margin": _short(exact.margin)}
        return record | {"results": {Ours.name: result}}

    def _libraries(self, sizes: Sizes) -> list[type[Layer]]:
        ours: list[type[Layer]] = [Ours, OursCopied] if sizes.shared else [Ours]
        return ours + list(PEERS if self.peers else ())

    def _why_not(self, kind: type[Layer], sizes: Sizes) -> str | None:
        """Say why a library is left out, if it is."""
        if kind is CvxpyLayers and sizes.n > CVXPYLAYERS_UP_TO:
            return f"measured up to n = {CVXPYLAYERS_UP_TO}"
        batch, seconds = self.seen.get((kind.name, sizes.n), (sizes.batch, 0.0))
        if batch == 1:
            return None  # One program says little of a solver that works on whole batches.
        expected = seconds * sizes.batch / batch * (1 + self.effort.fewest_rounds)
        if kind in PEERS and expected > self.effort.limit:
            return f"would take about {expected:.0f} s ({seconds:.2g} s a call at batch {batch})"
        return None

    def _first_calls(self, runner: Runner) -> Call:
        """Warm up, and learn how long a call takes."""
        call = runner.call()
        # The first call also loads and builds things, which matters where the rest is short.
        if call.forward + call.backward < 1:
            call = runner.call()
        runner.seconds = call.forward + call.backward
        return call

    def _accuracy(
        self, layer: Layer, call: Call, data: Data, exact: Reference, sizes: Sizes
    ) -> dict[str, Any]:
        result: dict[str, Any] = {
            "kkt_residual": _short(kkt_residual(data, *layer.answer(call.output))),
            "gradient_error": _short(gradient_error(call.gradients, exact.gradients)),
        }
        if data.q.dtype == torch.float64:
            found = observations(call.gradients, exact.gradients, sizes.batch)
            result |= {"observed": found} if found else {}
        return result

    def _measure(self, runners: Sequence[Runner]) -> float | None:
        """Time the runners, again if the machine was busy; return how busy it was.

        On a busy machine every parallel section waits for the core that somebody else has, which
        costs whole time slices: of two measurements the quieter one is closer to the truth.
        """
        if not runners:
            return None
        others, start = OtherProcesses(), time.monotonic()
        self._alternate(runners)
        busy, spent = others.share(), time.monotonic() - start
        if busy is None or busy < QUIET or spent > self.patience:
            return busy
        self.patience -= spent
        self._wait_for_quiet()
        first = [(runner.forward, runner.backward) for runner in runners]
        for runner in runners:
            runner.forward, runner.backward = [], []
        others = OtherProcesses()
        self._alternate(runners)
        again = others.share()
        if again < busy:
            return again
        for runner, (forward, backward) in zip(runners, first, strict=True):
            runner.forward, runner.backward = forward, backward
        return busy

    def _wait_for_quiet(self) -> None:
        """Wait until other processes leave the machine alone, as long as patience lasts."""
        while self.patience > 0:
            others = OtherProcesses()
            time.sleep(0.3)
            busy = others.share()
            if busy is None or busy < QUIET:
                return
            self.patience -= 0.3

    def _alternate(self, runners: Sequence[Runner]) -> None:
        """Give every library its turns, spread evenly over the same time."""
        rounds = {}
        for runner in runners:
            affordable = int(self.effort.budget / runner.seconds)
            rounds[runner] = min(self.effort.rounds, max(self.effort.fewest_rounds, affordable))
        for i in range(self.effort.rounds):
            # Whoever comes first changes, so that nobody always follows the same neighbour.
            start = i % len(runners)
            for runner in (*runners[start:], *runners[:start]):
                share = rounds[runner] / self.effort.rounds
                if int((i + 1) * share + 1e-9) > int(i * share + 1e-9):
                    runner.turn(self.effort)


def _weight(sizes: Sizes) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sizes.batch, sizes.n, generator=generator, dtype=torch.float64)


def _ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Fastest peer's time over ours, and copies' time over shared, forward plus backward."""
    total = _sums(results, "forward_ms", "backward_ms")
    best = _sums(results, "forward_best_ms", "backward_best_ms")
    ours = total.pop(Ours.name, None)
    copies = total.pop(OursCopied.name, None)
    found: dict[str, Any] = {}
    if ours and copies:
        found["ratio_to_copies"] = _short(copies / ours)
    if ours and total:
        fastest = min(total, key=total.__getitem__)
        found |= {"fastest_peer": fastest, "ratio": _short(total[fastest] / ours)}
        # Best times are what a noisy machine spoils least.
        found["ratio_of_best"] = _short(min(best[name] for name in total) / best[Ours.name])
    return found


def _sums(results: dict[str, dict[str, Any]], *keys: str) -> dict[str, float]:
    return {name: sum(r[k] for k in keys) for name, r in results.items() if keys[0] in r}


def _short(value: float) -> float | None:
    """Four digits, which is more than a time is good for; JSON has no word for infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _first_line(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:120]}"


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["numpy"] = np.__version__
    for package in (name for kind in (Ours, *PEERS) for name in kind.packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # A peer that is not there is reported in every cell.
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def shortcomings(tables: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Name every cell in which our own accuracy is not what is promised."""
    for table, records in tables.items():
        dtype = torch.float32 if table == "float32" else torch.float64
        for record in records:
            for name in (Ours.name, OursCopied.name):
                result = record["results"].get(name, {})
                where = f"{table} n={record['n']} batch={record['batch']} {name}"
                if "skipped" in result:
                    yield f"{where}: {result['skipped']}"
                    continue
                for key, limit in LIMITS[dtype].items():
                    value = result.get(key, 0.0)
                    if value is None or value > limit:
                        yield f"{where}: {key} {value}, promised {limit}"


def parse_cells(text: str) -> list[tuple[int, int]]:
    """``"20x128,50x16"`` as pairs of variables and batch."""
    cells = []
    for word in text.split(","):
        n, separator, batch = word.partition("x")
        if not (separator and n.isdigit() and batch.isdigit() and int(n) >= 5 and int(batch) >= 1):
            raise argparse.ArgumentTypeError(
                f"expected cells such as 20x128,50x16 (at least 5 variables, batch 1); got {word!r}"
            )
        cells.append((int(n), int(batch)))
    return cells


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few cells, little repetition")
    parser.add_argument("--cells", type=parse_cells, metavar="NxB,...", help="only these cells")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--output", type=Path, help="write the JSON of a partial run to this file")
    options = parser.parse_args(arguments)

    cells = {"dense": DENSE, "shared": SHARED, "float32": FLOAT32}
    if options.quick:
        cells = QUICK
    if options.cells:
        cells = dict.fromkeys(cells, options.cells)
        cells["shared"] = [cell for cell in options.cells if cell[1] > 1]
    complete = not (options.quick or options.cells or options.no_peers)

    benchmark = Benchmark(QUICK_EFFORT if options.quick else Effort(), not options.no_peers)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in cells}
    started = time.monotonic()
    with tqdm(total=sum(map(len, cells.values())), unit="cell") as progress:
        for table, pairs in cells.items():
            for n, batch in pairs:
                sizes = Sizes(n, batch)
                progress.set_description(f"{table} n={n} batch={batch}")
                if table == "float32":
                    record = benchmark.float32_cell(sizes)
                else:
                    record = benchmark.cell(replace(sizes, shared=table == "shared"))
                tables[table].append(record)
                progress.write("\n".join(cell_lines(table, record)))
                progress.update()

    found = {"machine": machine(), "minutes": round((time.monotonic() - started) / 60, 1)} | tables
    output = RESULTS if complete else options.output
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(found, indent=1) + "\n")
        print(f"Wrote {output}")
    if complete:
        from plot import draw

        write_report(found)
        draw(found)

    missed = list(shortcomings(tables))
    for line in missed:
        print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
