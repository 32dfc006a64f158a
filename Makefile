# Everything that is built, shown and tested. `make help` lists it.

CARGO ?= cargo
# More arguments for `berth demo`: make demo ARGS=--keep
ARGS ?=
# The seed that `make sim` plays.
SEED ?= 0
# How many seeds `make owners` plays, unless it is given a SEED.
SEEDS ?= 10000
# Recorded cases of MetalLB's behaviour, which are not part of this repository.
VECTORS ?= ../shared/vectors
# What `make fuzz` plays with (a file of tests/fuzz/fuzz_targets), and for how many seconds.
TARGET ?= bgp_session
TIME ?= 60
# What `make bench-controller` measures with: Services that wait, pairs of a run and a bare loop, further Services one
# by one, seconds at rest. The goals are stated for these.
SERVICES ?= 10000
PAIRS ?= 5
SAMPLES ?= 200
REST ?= 60
# What `make bench-layer2` measures (groups separated by commas; empty: all), how often, and for how many seconds
# heartbeats are cut or lost. The goals are stated for these.
ROWS ?=
RUNS ?= 10
WINDOW ?= 60
IMAGE_TAG ?= 0.1.0

# Programs that a shell of an ordinary user, or one that never logged in, does not find.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

# Cargo is always asked for the whole workspace: another selection has other features, and compiles half of the
# dependencies anew.
PROGRAMS := --package cli --package controller --package speaker
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
STEPS := setup lint tidy test-unit vectors test-sim test-owners test-lab test-e2e test-demo

.DEFAULT_GOAL := help
.PHONY: help build demo test $(STEPS) sim owners bench bench-demo bench-owners bench-controller bench-planner bench-layer2 bench-bgp fuzz dist images generate crds manifests clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  %-18s %s\n", $$1, $$2 }'

build: ## target/release/{berth,berth-controller,berth-speaker}
	$(CARGO) build --release --locked $(PROGRAMS)

demo: ## a small cluster on this machine, and what Berth does in it (ARGS="--keep --runs 10 …")
	@tests/setup.sh demo || echo 'going on: the demo says if it cannot do without'
	@$(MAKE) --no-print-directory build
	target/release/berth demo $(ARGS)

test: ## everything below, and setting it up
	@begin=$$(date +%s); report=; \
	for step in $(STEPS); do \
		printf '\n==> %s\n' "$$step"; since=$$(date +%s); \
		$(MAKE) --no-print-directory "$$step" || { \
			printf '\n==> %s FAILED; alone: make %s\n' "$$step" "$$step"; exit 1; }; \
		report="$$report$$(printf '    %-10s %5d s' "$$step" $$(($$(date +%s) - since)))|"; \
	done; \
	printf '\n==> all passed in %d s\n' $$(($$(date +%s) - begin)); printf '%s' "$$report" | tr '|' '\n'

setup: ## the programs that the tests run: installed for root, named for others
	@tests/setup.sh

lint: ## formatting, and clippy without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

tidy: ## the rules of this repository; generated files as they would be generated
	$(CARGO) test --quiet --locked --workspace --test tidy

test-unit: ## tests beside the code, and of single crates
	$(CARGO) test --locked --workspace --lib --bins --test api_behaviour --test cluster --test embedded \
		--test plan --test receiver --test shell --test webhook

vectors: ## MetalLB's recorded behaviour, if VECTORS is a folder that has it
	@if [ -d '$(VECTORS)' ]; then \
		BERTH_VECTORS="$$(cd '$(VECTORS)' && pwd)" $(CARGO) test --locked --workspace --test 'vectors*'; \
	else echo 'there is no $(VECTORS): nothing to hold against'; fi

test-sim: ## the simulator: named scenarios and 1,000 seeds
	$(CARGO) test --locked --workspace --test sim -- --nocapture

sim: ## one seed of the simulator, told as a story (SEED=17)
	BERTH_SIM_SEED=$(SEED) $(CARGO) test --locked --workspace --test sim random -- --nocapture

test-owners: ## the ownership protocol alone: a scenario for each of its bounds, 400 seeds, rules broken on purpose
	$(CARGO) test --locked --workspace --test owners -- --nocapture

owners: ## more seeds of it (SEEDS=10000), or one, told as a story (SEED=17)
	$(if $(filter file,$(origin SEED)),BERTH_OWNERS_SEEDS=$(SEEDS),BERTH_OWNERS_SEED=$(SEED)) \
		$(CARGO) test --locked --workspace --test owners random -- --nocapture

test-lab: ## the programs on the real kernel, in network namespaces (root)
	$(CARGO) test --locked --workspace --test lab --test lab_bfd --test lab_bgp \
		--test lab_bgp_faults --test lab_bgp_restart --test lab_bgp_status --test lab_layer2 --test rootless -- --test-threads=1 --nocapture

test-e2e: ## a real Kubernetes control plane, kube-proxy and an ingress controller (root, Go)
	$(CARGO) test --locked --workspace --test e2e --test e2e_controller --test e2e_crds --test e2e_status -- --test-threads=1

test-demo: ## the demo, to its end
	$(CARGO) test --locked --workspace --test demo

bench: bench-demo bench-owners bench-controller bench-planner bench-layer2 bench-bgp ## every measurement; the figures also go to target/bench/*.json

bench-demo: build ## ten times: a Service until its first gratuitous ARP, the outage when a node dies
	@mkdir -p target/bench
	target/release/berth demo --runs 10 --measurements target/bench/demo.json $(ARGS)

bench-owners: ## the ownership protocol in its simulator, 5 to 500 nodes: detection, agreement, datagrams, spread
	@mkdir -p target/bench
	@rm -f target/bench/owners.json
	$(CARGO) build --release --locked $(PROGRAMS) --package tests
	BERTH_BENCH_FILE=$(CURDIR)/target/bench/owners.json target/release/bench-owners

bench-controller: build ## the controller: its planning alone, then with a real kube-apiserver (root, Go; SERVICES=1000 PAIRS=2 …)
	@mkdir -p target/bench
	@tests/setup.sh e2e
	@rm -f target/bench/controller.json
	BERTH_BENCH_FILE=$(CURDIR)/target/bench/controller.json \
		$(CARGO) bench --locked --package controller --bench plan
	$(CARGO) build --release --locked $(PROGRAMS) --package tests
	BERTH_BENCH_FILE=$(CURDIR)/target/bench/controller.json BERTH_BENCH_SERVICES=$(SERVICES) \
		BERTH_BENCH_PAIRS=$(PAIRS) BERTH_BENCH_SAMPLES=$(SAMPLES) BERTH_BENCH_REST=$(REST) \
		target/release/bench-controller

bench-planner: ## the speaker's planner alone, with 10,000 Services and 50,000 EndpointSlices: time, and memory for each
	@mkdir -p target/bench
	@rm -f target/bench/planner.json
	$(CARGO) build --release --locked $(PROGRAMS) --package tests
	BERTH_BENCH_FILE=$(CURDIR)/target/bench/planner.json target/release/bench-planner

bench-layer2: build ## the speaker on a segment: fail-over, hand-over, floods, many Services (root; ROWS=cut,flood RUNS=3)
	@mkdir -p target/bench
	@tests/setup.sh bench
	$(CARGO) build --release --locked $(PROGRAMS) --package tests
	BERTH_BENCH_FILE=$(CURDIR)/target/bench/layer2.json BERTH_BENCH_ROWS=$(ROWS) BERTH_BENCH_RUNS=$(RUNS) \
		BERTH_BENCH_WINDOW=$(WINDOW) target/release/bench-layer2

bench-bgp: build ## the speaker and a router: routes come and go, many Services, many routes (root; ROWS=routes,scale RUNS=3)
	@mkdir -p target/bench
	@tests/setup.sh bench
	$(CARGO) build --release --locked $(PROGRAMS) --package tests
	BERTH_BENCH_FILE=$(CURDIR)/target/bench/bgp.json BERTH_BENCH_ROWS=$(ROWS) BERTH_BENCH_RUNS=$(RUNS) \
		target/release/bench-bgp

fuzz: ## one decoder against random octets (TARGET=bgp_session TIME=60; nightly, cargo install cargo-fuzz)
	$(CARGO) +nightly fuzz run --fuzz-dir tests/fuzz $(TARGET) -- -max_total_time=$(TIME) -rss_limit_mb=3000

dist: ## dist/: static programs, as they are shipped
	RUSTFLAGS='-C target-feature=+crt-static' \
		$(CARGO) build --locked --profile dist --target $(HOST) $(PROGRAMS)
	mkdir -p dist
	cp target/$(HOST)/dist/berth target/$(HOST)/dist/berth-controller target/$(HOST)/dist/berth-speaker dist/

images: ## container images of the controller and the speaker (docker)
	for program in controller speaker; do \
		docker build --file deploy/images/Dockerfile --target $$program \
			--tag berth-$$program:$(IMAGE_TAG) . || exit 1; \
	done

generate: crds manifests ## everything below deploy/ that is made from something else

crds: ## deploy/crds, from the types in crds/
	$(CARGO) run --quiet --package crds --bin crdgen -- deploy/crds

manifests: ## deploy/install.yaml, from deploy/base and deploy/crds
	@{ echo '# Made by `make manifests` from deploy/base and deploy/crds. Do not edit.'; \
	for part in deploy/base/00-*.yaml deploy/crds/*.yaml deploy/base/[1-9]*.yaml; do \
		echo '---'; cat "$$part"; \
	done; } >deploy/install.yaml

clean: ## away with everything that was built
	$(CARGO) clean
	rm -rf dist
