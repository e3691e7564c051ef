# The two commands: `make demo` and `make test`. Each makes .venv and installs into it first.
VENV := .venv
BIN := $(VENV)/bin
# The first of these that TensorFlow supports; PYTHON=... names another.
CANDIDATES := python3.13 python3.12 python3.11 python3
ifndef PYTHON
PYTHON := $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
endif
# What `make test-all` runs, those of them that are here; PYTHONS="..." names others.
PYTHONS ?= python3.13 python3.12 python3.11
EXTRAS := dev,kaggle,lite,onnx,openvino,ray,report,serve
# The tests that compute features with TensorFlow, OpenVINO, LiteRT or ONNX Runtime.
NUMERICS := tests/bottlenecks tests/export tests/extraction tests/finetuning tests/modules \
	tests/report/saliency

# As many workers as processors, each with one thread: more would wait for one another.
ONE_THREAD = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1
PYTEST = $(ONE_THREAD) $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

.PHONY: audit demo test check lint types spelling notebook docs pytest slow test-all test-cpus bench mutants clean

demo: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: check pytest

check: lint types spelling docs

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

spelling: $(VENV)/installed
	$(BIN)/codespell

# The notebook of the examples, every cell of it; minutes on a busy machine.
notebook: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter execute examples/walkthrough.ipynb

# The site, in build/site; a dead link or a name that does not exist is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

pytest: $(VENV)/installed
	$(PYTEST)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

# The suite under every Python that is here, each in an environment of its own.
test-all:
	@for python in $(PYTHONS); do \
		version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || \
			{ echo "$$python is not here; its version is not tested."; continue; }; \
		echo "Testing Python $$version."; \
		$(MAKE) test PYTHON="$$python" VENV=.venv-$$version || exit; \
		tested="$$tested $$version"; \
	done; \
	test -n "$$tested" || { echo "None of $(PYTHONS) is here; name some: make test-all PYTHONS=..."; exit 1; }; \
	echo "Tested:$$tested"

# The tests of numerics under other instruction sets: kernels differ, and round differently.
test-cpus: $(VENV)/installed
	for setting in TF_ENABLE_ONEDNN_OPTS=0 ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE; do \
		echo "$$setting"; \
		env $$setting $(PYTEST) $(NUMERICS) || exit; \
	done

# The installed packages against the known holes, and the licences of all of them.
audit: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9' 'pip-licenses>=5'
	$(BIN)/pip-audit --skip-editable
	$(BIN)/pip-licenses --order=license

bench: $(VENV)/installed
	$(BIN)/python benchmarks/run.py

# Faults that somebody might write, then random ones: which does no test see? docs/mutation.md
mutants: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'cosmic-ray>=8.7,<9'
	-$(BIN)/python benchmarks/mutants.py --by-hand
	$(BIN)/python benchmarks/mutants.py

# Without --no-compile pip compiles 18,000 files, of which most are never imported.
# A folder that was moved, or made with another Python, is made anew: its scripts would not run.
$(VENV)/installed: setup.cfg setup.py pyproject.toml $(VENV)/made-by
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[$(EXTRAS)]'
	touch $@

MADE_BY := $(CURDIR) $(if $(PYTHON),$(shell $(PYTHON) --version))
ifneq ($(MADE_BY),$(shell cat $(VENV)/made-by 2>/dev/null))
.PHONY: $(VENV)/made-by
endif
$(VENV)/made-by:
	@test -n "$(PYTHON)" || { echo "No Python 3.13, 3.12 or 3.11 found; name one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	echo "$(MADE_BY)" > $@

clean:
	rm -rf .venv .venv-* demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
