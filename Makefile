# Each target makes .venv if it is missing. `make demo` and `make test` are all that a fresh clone needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all lint bench docs clean

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/test: .venv/base
	$(PIP) -e ".[test,lint,pandas,optimizers,studies,quantum]"
	touch $@

.venv/all: .venv/test
	$(PIP) -e ".[test,lint,pandas,optimizers,studies,quantum,parquet,lightning,hf,accelerate,frameworks,tensorboard,wandb,mlflow,trackio]"
	touch $@

.venv/bench: .venv/test
	$(PIP) -e ".[test,lint,pandas,optimizers,studies,quantum,bench]"
	touch $@

.venv/docs: .venv/base
	$(PIP) -e ".[docs]"
	touch $@

demo: .venv/base
	$(BIN)/steadygrad demo

test: .venv/test
	$(BIN)/pytest -q -n 2 -m "not slow"

test-all: .venv/all
	$(BIN)/pytest -q -n 2

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/bench
	$(BIN)/python benchmarks/run.py

docs: .venv/docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache
