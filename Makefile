# Each target does its own set-up: Python 3.11 or newer, git and make are enough.
#   make demo VENV=/elsewhere/venv PYTHON=python3.12      PIP_* variables are honoured

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
OUT ?= runs/reproduce

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
BENCHMARKS := $(patsubst benchmarks/%.py,benchmarks.%,$(wildcard benchmarks/[a-z]*.py))

.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce test test-system test-interop lower-bounds lint bench clean

help:
	@echo "make setup        virtual environment in $(VENV) with everything for development"
	@echo "make demo         train the tiny model on drawn scenes, evaluate it, write a report ($(RUN))"
	@echo "make reproduce    every benchmark of DATA=… by CHECKPOINT=…, beside published numbers (OUT=$(OUT), GPUS=N)"
	@echo "make test         fast tests"
	@echo "make test-system  tests with real processes, minutes each"
	@echo "make test-interop exports opened by the packages they are written for, installed on the way"
	@echo "make lower-bounds fast tests with the lowest versions that pyproject.toml allows"
	@echo "make lint         ruff, mypy, import-linter, tools/check_rules.py"
	@echo "make bench        every benchmark in benchmarks/"
	@echo "make clean        remove caches (not $(VENV), not runs)"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: name a newer one, make PYTHON=python3.12 …" >&2; exit 2; }
	@test -x $(PY) || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing uniresxx and its tools into $(VENV) (minutes the first time)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup
	$(PY) -m train tiny_scenes --out $(RUN)
	$(PY) -m eval run --checkpoint $(RUN) --benchmark scenes_easy/val --out $(RUN)
	$(PY) -m eval report $(RUN)
	@echo
	@echo "Scores: $(RUN)/metrics.json    Report: $(RUN)/report/index.html"
	@echo "Next, on a picture of your own (this model has seen drawn scenes only):"
	@echo "  $(VENV)/bin/uniresxx segment PHOTO \"the red house\" --checkpoint $(RUN) --out runs/segment"
	@echo "  $(PY) -m chat_demo --checkpoint $(RUN)"

reproduce: setup
	@test -n "$(DATA)" -a -n "$(CHECKPOINT)" || \
		{ echo "name both: make reproduce DATA=FOLDER CHECKPOINT=RUN [OUT=FOLDER] [GPUS=N]" >&2; exit 2; }
	$(if $(GPUS),$(VENV)/bin/torchrun --nproc_per_node $(GPUS),$(PY)) -m eval reproduce \
		--checkpoint "$(CHECKPOINT)" --data "$(DATA)" --out "$(OUT)"

test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 -m "not system and not slow and not interop"

test-system: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m system

test-interop: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m interop

lower-bounds:
	$(PYTHON) tools/lower_bounds.py --except torch

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PY) tools/check_rules.py

bench: setup
	@test -n "$(BENCHMARKS)" || echo "benchmarks/ holds no benchmark yet"
	@set -e; for module in $(BENCHMARKS); do OMP_NUM_THREADS=2 $(PY) -m $$module; done

clean:
	rm -rf build dist .pytest_cache .hypothesis .ruff_cache .mypy_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
