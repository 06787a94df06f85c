# Targets first install the extras that they need, in the virtual environment VENV.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
TESTS ?= tests jrnn
# Number of processes: one more than two cores, since tests of several processes often wait.
JOBS ?= 3
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: setup demo test test-all test-fast accuracy parity lint bench gpu-check sanitize docs notebooks clean

setup: $(VENV)/with-demo

# Trains on handwritten digits. With another cell: make demo cell=gru
demo: $(VENV)/with-demo
	$(BIN)/jrnn train configs/digits.py$(if $(cell),:cell=$(cell))

test: $(VENV)/with-test
	$(PYTEST) $(TESTS)

# Runs a subset of the tests in three minutes, for example with another version of Python:
# make test-fast VENV=build/python3.12 PYTHON=python3.12
FAST := tests/cells/test_contract.py tests/engines/test_native.py tests/nn \
	tests/train/test_checkpoint.py tests/test_testing.py tests/engines/test_truth.py
test-fast: $(VENV)/with-test
	$(PYTEST) -k "not finite_differences and not fast_checks" $(FAST)

# Also runs the tests marked `exhaustive` (all cells on all engines with all masks; a run that is
# killed twenty times) and the sanitizers; takes an hour.
test-all: $(VENV)/with-test sanitize
	$(PYTEST) -m "not slow" $(TESTS)

# Trains networks and checks their results against bounds; takes an hour.
accuracy: $(VENV)/with-test
	$(BIN)/pytest -m slow tests/train/test_targets.py

# Compares cells and layers with those of other libraries.
parity: $(VENV)/with-test $(VENV)/with-parity
	$(PYTEST) tests/parity

lint: $(VENV)/with-lint $(VENV)/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m tests.code_blocks build/code_blocks
	$(BIN)/pyright build/code_blocks

# Times jrnn against other libraries. With options: make bench args="--shapes 0 1 --engines scan";
# see jrnn bench --help
bench: $(VENV)/with-bench $(VENV)/with-parity
	$(BIN)/jrnn bench $(args)

# Checks and times jrnn on a machine with a GPU. Installs nothing; requires JAX and flax, but jrnn
# need not be installed. Takes about six minutes at most, and writes a JSON file to docs/benchmarks/gpu. For options:
# make gpu-check args=--help
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m jrnn.bench.gpu_check $(args)

# Runs the kernels with the sanitizers of GCC or Clang for memory errors, undefined behavior and data
# races; takes minutes. On CPUs other than x86-64: make sanitize flags="-DPORTABLE -mcpu=native"
flags ?= -DPORTABLE -march=x86-64-v3 -march=native
sanitize:
	mkdir -p build
	set -e; for flag in $(flags); do for kind in address,undefined thread; do \
		$(CXX) -std=c++17 -O1 -g $$flag -DJRNN_ISA=base -fsanitize=$$kind -fno-sanitize-recover=all \
			-pthread tests/engines/sanitize.cc -o build/sanitize; \
		echo $$flag $$kind; build/sanitize; done; done

# Builds the documentation to build/site; a broken link or a missing name is an error.
docs: $(VENV)/with-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo 'the documentation is in build/site'

notebooks: $(VENV)/with-notebooks
	$(BIN)/python experiments/notebooks/run.py

clean:
	rm -rf .venv build runs .pytest_cache .ruff_cache

# Stamp files, one for each extra; an extra is installed again when the dependencies change.
$(VENV)/with-%: pyproject.toml $(VENV)/built
	$(BIN)/pip install --quiet 'jrnn[$*]'
	touch $@

# Installs jrnn; again when its dependencies or the sources of the C++ kernels change. With build
# isolation, pip would use a new environment for each build and compile all kernels again.
$(VENV)/built: pyproject.toml $(wildcard jrnn/kernels/*) | $(VENV)/bin/python
	$(BIN)/pip install --quiet 'scikit-build-core[wheels]>=1.0' 'jaxlib>=0.10'
	$(BIN)/pip install --quiet --no-build-isolation -e .
	@$(BIN)/python -c 'import jrnn._kernels' 2>/dev/null || echo 'The C++ kernels were not built;' \
		'jrnn works without them. To see the reason, run $(BIN)/pip install -v --no-build-isolation -e .'
	touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "make: jrnn requires Python 3.11 or newer; pass one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
