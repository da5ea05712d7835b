# The environment is made by uv from pyproject.toml and constraints.txt; PYTHON may name another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# With an NVIDIA driver, jax gets its CUDA plugin.
ACCELERATOR := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo ,cuda12)
# Environments with openpi's versions. LEROBOT names a checkout of LeRobot, whose 0.1.0 is a commit, and OPENPI one of
# openpi, which gets an environment apart: beside it a config's name may mean openpi's. Without LEROBOT, that environment
# takes LeRobot from where openpi's lock says, and the other goes without.
PINS := .venv-openpi-pins
WITH_OPENPI := $(PINS)/with-openpi
PINS_INSTALL = $(BIN)/uv pip install --quiet --constraint constraints-openpi.txt --editable '.[dev]'
# Each process begins with a half of its own and takes over from the other at the end: a file's tests, which share what is
# expensive, mostly stay together.
PYTEST := pytest -n 2 --dist worksteal
# An inherited setting would make every process compile torch's and jax's sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-openpi-pins format docs bench-static bench-data bench-norm-stats bench-feed bench-step bench-selftest soak clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.installed ## Make the environment in .venv

demo: setup ## Run the checklist, then train the demo
	$(BIN)/preflight train --after-checks

test: $(VENV)/.installed-dev ## Lint, types, layers and every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config pyproject.toml
	$(BIN)/$(PYTEST)

test-openpi-pins: $(PINS)/.installed$(if $(LEROBOT),-lerobot) $(if $(OPENPI),$(WITH_OPENPI)/.installed) ## The tests on openpi's versions; LEROBOT=DIR, OPENPI=DIR: and code
	$(PINS)/bin/$(PYTEST) $(if $(OPENPI),-m 'not openpi')
	$(if $(OPENPI),$(WITH_OPENPI)/bin/$(PYTEST) -m openpi)

format: $(VENV)/.installed-dev ## Format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev ## Write the generated pages of docs/
	$(BIN)/python docs/generate.py

bench-static: setup ## Time the commands that need no step, and the first batch
	$(BIN)/python -m bench.static
	$(BIN)/python -m bench.first_batch

bench-data: setup ## Make datasets of 10 000 episodes and time the check of their metadata
	$(BIN)/python -m bench.data_scale

bench-norm-stats: setup ## Make a dataset of a million frames and time its normalisation statistics
	$(BIN)/python -m bench.norm_stats

bench-feed: setup ## Time our loader, LeRobot's, openpi's and bare decoding side by side
	$(BIN)/python -m bench.feed

bench-step: setup ## Time the train step with and without the extended metrics
	$(BIN)/python -m bench.step

bench-selftest: setup ## Measure datasets whose figures are known, and tell what the loader benchmark misses
	$(BIN)/python -m bench.selftest

soak: setup ## Kill a run 25 times, resume it, and compare it with one that was left alone
	$(BIN)/python -m bench.soak

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "preflight needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.$(if $(ACCELERATOR),[cuda12])'
	@touch $@

$(VENV)/.installed-dev: $(BIN)/uv pyproject.toml constraints.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev$(ACCELERATOR)]'
	@touch $@ $(VENV)/.installed

$(PINS)/bin/python $(WITH_OPENPI)/bin/python: | $(BIN)/uv
	$(BIN)/uv venv --quiet --python 3.11 $(@:/bin/python=)

$(PINS)/.installed: $(PINS)/bin/python pyproject.toml constraints-openpi.txt
	echo lerobot > $(PINS)/elsewhere.txt
	$(PINS_INSTALL) --python $(PINS)/bin/python --excludes $(PINS)/elsewhere.txt
	@touch $@

$(PINS)/.installed-lerobot: $(PINS)/.installed
	$(PINS_INSTALL) --python $(PINS)/bin/python '$(LEROBOT)'
	@touch $@

# Compiled at once: under pytest a warning about a dependency's source is an error. torchcodec needs FFmpeg's libraries on
# the machine; without them LeRobot would try it none the less, and without torchcodec it decodes with PyAV.
$(WITH_OPENPI)/.installed: $(PINS)/.installed $(WITH_OPENPI)/bin/python
	$(BIN)/uv export --quiet --project '$(OPENPI)' --frozen --no-dev --no-hashes --no-emit-workspace \
	  $(if $(LEROBOT),--no-emit-package lerobot) --output-file $(WITH_OPENPI)/lock.txt
	$(BIN)/uv pip install --quiet --python $(WITH_OPENPI)/bin/python --no-deps --compile-bytecode \
	  --requirement $(WITH_OPENPI)/lock.txt --editable '$(OPENPI)' --editable '$(OPENPI)/packages/openpi-client' \
	  $(if $(LEROBOT),'$(LEROBOT)')
	$(PINS_INSTALL) --python $(WITH_OPENPI)/bin/python
	@$(WITH_OPENPI)/bin/python -c 'import torchcodec' 2>/dev/null || \
	  $(BIN)/uv pip uninstall --quiet --python $(WITH_OPENPI)/bin/python torchcodec
	@touch $@

clean: ## Remove the environments and what tools left
	rm -rf $(VENV) $(PINS) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
