# Two commands on a fresh machine with nothing but Python 3.11 to 3.13: `make demo`, `make test`.

PYTHON ?= python3
BIN := .venv/bin
# Tests run in a process for each core, up to four: each takes some gigabytes.
PYTEST := $(BIN)/pytest -n logical --maxprocesses 4 --dist worksteal

# For the tests of its layout; what it asks for (torch 2.0, xformers) it does without.
DINOV2 := dinov2==0.0.1.dev2

.PHONY: demo test test-all check docs lock clean

demo: .venv/ready
	$(BIN)/vitfold demo

test: check
	$(PYTEST)

test-all: check
	$(PYTEST) -m ''

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ as a site, which needs no network to be read.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir site

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(DINOV2)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Versions for every supported Python and platform, from pyproject.toml.
lock:
	uv pip compile --universal --python-version 3.11 --no-annotate --no-header \
		--all-extras --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv
