# hongbao: `make help` lists what there is. Every target sets up what it needs.
SHELL := /bin/bash
VENV := .venv
# Debian's own interpreter first: the package libpython3 of the same version goes with it.
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; exit; }; done; echo python3)
RUN := $(VENV)/bin

.PHONY: help setup demo demo-stores servers test check bench sim protos lock clean

help: ## list the targets
	@grep -E '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.stamp ## make the virtual environment

$(VENV)/.stamp: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hongbao needs Python 3.11 or newer; found: $$($(PYTHON) --version)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	$(RUN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## play a short New Year's Eve on embedded parts; the last line is JSON
	$(RUN)/hongbao demo

servers: setup ## build the store servers (PD, TiKV protocol, etcd, S3) that some tests run against
	$(RUN)/python -m tests.servers build

demo-stores: servers ## the demo on TiKV x3, etcd x3, S3 and PostgreSQL, with those killed too
	$(RUN)/python -m tests.servers demo

test: servers ## unit, property, contract, simulation and process-level tests
	$(RUN)/python -m pytest -n 2 --dist loadgroup $(TESTS)

check: setup ## format, lint, types, layers, generated files
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python tools/generate_protos.py --check
	$(RUN)/python tools/generate_openapi.py --check
	$(RUN)/hongbao switch docs | diff - docs/switches.md

bench: servers ## measure, peers side by side; writes out/bench.json
	$(RUN)/python -m tests.bench

sim: setup ## simulate any number of seeds: make sim SEEDS=10000
	$(RUN)/python -m tests.sim --seeds $(or $(SEEDS),10000)

protos: setup ## regenerate the protobuf stubs, descriptors and the OpenAPI document
	$(RUN)/python tools/generate_protos.py
	$(RUN)/python tools/generate_openapi.py

lock: ## resolve the locks anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header -q pyproject.toml -o requirements/run.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header -q pyproject.toml --group dev -o requirements/dev.txt

clean: ## remove what the targets made
	rm -rf $(VENV) out
