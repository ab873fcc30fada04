# `make help` lists what there is. Everything runs in .venv, which `make setup` makes.
PYTHON ?= python3
PORT ?= 5000
# Relative, so that folders may have spaces; DVC finds `python` for the stages through PATH.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# DVC stops when the user has no name, as in a container that runs under a mere number.
export USER := $(or $(USER),$(shell id -u))

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.installed ## make .venv and install the locked dependencies; does nothing when nothing changed

ifneq ($(shell cat .venv/.installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/.installed # never made, or moved: the scripts in .venv name the folder where they were installed
endif

.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] + ": make setup PYTHON=python3.11")'
	test "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --no-index --compile-bytecode --editable .
	@echo "$(CURDIR)" > $@

.PHONY: repro
repro: setup ## run the pipeline (dvc repro), mended if DVC was killed, and say where the results are
	@$(BIN)/python -m classifier repair
	$(BIN)/dvc repro
	@$(BIN)/python -m classifier results

.PHONY: ui
ui: setup ## open the MLflow UI on 127.0.0.1, port 5000 or PORT=
	$(BIN)/python -m classifier ui $(PORT)

.PHONY: test
test: setup ## run every test, a process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: faults
faults: N ?= 100
faults: setup ## run the attacks of tests/faults, all cases or N= percent of them, and write their figures to faults.md
	FAULTS=$(N) FAULTS_RESULTS=faults.md $(BIN)/python -m pytest tests/faults

.PHONY: audit
audit: setup ## look the locked dependencies up among the known vulnerabilities, and list their licences
	@$(BIN)/python -m classifier audit

.PHONY: check
check: setup ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: setup ## measure speed against other ways to train, on MNIST; needs a quiet machine and forty minutes
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements-bench.lock
	$(BIN)/python -m benchmarks

.PHONY: lock
lock: setup ## resolve the dependencies anew into the lock files, which name no index
	echo uv | $(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --output-file requirements-uv.lock -
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --group dev --extra team --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --no-annotate --group bench --constraint requirements.lock --output-file requirements-bench.lock
