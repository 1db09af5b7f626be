PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast lint format bench clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready  ## make the virtual environment and install the tested set of packages into it

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## fine-tune a small real model on real text, in a few minutes, and show the record
	$(BIN)/litpeft demo

test: setup  ## run all tests
	$(BIN)/python -m pytest -m "not slow" && $(BIN)/python -m pytest -m slow

test-fast: setup  ## run the tests that need no real model and no network
	$(BIN)/python -m pytest -m "not slow"

lint: setup  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: setup  ## put style right
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: setup  ## measure speed as a ratio to Hugging Face Trainer + PEFT, in alternation on one thread
	$(BIN)/python -m tests.peers.bench

clean:  ## remove the virtual environment and what tools left; runs/ stays
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
