# Two commands for a fresh machine with Python 3.11 or newer: `make compare` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ALONE := .venv-wheel

.PHONY: compare test lint wheel docs clean

compare: $(VENV)/run.stamp
	$(BIN)/lossworks compare

test: lint wheel docs
	$(BIN)/pytest -n 2 --durations=20

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The wheel by itself, in an environment that has nothing but it and what it asks for.
wheel: $(ALONE)/made.stamp
	rm -rf dist
	$(ALONE)/bin/pip wheel --quiet --no-deps --wheel-dir dist .
	$(ALONE)/bin/pip uninstall --quiet --yes lossworks
	$(ALONE)/bin/pip install --quiet -c constraints.txt dist/*.whl
	$(ALONE)/bin/python -I .ci/check_wheel.py dist/*.whl

docs: $(VENV)/test.stamp
	$(BIN)/sphinx-build -n -W --keep-going -q -j 2 -b html -d build/doctrees docs site

$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

$(ALONE)/made.stamp: pyproject.toml constraints.txt
	rm -rf $(ALONE)
	$(PYTHON) -m venv $(ALONE)
	touch $@

clean:
	rm -rf $(VENV) $(ALONE) build dist site .mypy_cache .pytest_cache .ruff_cache
	rm -rf docs/parts docs/reference docs/examples docs/index.md docs/contributing.md docs/contract.md
