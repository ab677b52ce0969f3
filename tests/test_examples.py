"""Every script in examples/ runs from beginning to end and says what came out of it."""

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# What each script prints last, in the small setting.
NUMBER = r"\d\.\d+e[+-]\d+"
SUMMARIES = {
    "control_policy.py": r"Average test costs in \d+ s: .*; doing nothing \d\.\d+; see .*",
    "curve_fits.py": r"Fitted 127 of 128 decays; .* median \d\.\d+; see .*",
    "data_poisoning.py": rf"Test loss .* in 3 rounds, gradient error {NUMBER}; see .*",
    "deep_equilibrium_digits.py": r"Read \d+ of 450 test pictures \(\d+\.\d%\) with .*",
    "hyperparameters.py": rf"Validation losses .* errors {NUMBER} and {NUMBER}; see .*",
    "kernel_ridge_bilevel.py": rf"Width \d\.\d+ after .*, hypergradient error {NUMBER}; see .*",
    "max_cut.py": rf"Right sides .* of the test nodes after \d+ s, gradient error {NUMBER}; see .*",
    "portfolio.py": r"Utility from forecast to decision in \d+ s: 1 unit .*, 8 units .*; see .*",
    "sudoku.py": r"Solved \d+ of 200 test puzzles on unseen grids \(\d+\.\d%\) after \d+ s .*",
}


def run(script, folder, *, small):
    """Run a script as a user would, in a folder where its pictures may land."""
    # A warning is an error, as in all tests, but for what torch says of itself in forward mode.
    of_torch = "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-W", of_torch, str(script)],
        cwd=folder,
        env=os.environ | {"OPTLAYERS_SMALL": "1" if small else "", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.fixture(scope="module")
def run_small(tmp_path_factory):
    """Run an example in the small setting, once for all tests."""

    @functools.cache
    def run_by_name(name):
        return run(example(name), tmp_path_factory.mktemp("pictures"), small=True)

    return run_by_name


def example(name):
    (script,) = (script for script in EXAMPLES if script.name == name)
    return script


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_an_example_runs_in_the_small_setting(script, run_small):
    finished = run_small(script.name)
    assert re.fullmatch(SUMMARIES[script.name], finished.stdout.splitlines()[-1])
    assert finished.stderr == ""  # no progress bar where nobody watches


def test_every_summary_belongs_to_an_example():
    assert SUMMARIES.keys() == {script.name for script in EXAMPLES}


def test_the_batch_of_fits_knows_its_uncertainty(run_small):
    output = run_small("curve_fits.py").stdout
    assert "elements 7" in output  # by default, the broken record raises
    assert "with and without it, bit for bit: True" in output
    assert "largest derivative of the broken fit: 0\n" in output
    median = re.search(r"median (\d\.\d+); see", output)
    assert abs(float(median[1]) - 1) < 0.05


def test_hypergradients_agree_with_the_closed_form_and_lower_the_validation_loss(run_small):
    summary = run_small("hyperparameters.py").stdout.splitlines()[-1]
    in_double, in_single = re.search(rf"errors ({NUMBER}) and ({NUMBER})", summary).groups()
    assert float(in_double) <= 1e-8
    assert float(in_single) <= 1e-5
    before_and_after = re.findall(r"(\d\.\d{4}) to (\d\.\d{4}) \(test", summary)
    assert len(before_and_after) == 2  # data sets
    assert all(float(after) < float(before) for before, after in before_and_after)


def test_the_width_of_the_kernel_is_found(run_small):
    summary = run_small("kernel_ridge_bilevel.py").stdout.splitlines()[-1]
    width, error = re.search(rf"Width (\S+) .* error ({NUMBER});", summary).groups()
    assert 0.15 < float(width) < 0.3  # true: 0.2
    assert float(error) < 1e-6


def test_tuning_lowers_the_cost_of_both_plants(run_small):
    summary = run_small("control_policy.py").stdout.splitlines()[-1]
    before_and_after = re.findall(r"(\d\.\d{3}) to (\d\.\d{3})", summary)
    assert len(before_and_after) == 2  # plants
    assert all(float(after) < float(before) for before, after in before_and_after)


def test_poison_works_as_promised_and_better_than_chance(run_small):
    output = run_small("data_poisoning.py").stdout
    by_chance = re.search(r"random moves .*: \S+ to (\d\.\d+)", output)[1]
    by_layer, by_scipy = re.search(r"test loss (\S+) \((\S+) refitted with scipy", output).groups()
    clean, step, promised, rounds, error = re.search(
        rf"Test loss (\S+) to (\S+) in .* \((\S+) promised\) and to (\S+) in .* ({NUMBER});", output
    ).groups()
    assert float(error) < 1e-4
    assert abs(float(by_layer) - float(by_scipy)) < 1e-4
    assert float(clean) < float(by_chance) < float(step) < float(rounds)
    gain = float(step) - float(clean)
    assert abs(float(promised) - float(clean) - gain) < 0.2 * gain


def test_cuts_are_learned_with_the_gradient_of_the_envelope(run_small):
    output = run_small("max_cut.py").stdout
    bound, optimum, rounded = re.search(
        r"bound (\S+), best of \d+ cuts (\S+), best of 50 hyperplanes (\S+)\n", output
    ).groups()
    assert 0.878 * float(bound) <= float(rounded) <= float(optimum) <= float(bound)
    before, after, error = re.search(
        rf"Right sides (\S+)% to (\S+)% .* error ({NUMBER});", output
    ).groups()
    assert float(error) < 1e-8
    assert float(after) > float(before) + 10


def test_decisions_are_worth_learning_if_the_network_is_too_small(run_small):
    summary = run_small("portfolio.py").stdout.splitlines()[-1]
    (one, decided), (eight, _) = re.findall(r"units? (\S+) to (-\d\.\d+)", summary)
    assert float(decided) > float(one) + 0.2
    assert float(decided) > float(eight) - 0.2


@pytest.mark.slow
def test_digits_are_read_within_two_minutes(tmp_path):
    start = time.perf_counter()
    finished = run(example("deep_equilibrium_digits.py"), tmp_path, small=False)
    seconds = time.perf_counter() - start

    right = re.match(r"Read (\d+) of 450 test pictures", finished.stdout.splitlines()[-1])
    assert int(right[1]) >= 0.97 * 450
    assert seconds < 120
    assert "1320/1320" in finished.stderr  # the progress bar
    assert (tmp_path / "deep_equilibrium_digits.png").stat().st_size > 10_000


@pytest.mark.slow
def test_sudoku_is_learned_within_a_minute(tmp_path):
    start = time.perf_counter()
    finished = run(example("sudoku.py"), tmp_path, small=False)
    seconds = time.perf_counter() - start

    summary = finished.stdout.splitlines()[-1]
    solved = re.match(r"Solved (\d+) of 1000 test puzzles on unseen grids", summary)
    assert int(solved[1]) >= 990
    assert seconds < 60
    assert "720/720" in finished.stderr  # the progress bar
    assert (tmp_path / "sudoku.png").stat().st_size > 10_000
