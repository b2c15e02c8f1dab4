# The verbs of this project. Everything runs inside .venv, which `make install` builds from pyproject.toml.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
TESTERS ?= 3

# uv installs in a third of pip's time: it unpacks on every core. Folders of wheels that pip is told of count.
WHEELS  = $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
INSTALL = $(BIN)/uv pip install --python $(BIN)/python $(addprefix --find-links ,$(WHEELS))

# Python keeps the bytecode of what it imports, also where the shell says PYTHONDONTWRITEBYTECODE, as in many images: a job starts a
# dozen processes, and without it each takes twice as long. Installing compiles what jobs import, a fifth of all files.
unexport PYTHONDONTWRITEBYTECODE
COMPILE = $(BIN)/python -c "import jobs.demo"

# What is installed: everything, or only what a job runs with.
STAMP  := $(VENV)/.installed
RUNS   := $(VENV)/.installed-to-run

.PHONY: help install demo test chaos check bench clean

help:            ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/  /'

install: $(STAMP) ## make .venv and install the project with its development tools

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11, or say which with make PYTHON=..."; exit 3; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/uv: | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv

$(STAMP): pyproject.toml | $(BIN)/uv
	$(INSTALL) -e ".[dev]"
	$(COMPILE)
	touch $(STAMP) $(RUNS)

$(RUNS): pyproject.toml | $(BIN)/uv
	$(INSTALL) -e ".[memory,cluster,serve]"
	$(COMPILE)
	touch $(RUNS)

demo: $(RUNS)    ## corpus -> memory -> distilled student -> report -> one served request (ARGS="train.steps=200")
	$(BIN)/python jobs/demo.py $(ARGS)

test: $(STAMP)   ## the tests, in TESTERS=3 processes (ARGS="tests/unit -k student"; ARGS=--long for every one)
	$(BIN)/python -m pytest -n $(TESTERS) $(ARGS)

chaos: $(STAMP)  ## the fault tests in their long form: servers, jobs and writers killed at random moments (half an hour)
	$(BIN)/python -m pytest tests/chaos tests/integration/jobs/test_on_a_cluster.py --long -rP $(ARGS)

check: $(STAMP)  ## ruff, mypy, import-linter, circles of imports; image, compose file, Kubernetes manifests, alerts and dashboards
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/import_circles.py
	$(BIN)/python -m cluster.check

bench: $(STAMP)  ## the benchmarks, in their quick form
	for script in benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:           ## remove the virtual environment and caches; keeps runs/, store/ and corpora/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
