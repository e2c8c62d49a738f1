# `make demo` and `make test` set everything up by themselves, in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Without compiled files, every worker and every command that tests start would compile hafrm and the tests again.
export PYTHONDONTWRITEBYTECODE :=
# Tests wait for processes and servers at times, so that one more worker than cores keeps all cores busy.
WORKERS = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

.PHONY: demo test slow chaos coverage check format clean

demo: $(READY)
	$(BIN)/hafrm demo --out demo

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

slow: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

# Random faults, drawn from a seed: `SEED=3 ROUNDS=50 make chaos`.
chaos: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m chaos tests/faults

coverage: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov hafrm --cov-report term:skip-covered

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch goes first and pinned: an open range would bring the newest build with gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hafrm needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,trl]'
	touch $(READY)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site
