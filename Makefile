# Every target makes .venv itself when it is missing. Needs Python 3.11 or newer, pip, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PEERS := $(VENV)/installed-peers
DOCS := $(VENV)/installed-docs

.PHONY: setup demo test test-slow faults check docs bench bench-gpu bench-peers clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo,dev]'
	touch $@

# Lets a shipped model be heard, trains three small ones of synthetic speech side by side, and compares them on one
# page: some 6 minutes on 2 idle cores.
demo: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh samples/demo.sh

# Everything but what needs a GPU or takes minutes: 8 to 13 minutes on 2 cores.
test: $(INSTALLED)
	$(BIN)/pytest -m 'not gpu and not slow' -n 2 --dist loadgroup

test-slow: $(INSTALLED)
	$(BIN)/pytest -m 'slow and not gpu'

# The fault matrix of docs/reliability.md in its long form: kills, mutated inputs, full disks. Its last line counts rows.
faults: $(INSTALLED)
	$(BIN)/pytest -m 'fault and not gpu' --long -n 2 --dist loadgroup

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation as a site, site/index.html: references made from the code, the notebook run; 1 to 3 minutes. Fails on
# a link that leads nowhere, and on a page that loads anything from elsewhere.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

$(DOCS): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

# Speed and memory on a CPU, beside the peers, into benchmarks/results/latest.json: under 15 minutes on 2 cores.
bench: $(PEERS)
	$(BIN)/python -m benchmarks.run

# The same after the GPU's part: under 9 minutes.
bench-gpu: $(PEERS)
	$(BIN)/python -m benchmarks.run --gpu --minutes 7

# The public packages that benchmarks/ compares with.
bench-peers: $(PEERS)

$(PEERS): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) stores runs site
