# The two commands: `make demo` and `make test`. Each makes .venv and installs into it first.
VENV := .venv
BIN := $(VENV)/bin
# The first of these that is a Python which TensorFlow supports; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3.12 python3.11 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	2>/dev/null && echo $$p && break; done)

.PHONY: demo test check pytest slow bench clean

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: check pytest

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/installed
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run.py

$(VENV)/installed: setup.cfg setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.10, 3.11 or 3.12 found; name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,kaggle,lite,onnx,openvino,ray,report,serve]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
