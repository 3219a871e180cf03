# `make` lists the tasks. Each may be the first one run in a fresh clone: what it needs is installed into VENV.

VENV ?= .venv
PYTHON ?= $(shell for python in python3.11 python3 python3.13 python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

BIN := $(VENV)/bin
# --quiet twice: errors only.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
CORE := $(VENV)/.safelight-core
DEV := $(VENV)/.safelight-dev
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --durations 10
MINI_MINUTES ?= 600

.DEFAULT_GOAL := help
.PHONY: slow-schedules slow-parity slow-training slow-serving slow-shapes help demo test test-slow check gates lint types layers docs fix bench mini clean

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(CORE) ## make a picture with the embedded model
	@$(BIN)/safelight generate "a red apple" --out pictures --hints

test: $(DEV) ## run the tests that need no GPU, no network and no patience
	@$(PYTEST)

test-slow: $(DEV) ## run the slow lane, or one part of it: make test-slow PART=schedules|parity|training|serving|shapes
	@set -e; for part in $(or $(PART),$(SLOW_PARTS)); do echo "== $$part"; $(MAKE) --no-print-directory slow-$$part; done

check: gates docs test ## what CI runs: lint, types, layers, docs, tests

fix: $(DEV) ## format, and repair what ruff can
	@$(BIN)/ruff check --fix --exit-zero --quiet
	@$(BIN)/ruff format
	@$(BIN)/ruff check

bench: $(DEV) ## run every benchmark and write benchmarks/results/
	@set -e; for script in $$(grep -l __main__ benchmarks/*.py); do echo "== $$script"; $(BIN)/python "$$script"; done

docs: $(DEV) ## build the documentation into site/, any warning an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

mini: $(DEV) ## train the embedded model from scratch into mini-run/ (hours; needs npm; resumes where it was stopped)
	@$(BIN)/safelight train scratch --minutes $(MINI_MINUTES) --folder mini-run/mini --grid mini-run/grid.png

clean: ## remove what the tasks made: VENV, site/ and caches
	rm -rf "$(VENV)" site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The parts of the slow lane, each under an hour on two cores. `shapes` is the default lane with the shapes of arrays
# checked at run time, as they are in `schedules` and `parity` too.

SLOW_PARTS := schedules parity training serving shapes
SHAPES := -p tests.array_shapes --jaxtyping-packages=safelight.diffusion,tests.array_shapes.check

slow-schedules slow-parity slow-training slow-serving slow-shapes: $(DEV)
slow-schedules:
	@$(PYTEST) $(SHAPES) -m "slow and not gpu" tests/diffusion
slow-parity:
	@$(PYTEST) $(SHAPES) -m "slow and not gpu" tests/parity
slow-training:
	@$(PYTEST) -m "slow and not gpu" tests/lifecycle
slow-serving:
	@$(PYTEST) -m "slow and not gpu" tests/serving
slow-shapes:
	@$(PYTEST) $(SHAPES)

# The parts of `check`.

gates: lint types layers

lint: $(DEV)
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check

types: $(DEV)
	@$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(DEV)
	@$(BIN)/lint-imports

# Installing. A stamp is older than pyproject.toml or constraints.txt when these have changed since.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "safelight needs Python 3.11 or later: say make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv "$(VENV)"

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing safelight into $(VENV) (a minute or two the first time) ..."
	@$(INSTALL) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing safelight and its tools into $(VENV) (two or three minutes the first time) ..."
	@$(INSTALL) --editable '.[dev,docs,mcp,postgres,server,train]'
	@touch $(CORE) $@
