# The two commands: `make run-local` and `make test`. Everything else is listed by `make help`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CARGO ?= cargo
CONTAINER ?= $(firstword $(notdir $(shell command -v podman docker)) docker)
IMAGE ?= da-node-executor
# The fault suite kills the worker at places that a release does not have.
FAULTS := --locked --features failpoints --test faults
# What `make fuzz` does: each target for so long, steered by the branches and comparisons that it reaches.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 $(addprefix -Cllvm-args=-sanitizer-coverage-, \
    level=4 inline-8bit-counters pc-table trace-compares)
# Handed to the program by `make run-local`, for example ARGS=--once.
ARGS ?=

# What scripts/setup chose goes before the machine's, which may be too old.
export PATH := $(CURDIR)/.cache/node/bin:$(CURDIR)/.cache/redis/bin:$(PATH)
LINT := .cache/lint/bin

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: run-local
run-local: ## Set up what is missing, build, run the demo until Ctrl-C
	@scripts/setup run
# A debug build: the demo waits for the compiler, not for the program.
	$(CARGO) run --locked -- dev $(ARGS)

.PHONY: test
test: ## Set up what is missing, run every test
	@scripts/setup
# nextest leaves documentation tests out; they go first, so that the report of the many closes the output.
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    $(CARGO) test --locked --doc && $(CARGO) nextest run --locked && $(CARGO) nextest run $(FAULTS); \
	else \
	    $(CARGO) test --locked --no-fail-fast && $(CARGO) test $(FAULTS); \
	fi

.PHONY: conformance
conformance: ## The official suite of the Model Context Protocol against our client; part of `make test` too
	@scripts/setup
	$(CARGO) test --locked --test mcp_conformance

.PHONY: soak
soak: ## The fault suite at length (half an hour); ITEMS, KILLS, REDIS_FAULTS, LONG_PAUSES, WORKERS, SEED change it
	@scripts/setup
	$(if $(SEED),FAULT_SEED=$(SEED)) $(CARGO) test $(FAULTS) long_storm -- --ignored --nocapture

.PHONY: lint
lint: fmt clippy doc lint-files lint-deps ## Everything that judges without running

.PHONY: fmt
fmt: ## Is the code formatted?
	$(CARGO) fmt --check

.PHONY: clippy
clippy: ## Compiler and clippy warnings as errors
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --features failpoints --lib --test faults -- -D warnings

.PHONY: doc
doc: ## Documentation, with warnings as errors
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --document-private-items

.PHONY: lint-files
lint-files: ## Shell scripts, Containerfile and compose.yaml
	@scripts/setup lint
	$(LINT)/shellcheck scripts/setup .ci/run
	$(LINT)/hadolint Containerfile
	$(LINT)/docker-compose --file compose.yaml config --quiet

.PHONY: lint-deps
lint-deps: ## One crypto provider: two of them panic at the first TLS connection
	@tree=$$($(CARGO) tree --locked --target all --edges all --prefix none); \
	if grep -E '^(aws-lc-rs|aws-lc-sys|openssl-sys) ' <<<"$$tree"; then \
	    echo 'a dependency brings a second crypto library: `cargo tree -i` names it' >&2; exit 1; \
	fi

.PHONY: bench
bench: ## Measure; docs/benchmarks.md explains the figures
	@scripts/setup bench
	$(CARGO) bench --locked --bench '*'

.PHONY: fuzz
fuzz: ## Any bytes into what reads MCP servers and models, FUZZ_SECONDS each (60); needs a C++ compiler
# A stable compiler will do. With --target, build scripts and macros are not instrumented.
	@host=$$(rustc -vV | sed -n 's/^host: //p'); \
	RUSTFLAGS='$(FUZZ_FLAGS)' $(CARGO) build --manifest-path fuzz/Cargo.toml --target-dir fuzz/target --target $$host --release; \
	for target in $(FUZZ_TARGETS); do \
	    mkdir -p fuzz/corpus/$$target fuzz/artifacts/$$target; \
	    fuzz/target/$$host/release/$$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 -verbosity=0 \
	        -artifact_prefix=fuzz/artifacts/$$target/ fuzz/corpus/$$target fuzz/seeds/$$target; \
	done

.PHONY: container
container: ## Build the container image with podman or docker
# podman's own image format has no health check.
	$(CONTAINER) build $(if $(filter podman,$(CONTAINER)),--format docker) --file Containerfile --tag $(IMAGE) \
	    --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p;T;q' Cargo.toml)" \
	    --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" .

.PHONY: clean
clean: ## Remove what was built and what scripts/setup brought
	rm -rf target .cache
