"""The benchmark of roots, fixed points and minimisation runs, and its references are right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def problems():
    # The benchmarks are scripts, not a package.
    path = BENCHMARKS / "implicit_problems.py"
    spec = importlib.util.spec_from_file_location("benchmark_implicit_problems", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def difference_quotients(loss, tensor, step=1e-5):
    """Central differences of a loss in every entry of a tensor, one at a time."""
    quotients = torch.empty_like(tensor)
    for i in range(tensor.numel()):
        change = torch.zeros(tensor.numel(), dtype=tensor.dtype)
        change[i] = step
        change = change.view_as(tensor)
        quotients.view(-1)[i] = (loss(tensor + change) - loss(tensor - change)) / (2 * step)
    return quotients


@pytest.mark.parametrize("slow", [False, True])
def test_equilibrium_reference(problems, slow):
    p = problems.Equilibrium.random(4, 3, torch.float64, 0.9, slow=slow)
    exact = p.answer()
    assert p.residual(exact.x) < 1e-14

    def loss(W, u):
        return (problems.Equilibrium(W, u, p.weight).answer().x * p.weight).sum()

    quotients = difference_quotients(lambda W: loss(W, p.u), p.W)
    torch.testing.assert_close(exact.gradients[0], quotients, rtol=1e-7, atol=1e-8)
    quotients = difference_quotients(lambda u: loss(p.W, u), p.u)
    torch.testing.assert_close(exact.gradients[1], quotients, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("logistic", [False, True])
def test_hypergradient_reference(problems, logistic):
    p = problems.Regression.random(logistic, torch.float64, n=30, d=5)
    exact = p.answer()
    slope = torch.func.grad(p.training)(exact.x, p.penalty)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-14)

    def loss(penalty):
        data = (p.X, p.y, p.X_validation, p.y_validation, penalty)
        return p.validation(problems.Regression(logistic, *data).answer().x)

    quotients = difference_quotients(loss, p.penalty)
    torch.testing.assert_close(exact.gradients[0], quotients, rtol=1e-6, atol=1e-9)


def test_curve_reference(problems):
    p = problems.Curves.random(curves=2, points=12)
    exact = p.answer()

    def loss(y):
        moved = problems.Curves(p.t, y, p.start, p.weight, p.truth)
        return (moved.answer().x * p.weight).sum()

    torch.testing.assert_close(
        exact.gradients[0], difference_quotients(loss, p.y), rtol=1e-6, atol=1e-8
    )


def test_slow_map_has_its_eigenvalues(problems):
    A, _ = problems.slow_linear_map(8, 0.99)
    spread = torch.linspace(0, 0.99, 8, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.eigvalsh(A), spread)


def test_benchmark_runs_and_ours_is_right(tmp_path):
    output = tmp_path / "results.json"
    command = [BENCHMARKS / "implicit.py", "--quick", "--no-peers", "--output", output]
    run = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(output.read_text())
    assert [r["slow"] for r in found["equilibria"]] == [False, False, True]
    assert len(found["regressions"]) == 4
    assert found["curves"][0]["results"]["optlayers"]["failures"] == 0
    assert found["evaluations"]["slow"]["anderson"] * 3 <= found["evaluations"]["slow"]["plain"]
