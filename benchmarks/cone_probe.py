"""One contender on one problem in a process of its own: what it builds, remembers and answers.

A process of its own is what a limit of memory can be put on, and where the peak of resident memory
is nobody else's. Processes are forked from a server that has imported everything and done nothing:
otherwise most of the time would go into imports.
"""

import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cone_peers import CONTENDERS, Layer
from cone_problems import Construction, Family, Values
from torch import Tensor

MEMORY = 12 * 2**30  # Bytes that a contender may allocate.
PATIENCE = 30.0  # Seconds of a first step after which there is no second one.


def step(
    layer: Layer, leaves: Values, weight: Tensor
) -> tuple[tuple[float, float], Tensor, tuple[Tensor, ...]]:
    """Go forward and backward once: seconds of both, solution and gradients."""
    start = time.perf_counter()
    (x,) = layer(*leaves)
    solved = time.perf_counter()
    loss = (weight * x * x).sum()
    ready = time.perf_counter()
    gradients = torch.autograd.grad(loss, leaves)
    done = time.perf_counter()
    return (solved - start, done - ready), x.detach(), gradients


def new_leaves(family: Family) -> Values:
    """The data as tensors that are differentiated."""
    return tuple(t.clone().requires_grad_() for t in family.data())


def probe(contender: str, family: Family) -> dict[str, Any]:
    """Build a layer and take a step or two."""
    build = CONTENDERS[contender].build
    build(Construction(2, 1).written())  # Whatever is imported when it is first used.
    written = family.written()
    start = time.perf_counter()
    layer, memory = _watched(lambda: build(written))
    found: dict[str, Any] = {"build_s": time.perf_counter() - start, "build_mb": memory}
    if isinstance(family, Construction):
        return found
    leaves, weight = new_leaves(family), family.weight()
    (seconds, x, gradients), found["step_mb"] = _watched(lambda: step(layer, leaves, weight))
    if sum(seconds) < PATIENCE:
        seconds, x, gradients = step(layer, leaves, weight)
    found |= {"forward_s": seconds[0], "backward_s": seconds[1]}
    # Copies, since a slice would be saved with all that it is a part of.
    found["x"], *found["gradients"] = (t.clone() for t in family.first((x, *gradients)))
    return found


def _watched(call: Callable[[], Any]) -> tuple[Any, float]:
    """Megabytes by which the peak of resident memory exceeds what was resident before."""
    resets = Path("/proc/self/clear_refs")
    if not resets.exists():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = call()
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    resets.write_text("5")  # The peak begins anew.
    before = _status("VmRSS")
    result = call()
    return result, (_status("VmHWM") - before) / 2**10


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def probe_apart(contender: str, family: Family, limit: float) -> dict[str, Any]:
    """Probe in another process, for so many seconds at most."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__", "cvxpylayers.torch", "moreau.torch", "optlayers"])
    # The server does not see the folder of the script that starts it otherwise.
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    with tempfile.TemporaryDirectory() as folder:
        file, errors = Path(folder) / "found.pt", Path(folder) / "errors.txt"
        process = server.Process(target=_write_down, args=(contender, family, file, errors))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            return {"skipped": f"not done after {limit:.0f} s"}
        if process.exitcode or not file.exists():
            lines = errors.read_text().strip().splitlines() or ["no message"]
            return {"skipped": f"ended with {process.exitcode}: {lines[-1][:120]}"}
        found: dict[str, Any] = torch.load(file)
        return found


def _write_down(contender: str, family: Family, file: Path, errors: Path) -> None:
    """Write what was found or raised to a file."""
    with errors.open("w") as stream:
        os.dup2(stream.fileno(), sys.stderr.fileno())
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    try:
        found = probe(contender, family)
    except Exception as error:  # noqa: BLE001 - whatever a peer raises is its result
        text = str(error).strip() or "no message"
        found = {"skipped": f"{type(error).__name__}: {text.splitlines()[0][:120]}"}
    torch.save(found, file)
