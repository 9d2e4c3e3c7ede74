# Two commands: `make train` (a small GPT learns Python's standard library) and `make test`.
# The first python3 found is used; any Python from 3.11 on works: make PYTHON=python3.13 VENV=.venv313 test

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/first
# Python 3.11 ends at jax 0.10; newer Pythons get the newest jax. Both sets of exact versions are committed.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
CONSTRAINTS := $(if $(filter 3.11,$(VERSION)),constraints-3.11.txt,constraints-3.12.txt)
BIN := $(VENV)/bin
# Tests of one file stay together, as they share what is slow to make.
PYTEST := $(BIN)/python -m pytest tests -n 2 --dist loadfile

.PHONY: train test test-all test-core parity format clean

train: $(VENV)/nlp.installed
	$(BIN)/python -m experiments.first_run --workdir=$(WORKDIR)

test: $(VENV)/test.installed
	$(PYTEST) -m "not slow"

test-all: $(VENV)/test.installed
	$(PYTEST)

# What must also hold on another Python and jax: the mathematics, one training run, its resume.
test-core: $(VENV)/test.installed
	$(PYTEST) -m "core and not slow"

# Recomputes the fixtures that hold torch's numbers and compares (installs torch and transformers).
parity: $(VENV)/test.installed
	$(BIN)/python -m pip install --quiet torch==2.13.0 transformers==5.23.0
	$(BIN)/python -m tests.fixtures.make --check

format: $(VENV)/test.installed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Anneal needs Python 3.11 or newer, found %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/nlp.installed: setup.py $(CONSTRAINTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[nlp]'
	@touch $@

$(VENV)/test.installed: setup.py $(CONSTRAINTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[nlp,vision,test]'
	@touch $@
