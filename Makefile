# The two commands to know are `make demo` and `make test`; `make help` lists the rest.
# Everything is installed into .venv in this folder; `make clean` removes it again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEVICE_CODE = $(shell find src tests examples benchmarks -name '*.cuh' -o -name '*.cu' -o -name '*.cpp' -o -name '*.h')

.PHONY: help demo test lint format gpu-record clean

help:
	@echo 'make demo        install into .venv and run the main job: export, check and, on a GPU, bench'
	@echo 'make test        install the development tools and run every check and test'
	@echo 'make lint        only the checks of style and types'
	@echo 'make format      rewrite the sources in the style that make lint asks for'
	@echo 'make gpu-record  on a GPU: run its tests and the suites, write benchmarks/results/'
	@echo 'make clean       remove .venv and everything that was built'

demo: $(VENV)/installed
	$(BIN)/convsmith demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(DEVICE_CODE)

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(DEVICE_CODE)

# Taken with the system's Python if its PyTorch has CUDA, else with .venv's.
gpu-record:
	@if $(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; \
	then python=$(PYTHON); else $(MAKE) $(VENV)/installed-dev; python=$(BIN)/python; fi; \
	PYTHONPATH=src $$python -m convsmith.bench.gpu_record

clean:
	rm -rf $(VENV) build dist src/convsmith.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The files under .venv named below are stamps: an installation is repeated only when what it
# installs has changed.
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'ConvSmith needs Python 3.10 or newer: make PYTHON=/path/to/python'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# ConvSmith's own dependencies are those of requirements.txt, so --no-deps.
$(VENV)/installed: $(VENV)/created requirements.txt pyproject.toml setup.py
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	@touch $@
