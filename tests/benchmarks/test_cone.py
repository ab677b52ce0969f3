"""The benchmark of problems written in cvxpy runs, and its references are right."""

import importlib
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
    # The benchmarks are scripts, not a package, and import each other from their own folder.
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("cone_problems")
    for name in ("cone_problems", "problems"):
        if name not in before:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("family", "n"),
    [
        ("DenseQP", 5),
        ("SparseQP", 40),
        ("SparseValuesQP", 40),
        ("Cones", 30),
        ("Logistic", 4),
        ("Semidefinite", 5),
        ("SemidefiniteVariable", 5),
    ],
)
def test_reference_gradients_are_difference_quotients(problems, monkeypatch, family, n):
    kind = problems.FAMILIES[family]
    program = kind(n, batch=1)
    exact, data, weight, step = program.exact(), program.data(), program.weight().numpy(), 1e-5
    assert exact.margin > 100 * step  # No kink within reach of the steps.
    generator = torch.Generator().manual_seed(3)
    for k, tensor in enumerate(data):
        direction = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        loss = []
        for sign in (1, -1):
            moved = (*data[:k], tensor + sign * step * direction, *data[k + 1 :])
            monkeypatch.setattr(kind, "data", lambda _, moved=moved: moved)
            loss.append((weight * program.exact().x ** 2).sum())
        monkeypatch.undo()
        quotient = (loss[0] - loss[1]) / (2 * step)
        slope = (exact.gradients[k] * direction.numpy()).sum()
        assert slope == pytest.approx(quotient, rel=1e-5, abs=1e-6)


def test_sparse_parameters_say_the_same(problems):
    vectors, matrices = problems.SparseValuesQP(40, 2), problems.SparseAttributeQP(40, 2)
    np.testing.assert_array_equal(vectors.exact().x, matrices.exact().x)
    for shown, whole in zip(vectors.exact().gradients, matrices.exact().gradients, strict=True):
        assert np.count_nonzero(shown) == np.count_nonzero(whole)
        np.testing.assert_allclose(shown.sum(), whole.sum())


@pytest.mark.slow
def test_benchmark_runs_and_ours_is_right(tmp_path):
    output = tmp_path / "results.json"
    command = [BENCHMARKS / "cone.py", "--quick", "--no-peers", "--output", output]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(output.read_text())
    assert {r["family"] for r in found["cells"]} >= {"DenseQP", "Cones", "Construction"}
    assert found["cells"][0]["results"]["optlayers"]["repetitions"] >= 2
