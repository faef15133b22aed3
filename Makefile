# `make test` needs a Rust toolchain, a C compiler and Python with pip; it fetches the rest.
CARGO_TARGET_DIR ?= $(HOME)/.cache/conclave/target
export CARGO_TARGET_DIR
CONCLAVE := $(CARGO_TARGET_DIR)/debug/conclave

.PHONY: fuzz help test model binary tests laws fmt lint doc bench deaths load chaos

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

test: binary model tests ## everything that must hold: builds, fetches the model, runs all tests

binary:
	cargo build --locked -p conclave

model: binary
	$(CONCLAVE) model pull smollm2-135m

tests: binary
	cargo test --workspace --locked

laws: ## takes the code of each law out, and shows that its test fails
	cargo run --locked -p conclave-tests --bin laws

# SEED=N for other choices. As root nothing may be skipped; without it, what needs root is, loudly.
chaos: binary model ## real faults against real processes, every scenario, and a table [SEED=1]
	tests/prepare-chaos
	cargo build --locked -p conclave-tests --bin chaos
	$(CARGO_TARGET_DIR)/debug/chaos --seed "$(or $(SEED),1)" $(if $(filter 0,$(shell id -u)),--require-all)

fmt: ## format
	cargo fmt --all

lint: ## clippy, warnings are errors
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc: ## API documentation, warnings are errors
	RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --locked

bench: ## the figures of README.md
	cargo build --release --locked -p conclave -p conclave-benches
	$(CARGO_TARGET_DIR)/release/conclave model pull smollm2-135m
	$(CARGO_TARGET_DIR)/release/numbers

# Without TARGET: all, one after another. With INPUT: that file once more.
fuzz: ## parsers of outside bytes, guided by coverage [TARGET=gguf] [SECONDS=60] [INPUT=finding]
	tests/fuzz/run "$(or $(TARGET),all)" "$(or $(SECONDS),60)" "$(INPUT)"

deaths: ## what the death of a leader and of a worker costs, beside etcd
	cargo build --release --locked -p conclave -p conclave-tests
	etcd="$$(tests/scripts/fetch-etcd.sh)" && $(CARGO_TARGET_DIR)/release/failover --etcd "$$etcd"

load: ## 2,000 clients at once, undisturbed and disturbed
	cargo build --release --locked -p conclave -p conclave-tests
	$(CARGO_TARGET_DIR)/release/load
