# allears. `make` lists the targets. Needed: Python 3.11 or newer with its venv module, git, make.
#
# Variables, on the command line or in the environment:
#   PYTHON       the Python that makes the environment
#   VENV         where the environment stands
#   TORCH        what pip installs as torch: a version, a wheel, or `torch` for the newest
#   TORCH_INDEX  a package index for torch alone, for instance one of CPU-only or CUDA builds
#
# After changing TORCH or TORCH_INDEX, remove the environment: it is only made once.

PYTHON      ?= python3
VENV        ?= .venv
TORCH       ?= torch==2.13.0
TORCH_INDEX ?=

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.allears-ready

.DEFAULT_GOAL := help
.PHONY: help demo serve train test check bench bench-gpu capacity clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## ask the embedded model about one clip, bare and steered, and stop
	$(BIN)/allears demo

serve: $(READY) ## serve the embedded model on 127.0.0.1:8000 until interrupted
	$(BIN)/allears serve

train: $(READY) ## train the embedded model again, from nothing
	$(BIN)/python -m steering.demo.train

test: $(READY) ## run the whole test suite
	$(BIN)/python -m pytest

check: $(READY) ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY) ## measure steering and batching beside transformers, on this machine's CPU
	$(BIN)/python -m server.bench --model demo mid --device cpu

bench-gpu: $(READY) ## the same at the sizes of Qwen2-Audio-7B, random bfloat16 weights, on a GPU
	$(BIN)/python -m server.bench --model real --device cuda --concurrency 1 4 16 32

capacity: $(READY) ## measure, simulate and forecast what docs/capacity.md says, and write it anew
	$(BIN)/python -m server.bench.capacity

clean: ## remove build output and caches; the environment stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find server steering clients tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "allears needs Python 3.11 or newer, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) can't make environments: its venv module is missing." >&2; \
	  echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Making the environment in $(VENV), once; torch is a large download, this takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) -e '.[dev]'
	@touch $@
