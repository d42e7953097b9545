# Every target sets itself up: .venv/ is made once and reused, and redone when pyproject.toml changes.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done)
BIN := .venv/bin
READY := .venv/.ready
DEV_READY := .venv/.ready-dev
BENCH_READY := .venv/.ready-bench
EXTRA_READY := .venv/.ready-extra
BROWSER_READY := .venv/.ready-browser
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --retries 10

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# all targets share .venv/: under make -j two pips would install into it at once
.NOTPARALLEL:
.PHONY: help demo test test-faults test-slurm test-browser test-wheel soak bench lint examples examples-extra docs format reference clean

help:  ## What there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */make \1|/' | column -t -s '|' 2>/dev/null \
	  || grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST)

demo: $(READY)  ## Set up, then train the quickstart: handwritten digits, under a minute
	$(BIN)/dist-trainer train configs/quickstart.yaml

PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test: lint  ## Set up, then ruff, mypy and every test but those of the targets below
	$(PYTEST) -m "not faults and not examples and not extra and not slurm and not browser and not wheel"

test-faults: $(DEV_READY)  ## Set up, then kill, hang, stop and resume whole commands; ends with a table
	$(PYTEST) -m faults

test-slurm: $(DEV_READY)  ## Set up, then the tests against the SLURM of slurm/local/up, one after another
	$(BIN)/python -m pytest -m slurm

test-wheel: $(DEV_READY)  ## Set up, then build the wheel, install it into an empty environment, and train from there
	$(BIN)/python -m pytest -m wheel -s

test-browser: $(BROWSER_READY)  ## Set up, then look at the report's and MLflow's pages in /usr/bin/chromium
	$(BIN)/python -m pytest -m browser

MINUTES ?= 0
soak: $(DEV_READY)  ## Set up, then every fault whole, then random ones until MINUTES=n are over; ends with a table
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

bench: $(BENCH_READY)  ## Set up with peers, then measure side by side and write docs/; ONLY=name only prints that one
	$(BIN)/python -m benchmarks $(if $(ONLY),$(addprefix --only ,$(ONLY)),--write)

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

examples: $(DEV_READY)  ## Set up, then train each example to its goal and run every command of the pages
	$(BIN)/python -m pytest -m examples -s

examples-extra: $(EXTRA_READY)  ## Set up with more libraries, then Hugging Face, graphs, Captum, timm, peers' weights, notebooks
	$(BIN)/python -m pytest -m extra -s

format: $(DEV_READY)  ## Put right what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(DEV_READY)  ## Write the tables of docs/configuration.md from the schema
	$(BIN)/python -m tests.reference

docs: $(DEV_READY)  ## Set up, then build the guide into build/docs/, to be read without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/docs/index.html; with search: $(BIN)/python -m http.server --directory build/docs --bind 127.0.0.1"

clean:  ## Remove .venv/ and what tools left; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

# some systems keep the part of Python away that puts pip into a new environment
$(BIN)/python:
	@echo "setting up .venv with $(PYTHON): some minutes, once"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { \
	  rm -rf .venv && $(PYTHON) -m venv --without-pip .venv \
	  && $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip; }

# scikit-learn carries the quickstart's digits
$(READY): pyproject.toml | $(BIN)/python
	$(PIP) -e . scikit-learn
	@touch $@

$(DEV_READY): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $(READY) $@

$(BENCH_READY): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev,bench]'
	@touch $(READY) $(DEV_READY) $@

$(EXTRA_READY): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev,bench,extra]'
	@touch $(READY) $(DEV_READY) $(BENCH_READY) $@

$(BROWSER_READY): pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev,browser]'
	@touch $(READY) $(DEV_READY) $@
