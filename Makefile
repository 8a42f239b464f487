# Each target sets itself up: the virtual environment is made when it is missing or older than what it is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := knobctl.data knobctl.precompute knobctl.controllers knobctl.replay
# Editable installs hide the root mapping from mypy: a folder in which `knobctl` is this repository shows it.
TYPED := build/typed

.PHONY: demo test check format lint types soak bench clean

demo: $(VENV)/.installed
	$(BIN)/knobctl demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

check: lint types test

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	mkdir -p $(TYPED)
	ln -sfn ../.. $(TYPED)/knobctl
	MYPYPATH=$(TYPED) $(BIN)/mypy --config-file pyproject.toml $(addprefix -p ,$(PACKAGES)) -m knobctl.cli

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache
