# Every target makes .venv itself when it is missing. Needs Python 3.11 or newer, pip, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: setup demo test test-slow check bench clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

# Prepares synthetic speech, trains three small models, and compares them on one page: under 8 minutes on 2 cores.
demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh samples/demo.sh

# Everything but what needs a GPU or takes minutes: under 10 minutes on 2 cores.
test: $(INSTALLED)
	$(BIN)/pytest -m 'not gpu and not slow' -n 2

test-slow: $(INSTALLED)
	$(BIN)/pytest -m 'slow and not gpu'

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Speed of training and sampling of all models on this machine.
bench: $(INSTALLED)
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) stores runs
