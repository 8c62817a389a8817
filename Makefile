# `make help` lists the targets. Everything runs in .venv, which `make setup` makes.
PYTHON ?= $(or $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3),python3)
ROOMS := engine verifiers sandboxes kernels
BIN := .venv/bin

.PHONY: help setup quickstart test check docs-test bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## make .venv and install everything in it (once)
	@command -v $(PYTHON) >/dev/null || { echo "setup: Python 3.11 or newer is needed, and no python3 was found" >&2; exit 1; }
	@$(PYTHON) tools/install.py

quickstart: setup  ## train a tiny model from verifiable rewards on this machine, in minutes
	@$(BIN)/verigrad train quickstart

test: setup  ## all tests but those that need a GPU
	@$(BIN)/python -m pytest -m "not gpu"

check: setup build/types  ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py

build/types:
	@mkdir -p build/types/verigrad
	@for room in $(ROOMS); do ln -sfn ../../../$$room build/types/verigrad/$$room; done

clean:  ## remove .venv, build and the runs
	@rm -rf .venv build runs *.egg-info
