# Everything runs in .venv; each target installs the extras that it needs, once.

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
TESTS ?= tests jrnn
JOBS ?= 2
PYTEST := $(BIN)/pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: setup demo test test-all test-fast accuracy parity lint bench gpu-check sanitize notebooks clean

setup: $(VENV)/with-demo

# With another cell: make demo cell=gru
demo: $(VENV)/with-demo
	$(BIN)/jrnn train configs/digits.py$(if $(cell),:cell=$(cell))

test: $(VENV)/with-test
	$(PYTEST) $(TESTS)

# A subset of the tests that takes three minutes, for other versions of Python and JAX:
# make test-fast VENV=build/python3.12 PYTHON=python3.12
FAST := tests/cells/test_contract.py tests/engines/test_native.py tests/nn \
	tests/train/test_checkpoint.py tests/test_testing.py tests/engines/test_truth.py
test-fast: $(VENV)/with-test
	$(PYTEST) -k "not finite_differences and not cost_little" $(FAST)

# All cells on all engines with all masks, twenty killed runs, and sanitizers: an hour.
test-all: $(VENV)/with-test sanitize
	$(PYTEST) -m "not slow" $(TESTS)

# Trains networks to the accuracies in README: an hour.
accuracy: $(VENV)/with-test
	$(BIN)/pytest -m slow tests/train/test_targets.py

parity: $(VENV)/with-test $(VENV)/with-parity
	$(PYTEST) tests/parity

lint: $(VENV)/with-lint $(VENV)/with-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# With other cases: make bench args="--shapes 0 1 --engines scan"; see jrnn bench --help
bench: $(VENV)/with-bench $(VENV)/with-parity
	$(BIN)/jrnn bench $(args)

# On a machine with a GPU and JAX: installs nothing, and jrnn need not be installed. It takes at most
# six minutes and writes JSON to docs/benchmarks/gpu/. See make gpu-check args=--help
gpu-check:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m jrnn.bench.gpu_check $(args)

# Runs the kernels under the sanitizers of GCC or Clang for memory errors, undefined behavior and data
# races; takes minutes. On other machines than x86-64: make sanitize flags="-DPORTABLE -mcpu=native"
flags ?= -DPORTABLE -march=x86-64-v3 -march=native
sanitize:
	mkdir -p build
	set -e; for flag in $(flags); do for kind in address,undefined thread; do \
		$(CXX) -std=c++17 -O1 -g $$flag -DJRNN_ISA=base -fsanitize=$$kind -fno-sanitize-recover=all \
			-pthread tests/engines/sanitize.cc -o build/sanitize; \
		echo $$flag $$kind; build/sanitize; done; done

notebooks: $(VENV)/with-notebooks
	$(BIN)/python experiments/notebooks/run.py

clean:
	rm -rf .venv build runs .pytest_cache .ruff_cache

# One stamp file for each extra, rebuilt when the dependencies change.
$(VENV)/with-%: pyproject.toml $(VENV)/built
	$(BIN)/pip install --quiet 'jrnn[$*]'
	touch $@

# jrnn itself, also rebuilt when its optional kernels change. Without build isolation: in a new
# environment for each build, all kernels would be compiled every time.
$(VENV)/built: pyproject.toml $(wildcard jrnn/kernels/*) | $(VENV)/bin/python
	$(BIN)/pip install --quiet 'scikit-build-core[wheels]>=1.0' 'jaxlib>=0.10'
	$(BIN)/pip install --quiet --no-build-isolation -e .
	@$(BIN)/python -c 'import jrnn._kernels' 2>/dev/null || echo 'The kernels in C++ were not built;' \
		'jrnn works without them. For the reason: $(BIN)/pip install -v --no-build-isolation -e .'
	touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "jrnn needs Python 3.11 or newer; set one: make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
