# Each target installs what it needs into .venv, and installs again when pyproject.toml or constraints.txt has changed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PACKAGES := knobctl.data knobctl.precompute knobctl.controllers knobctl.replay knobctl.serving knobctl.commands
# mypy does not follow the root mapping of an editable install: this folder has `knobctl` as a link to the repository.
TYPED := build/typed

.PHONY: demo test test-slow check format lint types docs package soak bench gpu clean

demo: $(VENV)/.installed
	$(BIN)/knobctl demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

check: lint types test

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed $(TYPED)/knobctl
	MYPYPATH=$(TYPED) $(BIN)/mypy --config-file pyproject.toml $(addprefix -p ,$(PACKAGES)) -m knobctl -m knobctl.cli -m knobctl.console -m knobctl.devices

docs: $(VENV)/.installed $(TYPED)/knobctl
	$(BIN)/python -m knobctl.tools.docs.cli_reference docs/reference/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

package: $(VENV)/.installed
	$(BIN)/python -m knobctl.tools.ci.wheel --resolve 3.12 --resolve 3.13

$(TYPED)/knobctl:
	mkdir -p $(TYPED)
	ln -sfn ../.. $@

# Kills a small writer 200 times, precompute 200 times, workers, nodes and drivers of Ray 10 times each, and train 50
# times: hours on a small machine. Try KILLS=20 first.
KILLS ?= 200
RAY_KILLS ?= 10
TRAIN_KILLS ?= 50
SOAK := runs/soak
soak: $(VENV)/.installed
	$(BIN)/python benchmarks/soak.py --kills $(KILLS)
	$(BIN)/python benchmarks/soak.py --kind cache --kills $(KILLS) --command \
	  '$(BIN)/knobctl precompute --model nano --dataset easy_vqa --samples 40 --tiers low --top-k 4,8 --num-blocks 12,16 --runs 1 --budgets 15,20,25 --device cpu --out {out}'
	$(BIN)/python benchmarks/ray_soak.py --times $(RAY_KILLS)
	test -d $(SOAK)/cache || $(BIN)/python -m knobctl.data.generated.cache $(SOAK)/cache --train 800 --val 200 --test 200 --d-model 64
	$(BIN)/python benchmarks/soak.py --kind files --kills $(TRAIN_KILLS) \
	  --command '$(BIN)/knobctl train $(SOAK)/cache --epochs 1500 --out {out}' \
	  --again '$(BIN)/knobctl train $(SOAK)/cache --epochs 1500 --out {out} --resume'

bench: $(VENV)/.installed
	for script in precompute replay cache_open import_results report; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/molmoe.py --config tiny --device cpu

# Runs with the machine's own Python and packages, without .venv or network. DEVICE=cpu checks that every section runs.
DEVICE ?= cuda
GPU_OPTIONS ?=
gpu: $(TYPED)/knobctl
	HF_HUB_OFFLINE=1 PYTHONPATH=$(CURDIR)/$(TYPED)$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) benchmarks/gpu.py --device $(DEVICE) $(GPU_OPTIONS)

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf build runs .pytest_cache .mypy_cache .ruff_cache
