# `make` lists the tasks. Each may be the first one run in a fresh clone: what it needs is installed into VENV.

VENV ?= .venv
PYTHON ?= $(shell for python in python3.11 python3 python3.13 python3.12; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

BIN := $(VENV)/bin
# --quiet twice: errors only.
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
CORE := $(VENV)/.safelight-core
DEV := $(VENV)/.safelight-dev
EXTRAS ?= data,dev,docs,dp,face,mcp,postgres,server,train
# Where VENV has more than the core, a plain installation beside it.
PLAIN = $(if $(wildcard $(DEV)),$(VENV)-plain,$(VENV))
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --durations 10
MINI_MINUTES ?= 600
PYTHON313 ?= $(shell for python in python3.13 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.13.*/bin/python; do \
	"$$python" -c '' 2>/dev/null && echo "$$python" && break; done)

.DEFAULT_GOAL := help
.PHONY: help demo plain test test-slow check gates lint types layers docs fix bench mini clean
.PHONY: slow-schedules slow-parity slow-training slow-serving slow-memory slow-shapes slow-extras slow-python313

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(CORE) ## make a picture with the embedded model
	@$(BIN)/safelight generate "a red apple" --out pictures --hints

plain: ## try every command on a plain installation, without extras
	@$(MAKE) --no-print-directory VENV="$(PLAIN)" "$(PLAIN)/.safelight-core"
	@"$(PLAIN)/bin/python" tests/plain/commands.py

test: $(DEV) ## run the tests that need no GPU, no network and no patience
	@$(PYTEST)

test-slow: $(DEV) ## run the slow lane, or one part of it: make test-slow PART=schedules
	@set -e; for part in $(or $(PART),$(SLOW_PARTS)); do echo "== $$part"; $(MAKE) --no-print-directory slow-$$part; done

check: gates docs test ## what CI runs: lint, types, layers, docs, tests (and before them, demo and plain)

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
	rm -rf "$(VENV)" "$(VENV)-plain" "$(VENV)-extras" "$(VENV)-3.13" site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The parts of the slow lane, each about an hour at most on two cores. `shapes` is the default lane with the shapes of
# arrays checked at run time, as they are in `schedules` and `parity` too; `extras` are the tests that need the heavy
# extras, and `python313` is the default lane on Python 3.13, each in an environment of its own.

SLOW_PARTS := schedules parity training serving memory shapes extras python313
SHAPES := -p tests.array_shapes --jaxtyping-packages=safelight.diffusion,tests.array_shapes.check

slow-schedules slow-parity slow-training slow-serving slow-memory slow-shapes: $(DEV)
slow-schedules:
	@$(PYTEST) $(SHAPES) -m "slow and not gpu" tests/diffusion
slow-parity:
	@$(PYTEST) $(SHAPES) -m "slow and not gpu" tests/parity
slow-training:
	@$(PYTEST) -m "slow and not gpu" tests/lifecycle
slow-serving:
	@$(PYTEST) -m "slow and not gpu" tests/serving
slow-memory:
	@$(BIN)/python benchmarks/memory.py
slow-shapes:
	@$(PYTEST) $(SHAPES)
slow-extras:
	@$(MAKE) --no-print-directory VENV="$(VENV)-extras" EXTRAS="$(EXTRAS),mlflow,upscale" pytest-extras
slow-python313:
	@test -n "$(PYTHON313)" || { echo "no Python 3.13 here: say make PYTHON313=/path/to/python3.13"; exit 1; }
	@$(MAKE) --no-print-directory VENV="$(VENV)-3.13" PYTHON="$(PYTHON313)" test

pytest-extras: $(DEV)
	@CI=true $(PYTEST) -m extras

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
	@$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $(CORE) $@
