# `make test` needs a Rust toolchain, a C and C++ compiler, Python with pip, curl and openssl, and npm and apt (or root
# to install npm); it fetches the rest.
CARGO_TARGET_DIR ?= $(HOME)/.cache/conclave/target
export CARGO_TARGET_DIR
CONCLAVE := $(CARGO_TARGET_DIR)/debug/conclave

.PHONY: help test model binary tests deploy-test cuda-check image image-test chaos faults simulate laws fuzz deaths load deny fmt lint doc bench bench-peers bench-coordinator

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

test: binary model tests deploy-test ## everything that must hold: builds, fetches the model, runs all tests

# With the features that the tests are built with: what is heavy is built once.
binary:
	cargo build --workspace --bins --tests --locked

model: binary
	$(CONCLAVE) model pull smollm2-135m

tests: binary
	cargo test --workspace --locked

# Fetches helm, promtool and prometheus into the cache; no Kubernetes takes part.
deploy-test: binary model ## chart, rules and dashboards: schemas, policies, promtool, real processes
	tools="$$(deploy/tests/fetch-tools)" && CONCLAVE_TOOLS="$$tools" CONCLAVE_BINARY="$(CONCLAVE)" \
		"$$tools/python/bin/python" -B -m unittest discover -s deploy/tests -p 'test_*.py'

# No GPU is needed; where there is one, the kernels' tests run on it, too. With the packages and targets that keep other
# people's crates as they were built; the binary with the feature lies where the one without did, until that is asked for
# again.
cuda-check: binary model ## lints, kernels' tests and binary with the feature `cuda`; what it says without a driver or device
	tools="$$(deploy/tests/fetch-tools)" && CUDA_HOME="$${CUDA_HOME:-$$(deploy/cuda/fetch-nvcc)}" && export CUDA_HOME && \
		cargo clippy --workspace --lib --bin conclave --features conclave/cuda --locked -- -D warnings && \
		cargo test -p conclave-cuda-emulator -p conclave-kernels --features conclave-cuda-emulator/cuda,conclave-kernels/cuda --locked && \
		cargo build --workspace --bin conclave --test tidy --features conclave/cuda --locked && \
		CONCLAVE_TOOLS="$$tools" "$$tools/python/bin/python" -B deploy/tests/cuda_build.py "$(CONCLAVE)"

# IMAGE_ARGS=--local-base where no registry of images is reached, --cuda for the one with kernels for GPUs too.
image: ## the images and their SBOM, with buildah, podman or docker [IMAGE_ARGS="--cuda --local-base"]
	deploy/images/build $(IMAGE_ARGS)

image-test: model ## what `make image` built: what is in it, what it says of itself, a release that runs in it
	tools="$$(deploy/tests/fetch-tools)" && CONCLAVE_TOOLS="$$tools" \
		"$$tools/python/bin/python" -B deploy/tests/built_image.py "$(CARGO_TARGET_DIR)/images"

# SEED=N for other seeds; as root nothing may be skipped, without it, what needs root is, loudly.
chaos: faults simulate deaths load laws fuzz ## all that must not lose anything: the six below [SEED=1]

faults: binary model ## real faults against real processes, every scenario, and a table [SEED=1]
	tests/prepare-chaos
	$(CARGO_TARGET_DIR)/debug/chaos --seed "$(or $(SEED),1)" $(if $(filter 0,$(shell id -u)),--require-all)

simulate: ## 1,000 worlds of both cores, each law asked as things happen [SEED=0]
	cargo run --release --locked -p conclave-tests --bin sim -- --seed "$(or $(SEED),0)" --seeds 1000

laws: ## takes the code of each law out, and shows that its test fails
	cargo run --locked -p conclave-tests --bin laws

deny: ## licences, sources, advisories of all that is built in (fetches cargo-deny, which takes minutes once)
	.ci/deny

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

# The first run builds llama.cpp (10 minutes and more on two cores) in the cache, never in this folder.
bench-peers: ## ours beside llama.cpp and mistral.rs on the same file, in turn [ISA=avx2] [TURNS=3]
	cargo build --release --locked -p conclave -p conclave-benches
	$(CARGO_TARGET_DIR)/release/conclave model pull smollm2-135m
	benches/peers/run --ours $(CARGO_TARGET_DIR)/release/peer $(if $(ISA),--isa $(ISA)) --turns $(or $(TURNS),3)

bench-coordinator: ## commits beside etcd, jobs, memory a job, placement
	cargo build --release --locked -p conclave -p conclave-benches --bin conclave --bin coordinator
	etcd="$$(tests/scripts/fetch-etcd.sh)" && $(CARGO_TARGET_DIR)/release/coordinator --etcd "$$etcd"

# Without TARGET: all, one after another. With INPUT: that file once more.
fuzz: ## parsers of outside bytes, guided by coverage [TARGET=gguf] [SECONDS=60] [INPUT=finding]
	tests/fuzz/run "$(or $(TARGET),all)" "$(or $(SECONDS),60)" "$(INPUT)"

deaths: ## what the death of a leader and of a worker costs, beside etcd
	cargo build --release --locked -p conclave -p conclave-tests
	etcd="$$(tests/scripts/fetch-etcd.sh)" && $(CARGO_TARGET_DIR)/release/failover --etcd "$$etcd"

load: ## 2,000 clients at once, undisturbed and disturbed; a tenant that floods beside one that does not
	cargo build --release --locked -p conclave -p conclave-tests
	$(CARGO_TARGET_DIR)/release/load
	$(CARGO_TARGET_DIR)/release/load tenants
