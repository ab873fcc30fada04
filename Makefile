# `make help` lists the targets. Everything runs in .venv, which `make setup` creates.
PYTHON ?= python3
PORT ?= 5000
# A relative path, so that the project's path may contain spaces. DVC finds the stages' `python` through PATH.
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
IN_PROCESSES := --numprocesses auto --dist loadfile --no-loadscope-reorder
# DVC fails when the user has no name, as in a container that runs under a numeric user id.
export USER := $(or $(USER),$(shell id -u))

# Disk space for the set-up: only PyTorch for Linux on x86-64 includes CUDA's libraries.
SIZE = $(if $(findstring Linux x86_64,$(shell uname -sm)),needs 7 GB of disk (4 GB of it for GPUs),needs 3 GB of disk)

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: .venv/.installed ## create .venv and install the locked dependencies, unless it is up to date

ifneq ($(shell cat .venv/.installed 2>/dev/null),$(CURDIR))
.PHONY: .venv/.installed # missing, or the project was moved: the scripts in .venv contain its path
endif

.venv/.installed: requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, $(PYTHON) is " + sys.version.split()[0] + ": make setup PYTHON=python3.11")'
	@echo "installing the locked dependencies into .venv: PyTorch, MLflow, DVC and what they need"
	@echo "$(SIZE); a minute on a fast connection"
	@test "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" || $(PYTHON) -m venv --clear .venv
	@echo "1 of 3: uv, which installs the others"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@echo "2 of 3: the packages of requirements.lock"
	@$(BIN)/uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock requirements-uv.lock
	@echo "3 of 3: the command classifier; to use it: source .venv/bin/activate"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --no-index --compile-bytecode --editable .
	@echo "$(CURDIR)" > $@

.PHONY: repro
repro: setup ## repair the files of a killed DVC, run the pipeline (dvc repro) and show where the results are
	@$(BIN)/python -m classifier repair
	$(BIN)/dvc repro
	@$(BIN)/python -m classifier results

.PHONY: verify
verify: setup ## run the committed pipeline in a temporary clone and compare its bytes with the committed dvc.lock
	@$(BIN)/python -m classifier verify

.PHONY: ui
ui: setup ## open the MLflow UI on 127.0.0.1, port 5000 or PORT=
	$(BIN)/python -m classifier ui $(PORT)

.PHONY: test
test: setup ## run the tests that every change must pass, a process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(IN_PROCESSES)

.PHONY: test-all
test-all: setup ## run every test, before a release: remotes, a team's server, long faults, the MNIST recipe, benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(IN_PROCESSES)

.PHONY: faults
faults: N ?= 100
faults: setup ## run all cases of tests/faults, or N= percent of them, and write the figures to faults.md
	FAULTS=$(N) FAULTS_RESULTS=faults.md $(BIN)/python -m pytest tests/faults

.PHONY: audit
audit: setup ## check the locked dependencies for known vulnerabilities and list their licences
	@$(BIN)/python -m classifier audit

.PHONY: check
check: setup ## run ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: setup ## run the benchmarks on MNIST; takes 40 minutes on an idle machine
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements-bench.lock
	$(BIN)/python -m benchmarks

.PHONY: lock
lock: setup ## update the lock files from pyproject.toml
	echo uv | $(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --output-file requirements-uv.lock -
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --group dev --extra team --extra timm --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --no-annotate --group bench --constraint requirements.lock --output-file requirements-bench.lock
	$(BIN)/uv pip compile --quiet --no-header --universal --generate-hashes --python-version 3.11 --no-annotate --group serve --constraint requirements.lock --output-file requirements-serve.lock
