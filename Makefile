# Each target sets itself up in .venv. Python 3.11 or newer and make are all it takes.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help bench bench-peers bench-full chaos docs example test lint types tests tests-oldest format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

bench: $(VENV)/.bench ## Measure every backend and print a table (under a minute)
	$(BIN)/python -m benchmarks

bench-peers: $(VENV)/.bench ## The same beside what people use instead, in one run
	$(BIN)/python -m benchmarks --peers

bench-full: $(VENV)/.plots ## All of it, large numbers too, and an HTML page of it: build/benchmark.html (under twenty minutes)
	@mkdir -p build
	$(BIN)/python -m benchmarks run --peers --full --time-limit 1020 --json build/benchmark.json
	$(BIN)/python -m benchmarks report build/benchmark.json

chaos: $(VENV)/.bench ## Stop, kill and cut off processes on disk and on a server (MINUTES=10)
	$(BIN)/python -m chaos run --minutes $(or $(MINUTES),2) $(if $(SEED),--seed $(SEED))

docs: $(VENV)/.docs ## Build the documents: open site/index.html
	$(BIN)/python docs/scripts/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python -m benchmarks report benchmarks/results/reference.json --output site/benchmark.html
	@echo 'The pages: $(CURDIR)/site/index.html'

example: $(VENV)/.example ## Run the live counter in two processes (URL=redis://... for a server, PORT=8000)
	$(BIN)/python -m examples.live_counter $(if $(URL),--url '$(URL)') $(if $(PORT),--port $(PORT))

test: lint types tests tests-oldest ## All that CI runs

lint: $(VENV)/.dev ## Style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.dev ## mypy strict, and pyright on the public interface
	$(BIN)/mypy
	$(BIN)/pyright

tests: $(VENV)/.dev ## Tests with the newest dependencies, and their branch coverage
	$(BIN)/pytest --numprocesses=3 --dist=worksteal --cov --cov-report=term

# Old pytest-asyncio leaves a loop that it made itself unclosed, which shows in whatever test runs
# when it is collected; `tests` runs with that warning as an error. Left out is what is the same
# with any dependencies: the operating system, what the kit finds, and most of the state machines,
# on which old Hypothesis takes ten times as long.
NOT_OLDEST := tests/typing $(wildcard tests/unit/test_benchmark*.py) tests/disk tests/conformance/test_mutants.py \
  tests/stateful/test_mutants.py tests/stateful/test_disk.py tests/stateful/test_redis.py \
  tests/redis_backend tests/examples tests/chaos tests/unit/test_documents.py \
  $(addprefix tests/events/test_,order.py stop.py chains.py bounds.py streams.py errors.py)

tests-oldest: $(OLDEST)/.dev ## Tests with the oldest dependencies that pyproject.toml allows
	$(OLDEST)/bin/pytest --quiet --numprocesses=3 --dist=worksteal $(NOT_OLDEST:%=--ignore=%) \
	  -W ignore::pytest.PytestUnraisableExceptionWarning

format: $(VENV)/.dev ## Mend style and formatting
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## Remove the virtual environments
	rm -rf $(VENV) $(VENV)-*

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "$(PYTHON) is older than 3.11: name a newer one, as in  make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The bytecode is written even where the environment forbids it: imports are measured.
$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[report]'
	$(BIN)/python -m compileall -q statemgr
	@touch $@

$(VENV)/.plots: pyproject.toml | $(VENV)/.bench
	$(BIN)/python $(PIP) -e '.[plots]'
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[docs,report,plots]'
	@touch $@

$(VENV)/.example: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[example]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@

$(OLDEST)/.dev: pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) -e '.[crypto,otel,testing,report,servers]' attrs pydantic opentelemetry-sdk pytest-xdist \
	  --constraint tests/oldest.txt
	@touch $@
