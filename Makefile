# allears. `make` lists the targets. Needed: Python 3.11 or newer with its venv module, git, make.
#
# Variables, on the command line or in the environment:
#   PYTHON       the Python that makes the environment
#   VENV         where the environment stands
#   TORCH        what pip installs as torch: a version, a wheel, or `torch` for the newest
#   TORCH_INDEX  a package index for torch alone, for instance one of CPU-only or CUDA builds
#   LOCK         what else is installed, by version and hash; empty: the newest that pyproject.toml
#                allows, for a platform that the lock's files are not made for
#   UPGRADE      for `make lock`: not empty, every pin moves to the newest release
#
# After changing TORCH, TORCH_INDEX or LOCK, remove the environment: it is only made once.

PYTHON      ?= python3
VENV        ?= .venv
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=
LOCK        ?= lock/develop.txt
UPGRADE     ?=

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
READY := $(VENV)/.allears-ready
# Three processes keep two cores busy, for tests wait for servers a third of their time; each has one
# thread for arithmetic: threads of several would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
HASHED := --no-deps --require-hashes --requirement
# Tests start a hundred Pythons: what the first compiles, the others load, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

# Programs that no test and no server imports stand in an environment of their own.
TOOLS       := build/tools
TOOLS_READY := $(TOOLS)/.ready
COMPILE = UV_CUSTOM_COMPILE_COMMAND='make lock' $(TOOLS)/bin/uv pip compile --quiet --universal \
  --python-version 3.11 --no-python-downloads --generate-hashes --annotation-style line \
  $(if $(UPGRADE),--upgrade) --output-file

.DEFAULT_GOAL := help
.PHONY: help demo serve train test test-all check lock audit bench bench-gpu torture capacity rules clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## ask the embedded model about one clip, bare and steered, and stop
	$(BIN)/allears demo

serve: $(READY) ## serve the embedded model on 127.0.0.1:8000 until interrupted
	$(BIN)/allears serve

train: $(READY) ## train the embedded model again, from nothing
	$(BIN)/python -m steering.demo.train

test: $(READY) ## run the quick part of the tests, a few minutes
	$(PYTEST) -m 'not slow'

test-all: $(READY) ## run the slow part too: server processes, Ray, a browser, training, stress
	$(PYTEST)

check: $(READY) ## check format, lint, dead code and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m vulture
	$(BIN)/mypy

lock: $(TOOLS_READY) ## pin what pyproject.toml asks for, in lock/; UPGRADE=1 takes the newest
	$(COMPILE) lock/develop.txt --extra dev pyproject.toml
	$(COMPILE) lock/serve.txt --extra av --extra postgres --constraints lock/develop.txt pyproject.toml
	$(COMPILE) lock/tools.txt --group tools

audit: $(TOOLS_READY) ## ask whether what is locked has known vulnerabilities
	$(TOOLS)/bin/python lock/audit.py '$(TORCH)' lock/*.txt

bench: $(READY) ## measure steering and batching beside transformers, on this machine's CPU
	$(BIN)/python -m server.bench --model demo mid --device cpu

bench-gpu: $(READY) ## the same at the sizes of Qwen2-Audio-7B, random bfloat16 weights, on a GPU
	$(BIN)/python -m server.bench --model real --device cuda --concurrency 1 4 16 32

torture: $(READY) ## hold real servers under load, faults and hostile input, and write the table
	$(BIN)/python -m tests.stress --write

capacity: $(READY) ## measure, simulate and forecast what docs/capacity.md says, and write it anew
	$(BIN)/python -m deploy.capacity

rules: $(READY) ## write the alert rules as the Kubernetes operator of Prometheus takes them
	$(BIN)/python -m deploy.prometheus.operator_rules

clean: ## remove build output and caches; the environment stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find server steering clients deploy tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml Makefile $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "allears needs Python 3.11 or newer, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) can't make environments: its venv module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Making the environment in $(VENV), once; torch is a large download, this takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(if $(LOCK),$(PIP) $(HASHED) $(LOCK))
	$(PIP) $(if $(LOCK),--no-deps --no-build-isolation) -e '.[dev]'
	@touch $@

$(TOOLS_READY): lock/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check $(HASHED) $<
	@touch $@
