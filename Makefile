# What a user or developer of this project calls. `make help` lists it; .ci/ has what a line of make cannot hold.
# Everything compiled goes to ~/.cache/dynamo-kubernetes (or DYNAMO_CACHE, or CARGO_TARGET_DIR for the programs).

CACHE := $(or $(DYNAMO_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dynamo-kubernetes)
export CARGO_TARGET_DIR ?= $(CACHE)/target
LOCAL := $(CARGO_TARGET_DIR)/release/dynamo-local

# Variables of `make run` and the flags that they become; what is not given is left to the program, or to the stored ring.
FLAGS = $(if $(NODES),--nodes $(NODES)) $(if $(ZONES),--zones $(ZONES)) $(if $(N),--factor $(N)) \
	$(if $(R),--read-quorum $(R)) $(if $(W),--write-quorum $(W)) $(if $(PARTITIONS),--partitions $(PARTITIONS)) \
	$(if $(DURABILITY),--durability $(DURABILITY)) $(if $(PORT),--port-base $(PORT))

.DEFAULT_GOAL := help
.PHONY: help build run tour bench bench-lite profile test test-unit test-processes test-api test-e2e soak sim lint images kube-up kube-down crds clean
# One recipe at a time: they use all processors themselves.
.NOTPARALLEL:

help: ## this list
	@echo 'make TARGET [VARIABLE=VALUE...]'; echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables of run, tour and bench-lite: NODES=6 ZONES=3 N=3 R= W= PARTITIONS=256 DURABILITY=every|interval|one-of-n|buffered PORT=7700;'
	@echo 'of run alone: DATA=<directory>, by default one for each shape in ~/.local/share/dynamo-kubernetes/local.'

build: ## build all programs, after installing what is missing for that
	@.ci/build

run: build ## a ring of 6 nodes in 3 zones on this machine, with a prompt; Ctrl-C stops it, its data stay
	@$(LOCAL) $(FLAGS) $(if $(DATA),--data "$(DATA)")

tour: build ## the guided tour, unattended, on a ring of its own that is removed afterwards
	@$(LOCAL) --temporary --tour $(FLAGS)

bench: ## what an operation costs here and elsewhere: PEER=cassandra|redis|etcd|garage|parts|ours, or BAR=g13; BENCH=; alone: lists what there is
	@.ci/bench $(or $(BAR),$(PEER)) $(if $(BAR)$(PEER),$(BENCH))

bench-lite: build ## put and get per second and latencies, on a ring of its own that is removed afterwards
	@$(LOCAL) --temporary --log-level warn $(FLAGS) -- "$(CARGO_TARGET_DIR)/release/dynamoctl" bench-lite $(BENCH)

profile: ## a flame graph of one node under load, by perf; PUTS=100 (percent) TASKS=64 DURATION=20 (seconds)
	@PUTS=$(PUTS) TASKS=$(TASKS) DURATION=$(DURATION) .ci/profile $(if $(NODES),,--nodes 3) $(FLAGS)

test: ## every test: lint, unit, processes, api, e2e on a real Kubernetes; prints the totals, cleans up after itself
	@.ci/test

test-unit: ## units, properties, and real processes on loopback
	@.ci/test unit

test-processes: ## node processes in network namespaces, cut off, killed, robbed of their disks; needs root
	@.ci/test processes

test-api: ## the operator against a real kube-apiserver
	@.ci/test api

test-e2e: ## everything on a Kubernetes in containers (kind), made and taken away
	@.ci/test e2e

soak: ## random faults under writers on kind, MINUTES=30 of them, then CHANGES=40 of its size; the history is judged; SEED=n repeats the choices
	@.ci/test soak

sim: ## the simulator on new seeds for MINUTES=10; prints a seed that fails, and how to replay it
	@cargo run --release -p dynamo-sim -- --minutes $(or $(MINUTES),10)

lint: ## formatting and clippy; licences, bans and sources too if cargo-deny is installed
	@.ci/test lint

images: ## container images of node, operator and dynamoctl from the built programs
	@.ci/images

kube-up: ## a kind cluster of three zones with the operator installed, for you to use
	@.ci/kube-up

kube-down: ## takes that cluster away, volumes included
	@e2e/kind/down dynamo

crds: build ## rewrite crds/ and the chart's copy from the Rust types
	@$(CARGO_TARGET_DIR)/release/dynamo-operator crd --write

clean: ## remove compiled programs and images from the cache; data of `make run`, tools and clusters stay
	cargo clean
	rm -rf "$(CACHE)/images"
