# Two commands: `make demo` (see what the default model does) and `make test` (prove that it works).
# Each sets up all it needs on a fresh machine and is quick the second time.

PYTHON ?= python3
TORCH ?= torch==2.13.0
OUTPUT ?= demo
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check format clean

demo: .venv/.package
	.venv/bin/rhea demo --output $(OUTPUT)

test: .venv/.development
	.venv/bin/python -m pytest -n 2 --dist loadfile

check: .venv/.development
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/.development
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean:
	rm -rf .venv demo build *.egg-info

# The pinned torch goes first, so that an index with a CPU build of it is asked for that one and not for the newest.
.venv/.package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Rhea needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) $(TORCH)
	$(PIP) --editable .
	touch $@

.venv/.development: .venv/.package
	$(PIP) --editable '.[dev,serve,studio,metrics,driving]'
	touch $@

# Not part of it: Ray and what it brings are 300 MB. Its tests skip without.
.venv/.ray: .venv/.development
	$(PIP) --editable '.[ray]'
	touch $@
