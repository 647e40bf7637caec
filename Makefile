# make demo    train the built-in model and write a report
# make test    linters, types, imports and tests
# make docs    build the documentation into build/site; nothing in it needs a network
# make clean   remove the environment and the caches; runs/ stays
#
# Variables: PYTHON=python3.12   the interpreter that .venv is made from
#            OUTPUT=runs/mine    where the demo writes
#            DEMO_ARGS="..."     more options for `flowward train`
#            PYTEST_ARGS="..."   more options for pytest; `-m 'not slow'` leaves out the slow tests
#            FLOWWARD_CPU_PRECISION=bf16   test as on a processor with bf16, whatever this one has (float32: without)

SHELL := /bin/sh

PYTHON ?= python3
OUTPUT ?= runs/demo
DEMO_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test docs clean

help:
	@awk '/^$$/ { exit } { sub(/^# ?/, ""); print }' Makefile

# A demo that was stopped goes on as it was started; one that is finished stays as it is.
demo: $(VENV)/.installed
	@$(BIN)/flowward demo --output "$(OUTPUT)" $(DEMO_ARGS)

# In the order of their names: by the number of tests in them, the longest files would come last and keep one core.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# A page that no other one leads to, a link to nothing and an unknown name in the API are errors.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python .ci/check_docs.py build/site

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find flowward tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: as long as they are newer than what they were made from, nothing is installed again.

$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null 2>&1 || \
	  { echo "There is no $(PYTHON) here: install Python 3.11 or newer, or name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "flowward needs Python 3.11 or newer and $(PYTHON) is" \
	    "$$("$(PYTHON)" -c 'import sys; print(".".join(map(str, sys.version_info[:3])))'):" \
	    "name a newer one with make PYTHON=python3.12." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) lacks the venv module: install it (on Debian and Ubuntu, the package python3-venv)." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || \
	  { echo "Creating $(VENV) ..."; "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "Installing flowward and what it needs (a minute or two, more on a slow connection) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests ..."
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing what builds the documentation ..."
	@$(PIP) install -c constraints.txt -e ".[docs]"
	@touch $@
