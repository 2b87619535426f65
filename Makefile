# Every target does all the set-up that it needs: `make quickstart` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Many tests start processes, each of which would compile the package again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart self-labelling test gates test-portable test-oldest bench clean

help:
	@echo "make quickstart     pre-train on generated scenes, evaluate, and write a report, in quickstart/ (minutes on a CPU)"
	@echo "make self-labelling pre-train, label, pre-train on the maps, label again, compare, in self-labelling/ (IMAGES=…, TRUTH=…)"
	@echo "make test           run all tests and documentation examples, most tests with shapes and types checked"
	@echo "make gates          check style, types, import layers and wording"
	@echo "make test-portable  run numeric tests with older CPU instruction sets, 1 and 2 threads, and on a busy machine"
	@echo "make test-oldest    run all tests with the oldest supported version of each dependency, in .venv-oldest"
	@echo "make bench          run the benchmarks, which print ratios to a baseline"

# Installed again when the dependencies change. The file exists only after a complete installation.
$(VENV)/installed: pyproject.toml
	@echo "Setting up $(VENV). The first time this downloads torch, a few GB, and takes some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade "pip>=23"
	@$(BIN)/python -m pip install -qq --editable '.[dev]' $(PINS)
	@touch $@

quickstart: $(VENV)/installed
	$(BIN)/c2fmae quickstart

IMAGES ?= generated
TRUTH ?= generated
self-labelling: $(VENV)/installed
	$(BIN)/python tools/self_labelling.py '$(IMAGES)' --truth '$(TRUTH)'

# Each test runs once: with shapes and types checked at each call where possible.
test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto -m "(compile or unchecked) and not slow"
	@echo "Running the other tests, with shapes and types checked at each call:"
	$(BIN)/python -m pytest -n auto tests --jaxtyping-packages=c2fmae,shape_checks.typechecker -m "not compile and not unchecked and not slow"

gates: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" pre-commit run --all-files --show-diff-on-failure

# Runs one after another, up to the first failure. The busy process exits with the shell that started it. The cache of
# compiled code is separate for each instruction set, since its keys do not contain it.
LOWEST := ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 TORCHINDUCTOR_CACHE_DIR=$(abspath $(VENV))/compiled-lowest
AVX2 := ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 TORCHINDUCTOR_CACHE_DIR=$(abspath $(VENV))/compiled-avx2
BUSY := $(BIN)/python -c "import itertools, os; shell = os.getppid(); all(os.getppid() == shell for _ in itertools.count())"
NUMERIC := $(BIN)/python -m pytest -n auto tests -m "numeric and not slow"
test-portable: $(VENV)/installed
	$(LOWEST) $(NUMERIC)
	$(AVX2) $(NUMERIC)
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(NUMERIC)
	OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(NUMERIC)
	$(BUSY) & $(NUMERIC)

test-oldest:
	$(MAKE) VENV=.venv-oldest PINS="$$($(PYTHON) tools/oldest_versions.py)" test

bench: $(VENV)/installed
	for file in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit; done

clean:
	rm -rf .venv .venv-oldest quickstart self-labelling build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
