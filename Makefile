# `make help` lists the targets. Everything runs in .venv, which `make setup` makes.
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
ROOMS := engine verifiers sandboxes kernels
BIN := .venv/bin

.PHONY: help setup quickstart test check race pages clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## make .venv and install everything in it (once); PYTHON=... chooses the Python
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    exec $$python tools/install.py; \
	  fi; \
	done; \
	echo "setup: Python 3.11 or newer is needed, and none of these is: $(PYTHONS); install one, or run make PYTHON=/path/to/python3" >&2; exit 1

quickstart: setup  ## train a tiny model from verifiable rewards, in minutes; ARGS="train.seed=1 ..." changes settings
	@$(BIN)/verigrad train quickstart $(ARGS)

test: setup  ## all tests but those that need a GPU
	@# two at a time, but for those that watch what a whole machine does
	@$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --ignore tests/sandboxes; status=$$?; \
	$(BIN)/python -m pytest -m "not gpu" tests/sandboxes && exit $$status

check: setup build/types  ## format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_layers.py

race: setup  ## the same work by TRL and by us, in turn: 25 minutes, on a machine that does nothing else
	@$(BIN)/python benchmarks/against_trl.py --all

pages: setup  ## write docs/settings.md and docs/tree.md anew from the source
	@$(BIN)/python tools/make_settings_page.py
	@$(BIN)/python tools/make_tree_page.py

build/types:
	@mkdir -p build/types/verigrad
	@for room in $(ROOMS); do ln -sfn ../../../$$room build/types/verigrad/$$room; done

clean:  ## remove .venv, build and the runs
	@rm -rf .venv build runs *.egg-info
