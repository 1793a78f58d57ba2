# `make demo` and `make test` set up everything they need: Python 3.10 or newer is all that must be there.
# PYTHON=python3.12 chooses the interpreter; VENV=path keeps the environment elsewhere.

PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: demo test lint docs clean

# Train a small ViT on scanned digits, compress it with three passes in one run, print the report.
demo: $(READY)
	@$(VENV)/bin/cook run recipes/quickstart.yaml --force

test: lint
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 8

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Write the generated parts of the documentation anew: option tables and pass headers.
docs: $(READY)
	$(VENV)/bin/python docs/generate.py

# The stamp is newer than what decides the environment, or the environment is brought up to date.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cook needs Python 3.10 or newer")'
	@echo "installing into $(VENV): a few minutes, once" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find cook tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
