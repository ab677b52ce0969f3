"""The benchmark runs, and its reference is right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def problems():
    # The benchmarks are scripts, not a package.
    spec = importlib.util.spec_from_file_location("benchmark_problems", BENCHMARKS / "problems.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("shared", [False, True])
def test_reference_gradients_are_difference_quotients(problems, shared):
    data = problems.random_programs(problems.Sizes(5, 3, shared))
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = problems.reference(data, weight)
    step = 1e-6
    assert exact.margin > 100 * step  # No kink within reach of the steps.
    for k, tensor in enumerate(data):
        for index in np.ndindex(*tensor.shape):
            loss = []
            for sign in (1, -1):
                moved = tensor.clone()
                moved[index] += sign * step
                if k == 0:  # P is symmetric.
                    moved = (moved + moved.mT) / 2
                x = problems.reference(data._replace(**{data._fields[k]: moved}), weight).x
                loss.append((x * weight.numpy()).sum())
            quotient = (loss[0] - loss[1]) / (2 * step)
            assert quotient == pytest.approx(exact.gradients[k][index], abs=1e-7)


def test_errors_are_seen(problems):
    data = problems.random_programs(problems.Sizes(5, 3, shared=True))
    weight = torch.ones(3, 5, dtype=torch.float64)
    exact = problems.reference(data, weight).gradients
    right = [torch.from_numpy(e) for e in exact]
    assert problems.gradient_error(right, exact) == 0
    assert problems.observations(right, exact, batch=3) == []
    mean = [g / 3 if k in (0, 2, 4) else g for k, g in enumerate(right)]
    assert problems.gradient_error(mean, exact) == pytest.approx(2 / 3)
    (mean_seen,) = problems.observations(mean, exact, batch=3)
    assert "mean" in mean_seen
    (rounding_seen,) = problems.observations([g.float().double() for g in right], exact, batch=3)
    assert "float32" in rounding_seen


def test_benchmark_runs_and_ours_is_right(tmp_path):
    output = tmp_path / "results.json"
    command = [BENCHMARKS / "qp.py", "--quick", "--no-peers", "--cells", "5x2,20x3"]
    run = subprocess.run(
        [sys.executable, *command, "--output", output], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(output.read_text())
    assert [r["n"] for r in found["dense"]] == [5, 20]
    assert found["dense"][0]["results"]["optlayers"]["repetitions"] >= 2
    assert "ratio_to_copies" in found["shared"][0]
