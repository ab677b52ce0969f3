# Everything a person or a CI runs. Python 3.11 or later, make and a C compiler are needed to begin with:
# the targets create .venv and install into it what they use, once.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow check lint types doctest docs format bench-qp bench-implicit bench-cone clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

# The constraints name one release of everything, torch above all: without them pip would take the
# newest torch, which may bring gigabytes of GPU libraries along.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

help:  ## say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-examples  ## train the Sudoku layer, from nothing
	$(BIN)/python examples/sudoku.py

test: $(VENV)/.installed-dev  ## run the default tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(VENV)/.installed-dev  ## run the tests that take long or measure time
	$(BIN)/python -m pytest -m slow

check: lint types doctest docs  ## run everything that must be clean, but for the tests

lint: $(VENV)/.installed-dev  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed-dev  ## repair what can be repaired of style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(VENV)/.installed-dev  ## check types, strictly
	$(BIN)/mypy

# Apart from the tests, so that `pytest` alone never imports a module just to look for examples.
doctest: $(VENV)/.installed-dev  ## run the examples in docstrings
	$(BIN)/python -m pytest --doctest-modules optlayers solvers

docs: $(VENV)/.installed-docs  ## build the documentation, which runs the examples
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	@echo "The documentation is in docs/_build/html/index.html"

bench-qp: $(VENV)/.installed-bench  ## time quadratic programs against the peers
	$(BIN)/python benchmarks/qp.py

bench-implicit: $(VENV)/.installed-bench  ## time fixed points and minimisation against the peers
	$(BIN)/python benchmarks/implicit.py

bench-cone: $(VENV)/.installed-bench  ## time problems written in cvxpy against the peers
	$(BIN)/python benchmarks/cone.py

clean:  ## remove the environment and whatever was built
	rm -rf $(VENV) build dist docs/_build docs/auto_examples docs/sg_execution_times.rst
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f solvers/c/*.so
	find optlayers solvers tests examples benchmarks docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# --- the environment ------------------------------------------------------------------------------
# A stamp file says what is installed; it is renewed when the requirements change, or what is compiled.

COMPILED := hatch_build.py $(wildcard solvers/c/*.[ch])

$(VENV)/.created:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "optlayers needs Python 3.11 or later, and $(PYTHON) is older: say `make PYTHON=/path/to/python3.11 ...`")'
	"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed-%: $(VENV)/.created pyproject.toml constraints.txt $(COMPILED)
	@echo "Installing optlayers[$*] into $(VENV): the first time takes a few minutes"
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@

# qpth 0.0.18 declares numpy<2, which nothing else here can live with, but runs well with numpy 2:
# it is installed without its dependencies, all of which are there by then.
$(VENV)/.installed-bench: $(VENV)/.created pyproject.toml constraints.txt $(COMPILED)
	@echo "Installing optlayers[bench] into $(VENV): the first time takes a few minutes"
	$(PIP_INSTALL) -e '.[bench]'
	$(PIP_INSTALL) --no-deps qpth
	@touch $@
