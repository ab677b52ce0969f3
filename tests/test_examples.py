"""Every script in examples/ runs from beginning to end and says what came out of it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))

# What each script prints last, in the small setting.
SUMMARIES = {
    "sudoku.py": r"Solved \d+ of 200 test puzzles on unseen grids \(\d+\.\d%\) after \d+ s .*",
}


def run(script, folder, *, small):
    """Run a script as a user would, in a folder where its pictures may land."""
    # A warning is an error, as in all tests.
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=folder,
        env=os.environ | {"OPTLAYERS_SMALL": "1" if small else "", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_an_example_runs_in_the_small_setting(script, tmp_path):
    finished = run(script, tmp_path, small=True)
    assert re.fullmatch(SUMMARIES[script.name], finished.stdout.splitlines()[-1])
    assert finished.stderr == ""  # no progress bar where nobody watches


def test_every_summary_belongs_to_an_example():
    assert SUMMARIES.keys() == {script.name for script in EXAMPLES}


@pytest.mark.slow
def test_sudoku_is_learned_within_a_minute(tmp_path):
    start = time.perf_counter()
    (script,) = (script for script in EXAMPLES if script.name == "sudoku.py")
    finished = run(script, tmp_path, small=False)
    seconds = time.perf_counter() - start

    summary = finished.stdout.splitlines()[-1]
    solved = re.match(r"Solved (\d+) of 1000 test puzzles on unseen grids", summary)
    assert int(solved[1]) >= 990
    assert seconds < 60
    assert "720/720" in finished.stderr  # the progress bar
    assert (tmp_path / "sudoku.png").stat().st_size > 10_000
