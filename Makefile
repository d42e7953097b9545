# Every target sets itself up: .venv/ is made once and reused, and redone when pyproject.toml changes.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
DEV_READY := .venv/.ready-dev

.PHONY: demo test lint examples clean

demo: $(READY)
	$(BIN)/dist-trainer train configs/quickstart.yaml

test: lint
	$(BIN)/python -m pytest -m "not examples"

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

examples: $(DEV_READY)
	$(BIN)/python -m pytest -m examples -s

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

# scikit-learn carries the quickstart's digits
$(READY): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . scikit-learn
	touch $@

$(DEV_READY): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY) $@
