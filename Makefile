# Everything runs in .venv, which the first target that needs it creates.
# PYTHON: the interpreter to make it with (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# WORKERS: processes that run the tests, each with one thread.
WORKERS ?= 2
RUN := runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help quickstart install dev check test test-long test-layouts docs docs-check clean

help:
	@echo "make quickstart  install, then train, evaluate, merge and export on the embedded base"
	@echo "make test        install, then run the tests"
	@echo "make test-long   the tests that take longer"
	@echo "make test-layouts  every layout of processes against one: docs/layouts.md"
	@echo "make check       lint, types, import contracts, generated docs"
	@echo "make docs        write the generated docs anew"
	@echo "make clean       remove the environment"

# torch first and pinned: an unpinned torch brings gigabytes of GPU packages.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quantization]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quantization,dev]'
	@touch $@

install: $(VENV)/.runtime

dev: $(VENV)/.dev

quickstart: $(VENV)/.runtime
	$(BIN)/lorafit train recipes/quickstart.yaml --set output.dir=$(RUN)
	$(BIN)/lorafit eval $(RUN)
	$(BIN)/lorafit merge $(RUN)
	$(BIN)/lorafit export-adapter $(RUN)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@$(MAKE) --no-print-directory docs-check

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest -m long

test-layouts: $(VENV)/.dev
	$(BIN)/python scripts/prove_layouts.py --markdown docs/layouts.md

docs: $(VENV)/.dev
	$(BIN)/lorafit schema --markdown > docs/recipe.md
	$(BIN)/lorafit schema > docs/recipe.schema.json
	LORAFIT_WRITE_DOCS=1 $(BIN)/python -m pytest -q tests/data/test_templates.py \
	  tests/methods/test_methods_page.py tests/doctor/test_tested_versions.py \
	  "tests/bench/test_communication.py::test_the_page_has_the_tables_that_the_formulas_give"

docs-check: $(VENV)/.runtime
	@$(BIN)/lorafit schema --markdown | diff -u docs/recipe.md - \
	  && $(BIN)/lorafit schema | diff -u docs/recipe.schema.json - \
	  || { echo "docs/ is behind the schema: run make docs"; exit 1; }

clean:
	rm -rf $(VENV)
