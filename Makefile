# pgquorum. `make` lists the targets. Everything a target needs is made by the targets before it; when all is there, they
# take seconds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Which PostgreSQL: make PG_MAJOR=17, and PG_CONFIG=… where it is not where Debian puts it.
PG_MAJOR    ?= 15
PG_CONFIG   ?= /usr/lib/postgresql/$(PG_MAJOR)/bin/pg_config
PGRX        := 0.18.1
PREFIX      ?= /usr/local
# The user that tests and demo run as when make runs as root.
RUN_AS      ?= postgres
DEMO_DIR    ?= /var/tmp/pgquorum-demo
TARGET      := $(CURDIR)/target
BIN         := $(TARGET)/release/pgquorum
SUDO        := $(if $(filter 0,$(shell id -u)),,sudo)

export CARGO_TARGET_DIR := $(TARGET)
export PGRX_HOME        := $(TARGET)/pgrx
export PG_CONFIG PG_MAJOR PGRX PREFIX RUN_AS DEMO_DIR SUDO
export PGQUORUM_BIN     := $(BIN)
# Nodes are made with the programs of this PostgreSQL.
WITH_SERVER := PGQUORUM_BIN_DIR="$$("$$PG_CONFIG" --bindir)"

.PHONY: help setup build install test sim bench chaos fuzz lint demo demo-stop clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## Install what is missing: packages (apt), cargo-pgrx
	@.ci/setup

build: setup ## Build the sidecar, in release
	@cargo build --release -p pgquorum-sidecar

install: build ## Build the extension, install it and the binary (PREFIX=/usr/local)
	@.ci/install

test: install ## Run all tests; the last line is the sum
	@.ci/setup test
	@$(WITH_SERVER) .ci/test

sim: ## Simulate clusters under faults: SEEDS=20000 random runs from FIRST=1 on
	@SEEDS=$${SEEDS:-20000} cargo test --release -q -p pgquorum-agent --test sim random_seeds -- --nocapture

bench: install ## Measure; one JSON line a benchmark
	@.ci/setup bench
	@$(WITH_SERVER) cargo run --release -q -p pgquorum-tests --bin bench

chaos: install ## Faults of all kinds under load, and a checker; as root. MINUTES=3 SEED=… NODES=3
	@cargo build --release -q -p pgquorum-tests --bin chaos
	@$(WITH_SERVER) $(TARGET)/release/chaos --minutes $(or $(MINUTES),3) --nodes $(or $(NODES),3) $(if $(SEED),--seed $(SEED))

fuzz: setup ## The change log's decoder and the statements' normaliser, with new inputs for MINUTES=5
	@.ci/fuzz $(or $(MINUTES),5)

lint: setup ## Formatting, clippy with warnings as errors, licences and advisories
	@.ci/lint

demo: install ## Three nodes, a workload, a SIGKILL of the leader: see the failover and count the rows
	@cargo build --release -q -p pgquorum-tests --bin demo
	@$(WITH_SERVER) $(TARGET)/release/demo --dir $(DEMO_DIR)

demo-stop: ## Stop the demo's cluster and remove it
	@if [ -e $(DEMO_DIR)/local-cluster.toml ]; then $(BIN) local destroy --dir $(DEMO_DIR); else echo "no demo in $(DEMO_DIR)"; fi

clean: ## Remove everything that was built here; what was installed stays
	@rm -rf $(TARGET)
