"""Importing: the alias `optlayers.solvers`, a hidden `solvers`, what is loaded, how fast."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optlayers
import optlayers.solvers
import solvers

ROOT = Path(optlayers.__file__).parent.parent
SOLVER_FILES = sorted((ROOT / "solvers").rglob("*.py"))
SOLVER_MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in SOLVER_FILES
]


def python(*arguments, cwd):
    # Python itself puts cwd, or the script's folder, in front of PYTHONPATH.
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- the alias ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVER_MODULES)
def test_both_names_give_the_same_module(name):
    module = importlib.import_module(name)
    spec = module.__spec__
    assert importlib.import_module(f"optlayers.{name}") is module
    assert module.__name__ == name
    assert module.__spec__ is spec


def test_both_names_give_the_same_package():
    assert optlayers.solvers is solvers
    assert sys.modules["optlayers.solvers"] is solvers


@pytest.mark.parametrize("first", ["solvers.qp", "optlayers.solvers.qp"])
def test_the_alias_does_not_depend_on_what_is_imported_first(first, tmp_path):
    code = (
        f"import {first}; import optlayers.solvers.qp, solvers.qp;"
        "from optlayers.solvers import qp as q; from optlayers.solvers.qp import __name__ as name;"
        "assert optlayers.solvers.qp is solvers.qp is q; print(name)"
    )
    run = python("-c", code, cwd=tmp_path)
    assert (run.stdout, run.stderr) == ("solvers.qp\n", "")


def test_a_missing_solver_module_is_named_as_the_user_wrote_it():
    with pytest.raises(ModuleNotFoundError, match=r"'optlayers\.solvers\.nonsense'"):
        importlib.import_module("optlayers.solvers.nonsense")


def test_parts_that_are_imported_when_they_are_used(tmp_path):
    parts = "ol.equilibrium, ol.testing, ol.solvers.projection, ol.solvers.linear, ol.solvers.SQP"
    ran = subprocess.run(
        [sys.executable, "-c", f"import optlayers as ol\n{parts}"], cwd=tmp_path, check=False
    )
    assert ran.returncode == 0


def test_every_family_of_solvers_has_a_stub_under_the_alias():
    families = {path.parent.name for path in (ROOT / "solvers").glob("*/__init__.py")}
    stubs = {path.stem: path.read_text() for path in (ROOT / "optlayers" / "solvers").glob("*.pyi")}
    for family in families:
        assert f"from solvers.{family} import *" in stubs.get(family, ""), family
    assert stubs.keys() == families | {"__init__"}


# --- a user's own `solvers` -----------------------------------------------------------------------


def test_a_file_that_hides_solvers_is_named(tmp_path):
    (tmp_path / "solvers.py").write_text("raise SystemExit('it must not be run')")
    run = python("-c", "import optlayers", cwd=tmp_path)
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: optlayers: {tmp_path / 'solvers.py'} hides the package `solvers`, "
        "a part of optlayers; give your file another name."
    )


def test_a_folder_that_hides_solvers_is_named(tmp_path):
    (tmp_path / "solvers").mkdir()
    (tmp_path / "solvers" / "__init__.py").touch()
    run = python("-c", "import optlayers", cwd=tmp_path)
    assert run.stderr.splitlines()[-1] == (
        f"ImportError: optlayers: {tmp_path / 'solvers'} hides the package `solvers`, "
        "a part of optlayers; give your folder another name."
    )


def test_a_script_called_solvers_is_told_so(tmp_path):
    (tmp_path / "solvers.py").write_text("import optlayers")
    run = python("solvers.py", cwd=tmp_path)
    assert "solvers.py hides the package `solvers`" in run.stderr.splitlines()[-1]


def test_a_hidden_solvers_that_is_already_imported_is_named(tmp_path):
    (tmp_path / "solvers.py").touch()
    run = python("-c", "import solvers; import optlayers", cwd=tmp_path)
    assert "solvers.py hides the package `solvers`" in run.stderr.splitlines()[-1]


def test_a_folder_without_code_hides_nothing(tmp_path):
    (tmp_path / "solvers").mkdir()
    run = python("-c", "import optlayers", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")


# --- what an import costs -------------------------------------------------------------------------


def test_heavy_packages_are_not_imported(tmp_path):
    heavy = {"cvxpy", "daqp", "piqp", "scipy", "matplotlib"}
    code = f"import sys, optlayers; print(sorted({heavy} & sys.modules.keys()))"
    assert python("-c", code, cwd=tmp_path).stdout == "[]\n"


@pytest.mark.slow
def test_import_adds_little_to_that_of_torch(tmp_path):
    def seconds():
        run = python("-X", "importtime", "-c", "import torch; import optlayers", cwd=tmp_path)
        row = re.search(r"^import time: *\d+ \| *(\d+) \| optlayers$", run.stderr, re.MULTILINE)
        return int(row[1]) / 1e6

    # The least of several: other processes make it longer, nothing makes it shorter.
    assert min(seconds() for _ in range(5)) < 0.3


# --- the direction of imports ---------------------------------------------------------------------

FORBIDDEN = ("optlayers", "torch.autograd", "torch.nn")


def names_used(tree):
    """Every dotted name that a module imports, or reaches as an attribute of `torch`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def forbidden_names(source):
    return [
        name
        for name in names_used(ast.parse(source))
        if any(name == head or name.startswith(f"{head}.") for head in FORBIDDEN)
    ]


@pytest.mark.parametrize("path", SOLVER_FILES, ids=SOLVER_MODULES)
def test_solvers_know_nothing_of_layers(path):
    assert forbidden_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import optlayers",
        "from optlayers.implicit import Exact",
        "import torch.nn.functional as F",
        "from torch import nn",
        "from torch.autograd.function import Function",
        "def f(x):\n    return torch.nn.functional.relu(x)",
    ],
)
def test_the_check_of_directions_sees(source):
    assert forbidden_names(source) != []
