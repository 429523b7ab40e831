# driftgate: what a developer does. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help install demo check test e2e control-plane gitops-tools e2e-gitops bench lock format clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "driftgate needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing into .venv (about a minute, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

install: $(STAMP) ## install driftgate and what develops it into .venv

demo: $(STAMP) ## show the main job: a real control plane if there is one, else recorded reviews over HTTPS
	@$(BIN)/driftgate demo

check: $(STAMP) ## format, lint, types, import contracts, tests: offline, under two minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -n 2 -m "not e2e"

test: check

control-plane: ## build etcd, kube-apiserver and friends into the user's cache (about twelve minutes, once)
	@$(PYTHON) tests/control_plane/build.py

e2e: $(STAMP) ## tests against a real control plane
	$(BIN)/pytest -q -m "e2e and not gitops" tests/e2e

gitops-tools: ## build the real Argo CD and Flux into the user's cache (about ten minutes, once)
	@$(PYTHON) tests/control_plane/build.py gitops-tools

e2e-gitops: $(STAMP) ## tests with the real Argo CD and Flux behind the gate
	$(BIN)/pytest -q -m gitops tests/e2e

bench: $(STAMP) ## CPU a decision, latency and throughput over TLS, memory, beside the floor
	$(BIN)/python -m tests.bench

format: $(STAMP) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" pyproject.toml

lock: $(STAMP) ## renew the lock files, with hashes
	$(LOCK) --upgrade --output-file requirements.txt
	$(LOCK) --upgrade --group dev --output-file requirements-dev.txt

clean: ## remove what was installed and built here (not the control plane in the user's cache)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
